"""The shape of the input at equal cost: whole trainings on a square and on two rectangles, because guns are wide.

The folder comes from BASEGUN_REAL, as in recipe.py. Real firearms, ants and bees, and wide drawn guns (2 : 1). A photo
is padded to the shape, with all of it in the frame, instead of to a square; everything else is `train` with its
defaults. (The file is padded to the shape first; the square that is read from it has two bands, and the network gets
the part between them. So a rotation may cut a corner of the photo, by up to 14 of 160 rows.) Three seeds; the accuracy
is that of the weights that are kept. BASEGUN_SETS="typology" and BASEGUN_SEEDS="1;2" measure a part; the other rows
keep their noted values. Prints a table, and writes shape.json. A training takes 2 to 5 minutes on two cores.
"""
import json
import os
import statistics
import time
from contextlib import redirect_stderr, redirect_stdout
from io import StringIO
from pathlib import Path
from tempfile import TemporaryDirectory

from fastai.torch_core import TensorImage
from fasttransform import Transform
from padding import padded, wide_guns
from recipe import ARCH, CHANGES, REAL, SEEDS, WEIGHTS, Start, numbers

from basegun_fastai.base.files import write_whole
from basegun_fastai.data.folders import list_photos

HERE = Path(__file__).parent
NOTED, SETS = HERE/'shape.json', ('typology', 'hymenoptera', 'wide drawn guns')
SHAPES = (224, 224), (256, 192), (320, 160)


class Between(Transform):
    "The rows of a square that are between its bands."
    order = 110  # after Normalize
    def __init__(self, height):
        super().__init__()
        self.height = height

    def encodes(self, x: TensorImage):
        top = (x.shape[-2] - self.height) // 2
        return x[..., top:top + self.height, :]


class Shaped(Start):
    "A set in a shape, with a trained head."

    def __init__(self, data, seed, folder, height):
        self.height = height
        super().__init__(str(data), seed, folder)

    def learner(self):
        learn = super().learner()
        for o in learn.dls.loaders: o.after_batch.add(Between(self.height))
        return learn


def framed(data, folder, width, height):
    "The photos of a set, each padded to the shape."
    for file in list_photos(data).file:
        target = folder/Path(file).with_suffix('.png')
        target.parent.mkdir(parents=True, exist_ok=True)
        padded(data/file, 2 * width, 2 * height).save(target)


def measure(name, seed, shape):
    with TemporaryDirectory() as folder, redirect_stderr(StringIO()), redirect_stdout(StringIO()):
        data, folder = REAL/name, Path(folder)
        if name == 'wide drawn guns':
            data = folder/'drawn'
            wide_guns(data)
        framed(data, folder/'data', *shape)
        start = Shaped(f'{folder}/data, {shape[0]} px', seed, folder, shape[1])
        return numbers(*start.fine_tuned(CHANGES['default'])[1])


def noted(): return json.loads(NOTED.read_text())['rows'] if NOTED.exists() else []


def main():
    if not WEIGHTS.is_file():
        return print(f"no real photos and weights at '{REAL}': nothing is measured. Set BASEGUN_REAL to their folder")
    def asked(variable, default): return (os.environ.get(variable) or ';'.join(map(str, default))).split(';')
    for seed in map(int, asked('BASEGUN_SEEDS', SEEDS)):
        for name in asked('BASEGUN_SETS', SETS):
            for shape in SHAPES:
                began, place = time.perf_counter(), dict(set=name, shape=list(shape), seed=seed)
                row = place | measure(name, seed, shape) | dict(seconds=round(time.perf_counter() - began))
                rows = [o for o in noted() if any(o[k] != v for k, v in place.items())] + [row]
                rows.sort(key=lambda o: (SETS.index(o['set']), o['shape'], o['seed']))
                write_whole(NOTED, json.dumps(dict(weights=ARCH, rows=rows), indent=1) + '\n')
                print(f"{name:16} {shape[0]} × {shape[1]} {seed} accuracy {row['accuracy']:.4f}  recall "
                      f"{row['recall']:.4f}  loss {row['loss']:.4f}  {row['seconds']} s", flush=True)
    for name in SETS:
        for shape in SHAPES:
            own = [o['accuracy'] for o in noted() if o['set'] == name and o['shape'] == list(shape)]
            if own: print(f'{name:16} {shape[0]} × {shape[1]} {statistics.mean(own):.2%} ({len(own)})')


if __name__ == '__main__': main()
