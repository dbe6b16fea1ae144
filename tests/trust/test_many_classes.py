"Pictures, sheets and pages have a maximum size for any number of classes."
import json
import os
import re
import resource
import sys
from dataclasses import replace
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from browser import browsed, widths_of
from bs4 import BeautifulSoup
from PIL import Image
from warm import run_warm

from basegun_fastai.base.record import Run
from basegun_fastai.data.pages import MAX_CLASSES, check_page
from basegun_fastai.trust.comparison import compare
from basegun_fastai.trust.inspection import Inspection
from basegun_fastai.trust.mistakes import MAX_ON_SHEETS, MAX_SHEETS, write_mistakes
from basegun_fastai.trust.predictions import MAX_COLUMNS, MAX_DRAWN, MAX_ROWS, Predictions
from basegun_fastai.trust.run_page import MAX_CONFUSED, run_page
from basegun_fastai.trust.steadiness import VARIATIONS
from basegun_fastai.trust.tables import write_tables

pytestmark = pytest.mark.slow
N = 1000  # val photos
NUMBERS = [2, 12, 100, 1000]
OPTIONS = dict(arch='test_resnet', weights='none', size=None)


def photos(data, classes):
    "Val photos of the classes in turn, and one train photo of each; many names, few files."
    random = np.random.default_rng(0)
    for i in range(8):
        Image.fromarray(random.integers(0, 256, (60, 80, 3), np.uint8)).save(data/f'{i}.jpg')
    for o in classes:
        for split in ('train', 'val'): (data/split/o).mkdir(parents=True)
        os.link(data/'0.jpg', data/'train'/o/'0.jpg')
    files = [f'val/{classes[i % len(classes)]}/{i}.jpg' for i in range(N)]
    for i, o in enumerate(files): os.link(data/f'{i % 8}.jpg', data/o)
    return files


def finished_run(folder, classes):
    "The files of a training on these classes, except for its tables."
    counts = {split: {o: n for o in classes} for split, n in (('train', 1), ('val', N // len(classes)))}
    record = dict(state='finished', started='2026-01-01T00:00:00', options=OPTIONS, classes=classes, skipped=[], seed=1,
                  dataset=dict(fingerprint='a', counts=counts), versions={}, command=['train'],
                  resolved=dict(device='cpu', batch_size=8, lr=.1, size=32, before_crop=32),
                  architecture=dict(timm_name='test_resnet', size=32))
    folder.mkdir()
    (folder/'config.json').write_text(json.dumps(record))
    pd.DataFrame(dict(stage=['head'], epoch=[1], train_loss=[1.], val_loss=[1.], accuracy=[0.], precision=[0.],
                      recall=[0.], learning_rate=[.1], seconds=[1.])).to_csv(folder/'history.csv', index=False)
    return Run(folder)


def make(folder, n):
    "Make all files and pages of a bad model with `n` classes."
    data, random = Path(folder)/'data', np.random.default_rng(0)
    data.mkdir(parents=True)
    classes = [f'une typologie au nom long, {i:04}' for i in range(n)]
    files, labels = photos(data, classes), np.arange(N) % n
    preds = Predictions(files, classes, labels, random.normal(size=(N, n)).astype(np.float32) * 3)
    run = finished_run(Path(folder)/'run', classes)
    numbers = write_tables(preds, run.path)
    write_mistakes(preds, data, run.path)
    columns = ['changed', 'confidence', *classes]
    steady = pd.DataFrame(random.random((len(VARIATIONS), len(columns))), list(VARIATIONS), columns)
    neighbours = pd.DataFrame(columns=['file', 'train_file', 'train_label', 'cosine'])
    inspection = Inspection([0, 1], [], pd.DataFrame(columns=['file', 'label', 'suggested', 'quality', 'confidence']),
                            {}, steady, 9, neighbours, (0, 0))
    other = replace(preds, logits=random.normal(size=(N, n)).astype(np.float32) * 3)
    page = run_page(run, data, preds, numbers, inspection, (run, compare(other, preds)))
    (Path(folder)/'page.html').write_text(page, encoding='utf-8')
    table = pd.DataFrame(dict(file=files, split='val', label=[classes[o] for o in labels], reason=''))
    summary = dict(counts=run.config.dataset.counts, photos=N, ok=N, warned=0, refused=0)
    (Path(folder)/'check.html').write_text(check_page(data, table, [], summary), encoding='utf-8')


def make_all(folder):
    "Make them for few and many classes; print the peak memory after each, in MiB; stderr names the case."
    for n in NUMBERS:
        print(f'{n} classes', file=sys.stderr)
        make(f'{folder}/{n}', n)
        print(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024)


@pytest.fixture(scope='module')
def cases(tmp_path_factory):
    folder = tmp_path_factory.mktemp('many classes')
    program = ('import warnings; warnings.simplefilter("ignore"); from test_many_classes import make_all; '
               f'make_all({str(folder)!r}); raise SystemExit')
    result = run_warm(before=program)
    assert result.returncode == 0, result.stderr
    texts = re.split(r'\d+ classes\n', result.stderr)[1:]
    return {n: (n, folder/str(n), float(peak), text)
            for n, peak, text in zip(NUMBERS, result.stdout.split(), texts, strict=True)}


@pytest.fixture(params=NUMBERS)
def case(request, cases): return cases[request.param]


def test_the_memory_is_bounded(cases):
    assert cases[1000][2] - cases[2][2] < 500  # with 100 classes, one picture took 1,200


def test_the_picture_of_the_matrix_is_bounded(case):
    n, folder, _, _ = case
    with Image.open(folder/'run'/'confusion-matrix.png') as picture: assert max(picture.size) < 3000
    counts = pd.read_csv(folder/'run'/'confusion-matrix.csv', index_col=0)
    assert counts.shape == (n, n) and counts.to_numpy().sum() == N


def test_sheets_are_bounded_and_say_what_they_leave_out(case):
    n, folder, _, text = case
    n_pairs = sum(np.count_nonzero(o) - np.count_nonzero(np.diag(o)) for o in
                  [pd.read_csv(folder/'run'/'confusion-matrix.csv', index_col=0).to_numpy()])
    sheets = list((folder/'run'/'confused').iterdir())
    assert len(sheets) == min(MAX_SHEETS, n_pairs)
    assert (f'the sheets show the {MAX_SHEETS} with the most photos' in text) == (n_pairs > MAX_SHEETS)
    assert sum(o.stat().st_size for o in sheets) < MAX_ON_SHEETS * 20_000


def test_the_page_of_a_run_is_bounded_and_names_the_files_that_have_all(case, tmp_path):
    n, folder, _, _ = case
    file = folder/'page.html'
    assert file.stat().st_size < 5e6 and max(widths_of(file, tmp_path, 1200)) <= 1200
    page = BeautifulSoup(browsed(file.as_uri(), tmp_path), 'html.parser')
    text = page.get_text()
    assert len(page.find(id='confusion').find_all('tr')) == 1 + (n if n <= MAX_DRAWN else MAX_DRAWN + 1)
    assert len(page.find(id='classes').find_all('tr')) == 1 + min(n, MAX_ROWS)
    assert len(page.find_all(attrs={'data-against': True})) == min(n, MAX_ROWS)
    assert len(page.find_all('h3', id=True)) <= MAX_CONFUSED
    assert all(len(o.find_all('td')) == 3 + min(n, MAX_COLUMNS) for o in page.find_all(attrs={'data-variation': True}))
    for link in page.find(id='confusion').find_all('a'): assert page.find(id=link['href'][1:])
    assert (f'{MAX_DRAWN} of {n} classes that are confused most: confusion-matrix.csv' in text) == (n > MAX_DRAWN)
    assert (f'{MAX_ROWS} of {n} classes with the lowest F1: metrics.json has all' in text) == (n > MAX_ROWS)
    cells = [int(o.get_text()) for o in page.find(id='confusion').find_all('td') if o.get_text()]
    assert sum(cells) == N


def test_the_page_of_a_check_is_bounded(case, tmp_path):
    n, folder, _, _ = case
    file = folder/'check.html'
    assert file.stat().st_size < 25e6 and max(widths_of(file, tmp_path, 1200)) <= 1200
    page = BeautifulSoup(file.read_text(encoding='utf-8'), 'html.parser')
    assert len(page.find_all(attrs={'data-split': 'train'})) == min(n, MAX_CLASSES)
    assert len(page.find_all(attrs={'data-sheet': True})) == n
