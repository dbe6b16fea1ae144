"A run is judged on other photos: what it leaves, and what it refuses."
import json
import warnings

import numpy as np
import pandas as pd
import pytest
from conftest import TINY, tree, typed

from basegun_fastai.train import train

pytestmark = pytest.mark.slow


def test_other_things_are_taken_into_account_by_train_and_evaluate(data, others, tmp_path):
    before = tree(others)
    train(data, fine_tune_epochs=1, out=tmp_path, name='run', not_a_gun=others, **TINY)
    numbers = json.loads((tmp_path/'run'/'metrics.json').read_text())['levels']
    assert numbers['not_a_gun']['n'] == 24 and set(numbers['not_a_gun']) == {'n', 'auroc', 'fpr95', 'shown'}
    result = typed('evaluate', tmp_path/'run', data, '--out', tmp_path/'judged', '--not-a-gun', others, '--workers', 0)
    assert result.returncode == 0 and 'not a gun: 24 photos' in result.stdout and tree(others) == before
    again = json.loads((tmp_path/'judged'/'metrics.json').read_text())['levels']
    assert again['not_a_gun'] == pytest.approx(numbers['not_a_gun']) and (again['low'],
        again['high']) == (numbers['low'], numbers['high'])


def test_what_is_wrong_with_an_evaluation_is_told_at_once(run, data, copy, others, tmp_path):
    (copy/'val').rename(copy/'photos')
    (copy/'photos'/'flamethrower').mkdir()
    (copy/'photos'/'flamethrower'/'0.jpg').write_bytes(b'no photo')  # would be told, had it been read
    (tmp_path/'g.csv').write_text('file;camera\n')
    result = typed('evaluate', run.path, copy/'photos', '--out', copy/'photos'/'out', '--not-a-gun', others/'inner',
                 '--groups', tmp_path/'g.csv')
    assert result.returncode == 1 and 'is none of' not in result.stderr
    for o in ("class 'flamethrower' is not one", 'lies inside the data', 'takes 19 or more', 'separate them by commas'):
        assert result.stderr.count(o) == 1, result.stderr
    result = typed('evaluate', run.path, tmp_path/'nowhere', '--not-a-gun', others, '--out', others/'out', '--groups',
                 tmp_path/'g.csv')
    assert (result.returncode == 1 and 'nowhere' in result.stderr and f"inside the data '{others}'" in result.stderr
            and not (others/'out').exists())
    result = typed('evaluate', run.path, data, '--not-a-gun', data/'val', '--out', tmp_path/'out', '--workers', -1)
    assert '--workers -1: give a whole number' in result.stderr
    result = typed('evaluate', run.path, data, '--not-a-gun', data/'val', '--out', tmp_path/'out')
    assert result.returncode == 1 and 'that are also in the data' in result.stderr and not (tmp_path/'out').exists()


def test_groups_have_numbers_of_their_own(run, data, tmp_path):
    rows = pd.read_csv(run.path/'predictions-val.csv')
    pd.DataFrame(dict(file=rows.file, camera=np.where(np.arange(len(rows)) % 3, 'phone',
                                                      'scan'))).to_csv(tmp_path/'g.csv', index=False)
    result = typed('evaluate', run.path, data, '--out', tmp_path/'out', '--groups', tmp_path/'g.csv', '--workers', 0)
    assert result.returncode == 0, result.stderr
    table = pd.read_csv(tmp_path/'out'/'metrics-groups.csv').set_index('value')
    scans = rows[np.arange(len(rows)) % 3 == 0]
    assert table.loc['scan'].n == len(scans) and table.loc['scan'].accuracy == pytest.approx((scans.label
        == scans.predicted).mean(), abs=1e-6)
    assert table.n.sum() == len(rows)


def test_evaluate_leaves_what_a_person_should_look_at(run, data, tmp_path):
    result = typed('evaluate', run.path, data, '--out', tmp_path/'out', '--workers', 0)
    rows = pd.read_csv(tmp_path/'out'/'predictions-val.csv')
    wrong = rows[rows.label != rows.predicted]
    assert result.returncode == 0 and len(wrong) and {o.name for o in (tmp_path/'out'/'confused').iterdir()} == {
        f'{a} as {b}.jpg' for a, b in zip(wrong.label, wrong.predicted, strict=True)}
    assert list(pd.read_csv(tmp_path/'out'/'suspect-labels.csv')) == ['file', 'label', 'suggested', 'quality',
        'confidence']


def test_a_pickle_is_opened_by_nobody_who_does_not_ask_for_it(run, data, tmp_path):
    result = typed('evaluate', run.learner, data, '--out', tmp_path/'out')
    assert (result.returncode == 1 and 'runs whatever code is in it' in result.stderr
            and '--trust-pickle' in result.stderr
            and not (tmp_path/'out').exists())
    for option in ('--not-a-gun', '--groups'):
        result = typed('evaluate', run.learner, data, '--out', tmp_path/'out', '--trust-pickle', option, data)
        assert result.returncode == 1 and 'leave them out' in result.stderr and not (tmp_path/'out').exists()
    with pytest.warns(UserWarning, match='insecure pickle'):
        result = typed('evaluate', run.learner, data, '--out', tmp_path/'out', '--trust-pickle')
    assert result.returncode == 0, result.stderr
    for o in ('everything is called low', 'nothing is called high'):
        assert f'{o}: no threshold goes with the model' in result.stdout
    mine, theirs = (pd.read_csv(o/'predictions-val.csv') for o in (tmp_path/'out', run.path))
    classes = run.config.classes
    assert mine.file.tolist() == theirs.file.tolist() and np.abs(mine[classes]
        - theirs[classes]).to_numpy().max() < 1e-4
    (tmp_path/'bad'/classes[0]).mkdir(parents=True)
    (tmp_path/'bad'/classes[0]/'0.jpg').write_bytes(b'no photo')
    for model, options in ((run.learner, ['--trust-pickle']), (run.path, [])):
        with warnings.catch_warnings():
            warnings.simplefilter('ignore')
            result = typed('evaluate', model, tmp_path/'bad', '--out', tmp_path/'none', '--skip-unreadable', *options)
        assert (result.returncode == 1 and result.stderr.strip().endswith('has no photo that can be read')
                and not (tmp_path/'none').exists())
