"Two thresholds: their promise is kept but for its risk."
import numpy as np
import pytest

from basegun_fastai.trust.levels import Levels, clopper_pearson_upper, find_levels, level_counts, ood_metrics
from basegun_fastai.trust.levels import photos_needed, threshold


def sample(random, n):
    "Confidences, and answers that are right as often as these say."
    confidences = 1 - .5 * random.random(n) ** 3
    return confidences, random.random(n) < confidences


def true_rate(actual):
    "Share of right answers above a threshold among all photos of `drawn`."
    most = ((1 - actual) / .5) ** (1 / 3)
    return 1 - .5 * most ** 3 / 4


@pytest.mark.parametrize(('rate', 'n'), [(.99, 3000), (.95, 600), (.9, 300)])
def test_a_promise_is_kept_but_for_its_risk(rate, n):
    random, kept = np.random.default_rng(0), []
    for _ in range(400):
        actual = threshold(*sample(random, n), rate)
        kept.append(actual is None or true_rate(actual) >= rate)
    assert np.mean(kept) >= .95


def test_a_threshold_is_not_higher_than_it_has_to_be():
    random = np.random.default_rng(0)
    actual = [threshold(*sample(random, 20_000), .99) for _ in range(20)]
    assert None not in actual and np.mean([true_rate(o) for o in actual]) < .994


def test_a_hundred_photos_promise_nothing_and_one_photo_harms_nothing():
    for n in (1, 100):
        assert find_levels(np.full(n, .999), np.ones(n, bool)).high is None
    assert find_levels(np.full(1, .999), np.ones(1, bool)) == Levels(None, None)


def test_photos_that_are_equally_sure_are_on_one_side():
    confidences, right = np.repeat([1., .7], [1000, 1000]), np.repeat([True, False], [1000, 1000])
    assert .7 < threshold(confidences, right, .99) <= 1
    assert threshold(confidences, ~right, .99) is None


def test_a_mistake_among_the_surest_is_not_the_end():
    confidences, right = np.linspace(1, .6, 5000), np.ones(5000, bool)
    right[3] = False
    actual = threshold(confidences, right, .99)
    assert actual is not None and (confidences >= actual).sum() == 5000


def test_the_bound_is_that_of_clopper_and_pearson():
    from scipy.stats import binomtest
    for wrong, n in ((0, 10), (3, 50), (50, 50), (1, 1)):
        wanted = binomtest(wrong, n).proportion_ci(.9, method='exact').high
        assert float(clopper_pearson_upper(wrong, n, .05)) == pytest.approx(wanted)
    assert photos_needed(.99, .05) == 299


def test_other_things_come_out_low_and_cost_what_they_cost():
    random = np.random.default_rng(0)
    confidences, right = sample(random, 5000)
    others = random.uniform(.2, .8, 400)
    plain, actual = find_levels(confidences, right), find_levels(confidences, right, ood=others)
    assert (others >= actual.low).mean() <= .05 and actual.low >= plain.low and actual.high >= actual.low
    nothing = find_levels(confidences, right, ood=np.ones(400))
    assert nothing == Levels(None, None)


def test_separation_is_that_of_its_definition():
    random = np.random.default_rng(0)
    guns, others = random.beta(8, 2, 500), random.beta(3, 3, 300)
    actual = ood_metrics(guns, others)
    assert actual['auroc'] == pytest.approx((guns[:, None] > others).mean(), abs=1e-6)
    assert actual['fpr95'] == pytest.approx((others >= np.sort(guns)[24]).mean(), abs=.01)


def test_no_number_is_low(): assert Levels(.5, .9)(float('nan')) == 'low'


def test_bands_cover_all_photos():
    actual = level_counts(Levels(.7, .95), *sample(np.random.default_rng(0), 1000))
    assert sum(o['n'] for o in actual.values()) == 1000 and sum(o['share'] for o in actual.values()) == pytest.approx(1)
    for o in actual.values(): assert o['interval'][0] <= o['right'] <= o['interval'][1]
    assert level_counts(Levels(None, None), np.ones(3), np.ones(3, bool))['high'] == dict(n=0, share=0., right=None,
        interval=None)
