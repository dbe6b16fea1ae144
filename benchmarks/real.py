"""Real photos, real weights: whole trainings through the package, beside a logistic regression and stock fastai.

Three public sets and real firearms (typology), three seeds. The folder comes from BASEGUN_REAL (default: ../shared/real
beside the checkout); if it is missing, nothing is measured. Arms: `ours` is `train` with its defaults; `ours, 5 epochs`
is the same with half of the fine-tuning, which was the default before; `ours, 288 px` is that with --size 288;
`logistic regression` is scikit-learn's on the features of the frozen body; `stock pad` and `stock crop` are fastai's
`vision_learner(...).fine_tune(5)` without mirroring; `unequal` and `unequal, balanced` are `train` on train photos in
which the rarest class has a tenth of the commonest, without and with --class-weights balanced; `split by photo` and
`split by weapon` are `train` on all photos of a set after `split`, with and without photos of one weapon (typology: the
name before the war) on both sides; `regression, by photo` and `regression, by weapon` are logistic regressions on the
frozen body's features of all photos, in three folds; `split by photo`, `split by weapon` and both `unequal` have 5
epochs of fine-tuning too; `before` is an earlier `train`, whose fine-tuning made networks worse, so that it kept the
head's epochs; it was noted once from commit cabff89. Prints a table and writes real.json after each training.
BASEGUN_ARMS="ours;stock pad", BASEGUN_SETS="trash" and BASEGUN_SEEDS="1" measure a part again; the other rows keep
their noted values. All of it takes hours on two cores and minutes on a GPU. If glibc returns memory to the system after
each step, a CPU spends half of its time on getting it back; MALLOC_MMAP_MAX_=0 MALLOC_TRIM_THRESHOLD_=17179869184 in
front of the command keeps it. With these settings one training took 14.5 GB of memory at 288 px, and two processes of
several seeds each took more than 24: run one command per seed.
"""
import json
import os
import shutil
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
from sklearn.model_selection import StratifiedGroupKFold, StratifiedKFold  # noqa: E402
from sklearn.pipeline import make_pipeline  # noqa: E402
from sklearn.preprocessing import StandardScaler  # noqa: E402

from basegun_fastai.base.files import write_whole# noqa: E402
from basegun_fastai.data.folders import list_photos  # noqa: E402
from basegun_fastai.model.loaders import evaluation_loaders  # noqa: E402
from basegun_fastai.model.archs import architecture  # noqa: E402
from basegun_fastai.model.learner import learner  # noqa: E402
from basegun_fastai.data.problems import readable_photos  # noqa: E402
from basegun_fastai.split import split  # noqa: E402
from basegun_fastai.train import train  # noqa: E402

HERE = Path(__file__).parent
REAL = Path(os.environ.get('BASEGUN_REAL') or HERE.parents[1]/'shared'/'real')
NOTED = HERE/'real.json'
SETS, SEEDS, ARCH = ('hymenoptera', 'trash', 'caltech', 'typology'), (1, 2, 3), 'tf_efficientnet_lite0'
WEIGHTS, BATCH, EPOCHS = REAL/'weights'/f'{ARCH}.safetensors', 32, 5  # EPOCHS of the whole network


def photos(data):
    "The photos of a set that can be read."
    with redirect_stderr(StringIO()): return readable_photos(data, list_photos(data), skip_unreadable=True)[0]


def numbers(labels, probabilities):
    "Accuracy, loss and recall of predictions."
    return dict(accuracy=float((probabilities.argmax(1) == labels).mean()), loss=float(log_loss(labels, probabilities)),
                recall=float(recall_score(labels, probabilities.argmax(1), average='macro')))


def ours(name, seed, data=None, **options):
    "A whole training with the defaults: each epoch, and the weights that are kept."
    with TemporaryDirectory() as out, redirect_stdout(StringIO()), redirect_stderr(StringIO()):
        train(data or REAL/name, arch=ARCH, weights=str(WEIGHTS), batch_size=BATCH, seed=seed, out=out, name='run',
              skip_unreadable=True, workers=0, no_report=True, **options)
        run = Path(out)/'run'
        kept, best = json.loads((run/'metrics.json').read_text()), json.loads((run/'config.json').read_text())['best']
        rows = pd.read_csv(run/'history.csv').rename(columns=dict(val_loss='loss'))
    return dict(epochs=rows[['stage', 'accuracy', 'recall', 'loss']].to_dict('records'),
                kept={k: kept[k] for k in ('accuracy', 'recall', 'loss')}
                | dict(epoch=best['epoch'], stage=best['stage']))


def unequal(class_weights, name, seed):
    "The same, with fewer train photos from class to class, down to a tenth."
    table = photos(REAL/name)
    labels = sorted(table.label.unique())
    with TemporaryDirectory() as folder:
        for (split, label), part in table.groupby(['split', 'label']):
            n = round(len(part) * .1 ** (labels.index(label) / (len(labels) - 1))) if split == 'train' else len(part)
            (Path(folder)/split/label).mkdir(parents=True)
            for file in sorted(part.file)[:n]: shutil.copyfile(REAL/name/file, Path(folder)/file)
        return ours(name, seed, Path(folder), class_weights=class_weights, fine_tune_epochs=5)


def split_again(by_weapon, name, seed):
    "Train and val photos together, split by `split` into as large parts, but with other photos in each."
    table = photos(REAL/name)
    with TemporaryDirectory() as folder:
        every, data = Path(folder)/'photos', Path(folder)/'data'
        for file, label in zip(table.file, table.label, strict=True):
            (every/label).mkdir(parents=True, exist_ok=True)
            shutil.copyfile(REAL/name/file, every/label/Path(file).name)
        with redirect_stdout(StringIO()), redirect_stderr(StringIO()):
            split(every, data, val=(table.split == 'val').mean(), seed=seed, link=True,
                  group_pattern='^(.*)_(?:ww1|ww2|vietnam)' if by_weapon else None)
        return ours(name, seed, data, fine_tune_epochs=5)


def features(name, table, labels):
    "Of the frozen body, for the unaugmented photos, and the index of each photo's class."
    dls = evaluation_loaders(REAL/name, architecture(ARCH), table, labels)
    body = learner(dls, architecture(ARCH), str(WEIGHTS)).model[0].eval().to(dls.device)
    with torch.no_grad(): batches = [(body(x.as_subclass(torch.Tensor)).cpu(), y.cpu()) for x, y in dls.valid]
    dls.valid.close()
    return [np.asarray(torch.cat(o)) for o in zip(*batches, strict=True)]


def logistic_regression(name, seed):  # noqa: ARG001 it has no randomness
    "scikit-learn's defaults on the frozen body's features of the unaugmented photos."
    table = photos(REAL/name)
    labels = sorted(table.label.unique())
    model = LogisticRegression(max_iter=1000).fit(*features(name, table[table.split == 'train'], labels))
    x, y = features(name, table[table.split == 'val'], labels)
    return dict(epochs=[], kept=numbers(y, model.predict_proba(x)))


def cross_validated(by_weapon, name, seed):
    "The same on standardised features, with a third of all photos as val, three times."
    table = photos(REAL/name)
    x, y = features(name, table, sorted(table.label.unique()))
    weapons = table.file.str.replace(r'.*/|_(?:ww1|ww2|vietnam).*', '', regex=True)
    folds = (StratifiedGroupKFold if by_weapon else StratifiedKFold)(3, shuffle=True, random_state=seed)
    kept = []
    for train_rows, val_rows in folds.split(x, y, weapons):
        model = make_pipeline(StandardScaler(), LogisticRegression(C=.01, max_iter=1000))
        model.fit(x[train_rows], y[train_rows])
        kept.append(numbers(y[val_rows], model.predict_proba(x[val_rows])))
    return dict(epochs=[], kept=pd.DataFrame(kept).mean().to_dict())


def stock(method, name, seed):
    "fastai as its tutorials use it, except for mirroring, which changes guns; the last epoch is kept."
    table = photos(REAL/name)
    set_seed(seed, reproducible=True)
    size = Resize(architecture(ARCH).size, method,
                  **(dict(pad_mode=PadMode.Zeros) if method == ResizeMethod.Pad else {}))
    dls = DataBlock(blocks=(ImageBlock, CategoryBlock), get_items=lambda folder: [folder/o for o in table.file],
                    get_y=parent_label, splitter=GrandparentSplitter(valid_name='val'), item_tfms=size,
                    batch_tfms=aug_transforms(do_flip=False)).dataloaders(REAL/name, bs=BATCH)
    recall, rows = Recall(average='macro'), []
    with TemporaryDirectory() as path:
        learn = vision_learner(dls, ARCH, metrics=[accuracy, recall], path=path,
                               pretrained_cfg_overlay=dict(file=str(WEIGHTS)))
        learn.model.to(memory_format=torch.channels_last)  # the same predictions, and a CPU takes a third less time
        class Rows(Callback):
            order = 60
            def after_epoch(self):
                actual = dict(zip(self.recorder.metric_names[1:], self.recorder.log[1:], strict=False))
                frozen = len(self.opt.param_lists) - 1 == self.opt.frozen_idx
                rows.append(dict(stage='head' if frozen else 'fine-tune', accuracy=float(actual['accuracy']),
                                 recall=float(actual['recall_score']), loss=float(actual['valid_loss'])))
        with learn.no_bar(), learn.no_logging():
            learn.fine_tune(EPOCHS, cbs=Rows())
            probabilities, labels = learn.get_preds(dl=dls.valid)
    return dict(epochs=rows, kept=numbers(labels.numpy(), probabilities.double().numpy()))


ARMS = {'ours': (ours, SEEDS, SETS), 'ours, 5 epochs': (partial(ours, fine_tune_epochs=5), SEEDS, SETS),
        'ours, 288 px': (partial(ours, size=288, fine_tune_epochs=5), SEEDS, SETS[:1]),
        'logistic regression': (logistic_regression, (0,), SETS),
        'stock pad': (partial(stock, ResizeMethod.Pad), SEEDS, SETS),
        'stock crop': (partial(stock, ResizeMethod.Crop), SEEDS, SETS),  # trash is square: no difference
        'split by photo': (partial(split_again, False), SEEDS, SETS[3:]),
        'split by weapon': (partial(split_again, True), SEEDS, SETS[3:]),
        'regression, by photo': (partial(cross_validated, False), SEEDS, SETS[3:]),
        'regression, by weapon': (partial(cross_validated, True), SEEDS, SETS[3:]),
        'unequal': (partial(unequal, 'none'), SEEDS, SETS[:2]),
        'unequal, balanced': (partial(unequal, 'balanced'), SEEDS, SETS[:2])}


def noted(): return json.loads(NOTED.read_text())['rows'] if NOTED.exists() else []


def note(row):
    "Replace the row of the same set, arm and seed."
    key = ('set', 'arm', 'seed')
    rows = [o for o in noted() if any(o[k] != row[k] for k in key)] + [row]
    order = [*ARMS, 'before']
    rows.sort(key=lambda o: (SETS.index(o['set']), order.index(o['arm']), o['seed']))
    write_whole(NOTED, json.dumps(dict(weights=ARCH, batch_size=BATCH, rows=rows), indent=1) + '\n')


def mean(rows, pick): return statistics.mean(pick(o) for o in rows) if rows else float('nan')


def table(rows):
    "Means over the seeds, in percent of accuracy."
    arms = [*ARMS, 'before']
    print(f"{'':12} {'before':>7} {'head':>7} {'last':>7} {'kept':>7} {'recall':>7} {'loss':>6} {'logistic':>8} "
          f"{'pad':>7} {'crop':>7}"
          f" {'unequal: accuracy, recall':>26} {'balanced':>15}")
    for name in SETS:
        of = {arm: [o for o in rows if o['set'] == name and o['arm'] == arm] for arm in arms}
        kept = {arm: mean(rows, lambda o: o['kept']['accuracy']) for arm, rows in of.items()}
        recall = {arm: mean(rows, lambda o: o['kept']['recall']) for arm, rows in of.items()}
        def last(o, stage): return [e['accuracy'] for e in o['epochs'] if e['stage'] == stage][-1]
        print(f"{name:12} {kept['before']:7.2%} {mean(of['ours'], lambda o: last(o, 'head')):7.2%} "
              f"{mean(of['ours'], lambda o: last(o, 'fine-tune')):7.2%} {kept['ours']:7.2%} {recall['ours']:7.2%} "
              f"{mean(of['ours'], lambda o: o['kept']['loss']):6.3f} {kept['logistic regression']:8.2%} "
              f"{kept['stock pad']:7.2%} "
              f"{kept['stock crop']:7.2%} {kept['unequal']:18.2%} {recall['unequal']:7.2%} "
              f"{kept['unequal, balanced']:7.2%} {recall['unequal, balanced']:7.2%}")
        if of['split by photo']:
            print(f"{name:12} regression by photo {kept['regression, by photo']:.2%}, by weapon "
                  f"{kept['regression, by weapon']:.2%}")
            print(f"{name:12} split by photo {kept['split by photo']:.2%}, by weapon {kept['split by weapon']:.2%}")


def main():
    if not WEIGHTS.is_file():
        return print(f"no real photos and weights at '{REAL}': nothing is measured. Set BASEGUN_REAL to their folder")
    wanted = [int(o) for o in os.environ.get('BASEGUN_SEEDS', '').split(';') if o]
    for arm in (os.environ.get('BASEGUN_ARMS') or ';'.join(ARMS)).split(';'):
        measure, seeds, sets = ARMS[arm]
        for name in (os.environ.get('BASEGUN_SETS') or ';'.join(sets)).split(';'):
            for seed in [o for o in seeds if not wanted or o in wanted]:
                started = time.perf_counter()
                row = dict(set=name, arm=arm, seed=seed, **measure(name, seed))
                note(row | dict(seconds=round(time.perf_counter() - started), device='cuda' if torch.cuda.is_available()
                                else 'cpu'))
                print(f"{arm}, {name}, seed {seed}: {row['kept']['accuracy']:.2%} in "
                      f"{time.perf_counter() - started:.0f} s", flush=True)
    table(noted())


if __name__ == '__main__': main()
