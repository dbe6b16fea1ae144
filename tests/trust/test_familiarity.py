"Familiarity is a valid p-value of the documented similarity; damaged files are refused."
import json

import numpy as np
import pytest
from safetensors.numpy import save

from basegun_fastai.base.errors import BasegunError
from basegun_fastai.base.record import Run
from basegun_fastai.trust.familiarity import MAX_BANK, MAX_TABLE, MAX_UNFAMILIAR_RATE, Bank, bank_fault
from basegun_fastai.trust.familiarity import familiarity, familiarity_table, no_familiarity, read_bank, save_bank
from basegun_fastai.trust.familiarity import similarity, val_photos_needed, why_no_familiarity
from basegun_fastai.trust.steadiness import sample_evenly


def directions(n, seed, width=8):
    "Features of length 1."
    x = np.random.default_rng(seed).normal(size=(n, width)).astype(np.float32)
    return x / np.linalg.norm(x, axis=1, keepdims=True)


@pytest.mark.parametrize('neighbour', [1, 2, 5, 40])
def test_similarity_is_the_cosine_to_the_neighbour_that_counts(neighbour):
    queries, bank = directions(30, 0), directions(40, 1)
    expected = [sorted((float(q.astype(float) @ o) for o in bank), reverse=True)[neighbour - 1] for q in queries]
    actual = similarity(queries, bank, neighbour)
    assert actual.dtype == np.float32 and np.abs(actual - expected).max() < 1e-6
    half = similarity(queries, bank.astype(np.float16), neighbour)
    assert half.dtype == np.float32 and np.abs(half - expected).max() < 2e-3


def test_the_fifth_neighbour_counts_and_of_a_smaller_bank_the_last():
    queries, bank = directions(9, 0), directions(20, 1)
    assert np.array_equal(similarity(queries, bank), similarity(queries, bank, 5))
    assert not np.array_equal(similarity(queries, bank), similarity(queries, bank, 4))
    for n in (1, 3): assert np.array_equal(similarity(queries, bank[:n]), (queries @ bank[:n].T).min(1))


# The bank


@pytest.mark.parametrize('counts', [(10, 10, 10), (500, 30, 7), (1, 1, 400), (5,), (3, 0, 90)])
@pytest.mark.parametrize('size', [1, 20, 100, 2000])
def test_a_bank_has_as_many_photos_of_each_class_as_their_numbers_allow(counts, size):
    labels = np.random.default_rng(0).permutation(np.repeat(np.arange(len(counts)), counts))
    chosen = sample_evenly(labels, size)
    assert len(chosen) == min(size, len(labels)) == len({*chosen}) and (np.diff(chosen) > 0).all()
    assert chosen.min() >= 0 and chosen.max() < len(labels)
    taken = np.bincount(labels[chosen], minlength=len(counts))
    for mine, there in zip(taken, counts, strict=True):
        assert mine == there or mine >= taken.max() - 1  # a class has fewer only if it has no more photos


def test_a_bank_is_the_same_for_the_same_labels_and_of_names_as_of_numbers():
    labels = np.random.default_rng(0).integers(0, 5, 300)
    names = np.array(list('abcde'), object)[labels]
    assert np.array_equal(sample_evenly(labels, 50), sample_evenly(labels.copy(), 50))
    assert np.array_equal(sample_evenly(labels, 50), sample_evenly(names, 50))
    assert len(sample_evenly(np.zeros(5000, int), MAX_BANK)) == MAX_BANK
    of_one_class = sample_evenly(np.zeros(5000, int), 500)  # spread over all photos, not the first ones
    assert of_one_class.max() > 4900 and np.histogram(of_one_class, 5, (0, 5000))[0].min() > 70


# The number


@pytest.mark.parametrize(('n', 'digits'), [(50, 9), (199, 9), (199, 1), (3000, 9)])
@pytest.mark.parametrize('rate', [.02, .1])
def test_of_photos_like_those_of_val_no_more_than_the_rate_are_below_it(n, digits, rate):
    "For many random val sets; few digits make ties."
    random, shares = np.random.default_rng(0), []
    for _ in range(400):
        scores = random.normal(size=n + 500).round(digits)
        shares.append((familiarity(scores[n:], familiarity_table(scores[:n])) < rate).mean())
    assert np.mean(shares) <= rate * 1.1
    if digits > 1: assert np.mean(shares) >= rate - 1 / (min(n, MAX_TABLE) + 1) - .1 * rate


def test_familiarity_counts_the_val_photos_that_are_no_more_similar():
    table = familiarity_table(np.array([.5, .2, .9, .5], np.float32))
    assert table.tolist() == sorted(table.tolist()) and len(table) == 4
    asked = np.array([.1, .2, .4, .5, .6, .9, 1.], np.float32)
    assert familiarity(asked, table).tolist() == [o / 5 for o in (1, 2, 2, 4, 4, 5, 5)]
    assert familiarity(np.float32(.5), table) == .8


@pytest.mark.parametrize('n', [1, 50, 1001, 20_000])
def test_familiarity_is_above_0_and_at_most_1_and_grows_with_similarity(n):
    table = familiarity_table(np.random.default_rng(0).normal(size=n))
    actual = familiarity(np.linspace(-9, 9, 999), table)
    assert len(table) == min(n, MAX_TABLE) and (np.diff(actual) >= 0).all()
    assert actual[0] == 1 / (len(table) + 1) and actual[-1] == 1


def test_a_table_of_1001_numbers_stands_for_20000():
    random = np.random.default_rng(0)
    scores, asked = random.beta(9, 2, 20_000), random.beta(9, 2, 2000)
    exact = (1 + (scores <= asked[:, None]).sum(1)) / 20_001
    table = familiarity_table(scores)
    assert len(table) == 1001 and np.abs(familiarity(asked, table) - exact).max() <= .002


@pytest.mark.parametrize('rate', [.001, .002, .003, .01, .015, .02, .025, .03, .05, .07, .09, .1])
def test_val_photos_suffice_from_the_first_number_that_lets_a_photo_be_unfamiliar(rate):
    needed = val_photos_needed(rate)
    for n, suffices in ((needed, True), (needed - 1, False)):
        smallest = familiarity(-1., familiarity_table(np.linspace(0, 1, n)))
        assert (smallest < rate) == suffices == (no_familiarity(n, rate) is None)
    expected = f'it needs at least {needed} val photos, but val/ has {needed - 1}; add photos to val/ or raise '
    assert expected in no_familiarity(needed - 1, rate)


def test_without_a_rate_it_takes_as_many_val_photos_as_by_default():
    assert val_photos_needed(0) == val_photos_needed(.02) == 50 and val_photos_needed(MAX_UNFAMILIAR_RATE) == 10


def test_a_run_with_too_few_val_photos_says_what_to_do(tmp_path):
    run, reason = Run(tmp_path), no_familiarity(24, .02)
    run.metrics.write_text(json.dumps(dict(levels=dict(refused=dict(familiarity=reason)))))
    assert why_no_familiarity(run).endswith('add photos to val/ or raise --unfamiliar-rate, and train again')
    run.metrics.write_text('{}')
    assert 'an older version trained it' in why_no_familiarity(run)


# The file


@pytest.fixture
def run(tmp_path):
    (tmp_path/'model.safetensors').write_bytes(b'some weights')
    return Run(tmp_path)


def good_bank(): return Bank(directions(20, 0).astype(np.float16), np.linspace(-.2, 1, 60).astype(np.float32))


def test_a_bank_is_read_as_it_was_written(run):
    assert read_bank(run) is None
    save_bank(run, good_bank())
    actual, expected = read_bank(run), good_bank()
    assert actual.features.dtype == np.float16 and np.array_equal(actual.features, expected.features)
    assert actual.val_similarities.dtype == np.float32
    assert np.array_equal(actual.val_similarities, expected.val_similarities)
    assert np.array_equal(actual.table, np.sort(expected.val_similarities))
    before = run.familiarity.read_bytes()
    run.familiarity.unlink()
    save_bank(run, good_bank())
    assert run.familiarity.read_bytes() == before


@pytest.mark.parametrize(('spoil', 'words'), [
    (lambda file: file.unlink(), 'is missing'), (lambda file: (file.unlink(), file.mkdir()), 'not a regular file'),
    (lambda file: (file.unlink(), file.symlink_to('nowhere')), 'not a regular file')])
def test_levels_that_rest_on_a_bank_are_not_used_without_it(run, spoil, words):
    save_bank(run, good_bank())
    run.metrics.write_text('{"familiarity": {"n": 60}}')
    spoil(run.familiarity)
    with pytest.raises(BasegunError, match=words) as refused: read_bank(run)
    assert 'Copy it again' in str(refused.value)


def other(features=None, val_similarities=None, **about):
    "A file with one fault."
    def make(run):
        import hashlib
        tensors = dict(features=good_bank().features if features is None else features,
                       val_similarities=good_bank().val_similarities if val_similarities is None else val_similarities)
        facts = dict(weights=hashlib.sha256(run.weights.read_bytes()).hexdigest()) | about
        return save(tensors, metadata={'basegun-fastai': json.dumps(facts)})
    return make


def with_one(numbers, value):
    "The same numbers, except for one."
    numbers = numbers.copy()
    numbers.flat[7] = value
    return numbers


def as_saved(run): return run.familiarity.read_bytes()


FEATURES, SIMILARITIES = good_bank().features, good_bank().val_similarities
FAULTS = {
    'truncated': (lambda run: as_saved(run)[:-1], 'cannot be read'),
    'its header only': (lambda run: as_saved(run)[:9], 'cannot be read'),
    'empty': (lambda _: b'', 'cannot be read'),
    'no safetensors': (lambda _: b'PK\3\4' + b'x' * 100, 'cannot be read'),
    'no metadata': (lambda _: save(dict(features=FEATURES, val_similarities=SIMILARITIES)), 'cannot be read'),
    'metadata that is no JSON': (lambda _: save(dict(features=FEATURES, val_similarities=SIMILARITIES),
                                                  metadata={'basegun-fastai': '{'}), 'cannot be read'),
    'metadata that is a list': (lambda _: save(dict(features=FEATURES, val_similarities=SIMILARITIES),
                                                 metadata={'basegun-fastai': '[]'}), 'cannot be read'),
    'no similarities': (lambda _: save(dict(features=FEATURES), metadata={'basegun-fastai': '{"weights": ""}'}),
                        'cannot be read'),
    'other weights': (other(weights='0' * 64), "belongs to another network, not to 'model.safetensors'"),
    'no number': (other(with_one(FEATURES, np.nan)), 'not all finite'),
    'an infinite number': (other(with_one(FEATURES, np.inf)), 'not all finite'),
    'a long row': (other(FEATURES * np.float16(1.02)), 'rows whose length is not 1 (20 of 20)'),
    'a row of zeros': (other(np.vstack([FEATURES[:9], np.zeros_like(FEATURES[:1])])), 'length is not 1 (1 of 10)'),
    'single precision': (other(FEATURES.astype(np.float32)), 'float32 of shape (20, 8), not half-precision'),
    'a single row': (other(FEATURES[0]), 'float16 of shape (8,), not half-precision'),
    'no rows': (other(FEATURES[:0]), 'shape (0, 8), not half-precision'),
    'a similarity above 1': (other(None, with_one(SIMILARITIES, 1.02)), 'not all numbers from -1 to 1'),
    'a similarity below -1': (other(None, with_one(SIMILARITIES, -1.02)), 'not all numbers from -1 to 1'),
    'a similarity that is no number': (other(None, with_one(SIMILARITIES, np.nan)), 'not all numbers from -1 to 1'),
    'similarities in two columns': (other(None, SIMILARITIES.reshape(30, 2)), 'not all numbers from -1 to 1'),
    'no similarity': (other(None, SIMILARITIES[:0]), 'not all numbers from -1 to 1'),
    'similarities of double precision': (other(None, SIMILARITIES.astype(float)), 'not all numbers from -1 to 1'),
}


@pytest.mark.parametrize('fault', FAULTS)
def test_a_damaged_bank_is_refused_by_name_with_what_to_do(run, fault):
    make, words = FAULTS[fault]
    save_bank(run, good_bank())
    run.familiarity.write_bytes(make(run))
    with pytest.raises(BasegunError) as result: read_bank(run)
    message = str(result.value)
    assert message.startswith(f"'{run.familiarity}' ") and words in message, message
    assert message.endswith('. Copy it again from where the run was trained, or train again') and '\n' not in message


def test_a_bank_of_retrained_weights_is_refused(run):
    save_bank(run, good_bank())
    run.weights.write_bytes(b'other weights')
    with pytest.raises(BasegunError, match='belongs to another network'): read_bank(run)


def test_rows_that_are_rounded_to_half_precision_are_of_length_1():
    for width in (8, 1280, 4096): assert bank_fault(directions(50, 0, width).astype(np.float16)) is None
