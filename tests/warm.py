"""Commands that begin as copies of a process that has imported PyTorch and fastai already, which is most of the time
that a short training takes. What depends on a program's very beginning is tested with the installed command.
"""
import ctypes
import multiprocessing
import os
import signal
import subprocess
import sys
import tempfile

SERVER = multiprocessing.get_context('forkserver')
IMPORTED = ('training.setup', 'training.fit', 'training.finish', 'train', 'evaluate', 'export', 'report')
if multiprocessing.parent_process() is None:
    SERVER.set_forkserver_preload([f'basegun_fastai.{o}' for o in IMPORTED])


CLONE_NEWNS = 0x20000  # of Linux; Python 3.12 has it as os.CLONE_NEWNS


def mount_for_itself(script):
    "Give this process mounts of its own, as `unshare --mount` does, and run a shell script that changes them."
    if ctypes.CDLL(None, use_errno=True).unshare(CLONE_NEWNS): raise OSError(ctypes.get_errno(), 'unshare')
    subprocess.run(['sh', '-ec', f'mount --make-rprivate /; {script}'], check=True)


def be_command(arguments, environment, folder, streams, mounts=''):
    "In the copy: be the command, which prints to `streams`, stdout and stderr."
    multiprocessing.set_start_method(None, force=True)  # a copy would begin processes of its own as it was begun
    tempfile.tempdir = None  # it is that of the process that was copied
    os.environ.clear()
    os.environ.update(environment)
    os.chdir(folder)
    if mounts: mount_for_itself(mounts)
    if streams:
        for number, o in enumerate(streams, 1): os.dup2(o.fileno(), number)
        sys.stdout, sys.stderr = (open(o, 'w', buffering=1, encoding='utf-8', closefd=False) for o in (1, 2))
    else:  # as Python begins where a shell has closed all three
        for o in range(3): os.close(o)
        sys.stdin = sys.stdout = sys.stderr = None
    sys.argv = ['basegun-fastai', *arguments]
    from basegun_fastai.cli import main
    main()


class Command:
    "A command that goes on, with the names of `subprocess.Popen`; both streams are read as text."

    def __init__(self, *arguments, cwd=None, env=None, mounts=''):
        pipes = [SERVER.Pipe(duplex=False) for _ in range(2)]
        environment, folder, streams = dict(env or os.environ), cwd or os.getcwd(), [writer for _, writer in pipes]
        self.process = SERVER.Process(target=be_command, args=(
            [*map(str, arguments)], environment, folder, streams, mounts))
        self.process.start()
        self.stdout, self.stderr = (open(os.dup(reader.fileno()), encoding='utf-8') for reader, _ in pipes)
        for pipe in pipes:
            for end in pipe: end.close()

    @property
    def pid(self): return self.process.pid

    @property
    def returncode(self): return self.process.exitcode

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
    "Run a command to its end; what it prints has to fit into a pipe."
    with Command(*arguments, **options) as command:
        code = command.wait(600)
        return subprocess.CompletedProcess(arguments, code, command.stdout.read(), command.stderr.read())
