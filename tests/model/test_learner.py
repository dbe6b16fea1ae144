"Sizes, weights, heads and a frozen body."
from dataclasses import replace

import pytest
import timm
import torch
from fastai.callback.core import Callback
from fastai.learner import Learner

from basegun_fastai.model.archs import HEADS, architecture
from basegun_fastai.model.learner import balanced_weights, learner
from basegun_fastai.model.loaders import dataloaders

TINY = architecture('test_efficientnet', size=32)


@pytest.fixture(scope='module')
def dls(data): return dataloaders(data, replace(TINY, size=32, before_crop=36), batch_size=16, workers=0)


@pytest.fixture(scope='module')
def weights(trained_weights): return trained_weights


def fitted(learn, **options):
    with learn.no_bar(), learn.no_logging(): learn.fit_one_cycle(1, .05, **options)


def statistics(model):
    return {k: v.clone() for k, v in model[0].state_dict().items() if 'running_' in k or 'num_batches' in k}


def test_a_frozen_body_is_bit_identical_and_has_no_backward_pass(dls, weights):
    learn = learner(dls, TINY, weights)
    assert isinstance(learn, Learner)
    before = {k: v.clone() for k, v in learn.model[0].state_dict().items()}
    head = learn.model[1][-1].weight.detach().clone()
    graphs, backward = [], []
    learn.model[0].register_forward_hook(lambda *o: graphs.append(o[-1].requires_grad))
    for m in learn.model[0].modules(): m.register_full_backward_hook(lambda *_: backward.append(1))
    fitted(learn)
    assert all(torch.equal(v, before[k]) for k, v in learn.model[0].state_dict().items())
    assert not torch.equal(learn.model[1][-1].weight, head) and not any(graphs) and not backward


@pytest.mark.parametrize('head', HEADS)
def test_unfreezing_moves_the_body_but_not_the_statistics_that_came_with_its_weights(dls, weights, head):
    learn = learner(dls, TINY, weights, head)
    before, statistics_before = {k: v.detach().clone()
                                 for k, v in learn.model.named_parameters()}, statistics(learn.model)
    fitted(learn)
    learn.unfreeze()
    fitted(learn)
    assert all(not torch.equal(v, before[k]) for k, v in learn.model.named_parameters())  # scale and shift too
    assert len(statistics_before) > 20 and all(torch.equal(v, statistics_before[k])
                                               for k, v in statistics(learn.model).items())
    assert head == 'linear' or learn.model[1][0].running_mean.abs().max() > 0  # the head's is new, and learns


def test_the_statistics_of_a_network_from_nothing_move(dls):
    learn = learner(dls, TINY, 'none')
    before = statistics(learn.model)
    fitted(learn)
    assert all(not torch.equal(v, before[k]) for k, v in statistics(learn.model).items())


@pytest.mark.slow
def test_the_statistics_stay_in_a_compiled_network_whose_validation_comes_between(dls, weights):
    learn = learner(dls, TINY, weights)
    before = statistics(learn.model)
    learn.unfreeze()
    learn.model.compile(backend='eager')  # tracks modes like torch.compile, without the minute of a C++ compiler
    with learn.no_bar(), learn.no_logging(): learn.fit_one_cycle(2, .05)
    assert all(torch.equal(v, before[k]) for k, v in statistics(learn.model).items())


def test_weights_of_classes_count_in_training_alone(dls, weights):
    from torch.nn.functional import cross_entropy
    shares, calls = [4., 1., 1., 1., 1., .25], []
    class Seen(Callback):
        def after_loss(self):
            logits, labels = (o.detach().as_subclass(torch.Tensor) for o in (self.pred, self.yb[0]))
            weight = torch.tensor(shares) if self.training else None
            calls.append((self.training, self.loss_grad.item(), cross_entropy(logits, labels, weight).item()))
    learn = learner(dls, TINY, weights, class_weights=shares)
    fitted(learn, cbs=Seen())
    assert {o[0] for o in calls} == {True, False} and all(a == pytest.approx(b, rel=1e-5) for _, a, b in calls)
    assert learn.loss_func.func.weight is None  # the saved learner evaluates without weights


def test_balanced_weights_give_each_class_the_same_say():
    labels = ['b'] * 90 + ['a'] * 10
    actual = balanced_weights(labels)
    assert actual[0] * 10 == pytest.approx(actual[1] * 90) and actual[0] * 10 + actual[1] * 90 == pytest.approx(100)


def test_biases_and_norms_do_not_decay(dls, weights):
    learn = learner(dls, TINY, weights, 'bn-dropout')
    learn.unfreeze()
    learn.create_opt()
    learn.opt.set_hypers(lr=.1, wd=.5)
    before = {k: v.detach().clone() for k, v in learn.model.named_parameters()}
    for p in learn.model.parameters(): p.grad = torch.zeros_like(p)
    learn.opt.step()
    for name, p in learn.model.named_parameters():
        decays = p.ndim > 1
        assert torch.allclose(p, before[name] * (.95 if decays else 1)), name
        assert decays or name.endswith('bias') or 'bn' in name or name.startswith('1.0.')


@pytest.mark.parametrize('head', HEADS)
def test_the_head_is_one_dense_layer_on_the_pooled_features(dls, weights, head):
    learn = learner(dls, TINY, weights, head)
    kinds = [type(o).__name__ for o in learn.model[1]]
    assert kinds == (['Linear'] if head == 'linear' else ['BatchNorm1d', 'Dropout', 'Linear'])
    x = torch.rand(2, 3, 32, 32)
    with torch.no_grad():
        features = learn.model[0].eval()(x)
        timm_features = timm.create_model(TINY.timm_name,
                                          checkpoint_path=str(weights)).eval().forward_features(x).mean((2, 3))
    assert torch.allclose(features, timm_features, atol=1e-6)
