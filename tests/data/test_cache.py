"A cached square is always that of its photo, even if processes, photos or the disk fail."
import hashlib
import importlib
import json
import multiprocessing
import os
import pickle
import shutil
import signal
import subprocess
import sys
import traceback
import zipfile
from contextlib import contextmanager
from io import BytesIO
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pandas as pd
import pytest
import torch
from conftest import QUICK, as_arguments, sized, tree, typed
from PIL import Image

from basegun_fastai.base.errors import BasegunError
from basegun_fastai.data import cache as module
from basegun_fastai.data import photo
from basegun_fastai.data.cache import ChangedPhoto, SquareFile, make_square_file, open_cache
from basegun_fastai.data.contents import fingerprint, known_contents
from basegun_fastai.data.folders import list_photos
from basegun_fastai.data.photo import UnreadablePhoto, pixels
from basegun_fastai.model.loaders import PhotoSquare

pytestmark = pytest.mark.slow

SIDE = 36
RECORD = SIDE * SIDE * 3 + 8
NOWHERE = '/nowhere'  # data of which only the squares can be read
ONE, OTHER, JUDGED = 'train/revolver/0005.jpg', 'train/revolver/0006.jpg', 'val/revolver/0002.jpg'
OPTIONS = as_arguments(**QUICK, fine_tune_epochs=1)

FILL = '''
import pickle, sys
from basegun_fastai.data.cache import open_cache
data, table, side, folder = pickle.load(open(sys.argv[1], 'rb'))
print('ready', flush=True)
sys.stdin.readline()
made = open_cache(data, [(side, table)], folder)
for o in table.index:
    if not sys.stdin.readline(): break
    made(o, side)
    print(o, flush=True)
'''


@pytest.fixture(scope='module', autouse=True)
def one_thread():
    "Two threads wait for each other most of the time if other programs are running."
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


@pytest.fixture(scope='module')
def table(data):
    "The photos of the data, examined."
    return known_contents(data, list_photos(data))


@pytest.fixture(scope='module')
def expected(data, table):
    "The decoder's square of every photo."
    return {o: pixels(data/o, SIDE) for o in table.file}


@pytest.fixture
def filling(data, table, tmp_path):
    "Start a process that caches one photo for each line that it receives after the first."
    started = []
    def start(folder, *before):
        (tmp_path/'order').write_bytes(pickle.dumps((data, table, SIDE, folder)))
        started.append(subprocess.Popen([*before, sys.executable, '-c', FILL, tmp_path/'order'], stdin=subprocess.PIPE,
                                        stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True))
        assert started[-1].stdout.readline() == 'ready\n', started[-1].stderr.read()
        return started[-1]
    yield start
    for process in started:
        process.kill()
        process.communicate()


@pytest.fixture
def disk(tmp_path):
    "A file system of 2 MiB, which only root can make."
    (tmp_path/'disk').mkdir()
    mount = subprocess.run(['mount', '-t', 'tmpfs', '-o', 'size=2m', 'tmpfs', tmp_path/'disk'], capture_output=True)
    if mount.returncode: pytest.skip('no right to mount a small disk')
    yield tmp_path/'disk'
    subprocess.run(['umount', '-l', tmp_path/'disk'], check=True)


@pytest.fixture
def home(tmp_path, monkeypatch):
    "The folder in which `auto` keeps squares."
    monkeypatch.setenv('XDG_CACHE_HOME', str(tmp_path/'home'))
    return tmp_path/'home'/'basegun-fastai'


def fill_up(disk, left=0): (disk/'filler').write_bytes(bytes(shutil.disk_usage(disk).free - left))


def make_read_only(disk): subprocess.run(['mount', '-o', 'remount,ro', disk], check=True)


def opened(data, table, folder, side=SIDE): return open_cache(data, [(side, table)], folder)


def read(cache, table, side=SIDE): return {file: cache(row, side) for row, file in table.file.items()}


def squares(data, table, folder): return read(opened(data, table, folder), table)


def filled(data, table, folder):
    "Make a complete file of squares."
    squares(data, table, folder)
    [file] = folder.glob('*.squares')
    return file


def kept(folder):
    "Count the squares in a folder."
    return sum(o.read(i) is not None for o in map(SquareFile, folder.glob('*.squares')) for i in range(o.photos))


def same(actual, right):
    return actual.keys() == right.keys() and all(np.array_equal(actual[o], right[o]) for o in right)


def changed(content, at, new): return content[:at] + new + content[at+len(new):]


def replace(file, by):
    "Replace a photo by another one."
    content = by.read_bytes()
    file.unlink()
    file.write_bytes(content + b'\0')


def counter(patch):
    "List every photo file that is read from now on."
    files, plain = [], photo.photo_bytes
    def noting(file):
        files.append(Path(file))
        return plain(file)
    for where in (photo, module): patch.setattr(where, 'photo_bytes', noting)
    return files


@contextmanager
def loaders(data, table, cache, workers):
    from basegun_fastai.model.loaders import dataloaders
    dls = dataloaders(data, sized(32, SIDE, mean=(0, 0, 0), std=(1, 1, 1)), table, 16, workers, 'cpu', cache)
    try: yield dls
    finally:
        for dl in dls.loaders: dl.close()


def two_sides(data, table, folder):
    return open_cache(data, [(side, table[table.split == o]) for side, o in ((SIDE, 'train'), (32, 'val'))], folder)


def trained(data, out, name, **options):
    result = typed('train', data, '--out', out, '--name', name, *OPTIONS, *as_arguments(**options))
    assert result.returncode == 0 and 'Traceback' not in result.stderr, result.stderr
    return out/name


@pytest.fixture(scope='module')
def runs(data, tmp_path_factory):
    "Trainings without a cache, with an empty and a full one, and with two workers; then the caches are removed."
    out, before, place, files = tmp_path_factory.mktemp('runs'), tree(data), {}, {}
    caches = out/'le cache à côté', out/'of two workers'
    with pytest.MonkeyPatch.context() as patch:
        for name, folder in dict(off='off', cold=caches[0], warm=caches[0]).items():
            files[name] = counter(patch)
            place[name] = trained(data, out, name, cache=folder)
            patch.undo()
    place['workers'] = trained(data, out, 'workers', cache=caches[1], workers=2)
    full = [kept(o) for o in caches]
    for o in caches: shutil.rmtree(o)
    return SimpleNamespace(place=place, files=files, full=full, cache=caches[0], unchanged=tree(data) == before)


@pytest.mark.parametrize('file', ['model.safetensors', 'predictions-val.csv', 'metrics.json'])
def test_the_cache_changes_the_time_alone(runs, file):
    first, *others = [(o/file).read_bytes() for o in runs.place.values()]
    assert len(others) == 3 and all(o == first for o in others)


def test_a_training_reads_each_photo_once_and_the_next_reads_none(runs):
    begin = len(runs.files['warm'])  # fastai reads the first photo, in the size of val, when it makes the loaders
    assert begin <= 2 and {o.name for o in runs.files['warm']} <= {'0000.jpg'}
    assert len(set(runs.files['cold'])) == 72 == len(runs.files['cold']) - begin
    assert len(runs.files['off']) > 72 + begin and runs.full == [72, 72]


def test_nothing_in_the_data_is_changed(runs): assert runs.unchanged


@pytest.mark.filterwarnings('ignore:load_learner')
def test_an_exported_learner_knows_nothing_of_the_cache(runs, data):
    from fastai.learner import load_learner
    pkl, rows = runs.place['warm']/'learner.pkl', pd.read_csv(runs.place['off']/'predictions-val.csv')
    inside = zipfile.ZipFile(pkl)
    pieces = [inside.read(o) for o in inside.namelist()]
    assert len(pieces) > 1 and not [o for o in pieces if b'squares' in o or runs.cache.name.encode() in o]
    learn = load_learner(pkl)
    actual = learn.get_preds(dl=learn.dls.test_dl([data/o for o in rows.file]))[0].numpy()
    assert not runs.cache.exists() and np.abs(actual - rows[list(learn.dls.vocab)].to_numpy()).max() < 1e-5


def test_a_run_may_go_on_with_another_cache(runs, data, tmp_path):
    shutil.copytree(runs.place['cold'], tmp_path/'run')
    config = json.loads((tmp_path/'run'/'config.json').read_text())
    (tmp_path/'run'/'config.json').write_text(json.dumps(config | dict(state='running')))
    result = typed('train', data, '--out', tmp_path, '--name', 'run', '--resume', *OPTIONS, '--cache', tmp_path/'other')
    assert result.returncode == 0 and kept(tmp_path/'other') == 72, result.stderr
    assert (tmp_path/'run'/'model.safetensors').read_bytes() == (runs.place['off']/'model.safetensors').read_bytes()


@pytest.mark.parametrize('where', ['inside', 'the data itself', 'a link'])
def test_a_cache_inside_the_data_is_refused(data, tmp_path, where):
    (tmp_path/'link').symlink_to(data/'train')
    folder = {'inside': data/'squares', 'the data itself': data, 'a link': tmp_path/'link'/'squares'}[where]
    before = tree(data)
    result = typed('train', data, '--out', tmp_path/'out', *OPTIONS, '--cache', folder)
    assert result.returncode == 1 and '--cache' in result.stderr and 'is inside the data' in result.stderr
    assert tree(data) == before and not (tmp_path/'out').exists()


def test_a_cache_below_a_file_is_refused(data, tmp_path):
    (tmp_path/'file').touch()
    result = typed('train', data, '--out', tmp_path/'out', *OPTIONS, '--cache', tmp_path/'file'/'squares')
    assert result.returncode == 1 and "file' is a file" in result.stderr and not (tmp_path/'out').exists()


def test_off_keeps_nothing(data, table, home, expected):
    assert same(read(opened(data, table, 'off'), table), expected) and not home.exists()


def test_two_processes_fill_one_file_at_once(filling, table, expected, tmp_path):
    both = [filling(tmp_path/'cache') for _ in range(2)]
    for o in both:
        o.stdin.write('\n' * 73)
        o.stdin.flush()
    text = [o.communicate() for o in both]
    assert [len(out.splitlines()) for out, _ in text] == [72, 72] and not any(err for _, err in text), text
    assert len(list((tmp_path/'cache').iterdir())) == 1 and kept(tmp_path/'cache') == 72
    assert same(squares(NOWHERE, table, tmp_path/'cache'), expected)


def test_making_the_file_again_leaves_what_is_in_it(data, table, tmp_path):
    file = filled(data, table, tmp_path)
    before = tree(tmp_path)
    again = make_square_file(tmp_path, SIDE, SquareFile(file).digests)
    assert again.file == file and again.read(71) is not None and tree(tmp_path) == before


def test_what_a_killed_process_has_filled_is_used(filling, data, table, expected, tmp_path):
    process, first = filling(tmp_path/'cache'), table.head(20)
    process.stdin.write('\n' * 22)
    process.stdin.flush()
    for _ in range(20): process.stdout.readline()
    process.kill()  # while it writes the 21st square, or after
    assert process.wait() == -signal.SIGKILL and 20 <= kept(tmp_path/'cache') <= 21
    assert same(squares(NOWHERE, first, tmp_path/'cache'), {o: expected[o] for o in first.file})
    assert same(squares(data, table, tmp_path/'cache'), expected)
    assert kept(tmp_path/'cache') == 72 and len(list((tmp_path/'cache').iterdir())) == 1


@pytest.mark.parametrize('there', [True, False])
def test_a_spawned_process_reads_the_same_squares(data, table, expected, tmp_path, monkeypatch, capfd, there):
    (tmp_path/'asking.py').write_text('import numpy as np\ndef ask(out, made, rows, side):\n'
                                      '    np.save(out, [made(o, side) for o in rows])\n')
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.delitem(sys.modules, 'asking', raising=False)
    file, where, some = filled(data, table, tmp_path/'cache'), NOWHERE if there else data, table[::9]
    place = opened(where, table, tmp_path/'cache')
    if not there: file.unlink()
    process = multiprocessing.get_context('spawn').Process(target=importlib.import_module('asking').ask, args=(
        tmp_path/'found.npy', place, some.index.tolist(), SIDE))
    process.start()
    process.join(60)
    assert process.exitcode == 0 and (np.load(tmp_path/'found.npy') == [expected[o] for o in some.file]).all()
    assert ('so each is decoded again' in capfd.readouterr().err) == (not there)


def test_a_pickle_for_later_holds_no_squares(data, table, tmp_path):
    assert pickle.loads(pickle.dumps(opened(data, table, tmp_path))) is None


DAMAGES = {
    'garbage in the middle': lambda o: changed(o, len(o) // 2, b'garbage'),
    'one bit': lambda o: o[:-1] + bytes([o[-1] ^ 1]),
    'cut short': lambda o: o[:len(o) // 2] + bytes(len(o) - len(o) // 2),
    'only the sum': lambda o: o[:8] + bytes(len(o) - 8),
    'no sum': lambda o: bytes(8) + o[8:],
    'nothing': lambda o: bytes(len(o)),
    'nothing, and its sum': lambda o: (1 << 32).to_bytes(8) + bytes(len(o) - 8),
}


@pytest.mark.parametrize('damage', DAMAGES)
def test_a_damaged_square_is_read_again_and_mended(data, table, expected, tmp_path, damage):
    file = filled(data, table, tmp_path)
    whole = file.read_bytes()
    at = len(whole) - 5 * RECORD
    file.write_bytes(changed(whole, at, DAMAGES[damage](whole[at:at+RECORD])))
    assert kept(tmp_path) == 71 and same(squares(data, table, tmp_path), expected) and file.read_bytes() == whole


def test_squares_that_changed_places_are_not_used(data, table, expected, tmp_path):
    file = filled(data, table, tmp_path)
    whole = file.read_bytes()
    file.write_bytes(whole[:-2*RECORD] + whole[-RECORD:] + whole[-2*RECORD:-RECORD])
    assert kept(tmp_path) == 70 and same(squares(data, table, tmp_path), expected) and file.read_bytes() == whole


def test_squares_under_the_digests_of_other_photos_are_not_used(data, table, expected, tmp_path):
    for half in (table[::2], table[1::2]): squares(data, half, tmp_path)
    one, two = sorted(tmp_path.iterdir())
    first, second, end = one.read_bytes(), two.read_bytes(), 256 + 32 * 36
    assert len(first) == len(second) == end + 36 * RECORD
    one.write_bytes(changed(first, 256, second[256:end]))
    two.write_bytes(changed(second, 256, first[256:end]))
    for o in (data, NOWHERE): assert same(squares(o, table, tmp_path), expected)


@pytest.mark.parametrize(('at', 'size'), [(0, 9), (32 * 35, 9), (32 * 71, 9), (0, 32 * 72)])
def test_squares_whose_digests_are_damaged_are_kept_again(data, table, expected, tmp_path, at, size):
    file = filled(data, table, tmp_path)
    file.write_bytes(changed(file.read_bytes(), 256 + at, b'z' * size))
    for o in (data, NOWHERE): assert same(squares(o, table, tmp_path), expected)


@pytest.mark.parametrize('length', [0, 100, 300, -5000, -1, 1])
def test_a_file_of_another_length_is_told_and_the_photos_are_right(data, table, expected, tmp_path, capsys, length):
    file = filled(data, table, tmp_path)
    os.truncate(file, length if 1 < length or not length else file.stat().st_size + length)
    assert same(squares(data, table, tmp_path), expected)
    assert capsys.readouterr().err.count(f"'{file}' is not used (") == 1


@pytest.mark.parametrize('content', [b'{}', b'[]', b'7', b'null', b'\xff' * 400, b'{"side": "a", "photos": "b"}'])
def test_a_file_of_something_else_is_told_and_the_photos_are_right(data, table, expected, tmp_path, capsys, content):
    (tmp_path/f'{SIDE}-mine.squares').write_bytes(content.ljust(300))
    assert same(squares(data, table, tmp_path), expected) and "mine.squares' is not used (" in capsys.readouterr().err


@pytest.mark.parametrize('length', [0, 1000, 50000])
def test_a_file_that_is_cut_while_it_is_used_harms_nothing(data, table, expected, tmp_path, length):
    file = filled(data, table, tmp_path)
    place = opened(data, table, tmp_path)
    os.truncate(file, length)
    for _ in range(2): assert same(read(place, table), expected)


def test_squares_of_another_decoder_are_not_used(data, table, expected, tmp_path, monkeypatch, capsys):
    filled(data, table, tmp_path)
    monkeypatch.setattr('basegun_fastai.data.contents.DECODER', 99)
    files = counter(monkeypatch)
    assert same(squares(data, table, tmp_path), expected) and len(files) == 72
    assert 'of another version' in capsys.readouterr().err


def test_a_named_folder_with_too_little_room_is_an_error(data, disk, tmp_path):
    result = typed('train', data, '--out', tmp_path/'out', *OPTIONS, *as_arguments(size=128, cache=disk/'cache'))
    assert result.returncode == 1 and '--cache off' in result.stderr, result.stderr
    assert ' MiB is more than the free ' in result.stderr
    assert not (tmp_path/'out').exists() and not any((disk/'cache').iterdir())


def test_auto_takes_half_of_the_room_and_a_named_folder_all(data, table, disk, monkeypatch, capsys):
    monkeypatch.setenv('XDG_CACHE_HOME', str(disk))
    place = opened(data, table, 'auto', 80)
    assert not any(o.file for o in place.squares) and 'is more than half of the free ' in capsys.readouterr().err
    assert opened(data, table, disk, 80) and opened(data, table, 'auto', 40) and not capsys.readouterr().err


def test_no_room_for_the_file_itself_leaves_nothing(data, table, disk):
    fill_up(disk)
    with pytest.raises(BasegunError, match='--cache off'): opened(data, table, disk)
    with pytest.raises(OSError, match='No space'): make_square_file(disk, SIDE, module._digests(table))
    assert [o.name for o in disk.iterdir()] == ['filler']


def test_a_disk_that_fills_up_is_told_once(data, table, expected, disk, capsys):
    place, first = opened(data, table, disk), table.head(5)
    read(place, first)
    fill_up(disk)
    for _ in range(2): assert same(read(place, table), expected)
    text = capsys.readouterr().err
    assert len(text.splitlines()) == 1 and 'No space left' in text and str(disk) in text
    (disk/'filler').unlink()
    assert same(squares(NOWHERE, first, disk), {o: expected[o] for o in first.file})
    assert same(squares(data, table, disk), expected) and kept(disk) == 72


def test_a_disk_that_fills_up_is_told_twice_at_most_by_two_workers(data, table, disk, capfd):
    place = two_sides(data, table, disk)
    fill_up(disk, left=5 * 4096)
    with loaders(data, table, place, 2) as dls:
        for _ in range(2):
            assert len(list(dls.train)) == 3
            calls = torch.cat([x for x, _ in dls.valid]).permute(0, 2, 3, 1)
            assert np.array_equal((calls * 255).round(), [pixels(dls.photos.path(o), 32) for o in dls.valid.items])
    assert 1 <= capfd.readouterr().err.count('No space left') <= 2 and kept(disk) < 72


def test_auto_goes_on_where_nothing_can_be_written(runs, data, disk, tmp_path, monkeypatch):
    make_read_only(disk)
    monkeypatch.setenv('XDG_CACHE_HOME', str(disk/'home'))
    result = typed('train', data, '--out', tmp_path, '--name', 'run', *OPTIONS)
    assert result.returncode == 0, result.stderr
    assert result.stderr.count("basegun-fastai/squares' cannot hold them") == 1, result.stderr
    assert (tmp_path/'run'/'model.safetensors').read_bytes() == (runs.place['off']/'model.safetensors').read_bytes()


def test_a_named_folder_that_cannot_be_written_is_an_error(data, table, disk):
    make_read_only(disk)
    for folder in (disk, disk/'cache'):
        with pytest.raises(BasegunError, match='--cache off'): opened(data, table, folder)


def test_a_full_cache_on_a_read_only_disk_is_used(data, table, expected, disk, capsys):
    filled(data, table, disk)
    make_read_only(disk)
    assert same(squares(NOWHERE, table, disk), expected) and not capsys.readouterr().err


def test_a_cache_on_a_read_only_disk_that_is_not_full_is_told_once(data, table, expected, disk, capsys):
    read(opened(data, table, disk), table.head(40))
    make_read_only(disk)
    assert same(squares(data, table, disk), expected) and len(capsys.readouterr().err.splitlines()) == 1


def test_a_full_cache_of_another_user_is_used(filling, data, table, tmp_path):
    filled(data, table, tmp_path/'cache').chmod(0o444)
    (tmp_path/'cache').chmod(0o555)
    process = filling(tmp_path/'cache', *['setpriv', '--bounding-set=-all'] * (os.getuid() == 0))  # else root may write
    out, err = process.communicate('\n' * 73)
    assert process.returncode == 0 and len(out.splitlines()) == 72 and not err, err


def test_a_photo_that_is_replaced_between_two_trainings_is_seen(copy, table, expected, tmp_path):
    before = squares(copy, table, tmp_path/'cache')
    replace(copy/ONE, copy/OTHER)
    now = known_contents(copy, list_photos(copy))
    after = squares(copy, now, tmp_path/'cache')
    assert same(before, expected) and same(after, expected | {ONE: expected[OTHER]})
    assert (after[ONE] != before[ONE]).any() and fingerprint(now) != fingerprint(table)


@pytest.mark.parametrize('workers', [0, 2])
@pytest.mark.parametrize('name', [ONE, JUDGED])
@pytest.mark.parametrize('folder', ['cache', 'off'])
def test_a_photo_that_is_replaced_before_its_first_reading_is_an_error(copy, table, tmp_path, workers, name, folder):
    place = two_sides(copy, table, folder if folder == 'off' else tmp_path/folder)
    replace(copy/name, copy/OTHER)
    with loaders(copy, table, place, workers) as dls:
        with pytest.raises(ChangedPhoto, match=f'{name}.*has changed') as result: list(dls[name == JUDGED])
        traceback.clear_frames(result.tb)  # they hold the workers


def test_a_worker_says_in_one_line_that_a_photo_has_changed(copy, table, tmp_path):
    place = two_sides(copy, table, tmp_path/'cache')
    replace(copy/JUDGED, copy/OTHER)
    with loaders(copy, table, place, 2) as dls:
        with pytest.raises(ChangedPhoto) as result: list(dls.valid)
        traceback.clear_frames(result.tb)
    assert len(str(result.value).splitlines()) == 1


def test_a_photo_that_is_replaced_after_its_first_reading_stays_what_was_examined(copy, table, expected, tmp_path):
    place = opened(copy, table, tmp_path/'cache')
    read(place, table)
    replace(copy/ONE, copy/OTHER)
    assert same(read(place, table), expected)


@pytest.mark.parametrize('workers', [0, 2])
def test_a_photo_that_is_gone_before_its_first_reading_is_named_in_one_line(copy, table, tmp_path, workers):
    place = two_sides(copy, table, tmp_path/'cache')
    (copy/JUDGED).unlink()
    with loaders(copy, table, place, workers) as dls:
        with pytest.raises(UnreadablePhoto, match=f'{JUDGED}.: No such file or directory$') as result: list(dls.valid)
        traceback.clear_frames(result.tb)


def test_photos_that_are_moved_or_renamed_keep_their_squares(data, table, expected, tmp_path):
    filled(data, table, tmp_path)
    renamed = table.assign(file=[f'autre/{o}' for o in table.file])
    actual = squares(NOWHERE, renamed, tmp_path)
    assert same(actual, {f'autre/{k}': v for k, v in expected.items()}) and len(list(tmp_path.iterdir())) == 1


def test_new_photos_alone_get_new_places(data, table, expected, tmp_path):
    for part in (table[::3], table, table[::2]):
        assert same(squares(data, part, tmp_path), {o: expected[o] for o in part.file})
    assert sorted(SquareFile(o).photos for o in tmp_path.iterdir()) == [24, 48] and kept(tmp_path) == 72


def with_digest(content, start, end):
    "Lengthen a photo until its digest starts with `start` and ends with `end`."
    longer = (content + o.to_bytes(3) for o in range(2**16))
    return next(o for o in longer if (digest := hashlib.sha256(o).digest()).startswith(start) and digest.endswith(end))


@pytest.fixture
def odd(tmp_path):
    "Photos of odd names and digests; each of four folders has one of them twice."
    names, data = [b'caf\xe9\n.png', 'un été.png'.encode(), b'- a  b.png', b"'.png", b'\\n.png'], tmp_path/'odd \udce9'
    for i, folder in enumerate(data/split/label for split in ('train', 'val') for label in ('a', 'b c')):
        folder.mkdir(parents=True)
        for j, name in enumerate(map(os.fsdecode, names)):
            out, zeros = BytesIO(), {0: (b'\0', b''), 1: (b'', b'\0')}.get(j, (b'', b''))
            Image.fromarray(np.random.default_rng([i, j]).integers(0, 256, (9, 30, 3), np.uint8)).save(out, 'PNG')
            (folder/name).write_bytes(with_digest(out.getvalue(), *zeros))
        shutil.copy(folder/name, folder/'again.png')
    return data


def test_odd_photos_are_kept(odd, tmp_path, capsys):
    table = known_contents(odd, list_photos(odd))
    assert len(table) == 24 and not table.reason.any() and sum(o.endswith('00') for o in table.digest) >= 4
    cache, right = tmp_path/'cache \udce9', {o: pixels(odd/o, 24) for o in table.file}
    for data in (odd, Path(NOWHERE)):
        place = open_cache(data, [(24, table[table.split == o]) for o in ('train', 'val')], cache)  # of one size
        assert same(read(place, table, 24), right)
    [file] = cache.iterdir()
    assert kept(cache) == 20 == SquareFile(file).photos and not capsys.readouterr().err


def test_a_training_on_odd_photos(odd, tmp_path):
    for name in ('cold', 'warm'): trained(odd, tmp_path, name, cache=tmp_path/'cache \udce9', batch_size=6)
    cold, warm = ((tmp_path/o/'predictions-val.csv').read_bytes() for o in ('cold', 'warm'))
    assert cold == warm and kept(tmp_path/'cache \udce9') == 20


def test_what_has_no_place_is_read_as_it_is(data, table, expected, tmp_path):
    place, other = two_sides(data, table, tmp_path/'cache'), tmp_path/'0002.jpg'
    shutil.copy(data/ONE, other)
    square = PhotoSquare(SIDE, SIDE, place)
    for o in (data/ONE, other, str(other), other.read_bytes()):
        assert np.array_equal(square(o, split_idx=1).permute(1, 2, 0), expected[ONE])
    judged = table.index[table.file == JUDGED][0]
    for side in (20, SIDE): assert np.array_equal(place(judged, side), pixels(data/JUDGED, side))
    assert kept(tmp_path/'cache') == 0


def test_a_photo_elsewhere_is_not_taken_for_one_of_the_same_name(data, table, expected, tmp_path, monkeypatch):
    place = opened(data, table, tmp_path/'cache')
    read(place, table)
    (tmp_path/ONE).parent.mkdir(parents=True)
    shutil.copy(data/OTHER, tmp_path/ONE)
    monkeypatch.chdir(tmp_path)
    for o in (ONE, Path(ONE)): assert np.array_equal(PhotoSquare(SIDE, SIDE, place)(o, split_idx=1).permute(1, 2, 0),
                                                     expected[OTHER])


@pytest.mark.parametrize('other', [
    lambda table: table.assign(file=table.file.tolist()[::-1]), lambda table: table.reset_index(drop=True),
    lambda table: table.set_index(table.index + 1)])
def test_rows_of_another_table_are_refused(data, table, other):
    place = opened(data, table[1:], 'off')
    assert place.rows(table[5:9]).tolist() == [5, 6, 7, 8]
    with pytest.raises(ValueError, match='are not in this cache'): place.rows(other(table[1:]))


def test_data_may_be_the_working_folder(data, table, expected, tmp_path, monkeypatch):
    monkeypatch.chdir(data)
    assert same(squares('.', table, tmp_path), expected) and kept(tmp_path) == 72


def test_the_cache_is_listed_and_cleared_under_a_training(home, data, expected):
    table = known_contents(data, list_photos(data))
    file = filled(data, table, home/'squares')
    place, before, result = opened(NOWHERE, table, 'auto'), tree(home), typed('cache')
    assert result.returncode == 0 and f'{SIDE:>6} ' in result.stdout and file.stem.split('-')[1] in result.stdout
    assert '1 data set,' in result.stdout and str(home/'squares') in result.stdout and tree(home) == before
    result = typed('cache', '--clear')
    assert result.returncode == 0 and 'removed' in result.stdout and not [o for o in home.rglob('*') if o.is_file()]
    assert same(read(place, table), expected)
    assert 'nothing is kept' in typed('cache').stdout


def test_a_place_is_filled_after_the_cache_was_cleared(home, data, table, expected, monkeypatch):
    place = opened(data, table, 'auto')
    assert typed('cache', '--clear').returncode == 0 and not any((home/'squares').iterdir())
    files = counter(monkeypatch)
    for _ in range(2): assert same(read(place, table), expected)
    assert len(files) == 72


def test_clearing_a_folder_removes_squares_and_nothing_else(home, data, table, tmp_path):
    folder = tmp_path/'cache'
    filled(data, table, folder)
    known_contents(data, table[['file', 'label', 'split']])
    (folder/'notes.txt').touch()
    (folder/f'.{"0" * 16}.new').touch()  # left by a process that was killed while it made a file
    (folder/'.run.new').mkdir()  # left by a training that was killed while it started a run here
    result = typed('cache', '--clear', '--folder', folder)
    assert result.returncode == 0 and sorted(o.name for o in folder.iterdir()) == ['.run.new', 'notes.txt'], result
    assert len(list((home/'contents').iterdir())) == 1


def test_a_cache_that_is_not_there(home, tmp_path):
    result = typed('cache', '--folder', tmp_path/'nowhere')
    assert result.returncode == 1 and 'no such folder' in result.stderr
    for o in ([], ['--clear']): assert typed('cache', *o).returncode == 0 and not home.exists()
