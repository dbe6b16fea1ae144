"An option is declared once: `-h` says what the command accepts."
import argparse
import inspect
import re
from importlib import import_module

import numpy as np
import pytest
from conftest import typed

from basegun_fastai.base.parameters import Fault, kind_of, number, one_of, text, value_faults, whole
from basegun_fastai.cli import COMMANDS, _command_parser


def function_of(command):
    module, name, *_ = COMMANDS[command]
    return getattr(import_module(f'basegun_fastai.{module}'), name)


def actions(command):
    return _command_parser(command, function_of(command))._actions


@pytest.mark.parametrize('command', COMMANDS)
def test_every_value_that_help_names_is_accepted(command):
    function, parser = function_of(command), _command_parser(command, function_of(command))
    places = ['x' for o in parser._actions if not o.option_strings]
    named = [(o, value) for o in parser._actions for value in re.findall(r'[a-z][\w-]*', o.metavar or '')]
    for o, value in named:
        parsed = getattr(parser.parse_args([*places, o.option_strings[0], value]), o.dest)
        assert parsed == value and value_faults(function, {o.dest: parsed}) == [], (o.dest, value)
    assert len(named) == dict(train=18, evaluate=3, report=3, split=2).get(command, len(named))


@pytest.mark.parametrize('command', COMMANDS)
def test_every_value_in_help_has_a_word_of_its_own(command):
    for o in actions(command):
        if not o.option_strings or o.nargs == 0 or o.dest == 'xtra': continue
        assert re.fullmatch(r'[A-Z]+(\|[a-z]+)?|\{[\w,-]+\}', o.metavar), (o.dest, o.metavar)


@pytest.mark.parametrize('command', COMMANDS)
def test_help_tells_no_empty_default(command):
    shown = typed(command, '-h').stdout
    assert '(default: False)' not in shown and "(default: '')" not in shown and '(default: ())' not in shown
    assert '(default: None)' not in shown and '(list)' not in shown


@pytest.mark.parametrize('option', ['--head-views', '--other-gpus'])
def test_options_for_those_who_know_them_are_taken_and_not_shown(option):
    assert option not in typed('train', '-h').stdout
    result = typed('train', 'nowhere', option, *(['-1'] if option == '--head-views' else []))
    assert result.returncode == 1 and 'unrecognized' not in result.stderr and f'{option} ' in result.stderr


def test_a_number_that_is_none_says_what_to_give():
    for command, option, value, wanted in [('train', '--size', 'large', 'a whole number of pixels from 32 to 2048'),
                                           ('serve', '--port', '80.5', 'a whole number from 0 to 65535'),
                                           ('split', '--val', 'half', 'a share between 0 and 1, such as 0.2')]:
        result = typed(command, *['x'] * 2 if command == 'split' else 'x', option, value)
        assert result.returncode == 2 and f"argument {option}: '{value}': give {wanted}\n" in result.stderr


def test_what_is_no_number_of_gpus_is_told_with_the_other_faults():
    for value in ('auto', 'some', '0', '-1'):
        result = typed('train', 'nowhere', '--gpus', value, '--lr', 'fast', '--device', 'cpu')
        assert result.returncode == 1 and f'--gpus {value}: give a whole number, 1 or more, or all' in result.stderr
        assert '--lr fast: give a number above 0' in result.stderr and 'no folder' in result.stderr
        assert 'Traceback' not in result.stderr


KINDS = [(whole(1, 9), [1, 9, np.int64(3)], [0, 10, 1., True, '3', None, ''], 'a whole number from 1 to 9'),
         (whole(1, word='auto'), [1, 10**9, 'auto'], [0, 'AUTO', '', b'auto'], 'a whole number, 1 or more, or auto'),
         (number(lambda o: o > 0, 'a number above 0'), [.1, 2, np.float32(1)], [0, float('nan'), '1', True, ''],
          'a number above 0'),
         (one_of(('a', 'b')), ['a', 'b'], ['c', '', None, ['a'], 1], 'a or b'),
         (one_of(('a', 'b'), 'FILE'), ['a', 'x/y'], [None, 1], 'a or b or FILE'),
         (text('NAME', str.isalpha, 'letters'), ['ab'], ['', 'a1', 5], 'letters')]


@pytest.mark.parametrize(('annotation', 'right', 'wrong', 'wanted'), KINDS)
def test_a_kind_accepts_what_it_says(annotation, right, wrong, wanted):
    def command(an_option: annotation): "Do nothing."
    for o in right: assert value_faults(command, dict(an_option=o)) == [], o
    for o in wrong:
        fault, = value_faults(command, dict(an_option=o))
        assert fault.option == 'an_option' and fault.startswith('--an-option ') and fault.endswith(f': give {wanted}')
    assert value_faults(command, dict(another=wrong[0])) == []


def test_a_default_may_be_what_nothing_else_may():
    def command(size: whole(1) = None): "Do nothing."
    assert value_faults(command, dict(size=None)) == [] and value_faults(command, dict(size=0))


def test_a_word_is_read_as_it_is_and_a_number_as_one():
    assert kind_of(whole(1, word='all')).parse('4') == 4 and kind_of(whole(1, word='all')).parse('all') == 'all'
    with pytest.raises(argparse.ArgumentTypeError, match="^'x': give a whole number, 1 or more$"):
        kind_of(whole(1)).parse('x')
    assert kind_of(int) is None and isinstance(Fault('size', 'a text'), str)


def test_the_finder_takes_what_changes_what_it_does():
    from basegun_fastai.train import lr_find, train
    finder, trained = (inspect.signature(o).parameters for o in (lr_find, train))
    assert set(finder) == {'data', 'arch', 'batch_size', 'weights', 'head', 'size', 'class_weights', 'out', 'name',
                           'seed', 'workers', 'device', 'precision', 'cache', 'skip_unreadable'}
    assert all(finder[o] == trained[o] for o in finder) and [*trained][:2] == [*finder][:2] == ['data', 'arch']
    for function, wrong in ((lr_find, 'lr'), (train, 'epochs')):
        words = rf"{function.__name__}\(\) got an unexpected keyword argument '{wrong}'"
        with pytest.raises(TypeError, match=words): function('nowhere', **{wrong: .1})
    with pytest.raises(TypeError, match='too many positional'): train('nowhere', 'efficientnet_b0', 1)
