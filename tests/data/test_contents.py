"Contents are cached until the files change."
import json
import os
import shutil
import sys
import time

import pytest
from conftest import QUICK, as_arguments, tree, typed
from warm import run_warm

from basegun_fastai.base.progress import Bar, progress
from basegun_fastai.data import contents as module
from basegun_fastai.data.contents import fingerprint, index_file, known_contents, part_fingerprint
from basegun_fastai.data.folders import list_photos


@pytest.fixture
def settled(copy, monkeypatch):
    "A copy of the data with times of an hour ago; returns it and the list of photos that are actually read."
    read, plain = [], module.answers
    def counting(data, names, *more):
        read.extend(names)
        return plain(data, names, *more)
    monkeypatch.setattr(module, 'answers', counting)
    monkeypatch.setattr(module.time, 'time_ns', lambda: time.monotonic_ns() * 0 + int((time.time() + 3600) * 1e9))
    known_contents(copy, list_photos(copy))
    assert len(read) == 72
    read.clear()
    return copy, read


def test_nothing_is_read_twice(settled):
    data, read = settled
    before = known_contents(data, list_photos(data))
    assert read == [] and len(fingerprint(before)) == 64


@pytest.mark.parametrize('change', ['content', 'content of the same size and time', 'touch', 'new file', 'swap'])
def test_what_changed_is_read_again(settled, change):
    data, read = settled
    before = fingerprint(known_contents(data, list_photos(data)))
    file, other = data/'train'/'revolver'/'0005.jpg', data/'train'/'revolver'/'0006.jpg'
    status, content = file.stat(), file.read_bytes()
    if change == 'new file': (data/'train'/'revolver'/'new.jpg').write_bytes(content)
    elif change == 'swap':
        other.rename(data/'aside')
        file.rename(other)
        (data/'aside').rename(file)
    elif change == 'touch':
        file.unlink()
        file.write_bytes(content)
    else:
        file.unlink()
        file.write_bytes(content[:-1] + b'\0')
        if 'time' in change: os.utime(file, ns=(status.st_atime_ns, status.st_mtime_ns))
    table = known_contents(data, list_photos(data))
    assert read == {'new file': ['train/revolver/new.jpg'],
                    'swap': ['train/revolver/0005.jpg', 'train/revolver/0006.jpg']}.get(change,
        ['train/revolver/0005.jpg'])
    assert (fingerprint(table) == before) == (change == 'touch')
    read.clear()
    assert fingerprint(known_contents(data, list_photos(data))) == fingerprint(table) and read == []


def test_a_file_written_just_now_is_not_remembered(copy, monkeypatch):
    known_contents(copy, list_photos(copy))
    (copy/'train'/'revolver'/'new.jpg').write_bytes((copy/'train'/'revolver'/'0005.jpg').read_bytes())
    known_contents(copy, list_photos(copy))
    read, plain = [], module.answers
    monkeypatch.setattr(module, 'answers', lambda data, names, *more: read.extend(names) or plain(data, names, *more))
    known_contents(copy, list_photos(copy))
    assert 'train/revolver/new.jpg' in read


def test_unreadable_photos_and_odd_names_are_remembered_too(settled):
    data, read = settled
    (data/'val'/'revolver'/os.fsdecode(b'caf\xe9\n.jpg')).write_bytes(b'no photo')
    first = known_contents(data, list_photos(data))
    read.clear()
    again = known_contents(data, list_photos(data))
    assert read == [] and again.equals(first) and 'not a photo' in ''.join(again.reason)


@pytest.mark.parametrize('damage', [b'', b'PK\x03\x04 nonsense', None])
def test_a_damaged_memory_is_told_and_made_again(settled, capsys, damage):
    data, read = settled
    file = index_file(data)
    file.write_bytes(file.read_bytes()[:-200] if damage is None else damage)
    known_contents(data, list_photos(data))
    assert len(read) == 72 and 'every photo is read again' in capsys.readouterr().err
    read.clear()
    known_contents(data, list_photos(data))
    assert read == []


def test_another_decoder_forgets_all(settled, monkeypatch):
    data, read = settled
    monkeypatch.setattr(module, 'DECODER', 99)
    known_contents(data, list_photos(data))
    assert len(read) == 72


def test_a_memory_that_cannot_be_written_is_told(copy, monkeypatch, tmp_path, capsys):
    (tmp_path/'file').touch()
    monkeypatch.setenv('XDG_CACHE_HOME', str(tmp_path/'file'))
    monkeypatch.setattr(module.time, 'time_ns', lambda: int((time.time() + 3600) * 1e9))
    assert len(known_contents(copy, list_photos(copy))) == 72
    assert 'cannot be written' in capsys.readouterr().err


def test_the_fingerprint_of_a_part_does_not_depend_on_its_place(data):
    from basegun_fastai.data.folders import list_photos
    whole, flat = (known_contents(o, list_photos(o, 'classes')) for o in (data, data/'val'))
    assert part_fingerprint(whole) == part_fingerprint(flat) and fingerprint(whole) != fingerprint(flat)


@pytest.mark.slow
def test_evaluating_says_how_the_photos_are_related_to_the_training(run, data, copy, tmp_path):
    def text(folder, out): return typed('evaluate', run.path, folder, '--out', tmp_path/out).stderr
    assert 'these are the val photos of the training' in text(data,
                                                              'a') and 'these are the val photos' in text(data/'val',
        'b')
    assert 'warning: the run was trained on 48 of the 48 photos' in text(data/'train', 'c')
    older = shutil.copytree(run.path, tmp_path/'older', ignore=shutil.ignore_patterns('train-photos.npy'))
    older_text = typed('evaluate', older, data/'train', '--out', tmp_path/'e').stderr
    assert 'warning: these are the photos that the run was trained on' in older_text
    sorted((copy/'val'/'revolver').iterdir())[-1].unlink()
    assert 'these are not the val photos of the training: 23 photos here, 24 in the training' in text(copy, 'd')


@pytest.mark.slow
def test_a_resume_on_other_photos_is_refused(copy, tmp_path):
    options = as_arguments(arch='test_efficientnet', size=32, weights='none', fine_tune_epochs=1, batch_size=16,
                           workers=0)
    assert typed('train', copy, '--out', tmp_path/'runs', '--name', 'a', *options).returncode == 0
    config = json.loads((tmp_path/'runs'/'a'/'config.json').read_text())
    assert set(config['dataset']['parts']) == {'train', 'val'}
    (tmp_path/'runs'/'a'/'config.json').write_text(json.dumps(config | dict(state='running')))
    file = copy/'train'/'revolver'/'0005.jpg'
    content = file.read_bytes()
    file.unlink()
    file.write_bytes(content + b'more')
    result = typed('train', copy, '--out', tmp_path/'runs', '--name', 'a', '--resume', *options)
    assert result.returncode == 1 and 'the photos are not the same' in result.stderr


def test_a_failure_of_the_machine_is_not_remembered(settled, monkeypatch):
    data, read = settled
    file, plain = 'train/revolver/0005.jpg', module.answers
    (data/file).rename(data/'aside')
    (data/'aside').rename(data/file)  # it has changed, so it is read again
    with monkeypatch.context() as failing:
        failing.setattr(module, 'answers', lambda _data, names, *_: iter([dict(reason='Input/output error')
            for _ in names]))
        assert known_contents(data, list_photos(data)).set_index('file').reason[file] == 'Input/output error'
    assert module.answers is plain and known_contents(data,
                                                      list_photos(
                                                          data)).set_index('file').reason[file] == '' and read == [file]


@pytest.mark.slow
def test_a_cache_home_inside_the_data_is_not_used(copy, tmp_path):
    before = tree(copy)
    result = run_warm('train', copy, '--out', tmp_path, '--name', 'run', '--fine-tune-epochs', '1',
                      *as_arguments(**QUICK), env=os.environ | dict(XDG_CACHE_HOME=str(copy/'.cache'),
                                                                   MPLCONFIGDIR=str(tmp_path/'matplotlib')))
    assert result.returncode == 0 and result.stderr.count('is inside the data') == 2 and tree(copy) == before


def test_a_bar_shows_on_a_terminal_that_does_not_know_its_size(monkeypatch):
    monkeypatch.delenv('COLUMNS', raising=False)
    ours, theirs = os.openpty()  # with 0 rows and columns
    with os.fdopen(ours, 'rb', 0) as screen, open(theirs, 'w', 1) as stderr:
        monkeypatch.setattr(sys, 'stderr', stderr)
        os.set_blocking(ours, False)
        for _ in progress(range(3), 3, 'counting sheep', 'sheep'): pass
        text = screen.read(4000).decode()
    assert 'counting sheep' in text and '0/3' in text


def test_what_is_no_terminal_gets_a_line_a_minute(monkeypatch, capsys):
    monkeypatch.setattr(Bar, 'each', -1)
    assert [*progress(range(2), 2, 'counting sheep', 'sheep')] == [0, 1]
    assert capsys.readouterr().err == 'counting sheep: sheep 0 of 2\ncounting sheep: sheep 1 of 2\n'
    monkeypatch.undo()
    assert [*progress(range(2), 2, 'counting sheep')] == [0, 1] and not capsys.readouterr().err
