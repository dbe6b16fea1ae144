"""What makes a training fast, and that it changes nothing it should not: features, folding, the optimiser, workers,
memory.
"""
import json
import os
import subprocess
import sys
import tracemalloc

import numpy as np
import pandas as pd
import pytest
import timm
import torch
from conftest import COMMAND, TINY, as_arguments, sized, tree, typed
from fastai.optimizer import Adam
from PIL import Image
from safetensors.torch import save_file
from torch import nn

from basegun_fastai.data.cache import open_cache
from basegun_fastai.training.callbacks import Checkpoint, EpochSeed, newest_checkpoint
from basegun_fastai.data.contents import known_contents
from basegun_fastai.run import Run
from basegun_fastai.data.folders import list_photos
from basegun_fastai.training.frozen import FrozenBodyForward, Views, feature_loaders, fold_batch_norms, forward_only
from basegun_fastai.training.fit import Stage, fit, largest_batch_size, out_of_memory
from basegun_fastai.training.precision import stage_precision
from basegun_fastai.model.loaders import dataloaders
from basegun_fastai.model.workers import seed_all
from basegun_fastai.model.archs import architecture
from basegun_fastai.model.learner import learner
from basegun_fastai.model.optimiser import AdamW
from basegun_fastai.model.scores import accuracy_of, confusion_counts, precision_of, recall_of
from basegun_fastai.train import train

MADE = architecture('test_efficientnet', size=32)


@pytest.fixture(scope='module')
def weights(tmp_path_factory):
    "A body whose BatchNorms have something to say."
    torch.manual_seed(0)
    model = timm.create_model('test_efficientnet')
    for o in model.modules():
        if isinstance(o, nn.BatchNorm2d): o.running_mean.normal_(0, .1), o.running_var.uniform_(.5, 2.)
    file = tmp_path_factory.mktemp('weights')/'body.safetensors'
    save_file(model.state_dict(), file)
    return str(file)


def rows(run): return pd.read_csv(run.history)


# The head on features

def test_the_head_learns_the_same_from_one_kept_view_as_from_that_view_live(data, weights, tmp_path):
    options = TINY | dict(weights=weights, head_epochs=1, fine_tune_epochs=0, out=tmp_path, precision='float32')
    for views in (0, 1): train(data, name=f'{views}', head_views=views, **options)
    live, kept = (rows(Run(tmp_path/o)) for o in '01')
    assert list(live) == list(kept)
    # other draws
    assert live.val_loss[0] == pytest.approx(kept.val_loss[0], abs=.05) and not live.train_loss.equals(kept.train_loss)
    events = [sorted(o.name.split('.')[0] for o in (tmp_path/v).rglob('events*')) for v in '01']
    assert events[0] == events[1]


def test_features_are_those_of_the_augmented_photos(data, weights, tmp_path):
    learn = learner(dataloaders(data, MADE, batch_size=16, workers=0), MADE, weights)
    learn.freeze()
    with forward_only(learn.model[0], 'float32'):
        found = feature_loaders(learn, 2, 42, tmp_path).train.dataset
        whole = learn.dls.train.new(shuffle=False, drop_last=False)
        for view in range(2):
            seed_all(42, -1 - view)
            wanted = torch.cat([learn.model[0](xb) for xb, _ in whole])
            assert os.pread(found.file.fileno(), wanted.nbytes, view * wanted.nbytes) == wanted.numpy().tobytes()
    assert len(found) == 48 and not any(tmp_path.iterdir())


def test_each_view_of_a_photo_is_drawn_about_as_often(tmp_path):
    views = Views(tmp_path)
    for o in range(4): views.add([(torch.full((3, 2), float(o)), torch.arange(3))])
    seed_all(1, 1)
    drawn = [int(views[1][0][0]) for _ in range(400)]
    assert min(np.bincount(drawn, minlength=4)) > 60 and all(int(views[o][1]) == o for o in range(3))


def test_features_on_a_full_disk_say_so(tmp_path):
    views = Views(tmp_path)
    views.file.close()
    views.file = open('/dev/full', 'wb', buffering=0)
    with pytest.raises(OSError, match='No space'): views.add([(torch.zeros(3, 2), torch.arange(3))])


# The body

@pytest.mark.parametrize('arch', ['test_efficientnet', 'test_resnet', 'test_mambaout', 'test_vit',
                                  'tf_efficientnet_b0'])
def test_a_body_that_only_goes_forward_says_what_the_body_says(arch):
    torch.manual_seed(0)
    body = timm.create_model(arch, num_classes=0).eval()
    for o in body.modules():
        if isinstance(o, nn.BatchNorm2d): o.running_mean.normal_(0, .1), o.running_var.uniform_(.5, 2.)
    photos = torch.randn(3, 3, *body.default_cfg['input_size'][1:])
    with torch.no_grad(): wanted = body(photos)
    state = {k: v.clone() for k, v in body.state_dict().items()}
    with forward_only(body, 'float32'):
        assert torch.allclose(body(photos), wanted, atol=1e-4 * wanted.abs().max().item() + 1e-6)
    with forward_only(body, 'bfloat16'):
        assert torch.dist(body(photos), wanted) < .05 * wanted.norm() and body(photos).dtype == torch.float32
    assert torch.equal(body(photos), wanted) and all(torch.equal(v, state[k]) for k, v in body.state_dict().items())


@pytest.mark.parametrize('arch', ['test_efficientnet', 'efficientnet_b0', 'tf_efficientnet_b0'])
def test_no_normalisation_of_an_efficientnet_is_left(arch):
    torch.manual_seed(0)
    body = timm.create_model(arch, num_classes=0).eval()
    for o in body.modules():
        if isinstance(o, nn.BatchNorm2d): o.running_mean.normal_(0, .1), o.running_var.uniform_(.5, 2.)
    quick, photos = fold_batch_norms(body), torch.randn(2, 3, 64, 64)
    assert not any(isinstance(o, nn.BatchNorm2d) for o in quick.modules())
    with torch.no_grad(): assert torch.dist(quick(photos), body(photos)) < 1e-4 * body(photos).norm()


class Crossed(nn.Module):
    "A network that names a normalisation after a convolution that it does not follow."

    def __init__(self):
        super().__init__()
        self.first, self.norm, self.second = nn.Conv2d(3, 8, 3), nn.BatchNorm2d(8), nn.Conv2d(8, 8, 3)
        self.norm.running_mean.fill_(3.)

    def forward(self, x): return self.norm(self.second(self.first(x).relu())).mean((2, 3))


def test_a_network_that_cannot_be_folded_is_used_as_it_is_and_that_is_said(capsys):
    body = Crossed().eval()
    photos = torch.randn(4, 3, 16, 16)
    with torch.no_grad():
        wanted = body(photos)
        assert torch.dist(fold_batch_norms(body)(photos), wanted) > .01 * wanted.norm()
    assert torch.allclose(FrozenBodyForward(body, 'float32')(photos), wanted,
                          atol=1e-6) and 'cannot be folded' in capsys.readouterr().err


def test_the_number_format_is_the_one_asked_for():
    assert stage_precision('float32', 'cpu', frozen=True) == 'float32' and stage_precision('auto', 'cpu',
        frozen=False) == 'float32'


def test_fine_tuning_in_bfloat16_trains_and_is_noted(data, tmp_path):
    train(data, fine_tune_epochs=1, out=tmp_path, name='b', precision='bfloat16', **TINY)
    assert Run(tmp_path/'b').config.resolved.stages[0]['precision'] == 'bfloat16'
    train(data, fine_tune_epochs=1, out=tmp_path, name='f', precision='float32', **TINY)
    a, b = (rows(Run(tmp_path/o)).train_loss[0] for o in 'bf')
    assert a != b and a == pytest.approx(b, abs=.1)


def test_half_precision_goes_on_with_the_scale_that_it_had(data, tmp_path, monkeypatch):
    def fitted(name):
        run = Run(tmp_path/name)
        run.path.mkdir(exist_ok=True)
        seed_all(1, 0)
        learn = learner(dataloaders(data, MADE, batch_size=16, workers=0), MADE, 'none')
        memory = fit(learn, [Stage('fine-tune', 3, .01, .01, 'float16')], run, 1, 'now')
        return [o['train_loss'] for o in memory.rows], newest_checkpoint(run, 'now')['scaler']
    whole = fitted('whole')
    saved = Checkpoint.after_epoch
    def interrupted(self):
        saved(self)
        raise KeyboardInterrupt
    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
        patch.setattr(Checkpoint, 'after_epoch', interrupted)
        fitted('half')
    assert newest_checkpoint(Run(tmp_path/'half'), 'now')['scaler']['scale'] < 65536  # it has learnt something
    assert fitted('half') == whole


def test_half_precision_on_a_cpu_is_refused(data, tmp_path):
    told = typed('train', data, '--out', tmp_path, '--name', 'run', *as_arguments(**TINY), '--precision', 'float16')
    assert told.returncode == 1 and 'give bfloat16 or auto' in told.stderr and not any(tmp_path.iterdir())


# The optimiser and the scores

def test_many_steps_with_changing_rates_end_where_those_of_fastai_do():
    torch.manual_seed(0)
    models = [nn.Sequential(nn.Linear(6, 9), nn.Tanh(), nn.Linear(9, 3)).double() for _ in range(2)]
    models[1].load_state_dict(models[0].state_dict())
    opts = [make([[*o[0].parameters()], [*o[2].parameters()]], lr=.01)
            for make, o in zip((Adam, AdamW), models, strict=True)]
    for i in range(40):
        x = torch.randn(8, 6, dtype=torch.double)
        for opt, model in zip(opts, models, strict=True):
            opt.freeze_to(1 if i < 10 else 0)
            opt.set_hypers(lr=[.001 * (i + 1), .01], mom=.95 - .002 * i, wd=.1)
            model(x).square().mean().backward()
            opt.step()
            opt.zero_grad()
    for a, b in zip(*(o.parameters() for o in models), strict=True): assert torch.allclose(a, b, atol=1e-9)


def test_scores_are_those_of_scikit_learn_whatever_is_missing():
    from sklearn.metrics import accuracy_score, precision_score, recall_score
    for seed in range(30):
        random = np.random.default_rng(seed)
        labels, logits = torch.from_numpy(random.integers(0, 1 + seed % 5,
                                                          20)), torch.from_numpy(random.normal(size=(20, 5)))
        if seed % 2: logits[:, 3:] -= 99  # never predicted
        said, counts = logits.argmax(1), confusion_counts(labels, logits)
        assert accuracy_of(counts) == pytest.approx(accuracy_score(labels, said))
        assert precision_of(counts) == pytest.approx(precision_score(labels, said, average='macro', zero_division=0))
        assert recall_of(counts) == pytest.approx(recall_score(labels, said, average='macro', zero_division=0))


# Workers and memory

def test_worker_processes_stay_alive_and_can_be_let_go(data):
    dl = dataloaders(data, sized(32, 36), batch_size=16, workers=2).train
    def epoch():
        list(dl)
        return [o.pid for o in dl._workers[0]._iterator._workers]
    first = epoch()
    assert epoch() == first and all(os.path.exists(f'/proc/{o}') for o in first)
    dl.close()
    assert not any(os.path.exists(f'/proc/{o}') for o in first)


DROPPED = '''
import gc, os, sys
from basegun_fastai.model.archs import architecture
from basegun_fastai.model.loaders import dataloaders
gc.disable()
def made(): return dataloaders(sys.argv[1], architecture('test_efficientnet', 32), batch_size=16, workers=2).train
class Collecting(list):
    def __getitem__(self, i):
        gc.collect()
        return super().__getitem__(i)
first, second = made(), made()
list(first)
pids = [o.pid for o in first._workers[0]._iterator._workers]
first.itself = first
del first
second.dataset = Collecting(second.dataset)
list(second)
gc.collect()
print(any(os.path.exists(f'/proc/{o}') for o in pids))
'''


def test_workers_of_a_loader_that_nobody_has_any_more_end_without_a_word(data):
    told = subprocess.run([sys.executable, '-W', 'ignore', '-c', DROPPED, data], capture_output=True, text=True,
                          timeout=100)
    assert (told.stdout, told.stderr) == ('False\n', '')


def test_an_epoch_that_is_broken_off_does_not_disturb_the_next(data):
    dls, plain = (dataloaders(data, sized(32, 36), batch_size=16, workers=o) for o in (2, 0))
    def epoch(dls, seed):
        seed_all(seed, 1, dls)
        return torch.cat([xb for xb, _ in dls.train])
    for seed in (1, 2):
        assert torch.equal(epoch(dls, seed), epoch(plain, seed))
        next(iter(dls.train))
    dls.train.close()


def test_a_training_without_enough_memory_goes_on_with_half_the_batch(data, tmp_path, monkeypatch, capsys):
    before = EpochSeed.before_train
    def hungry(self):
        before(self)
        # refused by the allocator itself
        if self.epochs_before + self.epoch == 2 and self.dls.bs > 8: torch.empty(2 ** 46, dtype=torch.uint8)
    monkeypatch.setattr(EpochSeed, 'before_train', hungry)
    train(data, fine_tune_epochs=4, out=tmp_path, name='run', **TINY)
    run = Run(tmp_path/'run')
    said = capsys.readouterr().err
    assert 'out of memory with batches of 16: going on with batches of 8 from the last finished epoch' in said
    assert run.finished and run.config.resolved.batch_size == 8 and run.config.resolved.halved_from == [16]
    assert rows(run).epoch.tolist() == [1, 2, 3, 4] and json.loads((run.path/'metrics.json').read_text())['n'] == 24


def test_another_failure_is_not_taken_for_want_of_memory(data, tmp_path, monkeypatch):
    monkeypatch.setattr(EpochSeed, 'before_train', lambda _: torch.zeros(2) @ torch.zeros(3))
    with pytest.raises(RuntimeError, match='inconsistent tensor size|size mismatch'):
        train(data, fine_tune_epochs=1, out=tmp_path, name='run', **TINY)


def test_what_is_known_of_a_photo_takes_less_than_a_kilobyte(tmp_path):
    random, sizes = np.random.default_rng(0), {}
    for n in (500, 2500):
        folder = tmp_path/f'{n}'
        for split in ('train', 'val'):
            for label in 'ab': (folder/split/label).mkdir(parents=True)
        for i in range(n): Image.fromarray(random.integers(0, 256, (16, 16, 3), np.uint8)).save(
            folder/('val' if i % 10 < 2 else 'train')/'ab'[i % 2]/f'photo {i:06d}.png', compress_level=0)
        tracemalloc.start()
        table = known_contents(folder, list_photos(folder))
        squares = open_cache(folder, [(36, table[table.split == 'train']), (32, table[table.split == 'val'])],
                             tmp_path/'cache')
        dls = dataloaders(folder, sized(32, 36), photos=table, batch_size=64, workers=2, photo_cache=squares)
        for _ in dls.train: pass
        sizes[n] = tracemalloc.get_traced_memory()[1]
        tracemalloc.stop()
        dls.train.close()
    assert (sizes[2500] - sizes[500]) / 2000 < 1024


# What a step that was broken off leaves

def test_running_out_of_memory_in_16_bits_leaves_no_trace(data, tmp_path, monkeypatch):
    options = TINY | dict(fine_tune_epochs=2, precision='bfloat16')
    train(data, out=tmp_path, name='plain', **options | dict(batch_size=8))
    forward, many = nn.Linear.forward, []
    def hungry(self, x):
        many.append(len(x))
        # refused by the allocator itself, in the middle of the forward pass
        if len(x) > 8: torch.empty(2 ** 46, dtype=torch.uint8)
        return forward(self, x)
    with monkeypatch.context() as patch:
        patch.setattr(nn.Linear, 'forward', hungry)
        train(data, out=tmp_path, name='run', **options)
    assert max(many) == 16 and not torch.is_autocast_enabled('cpu')
    assert Run(tmp_path/'run').config.resolved.halved_from == [16]
    assert (tmp_path/'run'/'model.safetensors').read_bytes() == (tmp_path/'plain'/'model.safetensors').read_bytes()


def test_the_rate_trial_leaves_no_network_behind(data, tmp_path, monkeypatch):
    import gc
    import weakref

    from basegun_fastai.training import setup as module
    seen, plain = [], module.find_rate
    def watched(learn):
        seen.append(weakref.ref(learn.model))
        return plain(learn)
    monkeypatch.setattr(module, 'find_rate', watched)
    before = EpochSeed.before_train
    def looked(self):
        if self.epochs_before == 0 and len(seen) == 1: seen.append(seen[0]() is None)
        before(self)
    gc.disable()
    try:
        with monkeypatch.context() as patch:
            patch.setattr(EpochSeed, 'before_train', looked)
            train(data, fine_tune_epochs=1, out=tmp_path, name='run', lr='auto', **TINY)
    finally: gc.enable()
    assert seen[1] is True


@pytest.mark.parametrize('head', ['linear', 'bn-dropout'])
def test_the_probe_of_the_batch_size_works_for_every_head(data, head):
    learn = learner(dataloaders(data, MADE, batch_size=16, workers=0), MADE, 'none', head)
    assert largest_batch_size(learn, Stage('fine-tune', 1, .01, .01), MADE.before_crop) == 32


@pytest.mark.parametrize('said', ['CUDA error: out of memory', 'CUBLAS_STATUS_ALLOC_FAILED when calling cublasCreate',
                                  'GET was unable to find an engine to execute this computation after trying 9 plans.'])
def test_other_words_for_too_little_memory_are_understood(said):
    assert out_of_memory(RuntimeError(said)) and not out_of_memory(RuntimeError('mat1 and mat2 shapes cannot be '
                                                                                'multiplied'))


def test_an_augmentation_does_not_wait_for_the_device(data):
    from torch.utils._python_dispatch import TorchDispatchMode
    class Reads(TorchDispatchMode):
        def __torch_dispatch__(self, func, types, args=(), kwargs=None):
            if func is torch.ops.aten._local_scalar_dense.default: found.append(func)
            return func(*args, **kwargs or {})
    found, dl = [], dataloaders(data, MADE, batch_size=16, workers=0).train
    dl.before_iter()
    batch = dl.create_batch([dl.do_item(o) for o in range(4)])
    with Reads(): dl.after_batch(batch)
    assert not found


def test_a_cache_home_inside_the_data_is_not_used(copy, tmp_path):
    before = tree(copy)
    told = subprocess.run([COMMAND, 'train', copy, '--out', tmp_path, '--name', 'run', '--fine-tune-epochs', '1',
                           *as_arguments(**TINY)], capture_output=True, text=True, timeout=300,
                          env=os.environ | dict(XDG_CACHE_HOME=str(copy/'.cache'),
                                                MPLCONFIGDIR=str(tmp_path/'matplotlib')))
    assert told.returncode == 0 and told.stderr.count('lies inside the data') == 2 and tree(copy) == before


def test_a_run_without_an_option_of_today_cannot_be_continued_and_that_is_told(data, tmp_path, monkeypatch):
    def broken(*_): raise KeyboardInterrupt
    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
        patch.setattr(EpochSeed, 'before_train', broken)
        train(data, out=tmp_path, name='run', fine_tune_epochs=1, **TINY)
    config = Run(tmp_path/'run').config
    del config.options['head_views']
    Run(tmp_path/'run').save_config(config)
    told = typed('train', data, '--out', tmp_path, '--name', 'run', '--resume', '--fine-tune-epochs', 1,
                 *as_arguments(**TINY))
    assert told.returncode == 1 and '--head-views was not there, now 2' in told.stderr
