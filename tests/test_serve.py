"A real server predicts like `predict`; no request, signal or killed process makes it fail."
import asyncio
import json
import os
import re
import shutil
import signal
import socket
import threading
import time
from base64 import b64decode
from concurrent.futures import ThreadPoolExecutor
from hashlib import sha256
from importlib.util import find_spec
from io import BytesIO
from types import SimpleNamespace

import httpx
import numpy as np
import onnx
import pytest
from conftest import run_command, tree, typed
from PIL import Image
from server import serving

from basegun_fastai.base.errors import BasegunError
from basegun_fastai.exported import essentials, seal
from basegun_fastai.predict import load
from basegun_fastai.serve import _key, _origin, _origin_fault
from basegun_fastai.serving.processes import Processes, _difference

pytestmark = [pytest.mark.slow, pytest.mark.skipif(find_spec('fastapi') is None, reason='no basegun-fastai[serve]')]


@pytest.fixture(scope='module')
def server(exported):
    with serving(exported, '--workers', 2, '--limit-concurrency', 16) as server: yield server


@pytest.fixture(scope='module')
def photos(data): return [o.read_bytes() for o in sorted(data.glob('*/*/*'))]


@pytest.fixture(scope='module')
def large():
    "A photo that takes long to read."
    out = BytesIO()
    noise = np.random.default_rng(0).integers(0, 256, (3000, 4000, 3), np.uint8)
    Image.fromarray(noise).save(out, 'PNG', compress_level=1)
    return out.getvalue()


def in_progress(server):
    return float(re.search(r'^basegun_photos_in_progress (\S+)', httpx.get(f'{server.url}/metrics').text, re.M)[1])


def test_answers_are_those_of_predict_to_the_bit(server, exported, photos):
    model = load(exported, 1)
    with ThreadPoolExecutor(8) as pool:
        forms = list(pool.map(lambda o: server.client.post('/predict', files=dict(image=('x.jpg', o))), photos * 2))
        bodies = list(pool.map(lambda o: server.client.post('/predict', content=o), photos))
    assert len(forms) + len(bodies) == 216
    for response, photo in zip(forms + bodies, photos * 3, strict=True):
        got, wanted = response.json(), model(photo)
        assert response.status_code == 200, got
        assert (got['label'], got['confidence'], got['confidence_level'], got['probabilities'],
                got['familiarity'], got['reason']) == wanted
        assert got['model'] == model.id and 0 < got['milliseconds'] < 10_000 and len(got) == 8


def test_an_explained_answer_has_its_picture(server, exported, photos):
    got = server.client.post('/predict', params=dict(explain=True), content=photos[0]).json()
    wanted = load(exported, 1).explain(photos[0])
    for key in ('runner_up', 'on_padding', 'on_border'): assert got[key] == getattr(wanted, key)
    head, content = got['evidence'].split(',', 1)
    picture = Image.open(BytesIO(b64decode(content)))
    assert head == 'data:image/jpeg;base64' and picture.size == wanted.picture().size


def test_a_batch_has_an_answer_a_photo(server, photos):
    files = [('images', ('a', o)) for o in [*photos[:5], b'nothing', *photos[5:31]]]
    got = server.client.post('/predict/batch', files=files).json()
    alone = [server.client.post('/predict', content=o).json() for o in photos[:5]]
    assert len(got) == 32 and [o['probabilities'] for o in got[:5]] == [o['probabilities'] for o in alone]
    assert set(got[5]) == {'detail', 'code', 'fields'} and got[5]['code'] == 'text-file'
    assert all('label' in o for o in got[6:])
    assert server.client.post('/predict/batch', content=photos[0]).status_code == 422
    response = server.client.post('/predict/batch', files=[('images', ('a', o)) for o in photos[:33]])
    assert response.status_code == 422 and '32' in response.json()['detail']


@pytest.mark.parametrize('what, status, words', [
    (dict(content=b''), 415, 'is empty'), (dict(content=b'x' * 100), 415, 'not a photo'),
    (dict(files=dict(other=('a', b'x'))), 422, "no file 'image'"),
    (dict(data=dict(image='text')), 415, 'not a photo'),
    (dict(content=b'x', headers={'content-type': 'multipart/form-data'}), 422, 'cannot be read'),
    (dict(content=b'x', headers={'content-type': 'multipart/form-data; boundary=a'}), 422, 'form'),
    (dict(content=b'x', params=dict(explain='perhaps')), 422, 'explain'),
    (dict(content=b'x' * 20_000_001), 413, 'more than 20000000 bytes')])
def test_what_is_no_photo_is_refused_with_the_reason(server, what, status, words):
    response = server.client.post('/predict', **what)
    assert response.status_code == status and words in response.json()['detail'], response.text


def test_a_body_without_a_length_is_counted_as_it_comes(server):
    def endless():
        for _ in range(100): yield b'x' * 500_000
    assert server.client.post('/predict', content=endless()).status_code == 413
    assert server.client.get('/health/ready').status_code == 200


def test_it_says_who_it_is_and_how_it_is(server, exported, photos):
    model = load(exported, 1)
    assert server.client.get('/typologies').json() == model.classes
    facts = server.client.get('/version').json()
    assert facts['model'] == model.id and facts['familiarity'] is True and model.has_familiarity
    for o in ('live', 'ready'): assert server.client.get(f'/health/{o}').json() == dict(status=o)
    before = server.client.get('/metrics').text
    answer = server.client.post('/predict', content=photos[0]).json()
    after = server.client.get('/metrics').text
    def count(text, **labels):
        wanted = ','.join(f'{k}="{v}"' for k, v in labels.items())
        return float((re.findall(rf'basegun_answers_total{{{wanted}}} (\S+)', text) or [0])[0])
    labels = dict(label=answer['label'], level=answer['confidence_level'])
    assert count(after, **labels) == count(before, **labels) + 1
    mean = float(re.search(r'^basegun_confidence_mean (\S+)', after, re.M)[1])
    assert mean == pytest.approx(answer['confidence'], abs=.5)
    assert answer['confidence_level'] == 'low' and answer['reason'] in ('unfamiliar', 'unproven')
    def number(text, name): return float((re.findall(rf'^basegun_{name} (\S+)', text, re.M) or [0])[0])
    names = ['confidence_count', 'familiarity_count', f'low_answers_total{{reason="{answer["reason"]}"}}']
    for name in names: assert number(after, name) == number(before, name) + 1, name
    for name in ('confidence', 'familiarity'):
        added = number(after, f'{name}_sum') - number(before, f'{name}_sum')
        assert added == pytest.approx(answer[name], abs=1e-6)
        for limit in ('0.02', '0.5', '1.0'):
            bucket = f'{name}_bucket{{le="{limit}"}}'
            assert number(after, bucket) - number(before, bucket) == (answer[name] <= float(limit)), bucket


@pytest.mark.parametrize('path', ['/', '/health/live', '/health/ready', '/version', '/typologies', '/openapi.json'])
def test_head_is_get_without_a_body(server, path):
    got, wanted = server.client.head(path), server.client.get(path)
    assert got.status_code == wanted.status_code == 200 and got.content == b'' and wanted.content
    def lasting(response): return {k: v for k, v in response.headers.items() if k not in ('date', 'x-request-id')}
    assert lasting(got) == lasting(wanted) and server.client.head('/predict').status_code == 405


def test_each_answer_has_an_id_and_safe_headers(server):
    response = server.client.get('/version', headers={'X-Request-ID': 'abc-1'})
    assert response.headers['x-request-id'] == 'abc-1' and response.headers['x-content-type-options'] == 'nosniff'
    assert "default-src 'none'" in response.headers['content-security-policy'] and 'server' not in response.headers
    odd = server.client.get('/version', headers={'X-Request-ID': 'a"b, c'}).headers['x-request-id']
    assert re.fullmatch('[0-9a-f]{32}', odd) and 'access-control-allow-origin' not in response.headers


def test_the_log_has_no_name_of_a_file(exported, photos):
    with serving(exported, '--workers', 1) as server:
        server.client.post('/predict', files=dict(image=('secret-name.jpg', photos[0])))
        server.client.get('/secret-path?q=secret-query')
        server.client.post('/predict', content=b'x')
        lines = server.lines(3)
        assert server.end() == 0
    assert [(o['path'], o['status']) for o in lines] == [('/predict', 200), ('other', 404), ('/predict', 415)]
    assert lines[0]['bytes'] > len(photos[0]) and {'time', 'id', 'ms', 'label', 'level', 'reason'} <= {*lines[0]}
    assert 'secret' not in ''.join(server.log + server.said) and len(server.log) == 3


def test_a_key_is_asked_for(exported, photos, tmp_path):
    (tmp_path/'key').write_text('0123456789abcdef\n')
    with serving(exported, '--workers', 1, '--api-key-file', tmp_path/'key') as server:
        for path in ('/version', '/metrics', '/typologies', '/docs', '/openapi.json'):
            assert server.client.get(path).status_code == 401
        assert server.client.post('/predict', content=photos[0]).status_code == 401
        for path in ('/', '/health/live', '/health/ready'): assert server.client.get(path).status_code == 200
        for key, status in (('0123456789abcdeF', 401), ('x', 401), ('é' * 16, 401), ('0123456789abcdef', 200)):
            headers = {'Authorization': f'Bearer {key}'.encode()}
            assert server.client.post('/predict', content=photos[0], headers=headers).status_code == status


def test_other_sites_may_ask_only_where_that_was_said(exported):
    typed = 'HTTPS://App.Example:443', 'https://été.example', 'http://[0::1]:3000'
    with serving(exported, '--workers', 1, '--no-page', '--allow-origin', *typed) as server:
        for origin, allowed in (('https://app.example', True), ('https://xn--t-9fab.example', True),
                                ('http://[::1]:3000', True), ('https://other.example', False),
                                ('http://app.example', False)):
            response = server.client.get('/version', headers=dict(Origin=origin))
            assert response.headers.get('access-control-allow-origin') == (origin if allowed else None)
        assert server.client.get('/').status_code == 404


ORIGINS = {  # the form in which a browser sends them
    'https://app.example': 'https://app.example', 'HTTPS://App.Example:443': 'https://app.example',
    'http://app.example:80': 'http://app.example', 'http://app.example:443': 'http://app.example:443',
    'https://app.example:0443': 'https://app.example', 'https://app.example:': 'https://app.example',
    'https://ÉTÉ.example:8443': 'https://xn--t-9fab.example:8443', 'https://e\u0301.example': 'https://xn--9ca.example',
    'https://xn--t-9fab.example': 'https://xn--t-9fab.example', 'http://localhost:3000': 'http://localhost:3000',
    'http://[::1]:3000': 'http://[::1]:3000', 'http://[2001:DB8:0:0:1::1]': 'http://[2001:db8::1:0:0:1]',
    'http://127.0.0.1:80': 'http://127.0.0.1', 'https://my_host.example.': 'https://my_host.example.'}


@pytest.mark.parametrize('typed', ORIGINS)
def test_an_origin_is_compared_as_a_browser_sends_it(typed):
    assert _origin(typed) == ORIGINS[typed] and _origin_fault(typed) is None


@pytest.mark.parametrize(('wrong', 'words'), [
    ('https://App.example/', 'give https://app.example,'), ('http://a.example:80/x?y', 'give http://a.example,'),
    ('http://[::1]:3000/', 'give http://[::1]:3000,'), *[(o, 'such as https://app.example') for o in (
        '*', 'null', '', 'app.example', 'ftp://app.example', 'https://', 'https://straße.example', 'https://a..example',
        'https://a b.example', 'https://user@app.example', 'https://app.example:70000', 'https://1.2.3',
        'https://[::1', 'https://[::g]', 'https://app.example\n', 'https://' + 'a' * 64)]])
def test_what_no_browser_sends_is_refused_with_what_it_sends(wrong, words):
    assert _origin(wrong) is None and f"--allow-origin '{wrong}': " in _origin_fault(wrong)
    assert words in _origin_fault(wrong)


def test_more_than_there_are_places_for_is_refused_at_once(exported, large):
    limits = '--workers', 1, '--limit-concurrency', 2, '--max-bytes', 50_000_000
    with serving(exported, *limits) as server, ThreadPoolExecutor(12) as pool:
        responses = [*pool.map(lambda _: server.client.post('/predict', content=large), range(12))]
        statuses = [o.status_code for o in responses]
        assert set(statuses) == {200, 503} and statuses.count(200) >= 2
        assert all(o.headers['retry-after'] == '1' for o in responses if o.status_code == 503)
        assert server.client.post('/predict', content=large).status_code == 200


def test_a_killed_process_takes_one_answer_with_it_and_another_comes(exported, photos):
    with serving(exported, '--workers', 2, '--limit-concurrency', 300) as server, ThreadPoolExecutor(16) as pool:
        before = server.children()
        asked = [pool.submit(server.client.post, '/predict', content=o) for o in (photos * 3)[:200]]
        asked[40].result()
        os.kill(before[0], signal.SIGKILL)
        statuses = [o.result().status_code for o in asked]
        assert len(statuses) == 200 and statuses.count(200) >= 198 and set(statuses) <= {200, 503}
        server._until(lambda: 'basegun_processes_ready 2.0' in server.client.get('/metrics').text)
        assert len(set(server.children()) - set(before)) == 1 and server.end() == 0


@pytest.fixture
def another(exported, tmp_path):
    "The same network as another model: other class names and another id."
    folder = shutil.copytree(exported, tmp_path/'another')
    about = json.loads((folder/'model.json').read_bytes())
    about |= dict(id='another-00000000', classes=[f'another {o}' for o in about['classes']])
    network = onnx.load(folder/'model.onnx')
    next(o for o in network.metadata_props if o.key == 'basegun-fastai').value = json.dumps(essentials(about))
    content = network.SerializeToString()
    (folder/'model.onnx').write_bytes(content)
    about['onnx'] = dict(sha256=sha256(content).hexdigest(), bytes=len(content))
    (folder/'model.json').write_text(seal(about))
    return folder


def put(link, folder):
    "Make a link lead to a folder, also if the link exists."
    link.with_name('new').symlink_to(folder)
    link.with_name('new').rename(link)


def test_a_folder_that_was_replaced_is_not_served_beside_the_one_of_the_start(exported, another, photos, tmp_path):
    put(tmp_path/'served', exported)
    with serving(tmp_path/'served', '--workers', 2) as server:
        def ask(): return server.client.post('/predict', content=photos[0])
        def lines(): return [o for o in server.said if 'now holds model' in o]
        started = server.client.get('/version').json()['model']
        put(tmp_path/'served', another)
        os.kill(server.children()[0], signal.SIGKILL)
        responses = [ask() for _ in range(4)]  # one of them reaches the killed process
        server._until(lambda: lines() or 'basegun_processes_ready 2.0' in server.client.get('/metrics').text)
        responses += [ask() for _ in range(40)]
        answers = [o.json() for o in responses if o.status_code == 200]
        assert len(answers) >= 43 and {o['model'] for o in answers} == {started}
        assert {(*o['probabilities'],) for o in answers} == {(*load(exported, 1).classes,)}
        fault = (f"'{tmp_path/'served'}' now holds model another-00000000, but this server started with {started}: "
                 'restart it')
        assert lines() == [f'{fault}\n']
        ready = server.client.get('/health/ready')
        assert ready.status_code == 200 and ready.json() == dict(status='ready', detail=fault)
        os.kill(server.children()[0], signal.SIGKILL)
        with ThreadPoolExecutor(4) as pool: last = [*pool.map(lambda _: ask(), range(4))]
        assert {o.status_code for o in last} == {503} and fault in {o.json()['detail'] for o in last}
        assert server.process.wait(15) == 1
        server.readers[1].join()
        assert [o.removeprefix('basegun-fastai: ') for o in lines()] == [f'{fault}\n'] * 2
        assert 'Traceback' not in ''.join(server.log + server.said)


def test_who_asks_when_no_process_can_start_hears_why_at_once(exported, photos, tmp_path):
    put(tmp_path/'served', exported)
    with serving(tmp_path/'served', '--workers', 1) as server:
        def ask(): return server.client.post('/predict', content=photos[0], timeout=10)
        assert ask().status_code == 200
        (tmp_path/'served').unlink()
        os.kill(server.children()[0], signal.SIGKILL)
        responses = [ask() for _ in range(3)]  # the first one reaches the killed process
        assert [o.status_code for o in responses] == [503] * 3
        assert "does not start (no folder '" in responses[2].json()['detail']
        assert server.client.get('/health/ready').json()['detail'] == responses[2].json()['detail']
        put(tmp_path/'served', exported)
        server._until(lambda: server.client.get('/health/ready').status_code == 200)
        assert ask().status_code == 200


def test_a_folder_that_is_replaced_in_the_middle_of_the_start_is_refused(exported, another):
    processes = Processes(exported, 2, 1, 4)
    processes.all[1].arguments[0] = str(another)
    async def start():
        try: await processes.start()
        finally: await processes.end()
    fault = 'now holds model another-00000000, but this server started with .*: restart it'
    with pytest.raises(BasegunError, match=fault): asyncio.run(start())


@pytest.mark.parametrize(('key', 'fault'), [
    ('id', "'a' now holds model now, but this server started with then: restart it"),
    ('seal', "'a' now holds a model with the seal now, but this server started with then: restart it"),
    ('package', 'basegun-fastai is now now, but this server started with then: restart it')])
def test_what_differs_from_the_start_is_named(key, fault):
    about = dict(id='i', seal='s', package='p')
    processes = SimpleNamespace(folder='a', about=about | {key: 'then'})
    assert _difference(processes, about | {key: 'now'}) == fault and _difference(processes, processes.about) is None


def test_sigterm_finishes_what_has_come_in(exported, photos):
    limits = '--workers', 2, '--limit-concurrency', 20
    with serving(exported, *limits) as server, ThreadPoolExecutor(20) as pool:
        children = server.children()
        for o in children: os.kill(o, signal.SIGSTOP)
        asked = [pool.submit(httpx.post, f'{server.url}/predict', content=o, timeout=30) for o in photos[:20]]
        server._until(lambda: in_progress(server) == 20)
        server.process.send_signal(signal.SIGTERM)
        server._until(lambda: not accepts(server))
        for o in children: os.kill(o, signal.SIGCONT)
        assert [o.result().status_code for o in asked] == [200] * 20
        assert server.process.wait(12) == 0 and not [o for o in children if alive(o)]


def accepts(server):
    host, port = server.url.removeprefix('http://').split(':')
    try: socket.create_connection((host, int(port)), 1).close()
    except OSError: return False
    return True


def test_killing_the_server_leaves_no_process(exported):
    with serving(exported, '--workers', 2) as server:
        children = server.children()
        server.process.kill()
        end = time.monotonic() + 10
        while (left := [o for o in children if alive(o)]) and time.monotonic() < end: time.sleep(.05)
        assert len(children) == 2 and not left


def alive(pid):
    try: return open(f'/proc/{pid}/stat').read().rsplit(')', 1)[1].split()[0] != 'Z'
    except OSError: return False


def test_slow_clients_keep_nobody_from_being_served(server, photos):
    host, port = server.url.removeprefix('http://').split(':')
    slow, stop = [], threading.Event()
    for i in range(200):
        slow.append(socket.create_connection((host, int(port))))
        head = b'POST /predict HTTP/1.1\r\nHost: x\r\nContent-Length: 1000000\r\n\r\n'
        slow[-1].sendall(head if i % 2 else b'GET /ver')
    def drip():
        while not stop.wait(1):
            for o in slow:
                try: o.sendall(b'x')
                except OSError: pass
    thread = threading.Thread(target=drip)
    thread.start()
    try: assert all(server.client.post('/predict', content=o).status_code == 200 for o in photos[:40])
    finally:
        stop.set()
        thread.join()
        for o in slow: o.close()
    assert server.client.get('/health/ready').status_code == 200


def test_a_header_that_does_not_end_is_not_waited_for(server):
    host, port = server.url.removeprefix('http://').split(':')
    with socket.create_connection((host, int(port)), timeout=20) as connection:
        connection.sendall(b'GET /version HTTP/1.1\r\nHost: x\r\n')
        began = time.monotonic()
        assert connection.recv(100) == b'' and 5 < time.monotonic() - began < 15


def test_nothing_is_written_anywhere(exported, tmp_path, monkeypatch):
    "A photo that Starlette would write to a temporary file stays in memory."
    monkeypatch.setenv('TMPDIR', str(tmp_path))
    before = tree(exported)
    big = BytesIO()
    Image.fromarray(np.random.default_rng(0).integers(0, 256, (1500, 1500, 3), np.uint8)).save(big, 'PNG')
    with serving(exported, '--workers', 1) as server:
        opened = set()
        stop = threading.Event()
        def watch():
            while not stop.is_set():
                for pid in (server.process.pid, *server.children()):
                    for fd in os.listdir(f'/proc/{pid}/fd'):
                        try: opened.add(os.readlink(f'/proc/{pid}/fd/{fd}'))
                        except OSError: pass
        thread = threading.Thread(target=watch)
        thread.start()
        for _ in range(5):
            assert server.client.post('/predict', files=dict(image=('a', big.getvalue()))).status_code == 200
        stop.set()
        thread.join()
        assert server.end() == 0
    assert not [o for o in opened if o.startswith(str(tmp_path)) or 'deleted' in o] and len(big.getvalue()) > 2**20
    assert tree(exported) == before and not list(tmp_path.iterdir())


def test_every_fault_is_told_at_once(exported, run, tmp_path):
    (tmp_path/'short').write_text('abc')
    result = typed('serve', run.path, '--port', 70000, '--workers', 0, '--max-bytes', 5, '--root-path', 'x/',
                   '--allow-origin', '*', '--api-key-file', tmp_path/'short', '--limit-concurrency', 0)
    assert result.returncode == 1 and 'Traceback' not in result.stderr
    for o in ('not exported', '--port 70000', '--workers 0', '--max-bytes 5', "--root-path 'x/'",
              "--allow-origin '*'", 'openssl', '--limit-concurrency 0'):
        assert o in result.stderr, result.stderr
    with socket.socket() as taken:
        taken.bind(('127.0.0.1', 0))
        taken.listen()
        result = run_command('serve', exported, '--port', taken.getsockname()[1])
    assert result.returncode == 1 and 'give another port' in result.stderr and 'Traceback' not in result.stderr
    result = typed('serve', exported, '--host', '192.0.2.1', '--port', 0)
    assert result.returncode == 1 and "--host '192.0.2.1' is no address of this machine" in result.stderr


def test_a_key_may_have_the_mark_of_an_editor_before_it(tmp_path):
    for encoding in ('utf-8', 'utf-8-sig'):
        (tmp_path/'key').write_text('0123456789abcdef\r\n', encoding=encoding)
        assert _key(tmp_path/'key') == ('0123456789abcdef', [])
    (tmp_path/'key').write_text('0123456789abcdef', encoding='utf-16')
    assert _key(tmp_path/'key')[0] is None and 'cannot be read' in _key(tmp_path/'key')[1][0]


def test_without_the_extra_one_line_says_what_to_install(exported, tmp_path):
    (tmp_path/'fastapi.py').write_text("raise ModuleNotFoundError(\"No module named 'fastapi'\", name='fastapi')")
    result = run_command('serve', exported, env=os.environ | dict(PYTHONPATH=str(tmp_path)))
    assert result.returncode == 1 and "pip install 'basegun-fastai[serve]'" in result.stderr
    assert 'Traceback' not in result.stderr


def test_no_process_of_the_server_imports_torch(server):
    for pid in (server.process.pid, *server.children()):
        assert 'libtorch' not in open(f'/proc/{pid}/maps').read()


def test_a_model_that_was_changed_is_refused_in_one_line(exported, tmp_path):
    folder = shutil.copytree(exported, tmp_path/'model')
    content = bytearray((folder/'model.onnx').read_bytes())
    content[len(content) // 2] ^= 1
    (folder/'model.onnx').write_bytes(content)
    result = run_command('serve', folder, '--port', 0)
    assert result.returncode == 1 and 'is damaged or belongs to another model' in result.stderr
    assert result.stderr.count('\n') == 1


def test_a_process_that_hangs_is_replaced_after_ten_seconds(exported, photos):
    with serving(exported, '--workers', 1) as server:
        [before] = server.children()
        os.kill(before, signal.SIGSTOP)
        began = time.monotonic()
        response = server.client.post('/predict', content=photos[0])
        assert response.status_code == 504 and 9 < time.monotonic() - began < 15
        assert server.client.post('/predict', content=photos[0]).status_code == 200
        assert server.children() != [before] and not alive(before)


def test_a_client_that_is_gone_leaves_its_place(exported, photos):
    with serving(exported, '--workers', 1, '--limit-concurrency', 2) as server, ThreadPoolExecutor(1) as pool:
        [child] = server.children()
        os.kill(child, signal.SIGSTOP)
        first = pool.submit(server.client.post, '/predict', content=photos[0])
        server._until(lambda: in_progress(server) == 1)
        host, port = server.url.removeprefix('http://').split(':')
        with socket.create_connection((host, int(port))) as second:
            head = f'POST /predict HTTP/1.1\r\nHost: x\r\nContent-Length: {len(photos[1])}\r\n\r\n'
            second.sendall(head.encode() + photos[1])
            server._until(lambda: in_progress(server) == 2)
            assert httpx.post(f'{server.url}/predict', content=photos[2]).status_code == 503
        server._until(lambda: in_progress(server) == 1)
        os.kill(child, signal.SIGCONT)
        assert first.result().status_code == 200
        assert server.client.post('/predict', content=photos[2]).status_code == 200


def test_a_photo_that_crashes_its_decoder_is_refused_by_name(exported, photos):
    with serving(exported, '--workers', 1) as server, ThreadPoolExecutor(1) as pool:
        [child] = server.children()
        os.kill(child, signal.SIGSTOP)
        asked = pool.submit(server.client.post, '/predict', content=photos[0])
        server._until(lambda: in_progress(server) == 1)
        os.kill(child, signal.SIGSEGV)
        os.kill(child, signal.SIGCONT)
        assert asked.result().status_code == 422 and 'crashes the decoder' in asked.result().json()['detail']
        assert asked.result().json()['code'] == 'decoder-crashed'
        assert server.client.post('/predict', content=photos[0]).status_code == 200


def test_a_proxy_may_have_it_under_a_path(exported, photos):
    with serving(exported, '--workers', 1, '--root-path', '/basegun') as server:
        plain = server.url.removesuffix('/basegun')
        assert plain != server.url
        for url in (plain, server.url): assert httpx.post(f'{url}/predict', content=photos[0]).status_code == 200
        assert httpx.get(f'{server.url}/').status_code == 200
        assert '/basegun/openapi.json' in httpx.get(f'{plain}/docs').text
        assert [o['path'] for o in server.lines(3)[:3]] == ['/predict', '/predict', '/']
        assert httpx.get(f'{server.url}/openapi.json').json()['servers'] == [dict(url='/basegun')]
        assert len(server.said) == 1, server.said
        server.process.send_signal(signal.SIGINT)
        assert server.process.wait(12) == 0
