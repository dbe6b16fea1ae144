"Sizes, weights, heads and a frozen body."
from dataclasses import replace

import pytest
import timm
import torch
from fastai.callback.core import Callback
from fastai.learner import Learner
from fastai.torch_core import set_seed
from safetensors.torch import save_file

from basegun_fastai.core import BasegunError
from basegun_fastai.model.loaders import dataloaders
from basegun_fastai.model.archs import EFFICIENTNETS, HEADS, architecture
from basegun_fastai.model.learner import balanced_weights, learner
from basegun_fastai.model.weights import check_weights, plain_model, plain_state, weight_faults
from basegun_fastai.model.device import is_unsupported_gpu, usable_device

SIZES = {0: (224, 256), 1: (240, 256), 2: (288, 288), 3: (300, 320), 4: (380, 384), 5: (456, 489), 6: (528, 561),
         7: (600, 633)}
TINY = architecture('test_efficientnet', size=32)


@pytest.fixture(scope='module')
def dls(data): return dataloaders(data, replace(TINY, size=32, before_crop=36), batch_size=16, workers=0)


@pytest.fixture(scope='module')
def weights(tmp_path_factory):
    set_seed(5)
    model = timm.create_model(TINY.timm_name)
    for m in model.modules():  # statistics that differ from those of a new network
        if isinstance(m, torch.nn.BatchNorm2d):
            m.running_mean.normal_(0, .1)
            m.running_var.uniform_(.5, 2)
    file = tmp_path_factory.mktemp('weights')/'tiny.safetensors'
    save_file(model.state_dict(), file)
    return file


def fitted(learn, **options):
    with learn.no_bar(), learn.no_logging(): learn.fit_one_cycle(1, .05, **options)


@pytest.mark.parametrize('n', SIZES)
def test_the_owners_sizes(n):
    made = architecture(f'efficientnet_b{n}')
    assert (made.size, made.before_crop) == SIZES[n] and made.classifier == 'classifier'
    assert made.mean == (.485, .456, .406) and made.std == (.229, .224, .225)


@pytest.mark.parametrize('n', SIZES)
def test_tagged_weights_exist_and_the_network_has_n_blocks(n):
    timm_name = EFFICIENTNETS[f'efficientnet_b{n}'][0]
    config = timm.get_pretrained_cfg(timm_name)
    assert '.' in timm_name and config.has_weights and timm_name.removeprefix('tf_').startswith(f'efficientnet_b{n}.')
    with torch.device('meta'): model = timm.create_model(timm_name, num_classes=12)
    millions = sum(o.numel() for o in model.parameters()) / 1e6
    assert millions == pytest.approx([4.0, 6.5, 7.7, 10.7, 17.6, 28.4, 40.8, 63.8][n], abs=.1)


def test_another_size_keeps_the_proportion():
    made = architecture('efficientnet_b0', size=112)
    assert (made.size, made.before_crop) == (112, 128)


@pytest.mark.parametrize(('typed', 'meant'),
                         [('efficentnet_b3', 'efficientnet_b3'), ('EfficientNet_B0', 'efficientnet_b0'),
                                              ('resnet51', 'resnet50')])
def test_an_unknown_name_gets_the_nearest(typed, meant):
    with pytest.raises(BasegunError, match=f"'{meant}'.*basegun-fastai archs"): architecture(typed)


def test_a_frozen_body_is_bit_identical_and_has_no_backward_pass(dls, weights):
    learn = learner(dls, TINY, weights)
    assert isinstance(learn, Learner)
    before = {k: v.clone() for k, v in learn.model[0].state_dict().items()}
    head = learn.model[1][-1].weight.detach().clone()
    graphs, backward = [], []
    learn.model[0].register_forward_hook(lambda *o: graphs.append(o[-1].requires_grad))
    for m in learn.model[0].modules(): m.register_full_backward_hook(lambda *_: backward.append(1))
    fitted(learn)
    assert all(torch.equal(v, before[k]) for k, v in learn.model[0].state_dict().items())
    assert not torch.equal(learn.model[1][-1].weight, head) and not any(graphs) and not backward


def statistics(model):
    return {k: v.clone() for k, v in model[0].state_dict().items() if 'running_' in k or 'num_batches' in k}


@pytest.mark.parametrize('head', HEADS)
def test_unfreezing_moves_the_body_but_not_the_statistics_that_came_with_its_weights(dls, weights, head):
    learn = learner(dls, TINY, weights, head)
    before, statistics_before = {k: v.detach().clone()
                                 for k, v in learn.model.named_parameters()}, statistics(learn.model)
    fitted(learn)
    learn.unfreeze()
    fitted(learn)
    assert all(not torch.equal(v, before[k]) for k, v in learn.model.named_parameters())  # scale and shift too
    assert len(statistics_before) > 20 and all(torch.equal(v, statistics_before[k])
                                               for k, v in statistics(learn.model).items())
    assert head == 'linear' or learn.model[1][0].running_mean.abs().max() > 0  # that of the head is new, and learns


def test_the_statistics_of_a_network_from_nothing_move(dls):
    learn = learner(dls, TINY, 'none')
    before = statistics(learn.model)
    fitted(learn)
    assert all(not torch.equal(v, before[k]) for k, v in statistics(learn.model).items())


def test_the_statistics_stay_in_a_compiled_network_whose_validation_comes_between(dls, weights):
    learn = learner(dls, TINY, weights)
    before = statistics(learn.model)
    learn.unfreeze()
    learn.model.compile(backend='eager')  # what torch.compile sees of the modes, without a C++ compiler's minute
    with learn.no_bar(), learn.no_logging(): learn.fit_one_cycle(2, .05)
    assert all(torch.equal(v, before[k]) for k, v in statistics(learn.model).items())


def test_weights_of_classes_count_in_training_alone(dls, weights):
    from torch.nn.functional import cross_entropy
    shares, seen = [4., 1., 1., 1., 1., .25], []
    class Seen(Callback):
        def after_loss(self):
            logits, labels = (o.detach().as_subclass(torch.Tensor) for o in (self.pred, self.yb[0]))
            weight = torch.tensor(shares) if self.training else None
            seen.append((self.training, self.loss_grad.item(), cross_entropy(logits, labels, weight).item()))
    learn = learner(dls, TINY, weights, class_weights=shares)
    fitted(learn, cbs=Seen())
    assert {o[0] for o in seen} == {True, False} and all(a == pytest.approx(b, rel=1e-5) for _, a, b in seen)
    assert learn.loss_func.func.weight is None  # what is kept of the learner judges as ever


def test_balanced_weights_give_each_class_the_same_say():
    labels = ['b'] * 90 + ['a'] * 10
    found = balanced_weights(labels)
    assert found[0] * 10 == pytest.approx(found[1] * 90) and found[0] * 10 + found[1] * 90 == pytest.approx(100)


def test_biases_and_norms_do_not_decay(dls, weights):
    learn = learner(dls, TINY, weights, 'bn-dropout')
    learn.unfreeze()
    learn.create_opt()
    learn.opt.set_hypers(lr=.1, wd=.5)
    before = {k: v.detach().clone() for k, v in learn.model.named_parameters()}
    for p in learn.model.parameters(): p.grad = torch.zeros_like(p)
    learn.opt.step()
    for name, p in learn.model.named_parameters():
        decays = p.ndim > 1
        assert torch.allclose(p, before[name] * (.95 if decays else 1)), name
        assert decays or name.endswith('bias') or 'bn' in name or name.startswith('1.0.')


@pytest.mark.parametrize('head', HEADS)
def test_the_head_is_one_dense_layer_on_the_pooled_features(dls, weights, head):
    learn = learner(dls, TINY, weights, head)
    kinds = [type(o).__name__ for o in learn.model[1]]
    assert kinds == (['Linear'] if head == 'linear' else ['BatchNorm1d', 'Dropout', 'Linear'])
    x = torch.rand(2, 3, 32, 32)
    with torch.no_grad():
        features = learn.model[0].eval()(x)
        timm_features = timm.create_model(TINY.timm_name,
                                          checkpoint_path=str(weights)).eval().forward_features(x).mean((2, 3))
    assert torch.allclose(features, timm_features, atol=1e-6)


@pytest.mark.parametrize('name', ['test_efficientnet', 'test_resnet', 'test_convnext', 'test_vit', 'test_nfnet',
                                  'mobilenetv3_small_050'])
@pytest.mark.parametrize('head', HEADS)
def test_any_network_trains_and_leaves_plain_weights(data, name, head):
    made = architecture(name, size=None if 'vit' in name else 32)
    loaders = dataloaders(data, made, batch_size=16, workers=0)
    learn = learner(loaders, made, 'none', head)
    learn.unfreeze()
    with learn.no_bar(), learn.no_logging(): learn.fit(1, 1e-3)
    x = loaders.valid.one_batch()[0]
    with torch.no_grad():
        plain, own = plain_model(made, plain_state(learn.model, made.classifier))(x), learn.model.eval()(x)
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
    (lambda s: s | {'conv_stem.weight': torch.zeros(3, 3)}, ['another shape', 'conv_stem.weight'])])
def test_weights_that_do_not_fit_are_named(dls, weights, tmp_path, spoil, words):
    save_file({k: v.contiguous() for k, v in spoil(timm.models.load_state_dict(str(weights))).items()},
              tmp_path/'spoilt.safetensors')
    faults = '\n'.join(weight_faults(TINY, tmp_path/'spoilt.safetensors'))
    assert all(o in faults for o in words)
    with pytest.raises(BasegunError): learner(dls, TINY, tmp_path/'spoilt.safetensors')


def test_weights_that_cannot_be_downloaded_name_the_ways_out(monkeypatch, tmp_path):
    import huggingface_hub.constants
    monkeypatch.setattr(huggingface_hub.constants, 'HF_HUB_OFFLINE', True)
    monkeypatch.setattr(huggingface_hub.constants, 'HF_HUB_CACHE', str(tmp_path))
    with pytest.raises(BasegunError, match='--weights FILE.*--weights none'):
        check_weights(architecture('efficientnet_b0'), 'imagenet')


def test_gpus_that_torch_was_not_built_for():
    wheel = ['sm_75', 'sm_80', 'sm_86', 'sm_90', 'sm_100', 'sm_120', 'compute_120']
    assert is_unsupported_gpu((7, 0), wheel) and not is_unsupported_gpu((8, 9),
        wheel) and not is_unsupported_gpu((12, 1), wheel)
    assert not is_unsupported_gpu((13, 0), wheel) and is_unsupported_gpu((13, 0), wheel[:-1])


@pytest.mark.skipif(torch.cuda.is_available(), reason='there is a GPU here')
def test_a_gpu_that_is_not_there():
    with pytest.raises(BasegunError, match='--device cpu'): usable_device('cuda')
    assert usable_device('auto') == 'cpu'
