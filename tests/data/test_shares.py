"Groups of any size keep together, and no choice of groups is closer to the shares of the classes."
import subprocess
import sys
from itertools import product
from pathlib import Path

import numpy as np
import pandas as pd
import pytest

from basegun_fastai.data.shares import balance_val, choose_val


def random_table(seed):
    "Photos in 4 to 14 groups of up to 12 photos, each of one of 2 to 4 classes, some of two."
    random = np.random.default_rng(seed)
    n_groups, n_classes, rows = 4 + seed % 11, 2 + seed % 3, []
    for group in range(n_groups):
        label = group % n_classes if group < 2 * n_classes else random.integers(n_classes)
        labels = [label] + [random.integers(n_classes)] * (random.random() < .15)
        for o in labels: rows += [(f'{seed} {group}', 'abcd'[o])] * int(random.integers(1, 13))
    table = pd.DataFrame(rows, columns=['group', 'label'])
    return table.sample(frac=1, random_state=seed).reset_index(drop=True)


def nearest_share(table, share):
    "Of all choices with photos of each class on both sides: the fewest photos too many or too few, over all classes."
    sizes = pd.crosstab(table.group, table.label).to_numpy()
    counts = np.array([*product([0, 1], repeat=len(sizes))]) @ sizes
    counts = counts[((counts > 0) & (counts < sizes.sum(0))).all(1)]
    targets = [max(1, round(n * share)) for n in sizes.sum(0)]
    return np.abs(counts - targets).sum(1).min() if len(counts) else None


def distance(table, val, share):
    parts = [(len(part), int(val[part.index].sum())) for _, part in table.groupby('label')]
    assert all(0 < there < n for n, there in parts)
    return sum(abs(there - max(1, round(n * share))) for n, there in parts)


@pytest.mark.parametrize('seed', range(20))
def test_no_choice_of_groups_is_closer_to_the_shares(seed):
    table = random_table(seed)
    for share in (.2, .4):
        val = balance_val(choose_val(table.group, table.label, share, 42), table.group, table.label, share, 42)
        assert val.groupby(table.group).nunique().max() == 1, 'a group is on two sides'
        nearest = nearest_share(table, share)
        assert nearest is None or distance(table, val, share) == nearest


def test_the_choice_without_groups_of_the_user_is_that_of_earlier_versions():
    labels, groups = pd.Series(list('ab') * 15), pd.Series([f'{o // 2:02x}' for o in range(30)])
    assert [*np.flatnonzero(choose_val(groups, labels, .2, 42))] == [8, 9, 12, 13, 14, 15]


def test_a_choice_that_is_right_already_stays(seed=3):
    labels, groups = pd.Series(list('ab') * 50), pd.Series([f'{o}' for o in range(100)])
    val = choose_val(groups, labels, .2, seed)
    assert balance_val(val, groups, labels, .2, seed).equals(val) and val.sum() == 20


def test_a_swap_finds_what_no_move_finds(monkeypatch):
    monkeypatch.setattr('basegun_fastai.data.shares._TRIALS', 0)  # as for a million groups
    sizes = np.random.default_rng(2).integers(20, 30, 40)
    groups, labels = pd.Series(np.repeat(np.arange(40).astype(str), sizes)), pd.Series('a', range(sizes.sum()))
    table = pd.DataFrame(dict(group=groups, label=labels))
    val = choose_val(groups, labels, .2, 7)
    assert distance(table, val, .2) > 0 == distance(table, balance_val(val, groups, labels, .2, 7), .2)


def test_a_class_of_two_large_groups_is_on_both_sides():
    labels, groups = pd.Series(['a'] * 100), pd.Series(['x'] * 60 + ['y'] * 40)
    val = choose_val(groups, labels, .2, 0)
    assert not val.any()
    assert balance_val(val, groups, labels, .2, 0).equals(groups == 'y')


def chosen(table):
    val = balance_val(choose_val(table.group, table.label, .3, 5), table.group, table.label, .3, 5)
    return sorted({*table.group[val]})


@pytest.mark.parametrize('seed', range(5))
def test_the_order_of_the_photos_does_not_matter(seed):
    parts = [random_table(o) for o in range(seed, seed + 40, 10)]
    table = pd.concat([part.assign(label=part.label + str(o)) for o, part in enumerate(parts)], ignore_index=True)
    assert chosen(table) == chosen(table.sample(frac=1, random_state=seed)) == chosen(table[::-1])


def test_another_process_makes_the_same_choice():
    code = 'import sys; sys.path.insert(0, "tests/data"); from test_shares import *; print(chosen(random_table(9)))'
    result = subprocess.run([sys.executable, '-c', code], capture_output=True, text=True, check=True,
                            cwd=Path(__file__).parents[2])
    assert result.stdout.strip() == str(chosen(random_table(9)))


def test_many_groups_take_seconds():
    import time
    random = np.random.default_rng(1)
    sizes = random.integers(1, 8, 20_000)
    groups = pd.Series(np.repeat(np.arange(20_000).astype(str), sizes))
    labels = pd.Series(np.repeat(random.choice(list('abcdefghijkl'), 20_000), sizes))
    labels[random.random(len(labels)) < .02] = 'a'  # groups of two classes
    val = choose_val(groups, labels, .2, 1)
    since = time.perf_counter()
    val = balance_val(val, groups, labels, .2, 1)
    assert time.perf_counter() - since < 30
    assert distance(pd.DataFrame(dict(group=groups, label=labels)), val, .2) <= 2
