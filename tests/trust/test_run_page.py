"The page of a run agrees with the files of the run, in a real browser, and stays small."
import json
import re
import os
import shlex
import shutil
from dataclasses import replace

import numpy as np
import pandas as pd
import pytest
from browser import browsed, widths_of
from bs4 import BeautifulSoup
from conftest import TINY, TYPOLOGIES, draw_typologies, typed
from PIL import Image

from basegun_fastai.base.record import Run
from basegun_fastai.data.folders import list_photos
from basegun_fastai.trust.inspection import inspect_run
from basegun_fastai.trust.judge import Judge
from basegun_fastai.trust.predictions import Predictions, read_predictions
from basegun_fastai.trust.run_page import MAX_OF_PAIR, _against, _review, run_page
from basegun_fastai.trust.steadiness import VARIATIONS, sample_evenly
from basegun_fastai.trust.tables import write_tables

pytestmark = pytest.mark.slow


def trained(out, classes, photos=(7, 4), **options):
    "A run on some drawn classes; one photo has a name that a browser must not run as code."
    from basegun_fastai.train import train
    draw_typologies(out/'data', classes, *photos)
    shutil.move(out/'data'/'val'/classes[-1]/'une photo, 0.jpg', out/'data'/'val'/classes[-1]/'<script>é&"\'.jpg')
    train(out/'data', fine_tune_epochs=2, out=out, name='run <b>', **TINY | options)
    return Run(out/'run <b>')


@pytest.fixture(scope='module')
def twelve(tmp_path_factory):
    return trained(tmp_path_factory.mktemp('été & <i>'), TYPOLOGIES, (5, 3), head_epochs=1)


@pytest.fixture(scope='module')
def two(tmp_path_factory):
    return trained(tmp_path_factory.mktemp('two'), ['confidence', 'changed'], head_epochs=0)


@pytest.fixture(scope='module')
def pages(twelve, two, tmp_path_factory):
    "Both runs, and their pages in a browser."
    return {name: (run, BeautifulSoup(browsed(run.report.as_uri(), tmp_path_factory.mktemp('browser')), 'html.parser'))
            for name, run in dict(twelve=twelve, two=two).items()}


def number(element):
    return float(element.get_text().split()[0])


@pytest.mark.parametrize('name', ['twelve', 'two'])
def test_the_numbers_are_those_of_metrics_json(pages, name):
    run, page = pages[name]
    actual = json.loads(run.metrics.read_text())
    for key in ('accuracy', 'precision', 'recall', 'n'):
        shown = page.find(id=key)
        assert float(shown['data-value']) == actual[key] and number(shown) == pytest.approx(actual[key], abs=5.1e-4)
    rows = page.find(id='classes').find_all('tr')[1:]
    assert [o['data-class'] for o in rows] == run.config.classes
    for row in rows:
        wanted, cells = actual['per_class'][row['data-class']], row.find_all('td')
        for key in ('precision', 'recall', 'f1'):
            cell = row.find(attrs={f'data-{key}': True})
            assert float(cell[f'data-{key}']) == wanted[key] and number(cell) == pytest.approx(wanted[key], abs=5.1e-4)
        trained_on = len([*(run.path.parent/'data'/'train'/row['data-class']).iterdir()])
        assert [number(o) for o in cells[-2:]] == [wanted['support'], trained_on]
    for level, band in actual['levels']['bands'].items():
        assert number(page.find(attrs={'data-level': level}).find_all('td')[1]) == band['n']


@pytest.mark.parametrize('name', ['twelve', 'two'])
def test_the_matrix_is_that_of_the_table_and_each_mistake_leads_to_its_photos(pages, name):
    run, page = pages[name]
    rows = [[o.get_text() for o in row.find_all('td')] for row in page.find(id='confusion').find_all('tr')[1:]]
    assert [[int(o or 0) for o in row] for row in rows] == pd.read_csv(run.confusion, index_col=0).to_numpy().tolist()
    table = pd.read_csv(run.predictions, dtype=str)
    links = page.find(id='confusion').find_all('a')
    for link in links:
        i, j = map(int, link['href'].removeprefix('#pair-').split('-'))
        title = page.find(id=link['href'][1:])
        photos = title.find_next_sibling('div').find_all('img')
        wanted = table[(table.label == run.config.classes[i]) & (table.predicted == run.config.classes[j])]
        assert {o['alt'] for o in photos} <= {*wanted.file} and len(photos) == min(len(wanted), MAX_OF_PAIR)
        assert link.get_text() == str(len(wanted)) and run.config.classes[i] in title.get_text()
    assert len(links) == len(table[table.label != table.predicted].groupby(['label', 'predicted'])) > 0


@pytest.mark.parametrize('name', ['twelve', 'two'])
def test_the_table_of_steadiness_has_each_variation_and_class(pages, name):
    run, page = pages[name]
    rows = page.find_all('tr', attrs={'data-variation': True})
    assert [o['data-variation'] for o in rows] == ['as it is', *VARIATIONS]
    cells = np.array([[number(o) for o in row.find_all('td')[1:]] for row in rows])
    assert cells.shape[1] == 2 + len(run.config.classes) and 0 <= cells.min() <= cells.max() <= 1
    labels = pd.read_csv(run.predictions).label.to_numpy()
    n = int(re.search(r'(\d+) val photos, each predicted again', page.get_text())[1])
    assert len(run.config.classes) <= n < len(labels)  # as many as fit in a quarter of this short training's time
    support = pd.Series(labels[sample_evenly(labels, n)]).value_counts().reindex(sorted(run.config.classes)).to_numpy()
    assert np.allclose(cells[:, 0], cells[:, 2:] @ support / support.sum(), atol=2e-3)
    assert (cells[0, 2:] == 0).all() and cells[:, 0].max() > 0


@pytest.mark.parametrize('name', ['twelve', 'two'])
def test_the_worst_mistakes_come_with_evidence_and_neighbours(pages, name):
    run, page = pages[name]
    table = pd.read_csv(run.predictions)
    wrong = table[table.label != table.predicted].nlargest(12, 'confidence', keep='all')
    cases = page.find_all('div', attrs={'data-file': True})
    assert {o['data-file'] for o in cases} >= {*wrong[wrong.confidence > wrong.confidence.min()].file}
    for case in cases:
        pictures, mistaken = case.find_all('img'), case['data-file'] in {*table[table.label != table.predicted].file}
        assert [o['alt'] for o in pictures].count('evidence') == mistaken and len(pictures) == 4 + mistaken
        assert all(o['alt'].startswith('train/') for o in pictures[-3:])


@pytest.mark.parametrize('name', ['twelve', 'two'])
def test_a_page_needs_nothing_but_itself_and_runs_nothing(pages, name):
    run, _ = pages[name]
    page = BeautifulSoup(run.report.read_text(), 'html.parser')
    assert not page.find_all(['script', 'link', 'iframe', 'b', 'i'], string=lambda o: o and 'script' in o)
    assert not page.find_all(['script', 'link', 'iframe'])
    sources = [o[key] for key in ('src', 'href', 'xlink:href') for o in page.find_all(attrs={key: True})]
    assert sources and all(o.startswith(('data:image/jpeg;base64,', '#')) for o in sources)
    anchors = {o['id'] for o in page.find_all(id=True)}
    assert {o[1:] for o in sources if o.startswith('#')} <= anchors
    assert page.title.string == 'run <b>: report' and page.h1.get_text() == 'run <b>'


@pytest.mark.parametrize('name', ['twelve', 'two'])
def test_nothing_sticks_out_of_the_page(pages, name, tmp_path):
    narrow, wide = widths_of(pages[name][0].report, tmp_path, 390, 1200)
    assert narrow in range(300, 391) and wide in range(300, 1201)


@pytest.mark.parametrize('name', ['twelve', 'two'])
def test_a_page_names_the_command_that_looks_for_wrong_labels(pages, name):
    run, page = pages[name]
    command = ['basegun-fastai', 'review', str(run.path.parent/'data'), '--arch', 'test_efficientnet', '--size', '32']
    assert shlex.split(page.find(id='review').get_text()) == command


@pytest.mark.parametrize(('weights', 'words'), [('imagenet', ''), ('none', ''), ('a b.bin', " --weights 'a b.bin'")])
def test_wrong_labels_are_looked_for_with_the_initial_weights_unless_these_were_random(weights, words):
    command = _review('data', dict(arch='efficientnet_b0', weights=weights, size=None))
    assert command == f'basegun-fastai review data --arch efficientnet_b0{words}'


def judged(run, data, preds, out, split):
    "The page of a run whose network was replaced, compared on the photos of a split."
    shutil.copytree(run.path, out)
    other, photos = Run(out), list_photos(data)
    judge = Judge.of_run(other, data, photos[photos.split == 'val'], 0, 'cpu')
    numbers = write_tables(preds, out)
    inspection = inspect_run(judge, preds, photos[photos.split == split], p_affine=1.)
    return run_page(other, data, preds, numbers, inspection)


def test_a_run_without_mistakes_says_so(two, tmp_path):
    preds = read_predictions(two, two.config.classes)
    perfect = Predictions(preds.files, preds.classes, preds.labels, 9 * np.eye(2)[preds.labels])
    page = BeautifulSoup(judged(two, two.path.parent/'data', perfect, tmp_path/'run', 'none'), 'html.parser')
    text = page.get_text()
    assert 'No val photo is predicted wrongly.' in text and 'No label is suspicious.' in text
    assert not page.find(id='confusion').find_all('a') and not page.find_all(attrs={'data-file': True})
    assert 'photos were not compared' in text and 'so none are shown' in text
    assert page.find(id='accuracy')['data-value'] == '1.0'


def test_a_page_of_twelve_classes_and_2000_val_photos_is_small(twelve, tmp_path):
    "The photos are noise, which JPEG cannot compress; every third prediction is wrong."
    data, random = tmp_path/'data', np.random.default_rng(0)
    shutil.copytree(twelve.path.parent/'data'/'train', data/'train')
    for i in range(8):
        photo = Image.fromarray(random.integers(0, 256, (240, 240, 3), np.uint8))
        photo.save(tmp_path/f'{i}.jpg', quality=95)
    labels = np.arange(2000) % 12
    files = [f'val/{TYPOLOGIES[o]}/photo {i}.jpg' for i, o in enumerate(labels)]
    for o in TYPOLOGIES: (data/'val'/o).mkdir(parents=True)
    for i, o in enumerate(files): os.link(tmp_path/f'{i % 8}.jpg', data/o)
    predicted = np.where(random.random(2000) < 1 / 3, random.integers(0, 12, 2000), labels)
    preds = Predictions(files, TYPOLOGIES, labels, np.eye(12)[predicted] * random.uniform(2, 6, (2000, 1)))
    text = judged(twelve, data, preds, tmp_path/'run', 'train')
    page = BeautifulSoup(text, 'html.parser')
    assert len(page.find(id='confusion').find_all('a')) > 100 and len(page.find_all('img')) > 300
    assert len(page.find_all('img', alt='input')) == 12 * 3 + 6
    assert len(text.encode()) < 5e6


def test_two_runs_on_one_page(two):
    from basegun_fastai.trust.comparison import compare
    preds, data = read_predictions(two, two.config.classes), two.path.parent/'data'
    better = replace(preds, logits=np.where(np.arange(len(preds.files))[:, None] % 2, 9 * np.eye(2)[preds.labels],
                                            preds.logits))
    photos, numbers = list_photos(data, 'classes'), json.loads(two.metrics.read_bytes())
    comparison, judge = compare(preds, better), Judge.of_run(two, data, photos, 0, 'cpu')
    page = BeautifulSoup(run_page(two, data, better, numbers, inspect_run(judge, better, photos[:0]),
                                  (two, comparison)), 'html.parser')
    for label in two.config.classes:
        cells = [o.get_text() for o in page.find('tr', attrs={'data-against': label}).find_all('td')]
        at = preds.labels == two.config.classes.index(label)
        assert cells == [label, f'{preds.right[at].mean():.3f}', f'{better.right[at].mean():.3f}',
                         str((better.right & ~preds.right)[at].sum()), '0', str(at.sum())]
    shown = page.find('h3', string=lambda o: o and o.startswith('Correct now, wrong before')).find_next_sibling('div')
    assert {o['alt'] for o in shown.find_all('img')} == {preds.files[i] for i in comparison.fixed} != set()


def test_a_class_without_val_photos_is_none_that_is_left_out_of_a_comparison(tmp_path):
    from basegun_fastai.trust.comparison import compare
    preds = Predictions([f'val/a/{i}.jpg' for i in range(4)], ['a', 'b'], np.zeros(4, int), np.eye(2)[[0, 0, 1, 1]])
    section = _against(Run(tmp_path/'first'), compare(preds, preds), preds)
    assert section['n_classes'] == len(section['classes']) == 1 and section['name'] == 'first'


def test_the_locale_changes_nothing(twelve, tmp_path, monkeypatch):
    monkeypatch.setenv('LC_ALL', 'C')
    result = typed('report', twelve.path, '--out', tmp_path/'page.html')
    assert result.returncode == 0 and 'é' in (tmp_path/'page.html').read_text(encoding='utf8')
