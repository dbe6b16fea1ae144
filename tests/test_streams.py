"Closed and full streams end no work, and spoil no file."
import json
import os
import re
import subprocess

import pytest
from conftest import COMMAND, TINY, WHOLE, as_arguments, run_command
from test_train import same
from warm import run_without_streams

from basegun_fastai.base.record import Run

pytestmark = pytest.mark.slow
OPTIONS = as_arguments(**WHOLE)


def shell(streams, *arguments, **options):
    "Run the command as a shell does with redirections such as `>&-`."
    return subprocess.run(['bash', '-c', f'exec "$@" {streams}', 'bash', COMMAND, *map(str, arguments)],
                          capture_output=True, text=True, timeout=600, **options)


@pytest.fixture
def commands(data, run, exported, tmp_path):
    "A command line of each command that ends by itself, and a file that it makes."
    photo = next((data/'val').rglob('*.jpg'))
    return {
        'demo-data': (['demo-data', tmp_path/'drawn', '--photos-per-class', 4], tmp_path/'drawn'),
        'check': (['check', data, '--json', tmp_path/'check.json'], tmp_path/'check.json'),
        'split': (['split', data/'train', tmp_path/'split', '--val', '0.5'], tmp_path/'split'),
        'archs': (['archs'], None),
        'cache': (['cache'], None),
        'lr-find': (['lr-find', data, '--out', tmp_path, '--name', 'rate', *as_arguments(**TINY)],
                    tmp_path/'rate'/'lr-find.csv'),
        'train': (['train', data, '--out', tmp_path, '--name', 'run', *OPTIONS], tmp_path/'run'/'metrics.json'),
        'evaluate': (['evaluate', run.path, data, '--out', tmp_path/'judged'], tmp_path/'judged'/'metrics.json'),
        'export': (['export', run.path, '--out', tmp_path/'exported'], tmp_path/'exported'/'model.onnx'),
        'predict': (['predict', exported, photo, '--out', tmp_path/'rows.csv'], tmp_path/'rows.csv'),
        'report': (['report', run.path, '--out', tmp_path/'page.html'], tmp_path/'page.html')}


LIGHT = ['demo-data', 'check', 'archs', 'cache', 'predict']


@pytest.mark.parametrize('command', [*LIGHT, 'split', 'train'])
def test_a_command_without_any_stream_does_its_work(commands, run, tmp_path, command):
    arguments, result = commands[command]
    done = shell('<&- >&- 2>&-', *arguments)
    assert (done.returncode, done.stdout, done.stderr) == (0, '', '')
    assert result is None or result.exists()
    if command == 'train': same(run, Run(tmp_path/'run'))  # what was printed is in none of its files


@pytest.mark.parametrize('command', ['lr-find', 'evaluate', 'export', 'report'])
def test_nor_do_the_slower_ones_need_a_stream(commands, command):
    arguments, result = commands[command]
    assert run_without_streams(*arguments) == 0 and result.exists()


@pytest.mark.parametrize('command', LIGHT)
@pytest.mark.parametrize('streams', ['<&-', '2>&-', '2>/dev/full'])
def test_the_result_comes_without_the_other_streams(commands, command, streams):
    arguments, _ = commands[command]
    done, whole = shell(streams, *arguments), run_command(*arguments) if command in ('archs', 'cache') else None
    assert done.returncode == 0 and (whole is None or done.stdout == whole.stdout)


@pytest.mark.parametrize('command', LIGHT)
def test_a_closed_stdout_is_told(commands, command):
    done = shell('>&-', *commands[command][0])
    assert done.returncode == 0
    assert done.stderr.startswith('warning: stdout is closed, so what this command prints is lost')


def test_rows_that_nobody_could_read_are_not_computed(exported, data):
    done = shell('>&-', 'predict', exported, data)
    assert done.returncode == 1 and done.stderr.endswith('basegun-fastai: stdout is closed: give --out FILE\n')


@pytest.mark.parametrize('command', ['archs', 'check', 'cache', 'demo-data'])
def test_a_full_disk_behind_stdout_is_told(commands, command):
    arguments, result = commands[command]
    done = shell('>/dev/full', *arguments)
    assert done.returncode == 1 and re.search('stdout.*(No space left on device|the disk is full)', done.stderr)
    assert 'Traceback' not in done.stderr and 'Exception ignored' not in done.stderr
    assert result is None or result.exists()


def test_a_training_goes_on_when_the_disk_of_its_log_is_full(data, run, tmp_path):
    done = shell('2>/dev/full', 'train', data, '--out', tmp_path, '--name', 'run', *OPTIONS)
    assert done.returncode == 0 and done.stdout.endswith(f"{tmp_path/'run'}\n")
    same(run, Run(tmp_path/'run'))


def test_the_letters_of_the_locale_change_no_name(copy, exported, tmp_path):
    "Python may take the names of files for ASCII or Latin-1; a class keeps its name."
    for split in ('train', 'val'): (copy/split/'revolver').rename(copy/split/'pistolet à percussion')
    odd = os.environ | dict(LC_ALL='C', PYTHONCOERCECLOCALE='0', PYTHONUTF8='0')
    done = run_command('check', copy, '--json', tmp_path/'check.json', env=odd)
    assert done.returncode == 0, done.stderr
    assert 'pistolet à percussion' in json.loads((tmp_path/'check.json').read_bytes())['counts']['train']
    photo = next((copy/'val'/'pistolet à percussion').iterdir())
    done = run_command('predict', exported, photo, env=odd)
    assert done.returncode == 0 and 'pistolet \\xe0 percussion' in done.stdout  # a terminal that knows ASCII alone
