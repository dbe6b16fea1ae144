"Processes that train together do the work of one, end together, and continue from their last epoch."
import json
import os
import random
import secrets
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import pandas as pd
import pytest
import torch
from conftest import COMMAND, as_arguments, soak, typed
from test_resume import same
from warm import Command, run_warm

from basegun_fastai.base.record import Run
from basegun_fastai.data.cache import open_cache
from basegun_fastai.data.contents import known_contents
from basegun_fastai.data.folders import list_photos
from basegun_fastai.model.archs import architecture
from basegun_fastai.model.loaders import dataloaders
from basegun_fastai.model.workers import own_part, part_indices
from basegun_fastai.training import launching
from basegun_fastai.trust.familiarity import read_bank

TOGETHER = Path(__file__).parents[1]/'together.py'
SMALL = dict(arch='test_efficientnet', size=32, head_epochs=1, fine_tune_epochs=3, batch_size=18, device='cpu')
KILLS = soak(3, 20)


@pytest.fixture(scope='module', autouse=True)
def one_thread_each():
    "One thread per process: several processes share few cores."
    before = os.environ['OMP_NUM_THREADS']
    os.environ['OMP_NUM_THREADS'] = '1'
    yield
    os.environ['OMP_NUM_THREADS'] = before


@pytest.mark.parametrize(('n', 'batch_size', 'processes'), [(11, 4, 3), (12, 4, 2), (1, 8, 3), (0, 4, 2), (7, 8, 4)])
def test_parts_are_all_photos_once(n, batch_size, processes):
    parts = [part_indices(n, batch_size, (o, processes)) for o in range(processes)]
    assert sorted(i for part in parts for i in part) == list(range(n))
    sizes = [len(range(batch_size)[own_part(batch_size, (o, processes))]) for o in range(processes)]
    assert sum(sizes) == batch_size and max(sizes) - min(sizes) <= 1


@pytest.mark.parametrize('workers', [0, 2])
def test_each_photo_is_seen_once_an_epoch_and_validated_once(data, workers):
    tiny, photos = architecture('test_efficientnet', size=32), list_photos(data)
    photos = photos.drop(photos.index[[3]])  # 47 for train, 24 for val
    single = dataloaders(data, tiny, photos, 18, 0, 'cpu')
    ranks = [dataloaders(data, tiny, photos, 18, workers, 'cpu', shard=(o, 3)) for o in range(3)]
    for number, (split, n) in enumerate(dict(train=47, val=24).items()):
        for o in (single, *ranks): o.loaders[number].rng.seed(3)
        batches = [[xb for xb, _ in o.loaders[number]] for o in ranks]
        assert {len(o) for o in batches} == {len(single.loaders[number])}, split
        labels = [torch.cat([yb for _, yb in o.loaders[number]]) for o in ranks]
        assert sum(map(len, labels)) == n
        whole = torch.cat([yb for _, yb in single.loaders[number]])
        assert torch.cat(labels).bincount().tolist() == whole.bincount().tolist()
    val = [torch.cat([torch.cat(parts) for parts in zip(*([xb for xb, _ in o.valid] for o in ranks), strict=True)])]
    assert torch.equal(val[0], torch.cat([xb for xb, _ in single.valid]))  # in the order of the photos
    for o in ranks:
        for dl in o.loaders: dl.close()


def test_processes_of_a_machine_fill_one_cache_each_photo_once(data, tmp_path):
    tiny, photos = architecture('test_efficientnet', size=32), known_contents(data, list_photos(data))
    train, val = (photos[photos.split == o] for o in ('train', 'val'))
    sides = [(tiny.before_crop, train), (tiny.size, val)]
    caches = [open_cache(data, sides, tmp_path/'cache') for _ in range(2)]
    filled = []
    for o in caches:
        fill = o._fill
        o._fill = lambda *rest, fill=fill: filled.append(str(rest[2])) or fill(*rest)
    for epoch in range(2):
        for rank, photo_cache in enumerate(caches):
            dls = dataloaders(data, tiny, photos, 16, 0, 'cpu', photo_cache, shard=(rank, 2))
            dls.train.rng.seed(epoch)
            for _ in dls.train: pass
    assert {*filled} >= {str(data/o) for o in train.file} and len(filled) - len(train) <= 1  # fastai reads one of val


def uneven(copy):
    next((copy/'train').glob('*/*.jpg')).unlink()
    return copy


IMPORTS = '''
import os, sys, torch  # both need it
def imported(known, unknown):
    child = os.fork()
    if child: return os.waitpid(child, 0)
    try:
        for o in known: __import__(o)
        print([o for o in sys.modules if unknown in o], flush=True)
    finally: os._exit(0)
imported(['basegun_fastai.training.finish'], 'launcher')
imported(['basegun_fastai.train', 'basegun_fastai.training.distributed', 'torch.distributed.launcher.api'], 'timm')
'''


def test_one_process_and_the_launcher_do_not_import_what_the_other_needs():
    result = subprocess.run([sys.executable, '-W', 'ignore', '-c', IMPORTS], capture_output=True, text=True)
    assert result.stdout == '[]\n[]\n', result.stdout + result.stderr


def test_the_launcher_sends_no_heartbeat():
    from torch.distributed.elastic.rendezvous import RendezvousParameters
    from torch.distributed.elastic.rendezvous.registry import get_rendezvous_handler
    one = RendezvousParameters('c10d', '127.0.0.1:0', 'run', 1, 1, local_addr='127.0.0.1', **launching._NO_HEARTBEAT)
    handler = get_rendezvous_handler(one)
    assert handler.settings.keep_alive_interval.days > 365
    assert handler.shutdown()


@pytest.mark.slow
@pytest.mark.parametrize(('processes', 'options'), [(2, dict(head_views=0)), (3, dict(class_weights='balanced'))])
def test_several_processes_learn_what_one_learns(copy, weights, tmp_path, monkeypatch, processes, options):
    "47 photos in batches of 18: the last one has 11, which 2 or 3 processes cannot share evenly."
    data = uneven(copy)
    command = ['train', data, '--out', tmp_path, *as_arguments(**SMALL | dict(weights=weights, workers=0, head_views=1)
                                                               | options)]
    with monkeypatch.context() as patch:
        patch.setattr('basegun_fastai.model.loaders.augmentation', turned_off())
        single = typed(*command, '--name', 'single')
    assert single.returncode == 0, single.stderr
    if processes == 3:
        several = run_warm(*command, '--name', 'several', '--gpus', '3', before='import together')
    else:
        launcher = [sys.executable, '-m', 'torch.distributed.run', '--standalone', '--local-addr', '127.0.0.1',
                    '--nproc-per-node', '2', TOGETHER]
        several = subprocess.run([*map(str, launcher + command), '--name', 'several'], capture_output=True, text=True,
                                 timeout=300)
    assert several.returncode == 0, several.stderr
    printed = several.stdout
    assert printed.strip().splitlines()[-1] == str(tmp_path/'several') and printed.count('\naccuracy ') == 1
    same_to_rounding(Run(tmp_path/'single'), Run(tmp_path/'several'))


def turned_off():
    from fastai.vision.augment import setup_aug_tfms

    from basegun_fastai.model.augment import Reframe
    return lambda size, *_: setup_aug_tfms([Reframe(size, p_affine=0.)])


def same_to_rounding(single, several):
    from safetensors.torch import load_file
    expected, actual = load_file(single.weights), load_file(several.weights)
    for run, state in ((single, expected), (several, actual)):  # the last layer before its temperature
        for k in state.keys() & {'classifier.weight', 'classifier.bias'}:
            state[k] = state[k] * json.loads(run.metrics.read_text())['calibration']['temperature']
    assert max((expected[k].float() - actual[k].float()).abs().max() for k in expected) < 1e-5
    rows, others = (pd.read_csv(o.history).drop(columns='seconds') for o in (single, several))
    pd.testing.assert_frame_equal(rows, others, rtol=1e-4)
    answers, others = (pd.read_csv(o.predictions) for o in (single, several))
    pd.testing.assert_frame_equal(answers, others, rtol=1e-3)
    assert {o.name for o in single.path.iterdir()} == {o.name for o in several.path.iterdir()}
    assert several.config.best['epoch'] == single.config.best['epoch']


# Ends

class Launched:
    "A training in two processes, and all processes that belong to it."

    def __init__(self, *arguments, cold=False):
        self.mark, self.text = secrets.token_hex(8), []
        command, environment = ['train', *map(str, arguments), '--gpus', '2'], os.environ | dict(BASEGUN_TEST=self.mark)
        self.process = Command(*command, env=environment) if not cold else subprocess.Popen(
            [COMMAND, *command], text=True, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, env=environment)
        self.pipe = os.fstat(self.process.stderr.fileno()).st_ino

    def alive(self):
        "Ids of all its processes: those with its variables, and copies that print to the same pipe."
        numbers = []
        for folder in Path('/proc').glob('[0-9]*'):
            try:
                belongs = (self.mark.encode() in (folder/'environ').read_bytes()
                           or os.readlink(folder/'fd'/'2') == f'pipe:[{self.pipe}]')
                if belongs and 'Z' not in (folder/'stat').read_text(errors='replace').rsplit(')', 1)[1].split()[0]:
                    numbers.append(int(folder.name))
            except OSError: continue  # it has just ended
        return numbers

    def ranks(self):
        "Ids of the processes that train."
        return [o for o in self.alive() if f'PPid:\t{self.process.pid}\n' in Path(f'/proc/{o}/status').read_text()]

    def wait_for(self, text):
        for line in self.process.stderr:
            self.text.append(line)
            if text in line: return
        raise AssertionError(f'{text!r} is missing in: {"".join(self.text)}')

    def go_on(self):
        "Wait for some lines and a moment more, at random; is it still running then?"
        self.text += [line for _, line in zip(range(random.randrange(1, 14)), self.process.stderr, strict=False)]
        try: self.process.wait(random.random())
        except subprocess.TimeoutExpired: return True
        return False

    def ended(self, seconds=30):
        "Its exit code and its messages, after all its processes have ended."
        until = time.monotonic() + seconds
        rest = self.process.stderr.read()
        code = self.process.wait(max(1, until - time.monotonic()))
        while (left := self.alive()) and time.monotonic() < until: os.sched_yield()
        assert not left and time.monotonic() < until
        return code, ''.join(self.text) + rest


def strike(launched, how):
    if how == 'term': launched.process.send_signal(signal.SIGTERM)
    elif how == 'launcher': launched.process.send_signal(signal.SIGKILL)
    else: os.kill(random.choice(launched.ranks()), signal.SIGKILL)


CODES = dict(rank=137, launcher=-signal.SIGKILL, term=143)


@pytest.fixture(scope='module')
def together(data, weights, tmp_path_factory):
    "An undisturbed run of two processes; all others start as copies of a process with the imports done."
    out = tmp_path_factory.mktemp('together')
    options = as_arguments(**SMALL | dict(weights=weights, workers=1, unfamiliar_rate=.1, no_report=True))
    launched = Launched(data, '--out', out, '--name', 'whole', *options, cold=True)
    code, text = launched.ended(400)
    assert code == 0, text
    assert len(read_bank(Run(out/'whole')).val_similarities) == 24
    return Run(out/'whole'), options


@pytest.mark.slow
@pytest.mark.soak
def test_whoever_is_killed_all_end_and_the_same_command_goes_on(together, data, tmp_path):
    whole, options = together
    command, kills = [data, '--out', tmp_path, '--name', 'killed', '--resume', *options], 0
    for _ in range(20 * KILLS):
        launched, how = Launched(*command), ('rank', 'launcher', 'term')[kills % 3]
        goes_on = launched.go_on()
        if goes_on: strike(launched, how)
        code, text = launched.ended()
        if code == 0:  # it came to its end first
            same(whole, Run(tmp_path/'killed'))
            shutil.rmtree(tmp_path/'killed')
            continue
        assert goes_on and code == CODES[how], text
        assert 'Traceback' not in text and text.count('so all were ended') == (how == 'rank'), text
        assert text.count('interrupted') == (how == 'term'), text
        kills += 1
        if kills == KILLS: break
    assert kills == KILLS
    code, text = Launched(*command).ended(120)
    assert code == 0, text
    same(whole, Run(tmp_path/'killed'))


@pytest.mark.slow
def test_another_number_of_processes_has_to_be_asked_for(together, data, tmp_path):
    whole, options = together
    command = ['train', data, '--out', tmp_path, '--name', 'fewer', '--resume', *options]
    launched = Launched(*command[1:])
    launched.wait_for('fine-tune   3/')
    strike(launched, 'rank')
    launched.ended()
    refused = typed(*command)
    assert refused.returncode == 1 and 'it ran in 2 processes, now 1: give --gpus 2, or --other-gpus' in refused.stderr
    ended = typed(*command, '--other-gpus')
    assert ended.returncode == 0, ended.stderr
    assert 'started in 2 processes, continuing in 1' in ended.stderr
    assert Run(tmp_path/'fewer').config.resolved.processes == 1
    rows, others = (pd.read_csv(o.history) for o in (whole, Run(tmp_path/'fewer')))
    assert (rows.val_loss - others.val_loss).abs().max() < .05


FAULTS = dict(
    memory='if processes.rank() == 1 and self.epoch == 1: raise torch.OutOfMemoryError("CUDA out of memory")',
    nan='if processes.rank() == 1 and self.epoch == 1: self.learn.pred = self.pred * float("nan")')
BROKEN = '''
import torch
from basegun_fastai.base import processes
from basegun_fastai.training import distributed
after_pred = distributed.DataParallel.after_pred
def broken(self):
    after_pred(self)
    {fault}
distributed.DataParallel.after_pred = broken
'''
BROKEN_HEAD = '''
from basegun_fastai.training import callbacks
before_batch = callbacks.PlainTensors.before_batch
def broken(self):
    before_batch(self)
    self.learn.xb = tuple(o * float("nan") for o in self.xb)
callbacks.PlainTensors.before_batch = broken
'''


@pytest.mark.slow
@pytest.mark.parametrize(('fault', 'message'), [
    ('memory', 'out of memory with batches of 18: the same command with --name broken --resume continues with batches '
               'of 8 from the last finished epoch'),
    ('nan', 'the loss is nan at step 1 of 3 of epoch 3 (fine-tune). Epoch'),
    ('head', 'the loss is nan at step 1 of 3 of epoch 1 (head). No epoch had finished before that')])
def test_what_ends_one_process_is_told_once(data, weights, tmp_path, fault, message):
    broken = BROKEN_HEAD if fault == 'head' else BROKEN.format(fault=FAULTS[fault])
    options = as_arguments(**SMALL | dict(weights=weights, workers=0, head_views=1, no_report=True))
    ended = run_warm('train', data, '--out', tmp_path, '--name', 'broken', '--gpus', '2', *options, before=broken)
    text = ended.stderr
    assert ended.returncode == 1 and text.count(message) == 1, text
    assert text.count('basegun-fastai: ') == 1 and 'Traceback' not in text, text
    if fault == 'memory': assert Run(tmp_path/'broken').config.resolved.batch_size == 8
    assert Run(tmp_path/'broken').weights.exists() == (fault == 'nan')


def test_faults_of_processes_are_told_before_anything_slow(data, tmp_path):
    result = typed('train', data, '--out', tmp_path, *as_arguments(gpus=4, batch_size=30, lr=-1, device='cpu'))
    assert result.returncode == 1 and '4 processes cannot share it evenly; give 28 or 32' in result.stderr
    assert '--lr -1' in result.stderr
    result = typed('train', data, '--out', tmp_path, '--gpus', 'all', '--device', 'cpu')
    assert '--gpus all --device cpu: a CPU has no GPUs to count' in result.stderr
    result = typed('train', data, '--out', tmp_path, '--gpus', '0', '--other-gpus')
    assert '--gpus 0: give a whole number' in result.stderr and '--other-gpus works only with --resume' in result.stderr
    if not torch.cuda.is_available():
        result = typed('train', data, '--out', tmp_path, '--gpus', 'all')
        assert result.returncode == 1 and 'finds no GPU on this machine' in result.stderr
        assert '--device cpu' in result.stderr
