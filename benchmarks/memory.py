"""How much memory `train` takes as the number of photos grows: the peak of its main process, and bytes per photo
between the two sizes.

Draws data sets of tiny random pictures (16 × 16, no two alike, as PNG), and trains timm's test_efficientnet at 32
pixels on each, both stages, in its own process. Prints a table and writes it to benchmarks/memory.json.
BASEGUN_COUNTS="100 100000" sets the sizes.
"""
import json
import os
import subprocess
import sys
from pathlib import Path
from tempfile import TemporaryDirectory

import numpy as np
from PIL import Image

from basegun_fastai.base.files import write_whole
from basegun_fastai.base.processes import cores

HERE = Path(__file__).parent
MEASURED = '''
import sys
from pathlib import Path
from basegun_fastai.train import train
train(Path(sys.argv[1]), 'test_efficientnet', head_epochs=1, fine_tune_epochs=1, weights='none', size=32,
      batch_size=64, out=sys.argv[2],
      name='run', cache=sys.argv[3], workers=int(sys.argv[4]))
print(next(int(o.split()[1]) for o in open('/proc/self/status') if o.startswith('VmHWM')), file=sys.stderr)
'''


def data_set(folder, n):
    "Draw `n` pictures in two classes, a fifth of them in val."
    for split in ('train', 'val'):
        for label in 'ab': (folder/split/label).mkdir(parents=True)
    random = np.random.default_rng(0)
    for i in range(n):
        picture = Image.fromarray(random.integers(0, 256, (16, 16, 3), np.uint8))
        picture.save(folder/('val' if i % 10 < 2 else 'train')/'ab'[i % 2]/f'photo {i:06d}.png', compress_level=0)
    return folder


def peak(folder, out):
    "Train in another process, and return its peak memory in KiB."
    result = subprocess.run([sys.executable, '-W', 'ignore', '-c', MEASURED, folder, out, out/'cache', str(cores())],
                          capture_output=True, text=True)
    if result.returncode: raise SystemExit(result.stderr)
    return int(result.stderr.split()[-1])


def main():
    counts = [int(o) for o in os.environ.get('BASEGUN_COUNTS', '100 100000').split()]
    rows = []
    for n in counts:
        with TemporaryDirectory() as folder:
            (Path(folder)/'out').mkdir()
            rows.append(dict(photos=n, peak_mib=peak(data_set(Path(folder)/'data', n), Path(folder)/'out') / 1024))
        print(f"{n:8} photos  {rows[-1]['peak_mib']:8.1f} MiB", flush=True)
    growth = (rows[-1]['peak_mib'] - rows[0]['peak_mib']) * 2**20 / (counts[-1] - counts[0])
    print(f'{growth:.0f} bytes per photo (bar 1024; limit: name and digest, about 100)')
    write_whole(HERE/'memory.json', json.dumps(dict(rows=rows, bytes_a_photo=growth), indent=2) + '\n')


if __name__ == '__main__': main()
