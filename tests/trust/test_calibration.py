"One temperature: planted over-confidence is found, and the figures equal those of scikit-learn."
import numpy as np
import pytest
from scipy.special import softmax

from basegun_fastai.trust.calibration import calibration_error, calibration_metrics, cross_fitted, fit_temperature
from basegun_fastai.trust.calibration import confidence_lines, confidence_report, level_counts, split_in_half
from basegun_fastai.trust.levels import Levels, familiar_confidences
from basegun_fastai.trust.predictions import Predictions


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


def of_two_classes(confidences, right, familiarity=None, groups=None):
    labels = np.where(right, 0, 1)
    logits = np.log(np.column_stack([confidences, 1 - confidences]))
    return Predictions([f'{o}.jpg' for o in range(len(labels))], ['a', 'b'], labels, logits, None, familiarity, groups)


def sample(random, n):
    confidences = 1 - .49 * random.random(n) ** 3
    return confidences, random.random(n) < confidences


def test_unfamiliar_photos_are_counted_as_low():
    random, levels = np.random.default_rng(0), Levels(.7, .95, .1)
    (confidences, right), share = sample(random, 1000), random.random(1000)
    actual = level_counts(levels, of_two_classes(confidences, right, share))
    expected = np.array([levels(*o) for o in zip(confidences, share, strict=True)])
    for name, band in actual.items():
        assert band['n'] == (expected == name).sum() and band['right'] == pytest.approx(right[expected == name].mean())
    without = level_counts(levels, of_two_classes(confidences, right))
    assert actual['low']['n'] > without['low']['n']
    assert familiar_confidences(confidences, None, .1) is confidences
    assert level_counts(Levels(.7, .95), of_two_classes(confidences, right, share)) == without


def test_levels_cover_all_photos():
    actual = level_counts(Levels(.7, .95), of_two_classes(*sample(np.random.default_rng(0), 1000)))
    assert sum(o['n'] for o in actual.values()) == 1000 and sum(o['share'] for o in actual.values()) == pytest.approx(1)
    for o in actual.values(): assert o['interval'][0] <= o['right'] <= o['interval'][1]
    nothing = level_counts(Levels(None, None), of_two_classes(np.full(3, .9), np.ones(3, bool)))['high']
    assert nothing == dict(n=0, share=0., right=None, interval=None)


@pytest.mark.parametrize(('n', 'good', 'interval'), [
    (193, 193, (.025 ** (1 / 193), 1)), (1, 0, (0, .975)), (5, 0, (0, 1 - .025 ** (1 / 5))), (1, 1, (.025, 1))])
def test_the_interval_of_all_or_none_is_exact(n, good, interval):
    preds = of_two_classes(np.full(n, .8), np.arange(n) < good)
    row = level_counts(Levels(.5, None), preds)['medium']
    assert np.allclose(row['interval'], interval, atol=1e-9) and row['right'] == good / n


def test_the_interval_of_some_is_exact_and_photos_of_one_weapon_count_once():
    from scipy.stats import binomtest
    right, groups = np.repeat([True, False, True, True, True], 6), np.repeat(np.arange(5), 6)
    by_photo, by_group = (level_counts(Levels(.5, None), of_two_classes(np.full(30, .8), right, groups=o))['medium']
                          for o in (None, groups))
    for row, counts in ((by_photo, (24, 30)), (by_group, (4, 5))):
        assert row['interval'] == pytest.approx([*binomtest(*counts).proportion_ci(.95, 'exact')])
    assert by_photo['n'] == by_group['n'] == 30


def test_what_a_refusal_advises_by_group():
    right = np.ones(20, bool)
    for groups, advice in ((None, 'add photos to val/ or'), (np.arange(20) // 4, 'add photos of other groups to val/')):
        preds = of_two_classes(np.linspace(.9, .6, 20), right, groups=groups)
        refused = confidence_report(preds, 1.)['levels']['refused']
        assert advice in refused['low'] and advice in refused['high']


def test_what_neither_level_has_is_said_once():
    preds = of_two_classes(np.linspace(.9, .6, 20), np.ones(20, bool))
    lines = '\n'.join(confidence_lines(confidence_report(preds, 1., Levels(None, None))))
    assert lines.count('the run has no such threshold') == 1 and 'every prediction is called low' in lines
    assert 'no prediction can be called high' in '\n'.join(confidence_lines(confidence_report(preds, 1.)))
