"Every public name says what it does, and what each parameter and the result are."
import ast
from pathlib import Path

import pytest
from test_layers import ORDER, ROOT, path


def public(tree):
    for node in tree.body:
        if isinstance(node, (ast.FunctionDef, ast.ClassDef)) and not node.name.startswith('_'):
            yield node.name, node
            if isinstance(node, ast.ClassDef):
                for o in node.body:
                    if isinstance(o, ast.FunctionDef) and (not o.name.startswith('_') or o.name == '__init__'):
                        yield f'{node.name}.{o.name}', o


def hooks(name, node):  # methods that fastai calls, under names that fastai has documented
    return name.split('.')[-1] in ('encodes', 'decodes',
                                   'setups') or name.split('.')[-1].startswith(('before_',
        'after_')) and len(node.args.args) == 1


@pytest.mark.parametrize('module', ORDER)
def test_public_names_have_docstrings_and_docments(module):
    source = path(module).read_text()
    lines, missing = source.splitlines(), []
    assert ast.get_docstring(ast.parse(source)), f'{module} has no docstring'
    for name, node in public(ast.parse(source)):
        if hooks(name, node): continue
        doc = ast.get_docstring(node)
        if not name.endswith('__init__') and (not doc or '\n' in doc):
            missing.append(f'{name}: no docstring of one line')
        if isinstance(node, ast.ClassDef):
            missing += [f'{name}.{o.target.id}' for o in node.body if isinstance(o, ast.AnnAssign)
                        and '# ' not in lines[o.lineno - 1]]
            continue
        arguments = [*node.args.posonlyargs, *node.args.args, *node.args.kwonlyargs]
        missing += [f'{name}({o.arg})' for o in arguments if o.arg not in ('self', 'cls')
                    and ('# ' not in lines[o.lineno - 1] or o.annotation is None)]
        if not name.endswith('__init__') and (node.returns is None or '# ' not in lines[node.returns.end_lineno - 1]):
            missing.append(f'{name}: return')
    assert not missing, missing


def test_no_path_of_a_machine_is_kept():
    import re
    for file in [*ROOT.glob('nbs/**/*.ipynb'), *ROOT.glob('basegun_fastai/**/*.py'), ROOT/'README.md']:
        if '.ipynb_checkpoints' in str(file): continue
        assert not re.search(r'/(tmp|root|home|work)/\w', file.read_text()), file


def test_notebooks_are_small():
    for file in Path(ROOT/'nbs').rglob('*.ipynb'): assert file.stat().st_size < 200_000, file


def test_notebooks_keep_no_log_of_a_run():
    import json
    for file in Path(ROOT/'nbs').rglob('*.ipynb'):
        outputs = [o for c in json.loads(file.read_text())['cells'] for o in c.get('outputs', [])]
        assert not [o for o in outputs if o.get('name') == 'stderr' or o['output_type'] == 'error'], file
