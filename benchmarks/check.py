"""How `check` grows with the number of photos: seconds per photo, and memory of its process; and the cost of a
fingerprint the second time.

Draws data sets of random pictures (unrelated, 480 × 360, as JPEG), and runs `check` on each in its own process,
in turn. Prints a table and writes it to benchmarks/check.json. BASEGUN_COUNTS="2000 20000" sets the sizes.
"""
import json
import os
import statistics
import subprocess
import sys
from concurrent.futures import ProcessPoolExecutor
from pathlib import Path
from tempfile import TemporaryDirectory

import numpy as np
from PIL import Image, ImageDraw, ImageFilter

from basegun_fastai.base.files import write_whole
from basegun_fastai.base.processes import cores

HERE, REPEATS = Path(__file__).parent, 3
MEASURED = '''
import sys, time
from pathlib import Path
from basegun_fastai.check import check
from basegun_fastai.data.contents import known_contents
from basegun_fastai.data.folders import list_photos
started = time.perf_counter()
check(Path(sys.argv[1]))
seconds = time.perf_counter() - started
memory = next(int(o.split()[1]) for o in open('/proc/self/status') if o.startswith('VmHWM'))
started = time.perf_counter()
known_contents(Path(sys.argv[1]), list_photos(Path(sys.argv[1])))
print(f'\\n{seconds} {memory} {time.perf_counter() - started}')
'''


def sample(task):
    "Draw a part of a data set: random shapes on random grounds, no two alike."
    folder, numbers = task
    for i in numbers:
        random = np.random.default_rng([3, i])
        ground = Image.fromarray(random.integers(0, 255, (4, 5, 3), dtype=np.uint8)).resize((480, 360),
            Image.Resampling.BICUBIC)
        draw = ImageDraw.Draw(ground)
        for _ in range(10):
            x, y, w, h = random.integers(0, [480, 360, 160, 120]).tolist()
            draw.ellipse((x - w, y - h, x + w, y + h), fill=tuple(random.integers(0, 255, 3).tolist()))
        split = 'val' if i % 4 == 0 else 'train'
        ground.filter(ImageFilter.GaussianBlur(1)).save(folder/split/f'class {i // 4 % 10}'/f'{i}.jpg', quality=85)


def data_set(folder, n, pool):
    for split in ('train', 'val'):
        for label in range(10): (folder/split/f'class {label}').mkdir(parents=True)
    list(pool.map(sample, [(folder, range(i, min(i + 100, n))) for i in range(0, n, 100)]))
    return folder


def measured(folder):
    """Run `check` in its own process: seconds, peak memory of that process in KiB, seconds of the fingerprint
    after it.
    """
    result = subprocess.run([sys.executable, '-c', MEASURED, folder], capture_output=True, text=True, check=True)
    assert ' 0 refused' in result.stdout and 'near-duplicate' not in result.stdout, result.stdout
    return [float(o) for o in result.stdout.split('\n')[-2].split()]


def main():
    counts = [int(o) for o in os.environ.get('BASEGUN_COUNTS', '2000 20000').split()]
    with TemporaryDirectory() as folder, ProcessPoolExecutor(cores()) as pool:
        os.environ['XDG_CACHE_HOME'] = folder
        sets = {n: data_set(Path(folder)/str(n), n, pool) for n in counts}
        runs = {n: [] for n in counts}
        for _ in range(REPEATS):
            for n in counts: runs[n].append(measured(sets[n]))
    rows = []
    for n in counts:
        seconds, memory, again = (statistics.median(o) for o in zip(*runs[n], strict=True))
        rows.append(dict(photos=n, milliseconds_a_photo=seconds / n * 1e3, lowest=min(o[0] for o in runs[n]) / n * 1e3,
                         highest=max(o[0] for o in runs[n]) / n * 1e3, peak_mib=memory / 1024,
                         fingerprint_again_seconds=again,
                         check_over_fingerprint=seconds / again))
    few, many = rows[0], rows[-1]
    growth = (many['peak_mib'] - few['peak_mib']) * 2**20 / (many['photos'] - few['photos'])
    ratio = many['milliseconds_a_photo'] / few['milliseconds_a_photo']
    print(f"{'photos':>7} {'ms per photo':>12} {'lowest':>7} {'highest':>8} {'peak MiB':>9} "
          f"{'check / fingerprint again':>26}")
    for o in rows:
        print(f"{o['photos']:7} {o['milliseconds_a_photo']:12.2f} {o['lowest']:7.2f} {o['highest']:8.2f} "
              f"{o['peak_mib']:9.0f} "
              f"{o['check_over_fingerprint']:26.0f}")
    print(f'seconds per photo, {many["photos"]} / {few["photos"]} photos: {ratio:.2f} (bar 0.8 to 1.2); memory grows '
          f'by {growth:.0f} bytes per photo (bar 1024)')
    write_whole(HERE/'check.json', json.dumps(dict(cores=cores(), repeats=REPEATS, rows=rows, ratio=ratio,
                                                   bytes_a_photo=growth), indent=2) + '\n')


if __name__ == '__main__': main()
