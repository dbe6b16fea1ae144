"Every response arrives, also one before the end of the request; the bytes read for that are limited."
import asyncio
import selectors
import socket
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from http.client import HTTPResponse
from importlib.util import find_spec
from types import SimpleNamespace

import pytest

if find_spec('fastapi') is None: pytest.skip('no basegun-fastai[serve]', allow_module_level=True)

from fastapi import FastAPI, Request

from basegun_fastai.serving import bodies
from basegun_fastai.serving import server as module
from basegun_fastai.serving.application import Settings, application
from basegun_fastai.serving.bodies import Bodies
from basegun_fastai.serving.server import Server, listen

KEY = 'Authorization: Bearer key\r\n'
BODY = b'x' * 600_000  # the length that `head` declares


def until(condition):
    end = time.monotonic() + 10
    while not condition() and time.monotonic() < end: time.sleep(.01)
    assert condition()


@contextmanager
def running():
    "The server in a thread of this process, without worker processes."
    processes = SimpleNamespace(places=2, taken=0, ready=1, ending=False, fault=None, about=None)
    app = application(processes, Settings(max_bytes=500_000, key='key'), write=lambda _: None)
    with listen('127.0.0.1', 0) as listening:
        server = Server(app)
        thread = threading.Thread(target=lambda: asyncio.run(server.serve(sockets=[listening])))
        thread.start()
        server.address, server.thread, server.processes = listening.getsockname(), thread, processes
        try:
            until(lambda: server.started)
            yield server
        finally:
            server.should_exit = True
            thread.join()


@pytest.fixture(scope='module')
def server():
    with running() as server: yield server


@contextmanager
def connected(server):
    "A client with small kernel buffers, like one on a slow network."
    with socket.create_connection(server.address, 20) as connection:
        connection.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, 10_000)
        yield connection


def response(connection):
    answer = HTTPResponse(connection)
    answer.begin()
    answer.read()
    return answer.status


def head(method, path, http='1.1', more='', n=600_000):
    return f'{method} {path} HTTP/{http}\r\nHost: x\r\nContent-Length: {n}\r\n{more}\r\n'.encode()


REFUSED = {'/predict': 413, '/predict?explain=perhaps': 422, '/nowhere': 404, '/health/live': 405, '/version': 500}


@pytest.mark.parametrize(('http', 'more'), [('1.0', ''), ('1.1', 'Connection: close\r\n'), ('1.1', '')])
@pytest.mark.parametrize(('path', 'status'), [*REFUSED.items(), ('/predict', 401), ('/predict', 503)])
def test_an_answer_before_the_body_arrives(server, path, status, http, more, caplog, monkeypatch):
    monkeypatch.setattr(server.processes, 'taken', 2 if status == 503 else 0)
    request = head('GET' if status == 500 else 'POST', path, http, more + (KEY if status != 401 else ''))
    with ThreadPoolExecutor(10) as pool:
        def sent(_):
            with connected(server) as connection:
                connection.sendall(request + BODY)  # most clients read after they have sent everything
                statuses = [response(connection)]
                if http == '1.1' and not more and status != 500:  # the rest of the body is not a request
                    connection.sendall(request + BODY)
                    statuses.append(response(connection))
                return {*statuses}
        assert [*pool.map(sent, range(10))] == [{status}] * 10
    assert status == 500 or not caplog.records


@pytest.mark.parametrize('more', ['Connection: close\r\n', ''])
def test_a_body_that_came_too_late_hears_so(server, more, monkeypatch):
    monkeypatch.setattr(bodies, 'BODY_SECONDS', .05)
    with connected(server) as connection:
        connection.sendall(head('POST', '/predict', more=more + KEY, n=400_000) + BODY[:1])
        connection.recv(1, socket.MSG_PEEK)
        connection.sendall(BODY[:399_999])
        assert response(connection) == 408


def test_what_is_no_http_hears_so(server):
    with connected(server) as connection:
        connection.sendall(b'POST /predict HTTP/1.1\r\nno header\r\n\r\n' + BODY)
        assert response(connection) == 400


@pytest.mark.parametrize('more', ['Connection: close\r\n', ''])
def test_what_is_drained_has_a_limit_in_bytes(server, more, monkeypatch):
    monkeypatch.setattr(module, 'DRAIN_BYTES', 100_000)
    with connected(server) as connection:
        with pytest.raises(ConnectionError):
            connection.sendall(head('POST', '/predict', more=more + KEY, n=100 * len(BODY)))
            for _ in range(100): connection.sendall(BODY)
        until(lambda: not server.server_state.connections)


@pytest.mark.parametrize('more', ['Connection: close\r\n', ''])
def test_what_is_drained_has_a_limit_in_time(server, more, monkeypatch):
    monkeypatch.setattr(module, 'DRAIN_SECONDS', .2)
    with connected(server) as connection:
        connection.sendall(head('POST', '/predict', more=more + KEY))
        assert response(connection) == 413 and server.server_state.connections
        until(lambda: not server.server_state.connections)


def test_the_end_does_not_wait_for_what_is_drained():
    with running() as server, connected(server) as connection:
        connection.sendall(head('POST', '/predict', more='Connection: close\r\n'))
        assert response(connection) == 401 and server.server_state.connections
        server.should_exit = True
        server.thread.join(3)
        assert not server.thread.is_alive()


def test_a_connection_rests_for_longer_than_balancers_keep_theirs():
    assert Server(FastAPI()).config.timeout_keep_alive > 60


class Clock(selectors.DefaultSelector):
    "If every task waits for a time, the clock jumps to it."
    now = 0.

    def select(self, timeout=None):
        ready = super().select(min(timeout or 0, .001))
        if not ready: self.now += timeout
        return ready


def at_once(coroutine):
    "Run a coroutine on a new clock."
    clock = Clock()
    loop = asyncio.SelectorEventLoop(clock)
    loop.time = lambda: clock.now
    with asyncio.Runner(loop_factory=lambda: loop) as runner: return runner.run(coroutine)


async def upload(n, pieces):
    "Send a body of `n` bytes in pieces, one per second; return the status, and the seconds until it arrived."
    app, all_bodies = FastAPI(), Bodies(20_000_000, 2)
    @app.post('/predict')
    async def count(request: Request):
        async with all_bodies.read(request) as body: return len(body)
    with listen('127.0.0.1', 0) as listening:
        server = Server(app)
        serving = asyncio.ensure_future(server.serve(sockets=[listening]))
        while not server.started: await asyncio.sleep(.01)
        reader, writer = await asyncio.open_connection(*listening.getsockname())
        began, answer = asyncio.get_running_loop().time(), asyncio.ensure_future(reader.readline())
        writer.write(head('POST', '/predict', n=n))
        for piece in pieces:
            if answer.done(): break
            writer.write(b'x' * piece)
            await asyncio.wait({answer}, timeout=1)
        status, seconds = (await answer).split()[1], asyncio.get_running_loop().time() - began
        writer.close()
        server.should_exit = True
        await serving
    return int(status), seconds


@pytest.mark.parametrize(('n', 'pieces', 'status', 'low', 'high'), [
    (3_600_000, [75_000] * 48, 200, 45, 50), (1_000_000, [20_000] * 50, 200, 48, 52),  # 600 and 160 kbit/s
    (100_000, [50_000, *[0] * 25, 50_000], 200, 25, 28), (3_600_000, [75_000] * 20 + [0] * 60, 408, 48, 52),
    (1_000_000, [1] * 100, 408, 29, 32), (1_000_000, [5_000] * 100, 408, 55, 65), (1_000_000, [], 408, 29, 32)])
def test_a_body_may_be_slow_as_long_as_it_comes(n, pieces, status, low, high):
    got, seconds = at_once(upload(n, pieces))
    assert got == status and low < seconds < high, seconds
