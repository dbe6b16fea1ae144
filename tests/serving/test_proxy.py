"Behind a real nginx with its default settings, responses are those of the server."
import os
import shutil
import subprocess
from contextlib import contextmanager
from importlib.util import find_spec

import httpx
import pytest
from server import serving

NGINX = shutil.which('nginx', path=f"{os.environ['PATH']}:/usr/sbin")
pytestmark = [pytest.mark.slow, pytest.mark.skipif(
    not (find_spec('fastapi') and NGINX), reason='no basegun-fastai[serve], or no nginx: apt-get install nginx')]
CONFIG = '''
daemon off; master_process off; pid {folder}/pid; error_log {folder}/errors;
events {{ }}
http {{
    access_log off; client_max_body_size 0;
    client_body_temp_path {folder}/a; proxy_temp_path {folder}/b; fastcgi_temp_path {folder}/c;
    uwsgi_temp_path {folder}/d; scgi_temp_path {folder}/e;
    upstream kept {{ server {server}; keepalive 4; }}
    server {{
        listen unix:{folder}/socket;
        location /basegun/ {{ proxy_pass http://{server}/; proxy_set_header Host $host; }}
        location /streamed/ {{ proxy_pass http://{server}/; proxy_request_buffering off; }}
        location /kept/ {{ proxy_pass http://kept/; proxy_http_version 1.1; proxy_set_header Connection ""; }}
    }}
}}
'''


@contextmanager
def proxied(server, folder):
    "A client of an nginx in front of a server."
    address = server.url.removeprefix('http://').removesuffix('/basegun')
    (folder/'nginx.conf').write_text(CONFIG.format(folder=folder, server=address))
    process = subprocess.Popen([NGINX, '-p', folder, '-e', folder/'errors', '-c', folder/'nginx.conf'])
    try:
        server._until((folder/'socket').is_socket)
        transport = httpx.HTTPTransport(uds=str(folder/'socket'))
        with httpx.Client(transport=transport, base_url='http://app.example', timeout=30) as client: yield client
    finally:
        process.terminate()
        process.wait(10)


@pytest.fixture(scope='module')
def client(exported, tmp_path_factory):
    (folder := tmp_path_factory.mktemp('nginx')).joinpath('key').write_text('0123456789abcdef')
    options = '--workers', 1, '--max-bytes', 1_000_000, '--root-path', '/basegun', '--api-key-file', folder/'key'
    with serving(exported, *options) as server, proxied(server, folder) as client:
        client.headers['Authorization'] = 'Bearer 0123456789abcdef'
        yield client
        assert server.end() == 0 and 'Traceback' not in ''.join(server.log + server.said)


@pytest.mark.parametrize('place', ['basegun', 'streamed', 'kept'])
@pytest.mark.parametrize(('path', 'status'), [('predict', 413), ('predict', 401), ('nowhere', 404), ('version', 405)])
def test_a_refusal_before_the_body_arrives(client, place, path, status):
    headers = dict(Authorization='none') if status == 401 else {}
    for _ in range(10):
        response = client.post(f'/{place}/{path}', content=b'x' * 5_000_000, headers=headers)
        assert response.status_code == status and response.json()['detail'], response.text


def test_a_photo_gets_its_answer(client, data):
    photo = next(data.glob('val/revolver/*')).read_bytes()
    for place in ('basegun', 'streamed', 'kept'):
        response = client.post(f'/{place}/predict', files=dict(image=('a', photo)))
        assert response.status_code == 200 and response.json()['label']


@pytest.mark.parametrize('place', ['basegun', 'streamed', 'kept'])
def test_a_balancer_may_ask_by_head_and_nobody_is_sent_elsewhere(client, place):
    for path in ('', 'health/live', 'health/ready', 'version'):
        response = client.head(f'/{place}/{path}')
        assert response.status_code == 200 and response.content == b''
    response = client.post(f'/{place}/predict/', content=b'x')
    assert response.status_code == 404 and 'location' not in response.headers
