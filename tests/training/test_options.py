"What the options of a training may be."
import json
from fractions import Fraction

import numpy as np
import pytest

from basegun_fastai.machine import worker_faults
from basegun_fastai.parameters import value_faults
from basegun_fastai.serve import serve
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
