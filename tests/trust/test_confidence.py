"Confidences: one temperature, two thresholds with their promises, and what a run says of both."
import json
import warnings

import numpy as np
import pandas as pd
import pytest
import torch
from conftest import TINY, as_arguments, tree, typed
from scipy.special import softmax

from basegun_fastai.trust.calibration import calibration_error, split_in_half, calibration_metrics, fit_temperature
from basegun_fastai.trust.calibration import cross_fitted
from basegun_fastai.run import Run
from basegun_fastai.trust.levels import Levels, level_counts, photos_needed, find_levels, clopper_pearson_upper
from basegun_fastai.trust.levels import ood_metrics, threshold
from basegun_fastai.train import train


def sure(seed, n=3000, classes=6, heat=1.):
    "Logits, and labels that are drawn by the probabilities that the logits over `heat` stand for."
    random = np.random.default_rng(seed)
    logits = random.normal(0, 2.5, (n, classes))
    labels = (softmax(logits, 1).cumsum(1) < random.random((n, 1))).sum(1).clip(max=classes - 1)
    return (logits * heat).astype(np.float32), labels


# One temperature

@pytest.mark.parametrize('seed', range(10))
def test_planted_over_confidence_is_found(seed):
    logits, labels = sure(seed, heat=3.)
    assert fit_temperature(logits, labels) == pytest.approx(3, rel=.05)


@pytest.mark.parametrize('planted', [3., 1 / 3])
def test_planted_over_confidence_of_a_real_network_is_found(run, planted):
    rows = pd.read_csv(run.path/'predictions-val.csv')
    classes = run.config.classes
    logits, labels = np.log(rows[classes].to_numpy()), rows.label.map(classes.index).to_numpy()
    assert fit_temperature(logits, labels) == pytest.approx(1, rel=.01)  # what is kept is calibrated
    assert fit_temperature(planted * logits, labels) == pytest.approx(planted, rel=.05)


def test_the_temperature_is_the_one_of_scikit_learn():
    from sklearn.calibration import CalibratedClassifierCV
    from sklearn.frozen import FrozenEstimator
    from sklearn.linear_model import LogisticRegression
    logits, labels = sure(1, heat=2.)
    plain = LogisticRegression().fit(logits, labels)
    plain.coef_, plain.intercept_ = np.eye(6), np.zeros(6)  # its decision function is its input
    made = CalibratedClassifierCV(FrozenEstimator(plain), method='temperature').fit(logits, labels)
    assert 1 / made.calibrated_classifiers_[0].calibrators[0].beta_ == pytest.approx(fit_temperature(logits, labels),
        rel=1e-3)


def test_no_temperature_changes_an_answer():
    for seed in range(20):
        logits, labels = sure(seed, 500, heat=5.)
        assert (cross_fitted(logits, labels).argmax(1) == logits.argmax(1)).all()
        assert ((logits / fit_temperature(logits, labels)).argmax(1) == logits.argmax(1)).all()


def test_nothing_is_learnt_where_every_answer_is_right_or_there_is_none():
    logits, _ = sure(0, 50)
    assert fit_temperature(logits, logits.argmax(1)) == 1 and fit_temperature(logits[:0], np.array([], int)) == 1


@pytest.mark.parametrize('n', [1, 2, 3, 16])
def test_few_photos_are_judged_too(n):
    logits, labels = sure(0, n)
    assert np.isfinite([*calibration_metrics(cross_fitted(logits, labels), labels).values()]).all()


def test_halves_have_as_many_of_each_class():
    labels = np.repeat([0, 1, 2], [10, 3, 1])
    half = split_in_half(labels)
    assert [int(half[labels == o].sum()) for o in range(3)] in ([5, 2, 0], [5, 1, 1], [5, 1, 0],
                                                                [5, 2, 1]) and (half == split_in_half(labels)).all()


def test_the_figures_are_those_of_scikit_learn():
    from sklearn.metrics import brier_score_loss, log_loss
    logits, labels = sure(2, heat=2.)
    chance, found = softmax(logits.astype(float), 1), calibration_metrics(logits, labels)
    assert found['nll'] == pytest.approx(log_loss(labels,
                                                  chance)) and found['brier'] == pytest.approx(brier_score_loss(labels,
        chance, scale_by_half=False))


def test_the_calibration_error_of_a_liar_is_its_lie():
    random = np.random.default_rng(0)
    confidences = random.uniform(.6, .9, 30_000)
    assert calibration_error(confidences, random.random(30_000) < confidences - .1) == pytest.approx(.1, abs=.01)


# Two thresholds

def drawn(random, n):
    "Confidences, and answers that are right as often as these say."
    confidences = 1 - .5 * random.random(n) ** 3
    return confidences, random.random(n) < confidences


def true_rate(found):
    "Share of right answers above a threshold among all photos of `drawn`."
    most = ((1 - found) / .5) ** (1 / 3)
    return 1 - .5 * most ** 3 / 4


@pytest.mark.parametrize(('rate', 'n'), [(.99, 3000), (.95, 600), (.9, 300)])
def test_a_promise_is_kept_but_for_its_risk(rate, n):
    random, kept = np.random.default_rng(0), []
    for _ in range(400):
        found = threshold(*drawn(random, n), rate)
        kept.append(found is None or true_rate(found) >= rate)
    assert np.mean(kept) >= .95


def test_a_threshold_is_not_higher_than_it_has_to_be():
    random = np.random.default_rng(0)
    found = [threshold(*drawn(random, 20_000), .99) for _ in range(20)]
    assert None not in found and np.mean([true_rate(o) for o in found]) < .994


def test_a_hundred_photos_promise_nothing_and_one_photo_harms_nothing():
    for n in (1, 100):
        assert find_levels(np.full(n, .999), np.ones(n, bool)).high is None
    assert find_levels(np.full(1, .999), np.ones(1, bool)) == Levels(None, None)


def test_photos_that_are_equally_sure_are_on_one_side():
    confidences, right = np.repeat([1., .7], [1000, 1000]), np.repeat([True, False], [1000, 1000])
    assert .7 < threshold(confidences, right, .99) <= 1
    assert threshold(confidences, ~right, .99) is None


def test_a_mistake_among_the_surest_is_not_the_end():
    confidences, right = np.linspace(1, .6, 5000), np.ones(5000, bool)
    right[3] = False
    found = threshold(confidences, right, .99)
    assert found is not None and (confidences >= found).sum() == 5000


def test_the_bound_is_that_of_clopper_and_pearson():
    from scipy.stats import binomtest
    for wrong, n in ((0, 10), (3, 50), (50, 50), (1, 1)):
        wanted = binomtest(wrong, n).proportion_ci(.9, method='exact').high
        assert float(clopper_pearson_upper(wrong, n, .05)) == pytest.approx(wanted)
    assert photos_needed(.99, .05) == 299


def test_other_things_come_out_low_and_cost_what_they_cost():
    random = np.random.default_rng(0)
    confidences, right = drawn(random, 5000)
    others = random.uniform(.2, .8, 400)
    plain, found = find_levels(confidences, right), find_levels(confidences, right, ood=others)
    assert (others >= found.low).mean() <= .05 and found.low >= plain.low and found.high >= found.low
    nothing = find_levels(confidences, right, ood=np.ones(400))
    assert nothing == Levels(None, None)


def test_separation_is_that_of_its_definition():
    random = np.random.default_rng(0)
    guns, others = random.beta(8, 2, 500), random.beta(3, 3, 300)
    found = ood_metrics(guns, others)
    assert found['auroc'] == pytest.approx((guns[:, None] > others).mean(), abs=1e-6)
    assert found['fpr95'] == pytest.approx((others >= np.sort(guns)[24]).mean(), abs=.01)


def test_no_number_is_low(): assert Levels(.5, .9)(float('nan')) == 'low'


def test_bands_cover_all_photos():
    found = level_counts(Levels(.7, .95), *drawn(np.random.default_rng(0), 1000))
    assert sum(o['n'] for o in found.values()) == 1000 and sum(o['share'] for o in found.values()) == pytest.approx(1)
    for o in found.values(): assert o['interval'][0] <= o['right'] <= o['interval'][1]
    assert level_counts(Levels(None, None), np.ones(3), np.ones(3, bool))['high'] == dict(n=0, share=0., right=None,
        interval=None)


# A run

def test_a_run_says_how_far_its_confidence_can_be_trusted(run):
    numbers = json.loads((run.path/'metrics.json').read_text())
    assert set(numbers['calibration']) == {'temperature', 'bins', 'before',
                                           'after'} and numbers['calibration']['bins'] == 15
    assert set(numbers['levels']['bands']) == {'low', 'medium', 'high'} and sum(o['n']
        for o in numbers['levels']['bands'].values()) == numbers['n']
    assert numbers['levels']['high'] is None and 'too few' in numbers['levels']['refused']['high']
    assert (run.path/'confidence.png').read_bytes()[:4] == b'\x89PNG'


def test_the_temperature_is_in_the_last_layer_and_nowhere_else(data, tmp_path):
    from basegun_fastai.training.callbacks import newest_checkpoint
    from basegun_fastai.training.finish import finish
    seen = {}
    def watched(run, setup, learn, memory, *rest):
        seen.update({k: v.clone() for k, v in newest_checkpoint(run, run.config.started)['best']['weights'].items()})
        return finish(run, setup, learn, memory, *rest)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr('basegun_fastai.training.finish.finish', watched)
        train(data, fine_tune_epochs=2, out=tmp_path, name='run', **TINY)
    from safetensors.torch import load_file
    run = Run(tmp_path/'run')
    kept, heat = load_file(run.weights), json.loads((run.path/'metrics.json').read_text())['calibration']['temperature']
    assert heat != 1
    assert torch.allclose(kept['classifier.weight'] * heat, seen['1.0.weight'], rtol=1e-5)
    body = {k.removeprefix('0.model.'): v for k, v in seen.items() if k.startswith('0.model.')}
    assert all(torch.equal(v, kept[k]) for k, v in body.items())


@pytest.fixture
def others(tmp_path):
    "Photos without a gun."
    random, folder = np.random.default_rng(0), tmp_path/'other things'
    (folder/'inner').mkdir(parents=True)
    from PIL import Image
    for i in range(24):
        Image.fromarray(random.integers(0, 256, (40, 60, 3), np.uint8)).save(folder/('inner' if i % 2
            else '.')/f'{i}.png')
    return folder


def test_other_things_are_taken_into_account_by_train_and_evaluate(data, others, tmp_path):
    before = tree(others)
    train(data, fine_tune_epochs=1, out=tmp_path, name='run', not_a_gun=others, **TINY)
    numbers = json.loads((tmp_path/'run'/'metrics.json').read_text())['levels']
    assert numbers['not_a_gun']['n'] == 24 and set(numbers['not_a_gun']) == {'n', 'auroc', 'fpr95', 'shown'}
    told = typed('evaluate', tmp_path/'run', data, '--out', tmp_path/'judged', '--not-a-gun', others, '--workers', 0)
    assert told.returncode == 0 and 'not a gun: 24 photos' in told.stdout and tree(others) == before
    again = json.loads((tmp_path/'judged'/'metrics.json').read_text())['levels']
    assert again['not_a_gun'] == pytest.approx(numbers['not_a_gun']) and (again['low'],
        again['high']) == (numbers['low'], numbers['high'])


def test_faults_of_other_things(data, copy, others, tmp_path):
    def refused(word, *arguments):
        told = typed('train', data, '--out', tmp_path/'out', *as_arguments(**TINY), '--fine-tune-epochs', 1, *arguments)
        assert told.returncode == 1 and word in told.stderr and not (tmp_path/'out').exists(), told
    refused("--not-a-gun: no folder '", '--not-a-gun', tmp_path/'nowhere')
    (others/'notes.txt').write_text('no photo')
    refused('--skip-unreadable', '--not-a-gun', others)
    for o in others.glob('1?.png'): o.unlink()
    (others/'notes.txt').unlink()
    refused('takes 19 or more', '--not-a-gun', others/'inner')
    refused('that are also in the data', '--not-a-gun', copy/'val')
    refused('--high-rate 1.5', '--high-rate', 1.5)
    refused('--shown-rate 0.2', '--shown-rate', .2)


def test_what_is_wrong_with_an_evaluation_is_told_at_once(run, data, copy, others, tmp_path):
    (copy/'val').rename(copy/'photos')
    (copy/'photos'/'flamethrower').mkdir()
    (copy/'photos'/'flamethrower'/'0.jpg').write_bytes(b'no photo')  # would be told, had it been read
    (tmp_path/'g.csv').write_text('file;camera\n')
    told = typed('evaluate', run.path, copy/'photos', '--out', copy/'photos'/'out', '--not-a-gun', others/'inner',
                 '--groups', tmp_path/'g.csv')
    assert told.returncode == 1 and 'is none of' not in told.stderr
    for o in ("class 'flamethrower' is not one", 'lies inside the data', 'takes 19 or more', 'separate them by commas'):
        assert told.stderr.count(o) == 1, told.stderr
    told = typed('evaluate', run.path, tmp_path/'nowhere', '--not-a-gun', others, '--out', others/'out', '--groups',
                 tmp_path/'g.csv')
    assert (told.returncode == 1 and 'nowhere' in told.stderr and f"inside the data '{others}'" in told.stderr
            and not (others/'out').exists())
    told = typed('evaluate', run.path, data, '--not-a-gun', data/'val', '--out', tmp_path/'out')
    assert told.returncode == 1 and 'that are also in the data' in told.stderr and not (tmp_path/'out').exists()


def test_groups_have_numbers_of_their_own(run, data, tmp_path):
    rows = pd.read_csv(run.path/'predictions-val.csv')
    pd.DataFrame(dict(file=rows.file, camera=np.where(np.arange(len(rows)) % 3, 'phone',
                                                      'scan'))).to_csv(tmp_path/'g.csv', index=False)
    told = typed('evaluate', run.path, data, '--out', tmp_path/'out', '--groups', tmp_path/'g.csv', '--workers', 0)
    assert told.returncode == 0, told.stderr
    table = pd.read_csv(tmp_path/'out'/'metrics-groups.csv').set_index('value')
    scans = rows[np.arange(len(rows)) % 3 == 0]
    assert table.loc['scan'].n == len(scans) and table.loc['scan'].accuracy == pytest.approx((scans.label
        == scans.predicted).mean(), abs=1e-6)
    assert table.n.sum() == len(rows)


def test_a_column_with_a_value_for_each_photo_makes_no_groups(tmp_path, capsys):
    from basegun_fastai.trust.groups import write_groups
    from basegun_fastai.trust.predictions import Predictions
    found = Predictions([f'{o}.jpg' for o in range(300)], ['a', 'b'], np.zeros(300, int), np.tile([1., 0.], (300, 1)))
    groups = pd.DataFrame(dict(number=[str(o) for o in range(300)], camera=['x', 'y'] * 150))
    assert write_groups(found, groups, tmp_path).value.tolist() == ['x',
        'y'] and 'number left out' in capsys.readouterr().err
    assert list(write_groups(found, groups[['number']], tmp_path)) == list(pd.read_csv(tmp_path/'metrics-groups.csv'))


def test_evaluate_leaves_what_a_person_should_look_at(run, data, tmp_path):
    told = typed('evaluate', run.path, data, '--out', tmp_path/'out', '--workers', 0)
    rows = pd.read_csv(tmp_path/'out'/'predictions-val.csv')
    wrong = rows[rows.label != rows.predicted]
    assert told.returncode == 0 and len(wrong) and {o.name for o in (tmp_path/'out'/'confused').iterdir()} == {
        f'{a} as {b}.jpg' for a, b in zip(wrong.label, wrong.predicted, strict=True)}
    assert list(pd.read_csv(tmp_path/'out'/'suspect-labels.csv')) == ['file', 'label', 'suggested', 'quality',
        'confidence']


def test_a_pickle_is_opened_by_nobody_who_does_not_ask_for_it(run, data, tmp_path):
    told = typed('evaluate', run.learner, data, '--out', tmp_path/'out')
    assert (told.returncode == 1 and 'runs whatever code is in it' in told.stderr and '--trust-pickle' in told.stderr
            and not (tmp_path/'out').exists())
    for option in ('--not-a-gun', '--groups'):
        told = typed('evaluate', run.learner, data, '--out', tmp_path/'out', '--trust-pickle', option, data)
        assert told.returncode == 1 and 'leave them out' in told.stderr and not (tmp_path/'out').exists()
    with pytest.warns(UserWarning, match='insecure pickle'):
        told = typed('evaluate', run.learner, data, '--out', tmp_path/'out', '--trust-pickle')
    assert told.returncode == 0, told.stderr
    for o in ('everything is called low', 'nothing is called high'):
        assert f'{o}: no threshold goes with the model' in told.stdout
    mine, theirs = (pd.read_csv(o/'predictions-val.csv') for o in (tmp_path/'out', run.path))
    classes = run.config.classes
    assert mine.file.tolist() == theirs.file.tolist() and np.abs(mine[classes]
        - theirs[classes]).to_numpy().max() < 1e-4
    (tmp_path/'bad'/classes[0]).mkdir(parents=True)
    (tmp_path/'bad'/classes[0]/'0.jpg').write_bytes(b'no photo')
    for model, options in ((run.learner, ['--trust-pickle']), (run.path, [])):
        with warnings.catch_warnings():
            warnings.simplefilter('ignore')
            told = typed('evaluate', model, tmp_path/'bad', '--out', tmp_path/'none', '--skip-unreadable', *options)
        assert (told.returncode == 1 and told.stderr.strip().endswith('has no photo that can be read')
                and not (tmp_path/'none').exists())
