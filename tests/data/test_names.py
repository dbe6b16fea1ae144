"Classes with the names that break tables, through every command."
import csv
import json

import numpy as np
import pandas as pd
import pytest
from conftest import TINY, as_arguments, typed
from PIL import Image

from basegun_fastai.base.record import Run
from basegun_fastai.trust.levels import Levels, level_counts
from basegun_fastai.data.names import class_columns
from basegun_fastai.trust.predictions import prediction_columns

ODD = sorted(['file', 'label', 'class label', 'predicted', 'confidence', 'familiarity', 'reason', 'true', '-dash',
              '=1+1', '01', '1', 'NA', 'a, "b" \'c\'', 'x' * 120])


@pytest.fixture(scope='module')
def odd(tmp_path_factory):
    "A data set whose classes have such names."
    out = tmp_path_factory.mktemp('odd')/'data'
    for s, (split, n) in enumerate(dict(train=4, val=2).items()):
        for c, label in enumerate(ODD):
            (out/split/label).mkdir(parents=True)
            for i in range(n):
                noise = np.random.default_rng([s, c, i]).integers(0, 256, (40, 40, 3), np.uint8)
                Image.fromarray(noise).save(out/split/label/f'{i}.png')
    return out


def read(file): return pd.read_csv(file, dtype=str, keep_default_na=False)


@pytest.mark.slow
def test_classes_named_like_columns_go_through_every_command(odd, tmp_path):
    assert typed('check', odd).returncode == 0
    done = typed('train', odd, *as_arguments(**TINY), '--fine-tune-epochs', 1, '--out', tmp_path, '--name', 'run')
    assert done.returncode == 0, done.stderr
    run = Run(tmp_path/'run')
    assert run.config.classes == ODD and list(json.loads((run.path/'metrics.json').read_text())['per_class']) == ODD
    assert typed('evaluate', run.path, odd, '--out', tmp_path/'judged').returncode == 0
    for folder in (run.path, tmp_path/'judged'):
        rows = read(folder/'predictions-val.csv')
        assert list(rows.columns) == prediction_columns(ODD)
        assert set(rows.label) == set(ODD) and set(rows.predicted) <= set(ODD)
        assert np.allclose(rows.iloc[:, 6:].astype(float).sum(axis=1), 1, atol=1e-5)
        for name in ('confusion-matrix.csv', 'confusion-matrix-normalized.csv'):
            counts = read(folder/name)
            assert list(counts.true) == ODD and list(counts.columns) == ['true', *class_columns(ODD, ('true',))]
    done = typed('export', run.path, '--data', odd, '--out', tmp_path/'exported')
    assert done.returncode == 0, done.stderr
    for options in ((), ('--json',)):
        done = typed('predict', tmp_path/'exported', odd/'val'/'01', *options)
        lines = done.stdout.splitlines()
        rows = [json.loads(o) for o in lines] if options else list(csv.DictReader(lines))
        assert done.returncode == 0 and len(rows) == 2 and len(rows[0]) == 7 + len(ODD)
        assert all(o['label'] in ODD for o in rows)
        assert 'class file' in rows[0] and 'class class label' in rows[0] and 'predicted' in rows[0]


@pytest.mark.slow
def test_a_table_with_other_columns_is_refused_in_words(tmp_path, run, data):
    import shutil
    shutil.copytree(run.path, tmp_path/'run')
    file = tmp_path/'run'/'predictions-val.csv'
    file.write_text(file.read_text().replace('revolver', 'file', 1))
    done = typed('export', tmp_path/'run', '--data', data, '--out', tmp_path/'exported')
    assert done.returncode == 1 and "has not the columns of this run's classes" in done.stderr
    assert 'Traceback' not in done.stderr


@pytest.mark.parametrize(('n', 'good', 'interval'), [
    (193, 193, (.025 ** (1 / 193), 1)), (1, 0, (0, .975)), (5, 0, (0, 1 - .025 ** (1 / 5))), (1, 1, (.025, 1))])
def test_the_interval_of_all_or_none_is_exact(n, good, interval):
    row = level_counts(Levels(.5, None), np.full(n, .8), np.arange(n) < good)['medium']
    assert np.allclose(row['interval'], interval, atol=1e-9) and row['right'] == good / n


def test_one_photo_is_not_one_photos():
    from basegun_fastai.base.text import number_of
    assert [number_of(o) for o in (0, 1, 2)] == ['0 photos', '1 photo', '2 photos']
    assert number_of(2, 'class', 'classes') == '2 classes'
