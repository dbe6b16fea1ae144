"""The recipe of fine-tuning, one change at a time, on real photos: what pays is kept, what does not is written down.

The folder comes from BASEGUN_REAL (default: ../shared/real beside the checkout); if it is missing, nothing is measured.
Each set and seed trains its head once, with the defaults of `train`; every change then continues from there, so that a
row differs from `default`, five epochs of fine-tuning as they were the default then, in the fine-tuning only; those of
class weights and logits train their own head; those with `10 epochs` in their name compare with the row
`10 epochs`, the default of today. `kept` is the network that `train` would keep, judged on val: its
accuracy, its macro recall, its loss and calibration error at a temperature from the other half of val. The changes that
only choose among the weights of one training (`last epoch`, `no average`, `head`) come from that of `default`.
BASEGUN_SETS="typology;trash", BASEGUN_SEEDS="1;2" and BASEGUN_CHANGES="default;wd 0.1" measure a part; the other rows
keep their noted values. BASEGUN_LOGITS=DIR keeps the logits of each row, which levels.py reads. Prints a table, and
writes recipe.json. A change takes 2 to 8 minutes per set and seed on two cores.
"""
import json
import os
import statistics
import time
import warnings
from contextlib import ExitStack, redirect_stderr, redirect_stdout
from io import StringIO
from pathlib import Path
from tempfile import TemporaryDirectory

warnings.filterwarnings('ignore')

import numpy as np  # noqa: E402
import torch  # noqa: E402
from fastai.callback.core import Callback  # noqa: E402
from fastai.callback.mixup import CutMix, MixUp  # noqa: E402
from fastai.callback.schedule import ParamScheduler  # noqa: E402
from fastai.losses import CrossEntropyLossFlat, LabelSmoothingCrossEntropyFlat  # noqa: E402
from fastcore.basics import even_mults  # noqa: E402
from fastai.vision.augment import Brightness, Contrast, Saturation, setup_aug_tfms  # noqa: E402
from sklearn.metrics import recall_score  # noqa: E402
from timm.layers import DropPath  # noqa: E402

from basegun_fastai.base.files import write_whole  # noqa: E402
from basegun_fastai.base.record import Run  # noqa: E402
from basegun_fastai.model.augment import Perspective, Reframe  # noqa: E402
from basegun_fastai.model.learner import balanced_weights  # noqa: E402
from basegun_fastai.training.callbacks import Memory, WeightAverage  # noqa: E402
from basegun_fastai.training.fit import Stage, fit, stage_callbacks, stage_context  # noqa: E402
from basegun_fastai.training.options import Options  # noqa: E402
from basegun_fastai.training.training import Training  # noqa: E402
from basegun_fastai.trust.calibration import calibration_metrics, cross_fitted  # noqa: E402
from basegun_fastai.model.workers import seed_all  # noqa: E402

HERE = Path(__file__).parent
REAL = Path(os.environ.get('BASEGUN_REAL') or HERE.parents[1]/'shared'/'real')
NOTED, LOGITS = HERE/'recipe.json', os.environ.get('BASEGUN_LOGITS')
ARCH = 'tf_efficientnet_lite0'
WEIGHTS = REAL/'weights'/f'{ARCH}.safetensors'
SETS = ('typology', 'typology, 288 px', 'hymenoptera', 'trash', 'caltech')
SEEDS = (1, 2, 3)


class Case:
    "What a change may alter before the fine-tuning of one learner."

    def __init__(self, learn, stage, labels):
        self.learn, self.stage, self.labels, self.callbacks = learn, dict(stage), labels, []
        self.average = None  # Replaces the mean of the weights over all steps

    def transforms(self, kind): return [o for o in self.learn.dls.train.after_batch.fs if isinstance(o, kind)]


class TrainLoss(Callback):
    "Another loss while training; val keeps its own."
    def __init__(self, loss): self.loss_function = loss
    def before_train(self): self.plain, self.learn.loss_func = self.learn.loss_func, self.loss_function
    def after_train(self): self.learn.loss_func = self.plain


class Decay(Callback):
    "Weight decay of body and head."
    def __init__(self, body, head): self.body, self.head = body, head
    def before_fit(self): self.opt.set_hypers(wd=[*[self.body] * (len(self.opt.param_lists) - 1), self.head])


class Pull(Callback):
    "L2-SP (Li, Grandvalet and Davoine 2018): pull the body back to its pretrained weights."
    def __init__(self, strength): self.strength = strength
    def before_fit(self): self.start = [o.detach().clone() for o in self.model[0].parameters()]

    @torch.no_grad()
    def before_step(self):
        for o, start in zip(self.model[0].parameters(), self.start, strict=True):
            if o.grad is not None: o.grad.add_(o - start, alpha=self.strength)


class LateAverage(WeightAverage):
    "The mean of the weights over the last epochs only."
    def __init__(self, epochs):
        super().__init__()
        self.late = epochs

    def after_step(self):
        if self.epoch < self.n_epoch - self.late: self.state['steps'] = 0
        super().after_step()


class RatesByDepth(Callback):
    "Multiply the scheduled rate of each group of parameters."
    order = ParamScheduler.order + 1

    def __init__(self, factors): self.factors = factors

    def before_batch(self):
        if not self.training: return
        for o, factor in zip(self.opt.hypers, self.factors, strict=True): o['lr'] *= factor


def logits_and_labels(learn):
    learn.model.eval()
    with torch.no_grad():
        batches = [(learn.model(x.as_subclass(torch.Tensor)).float(), y.as_subclass(torch.Tensor))
                   for x, y in learn.dls.valid]
    return [torch.cat(o).cpu().numpy() for o in zip(*batches, strict=True)]


def drop_path(rate):
    def change(case):
        blocks = [o for o in case.learn.model[0].modules() if getattr(o, 'has_skip', False)]
        for i, o in enumerate(blocks): o.drop_path = DropPath(rate * (i + 1) / len(blocks))
    return change


def loss(make): return lambda case: case.callbacks.append(TrainLoss(make(case)))
def callback(make): return lambda case: case.callbacks.append(make())
def stage(**values): return lambda case: case.stage.update(values)


def both(*changes):
    def change(case):
        for o in changes: o(case)
    return change


def late_average(epochs):
    def change(case): case.average = LateAverage(epochs)
    return change


def thirds(model):
    "Parameters of the body in three groups of blocks, from the input on, and those of the head."
    body = [*model[0].parameters()]
    bounds = [0, len(body) // 3, 2 * len(body) // 3, len(body)]
    return [*(body[a:b] for a, b in zip(bounds, bounds[1:], strict=False)), [*model[1].parameters()]]


def by_depth(case):
    "A quarter of the body's rate near the input, a half in its middle, and the whole rate at its end."
    body, head = case.stage['body_rate'], case.stage['head_rate']
    case.learn.splitter, case.learn.opt = thirds, None
    case.learn.unfreeze()
    scheduled = even_mults(body, head, 4)
    case.callbacks.append(RatesByDepth(np.array([body / 4, body / 2, body, head]) / scheduled))


def pull(strength): return callback(lambda: Pull(strength))


def rates(body=1, head=1):
    def change(case):
        case.stage.update(body_rate=case.stage['body_rate'] * body, head_rate=case.stage['head_rate'] * head)
    return change


def colour(amount):
    def change(case):
        pipeline = case.learn.dls.train.after_batch
        light = setup_aug_tfms([o(amount, p=1.) for o in (Brightness, Contrast, Saturation)])
        others = [o for o in pipeline.fs if not isinstance(o, (Brightness, Contrast, Saturation))]
        pipeline.fs = type(pipeline.fs)([*others[:-1], *light, others[-1]])  # before Normalize
    return change


def tilt(amount, p_affine=None):
    def change(case):
        for o in case.transforms(Reframe):
            for part in o.coord_fs:
                if isinstance(part, Perspective): part.max_shift = amount
            if p_affine: o.p_affine = p_affine
    return change


class ZoomOut:
    "Show the whole photo smaller, at a random place of the frame."
    def __init__(self, largest): self.largest = largest

    def before_call(self, x):
        self.scale = 1 + torch.rand(len(x), 1, 1, 1, device=x.device) * (self.largest - 1)
        self.shift = (torch.rand(len(x), 1, 1, 2, device=x.device) * 2 - 1) * (self.scale - 1)

    def __call__(self, coords): return coords * self.scale + self.shift


def zoom_out(largest):
    def change(case):
        for o in case.transforms(Reframe): o.coord_fs = [*o.coord_fs, ZoomOut(largest)]
    return change


def adjusted_loss(case):
    "Logit adjustment (Menon and others, 2021): the loss sees logits plus the logarithm of each class's share."
    share = np.bincount(case.labels, minlength=case.learn.dls.c) / len(case.labels)
    offset, plain = torch.from_numpy(np.log(share)).float(), CrossEntropyLossFlat()
    return lambda logits, labels, **options: plain(logits + offset, labels, **options)


def weighted(power):
    def make(case):
        weights = torch.tensor(balanced_weights(case.labels)) ** power
        return CrossEntropyLossFlat(weight=(weights / weights[case.labels].mean()).float())
    return make


CHANGES = {
    'default': lambda _: None,
    'wd 0': callback(lambda: Decay(0., 0.)), 'wd 0.1': callback(lambda: Decay(.1, .1)),
    'wd 0.01, head 0.3': callback(lambda: Decay(.01, .3)),
    'label smoothing 0.1': loss(lambda _: LabelSmoothingCrossEntropyFlat(eps=.1)),
    'drop path 0.2': drop_path(.2),
    '3 epochs': stage(epochs=3), '10 epochs': stage(epochs=10), '20 epochs': stage(epochs=20),
    'body × 2': rates(body=2), 'body ÷ 2': rates(body=.5), 'both ÷ 2': rates(.5, .5), 'both × 2': rates(2, 2),
    'rates by depth': by_depth, 'average of 2 epochs': late_average(2),
    'colour 0.4': colour(.4), 'tilt 0.2': tilt(.2), 'all tilted': tilt(.1, 1.), 'zoom out to ÷ 1.3': zoom_out(1.3),
    'CutMix': callback(lambda: CutMix(1.)), 'MixUp': callback(lambda: MixUp(.2)),
    'L2-SP 0.01': pull(.01),
    **{f'10 epochs, L2-SP {o}': both(stage(epochs=10), pull(o)) for o in (.001, .01, .1)},
    'class weights': loss(weighted(1.)), 'class weights, root': loss(weighted(.5)),
    'logit adjustment': loss(adjusted_loss),
}
IN_HEAD_TOO = ('class weights', 'class weights, root', 'logit adjustment')
CHOICES = ('last epoch', 'no average', 'head')  # of the weights of `default`


class Start:
    "A set and a seed with a trained head."

    def __init__(self, name, seed, folder, change=CHANGES['default']):
        data, _, size = name.rpartition(', ') if name.endswith(' px') else (name, '', '')
        options = Options(data=REAL/data, arch=ARCH, weights=str(WEIGHTS), batch_size=32, seed=seed, out=folder,
                          name='run', skip_unreadable=True, workers=0, fine_tune_epochs=5,
                          size=int(size.split()[0]) if size else None)
        training = Training(options, Run(folder/'run'))
        training.check([])
        training.read()
        training.open()
        self.setup, self.seed, self.run = training.setup, seed, training.run
        self.head, self.stage = training.config.resolved.stages
        seed_all(seed, 0)
        self.learn = self.learner()
        case = self.case(self.learn)
        change(case)
        self.learn.add_cbs(case.callbacks)
        self.memory = fit(self.learn, [Stage(**self.head)], self.run, seed, 'recipe', False, self.setup.classifier())
        self.learn.model.load_state_dict(self.memory.best['weights'])

    def learner(self): return self.setup.learner(32)

    def case(self, learn):
        train = self.setup.photos[self.setup.photos.split == 'train']
        return Case(learn, self.stage, np.searchsorted(sorted(train.label.unique()), train.label))

    def fine_tuned(self, change):
        "The epoch that is kept, and the logits of val with its weights and with others, after a changed fine-tuning."
        learn = self.learner()
        learn.model.load_state_dict(self.memory.best['weights'])
        learn.recorder.train_metrics = True
        learn.unfreeze()
        case = self.case(learn)
        change(case)
        stage, memory = Stage(**case.stage), Memory([*self.memory.rows], self.memory.best)
        callbacks = stage_callbacks(learn, stage, self.seed, memory, self.head['epochs'])
        if case.average: callbacks[-1] = case.average
        with ExitStack() as stack:
            for o in learn.dls.loaders: stack.callback(o.close)
            stack.enter_context(learn.no_bar())
            stack.enter_context(learn.no_logging())
            precision = stack.enter_context(stage_context(learn, stage, self.seed, self.run.path))
            learn.fit_one_cycle(stage.epochs, stage.rate, cbs=[*callbacks, *precision, *case.callbacks])
            kinds = dict(no_average=logits_and_labels(learn))
            callbacks[-1].before_validate()  # the mean of the weights takes their place
            kinds['last_epoch'] = logits_and_labels(learn)
            learn.model.load_state_dict(memory.best['weights'])
            return memory.best['epoch'], logits_and_labels(learn), kinds


def numbers(logits, labels):
    "What counts, at a temperature from the other half of val."
    calibrated, right = cross_fitted(logits, labels), logits.argmax(1) == labels
    measured = calibration_metrics(calibrated, labels)
    return dict(accuracy=float(right.mean()), loss=measured['nll'], ece=measured['ece'],
                recall=float(recall_score(labels, logits.argmax(1), average='macro')))


def noted(): return json.loads(NOTED.read_text())['rows'] if NOTED.exists() else []


def note(name, change, seed, logits, labels, **more):
    "Replace the row of the same set, change and seed."
    place = dict(set=name, change=change, seed=seed)
    row = place | numbers(logits, labels) | more
    rows = [o for o in noted() if any(o[k] != v for k, v in place.items())] + [row]
    order = [*CHANGES, *CHOICES]
    rows.sort(key=lambda o: (SETS.index(o['set']), order.index(o['change']), o['seed']))
    write_whole(NOTED, json.dumps(dict(weights=ARCH, rows=rows), indent=1) + '\n')
    if LOGITS:
        Path(LOGITS).mkdir(parents=True, exist_ok=True)
        np.savez(Path(LOGITS)/f"{name.replace(', ', '-').replace(' ', '')}-{change.replace(' ', '_')}-{seed}.npz",
                 logits=logits, labels=labels)
    print(f"{name:18}{change:24}{seed:2} accuracy {row['accuracy']:.4f}  recall {row['recall']:.4f}  loss "
          f"{row['loss']:.4f}  calibration error {row['ece']:.4f}  {more.get('seconds', '')}", flush=True)


def measure(name, seed, changes):
    with TemporaryDirectory() as folder, redirect_stderr(StringIO()):
        shared = None
        for change in changes:
            began, own_head = time.perf_counter(), change in IN_HEAD_TOO
            with redirect_stdout(StringIO()):
                if own_head: start = Start(name, seed, Path(folder)/change.replace(' ', '-'), CHANGES[change])
                else: start = shared = shared or Start(name, seed, Path(folder))
            epoch, kept, others = start.fine_tuned(CHANGES[change])
            note(name, change, seed, *kept, epoch=epoch, seconds=round(time.perf_counter() - began))
            if change != 'default': continue
            for choice, answers in (others | dict(head=logits_and_labels(start.learn))).items():
                note(name, choice.replace('_', ' '), seed, *answers)


def table(rows):
    "Points of accuracy by which each change differs from `default`, mean of the seeds that both have."
    print(f"\n{'':24}" + ''.join(f'{o:>18}' for o in SETS) + f"{'mean':>8}{'recall':>8}{'loss':>8}{'ece':>8}")
    of = {(o['set'], o['change'], o['seed']): o for o in rows}
    for change in [*CHANGES, *CHOICES]:
        cells, every = [], []
        for name in SETS:
            pairs = [(of[name, change, s], of[name, 'default', s]) for s in SEEDS
                     if (name, change, s) in of and (name, 'default', s) in of]
            if not pairs:
                cells.append('')
                continue
            gains = {k: statistics.mean(a[k] - b[k] for a, b in pairs) for k in ('accuracy', 'recall', 'loss', 'ece')}
            every.append(gains)
            cells.append(f"{100 * gains['accuracy']:+.2f} ({len(pairs)})")
        if not every: continue
        means = {k: statistics.mean(o[k] for o in every) for k in every[0]}
        print(f'{change:24}' + ''.join(f'{o:>18}' for o in cells) + f"{100 * means['accuracy']:+8.2f}"
              f"{100 * means['recall']:+8.2f}{means['loss']:+8.4f}{means['ece']:+8.4f}")


def main():
    if not WEIGHTS.is_file():
        return print(f"no real photos and weights at '{REAL}': nothing is measured. Set BASEGUN_REAL to their folder")
    def asked(variable, default): return (os.environ.get(variable) or ';'.join(map(str, default))).split(';')
    for seed in map(int, asked('BASEGUN_SEEDS', SEEDS)):
        for name in asked('BASEGUN_SETS', SETS): measure(name, seed, asked('BASEGUN_CHANGES', CHANGES))
    table(noted())


if __name__ == '__main__': main()
