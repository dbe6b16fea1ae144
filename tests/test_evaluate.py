"Evaluation of a run on other photos: the files that it writes, and the inputs that it refuses."
import json
import shutil

import numpy as np
import pandas as pd
import pytest
from conftest import QUICK, as_arguments, forget_familiarity, tree, typed

from basegun_fastai.base.record import Run
from basegun_fastai.train import train
from basegun_fastai.trust.familiarity import Bank, familiarity, read_bank, save_bank

pytestmark = pytest.mark.slow


def test_other_things_are_taken_into_account_by_train_and_evaluate(data, others, tmp_path):
    before = tree(others)
    train(data, fine_tune_epochs=1, out=tmp_path, name='run', not_a_gun=others, **QUICK,
          unfamiliar_rate=.1)
    numbers = json.loads((tmp_path/'run'/'metrics.json').read_text())['levels']
    assert numbers['not_a_gun']['n'] == 24 and set(numbers['not_a_gun']) == {
        'n', 'auroc', 'fpr95', 'shown', 'shown_by_confidence', 'familiarity'}
    result = typed('evaluate', tmp_path/'run', data, '--out', tmp_path/'judged', '--not-a-gun', others, '--workers', 0)
    assert result.returncode == 0 and 'not a gun: 24 photos' in result.stdout and tree(others) == before
    again = json.loads((tmp_path/'judged'/'metrics.json').read_text())['levels']
    thresholds = 'low', 'high', 'unfamiliar_rate'
    assert [again[o] for o in thresholds] == [numbers[o] for o in thresholds] and again['unfamiliar_rate'] == .1
    by_familiarity = [o['not_a_gun'].pop('familiarity') for o in (again, numbers)]
    assert again['not_a_gun'] == pytest.approx(numbers['not_a_gun'])
    assert by_familiarity[0] == pytest.approx(by_familiarity[1]) and set(by_familiarity[0]) == {
        'familiar', 'auroc', 'fpr95'}
    shown = by_familiarity[0]['familiar'], again['not_a_gun']['shown_by_confidence']
    assert again['not_a_gun']['shown'] <= min(shown)
    assert f"by confidence: {shown[1]:.1%} pass" in result.stdout
    assert f"by familiarity: {shown[0]:.1%} pass" in result.stdout


def test_what_is_wrong_with_an_evaluation_is_told_at_once(run, data, copy, others, tmp_path):
    (copy/'val').rename(copy/'photos')
    (copy/'photos'/'flamethrower').mkdir()
    (copy/'photos'/'flamethrower'/'0.jpg').write_bytes(b'no photo')  # would be reported if it were read
    (tmp_path/'g.csv').write_text('photo;camera\n')
    result = typed('evaluate', run.path, copy/'photos', '--out', copy/'photos'/'out', '--not-a-gun', others/'inner',
                 '--groups', tmp_path/'g.csv')
    assert result.returncode == 1 and 'is text that starts' not in result.stderr
    for o in ("class 'flamethrower' is not one", 'is inside the data', 'needs 19 or more', 'separate them by commas'):
        assert result.stderr.count(o) == 1, result.stderr
    result = typed('evaluate', run.path, tmp_path/'nowhere', '--not-a-gun', others, '--out', others/'out', '--groups',
                 tmp_path/'g.csv')
    assert (result.returncode == 1 and 'nowhere' in result.stderr and f"inside the data '{others}'" in result.stderr
            and not (others/'out').exists())
    result = typed('evaluate', run.path, data, '--not-a-gun', data/'val', '--out', tmp_path/'out', '--workers', -1)
    assert '--workers -1: give a whole number' in result.stderr
    result = typed('evaluate', run.path, data, '--not-a-gun', data/'val', '--out', tmp_path/'out')
    assert result.returncode == 1 and 'and the data share' in result.stderr and not (tmp_path/'out').exists()


def test_groups_have_numbers_of_their_own(run, data, tmp_path):
    rows = pd.read_csv(run.path/'predictions-val.csv')
    pd.DataFrame(dict(file=rows.file, camera=np.where(np.arange(len(rows)) % 3, 'phone',
                                                      'scan'))).to_csv(tmp_path/'g.csv', index=False)
    result = typed('evaluate', run.path, data, '--out', tmp_path/'out', '--groups', tmp_path/'g.csv', '--workers', 0)
    assert result.returncode == 0, result.stderr
    assert "column 'camera' is the only one besides 'file', so" in result.stderr
    assert 'intervals are by group: ' in result.stderr
    table = pd.read_csv(tmp_path/'out'/'metrics-groups.csv').set_index('value')
    scans = rows[np.arange(len(rows)) % 3 == 0]
    assert table.loc['scan'].n == len(scans) and table.loc['scan'].accuracy == pytest.approx((scans.label
        == scans.predicted).mean(), abs=1e-6)
    assert table.n.sum() == len(rows)
    judged = pd.read_csv(tmp_path/'out'/'predictions-val.csv')
    is_scan = np.arange(len(rows)) % 3 == 0
    for name, part in (('scan', judged[is_scan]), ('phone', judged[~is_scan])):
        assert table.loc[name].unfamiliar == pytest.approx((part.familiarity < .1).mean(), abs=1e-6)


def test_intervals_are_by_group_if_the_csv_has_groups(run, data, tmp_path):
    rows = pd.read_csv(run.path/'predictions-val.csv')
    names = rows.file.str.removeprefix('val/')  # as before `split`
    pd.DataFrame(dict(file=names, group=np.arange(len(rows)) // 6)).to_csv(tmp_path/'g.csv', index=False)
    result = typed('evaluate', run.path, data, '--out', tmp_path/'out', '--groups', tmp_path/'g.csv', '--workers', 0)
    assert result.returncode == 0, result.stderr
    by_photo, by_group = (json.loads((o/'metrics.json').read_text()) for o in (run.path, tmp_path/'out'))
    assert by_photo['intervals']['groups'] is None and by_group['intervals']['groups'] == -(-len(rows) // 6)
    assert f"intervals are by group: {len(rows)} photos in {-(-len(rows) // 6)} groups\n" in result.stderr
    for name in ('accuracy', 'precision', 'recall'):
        assert np.ptp(by_group['intervals'][name]) >= np.ptp(by_photo['intervals'][name]) - 1e-9
        assert by_group['intervals'][name][0] <= by_group[name] <= by_group['intervals'][name][1]
    pd.DataFrame(dict(file=rows.file, group='')).to_csv(tmp_path/'g.csv', index=False)
    result = typed('evaluate', run.path, data, '--out', tmp_path/'more', '--groups', tmp_path/'g.csv', '--workers', 0)
    assert result.returncode == 1 and "column 'group' is empty in every row: write the weapon" in result.stderr
    assert not (tmp_path/'more').exists()
    (tmp_path/'g.csv').write_text(f'file,group\n{rows.file[0]},\nelsewhere/1.jpg,Luger\n')
    (tmp_path/'two.csv').write_text(f'file,weapon,camera\n{rows.file[0]},Luger,Nikon\n')
    for name, words in (('g', '--groups has no group of these photos, so the intervals are by photo'),
                        ('two', "two.csv' has no column 'group', so the intervals are by photo")):
        result = typed('evaluate', run.path, data, '--out', tmp_path/f'by {name}', '--groups', tmp_path/f'{name}.csv',
                       '--workers', 0)
        assert result.returncode == 0 and words in result.stderr
        assert json.loads((tmp_path/f'by {name}'/'metrics.json').read_text())['intervals']['groups'] is None


def test_numbers_by_group_leave_out_what_split_added_to_its_table(run, data, tmp_path):
    rows = pd.read_csv(run.path/'predictions-val.csv')
    names, weapons = rows.file.str.removeprefix('val/'), np.arange(len(rows)) // 6
    table = pd.DataFrame(dict(file=names, split='val', label=rows.label, group=weapons, sha256=range(len(rows))))
    for name, more, columns in (('split', {}, {'group'}), ('more', dict(camera='Nikon'), {'group', 'camera'})):
        table.assign(**more).to_csv(tmp_path/f'{name}.csv', index=False)
        result = typed('evaluate', run.path, data, '--out', tmp_path/name, '--groups', tmp_path/f'{name}.csv',
                       '--workers', 0)
        assert result.returncode == 0, result.stderr
        assert {*pd.read_csv(tmp_path/name/'metrics-groups.csv').column} == columns
        assert f"'{tmp_path/name/'metrics-groups.csv'}' has the numbers per value of " in result.stderr


def test_the_same_photos_are_as_familiar_as_after_the_training(run, data, tmp_path):
    result = typed('evaluate', run.path, data, '--out', tmp_path/'out', '--workers', 0)
    assert result.returncode == 0 and 'familiarity is left out' not in result.stderr
    rows, mine = (pd.read_csv(o/'predictions-val.csv') for o in (run.path, tmp_path/'out'))
    bank = read_bank(run)
    assert np.allclose(rows.familiarity, familiarity(bank.val_similarities, bank.table), atol=1e-6)
    # the table has the similarities of exactly these photos, so rounding moves them by at most one place
    assert np.abs(mine.familiarity - rows.familiarity).max() < 1.01 / (len(bank.table) + 1)
    for folder, table in ((run.path, rows), (tmp_path/'out', mine)):
        numbers, unfamiliar = json.loads((folder/'metrics.json').read_text()), table.familiarity < .1
        known = numbers['familiarity']
        assert numbers['levels']['unfamiliar_rate'] == .1 and known['n'] == len(table)
        assert known['unfamiliar'] == pytest.approx(unfamiliar.mean()) and unfamiliar.any()
        assert known['per_class'] == pytest.approx(unfamiliar.groupby(table.label).mean().to_dict())
        assert (table.reason[unfamiliar] == 'unfamiliar').all() and (table.reason[~unfamiliar] != 'unfamiliar').all()
        assert table.reason.notna().sum() == numbers['levels']['bands']['low']['n']


def test_photos_that_were_trained_on_are_counted(run, copy, tmp_path):
    mixed = tmp_path/'mixed'
    for i, photo in enumerate(sorted((copy/'train').glob('*/*.jpg'))[::4]):  # renamed, and half of them with a comment
        target = mixed/photo.parent.name/f'other {i}.jpg'
        target.parent.mkdir(parents=True, exist_ok=True)
        target.write_bytes(photo.read_bytes() + b'comment' * (i % 2))
    result = typed('evaluate', run.path, copy, '--out', tmp_path/'val', '--workers', 0)
    assert result.returncode == 0 and 'trained on' not in result.stderr
    n = len([*mixed.glob('*/*.jpg')])
    for out in ('all', 'some'):
        result = typed('evaluate', run.path, mixed, '--out', tmp_path/out, '--workers', 0)
        total = len([*mixed.glob('*/*.jpg')])
        assert (f'warning: the run was trained on {n} of the {total} photos: its results on them say nothing'
                in result.stderr)
        for photo in (copy/'val').glob('*/*.jpg'): shutil.copy(photo, mixed/photo.parent.name)
    assert total > n > 10


def test_weights_that_know_val_photos_are_named_and_the_run_knows_them_too(run, data, tmp_path):
    swapped = tmp_path/'swapped'
    for split, other in (('train', 'val'), ('val', 'train')): shutil.copytree(data/other, swapped/split)
    result = typed('train', swapped, '--out', tmp_path, '--name', 'on', *as_arguments(
        **QUICK | dict(weights=run.weights, head_epochs=1, fine_tune_epochs=0)))
    assert result.returncode == 0, result.stderr
    assert ('warning: --weights were trained on 48 of the 48 val photos, so the results will look too good'
            in result.stderr)
    result = typed('evaluate', tmp_path/'on', data/'train', '--out', tmp_path/'out', '--workers', 0)
    assert 'warning: the run was trained on 48 of the 48 photos' in result.stderr


def test_a_damaged_list_of_trained_photos_is_named(run, data, tmp_path):
    shutil.copytree(run.path, tmp_path/'run')
    (tmp_path/'run'/'train-photos.npy').write_bytes(b'no array')
    result = typed('evaluate', tmp_path/'run', data, '--out', tmp_path/'out', '--workers', 0)
    assert result.returncode == 1 and "train-photos.npy' cannot be read" in result.stderr
    assert 'copy it again from where the run was trained' in result.stderr and not (tmp_path/'out').exists()


def test_a_run_without_a_bank_is_judged_all_the_same(run, data, tmp_path):
    shutil.copytree(run.path, tmp_path/'run')
    forget_familiarity(Run(tmp_path/'run'))
    result = typed('evaluate', tmp_path/'run', data, '--out', tmp_path/'out', '--workers', 0)
    assert result.returncode == 0 and result.stderr.count('has no familiarity: an older version') == 1, result.stderr
    numbers, before = (json.loads((o/'metrics.json').read_text()) for o in (tmp_path/'out', run.path))
    assert numbers['familiarity'] is None and numbers['accuracy'] == before['accuracy']
    rows, others = (pd.read_csv(o/'predictions-val.csv') for o in (tmp_path/'out', run.path))
    assert rows.familiarity.isna().all() and (rows.predicted == others.predicted).all()
    assert 'unfamiliar' not in {*rows.reason}


@pytest.mark.parametrize(('width', 'value', 'words'), [(-1, None, 'belongs to another network'),
                                                       (None, np.nan, 'not all finite')])
def test_a_run_with_a_damaged_bank_is_not_judged(run, data, tmp_path, width, value, words):
    shutil.copytree(run.path, tmp_path/'run')
    bank, features = read_bank(run), read_bank(run).features[:, :width].astype(np.float32)
    features /= np.linalg.norm(features, axis=1, keepdims=True)
    if value is not None: features[3, 5] = value
    save_bank(Run(tmp_path/'run'), Bank(features.astype(np.float16), bank.val_similarities))
    result = typed('evaluate', tmp_path/'run', data, '--out', tmp_path/'out', '--workers', 0)
    assert result.returncode == 1 and words in result.stderr and not (tmp_path/'out').exists()
    assert 'familiarity.safetensors' in result.stderr and 'Traceback' not in result.stderr


def test_evaluate_leaves_what_a_person_should_look_at(run, data, tmp_path):
    result = typed('evaluate', run.path, data, '--out', tmp_path/'out', '--workers', 0)
    rows = pd.read_csv(tmp_path/'out'/'predictions-val.csv')
    wrong = rows[rows.label != rows.predicted]
    assert result.returncode == 0 and len(wrong) and {o.name for o in (tmp_path/'out'/'confused').iterdir()} == {
        f'{a} as {b}.jpg' for a, b in zip(wrong.label, wrong.predicted, strict=True)}
    assert list(pd.read_csv(tmp_path/'out'/'suspect-labels.csv')) == ['file', 'label', 'suggested', 'quality',
        'confidence']


@pytest.mark.parametrize('command', ['evaluate', 'report', 'export'])
def test_a_pickle_is_opened_by_no_command(run, data, tmp_path, command):
    result = typed(command, run.learner, *[data] * (command == 'evaluate'), '--out', tmp_path/'out.html')
    assert result.returncode == 1 and 'runs any code in it: give the folder of the run' in result.stderr
    assert not any(tmp_path.iterdir())


def test_photos_of_which_none_can_be_read_are_not_judged(run, tmp_path):
    label = run.config.classes[0]
    (tmp_path/'bad'/label).mkdir(parents=True)
    (tmp_path/'bad'/label/'0.jpg').write_bytes(b'no photo')
    result = typed('evaluate', run.path, tmp_path/'bad', '--out', tmp_path/'none', '--skip-unreadable')
    assert result.returncode == 1 and result.stderr.strip().endswith('has no photo that can be read')
    assert not (tmp_path/'none').exists()
