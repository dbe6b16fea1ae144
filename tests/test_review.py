"The list of `review`: what is wrong with its options comes first, and DATA is never changed."
import json
import os
import shutil
from socket import socket
from unicodedata import normalize

import pandas as pd
import pytest
from conftest import tree, typed
from PIL import Image, ImageOps

pytestmark = pytest.mark.slow


@pytest.fixture
def options(weights): return ['--arch', 'test_efficientnet', '--weights', weights, '--size', 32, '--workers', 0]


def listed(data, out, *options):
    "The list of a data set."
    done = typed('review', data, '--out', out, '--list-only', *options)
    assert done.returncode == 0, done.stderr
    assert done.stdout == f'{out}\n'
    return pd.read_csv(out/'suspects.csv', keep_default_na=False, encoding_errors='surrogateescape'), done.stderr


def smaller(photo, target):
    "The same picture in another file."
    image = ImageOps.exif_transpose(Image.open(photo)).convert('RGB')
    image.thumbnail((600, 600))
    image.save(target)


def test_what_stops_a_training_comes_first(copy, tmp_path, options):
    one, two = sorted((copy/'train'/'revolver').iterdir())[:2]
    shutil.copyfile(one, copy/'train'/'epaule_a_pompe'/'the same.jpg')
    shutil.copyfile(two, copy/'val'/'revolver'/'in both.jpg')
    third = sorted((copy/'train'/'revolver').iterdir())[2]
    smaller(third, copy/'val'/'epaule_a_verrou'/'small,er.png')
    (copy/'train'/'revolver'/'no photo.jpg').write_bytes(b'nothing')
    before = tree(copy)
    rows, stderr = listed(copy, tmp_path/'list', *options)
    assert tree(copy) == before and 'no photo.jpg' in stderr
    firsts = {o: {*rows.file[rows.kind == o]} for o in ('conflict', 'leak')}
    assert firsts == dict(
        conflict={'train/epaule_a_pompe/the same.jpg', f'train/revolver/{one.name}', f'train/revolver/{third.name}',
                  'val/epaule_a_verrou/small,er.png'},
        leak={'val/revolver/in both.jpg', f'train/revolver/{two.name}'})
    assert {*rows.kind[:6]} == {'conflict', 'leak'} and rows['rank'].tolist() == [*range(1, len(rows) + 1)]
    about = json.loads((tmp_path/'list'/'review.json').read_text())
    assert about['suspects'] == len(rows) and about['photos'] == 75 and len(about['classes']) == 6
    neighbours = pd.read_csv(tmp_path/'list'/'neighbours.csv', keep_default_na=False)
    assert neighbours.file.tolist() == rows.file.tolist()
    for row, cells in zip(rows.itertuples(), neighbours.itertuples(), strict=True):
        assert all(o.split('/')[1] == row.label for o in cells[2:5] if o)
        assert all(o.split('/')[1] == row.suggested for o in cells[5:8] if o)


def test_the_same_photos_give_the_same_list(data, tmp_path, options):
    listed(data, tmp_path/'one', *options)
    listed(data, tmp_path/'two', *options, '--cache', 'off')
    for o in ('suspects.csv', 'neighbours.csv'):
        assert (tmp_path/'one'/o).read_bytes() == (tmp_path/'two'/o).read_bytes()


def test_names_of_any_kind(copy, tmp_path, options):
    label = normalize('NFD', 'pistolet à clé')
    for split in ('train', 'val'): os.rename(copy/split/'revolver', copy/split/label)
    odd = copy/'train'/label/os.fsdecode(b'-a, "b" \xff.jpg')
    os.rename(min((copy/'train'/label).iterdir()), odd)
    smaller(odd, copy/'train'/'epaule_a_pompe'/'twin.png')
    rows, _ = listed(copy, tmp_path/'list', *options)
    assert {*rows.file[rows.kind == 'conflict']} == {odd.relative_to(copy).as_posix(),
                                                     'train/epaule_a_pompe/twin.png'}
    assert normalize('NFC', label) in {*rows.label[rows.kind == 'conflict']}


def test_a_group_is_judged_without_itself(data, tmp_path, options):
    files = sorted(o.relative_to(data).as_posix() for o in data.rglob('*.*'))
    groups = tmp_path/'weapons.csv'
    groups.write_text('file,group\n' + ''.join(f'{o},{o.split("/")[1]}\n' for o in files))  # a class is one weapon
    rows, stderr = listed(data, tmp_path/'list', *options, '--groups', groups)
    assert stderr.count('cannot be judged, because no other group of photos shows the class') == 6
    assert 'label' not in {*rows.kind}


def test_all_that_is_wrong_is_said_at_once(data, tmp_path):
    (tmp_path/'list').mkdir()
    done = typed('review', data, '--arch', 'no_network', '--weights', 'none', '--workers', -1, '--out', tmp_path/'list',
                 '--list-only', '--size', 7, '--port', 70000, '--reviewer', 'a/b', '--cache', data/'cache')
    assert done.returncode == 1 and not done.stdout
    assert "--reviewer 'a/b': give a name for a file that starts with a letter or a digit, without '/'" in done.stderr
    for o in ("'no_network'", '--weights none', '--workers -1', "list' exists", '--size 7', '--port 70000',
              "--reviewer 'a/b'", 'cache'): assert o in done.stderr, o


@pytest.mark.parametrize('more, wanted', [
    (['--list-only', '--from', '.'], '--list-only --from: the list exists already; omit one of them'),
    (['--from', '.', '--out', 'x'], '--out --from: the page writes into the folder of --from; omit --out'),
    (['--from', 'nowhere'], "--from 'nowhere': no such folder; give one that review made"),
    (['--list-only', '--unsure-of', 'x'], '--list-only --unsure-of: without the page nothing is shown')])
def test_options_that_do_not_fit_together(data, more, wanted):
    done = typed('review', data, *more)
    assert done.returncode == 1 and wanted in done.stderr and not done.stdout


def test_a_group_file_is_read_before_the_photos(data, tmp_path, options):
    (tmp_path/'groups.csv').write_text('file,weapon,place\ntrain/revolver/0000.jpg,a,b\n')
    done = typed('review', data, '--out', tmp_path/'list', '--list-only', '--groups', tmp_path/'groups.csv', *options)
    assert done.returncode == 1 and "has no column 'group'" in done.stderr and 'reading' not in done.stderr
    assert not (tmp_path/'list').exists()


def test_weights_that_have_seen_the_labels_are_said(run, data, tmp_path):
    _, stderr = listed(data, tmp_path/'list', '--arch', 'test_efficientnet', '--size', 32, '--workers', 0, '--weights',
                     run.weights)
    assert 'warning: --weights were trained on 48 of the 72 photos' in stderr


def test_what_a_training_refuses_is_listed_all_the_same(copy, tmp_path, options):
    shutil.rmtree(copy/'val'/'revolver')
    (copy/'val'/'empty').mkdir()
    (copy/'train'/'single').mkdir()
    shutil.copyfile(min((copy/'train'/'revolver').iterdir()), copy/'train'/'single'/'1.jpg')
    rows, stderr = listed(copy, tmp_path/'list', *options)
    assert stderr.count('warning: class ') >= 3 and "'empty' holds no photo" in stderr.replace(f'{copy}/val/', '')
    assert {'train/single/1.jpg'} < {*rows.file[rows.kind == 'conflict']}
    assert stderr.endswith(f'decide on a page: basegun-fastai review {copy} --from {tmp_path/"list"}\n')


def test_one_class_cannot_be_compared(tmp_path):
    for o in ('train', 'val'): (tmp_path/'data'/o/'revolver').mkdir(parents=True)
    done = typed('review', tmp_path/'data', '--list-only', '--out', tmp_path/'list')
    assert done.returncode == 1 and "has a single class, 'revolver': nothing can be compared" in done.stderr


@pytest.mark.parametrize('name', ['..', '.', '-', '', 'a/b', 'x' * 101])
def test_a_reviewer_has_a_name_for_a_file(data, name):
    done = typed('review', data, '--from', data, f'--reviewer={name}')
    assert done.returncode == 1 and 'give a name for a file that starts with a letter or a digit' in done.stderr


def test_without_suspects_there_is_nothing_to_decide_on(data, tmp_path, options):
    files = sorted(o.relative_to(data).as_posix() for o in data.rglob('*.*'))
    groups = tmp_path/'weapons.csv'
    groups.write_text('file,group\n' + ''.join(f'{o},one weapon\n' for o in files))
    _, stderr = listed(data, tmp_path/'list', *options, '--groups', groups)
    assert stderr.endswith('\n0 suspects of 72 photos: nothing to decide on\n') and '72 photos in 1 group\n' in stderr
    with socket() as taken:  # a page would need this port
        taken.bind(('127.0.0.1', 0))
        taken.listen()
        done = typed('review', data, '--out', tmp_path/'more', '--port', taken.getsockname()[1], '--groups', groups,
                     *options)
    assert done.returncode == 0 and done.stderr == stderr and done.stdout == f"{tmp_path/'more'}\n"
