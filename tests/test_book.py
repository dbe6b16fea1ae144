"The notebooks read as a book: prose beside its code, a small cell, a lesson; and names in prose exist."
import ast
import json
import re
import runpy

import pytest
from test_layers import ORDER, ROOT, path

NOTEBOOKS = [o for o in sorted(ROOT.glob('nbs/**/*.ipynb')) if '.ipynb_checkpoints' not in o.parts]
NAMES = [o.relative_to(ROOT/'nbs').as_posix() for o in NOTEBOOKS]
FILES = {'ipynb', 'pkl', 'png', 'csv', 'json', 'html', 'onnx', 'safetensors'}  # file endings, not names
OTHERS = {'torch', 'timm', 'fastai', 'sys', 'dls', 'photos', 'table'}
MODULES = {o.split('.')[-1]: o for o in ORDER}


def cells(notebook):
    for o in json.loads(notebook.read_text())['cells']: yield o, ''.join(o['source'])


def is_import(source):
    tree = ast.parse(re.sub(r'^[%!].*$', '', source, flags=re.MULTILINE))
    return all(isinstance(o, (ast.Import, ast.ImportFrom, ast.Try)) or isinstance(o, ast.Expr)
               and isinstance(o.value, ast.Constant) for o in tree.body)


def kinds(notebook):
    "Kind of each cell: prose, picture, code of the package, lesson, or imports and similar."
    for cell, source in cells(notebook):
        if cell['cell_type'] == 'markdown': yield 'picture' if '![' in source else 'prose', cell['id']
        elif is_import(source) or '#| default_exp' in source: yield 'imports', cell['id']
        else: yield 'code' if source.startswith('#| export') else 'lesson', cell['id']


@pytest.mark.parametrize('notebook', NOTEBOOKS, ids=NAMES)
def test_a_lesson_or_a_picture_comes_after_three_cells_of_code_at_most(notebook):
    row = []
    for kind, name in kinds(notebook):
        if kind in ('lesson', 'picture'): row = []
        if kind == 'code': row.append(name)
        assert len(row) <= 3, row


@pytest.mark.parametrize('notebook', NOTEBOOKS, ids=NAMES)
def test_no_two_cells_of_prose_follow_one_another(notebook):
    order = [*kinds(notebook)]
    assert not [b for (a, _), (kind, b) in zip(order, order[1:], strict=False) if a in ('prose', 'picture')
                and kind in ('prose', 'picture')]


@pytest.mark.parametrize('notebook', NOTEBOOKS, ids=NAMES)
def test_cells_of_code_are_short(notebook):
    long = {cell['id']: source.count('\n') + 1 for cell, source in cells(notebook) if source.startswith('#| export')}
    assert max(long.values(), default=0) <= 40, long


@pytest.mark.parametrize('notebook', NOTEBOOKS, ids=NAMES)
def test_outputs_have_no_date_of_a_run(notebook):
    for cell, _ in cells(notebook):
        assert not re.search(r'_20\d\d-\d\d-\d\d_\d{6}|\d\d:\d\d:\d\d', json.dumps(cell.get('outputs', []))), cell['id']


def names_of(module):
    tree = ast.parse(path(module).read_text())
    for node in tree.body:
        yield from [node.name] if hasattr(node, 'name') else (o.id for o in ast.walk(node) if isinstance(o, ast.Name)
                                                              and isinstance(o.ctx, ast.Store))
        if isinstance(node, (ast.Import, ast.ImportFrom)): yield from (o.asname or o.name for o in node.names)


DEFINED = {module: {*names_of(module)} for module in ORDER}


def missing(text):
    "Backticked `module.name`s that do not exist; `OTHERS` names other packages and objects."
    for first, name in re.findall(r'`([a-z_.]+)\.(\w+)(?:\([^`]*)?`', text):
        if name in FILES or first.split('.')[0] in OTHERS or f'{first}.{name}' in ORDER: continue
        module = first if first in ORDER else MODULES.get(first)
        if module is None or name not in DEFINED[module]: yield f'{first}.{name}'


@pytest.mark.parametrize('notebook', NOTEBOOKS, ids=NAMES)
def test_what_prose_and_docments_name_is_there(notebook):
    prose = '\n'.join(source if cell['cell_type'] == 'markdown'
                      else '\n'.join(re.findall(r'#.*|"[^"\n]*`[^"\n]*"', source)) for cell, source in cells(notebook))
    assert not [*missing(prose)]


def test_a_name_that_is_gone_is_found():
    assert ([*missing('`loaders.dataloaders` and `mistakes.write_groups`, `data.photo.pixels`, `loaders.square(o)`')]
            == ['mistakes.write_groups', 'loaders.square'])


BOOK = runpy.run_path(str(ROOT/'nbs'/'book.py'))  # makes its pages
SHOWN = '&lt;a id="shown" href="#pair-{{ i }}"&gt;'  # a template that a page shows


def test_a_link_that_leads_nowhere_is_found_and_one_that_is_only_shown_is_none(tmp_path):
    (tmp_path/'one.html').write_text(f'''<h2 id="here">{SHOWN}</h2><a class="x" href="two.html#there">sound</a>
        <a href="https://elsewhere">sound</a><a href="#here">sound</a><a href="#shown">dead</a><img src="none.png">''')
    (tmp_path/'two.html').write_text('<b id="there"></b><a href="one.html#gone">dead</a><a href="three.html">dead</a>')
    dead = {o.split(': ')[-1] for o in BOOK['dead_links'](tmp_path)}
    assert dead == {'#shown', 'none.png', 'one.html#gone', 'three.html'}


def test_links_to_notebooks_become_links_to_pages_and_what_is_shown_stays():
    text = f'<a class="x" href="data/photo.ipynb#crop">crop</a> {SHOWN} &lt;a href="x.ipynb"&gt;'
    assert BOOK['to_pages'](text) == text.replace('photo.ipynb', 'photo.html')
