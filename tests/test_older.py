"A run and an export of 29 November 2026 (format 2, decoder 4), made from the photos of `data`, are still opened."
import shutil
from pathlib import Path

import pandas as pd
import pytest
from conftest import typed

OLDER = Path(__file__).parent/'older'
pytestmark = pytest.mark.slow


@pytest.fixture
def older(data, tmp_path, monkeypatch):
    "A copy of both, beside the data that the run names."
    shutil.copytree(OLDER, tmp_path/'older')
    (tmp_path/'data').symlink_to(data)  # the run was trained on 'data' in the folder in which the command ran
    monkeypatch.chdir(tmp_path)
    return tmp_path/'older'


def probabilities(file):
    table = pd.read_csv(file)
    return table.iloc[:, -6:].set_axis(table.file.str.removeprefix('data/'), axis=0).sort_index()


def test_an_older_run_is_judged_as_it_was(older):
    result = typed('evaluate', older/'run', 'data', '--out', 'judged', '--workers', 0)
    assert result.returncode == 0, result.stderr
    before, after = (probabilities(o/'predictions-val.csv') for o in (older/'run', Path('judged')))
    assert ((before - after).abs() < 1e-4).all(axis=None) and len(after) == 24


def test_an_older_run_is_reported_and_compared(older):
    result = typed('report', older/'run', '--out', 'page.html')
    assert result.returncode == 0 and 'epaule_a_pompe' in Path('page.html').read_text(), result.stderr
    result = typed('report', older/'run', '--against', shutil.copytree(older/'run', older/'copy'), '--out', 'both.html')
    assert result.returncode == 0, result.stderr


def test_an_older_run_is_exported_and_an_older_export_predicts_the_same(older):
    result = typed('export', older/'run', '--out', 'exported')
    assert result.returncode == 0, result.stderr
    for folder, name in ((older/'exported', 'older.csv'), (Path('exported'), 'newer.csv')):
        result = typed('predict', folder, 'data/val', '--out', name)
        assert result.returncode == 0, result.stderr
    assert ((probabilities('older.csv') - probabilities('newer.csv')).abs() < 1e-4).all(axis=None)
    assert ((probabilities('older.csv') - probabilities(older/'run'/'predictions-val.csv')).abs() < 1e-4).all(axis=None)


def test_an_older_finished_run_is_finished(older):
    shutil.move(older/'run', 'runs/first')
    result = typed('train', 'data', '--arch', 'test_efficientnet', '--out', 'runs', '--name', 'first', '--resume')
    assert result.returncode == 0 and 'is finished: nothing to do' in result.stderr
