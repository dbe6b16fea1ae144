"Predictions of many photos and classes take only the time and memory that they need."
import resource
from dataclasses import replace
from types import SimpleNamespace

import numpy as np
import pytest
from warm import run_warm

from basegun_fastai.trust.predictions import Predictions, confusion_matrix


def predictions(n, classes):
    random = np.random.default_rng(0)
    return Predictions([f'{i}.jpg' for i in range(n)], [f'c{i:03d}' for i in range(classes)],
                       random.integers(0, classes, n), random.normal(size=(n, classes)).astype(np.float32))


@pytest.mark.parametrize('classes', [3, 40])  # of 40 some have no photo
def test_the_confusion_matrix_is_that_of_fastai(classes):
    import torch
    from fastai.interpret import ClassificationInterpretation
    preds = predictions(50, classes)
    answers = [torch.as_tensor(o) for o in (preds.probabilities, preds.labels, preds.predicted)]
    learner, loaders = SimpleNamespace(get_preds=lambda **_: answers), SimpleNamespace(vocab=[preds.classes])
    counts = ClassificationInterpretation(learner, loaders, preds.losses).confusion_matrix()
    assert (confusion_matrix(preds) == counts).all(axis=None) and counts.sum() == 50


@pytest.mark.parametrize('name', ['probabilities', 'predicted', 'confidences', 'right', 'losses'])
def test_what_follows_from_all_answers_is_computed_once(name):
    preds = predictions(10, 3)
    assert getattr(preds, name) is getattr(preds, name)  # a page calls it for each photo


def test_a_part_has_the_answers_of_its_photos():
    preds = replace(predictions(10, 3), similarities=np.arange(10.), familiarity=np.arange(10.) / 10)
    assert preds.probabilities.shape == (10, 3)  # computed before, not for the part only
    part = preds.part([7, 2])
    assert part.files == ['7.jpg', '2.jpg'] and (part.probabilities == preds.probabilities[[7, 2]]).all()
    assert (part.labels == preds.labels[[7, 2]]).all() and part.similarities.tolist() == [7, 2]
    assert part.familiarity.tolist() == [.7, .2] and preds.part(slice(8, 99)).index == {'8.jpg': 0, '9.jpg': 1}
    assert predictions(4, 3).part([0]).similarities is None and not preds.part([]).files


def test_a_confusion_matrix_is_counted_in_parts():
    preds = predictions(20_000, 30)  # in six parts
    expected = np.zeros((30, 30), int)
    np.add.at(expected, (preds.labels, preds.predicted), 1)
    assert (confusion_matrix(preds).to_numpy() == expected).all()


@pytest.mark.slow
def test_a_confusion_matrix_of_many_classes_takes_little_memory():
    program = ('from test_predictions import peak_mib, predictions, confusion_matrix; preds = predictions(3000, 300); '
               'confusion_matrix(predictions(10, 3)); before = peak_mib(); confusion_matrix(preds); '
               'print(peak_mib() - before); raise SystemExit')
    result = run_warm(before=program)
    assert result.returncode == 0, result.stderr
    assert float(result.stdout) < 300  # it was 2,100: a cube with 9 bytes per cell


def peak_mib(): return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
