"The files of a training, the work of its stages, and trials that do the same work as the training."
import pytest
import torch

from basegun_fastai.base.errors import BasegunError
from basegun_fastai.model.archs import architecture
from basegun_fastai.model.learner import learner
from basegun_fastai.model.loaders import dataloaders
from basegun_fastai.training.callbacks import Memory
from basegun_fastai.training.fit import Stage, find_rate, largest_batch_size, largest_power_of_two, out_of_memory
from basegun_fastai.training.fit import plan_stages, remaining, stage_callbacks, trial_step

ARCH = architecture('test_efficientnet', size=32)


@pytest.fixture
def learn(data): return learner(dataloaders(data, ARCH, batch_size=16, workers=0), ARCH, 'none')


@pytest.mark.parametrize(('epochs_done', 'left'), [
    (0, [('head', 0, 0), ('fine-tune', 2, 0)]), (1, [('head', 0, 1), ('fine-tune', 2, 0)]), (2, [('fine-tune', 2, 0)]),
    (4, [('fine-tune', 2, 2)]), (5, []), (6, [])])
def test_what_is_left_of_a_training(epochs_done, left):
    stages = plan_stages(2, 3, .01, True)
    assert [(stage.name, *epochs) for stage, *epochs in remaining(stages, epochs_done)] == left


@pytest.mark.parametrize(('pretrained', 'average', 'world_size', 'more'), [
    (False, False, 1, set()), (True, False, 1, {'ValAnswers'}), (True, True, 1, {'ValAnswers', 'WeightAverage'}),
    (True, True, 2, {'ValAnswers', 'WeightAverage', 'DataParallel'})])
def test_a_stage_has_the_callbacks_that_it_needs_and_processes_put_together_all_that_they_note(
        learn, monkeypatch, pretrained, average, world_size, more):
    monkeypatch.setenv('BASEGUN_WORLD_SIZE', str(world_size))
    learn.pretrained = pretrained
    callbacks = stage_callbacks(learn, Stage('fine-tune', 1, .1, .1, average=average), 42, Memory())
    names = {type(o).__name__ for o in callbacks}
    assert names - {'EpochSeed', 'PlainTensors', 'Interruptible', 'NanGuard', 'History', 'BestWeights'} == more
    if world_size > 1: assert callbacks[-1].notes == [o for o in callbacks if hasattr(type(o), 'reduce')]


@pytest.mark.parametrize('limit', [0, 1, 2, 3, 63, 64, 65, 5000])
def test_the_largest_power_of_two_is_found_from_below(limit):
    tried = []
    def fits(size): return tried.append(size) or size <= limit
    actual = largest_power_of_two(fits, 1024)
    assert actual == max([0] + [2 ** o for o in range(1, 11) if 2 ** o <= limit])
    assert tried == sorted(tried) and sum(o > limit for o in tried) <= 1


@pytest.mark.parametrize('precision', ['float32', 'bfloat16'])
@pytest.mark.parametrize('stage', ['head', 'fine-tune'])
def test_a_trial_step_has_the_final_size_and_leaves_the_learner_alone(learn, stage, precision):
    sizes, before = [], {k: v.clone() for k, v in learn.model.state_dict().items()}
    learn.model[0].register_forward_pre_hook(lambda m, x: sizes.append((tuple(x[0].shape), m.training)))
    trial_step(learn, Stage(stage, 1, 0., .1, precision), ARCH.before_crop, 4)
    assert {o for o in sizes if o[0][0] == 4} == {((4, 3, ARCH.size, ARCH.size), stage != 'head')} and len(sizes) >= 2
    assert all(torch.equal(v, before[k]) for k, v in learn.model.state_dict().items())


def test_stages_without_epochs_are_left_out():
    assert [o.name for o in plan_stages(0, 3, .01, True)] == ['fine-tune']
    assert [o.name for o in plan_stages(3, 0, .01, True)] == ['head']
    assert plan_stages(0, 3, .01, False)[0].rate == .01 and isinstance(plan_stages(0, 3, .01, True)[0].rate, slice)


@pytest.mark.slow
def test_a_finder_that_cannot_see_a_rate_work_says_so(data):
    learn = learner(dataloaders(data, ARCH, batch_size=2, workers=0), ARCH, 'none')
    learn.loss_func = lambda pred, target: pred.sum() * torch.tensor(float('nan')) + target.sum() * 0
    with pytest.raises(BasegunError, match='--lr 0.005'): find_rate(learn)


@pytest.mark.slow
@pytest.mark.parametrize('head', ['linear', 'bn-dropout'])
def test_the_probe_of_the_batch_size_works_for_every_head(data, head):
    learn = learner(dataloaders(data, ARCH, batch_size=16, workers=0), ARCH, 'none', head)
    assert largest_batch_size(learn, Stage('fine-tune', 1, .01, .01), ARCH.before_crop) == 32


@pytest.mark.parametrize('text', ['CUDA error: out of memory', 'CUBLAS_STATUS_ALLOC_FAILED when calling cublasCreate',
                                  'GET was unable to find an engine to execute this computation after trying 9 plans.'])
def test_other_words_for_too_little_memory_are_understood(text):
    assert out_of_memory(RuntimeError(text)) and not out_of_memory(RuntimeError('mat1 and mat2 shapes cannot be '
                                                                                'multiplied'))
