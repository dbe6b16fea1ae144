"The installed command as a user sees it: exit codes, streams, messages, and imports."
import json
import os
import subprocess
import sys

import pytest
from conftest import COMMAND, as_arguments, run_command, tree, typed
from warm import run_warm

from basegun_fastai.cli import COMMANDS

pytestmark = pytest.mark.slow


def test_help_lists_every_command():
    result = run_command('-h')
    assert result.returncode == 0 and all(f'  {o} ' in result.stdout for o in COMMANDS) and not result.stderr


USAGE = [[], ['trian', 'data'], ['train'], ['train', 'a', 'b'], ['train', 'a', '--head-epochs', 'ten'],
         ['train', 'a', '--hflip'], ['evaluate', 'a'], ['archs', '--hflip']]
LIGHT = [['--help'], ['archs'], ['cache'], ['train', 'nowhere', '--lr', '99'],
         ['lr-find', 'nowhere', '--cache', 'nowhere/x'], *USAGE, *([o, '-h'] for o in COMMANDS)]
WALK = '''
import json, sys
from contextlib import redirect_stderr, redirect_stdout
from io import StringIO
from basegun_fastai import cli
for arguments in json.loads(sys.argv[1]):
    sys.argv, out, err, code = ['basegun-fastai', *arguments], StringIO(), StringIO(), 0
    with redirect_stdout(out), redirect_stderr(err):
        try: cli.main()
        except SystemExit as end: code = end.code
    heavy = [o for o in ('torch', 'fastai', 'timm', 'torchvision') if o in sys.modules]
    print(json.dumps([arguments, code, out.getvalue(), err.getvalue(), heavy]))
'''


@pytest.fixture(scope='module')
def walked():
    "Results of many command lines in one process: exit code, stdout, stderr and heavy imports of each."
    result = subprocess.run([sys.executable, '-c', WALK, json.dumps(LIGHT)], capture_output=True, text=True)
    assert result.returncode == 0 and not result.stderr, result.stderr
    return {tuple(arguments): rest for arguments, *rest in map(json.loads, result.stdout.splitlines())}


def test_every_command_has_help_on_stdout(walked):
    for command in COMMANDS:
        code, out, err, _ = walked[command, '-h']
        assert not code and out.startswith(f'usage: basegun-fastai {command}') and not err, command
        assert max(map(len, out.splitlines())) <= 120, command


def test_wrong_usage_is_2(walked):
    for arguments in USAGE:
        code, out, err, _ = walked[tuple(arguments)]
        assert code == 2 and err.startswith('usage:') and not out, arguments


def test_help_and_wrong_usage_come_without_the_heavy_imports(walked):
    assert len(walked) == len(LIGHT) and {k: o[-1] for k, o in walked.items() if o[-1]} == {}


def test_archs_lists_the_eight():
    result = run_command('archs')
    assert result.returncode == 0 and all(f'efficientnet_b{n} ' in result.stdout
                                          for n in range(8)) and not result.stderr


def test_a_training_in_a_log_file(data, tmp_path):
    before = tree(data)
    result = run_command('train', data, '--name', 'mon essai',
                       *as_arguments(arch='test_efficientnet', size=32, weights='none',
                       head_epochs=1, fine_tune_epochs=1, batch_size=16), cwd=tmp_path)
    assert result.returncode == 0, result.stderr
    *first_lines, accuracy, precision, recall, where = result.stdout.splitlines()
    assert [o.split()[0] for o in (accuracy, precision, recall)] == ['accuracy', 'precision',
        'recall'] and where == 'runs/mon essai'
    assert [o.split()[0] for o in first_lines] == ['temperature', 'calibration', 'loss:', 'Brier', 'high', 'medium',
                                                   'low',
                                                   'every', 'no', 'no']
    assert '\r' not in result.stdout + result.stderr and '\x1b' not in result.stdout + result.stderr
    warned, lines = ([o for o in result.stderr.splitlines() if o.startswith('warning: ') == wanted]
                     for wanted in (True, False))
    assert len(warned) == 4 and 'val/epaule_a_pompe has 4 photos' in warned[0]
    assert f'3 more: `basegun-fastai check {data} --report check.html` shows the rest' in warned[3]
    assert [o.split()[0] for o in lines] == ['72', 'test_efficientnet', 'features', 'head', 'fine-tune',
                                             'best', 'judging', 'writing'], result.stderr
    assert max(map(len, lines)) <= 100 and tree(data) == before
    evaluated = run_warm('evaluate', tmp_path/'runs'/'mon essai', data, cwd=tmp_path)
    assert evaluated.returncode == 0, evaluated.stderr
    assert evaluated.stdout.splitlines()[-4:-1] == [accuracy, precision, recall] and tree(data) == before


def test_what_nobody_foresaw_keeps_its_traceback():
    code = ('import sys; from basegun_fastai import cli; cli.COMMANDS["archs"] = ("nowhere", "archs", "", ()); '
            'sys.argv[1:] = ["archs"]; cli.main()')
    result = subprocess.run([sys.executable, '-c', code], capture_output=True, text=True)
    assert result.returncode == 1 and 'Traceback' in result.stderr and 'ModuleNotFoundError' in result.stderr


def test_a_user_without_a_home_whom_the_system_does_not_know_can_use_every_command():
    without = [o for name in ('HOME', 'XDG_CACHE_HOME', 'USER', 'LOGNAME') for o in ('-u', name)]
    stranger = ['unshare', '--user', '--map-user=12345', '--map-group=12345', 'env', *without]
    if subprocess.run([*stranger, 'true'], capture_output=True).returncode:
        pytest.skip('this user may not make a user namespace')
    result = subprocess.run([*stranger, COMMAND, 'cache'], capture_output=True, text=True)
    assert result.returncode == 0 and 'Traceback' not in result.stderr, result.stderr
    assert '/.cache/basegun-fastai' in result.stdout


@pytest.mark.parametrize('option', ['--lr', '--head-views', '--compile', '--head-epochs', '--fine-tune-epochs'])
def test_the_finder_offers_no_option_that_changes_nothing(option):
    result = typed('lr-find', 'nowhere', option, *([] if option == '--compile' else ['1']))
    assert result.returncode == 2 and 'unrecognized arguments' in result.stderr
    assert option not in typed('lr-find', '-h').stdout


WITHOUT_FASTCORE = "import sys; sys.modules['fastcore'] = None; from basegun_fastai import cli"


@pytest.mark.parametrize('arguments', [['predict', '-h'], ['predict', 'served', 'a.jpg'], ['check', 'data']])
def test_what_is_not_installed_is_said_in_a_line(arguments):
    code = f'{WITHOUT_FASTCORE}; cli.main()'
    result = subprocess.run([sys.executable, '-c', code, *arguments], capture_output=True, text=True)
    assert result.returncode == 1 and not result.stdout and result.stderr.count('\n') == 1, result.stderr
    assert result.stderr.startswith("basegun-fastai: fastcore is not installed: type `pip install 'fastcore>=")


@pytest.mark.parametrize('argument', ['--version', '-h'])
def test_the_program_tells_its_version_and_its_commands_without_fastcore(argument):
    result = subprocess.run([sys.executable, '-c', f'{WITHOUT_FASTCORE}; cli.main()', argument], capture_output=True,
                            text=True)
    assert result.returncode == 0 and not result.stderr and result.stdout == run_command(argument).stdout


def test_an_older_pillow_is_refused_in_a_line():
    code = "import PIL.Image; PIL.__version__ = '10.4.0'; from basegun_fastai import cli; cli.main()"
    result = subprocess.run([sys.executable, '-c', code, 'predict', '-h'], capture_output=True, text=True)
    assert result.returncode == 1 and not result.stdout
    assert result.stderr == ("basegun-fastai: Pillow 10.4.0 is installed, but 11.3 or later is needed: type "
                             "`pip install 'pillow>=11.3'`\n")


def test_a_second_command_in_a_process_leaves_the_environment_as_it_is(monkeypatch):
    monkeypatch.setenv('PYTHONWARNINGS', 'once')
    typed('archs', '-h')
    before = dict(os.environ)
    typed('archs', '-h')
    assert dict(os.environ) == before and before['PYTHONWARNINGS'].startswith('once,ignore:')
