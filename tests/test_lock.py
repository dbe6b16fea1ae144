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
from basegun_fastai.lock import held

HOLDER = """
import os, sys
from basegun_fastai.lock import held
with held(sys.argv[1]):
    if sys.argv[2:] and not os.fork(): sys.stdin.read(), os._exit(0)  # a worker that outlives it
    print(os.getpid(), flush=True)
    sys.stdin.read()
"""


def holder(path, *more):
    process = subprocess.Popen([sys.executable, '-c', HOLDER, path, *more], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
    assert int(process.stdout.readline()) == process.pid
    return process


@pytest.fixture
def copied(run, tmp_path):
    import shutil
    shutil.copytree(run.path, tmp_path/'runs'/'whole')
    return tmp_path/'runs'/'whole'


def test_every_command_that_makes_something_is_refused_while_another_makes_it(data, copied, tmp_path):
    tiny, photos = as_arguments(**TINY), data/'train'
    exported, process = tmp_path/'exported', None
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
        told = typed(*command)
        assert told.returncode == 1 and f"'{path}' is being written by process {process.pid} on " in told.stderr, (command[0], told.stderr)
        assert 'Traceback' not in told.stderr and sorted(os.listdir(path.parent)) == there
        process.communicate()
    assert tree(copied) == before


def test_two_trainings_started_together_leave_one_run(data, tmp_path):
    command = [COMMAND, 'train', data, *as_arguments(**TINY), '--fine-tune-epochs', '2', '--out', tmp_path/'runs', '--name', 'same']
    both = [subprocess.Popen([*map(str, command)], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True) for _ in range(2)]
    ended = [(o.communicate(timeout=200), o.returncode) for o in both]
    assert sorted(code for _, code in ended) == [0, 1]
    [(_, said)] = [told for told, code in ended if code]
    late = 'exists, and nothing is overwritten' in said  # a slow machine may start it when the other one has ended
    assert (late or f'is being written by process {next(o.pid for o in both if not o.returncode)}' in said) and 'Traceback' not in said
    assert os.listdir(tmp_path/'runs') == ['same'] and (tmp_path/'runs'/'same'/'metrics.json').is_file()


@pytest.mark.parametrize('worker', [[], ['with a worker']])
def test_a_lock_dies_with_its_process(tmp_path, worker):
    process = holder(tmp_path/'run', *worker)
    with pytest.raises(BasegunError, match=f'process {process.pid}'), held(tmp_path/'run'): pass
    os.kill(process.pid, signal.SIGKILL)
    process.wait()
    with held(tmp_path/'run'): assert (tmp_path/'.run.lock').is_file()
    assert os.listdir(tmp_path) == []
    process.stdin.close()


def test_never_two_at_once_whoever_comes_and_goes(tmp_path):
    code = ("import os, sys, time\nfrom basegun_fastai.core import BasegunError\nfrom basegun_fastai.lock import held\n"
            "won, end = 0, time.monotonic() + 2\n"
            "while time.monotonic() < end:\n"
            "    try:\n        with held(sys.argv[1] + '/new/run'):\n"
            "            os.close(os.open(sys.argv[1] + '/alone', os.O_CREAT | os.O_EXCL))\n            os.unlink(sys.argv[1] + '/alone')\n            won += 1\n"
            "    except BasegunError: pass\nprint(won)")
    many = [subprocess.Popen([sys.executable, '-c', code, tmp_path], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True) for _ in range(6)]
    told = [o.communicate(timeout=60) for o in many]
    assert not any(said for _, said in told), told
    assert sum(int(won) for won, _ in told) > 50 and os.listdir(tmp_path) in ([], ['new'])


def test_a_disk_without_locks_is_said(tmp_path, monkeypatch, capsys):
    import fcntl
    def refuse(*_): raise OSError(errno.ENOLCK, 'No locks available')
    monkeypatch.setattr(fcntl, 'lockf', refuse)
    with held(tmp_path/'run'): pass
    assert 'has no locks: see to it yourself' in capsys.readouterr().err and os.listdir(tmp_path) == []


def test_what_is_held_for_nothing_leaves_no_folder(tmp_path):
    begun = time.monotonic()
    with pytest.raises(ZeroDivisionError), held(tmp_path/'a'/'b'/'run'): 1 / 0  # noqa: B018
    assert os.listdir(tmp_path) == [] and time.monotonic() - begun < 5
    with held(tmp_path/'a'/'b'/'run'): (tmp_path/'a'/'b'/'run').mkdir()
    assert [o.name for o in tmp_path.rglob('*')] == ['a', 'b', 'run'] or sorted(o.name for o in tmp_path.rglob('*')) == ['a', 'b', 'run']
    with held(tmp_path/'c'/'run', unless=['a fault']): assert not (tmp_path/'c').exists()
