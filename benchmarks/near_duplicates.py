"""How many near-duplicates `check` finds, by kind of edit, and how many of its pairs are wrong.

Takes unrelated photos, plants edited copies of some of them on the other side, and searches as `check` does. Drawn
guns, alike on plain grounds, are the hardest photos: the same six drawings, many times. The real photos are those of
BASEGUN_REAL (default: `../shared/real`), if that folder has any. These sets already hold some pictures twice: a person
looked at the pairs in `TWINS`, which count neither as right nor as wrong. Every other pair that was not planted is
listed for inspection. Prints two tables and writes them to benchmarks/near-duplicates.json.
"""
import json
import os
import time
from collections import Counter
from concurrent.futures import ProcessPoolExecutor
from pathlib import Path
from tempfile import TemporaryDirectory

import numpy as np
import pandas as pd
from PIL import Image, ImageDraw, ImageEnhance

from basegun_fastai.base.files import write_whole
from basegun_fastai.base.processes import cores
from basegun_fastai.data.phash import nearest
from basegun_fastai.data.contents import examine
from basegun_fastai.data.crops import RECORD, CropRecords, crop_candidates
from basegun_fastai.data.demo import GUNS, draw_photo
from basegun_fastai.data.near_duplicates import near_duplicate_pairs
from basegun_fastai.data.photo import read_photo

HERE = Path(__file__).parent
TRAIN, PLANTED, UNRELATED = 2400, 240, 600

TWINS = [  # each entry is one picture, or one thing photographed twice from the same place
    ('caltech/train/Motorbikes/image_0413.jpg', 'caltech/val/Motorbikes/image_0415.jpg'),  # in another colour
    ('caltech/train/garfield/image_0027.jpg', 'caltech/train/garfield/image_0033.jpg',
     'caltech/train/garfield/image_0034.jpg'),
    ('caltech/train/metronome/image_0001.jpg', 'caltech/val/metronome/image_0028.jpg'),
    ('caltech/train/water_lilly/image_0012.jpg', 'caltech/train/water_lilly/image_0037.jpg'),
    ('caltech/val/anchor/image_0011.jpg', 'caltech/val/anchor/image_0015.jpg'),
    ('caltech/val/cougar_body/image_0026.jpg', 'caltech/val/cougar_body/image_0035.jpg'),
    ('caltech/val/menorah/image_0016.jpg', 'caltech/val/menorah/image_0053.jpg'),
    ('caltech/val/octopus/image_0018.jpg', 'caltech/val/octopus/image_0035.jpg'),
    ('caltech/val/platypus/image_0015.jpg', 'caltech/val/platypus/image_0022.jpg',
     'caltech/val/platypus/image_0030.jpg'),
    ('trash/train/paper/paper53.jpg', 'trash/train/paper/paper314.jpg'),
    ('trash/train/paper/paper185.jpg', 'trash/train/paper/paper390.jpg'),  # moved by a hair
    ('trash/train/paper/paper459.jpg', 'trash/train/paper/paper466.jpg'),
    ('typology/val/bolt_action_rifle/ross-rifle-mk-iii_ww1_1.jpg',
     'typology/val/bolt_action_rifle/ross-rifle-mk-iii_ww2_6.jpg'),
]


def cropped(photo, share, random):
    "Cut `share` off the width and the height, at a random place."
    width, height = (round(o * (1 - share)) for o in photo.size)
    x, y = random.integers(0, photo.width - width + 1), random.integers(0, photo.height - height + 1)
    return photo.crop((x, y, x + width, y + height))


def inside(photo, share):
    "Cut `share` off every side."
    x, y = (round(o * share) for o in photo.size)
    return photo.crop((x, y, photo.width - x, photo.height - y))


def resized(photo, scale): return photo.resize([max(1, round(o * scale)) for o in photo.size], Image.Resampling.BICUBIC)


def lit(photo, factor): return ImageEnhance.Brightness(photo).enhance(factor)


def captioned(photo, ground, ink):
    "Put a bar with words under it."
    bar = max(12, photo.height // 7)
    out = Image.new('RGB', (photo.width, photo.height + bar), ground)
    out.paste(photo)
    at = photo.width // 12, photo.height + bar // 5
    ImageDraw.Draw(out).text(at, 'seen in the harbour on Monday', ink, font_size=bar * .55)
    return out


def on_a_phone(photo):
    "Show it across the screen of a phone, black above and below."
    out = Image.new('RGB', (390, 844))
    shown = photo.resize((390, min(844, round(photo.height * 390 / photo.width))), Image.Resampling.BICUBIC)
    out.paste(shown, (0, (844 - shown.height) // 2))
    return out


def covered(photo, sides, percent, colours):
    "Cover each of `sides` with a bar, plain or with words in another colour; the photo's size stays."
    out, (width, height), (*ink, ground) = photo.copy(), photo.size, colours.split(' on ')
    x, y = (round(o * percent / 100) for o in photo.size)
    boxes = dict(left=(0, 0, x, height), top=(0, 0, width, y), right=(width - x, 0, width, height),
                 bottom=(0, height - y, width, height))
    for left, top, right, bottom in (boxes[o] for o in sides.split('+')):
        out.paste(ground, (left, top, right, bottom))
        if ink: ImageDraw.Draw(out).text(((left + right) / 2, (top + bottom) / 2), 'seen on Monday, 12:41', *ink,
                                         font_size=max(4, .55 * (bottom - top)), anchor='mm')
    return out


BARS = [('bottom', 4, 'black'), ('bottom', 7, 'black'), ('bottom', 12, 'black'), ('top', 7, 'white'),
        ('top', 7, 'grey'), ('top', 4, 'white on black'), ('top', 12, 'black on grey'),
        ('bottom', 7, 'yellow on black'), ('bottom', 12, 'black on white'), ('left', 7, 'black'),
        ('right', 12, 'white'), ('top+bottom', 7, 'white on black')]

EDITS = {  # name: (edit, file ending, options of saving, bar of its recall)
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
    'crop 10 %': (lambda p, r: cropped(p, .1, r), 'jpg', dict(quality=85), .9),
    'crop 15 %': (lambda p, r: cropped(p, .15, r), 'jpg', dict(quality=85), .9),
    'crop 20 %': (lambda p, r: cropped(p, .2, r), 'jpg', dict(quality=85), .9),
    'caption, black on white': (lambda p, _: captioned(p, 'white', 'black'), 'jpg', dict(quality=85), .9),
    'caption, yellow on black': (lambda p, _: captioned(p, 'black', 'yellow'), 'jpg', dict(quality=85), .9),
    'screenshot with black bars': (lambda p, _: on_a_phone(p), 'jpg', dict(quality=85), .9),
    'grey': (lambda p, _: p.convert('L'), 'jpg', dict(quality=85), .9),
    'half size, darker, crop 3 %': (lambda p, r: lit(cropped(resized(p, .5), .03, r), .9), 'jpg', dict(quality=70),
                                    None),
}
EDITS |= {f'{colours} over the {sides.replace("+", " and ")} {percent} %': (
    lambda p, _, bar=(sides, percent, colours): covered(p, *bar), 'jpg', dict(quality=80), .9)
    for sides, percent, colours in BARS}


def make(task):
    "Write one photo to train/ and every edit of it to val/, or an unrelated one to val/."
    folder, number, source = task
    random = np.random.default_rng([7, number])
    photo = read_photo(source).copy() if source else draw_photo(list(GUNS)[number % len(GUNS)], random)
    quality = int(random.integers(70, 96))
    if number >= TRAIN: return photo.save(folder/'val'/f'unrelated {number}.jpg', quality=quality)
    photo.save(folder/'train'/f'{number}.jpg', quality=quality)
    if number >= PLANTED: return None
    stored = read_photo(folder/'train'/f'{number}.jpg')
    for kind, (how, ending, options, _) in EDITS.items():
        how(stored, random).save(folder/'val'/f'{kind} {number}.{ending}', **options)
    return None


def searched(folder):
    "Search as `check` does; return the pairs as (file in val, file in train, fit), and the numbers of photos."
    files = [f'{split}/{o}' for split in ('val', 'train') for o in sorted(os.listdir(folder/split))]
    with CropRecords() as records:
        table = examine(folder, pd.DataFrame(dict(file=files)), records=records)
        val, train = (table[table.file.str.startswith(o)] for o in ('val', 'train'))
        pairs = near_duplicate_pairs(folder, val, train, records=records)
    return [(val.file[a], train.file[b], fit) for a, b, fit in pairs], len(val), len(train)


def rows_of(pairs, sources):
    "Recall of each kind of edit, precision over all pairs except for twins, the wrong pairs, and the number of twins."
    def source(file): return str(sources[int(Path(file).stem.rsplit(' ', 1)[-1])].relative_to(REAL))
    right = lambda a, b: 'unrelated' not in a and Path(a).stem.rsplit(' ', 1)[1] == Path(b).stem  # noqa: E731
    hits = {a for a, b, _ in pairs if right(a, b)}
    kinds = Counter(Path(o).stem.rsplit(' ', 1)[0] for o in hits)
    rows = [dict(edit=kind, recall=kinds[kind] / PLANTED, bar=bar) for kind, (_, _, _, bar) in EDITS.items()]
    others = [(a, b, round(fit, 4)) for a, b, fit in pairs if not right(a, b)]
    others = [(a, source(a), b, source(b), fit) for a, b, fit in others] if sources else others
    wrong = [o for o in others if not any({o[1], o[3]} <= {*twins} for twins in TWINS)] if sources else others
    twins = len(others) - len(wrong)
    return rows, 1 - len(wrong) / max(1, len(pairs) - twins), wrong, twins


def search_time(many, few):
    "Seconds of one pair search over `few` × `many` random signatures; `check` does four of them."
    random = np.random.default_rng(0)
    some, others = (random.integers(0, 2**64, (n, 4), dtype=np.uint64) for n in (few, many))
    started = time.perf_counter()
    actual = sum(len(rows) for _, rows in nearest(some, others))
    return time.perf_counter() - started, actual


def crop_search_time(many, few):
    "Seconds of the search for crops, over `few` × `many` random records without bars."
    random = np.random.default_rng(0)
    some, others = (np.zeros(n, RECORD) for n in (few, many))
    for o in (some, others): o['phash'] = random.integers(0, 2**64, o['phash'].shape, dtype=np.uint64)
    started = time.perf_counter()
    actual = sum(len(rows) for *_, rows in crop_candidates(some, others))
    return time.perf_counter() - started, actual


def measured(sources):
    "Plant, search and count; `sources` are real photos, or empty for drawn ones."
    with TemporaryDirectory() as folder, ProcessPoolExecutor(cores()) as pool:
        folder = Path(folder)
        for o in ('train', 'val'): (folder/o).mkdir()
        tasks = [(folder, i, sources[i] if sources else None) for i in range(TRAIN + UNRELATED)]
        list(pool.map(make, tasks, chunksize=20))
        pairs, n_val, n_train = searched(folder)
    rows, precision, wrong, twins = rows_of(pairs, sources)
    print(f"{'real' if sources else 'drawn':40} {'recall':>7} {'bar':>5}")
    for o in rows: print(f"{o['edit']:40} {o['recall']:7.3f} {o['bar'] or '':>5}")
    print(f"precision {precision:.4f} (bar 0.99): {len(pairs)} pairs, {len(wrong)} wrong, {twins} of known "
          f"twins, among {n_val} × {n_train} photos")
    return dict(rows=rows, precision=precision, pairs=len(pairs), wrong=wrong, twins=twins, val=n_val, train=n_train)


REAL = Path(os.environ.get('BASEGUN_REAL', HERE.parents[1]/'shared'/'real'))


def main():
    results = dict(drawn=measured([]))
    real = sorted(o for o in REAL.glob('*/*/*/*') if o.is_file())
    if len(real) < TRAIN + UNRELATED:
        print(f"'{REAL}' has {len(real)} of the {TRAIN + UNRELATED} photos needed: real photos are left out")
    else: results['real'] = measured([real[i] for i in np.random.default_rng(0).permutation(len(real))])
    many, few = (int(o) for o in os.environ.get('BASEGUN_SEARCH', '1000000 x 100000').split('x'))
    seconds, actual = search_time(many, few)
    print(f'one search of {few} among {many} random signatures: {seconds:.0f} s on {cores()} cores, {actual} found')
    results['search'] = dict(few=few, many=many, seconds=round(seconds, 1), cores=cores(),
                             nanoseconds_a_pair=round(seconds / few / many * 1e9, 3))
    few = few // 10
    seconds, actual = crop_search_time(many // 10, few)
    print(f'the search for crops of {few} among {many // 10}: {seconds:.0f} s, {actual} found')
    results['crops'] = dict(few=few, many=many // 10, seconds=round(seconds, 1))
    write_whole(HERE/'near-duplicates.json', json.dumps(results, indent=2) + '\n')


if __name__ == '__main__': main()
