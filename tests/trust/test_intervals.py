"Intervals agree with the literature, and contain the truth as often as they say, by photo and by group."
from dataclasses import replace

import numpy as np
import pytest

from basegun_fastai.trust.intervals import effective_size, intervals, mean_interval, proportion_interval, share_interval
from basegun_fastai.trust.predictions import Predictions

CLASSES = ['fusil', 'pistolet', 'revolver']


def answered(predicted, labels, groups=None):
    logits = np.eye(len(CLASSES))[np.array(predicted)] * 4
    return Predictions([f'val/{o}.jpg' for o in range(len(labels))], CLASSES, np.array(labels), logits, groups=groups)


@pytest.mark.parametrize('right, n, expected', [  # Newcombe 1998, table I, method 3
    (81, 263, (.2553, .3662)), (15, 148, (.0624, .1605)), (0, 20, (0, .1611)), (1, 29, (.0061, .1718))])
def test_a_share_is_bounded_as_newcombe_has_it(right, n, expected):
    assert proportion_interval(right, n) == pytest.approx(expected, abs=5e-5)


def test_the_mean_of_one_share_is_bounded_as_that_share():
    assert mean_interval(np.array([15]), np.array([148])) == pytest.approx(proportion_interval(15, 148))


@pytest.mark.parametrize('shares', [(.9, .8, .95, .7), (.99, .98, .6), (.5,) * 12])
def test_the_interval_of_a_mean_holds_it_in_19_of_20_cases(shares):
    random, n = np.random.default_rng(0), np.full(len(shares), 25)
    inside = [low <= np.mean(shares) <= high for low, high in (
        mean_interval(random.binomial(n, shares), n) for _ in range(400))]
    assert np.mean(inside) > .925


def test_a_class_without_photos_or_answers_leaves_bounds_that_are_numbers():
    for o in intervals(answered([0, 0, 0], [0, 0, 1])).values(): assert 0 <= o[0] < o[1] <= 1


def test_a_photo_without_a_group_counts_as_one():
    right = np.array([True, False, True, True, False, True])
    assert effective_size(right) == effective_size(right, np.arange(6)) == 6
    assert effective_size(np.zeros(0, bool), np.zeros(0)) == 0 and share_interval(np.zeros(0, bool)) == (0, 1)


def test_photos_that_agree_in_their_group_count_once():
    right = np.repeat([True, False, True, True], 5)
    assert effective_size(right, np.repeat(np.arange(4), 5)) == pytest.approx(4)
    assert effective_size(np.ones(20, bool), np.repeat(np.arange(4), 5)) == 4  # nothing shows how groups differ
    assert effective_size(right, np.zeros(20)) == 1
    mixed = np.tile([True, True, True, False], 5)  # each group as all
    assert effective_size(mixed, np.repeat(np.arange(5), 4)) == 20


@pytest.mark.parametrize(('share', 'sizes'), [(.8, [5] * 40), (.8, [1, 2, 3, 10] * 12), (.95, [5] * 80)])
def test_intervals_by_group_contain_the_share_where_those_by_photo_do_not(share, sizes):
    random, groups, inside = np.random.default_rng(0), np.repeat(np.arange(len(sizes)), sizes), []
    for _ in range(300):
        chances = random.beta(share * 2, (1 - share) * 2, len(sizes))  # two photos of a weapon correlate by 1/3
        right = random.random(len(groups)) < chances[groups]
        inside.append([low <= share <= high for low, high in (share_interval(right, o) for o in (groups, None))])
    by_group, by_photo = np.mean(inside, 0)
    assert by_group > .9 and by_photo < .86


def test_all_three_numbers_are_less_certain_by_group():
    labels = np.repeat([0, 1, 2], 12)
    predicted = np.where(np.arange(36) // 4 == 4, 0, labels)  # all photos of one weapon are wrong
    for groups, wider in ((np.arange(36) // 4, True), (np.arange(36), False)):
        by_photo, by_group = intervals(answered(predicted, labels)), intervals(answered(predicted, labels, groups))
        for name, (low, high) in by_group.items():
            assert (high - low > 1.2 * np.ptp(by_photo[name])) == wider
            assert wider or (low, high) == pytest.approx(by_photo[name])


def test_groups_go_with_their_photos():
    preds = answered([0, 1, 2], [0, 1, 2], np.array([7, 8, 7]))
    assert preds.part([2, 0]).groups.tolist() == [7, 7] and replace(preds, groups=None).part([1]).groups is None
