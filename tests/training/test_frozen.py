"A frozen body runs only forward, and its features are computed once: its output stays the same."
import os

import numpy as np
import pandas as pd
import pytest
import timm
import torch
from conftest import fitted
from safetensors.torch import save_file
from torch import nn

from basegun_fastai.base.record import Run
from basegun_fastai.model.archs import architecture
from basegun_fastai.model.augment import Reframe
from basegun_fastai.model.folding import fold_batch_norms, folded
from basegun_fastai.model.learner import learner
from basegun_fastai.model.loaders import dataloaders
from basegun_fastai.model.workers import seed_all
from basegun_fastai.training.frozen import FrozenBodyForward, Views, feature_loaders, forward_only

ARCH = architecture('test_efficientnet', size=32)


@pytest.fixture(scope='module')
def weights(tmp_path_factory):
    "A body with BatchNorms that change their input."
    torch.manual_seed(0)
    model = timm.create_model('test_efficientnet')
    for o in model.modules():
        if isinstance(o, nn.BatchNorm2d): o.running_mean.normal_(0, .1), o.running_var.uniform_(.5, 2.)
    file = tmp_path_factory.mktemp('weights')/'body.safetensors'
    save_file(model.state_dict(), file)
    return str(file)


def rows(run): return pd.read_csv(run.history)


class Crossed(nn.Module):
    "A network with a normalisation named after a convolution that it does not follow."

    def __init__(self):
        super().__init__()
        self.first, self.norm, self.second = nn.Conv2d(3, 8, 3), nn.BatchNorm2d(8), nn.Conv2d(8, 8, 3)
        self.norm.running_mean.fill_(3.)

    def forward(self, x): return self.norm(self.second(self.first(x).relu())).mean((2, 3))


@pytest.mark.slow
def test_the_head_learns_the_same_from_one_kept_view_as_from_that_view_live(data, weights, tmp_path):
    options = dict(weights=weights, head_epochs=1, fine_tune_epochs=0, precision='float32')
    for views in (0, 1): fitted(data, tmp_path, f'{views}', head_views=views, **options)
    live, kept = (rows(Run(tmp_path/o)) for o in '01')
    assert list(live) == list(kept)
    # other random numbers
    assert live.val_loss[0] == pytest.approx(kept.val_loss[0], abs=.05) and not live.train_loss.equals(kept.train_loss)
    events = [sorted(o.name.split('.')[0] for o in (tmp_path/v).rglob('events*')) for v in '01']
    assert events[0] == events[1]


@pytest.mark.slow
def test_features_are_those_of_the_augmented_photos(data, weights, tmp_path):
    learn = learner(dataloaders(data, ARCH, batch_size=16, workers=0), ARCH, weights)
    learn.freeze()
    with forward_only(learn.model[0], 'float32'):
        actual = feature_loaders(learn, 2, 42, tmp_path).train.dataset
        whole = learn.dls.train.new(shuffle=False, drop_last=False)
        for view in range(2):
            seed_all(42, -1 - view)
            wanted = torch.cat([learn.model[0](xb) for xb, _ in whole])
            assert os.pread(actual.file.fileno(), wanted.nbytes, view * wanted.nbytes) == wanted.numpy().tobytes()
    assert len(actual) == 48 and not any(tmp_path.iterdir())


def test_each_view_of_a_photo_is_drawn_about_as_often(tmp_path):
    views = Views(tmp_path)
    for o in range(4): views.add([(torch.full((3, 2), float(o)), torch.arange(3))])
    seed_all(1, 1)
    sample = [int(views[1][0][0]) for _ in range(400)]
    assert min(np.bincount(sample, minlength=4)) > 60 and all(int(views[o][1]) == o for o in range(3))


def test_features_on_a_full_disk_say_so(tmp_path):
    views = Views(tmp_path)
    views.file.close()
    views.file = open('/dev/full', 'wb', buffering=0)
    with pytest.raises(OSError, match='No space'): views.add([(torch.zeros(3, 2), torch.arange(3))])


@pytest.mark.parametrize('arch', ['test_efficientnet', 'test_resnet', 'test_mambaout', 'test_vit',
                                  'tf_efficientnet_b0'])
def test_a_body_that_only_goes_forward_says_what_the_body_says(arch):
    torch.manual_seed(0)
    body = timm.create_model(arch, num_classes=0).eval()
    for o in body.modules():
        if isinstance(o, nn.BatchNorm2d): o.running_mean.normal_(0, .1), o.running_var.uniform_(.5, 2.)
    photos = torch.randn(3, 3, *body.default_cfg['input_size'][1:])
    with torch.no_grad(): wanted = body(photos)
    state = {k: v.clone() for k, v in body.state_dict().items()}
    with forward_only(body, 'float32'):
        assert torch.allclose(body(photos), wanted, atol=1e-4 * wanted.abs().max().item() + 1e-6)
    with forward_only(body, 'bfloat16'):
        assert torch.dist(body(photos), wanted) < .05 * wanted.norm() and body(photos).dtype == torch.float32
    assert torch.equal(body(photos), wanted) and all(torch.equal(v, state[k]) for k, v in body.state_dict().items())


@pytest.mark.parametrize('arch', ['test_efficientnet', 'efficientnet_b0', 'tf_efficientnet_b0'])
def test_no_normalisation_of_an_efficientnet_is_left(arch):
    torch.manual_seed(0)
    body = timm.create_model(arch, num_classes=0).eval()
    for o in body.modules():
        if isinstance(o, nn.BatchNorm2d): o.running_mean.normal_(0, .1), o.running_var.uniform_(.5, 2.)
    quick, photos = fold_batch_norms(body), torch.randn(2, 3, 64, 64)
    assert not any(isinstance(o, nn.BatchNorm2d) for o in quick.modules())
    with torch.no_grad(): assert torch.dist(quick(photos), body(photos)) < 1e-4 * body(photos).norm()


def test_a_network_that_cannot_be_folded_is_used_as_it_is_and_that_is_said(capsys):
    body = Crossed().eval()
    photos = torch.randn(4, 3, 16, 16)
    with torch.no_grad():
        wanted = body(photos)
        assert torch.dist(fold_batch_norms(body)(photos), wanted) > .01 * wanted.norm()
    assert folded(body, 16) is body
    assert torch.allclose(FrozenBodyForward(body, 'float32')(photos), wanted,
                          atol=1e-6) and 'cannot be folded' in capsys.readouterr().err


@pytest.mark.slow
def test_every_other_view_of_the_features_is_unturned(data):
    from basegun_fastai.training.frozen import feature_loaders
    from basegun_fastai.model.archs import architecture
    from basegun_fastai.model.learner import learner
    tiny, calls = architecture('test_efficientnet', size=32), []
    learn = learner(dataloaders(data, tiny, batch_size=16, workers=0, p_affine=.5), tiny, 'none')
    [reframe] = [o for o in learn.dls.train.after_batch.fs if isinstance(o, Reframe)]
    learn.freeze()
    learn.model[0].eval().register_forward_pre_hook(lambda *_: calls.append(reframe.p_affine))
    with torch.no_grad(): feature_loaders(learn, 3, 42, '.')
    assert calls == [0.] * 3 + [1.] * 3 + [0.] * 3 + [0.] * 2 and reframe.p_affine == .5
