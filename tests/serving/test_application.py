"Headers, log line and limits of every response."
import asyncio
from importlib.util import find_spec
from types import SimpleNamespace

import httpx
import pytest

if find_spec('fastapi') is None: pytest.skip('no basegun-fastai[serve]', allow_module_level=True)

from basegun_fastai.serving.application import Settings, application

ORIGIN, KEY = 'https://app.example', '0123456789abcdef'
ABOUT = dict(id='a-1', classes=['a', 'b'], decoder=4, has_evidence=True, has_familiarity=True, package='1')


def answer(method, path, headers=(), content=None, settings=None, **processes):
    "Response of the application, without worker processes."
    before = SimpleNamespace(**dict(places=2, taken=0, ready=1, ending=False, fault=None, about=ABOUT,
                                  reason='no process can answer') | processes)
    app = application(before, settings or Settings(max_bytes=1000, allow_origin=(ORIGIN,), key=KEY), ('<p>', 'none'),
                      lambda _: None)
    async def ask():
        transport = httpx.ASGITransport(app, raise_app_exceptions=False)
        async with httpx.AsyncClient(transport=transport, base_url='http://app.example') as client:
            return await client.request(method, path, headers=dict(headers), content=content)
    return asyncio.run(ask())


WITH_KEY = dict(Origin=ORIGIN, Authorization=f'Bearer {KEY}')


@pytest.mark.parametrize(('status', 'method', 'path', 'more'), [
    (200, 'GET', '/version', {}), (200, 'GET', '/', {}), (404, 'GET', '/nowhere', {}), (405, 'PUT', '/predict', {}),
    (401, 'POST', '/predict', dict(headers=dict(Origin=ORIGIN))), (422, 'POST', '/predict?explain=perhaps', {}),
    (413, 'POST', '/predict', dict(content=b'x' * 1001)), (503, 'POST', '/predict', dict(taken=2)),
    (503, 'GET', '/health/ready', dict(ready=0)), (500, 'GET', '/version', dict(about=None))])
def test_a_page_of_an_allowed_origin_can_read_every_answer(status, method, path, more):
    got = answer(method, path, **dict(headers=WITH_KEY) | more)
    assert got.status_code == status and got.headers['access-control-allow-origin'] == ORIGIN
    assert got.headers['vary'] == 'Origin' and got.headers['x-request-id']
    assert {*got.headers['access-control-expose-headers'].split(', ')} == {'Retry-After', 'X-Request-ID'}
    assert ('retry-after' in got.headers) == (status == 503)
    assert status == 200 or got.json()['detail']
    other = answer(method, path, **dict(headers=WITH_KEY) | more
                   | dict(headers=more.get('headers', WITH_KEY) | dict(Origin='https://other.example')))
    assert other.status_code == status and 'access-control-allow-origin' not in other.headers


def test_a_browser_may_ask_without_the_key_whether_it_may_ask_with_it():
    asked = {'Access-Control-Request-Method': 'POST', 'Access-Control-Request-Headers': 'authorization,x-request-id'}
    for taken in (0, 2):
        got = answer('OPTIONS', '/predict', dict(Origin=ORIGIN) | asked, taken=taken)
        assert got.status_code == 200 and got.headers['access-control-allow-origin'] == ORIGIN
        assert 'Authorization' in got.headers['access-control-allow-headers'] and got.headers['x-request-id']
    got = answer('OPTIONS', '/predict', dict(Origin='https://other.example') | asked)
    assert got.status_code == 400 and 'access-control-allow-origin' not in got.headers


@pytest.mark.parametrize('root', ['', '/basegun'])
@pytest.mark.parametrize(('method', 'path'), [('POST', '/predict/'), ('GET', '/version/'), ('GET', '/health/live/'),
                                              ('GET', '/docs/'), ('POST', '/predict/batch/')])
def test_nothing_is_redirected(method, path, root):
    for place in ('', root):
        got = answer(method, place + path, settings=Settings(root_path=root))
        assert got.status_code == 404 and 'location' not in got.headers and got.json()['detail']
