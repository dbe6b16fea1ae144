"Machines without shared memory, a folder for temporary files, or `fork`."
import multiprocessing
import os
import signal
import subprocess

import pytest
from conftest import COMMAND, QUICK, TINY, as_arguments, fitted, typed
from warm import Command, run_warm

from basegun_fastai.base.files import read_at
from basegun_fastai.base.processes import PROCESS_MEMORY, cores, memory_limits, processes

pytestmark = pytest.mark.slow

NAMESPACE = ['unshare', '--mount'] if os.getuid() == 0 else ['unshare', '--map-root-user', '--mount']
WORKERS = as_arguments(**QUICK | dict(workers=2)) + ['--head-epochs', '1', '--fine-tune-epochs', '1', '--name', 'tiny']
ODD = {'shm of 128 kB': 'mount -t tmpfs -o size=128k tmpfs /dev/shm',
       'shm of 2 MiB': 'mount -t tmpfs -o size=2m tmpfs /dev/shm',
       'temporary folder of 200 kB': 'mount -t tmpfs -o size=200k tmpfs "$TMPDIR"',
       'read-only home': 'mount -t tmpfs -o ro tmpfs "$HOME"',
       'read-only shm': 'mount -t tmpfs -o ro tmpfs /dev/shm',
       'read-only root': 'mount -o remount,bind,ro /; for o in /tmp /var/tmp; do mount -t tmpfs -o ro tmpfs $o; done; '
                         'cd /usr'}


def groups(root, **files):
    "Control groups: the lines of /proc/self/cgroup, and limits by the path of their file with colons for slashes."
    for name, text in files.items():
        path = root/('proc/self/cgroup' if name == 'lines' else 'sys/fs/cgroup/' + name.replace(':', '/'))
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)
    return root


@pytest.mark.parametrize('quota, n', [('max 100000\n', 8), ('200000 100000\n', 2), ('150000 100000\n', 2),
                                      ('10000 100000\n', 1), ('9000000 100000\n', 8), ('', 8), ('odd\n', 8)])
def test_processors_are_those_that_the_container_may_use(monkeypatch, tmp_path, quota, n):
    monkeypatch.setattr(os, 'sched_getaffinity', lambda _: set(range(8)), raising=False)
    assert cores(groups(tmp_path, lines='0::/\n', **{'cpu.max': quota})) == n


@pytest.mark.parametrize('files, n', [
    ({'lines': '0::/a/b\n', 'a:cpu.max': '200000 100000', 'a:b:cpu.max': 'max 100000'}, 2),  # a service in a slice
    ({'lines': '0::/../../pod\n', 'cpu.max': '300000 100000'}, 3),  # the host's path, seen from another namespace
    ({'lines': '3:cpu,cpuacct:/docker/x\n', 'cpu,cpuacct:docker:x:cpu.cfs_quota_us': '250000',
      'cpu,cpuacct:docker:x:cpu.cfs_period_us': '100000'}, 3),
    # the container sees its own group at the top
    ({'lines': '3:cpu:/docker/x\n', 'cpu:cpu.cfs_quota_us': '50000', 'cpu:cpu.cfs_period_us': '25000'}, 2),
    ({'lines': '3:cpu:/\n', 'cpu:cpu.cfs_quota_us': '-1', 'cpu:cpu.cfs_period_us': '100000'}, 8),
    ({'lines': '3:cpuset:/\n', 'cpuset:cpu.max': '100000 100000'}, 8)])
def test_both_versions_of_control_groups_are_read(monkeypatch, tmp_path, files, n):
    monkeypatch.setattr(os, 'sched_getaffinity', lambda _: set(range(8)), raising=False)
    root = groups(tmp_path, **files)
    assert cores(root) == processes(root) == n


@pytest.mark.parametrize('file', ['memory.max', 'memory.limit_in_bytes'])
def test_processes_have_room_in_the_memory_of_the_container(monkeypatch, tmp_path, file):
    monkeypatch.setattr(os, 'sched_getaffinity', lambda _: set(range(64)), raising=False)
    root = groups(tmp_path, lines='0::/\n1:memory:/x\n', **{f'memory:x:{file}': str(7 * PROCESS_MEMORY)})
    assert min(memory_limits(root)) == 7 * PROCESS_MEMORY and processes(root) == 3 and cores(root) == 64
    (root/f'sys/fs/cgroup/memory/x/{file}').write_text('1000')
    assert processes(root) == 1
    (root/f'sys/fs/cgroup/memory/x/{file}').write_text('max' if file == 'memory.max' else '9223372036854771712')
    assert processes(root) == max(1, min(64, os.sysconf('SC_PHYS_PAGES') * os.sysconf('SC_PAGE_SIZE')
                                         // 2 // PROCESS_MEMORY))


def on_a_machine_with(what, *arguments, cold=False, **options):
    "Run the command with some of the system's folders replaced; if `cold`, as a new program."
    if subprocess.run([*NAMESPACE, 'sh', '-ec', ODD[what]], capture_output=True, env=options.get('env')).returncode:
        pytest.skip('this user may not mount disks')
    if os.getuid() == 0 and not cold: return run_warm(*arguments, mounts=ODD[what], **options)
    script = f'set -e; {ODD[what]}; exec "$@"'
    return subprocess.run([*NAMESPACE, 'sh', '-c', script, 'sh', COMMAND, *map(str, arguments)], capture_output=True,
                          text=True, timeout=600, **options)


@pytest.fixture(scope='module')
def without_workers(data, tmp_path_factory):
    out = tmp_path_factory.mktemp('without workers')
    done = typed('train', data, *WORKERS, '--workers', 0, '--out', out)
    assert done.returncode == 0, done.stderr
    return (out/'tiny'/'model.safetensors').read_bytes()


def trained(done, out):
    assert done.returncode == 0 and 'Traceback' not in done.stderr, done.stderr
    assert 'is deprecated' not in done.stderr
    return (out/'tiny'/'model.safetensors').read_bytes()


def test_workers_do_without_the_shared_memory_that_a_container_lacks(data, without_workers, tmp_path):
    done = on_a_machine_with('shm of 128 kB', 'train', data, *WORKERS, '--out', tmp_path)  # a batch has 62
    assert trained(done, tmp_path) == without_workers


def test_a_little_shared_memory_is_enough_for_many_workers(data, tmp_path):
    many = as_arguments(**TINY | dict(size=96, batch_size=24, workers=4, fine_tune_epochs=2))
    done = on_a_machine_with('shm of 2 MiB', 'train', data, *many, '--out', tmp_path)  # a batch has .9
    assert done.returncode == 0, done.stderr


def test_a_small_temporary_folder_is_enough(data, tmp_path):
    "A network is saved beside the results, and the learning-rate finder keeps no copy of it."
    (tmp_path/'tmp').mkdir()
    small = os.environ | dict(TMPDIR=str(tmp_path/'tmp'))
    options = as_arguments(**TINY | dict(workers=2))
    for command in (['lr-find', data, *options, '--batch-size', 4, '--out', tmp_path, '--name', 'rate'],
                    ['train', data, *options, '--fine-tune-epochs', 1, '--out', tmp_path, '--name', 'run'],
                    ['export', tmp_path/'run', '--out', tmp_path/'exported']):
        done = on_a_machine_with('temporary folder of 200 kB', *command, env=small)
        assert done.returncode == 0, done.stderr
    assert (tmp_path/'run'/'learner.pkl').stat().st_size > 400_000


def test_a_home_that_cannot_be_written_is_enough(run, tmp_path):
    (tmp_path/'home').mkdir()
    home = {k: v for k, v in os.environ.items() if k not in ('XDG_CACHE_HOME', 'XDG_CONFIG_HOME', 'MPLCONFIGDIR')}
    done = on_a_machine_with('read-only home', 'report', run.path, '--out', tmp_path/'page.html',
                             env=home | dict(HOME=str(tmp_path/'home')))
    assert done.returncode == 0 and (tmp_path/'page.html').exists(), done.stderr
    assert 'every photo will be read again next time' in done.stderr


def test_workers_do_with_a_temporary_folder_too_deep_for_a_socket(data, without_workers, tmp_path):
    deep = tmp_path/('deep' * 30)
    deep.mkdir()
    done = run_warm('train', data, *WORKERS, '--out', tmp_path, env=os.environ | dict(TMPDIR=str(deep)))
    assert trained(done, tmp_path) == without_workers


def test_workers_that_are_spawned_instead_of_forked_give_the_same_training(data, tmp_path):
    forked = multiprocessing.get_start_method()
    def rows(name, workers):
        training = fitted(data, tmp_path, name, **QUICK | dict(head_epochs=0, fine_tune_epochs=1, workers=workers))
        return [{k: v for k, v in o.items() if k != 'seconds'} for o in training.memory.rows]
    expected = rows('in process', 0)
    multiprocessing.set_start_method('spawn', force=True)
    try: assert rows('spawned', 1) == expected
    finally: multiprocessing.set_start_method(forked, force=True)


def test_a_machine_without_locks_is_told_of_before_anything_slow(data, run, tmp_path):
    for command in (['train', data, *WORKERS, '--name', 'a'], ['lr-find', data, '--name', 'b'],
                    ['evaluate', run.path, data]):
        done = on_a_machine_with('read-only shm', *command, '--out', tmp_path/'out')
        assert done.returncode == 1 and 'Traceback' not in done.stderr
        assert 'no locks for worker processes (/dev/shm: Read-only file system): give --workers 0' in done.stderr
    assert not (tmp_path/'out').exists()
    done = on_a_machine_with('read-only shm', 'evaluate', run.path, data, '--workers', 0, '--out', tmp_path/'out')
    assert done.returncode == 0 and 'joblib' not in done.stderr, done.stderr


@pytest.mark.parametrize('command', ['check', 'split', 'train', 'lr-find', 'evaluate', 'export'])
def test_what_needs_temporary_files_says_where_none_can_be_written(command, data, run):
    inputs = dict(evaluate=[run.path, data], export=[run.path], split=[data/'train', 'out']).get(command, [data])
    done = on_a_machine_with('read-only root', command, *inputs, cold=True)
    assert done.returncode == 1 and done.stderr.startswith('basegun-fastai: no folder for temporary files is '
                                                           'writable')
    assert '--tmpfs /tmp' in done.stderr and 'Traceback' not in done.stderr


@pytest.mark.parametrize('command', ['archs', 'cache'])
def test_what_needs_no_temporary_files_works_without(command):
    done = on_a_machine_with('read-only root', command, cold=True)
    assert done.returncode == 0 and not done.stderr


def test_reading_at_an_offset_is_the_same_without_preadv(tmp_path, monkeypatch):
    (tmp_path/'file').write_bytes(bytes(range(100)))
    actual = []
    for _ in range(2):
        with open(tmp_path/'file', 'rb') as file:
            buffers = bytearray(3), bytearray(50), bytearray(60)
            read_at(file.fileno(), buffers, 10)
            actual.append((*buffers, file.tell()))
        monkeypatch.delattr(os, 'preadv', raising=False)
    assert actual[0] == actual[1] and actual[1][1] == bytes(range(13, 63)) and actual[1][2] == bytes(range(63,
        100)) + bytes(23)


# like a thread that was starting when the signal came
STUCK = 'import threading; threading.Thread(target=threading.Event().wait).start()'


def test_a_thread_that_waits_for_ever_does_not_hold_up_the_end(data, tmp_path):
    with Command('train', data, *WORKERS, '--workers', '0', '--out', tmp_path, before=STUCK) as command:
        assert command.stderr.readline()
        command.send_signal(signal.SIGTERM)
        assert command.wait(60) == 143


def test_a_cluster_that_numbers_its_tasks_silences_no_command(data, run, tmp_path):
    pod = os.environ | dict(RANK='1', WORLD_SIZE='2', LOCAL_RANK='1', MASTER_ADDR='127.0.0.1', MASTER_PORT='1')
    for command in (['archs', '--no'], ['lr-find', 'no'], ['train', 'no'], ['check', 'no'], ['predict', 'no', 'no'],
                    ['evaluate', 'no', data], ['export', 'no'], ['report', 'no'], ['serve', 'no']):
        result = run_warm(*command, env=pod)
        assert result.returncode in (1, 2) and result.stderr and 'Traceback' not in result.stderr, (command, result)
    result = run_warm('evaluate', run.path, data, '--out', tmp_path/'judged', '--workers', '0', env=pod)
    assert result.returncode == 0 and 'accuracy' in result.stdout, result.stderr
    odd = pod | dict(WORLD_SIZE='two', TORCHELASTIC_RUN_ID='of another')
    result = run_warm('train', data, *WORKERS, '--out', tmp_path, env=odd)
    assert result.returncode == 0 and 'accuracy' in result.stdout, result.stderr
    assert ('WORLD_SIZE is two in the environment, but torchrun did not start this process: it trains as a single '
            'process\n') in result.stderr
    assert (tmp_path/'tiny'/'learner.pkl').stat().st_size
