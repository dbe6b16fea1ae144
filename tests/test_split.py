"A split is made once: complete, stratified, similar photos on one side, and the same for the same photos."
import csv
import json
import os
import shutil
import signal
import subprocess
import sys
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


def write_groups(file, groups):
    "Write a CSV from the group of each photo."
    with open(file, 'w', newline='', encoding='utf-8') as out:
        csv.writer(out).writerows([('file', 'group'), *groups.items()])
    return file


@pytest.fixture
def weapons(photos):
    "Give the photos the names of weapons, three photos of each; returns the weapon of each photo."
    groups = {}
    for folder in photos.iterdir():
        for i, o in enumerate(sorted(folder.iterdir())):
            file = o.rename(folder/f'{folder.name} {i // 3}_{i}{o.suffix}')
            groups[file.relative_to(photos).as_posix()] = f'{folder.name} {i // 3}'
    return groups


def group_leaks(data, tmp_path, *options):
    "Weapons that `check` finds on both sides."
    typed('check', data, '--json', tmp_path/'found.json', *options)
    problems = json.loads((tmp_path/'found.json').read_text())['problems']
    return {o['message'].split("'")[1]: o for o in problems if o['kind'] == 'group-leak'}


def test_photos_of_one_weapon_are_on_one_side_and_check_finds_what_split_avoids(photos, weapons, tmp_path):
    file = write_groups(tmp_path/'weapons.csv', weapons)
    plain = make_split(photos, tmp_path/'plain')
    by_file = make_split(photos, tmp_path/'by file', '--groups', file)
    by_name = make_split(photos, tmp_path/'by name', '--group-pattern', '^(.+)_')
    assert by_file == by_name and {k: o['group'] for k, o in by_file.items()} == weapons
    def torn(rows):
        return {o for o in weapons.values() if len({rows[k]['split'] for k, w in weapons.items() if w == o}) > 1}
    assert not torn(by_file) and torn(plain)
    for label in os.listdir(photos):  # six weapons of three photos, and one of two
        assert sum(o['label'] == label and o['split'] == 'val' for o in by_file.values()) in (3, 5)
    for options in (('--groups', file), ('--group-pattern', '^(.+)_')):  # the file names photos as in PHOTOS
        assert group_leaks(tmp_path/'by file', tmp_path, *options) == {}
        assert set(group_leaks(tmp_path/'plain', tmp_path, *options)) == torn(plain)


def test_a_group_and_photos_that_look_like_one_of_it_are_on_one_side(photos, weapons, tmp_path):
    _, first, *_, last = sorted((photos/'revolver').glob('*.jpg'))[4:]
    Image.open(first).save(photos/'revolver'/'again.png')
    del weapons[f'revolver/{last.name}']
    image = Image.open(photos/'revolver'/'again.png')
    image.resize((image.width // 2, image.height // 2)).save(photos/'revolver'/'half.jpg')
    weapons['revolver/half.jpg'] = 'another revolver'
    file = write_groups(tmp_path/'weapons.csv', weapons)
    linked = {weapons[f'revolver/{first.name}'], weapons['revolver/half.jpg']}
    for seed in range(4):
        rows = make_split(photos, tmp_path/f'{seed}', '--groups', file, '--val', .5, '--seed', seed)
        there = [o for o in rows.values() if o['group'] in linked] + [rows['revolver/again.png']]
        assert len(there) >= 5 and len({o['split'] for o in there}) == 1
    assert rows[f'revolver/{last.name}']['group'].startswith('sha256:')  # not a name that the user gave
    assert rows['revolver/again.png']['group'].startswith('sha256:')


def test_photos_without_a_group_are_a_warning(photos, weapons, tmp_path):
    known = {k: o for i, (k, o) in enumerate(weapons.items()) if i % 2}
    file = write_groups(tmp_path/'weapons.csv', {f'.\\{k}'.replace('/', '\\'): o for k, o in known.items()})
    result = typed('split', photos, tmp_path/'a', '--groups', file)
    assert result.returncode == 0, result.stderr
    assert 'warning: 60 photos without a group: each is placed by how it looks, so its weapon may be' in result.stderr
    rows = csv.DictReader((tmp_path/'a'/'split.csv').open())
    assert {o['file']: o['group'] for o in rows if not o['group'].startswith('sha256:')} == known
    by_name, plain = (typed('split', photos, tmp_path/out, *options).stderr
                      for out, options in (('b c', ['--group-pattern', '^(.+)_']), ('d', [])))
    assert 'warning' not in by_name + plain and 'next: ' not in plain
    assert by_name.endswith(f"next: basegun-fastai train '{tmp_path/'b c'}' --groups '{tmp_path/'b c'/'split.csv'}'\n")


def test_groups_of_one_photo_and_no_groups_change_nothing(photos, tmp_path):
    first = make_split(photos, tmp_path/'a')
    (tmp_path/'g.csv').write_text('file,group\nrevolver/none.jpg,x\n' + ''.join(f'"{o}",\n' for o in first))
    make_split(photos, tmp_path/'b', '--groups', tmp_path/'g.csv')
    assert (tmp_path/'a'/'split.csv').read_bytes() == (tmp_path/'b'/'split.csv').read_bytes()
    one_each = write_groups(tmp_path/'one.csv', {o: f'weapon {i}' for i, o in enumerate(first)})
    assert sides(make_split(photos, tmp_path/'c', '--groups', one_each)) == sides(first)


def test_names_in_any_form(photos, tmp_path):
    names, weapons = ['caf\u00e9', 'cafe\u0301', 'b, "x"', 'n\nl'], {}
    for i, o in enumerate(sorted((photos/'revolver').iterdir())):
        o.rename(photos/'revolver'/f'{names[i // 5]}_{i}.jpg')
        weapons[f'revolver/{names[i // 5]}_{i}.jpg'] = names[i // 5 if i // 5 > 1 else 0]
    by_name = make_split(photos, tmp_path/'a', '--group-pattern', '^(cafe\u0301|b, "x"|n\\nl)_')
    assert {o: by_name[o]['group'] for o in weapons} == weapons
    (photos/'revolver').rename(photos/'re\u0301volver')
    weapons = {k.replace('revolver', 'r\u00e9volver'): o for k, o in weapons.items()}
    result = typed('split', photos, tmp_path/'b', '--groups', write_groups(tmp_path/'g.csv', weapons))
    assert result.returncode == 0, result.stderr
    rows = csv.DictReader((tmp_path/'b'/'split.csv').open(newline=''))
    places = {o['sha256']: (o['split'], o['group']) for o in rows}
    assert places == {o['sha256']: (o['split'], o['group']) for o in by_name.values()}
    assert len([*(tmp_path/'b').glob('*/r\u00e9volver/*')]) == 20


@pytest.mark.usefixtures('weapons')
def test_a_group_under_two_labels_is_named_and_stays_together(photos, tmp_path):
    moved = 0
    for o in sorted((photos/'revolver').iterdir())[::3]:
        o.rename(photos/'epaule_a_pompe'/o.name)
        moved += 1
    result = typed('split', photos, tmp_path/'a', '--group-pattern', '^(.+)_')
    assert result.returncode == 0, result.stderr
    assert f'{moved} groups with photos of several classes, each on one side as a whole: ' in result.stderr
    assert f"'revolver 0', 'revolver 1', 'revolver 2', 'revolver 3', 'revolver 4' and {moved - 5} more" in result.stderr
    rows = list(csv.DictReader((tmp_path/'a'/'split.csv').open()))
    for group in {o['group'] for o in rows}: assert len({o['split'] for o in rows if o['group'] == group}) == 1


def test_groups_that_cannot_be_split_are_refused(photos, weapons, tmp_path):
    (tmp_path/'g.csv').write_text('file,group\na.jpg,x\n')
    file = write_groups(tmp_path/'weapons.csv', weapons)
    refused(photos, tmp_path/'out', ['--groups --group-pattern: ', 'omit one', "'(' is not a regular", '--val 2'],
            '--groups', file, '--group-pattern', '(', '--val', 2)
    refused(photos, tmp_path/'out', ["no name matches --group-pattern 'ww1'"], '--group-pattern', 'ww1')
    refused(photos, tmp_path/'out', ['names none of the photos', "it has 'a.jpg'"], '--groups', tmp_path/'g.csv')
    words = [f"class '{o}' cannot be split: all photos are of one group, '{o}'; add" for o in os.listdir(photos)]
    refused(photos, tmp_path/'out', words, '--group-pattern', '^[^ ]+')
    one = write_groups(tmp_path/'one.csv', {k: o for k, o in weapons.items() if o.startswith('revolver')}
                       | {k: 'mixed' for k, o in weapons.items() if 'pompe' in o or 'verrou' in o})
    refused(photos, tmp_path/'out', ["class 'epaule_a_pompe' cannot be split: all photos are of one group, 'mixed'",
                                     "class 'epaule_a_verrou' cannot be split"], '--groups', one)


def test_classes_whose_groups_leave_no_choice_are_refused(photos, weapons, tmp_path):
    groups = {}
    for label, two in dict(epaule_a_pompe='xy', epaule_a_verrou='yz', revolver='xz').items():  # three pairs, two sides
        groups |= {o: two[i % 2] for i, o in enumerate(k for k in weapons if k.startswith(label))}
    refused(photos, tmp_path/'out', [' cannot be on both sides, because its groups also have photos of '],
            '--groups', write_groups(tmp_path/'g.csv', groups))


@pytest.mark.usefixtures('weapons')
def test_a_kill_in_the_middle_leaves_no_data_set(photos, tmp_path):
    program = """import sys
from basegun_fastai.data import dataset
from basegun_fastai.cli import main
plain = dataset._place
def slow(*arguments):
    plain(*arguments)
    print('one', flush=True)
    sys.stdin.readline()
dataset._place = slow
main()
"""
    before = tree(photos)
    command = [sys.executable, '-c', program, 'split', photos, tmp_path/'out', '--group-pattern', '^(.+)_']
    process = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
    for _ in range(7):
        assert process.stdout.readline() == 'one\n'
        print(file=process.stdin, flush=True)
    os.kill(process.pid, signal.SIGKILL)
    process.communicate()
    assert not (tmp_path/'out').exists() and (tmp_path/'.out.unfinished').exists() and tree(photos) == before
    make_split(photos, tmp_path/'out', '--group-pattern', '^(.+)_')
    assert sorted(os.listdir(tmp_path)) == ['mes photos', 'out']
