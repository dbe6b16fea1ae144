"A photo can crash only the process that reads it."
import json
import os
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path

import pytest
from PIL import Image, ImageDraw

from basegun_fastai.base.pool import Process
from basegun_fastai.data import photo
from basegun_fastai.data.reading import POOL, answer, answers

CRASHES = '''
import os, signal, time
from PIL import PngImagePlugin
plain = PngImagePlugin.PngImageFile.load
def load(self):
    if self.size == (61, 20): os.kill(os.getpid(), signal.SIGSEGV)
    if self.size == (62, 20):
        while True: sum(range(10**6))
    if self.size == (63, 20): os._exit(7)
    return plain(self)
PngImagePlugin.PngImageFile.load = load
'''


@pytest.fixture
def photos(tmp_path):
    "Forty photos of different widths."
    (tmp_path/'des photos').mkdir()
    for i in range(40): Image.new('RGB', (60 + i, 20), (6 * i, 90, 0)).save(tmp_path/'des photos'/f'{i:02d}.png')
    return tmp_path/'des photos'


@pytest.fixture
def crashing(tmp_path, monkeypatch):
    "A decoder that crashes on photos of three widths, like a library with a bug, in the reading processes."
    (tmp_path/'site').mkdir()
    (tmp_path/'site'/'sitecustomize.py').write_text(CRASHES)
    monkeypatch.setenv('PYTHONPATH', str(tmp_path/'site'))


def names(folder): return sorted(o.name for o in folder.iterdir())


@pytest.mark.parametrize('workers', [1, 2, 5])
def test_answers_come_in_order_whatever_the_number_of_processes(photos, workers):
    assert [o['width'] for o in answers(photos, names(photos), workers=workers)] == list(range(60, 100))


@pytest.mark.parametrize('task', ['examine', 'crops'])
def test_a_photo_is_opened_once(photos, monkeypatch, task):
    opened, plain = [], photo.format_of
    monkeypatch.setattr(photo, 'format_of', lambda content: opened.append(content) or plain(content))
    assert answer(photos/'00.png', task)['form'] == 'PNG' and len(opened) == 1


@pytest.mark.usefixtures('crashing')
def test_a_decoder_that_crashes_or_hangs_costs_one_photo_each(photos):
    actual = list(answers(photos, names(photos), workers=2, seconds=1))
    assert [o['reason'] for o in actual[1:4]] == ['it crashes the decoder (SIGSEGV)',
                                                 'reading it takes more than 1 s',
                                                 'it crashes the decoder (exit code 7)']
    assert [o.get('width') for o in actual] == [60, None, None, None, *range(64, 100)]


@pytest.mark.slow
@pytest.mark.usefixtures('crashing')
def test_check_reports_a_photo_that_crashes_the_decoder_and_goes_on(photos, tmp_path):
    for split in ('train', 'val'):
        for label in ('a', 'b'): (tmp_path/'data'/split/label).mkdir(parents=True)
    for i, o in enumerate(sorted(photos.iterdir())):
        o.rename(tmp_path/'data'/('train', 'val')[i % 2]/'ab'[i // 2 % 2]/o.name)
    code = "import basegun_fastai.data.reading as r; r.MAX_SECONDS = 1; from basegun_fastai.cli import main; main()"
    result = subprocess.run([sys.executable, '-c', code, 'check', tmp_path/'data', '--json', tmp_path/'found.json'],
                          capture_output=True, text=True, timeout=120)
    actual = json.loads((tmp_path/'found.json').read_text())
    reasons = sorted(o['message'].split(': ')[1] for o in actual['problems'] if o['kind'] == 'unreadable')
    assert result.returncode == 1 and len(reasons) == 3, result
    assert 'SIGSEGV' in reasons[0] and 'exit code 7' in reasons[1] and 'more than 1' in reasons[2]
    assert actual['photos'] == 40 and actual['refused'] == 3


def test_a_photo_that_takes_too_much_memory_is_an_error(photos, monkeypatch):
    from basegun_fastai.data.reading import TASKS
    def greedy(_): return bytearray(2**50)
    monkeypatch.setitem(TASKS, 'examine', greedy)
    with pytest.raises(MemoryError): answer(photos/'00.png')
    Image.new('L', (7900, 7900)).save(photos/'99.png')
    large, small = asked('r.MAX_MEMORY = 2**26', photos, ['99.png', '00.png'])
    assert 'more memory than is available' in large['reason'] and small['width'] == 60


def asked(change, folder, names):
    "Answers of a process after a change in it."
    process = Process(f'import basegun_fastai.data.reading as r; {change}; r.run_worker()')
    process.start()
    question = dict(folder=str(folder), task='examine', names=names)
    try: return [o for o, _ in process.ask(question, n=len(names))]
    finally: process.end()


def test_a_page_of_words_is_known_with_a_twelfth_of_the_memory(tmp_path):
    "SciPy's libraries hang if they are imported with too little memory."
    page = Image.new('RGB', (128, 96), 'white')
    for y, words in ((30, 'THIS PICTURE'), (50, 'IS NO LONGER HERE')):
        ImageDraw.Draw(page).text((20, y), words, fill='black')
    page.save(tmp_path/'page.png')
    [answer] = asked('r.MAX_MEMORY //= 12', tmp_path, ['page.png'])
    assert answer['blank'] == 'a few words on an empty page'


def test_files_that_are_no_photos_are_answered_at_once(photos):
    os.mkfifo(photos/'pipe')
    (photos/'loop').symlink_to('loop')
    (photos/'new\nline').write_text('x')
    (photos/os.fsdecode(b'caf\xe9')).write_bytes((photos/'00.png').read_bytes())
    actual = list(answers(photos, ['pipe', 'loop', 'gone', 'new\nline', os.fsdecode(b'caf\xe9'), '.'], seconds=20))
    assert ['reason' in o for o in actual] == [True, True, True, True, False, True]


def test_a_process_that_does_not_start_says_why(photos, tmp_path, monkeypatch):
    (tmp_path/'site').mkdir()
    (tmp_path/'site'/'sitecustomize.py').write_text('import sys; sys.modules["PIL"] = None')
    monkeypatch.setenv('PYTHONPATH', str(tmp_path/'site'))
    with pytest.raises(RuntimeError, match='does not start(.|\n)*PIL'): list(answers(photos, names(photos)))


def test_files_of_the_working_folder_are_not_imported(photos, monkeypatch):
    (photos/'signal.py').write_text('raise SystemExit("the wrong module")')
    monkeypatch.chdir(photos)
    assert next(iter(answers(photos, ['00.png'])))['width'] == 60


def children(process=None):
    "Ids of the processes that any thread of a process has started."
    return {o for file in Path(f'/proc/{process or os.getpid()}/task').glob('*/children')
            for o in file.read_text().split()}


def test_processes_stay_for_the_next_use_and_those_at_work_do_not_outlive_theirs(photos):
    POOL.end()
    before = children()
    list(answers(photos, names(photos), workers=2))
    stay = children() - before
    list(answers(photos, names(photos), 'picture', workers=2))
    assert children() - before == stay and len(stay) == 2
    actual = answers(photos, names(photos), workers=2)
    next(actual)
    actual.close()
    assert children() <= before
    with pytest.raises(ZeroDivisionError):
        for o in answers(photos, names(photos)): o['width'] / 0
    POOL.end()
    assert children() <= before


@pytest.mark.usefixtures('crashing')
def test_an_interruption_ends_a_check_and_its_processes_at_once(photos, tmp_path):
    data = tmp_path/'data'
    for split in ('train', 'val'):
        for label in ('a', 'b'):
            (data/split/label).mkdir(parents=True)
            # one that hangs the decoder
            (data/split/label/f'{split}{label}.png').write_bytes((photos/'02.png').read_bytes())
    with subprocess.Popen([sys.executable, '-c', 'from basegun_fastai.cli import main; main()', 'check', data],
                          stderr=subprocess.PIPE, text=True) as process:
        assert 'reading 4 photos' in process.stderr.readline()
        started = time.monotonic()
        while not (readers := children(process.pid)) and time.monotonic() < started + 20: threading.Event().wait(.05)
        process.send_signal(signal.SIGTERM)
        assert process.wait(20) == 143
    assert readers and not [o for o in readers if Path(f'/proc/{o}').exists()]
