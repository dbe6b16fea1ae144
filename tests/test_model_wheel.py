"A wheel holds what was exported and the code that predicts with it; pip installs it without this package."
import ast
import errno
import importlib
import json
import os
import re
import shutil
import subprocess
import sys
from base64 import urlsafe_b64encode
from datetime import datetime
from hashlib import sha256
from importlib.metadata import distribution, requires
from importlib.util import find_spec
from pathlib import Path
from types import SimpleNamespace
from zipfile import ZipFile

import pytest
from conftest import tree, typed
from packaging.metadata import Metadata
from packaging.requirements import Requirement
from packaging.utils import parse_wheel_filename
from test_layers import PACKAGE, ROOT

from basegun_fastai import export as export_module
from basegun_fastai.base.errors import BasegunError
from basegun_fastai.model_wheel import wheel_faults, write_wheel
from basegun_fastai.predict import load

pytestmark = pytest.mark.slow
NEEDED = ['onnxruntime', 'numpy', 'pillow']


@pytest.fixture(scope='module')
def place(run, tmp_path_factory):
    "An export with a wheel, and what the command printed."
    out = tmp_path_factory.mktemp('été')/'served'
    result = typed('export', run.path, '--wheel', '--out', out)
    assert result.returncode == 0, result.stderr
    (wheel,) = out.glob('*.whl')
    return SimpleNamespace(out=out, wheel=wheel, result=result)


@pytest.fixture(scope='module')
def members(place):
    "Content of each file in the wheel."
    with ZipFile(place.wheel) as archive: return {o: archive.read(o) for o in archive.namelist()}


def info(members, name): return next(v for k, v in members.items() if k.endswith(f'.dist-info/{name}'))


def copied(exported, folder, **changes):
    "A copy of the two files, some with another content."
    folder.mkdir()
    for name in ('model.json', 'model.onnx'): shutil.copy(exported/name, folder)
    for name, content in changes.items(): (folder/f'model.{name}').write_bytes(content)
    return folder


def test_the_wheel_is_printed_after_its_folder(place):
    assert place.result.stdout.splitlines() == [str(place.out), str(place.wheel)]
    assert sorted(os.listdir(place.out)) == [place.wheel.name, 'model.json', 'model.onnx']


def test_two_exports_of_a_run_give_one_wheel(place, run, exported, tmp_path):
    again = write_wheel(copied(exported, tmp_path/'again'), 'basegun_model', run.config.started)
    assert again.name == place.wheel.name and again.read_bytes() == place.wheel.read_bytes()


def test_its_name_and_its_metadata_are_valid_and_agree(place, members, run):
    metadata = Metadata.from_email(info(members, 'METADATA'))  # raises if it is not valid
    name, version, build, tags = parse_wheel_filename(place.wheel.name)
    assert (name, version, build, [*map(str, tags)]) == (metadata.name, metadata.version, (), ['py3-none-any'])
    *day, hour, minute, second = datetime.fromisoformat(run.config.started).timetuple()[:6]
    assert version.release[:4] == (*day, int(f'{hour}{minute:02}{second:02}'))
    assert not version.local and not version.is_prerelease and len(version.release) == 5
    assert str(metadata.requires_python) == distribution('basegun-fastai').metadata['Requires-Python']
    assert [o.name for o in metadata.requires_dist if not o.marker] == NEEDED
    assert metadata.summary.endswith(load(place.out).id) and load(place.out).id in metadata.description
    heic = next(o for o in metadata.requires_dist if o.marker)
    assert heic.name == 'pi-heif' and metadata.provides_extra == ['heic']


def test_its_lower_bounds_are_those_that_readme_names(members):
    bounds = {o.name: str(o.specifier) for o in Metadata.from_email(info(members, 'METADATA')).requires_dist}
    words = 'onnxruntime {onnxruntime}, numpy {numpy} and Pillow {pillow} or later'
    assert words.format(**{k: v.removeprefix('>=') for k, v in bounds.items()}) in (ROOT/'README.md').read_text()


def test_every_file_is_in_its_record(members):
    *lines, last = info(members, 'RECORD').decode().splitlines()
    assert lines == sorted(lines) and last == f"{[*members][-1]},,"
    digests = {path: (digest, int(size)) for path, digest, size in (o.split(',') for o in lines)}
    assert digests == {k: (f"sha256={urlsafe_b64encode(sha256(v).digest()).decode().rstrip('=')}", len(v))
                       for k, v in members.items() if k != [*members][-1]}


def test_nothing_in_it_is_of_the_moment_or_the_machine(place, members):
    with ZipFile(place.wheel) as archive: files = archive.infolist()
    assert {(o.date_time, o.external_attr >> 16) for o in files} == {((1980, 1, 1, 0, 0, 0), 0o100644)}
    for word in (str(ROOT), sys.prefix, str(place.out)): assert word.encode() not in b''.join(members.values())


def test_it_holds_the_two_files_and_the_code_unchanged(place, members):
    inside = {k.removeprefix('basegun_model/'): v for k, v in members.items() if k.startswith('basegun_model/')}
    for name in ('model.json', 'model.onnx'): assert inside.pop(name) == (place.out/name).read_bytes()
    assert b'load(Path(__file__).parent)' in inside.pop('__init__.py')
    assert inside == {o: (PACKAGE/o).read_bytes() for o in inside} and 'predict.py' in inside
    assert info(members, 'licenses/LICENSE') == (ROOT/'LICENSE').read_bytes()


def test_the_code_names_no_other_package_at_its_top(members):
    allowed = sys.stdlib_module_names | {'numpy', 'onnxruntime', 'PIL'}
    for name, content in members.items():
        if not name.endswith('.py'): continue
        for node in ast.parse(content).body:
            modules = [o.name for o in node.names] if isinstance(node, ast.Import) else (
                [node.module] if isinstance(node, ast.ImportFrom) and not node.level else [])
            assert {o.split('.')[0] for o in modules} <= allowed, (name, modules)
            if isinstance(node, ast.ImportFrom) and node.level:
                above = Path(name).parents[node.level - 1]/node.module.replace('.', '/')
                assert f'{above}.py' in members, (name, node.module)


def test_one_version_is_one_content(place, exported, tmp_path, run):
    other = json.loads((exported/'model.json').read_text())
    from basegun_fastai.exported import seal
    other = seal(other | dict(id='another')).encode()
    names = {write_wheel(copied(exported, tmp_path/str(i), **changes), 'basegun_model', started).name
             for i, (changes, started) in enumerate([({}, run.config.started), (dict(json=other), run.config.started),
                                                     (dict(onnx=b'other weights'), run.config.started),
                                                     ({}, '2001-02-03T04:05:06')])}
    assert len(names) == 4 and place.wheel.name in names
    assert any(o.startswith('basegun_model-2001.2.3.40506.') for o in names)
    with pytest.raises(BasegunError, match="'soon': train again"):
        write_wheel(copied(exported, tmp_path/'undated'), 'basegun_model', 'soon')


def test_a_later_training_is_a_later_version(exported, tmp_path):
    day = '2026-01-10'
    starts = ('2026-01-09T23:59:59.9', day, f'{day}T00:00:09', f'{day}T09:00:00', f'{day}T10:00:00')
    wheels = [write_wheel(copied(exported, tmp_path/o), 'basegun_model', o) for o in starts]
    versions = [parse_wheel_filename(o.name)[1] for o in wheels]
    assert versions == sorted(set(versions))


def test_an_id_of_any_characters_stays_on_its_line(exported, tmp_path, run):
    from basegun_fastai.exported import seal
    about = json.loads((exported/'model.json').read_text()) | dict(id='nuit\nVersion: 0 été {name} \udcff')
    folder = copied(exported, tmp_path/'odd', json=seal(about).encode('utf-8', 'surrogateescape'))
    with ZipFile(write_wheel(folder, 'basegun_model', run.config.started)) as archive:
        text = archive.read(next(o for o in archive.namelist() if o.endswith('METADATA')))
    assert Metadata.from_email(text).summary.endswith(r'nuit\nVersion: 0 été {name} \udcff')


@pytest.mark.parametrize('name', ['basegun_model', 'a', 'pistols_2026', 'b2'])
def test_a_name_that_a_package_may_have(name): assert not wheel_faults(True, name)


@pytest.mark.parametrize('name', ['', 'Basegun', 'basegun-model', '_model', 'model_', 'two__lines', '9mm', 'class',
                                  'été', 'a b', '../a', 'a\n', 'a.b', 'x' * 500 + ' '])
def test_a_name_that_python_cannot_import_is_refused(name):
    (fault,) = wheel_faults(True, name)
    advice = fault.rsplit(' ', 1)[1]
    assert 'lower-case letters' in fault and '\n' not in fault and len(fault) < 400 and not wheel_faults(True, advice)


@pytest.mark.parametrize('name', ['json', 'email', 'numpy', 'pillow', 'pil', 'onnxruntime', 'torch', 'fastapi',
                                  'pi_heif', 'basegun_fastai', 'basegun_ml', 'scikit_learn', 'sklearn'])
def test_a_name_that_something_else_has_is_refused(name):
    (fault,) = wheel_faults(True, name)
    assert 'has this name: give another one, such as basegun_model' in fault


def test_faults_are_reported_together_and_nothing_is_made(run, data, tmp_path):
    before = tree(run.path)
    result = typed('export', run.path, '--wheel', '--wheel-name', 'numpy', '--out', data/'served')
    assert result.returncode == 1 and "'numpy'" in result.stderr and 'is inside the data' in result.stderr
    result = typed('export', run.path, '--wheel-name', 'mine', '--out', tmp_path/'served')
    assert result.returncode == 1 and "--wheel-name 'mine' is for a wheel: give --wheel too" in result.stderr
    assert not os.listdir(tmp_path) and tree(run.path) == before


def test_the_three_files_appear_together_or_not_at_all(run, tmp_path, monkeypatch):
    def full(folder, *_):
        assert sorted(os.listdir(folder)) == ['model.json', 'model.onnx']
        raise OSError(errno.ENOSPC, 'no space', str(folder/'x.whl'))
    monkeypatch.setattr(export_module, 'write_wheel', full)
    result = typed('export', run.path, '--wheel', '--out', tmp_path/'served')
    assert result.returncode == 1 and 'the disk is full' in result.stderr and not os.listdir(tmp_path)


# Installed

def with_their_requirements(names):
    "Names of distributions that are installed here, and of all that they require."
    pending, every = [*names], set()
    while pending:
        name = pending.pop()
        if name in every: continue
        every.add(name)
        needed = map(Requirement, requires(name) or [])
        pending += [o.name for o in needed if not o.marker or o.marker.evaluate(dict(extra=''))]
    return every


@pytest.fixture(scope='module')
def environment(place, exported, run, tmp_path_factory):
    "A Python with links to onnxruntime, numpy, Pillow and what they require, and with two wheels of different names."
    folder = tmp_path_factory.mktemp('environment')
    other = write_wheel(copied(exported, folder/'other'), 'night_model', run.config.started)
    subprocess.run([sys.executable, '-m', 'venv', '--without-pip', folder/'venv'], check=True)
    packages, python = next((folder/'venv').glob('lib/*/site-packages')), folder/'venv'/'bin'/'python'
    for name in with_their_requirements(NEEDED):
        here = distribution(name)
        for top in {o.parts[0] for o in here.files} - {'..'}: (packages/top).symlink_to(here.locate_file(top))
    def pip(*arguments): return subprocess.run([sys.executable, '-m', 'pip', '--disable-pip-version-check', '--python',
        python, *arguments], capture_output=True, text=True, timeout=120)
    installed = pip('install', '-q', '--no-index', '--no-compile', place.wheel, other)
    assert installed.returncode == 0, installed.stderr
    return SimpleNamespace(python=python, pip=pip, folder=folder)


PROGRAM = '''
import json, sys
from pathlib import Path
from basegun_model import NotAPhoto, UnreadablePhoto, get_typology, list_typologies, model
import night_model
photos = [Path(o) for o in sys.argv[1:]]
try: get_typology(b'no photo')
except NotAPhoto as err: reason = err.reason
print(json.dumps(dict(
    answers=[get_typology(o.read_bytes()) for o in photos], of_paths=[get_typology(str(o)) for o in photos],
    night=[night_model.get_typology(o) for o in photos], whole=[model(o) for o in photos],
    classes=list_typologies(), id=model.id, kinds=[type(o).__name__ for o in get_typology(photos[0])], reason=reason,
    apart=night_model.NotAPhoto is not NotAPhoto and issubclass(NotAPhoto, UnreadablePhoto),
    others=[o for o in ('basegun_fastai', 'torch', 'fastcore', 'fastai', 'pandas') if o in sys.modules])))
'''


def test_it_predicts_without_this_package(environment, exported, data, tmp_path):
    photos, model = sorted((data/'val').glob('*/*'))[::3], load(exported)
    left = dict(HOME=str(tmp_path), TMPDIR=str(tmp_path), XDG_CACHE_HOME=str(tmp_path))
    result = subprocess.run([environment.python, '-I', '-c', PROGRAM, *photos], capture_output=True, text=True,
                            timeout=120, env=left)
    assert result.returncode == 0 and not result.stderr, result.stderr
    actual, expected = json.loads(result.stdout), [list(model.get_typology(o)) for o in photos]
    assert actual['answers'] == actual['of_paths'] == actual['night'] == expected
    assert actual['whole'] == json.loads(json.dumps([model(o) for o in photos]))
    assert (actual['classes'], actual['id'], actual['kinds']) == (model.classes, model.id, ['str', 'float', 'str'])
    assert actual['apart'] and actual['others'] == [] and actual['reason'] and not os.listdir(tmp_path)


def test_pip_has_nothing_to_complain_of(environment, run):
    checked = environment.pip('check')
    assert checked.returncode == 0 and checked.stdout == 'No broken requirements found.\n' and not checked.stderr
    shown = environment.pip('show', '--files', 'basegun-model')
    assert 'basegun_model/model.onnx' in shown.stdout and run.path.name in shown.stdout
    frozen = [o for o in environment.pip('freeze').stdout.splitlines() if 'model' in o]
    assert [o.split(' @ file:///')[0] for o in frozen] == ['basegun-model', 'night-model']


@pytest.fixture
def importable(place, tmp_path, monkeypatch):
    "A folder with the wheel's content, from which this process imports."
    with ZipFile(place.wheel) as archive: archive.extractall(tmp_path)
    monkeypatch.syspath_prepend(tmp_path)
    yield tmp_path/'basegun_model'
    for o in [o for o in sys.modules if o.split('.')[0] == 'basegun_model']: del sys.modules[o]


@pytest.mark.parametrize(('name', 'words'), [('model.json', 'was changed by hand'), ('model.onnx', 'is damaged')])
def test_a_model_that_was_changed_after_its_installation_is_not_imported(importable, name, words):
    content = bytearray((importable/name).read_bytes())
    content[content.index(b'0.')] ^= 1 if name == 'model.json' else 255
    (importable/name).write_bytes(content)
    with pytest.raises(Exception, match=words) as caught: importlib.import_module('basegun_model')
    assert 'pip install --force-reinstall' in caught.value.__notes__[0]


def backend():
    "The program that the tutorial shows."
    cells = json.loads((ROOT/'nbs'/'tutorials'/'serve.ipynb').read_text())['cells']
    return re.search(r'```python\n(.*?)```', ''.join(''.join(o['source']) for o in cells), re.S)[1]


@pytest.mark.skipif(find_spec('fastapi') is None, reason='no basegun-fastai[serve]')
def test_the_backend_of_the_tutorial_answers_as_basegun_does(importable, exported, data):
    from fastapi.testclient import TestClient
    names, model, photo = {'__name__': 'backend'}, load(exported), next((data/'val').glob('*/*'))
    exec(backend(), names)
    assert len([o for o in backend().splitlines() if o]) <= 10 and importable.is_dir()
    client = TestClient(names['app'])
    def post(content):
        return client.post('/api/upload', files=dict(image=('a.jpg', content)), data=dict(date='1764500000'))
    response = post(photo.read_bytes())
    label, confidence, level = model.get_typology(photo)
    assert response.status_code == 200
    assert response.json() == dict(label=label, confidence=confidence, confidence_level=level, model=model.id)
    refused = post(b'no photo')
    assert refused.status_code == 422 and refused.json()['detail']
