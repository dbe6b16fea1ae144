"""Whether high predictions are right as often as promised: 1,000 random splits of val, thresholds from one half,
accuracy from the other.

A tiny network is trained on drawn guns and predicts 3,000 others; its errors are real. Then the same with ideal
predictions, which are right as often as their confidence says: their true share above a threshold is known.
Prints a table and writes levels.json.
"""
import json
import warnings
from concurrent.futures import ProcessPoolExecutor
from contextlib import redirect_stderr, redirect_stdout
from io import StringIO
from itertools import cycle
from pathlib import Path
from tempfile import TemporaryDirectory

warnings.filterwarnings('ignore')

import numpy as np  # noqa: E402
import pandas as pd  # noqa: E402

from basegun_fastai.base.files import write_whole# noqa: E402
from basegun_fastai.data.demo import GUNS, demo_data, draw_photo  # noqa: E402
from basegun_fastai.evaluate import evaluate  # noqa: E402
from basegun_fastai.trust.levels import find_levels  # noqa: E402
from basegun_fastai.train import train  # noqa: E402

HERE, SPLITS = Path(__file__).parent, 1000


def saved(task):
    "Draw and save a photo."
    file, label, number = task
    draw_photo(label, np.random.default_rng([9, number])).save(file, quality=90)


def sample(folder, n=3000):
    "Draw photos in class folders."
    for label in GUNS: (folder/label).mkdir(parents=True)
    with ProcessPoolExecutor() as pool:
        list(pool.map(saved, [(folder/label/f'{i}.jpg', label, i) for i, label in zip(range(n), cycle(GUNS))]))


def network():
    "Confidences of a trained network on photos that it has not seen, and which of its predictions are right."
    with TemporaryDirectory() as folder, redirect_stdout(StringIO()), redirect_stderr(StringIO()):
        folder = Path(folder)
        demo_data(folder/'data', photos_per_class=100)
        sample(folder/'more')
        train(folder/'data', arch='test_resnet', size=96, weights='none', fine_tune_epochs=16, lr=.006, batch_size=16,
              out=folder, name='run')
        evaluate(folder/'run', folder/'more', folder/'judged')
        rows = pd.read_csv(folder/'judged'/'predictions-val.csv')
    return rows.confidence.to_numpy(), (rows.label == rows.predicted).to_numpy()


def ideal(n=6000):
    "Predictions that are right as often as their confidence says."
    random = np.random.default_rng(0)
    confidences = 1 - .5 * random.random(n) ** 3
    return confidences, random.random(n) < confidences


def truth(threshold): return 1 - .125 * ((1 - threshold) / .5)  # mean of the confidences of `ideal` above the threshold


def split(confidences, right, high_rate, exact=None):
    "Over random halves: how often a threshold is found, the share of photos above it, and their accuracy."
    random, shares, rates, above, true = np.random.default_rng(1), 0, [], [], []
    for _ in range(SPLITS):
        half = np.zeros(len(right), bool)
        half[random.permutation(len(right))[:len(right) // 2]] = True
        levels = find_levels(confidences[half], right[half], high_rate)
        if levels.high is None: continue
        high = confidences[~half] >= levels.high
        shares, rates, above = shares + 1, [*rates, right[~half][high].mean()], [*above, high.mean()]
        if exact: true.append(exact(levels.high))
    return dict(promised=high_rate, found=shares / SPLITS, called_high=float(np.mean(above)),
                right=float(np.mean(rates)), lowest=float(np.percentile(rates, 2.5)),
                kept_in_test_half=float(np.mean(np.array(rates) >= high_rate)),
                kept_in_truth=float(np.mean(np.array(true) >= high_rate)) if exact else None)


def fresh(high_rate, n=3000):
    "New photos each time: how often the true accuracy above the threshold keeps the promise."
    random, kept = np.random.default_rng(2), []
    for _ in range(SPLITS):
        confidences = 1 - .5 * random.random(n) ** 3
        levels = find_levels(confidences, random.random(n) < confidences, high_rate)
        kept.append(levels.high is None or truth(levels.high) >= high_rate)
    return float(np.mean(kept))


def main():
    rows = [dict(photos='drawn guns, a trained network') | split(*network(), o) for o in (.95, .99)]
    rows += [dict(photos='right as often as they say') | split(*ideal(), o, truth) for o in (.95, .99)]
    print(f"{'photos':32} {'promised':>8} {'found':>6} {'high':>6} {'right':>7} {'lowest':>7} "
          f"{'kept in test half':>18} {'in truth':>9}")
    for o in rows:
        print(f"{o['photos']:32} {o['promised']:8.2f} {o['found']:6.3f} {o['called_high']:6.3f} {o['right']:7.4f} "
              f"{o['lowest']:7.4f} "
              f"{o['kept_in_test_half']:18.3f} "
              f"{'' if o['kept_in_truth'] is None else format(o['kept_in_truth'], '.3f'):>9}")
    kept = {o: fresh(o) for o in (.95, .99)}
    print(f'new photos each time: the promise holds in {kept[.95]:.1%} and {kept[.99]:.1%} of {SPLITS} trials '
          '(the target is at least 95 %)')
    write_whole(HERE/'levels.json', json.dumps(dict(splits=SPLITS, rows=rows,
                                                    fresh={str(k): v for k, v in kept.items()}), indent=2) + '\n')


if __name__ == '__main__': main()
