"One temperature: planted over-confidence is found, and the figures equal those of scikit-learn."
import numpy as np
import pytest
from scipy.special import softmax

from basegun_fastai.trust.calibration import calibration_error, calibration_metrics, cross_fitted, fit_temperature
from basegun_fastai.trust.calibration import split_in_half


def overconfident(seed, n=3000, classes=6, temperature=1.):
    "Logits, and labels drawn with the probabilities of the logits divided by `heat`."
    random = np.random.default_rng(seed)
    logits = random.normal(0, 2.5, (n, classes))
    labels = (softmax(logits, 1).cumsum(1) < random.random((n, 1))).sum(1).clip(max=classes - 1)
    return (logits * temperature).astype(np.float32), labels


@pytest.mark.parametrize('seed', range(10))
def test_planted_over_confidence_is_found(seed):
    logits, labels = overconfident(seed, temperature=3.)
    assert fit_temperature(logits, labels) == pytest.approx(3, rel=.05)


def test_the_temperature_is_the_one_of_scikit_learn():
    from sklearn.calibration import CalibratedClassifierCV
    from sklearn.frozen import FrozenEstimator
    from sklearn.linear_model import LogisticRegression
    logits, labels = overconfident(1, temperature=2.)
    plain = LogisticRegression().fit(logits, labels)
    plain.coef_, plain.intercept_ = np.eye(6), np.zeros(6)  # its decision function is its input
    reference = CalibratedClassifierCV(FrozenEstimator(plain), method='temperature').fit(logits, labels)
    assert 1 / reference.calibrated_classifiers_[0].calibrators[0].beta_ == pytest.approx(fit_temperature(logits,
        labels), rel=1e-3)


def test_no_temperature_changes_an_answer():
    for seed in range(20):
        logits, labels = overconfident(seed, 500, temperature=5.)
        assert (cross_fitted(logits, labels).argmax(1) == logits.argmax(1)).all()
        assert ((logits / fit_temperature(logits, labels)).argmax(1) == logits.argmax(1)).all()


def test_nothing_is_learnt_where_every_answer_is_right_or_there_is_none():
    logits, _ = overconfident(0, 50)
    assert fit_temperature(logits, logits.argmax(1)) == 1 and fit_temperature(logits[:0], np.array([], int)) == 1


@pytest.mark.parametrize('n', [1, 2, 3, 16])
def test_few_photos_are_judged_too(n):
    logits, labels = overconfident(0, n)
    assert np.isfinite([*calibration_metrics(cross_fitted(logits, labels), labels).values()]).all()


def test_halves_have_as_many_of_each_class():
    labels = np.repeat([0, 1, 2], [10, 3, 1])
    half = split_in_half(labels)
    assert [int(half[labels == o].sum()) for o in range(3)] in ([5, 2, 0], [5, 1, 1], [5, 1, 0],
                                                                [5, 2, 1]) and (half == split_in_half(labels)).all()


def test_the_figures_are_those_of_scikit_learn():
    from sklearn.metrics import brier_score_loss, log_loss
    logits, labels = overconfident(2, temperature=2.)
    chance, actual = softmax(logits.astype(float), 1), calibration_metrics(logits, labels)
    assert actual['nll'] == pytest.approx(log_loss(labels,
                                                  chance)) and actual['brier'] == pytest.approx(brier_score_loss(labels,
        chance, scale_by_half=False))


def test_the_calibration_error_of_a_liar_is_its_lie():
    random = np.random.default_rng(0)
    confidences = random.uniform(.6, .9, 30_000)
    assert calibration_error(confidences, random.random(30_000) < confidences - .1) == pytest.approx(.1, abs=.01)
