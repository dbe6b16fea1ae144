"Every photo is judged by what has not seen it, and each suspect has one place in the list."
import numpy as np
import pandas as pd
import pytest

from basegun_fastai.data.problems import Problem
from basegun_fastai.trust import suspects as module
from basegun_fastai.trust.listing import rank_photos
from basegun_fastai.trust.suspects import assign_folds, cross_fitted_probabilities, label_doubts
from basegun_fastai.trust.suspects import list_suspects, nearest_of_classes, nearest_photos


@pytest.fixture
def photos():
    "Features of 90 photos of 3 classes in 45 groups; every tenth label is wrong."
    random = np.random.default_rng(0)
    labels = np.arange(90) // 2 % 3
    features = random.normal(size=(90, 16)) + 3 * np.eye(16)[labels]
    features = (features / np.linalg.norm(features, axis=1, keepdims=True)).astype(np.float32)
    wrong = labels.copy()
    wrong[::10] = (wrong[::10] + 1) % 3
    return features, wrong, np.arange(90) // 2


@pytest.mark.parametrize('n_groups', [1, 2, 4, 30])
def test_a_group_is_never_divided(n_groups):
    random = np.random.default_rng(n_groups)
    labels, groups = random.integers(0, 3, 200), random.integers(0, n_groups, 200)
    folds = assign_folds(labels, groups)
    assert all(len({*folds[groups == o]}) == 1 for o in {*groups}) and len({*folds}) == min(5, n_groups)


def test_each_fold_has_its_share_of_each_class(photos):
    _, labels, groups = photos
    counts = np.array([np.bincount(labels[assign_folds(labels, groups) == o], minlength=3) for o in range(5)])
    assert counts.min() >= 4 and counts.max() <= 8  # 6 of each, if the groups allowed it


def test_the_probabilities_of_a_photo_do_not_depend_on_its_label(photos):
    features, labels, groups = photos
    folds, other = assign_folds(labels, groups), labels.copy()
    other[groups == 7] = (other[groups == 7] + 1) % 3
    one, two = (cross_fitted_probabilities(features, o, folds)[groups == 7] for o in (labels, other))
    temperature = np.log(one[:, 0] / one[:, 1]) / np.log(two[:, 0] / two[:, 1])  # the one number that all labels share
    np.testing.assert_allclose(temperature, temperature[0], rtol=1e-3)


def test_a_class_in_one_group_is_not_judged(photos):
    features, labels, groups = photos
    labels = np.where(groups == 3, 3, labels)
    probabilities = cross_fitted_probabilities(features, labels, assign_folds(labels, groups))
    assert np.isnan(probabilities[groups == 3]).all() and np.isfinite(probabilities[groups != 3]).all()
    counts, _ = nearest_photos(features, labels, groups)
    doubts = label_doubts(probabilities, labels, counts)
    assert (np.isnan(doubts) == (groups == 3)).all() and np.nanmax(doubts) == 1


def test_photos_of_one_group_are_not_judged_at_all(photos):
    features, labels, groups = photos
    probabilities = cross_fitted_probabilities(features, labels, assign_folds(labels, groups * 0))
    counts, similarities = nearest_photos(features, labels, groups * 0)
    assert np.isnan(probabilities).all() and not counts.any() and np.isnan(label_doubts(probabilities, labels,
                                                                                      counts)).all()
    table = pd.DataFrame(dict(file=[f'{i}.jpg' for i in range(90)], split='train', label=[*map(str, labels)]))
    assert not len(list_suspects(table, ['0', '1', '2'], probabilities, counts, similarities, [], []))


def test_blocks_change_nothing(photos, monkeypatch):
    features, labels, groups = photos
    rows, classes = np.arange(90), (labels + 1) % 3
    whole = nearest_photos(features, labels, groups), [*nearest_of_classes(features, labels, groups, rows, classes)]
    monkeypatch.setattr(module, '_CELLS', 7 * 90)
    counts, similarities = nearest_photos(features, labels, groups)
    assert (counts == whole[0][0]).all() and [*nearest_of_classes(features, labels, groups, rows, classes)] == whole[1]
    np.testing.assert_allclose(similarities, whole[0][1], rtol=1e-5)


def test_the_nearest_photos_are_those_of_a_plain_search(photos):
    features, labels, groups = photos
    counts, similarities = nearest_photos(features, labels, groups)
    for i in range(90):
        others = sorted((-float(features[i] @ features[j]), j) for j in range(90) if groups[j] != groups[i])
        assert (counts[i] == np.bincount(labels[[j for _, j in others[:10]]], minlength=3)).all()
        assert similarities[i] == pytest.approx(-others[4][0], abs=1e-5)
        [three] = nearest_of_classes(features, labels, groups, np.array([i]), np.array([2]))
        assert three == [j for _, j in others if labels[j] == 2][:3]


def test_fewer_photos_than_neighbours(photos):
    features, labels, groups = (o[:4] for o in photos)
    counts, similarities = nearest_photos(features, labels, groups)
    assert (counts.sum(1) == 2).all()  # those of the other group
    assert [*nearest_of_classes(features, labels, groups, np.array([0]), np.array([-1]))] == [[]]
    assert np.isnan(similarities).all()  # a fifth one of another group does not exist


def test_wrong_labels_come_first(photos):
    features, labels, groups = photos
    probabilities = cross_fitted_probabilities(features, labels, assign_folds(labels, groups))
    counts, _ = nearest_photos(features, labels, groups)
    first = np.argsort(label_doubts(probabilities, labels, counts))[:9]
    assert len({*first} & {*range(0, 90, 10)}) >= 8


def table_of(labels):
    "A table with train and val photos."
    splits = np.where(np.arange(len(labels)) % 3, 'train', 'val')
    return pd.DataFrame(dict(file=[f'{s}/{o}/{i}.jpg' for i, (s, o) in enumerate(zip(splits, labels, strict=True))],
                             split=splits, label=labels))


def listed(table, problems=(), pairs=()):
    "The list for a table whose labels are all believed."
    n, classes = len(table), sorted({*table.label})
    labels = pd.Index(classes).get_indexer(table.label)
    probabilities = np.eye(len(classes))[labels] * .9 + .1 / len(classes)
    counts = 10 * np.eye(len(classes), dtype=int)[labels]
    return list_suspects(table, classes, probabilities, counts, np.linspace(1, .9, n), [*problems], [*pairs])


def test_the_most_harmful_kind_comes_first_and_each_photo_once():
    table = table_of(['a', 'b'] * 30)
    files = table.file.tolist()
    problems = [Problem('small', 'warning', [files[o]], 'small') for o in (50, 8, 4)]
    problems += [Problem('blank', 'warning', [files[8]], 'blank'), Problem('leak', 'error', files[2:4], 'leak')]
    problems += [Problem('conflict', 'error', files[4:6], 'conflict')]
    rows = listed(table, problems, [(10, 11, .99), (12, 14, .95), (16, 20, .95)])
    assert [*zip(rows.index, rows.kind, strict=True)] == [
        (10, 'conflict'), (11, 'conflict'), (4, 'conflict'), (5, 'conflict'), (2, 'leak'), (3, 'leak'),
        (59, 'unfamiliar'), (58, 'unfamiliar'), (57, 'unfamiliar'), (8, 'blank'),
        (12, 'near-duplicate'), (50, 'small')]
    assert rows['rank'].tolist() == [*range(1, 13)] and rows.confidence.isna().all()
    twins = dict(zip(rows.index, rows.twin, strict=True))
    assert {i: o for i, o in twins.items() if o >= 0} == {10: 11, 11: 10, 4: 5, 5: 4, 2: 3, 3: 2, 12: 14}
    assert rows.suggested.tolist() == ['b', 'a'] * 3 + [''] * 6  # the labels of the first six and of their twins differ


def test_the_twin_is_the_first_neighbour(photos):
    features, labels, groups = photos
    groups[14] = groups[12]  # twins are in one group
    table = table_of([*map(str, labels)]).assign(group=groups)
    files = table.file.tolist()
    problems = [Problem('conflict', 'error', [files[12], files[14]], 'conflict'),
                Problem('leak', 'error', files[2:4], 'leak')]
    suspects, neighbours = rank_photos(table, features, [(50, 52, .99)], problems)
    assert (*suspects.columns,) == module.SUSPECT_COLUMNS
    for row, twin, place in ((12, 14, 'suggested1'), (14, 12, 'suggested1'), (2, 3, 'own1'), (3, 2, 'own1')):
        assert neighbours[place][neighbours.file == files[row]].tolist() == [files[twin]]
    assert neighbours.own3.all()  # three of each are left


def test_of_a_pair_across_the_split_only_val_is_listed():
    table = table_of(['a', 'b'] * 30)
    rows = listed(table, pairs=[(7, 1, .97), (1, 5, .96)])
    assert {*rows.kind} == {'unfamiliar'}  # all three are train photos of one class
    rows = listed(table, pairs=[(9, 1, .97)])
    reasons = rows.reason[rows.kind == 'near-duplicate'].tolist()
    assert reasons == [f'It looks like the train photo {table.file[1]} (similarity 0.970)']


def test_names_of_any_kind_stay_on_one_line():
    table = table_of(['a', 'b'] * 30)
    table.loc[1, 'file'] = 'train/b/two\nlines \udcff.jpg'
    rows = listed(table, pairs=[(0, 1, .97)])
    assert rows.file[1] == 'train/b/two\nlines \udcff.jpg' and not any('\n' in o for o in rows.reason)
    assert all(o.encode() for o in rows.reason)
