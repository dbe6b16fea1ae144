"Decisions become a new data set exactly, as a whole or not at all, and everything that does not fit is named at once."
import csv
import os
import random
import shutil
import signal
import subprocess
import sys
from collections import Counter
from hashlib import sha256
from pathlib import Path
from unicodedata import normalize

import pytest
from conftest import run_command, tree, typed

from basegun_fastai.base.files import write_whole
from basegun_fastai.data.decisions import COLUMNS, INVALID, Decision, DecisionFile
from basegun_fastai.data.folders import layout_faults

TIME = '2026-01-31T12:00:05Z'
CLASSES = ['a', 'épaule à pompe', 'c, "d"']
NAMES = ['1.jpg', 'IMG.JPG', '-rf.jpg', 'e\u0301te\u0301.png', 'a "quoted", one.jpg', '\udce9.jpg', 'a\nb.jpg', '2']


def fill(data, classes=CLASSES, names=NAMES):
    "A data set of files that are no images: no decision needs their pixels."
    for split in ('train', 'val'):
        for i, label in enumerate(classes):
            folder = data/split/normalize('NFD' if i % 2 else 'NFC', label)
            folder.mkdir(parents=True)
            for o in names: (folder/o).write_bytes(f'{split} {label} '.encode() + os.fsencode(o))
    return data


@pytest.fixture
def small(tmp_path): return fill(tmp_path/'data')


def shown(text): return text.encode('utf-8', 'backslashreplace').decode()  # pytest-xdist dies of other bytes


def digest(file): return sha256(file.read_bytes()).hexdigest()


def photos_of(data):
    "Split, class and name of each photo, by its path."
    found_there = [o for o in data.rglob('*') if o.is_file() and o.parent.parent.parent == data]
    return {o.relative_to(data).as_posix(): (o.parts[-3], normalize('NFC', o.parts[-2]), o.name) for o in found_there}


def decide(path, data, *decisions, reviewer='', **more):
    "Add decisions, each a file, a kind and perhaps a class or a note."
    if not decisions: return write_whole(path, ','.join(COLUMNS) + '\n')
    with DecisionFile.open(path) as opened:
        for file, kind, *rest in decisions:
            fields = dict(zip({'move': ['new_label']}.get(kind, ['note']), rest, strict=False))
            sha, label = digest(data/file), photos_of(data)[file][1]
            opened.append(Decision(file, sha, label, kind, reviewer=reviewer, time=TIME, **fields | more))
    return path


def applied(data, files, out, *options):
    "Apply decisions that fit; return the rows of applied.csv, after checking that they are true."
    before = tree(data)
    result = typed('apply', data, *files, out, *options)
    assert result.returncode == 0 and result.stdout == f'{out}\n', shown(result.stderr)
    assert tree(data) == before and layout_faults(out) == []
    rows = list(csv.DictReader((out/'applied.csv').open(encoding='utf-8', errors='surrogateescape', newline='')))
    assert {o['file'] for o in rows} == set(photos_of(data)) and len(rows) == len(photos_of(data))
    places = [o['to'] for o in rows if o['to']]
    assert sorted(places) == sorted(photos_of(out)) and len(set(places)) == len(places)
    for o in rows:
        if o['to']: assert (out/o['to']).read_bytes() == (data/o['file']).read_bytes()
        if o['sha256']: assert o['sha256'] == digest(data/o['file'])
    n = Counter(o['action'] for o in rows)
    assert f"{n['moved']} moved, {n['excluded']} excluded, {n['kept']} kept, {n['unsure']} unsure\n" in result.stderr
    return {o['file']: o for o in rows}


def refused(data, files, out, words, lines=None):
    before = tree(data.parent) if data.exists() else None
    result = typed('apply', data, *files, out)
    assert result.returncode == 1 and not result.stdout and 'Traceback' not in result.stderr
    for o in words: assert o in result.stderr, shown(result.stderr)
    assert lines in (None, len(result.stderr.splitlines())), shown(result.stderr)
    assert before is None or tree(data.parent) == before


def random_decisions(rng, photos):
    "Rows of one reviewer: some photos decided on, some again, some taken back."
    rows, open_ = [], {}
    for _ in range(rng.randrange(12)):
        file = rng.choice(photos)
        _, label, _ = file.split('/')
        if file in open_: rows.append((file, 'undo'))
        if file in open_ and rng.random() < .4:
            del open_[file]
            continue
        others = [o for o in CLASSES if o != normalize('NFC', label)]
        open_[file] = rng.choice([('keep',), ('move', rng.choice(others)), ('move', rng.choice(others)),
                                  ('invalid', rng.choice(INVALID)), ('unsure',)])
        rows.append((file, *open_[file]))
    return rows, open_


def expected(photos, last):
    "What becomes of each photo; None if nothing is decided, two reviewers disagree, or a class is left without photos."
    if not any(last): return None
    fates = {}
    for file, (_, label, _) in photos.items():
        said_by = [o[file] for o in last if file in o and o[file][0] != 'unsure']
        fate = {('excluded',) if o[0] == 'invalid' else ('moved', o[1]) if o[0] == 'move' else ('kept', label)
                for o in said_by}
        if len(fate) > 1: return None
        unsure = any(file in o for o in last)
        fates[file] = fate.pop() if fate else ('unsure' if unsure else 'kept', label)
    left = {(photos[file][0], o[1]) for file, o in fates.items() if len(o) == 2}
    return fates if left == {(split, label) for split, label, _ in photos.values()} else None


@pytest.mark.parametrize('seed', range(24))
def test_random_decisions_become_what_a_plain_model_says(tmp_path, seed):
    rng = random.Random(seed)
    data = fill(tmp_path/'data', names=rng.sample(NAMES, 3 + seed % 3))
    photos, files, last = photos_of(data), [], []
    for i in range(1 + seed % 3):
        rows, final = random_decisions(rng, sorted(photos))
        files.append(decide(tmp_path/f'decisions-{i}.csv', data, *rows, reviewer=f'r{i}'))
        last.append(final)
    model = expected(photos, last)
    if model is None: return refused(data, files, tmp_path/'out', ['basegun-fastai: '])
    rows = applied(data, files, tmp_path/'out', *['--link'] * (seed % 2))
    for file, (split, label, name) in photos.items():
        action, *new = model[file]
        assert (rows[file]['action'], rows[file]['class']) == (action, new[0] if new else ''), shown(file)
        if action == 'excluded': assert rows[file]['to'] == ''
        elif action == 'moved': assert rows[file]['to'].startswith(f'{split}/{new[0]}/')
        else: assert rows[file]['to'] == f'{split}/{label}/{name}'
    return None


def test_the_random_decisions_are_of_both_kinds(tmp_path):
    photos, outcomes = photos_of(fill(tmp_path/'data')), Counter()
    for seed in range(24):
        rng = random.Random(seed)
        outcomes[expected(photos, [random_decisions(rng, sorted(photos))[1] for _ in range(1 + seed % 3)]) is None] += 1
    assert min(outcomes[True], outcomes[False]) >= 2, outcomes


def test_a_photo_that_moves_gets_a_free_name_on_every_disk(tmp_path):
    names = ['IMG.jpg', 'img_2.JPG', 'é.png', 'x' * 250 + '.jpg', 'y.' + 'y' * 253]
    data = fill(tmp_path/'data', ['a', 'b'], [*names, 'rest.jpg'])
    for old, new in [('IMG.jpg', 'img.JPG'), ('é.png', 'e\u0301.png')]: (data/'val'/'a'/old).rename(data/'val'/'a'/new)
    moves = [(o, 'move', 'b') for o in photos_of(data) if o.startswith('val/a/') and 'rest' not in o]
    rows = applied(data, [decide(tmp_path/'one.csv', data, *moves)], tmp_path/'out')
    places = {o: rows[f'val/a/{o}']['to'] for o in ('img.JPG', 'img_2.JPG', 'e\u0301.png', *names[-2:])}
    assert places == {'img.JPG': 'val/b/img_3.JPG', 'img_2.JPG': 'val/b/img_2_2.JPG',
                      'e\u0301.png': 'val/b/e\u0301_2.png', names[-2]: 'val/b/' + 'x' * 249 + '_2.jpg',
                      names[-1]: 'val/b/y.' + 'y' * 251 + '_2'}
    again = applied(data, [decide(tmp_path/'two.csv', data, *reversed(moves))], tmp_path/'again')
    assert {k: o['to'] for k, o in again.items()} == {k: o['to'] for k, o in rows.items()}


def test_links_take_no_space(small, tmp_path):
    file = decide(tmp_path/'d.csv', small, ('val/a/1.jpg', 'move', 'épaule à pompe'))
    rows = applied(small, [file], tmp_path/'out', '--link')
    for name, o in rows.items(): assert (tmp_path/'out'/o['to']).samefile(small/name)


def test_what_two_reviewers_agree_on_names_both(small, tmp_path):
    one = decide(tmp_path/'1.csv', small, ('val/a/1.jpg', 'invalid', 'drawing'), ('val/a/2', 'unsure', 'old'),
                 reviewer='anna')
    two = decide(tmp_path/'2.csv', small, ('val/a/1.jpg', 'invalid', 'no-gun'), ('val/a/2', 'keep'), reviewer='bob')
    rows = applied(small, [one, two], tmp_path/'out')
    assert [rows['val/a/1.jpg'][o] for o in ('action', 'class', 'to', 'decision', 'note', 'reviewer')] == [
        'excluded', '', '', 'invalid', 'drawing; no-gun', 'anna, bob']
    assert [rows['val/a/2'][o] for o in ('action', 'decision', 'note', 'reviewer')] == ['kept', 'keep', '', 'bob']
    assert [rows['val/a/-rf.jpg'][o] for o in ('action', 'sha256', 'decision', 'reviewer')] == ['kept', '', '', '']


def test_names_that_another_system_composes_differently_are_found(small, tmp_path):
    file = decide(tmp_path/'d.csv', small, ('train/a/e\u0301te\u0301.png', 'invalid', 'drawing'))
    file.write_text(normalize('NFC', file.read_text(encoding='utf-8')), encoding='utf-8')
    assert applied(small, [file], tmp_path/'out')['train/a/e\u0301te\u0301.png']['action'] == 'excluded'


def test_a_decision_that_changes_nothing_leaves_a_copy(small, tmp_path):
    file = decide(tmp_path/'d.csv', small, ('val/a/2', 'keep'))
    rows = applied(small, [file, decide(tmp_path/'empty.csv', small)], tmp_path/'out')
    assert {o['action'] for o in rows.values()} == {'kept'}


def test_no_decision_makes_no_data_set(small, tmp_path):
    (tmp_path/'my list').mkdir()
    (tmp_path/'my list'/'review.json').touch()
    one = decide(tmp_path/'my list'/'decisions.csv', small)
    two = decide(tmp_path/'my list'/'decisions-anna.csv', small, ('val/a/2', 'keep'), ('val/a/2', 'undo'))
    command = f"`basegun-fastai review {small} --from '{tmp_path/'my list'}'"
    refused(small, [one], tmp_path/'out', [f"'{one}': no photo is decided on; start {command}`, and decide first"], 1)
    refused(small, [two, one], tmp_path/'out', [f"'{two}, {one}': no photo", f'{command} --reviewer anna`'], 1)
    refused(small, [one, tmp_path/'none.csv'], tmp_path/'out', ["none.csv' cannot be read"], 1)


def test_equal_photos_in_two_places_are_counted(small, tmp_path):
    names = ['val/a/1.jpg', 'val/c, "d"/1.jpg', 'train/a/2', 'train/a/IMG.JPG', 'train/c, "d"/2', 'val/c, "d"/2']
    for o in names[:2]: (small/o).write_bytes(b'twin')
    for o in names[2:4]: (small/o).write_bytes(b'same')  # in one class: no mistake in a label
    for o in names[4:]: (small/o).write_bytes(b'leak')
    file = decide(tmp_path/'d.csv', small, ('val/a/1.jpg', 'keep'))
    warning = 'warning: {} with the same bytes under two labels, or in train/ and val/: `basegun-fastai check {}` names'
    result = typed('apply', small, file, tmp_path/'out')
    assert result.returncode == 0 and warning.format('4 photos', tmp_path/'out') in result.stderr
    decide(file, small, ('val/a/1.jpg', 'undo'), ('val/a/1.jpg', 'move', 'c, "d"'), (names[4], 'invalid', 'duplicate'))
    result = typed('apply', small, file, tmp_path/'again', '--link')
    assert result.returncode == 0 and 'warning' not in result.stderr
    last = result.stderr.splitlines()[-1]
    for o in (f"'{tmp_path/'again'/'applied.csv'}' says what", f"`basegun-fastai check {tmp_path/'again'}` next"):
        assert o in last
    assert 'unsure ones stay in their class' in last and 'files that cannot be read are copied too' in last


def test_a_data_set_does_not_go_into_the_folder_of_a_review(small, tmp_path):
    for o in ('list', 'other'): (tmp_path/o).mkdir()
    (tmp_path/'list'/'review.json').touch()
    files = [decide(tmp_path/o/f'decisions-{o}.csv', small, ('val/a/2', 'keep')) for o in ('list', 'other')]
    words = [f"is inside '{tmp_path/'list'}', which has the list", 'give another OUT']
    refused(small, files, tmp_path/'list'/'new'/'out', words, 1)
    refused(small, files, tmp_path/'list', ['exists, and nothing is overwritten'], 1)
    applied(small, files, tmp_path/'other'/'out')


def test_all_that_does_not_fit_is_named_at_once(small, tmp_path):
    one = decide(tmp_path/'1.csv', small, ('val/a/1.jpg', 'keep'), ('val/a/2', 'keep'), ('train/a/1.jpg', 'keep'),
                 ('train/a/2', 'keep'), ('train/a/IMG.JPG', 'move', 'épaule à pomp'), ('val/a/IMG.JPG', 'keep'),
                 ('train/a/-rf.jpg', 'move', 'A'), ('train/a/a\nb.jpg', 'move', 'zzz'), reviewer='anna')
    two = decide(tmp_path/'2.csv', small, ('val/a/1.jpg', 'unsure'), ('val/a/2', 'move', 'b'),
                 *((f'val/c, "d"/{o}', 'invalid', 'no-gun') for o in NAMES), reviewer='bob')
    one.write_bytes(one.read_bytes().replace(f'{digest(small/"val"/"a"/"IMG.JPG")},a,'.encode(),
                                             f'{digest(small/"val"/"a"/"IMG.JPG")},b,'.encode()))
    (small/'train'/'a'/'1.jpg').write_bytes(b'another')
    (small/'train'/'a'/'2').unlink()
    (tmp_path/'wrong.csv').write_text('file;decision\n', encoding='utf-8')
    refused(small, [one, two, tmp_path/'1.csv', tmp_path/'wrong.csv', tmp_path/'none.csv'], small/'out', [
        f"'{small/'out'}' is inside the data", f"'{one}' is given twice", 'separate the columns by commas',
        "none.csv' cannot be read", f"'{one}': 'train/a/1.jpg' is not the photo that was decided on",
        f"'{one}': 'train/a/2' is not in '{small}'", "'val/a/IMG.JPG' is in class 'a', but the decision was made when "
        "it was in 'b'", "'val/a/2': anna says keep, bob says move to 'b': agree on one",
        "moves 1 photo to class 'épaule à pomp', which is not in", "did you mean 'épaule à pompe'?",
        "class 'A', which is not", "did you mean 'a'? they differ in case", "class 'zzz'",
        "give one of its classes: a, ",
        f"class 'c, \"d\"' would have no photo in val/ (0 moved, {len(NAMES)} excluded)"])


def test_each_fault_of_which_there_are_many_leaves_room_for_the_others(tmp_path):
    names = [f'{i}.jpg' for i in range(60)]
    data = fill(tmp_path/'many'/'data', ['a', 'b'], names)
    file = decide(tmp_path/'d.csv', data, *((f'val/a/{o}', 'keep') for o in names))
    for o in names[1:]: (data/'val'/'a'/o).write_bytes(b'x')
    (data/'val'/'b'/'inner').mkdir()
    (data/'val'/'b'/'inner'/'1.jpg').touch()
    refused(data, [file], tmp_path/'out', ['is a folder inside a class'], 1)
    shutil.rmtree(data/'val'/'b'/'inner')
    refused(data, [file], tmp_path/'out', ["'val/a/5.jpg' is not the photo", 'and 54 more photos like that'], 6)


def test_decisions_on_another_data_set_are_one_line(small, tmp_path):
    other = fill(tmp_path/'other'/'data', ['x', 'y'])
    file = decide(tmp_path/'d.csv', other, *((o, 'keep') for o in photos_of(other)))
    refused(small, [file], tmp_path/'out', [f'fits no photo of \'{small}\' (missing: 32, with another content: 0)'], 1)
    for o in small.rglob('*'):
        if o.is_file(): o.write_bytes(b'other')
    shutil.rmtree(other)
    same = fill(other)
    file = decide(tmp_path/'same.csv', same, *((o, 'keep') for o in photos_of(same)))
    refused(small, [file], tmp_path/'out', ['(missing: 0, with another content: 48)'], 1)


def test_reviewers_without_a_name_are_named_by_their_files(small, tmp_path):
    one = decide(tmp_path/'1.csv', small, ('val/a/1.jpg', 'keep'))
    two = decide(tmp_path/'2.csv', small, ('val/a/1.jpg', 'invalid', 'drawing'))
    words = [f"'val/a/1.jpg': {one} says keep, {two} says invalid (drawing): agree on one"]
    refused(small, [one, two], tmp_path/'out', words, 1)
    review_folder = tmp_path/'list'
    review_folder.mkdir()
    (review_folder/'review.json').touch()
    one = one.rename(review_folder/'decisions.csv')
    two = two.rename(review_folder/'decisions-é.csv')
    words = [f"'val/a/1.jpg': {one} says keep, {two} says invalid (drawing): agree on one; to change the last "
             f"decision, start `basegun-fastai review {small} --from {review_folder} --reviewer 'é'`"]
    refused(small, [one, two], tmp_path/'out', words, 1)
    for o in (one, two): o.write_text(o.read_text().replace(f',,{TIME}', f',anna,{TIME}'))
    refused(small, [one, two], tmp_path/'out', words, 1)


def test_places_that_cannot_be_used_are_named(small, tmp_path):
    file = decide(tmp_path/'d.csv', small, ('val/a/2', 'keep'))
    refused(tmp_path/'nowhere', [file], tmp_path/'out', ["no folder '"], 1)
    refused(small/'train', [file], tmp_path/'out', ['is not a data set'], 1)
    refused(small, [file], tmp_path, ['exists, and nothing is overwritten: give another OUT'], 1)
    for o in (small, small/'train'/'a'): refused(small, [file], o, [f"'{o}' is inside the data"], 1)
    shutil.rmtree(small/'val'/'a')
    refused(small, [file], tmp_path/'out', ["class 'a' is in train/ but not in val/"], 1)
    refused(small, [tmp_path/'none.csv'], tmp_path/'out', ["class 'a' is in train/", "none.csv' cannot be read"], 2)
    assert typed('apply', small, file).returncode == 2


@pytest.mark.parametrize('link', [[], ['--link']])
def test_a_photo_that_disappears_meanwhile_is_named(small, tmp_path, monkeypatch, link):
    from basegun_fastai import apply
    plain, file = apply.write_data_set, decide(tmp_path/'d.csv', small, ('val/a/2', 'keep'))
    def late(*arguments):
        (small/'val'/'a'/'1.jpg').unlink()
        plain(*arguments)
    monkeypatch.setattr(apply, 'write_data_set', late)
    result = typed('apply', small, file, tmp_path/'out', *link)
    assert result.returncode == 1 and "'val/a/1.jpg' has disappeared from" in result.stderr
    assert sorted(os.listdir(tmp_path)) == ['d.csv', 'data']


def test_a_kill_in_the_middle_leaves_no_data_set(small, tmp_path):
    file, before = decide(tmp_path/'d.csv', small, ('val/a/1.jpg', 'invalid', 'drawing')), tree(small)
    program = '''import sys
from basegun_fastai.data import dataset
from basegun_fastai.cli import main
plain = dataset._place
def slow(*arguments):
    plain(*arguments)
    print('one', flush=True)
    sys.stdin.readline()
dataset._place = slow
main()
'''
    process = subprocess.Popen([sys.executable, '-c', program, 'apply', small, file, tmp_path/'out'],
                               stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
    for _ in range(7):
        assert process.stdout.readline() == 'one\n'
        print(file=process.stdin, flush=True)
    os.kill(process.pid, signal.SIGKILL)
    process.communicate()
    assert not (tmp_path/'out').exists() and (tmp_path/'.out.unfinished').exists() and tree(small) == before
    applied(small, [file], tmp_path/'out')
    assert sorted(os.listdir(tmp_path)) == ['d.csv', 'data', 'out']


def test_the_result_can_be_checked_and_reviewed_again(data, tmp_path):
    from PIL import Image
    moved = sorted(o for o in photos_of(data) if o.startswith('val/revolver/'))[0]
    file = decide(tmp_path/'d.csv', data, (moved, 'move', 'epaule_a_pompe'))
    row = applied(data, [file], tmp_path/'out')[moved]
    assert Image.open(tmp_path/'out'/row['to']).size == Image.open(data/moved).size
    refused(tmp_path/'out', [file], tmp_path/'again', ['(missing: 1, with another content: 0)'], 1)
    assert run_command('apply', data, file, Path(tmp_path)/'command').returncode == 0


def test_the_groups_of_split_follow_the_photos(small, tmp_path):
    from basegun_fastai.data.groups import read_groups
    header, rows = 'file,split,label,group,sha256\n', ['a/1.jpg,train,a,Luger,0f\n', 'a/IMG.JPG,train,a,Luger,0f\n',
                                                       'a/1.jpg,val,a,Nagant,0f\n', 'a/-rf.jpg,train,a,Colt,0f\n']
    (small/'split.csv').write_text(header + ''.join(rows))
    file = decide(tmp_path/'decisions.csv', small, ('train/a/1.jpg', 'move', CLASSES[2]),
                  ('train/a/-rf.jpg', 'invalid', 'drawing'))
    for data, out in ((small, tmp_path/'once'), (tmp_path/'once', tmp_path/'twice')):
        result = typed('apply', data, file, out)
        assert result.returncode == 0, shown(result.stderr)
        assert f"`basegun-fastai train {out} --groups {out/'split.csv'}` trains by the groups" in result.stderr
        file = decide(tmp_path/'more.csv', out, ('train/a/IMG.JPG', 'move', CLASSES[2])) if data == small else file
    photos = ['train/c, "d"/1_2.jpg', 'train/c, "d"/IMG_2.JPG', 'val/a/1.jpg', 'train/a/2']
    groups = read_groups(tmp_path/'twice'/'split.csv', photos)
    assert groups.group.tolist() == ['Luger', 'Luger', 'Nagant', '']
    assert (tmp_path/'twice'/'split.csv').read_text().count('\n') == 4
    (small/'split.csv').write_text('file,weapon\n')  # of somebody else
    applied(small, [tmp_path/'decisions.csv'], tmp_path/'other')
    assert not (tmp_path/'other'/'split.csv').exists()
