"Processes that read photos: they live from epoch to epoch, and end silently."
import os

import pytest
import torch
from conftest import sized
from warm import run_warm

from basegun_fastai.model.loaders import dataloaders
from basegun_fastai.model.workers import seed_all

DROPPED = '''
import gc, os, sys
from basegun_fastai.model.archs import architecture
from basegun_fastai.model.loaders import dataloaders
gc.disable()
gc.freeze()  # what was imported stays, so a collection takes no time
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
sys.exit()
'''


def test_worker_processes_stay_alive_and_can_be_let_go(data):
    dl = dataloaders(data, sized(32, 36), batch_size=16, workers=2).train
    def epoch():
        list(dl)
        return [o.pid for o in dl._workers[0]._iterator._workers]
    first = epoch()
    assert epoch() == first and all(os.path.exists(f'/proc/{o}') for o in first)
    dl.close()
    assert not any(os.path.exists(f'/proc/{o}') for o in first)


@pytest.mark.slow
def test_workers_of_a_loader_that_nobody_has_any_more_end_without_a_word(data):
    result = run_warm(data, before=DROPPED)
    assert (result.stdout, result.stderr) == ('False\n', '')


def test_an_epoch_that_is_broken_off_does_not_disturb_the_next(data):
    dls, plain = (dataloaders(data, sized(32, 36), batch_size=16, workers=o) for o in (2, 0))
    def epoch(dls, seed):
        seed_all(seed, 1, dls)
        return torch.cat([xb for xb, _ in dls.train])
    for seed in (1, 2):
        assert torch.equal(epoch(dls, seed), epoch(plain, seed))
        next(iter(dls.train))
    dls.train.close()
