"Values and combinations of the options of a training."
import json
from dataclasses import replace
from fractions import Fraction
from pathlib import Path

import numpy as np
import pytest
import torch

from basegun_fastai.base.parameters import value_faults
from basegun_fastai.base.processes import worker_faults
from basegun_fastai.base.record import Config, Dataset, Resolved
from basegun_fastai.serve import serve
from basegun_fastai.training.launching import _as_json, gpu_faults
from basegun_fastai.training.options import Options

WHOLE = dict(head_epochs=3, fine_tune_epochs=2, batch_size=32, size=64, seed=42, workers=2, head_views=1, gpus=2)
REAL = dict(lr=.25, high_rate=.75, shown_rate=.5, unfamiliar_rate=.0625)
FLAGS = dict(compile=False, skip_unreadable=True)


@pytest.mark.parametrize('whole', [np.int64, np.uint16, np.int8])
@pytest.mark.parametrize('real', [np.float64, np.float32, Fraction])
def test_numbers_of_a_notebook_are_those_of_a_command_line(whole, real):
    typed = Options(data='data', device='cpu', **WHOLE, **REAL, **FLAGS)
    options = Options(data='data', device='cpu', **{k: whole(v) for k, v in WHOLE.items()},
                       **{k: real(v) for k, v in REAL.items()}, **{k: np.bool_(v) for k, v in FLAGS.items()})
    assert options.faults() == worker_faults(options.workers) == [] and options == typed
    assert json.dumps(options.to_json()) == json.dumps(typed.to_json())
    assert {k: type(v) for k, v in vars(options).items()} == {k: type(v) for k, v in vars(typed).items()}


@pytest.mark.parametrize('name', [*WHOLE, *REAL])
@pytest.mark.parametrize('value', [True, np.bool_(True), '7', 1.5 + 1j, [1]])
def test_what_is_no_number_is_refused(name, value):
    options = Options(data='data', device='cpu', **{name: value})
    faults = options.faults() + worker_faults(options.workers)
    assert any(o.startswith(f"--{name.replace('_', '-')} ") for o in faults), faults


def test_a_number_with_a_fraction_is_no_whole_one():
    for name in WHOLE:
        options = Options(data='data', device='cpu', **{name: np.float64(2.)})
        assert any(': give a whole number' in o for o in options.faults() + worker_faults(options.workers)), name


@pytest.mark.parametrize(('value', 'sound'), [(np.int64(8000), True), (8000, True), (True, False), (8000., False)])
def test_the_options_of_a_server_are_judged_alike(value, sound):
    assert (value_faults(serve, dict(port=value)) == []) == sound == (worker_faults(value) == [])


BEFORE = dict(  # the options in the config.json of a run by a version in which `train` had 28 parameters
    data='data', arch='efficientnet_b3', head_epochs=10, fine_tune_epochs=10, lr=.005, batch_size='auto',
    weights='imagenet', head='linear', size=None, class_weights='none', out='runs', name='night', seed=42, workers=None,
    device='auto', head_views=2, precision='auto', compile=False, cache='auto', high_rate=.99, shown_rate=.9,
    not_a_gun='things', skip_unreadable=False, resume=False, gpus=1, other_gpus=False, unfamiliar_rate=.02,
    no_report=False)


@pytest.mark.parametrize(('changed', 'differences'), [
    (dict(), []), (dict(workers=4, cache='off', out='elsewhere', no_report=True), []),
    (dict(lr=.01, size=64), ['--size was None, now 64', '--lr was 0.005, now 0.01'])])
def test_a_run_of_the_version_before_goes_on_with_the_same_options(changed, differences):
    now = Options(**dict(data='data', name='night', not_a_gun='things', resume=True) | changed)
    dataset, resolved = Dataset('', {}), Resolved('cpu', 32, .005, 300, 320)
    config = Config('running', 'now', BEFORE, resolved, {}, [], [], dataset, 42, {}, [])
    assert now.differences(config, dataset, 'cpu') == differences and set(now.to_json()) == {*BEFORE, 'groups'}


@pytest.mark.parametrize(('high', 'shown', 'faulty'), [
    (.5, .9, ['high_rate']), (.9, .9, []), (.99, .9, []), ('x', .9, ['high_rate']), (.99, 2, ['shown_rate'])])
def test_high_promises_at_least_as_much_as_shown(high, shown, faulty):
    faults = Options(data='data', high_rate=high, shown_rate=shown).faults()
    assert [o.option for o in faults] == faulty
    assert ('give a --high-rate of 0.9 or more' in ''.join(faults)) == (high == .5)


def test_processes_get_the_options_that_were_given():
    options = Options(data=Path('mes données'), lr='auto', gpus=2, head_epochs=None, not_a_gun=Path('x'), compile=True,
                      name='\udce9t\udce9')
    assert Options(**json.loads(_as_json(options))) == replace(options, not_a_gun='x')
    assert _as_json(options).isascii()


@pytest.mark.parametrize('gpus', ['auto', 'all', 0, True, None])
def test_what_is_no_number_of_gpus_is_told_by_the_options_alone(monkeypatch, gpus):
    monkeypatch.setattr(torch.cuda, 'device_count', lambda: 2)
    options = Options(data='data', gpus=gpus)
    assert gpu_faults(options) == [] and [o.option for o in options.faults()] == ['gpus'] * (gpus != 'all')
    assert gpu_faults(replace(options, gpus=3)) and not gpu_faults(replace(options, gpus=2))
    monkeypatch.setattr(torch.cuda, 'device_count', lambda: 0)
    assert len(gpu_faults(options)) == (gpus == 'all')
