"Bounds agree with the literature, and two runs are compared photo by photo."
from dataclasses import replace
from types import SimpleNamespace

import numpy as np
import pytest

from basegun_fastai.trust.comparison import compare, comparison_fault, sign_flip_test
from basegun_fastai.trust.predictions import Predictions

CLASSES = ['fusil', 'pistolet', 'revolver']


def answered(predicted, labels, classes=CLASSES):
    logits = np.eye(len(classes))[np.array(predicted)] * 4
    files = [f'val/{CLASSES[o]}/{i}.jpg' for i, o in enumerate(labels)]
    return Predictions(files, classes, np.array(labels), logits)


def test_photos_that_only_one_of_two_runs_has_right():
    labels = [0] * 6 + [1] * 8
    before, after = ([o if i not in wrong else 2 for i, o in enumerate(labels)] for wrong in (range(10), [0, 13]))
    result = compare(answered(before, labels), answered(after, labels))
    assert result.fixed.tolist() == list(range(1, 10)) and result.broken.tolist() == [13]
    assert result.p_value == pytest.approx(2 * (1 + 10) / 2**10)  # both tails of a binomial distribution of 10 trials
    assert result.classes.to_dict('index') == {
        'fusil': dict(before=0, after=pytest.approx(5 / 6), fixed=5, broken=0, support=6),
        'pistolet': dict(before=pytest.approx(4 / 8), after=pytest.approx(7 / 8), fixed=4, broken=1, support=8)}


def test_groups_count_together_and_signs_are_drawn_for_groups():
    labels, groups = [0] * 12, np.repeat(np.arange(4), 3)
    before, after = [1] * 9 + [0] * 3, [0] * 10 + [1] * 2
    by_photo, by_weapon = (compare(answered(before, labels), replace(answered(after, labels), groups=o))
                           for o in (None, groups))
    assert by_photo.p_value == pytest.approx(2 * sum((1, 11, 55)) / 2**11)
    assert by_weapon.p_value == pytest.approx(4 / 2**4)  # 3 + 3 + 3 - 2: more only if all signs agree
    assert by_weapon.fixed.tolist() == by_photo.fixed.tolist() == list(range(9))


def test_the_test_by_group_agrees_with_all_signs():
    random = np.random.default_rng(0)
    for _ in range(30):
        differences = random.integers(-4, 5, random.integers(1, 11))
        signs = np.array(np.meshgrid(*[[-1, 1]] * len(differences))).reshape(len(differences), -1)
        sums = np.abs(differences @ signs)
        assert sign_flip_test(differences) == pytest.approx((sums >= abs(differences.sum())).mean())
    assert sign_flip_test(np.repeat([1, -1, 2], [40_000, 39_000, 1])) < .01  # and it takes no time


def test_a_run_is_as_good_as_itself():
    same = answered([0, 1, 2, 0], [0, 1, 2, 2])
    assert compare(same, same).p_value == 1 and not compare(same, same).fixed.size


def test_answers_for_other_photos_are_not_compared():
    first = answered([0, 1], [0, 1])
    for other in (answered([0, 1], [0, 2]), answered([0, 1], [0, 1], CLASSES[:2]), replace(first, files=['a', 'b'])):
        with pytest.raises(ValueError, match='same photos'): compare(first, other)


def test_what_keeps_two_runs_from_being_compared_is_named():
    def run(classes=CLASSES, val='1', path='runs/x'):
        dataset = SimpleNamespace(parts=dict(val=val))
        return SimpleNamespace(path=path, config=SimpleNamespace(classes=classes, dataset=dataset))
    assert comparison_fault(run(), run()) is None
    fault = comparison_fault(run(), run([CLASSES[0], 'canon'], path='runs/y'))
    assert "Only in 'runs/x': pistolet, revolver. Only in 'runs/y': canon" in fault
    assert 'different val photos' in comparison_fault(run(), run(val='2'))
