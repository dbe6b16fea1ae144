"The picture inside bars is found to the pixel, parts are found at every place, and records stay in order."
from io import BytesIO

import numpy as np
import pandas as pd
import pytest
from PIL import Image, ImageDraw
from test_phash import scene

from basegun_fastai.data import near_duplicates
from basegun_fastai.data.phash import thumbnail
from basegun_fastai.data.contents import examine
from basegun_fastai.data.crops import PART_FIT, RECORD, CropRecords, common_part, crop_candidates, crop_record
from basegun_fastai.data.crops import part_correlation
from basegun_fastai.data.crops import trim
from basegun_fastai.data.crops import trim_box
from basegun_fastai.data.demo import GUNS, draw_photo
from basegun_fastai.data.near_duplicates import near_duplicate_pairs
from basegun_fastai.data.photo import read_photo


def grainy(seed, size=(320, 240)):
    "A unique picture, with no row or column of one colour."
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


def on_plain_ground(box, size=(320, 240), ground=(200, 190, 180)):
    "A grainy ellipse, in a box of about one colour."
    photo = Image.new('RGB', size, ground)
    mask = Image.new('L', size)
    ImageDraw.Draw(mask).ellipse(box, 255)
    photo.paste(grainy(12, size), mask=mask)
    return photo


@pytest.mark.parametrize('bars', [(0, 150, 0, 170), (0, 0, 0, 30), (30, 0, 0, 0)])
def test_bars_go_and_the_plain_ground_inside_of_them_stays(bars):
    left, top, _, _ = bars
    photo = framed(on_plain_ground((40, 60, 280, 200)), *bars)
    assert trim_box(photo) == (left, top, left + 320, top + 240)


def test_bars_go_although_next_to_nothing_would_remain_without_those_inside_of_them():
    within = framed(grainy(3, (320, 32)), 0, 104, 0, 104, 'white')
    assert trim_box(framed(within, 30, 0, 30, 0)) == (30, 0, 350, 240)


def test_a_bar_ends_where_the_photo_begins_although_its_words_reach_down_to_there():
    photo = framed(grainy(1), 0, 5, 0, 0)
    photo.paste('white', (100, 1, 180, 5))
    assert trim_box(photo) == (0, 5, 320, 245)


def test_a_plain_ground_goes_where_a_caption_of_its_colour_may_be():
    box = 40, 60, 281, 201
    photo = on_plain_ground((40, 60, 280, 200), (320, 280))
    ImageDraw.Draw(photo).text((30, 248), 'for sale, as new', 'black', font_size=18)
    assert np.abs(np.subtract([trim_box(o) for o in (photo, photo.crop((0, 0, 320, 240)))], box)).max() <= 12


@pytest.mark.parametrize('photo', [grainy(3), Image.new('RGB', (60, 40), 'white'), Image.new('RGB', (1, 1)),
                                   framed(grainy(3, (40, 30)), 200, 0, 200, 0)],
                                   ids=['none', 'one colour', 'a pixel', 'next to nothing'])
def test_nothing_is_a_bar_where_nothing_would_remain(photo):
    assert trim_box(photo) == (0, 0, *photo.size) and trim(photo, b'') is None


def covered(photo, side, percent, ground='black', ink=None):
    "Cover a part of a photo with a bar, plain or with words."
    out, (width, height) = photo.copy(), photo.size
    x, y = width * percent // 100, height * percent // 100
    left, top, right, bottom = box = dict(left=(0, 0, x, height), top=(0, 0, width, y),
        right=(width - x, 0, width, height), bottom=(0, height - y, width, height))[side]
    out.paste(ground, box)
    if ink: ImageDraw.Draw(out).text((width / 2, (top + bottom) / 2), 'seen on Monday, 12:41', ink, anchor='mm',
                                     font_size=.55 * y)
    return out


def as_jpeg(photo):
    file = BytesIO()
    photo.save(file, 'JPEG', quality=80)
    return file.getvalue()


@pytest.mark.parametrize('percent, ground, ink', [(7, 'black', 'yellow'), (7, 'grey', 'black'), (12, 'white', 'black'),
                                                  (5, 'black', 'white')])
@pytest.mark.parametrize('side', ['top', 'bottom'])
def test_a_bar_with_words_ends_where_the_photo_begins_although_jpeg_shimmers_around_them(side, percent, ground, ink):
    content = as_jpeg(covered(grainy(8), side, percent, ground, ink))
    _, box = trim(read_photo(content, 128), content)
    wanted = (0, percent / 100, 1, 1) if side == 'top' else (0, 0, 1, 1 - percent / 100)
    assert np.abs(np.subtract(box, wanted)).max() < .015, box


def test_where_bars_lie_over_two_photos_what_both_show_is_compared():
    photo = grainy(9, (200, 100))
    one, other = (photo.crop((0, 20, 200, 100)), (0, .2, 1, 1)), (photo.crop((50, 0, 200, 90)), (.25, 0, 1, .9))
    assert [o.tobytes() for o in common_part(one, other)] == [photo.crop((50, 20, 200, 90)).tobytes()] * 2
    whole, part = common_part((photo, (0, 0, 1, 1)), one)
    assert whole.tobytes() == part.tobytes() == one[0].tobytes()
    for top, most in ((20, 1), (30, .5), (60, .5)):  # percent of the height; both show the part above 40 %
        little = common_part((photo.crop((0, 0, 200, 40)), (0, 0, 1, .4)),
                             (photo.crop((0, top, 200, 100)), (0, top / 100, 1, 1)))
        assert most - .5 <= part_correlation(*([o] for o in little), np.zeros(1, int))[0] <= most


def test_the_colour_of_a_bar_does_not_rule_a_pair_out():
    photo = Image.blend(grainy(4), Image.new('RGB', (320, 240), 'red'), .6)
    content = as_jpeg(covered(photo, 'bottom', 12, 'lime'))
    under = read_photo(content, 128)
    records = [np.array([crop_record(o, thumbnail(o), trimmed)])
               for o, trimmed in ((photo, None), (under, trim(under, content)))]
    for one, other in (records, records[::-1]):
        kinds = [(first, second) for first, second, rows in crop_candidates(one, other) if len(rows)]
        assert (0, 0) in kinds


def closest(a, b):
    "The closest part, if one is close enough to be compared."
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
    wanted = np.frombuffer(random.bytes(10_000 * RECORD.itemsize), RECORD)  # more than fit in its memory
    with CropRecords() as records:
        for o in wanted: records.add(o.tobytes())
        records.add(b'')
        rows = random.permutation(10_001)
        actual = records.read(rows)
        assert len(records.read(rows[:0])) == 0
    assert actual.tobytes() == np.append(wanted, np.zeros(1, RECORD))[rows].tobytes()


def paired(folder, queries, among):
    "The pairs of files of which one is in `queries` and one in `among`."
    names = [sorted(o.name for o in folder.glob(pattern)) for pattern in (queries, among)]
    with CropRecords() as records:
        table = examine(folder, pd.DataFrame(dict(file=names[0] + names[1])), records=records)
        parts = table[:len(names[0])], table[len(names[0]):]
        return {(table.file[a], table.file[b]) for a, b, _ in near_duplicate_pairs(folder, *parts, records=records)}


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


BARS = [('bottom', 4), ('bottom', 7), ('bottom', 12), ('top', 4, 'white'), ('top', 7, 'grey'), ('top', 12),
        ('top', 5, 'black', 'white'), ('bottom', 7, 'black', 'yellow'), ('bottom', 12, 'white', 'black'),
        ('left', 7), ('right', 12, 'grey')]


def test_photos_are_found_although_a_bar_lies_over_them(tmp_path):
    photos = [*(draw_photo(o, np.random.default_rng(5), (320, 240)) for o in list(GUNS)[:2]),
              *(grainy(o) for o in range(4))]
    for i, photo in enumerate(photos):
        photo.save(tmp_path/f'{i}.png')
        for j, bar in enumerate(BARS): (tmp_path/f'{i} {j}.jpg').write_bytes(as_jpeg(covered(photo, *bar)))
    actual = paired(tmp_path, '*.jpg', '*.png')
    right = {(a, b) for a, b in actual if a[0] == b[0]}
    assert actual == right and len(right) >= .9 * len(photos) * len(BARS)


def test_screenshots_and_captions_of_guns_on_plain_ground_are_found(tmp_path):
    for i, gun in enumerate(GUNS):
        photo = draw_photo(gun, np.random.default_rng(i + 6))
        photo.save(tmp_path/f'{i}.png')
        small = photo.resize((390, round(photo.height * 390 / photo.width)))
        (tmp_path/f'{i} a.jpg').write_bytes(as_jpeg(framed(small, 0, 250, 0, 250)))
        (tmp_path/f'{i} b.jpg').write_bytes(as_jpeg(framed(photo, 0, 0, 0, photo.height // 7)))
    actual = paired(tmp_path, '*.jpg', '*.png')
    assert actual == {(f'{i} {o}.jpg', f'{i}.png') for i in range(len(GUNS)) for o in 'ab'}


def test_photos_are_found_although_each_has_a_bar_of_its_own(tmp_path):
    for i in range(4):
        (tmp_path/f'{i} a.jpg').write_bytes(as_jpeg(covered(grainy(i), 'top', 12)))
        (tmp_path/f'{i} b.jpg').write_bytes(as_jpeg(covered(grainy(i), 'bottom', 7, 'white', 'black')))
    assert paired(tmp_path, '* a.jpg', '* b.jpg') == {(f'{i} a.jpg', f'{i} b.jpg') for i in range(4)}


def test_it_is_said_where_there_are_too_many_photos_to_look_for_crops(folder, monkeypatch, capsys):
    monkeypatch.setattr(near_duplicates, 'MAX_CROP_PAIRS', 15)
    assert pairs(folder) == set() and 'too many pairs of photos' in capsys.readouterr().err
