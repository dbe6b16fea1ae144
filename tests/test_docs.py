"Every public name says what it does, and each parameter and result more than its name and its type."
import ast
import re
from pathlib import Path

import pytest
from test_layers import ORDER, ROOT, path, syntax

# our classes are described in their docstrings; fastai's two are in every book on it
RECORDS = {o.name for module in ORDER for o in syntax(module).body if isinstance(o, ast.ClassDef)
           and not o.name.startswith('_')} | {'Learner', 'DataLoaders'}
FUNCTIONS = ast.FunctionDef, ast.AsyncFunctionDef
NOTHING = {'None', 'Iterator[None]'}
FILLERS = set('a an the of it its this that these those one'.split())
CONTEXT = set('run training network data set fastai'.split())  # these do not describe a record, since each exists once


def public(tree):
    for node in tree.body:
        if isinstance(node, (*FUNCTIONS, ast.ClassDef)) and not node.name.startswith('_'):
            yield node.name, node
            if isinstance(node, ast.ClassDef):
                for o in node.body:
                    if isinstance(o, FUNCTIONS) and (not o.name.startswith('_') or o.name == '__init__'):
                        yield f'{node.name}.{o.name}', o


def hooks(name, node):  # methods that fastai calls, under names that fastai has documented
    return name.split('.')[-1] in ('encodes', 'decodes',
                                   'setups') or name.split('.')[-1].startswith(('before_',
        'after_')) and len(node.args.args) == 1


def commented(node, lines):
    "Places for docments in a class or function: line, name (none for a result), annotation, docment."
    def docment(line): return line.partition('# ')[2].strip() or None
    if isinstance(node, ast.ClassDef):
        fields = [o for o in node.body if isinstance(o, ast.AnnAssign)]
        return [(f'.{o.target.id}', o.target.id, o.annotation, docment(lines[o.lineno - 1])) for o in fields]
    arguments = [*node.args.posonlyargs, *node.args.args, *node.args.kwonlyargs]
    rows = []
    for o in arguments:
        if o.arg in ('self', 'cls'): continue
        has_its_line = lines[o.lineno - 1].lstrip(' *').startswith(o.arg)
        rows.append((f'({o.arg})', o.arg, o.annotation, docment(lines[o.lineno - 1]) if has_its_line else None))
    if node.name == '__init__': return rows
    last = lines[node.returns.end_lineno - 1] if node.returns else ''
    return [*rows, (': return', '', node.returns, docment(last))]


def is_plain(module, name, annotation):
    "Is the type, or a name with one meaning everywhere, a full description?"
    if annotation is None: return False
    text = ast.unparse(annotation).strip("'")
    return text in RECORDS | NOTHING or (name, text) == ('data', 'Path') and '.' in module


def words(text):
    "Words of a text or a name, in lower case, without the endings of plural and genitive."
    text = re.sub('([a-z])([A-Z])', r'\1 \2', text).lower().replace("'s", '')
    return {o.removesuffix('s') for o in re.findall('[^\\W\\d_]+|\\d+', text)}


def says_nothing(module, name, annotation, docment):
    "Does a docment only repeat the name or the type?"
    if ast.unparse(annotation) in NOTHING and re.match('(Of a context: )?nothing', docment, re.I): return True
    if '`' in docment: return False
    more = CONTEXT if is_plain(module, name, annotation) else set()
    return words(docment) <= {o.removesuffix('s') for o in FILLERS | more} | words(f'{name} {ast.unparse(annotation)}')


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
        missing += [f'{name}{place}' for place, o, annotation, docment in commented(node, lines)
                    if annotation is None or not docment and not is_plain(module, o, annotation)]
    assert not missing, missing


@pytest.mark.parametrize('module', ORDER)
def test_docments_say_more_than_the_name_and_the_type(module):
    source = path(module).read_text()
    assert not [f'{name}{place}: {docment}' for name, node in public(ast.parse(source))
                for place, o, annotation, docment in commented(node, source.splitlines())
                if docment and annotation and says_nothing(module, o, annotation, docment)]


@pytest.mark.parametrize(('parameter', 'nothing'), [
    ('run: Run # A run', True), ('run: Run # A finished run', False), ('config: Config # Of the run', True),
    ('names: list[str] # Names', True), ('names: list[str] # Files', False), ('learn: Learner # fastai\'s', True),
    ('data: Path # A data set', True), ('n: int # How many', False), ('x: Tensor # Shape `(n,)`', False)])
def test_what_says_nothing(parameter, nothing):
    code, _, docment = parameter.partition(' # ')
    o = ast.parse(f'def f({code}): pass').body[0].args.args[0]
    assert says_nothing('data.walk', o.arg, o.annotation, docment) == nothing
    assert says_nothing('data.walk', '', ast.Constant(None), 'Nothing; raises `OSError`')
    assert not says_nothing('data.walk', '', ast.Constant(None), 'Raises `OSError`')


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
