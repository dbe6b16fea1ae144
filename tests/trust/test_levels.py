"Two thresholds: they keep their promise, except for the stated risk."
import numpy as np
import pytest

from basegun_fastai.trust.familiarity import familiarity, familiarity_table
from basegun_fastai.trust.levels import REASONS, Levels, clopper_pearson_upper, familiar_confidences, find_levels
from basegun_fastai.trust.levels import ood_metrics, photos_needed, threshold


def sample(random, n):
    "Confidences, and predictions that are right as often as these say."
    confidences = 1 - .5 * random.random(n) ** 3
    return confidences, random.random(n) < confidences


def true_rate(actual):
    "Share of right predictions above a threshold among all photos of `sample`."
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


def test_no_number_is_low():
    for o in (Levels(.5, .9), Levels(.5, .9, .02), Levels(None, None)):
        assert o(float('nan')) == o(float('nan'), .5) == 'low'
        assert o.reason(float('nan'), .5) == ('unproven' if o.low is None else 'uncertain')


# Familiarity


@pytest.mark.parametrize('levels', [Levels(.5, .9, .02), Levels(0., 0., .02), Levels(None, None, .02),
                                    Levels(.5, None, .02)])
def test_an_unfamiliar_photo_is_low_whatever_the_confidence(levels):
    for confidence in (0., .5, .899, .9, 1.):
        for strange in (.001, .0199):
            assert levels(confidence, strange) == 'low' and levels.reason(confidence, strange) == 'unfamiliar'
        for known in (.02, .5, 1., None):  # exactly at the rate a photo is familiar
            assert levels(confidence, known) == levels(confidence)
            assert levels.reason(confidence, known) == levels.reason(confidence) != 'unfamiliar'


def test_without_a_rate_no_photo_is_unfamiliar():
    assert Levels(.5, .9)(1., 1e-9) == 'high' and not Levels(.5, .9).is_unfamiliar(1e-9)


def test_an_answer_has_a_reason_if_and_only_if_it_is_low():
    shares, reasons = [None, .001, .02, .7], set()
    for levels in (Levels(.5, .9, .02), Levels(.5, None), Levels(None, None, .02), Levels(None, None)):
        for confidence in (0., .4999, .5, .9, 1.):
            for share in shares:
                reason = levels.reason(confidence, share)
                assert (levels(confidence, share) == 'low') == (reason is not None)
                reasons.add(reason)
    assert reasons == {None, *REASONS}
    assert Levels(.5, .9).reason(.4) == 'uncertain' and Levels(None, None).reason(1.) == 'unproven'


def sample_with_strange_photos(random, n):
    "Confidences, chances to be right, and similarities; a twentieth is strange: confident and mostly wrong."
    confidences, strange = 1 - .5 * random.random(n) ** 3, random.random(n) < .05
    similarities = np.where(strange, random.uniform(-1, .3, n), random.uniform(.2, 1, n))
    surely = .95 + .05 * random.random(n)
    return np.where(strange, surely, confidences), np.where(strange, .3, confidences), similarities


@pytest.mark.parametrize(('rate', 'n'), [(.95, 2000), (.9, 400)])
def test_the_promise_holds_for_familiar_photos_and_costs_no_more_than_it_has_to(rate, n):
    random, unfamiliar_rate, kept, lower = np.random.default_rng(0), .05, [], []
    others, chances, others_similarities = sample_with_strange_photos(np.random.default_rng(1), 100_000)
    for _ in range(100):
        confidences, chance, similarities = sample_with_strange_photos(random, n)
        right, table = random.random(n) < chance, familiarity_table(similarities)
        familiar = familiar_confidences(confidences, familiarity(similarities, table), unfamiliar_rate)
        actual, plain = threshold(familiar, right, rate), threshold(confidences, right, rate)
        shown = (others >= (actual or 2)) & (familiarity(others_similarities, table) >= unfamiliar_rate)
        kept.append(actual is None or chances[shown].mean() >= rate)
        lower.append(actual is not None and (plain is None or actual < plain))
    assert np.mean(kept) >= .95 and np.mean(lower) > .95
