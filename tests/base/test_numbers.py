"Options accept numbers of Python and of numpy."
from decimal import Decimal

import numpy as np
import pytest

from basegun_fastai.base.errors import BasegunError
from basegun_fastai.base.parameters import is_number, is_whole, plain
from basegun_fastai.check import check
from basegun_fastai.data.demo import demo_data
from basegun_fastai.split import split


def test_what_is_a_number():
    for o in (1, 0, -3, np.int64(2), np.uint8(2)): assert is_number(o) and is_whole(o, -3) and type(plain(o)) is int
    for o in (.5, np.float32(.5)): assert is_number(o) and not is_whole(o, 0) and plain(o) == .5
    for o in (True, np.bool_(False), '1', None, 1j, Decimal(1), [1], np.array([1])):
        assert not is_number(o) and not is_whole(o, 0)
    assert plain(np.bool_(True)) is True and plain('auto') == 'auto' and plain(np.array([.1, .2])) == [.1, .2]
    assert [is_whole(o, 2, 4) for o in (1, 2, 4, 5)] == [False, True, True, False]


@pytest.mark.parametrize('value', [True, 1.5, '1'])
def test_commands_refuse_what_is_no_whole_number(data, tmp_path, value):
    for command, words in ((lambda: demo_data(tmp_path/'out', seed=value), '--seed'),
                           (lambda: demo_data(tmp_path/'out', photos_per_class=value), '--photos-per-class'),
                           (lambda: split(data/'train', tmp_path/'out', seed=value), '--seed'),
                           (lambda: check(data, size=value), '--size'),
                           (lambda: check(data, workers=value), '--workers')):
        with pytest.raises(BasegunError, match=words): command()


def test_numbers_of_numpy_split_like_those_of_python(data, tmp_path):
    for name, val, seed in (('a', .3, 7), ('b', np.float64(.3), np.int64(7))):
        split(data/'train', tmp_path/f'split {name}', val=val, seed=seed)
    assert (tmp_path/'split a'/'split.csv').read_bytes() == (tmp_path/'split b'/'split.csv').read_bytes()
