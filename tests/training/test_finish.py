"What is kept of a training, and that it is what was trained."
import json

import pytest
import torch
from conftest import TINY

from basegun_fastai.run import Run
from basegun_fastai.train import train


@pytest.mark.slow
def test_the_temperature_is_in_the_last_layer_and_nowhere_else(data, tmp_path):
    from basegun_fastai.training.callbacks import newest_checkpoint
    from basegun_fastai.training.finish import finish
    calls = {}
    def watched(run, setup, learn, memory, *rest):
        calls.update({k: v.clone() for k, v in newest_checkpoint(run, run.config.started)['best']['weights'].items()})
        return finish(run, setup, learn, memory, *rest)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr('basegun_fastai.training.finish.finish', watched)
        train(data, fine_tune_epochs=2, out=tmp_path, name='run', **TINY)
    from safetensors.torch import load_file
    run = Run(tmp_path/'run')
    kept, temperature = (load_file(run.weights),
                         json.loads((run.path/'metrics.json').read_text())['calibration']['temperature'])
    assert temperature != 1
    assert torch.allclose(kept['classifier.weight'] * temperature, calls['1.0.weight'], rtol=1e-5)
    body = {k.removeprefix('0.model.'): v for k, v in calls.items() if k.startswith('0.model.')}
    assert all(torch.equal(v, kept[k]) for k, v in body.items())
