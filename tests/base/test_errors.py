"Errors cross processes unchanged, and say only what a person reads."
import inspect
import pickle
import pkgutil
from importlib import import_module

import pytest

import basegun_fastai
from basegun_fastai.base.errors import MAX_LINE, BasegunError, raise_faults
from basegun_fastai.base.pool import Died
from basegun_fastai.base.processes import Terminated
from basegun_fastai.data.formats import CannotRead, MissingPackage, UnknownFormat
from basegun_fastai.data.photo import TooLarge, UnreadablePhoto
from basegun_fastai.serving.bodies import Refusal
from basegun_fastai.training.launching import ProcessEnded


def exceptions():
    "Every exception class that a module of the package defines."
    names = [o.name for o in pkgutil.walk_packages(basegun_fastai.__path__, 'basegun_fastai.')]
    return [o for name in names for o in vars(import_module(name)).values()
            if inspect.isclass(o) and issubclass(o, BaseException) and o.__module__ == name]


MORE = {ProcessEnded: ('a message', -9), Died: (-9, 'a message'),
        Refusal: (422, 'a-code', 'a message'),
        **{o: ('a-code', 'of two\nlines, with: a colon')
           for o in (CannotRead, UnknownFormat, MissingPackage, TooLarge)}}
EXCEPTIONS = exceptions()
PLACES = ["photos/a.jpg", "photos/it's: a.jpg", 'photos/a\nb.jpg', '']


def examples(kind):
    if issubclass(kind, UnreadablePhoto):
        return [kind(place, "its content is none, but text that starts with 'Not Found'", 'text-file',
                     dict(words='Not Found')) for place in PLACES]
    return [kind(*MORE[kind])] if kind in MORE else [kind('a message'), kind('of two\nlines, with a: colon')]


def test_the_exceptions_of_the_package_are_all_walked():
    assert {BasegunError, Terminated, UnreadablePhoto, ProcessEnded} < {*EXCEPTIONS} and len(EXCEPTIONS) >= 10


@pytest.mark.parametrize('kind', EXCEPTIONS, ids=lambda o: o.__qualname__)
def test_an_error_crosses_processes_whole(kind):
    for error in examples(kind):
        error.note = 'kept'
        again = pickle.loads(pickle.dumps(error))
        assert type(again) is kind and str(again) == str(error) and vars(again) == vars(error)


def test_a_message_is_what_it_was_when_fastai_has_put_words_before_it():
    error = BasegunError('the loss is nan')
    error.args = ('Exception occured in `NanGuard` when calling event `after_loss`:\n\tthe loss is nan',)
    assert str(error) == str(pickle.loads(pickle.dumps(error))) == 'the loss is nan'


def test_a_line_of_a_message_keeps_its_beginning_and_its_end():
    long = f"--name '{'x' * 3_000_000}': give a shorter name"
    message = str(BasegunError(long))
    assert len(message) <= MAX_LINE == 1000
    assert message[:9] == "--name 'x" and message.endswith('give a shorter name')
    with pytest.raises(BasegunError) as error: raise_faults([long, 'short'])
    assert str(error.value) == f'{message}\nshort'
    assert str(BasegunError('x' * MAX_LINE)) == 'x' * MAX_LINE
