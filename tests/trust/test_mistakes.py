"Mistakes: the photos that are shown, the look of the sheets, the suspect labels."
import os
import sys
import warnings
from io import BytesIO

import numpy as np
import pytest
from conftest import KINDS, prediction_table
from PIL import Image

from basegun_fastai.trust import mistakes
from basegun_fastai.trust.mistakes import confused_pairs, contact_sheet, suspect_labels, write_sheets
from basegun_fastai.trust.predictions import Predictions


def judged(labels, probabilities, classes):
    return Predictions([f'{i:05d}.jpg' for i in range(len(labels))], list(classes), labels, np.log(probabilities))


@pytest.fixture
def photos(tmp_path):
    "Wide, tall, square and tiny photos, each of one colour."
    out = tmp_path/'photos'
    out.mkdir()
    for i in range(61):
        size = [(400, 100), (100, 400), (300, 300), (20, 10)][i % 4]
        Image.new('RGB', size, [(200, 30, 30), (30, 160, 30), (30, 30, 200),
                                (160, 100, 0)][i % 4]).save(out/f'{i:02d}.png')
    return out


def confused(n, **changed):
    return prediction_table([(changed.get(f'n{i}', f'{i:02d}.png'), 'autre_pistolet', 'revolver', .99 - .005 * i)
                  for i in range(n)])


def opened(content):
    image = Image.open(BytesIO(content))
    image.load()
    assert image.format == 'JPEG'
    return image


def of_colour(image, colour):
    "Box and count of the pixels near a colour."
    neighbours = (np.abs(np.asarray(image.convert('RGB')).astype(int) - colour) < 40).all(2)
    y, x = np.nonzero(neighbours)
    return (x.min(), y.min(), x.max() + 1, y.max() + 1) if len(x) else None, int(neighbours.sum())


def planted(seed, absent=()):
    random, k, n = np.random.default_rng(seed), 10, 2000
    true = random.choice([o for o in range(k) if o not in absent], n)
    logits = random.normal(size=(n, k))
    logits[np.arange(n), true] += 5
    probabilities = np.exp(logits) / np.exp(logits).sum(1, keepdims=True)
    labels, flipped = true.copy(), random.choice(n, n // 20, replace=False)
    for i in flipped: labels[i] = random.choice([o for o in range(k) if o not in (*absent, true[i])])
    return judged(labels, probabilities.astype(np.float32), [f'c{o}' for o in range(k)]), flipped, true


def test_pairs_go_by_number_and_photos_by_confidence():
    preds = prediction_table([('1', 'fusil', 'revolver', .6), ('2', 'revolver', 'fusil', .8),
                              ('6', 'fusil', 'revolver', .9), ('4', 'fusil', 'fusil', .95),
                              ('5', 'autre_pistolet', 'fusil', .7), ('3', 'fusil', 'revolver', .9)])
    pairs = confused_pairs(preds)
    assert list(pairs) == [('fusil', 'revolver'), ('autre_pistolet', 'fusil'), ('revolver', 'fusil')]
    assert [preds.files[i] for i in pairs['fusil', 'revolver']] == ['3', '6', '1']
    assert confused_pairs(preds.part([3])) == {} == confused_pairs(preds.part([]))


def test_classes_may_be_named_like_columns():
    classes = ['confidence', 'file', 'label', 'predicted']
    preds = prediction_table([('1', 'file', 'label', .6), ('2', 'predicted', 'predicted', .9)], classes)
    assert confused_pairs(preds) == {('file', 'label'): [0]}
    assert suspect_labels(preds).columns.tolist() == ['file', 'label', 'suggested', 'quality', 'confidence']


def test_a_sheet_shows_whole_photos_in_order(photos):
    image = opened(contact_sheet(photos, confused(4), 'four'))
    assert image.width == 4 * 140 + 12
    boxes = [of_colour(image, o)[0] for o in ((200, 30, 30), (30, 160, 30), (30, 30, 200), (160, 100, 0))]
    assert [o[0] for o in boxes] == sorted(o[0] for o in boxes)
    for (left, top, right, bottom), shape in zip(boxes, [(128, 32), (32, 128), (128, 128), (128, 64)], strict=True):
        assert abs(right - left - shape[0]) <= 2 and abs(bottom - top - shape[1]) <= 2
    assert len({(a[1] + a[3]) // 2 // 2 for a in boxes}) == 1  # on one line
    assert np.asarray(image)[-5:].min() > 240  # white ground


def test_evidence_stands_under_its_photo(photos):
    pink = {f'{i:02d}.png': Image.new('RGB', (128, 128), (240, 20, 200)) for i in (0, 2)}
    plain, image = (opened(contact_sheet(photos, confused(4), 'four', overlays=o)) for o in (None, pink))
    assert image.height == plain.height + 128 + 12 + 32 and of_colour(plain, (240, 20, 200))[0] is None
    (left, top, right, bottom), n = of_colour(image, (240, 20, 200))
    assert abs(bottom - top - 128) <= 2 and abs(right - left - (2 * 140 + 128)) <= 2 and n < 2.1 * 128 * 128
    assert top >= of_colour(image, (30, 30, 200))[0][3] - 2  # under the square photo


def test_what_is_written_under_a_photo(photos, monkeypatch):
    written = []
    draw = mistakes.ImageDraw.ImageDraw
    real = draw.text
    monkeypatch.setattr(draw, 'text', lambda self, at, text, *rest, **k: (written.append((at, text)),
        real(self, at, text, *rest, **k))[1])
    names = dict(n1='é' * 120 + '.png', n2='\u202ea\n\udce9.png', n3='枪.png', n4='sub/e\u0301t\u00e9.png')
    for name in list(names.values())[:3]: Image.new('RGB', (9, 9)).save(photos/name, 'PNG')
    contact_sheet(photos, confused(5, **names), 'autre_pistolet, predicted as revolver: 5 photos')
    texts = [o for _, o in written]
    assert texts[:4] == ['autre_pistolet, predicted as revolver: 5 photos', '0.99', 'true class 0.01', '00.png']
    assert {r'\u202ea\n\udce9.png', r'\u67aa.png', 'été.png'} < set(texts)
    long, = [o for o in texts if '…' in o]
    assert long.startswith('ééé') and long.endswith('é.png') and 8 < len(long) < 40
    assert 'No such file or' in ' '.join(texts)
    assert not any(o.startswith('and ') for o in texts)


def test_a_sheet_of_61_photos_says_that_one_is_left_out(photos, monkeypatch):
    written = []
    real = mistakes.ImageDraw.ImageDraw.text
    monkeypatch.setattr(mistakes.ImageDraw.ImageDraw,
                        'text', lambda self, *a, **k: (written.append(a[1]), real(self, *a, **k))[1])
    image = opened(contact_sheet(photos, confused(61), 'many'))
    assert written[-1].startswith('and 1 more') and '59.png' in written and '60.png' not in written
    assert image.width == 8 * 140 + 12
    sixty = opened(contact_sheet(photos, confused(60), 'many'))
    assert 'more' not in written[-1] and sixty.height == image.height - 32


def test_nothing_on_a_sheet_lies_over_anything_else(photos, monkeypatch):
    boxes = []
    real, paste = mistakes.ImageDraw.ImageDraw.text, Image.Image.paste

    def text(self, at, text, fill, font, anchor='la'):
        boxes.append(self.textbbox(at, text, font, anchor))
        real(self, at, text, fill, font, anchor=anchor)

    def pasted(self, picture, at):
        boxes.append((*at, at[0] + picture.width, at[1] + picture.height))
        paste(self, picture, at)
    monkeypatch.setattr(mistakes.ImageDraw.ImageDraw, 'text', text)
    monkeypatch.setattr(Image.Image, 'paste', pasted)
    part = confused(61, n7='Éàgjpqy_' * 30 + '.png', n8='W' * 200, n9='/'.join('ab'))
    part.logits[3] = [-900, -900, 0]  # with the highest confidence
    answers = mistakes.answers
    monkeypatch.setattr(mistakes, 'answers', lambda *a: [dict(reason='Ég ' * 400) if i == 10 else o
                                                         for i, o in enumerate(answers(*a))])
    image = opened(contact_sheet(photos, part, f"{'W' * 250}, predicted as {'une arme très longue ' * 12}: 61 photos"))
    assert len(boxes) > 60 * 4
    for i, (left, top, right, bottom) in enumerate(boxes):
        assert 0 <= left and 0 <= top and right <= image.width and bottom <= image.height
        for other in boxes[:i]:
            assert right <= other[0] or other[2] <= left or bottom <= other[1] or other[3] <= top, (boxes[i], other)


def test_a_sheet_of_no_photo_or_one(photos):
    assert opened(contact_sheet(photos, confused(0), 'none')).height < 80
    one = opened(contact_sheet(photos, confused(1), 'one'))
    assert of_colour(one, (200, 30, 30))[1] > 3000


def test_photos_that_cannot_be_read_keep_their_place(photos):
    (photos/'01.png').write_bytes(b'\x89PNG\r\n\x1a\nbroken')
    (photos/'02.png').unlink()
    os.mkfifo(photos/'02.png')
    image = opened(contact_sheet(photos, confused(4), 'four'))
    assert of_colour(image, (30, 160, 30))[1] == 0 and of_colour(image, (160, 100, 0))[1] > 3000
    assert np.asarray(image.crop((152, 50, 280, 170))).min() < 200  # a frame and its reason


def test_a_sheet_for_each_pair(photos, tmp_path):
    rows = prediction_table([('00.png', 'fusil', 'revolver', .6), ('01.png', 'revolver', 'fusil', .8),
                  ('02.png', 'fusil', 'revolver', .9), ('03.png', 'fusil', 'fusil', 1)])
    before = {o: o.stat().st_mtime_ns for o in photos.iterdir()}
    out = tmp_path/'out'
    (out/'confused').mkdir(parents=True)
    for name in ('revolver as autre_pistolet.jpg', '.a as b.jpg.7.tmp', 'notes.txt'): (out/'confused'/name).touch()
    written = write_sheets(photos, rows, out)
    assert [o.name for o in written] == ['fusil as revolver.jpg', 'revolver as fusil.jpg']
    assert {o.name for o in (out/'confused').iterdir()} == {'fusil as revolver.jpg', 'revolver as fusil.jpg',
                                                            'notes.txt'}
    first = opened(written[0].read_bytes())
    # the most confident mistake comes first
    assert of_colour(first, (30, 30, 200))[0][0] < of_colour(first, (200, 30, 30))[0][0]
    assert {o: o.stat().st_mtime_ns for o in photos.iterdir()} == before


def test_nothing_is_made_where_nothing_is_confused(photos, tmp_path):
    out = tmp_path/'out'
    out.mkdir()
    assert write_sheets(photos, prediction_table([('00.png', 'fusil', 'fusil', .6)]),
                        out) == [] and not list(out.iterdir())


def test_any_class_name_makes_a_file_of_its_own(photos, tmp_path):
    pairs = [('a', 'b as c'), ('a as b', 'c'), ('é' * 127, '枪' * 85), ('é' * 127, '枪' * 84 + 'x'), ('-rf', '.hidden'),
             ('x\ny', 'z\udce9'), ('Fusil', 'x'), ('fusil', 'x'), ('\n' * 255, '\udce9' * 255)]
    classes = list(dict.fromkeys(sum(pairs, ())))
    written = write_sheets(photos, prediction_table([('00.png', *o, .6) for o in pairs], classes), tmp_path)
    assert len({o.name.casefold() for o in written}) == len(pairs) == len(list((tmp_path/'confused').iterdir()))
    assert all(len(os.fsencode(o.name)) <= 230 and o.name.isprintable() for o in written)
    assert {'-rf as .hidden.jpg', r'x\ny as z\udce9.jpg', 'a as b as c.jpg'} < {o.name for o in written}
    for o in written: opened(o.read_bytes())


@pytest.mark.parametrize('absent', [(), (0, 9), (4,)])
def test_planted_noise_is_found(absent, capfd):
    preds, flipped, true = planted(len(absent), absent)
    with warnings.catch_warnings():
        warnings.simplefilter('error')
        actual = suspect_labels(preds.part(np.random.default_rng(0).permutation(len(preds.files))))
    assert capfd.readouterr() == ('', '')
    indices = actual.file.str[:5].astype(int)
    hits = set(indices) & set(flipped)
    assert len(hits) >= .8 * len(flipped) and len(hits) >= .9 * len(actual)
    assert actual.quality.is_monotonic_increasing and actual.quality.iloc[0] < .01
    assert np.mean([o == f'c{true[i]}' for i, o in zip(indices, actual.suggested, strict=True)]) > .9
    assert (np.array(preds.classes)[preds.labels[indices]] == actual.label).all()
    assert (preds.confidences[indices] == actual.confidence).all()


def test_a_class_of_one_wrong_photo_is_found():
    probabilities = np.full((41, 4), .01)
    probabilities[:20, 0] = probabilities[20:, 1] = .97
    actual = suspect_labels(judged(np.array([0] * 20 + [1] * 20 + [2]), probabilities, 'abcd'))
    assert actual.values.tolist() == [['00040.jpg', 'c', 'b', pytest.approx(.01), pytest.approx(.97)]]


@pytest.mark.parametrize(['labels', 'is_refused'],
                         [([], True), ([1], True), ([1, 1, 1], True), ([0, 0], True), ([0, 1, 2, 2], False)])
def test_few_photos_or_all_right(labels, is_refused, capsys):
    actual = suspect_labels(judged(np.array(labels, int), np.eye(3)[labels].reshape(-1, 3) * .9 + 1 / 30, KINDS))
    assert len(actual) == 0 and actual.columns.tolist() == ['file', 'label', 'suggested', 'quality', 'confidence']
    assert actual.to_csv(index=False) == 'file,label,suggested,quality,confidence\n'
    assert ('two classes' in capsys.readouterr().err) == is_refused


def test_probabilities_have_to_be_numbers():
    preds = judged(np.array([0, 1]), np.eye(3)[:2] * .9 + 1 / 30, KINDS)
    preds.logits[0, 1] = np.nan
    with pytest.raises(ValueError, match='not numbers'): suspect_labels(preds)


def test_cleanlab_is_not_paid_for_by_the_import():
    import subprocess
    code = ('import sys, basegun_fastai.trust.mistakes; print({"cleanlab", "sklearn", "torch", "fastai"} & '
            'set(sys.modules))')
    assert subprocess.run([sys.executable, '-c', code], capture_output=True, text=True, check=True).stdout == 'set()\n'
