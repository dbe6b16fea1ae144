"The trials: what they find, and that they try what the training will do."
import pytest
import torch

from basegun_fastai.core import BasegunError
from basegun_fastai.fit import Stage, largest_power_of_two, plan, rate_trial, trial_step
from basegun_fastai.loaders import dataloaders
from basegun_fastai.model import architecture, learner

MADE = architecture('test_efficientnet', size=32)


@pytest.fixture
def learn(data): return learner(dataloaders(data, MADE.size, MADE.before_crop, batch_size=16, workers=0), MADE, 'none')


@pytest.mark.parametrize('limit', [0, 1, 2, 3, 63, 64, 65, 5000])
def test_the_largest_power_of_two_is_found_from_below(limit):
    tried = []
    def fits(size): return tried.append(size) or size <= limit
    found = largest_power_of_two(fits, 1024)
    assert found == max([0] + [2 ** o for o in range(1, 11) if 2 ** o <= limit])
    assert tried == sorted(tried) and sum(o > limit for o in tried) <= 1


@pytest.mark.parametrize('precision', ['float32', 'bfloat16'])
@pytest.mark.parametrize('stage', ['head', 'fine-tune'])
def test_a_trial_step_has_the_final_size_and_leaves_the_learner_alone(learn, stage, precision):
    sizes, before = [], {k: v.clone() for k, v in learn.model.state_dict().items()}
    learn.model[0].register_forward_pre_hook(lambda m, x: sizes.append((tuple(x[0].shape), m.training)))
    trial_step(learn, Stage(stage, 1, 0., .1, precision), MADE.before_crop, 4)
    assert {o for o in sizes if o[0][0] == 4} == {((4, 3, MADE.size, MADE.size), stage != 'head')} and len(sizes) >= 2
    assert all(torch.equal(v, before[k]) for k, v in learn.model.state_dict().items())


def test_stages_without_epochs_are_left_out():
    assert [o.name for o in plan(0, 3, .01, True)] == ['fine-tune'] and [o.name for o in plan(3, 0, .01, True)] == ['head']
    assert plan(0, 3, .01, False)[0].rate == .01 and isinstance(plan(0, 3, .01, True)[0].rate, slice)


def test_a_finder_that_cannot_see_a_rate_work_says_so(learn):
    learn.loss_func = lambda pred, target: pred.sum() * torch.tensor(float('nan')) + target.sum() * 0
    with pytest.raises(BasegunError, match='--lr 0.005'): rate_trial(learn)
