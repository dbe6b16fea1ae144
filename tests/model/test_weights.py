"Weights are loaded and saved key by key."
from dataclasses import replace

import pytest
import timm
import torch
from safetensors.torch import save_file

from basegun_fastai.base.errors import BasegunError
from basegun_fastai.model.archs import HEADS, architecture
from basegun_fastai.model.learner import learner
from basegun_fastai.model.loaders import dataloaders
from basegun_fastai.model.weights import check_weights, plain_model, plain_state, weight_faults

TINY = architecture('test_efficientnet', size=32)


@pytest.fixture(scope='module')
def dls(data): return dataloaders(data, replace(TINY, size=32, before_crop=36), batch_size=16, workers=0)


@pytest.fixture(scope='module')
def weights(trained_weights): return trained_weights


@pytest.mark.slow
@pytest.mark.parametrize('name', ['test_efficientnet', 'test_resnet', 'test_convnext', 'test_vit', 'test_nfnet',
                                  'mobilenetv3_small_050'])
@pytest.mark.parametrize('head', HEADS)
def test_any_network_trains_and_leaves_plain_weights(data, name, head):
    arch = architecture(name, size=None if 'vit' in name else 32)
    loaders = dataloaders(data, arch, batch_size=16, workers=0)
    learn = learner(loaders, arch, 'none', head)
    learn.unfreeze()
    with learn.no_bar(), learn.no_logging(): learn.fit(1, 1e-3)
    x = loaders.valid.one_batch()[0]
    with torch.no_grad():
        plain, own = plain_model(arch, plain_state(learn.model, arch.classifier))(x), learn.model.eval()(x)
    assert torch.allclose(plain, own, atol=1e-4)


def test_weights_from_a_file_really_arrive(dls, weights):
    learn = learner(dls, TINY, weights)
    expected = timm.create_model(TINY.timm_name, num_classes=0, checkpoint_path='')
    expected.load_state_dict({k: v for k, v in timm.models.load_state_dict(str(weights)).items()
                              if not k.startswith('classifier.')})
    assert all(torch.equal(v, learn.model[0].model.state_dict()[k]) for k, v in expected.state_dict().items())


def test_a_pytorch_file_of_tensors_is_fine_and_of_code_is_not(weights, tmp_path):
    state = timm.models.load_state_dict(str(weights))
    torch.save({'state_dict': state}, tmp_path/'state.pth')
    assert weight_faults(TINY, tmp_path/'state.pth') == []
    torch.save(timm.create_model(TINY.timm_name), tmp_path/'model.pth')
    [fault] = weight_faults(TINY, tmp_path/'model.pth')
    assert 'not a file of weights that can be read safely' in fault


@pytest.mark.parametrize(('spoil', 'words'), [
    (lambda s: {k: v for k, v in s.items() if k != 'conv_head.weight'}, ['missing', 'conv_head.weight']),
    (lambda s: {f'model.{k}': v for k, v in s.items()}, ['missing', 'does not have', 'model.b']),
    (lambda s: s | {'conv_stem.weight': torch.zeros(3, 3)}, ['another shape', 'conv_stem.weight']),
    (lambda s: s | {'classifier.weight': torch.zeros(3, 3)}, ['another shape', 'classifier.weight']),
    (lambda s: s | {'classifier.bias': torch.full((1000,), torch.nan)}, ['NaN or infinite', 'classifier.bias']),
    (lambda s: s | {'bn1.running_var': torch.full_like(s['bn1.running_var'], torch.inf)}, [
        'NaN or infinite (1 of 88: bn1.running_var)'])])
def test_weights_that_do_not_fit_are_named(dls, weights, tmp_path, spoil, words):
    save_file({k: v.contiguous() for k, v in spoil(timm.models.load_state_dict(str(weights))).items()},
              tmp_path/'spoilt.safetensors')
    faults = '\n'.join(weight_faults(TINY, tmp_path/'spoilt.safetensors'))
    assert all(o in faults for o in words)
    with pytest.raises(BasegunError): learner(dls, TINY, tmp_path/'spoilt.safetensors')


def test_a_file_with_the_names_of_others_is_taken_where_timm_knows_them(data, tmp_path):
    torch.manual_seed(3)
    arch, state = architecture('test_convnext', size=32), timm.create_model('test_convnext').state_dict()
    save_file({f'visual.trunk.{k}': v for k, v in state.items()}, tmp_path/'clip.safetensors')
    learn = learner(dataloaders(data, arch, batch_size=16, workers=0), arch, tmp_path/'clip.safetensors')
    body = learn.model[0].model.state_dict()
    assert all(torch.equal(v, state[k]) for k, v in body.items())


@pytest.mark.parametrize('inside', [True, False])
def test_a_folder_is_no_file(tmp_path, inside):
    if inside: (tmp_path/'model.safetensors').touch()
    [fault] = weight_faults(TINY, tmp_path)
    assert fault == f"--weights '{tmp_path}': a folder, not a file. Give " + (
        f"the file in it, '{tmp_path/'model.safetensors'}'" if inside else "a file of weights, 'imagenet' or 'none'")


def test_weights_that_cannot_be_downloaded_name_the_ways_out(monkeypatch, tmp_path):
    import huggingface_hub.constants
    monkeypatch.setattr(huggingface_hub.constants, 'HF_HUB_OFFLINE', True)
    monkeypatch.setattr(huggingface_hub.constants, 'HF_HUB_CACHE', str(tmp_path))
    with pytest.raises(BasegunError, match='--weights FILE.*--weights none'):
        check_weights(architecture('efficientnet_b0'), 'imagenet')
