"A stand-in on loopback with the part of the model hub's protocol that a download needs; it can misbehave."
import hashlib
import socket
import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

COMMIT = 'c' * 40
ABSENT = {'X-Error-Code': 'EntryNotFound', 'X-Repo-Commit': COMMIT}


class Hub:
    "Files by `repository/name`; `answer` is the hub's response to every request, `send` how its store sends a body."

    def __init__(self):
        self.files, self.requests, self.ended = {}, [], threading.Event()
        self.answer, self.send = None, whole
        self.server = ThreadingHTTPServer(('127.0.0.1', 0), type('Handler', (Handler,), dict(hub=self)))
        self.server.daemon_threads = True
        self.server.handle_error = lambda *_: None  # of a client that has disconnected
        threading.Thread(target=self.server.serve_forever, args=(.05,), daemon=True).start()

    @property
    def port(self): return self.server.server_port

    @property
    def url(self): return f'http://127.0.0.1:{self.port}'

    def count(self, start):
        "Number of requests that start with `start`, such as 'GET /store'."
        return sum(o.startswith(start) for o in self.requests)

    def close(self):
        self.ended.set()
        self.server.shutdown()
        self.server.server_close()


class Handler(BaseHTTPRequestHandler):
    protocol_version = 'HTTP/1.1'

    def log_message(self, *_): pass

    def reply(self, status, headers=(), body=b''):
        self.send_response(status)
        for k, v in {'Content-Length': len(body), **dict(headers)}.items(): self.send_header(k, str(v))
        self.end_headers()
        if self.command != 'HEAD': self.wfile.write(body)

    def do_GET(self):
        if self.path.startswith('/api/'): return self.reply(200, body=b'{}')
        self.hub.requests.append(f'{self.command} {self.path}')
        place = self.path.removeprefix('/store/')
        if place != self.path: return self.hub.send(self, self.hub.files[place])
        if self.hub.answer: return self.hub.answer(self)
        owner, repo, _, _, name = self.path.strip('/').split('/')
        content = self.hub.files.get(f'{owner}/{repo}/{name}')
        if content is None: return self.reply(404, ABSENT)
        self.reply(302, {  # like the hub, to a store at another address
            'X-Repo-Commit': COMMIT, 'X-Linked-ETag': f'"{hashlib.sha256(content).hexdigest()}"',
            'X-Linked-Size': len(content), 'Location': f'http://localhost:{self.hub.port}/store/{owner}/{repo}/{name}'})

    do_HEAD = do_GET


def status(code, headers=(), body=b''):
    "Answer every request with this status."
    return lambda handler, *_: handler.reply(code, headers, body)


def silent(handler, *_):
    "Send nothing until the test is over."
    handler.hub.ended.wait()
    handler.close_connection = True


def refused(handler, *_):
    "Close the connection without a response."
    handler.connection.shutdown(socket.SHUT_RDWR)
    handler.close_connection = True


def whole(handler, content, end=None):
    "Send the body, or its missing part."
    start = int(handler.headers.get('Range', 'bytes=0-')[6:].split('-')[0])
    handler.send_response(206 if start else 200)
    handler.send_header('Content-Length', str(len(content) - start))
    if start: handler.send_header('Content-Range', f'bytes {start}-{len(content) - 1}/{len(content)}')
    handler.end_headers()
    handler.wfile.write(content[start:end])


def part(then):
    "Send half of the body, then do something else."
    def send(handler, content):
        whole(handler, content, len(content) // 2)
        handler.wfile.flush()
        then(handler)
    return send


def over_and_over(handler, content):
    "Send half of the body repeatedly."
    del handler.headers['Range']
    part(refused)(handler, content)


def slow(handler, content):
    "Send the body piece by piece."
    whole(handler, content, 0)
    for i in range(0, len(content), 2**18):
        handler.wfile.write(content[i:i + 2**18])
        handler.wfile.flush()
        handler.hub.ended.wait(.15)


def environment(hub, folder):
    "Environment variables that direct a process to the stand-in."
    return dict(HF_ENDPOINT=hub.url, HF_HOME=str(folder), NO_PROXY='*')
