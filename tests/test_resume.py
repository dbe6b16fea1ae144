"A training that is killed at any moment and resumed has the result of an uninterrupted one."
import os
import signal
import subprocess
import time

import pytest
from conftest import COMMAND, QUICK, WHOLE, as_arguments, soak, typed
from test_train import read_curves, same
from warm import Command, run_warm

from basegun_fastai.base.record import Run

pytestmark = pytest.mark.slow

OPTIONS = as_arguments(**WHOLE)


def stopped(data, out, name, at, how=signal.SIGKILL, wait=0., options=OPTIONS):
    """Start or continue a training, and send it a signal `wait` seconds after it says `at`; return its exit code
    and its messages.
    """
    text = []
    with Command('train', data, '--out', out, '--name', name, '--resume', *options) as process:
        for line in process.stderr:
            text.append(line)
            if at in line: break
        try: process.wait(wait or .01)
        except subprocess.TimeoutExpired: process.send_signal(how)
        text += process.stderr.readlines()
        return process.wait(60), ''.join(text)


@pytest.mark.parametrize('workers', [0, 2])
def test_a_chain_of_kills_in_every_phase(run, data, tmp_path, workers):
    options = as_arguments(**WHOLE | dict(workers=workers))
    moments = ['photos in', 'test_efficientnet at', 'head        1/4', 'head        2/4', 'fine-tune   3/4',
               'best epoch']
    for at in moments:
        code, text = stopped(data, tmp_path, 'killed', at, options=options)
        assert code == -signal.SIGKILL, text
        assert (not (tmp_path/'killed'/'history.csv').exists()
                or (tmp_path/'killed'/'history.csv').read_text().endswith('\n'))
    assert not Run(tmp_path/'killed').finished
    ended = run_warm('train', data, '--out', tmp_path, '--name', 'killed', '--resume', *options)
    assert ended.returncode == 0, ended.stderr
    same(run, Run(tmp_path/'killed'))
    assert {o.name for o in run.path.iterdir()} == {o.name for o in (tmp_path/'killed').iterdir()}
    for split in ('train', 'val'):
        assert [o.step for o in read_curves(Run(tmp_path/'killed'), split).Scalars('loss')] == [1, 2, 3, 4]
    again = typed('train', data, '--out', tmp_path, '--name', 'killed', '--resume', *options)
    assert again.returncode == 0 and again.stderr.endswith('is finished: nothing to do\n')
    again = typed('train', data, '--out', tmp_path, '--name', 'killed', '--resume', *options, '--seed', 7,
                  '--cache', 'off')
    assert again.returncode == 0 and again.stderr.endswith(
        'is finished: nothing to do. Changed options are ignored: --seed was 42, now 7\n'), again.stderr
    again = typed('train', data/'nowhere', '--out', tmp_path, '--name', 'killed', '--resume', *options)
    assert f'options are ignored: DATA was {data}, now {data}/nowhere\n' in again.stderr, again.stderr


def test_a_mean_of_weights_that_was_interrupted_goes_on_where_it_was(pretrained, data, weights, tmp_path, monkeypatch,
    capsys):
    from basegun_fastai.training.checkpoint import Checkpoint
    from basegun_fastai.train import train
    options = QUICK | dict(head_epochs=2, fine_tune_epochs=2, weights=str(weights), out=tmp_path, name='broken off',
                          resume=True)
    saved = Checkpoint.after_epoch
    def interrupted(self):
        saved(self)
        if len(self.memory.rows) == 3: raise KeyboardInterrupt
    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
        patch.setattr(Checkpoint, 'after_epoch', interrupted)
        train(data, **options)
    assert 'fine-tune   3/4' in capsys.readouterr().err
    train(data, **options)
    assert 'fine-tune   3/4' not in capsys.readouterr().err
    same(pretrained, Run(tmp_path/'broken off'))


@pytest.mark.parametrize(('how', 'code'), [(signal.SIGTERM, 143), (signal.SIGINT, 130)])
def test_being_asked_to_stop_leaves_a_run_that_goes_on(run, data, tmp_path, how, code):
    options = as_arguments(**WHOLE | dict(workers=2, no_report=True))
    actual, text = stopped(data, tmp_path, 'asked', 'head        1/4', how, wait=.3, options=options)
    assert actual == code and '--name asked --resume' in text and 'Traceback' not in text, text
    ended = run_warm('train', data, '--out', tmp_path, '--name', 'asked', '--resume', *options)
    assert ended.returncode == 0, ended.stderr
    same(run, Run(tmp_path/'asked'))


def started(*command):
    "A training in its own process group; as a new program in `make soak`."
    cold = soak(False, True)
    if cold: return subprocess.Popen([*map(str, [COMMAND, *command])], stdout=subprocess.DEVNULL,
                                     stderr=subprocess.PIPE, text=True, start_new_session=True)
    return Command(*command, before='import os; os.setsid()')


@pytest.mark.soak
@pytest.mark.parametrize('gpus', [1, 2])
def test_a_key_that_is_held_down_adds_nothing_to_what_is_said(data, tmp_path, gpus):
    command = ['train', data, '--out', tmp_path, '--name', 'held', *OPTIONS, '--workers', '2', '--batch-size', '16',
               '--gpus', str(gpus), '--device', 'cpu', '--head-epochs', '900']
    with started(*command) as process:
        while '1/9' not in process.stderr.readline(): assert process.poll() is None
        for _ in range(20):
            try: os.killpg(process.pid, signal.SIGINT)
            except ProcessLookupError: break
            time.sleep(.02)
        text = process.stderr.read()
        assert process.wait(60) == 130 and 'Traceback' not in text and 'Error' not in text, text
        assert text.count('--name held --resume continues') == 1


@pytest.fixture(scope='module')
def half(data, tmp_path_factory):
    "A run that was killed after its first epoch of the second stage."
    out = tmp_path_factory.mktemp('half')
    stopped(data, out, 'half', 'fine-tune   3/4')
    return Run(out/'half')


def test_changed_options_are_refused_by_name(half, data):
    result = typed('train', data, '--out', half.path.parent, '--name', 'half', '--resume', *OPTIONS, '--lr', '0.01',
                 '--seed', '7')
    assert (result.returncode == 1 and '--lr was 0.005, now 0.01' in result.stderr
            and '--seed was 42, now 7' in result.stderr)


def test_changed_photos_are_refused_by_name(half, copy):
    (copy/'train'/'revolver'/'0004.jpg').unlink()
    result = typed('train', copy, '--out', half.path.parent, '--name', 'half', '--resume', *OPTIONS)
    assert result.returncode == 1 and 'train/revolver had 8 photos, now 7' in result.stderr


def test_another_number_of_threads_is_refused(half, data):
    assert half.config.resolved.threads == int(os.environ['OMP_NUM_THREADS'])
    command = ['train', data, '--out', half.path.parent, '--name', 'half', '--resume', *OPTIONS]
    result = run_warm(*command, env=os.environ | dict(OMP_NUM_THREADS='5'))
    assert result.returncode == 1 and (f"it ran with {half.config.resolved.threads} threads, now 5: set "
                                       f'OMP_NUM_THREADS={half.config.resolved.threads}') in result.stderr


def test_without_resume_nothing_is_overwritten(half, data):
    result = typed('train', data, '--out', half.path.parent, '--name', 'half', *OPTIONS)
    assert result.returncode == 1 and 'nothing is overwritten' in result.stderr


def test_an_unfinished_run_is_not_judged(half, data):
    result = typed('evaluate', half.path, data)
    assert result.returncode == 1 and 'not finished' in result.stderr


def test_a_damaged_checkpoint_falls_back_to_the_one_before(half, run, data, tmp_path):
    import shutil
    shutil.copytree(half.path, tmp_path/'damaged')
    newest = max((tmp_path/'damaged'/'checkpoint').iterdir())
    newest.write_bytes(newest.read_bytes()[:-100] + b'\0' * 100)
    ended = typed('train', data, '--out', tmp_path, '--name', 'damaged', '--resume', '--no-report', *OPTIONS)
    assert ended.returncode == 0 and 'is damaged and skipped' in ended.stderr
    same(run, Run(tmp_path/'damaged'))
