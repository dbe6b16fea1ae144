"A person uses the page in a real browser: by mouse, by keyboard, on a phone, in French, with a key."
import shutil
from contextlib import contextmanager
from importlib.util import find_spec

import numpy as np
import pytest
from PIL import Image
from server import serving
from test_serve import ORIGINS

from basegun_fastai.serve import page as front

pytestmark = [pytest.mark.slow, pytest.mark.skipif(
    not (find_spec('fastapi') and find_spec('playwright') and shutil.which('chromium')),
    reason='no basegun-fastai[serve], playwright or chromium')]


@pytest.fixture(scope='module')
def server(exported):
    with serving(exported, '--workers', 1) as server: yield server


@pytest.fixture(scope='module')
def photo(data): return next((data/'val'/'revolver').glob('*'))


@contextmanager
def opened(url, **options):
    "The page, and its requests to other hosts and its errors."
    from playwright.sync_api import sync_playwright
    with sync_playwright() as play:
        browser = play.chromium.launch(executable_path=shutil.which('chromium'), args=['--no-sandbox'])
        page, heard = browser.new_context(**dict(locale='en-GB') | options).new_page(), []
        page.on('console', lambda o: heard.append(o.text))
        page.on('pageerror', lambda o: heard.append(str(o)))
        own = url.rsplit('/docs', 1)[0], f'blob:{url}', 'data:'
        page.on('request', lambda o: None if o.url.startswith(own) else heard.append(o.url))
        page.goto(url)
        try: yield page, heard
        finally: browser.close()


def answered(page):
    page.wait_for_selector('#result:not([hidden])')
    rows = page.query_selector_all('#bars output')
    return {o.get_attribute('data-label'): float(o.get_attribute('data-share')) for o in rows}


def test_a_photo_that_is_chosen_gets_its_answer(server, photo):
    with opened(server.url) as (page, heard):
        page.uncheck('#shrink')
        page.set_input_files('#file', photo)
        shares, wanted = answered(page), server.client.post('/predict', content=photo.read_bytes()).json()
        assert shares == wanted['probabilities'] and [*shares] == sorted(shares, key=shares.get, reverse=True)
        assert page.inner_text('#label') == wanted['label'].replace('_', ' ')
        start = 'unfamiliar' if wanted['reason'] == 'unfamiliar' else wanted['confidence_level']
        assert page.inner_text('#level').lower().startswith(start)
        assert page.inner_text('#familiarity').startswith(f"Familiarity {round(wanted['familiarity'], 3):g}: ")
        assert page.evaluate("document.querySelector('#evidence').naturalWidth") > 100 and not heard
        assert page.evaluate('document.activeElement.id') == 'result'


def test_a_large_photo_is_shrunk_in_the_browser(server, tmp_path):
    Image.fromarray(np.full((3000, 4000, 3), 200, np.uint8)).save(tmp_path/'large.png')
    with opened(server.url) as (page, heard):
        page.set_input_files('#file', tmp_path/'large.png')
        answered(page)
        page.wait_for_function("document.querySelector('#preview').naturalWidth")
        size = page.evaluate("(o => [o.naturalWidth, o.naturalHeight])(document.querySelector('#preview'))")
        assert size == [600, 450] and not heard


def test_what_is_no_photo_is_said(server, tmp_path):
    (tmp_path/'a.txt').write_text('no photo')
    with opened(server.url) as (page, heard):
        page.set_input_files('#file', tmp_path/'a.txt')
        page.wait_for_selector('#error:not(:empty)')
        assert 'not a photo' in page.inner_text('#error') and page.is_hidden('#result')
        assert not [o for o in heard if '415' not in o]


def test_french_on_a_phone_in_the_dark(server, photo):
    phone = dict(locale='fr-FR', viewport=dict(width=390, height=800), color_scheme='dark')
    with opened(server.url, **phone) as (page, heard):
        assert page.inner_text('h1') == 'Quelle est cette arme\u202f?' and page.get_attribute('html', 'lang') == 'fr'
        assert page.get_attribute('#camera', 'capture') == 'environment'
        page.set_input_files('#camera', photo)
        answered(page)
        assert page.evaluate('document.documentElement.scrollWidth') == 390 and not heard
        assert page.evaluate("matchMedia('(prefers-color-scheme: dark)').matches")
        colour = "getComputedStyle(document.querySelector('#error')).color"
        assert page.evaluate(colour) == 'rgb(255, 138, 128)'


def test_the_keyboard_is_enough(server, photo):
    with opened(server.url) as (page, _):
        page.on('filechooser', lambda _: None)  # from now on every dialog is noticed
        for _ in range(6):
            page.keyboard.press('Tab')
            if page.evaluate('document.activeElement.id') == 'file': break
        with page.expect_file_chooser() as chooser: page.keyboard.press('Space')
        chooser.value.set_files(photo)
        answered(page)
        names = page.evaluate("[...document.querySelectorAll('input')].map(o => o.labels[0]?.textContent.trim() || '')")
        assert all(names), names


def test_of_a_thousand_classes_twenty_have_a_bar(server, photo):
    with opened(server.url) as (page, heard):
        page.evaluate("""() => show({ label: 'c7', confidence: .5, confidence_level: 'low', model: 'm', milliseconds: 1,
            probabilities: Object.fromEntries([...Array(1000).keys()].map(i => ['c' + i, i === 7 ? .5 : .5 / 999])) },
            new Blob())""")
        assert [*answered(page)][0] == 'c7' and len(answered(page)) == 20
        assert page.inner_text('#others') == 'Other classes (980): 49.0\u00a0% in total.' and not heard
        page.uncheck('#shrink')
        page.set_input_files('#file', photo)
        page.wait_for_selector('#bars output >> nth=19', state='detached')
        assert len(answered(page)) == 6 and page.inner_text('#others') == ''


@pytest.mark.parametrize(('locale', 'title', 'level', 'familiarity', 'percent'), [
    ('en-GB', 'Unfamiliar photo', 'This looks like none of the photos',
     'Familiarity 0.012: expect about 12 at least this unusual among 1,000 photos of firearms.', '(99.0\u00a0%)'),
    ('fr-FR', 'Photo inhabituelle', 'Cette photo ne ressemble à aucune',
     'Familiarité 0,012\u00a0: sur 1\u202f000\u00a0photos d’armes à feu, environ 12 sont au moins aussi inhabituelles.',
     '(99,0\u202f%)')])
def test_an_unfamiliar_photo_is_said_to_be_so(server, locale, title, level, familiarity, percent):
    with opened(server.url, locale=locale) as (page, heard):
        def shown(**changes):
            answer = dict(label='a', confidence=.99, confidence_level='low', model='m', milliseconds=1,
                          probabilities=dict(a=.99, b=.01), familiarity=.0123, reason='unfamiliar') | changes
            page.evaluate('answer => show(answer, new Blob())', answer)
            return [page.inner_text(o) for o in ('#label', '#level', '#familiarity')]
        name, text, share = shown()
        assert name == title and text.startswith(level) and '%' not in text and share == familiarity
        name, text, share = shown(familiarity=None, reason='uncertain')
        assert name == 'a' and not text.startswith(level) and text.endswith(percent) and share == '' and not heard


def test_a_photo_that_is_dropped_gets_its_answer(server, photo):
    with opened(server.url) as (page, heard):
        handle = page.evaluate_handle("""content => { const all = new DataTransfer();
            all.items.add(new File([new Uint8Array(content)], 'a.jpg', { type: 'image/jpeg' })); return all }""",
                                      list(photo.read_bytes()))
        page.dispatch_event('#drop', 'drop', dict(dataTransfer=handle))
        assert answered(page) and not heard


def test_a_key_is_asked_for_on_the_page(exported, photo, tmp_path):
    (tmp_path/'key').write_text('0123456789abcdef')
    with serving(exported, '--workers', 1, '--api-key-file', tmp_path/'key') as server, opened(server.url) as (page, _):
        page.wait_for_selector('#key-form:not([hidden])')
        page.set_input_files('#file', photo)
        page.wait_for_selector('#error:not(:empty)')
        page.fill('#key', '0123456789abcdef')
        page.keyboard.press('Enter')
        page.wait_for_selector('#error:empty', state='attached')
        page.set_input_files('#file', photo)
        assert answered(page)


def test_a_server_that_is_gone_is_said(exported, photo):
    with serving(exported, '--workers', 1) as server, opened(server.url) as (page, _):
        assert server.end() == 0
        page.set_input_files('#file', photo)
        page.wait_for_selector('#error:not(:empty)')
        assert 'cannot be reached' in page.inner_text('#error')


def test_docs_come_from_this_server_alone(server):
    with opened(f'{server.url}/docs') as (page, heard):
        page.wait_for_selector('.opblock-summary-path', state='attached')
        paths = page.eval_on_selector_all('.opblock-summary-path', 'all => all.map(o => o.dataset.path)')
        assert '/predict' in paths and not [o for o in heard if o.startswith('http')]


def test_a_browser_sends_origins_in_the_form_that_is_compared(server):
    with opened(server.url) as (page, _):
        for o in ORIGINS: assert page.evaluate('o => new URL(o).origin', o) == ORIGINS[o]


def test_a_browser_that_obeys_the_policy_runs_nothing_else(server):
    html, policy = front()
    assert policy == server.client.get('/').headers['content-security-policy'] and 'unsafe' not in policy
    with opened(server.url) as (page, _):
        page.evaluate("""document.body.append(
            Object.assign(document.createElement('script'), { textContent: 'window.x = 1' }))""")
        assert page.evaluate('window.x') is None
