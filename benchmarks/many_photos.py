"""Cost of each step as the number of photos grows: seconds, peak memory of its main process, and growth per photo.

Draws data sets of tiny photos (64 × 48 pixels, JPEG, no two alike, 12 classes, every tenth in val), and runs check,
train (head on features, then one epoch of fine-tuning, timm's test_resnet at 32 pixels), evaluate, export and report
on each, every step in its own process. Prints a table and writes it to benchmarks/many-photos.json.
BASEGUN_COUNTS="3000 300000" sets the sizes, BASEGUN_STEPS="check train" the steps, BASEGUN_FOLDER the folder of the
photos (existing ones are used again; by default it is a temporary folder). BASEGUN_STEPS="review" measures the list of
`review`, which compares all pairs of photos: 40000 photos take minutes.
"""
import json
import os
import subprocess
import sys
import time
from concurrent.futures import ProcessPoolExecutor
from pathlib import Path
from tempfile import TemporaryDirectory

import numpy as np
from PIL import Image

from basegun_fastai.base.files import write_whole
from basegun_fastai.base.processes import cores

HERE = Path(__file__).parent
CLASSES = [f'class {i:02d}' for i in range(12)]
MEASURED = '''
from pathlib import Path
from basegun_fastai.cli import main
try: main()
finally:
    peak = next(o for o in Path('/proc/self/status').read_text().splitlines() if o.startswith('VmHWM'))
    with open(PIPE, 'w') as answer: answer.write(peak.split()[1])
'''


def place(folder, i):
    "The file of photo number `i`."
    return folder/('val' if i % 10 == 9 else 'train')/CLASSES[i // 10 % 12]/f'photo {i:07d}.jpg'


def draw(folder, first, last):
    "Draw some photos: a few blurred fields of colour, redder for higher numbers of the class, and noise."
    for i in range(first, last):
        random = np.random.default_rng([7, i])
        fields = random.integers(40, 216, (6, 8, 3)).astype(np.int16)
        fields[..., 0] += 6 * (i // 10 % 12) - 33
        picture = Image.fromarray(fields.clip(0, 255).astype(np.uint8)).resize((64, 48), Image.Resampling.BICUBIC)
        picture.save(place(folder, i), quality=85)


def data_set(folder, n):
    "Draw `n` photos, on all cores."
    for split in ('train', 'val'):
        for label in CLASSES: (folder/split/label).mkdir(parents=True)
    bounds = np.linspace(0, n, 8 * cores() + 1).astype(int)
    with ProcessPoolExecutor() as pool: list(pool.map(draw, [folder] * len(bounds), bounds[:-1], bounds[1:]))
    return folder


def measured(arguments, log):
    "Run a command in its own process; returns its seconds and peak memory in MiB."
    reading, writing = os.pipe()
    program = MEASURED.replace('PIPE', str(writing))
    started = time.monotonic()
    with open(log, 'w') as text:
        process = subprocess.Popen([sys.executable, '-W', 'ignore', '-c', program, *map(str, arguments)], stdout=text,
                                   stderr=subprocess.STDOUT, pass_fds=[writing])
        os.close(writing)
        code = process.wait()
    with open(reading) as answer: peak = int(answer.read() or 0)
    if code and arguments[0] != 'check': raise SystemExit(f'{arguments}: exit {code}, see {log}')
    return time.monotonic() - started, peak / 1024


def steps(data, out):
    "The commands, by name."
    run, cache = out/'run', out/'cache'
    return dict(
        check=['check', data, '--report', out/'check.html', '--json', out/'check.json'],
        train=['train', data, '--arch', 'test_resnet', '--size', '32', '--weights', out/'weights.safetensors',
               '--head-epochs', '2', '--head-views', '1', '--fine-tune-epochs', '1', '--batch-size', '64', '--out', out,
               '--name', 'run', '--cache', cache],
        evaluate=['evaluate', run, data, '--out', out/'evaluated'],
        export=['export', run],
        report=['report', run, '--out', out/'report.html'],
        review=['review', data, '--arch', 'test_resnet', '--size', '32', '--weights', out/'weights.safetensors',
                '--list-only', '--out', out/'review', '--cache', cache])


def bytes_a_photo(rows):
    "Growth of the peak per photo, from the smallest data set to the largest."
    first, last = rows[0], rows[-1]
    return (last['peak_mib'] - first['peak_mib']) * 2**20 / (last['photos'] - first['photos'])


def save_some_weights(file):
    "Write random weights, which the command treats as pretrained."
    if file.exists(): return
    import timm
    import torch
    from safetensors.torch import save_file
    torch.manual_seed(1)
    save_file(timm.create_model('test_resnet').state_dict(), file)


def main():
    counts = [int(o) for o in os.environ.get('BASEGUN_COUNTS', '3000 300000').split()]
    chosen = os.environ.get('BASEGUN_STEPS', 'check train evaluate export report').split()
    rows = []
    with TemporaryDirectory() as temporary:
        for n in counts:
            above = Path(os.environ.get('BASEGUN_FOLDER', temporary))/str(n)
            os.environ['XDG_CACHE_HOME'] = str(above/'home')
            if not (above/'data').exists(): data_set(above/'data', n)
            out = above/'out'
            out.mkdir(exist_ok=True)
            save_some_weights(out/'weights.safetensors')
            for name, arguments in steps(above/'data', out).items():
                if name not in chosen: continue
                seconds, mib = measured(arguments, out/f'{name}.log')
                rows.append(dict(photos=n, step=name, seconds=round(seconds, 1), peak_mib=round(mib, 1)))
                print(f'{n:8} {name:10} {seconds:8.1f} s {mib:8.1f} MiB', flush=True)
    growth = {name: bytes_a_photo([o for o in rows if o['step'] == name]) for name in chosen} if counts[1:] else {}
    for name, size in growth.items(): print(f'{name:10} {size:8.0f} bytes per photo')
    write_whole(HERE/'many-photos.json', json.dumps(dict(rows=rows, bytes_a_photo=growth), indent=2) + '\n')


if __name__ == '__main__': main()
