"The table that split leaves: recognised, and known to have groups of the user or not."
from shlex import quote

import pytest

from basegun_fastai.data.split_table import COLUMNS, has_groups, moved_rows, read_split_table, say_split_groups

HEADER = ','.join(COLUMNS) + '\n'


def rows_of(tmp_path, text):
    (tmp_path/'split.csv').write_text(text, encoding='utf-8')
    return read_split_table(tmp_path)


def test_a_table_of_split_is_read(tmp_path):
    rows = rows_of(tmp_path, HEADER + '"a/1, ""x"".jpg",train,a,Luger,0f\na/2.jpg,left-out,a,,1f\n')
    assert [o['file'] for o in rows] == ['a/1, "x".jpg', 'a/2.jpg'] and rows[0]['group'] == 'Luger'


@pytest.mark.parametrize('content', [None, b'', b'file,split\na/1.jpg,train\n', b'\xff\xfe\x00',
                                     (HEADER + '"a').encode(), (HEADER + 'a/1.jpg\n').encode()])
def test_what_split_has_not_written_is_no_table(content, tmp_path, capsys):
    if content is not None: (tmp_path/'split.csv').write_bytes(content)
    assert read_split_table(tmp_path) is None
    say_split_groups(tmp_path)
    assert capsys.readouterr().err == ''


def test_digests_of_photos_that_look_alike_are_no_groups(tmp_path, capsys):
    digest = '0123456789abcdef'
    for group, known in ((digest, False), (f'sha256:{digest}', False), ('', False), ('Luger 1', True)):
        rows = rows_of(tmp_path, f'{HEADER}a/1.jpg,train,a,{group},0f\n')
        assert has_groups(rows) == known
        say_split_groups(tmp_path)
        assert (f"by group, add --groups {quote(str(tmp_path/'split.csv'))}\n" in capsys.readouterr().err) == known


def test_rows_follow_their_photos():
    rows = [dict(zip(COLUMNS, o, strict=True)) for o in (
        ('a/1.jpg', 'train', 'a', 'x', '0'), ('cafe\u0301/2.jpg', 'val', 'caf\u00e9', 'y', '1'),
        ('a/3.jpg', 'val', 'a', 'z', '2'),
        ('a/4.jpg', 'left-out', 'a', '', '3'), ('val/a/5.jpg', 'val', 'a', 'x', '4'))]
    places = {'train/a/1.jpg': 'train/b/1_2.jpg', 'val/caf\u00e9/2.jpg': 'val/caf\u00e9/2.jpg', 'val/a/3.jpg': '',
              'train/a/4.jpg': 'train/a/4.jpg', 'val/a/5.jpg': 'val/b/5.jpg'}
    assert [tuple(o.values()) for o in moved_rows(rows, places)] == [
        ('train/b/1_2.jpg', 'train', 'b', 'x', '0'), ('val/caf\u00e9/2.jpg', 'val', 'caf\u00e9', 'y', '1'),
        ('val/b/5.jpg', 'val', 'b', 'x', '4')]
