"The README shows the real output of the commands."
import json
import re
import shlex
import textwrap
from importlib import import_module

import pytest
from conftest import COMMAND, run_command
from fastcore.script import anno_parser
from test_layers import ROOT
from warm import run_warm

from basegun_fastai.cli import COMMANDS

README = (ROOT/'README.md').read_text()


def page(name):
    return ''.join(''.join(o['source']) for o in json.loads((ROOT/'nbs'/f'{name}.ipynb').read_text())['cells'])


HOW = page('tutorials/how-it-works')


def block(name): return re.search(rf'<!-- {re.escape(name)} -->\n```\n(.*?)```', README, re.S)[1]


def test_readme_can_be_read_in_one_sitting(): assert len(README.splitlines()) <= 150


def test_the_kinds_of_problems_are_those_of_check():
    from basegun_fastai.check import WORST_FIRST
    table = README.split('| kind | level | what it is | what to do |')[1].split('\n\n')[0]
    assert {o for row in table.splitlines()[2:] for o in re.findall('`([a-z-]+)`', row.split('|')[1])} == {*WORST_FIRST}


@pytest.mark.slow
def test_the_lines_of_python_that_readme_shows_run(run, data, tmp_path, monkeypatch):
    from basegun_fastai.export import export
    code = re.search(r'## In Python\n\n((?:    .*\n|\n)+)', README)[1]
    export(run.path, tmp_path/'served')
    (tmp_path/'data').symlink_to(data)
    monkeypatch.chdir(tmp_path)
    lines = textwrap.dedent(code).replace("'efficientnet_b3'", "'test_efficientnet', size=32").replace('arch)',
        "arch, 'none')")
    lines = lines.replace("dataloaders('data', arch, 'none')", "dataloaders('data', arch)")
    names = dict(content=next((data/'val').glob('*/*')).read_bytes())
    exec(lines, names)
    assert names['level'] in ('low', 'medium', 'high') and names['learn'].dls.c == 6 and 'answer' not in names
    for content, status in ((b'no photo', 415), (next((data/'val').glob('*/*')).read_bytes()[:999], 422)):
        exec(lines.partition('familiarity')[0], other := dict(content=content))
        assert other['answer'][0] == status and other['answer'][1] and 'level' not in other


def test_the_versions_that_readme_asks_for_are_those_of_the_code():
    from basegun_fastai.data.formats import MIN_PILLOW
    from basegun_fastai.exported import MIN_ONNXRUNTIME
    assert f'onnxruntime {MIN_ONNXRUNTIME}, numpy 1.24 and Pillow {MIN_PILLOW} or later' in README


def commands():
    text = re.sub(r'\\\n\s*', '', (ROOT/'Makefile').read_text() + README + page('tutorials/ovh') + HOW)
    actual = re.findall(r'(?<![\w/-])(?:\$\(BIN\)/|exec )?basegun-fastai ((?:' + '|'.join(COMMANDS) + r')\b[^\n"`|]*)',
                       text)
    return sorted({o.strip() for o in actual if not o.rstrip().endswith(('-h', '-->'))})


def test_there_are_commands_to_check(): assert len(commands()) >= 8


@pytest.mark.parametrize('command', commands())
def test_every_command_shown_is_one(command):
    name, *arguments = shlex.split(command)
    module, function, *_ = COMMANDS[name]
    anno_parser(getattr(import_module(f'basegun_fastai.{module}'), function)).parse_args(arguments)


@pytest.mark.slow
def test_the_run_that_readme_shows_has_the_lines_of_a_real_one(data, tmp_path):
    result = run_warm('train', data, '--arch', 'test_efficientnet', '--size', 32, '--weights', 'none',
                      '--fine-tune-epochs', 2, '--lr', .006, '--batch-size', 16, '--out', 'demo/runs', '--name',
                      'first', cwd=tmp_path)
    # the rest of the line depends on the photos
    def words(line):
        line = re.sub(r'^(no familiarity|unfamiliar)\b.*', 'familiarity', line)  # README's val has enough photos for it
        return re.sub(r'^(high|medium|low|no prediction can be called high)\b.*', r'\1', line)
    def shape(line):
        network = re.sub(r'test_\w+', 'NETWORK', re.sub(r'[\d.]+', '0', words(line)))
        return re.sub(r'( \*)?$', '', re.sub(r'\s+', ' ', network.strip()))
    # README's val is larger
    real = {shape(o) for o in (result.stderr + result.stdout).splitlines()
            if not o.startswith(('warning: ', 'every prediction is called low'))}
    others = ('demo/data', 'drew', '…', 'look at', 'features of')  # the last: val is too small here
    shown = [o for o in block('demo').splitlines() if o and not o.startswith(others)]
    assert len(shown) > 8 and {shape(o) for o in shown} == real


def test_the_demo_reached_its_bar(): assert float(re.search(r'accuracy  ([\d.]+) [(]', block('demo'))[1]) >= .95


def test_make_targets_that_readme_names_exist():
    makefile = (ROOT/'Makefile').read_text()
    for target in re.findall(r'^    make (\w+)', README + (ROOT/'CONTRIBUTING.md').read_text(), re.M):
        assert re.search(rf'^{target}:', makefile, re.M)


def test_files_that_readme_links_to_exist():
    for path in re.findall(r'\]\((?!https?:)([^)]+)\)', README): assert (ROOT/path).exists(), path


def test_the_installed_command_is_the_one_under_test():
    assert run_command('--version').stdout.strip() in (ROOT/'settings.ini').read_text() and COMMAND


def test_the_near_duplicates_that_readme_tells_of_are_those_of_the_benchmark():
    actual = json.loads((ROOT/'benchmarks'/'near-duplicates.json').read_text())
    for kind in ('drawn', 'real'):
        unmet = {o['edit'] for o in actual[kind]['rows'] if o['bar'] and o['recall'] < o['bar']}
        assert actual[kind]['precision'] >= .99 and unmet <= ({'white on black over the top 4 %'} if kind == 'drawn'
                                                             else set()), unmet
    lowest = min(o['recall'] for o in actual['real']['rows'] if o['bar'])
    hardest = next(o['recall'] for o in actual['drawn']['rows'] if o['edit'] == 'white on black over the top 4 %')
    sample, real = actual['drawn'], actual['real']
    wrong = f'{len(real["wrong"])} of {real["pairs"]:,} pairs {"was" if len(real["wrong"]) == 1 else "were"} wrong'
    assert f'at least {int(lowest * 100)} % of each kind; {wrong}' in HOW
    assert f'it finds {100 * hardest:.0f} % of those with' in HOW
    assert f'and {100 * (1 - sample["precision"]):.1f} % of its pairs are wrong' in HOW


def test_check_grows_as_it_should():
    actual = json.loads((ROOT/'benchmarks'/'check.json').read_text())
    assert .8 <= actual['ratio'] <= 1.2 and actual['bytes_a_photo'] < 1024 and actual['rows'][-1]['photos'] >= 20_000


def measured():
    return [o for group in json.loads((ROOT/'benchmarks'/'results.json').read_text())['groups'] for o in group['rows']]


def group_of(row):
    return next(group['rows'][0]['what']
                for group in json.loads((ROOT/'benchmarks'/'results.json').read_text())['groups']
                if row in group['rows'])


def test_the_bars_that_could_be_measured_are_met():
    assert len([o for o in measured() if o['bar'] is not None]) >= 9
    for o in measured():
        assert o['bar'] is None or o['median'] >= o['bar'] or 'one photo' in o['what'] + group_of(o) and o['unmet'], o


def test_the_ratios_that_readme_shows_are_those_of_the_benchmark():
    shown = dict(re.findall(r'^\| ([^|]+) \| ([\d.]+) \|', HOW.split('## How fast')[1], re.M))
    actual = {o['what']: f"{o['median']:.3g}" for o in measured() if o['ratio'].startswith(('stock', 'import'))}
    assert shown and shown.items() <= actual.items()


def test_training_takes_little_memory_for_each_photo():
    actual = json.loads((ROOT/'benchmarks'/'memory.json').read_text())
    assert actual['bytes_a_photo'] < 1024 and actual['rows'][-1]['photos'] >= 100_000


def test_the_default_number_of_views_is_one_that_the_measurement_supports():
    import inspect
    import statistics

    from basegun_fastai.train import train
    rows = json.loads((ROOT/'benchmarks'/'head-views.json').read_text())['rows']
    accuracy = {views: statistics.mean(o['accuracy'] for o in rows if o['views'] == views)
                for views in {o['views'] for o in rows}}
    default = inspect.signature(train).parameters['head_views'].default
    assert accuracy[default] >= accuracy[0] - .005 and len({o['seed'] for o in rows}) >= 3


def test_the_table_of_real_photos_is_that_of_the_benchmark():
    import statistics
    noted = json.loads((ROOT/'benchmarks'/'real.json').read_text())['rows']
    table = README.split('## On real firearms')[1].split('## ')[0]
    shown = {o[0]: o[1:]
             for o in re.findall(r'^\| (\w+), [^|]+ \| ([^|]+) \| ([^|]+) \| ([^|]+) \| ([^|]+) \|$', table, re.M)}
    def mean(name, arm, pick=lambda o: o['kept']['accuracy']):
        of = [pick(o) for o in noted if (o['set'], o['arm']) == (name, arm)]
        return statistics.mean(of) if of else None
    def head(o): return [e['accuracy'] for e in o['epochs'] if e['stage'] == 'head'][-1]
    def last(o): return o['epochs'][-1]['accuracy']
    by_set = ['{:.1f}'.format(100 * mean(o, 'ours, 5 epochs')) for o in ('typology', 'hymenoptera', 'trash', 'caltech')]
    assert f"it has {', '.join(by_set)} from top to bottom" in ' '.join(README.split())
    words = ' '.join(HOW.split())
    lasts = [100 * mean(o, 'ours', last) for o in ('hymenoptera', 'trash', 'caltech')]
    assert 'the last one has {:.1f}, {:.1f} and {:.1f}.'.format(*lasts) in words
    larger = [100 * mean('hymenoptera', 'ours, 288 px', *o) for o in ((), (head,), (last,))]
    assert '`--size 288` has {:.1f}, and {:.1f} with only the head'.format(*larger[:2]) in words
    assert f'fine-tuning to its end has {larger[2]:.1f}' in words
    fall = 100 * (mean('hymenoptera', 'ours', head) - mean('hymenoptera', 'ours', last))
    assert f'is on average {fall:.1f} points below the last of the head' in words
    recalls = [100 * mean(name, arm, lambda o: o['kept']['recall'])
               for name in ('hymenoptera', 'trash') for arm in ('unequal', 'unequal, balanced')]
    sentence = 'mean recall is {:.1f} without and {:.1f} with it on hymenoptera, {:.1f} and {:.1f} on trash'
    assert sentence.format(*recalls) in words
    padded = json.loads((ROOT/'benchmarks'/'padding.json').read_text())
    gain = 100 * statistics.mean(o['rectangle'] - o['square'] for o in padded)
    assert f'gains {gain:.1f} points on the mean' in words
    for name in ('typology', 'hymenoptera', 'trash', 'caltech'):
        assert len({o['seed'] for o in noted if (o['set'], o['arm']) == (name, 'ours')}) == 3
        stock = [o for o in (mean(name, 'stock pad'), mean(name, 'stock crop')) if o is not None]  # trash is square
        real = [mean(name, 'logistic regression'), max(stock, default=None), mean(name, 'ours', head),
                mean(name, 'ours')]
        for text, value in zip(shown[name], real, strict=True): assert text == f'{100 * value:.1f}', (name, text, value)


def test_the_rates_that_readme_tells_are_those_of_the_plan():
    from basegun_fastai.training.fit import plan_stages
    fine = plan_stages(10, 5, .8, pretrained=True)[1]
    assert (round(.8 / fine.head_rate), round(.8 / fine.body_rate)) == (5, 16)
    assert 'head at a fifth of it, its body at a sixteenth' in ' '.join(HOW.split())


def test_the_table_of_unknown_things_is_that_of_the_benchmark():
    import statistics
    noted = json.loads((ROOT/'benchmarks'/'unknown.json').read_text())
    shown = re.findall(r'^\| (\w+) \| (\w+)[^|]* \| ([\d. |]+) \|$', HOW.split('## What it does not know')[1], re.M)
    assert len(shown) == 13
    for name, group, numbers in shown:
        rows = [o['apart'] for o in noted['rows'] if o['set'] == name]
        actual = [f'{statistics.mean(o[score][group][number] for o in rows):.3f}' for number in ('auroc', 'fpr95')
                  for score in ('confidence', 'energy', 'familiarity')]
        assert numbers.split(' | ') == actual, (name, group)
    hard = [o['apart'] for o in noted['rows'] if o['set'] == 'typology']
    auroc = [f"{statistics.mean(o[score]['hard']['auroc'] for o in hard):.3f}"
             for score in ('familiarity', 'confidence')]
    assert ' instead of '.join(auroc) in ' '.join(README.split())
    slower = {o['photo']: o['times_as_slow'] for o in noted['latency']['rows']}
    share = [f"{100 * (slower[photo][size] - 1):.1f}" for size in ('2048', '4096') for photo in ('0.5 MP', '12 MP')]
    words = 'Familiarity costs {} % of the time of a prediction for photos of 0.5 megapixels and {} % for 12'
    assert words.format(*share[:2]) in HOW and 'would cost {} and {} %'.format(*share[2:]) in HOW
    assert max(slower[o]['2048'] for o in slower) <= 1.05 and noted['latency']['answers_bit_identical']


def test_the_chapter_on_labels_gives_the_measured_numbers():
    rows = {o['set']: o for o in json.loads((ROOT/'benchmarks'/'review.json').read_text())['rows']
            if (o['kind'], o['rate']) == ('uniform', .05)}
    chapter = json.loads((ROOT/'nbs'/'tutorials'/'review.ipynb').read_text())
    prose = '\n'.join(''.join(o['source']) for o in chapter['cells'] if o['cell_type'] == 'markdown')
    for name, o in rows.items():
        _, tenth, fifth = o['shares']['review']
        accuracies = ' | '.join(f"{100 * o['regression'][k]:.1f} %" for k in ('planted', 'reviewed', 'clean'))
        title = 'real firearms' if name == 'typology' else name
        assert f'| {title} | {100 * tenth:.0f} % | {100 * fifth:.0f} % | {accuracies} |' in prose
    assert len(rows) == 4
