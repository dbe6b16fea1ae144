"The search finds the same pairs as a comparison bit by bit, and no pair of different photos."
import numpy as np
import pytest
from PIL import Image, ImageDraw

from basegun_fastai.data import phash as module
from basegun_fastai.data.phash import MARGIN, MAX_BITS, MAX_FIRST_BITS, MAX_NEIGHBOURS, MIRROR, aspect_and_hue, hamming
from basegun_fastai.data.phash import is_near_duplicate, nearest, phash, registered_correlation, thumbnail


def scene(seed, size=(320, 240)):
    "A unique picture."
    random, photo = np.random.default_rng(seed), Image.new('RGB', size, 'lightgrey')
    draw = ImageDraw.Draw(photo)
    for _ in range(12):
        x, y, w, h = random.integers(0, [size[0], size[1], size[0] // 2, size[1] // 2]).tolist()
        draw.ellipse((x - w, y - h, x + w, y + h), fill=tuple(random.integers(0, 255, 3).tolist()))
    return photo


def changed(signatures, bits, random):
    "Flip some bits of each signature."
    flips = np.zeros((len(signatures), 256), bool)
    for row in flips: row[random.choice(256, bits, replace=False)] = True
    return signatures ^ np.packbits(flips, axis=1).view(np.uint64)


def naive(queries, among):
    actual = []
    for i, query in enumerate(queries):
        bits = np.bitwise_count(among ^ query)
        close = np.flatnonzero((bits.sum(1) <= MAX_BITS) & (bits[:, 0] <= MAX_FIRST_BITS))
        actual += sorted(((i, int(j), int(bits[j].sum())) for j in close), key=lambda o: (o[2], o[1]))[:MAX_NEIGHBOURS]
    return sorted(actual, key=lambda o: (o[0], o[2], o[1]))


@pytest.mark.parametrize('chunk', [1, 7, 1024])
@pytest.mark.parametrize('workers', [1, 3])
def test_the_search_finds_what_a_comparison_bit_by_bit_finds(chunk, workers, monkeypatch):
    # many blocks
    monkeypatch.setattr(module, '_nearest_in_blocks', lambda *args, plain=module._nearest_in_blocks: plain(*args[:-1],
        100))
    random = np.random.default_rng(1)
    queries = random.integers(0, 2**64, (40, 4), dtype=np.uint64)
    among = np.concatenate([random.integers(0, 2**64, (500, 4), dtype=np.uint64)]
                           + [changed(queries, bits, random) for bits in (0, 5, 40, 75, 90)]
                           + [changed(queries[:3], 9, random) for _ in range(30)])
    parts = list(nearest(queries, among, None, workers, chunk))
    rows = np.concatenate([rows for _, rows in parts])
    assert [done for done, _ in parts] == [min(o + chunk, 40) for o in range(0, 40, chunk)]
    assert [tuple(o) for o in rows.tolist()] == naive(queries, among) and len(rows) > 100
    assert np.bincount(rows[:, 0]).max() == MAX_NEIGHBOURS


def test_shape_and_hue_rule_out_what_cannot_be_alike():
    signatures = np.zeros((1, 4), np.uint64)
    looks = np.stack([aspect_and_hue(Image.new('RGB', o, c))
                      for o, c in [((300, 200), 'grey'), ((300, 200), 'orange'), ((200, 200), 'grey'),
                                   ((310, 200), 'grey')]])
    far = np.tile(np.array([0, 2**30 - 1, 0, 0], np.uint64), (4, 1))  # 30 bits apart: hue counts
    [(_, rows)] = nearest(signatures, far, (looks[:1], looks))
    assert rows[:, 1].tolist() == [0, 3]
    [(_, rows)] = nearest(signatures, np.zeros((4, 4), np.uint64), (looks[:1], looks))
    assert rows[:, 1].tolist() == [0, 1, 3]  # equal signatures: saved in grey, perhaps


def test_nothing_is_near_to_nothing():
    none, some = np.zeros((0, 4), np.uint64), np.ones((3, 4), np.uint64)
    assert list(nearest(none, some)) == [] and [len(rows) for _, rows in nearest(some, none)] == [0]


@pytest.mark.parametrize('seed', range(5))
def test_a_mirrored_photo_has_the_mirrored_signature(seed):
    photo = scene(seed)
    ours, theirs = (phash(thumbnail(o)) for o in (photo, photo.transpose(Image.Transpose.FLIP_LEFT_RIGHT)))
    assert (hamming(ours ^ MIRROR, theirs) <= 3).all() and (hamming(ours, theirs) > 40).all()


@pytest.mark.parametrize('side', ['left', 'right', 'top', 'bottom', 'corner', 'all'])
@pytest.mark.parametrize('seed', range(3))
def test_a_crop_fits_wherever_it_was_cut(seed, side):
    photo = scene(seed)
    box = dict(left=(.05, 0, 1, 1), right=(0, 0, .95, 1), top=(0, .05, 1, 1), bottom=(0, 0, 1, .95),
               corner=(0, 0, .95, .95), all=(.05, .05, .95, .95))[side]
    cut = photo.crop(tuple(round(share * o) for share, o in zip(box, (320, 240, 320, 240), strict=True)))
    one, other = thumbnail(photo)[None], thumbnail(cut)[None]
    fits = [float(registered_correlation(a, b, np.array([zoom]))[0])
            for a, b, zoom in ((one, other, 2 * MARGIN), (other, one, -2 * MARGIN))]
    assert min(fits) >= .985, fits


def test_unrelated_photos_do_not_fit():
    small = np.stack([thumbnail(scene(o)) for o in range(60)])
    fit = registered_correlation(small, np.roll(small, 1, axis=0), np.zeros(60))
    assert fit.max() < .8 and not is_near_duplicate(np.full(60, 20), fit).any()


@pytest.mark.parametrize('colour', ['black', 'white', 'grey'])
def test_photos_of_one_colour_are_not_alike(colour):
    flat = thumbnail(Image.new('RGB', (90, 60), colour))[None]
    noisy = np.clip(flat.astype(int) + np.random.default_rng(0).integers(-2, 3, flat.shape), 0, 255).astype(np.uint8)
    assert not is_near_duplicate(np.zeros(1),
                                 registered_correlation(flat, noisy,
                                                        np.zeros(
                                                            1))).any() and np.isfinite(registered_correlation(flat,
        flat, np.zeros(1))).all()
