"A body is as large and as slow as it may be, whatever its header claims."
import asyncio
from importlib.util import find_spec

import pytest

if find_spec('fastapi') is None: pytest.skip('no basegun-fastai[serve]', allow_module_level=True)

from fastapi import HTTPException, Request

from basegun_fastai.serving import bodies
from basegun_fastai.serving.bodies import Bodies


def request(*chunks, headers=(), last=b''):
    messages = [dict(type='http.request', body=o, more_body=True) for o in chunks]
    async def receive():
        if messages: return messages.pop(0)
        if last is None: await asyncio.Event().wait()  # nothing comes any more
        return dict(type='http.request', body=last)
    return Request(dict(type='http', method='POST', headers=list(headers)), receive)


async def read(all_bodies, coming):
    try:
        async with all_bodies.read(coming) as body: return body, all_bodies.held
    except HTTPException as err: return err.status_code


def test_what_comes_in_pieces_is_whole_and_let_go_of():
    all_bodies = Bodies(10, 2)
    assert asyncio.run(read(all_bodies, request(b'123', b'', b'45', last=b'67'))) == (b'1234567', 7)
    assert all_bodies.held == 0


@pytest.mark.parametrize('coming', [request(b'12345', b'67890', b'1'), request(headers=[(b'content-length', b'11')])])
def test_one_byte_too_many_is_refused(coming):
    all_bodies = Bodies(10, 2)
    assert asyncio.run(read(all_bodies, coming)) == 413 and all_bodies.held == 0


def test_a_body_that_does_not_come_is_not_waited_for(monkeypatch):
    monkeypatch.setattr(bodies, 'BODY_SECONDS', .05)
    all_bodies = Bodies(10, 2)
    assert asyncio.run(read(all_bodies, request(b'123', last=None))) == 408 and all_bodies.held == 0


def test_all_bodies_together_have_a_limit():
    all_bodies = Bodies(10, 2)
    async def several():
        waiting = [asyncio.ensure_future(read(all_bodies, request(b'1' * 9, last=None))) for _ in range(2)]
        await asyncio.sleep(0)
        await asyncio.sleep(0)
        status = await read(all_bodies, request(b'123'))
        for o in waiting: o.cancel()
        await asyncio.gather(*waiting, return_exceptions=True)
        return status
    assert asyncio.run(several()) == 503 and all_bodies.held == 0
