"""How many stored views of each photo the head needs: accuracy and loss on val for --head-views 0 (augmented in each
epoch), 1, 2, 4 and 8, over seeds.

The script needs no pretrained weights: it first trains a body, from random weights, on three of the drawn
classes; the head then learns all six from other photos, ten epochs as by default. Prints a table and writes it to
benchmarks/head-views.json.
"""
import json
import shutil
import statistics
import time
import warnings
from contextlib import redirect_stdout
from io import StringIO
from pathlib import Path
from tempfile import TemporaryDirectory

warnings.filterwarnings('ignore')

from basegun_fastai.base.files import write_whole# noqa: E402
from basegun_fastai.data.demo import GUNS, demo_data  # noqa: E402
from basegun_fastai.train import train  # noqa: E402

HERE, SEEDS, VIEWS = Path(__file__).parent, (1, 2, 3), (0, 1, 2, 4, 8)
COMMON = dict(arch='efficientnet_b0', size=96, batch_size=32)


def body(folder):
    "Train a body on every second class."
    data = folder/'other'
    demo_data(data, photos_per_class=120, seed=7)
    for label in list(GUNS)[::2]:
        for split in ('train', 'val'): (data/split/label).rename(folder/f'{split} {label}')
    train(data, weights='none', fine_tune_epochs=10, out=folder, name='body', **COMMON)
    return folder/'body'/'model.safetensors'


def main():
    rows = []
    with TemporaryDirectory() as folder, redirect_stdout(StringIO()) as _:
        folder = Path(folder)
        weights = body(folder)
        demo_data(folder/'data', photos_per_class=120)
        # its val has enough photos to distinguish the numbers of views
        demo_data(folder/'more', photos_per_class=600, seed=9)
        shutil.rmtree(folder/'data'/'val')
        (folder/'more'/'val').rename(folder/'data'/'val')
        for seed in SEEDS:
            for views in VIEWS:
                name, started = f'{views} views, seed {seed}', time.perf_counter()
                train(folder/'data', weights=str(weights), head_views=views, head_epochs=10, fine_tune_epochs=0,
                      seed=seed, out=folder, name=name, **COMMON)
                numbers = json.loads((folder/name/'metrics.json').read_text())
                rows.append(dict(views=views, seed=seed, accuracy=numbers['accuracy'], loss=numbers['loss'],
                                 seconds=time.perf_counter() - started))
    print(f"{'views':>5} {'accuracy':>9} {'lowest':>7} {'highest':>8} {'loss':>7} {'time / live':>12}")
    for views in VIEWS:
        of = [o for o in rows if o['views'] == views]
        live = [o['seconds'] for o in rows if o['views'] == 0]
        accuracies = [o['accuracy'] for o in of]
        print(f"{views:5} {statistics.mean(accuracies):9.4f} {min(accuracies):7.4f} {max(accuracies):8.4f} "
              f"{statistics.mean(o['loss'] for o in of):7.4f} "
              f"{statistics.mean(o['seconds'] for o in of) / statistics.mean(live):12.2f}")
    write_whole(HERE/'head-views.json', json.dumps(dict(rows=rows), indent=2) + '\n')


if __name__ == '__main__': main()
