"Inspection of a trained network: its worst mistakes, and photos with right and wrong predictions."
import shutil

import numpy as np
import pandas as pd
import pytest

from basegun_fastai.data.folders import list_photos
from basegun_fastai.trust.inspection import inspect_run, worst_mistakes
from basegun_fastai.trust.judge import Judge
from basegun_fastai.trust.predictions import Predictions, read_predictions
from basegun_fastai.trust.steadiness import VARIATIONS


def test_the_worst_mistakes_are_those_it_was_surest_of():
    labels, predicted = np.zeros(6, int), np.array([1, 0, 1, 1, 0, 1])
    logits = np.eye(2)[predicted] * np.array([2, 9, 5, 1, 9, 3])[:, None]
    preds = Predictions(list('abcdef'), ['fusil', 'revolver'], labels, logits)
    assert worst_mistakes(preds) == [2, 5, 0, 3] and worst_mistakes(preds, 2) == [2, 5]
    assert worst_mistakes(Predictions(['a'], ['fusil', 'revolver'], labels[:1], logits[1:2])) == []


@pytest.fixture(scope='module')
def judge(run, data):
    return Judge.of_run(run, data, list_photos(data, 'classes'), 0, 'cpu')


@pytest.fixture(scope='module')
def train(data):
    photos = list_photos(data)
    return photos[photos.split == 'train']


@pytest.fixture(scope='module')
def inspection(run, judge, train):
    return inspect_run(judge, read_predictions(run, run.config.classes), train)


@pytest.mark.slow
def test_each_mistake_has_its_evidence_and_its_neighbours(run, inspection):
    preds = read_predictions(run, run.config.classes)
    assert inspection.worst and all(not preds.right[i] for i in inspection.worst)
    for file in [*(preds.files[i] for i in inspection.worst), *inspection.suspects.file]:
        assert inspection.overlays[file].size == (128, 128)
        assert (inspection.neighbours.file == file).sum() == 3
    assert all(o.train_file.split('/')[1] == o.train_label for o in inspection.neighbours.itertuples())
    assert inspection.n_compared == (24, 48) and inspection.n_varied == 24
    assert [*inspection.steadiness.index] == ['as it is', *VARIATIONS]


@pytest.mark.slow
def test_what_is_asked_again_as_it_is_gets_the_same_answer(run, inspection):
    preds = read_predictions(run, run.config.classes)
    assert inspection.steadiness.confidence['as it is'] == pytest.approx(preds.confidences.mean(), abs=1e-4)


@pytest.mark.slow
def test_without_train_photos_nothing_is_resembled(run, judge, train):
    alone = inspect_run(judge, read_predictions(run, run.config.classes), train[:0])
    assert alone.neighbours.empty and alone.n_compared == (0, 0) and alone.overlays


@pytest.mark.slow
def test_weights_are_read_of_the_run_itself(run, data, train, tmp_path):
    from safetensors.torch import load_file, save_file

    from basegun_fastai.base.record import Run
    shutil.copytree(run.path, tmp_path/'other')
    other, state = Run(tmp_path/'other'), load_file(run.weights)
    save_file({k: v * (30 if k.startswith('classifier') else 1) for k, v in state.items()}, other.weights)
    preds = read_predictions(run, run.config.classes)
    val = list_photos(data, 'classes')
    surer, plain = (inspect_run(Judge.of_run(o, data, val, 0, 'cpu'), preds, train[:0]).steadiness
                    for o in (other, run))
    assert surer.confidence['as it is'] > plain.confidence['as it is'] + .05
    assert isinstance(surer, pd.DataFrame) and surer.changed['as it is'] == 0
