"The page of a run shows photos as they reach the network, so that a fault on the way there is seen."
import random
from base64 import b64decode
from io import BytesIO

import numpy as np
import pytest
import torch
from bs4 import BeautifulSoup
from fastai.vision.augment import Flip, setup_aug_tfms
from PIL import Image, ImageDraw

from basegun_fastai.data.folders import list_photos
from basegun_fastai.data.photo import pixels
from basegun_fastai.model.archs import architecture
from basegun_fastai.model.augment import augmentation
from basegun_fastai.model.loaders import evaluation_loaders
from basegun_fastai.trust.input_sheet import MAX_TRAIN, MAX_VAL, N_VIEWS, input_sheet, jpeg_base64
from basegun_fastai.trust.judge import Judge
from basegun_fastai.trust.predictions import Predictions, read_predictions

pytestmark = pytest.mark.slow
CLASSES = ['fusil', 'revolver']


def decoded(picture):
    return np.asarray(Image.open(BytesIO(b64decode(picture))).convert('RGB')).astype(int)


def asked(data, size=96):
    "A judge without a network, the predictions of nobody, and the train photos."
    table = list_photos(data)
    train, val = (table[table.split == o] for o in ('train', 'val'))
    arch, labels = architecture('test_efficientnet', size), np.array([CLASSES.index(o) for o in val.label])
    judge = Judge(None, arch, evaluation_loaders(data, arch, val, CLASSES, workers=0, device='cpu'),
                  val.file.tolist(), data)
    return judge, Predictions(val.file.tolist(), CLASSES, labels, np.zeros((len(labels), 2))), train


@pytest.fixture
def marked(tmp_path):
    "Wide photos whose left end is red, and whose right end is blue; every second one was taken on its side."
    photo = Image.new('RGB', (600, 240), 'white')
    for left, colour in ((0, 'red'), (560, 'blue')):
        ImageDraw.Draw(photo).rectangle((left, 0, left + 39, 240), fill=colour)
    exif = Image.Exif()
    exif[0x112] = 6
    for split, label, i in [(s, c, i) for s in ('train', 'val') for c in CLASSES for i in range(10)]:
        file = tmp_path/'data'/split/label/f'{i}.jpg'
        file.parent.mkdir(parents=True, exist_ok=True)
        if i % 2: photo.transpose(Image.Transpose.ROTATE_90).save(file, exif=exif, quality=95)
        else: photo.save(file, quality=95)
    return tmp_path/'data'


def ends(picture):
    "The middle of the red end and of the blue end, as shares of width and height, and the pixels of each."
    levels = decoded(picture)
    for channel, other in ((0, 2), (2, 0)):
        rows, columns = np.nonzero(levels[..., channel] - levels[..., other] > 100)
        yield columns.mean() / len(levels), rows.mean() / len(levels), len(rows)


@pytest.mark.parametrize('p_affine', [1., .5, 0.])
def test_the_photos_are_whole_upright_and_never_mirrored(marked, p_affine):
    sheet = input_sheet(*asked(marked), p_affine)
    assert len(sheet.train) == MAX_TRAIN and len(sheet.val) == MAX_VAL
    for o in (sheet.train, sheet.val): assert {sum(p.label == c for p in o) for c in CLASSES} == {len(o) // 2}
    for o in sheet.train: assert len({*o.pictures}) == len(o.pictures) == N_VIEWS
    for o in (*sheet.train, *sheet.val):
        for picture in o.pictures:
            (red, y, n), (blue, _, m) = ends(picture)
            assert red < .25 and blue > .75 and .3 < y < .7 and min(n, m) > 100, o.file


def test_a_fault_of_the_augmentation_is_seen(marked, monkeypatch):
    def mirrored(*how): return setup_aug_tfms([*augmentation(*how), Flip(p=1.)])
    monkeypatch.setattr('basegun_fastai.model.loaders.augmentation', mirrored)
    for o in input_sheet(*asked(marked), 1.).train:
        for picture in o.pictures:
            (red, _, _), (blue, _, _) = ends(picture)
            assert red > .75 and blue < .25


def test_val_photos_are_those_that_are_judged(marked):
    for o in input_sheet(*asked(marked, 32), 1.).val:
        assert o.pictures == [jpeg_base64(Image.fromarray(pixels(marked/o.file, 32)))], o.file


def test_it_is_the_same_each_time_and_draws_no_random_number_of_the_training(marked):
    arguments, sheets = asked(marked), []
    for seed in (1, 2):
        random.seed(seed)
        np.random.seed(seed)
        torch.manual_seed(seed)
        before = random.getstate(), str(np.random.get_state()), torch.get_rng_state().tolist()
        sheets.append(input_sheet(*arguments, 1.))
        assert before == (random.getstate(), str(np.random.get_state()), torch.get_rng_state().tolist())
    assert sheets[0] == sheets[1]


def test_the_page_of_a_training_has_it_as_the_command_makes_it_later(run, data):
    page = BeautifulSoup(run.report.read_text(), 'html.parser')
    table = list_photos(data)
    judge = Judge.of_run(run, data, table[table.split == 'val'], 0, 'cpu')
    preds, train = read_predictions(run, run.config.classes), table[table.split == 'train']
    sheet = input_sheet(judge, preds, train, run.config.resolved.p_affine)
    rows = {o['data-input']: o.find_all('img') for o in page.find_all(attrs={'data-input': True})}
    assert [*rows] == [o.file for o in (*sheet.train, *sheet.val)] and len(rows) == MAX_TRAIN + MAX_VAL
    for o in (*sheet.train, *sheet.val):
        original, *inputs = rows[o.file]
        assert original['alt'] == o.file and o.label in rows[o.file][0].find_next('figcaption').get_text()
        assert [i['src'].removeprefix('data:image/jpeg;base64,') for i in inputs] == o.pictures
    words = page.find(id='inputs').find_next_siblings(limit=4)
    assert '32 × 32 pixels' in words[0].get_text() and 'No photo is mirrored' in words[2].get_text()
    assert input_sheet(judge, preds, train[:0], 1.).train == []
