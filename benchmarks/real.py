"""Real photos, real weights: whole trainings through the package, beside a logistic regression and stock fastai.

Three public sets, three seeds. The folder comes from BASEGUN_REAL (default: ../shared/real beside the checkout), and where there is none
nothing is measured. Arms: `ours` is `train` with its defaults; `logistic regression` is scikit-learn's on the features of the frozen
body; `stock pad` and `stock crop` are fastai's `vision_learner(...).fine_tune` with as many epochs of the whole network, and no mirror;
`before` is how `train` was before fine-tuning helped (its kept weights came from the head's epochs), noted once from that commit.
Prints a table and writes real.json after each training. BASEGUN_ARMS="ours" and BASEGUN_SETS="trash" measure some of it again; the rest
stays as it was noted. Two cores take hours for all of it, a GPU minutes.
"""
import json
import os
import statistics
import time
import warnings
from contextlib import redirect_stderr, redirect_stdout
from functools import partial
from io import StringIO
from pathlib import Path
from tempfile import TemporaryDirectory

warnings.filterwarnings('ignore')

import numpy as np  # noqa: E402
import pandas as pd  # noqa: E402
import torch  # noqa: E402
from fastai.data.block import CategoryBlock, DataBlock  # noqa: E402
from fastai.data.transforms import GrandparentSplitter, parent_label  # noqa: E402
from fastai.learner import Callback  # noqa: E402
from fastai.metrics import Recall, accuracy  # noqa: E402
from fastai.torch_core import set_seed  # noqa: E402
from fastai.vision.augment import PadMode, Resize, ResizeMethod, aug_transforms  # noqa: E402
from fastai.vision.data import ImageBlock  # noqa: E402
from fastai.vision.learner import vision_learner  # noqa: E402
from sklearn.linear_model import LogisticRegression  # noqa: E402
from sklearn.metrics import log_loss, recall_score  # noqa: E402

from basegun_fastai.core import write_whole  # noqa: E402
from basegun_fastai.dataset import photo_table  # noqa: E402
from basegun_fastai.loaders import judging_loader  # noqa: E402
from basegun_fastai.model import architecture, learner  # noqa: E402
from basegun_fastai.train import readable_photos, train  # noqa: E402

HERE = Path(__file__).parent
REAL = Path(os.environ.get('BASEGUN_REAL') or HERE.parents[1]/'shared'/'real')
NOTED = HERE/'real.json'
SETS, SEEDS, ARCH = ('hymenoptera', 'trash', 'caltech'), (1, 2, 3), 'tf_efficientnet_lite0'
WEIGHTS, BATCH, EPOCHS = REAL/'weights'/f'{ARCH}.safetensors', 32, 5  # EPOCHS of the whole network


def photos(data):
    "The photos of a set that can be read."
    with redirect_stderr(StringIO()): return readable_photos(data, photo_table(data), skip_unreadable=True)[0]


def numbers(labels, probabilities):
    "What is measured of answers."
    return dict(accuracy=float((probabilities.argmax(1) == labels).mean()), loss=float(log_loss(labels, probabilities)),
                recall=float(recall_score(labels, probabilities.argmax(1), average='macro')))


def ours(name, seed, **options):
    "A whole training with the defaults: each epoch, and the weights that are kept."
    with TemporaryDirectory() as out, redirect_stdout(StringIO()), redirect_stderr(StringIO()):
        train(REAL/name, arch=ARCH, weights=str(WEIGHTS), batch_size=BATCH, seed=seed, out=out, name='run', skip_unreadable=True, **options)
        run = Path(out)/'run'
        kept, best = json.loads((run/'metrics.json').read_text()), json.loads((run/'config.json').read_text())['best']
        rows = pd.read_csv(run/'history.csv').rename(columns=dict(val_loss='loss'))
    return dict(epochs=rows[['stage', 'accuracy', 'recall', 'loss']].to_dict('records'),
                kept={k: kept[k] for k in ('accuracy', 'recall', 'loss')} | dict(epoch=best['epoch'], stage=best['stage']))


def logistic_regression(name, seed):  # noqa: ARG001 it has no randomness
    "scikit-learn's defaults on the features that the frozen body makes of the photos as they are."
    table, made = photos(REAL/name), architecture(ARCH)
    labels = sorted(table.label.unique())
    def features(split):
        dls = judging_loader(REAL/name, table[table.split == split], labels, made.size, made.mean, made.std)
        body = learner(dls, made, str(WEIGHTS)).model[0].eval().to(dls.device)
        with torch.no_grad(): batches = [(body(x.as_subclass(torch.Tensor)).cpu(), y.cpu()) for x, y in dls.valid]
        dls.valid.close()
        return [np.asarray(torch.cat(o)) for o in zip(*batches, strict=True)]
    model = LogisticRegression(max_iter=1000).fit(*features('train'))
    x, y = features('val')
    return dict(epochs=[], kept=numbers(y, model.predict_proba(x)))


def stock(method, name, seed):
    "fastai as its tutorials use it, but for mirrors, which guns do not bear; the last epoch is what is left."
    table = photos(REAL/name)
    set_seed(seed, reproducible=True)
    size = Resize(architecture(ARCH).size, method, **(dict(pad_mode=PadMode.Zeros) if method == ResizeMethod.Pad else {}))
    dls = DataBlock(blocks=(ImageBlock, CategoryBlock), get_items=lambda folder: [folder/o for o in table.file], get_y=parent_label,
                    splitter=GrandparentSplitter(valid_name='val'), item_tfms=size,
                    batch_tfms=aug_transforms(do_flip=False)).dataloaders(REAL/name, bs=BATCH)
    recall, rows = Recall(average='macro'), []
    with TemporaryDirectory() as path:
        learn = vision_learner(dls, ARCH, metrics=[accuracy, recall], path=path, pretrained_cfg_overlay=dict(file=str(WEIGHTS)))
        class Rows(Callback):
            order = 60
            def after_epoch(self):
                found = dict(zip(self.recorder.metric_names[1:], self.recorder.log[1:], strict=False))
                frozen = len(self.opt.param_lists) - 1 == self.opt.frozen_idx
                rows.append(dict(stage='head' if frozen else 'fine-tune', accuracy=float(found['accuracy']),
                                 recall=float(found['recall_score']), loss=float(found['valid_loss'])))
        with learn.no_bar(), learn.no_logging(): learn.fine_tune(EPOCHS, cbs=Rows())
        probabilities, labels = learn.get_preds(dl=dls.valid)
    return dict(epochs=rows, kept=numbers(labels.numpy(), probabilities.double().numpy()))


ARMS = {'ours': (ours, SEEDS), 'logistic regression': (logistic_regression, (0,)), 'stock pad': (partial(stock, ResizeMethod.Pad), SEEDS),
        'stock crop': (partial(stock, ResizeMethod.Crop), SEEDS)}


def noted(): return json.loads(NOTED.read_text())['rows'] if NOTED.exists() else []


def note(row):
    "Put a row where the row of the same set, arm and seed was."
    key = ('set', 'arm', 'seed')
    rows = [o for o in noted() if any(o[k] != row[k] for k in key)] + [row]
    order = [*ARMS, 'before']
    rows.sort(key=lambda o: (SETS.index(o['set']), order.index(o['arm']), o['seed']))
    write_whole(NOTED, json.dumps(dict(weights=ARCH, batch_size=BATCH, rows=rows), indent=1) + '\n')


def mean(rows, pick): return statistics.mean(pick(o) for o in rows) if rows else float('nan')


def table(rows):
    "Means over the seeds, in percent of accuracy."
    print(f"{'':12} {'before':>7} {'head, best':>10} {'head, last':>10} {'fine, last':>10} {'kept':>6} {'recall':>7} {'loss':>6} "
          f"{'logistic':>8} {'pad':>6} {'crop':>6}")
    for name in SETS:
        of = {arm: [o for o in rows if o['set'] == name and o['arm'] == arm] for arm in [*ARMS, 'before']}
        def stage(o, stage): return [e['accuracy'] for e in o['epochs'] if e['stage'] == stage] or [float('nan')]
        kept = {arm: mean(rows, lambda o: o['kept']['accuracy']) for arm, rows in of.items()}
        mine = of['ours']
        print(f"{name:12} {kept['before']:7.2%} {mean(mine, lambda o: max(stage(o, 'head'))):10.2%} {mean(mine, lambda o: stage(o, 'head')[-1]):10.2%} "
              f"{mean(mine, lambda o: stage(o, 'fine-tune')[-1]):10.2%} {kept['ours']:6.2%} {mean(mine, lambda o: o['kept']['recall']):7.2%} "
              f"{mean(mine, lambda o: o['kept']['loss']):6.3f} {kept['logistic regression']:8.2%} {kept['stock pad']:6.2%} {kept['stock crop']:6.2%}")


def main():
    if not WEIGHTS.is_file(): return print(f"no real photos and weights at '{REAL}': nothing is measured. Give their folder as BASEGUN_REAL")
    for arm in (os.environ.get('BASEGUN_ARMS') or ','.join(ARMS)).split(','):
        for name in (os.environ.get('BASEGUN_SETS') or ','.join(SETS)).split(','):
            measure, seeds = ARMS[arm]
            for seed in seeds:
                begun = time.perf_counter()
                row = dict(set=name, arm=arm, seed=seed, **measure(name, seed))
                note(row | dict(seconds=round(time.perf_counter() - begun), device='cuda' if torch.cuda.is_available() else 'cpu'))
                print(f"{arm}, {name}, seed {seed}: {row['kept']['accuracy']:.2%} in {time.perf_counter() - begun:.0f} s", flush=True)
    table(noted())


if __name__ == '__main__': main()
