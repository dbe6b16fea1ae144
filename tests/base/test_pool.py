"If a process crashes, hangs or loses its parent, only the current answer is lost."
import json
import multiprocessing
import os
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path

import pytest

from basegun_fastai.base.errors import BasegunError
from basegun_fastai.base.pool import Died, Pool, Process, TooSlow
from basegun_fastai.base import pool as module

PROGRAM = '''
import os, time
from basegun_fastai.base.pool import answer_questions
def does(question, content):
    print('what a library prints')
    if 'signal' in question: os.kill(os.getpid(), question['signal'])
    if 'sleep' in question: time.sleep(question['sleep'])
    yield dict(pid=os.getpid(), n=len(content)), content[:5]
answer_questions(lambda: ({}, does), 2**28)
'''


@pytest.fixture
def process():
    process = Process(PROGRAM)
    process.start()
    yield process
    process.end()


@pytest.fixture
def pool():
    pool = Pool(PROGRAM)
    yield pool
    pool.end()


def ask(process, **question):
    if not process.is_fresh: process.start()
    [(answer, _)] = process.ask(question, seconds=20)
    return answer['pid']


def is_there(pid):
    try: return Path(f'/proc/{pid}/stat').read_text().rsplit(')', 1)[1].split()[0] != 'Z'
    except OSError: return False


def until(condition):
    end = time.monotonic() + 20
    while not condition() and time.monotonic() < end: threading.Event().wait(.02)
    return condition()


def test_what_libraries_print_does_not_come_into_the_answers(process):
    assert next(process.ask({}, bytes(10**6)))[0]['n'] == 10**6
    assert next(process.ask({}, b'photo of a gun'))[1] == b'photo'


@pytest.mark.parametrize('number', [signal.SIGSEGV, signal.SIGKILL, signal.SIGTERM])
def test_a_death_has_its_reason(process, number):
    with pytest.raises(Died, match=number.name) as caught: ask(process, signal=number)
    assert caught.value.killed == (number != signal.SIGSEGV) and not process.lives
    assert ask(process)


@pytest.mark.parametrize('content', [b'', bytes(10**6)])
def test_a_process_that_is_stopped_is_too_slow_whether_it_reads_or_answers(process, content):
    os.kill(process.popen.pid, signal.SIGSTOP)
    with pytest.raises(TooSlow): next(process.ask({}, content, seconds=.2))
    assert not is_there(process.popen.pid)


def test_one_that_was_killed_for_good_is_not_started_again(process):
    process.kill()
    with pytest.raises(Died, match='SIGKILL'): process.start()


def test_a_fault_of_the_user_is_handed_on():
    program = PROGRAM.replace('lambda: ({}, does)', 'fail') + '\n'
    fail = 'def fail(): raise BasegunError("no folder")\n'
    program = f'from basegun_fastai.base.errors import BasegunError\n{fail}{program}'
    with pytest.raises(BasegunError, match='no folder'): Process(program).start()


def test_the_next_use_has_the_same_processes_unless_the_environment_has_changed(pool, monkeypatch):
    def pids(n):
        with pool.processes(n) as processes: return {ask(o) for o in processes}
    first = pids(2)
    assert pids(2) == first and pids(1) < first
    with pool.processes(1) as [one], pool.processes(1) as [other]: assert {ask(one), ask(other)} == first
    with pool.processes(2) as [one, other]: other.end()
    with pool.processes(1) as [process]: assert process is one and process.is_fresh
    monkeypatch.setenv('TMPDIR', '/elsewhere')
    assert not pids(2) & first and not any(map(is_there, first))


def test_an_exception_ends_those_that_were_asked_and_no_others(pool):
    with pool.processes(1) as [one]:
        first = ask(one)
        with pytest.raises(ZeroDivisionError), pool.processes(1) as [other]: ask(other) / 0
        assert ask(one) == first and not other.lives
    pool.end()
    assert not is_there(first)


def test_processes_end_when_nobody_has_asked_for_a_while(pool, monkeypatch):
    monkeypatch.setattr(module, 'IDLE', .1)
    with pool.processes(1) as [process]: pid = ask(process)
    assert until(lambda: not is_there(pid))
    with pool.processes(1) as [process]: assert ask(process) != pid


def pipes_of(pid):
    files = [f'/proc/{pid}/fd/{o}' for o in os.listdir(f'/proc/{pid}/fd')]  # one was the listing, closed now
    return {o for o in map(os.readlink, filter(os.path.lexists, files)) if o.startswith('pipe:')}


def be_copy(pool, connection):
    left = pipes_of('self')
    with pool.processes(1) as [process]: connection.send((left, ask(process)))
    connection.recv()
    pool.end()


def test_a_forked_copy_has_processes_of_its_own(pool):
    context = multiprocessing.get_context('fork')
    with pool.processes(1) as [idle], pool.processes(1) as [process]:
        pids = [ask(o) for o in (idle, process)]
        ours = pipes_of(pids[0]) | pipes_of(pids[1])
        here, there = context.Pipe()
        copy = context.Process(target=be_copy, args=(pool, there))
        copy.start()
        there.close()
        left, pid = here.recv()
        assert not left & ours and pid not in pids
        assert [ask(o) for o in (idle, process)] == pids
        here.send('end')
        copy.join(20)
        assert copy.exitcode == 0 and not is_there(pid) and all(map(is_there, pids))


PARENT = f'''
import json, os, signal, sys, threading, time
from basegun_fastai.base.pool import Pool
pool = Pool({PROGRAM!r})
with pool.processes(2) as [idle, at_work]:
    for o in (idle, at_work): o.start()
    copy = os.fork()
    if not copy: time.sleep(60)
    print(json.dumps([idle.popen.pid, at_work.popen.pid, copy]), flush=True)
    if sys.argv[1] == 'hangs': next(at_work.ask(dict(sleep=60), seconds=1.5))
    sys.stdin.read()
'''


@pytest.mark.parametrize('what', ['waits', 'hangs'])
def test_nothing_outlives_a_parent_that_is_killed(what):
    with subprocess.Popen([sys.executable, '-c', PARENT, what], stdout=subprocess.PIPE, stdin=subprocess.PIPE,
                          stderr=subprocess.DEVNULL) as parent:
        *pids, copy = json.loads(parent.stdout.readline())
        if what == 'hangs': threading.Event().wait(.3)
        parent.kill()
        assert until(lambda: not any(map(is_there, pids))) and is_there(copy)
        os.kill(copy, signal.SIGKILL)


def test_nothing_outlives_a_parent_that_ends():
    code = PARENT.replace("sys.stdin.read()", '').replace('    copy = os.fork()\n    if not copy: time.sleep(60)\n', '')
    code = code.replace(', copy]', ']')
    command = [sys.executable, '-W', 'error', '-c', code, 'ends']
    done = subprocess.run(command, capture_output=True, text=True, timeout=60)
    assert done.returncode == 0 and done.stderr == '' and not any(map(is_there, json.loads(done.stdout)))
