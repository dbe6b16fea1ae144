"Two thresholds: they keep their promise, except for the stated risk."
import numpy as np
import pytest

from basegun_fastai.trust.familiarity import familiarity, familiarity_table
from basegun_fastai.trust.levels import GROWTH, REASONS, RISK, Levels, clopper_pearson_upper, effective_sizes
from basegun_fastai.trust.levels import familiar_confidences, find_levels, ood_metrics, photos_enough, photos_needed
from basegun_fastai.trust.levels import refusal, risk_of_each, threshold


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


def test_wrong_labels_among_the_surest_cost_no_more_in_a_large_val():
    random = np.random.default_rng(0)
    for n in (1000, 10_000):  # a fiftieth is wrong, and surer than all others
        confidences = np.append(np.full(n // 50, 1.), .5 + .49 * random.random(n - n // 50))
        right = np.append(np.zeros(n // 50, bool), np.ones(n - n // 50, bool))
        actual = threshold(confidences - 1e-6 * random.random(n), right, .9)
        assert actual is not None and (confidences >= actual).mean() > .9


@pytest.mark.parametrize('rate', [.8, .9, .99])
@pytest.mark.parametrize('doublings', [0, 1, 3, 6, 9])
def test_all_sequences_together_have_the_risk(rate, doublings):
    from scipy.special import bdtr
    n, random = photos_needed(rate, RISK) * 2**doublings, np.random.default_rng(1)
    risk, starts = risk_of_each(rate, n), []
    start = photos_needed(rate, risk)
    while start <= n:
        starts.append(int(np.ceil(start)))
        start *= GROWTH
    photos = np.diff(starts, prepend=0)
    wrong = random.binomial(photos, 1 - rate, (40_000, len(starts))).cumsum(1)  # no threshold keeps the promise
    assert (bdtr(wrong, starts, 1 - rate) <= risk).any(1).mean() < RISK + .003 if starts else doublings == 0


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


# Groups


def test_effective_sizes_are_those_of_kish_for_the_first_photos():
    random = np.random.default_rng(0)
    for _ in range(20):
        groups, right = random.integers(0, 8, 40), random.random(40) < .7
        actual = effective_sizes(right, groups)
        for n in range(1, 41):
            sizes, rights = (np.bincount(groups[:n], weights, minlength=8) for weights in (None, right[:n]))
            share, largest, n_groups = rights.sum() / n, (sizes ** 2).sum() / n, (sizes > 0).sum()
            effect = largest
            if 0 < share < 1 and n_groups > 1:
                variance = n_groups / (n_groups - 1) * ((rights - share * sizes) ** 2).sum() / n ** 2
                effect = np.clip(variance / (share * (1 - share) / n), 1, largest)
            assert actual[n - 1] == pytest.approx(n / effect)


def sample_of_weapons(random, n, size=5):
    "Confidences, answers that mostly agree within a weapon, and weapons; right as often as the confidences say."
    chances = np.repeat(1 - .5 * random.random(n // size) ** 3, size)
    luck = np.where(random.random(n) < .3, random.random(n), np.repeat(random.random(n // size), size))
    return chances + 1e-9 * random.random(n), luck < chances, np.repeat(np.arange(n // size), size)


def test_a_promise_by_group_is_kept_where_one_by_photo_is_broken():
    random, kept = np.random.default_rng(0), []
    for _ in range(300):
        confidences, right, groups = sample_of_weapons(random, 600)
        both = threshold(confidences, right, .9), threshold(confidences, right, .9, groups=groups)
        kept.append([o is None or true_rate(o) >= .9 for o in both])
    by_photo, by_group = np.mean(kept, 0)
    assert by_photo < .93 and by_group >= .95


def test_groups_of_one_photo_change_nothing():
    confidences, right = sample(np.random.default_rng(0), 1000)
    assert threshold(confidences, right, .95) == threshold(confidences, right, .95, groups=np.arange(1000))


def test_the_number_of_photos_that_would_be_enough_is_about_right():
    random = np.random.default_rng(0)
    def flat(n): return random.random(n), random.random(n) < .93  # the confidence says nothing
    for rate, few in ((.9, 150), (.91, 300)):
        estimates = [photos_enough(*flat(few), rate) for _ in range(60)]
        typical = int(np.median([o for o in estimates if o]))
        share = np.mean([threshold(*flat(typical), rate) is not None for _ in range(60)])
        assert share > .5, (rate, typical, share)
    assert photos_enough(*flat(500), .99) is None


def test_a_refusal_says_what_helps():
    confidences, right = np.linspace(1, .5, 200), np.ones(200, bool)
    right[3::20] = False
    text = refusal(confidences, right, .95)
    assert '0.95 cannot be promised with 4 mistakes among the 74 most confident' in text and '`review`' in text
    assert 'val photos like these could promise it' not in text  # 5 % are wrong
    assert f'about {photos_enough(confidences, right, .93)} val photos like these' in refusal(confidences, right, .93)


@pytest.mark.parametrize(('sizes', 'has'), [
    ([20] * 10, '200 photos in 10 groups; photos of one group, all of them right, count as one'),
    ([4] * 7, '28 photos in 7 groups; photos of one group, all of them right, count as one'),
    ([1], '1 photo in 1 group; photos of one group, all of them right, count as one'),
    ([100] * 4 + [1] * 96, '496 photos in 100 groups of unequal size, which count as 6')])
def test_a_refusal_counts_groups_if_there_are_any(sizes, has):
    n, groups = sum(sizes), np.repeat(np.arange(len(sizes)), sizes)
    needed = photos_needed(.95, risk_of_each(.95, n))
    text = refusal(np.linspace(1, .5, n), np.ones(n, bool), .95, groups=groups)
    assert text == f'to promise 0.95, val/ needs at least {needed} groups without a mistake (it has {has})'


def test_a_refusal_counts_the_groups_before_the_first_mistake():
    right = np.arange(300) < 200
    text = refusal(np.linspace(1, .5, 300), right, .95, groups=np.arange(300) // 20)
    assert '(it has 200 photos in 10 groups; ' in text


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


def test_a_refusal_names_groups_only_if_there_are_any():
    confidences, right = np.ones(100), np.arange(100) < 80  # equal confidences: the mistakes come with the others
    assert threshold(confidences, right, .9) is None and 'group' not in refusal(confidences, right, .9)
