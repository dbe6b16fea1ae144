"""How many near-duplicates `check` finds, by kind of edit, and how many of its pairs are wrong: `make bench` or by hand.

Draws unrelated photos, plants edited copies of some of them on the other side, and searches as `check` does. Guns drawn alike
on plain grounds are the hardest photos there are: the same six drawings, over and over. With BASEGUN_PHOTOS=<folder> real
photos are used instead. Prints a table and writes it to benchmarks/near-duplicates.json.
"""
import json
import os
import sys
import time
from concurrent.futures import ProcessPoolExecutor
from pathlib import Path
from tempfile import TemporaryDirectory

import numpy as np
import pandas as pd
from PIL import Image, ImageEnhance

from basegun_fastai.alike import near
from basegun_fastai.contents import examined
from basegun_fastai.core import cores, write_whole
from basegun_fastai.demo import GUNS, drawn_photo
from basegun_fastai.photo import read_photo
from basegun_fastai.problems import alike_pairs

HERE = Path(__file__).parent
TRAIN, PLANTED, UNRELATED = 2400, 240, 600


def cropped(photo, share, random):
    "Cut `share` of the width and of the height away, at a random place."
    width, height = (round(o * (1 - share)) for o in photo.size)
    x, y = random.integers(0, photo.width - width + 1), random.integers(0, photo.height - height + 1)
    return photo.crop((x, y, x + width, y + height))


def inside(photo, share):
    "Cut `share` away on every side."
    x, y = (round(o * share) for o in photo.size)
    return photo.crop((x, y, photo.width - x, photo.height - y))


def resized(photo, scale): return photo.resize([max(1, round(o * scale)) for o in photo.size], Image.Resampling.BICUBIC)


def lit(photo, factor): return ImageEnhance.Brightness(photo).enhance(factor)


EDITS = {  # what is done: (how, file ending, how it is saved, bar of its recall)
    're-encode q30': (lambda p, _: p, 'jpg', dict(quality=30), .99),
    're-encode q90': (lambda p, _: p, 'jpg', dict(quality=90), .99),
    're-encode webp': (lambda p, _: p, 'webp', dict(quality=70), .99),
    'resize 50 %': (lambda p, _: resized(p, .5), 'jpg', dict(quality=85), .99),
    'resize 25 %': (lambda p, _: resized(p, .25), 'jpg', dict(quality=85), .99),
    'resize 200 %': (lambda p, _: resized(p, 2), 'jpg', dict(quality=85), .99),
    'crop 5 %': (lambda p, r: cropped(p, .05, r), 'jpg', dict(quality=85), .9),
    'crop 5 % a side': (lambda p, _: inside(p, .05), 'jpg', dict(quality=85), .9),
    'mirror': (lambda p, _: p.transpose(Image.Transpose.FLIP_LEFT_RIGHT), 'jpg', dict(quality=85), .9),
    'brightness +20 %': (lambda p, _: lit(p, 1.2), 'jpg', dict(quality=85), .9),
    'brightness -20 %': (lambda p, _: lit(p, .8), 'jpg', dict(quality=85), .9),
    'crop 10 %': (lambda p, r: cropped(p, .1, r), 'jpg', dict(quality=85), None),
    'grey': (lambda p, _: p.convert('L'), 'jpg', dict(quality=85), None),
    'half size, darker, crop 3 %': (lambda p, r: lit(cropped(resized(p, .5), .03, r), .9), 'jpg', dict(quality=70), None),
}


def made(task):
    "Write one photo to train/, and every edit of it to val/; or an unrelated one to val/."
    folder, number, source = task
    random = np.random.default_rng([7, number])
    photo = read_photo(source).copy() if source else drawn_photo(list(GUNS)[number % len(GUNS)], random)
    if number >= TRAIN: return photo.save(folder/'val'/f'unrelated {number}.jpg', quality=int(random.integers(70, 96)))
    photo.save(folder/'train'/f'{number}.jpg', quality=int(random.integers(70, 96)))
    if number >= PLANTED: return None
    stored = read_photo(folder/'train'/f'{number}.jpg')
    for kind, (how, ending, options, _) in EDITS.items(): how(stored, random).save(folder/'val'/f'{kind} {number}.{ending}', **options)
    return None


def searched(folder):
    "Search as `check` does; return the pairs as (file in val, file in train), and how many photos there are."
    tables = [examined(folder, pd.DataFrame(dict(file=[f'{split}/{o}' for o in sorted(os.listdir(folder/split))], split=split)))
              for split in ('val', 'train')]
    val, train = tables[0], tables[1].set_index(tables[1].index + len(tables[0]))
    return [(val.file[a], train.file[b], fit) for a, b, fit in alike_pairs(folder, val, train)], len(val), len(train)


def rows_of(pairs):
    "Recall of each kind of edit, and precision over all pairs."
    right = lambda a, b: 'unrelated' not in a and Path(a).stem.rsplit(' ', 1)[1] == Path(b).stem  # noqa: E731
    hits = {a for a, b, _ in pairs if right(a, b)}
    rows = [dict(edit=kind, recall=sum(o.startswith(f'val/{kind} ') and Path(o).stem.rsplit(' ', 1)[0] == kind for o in hits) / PLANTED, bar=bar)
            for kind, (_, _, _, bar) in EDITS.items()]
    wrong = [(a, b, round(fit, 4)) for a, b, fit in pairs if not right(a, b)]
    return rows, 1 - len(wrong) / max(1, len(pairs)), wrong


def search_time(many, few):
    "Seconds for the pair search alone, once over `few` × `many` random signatures; `check` does four of them."
    random = np.random.default_rng(0)
    some, others = (random.integers(0, 2**64, (n, 4), dtype=np.uint64) for n in (few, many))
    started = time.perf_counter()
    found = sum(len(rows) for _, rows in near(some, others))
    return time.perf_counter() - started, found


def main():
    real = sorted(o for o in Path(os.environ['BASEGUN_PHOTOS']).rglob('*') if o.is_file()) if 'BASEGUN_PHOTOS' in os.environ else []
    if real and len(real) < TRAIN + UNRELATED: sys.exit(f'BASEGUN_PHOTOS has {len(real)} files: {TRAIN + UNRELATED} are needed')
    with TemporaryDirectory() as folder, ProcessPoolExecutor(cores()) as pool:
        folder = Path(folder)
        for o in ('train', 'val'): (folder/o).mkdir()
        list(pool.map(made, [(folder, i, real[i] if real else None) for i in range(TRAIN + UNRELATED)], chunksize=20))
        pairs, n_val, n_train = searched(folder)
    rows, precision, wrong = rows_of(pairs)
    print(f"{'edit':30} {'recall':>7} {'bar':>5}")
    for o in rows: print(f"{o['edit']:30} {o['recall']:7.3f} {o['bar'] or '':>5}")
    print(f"precision {precision:.4f} (bar 0.99): {len(pairs)} pairs, {len(wrong)} of them unrelated, among {n_val} × {n_train} photos")
    many, few = (int(o) for o in os.environ.get('BASEGUN_SEARCH', '1000000 x 100000').split('x'))
    seconds, found = search_time(many, few)
    print(f'one search of {few} among {many} random signatures: {seconds:.0f} s on {cores()} cores, {found} found')
    search = dict(few=few, many=many, seconds=round(seconds, 1), cores=cores(), nanoseconds_a_pair=round(seconds / few / many * 1e9, 3))
    write_whole(HERE/'near-duplicates.json', json.dumps(dict(rows=rows, precision=precision, pairs=len(pairs), wrong=wrong,
        val=n_val, train=n_train, photos='real' if real else 'drawn', search=search), indent=2) + '\n')


if __name__ == '__main__': main()
