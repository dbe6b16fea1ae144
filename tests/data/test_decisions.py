"A file of decisions loses nothing that was confirmed, and each fault of an edited one is named."
import errno
import os
import shutil
import signal
import subprocess
import sys
from dataclasses import replace
from itertools import permutations

import pytest

from basegun_fastai.base.errors import BasegunError
from basegun_fastai.base.files import Taken, disk_fault
from basegun_fastai.data import decisions as module
from basegun_fastai.data.decisions import COLUMNS, Changed, Decision, DecisionFile, read_decisions

HEADER = ','.join(COLUMNS).encode() + b'\n'
SHA = 'ab' * 32
TIME = '2026-01-31T12:00:05Z'
NAMES = ['train/e\u0301paule/1.jpg', 'train/é/1.jpg', 'val/a/2, "x".jpg', 'val/a/-rf.jpg', 'val/\udce9/a\n\r.jpg',
         'val/a/ .jpg', "val/a/'=1+1'.jpg", 'val/a/"', 'val/a/\n', 'val/a/Icon\r', 'val/a/\u2028,']


def decision(file, kind='keep', **more):
    return Decision(file, SHA, 'a', kind, **dict(reviewer='Zoé, "Z"', time=TIME) | more)


def decide(path, decisions):
    with DecisionFile.open(path) as file:
        for o in decisions: file.append(o)


def history():
    "Decisions on photos with odd names, some of them changed or taken back."
    for i, o in enumerate(NAMES):
        yield decision(o, **[dict(), dict(kind='move', new_label='b"\n'), dict(kind='invalid', note='drawing'),
                             dict(kind='unsure', note='a line\nand "another"')][i % 4])
        if i % 3 == 0: yield decision(o, 'undo')
        if i % 6 == 0: yield decision(o, 'move', new_label='c')


def last_of(decisions):
    last = {}
    for o in decisions:
        last.pop(o.file, None)
        if o.decision != 'undo': last[o.file] = o
    return last


def test_what_is_written_is_read_whatever_the_name(tmp_path):
    decide(tmp_path/'decisions.csv', history())
    assert read_decisions(tmp_path/'decisions.csv') == last_of(history())
    assert os.listdir(tmp_path) == ['decisions.csv'] and b'\xe9/a\n' in (tmp_path/'decisions.csv').read_bytes()


def test_a_kill_between_any_two_bytes_loses_the_last_decision_at_most(tmp_path, capsys):
    path, whole, sizes = tmp_path/'decisions.csv', [*history()], []
    with DecisionFile.open(path) as file:
        for o in whole:
            sizes.append(path.stat().st_size if sizes else len(HEADER))
            file.append(o)
    content = path.read_bytes()
    for size in range(len(HEADER), len(content) + 1):
        n = sum(o <= size for o in [*sizes[1:], len(content)])  # decisions that were confirmed
        path.write_bytes(content[:size])
        possible = [last_of(whole[:n]), last_of(whole[:n + 1])]  # all but the line break may have been written
        read = read_decisions(path)
        assert read in possible
        with DecisionFile.open(path) as file:
            assert file.last == read
            file.append(decision('train/new.jpg'))
        assert read_decisions(path) == read | {'train/new.jpg': decision('train/new.jpg')}
        torn = content[:size] not in (content[:o] for o in [*sizes, len(content)]) and read == possible[0]
        assert ('is now cut off' in capsys.readouterr().err) == torn


def test_a_server_that_is_killed_loses_nothing_that_it_confirmed(tmp_path):
    program = f'''from pathlib import Path
from basegun_fastai.data.decisions import Decision, DecisionFile
with DecisionFile.open(Path({str(tmp_path / "decisions.csv")!r})) as file:
    for i in range(10**6):
        file.append(Decision(f'train/{{i}}.jpg', '{SHA}', 'a', 'keep', time='{TIME}'))
        print(i, flush=True)
'''
    process = subprocess.Popen([sys.executable, '-c', program], stdout=subprocess.PIPE, text=True)
    confirmed = [int(process.stdout.readline()) for _ in range(50)]
    os.kill(process.pid, signal.SIGKILL)
    confirmed += [int(o) for o in process.stdout]
    process.wait()
    process.stdout.close()
    assert {f'train/{o}.jpg' for o in confirmed} <= set(read_decisions(tmp_path/'decisions.csv'))
    decide(tmp_path/'decisions.csv', [decision('train/more.jpg')])


def test_a_full_disk_keeps_what_is_confirmed(tmp_path, monkeypatch):
    path = tmp_path/'decisions.csv'
    with DecisionFile.open(path) as file:
        file.append(decision('val/a/1.jpg'))
        before, real = path.read_bytes(), os.pwrite
        with monkeypatch.context() as patch:
            patch.setattr(os, 'pwrite', lambda descriptor, line, at: real(descriptor, line[:7], at))
            with pytest.raises(OSError) as error: file.append(decision('val/a/2.jpg'))
        assert error.value.errno == errno.ENOSPC and 'make room' in disk_fault(error.value)
        assert path.read_bytes() == before and [*file.last] == ['val/a/1.jpg']
        with monkeypatch.context() as patch:
            def fail(_): raise OSError(errno.EIO, os.strerror(errno.EIO))
            patch.setattr(module, 'sync', fail)
            with pytest.raises(OSError) as error: file.append(decision('val/a/2.jpg'))
        assert str(path) in disk_fault(error.value) and path.read_bytes() == before
        file.append(decision('val/a/2.jpg'))
    assert [*read_decisions(path)] == ['val/a/1.jpg', 'val/a/2.jpg']


def test_no_decision_goes_into_a_file_that_an_editor_has_changed(tmp_path):
    path = tmp_path/'decisions.csv'
    for words, change in (('was changed by another program', lambda: os.replace(tmp_path/'other', path)),
                          ('was changed by another program', lambda: path.write_bytes(HEADER + b'\n')),
                          ('was deleted or moved', path.unlink)):
        with DecisionFile.open(path) as file:
            file.append(decision(f'val/{len(file.last)}.jpg'))
            shutil.copy(path, tmp_path/'other')
            change()
            with pytest.raises(Changed, match=words): file.append(decision('val/x'))
            assert 'val/x' not in file.last


def test_the_first_decision_makes_the_file(tmp_path, monkeypatch):
    path, other = tmp_path/'decisions.csv', tmp_path/'other.csv'
    with DecisionFile.open(path) as file:
        assert not path.exists()
        with monkeypatch.context() as patch:
            def fail(*_): raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
            patch.setattr(module, 'write_whole', fail)
            with pytest.raises(OSError): file.append(decision('val/1'))
        assert not path.exists() and not file.last
        for o in ('val/1', 'val/2'): file.append(decision(o))
    assert [*read_decisions(path)] == ['val/1', 'val/2']
    with DecisionFile.open(other) as file:
        other.write_bytes(HEADER + row())
        with pytest.raises(Changed, match='was changed by another program'): file.append(decision('val/1'))
    assert other.read_bytes() == HEADER + row() and {*os.listdir(tmp_path)} == {path.name, other.name}


def test_two_pages_do_not_write_one_file(tmp_path):
    held = f'from pathlib import Path; from basegun_fastai.data.decisions import DecisionFile; ' \
           f'DecisionFile.open(Path({str(tmp_path / "decisions.csv")!r})).__enter__()'
    with DecisionFile.open(tmp_path/'decisions.csv'):
        result = subprocess.run([sys.executable, '-c', held], capture_output=True, text=True, check=False)
    assert 'is being written by' in result.stderr and 'ctrl-C, or give another --reviewer' in result.stderr
    assert Taken.__name__ in result.stderr


def test_what_a_page_sends_is_checked(tmp_path):
    with DecisionFile.open(tmp_path/'decisions.csv') as file:
        file.append(decision('val/1.jpg'))
        before = (tmp_path/'decisions.csv').read_bytes()
        for wrong, words in [(decision('val/2.jpg', 'perhaps'), "the decision 'perhaps'"),
                             (decision('val/2.jpg', 'move', new_label='a'), 'the class that the photo has'),
                             (decision('val/1.jpg', 'unsure'), 'again, unsure after keep'),
                             (replace(decision('val/2.jpg'), sha256=SHA[:-1] + '\n'), 'not 64 hexadecimal digits')]:
            with pytest.raises(BasegunError, match=words): file.append(wrong)
        assert (tmp_path/'decisions.csv').read_bytes() == before
        file.append(decision('val/1.jpg'))  # the same once more
        assert (tmp_path/'decisions.csv').read_bytes() == before + before[len(HEADER):]


def row(file='val/a/1.jpg', sha256=SHA, label='a', kind='keep', new_label='', note='', reviewer='anna', time=TIME):
    return f'{file},{sha256},{label},{kind},{new_label},{note},{reviewer},{time}\n'.encode()


FAULTS = {
    b'': ['is empty: give a file with the columns file, sha256,'],
    b'\n\n': ['is empty'],
    HEADER.replace(b',note,', b',').replace(b',', b';'): ['has one column', 'separate the columns by commas'],
    HEADER.replace(b',', b';') + row(): ["line 2 has 1 cell, the header has 8: put a text that contains ';' into"],
    HEADER.replace(b',', b'\t'): ['separate the columns by commas'],
    b'file,label,suggested\nval/a/1.jpg,a,b\n': ["no column 'sha256', 'decision', 'class', 'note', 'reviewer', 'time'",
                                                 'as `basegun-fastai review` writes it'],
    HEADER[:-1] + b',file\n': ["several columns named 'file'"],
    HEADER.decode().encode('utf-16'): ['is not a CSV in UTF-8'],
    b'PK\3\4\0\0\xff': ['is not a CSV in UTF-8'],
    HEADER + row(label='\u00e9').decode().encode('latin-1'): ['line 2 is not UTF-8'],
    HEADER + row(kind='Keep') + row(kind='') + row('', 'x'): [
        "line 2 has the decision 'Keep': write keep, move, invalid, unsure or undo", "line 3 has the decision ''",
        'line 4 names no photo', "line 4 has the sha256 'x'"],
    HEADER + row(kind='move') + row('2', kind='move', new_label='a'): [
        "line 2 has the decision 'move' without a class", "line 3 has the decision 'move' to 'a', the class"],
    HEADER + row(kind='invalid', note='blurred') + row('2', kind='invalid'): [
        "line 2 has the decision 'invalid' with the note 'blurred'",
        "line 3 has the decision 'invalid' with the note ''"],
    HEADER + row(new_label='b'): ["line 2 has the decision 'keep' with the class 'b': write move, or remove the class"],
    HEADER + row() + b'\n' + row(kind='unsure'): [
        "line 4 decides 'val/a/1.jpg' again, unsure after keep, without undo", 'line 2 has the other decision'],
    HEADER + row(kind='move', new_label='b') + row(kind='move', new_label='c'): ["move to 'c' after move to 'b'"],
    HEADER + b'x,y\n' + row(): ["line 2 has 2 cells, the header has 8: put a text that contains ',' into"],
    HEADER + row() + b'"x"y,' + row() + row(): ['is not a CSV after line 2', 'give the original file'],
    HEADER + row() + b'"' + row('1') + row('2'): ['is not a CSV after line 2'],  # an open quote, but no torn line
    HEADER + row(kind='?') * 99: ['line 2 has', 'and 1 more'],
    HEADER + row(time='30/11/2026 07:58') + row() + row('2', time=''): [
        "line 2 (and 1 more) has the time '30/11/2026 07:58', which is not one such as 2026-01-31T12:00:05Z: copy"],
    HEADER + row(time='2026-31-01T12:00:05Z'): ["line 2 has the time '2026-31-01T12:00:05Z', which is not one"],
    HEADER + b''.join(row(f'{i}', note='\u00e9') for i in range(60)).decode().encode('latin-1'): [
        "line 2 (and 59 more) is not UTF-8: save it as 'CSV UTF-8'"],
    HEADER + row(time='2026-01-31T12:00:09+00:00') + row('2') + row(kind='undo') + row(kind='unsure'): [
        f"line 4 has the time {TIME}, but line 2, on the same photo 'val/a/1.jpg', has 2026-01-31T12:00:09+00:00",
        "sort them by the column 'time'"],
    HEADER + b'x' * 200_000 + row(): ['field larger than field limit'],
}


@pytest.mark.parametrize('content', FAULTS)
def test_each_fault_of_an_edited_file_is_named(tmp_path, content):
    path = tmp_path/'decisions.csv'
    path.write_bytes(content)
    for use in (read_decisions, lambda o: decide(o, [])):
        with pytest.raises(BasegunError) as error: use(path)
        assert all(o in str(error.value) for o in FAULTS[content]), str(error.value)
        assert all(o.startswith((f"'{path}' ", 'and ')) for o in str(error.value).splitlines())
    assert path.read_bytes() == content


def test_each_fault_of_a_whole_file_is_one_line(tmp_path):
    path = tmp_path/'decisions.csv'
    for content in FAULTS:
        if not any('more) ' in o or 'sort them' in o for o in FAULTS[content]): continue
        path.write_bytes(content)
        with pytest.raises(BasegunError) as error: read_decisions(path)
        assert len(str(error.value).splitlines()) == 1


def test_a_file_in_another_order_says_the_same_or_is_refused(tmp_path):
    path, kinds = tmp_path/'decisions.csv', ['unsure', 'undo', 'unsure', 'undo', 'keep']
    lines = [row(kind=o, time=f'2026-01-31T12:00:0{i}Z') for i, o in enumerate(kinds)]
    path.write_bytes(HEADER + b''.join(lines))
    assert [o.decision for o in read_decisions(path).values()] == ['keep']
    for order in permutations(lines):
        path.write_bytes(HEADER + b''.join(order))
        if [*order] == lines: continue
        with pytest.raises(BasegunError, match="sort them by the column 'time'"): read_decisions(path)
    path.write_bytes(HEADER + row('2', time='2026-01-31T11:00:00Z').join([b'', *lines]))  # the other photo is older
    assert [o.decision for o in read_decisions(path).values()] == ['keep', 'keep']


def test_a_clock_that_is_set_back_leaves_a_file_that_can_be_read(tmp_path):
    path = tmp_path/'decisions.csv'
    decide(path, [decision('val/1.jpg')])
    decide(path, [decision('val/1.jpg', 'undo', time='2026-01-31T11:59:59Z'), decision('val/2.jpg')])
    decide(path, [decision('val/1.jpg', 'unsure', time='2026-01-31T12:00:04+00:00')])
    assert read_decisions(path) == {'val/1.jpg': decision('val/1.jpg', 'unsure'), 'val/2.jpg': decision('val/2.jpg')}


def test_what_is_no_file_is_named(tmp_path):
    os.mkfifo(tmp_path/'pipe')
    for path, words in [(tmp_path/'none', 'cannot be read (No such file'), (tmp_path, 'is not a regular file'),
                        (tmp_path/'pipe', 'is not a regular file')]:
        with pytest.raises(BasegunError) as error: read_decisions(path)
        assert words in str(error.value) and 'give the path of a file of decisions' in str(error.value)
    with open(tmp_path/'large', 'wb') as file: file.truncate(module.MAX_DECISIONS_BYTES + 1)
    with pytest.raises(BasegunError, match='is larger than 256 MiB'): read_decisions(tmp_path/'large')


def test_a_file_that_a_spreadsheet_saved_again_is_read_and_continued(tmp_path):
    path, columns = tmp_path/'decisions.csv', [*reversed(COLUMNS), 'remark']
    cells = dict(zip(COLUMNS, ['val/é/1.jpg', SHA, 'é', 'move', 'b', '', '', TIME], strict=True))
    lines = [columns, [cells.get(o, 'a "remark"') for o in columns]]
    text = '\r\n'.join(','.join('"' + o.replace('"', '""') + '"' for o in line) for line in lines) + '\r\n\r\n'
    path.write_bytes(text.encode('utf-8-sig'))
    assert {k: o.outcome for k, o in read_decisions(path).items()} == {'val/é/1.jpg': ('move', 'b')}
    decide(path, [decision('val/é/2.jpg')])
    assert path.read_bytes().startswith(text.encode('utf-8-sig'))
    assert read_decisions(path)['val/é/2.jpg'] == decision('val/é/2.jpg') and len(read_decisions(path)) == 2


def test_a_file_with_semicolons_is_read_and_continued(tmp_path):
    path, odd = tmp_path/'decisions.csv', 'val/é; "x", y.jpg'
    cells = [[*COLUMNS, 'remark'], [odd, SHA, 'a', 'unsure', '', 'a;b', 'Zoé', TIME, '']]
    lines = [';'.join('"' + o.replace('"', '""') + '"' if {*o} & {*';"'} else o for o in line) for line in cells]
    path.write_bytes(('\r\n'.join(lines) + '\r\n').encode('utf-8-sig'))
    assert read_decisions(path) == {odd: decision(odd, 'unsure', note='a;b', reviewer='Zoé')}
    decide(path, [decision('val/2;.jpg'), decision('val/3.jpg')])
    assert path.read_text().splitlines()[-1] == f'val/3.jpg;{SHA};a;keep;;;"Zoé, ""Z""";{TIME};'
    path.write_bytes(path.read_bytes()[:-3])
    decide(path, [decision('val/4.jpg')])
    assert [*read_decisions(path)] == [odd, 'val/2;.jpg', 'val/4.jpg']


@pytest.mark.parametrize(('kept', 'photo'), [
    (b'val/a/2.jpg', 'one photo'), (b'"val/a/2', 'one photo'), (b'val/a/2.jpg,', "'val/a/2.jpg'"),
    (b'"val/a\n""2"",.jpg",ab', "'val/a\\n\"2\",.jpg'"), (b'val/a/2.jpg,ab,a,unsure,,"a\nb', "'val/a/2.jpg'")])
def test_an_incomplete_last_line_names_its_photo(tmp_path, capsys, kept, photo):
    path = tmp_path/'decisions.csv'
    path.write_bytes(HEADER + row() + kept)
    assert [*read_decisions(path)] == ['val/a/1.jpg']
    assert capsys.readouterr().err == (
        f"'{path}' has an incomplete last line about {photo}, which does not count: decide on that photo again; "
        'all other lines count\n')
    decide(path, [])
    assert f'about {photo}, which is now cut off' in capsys.readouterr().err
    assert path.read_bytes() == HEADER + row()


def test_a_last_line_without_a_line_break_counts_if_it_is_complete(tmp_path):
    path = tmp_path/'decisions.csv'
    path.write_bytes(HEADER + row()[:-1])
    assert len(read_decisions(path)) == 1
    decide(path, [decision('val/a/2.jpg')])
    assert [*read_decisions(path)] == ['val/a/1.jpg', 'val/a/2.jpg']
    path.write_bytes(HEADER[:-1])
    decide(path, [decision('val/a/2.jpg')])
    assert [*read_decisions(path)] == ['val/a/2.jpg']
