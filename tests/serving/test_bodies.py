"Bodies have limits of size and time, and their headers cannot change these."
import asyncio
from base64 import b64encode
from importlib.util import find_spec

import pytest

if find_spec('fastapi') is None: pytest.skip('no basegun-fastai[serve]', allow_module_level=True)

from fastapi import HTTPException, Request

from basegun_fastai.serving import bodies
from basegun_fastai.serving.bodies import Bodies, photos_in


def request(*chunks, headers=(), last=b''):
    messages = [dict(type='http.request', body=o, more_body=True) for o in chunks]
    async def receive():
        if messages: return messages.pop(0)
        if last is None: await asyncio.Event().wait()  # nothing else arrives
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


def in_form(*parts):
    return b''.join(b'--x\r\nContent-Disposition: form-data; %s\r\n\r\n%s\r\n' % o for o in parts) + b'--x--\r\n'


def taken_apart(body, name='image', most=1, kind=b'multipart/form-data; boundary=x'):
    try: return asyncio.run(photos_in(body, request(headers=[(b'content-type', kind)]), name, most))
    except HTTPException as err: return err.status_code, err.detail


LONG = b64encode(b'photo' * 400_000)  # more than a MiB


@pytest.mark.parametrize('part', [
    (b'name="image"', LONG), (b'name="image"', b'short'), (b'name="image"', b'data:image/jpeg;base64,' + LONG),
    (b'name="image"', bytes(range(256)) * 8000),
    (b'name="image"; filename="a"\r\nContent-Transfer-Encoding: BASE64', LONG),
    (b'name="image"; filename*=UTF-8\'\'a.jpg', b'photo' * 400_000)])
def test_a_photo_that_is_sent_as_text_is_refused_as_that(part):
    status, detail = taken_apart(in_form(part))
    assert status == 422 and detail.startswith("the field 'image' is text, not a file: send ")
    for o in ('`curl -F image=@photo.jpg`', 'base64', 'filename="..."'): assert o in detail
    file = b'name="images"; filename="a"', b'photo'
    status, detail = taken_apart(in_form(file, (part[0].replace(b'image', b'images'), part[1])), 'images', 32)
    assert status == 422 and detail.startswith("the field 'images' is text, not a file: send ")


def test_other_fields_of_a_form_are_left_aside():
    parts = (b'name="note"', LONG), (b'name="image"; filename="a"', b'photo'), (b'name="image2"', b'text')
    assert taken_apart(in_form(*parts)) == [b'photo']


@pytest.mark.parametrize(('body', 'name', 'most', 'kind', 'words'), [
    (in_form((b'name="photo"; filename="a"', b'x')), 'image', 1, None, "no file 'image': send a form with one"),
    (in_form(*[(b'name="image"; filename="a"', b'x')] * 2), 'image', 1, None, 'Maximum number of files is 1'),
    (in_form(*[(b'name="images"; filename="a"', b'x')] * 33), 'images', 32, None, "files 'images', at most 32"),
    (b'x', 'images', 32, b'image/jpeg', "not a form: send a form with files 'images', at most 32"),
    (b'x', 'image', 1, b'multipart/form-data', 'Missing boundary'), (b'x', 'image', 1, None, 'cannot be read')])
def test_a_form_that_is_wrong_hears_what_to_send(body, name, most, kind, words):
    status, detail = taken_apart(body, name, most, kind or b'multipart/form-data; boundary=x')
    assert status == 422 and words in detail and f'such as `curl -F {name}=@photo.jpg`' in detail
