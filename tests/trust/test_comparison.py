"Bounds agree with the literature, and two runs are compared photo by photo."
from dataclasses import replace
from types import SimpleNamespace

import numpy as np
import pytest

from basegun_fastai.trust.comparison import compare, comparison_fault, intervals, mean_interval, proportion_interval
from basegun_fastai.trust.predictions import Predictions

CLASSES = ['fusil', 'pistolet', 'revolver']


def answered(predicted, labels, classes=CLASSES):
    logits = np.eye(len(classes))[np.array(predicted)] * 4
    files = [f'val/{CLASSES[o]}/{i}.jpg' for i, o in enumerate(labels)]
    return Predictions(files, classes, np.array(labels), logits)


@pytest.mark.parametrize('right, n, wanted', [  # Newcombe 1998, table I, method 3
    (81, 263, (.2553, .3662)), (15, 148, (.0624, .1605)), (0, 20, (0, .1611)), (1, 29, (.0061, .1718))])
def test_a_share_is_bounded_as_newcombe_has_it(right, n, wanted):
    assert proportion_interval(right, n) == pytest.approx(wanted, abs=5e-5)


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


def test_photos_that_only_one_of_two_runs_has_right():
    labels = [0] * 6 + [1] * 8
    before, after = ([o if i not in wrong else 2 for i, o in enumerate(labels)] for wrong in (range(10), [0, 13]))
    result = compare(answered(before, labels), answered(after, labels))
    assert result.fixed.tolist() == list(range(1, 10)) and result.broken.tolist() == [13]
    assert result.p_value == pytest.approx(2 * (1 + 10) / 2**10)  # both tails of a binomial distribution of 10 trials
    assert result.classes.to_dict('index') == {
        'fusil': dict(before=0, after=pytest.approx(5 / 6), fixed=5, broken=0, support=6),
        'pistolet': dict(before=pytest.approx(4 / 8), after=pytest.approx(7 / 8), fixed=4, broken=1, support=8)}


def test_a_run_is_as_good_as_itself():
    same = answered([0, 1, 2, 0], [0, 1, 2, 2])
    assert compare(same, same).p_value == 1 and not compare(same, same).fixed.size


def test_answers_for_other_photos_are_not_compared():
    first = answered([0, 1], [0, 1])
    for other in (answered([0, 1], [0, 2]), answered([0, 1], [0, 1], CLASSES[:2]), replace(first, files=['a', 'b'])):
        with pytest.raises(ValueError, match='same photos'): compare(first, other)


def test_what_keeps_two_runs_from_being_compared_is_named():
    def run(classes=CLASSES, val='1'):
        dataset = SimpleNamespace(parts=dict(val=val))
        return SimpleNamespace(path='runs/x', config=SimpleNamespace(classes=classes, dataset=dataset))
    assert comparison_fault(run(), run()) is None
    assert 'of the two runs has pistolet, revolver, canon' in comparison_fault(run(), run([CLASSES[0], 'canon']))
    assert 'different val photos' in comparison_fault(run(), run(val='2'))
