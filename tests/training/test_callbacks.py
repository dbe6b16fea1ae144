"Reasons to stop a training, the mean of the weights, and the choice of the kept epoch."
import pytest
import torch
from fastai.callback.core import Callback, CancelStepException

from basegun_fastai.base.record import Run
from basegun_fastai.model.archs import architecture
from basegun_fastai.model.learner import learner
from basegun_fastai.model.loaders import dataloaders
from basegun_fastai.model.workers import seed_all
from basegun_fastai.training.callbacks import NanGuard
from basegun_fastai.training.fit import Stage, fit

pytestmark = pytest.mark.slow

ARCH = architecture('test_efficientnet', size=32)


@pytest.fixture
def learn(data): return learner(dataloaders(data, ARCH, batch_size=16, workers=0), ARCH, 'none')


@pytest.fixture
def trained(data, weights, tmp_path):
    "Train the whole network for two epochs from the weights of a file, with or without the mean."
    def train(average, *callbacks):
        run = Run(tmp_path/f'{average}')
        run.path.mkdir()
        seed_all(1, 0)
        learn = learner(dataloaders(data, ARCH, batch_size=16, workers=0), ARCH, weights)
        learn.add_cbs(callbacks)
        return learn, fit(learn, [Stage('fine-tune', 2, .001, .01, average=average)], run, 1, 'now')
    return train


def test_what_is_judged_and_kept_is_the_mean_over_the_steps(trained):
    class Seen(Callback):
        steps = []
        def after_step(self): self.steps.append({k: v.detach().clone() for k, v in self.model.named_parameters()})
    learn, memory = trained(True, Seen())
    n = len(Seen.steps) * memory.best['epoch'] // 2
    for name in Seen.steps[0]:
        mean = torch.stack([o[name].double() for o in Seen.steps[:n]]).mean(0).float()
        assert torch.allclose(memory.best['weights'][name], mean, atol=1e-6), name
        assert torch.equal(dict(learn.model.named_parameters())[name], Seen.steps[-1][name]), name


def test_the_mean_changes_what_is_judged_but_not_how_it_is_trained(trained):
    mean, last = (trained(o)[1].rows for o in (True, False))
    assert [o['train_loss'] for o in mean] == [o['train_loss'] for o in last]
    assert [o['val_loss'] for o in mean] != [o['val_loss'] for o in last]


def test_epochs_of_a_pretrained_network_are_compared_at_their_best_temperature(trained):
    class Logits(Callback):
        epochs = []
        def before_validate(self): self.epochs.append([])
        def after_batch(self):
            if not self.training: self.epochs[-1].append((self.pred.detach().clone(), self.yb[0].clone()))
    _, memory = trained(True, Logits())
    losses = []
    for epoch in Logits.epochs:
        logits, labels = (torch.cat(o).as_subclass(torch.Tensor) for o in zip(*epoch, strict=True))
        losses.append(min(torch.nn.functional.cross_entropy(logits / t, labels.long()).item()
                          for t in torch.logspace(-2, 2, 2001)))
    assert (memory.best['epoch'] == losses.index(min(losses)) + 1
            and memory.best['compared_loss'] == pytest.approx(min(losses), abs=1e-5))
    assert memory.best['compared_loss'] < memory.best['val_loss']


def test_a_step_that_is_left_out_counts_for_nothing_in_the_mean(trained):
    class LeftOut(Callback):
        counts = []
        def before_step(self):
            if self.iter == 0: raise CancelStepException
        def after_fit(self): self.counts.append(self.weight_average.state['steps'])
    learn, _ = trained(True, LeftOut())
    assert LeftOut.counts == [2 * (len(learn.dls.train) - 1)]


def test_one_process_has_nothing_to_put_together(trained, tmp_path):
    class PutTogether(Callback):
        order = 40  # like `DataParallel`
        def after_validate(self):
            for o in (self.nan_guard, self.history, self.val_answers): o.reduce()
    memories = [trained(True)[1]]
    (tmp_path/'True').rename(tmp_path/'before')
    memories.append(trained(True, PutTogether())[1])
    rows, others = ([{k: v for k, v in row.items() if k != 'seconds'} for row in o.rows] for o in memories)
    assert rows == others
    best, other = (o.best.pop('weights') for o in memories)
    assert all(torch.equal(other[k], v) for k, v in best.items()) and memories[0].best == memories[1].best


@pytest.mark.parametrize(('own', 'theirs', 'first'), [
    ([0., .5], [2., float('inf')], [2., float('inf')]), ([3., 9.], [2., float('inf')], [3., 9.]),
    ([0., .5], [0., .25], [0., .5])])
def test_a_process_takes_what_the_first_one_has_seen_that_saw_something_bad(monkeypatch, own, theirs, first):
    for name, value in dict(BASEGUN_WORLD_SIZE='2', BASEGUN_RANK='0').items(): monkeypatch.setenv(name, value)
    monkeypatch.setattr('basegun_fastai.training.callbacks.total', lambda o: o + torch.tensor([[0., 0.], theirs]))
    guard = NanGuard()
    guard.bad = torch.tensor(own)
    guard.reduce()
    assert guard.bad.tolist() == first
