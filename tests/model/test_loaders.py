"The network sees the whole gun, never mirrored, always augmented in training and never elsewhere."
import pickle
import shutil
import tracemalloc
from unicodedata import normalize

import pytest
import numpy as np
import torch
from conftest import sized
from fastai.data.core import DataLoaders
from fastai.torch_core import set_seed
from PIL import Image

from basegun_fastai.data.cache import open_cache
from basegun_fastai.data.contents import known_contents
from basegun_fastai.data.folders import list_photos
from basegun_fastai.model.loaders import dataloaders, evaluation_loaders, items_of


def test_validation_has_no_randomness(data):
    dls = dataloaders(data, sized(48, 54), batch_size=8, workers=0)
    first, second = [torch.cat([x for x, _ in dls.valid]) for _ in range(2)]
    assert isinstance(dls, DataLoaders) and torch.equal(first, second)


def test_validation_shows_the_pixels_of_the_decoder(data):
    from basegun_fastai.data.photo import pixels
    dls = dataloaders(data, sized(48, 54, mean=(0, 0, 0), std=(1, 1, 1)), batch_size=8, workers=0)
    calls = torch.cat([x for x, _ in dls.valid]).permute(0, 2, 3, 1) * 255
    expected = np.stack([pixels(dls.photos.path(o), 48) for o in dls.valid.items])
    assert np.abs(np.asarray(calls) - expected).max() < .01


def test_the_split_and_the_classes_are_the_folders(data):
    dls, table = dataloaders(data, sized(32, 36), batch_size=8, workers=0), list_photos(data)
    for split, dl in (('train', dls.train), ('val', dls.valid)):
        mine = table[table.split == split]
        assert [dls.photos.path(o) for o in dl.items] == [data/o for o in mine.file]
        assert [dls.vocab[y] for _, y in dl.dataset] == mine.label.tolist()


def test_every_train_photo_is_drawn_once_an_epoch(data):
    dls = dataloaders(data, sized(32, 36), batch_size=16, workers=0)
    assert sum(len(y) for _, y in dls.train) == 48


def test_workers_give_the_same_photos(data):
    calls = []
    for workers in (0, 2):
        set_seed(3)
        dls = dataloaders(data, sized(32, 36), batch_size=16, workers=workers)
        set_seed(4)
        for dl in dls.loaders: dl.rng.seed(5)
        calls.append(torch.cat([torch.as_tensor(x) for x, _ in dls.valid]))
    assert torch.equal(*calls)


def test_judging_keeps_the_order_of_the_table(data):
    table = list_photos(data).query('split == "val"').sample(frac=1, random_state=0)
    dls = evaluation_loaders(data, sized(32, 36, mean=(0, 0, 0), std=(1, 1, 1)), table, sorted(table.label.unique()),
                             7, 0)
    labels = torch.cat([y for _, y in dls.valid])
    assert [dls.vocab[o] for o in labels] == table.label.tolist()


def test_items_are_the_rows_of_the_table_and_the_files_of_other_photos(data):
    table = list_photos(data)
    train, val = (table[table.split == o] for o in ('train', 'val'))
    dls = evaluation_loaders(data, sized(32, 36), val, sorted(val.label.unique()), 7, 0)
    files = [*val.file[::-1], *train.file[:3]]
    items = items_of(dls, files)
    assert items == [*val.index[::-1], *(data/o for o in train.file[:3])]
    squares = torch.cat([x for x, in dls.test_dl(items)])
    assert torch.equal(squares, torch.cat([x for x, in dls.test_dl([data/o for o in files])]))


def test_saved_loaders_hold_no_photo_and_name_a_class_after_its_folder(data, tmp_path):
    mac = normalize('NFD', 'fusil à pompe')
    for split in ('train', 'val'):
        for label, source in ((mac, 'revolver'), ('b', 'pistolet')):
            shutil.copytree(next((data/split).glob(f'{source}*')), tmp_path/split/label)
    dls, table = dataloaders(tmp_path, sized(32, 36), batch_size=8, workers=0), list_photos(tmp_path)
    saved = pickle.dumps(dls.new_empty())
    assert not [o for o in table.file if o.rsplit('/', 1)[1].encode() in saved] and str(tmp_path).encode() not in saved
    dl = pickle.loads(saved).test_dl([tmp_path/o for o in table.file], with_labels=True)
    assert [dls.vocab[o] for _, y in dl for o in y] == table.label.tolist()


@pytest.mark.slow
def test_what_is_known_of_a_photo_takes_less_than_a_kilobyte(tmp_path):
    random, sizes = np.random.default_rng(0), {}
    for n in (500, 2500):
        folder = tmp_path/f'{n}'
        for split in ('train', 'val'):
            for label in 'ab': (folder/split/label).mkdir(parents=True)
        for i in range(n): Image.fromarray(random.integers(0, 256, (16, 16, 3), np.uint8)).save(
            folder/('val' if i % 10 < 2 else 'train')/'ab'[i % 2]/f'photo {i:06d}.png', compress_level=0)
        tracemalloc.start()
        table = known_contents(folder, list_photos(folder))
        squares = open_cache(folder, [(36, table[table.split == 'train']), (32, table[table.split == 'val'])],
                             tmp_path/'cache')
        dls = dataloaders(folder, sized(32, 36), photos=table, batch_size=64, workers=2, photo_cache=squares)
        for _ in dls.train: pass
        sizes[n] = tracemalloc.get_traced_memory()[1]
        tracemalloc.stop()
        dls.train.close()
    assert (sizes[2500] - sizes[500]) / 2000 < 1024
