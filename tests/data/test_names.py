"Classes with the names that break tables, through every command."
import csv
import json
import shutil
from unicodedata import normalize

import numpy as np
import pandas as pd
import pytest
from conftest import TINY, as_arguments, typed
from markupsafe import escape
from PIL import Image
from server import serving

from basegun_fastai.base.record import Run
from basegun_fastai.data.names import class_columns
from basegun_fastai.trust.predictions import prediction_columns

# plain names; one with accents that a Mac has copied; and one of which only val/ is such a copy
PLAIN = ['file', 'label', 'class label', 'predicted', 'confidence', 'familiarity', 'reason', 'true', '-dash', '=1+1',
         '01', '1', 'NA', 'a, "b" \'c\'', 'x' * 120, 'pistolet à percussion']
DECOMPOSED, IN_VAL = 'fusil à pompe', 'épaule à levier'
ODD = sorted([*PLAIN, DECOMPOSED, IN_VAL])
OPTIONS = [*as_arguments(**TINY), '--fine-tune-epochs', 1, '--name', 'run']


def decomposed(label): return normalize('NFD', label)


def folder_of(split, label):
    "The folder of a class, as it is named on the disk."
    return decomposed(label) if label == DECOMPOSED or (split, label) == ('val', IN_VAL) else label


@pytest.fixture(scope='module')
def odd(tmp_path_factory):
    "A data set whose classes have such names."
    out = tmp_path_factory.mktemp('odd')/'data'
    for s, (split, n) in enumerate(dict(train=4, val=2).items()):
        for c, label in enumerate(ODD):
            folder = out/split/folder_of(split, label)
            folder.mkdir(parents=True)
            for i in range(n):
                noise = np.random.default_rng([s, c, i]).integers(0, 256, (40, 40, 3), np.uint8)
                Image.fromarray(noise).save(folder/f'{i}.png')
    return out


def done(*command):
    "Run a command that must succeed."
    result = typed(*command)
    assert result.returncode == 0, result.stderr
    return result


@pytest.fixture(scope='module')
def trained(odd, tmp_path_factory):
    "A run on these classes."
    out = tmp_path_factory.mktemp('runs')
    done('train', odd, *OPTIONS, '--out', out)
    return Run(out/'run')


@pytest.fixture(scope='module')
def model(odd, trained, tmp_path_factory):
    "The exported model of that run."
    out = tmp_path_factory.mktemp('exported')/'model'
    done('export', trained.path, '--data', odd, '--out', out)
    return out


def read(file): return pd.read_csv(file, dtype=str, keep_default_na=False)


def verify_tables(folder):
    rows = read(folder/'predictions-val.csv')
    assert list(rows.columns) == prediction_columns(ODD)
    assert set(rows.label) == set(ODD) and set(rows.predicted) <= set(ODD)
    assert all(file.startswith(f'val/{folder_of("val", label)}/') for file, label in zip(rows.file, rows.label,
                                                                                         strict=True))
    assert np.allclose(rows.iloc[:, 6:].astype(float).sum(axis=1), 1, atol=1e-5)
    for name in ('confusion-matrix.csv', 'confusion-matrix-normalized.csv'):
        counts = read(folder/name)
        assert list(counts.true) == ODD and list(counts.columns) == ['true', *class_columns(ODD, ('true',))]


@pytest.mark.slow
def test_odd_classes_go_through_check(odd): done('check', odd)


@pytest.mark.slow
def test_odd_classes_go_through_split(odd, tmp_path):
    done('split', odd/'train', tmp_path/'split', '--val', .25)
    counts = read(tmp_path/'split'/'split.csv').value_counts(['split', 'label'])
    assert counts.to_dict() == {(split, o): n for split, n in dict(train=3, val=1).items() for o in ODD}


@pytest.mark.slow
def test_odd_classes_go_through_train(trained):
    assert trained.config.classes == ODD
    assert list(json.loads(trained.metrics.read_text())['per_class']) == ODD
    verify_tables(trained.path)


@pytest.mark.slow
def test_odd_classes_go_through_resume(odd, trained, tmp_path):
    shutil.copytree(trained.path, tmp_path/'run')
    begun = json.loads(trained.config_file.read_text()) | dict(state='running')
    (tmp_path/'run'/'config.json').write_text(json.dumps(begun))
    done('train', odd, *OPTIONS, '--out', tmp_path, '--resume')
    assert (tmp_path/'run'/'model.safetensors').read_bytes() == trained.weights.read_bytes()


@pytest.mark.slow
def test_odd_classes_go_through_evaluate(odd, trained, tmp_path):
    done('evaluate', trained.path, odd, '--out', tmp_path/'judged')
    verify_tables(tmp_path/'judged')


@pytest.mark.slow
def test_odd_classes_go_through_report(odd, trained, tmp_path):
    done('report', trained.path, '--data', odd, '--out', tmp_path/'report.html')
    assert all(escape(o) in (tmp_path/'report.html').read_text() for o in ODD)


@pytest.mark.slow
def test_odd_classes_go_through_predict(odd, model):
    for options in ((), ('--json',)):
        lines = done('predict', model, odd/'val'/'01', odd/'val'/decomposed(DECOMPOSED), *options).stdout.splitlines()
        rows = [json.loads(o) for o in lines] if options else list(csv.DictReader(lines))
        assert len(rows) == 4 and len(rows[0]) == 7 + len(ODD)
        assert all(o['label'] in ODD for o in rows)
        assert 'class file' in rows[0] and 'class class label' in rows[0] and 'predicted' in rows[0]


@pytest.mark.slow
def test_odd_classes_go_through_serve(odd, model):
    with serving(model) as server:
        photo = (odd/'val'/decomposed(DECOMPOSED)/'0.png').read_bytes()
        answer = server.client.post('/predict', content=photo).json()
    assert sorted(answer['probabilities']) == ODD and answer['label'] in ODD


@pytest.mark.slow
def test_a_table_with_other_columns_is_refused_in_words(tmp_path, run, data):
    import shutil
    shutil.copytree(run.path, tmp_path/'run')
    file = tmp_path/'run'/'predictions-val.csv'
    file.write_text(file.read_text().replace('revolver', 'file', 1))
    done = typed('export', tmp_path/'run', '--data', data, '--out', tmp_path/'exported')
    assert done.returncode == 1 and "does not have the columns or labels of this run's classes" in done.stderr
    assert 'Traceback' not in done.stderr


def test_one_photo_is_not_one_photos():
    from basegun_fastai.base.text import number_of
    assert [number_of(o) for o in (0, 1, 2)] == ['0 photos', '1 photo', '2 photos']
    assert number_of(2, 'class', 'classes') == '2 classes'
