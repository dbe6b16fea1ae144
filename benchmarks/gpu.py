"""Measure what needs GPUs, in under 8 minutes on one H100: prints a table and writes it to benchmarks/gpu.json.

Training from files end to end, photos per second, against stock fastai and a bare PyTorch loop on prepared tensors; the
batch probe against a search by hand; too little memory; an interrupted training; how often a step waits for the GPU;
predictions of the GPU against those of the CPU; the export of a run that was made there. Photos are drawn at 1.2
megapixels. BASEGUN_TINY=1 tries the script out on a CPU, with a tiny network. BASEGUN_ROWS="training probe" runs some
of the rows.
"""
import contextlib
import io
import json
import os
import subprocess
import sys
import time
import warnings
from concurrent.futures import ProcessPoolExecutor
from contextlib import ExitStack
from dataclasses import replace
from itertools import cycle
from pathlib import Path
from tempfile import TemporaryDirectory

warnings.filterwarnings('ignore')

import numpy as np  # noqa: E402
import timm  # noqa: E402
import torch  # noqa: E402
from fastai.callback.core import Callback  # noqa: E402
from fastai.callback.fp16 import MixedPrecision  # noqa: E402
from fastai.data.block import CategoryBlock, DataBlock  # noqa: E402
from fastai.data.transforms import GrandparentSplitter, get_image_files, parent_label  # noqa: E402
from fastai.vision.augment import Resize, ResizeMethod, aug_transforms  # noqa: E402
from fastai.vision.data import ImageBlock  # noqa: E402
from fastai.vision.learner import vision_learner  # noqa: E402

from basegun_fastai.base.files import write_whole# noqa: E402
from basegun_fastai.base.processes import cores# noqa: E402
from basegun_fastai.data.cache import open_cache  # noqa: E402
from basegun_fastai.data.contents import known_contents  # noqa: E402
from basegun_fastai.data.demo import GUNS, draw_photo  # noqa: E402
from basegun_fastai.data.folders import list_photos  # noqa: E402
from basegun_fastai.export import export  # noqa: E402
from basegun_fastai.model.archs import architecture  # noqa: E402
from basegun_fastai.model.learner import learner  # noqa: E402
from basegun_fastai.model.loaders import dataloaders  # noqa: E402
from basegun_fastai.model.weights import trained_model  # noqa: E402
from basegun_fastai.base.record import Run# noqa: E402
from basegun_fastai.train import train  # noqa: E402
from basegun_fastai.training.callbacks import Memory  # noqa: E402
from basegun_fastai.training.checkpoint import Checkpoint  # noqa: E402
from basegun_fastai.training.fit import Stage, free_memory, largest_batch_size, out_of_memory  # noqa: E402
from basegun_fastai.training.fit import stage_callbacks, stage_context, trial_step  # noqa: E402
from basegun_fastai.trust.judge import Judge  # noqa: E402

HERE, TINY = Path(__file__).parent, bool(os.environ.get('BASEGUN_TINY'))
DEVICE = 'cpu' if TINY else 'cuda'
# network, size, photos in a batch, photos in an epoch
NETWORKS = [('test_efficientnet', 32, 16, 96)] if TINY else [
    ('efficientnet_b0', 224, 256, 4096), ('efficientnet_b3', 300, 128, 2048), ('efficientnet_b5', 456, 32, 768)]
SMALL, SMALL_SIZE = ('test_efficientnet', 32) if TINY else ('efficientnet_b0', 224)
STARTED, LIMIT = time.monotonic(), 7 * 60  # in seconds; after half of it nothing is compiled


def now():
    "The time, after the device has finished its work."
    if DEVICE == 'cuda': torch.cuda.synchronize()
    return time.perf_counter()


# Photos

def saved(task):
    file, label, number = task
    draw_photo(label, np.random.default_rng([5, number]), (160, 120) if TINY else (1280, 960)).save(file, quality=90)


def data_set(folder, train):
    "Draw photos for train, and an eighth as many for val."
    tasks = []
    for split, n in dict(train=train, val=max(12, train // 8)).items():
        for i, label in zip(range(n), cycle(GUNS)):
            (folder/split/label).mkdir(parents=True, exist_ok=True)
            tasks.append((folder/split/label/f'{i}.jpg', label, len(tasks)))
    with ProcessPoolExecutor(cores()) as pool: list(pool.map(saved, tasks, chunksize=16))
    return folder


# Training from files

def epochs(learn, callbacks, n=2):
    "Train `n` epochs; returns the seconds of training in the last one."
    seconds = []
    class Timer(Callback):
        order = 1000
        def before_train(self): self.started = now()
        def after_train(self): seconds.append(now() - self.started)
    with learn.no_bar(), learn.no_logging(): learn.fit_one_cycle(n, 1e-4, cbs=[*callbacks, Timer()])
    return seconds[-1]


def ours(data, photos, cache, arch, batch_size, precision, compiled=False):
    "Photos per second of our fine-tuning, in its second epoch, or in the third if it compiles."
    dls = dataloaders(data, arch, photos, batch_size, None, DEVICE, cache)
    learn, stage = learner(dls, arch, 'none'), Stage('fine-tune', 2, 1e-4, 1e-4, precision)
    learn.unfreeze()
    learn.model.to(DEVICE)
    learn.recorder.train_metrics = True
    if compiled: learn.model.compile()
    with ExitStack() as stack:
        callbacks = stack.enter_context(stage_context(learn, stage, 0, Path('.')))
        seconds = epochs(learn, [*stage_callbacks(learn, stage, 0, Memory()), *callbacks], 3 if compiled else 2)
    for dl in dls.loaders: dl.close()
    return len(dls.train) * batch_size / seconds


def stock(data, arch, batch_size):
    "The same for stock fastai as its documentation shows it, in half precision, on a quarter of the photos."
    block = DataBlock(blocks=(ImageBlock, CategoryBlock), get_y=parent_label,
                      get_items=lambda folder: sorted(get_image_files(folder/'train'))[::4]
                      + get_image_files(folder/'val'),
                      splitter=GrandparentSplitter(train_name='train', valid_name='val'),
                      item_tfms=Resize(arch.before_crop, method=ResizeMethod.Pad, pad_mode='zeros'),
                      batch_tfms=aug_transforms(do_flip=False, max_rotate=5., max_zoom=1., size=arch.size))
    dls = block.dataloaders(data, bs=batch_size, num_workers=min(16, cores()), device=torch.device(DEVICE))
    learn = vision_learner(dls, arch.timm_name, pretrained=False, path='.', normalize=False)
    learn.unfreeze()
    return len(dls.train) * batch_size / epochs(learn, [] if TINY else [MixedPrecision()], 1)


def bare(arch, batch_size, precision, steps=12):
    "Photos per second of a plain PyTorch loop, on tensors that are on the device already: nothing can be faster."
    model = timm.create_model(arch.timm_name, num_classes=6).to(DEVICE, memory_format=torch.channels_last).train()
    optimiser = torch.optim.AdamW(model.parameters(), 1e-4, fused=True)
    number, scaler = getattr(torch, precision), torch.amp.GradScaler(DEVICE, enabled=precision == 'float16')
    x = torch.randn(batch_size, 3, arch.size, arch.size, device=DEVICE).to(memory_format=torch.channels_last)
    y = torch.arange(batch_size, device=DEVICE) % 6
    for i in range(steps + 3):
        if i == 3: started = now()
        with torch.autocast(DEVICE, number, enabled=number != torch.float32):
            loss = torch.nn.functional.cross_entropy(model(x), y)
        scaler.scale(loss).backward()
        scaler.step(optimiser)
        scaler.update()
        optimiser.zero_grad()
    return steps * batch_size / (now() - started)


def training(folder):
    "Training from files end to end, and its share of the bare loop."
    rows, most = [], max(o[3] for o in NETWORKS)
    data = data_set(folder/'data', most)
    photos = known_contents(data, list_photos(data))
    train, val = photos[photos.split == 'train'], photos[photos.split == 'val']
    for name, size, batch_size, n in NETWORKS:
        arch = replace(architecture(name, size if TINY else None))
        some = photos[photos.index.isin(train.index[:n]) | photos.index.isin(val.index)]
        cache = open_cache(data, [(arch.before_crop, some[some.split == 'train']), (arch.size, val)], folder/'cache')
        arms = [('float32', False)] if TINY else [('bfloat16', False), ('float16', False), ('bfloat16', True)]
        for precision, compiled in arms:
            if compiled and time.monotonic() - STARTED > LIMIT / 2: continue
            free_memory()
            rate = ours(data, some, cache, arch, batch_size, precision, compiled)
            ceiling = bare(arch, batch_size, precision)
            rows.append(dict(what=f'{name}, {precision}{", compiled" * compiled}', photos_a_second=rate,
                             bare_loop=ceiling, share=rate / ceiling))
        free_memory()
        rows.append(dict(what=f'{name}, stock fastai, float16', photos_a_second=stock(data, arch, batch_size)))
    return rows


# The batch size

def by_hand(learn, stage, side, most):
    "The largest batch, a multiple of 16, that fits in a step, by bisection."
    low, high = 0, most
    while high - low > 16:
        middle = (low + high) // 32 * 16
        free_memory()
        try: trial_step(learn, stage, side, middle)
        except RuntimeError as err:
            if not out_of_memory(err): raise
            high = middle
        else: low = middle
    return low


def probe(folder):
    "The batch that the probe chooses, and the largest that fits by hand: the choice is the power of two below it."
    if TINY: return []
    data, rows = data_set(folder/'probed', 1200), []
    for name in ('efficientnet_b3', 'efficientnet_b5'):
        arch, stage = architecture(name), Stage('fine-tune', 1, 1e-4, 1e-4, 'bfloat16')
        learn = learner(dataloaders(data, arch, batch_size=16, workers=0, device=DEVICE), arch, 'none')
        chosen = largest_batch_size(learn, stage, arch.before_crop)
        rows.append(dict(what=f'{name}: batch chosen, largest by hand', chosen=chosen,
                         by_hand=by_hand(learn, stage, arch.before_crop, 1024)))
    return rows


# A run

OPTIONS = dict(arch=SMALL, size=SMALL_SIZE if TINY else None, head_epochs=0, fine_tune_epochs=3, weights='none',
               device=DEVICE, batch_size=32, cache='off')


def quietly(*arguments, **options):
    with contextlib.redirect_stdout(io.StringIO()), contextlib.redirect_stderr(io.StringIO()) as text:
        train(*arguments, **options)
    return text.getvalue()


def memory(folder):
    "Too little memory for a batch: the batch is halved until it fits, and the training completes."
    if TINY: return []
    data = data_set(folder/'halved', 1024)
    torch.cuda.set_per_process_memory_fraction(8 * 2**30 / torch.cuda.get_device_properties(0).total_memory)
    try: quietly(data, **OPTIONS | dict(batch_size=1024, fine_tune_epochs=1), out=folder/'runs', name='halved')
    finally: torch.cuda.set_per_process_memory_fraction(1.)
    resolved = Run(folder/'runs'/'halved').config.resolved
    return [dict(what='8 GiB, batches of 1024: tried, continued with', tried=resolved.halved_from,
                 went_on_with=resolved.batch_size)]


def weights_apart(a, b):
    first, second = (trained_model(o).state_dict() for o in (a, b))
    return max((first[k].float() - second[k].float()).abs().max().item() for k in first)


def resume(folder):
    "A training that was interrupted after its second epoch, against two uninterrupted ones."
    data, runs = data_set(folder/'resumed', 192), folder/'runs'
    for name in ('first', 'second'): quietly(data, **OPTIONS, out=runs, name=name)
    saved_state = Checkpoint.after_epoch
    def interrupted(self):
        saved_state(self)
        if len(self.memory.rows) == 2: raise KeyboardInterrupt
    Checkpoint.after_epoch = interrupted
    with contextlib.suppress(KeyboardInterrupt): quietly(data, **OPTIONS, out=runs, name='resumed', resume=True)
    Checkpoint.after_epoch = saved_state
    quietly(data, **OPTIONS, out=runs, name='resumed', resume=True)
    first = Run(runs/'first')
    return [dict(what='largest difference of a weight: resumed, trained again',
                 resumed=weights_apart(first, Run(runs/'resumed')), again=weights_apart(first, Run(runs/'second')))]


def waits(folder):
    "How often our step waits for the GPU, as PyTorch counts it."
    if TINY: return []
    data, arch = data_set(folder/'waits', 512), architecture(SMALL)
    dls = dataloaders(data, arch, batch_size=32, workers=4, device=DEVICE)
    learn, places = learner(dls, arch, 'none'), []
    learn.unfreeze()
    learn.model.to(DEVICE)
    learn.recorder.train_metrics = True
    class Watched(Callback):
        order = 1000
        def after_batch(self): torch.cuda.set_sync_debug_mode('warn' if 2 < self.iter < 12 and self.training else 0)
        def after_train(self): torch.cuda.set_sync_debug_mode(0)
    stage = Stage('fine-tune', 1, 1e-4, 1e-4, 'bfloat16')
    callbacks = [*stage_callbacks(learn, stage, 0, Memory()), Watched()]
    with warnings.catch_warnings(record=True) as heard, ExitStack() as stack:
        warnings.simplefilter('always')
        more = stack.enter_context(stage_context(learn, stage, 0, Path('.')))
        with learn.no_bar(), learn.no_logging(): learn.fit_one_cycle(1, 1e-4, cbs=[*callbacks, *more])
        places = [f'{Path(o.filename).name}:{o.lineno}' for o in heard if 'synchronizing' in str(o.message)]
    for dl in dls.loaders: dl.close()
    return [dict(what='waits in 9 steps', number=len(places), places=sorted(set(places)))]


def answers(folder):
    "Predictions of a run on both devices, and whether it can be exported."
    data = data_set(folder/'judged', 192)
    quietly(data, **OPTIONS | dict(fine_tune_epochs=2), out=folder/'runs', name='judged')
    run, photos = Run(folder/'runs'/'judged'), list_photos(data)
    val, probabilities = photos[photos.split == 'val'], {}
    for device in ('cpu', DEVICE):
        probabilities[device] = Judge.of_run(run, data, val, device=device).predictions().probabilities
    with contextlib.redirect_stdout(io.StringIO()), contextlib.redirect_stderr(io.StringIO()) as text: export(run.path)
    return [dict(what='largest difference of a probability, GPU and CPU',
                 difference=float(np.abs(probabilities['cpu'] - probabilities[DEVICE]).max())),
            dict(what='export of a run made there', text=text.getvalue().strip().splitlines()[-1])]


def main():
    if not TINY and not torch.cuda.is_available(): raise SystemExit('no GPU here; BASEGUN_TINY=1 tries the script out')
    parts = (waits, resume, memory, answers, probe, training)
    chosen = os.environ.get('BASEGUN_ROWS', ' '.join(o.__name__ for o in parts)).split()
    name = 'CPU' if TINY else torch.cuda.get_device_name()
    driver = '' if TINY else subprocess.run(['nvidia-smi', '--query-gpu=driver_version', '--format=csv,noheader'],
                                            capture_output=True, text=True).stdout.strip()
    result = dict(device=name, driver=driver, torch=torch.__version__, cores=cores(), python=sys.version.split()[0])
    print(result, flush=True)
    with TemporaryDirectory() as folder:
        os.environ['XDG_CACHE_HOME'] = folder
        for part in parts:
            if part.__name__ not in chosen: continue
            started = time.monotonic()
            try: result[part.__name__] = part(Path(folder))
            except Exception as err:  # the later rows are still worth having; this one is reported
                result[part.__name__] = [dict(what=f'failed: {type(err).__name__}: {err}')]
            for o in result[part.__name__]:
                print('  '.join(f'{k} {v:.4g}' if isinstance(v, float) else f'{k} {v}' if k != 'what' else v
                                for k, v in o.items()), flush=True)
            print(f'({part.__name__}: {time.monotonic() - started:.0f} s)', flush=True)
            if not TINY: write_whole(HERE/'gpu.json', json.dumps(result, indent=2) + '\n')
    if any(o['what'].startswith('failed') for rows in result.values() if isinstance(rows, list) for o in rows):
        raise SystemExit(1)


if __name__ == '__main__': main()
