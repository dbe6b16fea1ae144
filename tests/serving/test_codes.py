"Each reason that the API gives has a code, and the page has a French text for it."
import ast
import asyncio
import json
import re
import shutil
from importlib.util import find_spec
from string import Formatter
from types import SimpleNamespace

import pytest
from test_layers import ORDER, syntax

from basegun_fastai.data import formats, photo

if find_spec('fastapi') is None: pytest.skip('no basegun-fastai[serve]', allow_module_level=True)

from basegun_fastai.serve import page as front
from basegun_fastai.serving.policy import page_and_policy

PLACES = dict(CannotRead=0, UnknownFormat=0, MissingPackage=0, TooLarge=0, Refusal=1, UnreadablePhoto=2)  # of the code
TABLES = {'data.formats': formats._OTHERS, 'data.photo': photo._TOO_MANY_PIXELS}  # code: reason
PASSED_ON = {('data.formats', 'code'), ('data.photo', 'code'), ('serving.application', 'err.code'),
             ('data.photo', "'file-error' if err.errno else 'damaged'")}


def raised():
    "Code, module and names of the fields of each reason, from the calls that make one."
    for module, table in TABLES.items():
        for code in table: yield code, module, None
    for module in ORDER:
        if module.split('.')[0] not in ('data', 'serving'): continue
        for node in ast.walk(syntax(module)):
            place = PLACES.get(getattr(getattr(node, 'func', None), 'id', None))
            if place is None or len(node.args) <= place: continue
            code, fields = node.args[place], {o.arg for o in node.keywords}
            for o in ast.walk(code):
                if isinstance(o, ast.Constant): yield o.value, module, fields
            if not isinstance(code, ast.Constant): assert (module, ast.unparse(code)) in PASSED_ON, ast.unparse(code)


def texts(language, html):
    "Code and text of each reason on a page in a language."
    table = re.search(rf'const reasons = .*?\n  {language}: \{{\n(.*?)\n  \}},', html, re.S)[1]
    table = re.sub(r"""['"] \+\n +['"]""", '', table)
    return {code: text for code, _, text in re.findall(r"""^    '([a-z0-9-]+)': (['"])(.*)\2,$""", table, re.M)}


def of_review(module):
    return module.startswith('serving.review')  # these have a page of their own


REVIEW = [o for o in raised() if of_review(o[1])]
FRENCH, ENGLISH = (texts(o, front()[0]) for o in ('fr', 'en'))
CODES = {code for code, module, _ in raised() if not of_review(module)}
REVIEWED = [texts(o, page_and_policy('review.html')[0]) for o in ('fr', 'en')]


def test_codes_are_those_of_the_french_table():
    assert len(CODES) > 50 and CODES == {*FRENCH} and {*ENGLISH} < CODES
    assert all(re.fullmatch('[a-z0-9]+(-[a-z0-9]+)*', o) for o in CODES)


def test_codes_of_the_review_are_those_of_both_tables_of_its_page():
    codes = {o[0] for o in REVIEW}
    assert len(codes) > 10 and all(re.fullmatch('[a-z0-9]+(-[a-z0-9]+)*', o) for o in codes)
    for table in REVIEWED: assert codes == {*table}
    for code, _, fields in REVIEW:
        for table in REVIEWED:
            assert {name for _, name, _, _ in Formatter().parse(table[code]) if name} <= fields, code


def test_no_refusal_goes_without_a_code():
    for module in ORDER:
        if module.split('.')[0] != 'serving': continue
        calls = [o.func for o in ast.walk(syntax(module)) if isinstance(o, ast.Call)]
        names = [o.id for o in calls if isinstance(o, ast.Name)]
        assert 'HTTPException' not in names, module
        assert names.count('JSONResponse') == dict([('serving.application', 2), ('serving.bodies', 1)]).get(module, 0)


def test_the_page_fills_only_fields_that_come_with_the_code():
    pixels = {'width', 'height', 'most'}
    for code, module, fields in raised():
        if of_review(module): continue
        known = {'id'} | (pixels if code in photo._TOO_MANY_PIXELS else fields or set())
        for table in (FRENCH, ENGLISH):
            assert {name for _, name, _, _ in Formatter().parse(table.get(code, '')) if name} <= known, code


@pytest.mark.slow
@pytest.mark.skipif(not (find_spec('playwright') and shutil.which('chromium')), reason='no playwright or chromium')
@pytest.mark.parametrize('locale', ['fr-FR', 'en-GB'])
def test_a_browser_shows_the_text_of_each_code(locale):
    from playwright.sync_api import sync_playwright
    url, sent = 'http://page.example/', {}
    def answer(route):
        path = route.request.url.removeprefix(url)
        if not path: route.fulfill(body=front()[0], content_type='text/html')
        elif path == 'version': route.fulfill(json=dict(evidence=True))
        else: route.fulfill(status=422, json=sent, headers={'X-Request-ID': 'abc-1'})
    with sync_playwright() as play:
        browser = play.chromium.launch(executable_path=shutil.which('chromium'), args=['--no-sandbox'])
        page = browser.new_context(locale=locale).new_page()
        page.route('**/*', answer)
        page.goto(url)
        def shown(**problem):
            sent.clear()
            sent.update(problem)
            page.set_input_files('#file', dict(name='a', mimeType='image/jpeg', buffer=b'x'))
            page.wait_for_selector('#error:not(:empty)')
            return page.inner_text('#error')
        fields = dict(width=60000, height=60000, most=250, words="l'arme ?", formats='JPEG', missing=1, name='image')
        for code in sorted(CODES):
            text = shown(code=code, detail='English', fields=fields)
            if locale == 'fr-FR': assert 'English' not in text and not re.search(r"[{}]| [;:!?%»]", text.replace(
                fields['words'], '')), (code, text)
            else: assert text.startswith('This photo cannot be read: English') == (code not in ENGLISH), (code, text)
        detail = dict(code='of-tomorrow', detail='it is of tomorrow: wait')
        unknown = 'This photo cannot be read: ' if locale == 'en-GB' else ''
        assert shown(**detail) == f"{unknown}{detail['detail']}"
        if locale == 'fr-FR':
            assert shown(code='too-many-pixels', fields=fields) == (
                'Cette photo a 60\u202f000\u00a0×\u00a060\u202f000\u00a0pixels, plus de 250\u00a0millions. '
                'Réduisez-la.')
            assert shown(code='text-file', fields=fields) == (
                "Ce fichier n’est pas une photo, mais un texte qui commence par «\u00a0l'arme ?\u00a0».")
            assert shown() == 'Le serveur a répondu par l’erreur 422. Réessayez plus tard.'
        browser.close()


@pytest.mark.parametrize(('kind', 'status'), [(photo.NotAPhoto, 415), (photo.PhotoTooLarge, 413),
                                              (photo.MissingDecoder, 501), (photo.UnreadablePhoto, 422)])
def test_a_photo_that_cannot_be_read_has_the_status_of_its_class(kind, status):
    from basegun_fastai.serving.application import _judge, _judge_or_fault
    from basegun_fastai.serving.bodies import Refusal
    class Processes:
        async def ask(self, *_): raise kind('it', 'it is of tomorrow: wait', 'of-tomorrow', dict(days=1))
    of_it = Processes(), SimpleNamespace(queue=SimpleNamespace(observe=None)), b'photo', False
    with pytest.raises(Refusal) as error: asyncio.run(_judge(*of_it))
    problem = dict(detail='it is of tomorrow: wait', code='of-tomorrow', fields=dict(days=1))
    assert error.value.status_code == status and error.value.problem == problem
    assert json.loads(error.value.response.body) == problem == asyncio.run(_judge_or_fault(*of_it))


def test_the_api_documents_the_code_of_a_problem():
    from basegun_fastai.serving.application import Settings, application
    schema = application(SimpleNamespace(places=8, taken=0, ready=2, about=None), Settings()).openapi()
    assert {*schema['components']['schemas']['Fault']['required']} == {'detail', 'code', 'fields'}
    assert {'413', '415', '422', '501', '503'} <= {*schema['paths']['/predict']['post']['responses']}
