"""Measure the rows that this machine can measure; the arms of a row run in turn: `make bench`.

Prints a table of medians with the lowest and highest run, and writes it to benchmarks/results.json. Quote only the
ratios: absolute times depend on the machine. Photos are drawn at 12 megapixels and saved at 1, 2 and 3 bits per pixel,
as phones do; they are read from the system's memory, not from the disk. BASEGUN_ROWS="frozen loading" measures some
of the rows; the others keep their noted values.
"""
import copy
import json
import os
import platform
import statistics
import subprocess
import sys
import time
import warnings
from concurrent.futures import ProcessPoolExecutor
from contextlib import ExitStack, redirect_stderr, redirect_stdout
from functools import partial
from io import BytesIO, StringIO
from itertools import cycle
from pathlib import Path
from tempfile import TemporaryDirectory

warnings.filterwarnings('ignore')

import numpy as np  # noqa: E402
import pandas as pd  # noqa: E402
import timm  # noqa: E402
import torch  # noqa: E402
from fastai.callback.core import Callback  # noqa: E402
from fastai.data.block import CategoryBlock, DataBlock  # noqa: E402
from fastai.data.core import DataLoaders  # noqa: E402
from fastai.data.load import DataLoader  # noqa: E402
from fastai.data.transforms import GrandparentSplitter, get_image_files, parent_label  # noqa: E402
from fastai.losses import CrossEntropyLossFlat  # noqa: E402
from fastai.torch_core import TensorCategory, TensorImage, set_seed  # noqa: E402
from fastai.vision.augment import PadMode, Resize, ResizeMethod  # noqa: E402
from fastai.vision.data import ImageBlock  # noqa: E402
from fastai.vision.learner import vision_learner  # noqa: E402
from PIL import Image  # noqa: E402

from basegun_fastai.data.cache import open_cache  # noqa: E402
from basegun_fastai.training.callbacks import EpochSeed, Memory, PlainTensors, Progress  # noqa: E402
from basegun_fastai.data.contents import known_contents  # noqa: E402
from basegun_fastai.base.files import write_whole# noqa: E402
from basegun_fastai.base.processes import cores# noqa: E402
from basegun_fastai.data.folders import list_photos  # noqa: E402
from basegun_fastai.data.demo import GUNS, draw_photo  # noqa: E402
from basegun_fastai.training.fit import Stage, stage_callbacks, stage_context  # noqa: E402
from basegun_fastai.training.frozen import FrozenBodyForward  # noqa: E402
from basegun_fastai.training.precision import stage_precision  # noqa: E402
from basegun_fastai.model.loaders import dataloaders  # noqa: E402
from basegun_fastai.model.workers import seed_all  # noqa: E402
from basegun_fastai.model.archs import architecture  # noqa: E402
from basegun_fastai.model.learner import learner  # noqa: E402
from basegun_fastai.data.photo import MIN_DRAFT_SCALE, pixels  # noqa: E402

HERE, DEVICE = Path(__file__).parent, 'cuda' if torch.cuda.is_available() else 'cpu'
REPEATS, BATCH, STEPS, TRAIN, VAL, MANY = 7, 16, 3, 24, 6, 64
ARCH = architecture('efficientnet_b0')


def waited():
    "Wait for the device; return the time."
    if DEVICE == 'cuda': torch.cuda.synchronize()
    return time.perf_counter()


def timed(work, *arguments):
    started = waited()
    work(*arguments)
    return waited() - started


def in_turn(arms, repeats=REPEATS):
    "Run every arm once as a warm-up, then all of them in turn; return the figures of each."
    for arm in arms.values(): arm()
    figures = {o: [] for o in arms}
    for _ in range(repeats):
        for name, arm in arms.items(): figures[name].append(arm())
    return figures


# Photos

def saved(task):
    "Draw a photo of 12 megapixels, and save it with at most the given number of bits per pixel."
    file, label, number, bits = task
    photo, low, high = draw_photo(label, np.random.default_rng([7, number]), (4032, 3024)), 5, 98
    while low < high:
        quality, content = (low + high + 1) // 2, BytesIO()
        photo.save(content, 'JPEG', quality=quality)
        low, high = (quality, high) if content.tell() * 8 <= bits * 4032 * 3024 else (low, quality - 1)
    photo.save(file, quality=low)


def phone_photos(folder):
    "Make a data set of 12-megapixel photos, a third each at 1, 2 and 3 bits per pixel."
    tasks = []
    for split, n in dict(train=TRAIN, val=VAL).items():
        for i, label in zip(range(n), cycle(GUNS)):
            (folder/split/label).mkdir(parents=True, exist_ok=True)
            tasks.append((folder/split/label/f'{i}.jpg', label, len(tasks), 1 + i % 3))
    with ProcessPoolExecutor(cores()) as pool: list(pool.map(saved, tasks))
    return folder


# Loading

def huffman(file):
    "Decode at an eighth of the size: what remains is the reading of all bytes of the file."
    with Image.open(file) as image:
        image.draft('RGB', (image.width // 8, image.height // 8))
        image.load()


def drained(dl):
    "Read all batches of an epoch; the work on the device is not part of loading."
    dl.after_batch = lambda batch: batch
    for _ in dl: pass


def loading(folder):
    "First and later epochs of our loader, and of fastai's with `ImageBlock` and `Resize`, with equally many processes."
    table, caches = known_contents(folder, list_photos(folder)), TemporaryDirectory()
    stock = DataBlock(blocks=(ImageBlock, CategoryBlock), get_items=get_image_files, get_y=parent_label,
                      splitter=GrandparentSplitter(valid_name='val'),
                      item_tfms=Resize(ARCH.before_crop, ResizeMethod.Pad, PadMode.Zeros)).dataloaders(folder, bs=8,
        num_workers=cores())
    files = [folder/o for o in table[table.split == 'train'].file]
    def ours(cache, listed):
        squares = open_cache(folder, [(ARCH.before_crop, table[table.split == 'train']),
                                      (ARCH.size, table[table.split == 'val'])], cache)
        return dataloaders(folder, ARCH, photos=listed, batch_size=8, photo_cache=squares, workers=cores()).train
    def first():
        with TemporaryDirectory() as empty: return timed(drained, ours(empty, table))
    listed = pd.concat([table] * MANY)  # the rows many times: an epoch that is long enough to time
    warm = ours(caches.name, listed)
    drained(warm)
    squares = np.stack([pixels(o, ARCH.before_crop) for o in files])
    def copied():
        for _ in range(MANY):
            for o in squares: o.copy()
    with ProcessPoolExecutor(cores()) as pool:
        return in_turn({'stock fastai': lambda: timed(drained, stock.train), 'ours, first epoch': first,
                       'ours, later epochs': lambda: timed(drained, warm) / MANY,
                       'memcpy of the squares': lambda: timed(copied) / MANY,
                       'entropy decoding only': lambda: timed(lambda: list(pool.map(huffman, files)))}, 5)


# Steps

class StepTime(Callback):
    "Time training steps from the prepared batch to the updated weights."
    order = 1000

    def before_fit(self): self.seconds = []
    def before_batch(self): self.started = waited()
    def after_batch(self):
        if self.training: self.seconds.append(waited() - self.started)


def ready_loaders(size=ARCH.size):
    "Loaders of photos that are on the device already, so that only the step is timed."
    set_seed(0)
    items = [(TensorImage(torch.randn(3, size, size)), TensorCategory(torch.tensor(i % 6)))
             for i in range(BATCH * STEPS)]
    dls = DataLoaders(DataLoader(items, bs=BATCH), DataLoader(items[:BATCH], bs=BATCH), device=torch.device(DEVICE))
    dls.c, dls.vocab = 6, list('abcdef')
    return dls


def stock_arm(learn):
    "fastai's own training, one epoch per call; returns the median step in seconds."
    learn.add_cb(timer := StepTime())
    def arm():
        with learn.no_bar(), learn.no_logging(): learn.fit(1, 1e-3)
        return statistics.median(timer.seconds)
    return arm


def our_arm(learn, stage, stack, *timers):
    "Our training, with all callbacks of `fit` except for those that write."
    (learn.freeze if stage.name == 'head' else learn.unfreeze)()
    learn.model.to(DEVICE)
    learn.recorder.train_metrics = True
    callbacks = stack.enter_context(stage_context(learn, stage, 0, Path('.')))
    def arm():
        started = time.perf_counter()
        with learn.no_bar(), learn.no_logging():
            learn.fit_one_cycle(1, 1e-3, cbs=[*stage_callbacks(learn, stage, 0, Memory()), Progress(1), *callbacks,
                                              *timers])
        return statistics.median(timers[0].seconds) if timers else time.perf_counter() - started
    return arm


def stages(views=0):
    "Both stages, in the number format that `train` chooses on this machine."
    return [Stage(o, 1, 0., 1e-3, stage_precision('auto', DEVICE, frozen=o == 'head'), views)
            for o in ('head', 'fine-tune')]


def frozen():
    "The step of a frozen body: stock fastai's, ours, and only the body's forward pass, which no step can beat."
    dls, (head, _) = ready_loaders(), stages()
    stock = vision_learner(dls, ARCH.timm_name, n_out=6, pretrained=False, normalize=False,
                           loss_func=CrossEntropyLossFlat(), path='.')
    stock.freeze()
    ours = learner(dls, ARCH, 'none')
    body = FrozenBodyForward(copy.deepcopy(ours.model[0]).to(DEVICE), head.precision)
    batch = dls.train.one_batch()[0].as_subclass(torch.Tensor)
    with ExitStack() as stack:
        return in_turn({'stock fastai': stock_arm(stock), 'ours': our_arm(ours, head, stack, StepTime()),
                       'forward only': lambda: statistics.median(timed(body, batch) for _ in range(STEPS))})


def step():
    """The step of fine-tuning: stock fastai's, ours, and a plain PyTorch loop with the same network, format and
    optimiser.
    """
    dls, (_, fine) = ready_loaders(), stages()
    stock = vision_learner(dls, ARCH.timm_name, n_out=6, pretrained=False, normalize=False,
                           loss_func=CrossEntropyLossFlat(), path='.')
    stock.unfreeze()
    model = timm.create_model(ARCH.timm_name, num_classes=6).to(DEVICE, memory_format=torch.channels_last).train()
    optimiser = torch.optim.AdamW(model.parameters(), 1e-3, fused=True)
    batches, number = list(dls.train), getattr(torch, fine.precision)
    def bare():
        seconds = []
        for xb, yb in batches:
            x, y = xb.as_subclass(torch.Tensor), yb.as_subclass(torch.Tensor)
            started = waited()
            with torch.autocast(DEVICE, number, enabled=number != torch.float32):
                loss = torch.nn.functional.cross_entropy(model(x), y)
            loss.backward()
            optimiser.step()
            optimiser.zero_grad()
            seconds.append(waited() - started)
        return statistics.median(seconds)
    with ExitStack() as stack:
        return in_turn({'stock fastai': stock_arm(stock),
                        'ours': our_arm(learner(dls, ARCH, 'none'), fine, stack, StepTime()), 'bare loop': bare})


class Ready:
    "A loader of batches that are on the device already, uint8 before the augmentation or floats after it."

    def __init__(self, dl, augmented):
        dl.before_iter()
        self.dl, self.dataset, self.device, self.rng, self.n, self.bs = dl, dl.dataset, dl.device, dl.rng, dl.n, dl.bs
        kept, whole = dl.after_batch, dl.after_batch
        dl.after_batch = lambda batch: batch
        self.batches, dl.after_batch = list(dl), whole
        if augmented: self.batches = [kept(o) for o in self.batches]
        self.augmented = augmented

    def __len__(self): return len(self.batches)
    def __iter__(self):
        self.dl.before_iter()
        for o in self.batches: yield o if self.augmented else self.dl.after_batch(tuple(t.clone() for t in o))


def feed(folder):
    "An epoch of fine-tuning from the cache, from prepared uint8 squares, and from floats that need no augmentation."
    table, caches = known_contents(folder, list_photos(folder)), TemporaryDirectory()
    squares = open_cache(folder, [(ARCH.before_crop, table[table.split == 'train']),
                                  (ARCH.size, table[table.split == 'val'])], caches.name)
    def arm(stack, ready=None):
        dls = dataloaders(folder, ARCH, photos=table, batch_size=8, workers=cores(), device=DEVICE, photo_cache=squares)
        seed_all(0, 0, dls)
        learn = learner(dls, ARCH, 'none')
        if ready is not None:
            learn.dls = DataLoaders(Ready(dls.train, ready), Ready(dls.valid, ready), device=dls.device)
            learn.dls.c, learn.dls.vocab = dls.c, dls.vocab
        return our_arm(learn, stages()[1], stack)
    with ExitStack() as stack:
        return in_turn({'real files': arm(stack), 'ready squares': arm(stack, False),
                        'ready floats': arm(stack, True)}, 15)


def head(folder):
    """Five epochs of the head on the photos, with stock fastai and with the features of two views, from photos of
    12 megapixels each.
    """
    table = known_contents(folder, list_photos(folder))
    stock_dls = DataBlock(blocks=(ImageBlock, CategoryBlock), get_items=get_image_files, get_y=parent_label,
                          splitter=GrandparentSplitter(valid_name='val'),
                          item_tfms=Resize(ARCH.size, ResizeMethod.Pad, PadMode.Zeros)).dataloaders(folder, bs=8,
        num_workers=cores())
    stock = vision_learner(stock_dls, ARCH.timm_name, pretrained=False, normalize=False,
                           loss_func=CrossEntropyLossFlat(), path='.')
    def stock_arm():
        stock.freeze()
        with stock.no_bar(), stock.no_logging(): return timed(stock.fit, 5, 1e-3)
    def our_stage(views, cached):
        def arm():
            with TemporaryDirectory() as caches, ExitStack() as stack:
                squares = open_cache(folder, [(ARCH.before_crop, table[table.split == 'train']),
                                              (ARCH.size, table[table.split == 'val'])], caches) \
                    if cached else None
                started = waited()
                dls = dataloaders(folder, ARCH, photos=table, batch_size=8, device=DEVICE, workers=cores(),
                                  photo_cache=squares)
                learn, stage = learner(dls, ARCH, 'none'), stages(views)[0]
                learn.freeze()
                learn.model.to(DEVICE)
                stack.enter_context(stage_context(learn, stage, 0, Path(caches)))
                with learn.no_bar(), learn.no_logging():
                    learn.fit_one_cycle(5, 1e-3, cbs=[EpochSeed(0, 0), PlainTensors()])
                return waited() - started
        return arm
    return in_turn({'stock fastai': stock_arm, '1 view': our_stage(1, True), '2 views': our_stage(2, True),
                    'live': our_stage(0, True)}, 3)


# Serving

def exported(arch, folder):
    "Train for one epoch, and export as with a real model; its accuracy does not matter."
    from basegun_fastai.data.demo import demo_data
    from basegun_fastai.export import export
    from basegun_fastai.train import train
    data = folder/'drawn'
    with redirect_stdout(StringIO()):
        demo_data(data, photos_per_class=4)
        train(data, arch=arch, weights='none', fine_tune_epochs=1, batch_size=8, out=folder/'runs', name=arch,
              device='cpu', cache='off')
        export(folder/'runs'/arch, folder/arch)
    return folder/'runs'/arch, folder/arch


def bare_session(run, threads):
    "A typical session with the same network: normalised floats in, logits out."
    import onnxruntime

    from basegun_fastai.base.record import Run
    from basegun_fastai.model.weights import trained_model
    net, content = trained_model(Run(run)), BytesIO()
    size = Run(run).config.architecture['size']
    ready = torch.randn(1, 3, size, size)
    with redirect_stdout(StringIO()):
        exported_model = torch.onnx.export(net, (ready,), dynamo=True, input_names=['x'], verbose=False).model_proto
    content.write(exported_model.SerializeToString())
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = threads
    session = onnxruntime.InferenceSession(content.getvalue(), options, providers=['CPUExecutionProvider'])
    return lambda: session.run(None, {'x': ready.numpy()})


def scaled_decode(content, size):
    "The least work of a decoder: the scale of JPEG that is next above the input's size."
    with Image.open(BytesIO(content)) as image:
        scale = size / max(image.size)
        image.draft('RGB', (round(image.width * scale), round(image.height * scale)))
        image.load()


def resize(content, size):
    "Resize a decoded photo to the network's input as `photo` does; return the seconds."
    with Image.open(BytesIO(content)) as image:
        scale = size / max(image.size)
        fitted, (width, height) = (round(image.width * scale), round(image.height * scale)), image.size
        image.draft('RGB', (round(MIN_DRAFT_SCALE * width * scale), round(MIN_DRAFT_SCALE * height * scale)))
        image.load()
        return timed(partial(image.resize, fitted, Image.Resampling.BICUBIC))


def serving(arch, number):
    """From the bytes of a JPEG to its typology, one photo at a time: stock fastai, the run's own learner.pkl,
    ours, and only its two parts.
    """
    from fastai.learner import load_learner

    from basegun_fastai.predict import load
    with TemporaryDirectory() as folder:
        run, exported_folder = exported(arch, Path(folder))
        model, pickled, network = load(exported_folder), load_learner(run/'learner.pkl'), architecture(arch)
        session, arms, shapes = bare_session(run, cores()), {}, {'12 MP': (4032, 3024), '0.5 MP': (816, 612)}
        stock_dls = DataBlock(blocks=(ImageBlock, CategoryBlock), get_items=get_image_files, get_y=parent_label,
                              splitter=GrandparentSplitter(valid_name='val'),
                              item_tfms=Resize(network.size, ResizeMethod.Pad,
                                               PadMode.Zeros)).dataloaders(Path(folder)/'drawn', bs=4, num_workers=0)
        stock = vision_learner(stock_dls, network.timm_name, pretrained=False, normalize=False,
                               loss_func=CrossEntropyLossFlat(), path='.')
        def often(work):
            def arm():
                work()  # warms the processor's cache, and lets the threads of the previous arm sleep
                return [timed(work) for _ in range(20)]
            return arm
        def lowest(content):
            scaled_decode(content, network.size)
            session()
        for name, shape in shapes.items():
            content = BytesIO()
            draw_photo('revolver', np.random.default_rng(7), shape).save(content, 'JPEG', quality=92)
            file, content = Path(folder)/f'{name}.jpg', content.getvalue()
            file.write_bytes(content)
            def fastai(learn, file=file):
                with learn.no_bar(): learn.predict(file)
            arms[f'resize, {name}'] = partial(lambda content: [resize(content, network.size) for _ in range(10)],
                                              content)
            arms |= {f'stock learn.predict, {name}': often(partial(fastai, stock)),
                     f'learner.pkl, {name}': often(partial(fastai, pickled)),
                     f'predict, {name}': often(partial(model, content)),
                     f'session + decode, {name}': often(partial(lowest, content))}
        actual = in_turn(arms, number)
    figures = {}
    for o in (50, 95):
        figures |= {f'{k}, p{o}': [np.percentile(v, o) for v in runs] for k, runs in actual.items()}
    return figures


def served_rows(title):
    "Rows of one network: the median and the 95th percentile, for both sizes of photos."
    rows = []
    for name in ('12 MP', '0.5 MP'):
        for o in ('p50', 'p95'):
            rows += [
                (f'{title}, {name}, {o}', f'stock learn.predict, {name}, {o}', f'predict, {name}, {o}', 10,
                 'the session and the scaled decoding',
                 f'session + decode, {name}, {o}'),
                ('the same, the run\'s learner.pkl', f'learner.pkl, {name}, {o}', f'predict, {name}, {o}', None,
                 'the same'), ('the same, share of its limit', f'session + decode, {name}, {o}',
                               f'predict, {name}, {o}', 1 / 1.2, '1: only session and decoding',
                 f'resize, {name}, {o}')]
    return rows


def start_up():
    "The help of the command, and the import that it must not wait for, as whole processes."
    def process(*command): return partial(timed, partial(subprocess.run, command, check=True, capture_output=True))
    return in_turn({'import fastai.vision.all': process(sys.executable, '-W', 'ignore', '-c',
                                                        'import fastai.vision.all'),
                   'basegun-fastai --help': process(str(Path(sys.executable).with_name('basegun-fastai')), '--help'),
                   'python -c pass': process(sys.executable, '-c', 'pass')})


# The table

ROWS = {  # what is measured: (function, [(what, above, below, bar, limit)])
    'loading': (loading, [
        ('12-MP JPEGs, first epoch', 'stock fastai', 'ours, first epoch', 2, 'entropy decoding of all bytes'),
        ('the same, share of its limit', 'entropy decoding only', 'ours, first epoch', None,
         '1: only entropy decoding'),
        ('12-MP JPEGs, later epochs', 'stock fastai', 'ours, later epochs', 10, 'memcpy of the prepared squares'),
        ('the same, share of its limit', 'memcpy of the squares', 'ours, later epochs', None,
         '1: only the copy, in one process')]),
    'frozen': (frozen, [
        ('frozen-head step, B0, 224 px', 'stock fastai', 'ours', 5, 'only the body\'s forward pass'),
        ('the same, share of its limit', 'forward only', 'ours', .9, '1: only the body\'s forward pass')]),
    'head': (head, [
        ('5 epochs of the head, B0, 12 MP', 'stock fastai', '1 view', 5, 'one pass over the photos'),
        ('the same with 2 views', 'stock fastai', '2 views', 2.5, 'two passes over the photos, one decoding'),
        ('the same, augmented live', 'stock fastai', 'live', None, 'five passes over the photos, one decoding')]),
    'feed': (feed, [
        ('fine-tuning epoch, B0, 224 px', 'ready squares', 'real files', .95, '1: the loader costs nothing'),
        ('the same, augmentation counted', 'ready floats', 'real files', None,
         '1: loader and augmentation cost nothing')]),
    'step': (step, [
        ('fine-tuning step, B0, 224 px', 'bare loop', 'ours', .95, '1: only PyTorch'),
        ('fine-tuning step, stock fastai', 'stock fastai', 'ours', None, 'the bare loop')]),
    'serve-b0': (partial(serving, 'efficientnet_b0', REPEATS), served_rows('one photo, B0, 224 px')),
    'serve-b3': (partial(serving, 'efficientnet_b3', REPEATS), served_rows('one photo, B3, 300 px')),
    'start-up': (start_up, [
        ('start-up', 'import fastai.vision.all', 'basegun-fastai --help', 15, 'python -c pass')]),
}


def row(what, figures, above, below, bar, limit, part=None):
    "One ratio of two arms, pair by pair; if it misses its bar, the arm `part` gives the reason."
    ratios, seconds = [a / b for a, b in zip(figures[above], figures[below], strict=True)], {k: statistics.median(v)
        for k, v in figures.items()}
    actual = dict(what=what, ratio=f'{above} / {below}', median=statistics.median(ratios), lowest=min(ratios),
                 highest=max(ratios), bar=bar, limit=limit, seconds=seconds)
    if bar is None or part is None or actual['median'] >= bar: return actual
    if part.startswith('resize'):
        return actual | dict(unmet="resizing to the network's input, which training does too, takes "
                                   f"{seconds[part] / seconds[below]:.0%} of it")
    return (actual | dict(unmet=f'nothing can be more than {seconds[above] / seconds[part]:.2f} times as fast')
            if seconds[above] / seconds[part] < bar else actual)


def line(o):
    bar = '' if o['bar'] is None else f"{o['bar']:.3g}"
    limit = o.get('unmet') or o['limit']
    return f"{o['what']:34} {o['ratio']:62} {o['median']:8.2f} {o['lowest']:8.2f} {o['highest']:8.2f} {bar:>5}  {limit}"


def main():
    torch.set_num_threads(cores())
    chosen = os.environ.get('BASEGUN_ROWS', ' '.join(ROWS)).split()
    file = HERE/'results.json'
    kept = {o['group']: o for o in json.loads(file.read_text())['groups']} if file.exists() else {}
    with TemporaryDirectory() as folder:
        photos = phone_photos(Path(folder)) if {'loading', 'feed', 'head'} & {*chosen} else None
        sizes = [o.stat().st_size * 8 / (4032 * 3024) for o in photos.rglob('*.jpg')] if photos else []
        if sizes:
            print(f'{len(sizes)} photos of 4032 × 3024, {min(sizes):.2f} to {max(sizes):.2f} bits per pixel',
                  flush=True)
        print(f"{'what':34} {'ratio':62} {'median':>8} {'lowest':>8} {'highest':>8} {'bar':>5}  limit")
        for name in chosen:
            work, wanted = ROWS[name]
            with redirect_stderr(StringIO()): figures = work(photos) if name in ('loading', 'feed', 'head') else work()
            kept[name] = dict(group=name, rows=[row(o[0], figures, *o[1:]) for o in wanted])
            for o in kept[name]['rows']: print(line(o), flush=True)
    machine = dict(processor=platform.machine(), cores=cores(), threads=torch.get_num_threads(),
                   torch=torch.__version__, python=platform.python_version(), gpu=torch.cuda.get_device_name()
                   if torch.cuda.is_available() else None,
                   precision={o.name: o.precision for o in stages()})
    write_whole(file, json.dumps(dict(machine=machine, repeats=REPEATS, batch=BATCH,
                                      groups=[kept[o] for o in ROWS if o in kept]), indent=2) + '\n')
    print(f"medians of runs in turn, {machine['threads']} threads; written to {os.path.relpath(file)}")


if __name__ == '__main__': main()
