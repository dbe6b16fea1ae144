"""Measure the bars that this machine can measure, all arms in turn in one run: `make bench`.

Prints a table of medians with the lowest and highest run, and writes it to benchmarks/results.json. Quote the ratios
only: absolute times belong to the machine.
"""
import json
import os
import platform
import statistics
import subprocess
import sys
import time
import warnings
from pathlib import Path

warnings.filterwarnings('ignore')

import torch  # noqa: E402
from fastai.callback.core import Callback  # noqa: E402
from fastai.data.core import DataLoaders  # noqa: E402
from fastai.data.load import DataLoader  # noqa: E402
from fastai.losses import CrossEntropyLossFlat  # noqa: E402
from fastai.torch_core import TensorCategory, TensorImage, set_seed  # noqa: E402
from fastai.vision.learner import vision_learner  # noqa: E402

from basegun_fastai.core import cores, write_whole  # noqa: E402
from basegun_fastai.model import architecture, learner  # noqa: E402

HERE = Path(__file__).parent
REPEATS, BATCH, STEPS = 7, 16, 3


def in_turn(arms, repeats=REPEATS):
    "Run every arm once as a warm-up, then all of them in turn; return the figures of each."
    for arm in arms.values(): arm()
    figures = {o: [] for o in arms}
    for _ in range(repeats):
        for name, arm in arms.items(): figures[name].append(arm())
    return figures


class StepTime(Callback):
    "Time training steps from the batch that is ready to the weights that have moved."
    order = 1000

    def before_fit(self): self.seconds = []
    def before_batch(self): self.started = time.perf_counter()
    def after_batch(self):
        if self.training: self.seconds.append(time.perf_counter() - self.started)


def ready_batches(size):
    "Loaders of photos that are ready on the device, so that nothing but the step is timed."
    set_seed(0)
    items = [(TensorImage(torch.randn(3, size, size)), TensorCategory(torch.tensor(i % 6))) for i in range(BATCH * STEPS)]
    dls = DataLoaders(DataLoader(items, bs=BATCH), DataLoader(items[:BATCH], bs=BATCH), device=torch.device('cpu'))
    dls.c = 6
    return dls


def fit_time(learn):
    "Make an arm that trains for an epoch and returns the median step in seconds."
    learn.add_cb(timer := StepTime())
    def arm():
        with learn.no_bar(), learn.no_logging(): learn.fit(1, 1e-3)
        return statistics.median(timer.seconds)
    return arm


def frozen_step():
    "Our step with a frozen body, fastai's own, and the body going forward alone, which no step can beat."
    made = architecture('efficientnet_b0')
    dls = ready_batches(made.size)
    ours = learner(dls, made, 'none')
    stock = vision_learner(dls, made.timm_name, n_out=6, pretrained=False, normalize=False, loss_func=CrossEntropyLossFlat(), path='.')
    ours.freeze()
    stock.freeze()
    batch, body = dls.train.one_batch()[0], ours.model[0]  # in the memory format that `learner` chose
    def forward():
        body.eval()
        started = time.perf_counter()
        with torch.no_grad(): body(batch)
        return time.perf_counter() - started
    return in_turn({'stock fastai': fit_time(stock), 'ours': fit_time(ours), 'forward only': forward})


def start_up():
    "Help of the command, and the import that it must not wait for, as whole processes."
    def process(*command):
        def arm():
            started = time.perf_counter()
            subprocess.run(command, check=True, capture_output=True)
            return time.perf_counter() - started
        return arm
    return in_turn({'import fastai.vision.all': process(sys.executable, '-W', 'ignore', '-c', 'import fastai.vision.all'),
                    'basegun-fastai --help': process(str(Path(sys.executable).with_name('basegun-fastai')), '--help'),
                    'python -c pass': process(sys.executable, '-c', 'pass')})


def row(what, figures, above, below, bar, limit):
    "One ratio of two arms, pair by pair."
    ratios = [a / b for a, b in zip(figures[above], figures[below], strict=True)]
    return dict(what=what, ratio=f'{above} / {below}', median=statistics.median(ratios), lowest=min(ratios), highest=max(ratios),
                bar=bar, limit=limit, seconds={k: statistics.median(v) for k, v in figures.items()})


def main():
    torch.set_num_threads(cores())
    frozen, started = frozen_step(), start_up()
    rows = [row('frozen-head step, B0, 224 px', frozen, 'stock fastai', 'ours', 5, 'the body going forward alone'),
            row('the same, share of its limit', frozen, 'forward only', 'ours', .9, '1: nothing but the body going forward'),
            row('start-up', started, 'import fastai.vision.all', 'basegun-fastai --help', 15, 'python -c pass')]
    print(f"{'what':30} {'ratio':50} {'median':>7} {'lowest':>7} {'highest':>7} {'bar':>5}")
    for o in rows: print(f"{o['what']:30} {o['ratio']:50} {o['median']:7.2f} {o['lowest']:7.2f} {o['highest']:7.2f} {o['bar']:5g}")
    machine = dict(processor=platform.machine(), cores=cores(), threads=torch.get_num_threads(), torch=torch.__version__,
                   python=platform.python_version(), gpu=torch.cuda.get_device_name() if torch.cuda.is_available() else None)
    write_whole(HERE/'results.json', json.dumps(dict(machine=machine, repeats=REPEATS, batch=BATCH, rows=rows), indent=2) + '\n')
    print(f"medians of {REPEATS} runs in turn, batches of {BATCH}, {machine['threads']} threads; written to {os.path.relpath(HERE/'results.json')}")


if __name__ == '__main__': main()
