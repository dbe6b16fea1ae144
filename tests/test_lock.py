"What one command is making, no other command makes at the same time."
import errno
import os
import signal
import subprocess
import sys
import time

import pytest
from conftest import COMMAND, TINY, as_arguments, tree, typed

from basegun_fastai.core import BasegunError
from basegun_fastai.lock import hold

pytestmark = pytest.mark.slow

HOLDER = """
import os, sys
from basegun_fastai.lock import hold
with hold(sys.argv[1]):
    if sys.argv[2:] and not os.fork(): sys.stdin.read(), os._exit(0)  # a worker that outlives it
    print(os.getpid(), flush=True)
    sys.stdin.read()
"""


def holder(path, *more):
    process = subprocess.Popen([sys.executable, '-c', HOLDER, path, *more], text=True,
                               stdin=subprocess.PIPE, stdout=subprocess.PIPE)
    assert int(process.stdout.readline()) == process.pid
    return process


@pytest.fixture
def copied(run, tmp_path):
    import shutil
    shutil.copytree(run.path, tmp_path/'runs'/'whole')
    return tmp_path/'runs'/'whole'


def test_every_command_that_makes_something_is_refused_while_another_makes_it(data, copied, tmp_path):
    tiny, photos = as_arguments(**TINY), data/'train'
    exported = tmp_path/'exported'
    assert typed('export', copied, '--data', data, '--out', exported).returncode == 0
    commands = {
        tmp_path/'runs'/'first': ('train', data, *tiny, '--out', tmp_path/'runs', '--name', 'first'),
        tmp_path/'runs'/'second': ('train', data, *tiny, '--out', tmp_path/'runs', '--name', 'second', '--resume'),
        copied: ('train', data, *tiny, '--out', tmp_path/'runs', '--name', 'whole', '--resume'),
        tmp_path/'rates': ('lr-find', data, '--arch', TINY['arch'], '--out', tmp_path, '--name', 'rates'),
        tmp_path/'judged': ('evaluate', copied, data, '--out', tmp_path/'judged'),
        tmp_path/'other': ('export', copied, '--data', data, '--out', tmp_path/'other'),
        tmp_path/'split': ('split', photos, tmp_path/'split'),
        tmp_path/'drawn': ('demo-data', tmp_path/'drawn'),
        tmp_path/'rows.csv': ('predict', exported, data/'val', '--out', tmp_path/'rows.csv')}
    before = tree(copied)
    for path, command in commands.items():
        process = holder(path)
        there = sorted(os.listdir(path.parent))
        done = typed(*command)
        assert done.returncode == 1, command[0]
        assert f"'{path}' is being written by process {process.pid} on " in done.stderr, (command[0], done.stderr)
        assert 'Traceback' not in done.stderr and sorted(os.listdir(path.parent)) == there
        process.communicate()
    assert tree(copied) == before


def test_two_trainings_started_together_leave_one_run(data, tmp_path):
    options = as_arguments(**TINY, fine_tune_epochs=2, out=tmp_path/'runs', name='same')
    pipes = dict(stdout=subprocess.PIPE, stderr=subprocess.PIPE)
    both = [subprocess.Popen([COMMAND, 'train', data, *options], text=True, **pipes) for _ in range(2)]
    ended = [(o.communicate(timeout=200), o.returncode) for o in both]
    assert sorted(code for _, code in ended) == [0, 1]
    [(_, stderr)] = [streams for streams, code in ended if code]
    late = 'exists, and nothing is overwritten' in stderr  # a slow machine may start it when the other one has ended
    winner = next(o.pid for o in both if not o.returncode)
    assert (late or f'is being written by process {winner}' in stderr) and 'Traceback' not in stderr
    assert os.listdir(tmp_path/'runs') == ['same'] and (tmp_path/'runs'/'same'/'metrics.json').is_file()


@pytest.mark.parametrize('worker', [[], ['with a worker']])
def test_a_lock_dies_with_its_process(tmp_path, worker):
    process = holder(tmp_path/'run', *worker)
    with pytest.raises(BasegunError, match=f'process {process.pid}'), hold(tmp_path/'run'): pass
    os.kill(process.pid, signal.SIGKILL)
    process.wait()
    with hold(tmp_path/'run'): assert (tmp_path/'.run.lock').is_file()
    assert os.listdir(tmp_path) == []
    process.stdin.close()


def test_never_two_at_once_whoever_comes_and_goes(tmp_path):
    code = ("import os, sys, time\nfrom basegun_fastai.core import BasegunError\nfrom basegun_fastai.lock import hold\n"
            "won, end = 0, time.monotonic() + 2\n"
            "while time.monotonic() < end:\n"
            "    try:\n        with hold(sys.argv[1] + '/new/run'):\n"
            "            os.close(os.open(sys.argv[1] + '/alone', os.O_CREAT | os.O_EXCL))\n"
            "            os.unlink(sys.argv[1] + '/alone')\n            won += 1\n"
            "    except BasegunError: pass\nprint(won)")
    many = [subprocess.Popen([sys.executable, '-c', code, tmp_path], stdout=subprocess.PIPE, stderr=subprocess.PIPE,
                             text=True) for _ in range(6)]
    outputs = [o.communicate(timeout=60) for o in many]
    assert not any(stderr for _, stderr in outputs), outputs
    assert sum(int(won) for won, _ in outputs) > 50 and os.listdir(tmp_path) in ([], ['new'])


def test_a_disk_without_locks_is_said(tmp_path, monkeypatch, capsys):
    import fcntl
    def refuse(*_): raise OSError(errno.ENOLCK, 'No locks available')
    monkeypatch.setattr(fcntl, 'lockf', refuse)
    with hold(tmp_path/'run'): pass
    assert 'has no locks: see to it yourself' in capsys.readouterr().err and os.listdir(tmp_path) == []


def test_what_is_held_for_nothing_leaves_no_folder(tmp_path):
    begun = time.monotonic()
    with pytest.raises(ZeroDivisionError), hold(tmp_path/'a'/'b'/'run'): 1 / 0  # noqa: B018
    assert os.listdir(tmp_path) == [] and time.monotonic() - begun < 5
    with hold(tmp_path/'a'/'b'/'run'): (tmp_path/'a'/'b'/'run').mkdir()
    assert sorted(o.name for o in tmp_path.rglob('*')) == ['a', 'b', 'run']
    with hold(tmp_path/'c'/'run', unless=['a fault']): assert not (tmp_path/'c').exists()
