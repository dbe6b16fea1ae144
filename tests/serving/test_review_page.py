"A reviewer decides in a real browser, by keyboard; the server dies, photos change, windows disagree: nothing is lost."
import asyncio
import csv
import errno
import json
import os
import re
import shlex
import shutil
import signal
import socket
import subprocess
import sys
from contextlib import contextmanager
from importlib.util import find_spec
from threading import Thread

import pytest
from conftest import TYPOLOGIES, tree
from PIL import Image

from basegun_fastai.base.errors import BasegunError
from basegun_fastai.data.decisions import DecisionFile, read_decisions

if find_spec('fastapi') is None: pytest.skip('no basegun-fastai[serve]', allow_module_level=True)

import httpx
from starlette.testclient import TestClient

from basegun_fastai.serving.bodies import Refusal
from basegun_fastai.serving.review import application, serve_review
from basegun_fastai.base.record import NEIGHBOUR_COLUMNS, SUSPECT_COLUMNS
from basegun_fastai.serving.review_list import read_list
from basegun_fastai.serving.review_session import Session, faults_ahead
from basegun_fastai.serving.server import Server, listen

CLASSES = sorted(TYPOLOGIES)
in_a_browser = [pytest.mark.slow, pytest.mark.skipif(not (find_spec('playwright') and shutil.which('chromium')),
                                                     reason='no playwright or chromium')]


def write_list(data, folder, suspects):
    "A list as `review` writes it: of each suspect its file and what differs from a wrong label."
    folder.mkdir()
    files = [o.relative_to(data).as_posix() for o in sorted(data.glob('*/*/*'))]
    rows, nearest = [], []
    for rank, (file, changes) in enumerate(suspects, 1):
        label = file.split('/')[1]
        other = CLASSES[(CLASSES.index(label) + 1) % len(CLASSES)]
        row = dict(file=file, label=label, suggested=other, confidence=.93, kind='label', rank=rank,
                   reason=f"It looks like '{other}', not '{label}'.") | changes
        own, others = [[o for o in files if o.split('/')[1] == name and o != file]
                       for name in (label, row['suggested'])]
        rows.append([row[o] for o in SUSPECT_COLUMNS])
        nearest.append([file, *(own + ['', '', ''])[:3], *(others + ['', '', ''])[:3]])
    for name, header, lines in (('suspects', SUSPECT_COLUMNS, rows), ('neighbours', NEIGHBOUR_COLUMNS, nearest)):
        with open(folder/f'{name}.csv', 'w', encoding='utf-8', errors='surrogateescape', newline='') as file:
            csv.writer(file, lineterminator='\n').writerows([header, *lines])
    about = dict(version=1, classes=CLASSES, photos=len(files), suspects=len(rows), created='2026-01-01T00:00:00',
                 fingerprint='abc')
    (folder/'review.json').write_text(json.dumps(about))
    return folder


@pytest.fixture
def small(tmp_path):
    "A data set of 120 tiny photos, and the list of all of them."
    for i, label in enumerate(CLASSES * 10):
        place = tmp_path/'les données'/('val' if i % 5 == 0 else 'train')/label
        place.mkdir(parents=True, exist_ok=True)
        Image.new('RGB', (60, 40), (2 * i, 255 - i, 90)).save(place/f'été, {i:03}.jpg')
    return tmp_path/'les données', listed(tmp_path/'les données', tmp_path/'list')


def listed(data, folder, n=None, **changes):
    files = [o.relative_to(data).as_posix() for o in sorted(data.glob('*/*/*'))]
    return write_list(data, folder, [(o, changes) for o in files[:n]])


def rows_of(file):
    if not file.exists(): return []  # the first decision makes it
    with open(file, encoding='utf-8', newline='') as f: return list(csv.DictReader(f))


# without a browser

@contextmanager
def client(data, folder, reviewer='', first=None, first_place=None):
    "The application, and a client with its token."
    place = folder/(f'decisions-{reviewer}.csv' if reviewer else 'decisions.csv')
    with DecisionFile.open(place) as decisions:
        session = Session(data, read_list(data, folder), decisions, reviewer, first)
        app = application(session, 'the-token', 8001, [*filter(None, [first_place]), place])
        with TestClient(app, 'http://127.0.0.1:8001', headers=dict(authorization='Bearer the-token')) as client:
            yield client
        session.end()


def decision(kind='keep', new_label='', note=''):
    return dict(decision=kind, new_label=new_label, note=note)


def posted(client, number, wanted, earlier=None, digest=None):
    digest = digest or client.get(f'/photo/{number}').headers['x-photo-sha256']
    return client.post('/decision', json=dict(number=number, decision=wanted, earlier=earlier, digest=digest))


def test_who_has_no_token_gets_only_the_page(small):
    with client(*small) as asked:
        for path in ('/state', '/suspects', '/photo/0', '/neighbour/0', '/decision', '/docs', '/openapi.json', '/x'):
            for headers in ({'authorization': ''}, {'authorization': 'Bearer other'}):
                assert asked.get(path, headers=headers).status_code == 401
        page = asked.get('/', headers={'authorization': ''})
        policy = page.headers['content-security-policy']
        assert page.status_code == 200 and 'unsafe' not in policy and policy.count('sha256-') == 2
        for o in (page, asked.get('/photo/0'), asked.get('/state')): assert o.headers['cache-control'] == 'no-store'


def test_another_host_is_refused(small):
    with client(*small) as asked:
        for host in ('app.example', 'app.example:8001', '127.0.0.1', '127.0.0.1:8002', '127.0.0.1:8001.app.example'):
            refused = asked.get('/state', headers={'host': host})
            assert refused.status_code == 421 and 'http://127.0.0.1:8001' in refused.json()['detail'], host
        assert asked.get('/state', headers={'host': 'localhost:8001'}).status_code == 200


@pytest.mark.parametrize('path', ['/photo/120', '/photo/-1', '/photo/1e3', '/photo/..%2f..%2fsecret.jpg',
    '/neighbour/999', '/neighbour/-1', '/photo/train/../../secret.jpg', '/secret.jpg', '/photo/%00',
    f'/photo/{"9" * 30}'])
def test_only_photos_of_the_list_are_shown(small, path):
    Image.new('RGB', (9, 9)).save(small[1].parent/'secret.jpg')
    with client(*small) as asked: assert asked.get(path).status_code in (404, 422)


def test_photos_are_upright_srgb_jpegs_of_a_useful_size(small):
    data, folder = small
    file = sorted(data.glob('*/*/*'))[0]
    exif = Image.Exif()
    exif[274] = 6
    Image.new('CMYK', (3000, 1000), (0, 255, 255, 0)).save(file, exif=exif)
    with client(data, folder) as asked:
        sizes = {}
        for path in ('/photo/0', '/photo/0?zoom=true', '/photo/1'):
            shown = asked.get(path)
            with Image.open(shown) as image: sizes[path] = (image.format, image.mode, image.size)
        assert sizes == {'/photo/0': ('JPEG', 'RGB', (533, 1600)), '/photo/0?zoom=true': ('JPEG', 'RGB', (1000, 3000)),
                         '/photo/1': ('JPEG', 'RGB', (60, 40))}


def test_decisions_are_lines_that_say_everything(small):
    data, folder = small
    before = tree(data)
    with client(data, folder, 'Ana') as asked:
        other = asked.get('/suspects?start=1&n=1').json()[0]
        digest = asked.get('/photo/1').headers['x-photo-sha256']
        wanted = [decision(), decision('move', CLASSES[3]), decision('invalid', note='no-gun'), None,
                  decision('unsure')]
        for earlier, o in zip([None, *wanted], wanted, strict=False):
            answer = posted(asked, 1, o, earlier)
            assert answer.status_code == 200 and answer.json()['suspect']['decided'] == o
            assert answer.json()['state']['decided'] == (o is not None)
    rows = rows_of(folder/'decisions-Ana.csv')
    assert [o['decision'] for o in rows] == ['keep', 'undo', 'move', 'undo', 'invalid', 'undo', 'unsure']
    assert [o['class'] for o in rows if o['decision'] == 'move'] == [CLASSES[3]]
    assert {(o['file'], o['sha256'], o['label'], o['reviewer']) for o in rows} == {
        (other['file'], digest, other['label'], 'Ana')}
    assert all(re.fullmatch(r'20\d\d-\d\d-\d\dT\d\d:\d\d:\d\d\+00:00', o['time']) for o in rows)
    assert read_decisions(folder/'decisions-Ana.csv')[other['file']].decision == 'unsure' and tree(data) == before


@pytest.mark.parametrize('wanted', [
    decision('move'), decision('move', 'no class'), decision('move', CLASSES[0]), decision('keep', CLASSES[1]),
    decision('invalid'), decision('invalid', note='ugly'), decision('keep', note='no-gun'), decision('undo'),
    decision('x'), dict(decision='move', new_label=['a']), 7])
def test_a_decision_that_makes_no_sense_is_refused(small, wanted):
    with client(*small) as asked: assert posted(asked, 0, wanted).status_code == 422
    assert not rows_of(small[1]/'decisions.csv')


def test_a_decision_that_comes_twice_is_written_once(small):
    with client(*small) as asked:
        for _ in range(2): assert posted(asked, 0, decision()).status_code == 200
        for _ in range(2): assert posted(asked, 0, None, decision()).status_code == 200
    assert [o['decision'] for o in rows_of(small[1]/'decisions.csv')] == ['keep', 'undo']


def test_a_decision_must_know_the_one_before(small):
    with client(*small) as asked:
        posted(asked, 0, decision('unsure'))
        for wanted, earlier in ((decision(), None), (None, decision()), (decision(), decision('move', CLASSES[2]))):
            refused = posted(asked, 0, wanted, earlier)
            assert refused.status_code == 409 and refused.json()['code'] == 'decided-elsewhere'
    assert [o['decision'] for o in rows_of(small[1]/'decisions.csv')] == ['unsure']


def test_a_photo_that_changed_or_vanished_gets_no_decision(small):
    data, folder = small
    first, second, third = sorted(data.glob('*/*/*'))[:3]
    with client(data, folder) as asked:
        digests = [asked.get(f'/photo/{o}').headers['x-photo-sha256'] for o in range(3)]
        Image.new('RGB', (9, 9)).save(first)
        second.unlink()
        answers = [posted(asked, o, decision(), digest=digests[o]) for o in range(2)]
        assert [(o.status_code, o.json()['code']) for o in answers] == [(409, 'photo-changed'), (410, 'photo-vanished')]
        assert asked.get('/photo/1').json()['code'] == 'photo-vanished'
        third.write_bytes(b'no photo')
        assert asked.get('/photo/2').json()['code'] == 'photo-unreadable'
        assert posted(asked, 0, decision()).status_code == 200  # the new bytes have been shown
    assert len(rows_of(folder/'decisions.csv')) == 1


def test_a_decision_that_cannot_be_written_is_refused(small):
    data, folder = small
    with client(data, folder) as asked:
        with open(folder/'decisions.csv', 'a') as file: file.write('by a spreadsheet\n')
        refused = posted(asked, 0, decision())
        assert refused.status_code == 507 and 'changed by another program' in refused.json()['detail']
        assert refused.json()['code'] == 'file-changed' and asked.get('/state').json()['decided'] == 0


def full(*_): raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))


def test_a_full_disk_is_said_at_the_end_unless_there_was_room_later(small, monkeypatch):
    data, folder = small
    with DecisionFile.open(folder/'decisions.csv') as decisions:
        for number, has_room_later in enumerate([True, False]):
            session = Session(data, read_list(data, folder), decisions)
            async def decide(number=number, session=session):
                digest = (await session.photo(session.list.suspects[number].file))[1]
                await session.decide(number, decision(), None, digest)
            with monkeypatch.context() as patch:
                patch.setattr(os, 'pwrite', full)
                patch.setattr('basegun_fastai.data.decisions.write_whole', full)
                for _ in range(2):
                    with pytest.raises(Refusal) as refused: asyncio.run(decide())
            assert refused.value.status_code == 507 and refused.value.code == 'disk-full'
            if has_room_later: asyncio.run(decide())
            message = session.end()
            assert bool(message) != has_room_later
    assert len(rows_of(folder/'decisions.csv')) == 1
    assert "the last decisions are not in '" in message and os.strerror(errno.ENOSPC) in message


def test_the_server_ends_with_what_is_not_saved(small):
    data, folder = small
    with in_a_process(data, folder) as review:
        (folder/'decisions.csv').write_text('by a spreadsheet\n')
        token = review.url.partition('#')[2]
        def asked(path, **sent):
            return httpx.request('POST' if sent else 'GET', f'http://127.0.0.1:{review.port}{path}', **sent,
                                 headers=dict(authorization=f'Bearer {token}'))
        digest = asked('/photo/0').headers['x-photo-sha256']
        refused = asked('/decision', json=dict(number=0, decision=decision(), earlier=None, digest=digest))
        assert refused.status_code == 507
        review.process.send_signal(signal.SIGINT)
        _, err = review.process.communicate(timeout=30)
        assert review.process.returncode and 'the last decisions are not in' in err.splitlines()[-1]


def test_a_second_reviewer_sees_what_the_first_was_unsure_of(small):
    data, folder = small
    with client(data, folder, 'Ana') as asked:
        for i, kind in enumerate(['keep', 'unsure', 'keep', 'unsure']): posted(asked, i, decision(kind))
    first = read_decisions(folder/'decisions-Ana.csv')
    with client(data, folder, 'Bo', first, folder/'decisions-Ana.csv') as asked:
        files = [str(folder/f'decisions-{o}.csv') for o in ('Ana', 'Bo')]
        command = shlex.split(asked.get('/state').json()['command'])
        assert command == ['basegun-fastai', 'apply', str(data), *files, 'OUT']
        shown = asked.get('/suspects').json()
        assert [o['number'] for o in shown] == [1, 3] and 'Ana' not in json.dumps(shown)
        answer = posted(asked, 3, decision('move', CLASSES[2])).json()
        assert answer['suspect']['first'] == dict(reviewer='Ana', note='')
        assert answer['state']['photos'] == 2 and answer['state']['decided'] == 1
    assert [o['reviewer'] for o in rows_of(folder/'decisions-Bo.csv')] == ['Bo']


def test_the_rate_is_that_of_the_last_fifty():
    assert faults_ahead([]) == {} and faults_ahead(['unsure'] * 9) == {}
    assert faults_ahead(['move'] * 70 + ['keep'] * 50) == dict(n=50, faults=0, most=6)
    assert faults_ahead(['keep'] * 70 + ['move', 'invalid', 'unsure', 'keep'])['faults'] == 2
    assert faults_ahead(['move'] * 3)['most'] == 100


def test_names_that_are_not_text_are_shown_and_decided(small):
    data, folder = small
    odd = os.fsdecode('train/revolver/caf\udce9.jpg'.encode('utf-8', 'surrogateescape'))
    shutil.copy(sorted(data.glob('*/*/*'))[0], data/odd)
    shutil.rmtree(folder)
    write_list(data, folder, [(odd, {})])
    with client(data, folder) as asked:
        assert asked.get('/suspects').json()[0]['file'] == 'train/revolver/caf\\udce9.jpg'
        assert posted(asked, 0, decision()).status_code == 200
    assert {*read_decisions(folder/'decisions.csv')} == {odd}


def cut(name, text='', new=None):
    def change(folder):
        content = (folder/name).read_text()
        (folder/name).write_text(content.replace(text, new, 1) if text else content[:len(content) * 2 // 3])
    return change


FAULTS = {
    'no record': (lambda folder: (folder/'review.json').unlink(), "review.json' cannot be read"),
    'cut record': (cut('review.json'), "review.json' is cut off or damaged"),
    'newer record': (cut('review.json', '"version": 1', '"version": 2'), 'has version 2'),
    'no table': (lambda folder: (folder/'suspects.csv').unlink(), "suspects.csv' cannot be read"),
    'cut table': (cut('suspects.csv'), "suspects.csv' is cut off"),
    'cut at a line': (lambda folder: (folder/'suspects.csv').write_text(''.join(
        (folder/'suspects.csv').read_text().splitlines(True)[:50])), 'has 49 lines, and review.json says 120 suspects'),
    'cut at the end': (lambda folder: (folder/'suspects.csv').write_text((folder/'suspects.csv').read_text()[:-1]),
                       'the end of the line is missing'),
    'cut neighbours': (cut('neighbours.csv'), "neighbours.csv' is cut off"),
    'other columns': (cut('suspects.csv', 'suggested', 'proposed'), 'has no column suggested'),
    'no share': (cut('suspects.csv', '0.93', '93 %'), "line 2: the confidence '93 %' is not between 0 and 1"),
    'no class': (cut('suspects.csv', ',autre_pistolet,', ',fusil,'), "line 2: the class 'fusil' is not in review.json"),
    'another folder': (cut('suspects.csv', ',autre_pistolet,', ',revolver,'), "is not in class 'revolver'"),
    'outside': (cut('suspects.csv', 'train/autre_pistolet/', 'train/../'), 'is not a photo of train/ or val/'),
    'neighbour outside': (cut('neighbours.csv', ',"train/', ',"/train/'), 'is not a photo of train/ or val/'),
    'unknown kind': (cut('suspects.csv', ',0.93,label,', ',0.93,ugly,'), "the kind 'ugly' is unknown"),
    'no rank': (cut('suspects.csv', ',1,', ',first,'), "the rank 'first' is not a whole number"),
    'open quote': (cut('suspects.csv', ',0.93,label,', ',0.93,"label,'), 'is cut off or damaged in line'),
    'other decisions': (lambda folder: (folder/'decisions.csv').write_text(
        'file,sha256,label,decision,class,note,reviewer,time\n'
        f'train/x/1.jpg,{"0" * 64},x,keep,,,,2026-01-01T00:00:00+00:00\n'), 'has decisions about other photos'),
}


@pytest.mark.parametrize('fault', FAULTS)
def test_a_list_that_cannot_be_used_is_refused_before_the_server_starts(small, fault):
    data, folder = small
    change, expected = FAULTS[fault]
    change(folder)
    with pytest.raises(BasegunError) as caught: serve_review(data, folder, port=0)
    lines = str(caught.value).splitlines()
    assert expected in lines[0] and len(lines) <= 6 and all(':' in o for o in lines), lines


def test_a_list_of_another_data_set_is_refused(small, tmp_path):
    (tmp_path/'other'/'train').mkdir(parents=True)
    with pytest.raises(BasegunError, match='belongs to another data set'): serve_review(tmp_path/'other', small[1])
    for o in CLASSES: (tmp_path/'other'/'train'/o).mkdir()
    with pytest.raises(BasegunError, match='has none of the first photos'): serve_review(tmp_path/'other', small[1])
    with pytest.raises(BasegunError, match='is not a folder'): serve_review(tmp_path/'nothing', small[1])


def test_a_class_that_was_renamed_is_named(small, capsys):
    data, folder = small
    shutil.copytree(data/'train'/'revolver', data/'train'/'new one')
    sorted((data/'train').rglob('*.jpg'))[0].unlink()
    read_list(data, folder)
    warnings = capsys.readouterr().err.splitlines()
    assert len(warnings) == 2 and "warning: 1 of the first 100 photos of the list are not in" in warnings[0]
    assert "does not have the class 'new one'" in warnings[1]
    for o in data.glob('*/revolver'): o.rename(o.with_name('other'))
    with pytest.raises(BasegunError, match="has no class 'revolver', which the list has"): serve_review(data, folder)


def test_a_second_reviewer_without_work_is_refused(small):
    data, folder = small
    with client(data, folder, 'Ana') as asked: posted(asked, 0, decision())
    with pytest.raises(BasegunError, match='unsure of no photo'):
        serve_review(data, folder, 'Bo', folder/'decisions-Ana.csv')
    with pytest.raises(BasegunError, match='own decisions'):
        serve_review(data, folder, 'Ana', folder/'decisions-Ana.csv')


def test_a_port_or_a_file_in_use_is_refused(small):
    data, folder = small
    with socket.create_server(('127.0.0.1', 0)) as taken:
        port = taken.getsockname()[1]
        with pytest.raises(BasegunError, match='give another port') as error: serve_review(data, folder, port=port)
    assert f'--port {port} ' in str(error.value) and '--host' not in str(error.value)
    assert not (folder/'decisions.csv').exists()
    with in_a_process(data, folder) as review:
        with pytest.raises(BasegunError, match='being written by') as error: serve_review(data, folder)
        assert 'end that review with ctrl-C, or give another --reviewer' in str(error.value)
        assert ended(review, signal.SIGINT)


def ended(review, number):
    "Does a signal end the server without a word?"
    review.process.send_signal(number)
    out, err = review.process.communicate(timeout=30)
    return review.process.returncode == 0 and out == '' and err.count('\n') == 1 and '120 photos to review' in err


def test_the_server_ends_when_asked(small):
    with in_a_process(*small) as review:
        assert re.fullmatch(r'http://127\.0\.0\.1:\d+/#[\w-]{20,}', review.url)
        assert ended(review, signal.SIGTERM)


# in a browser

PROGRAM = """
import sys
from pathlib import Path
from basegun_fastai.serving.review import serve_review
data, folder, port = sys.argv[1:]
serve_review(Path(data), Path(folder), port=int(port))
"""


class Review:
    "The server in a process of its own, which a test may kill."

    def __init__(self, data, folder, port=0):
        command = [sys.executable, '-c', PROGRAM, *map(str, (data, folder, port))]
        self.process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
        self.url = self.process.stdout.readline().strip()
        assert self.url, self.process.stderr.read()
        self.port = int(re.search(r':(\d+)/#', self.url)[1])

    def kill(self):
        self.process.kill()
        self.process.communicate()


@contextmanager
def in_a_process(data, folder, **options):
    review = Review(data, folder, **options)
    try: yield review
    finally: review.kill()


@contextmanager
def reviewing(data, folder):
    "The address of a server in a thread of this process."
    place = folder/'decisions.csv'
    with listen('127.0.0.1', 0) as listening, DecisionFile.open(place) as decisions:
        port, session = listening.getsockname()[1], Session(data, read_list(data, folder), decisions)
        server = Server(application(session, 'the-token', port, [place]))
        thread = Thread(target=lambda: asyncio.run(server.serve(sockets=[listening])))
        listening.listen()
        thread.start()
        try: yield f'http://127.0.0.1:{port}/#the-token'
        finally:
            server.should_exit = True
            thread.join()
            session.end()


@pytest.fixture(scope='module')
def chromium():
    from playwright.sync_api import sync_playwright
    with sync_playwright() as play:
        browser = play.chromium.launch(executable_path=shutil.which('chromium'), args=['--no-sandbox'])
        yield browser
        browser.close()


@contextmanager
def opened(browser, url, **options):
    "The page when it shows its first photo; fails if it made an error or asked another host."
    context, heard = browser.new_context(**dict(locale='en-GB') | options), []
    context.on('weberror', lambda o: heard.append(str(o.error)))
    own = url.split('#')[0], 'blob:', 'data:'
    context.on('request', lambda o: None if o.url.startswith(own) else heard.append(o.url))
    page = context.new_page()
    page.goto(url)
    page.wait_for_selector('#stage img')
    try: yield page
    finally: context.close()
    assert not heard


def shown(page):
    return int(page.get_attribute('#stage img', 'data-number'))


def until_shown(page, number):
    page.wait_for_selector(f'#stage img[data-number="{number}"]')


def until_said(page, words):
    page.wait_for_function('words => document.querySelector("#message").textContent.includes(words)', arg=words)


def until_decided(page, n):
    page.wait_for_function('n => document.querySelector("#bar").value === n', arg=n)


def until_loaded_ahead(page):
    page.wait_for_function('() => views.size >= 5')
    page.evaluate('async () => { await Promise.all(views.values()) }')  # they have been asked for only


PRESS = "o => document.body.dispatchEvent(new KeyboardEvent('keydown', { bubbles: true, ...o }))"


def last_decisions(file):
    return {k: (o.decision, o.new_label, o.note) for k, o in read_decisions(file).items()}


class TestInABrowser:
    pytestmark = in_a_browser

    def test_a_hundred_decisions_by_keyboard_survive_three_kills(self, small, chromium):
        data, folder = small
        suspects, place, expected, review = read_list(data, folder).suspects, folder/'decisions.csv', {}, None
        def press(page, i):
            o = suspects[i]
            if i % 5 == 0: keys, wanted = 'k', ('keep', '', '')
            elif i % 5 == 1: keys, wanted = 's', ('move', o.suggested, '')
            elif i % 5 == 2: keys, wanted = 'x4', ('invalid', '', 'drawing')
            elif i % 5 == 3: keys, wanted = 'u', ('unsure', '', '')
            else:
                to = 11 if o.label != CLASSES[11] else 2
                keys, wanted = '3' if to == 2 else 'c', ('move', CLASSES[to], '')
            until_shown(page, i)
            for key in keys: page.keyboard.press(key)
            expected[o.file] = wanted
        try:
            review = Review(data, folder)
            with opened(chromium, review.url) as page:
                for i in range(100):
                    if i in (30, 60, 90):
                        until_decided(page, i) if i == 60 else until_shown(page, i)
                        answered = page.evaluate('about.decided')
                        review.kill()
                        assert answered <= len(read_decisions(place))  # what was counted is on the disk
                        if i != 60:
                            press(page, i)  # with the server gone; the next photos are in the page already
                            until_said(page, 'cannot be reached')
                        review = Review(data, folder, port=review.port)
                        page.goto(review.url)
                        page.wait_for_selector('#stage img')
                        if i != 60: continue
                    press(page, i)
                until_decided(page, 100)
                assert page.inner_text('#progress') == '100 of 120 decided' and shown(page) == 100
                assert page.inner_text('#rate').startswith('Faults in the last 50 decisions: 38.')
            assert last_decisions(place) == expected
            assert len(rows_of(place)) == 100
        finally: review.kill()

    def test_a_page_of_yesterday_says_that_the_server_was_restarted(self, small, chromium):
        data, folder = small
        with in_a_process(data, folder) as review, opened(chromium, review.url) as page:
            review.kill()
            page.keyboard.press('k')
            until_said(page, 'cannot be reached')
            with in_a_process(data, folder, port=review.port) as new:
                until_said(page, 'open the new address')
                page.goto(new.url)
                until_decided(page, 1)
                until_shown(page, 1)
                page.goto(new.url.split('#')[0])
                until_said(page, 'lacks its token')

    def test_a_token_that_was_never_right(self, small, chromium):
        data, folder = small
        with reviewing(data, folder) as url, opened(chromium, url) as page:
            page.goto('about:blank')
            page.goto(url.replace('the-token', 'another'))
            until_said(page, 'This is not the address of the server')

    def test_a_full_disk_is_not_a_server_that_is_away(self, small, chromium, monkeypatch):
        data, folder = small
        with reviewing(data, folder) as url, opened(chromium, url, locale='fr-FR') as page:
            with monkeypatch.context() as patch:
                patch.setattr('basegun_fastai.data.decisions.write_whole', full)
                page.keyboard.press('k')
                until_said(page, 'Le disque est plein')
                until_shown(page, 1)
                page.keyboard.press('k')
                until_shown(page, 2)
                assert 'Le disque est plein' in page.inner_text('#message')
                assert page.inner_text('#unsaved').startswith('2 décisions ne sont pas')
            until_decided(page, 2)
            until_said(page, 'Toutes les décisions sont enregistrées')
        assert len(rows_of(folder/'decisions.csv')) == 2

    def test_an_answer_that_comes_before_the_list_ends_nothing(self, small, chromium):
        data, folder = small
        with reviewing(data, folder) as url, opened(chromium, url) as page:
            page.evaluate("stored(place(), JSON.stringify([{ number: 0, decision: decision('keep'), earlier: null, "
                          "digest: shown.digest }]))")
            held = []
            def hold(route): held.append((route, route.fetch()))  # the list without the decision
            page.route('**/suspects*', hold)
            page.route('**/decision', lambda o: o.continue_() if held else o.abort())
            page.reload()
            until_decided(page, 1)
            for route, response in held: route.fulfill(response=response)
            until_shown(page, 1)
            page.keyboard.press('k')
            until_decided(page, 2)

    def test_decisions_wait_for_a_server_that_is_away(self, small, chromium):
        data, folder = small
        with reviewing(data, folder) as url, opened(chromium, url) as page:
            until_loaded_ahead(page)
            page.context.set_offline(True)
            page.keyboard.press('k')
            until_said(page, 'cannot be reached')
            page.keyboard.press('s')
            until_shown(page, 2)
            assert page.inner_text('#unsaved') == '2 decisions are not saved yet'
            assert not rows_of(folder/'decisions.csv')
            page.context.set_offline(False)
            until_said(page, 'All decisions are saved')
            until_decided(page, 2)
            assert [o['decision'] for o in rows_of(folder/'decisions.csv')] == ['keep', 'move']

    def test_undo_and_going_back(self, small, chromium):
        data, folder = small
        with reviewing(data, folder) as url, opened(chromium, url) as page:
            for i in range(3):
                until_shown(page, i)
                page.keyboard.press('Enter')
            until_shown(page, 3)
            page.keyboard.press('z')
            until_shown(page, 2)
            until_decided(page, 2)
            page.keyboard.press('Control+z')
            until_shown(page, 1)
            until_decided(page, 1)
            page.keyboard.press('ArrowLeft')
            until_shown(page, 0)
            assert page.inner_text('#decided') == 'You decided: the label is correct.'
            page.keyboard.press('u')  # a changed decision
            until_shown(page, 1)
            page.keyboard.press('ArrowRight')
            until_shown(page, 2)
            page.keyboard.press('z')
            until_shown(page, 0)
            until_decided(page, 0)
            page.keyboard.press('z')
            until_said(page, 'nothing to undo')
        kinds = [o['decision'] for o in rows_of(folder/'decisions.csv')]
        assert kinds == ['keep'] * 3 + ['undo'] * 3 + ['unsure', 'undo'] and not read_decisions(folder/'decisions.csv')

    def test_two_windows_do_not_overwrite_each_other(self, small, chromium):
        data, folder = small
        with reviewing(data, folder) as url, opened(chromium, url) as page:
            other = page.context.new_page()
            other.goto(url)
            until_shown(other, 0)
            page.keyboard.press('k')
            until_decided(page, 1)
            other.keyboard.press('u')
            until_said(other, 'has been decided in another window')
            other.click('#go')
            until_shown(other, 0)
            assert other.inner_text('#decided') == 'You decided: the label is correct.'
            assert not other.inner_text('#message')
            other.click('#forward')
            until_shown(other, 1)
            other.keyboard.press('k')
            until_decided(page, 2)  # a window learns what another one saves
            page.keyboard.press('u')  # photo 1, which this window still shows
            until_shown(page, 2)
            page.keyboard.press('u')
            until_decided(page, 3)
            until_shown(page, 3)
            until_said(page, 'has been decided in another window')
            other.keyboard.press('k')  # photo 2, too
            until_said(other, 'has been decided in another window')
            assert [o['decision'] for o in rows_of(folder/'decisions.csv')] == ['keep', 'keep', 'unsure']

    def test_each_refused_decision_can_be_shown(self, small, chromium):
        data, folder = small
        files = [data/o.file for o in read_list(data, folder).suspects]
        with reviewing(data, folder) as url, opened(chromium, url) as page:
            until_loaded_ahead(page)
            for o in files[:2]: Image.new('RGB', (9, 9)).save(o)
            waiting = []
            page.route('**/decision', lambda o: o.continue_() if waiting else waiting.append(o))  # the first one waits
            for number in range(3):
                until_shown(page, number)
                page.keyboard.press('k')
            until_shown(page, 3)
            waiting[0].continue_()
            until_said(page, 'And 1 more.')
            until_decided(page, 1)
            for number in (0, 1):
                until_said(page, f'{files[number].name} has changed on the disk')
                page.click('#go')
                until_shown(page, number)
            assert not page.inner_text('#message')

    def test_the_twin_is_the_first_neighbour_and_says_so(self, small, chromium):
        data, folder = small
        shutil.rmtree(folder)
        files = [o.relative_to(data).as_posix() for o in sorted(data.glob('*/*/*'))]
        write_list(data, folder, [(files[0], dict(kind='conflict')), (files[1], dict(kind='leak'))])
        with reviewing(data, folder) as url, opened(chromium, url) as page:
            assert page.inner_text('#reason') == 'The same photo is in “autre pistolet” and in another class.'
            assert page.inner_text('#others figcaption >> nth=0').endswith(': the same photo, or almost')
            assert page.inner_text('#near').count('the same photo') == 1
            page.keyboard.press('k')
            until_shown(page, 1)
            assert page.inner_text('#own figcaption >> nth=0').endswith(': the same photo, or almost')

    def test_photos_that_change_or_vanish_are_passed_over(self, small, chromium):
        data, folder = small
        files = [data/o.file for o in read_list(data, folder).suspects]
        files[0].unlink()
        with reviewing(data, folder) as url, opened(chromium, url) as page:
            until_shown(page, 1)
            until_said(page, 'is no longer in the data set')
            Image.new('RGB', (9, 9)).save(files[1])
            page.keyboard.press('k')
            until_said(page, 'has changed on the disk')
            until_shown(page, 2)
            page.keyboard.press('k')
            until_decided(page, 1)
            assert [o['file'] for o in rows_of(folder/'decisions.csv')] == [files[2].relative_to(data).as_posix()]

    def test_the_end_of_the_list(self, small, chromium):
        data, folder = small
        shutil.rmtree(folder)
        listed(data, folder, 3, suggested='', confidence='', kind='blank')
        with reviewing(data, folder) as url, opened(chromium, url) as page:
            page.keyboard.press('s')
            until_said(page, 'has no suggestion')
            page.keyboard.press('ArrowRight')
            until_shown(page, 1)
            page.keyboard.press('k')
            until_shown(page, 2)
            page.keyboard.press('k')
            until_decided(page, 2)
            until_shown(page, 0)  # it was passed over
            page.keyboard.press('k')
            page.wait_for_selector('#stage code')
            assert 'basegun-fastai apply' in page.inner_text('#stage code')
            buttons = page.locator('main button:visible')
            assert [buttons.nth(i).get_attribute('id') for i in range(buttons.count())] == ['undo', 'back']
            page.keyboard.press('k')  # nothing is left to decide
            page.keyboard.press('ArrowLeft')
            until_shown(page, 2)
        assert len(rows_of(folder/'decisions.csv')) == 3

    def test_french_on_a_phone_in_the_dark(self, small, chromium):
        data, folder = small
        phone = dict(locale='fr-FR', viewport=dict(width=390, height=800), color_scheme='dark', has_touch=True)
        with reviewing(data, folder) as url, opened(chromium, url, **phone) as page:
            assert page.evaluate('document.documentElement.scrollWidth') == 390
            assert page.inner_text('#reason').startswith('Étiquetée «\u00a0autre pistolet\u00a0», cette photo')
            assert page.inner_text('#english').startswith('It looks like')
            assert page.evaluate('''() => {
                const field = document.querySelector('#filter')
                const context = document.createElement('canvas').getContext('2d')
                context.font = getComputedStyle(field).font
                return context.measureText(field.placeholder).width < field.clientWidth - 30 }''')
            last = page.locator('#classes button').last.bounding_box()
            assert last['y'] + last['height'] <= 1.5 * 800  # screens
            assert page.locator('#near').bounding_box()['y'] > last['y']
            page.tap('#invalid')
            page.tap('text=Un dessin ou du texte')
            until_shown(page, 1)
            page.tap('#unsure')
            until_shown(page, 2)
            page.tap('#classes button >> nth=5')
            until_shown(page, 3)
            until_decided(page, 3)
            assert page.evaluate('scrollY') == 0  # the next photo can be seen
            assert page.inner_text('#progress') == '3 décisions sur 120'
            small_ones = page.evaluate("[...document.querySelectorAll('button')].filter(o => o.offsetHeight && "
                                       "o.offsetHeight < 40 && o.id !== 'go').length")
            assert small_ones == 0
        assert [(o['decision'], o['class'], o['note']) for o in rows_of(folder/'decisions.csv')] == [
            ('invalid', '', 'drawing'), ('unsure', '', ''), ('move', CLASSES[5], '')]

    def test_keys_of_each_hand_and_the_filter(self, small, chromium):
        data, folder = small
        with reviewing(data, folder) as url, opened(chromium, url) as page:
            for hand, keep, unsure in (('left', 'd', 'e'), ('right', 'k', 'u')):
                page.select_option('#hand', hand)
                assert page.inner_text('#keep kbd') == keep
                number = shown(page)
                page.keyboard.press(keep)
                until_shown(page, number + 1)
                page.keyboard.press(unsure)
                until_shown(page, number + 2)
                caps = page.eval_on_selector_all('#commands kbd, #classes kbd', 'all => all.map(o => o.textContent)')
                assert len(caps) == len({*caps}) == 8 + 12
            page.reload()
            page.wait_for_selector('#stage img')
            assert page.input_value('#hand') == 'right'
            page.keyboard.press('/')
            page.keyboard.type('POMPE')
            assert page.locator('#classes button:visible').count() == 1
            page.keyboard.press('Enter')
            until_shown(page, 5)
            page.keyboard.press('/')
            page.keyboard.type('tank')
            until_said(page, 'No class has this')
            page.keyboard.press('Enter')
            page.keyboard.press('Escape')
            assert page.inner_text('#message') == ''
            page.evaluate(PRESS, dict(key='é', code='Digit2'))  # of a French keyboard
            until_shown(page, 6)
            for _ in range(2): page.evaluate(PRESS, dict(key='k', repeat=True))  # it is held down
            page.keyboard.press('?')
            assert page.inner_text('#dialog').count('Undo') == 1
            assert '1 … 9 y i o' in page.inner_text('#table')
            page.keyboard.press('k')  # the dialog is open
            page.keyboard.press('Escape')
            until_decided(page, 6)
        rows = rows_of(folder/'decisions.csv')
        assert [o['decision'] for o in rows] == ['keep', 'unsure', 'keep', 'unsure', 'move', 'move']
        assert [o['class'] for o in rows[4:]] == ['epaule_a_pompe', CLASSES[1]]

    def test_zoom_by_key_and_by_mouse(self, small, chromium):
        data, folder = small
        file = sorted(data.glob('*/*/*'))[0]
        Image.effect_noise((3000, 2000), 50).convert('RGB').save(file)
        with reviewing(data, folder) as url, opened(chromium, url) as page:
            page.keyboard.press('+')
            page.wait_for_function("() => document.querySelector('#stage img').naturalWidth === 3000")
            until_all_can_be_reached = "() => document.querySelector('#stage').scrollWidth === 3000"
            page.wait_for_function(until_all_can_be_reached)
            left = page.evaluate("document.querySelector('#stage').scrollLeft")
            page.keyboard.press('ArrowRight')
            page.wait_for_function("left => document.querySelector('#stage').scrollLeft > left", arg=left)
            page.keyboard.press(' ')
            assert page.get_attribute('#stage', 'class') == ''
            page.click('#stage img')
            assert page.get_attribute('#stage', 'class') == 'zoomed' and shown(page) == 0
            page.keyboard.press('Escape')
            assert page.get_attribute('#stage', 'class') == ''

    def test_how_long_the_next_photo_of_twelve_megapixels_takes(self, tmp_path, chromium):
        place = tmp_path/'data'/'train'/'revolver'
        place.mkdir(parents=True)
        Image.effect_noise((500, 375), 60).convert('RGB').resize((4000, 3000)).save(place/'0.jpg', quality=90)
        for i in range(1, 14): os.link(place/'0.jpg', place/f'{i}.jpg')
        for o in CLASSES: (tmp_path/'data'/'train'/o).mkdir(exist_ok=True)
        listed(tmp_path/'data', tmp_path/'list')
        with in_a_process(tmp_path/'data', tmp_path/'list') as review, opened(chromium, review.url) as page:
            page.wait_for_function('() => views.size >= 9')
            page.evaluate('Promise.all(views.values())')
            took = page.evaluate('''async () => {
                const all = []
                for (let i = 0; i < 5; i++) {
                    const before = document.querySelector('#stage img'), started = performance.now()
                    document.body.dispatchEvent(new KeyboardEvent('keydown', { key: 'k', bubbles: true }))
                    while (document.querySelector('#stage img') === before) await new Promise(requestAnimationFrame)
                    await new Promise(requestAnimationFrame)
                    all.push(Math.round(performance.now() - started)) }
                return all }''')
            print('milliseconds between key and paint:', took)
            assert len(took) == 5
