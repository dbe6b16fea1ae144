"Which device is used, and the message if it is not the requested one."
import pytest
import torch

from basegun_fastai.base.errors import BasegunError
from basegun_fastai.model.device import is_unsupported_gpu, usable_device


def test_gpus_that_torch_was_not_built_for():
    wheel = ['sm_75', 'sm_80', 'sm_86', 'sm_90', 'sm_100', 'sm_120', 'compute_120']
    assert is_unsupported_gpu((7, 0), wheel) and not is_unsupported_gpu((8, 9),
        wheel) and not is_unsupported_gpu((12, 1), wheel)
    assert not is_unsupported_gpu((13, 0), wheel) and is_unsupported_gpu((13, 0), wheel[:-1])


@pytest.mark.skipif(torch.cuda.is_available(), reason='for machines without a GPU')
def test_a_gpu_that_is_not_there():
    with pytest.raises(BasegunError, match='--device cpu'): usable_device('cuda')
    assert usable_device('auto') == 'cpu'
