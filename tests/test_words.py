"What people read is plain English in the words of the field, and a message reads well with no, one and two of a thing."
import ast
import io
import json
import re
import tokenize

import pytest
from test_layers import ORDER, ROOT, path

from basegun_fastai.base.text import number_of

DOCUMENTS = ['README.md', 'CONTRIBUTING.md', 'CHANGELOG.md', 'Makefile', 'Dockerfile', 'settings.ini', 'pyproject.toml',
             'setup.py']
FOLDERS = dict(basegun_fastai=('.py', '.html', '.css'), nbs=('.ipynb', '.py'), tests=('.py',), benchmarks=('.py',))
UNIT = ('batch|class|core|CPU|day|epoch|file|folder|GPU|hour|image|line|machine|minute|page|pair|photo|pixel|process'
        '|request|row|run|second|set|side|split|stage|step|thread|time|week|worker')
COUNTED = ('bytes?|characters?|columns?|commits?|files?|folders?|lines?|messages?|names?|numbers?|once|one|pages?'
           '|photos?|pixels|process|processes|questions?|requests?|rows?|seconds?|sheets?|thoughts?|twice|values?'
           '|workers?|[KMG]i?B|ms|\\d+')
# what a reader stumbles over, by kind: the pattern, and what a native engineer writes
KINDS = {
    'per': (rf'\b(?:{COUNTED}) an? (?:{UNIT})\b', 'per: a row per photo, 120 photos per second'),
    'only': (r'\balone\b', 'only'),
    'must': (r'\b(?:is|are|was|were) to (?!the\b|its\b|a\b|an\b|\d)\w+|\b(?:has|have|had) to\b', 'must, should, will'),
    'ever': (r'\b(?:who|what|where|which|when|whom)ever\b', 'a noun: anyone who, every problem'),
    'told': (r'\btold\b|\btell(?:s|ing)? of\b', 'says, describes, distinguishes'),
    'start': (r'\b(?:begun|began|begin|begins|beginning)\b', 'start'),
    'anew': (r'\banew\b|\brightly\b', 'again, correctly'),
    'different': (r'\botherwise than\b|(?<=\w )otherwise\b(?<!or otherwise)', 'different from; Otherwise at the start'),
    'if': (r'\bwhere (?:there|it|they|one|no|none|not|needed|possible|asked|given|nothing|nobody|that (?:is|was)|this'
           r'|a|an|any|some|several|both|all|each|only|you|we|two|more)\b', 'if, when'),
    'exists': (r'\b(?:that|what|it|they|which|one|file|folder|run) (?:is|are|was|were) (?:not |already |still |now )?'
               r'there\b|\bnot there\b', 'exists, does not exist, is missing'),
    'predicted': (r'\btaken for\b|\btakes? \w+ for\b', 'predicted as, confused with'),
    'fix': (r'\bmend(?:s|ed|ing)?\b', 'fix'),
    'report': (r'\b(?:is|are|was|were) said\b', 'reported'),
    'place': (r'\b(?:stands|stood|lies|lay)\b(?! for\b)', 'is, is in'),
    'continue': (r'\b(?:go|goes|going|went|gone) on\b', 'continue'),
    'make sure': (r'\bsees? to it\b', 'make sure'),
}
EXCEPTIONS = {  # a file, and what in it is meant as it is
    'tests/test_layers.py': ['told counted'],
}


def strings_and_comments(source):
    for token in tokenize.generate_tokens(io.StringIO(source).readline):
        if token.type in (tokenize.COMMENT, tokenize.STRING, getattr(tokenize, 'FSTRING_MIDDLE', -1)):
            for i, line in enumerate(token.string.splitlines(), token.start[0]): yield i, line


def without_tags(html):
    return re.sub(r'<[^>]*>|\{%.*?%\}|\{\{.*?\}\}', lambda o: re.sub(r'[^\n]', ' ', o[0]), html, flags=re.S)


def cells(notebook):
    for cell in json.loads(notebook)['cells']:
        source, where = ''.join(cell['source']), f"cell {cell['id']}"
        if cell['cell_type'] != 'code': yield from ((where, line) for line in source.splitlines())
        elif not source.startswith('%%'):
            for _, line in strings_and_comments(re.sub(r'(?m)^[%!].*', '', source)): yield where, line


def texts(file):
    "What a person reads in a file, line by line, and where."
    text = file.read_text(encoding='utf-8')
    if file.suffix == '.py': return strings_and_comments(text)
    if file.suffix == '.ipynb': return cells(text)
    if file.suffix in ('.html', '.css'): text = without_tags(text)
    return enumerate(text.splitlines(), 1)


def files():
    found_in_folders = (o for folder, endings in FOLDERS.items() for o in sorted((ROOT/folder).rglob('*'))
                        if o.suffix in endings)
    for o in [*(ROOT/name for name in DOCUMENTS), *found_in_folders]:
        if o.stem in ('_modidx', 'test_words') or '.ipynb_checkpoints' in o.parts: continue
        yield o.relative_to(ROOT).as_posix()


def stumbles(file):
    for where, line in texts(ROOT/file):
        if any(o in line for o in EXCEPTIONS.get(file, ())): continue
        for kind, (pattern, better) in KINDS.items():
            for o in re.finditer(pattern, line): yield kind, f'{where}: {o[0]!r} in {line.strip()[:150]!r}: {better}'


@pytest.mark.parametrize('file', [*files()])
def test_words_are_plain(file):
    assert not [f'{kind}, {o}' for kind, o in stumbles(file)]


@pytest.mark.parametrize(('text', 'kind'), [
    ('a row a photo', 'per'), ('120 photos a second', 'per'), ('it is a folder', None), ('the head alone', 'only'),
    ('the batch has to be even', 'must'), ('it is to the left', None), ('whatever is wrong', 'ever'), ('whether', None),
    ('told from a gun', 'told'), ('before anything is begun', 'start'), ('augments anew', 'anew'),
    ('it answers otherwise', 'different'), ('Otherwise it stops', None), ('refused where there is none', 'if'),
    ('the place where the gun is', None), ('the file is not there', 'exists'), ('what was taken for what', 'predicted'),
    ('mend the labels', 'fix'), ('all is said at once', 'report'), ('it lies in the folder', 'place'),
    ('it stands for a class', None), ('the training goes on', 'continue')])
def test_what_a_reader_stumbles_over(text, kind, tmp_path, monkeypatch):
    (tmp_path/'text.md').write_text(text)
    monkeypatch.setattr('test_words.ROOT', tmp_path)
    assert [o for o, _ in stumbles('text.md')] == ([kind] if kind else [])


# not counts, although a number and a word follow each other: rows of tables, versions, hosts
NO_COUNTS = ['weights (--weights imagenet)', 'train loss {', 'pass, AUROC', 'PyTorch {torch.__version__}',
             'in {variable}']
SINGULAR = set('class process address its is was has as this less across plus loss s names pixels'.split())


def field(node, n):
    "What a field of a template may be: a number of things, or the number."
    if isinstance(node, ast.Call) and getattr(node.func, 'id', '') == 'number_of':
        words = [ast.literal_eval(o) for o in node.args[1:] if isinstance(o, ast.Constant)]
        if len(words) == len(node.args) - 1: return number_of(n, *words)
    return str(n)


def templates(module):
    "The f-strings of a module with three words or more."
    for node in ast.walk(ast.parse(path(module).read_text())):
        if not isinstance(node, ast.JoinedStr): continue
        words = re.findall('[a-z]{2,}', ' '.join(o.value for o in node.values if isinstance(o, ast.Constant)))
        if len(words) >= 3 and not any(o in ast.unparse(node) for o in NO_COUNTS): yield node


def formatted(node, n):
    return ''.join(o.value if isinstance(o, ast.Constant) else field(o.value, n) for o in node.values)


def grammar_faults(text):
    for o in re.finditer(r'(?<![\w.:%-])1 ([a-z]+)', text):
        if o[1].endswith('s') and o[1] not in SINGULAR: yield f'{o[0]!r} in {text!r}'
    for pattern in (r'\b1(?: of \d+)?(?: \w+){1,2} (?:are|were|have|do|need|differ)\b', r'  |\( | \)| [,;.]( |$)'):
        if o := re.search(pattern, text): yield f'{o[0]!r} in {text!r}'


def glued(node):
    "Fields that are a part of a sentence, chosen by a condition."
    parts = [part for o in ast.walk(node) if isinstance(o, ast.IfExp) for part in (o.body, o.orelse)]
    constants = [o.value for o in parts if isinstance(o, ast.Constant)]
    return [o for o in constants if isinstance(o, str) and ' ' in o]


@pytest.mark.parametrize('module', ORDER)
def test_templates_read_well_with_no_one_and_two_of_a_thing(module):
    assert not [fault for node in templates(module) for n in (0, 1, 2) for fault in grammar_faults(formatted(node, n))]


@pytest.mark.parametrize('module', ORDER)
def test_a_message_is_one_whole_template(module):
    assert not [part for node in templates(module) for part in glued(node)]


@pytest.mark.parametrize(('code', 'sound'), [
    ("f'{n} photos cannot be read'", False), ("f'{number_of(n)} cannot be read'", True),
    ("f'{number_of(n)} are too few'", False), ("f'too few: {number_of(n)} in the folder'", True),
    ("f'{n} of {m} photos have no label'", False), ("f'the folder {name} , which is empty'", False)])
def test_what_reads_badly(code, sound):
    node = ast.parse(code).body[0].value
    assert sound == (not [fault for n in (0, 1, 2) for fault in grammar_faults(formatted(node, n))])


def test_glued_halves_are_found():
    node = ast.parse("""f"the file {'is not' if bad else 'was'} read well" """).body[0].value
    assert glued(node) == ['is not']
