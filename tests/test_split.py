"A split is made once: complete, stratified, similar photos on one side, and the same for the same photos."
import csv
import os
import shutil
import subprocess
from pathlib import Path

import numpy as np
import pytest
from conftest import tree, typed
from PIL import Image

from basegun_fastai.base.processes import processes
from basegun_fastai.data.demo import GUNS, save_photo
from basegun_fastai.data.folders import layout_faults

pytestmark = pytest.mark.slow


@pytest.fixture(scope='module')
def twenty(tmp_path_factory):
    "Twenty drawn photos of each class, of all kinds of file; tests link to them, and change none."
    folder = tmp_path_factory.mktemp('twenty')
    for c, label in enumerate(GUNS):
        (folder/label).mkdir()
        for i in range(20): save_photo(label, i, np.random.default_rng([42, 0, c, i]), folder/label/f'{i:04d}')
    return folder


@pytest.fixture
def photos(twenty, tmp_path):
    "Photos that a test may change, in a folder with a space."
    shutil.copytree(twenty, tmp_path/'mes photos', copy_function=os.link)
    return tmp_path/'mes photos'


def make_split(photos, out, *options):
    "Make a split; return the rows of split.csv, after checking that they are true."
    before = tree(photos)
    result = typed('split', photos, out, *options)
    assert result.returncode == 0 and result.stdout == f'{out}\n', result.stderr
    assert {k: v for k, v in tree(photos).items()} == before
    rows = list(csv.DictReader((out/'split.csv').open()))
    there = [o for o in rows if o['split'] != 'left-out']
    for o in there:
        assert (out/o['split']/o['file']).read_bytes() == (photos/o['file']).read_bytes()
    assert len(there) == len([o for o in out.rglob('*') if o.is_file()]) - 1
    return {o['file']: o for o in rows}


def sides(rows): return {file: o['split'] for file, o in rows.items()}


def test_photos_are_read_by_no_more_processes_than_there_are_cores(photos, tmp_path, monkeypatch):
    started, plain = [], subprocess.Popen
    monkeypatch.setattr(subprocess, 'Popen', lambda *a, **k: started.append(a) or plain(*a, **k))
    make_split(photos, tmp_path/'a')
    make_split(photos, tmp_path/'b', '--seed', 1)
    assert len(started) <= processes()


def test_every_class_gives_its_share(photos, tmp_path):
    rows = make_split(photos, tmp_path/'a')
    assert layout_faults(tmp_path/'a') == []
    for label in os.listdir(photos): assert sum(o['label'] == label and o['split'] == 'val' for o in rows.values()) == 4
    assert sum(o == 'val' for o in sides(make_split(photos, tmp_path/'b', '--val', .45)).values()) == 6 * 9


def test_the_same_seed_makes_the_same_split_whatever_the_order_on_the_disk(photos, tmp_path):
    first = sides(make_split(photos, tmp_path/'a'))
    other = tmp_path/'other'
    for o in sorted(photos.rglob('*.*'), reverse=True):
        (other/o.parent.name).mkdir(parents=True, exist_ok=True)
        shutil.copy(o, other/o.parent.name/o.name)
    assert sides(make_split(other, tmp_path/'b')) == first
    assert sides(make_split(photos, tmp_path/'c', '--seed', 7)) != first


def test_names_do_not_matter(photos, tmp_path):
    first = make_split(photos, tmp_path/'a')
    for folder in photos.iterdir():
        for i, o in enumerate(sorted(folder.iterdir(), reverse=True)): o.rename(folder/f'renamed {i}{o.suffix}')
    again = make_split(photos, tmp_path/'b')
    assert {o['sha256']: o['split'] for o in again.values()} == {o['sha256']: o['split'] for o in first.values()}


def test_photos_that_look_alike_stay_together(photos, tmp_path):
    families = {}
    for folder in photos.iterdir():
        source = sorted(folder.glob('*.jpg'))[5]
        image = Image.open(source)
        image.resize((image.width // 2, image.height // 2)).save(folder/'half.jpg')
        image.transpose(Image.Transpose.FLIP_LEFT_RIGHT).save(folder/'mirrored.jpg')
        image.save(folder/'wrapped.png')
        families[folder.name] = [source.name, 'half.jpg', 'mirrored.jpg', 'wrapped.png']
    for seed in range(3):
        rows = make_split(photos, tmp_path/f'{seed}', '--seed', seed)
        for label, names in families.items():
            assert len({rows[f'{label}/{o}']['split'] for o in names}) == len({rows[f'{label}/{o}']['group']
                for o in names}) == 1
        assert {o['label'] for o in rows.values() if o['split'] == 'val'} == set(families)


def test_links_take_no_space(photos, tmp_path):
    rows = make_split(photos, tmp_path/'a', '--link')
    for file, o in rows.items():
        assert (tmp_path/'a'/o['split']/file).samefile(photos/file) and not (tmp_path/'a'/o['split']/file).is_symlink()


def refused(photos, out, words, *options):
    before = tree(photos.parent)
    result = typed('split', photos, out, *options)
    assert result.returncode == 1 and not result.stdout and 'Traceback' not in result.stderr
    assert all(o in result.stderr for o in words), result.stderr
    assert tree(photos.parent) == before


def test_what_cannot_be_split_is_told_and_nothing_is_left(photos, tmp_path):
    refused(photos, photos/'out', ['is inside the data'])
    refused(photos, photos.parent, ['exists', '--val 1.5', '--seed -1'], '--val', 1.5, '--seed', -1)
    refused(tmp_path/'nowhere', tmp_path/'out', ["no folder '"])
    (photos/'train').mkdir()
    refused(photos, tmp_path/'out', ['has train/ already'])


def test_the_same_photo_under_two_labels_is_refused(photos, tmp_path):
    shutil.copy(sorted((photos/'revolver').iterdir())[7], photos/'epaule_a_pompe'/'other.jpg')
    refused(photos, tmp_path/'out', ['under 2 labels', 'epaule_a_pompe/other.jpg'])


def test_unreadable_photos_are_refused_or_left_aside(photos, tmp_path):
    (photos/'revolver'/'bad.jpg').write_bytes(b'x')
    refused(photos, tmp_path/'out', ['bad.jpg', '--skip-unreadable'])
    result = typed('split', photos, tmp_path/'out', '--skip-unreadable')
    assert result.returncode == 0 and 'skipped because they cannot be read' in result.stderr
    assert not list((tmp_path/'out').rglob('bad.jpg'))


def test_a_class_of_one_photo_is_refused(photos, tmp_path):
    for o in sorted((photos/'revolver').iterdir())[1:]: o.unlink()
    refused(photos, tmp_path/'out', ["class 'revolver' cannot be split"])


def test_a_class_of_copies_is_refused(photos, tmp_path):
    files = sorted((photos/'revolver').glob('*.jpg'))
    image = Image.open(files[6])
    for o in (photos/'revolver').iterdir(): o.unlink()
    for i in range(8): image.save(photos/'revolver'/f'{i}.jpg', quality=60 + 4 * i)
    refused(photos, tmp_path/'out', ["class 'revolver' cannot be split"])


def test_links_to_another_disk_are_told(photos, tmp_path):
    shared = Path('/dev/shm')
    if not shared.is_dir() or shared.stat().st_dev == tmp_path.stat().st_dev: pytest.skip('no second disk')
    out = shared/f'basegun-split-{os.getpid()}'
    refused(photos, out, ['on the same disk'], '--link')
    assert not list(shared.glob('*basegun-split*'))


def test_photos_under_two_labels_are_an_error_or_are_left_out(photos, tmp_path):
    first = sorted(os.listdir(photos/'revolver'))[0]
    content = (photos/'revolver'/first).read_bytes()
    (photos/'epaule_a_pompe'/'copy.jpg').write_bytes(content)
    (photos/'revolver'/'again.jpg').write_bytes(content + b'tail')  # the same pixels
    result = typed('split', photos, tmp_path/'a')
    assert result.returncode == 1 and '--conflicts leave-out' in result.stderr and 'copy.jpg' in result.stderr
    assert not (tmp_path/'a').exists()
    rows = make_split(photos, tmp_path/'a', '--conflicts', 'leave-out')
    left = {o for o, row in rows.items() if row['split'] == 'left-out'}
    assert left == {'epaule_a_pompe/copy.jpg', 'revolver/again.jpg', f'revolver/{first}'}
    assert len(rows) == 20 * 6 + 2 and layout_faults(tmp_path/'a') == []
    result = typed('split', photos, tmp_path/'b', '--conflicts', 'drop')
    assert result.returncode == 1 and 'give error or leave-out' in result.stderr


def test_a_class_whose_photos_are_all_under_two_labels_is_named(photos, tmp_path):
    shutil.copytree(photos/'revolver', photos/'pistolet')
    result = typed('split', photos, tmp_path/'a', '--conflicts', 'leave-out')
    assert result.returncode == 1 and not (tmp_path/'a').exists()
    for label in ('revolver', 'pistolet'):
        assert f"class '{label}': every photo is also under another label" in result.stderr
