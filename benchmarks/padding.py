"""The cost of padding to a square: frozen features of real weights on photos in a square, and in a rectangle of the
same area.

A wide photo in a square shows the network a small gun between two bands. EfficientNets accept any multiple of 32 as
width and height, so a rectangle in the shape of the train photos would show the gun larger at the same cost. The
measure is the accuracy of a logistic regression on the frozen body's features of the unaugmented photos, on two sets of
real photos and on wide drawn guns (2 : 1); the third real set is square. All photos of a set are predicted, each by a
model that learnt on the other four fifths, because hymenoptera's 153 val photos are too few to show a point of
difference. For comparison: the photo squashed into the square, and a padded square of more pixels. The folder comes
from BASEGUN_REAL, as in real.py. Prints a table and writes it to padding.json.
"""
import json
import math
import statistics
import warnings
from itertools import product
from pathlib import Path
from tempfile import TemporaryDirectory

warnings.filterwarnings('ignore')

import numpy as np  # noqa: E402
import torch  # noqa: E402
from PIL import Image  # noqa: E402
from real import ARCH, REAL, WEIGHTS, photos  # noqa: E402
from sklearn.linear_model import LogisticRegression  # noqa: E402
from sklearn.model_selection import StratifiedKFold, cross_val_score  # noqa: E402

from basegun_fastai.base.files import write_whole# noqa: E402
from basegun_fastai.data.demo import GUNS, draw_photo  # noqa: E402
from basegun_fastai.training.frozen import FrozenBodyForward  # noqa: E402
from basegun_fastai.model.loaders import dataloaders  # noqa: E402
from basegun_fastai.model.archs import architecture  # noqa: E402
from basegun_fastai.model.learner import learner  # noqa: E402
from basegun_fastai.data.photo import NEUTRAL, read_photo  # noqa: E402

HERE, ARCHITECTURE = Path(__file__).parent, architecture(ARCH)


def wide_guns(folder, per_class=dict(train=80, val=20)):  # noqa: B006 it is not changed
    "Draw guns in photos of 640 × 320 pixels."
    for s, (split, n) in enumerate(per_class.items()):
        for c, label in enumerate(GUNS):
            (folder/split/label).mkdir(parents=True)
            for i in range(n):
                draw_photo(label, np.random.default_rng([5, s, c, i]), (640, 320)).save(folder/split/label/f'{i}.jpg',
                    quality=90)


def rectangle(ratio, size):
    """Width and height, multiples of 32 with about as many pixels as a square of `size`, with width / height nearest
    to `ratio`.
    """
    sides = [(w, h) for w, h in product(range(32, 2 * size + 1, 32), repeat=2) if .9 < w * h / size ** 2 < 1.03]
    return min(sides, key=lambda o: abs(math.log(o[0] / o[1] / ratio)))


def padded(file, width, height):
    "The whole photo, centred on the neutral colour."
    photo = read_photo(file, max(width, height))
    if photo.width > width or photo.height > height:
        photo = read_photo(file, math.floor(max(photo.size) * min(width / photo.width, height / photo.height)))
    frame = Image.new('RGB', (width, height), NEUTRAL)
    frame.paste(photo, ((width - photo.width) // 2, (height - photo.height) // 2))
    return frame


def squashed(file, width, height):
    return read_photo(file).resize((width, height), Image.Resampling.BICUBIC, reducing_gap=3)


def accuracy(body, folder, table, framed, width, height):
    "Accuracy of a logistic regression on all photos of a set, in five folds."
    mean, std = (torch.tensor(o)[:, None, None] for o in (ARCHITECTURE.mean, ARCHITECTURE.std))
    batches = []
    for start in range(0, len(table), 32):
        frames = [np.array(framed(folder/o, width, height)) for o in table.file[start:start + 32]]
        batches.append(body((torch.tensor(np.stack(frames)).permute(0, 3, 1, 2) / 255 - mean) / std))
    folds = StratifiedKFold(5, shuffle=True, random_state=0)
    model, features = LogisticRegression(max_iter=1000), torch.cat(batches).numpy()
    return float(cross_val_score(model, features, table.label, cv=folds).mean())


def main():
    if not WEIGHTS.is_file():
        return print(f"no real photos and weights at '{REAL}': nothing is measured. Set BASEGUN_REAL to their folder")
    rows = []
    with TemporaryDirectory() as folder:
        wide_guns(Path(folder))
        for name in ('hymenoptera', 'caltech', 'wide drawn guns'):
            data = Path(folder) if name == 'wide drawn guns' else REAL/name
            table = photos(data)
            sizes = [read_photo(data/o, 224).size for o in table[table.split == 'train'].file]
            ratio = statistics.median(w / h for w, h in sizes)
            dls = dataloaders(data, ARCHITECTURE, photos=table, workers=0, device='cpu')
            body = FrozenBodyForward(learner(dls, ARCHITECTURE, str(WEIGHTS)).model[0], 'float32')
            wide, larger = rectangle(ratio, ARCHITECTURE.size), (288, 288)
            row = dict(set=name, photos=len(table), ratio=round(ratio, 2), rectangle=wide, larger=larger)
            for what, framed, size in (('square', padded, (ARCHITECTURE.size, ARCHITECTURE.size)),
                                       ('rectangle', padded, wide), ('squashed', squashed,
                (ARCHITECTURE.size, ARCHITECTURE.size)),
                                       ('padded, larger', padded, larger)):
                row[what] = accuracy(body, data, table, framed, *size)
            rows.append(row)
            print(f"{name:16} {ratio:.2f}: square {row['square']:.2%}, rectangle of {wide[0]} × {wide[1]} "
                  f"{row['rectangle']:.2%}, "
                  f"squashed {row['squashed']:.2%}, padded at {larger[0]} {row['padded, larger']:.2%}", flush=True)
    print(f"mean gain of the rectangle: {statistics.mean(o['rectangle'] - o['square'] for o in rows):.2%}")
    write_whole(HERE/'padding.json', json.dumps(rows, indent=1) + '\n')


if __name__ == '__main__': main()
