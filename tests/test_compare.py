"`compare` ranks runs, recommends one, and names those that cannot be compared with the reason."
import csv
import itertools
import json
import shlex
import shutil
from dataclasses import replace

import numpy as np
import pandas as pd
import pytest
from browser import tables_of, widths_of
from bs4 import BeautifulSoup
from conftest import tree, typed
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.colors import to_rgba
from matplotlib.text import Text
from safetensors.numpy import save_file
from scipy.stats import beta

from basegun_fastai.base.record import Run
from basegun_fastai.compare import _text
from basegun_fastai.base.text import short_name
from basegun_fastai.trust.calibration import confidence_report
from basegun_fastai.trust.compare_page import compare_page, plot_costs
from basegun_fastai.trust.comparison import classes_fault, comparison_fault, gains, sign_flip_test
from basegun_fastai.trust.leaderboard import Row, difference_interval, holm, leaderboard, read_entry, training_times
from basegun_fastai.trust.levels import Levels
from basegun_fastai.trust.predictions import Predictions, csv_rows, metrics
from basegun_fastai.trust.recommendation import recommend, recommendation

pytestmark = pytest.mark.slow


def predictions(right, classes, seed=0):
    "`Predictions` for as many photos as `right` has, correct if it is true."
    rng = np.random.default_rng(seed)
    n, c = len(right), len(classes)
    labels = np.arange(n) % c
    predicted = np.where(right, labels, (labels + 1 + rng.integers(0, c - 1, n)) % c)
    logits = rng.normal(0, .3, (n, c))
    logits[np.arange(n), predicted] += np.where(right, 4, 3) + rng.random(n)
    files = [f'val/{classes[label]}/{i:05}.jpg' for i, label in enumerate(labels)]
    return Predictions(files, list(classes), labels, logits)


STARTS = itertools.count()


def write_run(path, like, preds, weights=1000, report=True, size=None, **changes):
    "A finished run with these predictions; the rest is that of the run `like`."
    path.mkdir(parents=True)
    run, config = Run(path), like.config
    numbers = metrics(preds) | (confidence_report(preds) if report else {})
    levels = Levels(None, None)
    if report: levels = Levels(*(numbers['levels'][o] for o in ('low', 'high', 'unfamiliar_rate')))
    csv_rows(preds, levels).to_csv(run.predictions, index=False)
    run.metrics.write_text(json.dumps(numbers))
    shutil.copyfile(like.history, run.history)
    save_file({'body.weight': np.zeros(weights, np.float32), 'bn.running_mean': np.zeros(7, np.float32)}, run.weights)
    resolved = replace(config.resolved, size=size or config.resolved.size)
    run.save_config(replace(config, **dict(started=f'2026-11-30T{next(STARTS)}', classes=preds.classes,
                                                 resolved=resolved) | changes))
    return run


def started_later(run, path):
    "A copy of a run that passes for another training."
    other = Run(shutil.copytree(run.path, path))
    other.save_config(replace(run.config, started=f'2026-11-30T{next(STARTS)}'))
    return other


def draw(n, accuracy, seed=0): return np.random.default_rng(seed).random(n) < accuracy


def exchange(right, lost, won):
    "Other answers: fewer photos right in one place, more in another."
    other = right.copy()
    other[np.flatnonzero(right)[:lost]], other[np.flatnonzero(~right)[:won]] = False, True
    return other


CLASSES = ['autre_pistolet', 'fusil', 'revolver']


@pytest.fixture
def four(run, tmp_path):
    "The best, one that is as good and small, one that is worse, and a twin of the first with another seed."
    base = draw(600, .9)
    worse = base & (np.arange(600) % 8 > 0)
    parts = dict(large=(base, 9000, run.config.seed), petit=(exchange(base, 9, 5), 100, run.config.seed),
                 worse=(worse, 10, run.config.seed), twin=(exchange(base, 4, 2), 9000, 7))
    return {name: write_run(tmp_path/'les runs'/name, run, predictions(right, CLASSES, i), weights, seed=seed,
                            options=run.config.options | dict(seed=seed, name=name, head='linear' if i in (0, 3)
                                                              else 'bn-dropout'))
            for i, (name, (right, weights, seed)) in enumerate(parts.items())}


def paths(runs): return [o.path for o in runs.values()]


def test_numbers_are_those_of_each_run_and_one_is_recommended(four, tmp_path):
    before = tree(tmp_path)
    result = typed('compare', *paths(four), '--json', '--csv', tmp_path/'all.csv')
    assert result.returncode == 0, result.stderr
    assert {k: v for k, v in tree(tmp_path).items() if not k.endswith('all.csv')} == before
    numbers = json.loads(result.stdout)
    assert numbers['not_compared'] == []
    accuracies = [o['accuracy'] for o in numbers['runs']]
    assert accuracies == sorted(accuracies, reverse=True)
    for row in numbers['runs']:
        metrics_of = json.loads(Run(row['path']).metrics.read_text())
        for o in ('accuracy', 'recall', 'loss'): assert row[o] == metrics_of[o]
        assert row['calibration_error'] == metrics_of['calibration']['after']['ece']
        assert row['high'] == metrics_of['levels']['bands']['high']['share']
        assert (row['accuracy_low'], row['accuracy_high']) == pytest.approx(metrics_of['intervals']['accuracy'])
    standing = {o['run']: o['standing'] for o in numbers['runs']}
    assert standing['worse'] == 'worse' and sorted(standing.values()) == ['best', 'undecided', 'undecided', 'worse']
    assert numbers['recommended'] == str(four['petit'].path)
    assert {o['run']: o['parameters'] for o in numbers['runs']} == dict(large=9000, petit=100, worse=10, twin=9000)
    (seeds,) = numbers['seeds']
    assert {*seeds['runs']} == {'large', 'twin'} and seeds['low'] < seeds['mean'] < seeds['high']
    with open(tmp_path/'all.csv', encoding='utf-8', newline='') as file: rows = list(csv.DictReader(file))
    assert [float(o['accuracy']) for o in rows] == accuracies and rows[0]['p_value'] == ''


def test_the_table_is_80_columns_wide_and_says_which_run_to_take(four):
    result = typed('compare', *paths(four))
    lines = result.stdout.splitlines()
    assert max(map(len, lines[:-1])) <= 80 and result.stderr == ''
    first = shlex.quote(str(four[lines[1].split()[0]].path))
    assert lines[-1].startswith("Take 'petit': it is the cheapest of the 3 runs that may be as good as the best")
    assert lines[-1].endswith(
        'The cost is estimated as weights × pixels. To compare measured times, export each of these runs, for example '
        f"with `basegun-fastai export {first}`, and compare again.")
    assert sum(o.startswith('petit ') for o in lines) == 2


def test_the_page(four, tmp_path):
    page_file = tmp_path/'la page.html'
    result = typed('compare', *paths(four), '--out', page_file)
    assert result.returncode == 0 and "wrote '" in result.stderr, result.stderr
    page = BeautifulSoup(page_file.read_text(), 'html.parser')
    assert "Take 'petit'" in page.find(id='recommendation').get_text()
    assert page.find(id='recommendation').code.get_text().startswith('basegun-fastai export ')
    assert '`' not in page.body.get_text()
    assert [o['data-run'] for o in page.select('#runs tr[data-run]')][0] in ('large', 'twin')
    assert len(page.select('#recalls tr')) == 1 + len(CLASSES) and page.find('svg')
    options = page.find(id='options').get_text()
    assert 'seed' in options and 'head' in options and 'arch' not in options
    photos = page.select('.pair')
    assert 0 < len(photos) <= 60 and all(len(o.select('span')) == 4 for o in photos)
    assert all(o.select('.error') for o in photos)


def test_photos_are_shown_only_if_they_are_those_of_the_runs(run, data, copy, tmp_path):
    runs = [shutil.copytree(run.path, tmp_path/o) for o in 'ab']
    rows = pd.read_csv(runs[1]/'predictions-val.csv')
    first, second = rows.columns[6:8]
    rows[[first, second]] = rows[[second, first]].to_numpy()
    rows.to_csv(runs[1]/'predictions-val.csv', index=False)
    numbers = json.loads((runs[1]/'metrics.json').read_text())
    right = rows.label == rows.iloc[:, 6:].idxmax(axis=1)
    (runs[1]/'metrics.json').write_text(json.dumps(numbers | dict(accuracy=float(right.mean()))))
    file = next((copy/'val').glob('*/*'))
    file.unlink()
    shutil.copyfile(next((copy/'train').glob('*/*')), file)
    for folder, n in ((data, 1), (copy, 0)):
        result = typed('compare', *runs, '--out', tmp_path/'page.html', '--data', folder, '--workers', 0)
        assert result.returncode == 0, result.stderr
        assert ('shows no photos' in result.stderr) == (n == 0)
        assert ((tmp_path/'page.html').read_text().count('src="data:image/jpeg') > 0) == (n == 1)


def test_what_cannot_be_compared_is_named_and_the_others_are_compared(four, run, tmp_path):
    right = draw(600, .9)
    preds = predictions(right, CLASSES)
    fewer = write_run(tmp_path/'fewer', run, preds.part(slice(300)))
    others = write_run(tmp_path/'classes', run, predictions(right, [*CLASSES[:2], 'sabre']))
    labels = write_run(tmp_path/'labels', run, replace(preds, labels=(preds.labels + 1) % 3, logits=np.roll(
        preds.logits, 1, 1)))
    contents = write_run(tmp_path/'contents', run, preds, dataset=replace(
        run.config.dataset, parts=run.config.dataset.parts | dict(val='another')))
    unfinished = write_run(tmp_path/'unfinished', run, preds, state='running')
    damaged, torn = (write_run(tmp_path/o, run, preds) for o in ('damaged', 'torn'))
    damaged.metrics.write_text('{')
    torn.predictions.write_text('\n'.join(torn.predictions.read_text().split('\n')[:50]) + '\n')
    old = write_run(tmp_path/'old', run, preds, report=False, dataset=replace(run.config.dataset, parts={}))
    copy = shutil.copytree(four['large'].path, tmp_path/'copy')
    (tmp_path/'empty').mkdir()
    wrong = [fewer.path, others.path, labels.path, contents.path, unfinished.path, damaged.path, torn.path,
             tmp_path/'empty', tmp_path/'absent', four['large'].path, copy]
    result = typed('compare', *paths(four), *wrong, old.path)
    assert result.returncode == 0, result.stderr
    lines = result.stderr.splitlines()
    for path, words in zip(wrong, ('has 300 of its 300 photos, and 600 in all', 'has different classes from',
                                   'labels or contents are not', 'labels or contents are not', 'is not finished',
                                   'missing or damaged', 'are not of the same val photos', 'has no config.json',
                                   'does not exist', 'is compared once', 'is the same run as'), strict=True):
        assert [o for o in lines if str(path) in o and words in o], (path, words, lines)
    assert len(lines) == len(wrong)
    assert 'old ' in result.stdout


@pytest.mark.parametrize('n', [0, 1])
def test_fewer_than_two_runs(four, tmp_path, n):
    result = typed('compare', *paths(four)[:n], tmp_path/'absent')
    assert result.returncode == 1 and result.stdout == ''
    assert 'Give at least two finished runs' in result.stderr.splitlines()[-1]
    assert ('is the only run that can be compared' in result.stderr) == (n == 1)


def test_all_faults_of_options_at_once(four, tmp_path):
    result = typed('compare', *paths(four), '--out', tmp_path/'page.htm', '--csv', tmp_path, '--data',
                   tmp_path/'absent')
    assert result.returncode == 1
    for words in ('ends in .html', 'is a folder', '--data: '): assert words in result.stderr, result.stderr


def test_nothing_is_written_among_the_photos_of_a_run(four, data):
    result = typed('compare', *paths(four), '--out', data/'page.html')
    assert result.returncode == 1 and 'page.html' in result.stderr and not (data/'page.html').exists()


@pytest.mark.parametrize('change', [dict(loss=float('nan')), dict(recall=None), dict(accuracy='high'), [1]])
def test_metrics_that_are_no_numbers(four, change):
    file = four['twin'].metrics
    file.write_text(json.dumps(json.loads(file.read_text()) | change if isinstance(change, dict) else change))
    result = typed('compare', *paths(four))
    assert result.returncode == 0 and 'missing or damaged' in result.stderr and 'twin ' not in result.stdout


def damage(run, what):
    "Break a run as a full disk or a hand does."
    numbers, config = json.loads(run.metrics.read_text()), json.loads(run.config_file.read_text())
    if what == 'a row that ends early':
        text = run.predictions.read_text()
        run.predictions.write_text(text[:text.rindex(',')])
    if what == 'a history that ends early': run.history.write_text(run.history.read_text().rsplit('\n', 2)[0] + '\n')
    if what == 'levels': numbers['levels'] = [1]
    if what == 'a share': numbers['levels']['bands']['low']['share'] = None
    if what == 'data': del config['options']['data']
    if what in ('versions', 'classes', 'options'): config[what] = None
    if what == 'timm_name': del config['architecture']['timm_name']
    if what == 'size': config['resolved']['size'] = 'large'
    if what == 'parts': config['dataset']['parts'] = None
    run.metrics.write_text(json.dumps(numbers))
    run.config_file.write_text(json.dumps(config))


@pytest.mark.parametrize('what', ['a row that ends early', 'a history that ends early', 'levels', 'a share', 'data',
                                  'versions', 'classes', 'options', 'timm_name', 'size', 'parts'])
def test_a_damaged_run_does_not_stop_the_comparison(four, tmp_path, what):
    damage(four['twin'], what)
    result = typed('compare', *paths(four), '--out', tmp_path/'page.html')
    assert result.returncode == 0, result.stderr
    assert [o for o in result.stderr.splitlines() if str(four['twin'].path) in o], result.stderr
    assert result.stdout.splitlines()[-1] == '1 of 4 folders left out: see above'


def test_many_good_runs_do_not_make_a_worse_one_eligible(run, tmp_path):
    base = draw(600, .9)
    cheap = exchange(base, 14, 3)  # p is 0.013 before it is adjusted for 13 runs
    rights = dict(best=base, cheap=cheap) | {f'other{i}': exchange(base, 9, 8) for i in range(12)}
    runs = [write_run(tmp_path/k, run, predictions(v, CLASSES), 10 if k == 'cheap' else 500, report=False)
            for k, v in rights.items()]
    numbers = json.loads(typed('compare', *(o.path for o in runs), '--json').stdout)
    (row,) = [o for o in numbers['runs'] if o['run'] == 'cheap']
    assert row['p_value'] > .05 and row['difference_low'] > 0 and row['standing'] == 'probably worse'
    assert numbers['recommended'] == str(tmp_path/'best')
    lines = typed('compare', *(o.path for o in runs), '--out', tmp_path/'page.html').stdout.splitlines()
    eligible = sum(' best ' in o or ' undecided ' in o for o in lines[:-1])
    assert eligible == 13 and f'of the {eligible} runs that may be as good as the best' in lines[-1], lines
    assert any(o.split()[:3] == ['cheap', 'probably', 'worse'] for o in lines) and max(map(len, lines[:-1])) <= 80
    page = BeautifulSoup((tmp_path/'page.html').read_text(), 'html.parser')
    shown = [o.find_all('td')[1].get_text() for o in page.select('#runs tr[data-run]')]
    assert sorted(shown) == sorted(['best: take this', *['undecided'] * 12, 'probably worse'])


def test_the_table_is_80_columns_wide_with_long_names(four):
    rows = leaderboard([read_entry(o.path) for o in four.values()])
    rows = [replace(o, run=f'firearms-2026-efficientnet-{i}', network='tf_efficientnet_lite0.in1k', parameters=123e6,
                    milliseconds=123.4, megabytes=123.4, epochs=100, seconds=6e5, high=1., shown=1., standing=standing)
            for i, (o, standing) in enumerate(zip(rows, ('best', 'undecided', 'probably worse', 'worse'), strict=True))]
    lines = _text(recommend(rows), []).splitlines()
    assert max(map(len, lines)) <= 80 and sum(o.startswith('firear') for o in lines) == 8, lines


@pytest.mark.parametrize('standing', ['worse', 'probably worse'])
def test_the_best_is_taken_if_no_other_run_may_be_as_good(four, standing):
    rows = leaderboard([read_entry(o.path) for o in four.values()])
    rows = recommend([rows[0], *(replace(o, standing=standing) for o in rows[1:])])
    assert rows[0].recommended and recommendation(rows) == (
        f"Take '{rows[0].run}': it is the most accurate, and no other run is likely to be as good.")


def test_what_the_accuracy_hides_is_said(run, tmp_path):
    base = np.ones(300, bool)
    base[::10] = False
    lost = base.copy()
    lost[np.flatnonzero(np.arange(300) % 3 == 2)[:8]] = False  # of the last class only
    lost[np.flatnonzero(~base)[:6]] = True
    few = predictions(base, CLASSES).part(np.flatnonzero((np.arange(300) % 3 < 2) | (np.arange(300) < 60)))
    fewer = predictions(lost, CLASSES).part(np.flatnonzero((np.arange(300) % 3 < 2) | (np.arange(300) < 60)))
    runs = [write_run(tmp_path/k, run, preds, n, report=False) for k, preds, n in
            (('large', few, 500), ('small', fewer, 5))]
    lines = typed('compare', *(o.path for o in runs)).stdout.splitlines()
    assert lines[-1].startswith("caution: 'small' has a lower recall than 'large' for revolver from"), lines
    none = base & (np.arange(300) % 3 < 2)
    blind = [write_run(tmp_path/f'blind {k}', run, predictions(right, CLASSES), report=False)
             for k, right in (('a', none), ('b', exchange(none, 2, 0)))]
    assert "recognises no photo of revolver (100 photos)" in typed('compare', *(o.path for o in blind)).stdout
    chance = [write_run(tmp_path/k, run, predictions(draw(300, .3, i), CLASSES), report=False)
              for i, k in enumerate(('one', 'two'))]
    assert 'may be no better than always answering' in typed('compare', *(o.path for o in chance)).stdout


def test_no_file_of_a_run_is_replaced(four):
    file = four['large'].predictions
    before = file.read_bytes()
    result = typed('compare', *paths(four), '--csv', file)
    assert result.returncode == 1 and file.read_bytes() == before and '--csv' in result.stderr


def test_groups_make_intervals_wider_and_need_more_to_call_a_run_worse(four, tmp_path):
    files = pd.read_csv(four['large'].predictions).file
    pd.DataFrame(dict(file=files, group=np.arange(600) // 100)).to_csv(tmp_path/'g.csv', index=False)
    plain, grouped_numbers = (json.loads(typed('compare', *paths(four), '--json', *more).stdout)
                              for more in ((), ('--groups', tmp_path/'g.csv')))
    assert {o['standing'] for o in plain['runs']} == {'best', 'undecided', 'worse'}
    standings = {o['run']: o['standing'] for o in grouped_numbers['runs']}  # six groups: p is at least 1/32
    assert {*standings.values()} == {'best', 'undecided', 'probably worse'} and standings['worse'] == 'probably worse'


def test_an_export_is_timed_if_it_belongs_to_its_run(run, exported, tmp_path):
    first, second, third = (started_later(run, tmp_path/o) for o in ('a', 'b', 'c'))
    for o in (first, second): shutil.copytree(exported, o.exported)
    shutil.copytree(exported, third.exported)
    content = third.weights.read_bytes()
    third.weights.write_bytes(content[:-1] + bytes([content[-1] ^ 1]))
    bare = shutil.copytree(first.path, tmp_path/'bare', ignore=shutil.ignore_patterns('exported'))
    result = typed('compare', bare, first.path, second.path, third.path, '--json')
    assert result.returncode == 0, result.stderr
    numbers = json.loads(result.stdout)
    times = {o['run']: o['milliseconds'] for o in numbers['runs']}
    assert times['c'] is None and times['a'] > 0 and .5 < times['a'] / times['b'] < 2
    assert f"'{first.path}' is the same run as '{bare}'" in numbers['not_compared'][0]
    assert 'was exported from other weights' in numbers['not_compared'][1]
    assert all((o['megabytes'] is None) == (o['run'] == 'c') for o in numbers['runs'])


def test_runs_with_the_same_name_are_called_by_their_paths(four, tmp_path):
    other = started_later(four['large'], tmp_path/'others'/'large')
    numbers = json.loads(typed('compare', four['large'].path, other.path, four['petit'].path, '--json').stdout)
    assert {o['run'] for o in numbers['runs']} == {str(four['large'].path), str(other.path), 'petit'}


def test_groups_of_the_training_are_named(four, run, tmp_path):
    armed = write_run(tmp_path/'armed', run, predictions(draw(600, .9), CLASSES), options=run.config.options | dict(
        groups='mes armes.csv'))
    for runs, has_groups in (([armed.path], True), ([], False)):
        result = typed('compare', *paths(four), *runs)
        assert ("trained with groups: to compare by group, add --groups 'mes armes.csv'" in result.stderr) == has_groups


def test_adjusted_p_values_are_those_of_an_independent_computation():
    for seed in range(50):
        p = np.random.default_rng(seed).random(7) ** 3
        ranked = sorted(range(7), key=lambda i: p[i])
        expected, highest = [0] * 7, 0
        for k, i in enumerate(ranked):
            highest = max(highest, (7 - k) * p[i])
            expected[i] = min(1, highest)
        assert holm(p) == pytest.approx(expected)


def test_the_interval_of_a_difference_contains_the_truth():
    def contains(seed, size):
        rng = np.random.default_rng(seed)
        shared = np.repeat(rng.choice([-1, 0, 1], 400 // size, p=[.06, .84, .1]), size)
        low, high = difference_interval(shared, np.repeat(np.arange(400 // size), size) if size > 1 else None)
        return low <= .04 <= high
    for size in (1, 5):
        assert np.mean([contains(o, size) for o in range(400)]) > .9


def test_two_seeds_of_one_network_are_hardly_ever_called_different_and_five_points_are_seen():
    def p_value(seed, first, second, n):
        rng = np.random.default_rng(seed)
        easiness = rng.random(n)  # of each photo, shared by both networks
        a, b = (rng.random(n) < beta.ppf(easiness, o / 2, (1 - o) / 2) for o in (first, second))
        return sign_flip_test(gains(a, b))
    assert np.mean([p_value(o, .9, .9, 1000) < .05 for o in range(200)]) <= .07
    assert np.mean([p_value(o, .85, .9, 1000) < .05 for o in range(200)]) >= .8


def test_a_recommendation_with_times(four):
    entries = [read_entry(o.path) for o in four.values()]
    rows = leaderboard(entries)
    times = dict(large=50., petit=20., twin=19., worse=1.)
    rows = recommend([replace(o, milliseconds=times[o.run]) for o in rows])
    (chosen,) = [o.run for o in rows if o.recommended]
    assert chosen == max(('petit', 'twin'), key=lambda o: next(r.accuracy for r in rows if r.run == o))
    assert 'ms per photo' in recommendation(rows) and 'estimated' not in recommendation(rows)


def row(name, accuracy, standing='undecided', **changes):
    "A row of the table, without a run."
    return Row(name, name, name, 224, 5_000_000, 15, 900., 800, accuracy, accuracy - .02, accuracy + .02, accuracy, .3,
               *[None] * 7, standing, **changes)


@pytest.mark.parametrize('n', [1, 2, 12, 40])
def test_labels_of_the_chart_do_not_overlap_and_stand_in_order(n):
    rows = [row(f'a long name of a network {i}', .93 - i / 10_000, 'undecided' if i else 'best',
                recommended=i == n - 1) for i in range(n)]
    figure = plot_costs(rows)
    canvas = FigureCanvasAgg(figure)
    canvas.draw()
    labels = figure.axes[0].texts
    assert [o.get_text() for o in labels] == [short_name(rows[i].run) for i in [*range(min(n, 12)), *([39] * (n > 12))]]
    boxes = [Text.get_window_extent(o, canvas.get_renderer()) for o in labels]  # without the line to the point
    assert not [pair for pair in itertools.combinations(boxes, 2) if pair[0].overlaps(pair[1])]
    assert all(above.y0 > below.y1 for above, below in itertools.pairwise(boxes))
    right = figure.axes[0].get_window_extent().x1
    assert all(right < o.x0 < o.x1 <= figure.bbox.x1 and 0 <= o.y0 < o.y1 <= figure.bbox.y1 for o in boxes)
    points = [o for o in figure.axes[0].lines if o.get_marker() == 'o']
    for label in labels:
        (point,) = [o for o in points if (o.get_xdata()[0], o.get_ydata()[0]) == label.xy]
        assert to_rgba(point.get_color()) == to_rgba(label.get_color()) == label.arrow_patch.get_edgecolor()


@pytest.mark.parametrize(('costs', 'words'), [
    ((4., 3.98), 'accurate and among the cheapest (4.0'), ((3., 3.98), 'accurate and the cheapest (3.0'),
    ((4., 3.), 'it is the cheapest (3.0')])
def test_times_that_hardly_differ_are_equal(costs, words):
    first, second = (row(name, accuracy, milliseconds=o, standing=standing) for name, accuracy, o, standing in
                     zip('ab', (.9, .89), costs, ('best', 'undecided'), strict=True))
    rows = recommend([first, replace(second, difference=.01, difference_low=-.01, difference_high=.03)])
    assert words in recommendation(rows)


@pytest.mark.parametrize('costs', [(18, 80), (5, 6), (1, 4000), (11, 11), (3.95, 3.98)])
def test_the_axis_of_costs_has_numbers(costs):
    figure = plot_costs([row(f'{o}', .9, milliseconds=o) for o in costs])
    FigureCanvasAgg(figure).draw()
    axis, (low, high) = figure.axes[0].xaxis, figure.axes[0].get_xlim()
    numbers = {o.get_text() for o in axis.get_ticklabels(which='both') if low <= o.get_position()[0] <= high}
    assert len(numbers - {''}) >= 2 and high >= 2 * low  # not filled by a difference that is noise


@pytest.mark.parametrize(('first', 'second', 'words'), [
    ('abc', 'abd', "Only in 'x': c. Only in 'y': d"), ('abcd', 'ab', "Only in 'x': c, d. Only in 'y': none"),
    ('ab', 'abc', "Only in 'x': none. Only in 'y': c"), ('ab', 'ab', None)])
def test_which_run_has_which_classes(run, first, second, words):
    runs = Run('x'), Run('y')
    for o, classes in zip(runs, (first, second), strict=True): o.config = replace(run.config, classes=[*classes])
    message = words and f"'x' has different classes from 'y'. {words}"
    assert classes_fault(*runs) == message
    whole = message and f'--against {message}. Give a run with the same classes'
    assert comparison_fault(*runs) == whole


def test_the_tables_of_the_page_fit_a_narrow_window(four, tmp_path):
    entries = [read_entry(o.path) for o in four.values()]
    rows = [replace(o, run=f'firearms-2026-efficientnet-b3-seed {i}', network='tf_efficientnet_lite0.in1k',
                    milliseconds=123.4, megabytes=123.4, seconds=6e4, not_a_gun_auroc=.98, familiarity_auroc=.97)
            for i, o in enumerate(leaderboard(entries))]
    page = tmp_path/'page.html'
    page.write_text(compare_page(entries, recommend(rows), [], ([], []), None))
    hidden = tables_of(page, tmp_path, 1085)  # 1100, less a scroll bar
    assert {'runs', 'costs', 'recalls', 'options'} == {*hidden} and not any(hidden.values()), hidden
    assert widths_of(page, tmp_path, 390)[0] <= 390


def test_columns_that_no_run_has_are_left_out_and_a_short_training_is_shown_in_seconds():
    def header(*rows): return next(o for o in _text([*rows], []).splitlines() if ' network' in o).split()
    plain = ['run', 'network', 'pixels', 'M', 'weights', 'epochs']
    short, timed = row('short', .9, 'best'), row('timed', .9, milliseconds=20., megabytes=13.)
    assert header(short, short) == [*plain, 'minutes'] and header(short, timed) == [*plain, 'minutes', 'MB', 'ms']
    quick = replace(short, seconds=7.25)
    assert header(quick, quick) == [*plain, 'seconds'] and header(quick, short) == [*plain, 'minutes']
    assert training_times([quick, replace(short, seconds=599)]) == ('seconds', ['7.2', '599.0'])
    assert training_times([quick, short]) == ('minutes', ['0.1', '15.0'])
