"Closed and full streams neither stop a command nor damage a file."
import json
import os
import re
import subprocess

import pytest
from conftest import COMMAND, WHOLE, as_arguments, run_command, typed
from test_train import same
from warm import run_warm, run_without_streams

from basegun_fastai.base.record import Run

pytestmark = pytest.mark.slow
OPTIONS = as_arguments(**WHOLE)


def shell(streams, *arguments, **options):
    "Run the command as a shell does with redirections such as `>&-`."
    return subprocess.run(['bash', '-c', f'exec "$@" {streams}', 'bash', COMMAND, *map(str, arguments)],
                          capture_output=True, text=True, timeout=600, **options)


# `cli.main` prepares the streams, for all commands alike: one command represents those without PyTorch here.

@pytest.fixture
def checked(data, tmp_path): return ['check', data, '--json', tmp_path/'check.json']


def test_a_command_without_any_stream_does_its_work(checked, tmp_path):
    done = shell('<&- >&- 2>&-', *checked)
    assert (done.returncode, done.stdout, done.stderr) == (0, '', '') and (tmp_path/'check.json').exists()


def test_nor_does_onnxruntime_need_one(exported, data, tmp_path):
    photo = next((data/'val').rglob('*.jpg'))
    done = shell('<&- >&- 2>&-', 'predict', exported, photo, '--out', tmp_path/'rows.csv')
    assert (done.returncode, done.stdout, done.stderr) == (0, '', '') and (tmp_path/'rows.csv').exists()


def test_nor_do_a_training_and_an_export(data, run, tmp_path):
    assert run_without_streams('train', data, '--out', tmp_path, '--name', 'run', *OPTIONS) == 0
    same(run, Run(tmp_path/'run'))  # its files contain nothing that was printed
    assert run_without_streams('export', tmp_path/'run') == 0 and (tmp_path/'run'/'exported'/'model.onnx').exists()


@pytest.mark.parametrize('streams', ['<&-', '2>&-', '2>/dev/full'])
def test_the_result_comes_without_the_other_streams(checked, streams):
    done, whole = shell(streams, *checked), typed(*checked[:-1], checked[-1].with_name('whole.json'))
    assert done.returncode == 0 and done.stdout == whole.stdout


def test_a_closed_stdout_is_told(checked):
    done = shell('>&-', *checked)
    assert done.returncode == 0
    assert done.stderr.startswith('warning: stdout is closed, so the output of this command is lost')


def test_rows_that_nobody_could_read_are_not_computed(exported, data):
    done = shell('>&-', 'predict', exported, data)
    assert done.returncode == 1 and done.stderr.endswith('basegun-fastai: stdout is closed: give --out FILE\n')


def test_a_full_disk_behind_stdout_is_told(checked, tmp_path):
    done = shell('>/dev/full', *checked)
    assert done.returncode == 1 and re.search('stdout.*(No space left on device|the disk is full)', done.stderr)
    assert 'Traceback' not in done.stderr and 'Exception ignored' not in done.stderr
    assert (tmp_path/'check.json').exists()


def test_a_training_goes_on_when_the_disk_of_its_log_is_full(data, run, tmp_path):
    full = 'import os; os.dup2(os.open("/dev/full", os.O_WRONLY), 2)'
    done = run_warm('train', data, '--out', tmp_path, '--name', 'run', *OPTIONS, '--no-report', before=full)
    assert done.returncode == 0 and done.stdout.endswith(f"{tmp_path/'run'}\n")
    same(run, Run(tmp_path/'run'))


def test_the_letters_of_the_locale_change_no_name(copy, exported, tmp_path):
    "Python may read file names as ASCII or Latin-1; a class keeps its name."
    for split in ('train', 'val'): (copy/split/'revolver').rename(copy/split/'pistolet à percussion')
    odd = os.environ | dict(LC_ALL='C', PYTHONCOERCECLOCALE='0', PYTHONUTF8='0')
    done = run_command('check', copy, '--json', tmp_path/'check.json', env=odd)
    assert done.returncode == 0, done.stderr
    assert 'pistolet à percussion' in json.loads((tmp_path/'check.json').read_bytes())['counts']['train']
    photo = next((copy/'val'/'pistolet à percussion').iterdir())
    done = run_command('predict', exported, photo, env=odd)
    assert done.returncode == 0 and 'pistolet \\xe0 percussion' in done.stdout  # a terminal that knows only ASCII
