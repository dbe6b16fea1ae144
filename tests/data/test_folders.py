"All problems of a data set are reported together, and nothing in it is ever changed."
import os

import pytest

from basegun_fastai.base.errors import BasegunError
from basegun_fastai.data.contents import examine, fingerprint, unreadable_lines
from basegun_fastai.data.folders import ignored_lines, layout_faults, list_photos, odd_files
from basegun_fastai.data.problems import folder_problems, odd_problems


def replaced(file, content):
    file.unlink()
    file.write_bytes(content)


def test_a_good_data_set_has_no_faults(data):
    assert layout_faults(data) == [] and not any(odd_files(data).values()) and unreadable_lines(examine(data,
        list_photos(data))) == ''


def test_a_missing_folder_names_its_neighbours(data):
    [fault] = layout_faults(data.with_name('les donnees'))
    assert f"did you mean '{data}'" in fault


@pytest.mark.parametrize('name', ['train', 'val'])
def test_a_missing_split_names_the_folders_that_are_there(copy, name):
    (copy/name).rename(copy/'validation')
    [fault] = layout_faults(copy)
    assert f'Missing: {name}/. Folders in it: ' in fault and "'validation'" in fault


def test_all_faults_are_told_at_once(copy):
    (copy/'train'/'revolver').rename(copy/'train'/'Revolver')
    for o in (copy/'val'/'epaule_a_pompe').iterdir(): o.unlink()
    (copy/'train'/'epaule_a_verrou'/'vieux').mkdir()
    (copy/'train'/'epaule_a_verrou'/'vieux'/'a.jpg').touch()
    faults = '\n'.join(layout_faults(copy))
    for part in ("class 'Revolver' is in train/ but not in val/", "class 'revolver' is in val/ but not in train/",
                 "epaule_a_pompe' holds no photo", "vieux' is a folder inside a class"): assert part in faults
    with pytest.raises(BasegunError) as actual: list_photos(copy)
    assert str(actual.value) == faults


@pytest.mark.parametrize(('name', 'is_fault'), [
    ('', False), ('.DS_Store', False), ('Thumbs.db', False), ('@eaDir/a.jpg', False), ('.git/a.jpg', False),
    ('a.jpg', True), ('deeper/a.jpg', True)])
def test_a_folder_inside_a_class_is_a_fault_for_check_and_train_if_it_may_hold_photos(copy, name, is_fault):
    inner = copy/'train'/'revolver'/'inner'
    (inner/'deeper'/'deepest').mkdir(parents=True)
    if name:
        (inner/name).parent.mkdir(exist_ok=True)
        (inner/name).touch()
    assert len(layout_faults(copy)) == len([o for o in odd_problems(copy) if o.level == 'error']) == is_fault
    assert len(list_photos(copy, strict=False)) == 48 + 24


def test_a_link_to_a_folder_inside_a_class_is_a_fault_and_not_followed(copy):
    (copy/'train'/'revolver'/'up').symlink_to('..')
    [fault] = layout_faults(copy)
    assert "up' is a folder inside a class" in fault and [o.level for o in odd_problems(copy)] == ['error']


def test_one_class_is_not_enough(copy):
    import shutil
    for split in ('train', 'val'):
        for o in list((copy/split).iterdir()):
            if o.name != 'revolver': shutil.rmtree(o)
    [fault] = layout_faults(copy)
    assert "1 class folder: 'revolver'" in fault


def test_hidden_and_loose_files_are_left_aside_and_named(copy):
    (copy/'train'/'revolver'/'.DS_Store').touch()
    (copy/'train'/'liste.txt').touch()
    os.mkfifo(copy/'val'/'revolver'/'pipe')
    assert {k: v for k, v in odd_files(copy).items() if v} == dict(
        loose=['train/liste.txt'], hidden=['train/revolver/.DS_Store'], special=['val/revolver/pipe'])
    assert len(list_photos(copy)) == len(list_photos(copy.parent/'copy')) == 48 + 24


COMPANIONS = ['Thumbs.db', 'DESKTOP.INI', 'Icon\r', '0001.jpg.xmp', 'IMG_1.AAE', 'IMG_1.jpg.json', '@eaDir/0001.jpg',
              '__MACOSX/._0001.jpg']


def test_what_other_programs_leave_is_no_photo_and_no_class(copy):
    for o in [f'{place}/{name}' for place in ('train/revolver', 'val/revolver', 'val') for name in COMPANIONS]:
        (copy/o).parent.mkdir(exist_ok=True)
        (copy/o).write_bytes(b'no photo')
    assert layout_faults(copy) == [] and len(list_photos(copy)) == 48 + 24
    assert len(list_photos(copy/'val', 'classes')) == 24
    assert [o for o in list_photos(copy, 'any').file if not o.endswith(('.jpg', '.png', '.webp', '.gif'))] == []
    line, = ignored_lines(copy)
    assert line.startswith('24 files that other programs left beside the photos (Thumbs.db, .xmp and the like)')


def test_a_class_whose_name_is_no_text_is_a_fault(copy):
    for split in ('train', 'val'): (copy/split/'revolver').rename(copy/split/os.fsdecode(b'pistolet \xe0 percussion'))
    faults = layout_faults(copy)
    assert len(faults) == 2
    for o in faults: assert "class 'pistolet \\udce0 percussion' in '" in o and 'is not UTF-8' in o


def test_every_remedy_can_be_followed_to_the_letter(copy):
    "Doing what a message says removes it, and causes no other one."
    import shutil
    (copy/'train'/'revolver').rename(copy/'train'/'pistolet')
    first, second = layout_faults(copy)
    assert f"or remove '{copy}/train/pistolet'" in first and f"or remove '{copy}/val/revolver'" in second
    shutil.rmtree(copy/'train'/'pistolet')
    shutil.rmtree(copy/'val'/'revolver')
    assert layout_faults(copy) == []
    for o in (copy/'val'/'epaule_a_pompe').iterdir(): o.unlink()
    [fault] = layout_faults(copy)
    assert fault.endswith("epaule_a_pompe' holds no photo: put some there, or remove the class from train/ and val/")
    for split in ('train', 'val'): shutil.rmtree(copy/split/'epaule_a_pompe')
    assert layout_faults(copy) == []


@pytest.mark.parametrize(('here', 'there'), [('train', 'val'), ('val', 'train')])
def test_an_empty_class_of_one_folder_is_one_fault_for_check_and_train(copy, here, there):
    (copy/here/'vide').mkdir()
    [fault] = layout_faults(copy)
    assert fault == (f"class 'vide' is only in {here}/, and '{copy}/{here}/vide' holds no photo: remove it, or put "
                     f"photos there and others into '{copy}/{there}/vide'")
    problem, = folder_problems(copy)
    assert (problem.level, problem.files, problem.message) == ('error', [f'{here}/vide'], fault)
    (copy/there/'vide').mkdir()
    assert len(layout_faults(copy)) == len(folder_problems(copy)) == 2
    assert all('remove the class from train/ and val/' in o for o in layout_faults(copy))


def test_unreadable_photos_are_named_with_their_reason(copy):
    replaced(copy/'train'/'revolver'/'0004.jpg', b'')
    replaced(copy/'val'/'revolver'/'0003.png', b'not a photo')
    whole = (copy/'train'/'epaule_a_pompe'/'0005.jpg').read_bytes()
    replaced(copy/'train'/'epaule_a_pompe'/'0005.jpg', whole[:len(whole) // 2])
    lines = unreadable_lines(examine(copy, list_photos(copy))).splitlines()
    assert [o.split(':')[0].strip() for o in lines] == ['train/epaule_a_pompe/0005.jpg', 'train/revolver/0004.jpg',
                                                        'val/revolver/0003.png']
    assert 'truncated' in lines[0] and 'empty' in lines[1] and 'not a photo' in lines[2]
    assert unreadable_lines(examine(copy, list_photos(copy)), limit=1).endswith('and 2 more')


def test_a_link_to_nowhere_is_left_aside(copy):
    file = copy/'train'/'revolver'/'0005.jpg'
    file.unlink()
    file.symlink_to(copy/'nowhere')
    assert ('train/revolver/0005.jpg' not in list_photos(copy).file.tolist()
            and 'train/revolver/0005.jpg' in odd_files(copy)['special'])


def test_the_fingerprint_sees_a_photo_replaced_under_its_name(copy):
    before = fingerprint(examine(copy, list_photos(copy)))
    assert fingerprint(examine(copy, list_photos(copy), workers=1)) == before
    replaced(copy/'train'/'revolver'/'0005.jpg', (copy/'train'/'revolver'/'0006.jpg').read_bytes())
    assert fingerprint(examine(copy, list_photos(copy))) != before


def test_labelled_photos_of_a_flat_folder(data, tmp_path):
    assert (list_photos(data/'val', 'classes').label == list_photos(data, 'classes').label).all()
    (tmp_path/'empty').mkdir()
    with pytest.raises(BasegunError, match='no class folder'): list_photos(tmp_path/'empty', 'classes')


MAC, LINUX = 'pistolet a\u0300 percussion', 'pistolet à percussion'


def test_a_class_from_a_mac_and_one_from_linux_are_one(copy):
    (copy/'train'/'revolver').rename(copy/'train'/MAC)
    (copy/'val'/'revolver').rename(copy/'val'/LINUX)
    assert layout_faults(copy) == []
    table = list_photos(copy)
    assert LINUX in set(table.label) and MAC not in set(table.label) and len(table) == 48 + 24
    assert all(part.label.is_monotonic_increasing for _, part in table.groupby('split'))
    first = table.file[table.label == LINUX].iloc[0]
    assert (copy/first).is_file() and f'train/{MAC}/' in first


def test_a_class_in_both_forms_in_one_folder_is_an_error(copy):
    (copy/'train'/'revolver').rename(copy/'train'/LINUX)
    (copy/'val'/'revolver').rename(copy/'val'/LINUX)
    (copy/'train'/'epaule_a_pompe').rename(copy/'train'/MAC)
    [fault] = [o for o in layout_faults(copy) if 'twice' in o]
    assert f"class '{LINUX}' twice" in fault and 'NFC' in fault and 'NFD' in fault and 'move the photos' in fault
    with pytest.raises(BasegunError, match='twice'): list_photos(copy/'train', 'classes')


@pytest.mark.parametrize(('name', 'says'), [
    ('Revolver', 'they differ in case'), ('revolver ', "'revolver ' has a space at an end"),
    ('revolver.', "'revolver.' has a dot at its end"), ('revol\u200bver', "'revol\u200bver' has 'ZERO WIDTH SPACE'"),
    ('ｒevolver', 'they differ in letters that look alike')])
def test_a_class_that_only_looks_the_same_says_by_what_it_differs(copy, name, says):
    (copy/'val'/'revolver').rename(copy/'val'/name)
    faults = layout_faults(copy)
    assert len(faults) == 2 and all(f'looks the same: {says}; give both folders one name' in o for o in faults)


def test_blanks_that_look_alike_are_named(copy):
    for split, name in (('train', 'fusil à pompe'), ('val', 'fusil à\u00a0pompe')):
        (copy/split/'revolver').rename(copy/split/name)
    assert "'fusil à\u00a0pompe' has 'NO-BREAK SPACE'" in layout_faults(copy)[0]
