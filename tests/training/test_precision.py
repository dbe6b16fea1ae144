"Number formats: the requested one is used, noted, and exact after an interruption."
import pandas as pd
import pytest
from conftest import QUICK, as_arguments, fitted, typed

from basegun_fastai.base.record import Run
from basegun_fastai.model.archs import architecture
from basegun_fastai.model.learner import learner
from basegun_fastai.model.loaders import dataloaders
from basegun_fastai.model.workers import seed_all
from basegun_fastai.training.checkpoint import Checkpoint, newest_checkpoint
from basegun_fastai.training.fit import Stage, fit
from basegun_fastai.training.precision import stage_precision

ARCH = architecture('test_efficientnet', size=32)


def rows(run): return pd.read_csv(run.history)


def test_the_number_format_is_the_one_asked_for():
    assert stage_precision('float32', 'cpu', frozen=True) == 'float32' and stage_precision('auto', 'cpu',
        frozen=False) == 'float32'


@pytest.mark.slow
def test_fine_tuning_in_bfloat16_trains_and_is_noted(data, tmp_path, capsys):
    trainings = [fitted(data, tmp_path, o, fine_tune_epochs=1, precision=o, no_report=True)
                 for o in ('bfloat16', 'float32')]
    for o, says_so in zip(trainings, (True, False), strict=True):
        o.finish()
        assert ('in the stage fine-tune, val was evaluated in bfloat16' in capsys.readouterr().err) == says_so
    half, full = (o.run for o in trainings)
    assert half.config.resolved.stages[0]['precision'] == 'bfloat16'
    a, b = (rows(o).train_loss[0] for o in (half, full))
    assert a != b and a == pytest.approx(b, abs=.1)


@pytest.mark.slow
def test_half_precision_goes_on_with_the_scale_that_it_had(data, tmp_path, monkeypatch):
    def trained(name):
        run = Run(tmp_path/name)
        run.path.mkdir(exist_ok=True)
        seed_all(1, 0)
        learn = learner(dataloaders(data, ARCH, batch_size=16, workers=0), ARCH, 'none')
        memory = fit(learn, [Stage('fine-tune', 3, .01, .01, 'float16')], run, 1, 'now')
        return [o['train_loss'] for o in memory.rows], newest_checkpoint(run, 'now')['scaler']
    whole = trained('whole')
    saved = Checkpoint.after_epoch
    def interrupted(self):
        saved(self)
        raise KeyboardInterrupt
    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
        patch.setattr(Checkpoint, 'after_epoch', interrupted)
        trained('half')
    assert newest_checkpoint(Run(tmp_path/'half'), 'now')['scaler']['scale'] < 65536  # the network has learnt something
    assert trained('half') == whole


def test_half_precision_on_a_cpu_is_refused(data, tmp_path):
    result = typed('train', data, '--out', tmp_path, '--name', 'run', *as_arguments(**QUICK), '--precision', 'float16')
    assert result.returncode == 1 and 'give bfloat16 or auto' in result.stderr and not any(tmp_path.iterdir())
