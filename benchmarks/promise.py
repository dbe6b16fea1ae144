"""How many photos the levels show, and how often their promise is broken, on real photos and by other methods.

BASEGUN_LOGITS is a folder with the logits of val that recipe.py keeps (BASEGUN_SETS, BASEGUN_SEEDS="1"
BASEGUN_CHANGES="default"); BASEGUN_REAL is that of recipe.py. As if there were no other photos than those of val,
1,000 times a new val of as many is drawn from them with replacement, by photo or, for typology, by weapon. A threshold
is found with it, and the share of all photos above it and their accuracy are known. A promise is broken if their
accuracy is lower than promised. `typology, corrected` is the same with the labels of two weapons that the source has
wrong (a pistol among self-loading rifles, a revolver among pistols; both were looked at). `three starts` was the method
before; `now` is `levels.threshold`, `now, by weapon` tells it the weapons; `all at once` tests every threshold with one
simulated risk and no sequence; `ten shares` tests from the most photos down, with Bonferroni; `in expectation` is
conformal risk control; `per class` finds a threshold for each predicted class. `orders` compares other scores than the
confidence: the share of photos above the lowest threshold at which 90 or 95 % of all are right, known afterwards. For
typology also vals of 1,000 photos. Prints a table, and writes promise.json. 15 minutes on two cores.
"""
import json
import os
import re
import sys
from functools import cache
from pathlib import Path

import numpy as np
from scipy.special import bdtr, softmax
from sklearn.linear_model import LogisticRegression
from sklearn.model_selection import GroupKFold

from basegun_fastai.base.files import write_whole
from basegun_fastai.data.folders import list_photos
from basegun_fastai.trust.calibration import cross_fitted
from basegun_fastai.trust.levels import RISK, clopper_pearson_upper, photos_needed, threshold

HERE = Path(__file__).parent
REAL = Path(os.environ.get('BASEGUN_REAL') or HERE.parents[1]/'shared'/'real')
LOGITS = Path(os.environ.get('BASEGUN_LOGITS') or 'logits')
VALS, RATES, LOWEST = int(os.environ.get('BASEGUN_VALS') or 1000), (.85, .9, .95), .5


class Photos:
    "The photos of a val: logits, confidences, whether they are right, and their groups."

    def __init__(self, name, corrected=False):
        saved = np.load(LOGITS/f'{name}-default-1.npz')
        self.logits, labels = saved['logits'].astype(float), saved['labels'].copy()
        self.groups = np.arange(len(labels))
        if name == 'typology':
            photos = list_photos(REAL/name)
            files, classes = photos.file[photos.split == 'val'].to_numpy(), sorted(photos.label.unique())
            weapons = [re.split('_(?:ww1|ww2|vietnam)', Path(o).name)[0] for o in files]
            self.groups = np.unique(weapons, return_inverse=True)[1]
            if corrected:
                for weapon, label in (('beretta-model-1931', 'pistol'), ('tettoni-m1916', 'revolver')):
                    labels[[weapon in o for o in files]] = classes.index(label)
        self.confidences = softmax(cross_fitted(self.logits, labels), 1).max(1)
        self.predicted = self.logits.argmax(1)
        self.right = self.predicted == labels

    def draw(self, random, by_group, n):
        "A val of `n` photos, or of as many groups: rows, and the number of the draw that each comes from."
        if not by_group: return random.integers(0, len(self.right), n), None
        members = [np.flatnonzero(self.groups == o) for o in range(self.groups.max() + 1)]
        chosen = random.integers(0, len(members), len(members))
        return (np.concatenate([members[o] for o in chosen]),
                np.repeat(np.arange(len(chosen)), [len(members[o]) for o in chosen]))


def tested(confidences, right):
    "Confidences in descending order, mistakes and photos down to each, of those of `LOWEST` or more."
    order = np.argsort(-confidences, kind='stable')
    ranked = confidences[order]
    n = np.arange(1, (ranked >= LOWEST).sum() + 1)
    return ranked, np.cumsum(~right[order])[:len(n)], n


def last_of(ranked, holds):
    "The lowest threshold that holds."
    at = np.flatnonzero(holds)
    return None if not at.size else max(LOWEST, ranked[at[-1]])


def three_starts(confidences, right, rate, groups):  # noqa: ARG001
    ranked, wrong, n = tested(confidences, right)
    holds, last = clopper_pearson_upper(wrong, n, RISK / 3) <= 1 - rate, -1
    for start in photos_needed(rate, RISK / 3) * np.array([1, 2, 4]) - 1:
        in_a_row = int(np.argmin(np.append(holds[start:], False)))
        if in_a_row: last = max(last, start + in_a_row - 1)
    return None if last < 0 else max(LOWEST, ranked[last])


def now(confidences, right, rate, groups): return threshold(confidences, right, rate, LOWEST)  # noqa: ARG001
def by_weapon(confidences, right, rate, groups): return threshold(confidences, right, rate, LOWEST, groups)


@cache
def simultaneous_risk(n, rate):
    "Risk of each of all tests, together wrong in `RISK`, if no threshold keeps the promise."
    first = photos_needed(rate, RISK)
    if n < first: return 0.
    wrong = (np.random.default_rng(0).random((4000, n)) >= rate).cumsum(1)[:, first - 1:]
    return float(np.quantile(bdtr(wrong, np.arange(first, n + 1), 1 - rate).min(1), RISK))


def all_at_once(confidences, right, rate, groups):  # noqa: ARG001
    ranked, wrong, n = tested(confidences, right)
    risk = simultaneous_risk(len(right) // 50 * 50, rate)  # a val drawn by weapon has another size each time
    return last_of(ranked, clopper_pearson_upper(wrong, n, risk) <= 1 - rate) if risk else None


def ten_shares(confidences, right, rate, groups):  # noqa: ARG001
    ranked, wrong, n = tested(confidences, right)
    chosen = np.isin(n, np.round(np.arange(.1, 1.01, .1) * len(right)))
    return last_of(ranked, chosen & (clopper_pearson_upper(wrong, n, RISK / 10) <= 1 - rate))


def in_expectation(confidences, right, rate, groups):  # noqa: ARG001
    ranked, wrong, n = tested(confidences, right)
    return last_of(ranked, (wrong + 1) / (n + 1) <= 1 - rate)


METHODS = {'three starts': three_starts, 'now': now, 'now, by weapon': by_weapon, 'all at once': all_at_once,
           'ten shares': ten_shares, 'in expectation': in_expectation}


def shown(photos, rows, groups, random, rate, method):
    "Which of all photos are above the threshold that a val gives."
    confidences = photos.confidences[rows] + 1e-9 * random.random(len(rows))
    if method != 'per class':
        lowest = METHODS[method](confidences, photos.right[rows], rate, groups)
        return photos.confidences >= (2 if lowest is None else lowest)
    above = np.zeros(len(photos.right), bool)
    for o in np.unique(photos.predicted):
        part = photos.predicted[rows] == o
        own = threshold(confidences[part], photos.right[rows][part], rate, LOWEST) if part.any() else None
        above |= (photos.predicted == o) & (photos.confidences >= (2 if own is None else own))
    return above


def simulate(name, photos, by_group, n=None):
    rows, n = [], n or len(photos.right)
    for rate in RATES:
        for method in [*METHODS, 'per class']:
            if method == 'now, by weapon' and not by_group: continue
            random, shares, broken = np.random.default_rng(1), [], []
            for _ in range(VALS):
                above = shown(photos, *photos.draw(random, by_group, n), random, rate, method)
                shares.append(above.mean())
                broken.append(above.any() and photos.right[above].mean() < rate)
            row = dict(set=name, drawn='by weapon' if by_group else 'by photo', n=n, promised=rate, method=method,
                       some_shown=float(np.mean(np.array(shares) > 0)), shown=float(np.mean(shares)),
                       broken=float(np.mean(broken)))
            rows.append(row)
            print(f"{name:21} {n:5} {row['drawn']:10} {rate:.2f} {method:15} shown {row['shown']:.3f} (in "
                  f"{row['some_shown']:.2f} of the vals), broken {row['broken']:.3f}", flush=True)
    return rows


def orders(name, photos):
    "The share of photos above the lowest threshold at which enough are right, by other scores."
    probabilities = np.sort(softmax(photos.logits, 1), 1)
    per_class, odds = np.zeros(len(photos.right)), np.log(photos.confidences / (1 - photos.confidences + 1e-9))
    inputs = np.column_stack([odds, np.eye(photos.logits.shape[1])[photos.predicted]])
    for fold, rest in GroupKFold(5).split(inputs, groups=photos.groups):
        model = LogisticRegression(C=.3, max_iter=500).fit(inputs[fold], photos.right[fold])
        per_class[rest] = model.predict_proba(inputs[rest])[:, 1]
    scores = {'confidence': photos.confidences, 'margin': probabilities[:, -1] - probabilities[:, -2],
              'entropy': (probabilities * np.log(probabilities + 1e-12)).sum(1), 'calibrated per class': per_class}
    rows = []
    for score, values in scores.items():
        right = photos.right[np.argsort(-values)]
        accuracy = np.cumsum(right) / np.arange(1, len(right) + 1)
        shares = [float(max(np.flatnonzero(accuracy >= o) + 1, default=0) / len(right)) for o in (.9, .95)]
        rows.append(dict(set=name, score=score, at_90=shares[0], at_95=shares[1]))
        print(f'{name:21} {score:21} {shares[0]:.3f} at 90 %, {shares[1]:.3f} at 95 %')
    return rows


def main():
    if not LOGITS.is_dir(): sys.exit(print(f"no logits at '{LOGITS}': nothing is measured. Set BASEGUN_LOGITS"))
    sets = {o: Photos(o) for o in ('typology', 'hymenoptera', 'trash', 'caltech')
            if (LOGITS/f'{o}-default-1.npz').exists()}
    if 'typology' in sets: sets['typology, corrected'] = Photos('typology', corrected=True)
    rows, scores = [], []
    for name, photos in sets.items():
        scores += orders(name, photos)
        for by_group in (False, True) if 'typology' in name else (False,): rows += simulate(name, photos, by_group)
        if 'typology' in name: rows += simulate(name, photos, False, 1000)
    write_whole(HERE/'promise.json', json.dumps(dict(vals=VALS, rows=rows, orders=scores), indent=1) + '\n')


if __name__ == '__main__': main()
