"The files of a training hold the trained network."
import json

import pytest
import torch
from conftest import QUICK, TINY

from basegun_fastai.base.record import Run
from basegun_fastai.report import report
from basegun_fastai.train import train


@pytest.mark.slow
def test_the_temperature_is_in_the_last_layer_and_nowhere_else(data, tmp_path):
    from basegun_fastai.training.checkpoint import newest_checkpoint
    from basegun_fastai.training.finish import finish
    calls = {}
    def watched(run, setup, learn, memory, *rest):
        calls.update({k: v.clone() for k, v in newest_checkpoint(run, run.config.started)['best']['weights'].items()})
        return finish(run, setup, learn, memory, *rest)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr('basegun_fastai.training.finish.finish', watched)
        train(data, fine_tune_epochs=2, out=tmp_path, name='run', **QUICK)
    from safetensors.torch import load_file
    run = Run(tmp_path/'run')
    kept, temperature = (load_file(run.weights),
                         json.loads((run.path/'metrics.json').read_text())['calibration']['temperature'])
    assert temperature != 1
    assert torch.allclose(kept['classifier.weight'] * temperature, calls['1.0.weight'], rtol=1e-5)
    body = {k.removeprefix('0.model.'): v for k, v in calls.items() if k.startswith('0.model.')}
    assert all(torch.equal(v, kept[k]) for k, v in body.items())


@pytest.mark.slow
@pytest.mark.parametrize(('options', 'shown'), [
    (dict(head_epochs=2, head_views=2, fine_tune_epochs=0), []),  # the features of the frozen body are used again
    (dict(head_epochs=1, head_views=1, fine_tune_epochs=4), ['features'] * 48)])  # the page uses those of the bank
def test_nothing_is_computed_twice_at_the_end(data, weights, tmp_path, monkeypatch, capsys, options, shown):
    from basegun_fastai.trust import judge
    counts = []
    def counting(dl, _, what, *__):
        if what in ('features', 'features of train'): counts.extend([what] * dl.n)
        return dl
    monkeypatch.setattr(judge, 'progress', counting)
    rate = dict(unfamiliar_rate=.1) if shown else dict(unfamiliar_rate=0)
    train(data, out=tmp_path, name='run', **TINY | dict(weights=str(weights), lr=1e-4) | options | rate)
    assert counts == shown
    page = (tmp_path/'run'/'report.html').read_text()
    assert '48 train photos' in page
    text = capsys.readouterr().err
    for step in ('judging 24 val photos', 'writing report.html'): assert step in text


@pytest.mark.slow
def test_the_report_can_be_left_to_its_own_command(data, tmp_path, monkeypatch):
    monkeypatch.setattr('basegun_fastai.training.finish.inspect_run', None)
    train(data, fine_tune_epochs=1, out=tmp_path, name='run', **QUICK)
    assert Run(tmp_path/'run').finished and not Run(tmp_path/'run').report.exists()
    train(data, fine_tune_epochs=1, out=tmp_path, name='run', resume=True, **TINY)  # these options make no other run
    monkeypatch.undo()
    for n in (1, 2):
        report(tmp_path/'run', workers=0)
        assert Run(tmp_path/'run').report.is_file() and len([*(tmp_path/'run').glob('report*.html')]) == n


def test_the_page_takes_a_quarter_of_the_training_at_most(data):
    from types import SimpleNamespace

    from basegun_fastai.data.folders import list_photos
    from basegun_fastai.training.finish import PAGE_SHARE, _forwards
    from basegun_fastai.trust.inspection import _plan
    from basegun_fastai.trust.steadiness import VARIATIONS
    photos = list_photos(data)
    for epochs, views, fine in ((10, 2, 5), (5, 2, 0), (5, 0, 0), (0, 2, 1)):
        options = SimpleNamespace(n_head_epochs=epochs, head_views=views, fine_tune_epochs=fine)
        forwards = _forwards(SimpleNamespace(options=options, photos=photos))
        assert forwards == 48 * ((views or epochs if epochs else 0) + 3 * fine)
        known, unknown, varied = _plan(photos.file[photos.split == 'train'].tolist(), None, 6, forwards // PAGE_SHARE)
        assert not known.files and len(unknown) <= forwards // 8
        assert len(unknown) + varied * (1 + len(VARIATIONS)) <= max(forwards / 4, len(unknown) + 6 * 14)
