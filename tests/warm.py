"""Commands that start as copies of a process that has imported PyTorch and fastai already, since the imports are most
of a short training's time. The start of the program itself is tested with the installed command.
"""
import ctypes
import logging
import multiprocessing
import os
import signal
import subprocess
import sys
import tempfile
import threading
import traceback
from multiprocessing import forkserver, resource_tracker, util

SERVER = multiprocessing.get_context('forkserver')
IMPORTED = ('training.setup', 'training.fit', 'training.finish', 'train', 'evaluate', 'export', 'report')
if multiprocessing.parent_process() is None:
    SERVER.set_forkserver_preload([f'basegun_fastai.{o}' for o in IMPORTED] + ['torch.distributed.launcher.api'])


def start_for_all():
    "Start the process that is copied, once for all processes of xdist: its imports are as long as many tests."
    forkserver.ensure_running()
    os.environ['BASEGUN_FORKSERVER'] = forkserver._forkserver._forkserver_address


def use_the_one_for_all():
    server = forkserver._forkserver
    server._forkserver_address = os.environ['BASEGUN_FORKSERVER']
    server._forkserver_alive_fd = os.pipe()[1]  # the first process holds the pipe that ends it
    server.ensure_running = resource_tracker.ensure_running


if 'BASEGUN_FORKSERVER' in os.environ and 'PYTEST_XDIST_WORKER' in os.environ: use_the_one_for_all()


CLONE_NEWNS = 0x20000  # of Linux; Python 3.12 has it as os.CLONE_NEWNS


def mount_for_itself(script):
    "Give this process mounts of its own, as `unshare --mount` does, and run a shell script that changes them."
    if ctypes.CDLL(None, use_errno=True).unshare(CLONE_NEWNS): raise OSError(ctypes.get_errno(), 'unshare')
    subprocess.run(['sh', '-ec', f'mount --make-rprivate /; {script}'], check=True)


def take_environment(environment):
    "Make a copy as if it had started with these variables."
    import torch
    os.environ.clear()
    os.environ.update(environment)
    threads = int(environment.get('OMP_NUM_THREADS', torch.get_num_threads()))
    if threads != torch.get_num_threads(): torch.set_num_threads(threads)  # it was read at the import
    multiprocessing.set_start_method(None, force=True)  # else it starts processes as it was started itself
    tempfile.tempdir = None  # it belongs to the copied process


class Rank(subprocess.Popen):
    """The process that PyTorch's launcher starts, `python -P -c PROGRAM ...`, as a copy of the launcher; the rest of
    `Popen`, with its session, signals and exit codes, does not change.
    """

    def _execute_child(self, args, *rest):
        _, safe_path, flag, program, *arguments = args
        assert (safe_path, flag) == ('-P', '-c')
        self.pid, self._child_created = os.fork(), True
        if not self.pid: os._exit(be_rank(program, arguments, environment=rest[5]))


def be_rank(program, arguments, environment):
    "In the copy: run a program like a new Python; returns its exit code."
    os.setsid()
    for o in {*signal.Signals} - {signal.SIGKILL, signal.SIGSTOP}:
        if callable(signal.getsignal(o)): signal.signal(o, signal.SIG_DFL)
    signal.signal(signal.SIGINT, signal.default_int_handler)
    os.closerange(3, os.sysconf('SC_OPEN_MAX'))
    resource_tracker._resource_tracker.__init__()  # its pipe is closed
    util._finalizer_registry.clear()
    logging.disable(logging.NOTSET)
    take_environment(environment)
    sys.argv = ['-c', *arguments]
    try:
        exec(program, dict(__name__='__main__'))
        return 0
    except SystemExit as end: return end.code or 0
    except BaseException:
        traceback.print_exc()
        return 1
    finally:
        threading._shutdown()
        util._exit_function()
        for o in (sys.stdout, sys.stderr): o.flush()


def be_command(arguments, environment, folder, streams, mounts='', before=''):
    "In the copy: run the program `before`, then the command, with `streams` as its stdout and stderr."
    from torch.distributed.elastic.multiprocessing.subprocess_handler import subprocess_handler
    subprocess_handler.Popen = Rank
    take_environment(environment)
    os.chdir(folder)
    if mounts: mount_for_itself(mounts)
    if streams:
        for number, o in enumerate(streams, 1): os.dup2(o.fileno(), number)
        sys.stdout, sys.stderr = (open(o, 'w', buffering=1, encoding='utf-8', closefd=False) for o in (1, 2))
    else:  # the state of Python if a shell has closed all three
        for o in range(3): os.close(o)
        sys.stdin = sys.stdout = sys.stderr = None
    sys.argv = ['basegun-fastai', *arguments]
    from basegun_fastai.cli import main
    exec(before, {})
    main()


class Command:
    "A running command, with the names of `subprocess.Popen`; both streams are read as text."

    def __init__(self, *arguments, cwd=None, env=None, mounts='', before=''):
        pipes = [SERVER.Pipe(duplex=False) for _ in range(2)]
        environment, folder, streams = dict(env or os.environ), cwd or os.getcwd(), [writer for _, writer in pipes]
        self.process = SERVER.Process(target=be_command, args=(
            [*map(str, arguments)], environment, folder, streams, mounts, before))
        self.process.start()
        self.stdout, self.stderr = (open(os.dup(reader.fileno()), encoding='utf-8') for reader, _ in pipes)
        for pipe in pipes:
            for end in pipe: end.close()

    @property
    def pid(self): return self.process.pid

    @property
    def returncode(self): return self.process.exitcode

    def poll(self): return self.returncode

    def send_signal(self, how): os.kill(self.process.pid, how)

    def wait(self, timeout=None):
        "Its exit code; raises `subprocess.TimeoutExpired`."
        self.process.join(timeout)
        if self.returncode is None: raise subprocess.TimeoutExpired('basegun-fastai', timeout)
        return self.returncode

    def __enter__(self): return self

    def __exit__(self, *_):
        if self.returncode is None: self.send_signal(signal.SIGKILL)
        self.wait(60)
        self.stdout.close()
        self.stderr.close()


def run_without_streams(*arguments):
    "Run a command with stdin, stdout and stderr closed; return its exit code."
    process = SERVER.Process(target=be_command, args=([*map(str, arguments)], dict(os.environ), os.getcwd(), None))
    process.start()
    process.join(600)
    return process.exitcode


def run_warm(*arguments, **options):
    "Run a command to its end; its output must fit into a pipe."
    with Command(*arguments, **options) as command:
        code = command.wait(600)
        return subprocess.CompletedProcess(arguments, code, command.stdout.read(), command.stderr.read())
