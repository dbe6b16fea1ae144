"No two commands make the same thing at the same time."
import errno
import os
import signal
import subprocess
import sys
import time

import pytest
from conftest import QUICK, TINY, as_arguments, soak, tree, typed
from warm import Command

from basegun_fastai.base.errors import BasegunError
from basegun_fastai.base.files import hold

pytestmark = pytest.mark.slow

HOLDER = """
import os, sys
from basegun_fastai.base.files import hold
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
    tiny, photos = as_arguments(**QUICK), data/'train'
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


@pytest.mark.soak
def test_of_many_trainings_started_together_one_trains(data, tmp_path):
    options = as_arguments(**QUICK, fine_tune_epochs=1, out=tmp_path/'runs', name='same')
    n = soak(4, 20)
    many = [Command('train', data, *options, '--resume') for _ in range(n)]
    ended = [(o.stdout.read(), o.stderr.read(), o.wait(200)) for o in many]
    # a slow machine may start some after the first has ended; these find nothing to do
    late = [o for o in ended if o[2] == 0 and 'is finished: nothing to do' in o[1]]
    refused = [o for o in ended if o[2] == 1]
    assert len(late) + len(refused) == n - 1, ended
    winner = next(o.pid for o, done in zip(many, ended, strict=True) if done not in late + refused)
    for _, stderr, _ in refused:
        assert stderr.count('\n') == 1 and f"same' is being written by process {winner} on " in stderr
    assert os.listdir(tmp_path/'runs') == ['same'] and (tmp_path/'runs'/'same'/'metrics.json').is_file()
    assert len(list((tmp_path/'runs'/'same'/'train').iterdir())) == 1  # one file of events, not one per training


@pytest.mark.soak
def test_of_many_that_take_a_default_name_in_one_second_each_gets_its_own(tmp_path):
    n = soak(6, 20)
    code = ("import sys\nfrom basegun_fastai.base.files import hold_first\nsys.stdin.read()\n"
            "with hold_first(sys.argv[1]) as path:\n    path.mkdir()\n    print(path)")
    many = [subprocess.Popen([sys.executable, '-c', code, tmp_path/'run_2026-01-01_120000'], text=True,
                             stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.PIPE) for _ in range(n)]
    for o in many: o.stdin.close()  # all start now
    outputs = [o.stdout.read().strip() for o in many]
    assert [o.wait(60) for o in many] == [0] * n
    names = {f'run_2026-01-01_120000{"" if i == 1 else f"_{i}"}' for i in range(1, n + 1)}
    assert {os.path.basename(o) for o in outputs} == {*os.listdir(tmp_path)} == names
    for o in many: o.stdout.close(), o.stderr.close()


def test_two_runs_without_a_name_in_one_second_are_two(data, tmp_path, monkeypatch):
    import basegun_fastai.train as module
    monkeypatch.setattr(module, 'run_name', lambda arch: f'{arch}_now')
    for _ in range(2):
        assert typed('train', data, *as_arguments(**QUICK, fine_tune_epochs=1, out=tmp_path)).returncode == 0
    assert sorted(o.name for o in tmp_path.iterdir()) == ['test_efficientnet_now', 'test_efficientnet_now_2']


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
    code = ("import os, sys, time\nfrom basegun_fastai.base.errors import BasegunError\n"
            "from basegun_fastai.base.files import hold\n"
            "won, end = 0, time.monotonic() + 2\n"
            "while time.monotonic() < end:\n"
            "    try:\n        with hold(sys.argv[1] + '/new/run'):\n"
            "            os.close(os.open(sys.argv[1] + '/held', os.O_CREAT | os.O_EXCL))\n"
            "            os.unlink(sys.argv[1] + '/held')\n            won += 1\n"
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
    assert 'does not support file locks: make sure' in capsys.readouterr().err and os.listdir(tmp_path) == []


@pytest.mark.skipif(os.getuid() or not os.path.isdir('/proc/self'), reason='only root may write in /proc, of Linux')
@pytest.mark.parametrize('path', ['/proc/run', '/proc/runs/run'])
def test_a_folder_that_takes_no_file_is_named(path):
    with pytest.raises(BasegunError, match=f"nothing can be made in '{os.path.dirname(path)}'"), hold(path): pass


def test_what_is_held_for_nothing_leaves_no_folder(tmp_path):
    begun = time.monotonic()
    with pytest.raises(ZeroDivisionError), hold(tmp_path/'a'/'b'/'run'): 1 / 0  # noqa: B018
    assert os.listdir(tmp_path) == [] and time.monotonic() - begun < 5
    with hold(tmp_path/'a'/'b'/'run'): (tmp_path/'a'/'b'/'run').mkdir()
    assert sorted(o.name for o in tmp_path.rglob('*')) == ['a', 'b', 'run']
    with hold(tmp_path/'c'/'run', unless=['a fault']): assert not (tmp_path/'c').exists()
