"A bank changes no prediction, and PyTorch finds the same similarity as numpy."
from types import SimpleNamespace

import numpy as np
import pytest
import timm
import torch
from torch import nn

from basegun_fastai.base.errors import BasegunError
from basegun_fastai.trust.familiarity import Bank, similarity
from basegun_fastai.trust.judge import features_and_logits, has_features, raise_unless_bank_fits, similarity_of
from basegun_fastai.trust.judge import with_similarity

NAMES = ['test_efficientnet', 'test_resnet', 'test_convnext', 'test_vit']
CLASSES = 5


def directions(n, width, seed=1):
    "Features of length 1, in half precision as in a bank."
    x = np.random.default_rng(seed).normal(size=(n, width)).astype(np.float32)
    return (x / np.linalg.norm(x, axis=1, keepdims=True)).astype(np.float16)


def photos(n): return torch.randn(n, 3, 160, 160, generator=torch.Generator().manual_seed(n))


def plain(name):
    torch.manual_seed(0)
    return timm.create_model(name, num_classes=CLASSES).eval()


def learned(name, head='linear'):
    "The body and head of a learner, as `model.learner` builds them."
    torch.manual_seed(0)
    body = timm.create_model(name, num_classes=0)
    dense = nn.Linear(body.head_hidden_size, CLASSES)
    layers = [dense] if head == 'linear' else [nn.BatchNorm1d(body.head_hidden_size), nn.Dropout(.2), dense]
    for o in layers:
        if isinstance(o, nn.BatchNorm1d): o.running_mean.normal_()
    return nn.Sequential(body, nn.Sequential(*layers)).eval()


KINDS = {f'{make.__name__} {name}': (make, name) for make in (plain, learned) for name in NAMES} | {
    'learned with BatchNorm': (lambda name: learned(name, 'bn-dropout'), 'test_efficientnet')}


@pytest.fixture(scope='module', params=KINDS)
def network(request):
    make, name = KINDS[request.param]
    return make(name)


def width_of(network): return (network[0] if isinstance(network, nn.Sequential) else network).head_hidden_size


@pytest.mark.parametrize('n', [1, 3, 8])
def test_a_bank_changes_no_logit(network, n):
    assert has_features(network)
    bank = directions(40, width_of(network))
    with torch.inference_mode():
        expected, outputs = network(photos(n)), with_similarity(network, bank)(photos(n))
        pooled, logits = features_and_logits(network, photos(n))
    assert outputs.shape == (n, CLASSES + 1) and pooled.shape == (n, width_of(network))
    assert torch.equal(outputs[:, :-1], expected) and torch.equal(logits, expected)
    lengths = pooled.norm(dim=1, keepdim=True)
    assert np.abs(outputs[:, -1].numpy() - similarity((pooled / lengths).numpy(), bank)).max() < 1e-5


def test_features_are_what_the_last_layer_takes(network):
    last = network[1][-1] if isinstance(network, nn.Sequential) else network.get_classifier()
    with torch.inference_mode():
        pooled, logits = features_and_logits(network, photos(2))
        if isinstance(network, nn.Sequential) and len(network[1]) > 1: pooled = network[1][0](pooled)
        assert torch.allclose(last(pooled), logits, atol=1e-5)


@pytest.mark.parametrize('n', [1, 4, 5, 300])
def test_torch_and_numpy_agree_on_similarity(n):
    random = np.random.default_rng(0)
    features, bank = random.normal(size=(50, 16)).astype(np.float32) * 30, directions(n, 16)
    unit = features / np.linalg.norm(features, axis=1, keepdims=True)
    actual = similarity_of(torch.from_numpy(features), torch.from_numpy(bank))
    assert actual.dtype == torch.float32 and np.abs(actual.numpy() - similarity(unit, bank)).max() < 1e-5
    half = similarity_of(torch.from_numpy(features).half(), torch.from_numpy(bank))  # like under autocast
    assert half.dtype == torch.float32 and np.abs(half.numpy() - similarity(unit, bank)).max() < 2e-3


class Silent(nn.Module):
    "A network without access to its features, like a few of timm's."
    head_hidden_size = 8

    def forward_features(self, x): return x

    def forward_head(self, x): return x.mean((2, 3))

    def forward(self, x): return self.forward_head(self.forward_features(x))


def test_a_network_that_keeps_its_features_to_itself_has_none():
    assert not has_features(Silent()) and not has_features(nn.Linear(2, 2))
    assert has_features(plain('test_resnet')) and has_features(learned('test_resnet'))


def test_a_bank_of_another_width_is_refused():
    run, network = SimpleNamespace(familiarity='a run/familiarity.safetensors'), plain('test_resnet')
    banks = {n: Bank(directions(20, n), np.ones(60, np.float32)) for n in (8, 95, 96)}
    raise_unless_bank_fits(run, network, banks[96])
    with pytest.raises(BasegunError) as result: raise_unless_bank_fits(run, network, banks[95])
    for words in ("'a run/familiarity.safetensors' has 95 features, the network 96", 'Copy it again', 'train again'):
        assert words in str(result.value)
    with pytest.raises(BasegunError, match='8 features, the network 0'):
        raise_unless_bank_fits(run, Silent(), banks[8])
