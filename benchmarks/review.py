"""Does `review` pay? Wrong labels are planted in real photos, and looked for.

The folder comes from BASEGUN_REAL (default: ../shared/real beside the checkout); if it is missing, nothing is measured.
On four sets, 5 and 10 % of the labels of train and val become wrong: `uniform` gives any other class, `confusion` the
class that a classifier confuses it with; `foreign` adds photos without guns (typology/not-a-gun) under any label. Three
seeds. `shares` is the share of the planted ones that come first in the list of `review` (unfamiliar photos are in it
too), among as many photos as 5, 10 and 20 % of the set, and in four rankings: cleanlab's self-confidence and normalized
margin, the share of the ten nearest photos with the same label, and the mean of the ranks of the first and the third.
`regression` is the accuracy on the clean val of a logistic regression on the features that learns the planted labels,
those after a perfect review of as many photos of the list as 20 % of the set, and the clean ones. BASEGUN_TRAIN=1 does
the same with whole trainings with the defaults, in which val has wrong labels too, and notes `accuracy` seed by seed;
the wrong labels are those of the first seed. Photos of one weapon (typology: the name before the war) are one group.
BASEGUN_SETS="trash", BASEGUN_RATES=".05" and BASEGUN_SEEDS="2 3" measure a part again; the other rows keep their noted
values. Prints a table, and writes review.json. Rankings: 15 minutes on two cores; a training takes 3 to 10 minutes.
"""
import json
import os
import re
import sys
import warnings
from argparse import Namespace
from contextlib import redirect_stderr, redirect_stdout
from functools import cached_property, partial
from io import StringIO
from pathlib import Path
from tempfile import TemporaryDirectory

warnings.filterwarnings('ignore')

import numpy as np  # noqa: E402
import pandas as pd  # noqa: E402
from cleanlab.rank import get_label_quality_scores  # noqa: E402
from scipy.stats import rankdata  # noqa: E402
from sklearn.linear_model import LogisticRegression  # noqa: E402
from sklearn.pipeline import make_pipeline  # noqa: E402
from sklearn.preprocessing import StandardScaler  # noqa: E402

from basegun_fastai import review  # noqa: E402
from basegun_fastai.base.files import write_whole  # noqa: E402
from basegun_fastai.base.record import Run  # noqa: E402
from basegun_fastai.data.folders import list_photos  # noqa: E402
from basegun_fastai.model.archs import architecture  # noqa: E402
from basegun_fastai.train import train  # noqa: E402
from basegun_fastai.trust.listing import all_features, read_photos  # noqa: E402
from basegun_fastai.trust.suspects import assign_folds, cross_fitted_probabilities  # noqa: E402
from basegun_fastai.trust.suspects import list_suspects, nearest_photos  # noqa: E402

HERE = Path(__file__).parent
REAL = Path(os.environ.get('BASEGUN_REAL') or HERE.parents[1]/'shared'/'real')
NOTED = HERE/'review.json'
SETS, SEEDS, ARCH = ('hymenoptera', 'trash', 'caltech', 'typology'), (1, 2, 3), 'tf_efficientnet_lite0'
KINDS, RATES = ('uniform', 'confusion', 'foreign'), [*map(float, (os.environ.get('BASEGUN_RATES') or '.05 .1').split())]
CONDITIONS = ('planted', 'reviewed', 'clean')
WEIGHTS, SHARES = REAL/'weights'/f'{ARCH}.safetensors', (.05, .1, .2)


class Photos:
    "The photos of a set, with their features and groups."

    def __init__(self, name, layout='splits'):
        self.data, arch = REAL/name, architecture(ARCH)
        table = list_photos(self.data, layout)
        weapons = [re.split('_(?:ww1|ww2|vietnam)', Path(o).name)[0] for o in table.file]
        groups = pd.Series(weapons if name == 'typology' else '', table.index)
        options = Namespace(data=self.data, arch=ARCH, weights=str(WEIGHTS), workers=None, cache='auto')
        with redirect_stderr(StringIO()):
            self.table, *_ = read_photos(self.data, table, groups, arch.size)
            self.features = all_features(review._judge(options, arch, 'cpu', self.table))
        self.classes = sorted(self.table.label.unique())
        self.labels = pd.Index(self.classes).get_indexer(self.table.label)
        self.groups = pd.factorize(self.table.group)[0]

    def judged(self, labels):
        "Probabilities and counts of the nearest photos' classes, for these labels, and similarities."
        with redirect_stderr(StringIO()):
            probabilities = cross_fitted_probabilities(self.features, labels, assign_folds(labels, self.groups))
            return probabilities, *nearest_photos(self.features, labels, self.groups)


    @cached_property
    def probabilities(self):
        "Of the clean labels."
        return np.nan_to_num(self.judged(self.labels)[0])

    def regression(self, labels):
        "Accuracy on the clean val of a logistic regression that learns these train labels."
        train = (self.table.split == 'train').to_numpy()
        model = make_pipeline(StandardScaler(), LogisticRegression(C=.003, max_iter=1000))
        predicted = model.fit(self.features[train], labels[train]).predict(self.features[~train])
        return float((predicted == self.labels[~train]).mean())


def planted(photos, rate, kind, seed):
    "Labels of which a share is wrong, and which of them are."
    random, labels, n = np.random.default_rng(seed), photos.labels.copy(), len(photos.classes)
    rows = random.choice(len(labels), round(rate * len(labels)), replace=False)
    if kind == 'uniform': labels[rows] = (labels[rows] + random.integers(1, n, len(rows))) % n
    else:
        probabilities = photos.probabilities[rows]
        probabilities[np.arange(len(rows)), labels[rows]] = -1
        labels[rows] = probabilities.argmax(1)
    return labels, rows


def orders(photos, labels):
    "Photos by each ranking, the most doubtful first; the list of `review` may end earlier."
    probabilities, counts, similarities = photos.judged(labels)
    known = np.nan_to_num(probabilities, nan=1 / len(photos.classes))
    agreement = counts[np.arange(len(labels)), labels] / counts.sum(1)
    self_confidence = get_label_quality_scores(labels, known, method='self_confidence')
    scores = {'self-confidence': self_confidence,
              'normalized margin': get_label_quality_scores(labels, known, method='normalized_margin'),
              'nearest photos': agreement + 1e-6 * self_confidence,
              'mean of ranks': rankdata(self_confidence) + rankdata(agreement)}
    table = photos.table.assign(label=[photos.classes[o] for o in labels])
    suspects = list_suspects(table, photos.classes, probabilities, counts, similarities, [], [])
    return {'review': suspects.index.to_numpy()} | {k: np.argsort(v, kind='stable') for k, v in scores.items()}


def foreign(name, photos):
    "The share of photos without guns among the first, by the list, by the doubts and by the similarity."
    others, shares, n = Photos('typology/not-a-gun', 'classes'), {}, len(photos.labels)
    for seed in SEEDS:
        random = np.random.default_rng(seed)
        chosen = random.choice(len(others.labels), round(.05 * n), replace=False)
        both, rows = Namespace(classes=photos.classes), np.arange(n, n + len(chosen))
        both.features = np.vstack([photos.features, others.features[chosen]])
        both.groups = np.concatenate([photos.groups, photos.groups.max() + 1 + others.groups[chosen]])
        both.table = pd.concat([photos.table, others.table.iloc[chosen]], ignore_index=True)
        both.judged = partial(Photos.judged, both)
        labels = np.concatenate([photos.labels, random.choice(photos.labels, len(chosen))])
        similarity = both.judged(labels)[2]
        ways = orders(both, labels)
        ways = dict(review=ways['review'], doubt=ways['mean of ranks'], similarity=np.argsort(similarity))
        for way, order in ways.items():
            firsts = [float(np.isin(rows, order[:round(o * len(labels))]).mean()) for o in SHARES]
            shares.setdefault(way, []).append(firsts)
    means = {k: np.mean(v, 0).round(4).tolist() for k, v in shares.items()}
    note(dict(set=name, kind='foreign', rate=.05, shares=means))


def reviewed(photos, labels, ways):
    "The labels after a perfect review of as many photos of the list as 20 % of the set."
    first, labels = ways['review'][:round(.2 * len(labels))], labels.copy()
    labels[first] = photos.labels[first]
    return labels


def rankings(name, photos):
    if name == 'typology': foreign(name, photos)
    clean = photos.regression(photos.labels)
    for kind in KINDS[:2]:
        for rate in RATES:
            shares, lengths, accuracies = {}, [], []
            for seed in SEEDS:
                labels, rows = planted(photos, rate, kind, seed)
                ways = orders(photos, labels)
                lengths.append(len(ways['review']) / len(labels))
                accuracies.append([photos.regression(o) for o in (labels, reviewed(photos, labels, ways))] + [clean])
                for ranking, order in ways.items():
                    firsts = [float(np.isin(rows, order[:round(o * len(labels))]).mean()) for o in SHARES]
                    shares.setdefault(ranking, []).append(firsts)
            regression = dict(zip(CONDITIONS, np.mean(accuracies, 0).round(4).tolist(), strict=True))
            note(dict(set=name, kind=kind, rate=rate, list_length=float(np.mean(lengths)), regression=regression,
                      shares={k: np.mean(v, 0).round(4).tolist() for k, v in shares.items()}))


def accuracy(photos, labels, seed):
    "Accuracy on the clean val of a training with these labels, in train and in val."
    with TemporaryDirectory() as folder, redirect_stdout(StringIO()), redirect_stderr(StringIO()):
        data, names = Path(folder)/'data', {}
        for i, (file, split) in enumerate(zip(photos.table.file, photos.table.split, strict=True)):
            target = Path(split)/photos.classes[labels[i]]/f'{i}{Path(file).suffix}'
            (data/target).parent.mkdir(parents=True, exist_ok=True)
            (data/target).symlink_to((photos.data/file).resolve())
            names[target.as_posix()] = photos.classes[photos.labels[i]]
        train(data, arch=ARCH, weights=str(WEIGHTS), batch_size=32, seed=seed, out=folder, name='run', no_report=True)
        rows = pd.read_csv(Run(Path(folder)/'run').predictions)
    return float((rows.predicted == rows.file.map(names)).mean())


def trainings(name, photos):
    for rate in RATES:
        labels, _ = planted(photos, rate, 'uniform', 1)
        conditions = dict(planted=labels, reviewed=reviewed(photos, labels, orders(photos, labels)),
                          clean=photos.labels)
        for seed in map(int, (os.environ.get('BASEGUN_SEEDS') or '1 2 3').split()):
            for condition in reversed(CONDITIONS):
                before = next((o for o in noted() if (o['set'], o['kind'], o['rate']) == (name, 'uniform', rate)), {})
                accuracies = before.get('accuracy', {o: {} for o in CONDITIONS})
                accuracies[condition][str(seed)] = accuracy(photos, conditions[condition], seed)
                note(dict(set=name, kind='uniform', rate=rate, accuracy=accuracies))


def noted(): return json.loads(NOTED.read_text())['rows'] if NOTED.exists() else []


def note(row):
    "Add to the row of the same set, kind and rate, and print it."
    keys = ('set', 'kind', 'rate')
    rows = {tuple(o[k] for k in keys): o for o in noted()}
    place = tuple(row[k] for k in keys)
    rows[place] = rows.get(place, {}) | row
    ordered = sorted(rows.values(), key=lambda o: (SETS.index(o['set']), KINDS.index(o['kind']), o['rate']))
    write_whole(NOTED, json.dumps(dict(weights=ARCH, shares=SHARES, rows=ordered), indent=1) + '\n')
    for ranking, firsts in row.get('shares', {}).items():
        print(f"{row['set']:12}{row['kind']:10}{row['rate']:5.0%} {ranking:20}", *(f'{o:.2f}' for o in firsts))
    for o in ('regression', 'accuracy'):
        if o in row: print(f"{row['set']:12}{row['kind']:10}{row['rate']:5.0%} {o}", row[o], flush=True)


if __name__ == '__main__':
    if not WEIGHTS.exists(): sys.exit(print(f"nothing is measured: '{REAL}' does not exist"))
    for name in (os.environ.get('BASEGUN_SETS') or ' '.join(SETS)).split():
        photos = Photos(name)
        (trainings if os.environ.get('BASEGUN_TRAIN') else rankings)(name, photos)
