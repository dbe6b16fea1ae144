"For every hostile input, the server says why it is not a photo, and its memory does not grow."
import re
import subprocess
import sys
from importlib.util import find_spec
from pathlib import Path

import httpx
import pytest
from conftest import soak
from hypothesis import HealthCheck, settings
from server import serving

sys.path.append(str(Path(__file__).parents[1]/'data'))
from test_odd_photos import bombs, properties  # noqa: E402

pytestmark = [pytest.mark.slow, pytest.mark.soak,
              pytest.mark.skipif(find_spec('fastapi') is None, reason='no basegun-fastai[serve]')]
CASES = soak(40, 5500)  # of Schemathesis, per path
UPLOADS = soak(40, 1000)  # per kind of damage
FINE = {200, 408, 413, 415, 422, 503, 504}


@pytest.fixture(scope='module')
def server(exported):
    with serving(exported, '--workers', 2, '--limit-concurrency', 16) as server:
        yield server
        assert server.end() == 0 and len(server.said) == 1 and 'Traceback' not in ''.join(server.log)


def resident(server):
    "Memory of all processes in MiB."
    fields = [Path(f'/proc/{o}/status').read_text() for o in (server.process.pid, *server.children())]
    return sum(int(re.search(r'VmRSS:\s+(\d+)', o)[1]) for o in fields) / 1024


def test_the_server_keeps_to_its_schema(server, tmp_path):
    command = [sys.executable, '-m', 'schemathesis.cli', 'run', f'{server.url}/openapi.json', '--max-examples', CASES,
               '--continue-on-failure', '--generation-deterministic', '--no-color', '--warnings', 'off',
               '--exclude-checks', 'positive_data_acceptance']  # no schema can describe a photo
    before = resident(server)
    result = subprocess.run([*map(str, command)], capture_output=True, text=True, cwd=tmp_path)
    print(result.stdout[-600:], f'{before:.0f} MiB before, {resident(server):.0f} after')
    assert result.returncode == 0, result.stdout[-3000:]


@pytest.mark.parametrize('what', ['random bytes', 'bytes behind a header', 'truncated', 'damaged', 'spliced'])
def test_damaged_photos_are_refused_with_a_reason(server, what):
    statuses, sizes = [], []
    def check(content):
        response = server.client.post('/predict', content=content)
        statuses.append(response.status_code)
        assert response.status_code in FINE and (response.status_code == 200 or response.json()['detail'])
        if len(statuses) % (UPLOADS // 4 + 1) == 0: sizes.append(resident(server))
        return ''  # the test of `truncated` expects a reason
    _, test = properties(check)[what]
    settings(max_examples=UPLOADS, deadline=None, derandomize=True, database=None,
             suppress_health_check=list(HealthCheck))(test)()
    print(what, {o: statuses.count(o) for o in set(statuses)}, [f'{o:.0f} MiB' for o in sizes])
    assert len(statuses) >= UPLOADS // 2 and sizes[-1] - sizes[len(sizes) // 2] < 64


def test_the_costliest_photos_end_nobody_else(server):
    statuses = {name: httpx.post(f'{server.url}/predict', content=o, timeout=60).status_code
                for name, o in bombs().items() if len(o) < 20_000_000}
    print(statuses)
    assert set(statuses.values()) <= FINE
    server._until(lambda: 'basegun_processes_ready 2.0' in server.client.get('/metrics').text)
