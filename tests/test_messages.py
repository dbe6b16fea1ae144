"Every mistake of a user gets one message with a remedy and exit 1, and leaves no files."
import shutil
import subprocess
import sys

import pytest
from conftest import COMMAND, as_arguments, tree, typed

pytestmark = pytest.mark.slow

TRAIN = dict(arch='test_efficientnet', size=32, weights='none', head_epochs=0, fine_tune_epochs=1, batch_size=16,
             workers=0)


def refused(data, out, words, *more, **options):
    "Train with a mistake; all `words` must be in the message, and no file may be left."
    before = tree(data) if data.is_dir() else None
    result = typed('train', data, '--out', out, *as_arguments(**TRAIN | options), *more)
    assert result.returncode == 1 and not result.stdout, result
    assert 'Traceback' not in result.stderr and 'basegun-fastai: ' in result.stderr
    for word in words: assert word in result.stderr, result.stderr
    assert before is None or tree(data) == before
    assert not out.exists() or not any(out.iterdir())


def test_no_such_folder(tmp_path): refused(tmp_path/'dta', tmp_path/'out', ["no folder '"])


def test_options_that_make_no_sense_are_all_told(data, tmp_path):
    refused(data, tmp_path/'out', ['--size -3', '--batch-size 0', '--lr -1:', '--fine-tune-epochs -2', '--head ',
                                   "'round'", '--device ',
            '--name', '--seed -1', '--workers -1', "timm has no network of that name; did you mean 'efficientnet_b3'"],
            arch='efficentnet_b3', size=-3, batch_size=0, lr=-1, fine_tune_epochs=-2, head='round', device='tpu',
            name='a/b', seed=-1, workers=-1)


@pytest.mark.parametrize(('options', 'words'), [
    (dict(lr='fast'), '--lr fast'), (dict(lr='nan'), '--lr nan'), (dict(batch_size='many'), '--batch-size many'),
    (dict(fine_tune_epochs=0), 'nothing would be trained'),
    (dict(batch_size=1), 'BatchNorm'), (dict(weights='nowhere.pth'), 'no such file'),
    (dict(device='cuda'), '--device cpu')])
def test_one_option_that_makes_no_sense(data, tmp_path, options, words):
    refused(data, tmp_path/'out', [words], **options)


def test_resume_needs_a_name(data, tmp_path):
    refused(data, tmp_path/'out', ['--resume needs the name of the run to continue: give --name'], '--resume')


def test_an_output_that_exists(data, tmp_path):
    (tmp_path/'out'/'old').mkdir(parents=True)
    result = typed('train', data, '--out', tmp_path/'out', '--name', 'old', *as_arguments(**TRAIN))
    assert (result.returncode == 1 and 'nothing is overwritten' in result.stderr
            and not any((tmp_path/'out'/'old').iterdir()))


def test_resuming_what_is_no_run(data, tmp_path):
    (tmp_path/'out'/'old').mkdir(parents=True)
    result = typed('train', data, '--out', tmp_path/'out', '--name', 'old', '--resume', *as_arguments(**TRAIN))
    assert result.returncode == 1 and 'is not the folder of a run' in result.stderr


def test_an_output_inside_the_data(copy): refused(copy, copy/'runs', ['is inside the data'])


def test_imagenet_weights_that_cannot_be_had(data, tmp_path, monkeypatch):
    from huggingface_hub import constants
    monkeypatch.setattr(constants, 'HF_HUB_OFFLINE', True)
    monkeypatch.setattr(constants, 'HF_HUB_CACHE', str(tmp_path/'hub'))
    result = typed('train', data, '--out', tmp_path/'out',
                       *as_arguments(**TRAIN | dict(arch='efficientnet_b0', weights='imagenet')))
    assert (result.returncode == 1 and '--weights FILE' in result.stderr and '--weights none' in result.stderr
            and not (tmp_path/'out').exists())


def test_a_name_that_is_too_long(data, tmp_path):
    result = typed('train', data, '--out', tmp_path/'out', '--name', 'a' * 300, *as_arguments(**TRAIN))
    assert result.returncode == 1 and 'too long' in result.stderr


def test_an_output_below_a_file(data, tmp_path):
    (tmp_path/'file').touch()
    result = typed('train', data, '--out', tmp_path/'file'/'runs', *as_arguments(**TRAIN))
    assert result.returncode == 1 and "is a file, so '" in result.stderr


def test_evaluating_with_a_class_that_the_run_does_not_know(run, copy, tmp_path):
    (copy/'val'/'revolver').rename(copy/'val'/'revolvers')
    shutil.copytree(copy/'val'/'revolvers', copy/'val'/'rifles')
    result = typed('evaluate', run.path, copy, '--out', tmp_path/'out')
    assert (result.returncode == 1 and "class 'revolvers' is not one that" in result.stderr
            and result.stderr.count("The run's classes are: ") == 1 and 'revolver,' not in result.stdout)
    assert not (tmp_path/'out').exists()


def test_evaluating_without_a_class_says_so(run, copy, tmp_path):
    import json
    shutil.rmtree(copy/'val'/'revolver')
    result = typed('evaluate', run.path, copy/'val', '--out', tmp_path/'out')
    assert result.returncode == 0, result.stderr
    assert "class 'revolver' has no photo" in result.stderr
    numbers = json.loads((tmp_path/'out'/'metrics.json').read_text())
    assert numbers['absent'] == ['revolver'] and numbers['per_class']['revolver']['support'] == 0
    assert (tmp_path/'out'/'confusion-matrix-normalized.csv').read_text().splitlines()[-1] == 'revolver,,,,,,'


def test_evaluating_what_is_no_run(data, tmp_path):
    result = typed('evaluate', tmp_path, data)
    assert result.returncode == 1 and 'is not the folder of a run' in result.stderr


def test_evaluating_a_run_with_a_mistyped_name(run, data):
    result = typed('evaluate', run.path.with_name('frist'), data)
    runs = f"runs in '{run.path.parent}': {run.path.name}"
    assert result.returncode == 1
    assert f"frist' does not exist: give the folder of a run; {runs}" in result.stderr, result.stderr


def test_evaluating_unreadable_photos(run, copy, tmp_path):
    file = copy/'val'/'revolver'/'0005.jpg'
    if not file.exists(): file = sorted((copy/'val'/'revolver').iterdir())[1]
    file.unlink()
    file.write_bytes(b'\xff\xd8 no')
    result = typed('evaluate', run.path, copy, '--out', tmp_path/'out')
    assert result.returncode == 1 and '--skip-unreadable' in result.stderr and file.name in result.stderr
    result = typed('evaluate', run.path, copy, '--out', tmp_path/'out', '--skip-unreadable')
    assert result.returncode == 0 and len((tmp_path/'out'/'predictions-val.csv').read_text().splitlines()) == 24


def test_demo_data_that_exists(tmp_path):
    result = typed('demo-data', tmp_path, '--photos-per-class', 2)
    assert (result.returncode == 1 and 'exists' in result.stderr
            and '--photos-per-class 2: give a whole number, 4 or more' in result.stderr)


@pytest.fixture
def small_disk(tmp_path):
    "A file system of 1 MiB, which only root can make."
    (tmp_path/'disk').mkdir()
    mounted = subprocess.run(['mount', '-t', 'tmpfs', '-o', 'size=1m', 'tmpfs', tmp_path/'disk'], capture_output=True)
    if mounted.returncode: pytest.skip('no right to mount a small disk')
    yield tmp_path/'disk'
    subprocess.run(['umount', tmp_path/'disk'], check=True)


def test_a_read_only_place(data, small_disk):
    subprocess.run(['mount', '-o', 'remount,ro', small_disk], check=True)
    result = typed('train', data, '--out', small_disk/'runs', *as_arguments(**TRAIN))
    assert result.returncode == 1 and 'is not writable: give another --out' in result.stderr


def test_a_full_disk_is_told_and_the_run_goes_on_after(data, small_disk):
    command = ['train', data, '--out', small_disk, '--name', 'full', '--resume',
               *as_arguments(**TRAIN | dict(fine_tune_epochs=2))]
    result = typed(*command)
    assert result.returncode == 1, result.stderr
    assert 'the disk is full' in result.stderr and 'Traceback' not in result.stderr, result.stderr
    assert not [o for o in small_disk.rglob('*') if o.suffix in ('.tmp', '.pt')]
    subprocess.run(['mount', '-o', 'remount,size=64m', small_disk], check=True)
    result = typed(*command)
    assert result.returncode == 0, result.stderr


def test_a_reader_that_goes_away_is_no_traceback():
    result = subprocess.run(f"'{COMMAND}' archs | head -1", shell=True, capture_output=True, text=True)
    assert 'Traceback' not in result.stderr


@pytest.mark.parametrize('asked', [True, False])
@pytest.mark.parametrize('what', ['return self.missing', 'raise RuntimeError("DataLoader worker (pid 1) is killed")'])
def test_what_was_half_made_when_a_signal_came_says_nothing(asked, what):
    script = f'''
import os, signal
from basegun_fastai.base.processes import handle_signals
class Half:
    def __init__(self):
        if {asked}: os.kill(os.getpid(), signal.SIGINT)
        raise KeyboardInterrupt
    def __del__(self): {what}
handle_signals()
try: Half()
except KeyboardInterrupt: print('ended')'''
    result = subprocess.run([sys.executable, '-c', script], capture_output=True, text=True)
    assert result.stdout == 'ended\n' and (result.stderr == '') == asked, result.stderr
