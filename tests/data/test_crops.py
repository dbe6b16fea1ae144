"What is inside of bars is found to the pixel, parts are found wherever they were cut, and records stay in order."
import numpy as np
import pandas as pd
import pytest
from PIL import Image, ImageDraw
from test_phash import scene

from basegun_fastai.data import near_duplicates
from basegun_fastai.data.phash import thumbnail
from basegun_fastai.data.contents import examine
from basegun_fastai.data.crops import PART_FIT, RECORD, CropRecords, crop_candidates, crop_record, part_correlation
from basegun_fastai.data.crops import trim
from basegun_fastai.data.crops import trim_box
from basegun_fastai.data.near_duplicates import near_duplicate_pairs


def grainy(seed, size=(320, 240)):
    "A picture like no other, with no row or column of one colour."
    random, photo = np.random.default_rng(seed), np.asarray(scene(seed, size))
    return Image.fromarray((photo * .8 + random.integers(0, 50, photo.shape)).astype(np.uint8))


def framed(photo, left, top, right, bottom, colour='black'):
    out = Image.new('RGB', (photo.width + left + right, photo.height + top + bottom), colour)
    out.paste(photo, (left, top))
    return out


@pytest.mark.parametrize('bars', [(0, 0, 0, 40), (0, 30, 0, 0), (25, 0, 25, 0), (1, 2, 3, 4), (0, 400, 0, 400)])
@pytest.mark.parametrize('colour', ['black', 'white', (120, 30, 200)])
def test_what_is_inside_of_bars_is_found_to_the_pixel(bars, colour):
    photo = framed(grainy(1), *bars, colour)
    assert trim_box(photo) == (bars[0], bars[1], bars[0] + 320, bars[1] + 240)


def test_bars_in_bars_and_words_in_bars_are_bars():
    photo = framed(framed(grainy(2), 0, 20, 0, 20), 10, 0, 10, 40, 'white')
    ImageDraw.Draw(photo).text((30, 288), 'for sale, as new', 'black', font_size=18)
    assert trim_box(photo) == (10, 20, 330, 260)


@pytest.mark.parametrize('photo', [grainy(3), Image.new('RGB', (60, 40), 'white'), Image.new('RGB', (1, 1)),
                                   framed(grainy(3, (40, 30)), 200, 0, 200, 0)],
                                   ids=['none', 'one colour', 'a pixel', 'next to nothing'])
def test_nothing_is_a_bar_where_nothing_would_remain(photo):
    assert trim_box(photo) == (0, 0, *photo.size) and trim(photo, b'') is None


def closest(a, b):
    "The part that is closest, if one is close enough to be looked at."
    actual = [(rows[0, 2], first or second) for first, second, rows in crop_candidates(a, b) if len(rows)]
    return np.array([min(actual)[1]]) if actual else None


@pytest.mark.slow
@pytest.mark.parametrize('share', [.1, .15, .2])
def test_nine_in_ten_parts_are_found_wherever_they_were_cut(share):
    random, actual, wrong = np.random.default_rng(0), 0, 0
    for seed in range(50):
        photo = grainy(seed, (640, 480))
        width, height = (round(o * (1 - share)) for o in photo.size)
        x, y = random.integers(0, 640 - width + 1), random.integers(0, 480 - height + 1)
        photos = [o.resize((128, 96)) for o in (photo, photo.crop((x, y, x + width, y + height)), grainy(seed + 1))]
        whole, part, other = (np.array([crop_record(o, thumbnail(o), None)]) for o in photos)
        which = closest(whole, part) if seed % 2 else closest(part, whole)
        actual += which is not None and part_correlation(photos[:1], photos[1:2], which)[0] >= PART_FIT
        which = closest(other, part)
        wrong += which is not None and part_correlation(photos[2:], photos[1:2], which)[0] >= PART_FIT
    assert actual >= 45 and not wrong


def test_records_come_back_as_they_were_added():
    random = np.random.default_rng(0)
    wanted = np.frombuffer(random.bytes(10_000 * RECORD.itemsize), RECORD)  # more than are held in memory
    with CropRecords() as records:
        for o in wanted: records.add(o.tobytes())
        records.add(b'')
        rows = random.permutation(10_001)
        actual = records.read(rows)
        assert len(records.read(rows[:0])) == 0
    assert actual.tobytes() == np.append(wanted, np.zeros(1, RECORD))[rows].tobytes()


@pytest.fixture
def folder(tmp_path):
    photo = grainy(6)
    for name, o in dict(a=photo, b=photo.crop((0, 0, 262, 197)), d=framed(photo, 0, 150, 0, 150), e=grainy(7)).items():
        o.save(tmp_path/f'{name}.jpg')
    (tmp_path/'c.jpg').write_bytes(b'no photo')
    return tmp_path


def pairs(folder):
    with CropRecords() as records:
        table = examine(folder, pd.DataFrame(dict(file=[f'{o}.jpg' for o in 'abcde'])), records=records)
        table = table[table.reason == ''].reset_index(drop=True)
        return {''.join(sorted(table.file[[a, b]].str[0]))
                for a, b, _ in near_duplicate_pairs(folder, table, table, records=records)}


def test_pairs_are_those_of_the_files_also_beside_one_that_cannot_be_read(folder): assert pairs(folder) >= {'ab', 'ad'}


def test_it_is_said_where_there_are_too_many_photos_to_look_for_crops(folder, monkeypatch, capsys):
    monkeypatch.setattr(near_duplicates, 'MAX_CROP_PAIRS', 15)
    assert pairs(folder) == set() and 'too many to look for crops' in capsys.readouterr().err
