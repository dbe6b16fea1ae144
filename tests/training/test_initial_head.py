"The head is initialised from the weights' own classifier, and fine-tuning starts from the best epoch."
import json

import pytest
import timm
import torch
from conftest import QUICK, as_arguments, typed
from fastai.callback.core import Callback
from fastai.data.core import DataLoaders
from safetensors.torch import load_file, save_file
from torch import nn

from basegun_fastai.base.record import Run
from basegun_fastai.model.archs import architecture
from basegun_fastai.model.learner import learner
from basegun_fastai.model.loaders import dataloaders
from basegun_fastai.model.weights import ABOUT, pretrained_classifier
from basegun_fastai.training.fit import Stage, fit
from basegun_fastai.training.frozen import FeatureLoader, Views
from basegun_fastai.training.initial_head import initial_head, set_initial_head

ARCH = architecture('test_efficientnet', size=32)
HEAD, FINE_TUNE = Stage('head', 2, 0., .01), Stage('fine-tune', 1, .001, .01, average=True)


@pytest.fixture
def learn(data, weights): return learner(dataloaders(data, ARCH, batch_size=16, workers=0), ARCH, weights)


def test_a_class_that_the_weights_know_is_told_before_anything_is_learnt(learn, tmp_path):
    "The classifier of the weights knows the classes, so the initial head predicts them without training."
    labels = torch.arange(learn.dls.c).repeat(4)
    features = torch.zeros(len(labels), learn.model[1][-1].in_features)
    features[range(len(labels)), labels] = 1
    views = Views(tmp_path)
    views.add([(features, labels)])
    dls = DataLoaders(FeatureLoader(views, bs=7, shuffle=True, device=torch.device('cpu')))
    dls.c, learn.dls = learn.dls.c, dls
    known = nn.Linear(features.shape[1], 9).requires_grad_(False)  # ours and three more, in another order
    order = torch.tensor([4, 0, 8, 2, 6, 1])
    known.weight.zero_()
    known.bias.zero_()
    known.weight[order, range(dls.c)] = 20.
    set_initial_head(learn, known)
    assert torch.equal(learn.model[1](features).argmax(1), labels)
    assert torch.allclose(learn.model[1][-1].weight, known.weight[order], atol=1e-3)


@pytest.mark.slow
def test_fine_tuning_begins_with_the_best_epoch_though_a_later_one_is_worse(learn, weights, tmp_path):
    class Begins(Callback):
        states = []
        def before_fit(self): self.states.append({k: v.clone() for k, v in self.model.state_dict().items()})
        def after_epoch(self):  # the head's second epoch is ruined before it is evaluated
            if len(self.states) == 1 and self.epoch == 0: nn.init.normal_(self.model[1][-1].weight, 0, 100)
    learn.add_cb(Begins())
    run = Run(tmp_path/'run')
    run.path.mkdir()
    memory = fit(learn, [HEAD], run, 1, 'now', classifier=pretrained_classifier(ARCH, weights))
    best = {k: v.clone() for k, v in memory.best['weights'].items()}
    assert memory.best['epoch'] < 2
    fit(learn, [HEAD, FINE_TUNE], run, 1, 'now')  # like --resume
    assert all(torch.equal(Begins.states[-1][k], v) for k, v in best.items())


@pytest.mark.slow
@pytest.mark.parametrize('options', [dict(head_views=0), dict(head_views=2), dict(head_epochs=0),
                                     dict(head='bn-dropout')])
def test_a_training_says_with_what_its_head_begins(data, weights, tmp_path, options):
    command = ['train', data, '--out', tmp_path, *as_arguments(**QUICK | dict(
        weights=weights, head_epochs=1, fine_tune_epochs=1, name='run') | options)]
    done = typed(*command)
    assert done.returncode == 0, done.stderr
    begins = 'the head is initialised from the pretraining classes (1,000); accuracy before training: '
    assert (begins in done.stderr) == ('head' not in options), done.stderr
    assert json.loads((tmp_path/'run'/'config.json').read_text())['best']['epoch'] in (0, 1, 2)


@pytest.mark.parametrize(('classes', 'words'), [
    (list('abcdef'), '6, the same as in train/'), (list('fedcba'), '6, the same as in train/'),
    (list('abcdxyz'), '7, 4 of them in train/'), (list('uvwxyz'), '6, 0 of them in train/'), (None, '6')])
def test_it_is_said_whose_classes_the_weights_tell(learn, tmp_path, capfd, classes, words):
    about = None if classes is None else {ABOUT: json.dumps(dict(classes=classes))}
    features, n = learn.model[1][-1].in_features, len(classes or 'abcdef')
    state = timm.create_model(ARCH.timm_name, num_classes=n).state_dict()
    assert state['classifier.weight'].shape == (n, features)
    save_file(state, tmp_path/'file.safetensors', about)
    learn.dls.vocab = list('abcdef')
    initial_head(learn, pretrained_classifier(ARCH, tmp_path/'file.safetensors'))
    assert f'the head is initialised from the pretraining classes ({words}); accuracy before' in capfd.readouterr().err


@pytest.mark.slow
def test_a_run_begins_with_what_another_has_learnt(data, run, tmp_path):
    done = typed('train', data, '--out', tmp_path, *as_arguments(**QUICK | dict(
        weights=run.weights, head_epochs=1, fine_tune_epochs=0)))
    assert done.returncode == 0 and 'the pretraining classes (6, the same as in train/)' in done.stderr, done.stderr


@pytest.mark.slow
def test_weights_without_a_classifier_begin_at_zero(data, weights, tmp_path):
    body = {k: v for k, v in load_file(weights).items() if not k.startswith('classifier')}
    save_file(body, tmp_path/'body.safetensors')
    assert pretrained_classifier(ARCH, tmp_path/'body.safetensors') is None
    done = typed('train', data, '--out', tmp_path, *as_arguments(**QUICK | dict(
        weights=tmp_path/'body.safetensors', head_epochs=1, fine_tune_epochs=0)))
    assert done.returncode == 0 and 'the head is initialised' not in done.stderr, done.stderr
