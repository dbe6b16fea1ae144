"Imports go only up the table of design: the number of a notebook is its place."
import ast
import re
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
ORDER = [re.sub(r'^\d+[a-z]?_', '', o.stem) for o in sorted((ROOT/'nbs').glob('[0-9]*.ipynb'))]
LIGHT = {'core', 'lock', 'machine', 'blank', 'crops', 'near_duplicates', 'colour', 'formats', 'names', 'photo', 'alike', 'reading', 'dataset', 'contents',
         'problems', 'page', 'check', 'split', 'demo', 'cache', 'archs', 'options', 'calibration', 'levels',
         'mistakes', 'predictions', 'trust', 'artefact', 'predict', 'export', 'cli', 'train', 'evaluate'}


def imported(node):
    if isinstance(node, ast.Import): return [o.name for o in node.names]
    if isinstance(node, ast.ImportFrom): return [('basegun_fastai.' if node.level else '') + (node.module or '')]
    return []


@pytest.mark.parametrize('name', ORDER)
def test_a_module_imports_only_what_stands_above_it(name):
    tree = ast.parse((ROOT/'basegun_fastai'/f'{name}.py').read_text())
    own = {o.split('.')[1] for node in ast.walk(tree) for o in imported(node) if o.startswith('basegun_fastai.')}
    assert own <= set(ORDER[:ORDER.index(name)]), f'{name} imports {own}'


@pytest.mark.parametrize('name', [o for o in ORDER if o in LIGHT])
def test_light_modules_import_nothing_heavy_at_the_top(name):
    tree = ast.parse((ROOT/'basegun_fastai'/f'{name}.py').read_text())
    heavy = {o.split('.')[0] for node in tree.body for o in imported(node)} & {'torch', 'fastai', 'timm', 'torchvision', 'sklearn'}
    assert not heavy


def test_every_module_has_its_notebook():
    assert {o.stem for o in (ROOT/'basegun_fastai').glob('*.py')} == {*ORDER, '__init__', '_modidx'}


def test_modules_can_be_read_in_one_sitting():
    for name in ORDER: assert len((ROOT/'basegun_fastai'/f'{name}.py').read_text().splitlines()) <= 320, name


def test_no_error_is_swallowed():
    for name in ORDER:
        for node in ast.walk(ast.parse((ROOT/'basegun_fastai'/f'{name}.py').read_text())):
            assert not isinstance(node, ast.Assert), f'{name}: assert'
            if isinstance(node, ast.ExceptHandler):
                assert node.type is not None and not all(isinstance(o, ast.Pass) for o in node.body), f'{name}: {ast.unparse(node)}'
