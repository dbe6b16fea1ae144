"The CSV of groups, and groups in the names of files: checked, and matched with the photos."
import os
from pathlib import Path

import pandas as pd
import pytest
from conftest import prediction_table

from basegun_fastai.base.errors import BasegunError
from basegun_fastai.data.groups import (
    group_numbers,
    group_option_faults,
    groups_by_pattern,
    known_groups,
    photo_groups,
    read_groups,
    say_what_intervals_are_by,
)

FILES = ['val/a/1.jpg', 'val/a/2, "x".jpg', 'val/é/\udce9\n.jpg']
FAULTS = {
    b'': ['is empty'],
    b'file\nval/a/1.jpg\n': ["no column besides 'file'"],
    b'photo,camera\nval/a/1.jpg,x\n': [
        "no column 'file' with paths such as 'val/a/1.jpg'", "columns are 'photo', 'camera'"],
    b'photo;camera\nval/a/1.jpg;x\n': ["no column 'file'", "'photo;camera'; separate them by commas"],
    b'Files\nx\n': ["no column 'file'", "'Files'"],
    b'File\nx\n': ["no column besides 'file'"],
    b',file,camera\n0,val/a/1.jpg,x\n': ['a column without a name'],
    b'file,a,a,file,\nval/a/1.jpg,1,2,x,\n': ["several columns named 'file', 'a'", 'a column without a name'],
    'file,é\n'.encode('utf-16'): ['is not a CSV in UTF-8'],
    'file,caméra\n'.encode('latin-1'): ['is not a CSV in UTF-8'],
    b'PK\3\4\0\0\0': ['is not a CSV in UTF-8'],
    'file,camera\nval/a/1.jpg,caméra\n'.encode('latin-1'): ['line 2 is not UTF-8'],
    'file,camera\nval/é/1.jpg,x\n'.encode('latin-1'): ['line 2 is not UTF-8'],
    b'file,camera\nval/a/1.jpg,x,y\nval/a/1.jpg\n': [
        'line 2 has 3 cells, the header has 2: quote a text that', 'line 3 has 1 cell,'],
    b'file,camera\nval/a/1.jpg,x\nval/a/1.jpg,y\nz\n': ["line 3 names 'val/a/1.jpg' again with other values",
                                                        'line 4 has 1 cell,'],
    b'file,camera\nval/a/1.jpg,"x': ['is not a CSV from line 2 on', 'close its quotes'],
    b'file;camera\nval/a/1.jpg,x\n': ['line 2 has 1 cell, the header has 2'],
    b'file,camera\nval/a/1.jpg,"x"y\n': ['is not a CSV from line 2 on'],
    b'file,camera\nphotos/b/1.jpg,x\na/20.jpg,x\n': ["it has 'photos/b/1.jpg', the data has 'val/a/1.jpg'"],
    b'file,camera\n': ['names none of the photos: give a row for each'],
    b'file,camera\n' + b'val/a/1.jpg\n' * 9: ['line 6 has 1 cell,', 'has more lines like that'],
    ','.join(f'c{i}' for i in range(40)).encode(): ["no column 'file'", "'c19' and 20 more"],
    b'file,camera\n' + b'x' * 5000 + b',y\n': ["x…', the data has 'val/a/1.jpg'"],
    b'file,camera\n' + b'x' * 200_000 + b',y\n': ['field larger than field limit'],
}


def test_a_photo_from_a_mac_is_found_by_a_name_from_windows(tmp_path):
    csv = tmp_path/'groups.csv'
    csv.write_text('file,camera\nval/caf\u00e9/1.jpg,Nikon\nval/b\u00e9/2.jpg,Canon\n', encoding='utf-8')
    assert read_groups(csv, ['val/cafe\u0301/1.jpg', 'val/b\u00e9/2.jpg']).camera.tolist() == ['Nikon', 'Canon']


def test_groups_go_beside_the_photos(tmp_path, capsys):
    csv = tmp_path/'groups.csv'
    csv.write_bytes('\ufeffcamera,file,year\r\nNikon,"val/a/2, ""x"".jpg",007\r\n\r\n'
                    ',val/a/1.jpg,NA\r\nX,nowhere,1\r\nNikon,"val/a/2, ""x"".jpg",007\r\n'.encode()
                    + b'"L\xc3\xa9ica",val/\xc3\xa9/"\xe9\n.jpg",2\r\n'.replace(b'val/\xc3\xa9/"', b'"val/\xc3\xa9/'))
    actual = read_groups(csv, FILES)
    assert actual.columns.tolist() == ['camera', 'year'] and actual.index.tolist() == [0, 1, 2]
    assert actual.values.tolist() == [['', 'NA'], ['Nikon', '007'], ['Léica', '2']]
    assert capsys.readouterr().err == ''  # each photo has its row, so the one of another photo is no news
    read_groups(csv, [*FILES, 'val/a/3.jpg'])
    assert capsys.readouterr().err == (
        f"--groups '{csv}' has no row for 1 of 4 photos\n"
        f"--groups '{csv}' has 1 row for files that are not among the photos, the first one for 'nowhere'\n")


def test_a_french_spreadsheet_writes_semicolons(tmp_path, capsys):
    csv = tmp_path/'groups.csv'
    csv.write_bytes('\ufeff"file";caméra\r\nval/a/1.jpg;"Canon, 5;D"\r\n"val/a/2, ""x"".jpg";\r\n'.encode())
    assert read_groups(csv, FILES[:2]).to_dict('list') == {'caméra': ['Canon, 5;D', '']}
    assert capsys.readouterr().err == ''
    csv.write_text('file,a;b\nval/a/1.jpg,x;y\n')
    assert read_groups(csv, FILES[:1]).to_dict('list') == {'a;b': ['x;y']}


def test_photos_without_a_row_are_counted(tmp_path, capsys):
    (tmp_path/'g.csv').write_text('file,camera\nval/a/1.jpg,Nikon\n')
    assert read_groups(tmp_path/'g.csv', FILES + FILES[:1]).camera.tolist() == ['Nikon', '', '', 'Nikon']
    assert 'has no row for 2 of 4 photos' in capsys.readouterr().err


def test_a_table_of_predictions_with_a_column_more_is_understood(tmp_path, capsys):
    from basegun_fastai.base.files import write_whole
    from basegun_fastai.trust.levels import Levels
    from basegun_fastai.trust.predictions import csv_rows
    preds = prediction_table([(o, 'fusil', 'fusil', .9) for o in FILES])
    rows = csv_rows(preds, Levels(None, None)).assign(camera=list('xyz'))
    write_whole(tmp_path/'g.csv', rows.to_csv(index=False, lineterminator='\n'))
    assert read_groups(tmp_path/'g.csv', FILES).camera.tolist() == list('xyz') and capsys.readouterr().err == ''


@pytest.mark.parametrize('content', FAULTS, ids=lambda o: repr(o[:20]))
def test_every_fault_of_the_csv_is_told(content, tmp_path):
    (tmp_path/'g.csv').write_bytes(content)
    with pytest.raises(BasegunError) as result: read_groups(tmp_path/'g.csv', FILES)
    message = str(result.value)
    for o in FAULTS[content]: assert o in message
    lines = message.split('\n')
    assert len(lines) <= 7 and all(o.startswith(f"--groups '{tmp_path/'g.csv'}' ") and len(o) < 600 for o in lines)
    assert 'line 7' not in message  # five of a kind are enough


def test_what_is_no_csv_at_all(tmp_path, monkeypatch):
    os.mkfifo(tmp_path/'pipe')
    (tmp_path/'large').touch()
    os.truncate(tmp_path/'large', 2**30 + 1)
    for name, words in dict(none='No such file', pipe='not a regular file', large='larger than 1024 MiB').items():
        with pytest.raises(BasegunError, match=words): read_groups(tmp_path/name, FILES)
    with pytest.raises(BasegunError, match='not a regular file'): read_groups(tmp_path, FILES)
    with pytest.raises(BasegunError, match='not a regular file'): read_groups('/dev/zero', FILES)
    (tmp_path/'locked').write_text('file,camera\n')

    def refuse(*_, **__): raise PermissionError(13, 'Permission denied')
    monkeypatch.setattr('builtins.open', refuse)  # root may read anything
    with pytest.raises(BasegunError, match='Permission denied'): read_groups(tmp_path/'locked', FILES)


def test_rows_of_other_photos_take_no_memory(tmp_path, capsys):
    import tracemalloc
    with open(tmp_path/'g.csv', 'w') as f:
        f.write('file,camera\nval/a/1.jpg,x\n')
        for i in range(200_000): f.write(f'elsewhere/{i}.jpg,{i}\n')
    tracemalloc.start()
    read_groups(Path(tmp_path/'g.csv'), FILES)
    most = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert most < 2**20 and 'has 200000 rows for files that are not' in capsys.readouterr().err


def photos(*files): return pd.DataFrame(dict(file=files), index=range(3, 3 + len(files)))


NFC, NFD = 'caf\u00e9', 'cafe\u0301'


def test_the_file_of_a_folder_is_read_for_the_data_set_made_of_it(tmp_path, capsys):
    csv = tmp_path/'g.csv'
    csv.write_text(f'file,group\na/1.jpg,x\n{NFC}/2.jpg,{NFD}\nval/a/3.jpg,y\na/4.jpg,z\n', encoding='utf-8')
    table = photos('train/a/1.jpg', f'val/{NFD}/2.jpg', 'val/a/3.jpg', 'train/a/4.jpg', 'val/a/4.jpg',
                   'train/val/a/1.jpg')
    groups = known_groups(csv, table)
    assert groups.tolist() == ['x', NFC, 'y', '', '', ''] and groups.index.equals(table.index)
    assert "the first one for 'a/4.jpg'" in capsys.readouterr().err  # of two photos, so of neither
    csv.write_text('file,group\ntrain/a/1.jpg,x\na/1.jpg,y\n')
    with pytest.raises(BasegunError, match="line 3 names 'train/a/1.jpg' again with other values"):
        known_groups(csv, table)


def test_the_column_of_the_group(tmp_path, capsys):
    table = photos('a/1.jpg', 'a/2.jpg')
    (tmp_path/'g.csv').write_text('weapon,file\nx,a/1.jpg\n')
    assert known_groups(tmp_path/'g.csv', table).tolist() == ['x', '']
    assert "column 'weapon' is the only one besides 'file'" in capsys.readouterr().err
    (tmp_path/'g.csv').write_text('weapon,file,group\nx,a/1.jpg,y\n')
    assert known_groups(tmp_path/'g.csv', table).tolist() == ['y', '']
    (tmp_path/'g.csv').write_text('weapon,file,camera\nx,a/1.jpg,y\n')
    with pytest.raises(BasegunError, match="has no column 'group'"): known_groups(tmp_path/'g.csv', table)


@pytest.mark.parametrize(('pattern', 'groups'), [
    ('^[^_]+', ['Colt', 'Colt', NFC, NFC, 'IMG.jpg', '\udce9']),
    ('^([^_]+)_(.)', ['Colt', 'Colt', NFC, NFC, '', '\udce9']),
    ('Colt(_2)?', ['', '_2', '', '', '', '']), (f'^{NFD}|Colt', ['Colt', 'Colt', NFC, NFC, '', '']),
    ('b/', None), ('ww1', None), ('^', None), ('(x*)$', None)])
def test_groups_in_names(pattern, groups):
    table = photos('b/Colt_1.jpg', 'val/c/Colt_2.jpg', f'b/{NFC}_1.jpg', f'b/{NFD}_2.jpg', 'b/IMG.jpg',
                   'b/\udce9_ \n.jpg')
    if groups: assert groups_by_pattern(pattern, table).tolist() == groups
    else:
        with pytest.raises(BasegunError, match="--group-pattern '.*Colt_1.jpg'.*(give|put)"):
            groups_by_pattern(pattern, table)
    assert groups_by_pattern(pattern, table[:0]).tolist() == []


@pytest.mark.parametrize('pattern', ['(', '[a', 'a{99999999999}', '(' * 10_000, '(?P<a>', '*'])
def test_what_is_no_regular_expression(pattern):
    message, = group_option_faults(None, pattern)
    assert 'is not a regular expression' in message and "give one such as '^([^_]+)_'" in message and len(message) < 600


def test_only_one_of_both_options(tmp_path):
    assert not any(group_option_faults(*o) for o in [(None, None), (tmp_path, None), (None, 'a')])
    both, bad = group_option_faults(tmp_path, '(')
    assert both.startswith('--groups --group-pattern: ') and 'omit one of them' in both and "'('" in bad


def test_how_many_groups_there_are(capsys):
    table = photos('a/x_1.jpg', 'a/x_2.jpg', 'a/y_1.jpg', 'a/z.jpg')
    assert photo_groups(table, None, '(.)_').tolist() == ['x', 'x', 'y', '']
    assert capsys.readouterr().err == '3 photos in 2 groups, and 1 photo without a group\n'
    photo_groups(table[:2], None, '(.)_')
    assert capsys.readouterr().err == '2 photos in 1 group\n'
    assert photo_groups(table, None, None).tolist() == [''] * 4 and capsys.readouterr().err == ''


def test_what_the_intervals_are_by(capsys):
    some = pd.Series(['x', '', 'x', 'y', ''])
    assert group_numbers(some).tolist() == [0, 1, 0, 2, 3] and group_numbers(some[1:2]) is None
    assert capsys.readouterr().err == ''
    say_what_intervals_are_by(some)
    assert capsys.readouterr().err == (
        'intervals are by group: 3 photos in 2 groups, and 2 photos without a group, counted as independent\n')
    say_what_intervals_are_by(pd.Series(['x', 'x']))
    assert capsys.readouterr().err == 'intervals are by group: 2 photos in 1 group\n'


def test_a_space_around_a_group_makes_no_other_weapon(tmp_path, capsys):
    table = photos(*[f'a/{i}.jpg' for i in range(5)])
    (tmp_path/'g.csv').write_text('file,group\na/0.jpg,Colt 1\na/1.jpg,Colt 1 \na/2.jpg,\u00a0Colt 1\na/3.jpg, \n'
                                  'a/4.jpg,Luger\na/4.jpg, Luger\t\n')
    assert known_groups(tmp_path/'g.csv', table).tolist() == ['Colt 1', 'Colt 1', 'Colt 1', '', 'Luger']
    assert capsys.readouterr().err == ''
    assert groups_by_pattern('^[^_]*', photos('a/Colt _1.jpg', 'a/Colt_2.jpg', 'a/ _3.jpg')).tolist() == [
        'Colt', 'Colt', '']


def test_groups_that_differ_only_in_letter_case_or_spaces_are_named(tmp_path, capsys):
    groups = ['AK-47', 'ak-47', 'Mauser C96', 'Mauser  C96', 'MauserC96', 'Luger']
    table = photos(*[f'a/{o}_1.jpg' for o in groups])
    (tmp_path/'g.csv').write_text('file,group\n' + ''.join(f'a/{o}_1.jpg,{o}\n' for o in groups))
    for find in (lambda: known_groups(tmp_path/'g.csv', table), lambda: groups_by_pattern('^([^_]+)_', table)):
        assert find().tolist() == groups
        assert capsys.readouterr().err == (
            "warning: 'AK-47' and 'ak-47', 'Mauser C96' and 'Mauser  C96' and 'MauserC96' count as different groups, "
            'but differ only in letter case or in spaces: write them alike if they are one weapon\n')


def test_a_column_without_any_group_is_refused(tmp_path):
    table = photos('a/1.jpg', 'a/2.jpg')
    for content, column in (('file,group,camera\na/1.jpg,,x\na/2.jpg, ,y\n', 'group'),
                            ('file,weapon\na/1.jpg,\n', 'weapon')):
        (tmp_path/'g.csv').write_text(content)
        with pytest.raises(BasegunError, match=f"column '{column}' is empty in every row: write the weapon of each"):
            known_groups(tmp_path/'g.csv', table)
    (tmp_path/'g.csv').write_text('file,group\na/1.jpg,\nelsewhere/2.jpg,Luger\n')  # of the photos of another folder
    assert known_groups(tmp_path/'g.csv', table).tolist() == ['', '']


def matched(tmp_path, names, files):
    "The photo that each path in a CSV finds, by its group."
    rows = ''.join(f'{o},g{i}\n' for i, o in enumerate(names))
    (tmp_path/'g.csv').write_text(f'file,group\n{rows}', encoding='utf-8')
    return dict(zip(files, read_groups(tmp_path/'g.csv', files).group, strict=True))


@pytest.mark.parametrize('name', ['./train/a/1.jpg', 'train\\a\\1.jpg', '.\\train\\a\\1.jpg', ' train/a/1.jpg',
                                  '/home/photos/train/a/1.jpg', 'C:\\photos\\train\\a\\1.jpg', 'photos/a/1.jpg',
                                  'a\\1.jpg', './a/1.jpg', 'photos//a/./1.jpg'])
def test_a_path_in_another_form_finds_its_photo(name, tmp_path):
    assert matched(tmp_path, [name], ['train/a/1.jpg', 'val/b/1.jpg', 'val/a/2.jpg'])['train/a/1.jpg'] == 'g0'


def test_a_path_that_may_be_of_two_photos_or_of_another_side_finds_none(tmp_path):
    files = ['train/a/1.jpg', 'val/a/1.jpg', 'val/a/2.jpg', 'val/c/3.jpg']
    wrong = ['1.jpg', 'c/1.jpg', 'photos/a/1.jpg', 'a/1.jpg', 'train/a/2.jpg', 'photos\\train\\a\\2.jpg', '2.jpg',
             'a/b/3.jpg', '../2.jpg', '', '/', './3.jpg', 'c/']
    expected = dict.fromkeys(files, '') | {'val/c/3.jpg': f'g{len(wrong)}'}
    assert matched(tmp_path, [*wrong, 'val/c/3.jpg'], files) == expected
    with pytest.raises(BasegunError, match='names none of the photos'): matched(tmp_path, wrong, files)


def test_the_paths_of_a_data_set_find_the_photos_of_one_of_its_folders(tmp_path, capsys):
    assert matched(tmp_path, ['val/a/1.jpg', 'photos/val/b/1.jpg'], ['a/1.jpg', 'b/1.jpg']) == {
        'a/1.jpg': 'g0', 'b/1.jpg': 'g1'}
    assert capsys.readouterr().err == (f"--groups '{tmp_path/'g.csv'}' has 2 rows with another path, such as "
                                       "'val/a/1.jpg' for 'a/1.jpg': the last two parts agree\n")
    with pytest.raises(BasegunError, match="line 3 names 'a/1.jpg' again with other values"):
        matched(tmp_path, ['val/a/1.jpg', 'train/a/1.jpg'], ['a/1.jpg'])


def test_a_photo_with_a_backslash_in_its_name_is_found_as_it_is(tmp_path):
    files = ['a/1\\2.jpg', '1/2.jpg', 'c/ 3.jpg', 'c/3.jpg']
    assert matched(tmp_path, ['a/1\\2.jpg', 'c/ 3.jpg'], files) == dict(zip(files, ['g0', '', 'g1', ''], strict=True))


def test_a_group_for_each_photo_is_a_warning(tmp_path, capsys):
    table, end = photos('a/x_1.jpg', 'a/x_2.jpg', 'a/y_1.jpg'), 'gives each photo a group of its own, so nothing stays'
    photo_groups(table, None, '.*')
    assert f"warning: --group-pattern '.*' {end} together: put brackets around" in capsys.readouterr().err
    csv = tmp_path/'g.csv'
    csv.write_text('file,group\na/x_1.jpg,1\na/x_2.jpg,2\n')
    photo_groups(table, csv, None)
    assert f"warning: --groups '{csv}' {end} together: give all photos of one weapon the same group" in (
        capsys.readouterr().err)
    photo_groups(table, None, '^(.)_')
    photo_groups(table[:1], None, '.*')
    assert 'warning' not in capsys.readouterr().err


@pytest.mark.parametrize('content', [
    'file\tgroup\nval/a/1.jpg\tLuger, 1\n', '"File";"Group"\r\nval/a/1.jpg;"Luger, 1"\r\n',
    'sep=;\r\nfile;group\r\nval/a/1.jpg;Luger, 1\r\n', 'sep=\t\nFILE\tGROUP\nval/a/1.jpg\tLuger, 1\n',
    '"sep=|"\nfile|group\nval/a/1.jpg|Luger, 1\n', 'File , GROUP\nval/a/1.jpg,"Luger, 1"\n',
    'sep=,\nfile,weapon\nval/a/1.jpg,"Luger, 1"\n'])
def test_spreadsheets_write_csv_in_their_ways(content, tmp_path):
    (tmp_path/'g.csv').write_bytes(b'\xef\xbb\xbf' + content.encode())
    assert known_groups(tmp_path/'g.csv', photos('val/a/1.jpg', 'val/a/2.jpg')).tolist() == ['Luger, 1', '']


def test_a_first_line_with_the_separator_counts_as_a_line(tmp_path):
    (tmp_path/'g.csv').write_text('sep=;\nfile;group\nval/a/1.jpg;x\nval/a/1.jpg;y\n')
    with pytest.raises(BasegunError, match='line 4 names'): read_groups(tmp_path/'g.csv', FILES)
    (tmp_path/'g.csv').write_text('File,FILE,group\nval/a/1.jpg,x,y\n')
    with pytest.raises(BasegunError, match="has no column 'file'.* its columns are 'File', 'FILE', 'group'"):
        read_groups(tmp_path/'g.csv', FILES)
