"The page of `check` says what `--json` says, in a real browser."
import json
import os
import re
import shlex
import shutil
from html import unescape
from html.parser import HTMLParser

import pytest
from browser import browsed, widths_of
from conftest import draw_typologies, typed
from PIL import Image

from basegun_fastai.data.pages import code, render

pytestmark = pytest.mark.slow


@pytest.fixture(scope='module')
def page(tmp_path_factory):
    "A report on 12 classes with long names and faults of most kinds; returns its file and the JSON of `--json`."
    out = tmp_path_factory.mktemp('été & <b>')
    draw_typologies(out/'data', train=5, val=3)
    data = out/'data'
    shutil.copy(data/'train'/'revolver'/'une photo, 0.jpg',
                data/'val'/'revolver'/'<script>alert(1)</script>.jpg'.replace('/', '_'))
    shutil.copy(data/'train'/'revolver'/'une photo, 1.jpg', data/'train'/'autre_pistolet'/('long ' * 40 + '.jpg'))
    Image.open(data/'train'/'revolver'/'une photo, 2.jpg').convert('L').save(data/'val'/'revolver'/'grey.jpg')
    (data/'val'/'revolver'/'bad.jpg').write_bytes(b'x')
    (data/'val'/'revolver'/os.fsdecode(b'caf\xe9\n.jpg')).write_bytes(b'')
    Image.new('RGB', (300, 200), 'white').save(data/'train'/'revolver'/'white.png')
    for i in range(4): shutil.copy(data/'train'/'revolver'/'une photo, 4.jpg', data/'train'/'revolver'/f'again {i}.jpg')
    (data/'val'/'vide').mkdir()
    (out/'groups.csv').write_text('file,group\n' + ''.join(f'{split}/revolver/"une photo, {i}.jpg",<i>\n'.replace(
        f'{split}/revolver/"', f'"{split}/revolver/') for split in ('train', 'val') for i in (0, 1, 2)))
    result = typed('check', data, '--json', out/'found.json', '--report', out/'page.html', '--groups', out/'groups.csv')
    assert result.returncode == 1 and 'Traceback' not in result.stderr
    return out/'page.html', json.loads((out/'found.json').read_text())


class Numbers(HTMLParser):
    "Collect the texts that a page marks as numbers, and its pictures."

    def __init__(self, text):
        super().__init__()
        self.key, self.found, self.pairs, self.pictures, self.tags = None, {}, [], [], set()
        self.feed(text)

    def handle_starttag(self, tag, attributes):
        o = dict(attributes)
        self.tags.add(tag)
        self.key = o.get('id') or tuple(v for k, v in o.items() if k.startswith('data-')) or None
        if 'data-pair' in o: self.pairs.append(o['data-pair'])
        if tag == 'img': self.pictures.append(o['src'])

    def handle_data(self, text):
        if self.key and text.strip().isdigit(): self.found[self.key] = int(text)


def test_the_numbers_of_the_page_are_those_of_json(page, tmp_path):
    file, actual = page
    shown = Numbers(browsed(file.as_uri(), tmp_path))
    for key in ('photos', 'ok', 'warned', 'refused'): assert shown.found[key] == actual[key]
    labels = sorted({*actual['counts']['train'], *actual['counts']['val']})
    for split in ('train', 'val'):
        for label in labels: assert shown.found[split, label] == actual['counts'][split].get(label, 0)
    for level in ('error', 'warning'):
        for kind in {o['kind'] for o in actual['problems'] if o['level'] == level}:
            assert shown.found[level, kind] == sum((o['level'], o['kind']) == (level, kind) for o in actual['problems'])
    pictured = {'leak', 'group-leak', 'conflict', 'near-duplicate', 'blank', 'repeated'}
    assert sorted(shown.pairs) == sorted(o['kind'] for o in actual['problems'] if o['kind'] in pictured)
    assert pictured | {'unreadable', 'class-mismatch', 'few-val'} <= {o['kind'] for o in actual['problems']}


def test_the_page_needs_nothing_but_itself_and_runs_nothing(page):
    text = page[0].read_text(errors='surrogateescape')
    shown = Numbers(text)
    assert 'script' not in shown.tags and not re.search(r'(src|href)="(?!data:image/jpeg)',
                                                        text) and '&lt;script&gt;' in text
    assert len(shown.pictures) >= sum(page[1]['counts']['val'].values())


def test_nothing_sticks_out_of_the_page(page, tmp_path):
    narrow, wide = widths_of(page[0], tmp_path, 390, 1200)
    assert narrow in range(300, 391) and wide in range(300, 1201)


def test_the_page_names_the_command_that_looks_for_wrong_labels(page):
    command = unescape(re.search('<code id="review">(.*?)</code>', page[0].read_text(errors='surrogateescape'))[1])
    assert shlex.split(command) == ['basegun-fastai', 'review', str(page[0].parent/'data')]


def test_commands_in_messages_are_code_and_the_rest_is_escaped():
    assert code('<i>: type `git lfs pull` & `a <b>`') == (
        '&lt;i&gt;: type <code>git lfs pull</code> &amp; <code>a &lt;b&gt;</code>')
    assert code("it's `odd") == 'it&#39;s `odd' and code('``') == '``'


def test_a_command_in_what_a_level_promises_is_code():
    values = dict(calibration=dict(temperature=1., before=dict(ece=.1), after=dict(ece=.1)), levels=dict(bands={}),
                  confidence_chart='')
    page = render('confidence.html', {}, promises=['<b>: correct them with `review`'], **values)
    assert '<li>&lt;b&gt;: correct them with <code>review</code></li>' in page
