"""How long a small training takes from its command to its end, in whole processes, against stock fastai:
EfficientNet-B0 at 224 pixels, 258 drawn train photos and 9 val photos, five epochs of the head, nothing cached.

Stock fastai trains and exports. Ours also evaluates, calibrates, checks the files it wrote, and writes the report of
the run; the second arm leaves the report out. The limit is two passes of the photos through the body, and the imports.
Runs are interleaved; prints medians and ratios, and when each step of ours starts. Argument: repeats (default 3).
"""
import os
import statistics
import subprocess
import sys
import time
from pathlib import Path
from tempfile import TemporaryDirectory

STOCK = """
from fastai.vision.all import *
dls = ImageDataLoaders.from_folder('data', train='train', valid='val', bs=32, num_workers=2, item_tfms=Resize(224))
learn = vision_learner(dls, 'efficientnet_b0', pretrained=False, metrics=accuracy)
learn.freeze()
learn.fit(5)
learn.export('stock.pkl')
"""
WEIGHTS = """
import timm, safetensors.torch
safetensors.torch.save_file(timm.create_model('efficientnet_b0').state_dict(), 'b0.safetensors')
"""
OURS = ['train', 'data', '--arch', 'efficientnet_b0', '--weights', 'b0.safetensors', '--head-epochs', '5',
        '--fine-tune-epochs', '0', '--workers', '2']


def make_data(folder, command):
    subprocess.run([command, 'demo-data', 'data', '--photos-per-class', '43'], cwd=folder, check=True,
                   capture_output=True)
    for i, label in enumerate(sorted((folder/'data'/'val').iterdir())):
        for photo in sorted(label.iterdir())[2 if i < 3 else 1:]: photo.unlink()  # nine remain
    subprocess.run([sys.executable, '-W', 'ignore', '-c', WEIGHTS], cwd=folder, check=True)


def timed(command, folder):
    "Seconds of a process, and the time of each line on stderr."
    lines, started = [], time.perf_counter()
    environment = os.environ | dict(XDG_CACHE_HOME=str(folder/f'cache {time.time()}'))  # a new one: nothing is cached
    with subprocess.Popen(command, cwd=folder, env=environment, stderr=subprocess.PIPE, stdout=subprocess.DEVNULL,
                          text=True) as process:
        for line in process.stderr: lines.append((time.perf_counter() - started, line.rstrip()))
    if process.returncode: sys.exit('\n'.join(line for _, line in lines))
    return time.perf_counter() - started, lines


def main(repeats):
    command = str(Path(sys.executable).with_name('basegun-fastai'))
    with TemporaryDirectory() as folder:
        folder = Path(folder)
        make_data(folder, command)
        arms = {'stock fastai': [sys.executable, '-W', 'ignore', '-c', STOCK], 'ours': [command, *OURS],
                'ours, --no-report': [command, *OURS, '--no-report']}
        seconds = {o: [] for o in arms}
        for i in range(repeats):
            for name, arm in arms.items():
                took, lines = timed([*arm, '--name', f'{name} {i}'] if name != 'stock fastai' else arm, folder)
                seconds[name].append(took)
                if name == 'ours' and i == 0: steps = lines
    for at, line in steps: print(f'{at:6.1f} s  {line[:100]}')
    medians = {k: statistics.median(v) for k, v in seconds.items()}
    for k, v in medians.items():
        print(f"{k:18} {v:6.1f} s  stock / it {medians['stock fastai'] / v:5.2f}")


if __name__ == '__main__': main(int(sys.argv[1]) if len(sys.argv) > 1 else 3)
