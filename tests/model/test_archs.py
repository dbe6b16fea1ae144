"Sizes and names of the networks."
import pytest
import timm
import torch

from basegun_fastai.base.errors import BasegunError
from basegun_fastai.model.archs import EFFICIENTNETS, architecture

SIZES = {0: (224, 256), 1: (240, 256), 2: (288, 288), 3: (300, 320), 4: (380, 384), 5: (456, 489), 6: (528, 561),
         7: (600, 633)}


@pytest.mark.parametrize('n', SIZES)
def test_the_owners_sizes(n):
    arch = architecture(f'efficientnet_b{n}')
    assert (arch.size, arch.before_crop) == SIZES[n] and arch.classifier == 'classifier'
    assert arch.mean == (.485, .456, .406) and arch.std == (.229, .224, .225)


@pytest.mark.parametrize('n', SIZES)
def test_tagged_weights_exist_and_the_network_has_n_blocks(n):
    timm_name = EFFICIENTNETS[f'efficientnet_b{n}'][0]
    config = timm.get_pretrained_cfg(timm_name)
    assert '.' in timm_name and config.has_weights and timm_name.removeprefix('tf_').startswith(f'efficientnet_b{n}.')
    with torch.device('meta'): model = timm.create_model(timm_name, num_classes=12)
    millions = sum(o.numel() for o in model.parameters()) / 1e6
    assert millions == pytest.approx([4.0, 6.5, 7.7, 10.7, 17.6, 28.4, 40.8, 63.8][n], abs=.1)


def test_another_size_keeps_the_proportion():
    arch = architecture('efficientnet_b0', size=112)
    assert (arch.size, arch.before_crop) == (112, 128)


@pytest.mark.parametrize(('typed', 'meant'),
                         [('efficentnet_b3', 'efficientnet_b3'), ('EfficientNet_B0', 'efficientnet_b0'),
                                              ('resnet51', 'resnet50')])
def test_an_unknown_name_gets_the_nearest(typed, meant):
    with pytest.raises(BasegunError, match=f"'{meant}'.*basegun-fastai archs"): architecture(typed)
