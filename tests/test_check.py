"`check` finds every planted fault, reports no others, and changes nothing."
import json
import os
import re
import shutil
import socket
from collections import Counter
from pathlib import Path

import pandas as pd
import pytest
from conftest import tree, typed
from PIL import Image, ImageEnhance, ImageOps

from basegun_fastai.check import summarise, summary_text
from basegun_fastai.data.folders import ODD_FILES, SPLITS
from basegun_fastai.data.pages import check_page
from basegun_fastai.data.problems import odd_problems, unreadable_problems

pytestmark = pytest.mark.slow


LARGE = ['epaule_a_pompe', 'epaule_a_verrou', 'pistolet_semi_auto_moderne', 'revolver']


def photo(folder, number=4):
    return sorted(folder.glob('*.jpg'))[number - 4 if number < 0
                                        else min(number, len(sorted(folder.glob('*.jpg'))) - 1)]


def checked(data, tmp_path, *options):
    "Run `check`, and return its exit code, its JSON and what it printed."
    before = tree(data)
    result = typed('check', data, '--json', tmp_path/'found.json', *options)
    assert tree(data) == before and 'Traceback' not in result.stderr
    return result.returncode, json.loads((tmp_path/'found.json').read_text()), result


def kinds(actual): return Counter((o['level'], o['kind']) for o in actual['problems'])


def files_of(actual, kind): return {file for o in actual['problems'] if o['kind'] == kind for file in o['files']}


@pytest.fixture(scope='module')
def large(tmp_path_factory):
    "Drawn data without problems, with enough photos of each class: 24 and 20."
    import numpy as np

    from basegun_fastai.data.demo import draw_photo
    out = tmp_path_factory.mktemp('large')/'data'
    for split, n in dict(train=24, val=20).items():
        for c, label in enumerate(LARGE):
            (out/split/label).mkdir(parents=True)
            for i in range(n):
                draw_photo(label, np.random.default_rng([n, c, i]), (320, 240)).save(out/split/label/f'{i:04d}.jpg')
    return out


@pytest.fixture
def clean(large, tmp_path):
    "A copy of `large` that a test may change."
    shutil.copytree(large, tmp_path/'data', copy_function=os.link)
    return tmp_path/'data'


def test_nothing_is_wrong_with_a_clean_data_set(clean, tmp_path):
    code, actual, result = checked(clean, tmp_path)
    assert code == 0 and actual['problems'] == []
    assert actual['photos'] == actual['ok'] == 176 and actual['warned'] == actual['refused'] == 0
    assert actual['counts'] == {split: {o.name: n for o in sorted((clean/split).iterdir())}
                               for split, n in dict(train=24, val=20).items()}
    assert result.stdout == ('176 photos in 4 classes: 96 train and 80 val\n'
                             '176 photos: 176 ok, 0 with a warning, 0 with an error\n')


def test_every_photo_that_cannot_be_read_is_named_with_its_reason(clean, tmp_path):
    folder = clean/'train'/'revolver'
    content = photo(folder).read_bytes()
    (folder/'empty.jpg').touch()
    (folder/'half.jpg').write_bytes(content[:len(content) // 2])
    (folder/'text.png').write_text('no photo')
    (folder/'new\nline.jpg').write_bytes(b'\xff\xd8\xff\xe0')
    code, actual, result = checked(clean, tmp_path)
    assert code == 1 and kinds(actual) == {('error', 'unreadable'): 4} and actual['refused'] == 4
    reasons = {o['files'][0].split('/')[-1]: o['message'] for o in actual['problems']}
    assert ('empty' in reasons['empty.jpg'] and 'truncated' in reasons['half.jpg']
            and 'not a photo' in reasons['text.png']
            and reasons['new\nline.jpg'])
    assert '4 errors' in result.stderr and len(result.stdout.splitlines()) == 6


def test_a_photo_that_may_not_be_read(clean, tmp_path):
    if os.geteuid() == 0: pytest.skip('root may read everything')
    photo(clean/'val'/'revolver').unlink()
    (clean/'val'/'revolver'/'closed.jpg').write_bytes(b'x')
    (clean/'val'/'revolver'/'closed.jpg').chmod(0)
    assert 'denied' in checked(clean, tmp_path)[1]['problems'][0]['message']


@pytest.mark.parametrize('wrapping', ['bytes', 'metadata', 'png', 'bmp', 'webp', 'turned'])
def test_the_same_photo_in_train_and_val_is_a_leak_in_any_wrapping(clean, tmp_path, wrapping):
    source, target = photo(clean/'train'/'revolver'), clean/'val'/'revolver'/'other'
    image = Image.open(source)
    if wrapping == 'bytes': shutil.copy(source, target)
    elif wrapping == 'metadata':
        target.write_bytes(source.read_bytes()[:2] + b'\xff\xfe\x00\x07hello' + source.read_bytes()[2:])
    elif wrapping == 'turned':
        exif = Image.Exif()
        exif[274] = 6
        image.convert('RGB').transpose(Image.Transpose.ROTATE_90).save(target, 'PNG', exif=exif)
    else:
        image.convert('RGB').save(target, wrapping.upper(), **dict(lossless=True, exact=True) if wrapping == 'webp'
                                  else {})
    code, actual, _ = checked(clean, tmp_path)
    assert code == 1 and kinds(actual) == {('error', 'leak'): 1}
    assert files_of(actual, 'leak') == {f'train/revolver/{source.name}', 'val/revolver/other'}
    assert actual['refused'] == 2 and actual['ok'] == 175


def test_the_same_photo_under_two_labels_is_a_conflict(clean, tmp_path):
    shutil.copy(photo(clean/'train'/'revolver'), clean/'train'/'epaule_a_pompe'/'other.jpg')
    Image.open(photo(clean/'val'/'revolver', 6)).convert('RGB').save(clean/'val'/'epaule_a_pompe'/'other.png')
    code, actual, _ = checked(clean, tmp_path)
    assert code == 1 and kinds(actual) == {('error', 'conflict'): 2}


def test_a_photo_on_both_sides_under_two_labels_is_both(clean, tmp_path):
    shutil.copy(photo(clean/'train'/'revolver'), clean/'val'/'epaule_a_pompe'/'other.jpg')
    assert kinds(checked(clean, tmp_path)[1]) == {('error', 'conflict'): 1, ('error', 'leak'): 1}


def test_classes_that_differ_or_are_empty(clean, tmp_path):
    shutil.rmtree(clean/'val'/'revolver')
    (clean/'train'/'vide').mkdir()
    (clean/'val'/'vide').mkdir()
    code, actual, _ = checked(clean, tmp_path)
    assert code == 1 and kinds(actual) == {('error', 'class-mismatch'): 1, ('error', 'empty-class'): 2}
    assert files_of(actual, 'class-mismatch') == {'train/revolver'} and files_of(actual,
        'empty-class') == {'train/vide',
        'val/vide'}
    assert actual['counts']['train']['vide'] == 0 and 'revolver' not in actual['counts']['val']


EDITS = {'saved again': lambda o: o, 'shrunk': lambda o: o.resize((o.width // 2, o.height // 2)),
         'mirrored': lambda o: o.transpose(Image.Transpose.FLIP_LEFT_RIGHT),
         'darker': lambda o: ImageEnhance.Brightness(o).enhance(.8),
         'brighter': lambda o: ImageEnhance.Brightness(o).enhance(1.2), 'grey': lambda o: o.convert('L'),
         'cropped': lambda o: o.crop((o.width // 20, o.height // 20, o.width, o.height)),
         'cropped by a sixth': lambda o: o.crop((o.width // 6, 0, o.width, o.height - o.height // 6)),
         'captioned': lambda o: ImageOps.expand(o, (0, 0, 0, o.height // 6), 'white'),
         'on a phone': lambda o: ImageOps.pad(o, (390, 844))}


def test_near_duplicates_across_the_folders_are_warnings(clean, tmp_path):
    sources = sorted((clean/'train'/'pistolet_semi_auto_moderne').glob('*.jpg'))[4:]
    for (name, edit), source in zip(EDITS.items(), sources, strict=False):
        edit(Image.open(source)).save(clean/'val'/'pistolet_semi_auto_moderne'/f'{name}.jpg', quality=80)
    code, actual, _ = checked(clean, tmp_path)
    assert code == 0 and {o['kind'] for o in actual['problems']} <= {'near-duplicate', 'small'}
    pairs = {(Path(a).name, Path(b).stem) for a, b in (o['files'] for o in actual['problems']
                                                       if o['kind'] == 'near-duplicate')}
    assert pairs == {(source.name, name) for name, source in zip(EDITS, sources, strict=False)}
    for o in actual['problems']:
        if o['kind'] == 'near-duplicate':
            assert ('the same photo, one of them mirrored (' in o['message']) == ('/mirrored.jpg' in o['message']), o


def test_near_duplicates_on_one_side_are_no_problem(clean, tmp_path):
    Image.open(photo(clean/'train'/'revolver')).save(clean/'train'/'revolver'/'again.jpg', quality=60)
    assert checked(clean, tmp_path)[1]['problems'] == []


def test_small_photos_too_few_and_too_unequal(clean, tmp_path):
    Image.new('RGB', (100, 80), 'red').save(clean/'train'/'revolver'/'small.png')
    for o in sorted((clean/'val'/'revolver').iterdir())[:1]: o.unlink()
    for o in sorted((clean/'train'/'epaule_a_pompe').iterdir())[2:]: o.unlink()
    code, actual, _ = checked(clean, tmp_path)
    assert code == 0 and kinds(actual) == {('warning', o): 1 for o in ('blank', 'small', 'few-val', 'imbalance')}
    assert files_of(actual, 'imbalance') == {'train/revolver', 'train/epaule_a_pompe'} and files_of(actual,
        'few-val') == {'val/revolver'}
    assert not kinds(checked(clean, tmp_path, '--size', 100)[1])['warning', 'small']


def test_odd_files_are_told_and_never_waited_for(clean, tmp_path, monkeypatch):
    folder = clean/'val'/'revolver'
    os.mkfifo(folder/'pipe.jpg')
    with socket.socket(socket.AF_UNIX) as listening:
        with monkeypatch.context() as patch:
            patch.chdir(folder)
            listening.bind('socket.jpg')  # the kernel takes 107 bytes, and a temporary folder's path may be longer
        (folder/'loop').symlink_to('loop')
        (folder/'nowhere.jpg').symlink_to('gone.jpg')
        (folder/'link.jpg').symlink_to(photo(clean/'val'/'epaule_a_verrou').resolve())
        (folder/'.DS_Store').touch()
        (clean/'train'/'Thumbs.db').touch()
        (folder/os.fsdecode(b'caf\xe9.jpg')).write_bytes(photo(clean/'train'/'revolver').read_bytes() + b'trailer')
        code, actual, result = checked(clean, tmp_path)
    assert code == 1 and kinds(actual)['warning', 'odd-file'] == 5
    assert files_of(actual, 'odd-file') == {'val/revolver/' + o
                                           for o in ('pipe.jpg', 'socket.jpg', 'loop', 'nowhere.jpg', 'link.jpg',
                                                     '.DS_Store',
                                                                        'caf\udce9.jpg')} | {'train/Thumbs.db'}
    assert actual['photos'] == 178 and actual['ok'] + actual['warned'] + actual['refused'] == 178
    assert sum(n for part in actual['counts'].values() for n in part.values()) == 178
    assert actual['warned'] == 0 and actual['refused'] == 4  # two of 176 are copied by the link and the trailer
    assert result.stdout.startswith('178 photos in 4 classes: 96 train and 82 val\n'
                                    '178 photos: 174 ok, 0 with a warning, 4 with an error\n')
    # the link, and the photo with a trailer
    assert kinds(actual)['error', 'conflict'] == kinds(actual)['error', 'leak'] == 1


def test_odd_files_are_named_and_a_thousand_do_not_fill_the_screen(tmp_path):
    for split in SPLITS: (tmp_path/'data'/split/'revolver').mkdir(parents=True)
    for i in range(1000): (tmp_path/'data'/'train'/'revolver'/f'.{i:04}').touch()
    (tmp_path/'data'/'val'/'notes\n.txt').touch()
    problems, table = odd_problems(tmp_path/'data'), pd.DataFrame(columns=['file', 'split', 'label', 'reason'])
    summary = summarise(tmp_path/'data', table, problems)
    lines = [o.strip() for o in summary_text(summary, problems).splitlines()]
    assert lines[lines.index('val/notes\\n.txt') - 1].startswith('1 file outside the class folders')
    hidden = next(o for o in lines if o.startswith('train/revolver/.0000, train/revolver/.0001, '))
    assert hidden.endswith(' and 995 more') and lines[lines.index(hidden) - 1].startswith('1000 files hidden')
    page = check_page(tmp_path/'data', table, problems, summary)
    assert 'train/revolver/.0000, ' in page and ' and 980 more' in page and 'val/notes\\n.txt' in page


@pytest.mark.parametrize('why', ODD_FILES)
def test_what_is_odd_reads_well_for_one_file_and_for_many(why):
    assert not re.search(r'\b(it|they|them|such files|the others?|other files|photos into|links)\b',
                         ODD_FILES[why])
    assert 'read as photos' not in ODD_FILES[why] and 'used as photos' not in ODD_FILES[why]


@pytest.mark.parametrize(('n', 'noun'), [(1, 'photo'), (2, 'photos')])
def test_the_summary_counts_photos_with_the_words_of_the_problems(tmp_path, n, noun):
    for split in SPLITS: (tmp_path/'data'/split/'a').mkdir(parents=True)
    files = [f'val/a/{i}.jpg' for i in range(n)]
    table = pd.DataFrame(dict(file=files, split='val', label='a', reason='empty file'))
    problems = unreadable_problems(table)
    summary = summarise(tmp_path/'data', table, problems)
    assert f'\n{n} {noun}: 0 ok, 0 with a warning, {n} with an error\n' in summary_text(summary, problems)
    page = re.sub('<.*?>', ' ', check_page(tmp_path/'data', table, problems, summary).partition('<h2>')[0])
    assert ' '.join(page.split()).endswith(f' {n} {noun} 0 ok 0 with a warning {n} with an error')


def test_what_other_programs_leave_is_counted_and_spoils_nothing(clean, tmp_path):
    for o in ('train/revolver/Thumbs.db', 'train/revolver/a.xmp', 'val/desktop.ini', 'val/@eaDir/a.jpg'):
        (clean/o).parent.mkdir(exist_ok=True)
        (clean/o).write_bytes(b'no photo')
    code, actual, _ = checked(clean, tmp_path)
    assert code == 0 and kinds(actual) == {('warning', 'odd-file'): 1}
    assert files_of(actual, 'odd-file') == {'train/revolver/Thumbs.db', 'train/revolver/a.xmp', 'val/desktop.ini',
                                            'val/@eaDir'}


def test_a_class_whose_name_is_no_text_is_an_error(clean, tmp_path):
    for split in ('train', 'val'): (clean/split/'revolver').rename(clean/split/os.fsdecode(b'r\xe9volver'))
    code, actual, result = checked(clean, tmp_path)
    assert code == 1 and kinds(actual)['error', 'class-mismatch'] == 2 and 'is not UTF-8' in result.stdout


def test_folders_inside_classes_are_errors_and_their_links_not_followed(clean, tmp_path):
    (clean/'train'/'revolver'/'inner').mkdir()
    shutil.copy(photo(clean/'train'/'revolver'), clean/'train'/'revolver'/'inner'/'a.jpg')
    (clean/'train'/'revolver'/'up').symlink_to('../..')
    code, actual, _ = checked(clean, tmp_path)
    assert code == 1 and kinds(actual) == {('error', 'odd-file'): 1}
    assert files_of(actual, 'odd-file') == {'train/revolver/inner/a.jpg', 'train/revolver/up'}


def test_the_summary_fits_a_screen_whatever_is_wrong(clean, tmp_path):
    for i in range(300): (clean/'train'/'revolver'/f'bad {i}.jpg').write_bytes(b'x')
    for i in range(300):
        Image.new('RGB', (40, 40), (i % 256, i // 2, 99)).save(clean/'train'/'epaule_a_pompe'/f'small {i}.png')
    _, actual, result = checked(clean, tmp_path)
    assert len(result.stdout.splitlines()) <= 24 and 'unreadable 300' in result.stdout
    assert [o['level'] for o in actual['problems']] == sorted((o['level'] for o in actual['problems']))


@pytest.mark.parametrize(('options', 'words'), [
    (['--json', 'found.txt'], ['ends in .json']),
    (['--report', 'page.json', '--size', '0'], ['ends in .html', '--size 0']),
    (['--json', 'nowhere/found.json'], ["the folder 'nowhere' does not exist"])])
def test_options_that_make_no_sense(clean, tmp_path, monkeypatch, options, words):
    monkeypatch.chdir(tmp_path)
    result = typed('check', clean, *options)
    assert result.returncode == 1 and not result.stdout and all(o in result.stderr for o in words), result.stderr


def test_nothing_is_written_inside_the_data(clean):
    before = tree(clean)
    result = typed('check', clean, '--json', clean/'found.json', '--report', clean/'train'/'page.html')
    assert result.returncode == 1 and result.stderr.count('is inside the data') == 2 and tree(clean) == before


def test_what_is_no_data_set(tmp_path):
    result = typed('check', tmp_path)
    assert result.returncode == 1 and 'Missing: train/, val/. ' in result.stderr


def test_train_refuses_what_check_calls_a_leak_or_a_conflict(copy, tmp_path):
    shutil.copy(photo(copy/'train'/'revolver'), copy/'val'/'revolver'/'other.jpg')
    source = photo(copy/'train'/'revolver', 3)
    (copy/'train'/'epaule_a_pompe'/'other.jpg').write_bytes(source.read_bytes() + b'trailer')
    result = typed('train', copy, '--arch', 'test_efficientnet', '--weights', 'none', '--out', tmp_path/'runs')
    assert result.returncode == 1, result.stderr
    assert 'the same photo in train/ and val/' in result.stderr and 'under 2 labels' in result.stderr
    assert not (tmp_path/'runs').exists()


def test_every_command_sees_the_same_two_folders(): assert SPLITS == ('train', 'val')


def test_a_picture_that_is_there_hundreds_of_times_is_one_problem(clean, tmp_path):
    content = photo(clean/'train'/'revolver').read_bytes()
    for i in range(300): (clean/'train'/'revolver'/f'copy {i}.jpg').write_bytes(content)
    for i in range(3): (clean/'val'/'revolver'/f'copy {i}.jpg').write_bytes(content + bytes(i))
    code, actual, result = checked(clean, tmp_path)
    assert code == 1 and kinds(actual) == {('error', 'leak'): 1,
                                          ('warning', 'imbalance'): 1} and len(files_of(actual, 'leak')) == 304
    assert 'and 298 more' in result.stdout


def test_classes_that_look_alike_are_a_warning_and_twin_folders_an_error(clean, tmp_path):
    for split in SPLITS:
        (clean/split/'epaule_a_pompe').rename(clean/split/'Revolver')
        (clean/split/'epaule_a_verrou').rename(clean/split/'pistolet ')
    code, actual, result = checked(clean, tmp_path)
    assert code == 0 and kinds(actual) == {('warning', 'class-mismatch'): 2}
    names = ('Revolver', 'revolver', 'pistolet ')
    assert files_of(actual, 'class-mismatch') == {f'{s}/{o}' for s in SPLITS for o in names}
    assert "classes 'Revolver' and 'revolver' look the same: they differ in case" in result.stdout
    assert 'a space at an end' in result.stdout
    shutil.copytree(clean/'train'/'revolver', clean/'train'/'e\u0301te\u0301')
    shutil.move(clean/'train'/'pistolet ', clean/'train'/'été')
    code, actual, result = checked(clean, tmp_path)
    assert code == 1 and "class 'été' twice" in result.stdout and kinds(actual)['error', 'class-mismatch'] == 3


def test_photos_that_show_next_to_nothing_are_named_and_no_others(clean, tmp_path):
    import numpy as np
    from PIL import ImageDraw, ImageFilter
    folder, random = clean/'train'/'revolver', np.random.default_rng(0)
    dark = Image.fromarray(random.integers(0, 9, (300, 400, 3), np.uint8))  # the cap was on; a sensor is never silent
    words = Image.new('RGB', (300, 300), (246, 246, 246))
    for y, line in ((120, "WE'RE SORRY"), (150, 'THIS PICTURE COULD NOT'), (170, 'BE FOUND')):
        ImageDraw.Draw(words).text((60, y), line, (90, 90, 90), font_size=20)
    first = Image.open(photo(folder))
    planted = {'black.jpg': dark, 'white.png': Image.new('L', (500, 300), 255), 'words.gif': words,
               'blurred.jpg': first.filter(ImageFilter.GaussianBlur(50))}
    for name, image in planted.items(): image.save(folder/name)
    ImageEnhance.Contrast(first).enhance(.15).save(folder/'faint.jpg')
    first.filter(ImageFilter.GaussianBlur(5)).save(folder/'soft.jpg')
    code, actual, result = checked(clean, tmp_path)
    assert code == 0 and files_of(actual, 'blank') == {f'train/revolver/{o}' for o in planted}
    assert {o['message'].split(': ')[1].split(';')[0] for o in actual['problems'] if o['kind'] == 'blank'} == {
        'it shows one colour', 'it shows a few words on an empty page', 'it shows nothing but blur'}


def test_a_picture_that_a_class_has_many_times_is_one_line(clean, tmp_path):
    for label, n in (('revolver', 5), ('epaule_a_pompe', 3), ('epaule_a_verrou', 2)):
        folder = clean/'train'/label
        Image.effect_mandelbrot((300, 240), (-3, -2.5, 2, 2.5), 20 + n).convert('RGB').save(folder/'lost0.png')
        for i in range(1, n): shutil.copyfile(folder/'lost0.png', folder/f'lost{i}.png')
    code, actual, result = checked(clean, tmp_path)
    assert code == 0 and kinds(actual) == {('warning', 'repeated'): 1}
    assert files_of(actual, 'repeated') == {
        f'train/{label}/lost{i}.png' for label, n in (('revolver', 5), ('epaule_a_pompe', 3)) for i in range(n)}
    message = '2 pictures with more than 2 copies in a class, 8 files in all: train/revolver/lost0.png has 5 copies'
    assert message in result.stdout


def test_the_summary_says_how_to_see_the_problems_that_it_leaves_out(clean, tmp_path):
    hint = '2 more problems: add --json FILE.json or --report FILE.html to see all'
    for i in range(3): (clean/'train'/'revolver'/f'{i}.jpg').write_bytes(b'x')
    assert 'more problem' not in typed('check', clean).stdout
    for i in range(3, 5): (clean/'train'/'revolver'/f'{i}.jpg').write_bytes(b'x')
    assert typed('check', clean).stdout.splitlines()[-1] == hint
    assert hint not in checked(clean, tmp_path)[2].stdout


def test_a_weapon_in_train_and_val_is_an_error(clean, tmp_path):
    (tmp_path/'g.csv').write_text('file,group\n' + ''.join(
        f'{o.relative_to(clean).as_posix()},{group}\n' for group, folders in
        {'Nagant 1': ('train/revolver', 'val/revolver'), 'Lebel': ('train/epaule_a_verrou',)}.items()
        for folder in folders for o in sorted((clean/folder).iterdir())[:7 if 'train' in folder else 2]))
    code, actual, result = checked(clean, tmp_path, '--groups', tmp_path/'g.csv')
    assert code == 1 and kinds(actual) == {('error', 'group-leak'): 1} and actual['refused'] == 9
    problem, = actual['problems']
    assert problem['message'].startswith("group 'Nagant 1': 7 photos in train/ and 2 photos in val/; move them")
    assert [o.split('/')[0] for o in problem['files']] == ['train', 'val'] * 2 + ['train'] * 5  # a page shows the first
    assert '16 photos in 2 groups, and 160 photos without a group' in result.stderr
    assert checked(clean, tmp_path)[0] == 0  # nobody knows


def test_options_of_groups_that_make_no_sense(clean, tmp_path):
    result = typed('check', clean, '--groups', tmp_path/'none.csv', '--group-pattern', '(', '--size', 0)
    assert result.returncode == 1 and result.stderr.count('\n') == 3 and 'omit one of them' in result.stderr
    for option, value, words in (('--groups', tmp_path/'none.csv', 'No such file'), ('--group-pattern', 'x', 'no na')):
        result = typed('check', clean, option, value)
        assert result.returncode == 1 and words in result.stderr and not result.stdout
