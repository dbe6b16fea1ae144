"Our assumptions about fastai's internals, tested on fastai only: after an upgrade this file shows what broke."
import pickle
from importlib.metadata import version

import fastai.callback.progress  # noqa: F401 gives Learner `no_bar`
import fastai.callback.schedule  # noqa: F401 gives Learner `fit_one_cycle`
import pytest
import timm
import torch
from fastai.callback.core import Callback, TrainEvalCallback
from fastai.data.core import Datasets, TfmdDL
from fastai.data.load import DataLoader, _FakeLoader
from fastai.learner import AvgLoss, AvgSmoothLoss, Learner, Recorder
from fastai.losses import CrossEntropyLossFlat
from fastai.optimizer import Adam
from fastai.vision.learner import TimmBody, vision_learner
from test_layers import ROOT

TRIED = '2.8.12'


def datasets(n=16):
    return Datasets(range(n), [[lambda o: torch.tensor([float(o)])], [lambda o: torch.tensor(o % 2)]],
                    splits=(range(n - 4), range(n - 4, n)))


def learner(**options):
    return Learner(datasets().dataloaders(bs=4), torch.nn.Linear(1, 2), CrossEntropyLossFlat(), **options)


def test_this_is_the_version_that_was_tried():
    assert version('fastai') == TRIED, f'fastai {version("fastai")}: read what fails below, then write it into TRIED'
    assert f'fastai=={TRIED}' in (ROOT/'constraints.txt').read_text().splitlines()


def test_the_recorder_asks_the_losses_that_it_holds():
    asked = dict(loss=0, smooth_loss=0)
    def counting(kind, name):
        class Counting(kind):
            def accumulate(self, learn):
                asked[name] += 1
                super().accumulate(learn)
        return Counting()
    learn = learner()
    assert type(learn.recorder.loss) is AvgLoss and type(learn.recorder.smooth_loss) is AvgSmoothLoss
    learn.recorder.loss, learn.recorder.smooth_loss = counting(AvgLoss, 'loss'), counting(AvgSmoothLoss, 'smooth_loss')
    with learn.no_bar(), learn.no_logging(): learn.fit(1)
    assert asked == dict(loss=1, smooth_loss=3)  # one batch of val, three of train
    assert len(learn.recorder.lrs) == len(learn.recorder.losses) == 3


def test_train_metrics_are_those_of_train_and_val():
    learn = learner()
    learn.recorder.train_metrics = True
    with learn.no_bar(), learn.no_logging(): learn.fit(1)
    assert learn.recorder.metric_names == ['epoch', 'train_loss', 'valid_loss', 'time']


def test_the_network_is_put_in_training_mode_before_our_callbacks():
    order = []
    class After(Callback):
        run_after = TrainEvalCallback
        def before_train(self): order.append(self.model.training)
    learn = learner(cbs=After())
    with learn.no_bar(), learn.no_logging(): learn.fit(1)
    assert order == [True] and Recorder in [type(o) for o in learn.cbs]


def test_a_body_is_timms_network_and_goes_through_its_own_forward():
    dls = datasets().dataloaders(bs=4)
    dls.vocab, dls.c = ['a', 'b'], 2
    learn = vision_learner(dls, 'test_efficientnet', pretrained=False, normalize=False,
                           custom_head=torch.nn.Linear(64, 2),
                           loss_func=CrossEntropyLossFlat(), pretrained_cfg_overlay=dict(pool_size=None))
    body = learn.model[0]
    assert isinstance(body, TimmBody)
    x = torch.rand(2, 3, 32, 32)
    body.eval()
    expected = body(x)
    body.forward = lambda x: x.mean((2, 3))  # as `frozen.forward_only` does it
    assert body(x).shape == (2, 3) and torch.equal(type(body).forward(body, x), expected)
    del body.forward
    assert torch.equal(body(x), expected)
    plain = timm.create_model('test_efficientnet', num_classes=2)
    assert {f'model.{o}' for o in plain.state_dict() if not o.startswith('classifier')} <= {*body.state_dict()}


def test_a_loader_keeps_what_its_workers_need_in_fake_l():
    dl = TfmdDL(datasets().train, bs=4, num_workers=3)
    assert isinstance(dl.fake_l, _FakeLoader) and dl.fake_l.num_workers == 3
    for name in ('rng', 'bs', 'drop_last', 'do_item', 'do_batch', 'create_batch', 'chunkify', 'get_idxs', 'randomize',
                 'before_iter', 'after_batch', 'after_iter', 'device', 'pin_memory'): assert hasattr(dl, name), name
    assert isinstance(dl, DataLoader) and dl.do_item(3)[0].item() == 3.


def test_a_loader_goes_through_pickle_with_its_state():
    class Order:
        def __call__(self, o): return o
    dl = TfmdDL(list(range(8)), bs=4, num_workers=0)
    again = pickle.loads(pickle.dumps(dl))
    assert again.bs == 4 and list(again.dataset) == list(range(8)) and again.fake_l.num_workers == 0


def test_fit_one_cycle_begins_at_an_epoch():
    steps = []
    class Counting(Callback):
        def before_batch(self): steps.append((self.epoch, self.training))
    learn = learner(cbs=Counting())
    with learn.no_bar(), learn.no_logging(): learn.fit_one_cycle(4, .1, start_epoch=2)
    assert [o for o, training in steps if training] == [2] * 3 + [3] * 3


def test_the_finder_asks_its_learner_to_save_and_does_without(tmp_path):
    torch.manual_seed(1)  # fastai's valley raises an IndexError for a curve without one
    learn, asked = learner(path=tmp_path), []
    learn.save = lambda name, **_: asked.append(name)
    with learn.no_bar(), learn.no_logging(): learn.lr_find(num_it=20, show_plot=False)
    assert len(asked) == 1 and not [o for o in tmp_path.rglob('*') if o.is_file()]


def test_an_opt_func_gets_the_parameters_in_groups():
    groups = []
    def opt_func(params, **options):
        groups.append([len(o) for o in params])
        return Adam(params, **options)
    learner(opt_func=opt_func, splitter=lambda model: [[model.weight], [model.bias]]).create_opt()
    assert groups == [[1, 1]]


@pytest.mark.parametrize('name', ['freeze', 'unfreeze', 'no_bar', 'no_logging', 'added_cbs', 'remove_cb', 'create_opt',
                                  'export'])
def test_a_learner_has_what_we_call(name): assert hasattr(Learner, name)


def test_a_callback_may_swap_the_network_for_its_call_and_scale_the_loss_of_a_step():
    class Swapped(Callback):
        order, calls = 40, 0
        def before_batch(self):
            def network(x):
                self.calls += 1
                return plain(x)
            plain, self.plain, self.learn.model = self.model, self.model, network
        def after_pred(self): self.learn.model = self.plain
        def after_loss(self): self.learn.loss_grad = self.loss_grad * 0
    learn, swapped = learner(opt_func=Adam, wd=0.), Swapped()
    before = learn.model.weight.clone()
    with learn.no_bar(), learn.no_logging(): learn.fit(1, .1, cbs=[swapped])
    assert swapped.calls == 4 and torch.equal(learn.model.weight, before) and learn.model is swapped.plain


def test_the_loss_of_fastai_holds_that_of_pytorch_with_its_weights():
    assert CrossEntropyLossFlat().func.weight is None
    assert CrossEntropyLossFlat(weight=torch.tensor([1., 3.])).func.weight.tolist() == [1, 3]


def test_fastai_asks_the_environment_how_many_processes_there_are(monkeypatch):
    from fastai.torch_core import num_distrib, rank_distrib
    for name, value in dict(WORLD_SIZE='3', RANK='2').items(): monkeypatch.setenv(name, value)
    assert (num_distrib(), rank_distrib()) == (3, 2)  # so `join` and `forget_cluster` remove both
    for name in ('WORLD_SIZE', 'RANK'): monkeypatch.delenv(name)
    assert (num_distrib(), rank_distrib()) == (0, 0)
