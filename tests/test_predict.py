"An export predicts without torch, is refused after any change, and rows are printed as soon as they are ready."
import csv
import io
import json
import os
import re
import shlex
import shutil
import signal
import subprocess
import sys
import threading
import time
from base64 import b64encode
from concurrent.futures import ThreadPoolExecutor
from hashlib import sha256
from pathlib import Path

import numpy as np
import PIL
import pytest
from conftest import COMMAND, run_command, soak, typed
from onnx import TensorProto, helper, numpy_helper
from PIL import ExifTags, Image

from basegun_fastai.base.errors import BasegunError
from basegun_fastai import predict
from basegun_fastai.data import photo
from basegun_fastai.exported import FORMAT, essentials, make_probe, seal
from basegun_fastai.data.demo import GUNS, draw_photo
from basegun_fastai.data.photo import DECODER, NEUTRAL, UnreadablePhoto
from basegun_fastai.predict import Answer, answers, columns, load
from basegun_fastai.data.walk import list_files

ROOT = Path(__file__).parents[1]
CLASSES, SIZE = sorted(GUNS), 16
MUTATIONS = soak(200, 10_000)


NEIGHBOUR = 3
PROJECTION = np.random.default_rng(1).normal(size=(SIZE * SIZE * 3, 8)).astype(np.float32)
BANK = np.random.default_rng(2).normal(size=(8, 40)).astype(np.float32)
BANK /= np.linalg.norm(BANK, axis=0)  # one column per train photo


def similarity_nodes(bank):
    "Nodes for the cosine to the third nearest of the bank, and their numbers."
    nodes = [helper.make_node('MatMul', ['flat', 'projection'], ['features']),
             helper.make_node('LpNormalization', ['features'], ['unit'], axis=1, p=2),
             helper.make_node('MatMul', ['unit', 'bank'], ['cosines']),
             helper.make_node('TopK', ['cosines', 'k'], ['nearest', 'places'], axis=1),
             helper.make_node('Gather', ['nearest', 'last'], ['similarity'], axis=1)]
    numbers = dict(projection=PROJECTION, bank=bank, k=np.array([NEIGHBOUR]), last=np.array(NEIGHBOUR - 1))
    return nodes, [numpy_helper.from_array(v, k) for k, v in numbers.items()]


def network(about, props=None, name='photos', scale=1., end='Softmax', bank=BANK):
    """An ONNX file that uses every pixel, and returns a similarity unless there is no bank; `props` are its
    metadata.
    """
    weights = scale * np.random.default_rng(0).normal(size=(SIZE * SIZE * 3, len(CLASSES))).astype(np.float32) / 4000
    nodes = [helper.make_node('Cast', [name], ['x'], to=TensorProto.FLOAT),
             helper.make_node('Flatten', ['x'], ['flat']),
             helper.make_node('MatMul', ['flat', 'weights'], ['logits']),
             helper.make_node(end, ['logits'], ['probabilities'])]
    more, numbers = ([], []) if bank is None else similarity_nodes(bank)
    outputs = dict(probabilities=['n', len(CLASSES)]) | ({} if bank is None else dict(similarity=['n']))
    graph = helper.make_graph([*nodes, *more], 'tiny',
                              [helper.make_tensor_value_info(name, TensorProto.UINT8, ['n', SIZE, SIZE, 3])],
                              [helper.make_tensor_value_info(k, TensorProto.FLOAT, v) for k, v in outputs.items()],
                              [numpy_helper.from_array(weights, 'weights'), *numbers])
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid('', 17)], ir_version=8)
    if props is None:
        props = {'basegun-fastai': json.dumps(essentials(about))} | ({'probe': make_probe(model.SerializeToString(),
            turned(), SIZE)} if name == 'photos' else {})
    helper.set_model_props(model, props)
    return model.SerializeToString()


def turned():
    "A photo that is stored on its side."
    exif, content = Image.Exif(), io.BytesIO()
    exif[ExifTags.Base.Orientation] = 6
    draw_photo('revolver', np.random.default_rng(1), (64, 48)).save(content, 'JPEG', exif=exif)
    return content.getvalue()


TABLE = np.linspace(.54, .7, 20).tolist()


def described(**changes):
    about = {'format': FORMAT, 'id': 'tiny-1', 'architecture': 'tiny', 'classes': CLASSES, 'size': SIZE,
             'padding': list(NEUTRAL), 'decoder': DECODER,
             'mean': [.5, .5, .5], 'std': [.2, .2, .2], 'temperature': 1.5,
             'levels': {'low': .5, 'high': .6, 'unfamiliar_rate': .1},
             'familiarity': {'n_neighbors': NEIGHBOUR, 'similarities': TABLE},
             'metrics': {'accuracy': .9}, 'dataset': {'photos': 24}, 'versions': {'timm': '1'}}
    return about | changes


def of_format_1():
    "The export of an older version."
    about = described(format='basegun-fastai model 1', levels={'low': .5, 'high': .6})
    del about['familiarity']
    return about


def written(folder, about, content):
    folder.mkdir(exist_ok=True)
    (folder/'model.onnx').write_bytes(content)
    (folder/'model.json').write_text(seal({'onnx': {'sha256': sha256(content).hexdigest(), 'bytes': len(content)}}
                                          | about))
    return folder


@pytest.fixture(scope='module')
def exported(tmp_path_factory):
    "The export of a tiny network; no test may change it."
    return written(tmp_path_factory.mktemp('été')/'exported', described(), network(described()))


@pytest.fixture(scope='module')
def older(tmp_path_factory):
    "The export of it by an older version; no test may change it."
    about = of_format_1()
    return written(tmp_path_factory.mktemp('older')/'exported', about, network(about, bank=None))


@pytest.fixture
def spoilt(exported, tmp_path): return shutil.copytree(exported, tmp_path/'exported')


@pytest.fixture(scope='module')
def photos(tmp_path_factory):
    folder, random = tmp_path_factory.mktemp('photos')/'taken', np.random.default_rng(0)
    for label in ('revolver', 'epaule_a_pompe'):
        (folder/label).mkdir(parents=True)
        for i in range(2): draw_photo(label, random, (160, 120)).save(folder/label/f'{i}.jpg')
    (folder/'.hidden').mkdir()
    (folder/'.hidden'/'a.jpg').write_bytes(b'no')
    (folder/'.DS_Store').write_bytes(b'no')
    return folder


def rows(text): return list(csv.DictReader(io.StringIO(text, newline='')))


def refused(folder, *words):
    with pytest.raises(BasegunError) as result: load(folder)
    for word in words: assert word in str(result.value), result.value
    return str(result.value)


def test_a_machine_that_reads_photos_otherwise_serves_nothing(exported, older, monkeypatch):
    load(exported)
    load(older)
    monkeypatch.setattr(photo, '_TURNS', {})
    result = refused(older, 'model.onnx', 'different predictions', 'a factor of', 'Install pillow', 'onnxruntime')
    assert f'installed: {PIL.__version__}' in result
    refused(exported, 'model.onnx', 'different similarity', 'Install pillow', f'installed: {PIL.__version__}')


ODD_PROBES = {
    'none': None, 'no JSON': '{', 'a list': '[]', 'no base64': '{"photo": "é", "probabilities": []}',
    'deep': '[' * 99_999, 'too few': json.dumps(dict(photo='', probabilities=[1.])),
    'huge': json.dumps(dict(photo='', probabilities=[10 ** 400] * len(CLASSES))),
    'texts': json.dumps(dict(photo='', probabilities=['a'] * len(CLASSES))),
    'no similarity': json.dumps(dict(photo='', probabilities=[1 / 6] * len(CLASSES))),
    'two similarities': json.dumps(dict(photo='', probabilities=[1 / 6] * len(CLASSES), similarity=[.5, .5]))}


@pytest.mark.parametrize('odd', [pytest.param(v, id=k) for k, v in ODD_PROBES.items()])
def test_a_network_without_a_photo_to_try_it_on_is_refused(spoilt, odd):
    about = described()
    props = {'basegun-fastai': json.dumps(essentials(about))} | ({} if odd is None else {'probe': odd})
    written(spoilt, about, network(about, props=props))
    refused(spoilt, 'has no valid test photo', 'basegun-fastai export RUN')


def test_a_photo_to_try_it_on_must_be_read_and_get_its_answer(spoilt):
    about = described()
    good = json.loads(make_probe(network(about), turned(), SIZE))
    for content, changes, words in ((b'no photo', {}, 'cannot read'),
                                    (turned(), dict(probabilities=[np.nan] * 6), 'different predictions'),
                                    (turned(), dict(probabilities=[.5, .5, 0, 0, 0, 0]), 'different predictions'),
                                    (turned(), dict(similarity=np.nan), 'different similarity'),
                                    (turned(), dict(similarity=good['similarity'] + .002), 'different similarity')):
        probe = json.dumps(good | dict(photo=b64encode(content).decode()) | changes)
        written(spoilt, about, network(about, props={'basegun-fastai': json.dumps(essentials(about)), 'probe': probe}))
        refused(spoilt, 'model.onnx', words, 'Install pillow')


# The files


def mutated(content, random):
    at, n = sorted(random.integers(0, len(content), 2)), int(random.integers(1, 9))
    new = {0: lambda: content[:at[0]] + bytes([content[at[0]] ^ 1 << int(random.integers(8))]) + content[at[0] + 1:],
           1: lambda: content[:at[0]] + content[at[1]:],
           2: lambda: content[:at[0]],
           3: lambda: content[:at[0]] + random.bytes(n) + content[at[0]:],
           4: lambda: content[:at[0]] + content[at[1]:at[1] + n] + content[at[0]:at[1]]
           + content[at[1] + n:]}[int(random.integers(5))]()
    return new if new != content else mutated(content, random)


@pytest.mark.soak
@pytest.mark.parametrize('name', ['model.json', 'model.onnx'])
def test_every_mutation_is_refused(spoilt, name):
    random, content, slowest = np.random.default_rng(1), (spoilt/name).read_bytes(), 0
    for _ in range(MUTATIONS // 2):
        (spoilt/name).write_bytes(mutated(content, random))
        began = time.monotonic()
        refused(spoilt, 'model.')
        slowest = max(slowest, time.monotonic() - began)
    assert slowest < 5
    (spoilt/name).write_bytes(content)
    load(spoilt)


@pytest.mark.soak
def test_a_network_that_was_mutated_and_sealed_again_loads_or_is_refused(spoilt):
    "In another process, because a crash of onnxruntime would end it."
    result = subprocess.run([sys.executable, '-c', f'''
import sys; sys.path.insert(0, {str(ROOT/'tests')!r})
from test_predict import *
folder = Path({str(spoilt)!r})
random, content, loaded = np.random.default_rng(2), (folder/'model.onnx').read_bytes(), 0
head, tail = content.index(b'weights', content.index(b'tiny')) + 40, content.rindex(b'photos') - 40
for _ in range({MUTATIONS // 10}):
    at = int(random.integers(0, head)) if random.random() < .5 else int(random.integers(tail, len(content)))
    part = mutated(content[at:at+60], random)
    written(folder, described(), content[:at] + part + content[at+60:])
    try: load(folder)
    except BasegunError: continue
    loaded += 1
print(loaded)'''], capture_output=True, text=True, timeout=300, env=os.environ | dict(OMP_NUM_THREADS='1'))
    assert result.returncode == 0, result.stderr[-2000:]
    assert int(result.stdout) < MUTATIONS // 10


@pytest.mark.parametrize('change', [dict(classes=CLASSES[::-1]), dict(levels={'low': .1, 'high': .2}),
                                    dict(id='other'), dict(temperature=1.),
                                    dict(size=32), dict(classes=CLASSES[1:]), dict(levels={'low': None, 'high': None}),
                                    dict(levels={'low': .5, 'high': .6, 'unfamiliar_rate': 0.}),
                                    dict(familiarity={'n_neighbors': NEIGHBOUR, 'similarities': [.1, .2]})])
def test_json_that_was_sealed_again_differs_from_the_network(spoilt, change):
    written(spoilt, described(**change), (spoilt/'model.onnx').read_bytes())
    refused(spoilt, 'model.onnx', 'basegun-fastai export RUN')


WRONG = dict(id='', architecture=3, classes=['a', 'a'], size=True, padding=[0, 0, 0], decoder=1, mean=[1., 2.],
             std=[.1, .1, '.1'], temperature=0,
             levels={'low': .9, 'high': .5}, familiarity={'n_neighbors': 5, 'similarities': []},
             metrics=[], dataset=None, versions='1',
             onnx={'sha256': 'ab', 'bytes': '12'})


def test_every_wrong_field_is_told_at_once(spoilt):
    (spoilt/'model.json').write_text(seal(described(**WRONG)))
    result = refused(spoilt)
    assert all(f"model.json': {o} is " in result for o in WRONG) and len(result.splitlines()) == len(WRONG)


def similarities(*numbers, n_neighbors=5): return dict(n_neighbors=n_neighbors, similarities=[*numbers])


BAD_FAMILIARITY = [
    similarities(.2, .1), similarities(*[.5] * 1002), similarities(-1.02, .5), similarities(.5, 1.02),
    similarities(.5, 10 ** 400), similarities(.5, None), similarities(.5, '.6'), similarities(.5, True),
    similarities(.5, n_neighbors=0), similarities(.5, n_neighbors=1.), similarities(.5, n_neighbors=True),
    dict(similarities=[.5]), dict(n_neighbors=5), similarities(.5) | dict(more=1), dict(n_neighbors=5, similarities=.5),
    [.5], {}, 'none', False, 0]


@pytest.mark.parametrize('change', [*({k: v} for k, v in WRONG.items()), dict(classes=['a', '']), dict(classes=['a']),
                                    dict(size=2049), dict(size=1.), dict(levels={'low': .5}),
                                    dict(levels={'low': -1., 'high': None}), dict(levels={'low': .5, 'high': 1.1}),
                                    dict(levels={'low': True, 'high': None}),
                                    *(dict(levels={'low': None, 'high': None, 'unfamiliar_rate': o})
                                      for o in (-.01, .11, True, None, '.02')),
                                    *(dict(familiarity=o) for o in BAD_FAMILIARITY)], ids=lambda o: str(o)[:60])
def test_one_wrong_field_is_told(spoilt, change):
    (spoilt/'model.json').write_text(seal({'onnx': {'sha256': 'ab', 'bytes': 12}} | described(**change)))
    refused(spoilt, f"model.json': {next(iter(change))} is ")


@pytest.mark.parametrize(('text', 'words'), [
    ('[' * 500_000, 'cannot be read as JSON'), ('{"a":' * 100_000, 'cannot be read as JSON'),
    ('', 'cannot be read as JSON'), ('\0', 'cannot be read as JSON'),
    ('[]', 'has the format None'), ('{"format": NaN}', 'has the format None'), ('9' * 10_000, 'cannot be read as JSON'),
    (' ' * (2**20 + 1), 'larger than a MiB'),
    ('{"format": "basegun-fastai model 3"}', "reads 'basegun-fastai model 2'"),
    ('{"format": "basegun-fastai model 1"}', 'lacks id, architecture'),
    (json.dumps({'format': FORMAT}), 'lacks id, architecture')])
def test_json_that_is_none_of_ours(spoilt, text, words):
    (spoilt/'model.json').write_text(text)
    refused(spoilt, words, 'export the run again')


@pytest.mark.parametrize(('old', 'new'),
                         [('1.5', 'NaN'), ('1.5', '1e999'), ('1.5', '1.50'), ('"tiny"', '"t\\u0069ny"'),
                          ('"tiny-1",', '"tiny-1", "id": "tiny-1",'),
                                          ('"seal": "', '"seal": "a'), ('"timm"', '"\\ud800"'), ('{', '{"more": 1,')])
def test_json_that_means_the_same_or_nothing_at_all(spoilt, old, new):
    text = (spoilt/'model.json').read_text()
    (spoilt/'model.json').write_text(text.replace(old, new, 1))
    assert refused(spoilt, 'changed by hand', 'cannot be edited')


def test_json_that_was_copied_as_text_says_so(spoilt):
    content = (spoilt/'model.json').read_bytes()
    text = content.decode()
    for copied, words in ((content.replace(b'\n', b'\r\n'), 'Windows line endings \\(CRLF\\)'),
                          (content.replace(b'\n', b'\r\n', 3), 'Windows line endings \\(CRLF\\)'),
                          (text.encode('utf-8-sig'), 'byte order mark'), (text.encode('utf-16'), 'byte order mark'),
                          (content.replace(b'\n', b'\r\n').replace(b'0.6', b'0.5'), 'changed by hand')):
        (spoilt/'model.json').write_bytes(copied)
        message = refused(spoilt)
        assert re.search(words, message)
        if words != 'changed by hand':
            assert 'copy it again as a binary file' in message and 'model.json -text' in message
            assert 'export' not in message.replace(str(spoilt), '') and 'by hand' not in message


@pytest.mark.slow
def test_json_of_any_depth_is_refused(spoilt):
    text = (spoilt/'model.json').read_text()
    for depth in range(900, 1000):  # within this range reading still works, but writing does not
        (spoilt/'model.json').write_text(text.replace('0.9', '[' * depth + ']' * depth, 1))
        refused(spoilt, 'model.json')


def test_sealing_what_is_not_whole_is_a_mistake_of_ours():
    with pytest.raises(ValueError, match='onnx'): seal(described())
    with pytest.raises(ValueError, match='other'): seal(described(onnx={}, other=1))
    for o in (dict(temperature=float('nan')), dict(familiarity=similarities(float('nan')))):
        with pytest.raises(ValueError, match='not JSON compliant'): seal(described(onnx={}, **o))
    with pytest.raises(ValueError, match='familiarity'): seal(of_format_1() | dict(onnx={}, format=FORMAT))
    with pytest.raises(ValueError, match='familiarity'): seal(of_format_1() | dict(onnx={}, familiarity=None))


def fifo(path): os.mkfifo(path)
def nothing(path): path  # noqa: B018
def folder(path): path.mkdir()
def device(path): path.symlink_to('/dev/zero')
def itself(path): path.symlink_to(path)
def sparse(path):
    with open(path, 'wb') as file: file.truncate(2**40)


@pytest.mark.parametrize('name', ['model.json', 'model.onnx'])
@pytest.mark.parametrize('kind', [fifo, nothing, folder, device, itself, sparse])
def test_files_that_are_none_are_refused_at_once(spoilt, name, kind):
    (spoilt/name).unlink()
    kind(spoilt/name)
    began = time.monotonic()
    refused(spoilt, name)
    assert time.monotonic() - began < 2


@pytest.mark.parametrize(('content', 'words'), [
    (network(described(), name='pictures'), "['pictures', 'tensor(uint8)'"),
    (network(described(), props={}), 'says null'),
    (network(described(), props={'basegun-fastai': '{'}), 'cannot be opened'),
    (network(described(), props={'basegun-fastai': '[' * 9999}), 'cannot be opened'),
    (network(described(), scale=np.nan), 'no valid probabilities'),
    (network(described(), end='Identity', scale=0.), 'no valid probabilities'), (b'none', 'cannot be opened'),
    (network(described(), bank=np.nan * BANK), 'no valid similarities'),
    (network(described(), bank=3 * BANK), 'no valid similarities'),
    (network(described(), bank=None), "has these outputs besides its probabilities: []")])
def test_a_network_that_is_none_of_ours(spoilt, content, words):
    refused(written(spoilt, described(), content), words, 'export the run again')


def test_a_similarity_that_no_familiarity_is_read_from_is_refused(spoilt):
    about = described(familiarity=None)
    refused(written(spoilt, about, network(about)), "has these outputs besides its probabilities: [['similarity'")
    load(written(spoilt, about, network(about, bank=None)))


def test_weights_in_another_file_are_not_opened(spoilt):
    import onnx
    onnx.save(onnx.load_from_string(network(described())), spoilt/'outside.onnx', save_as_external_data=True,
              location='w', size_threshold=0)
    refused(written(spoilt, described(), (spoilt/'outside.onnx').read_bytes()), 'weights in other files')


def test_what_is_given_instead_of_an_export(tmp_path, exported):
    (tmp_path/'learner.pkl').write_bytes(b'\x80')
    (tmp_path/'run').mkdir()
    (tmp_path/'run'/'config.json').write_text('{}')
    refused(tmp_path/'learner.pkl', 'runs any code in it', 'basegun-fastai export RUN')
    refused(tmp_path/'run', 'folder of a run', f'basegun-fastai export {tmp_path/"run"}')
    refused(tmp_path, 'no model.json in')
    refused(tmp_path/'nowhere', 'no folder')
    refused(exported/'model.onnx', f"give the folder '{exported}'")
    refused(tmp_path/'\0', 'no folder')


# Predictions


def test_answers_are_plain_python(exported, photos):
    model, content = load(exported), (photos/'revolver'/'0.jpg').read_bytes()
    label, confidence, level = result = model.get_typology(content)
    assert [type(o) for o in (result, label, confidence, level)] == [tuple, str, float, str] and level in ('low',
        'medium', 'high')
    assert model.list_typologies() == CLASSES and all(type(o) is str
                                                      for o in model.list_typologies()) and model.id == 'tiny-1'
    answer = model(content)
    assert answer == model(photos/'revolver'/'0.jpg') == model(str(photos/'revolver'/'0.jpg')) and answer[:3] == result
    assert list(answer.probabilities) == CLASSES and {type(o) for o in answer.probabilities.values()} == {float}
    assert (answer.probabilities[label] == confidence == max(answer.probabilities.values())
            and abs(sum(answer.probabilities.values()) - 1) < 1e-5)
    assert level == model.levels(confidence, answer.familiarity) and type(answer.familiarity) is float
    assert json.loads(json.dumps(answer)) == [label, confidence, level, answer.probabilities, answer.familiarity,
                                              answer.reason]


def test_the_answer_is_that_of_the_formula(exported, photos):
    from basegun_fastai.data.photo import pixels
    weights = np.random.default_rng(0).normal(size=(SIZE * SIZE * 3, len(CLASSES))).astype(np.float32) / 4000
    logits = pixels(photos/'revolver'/'0.jpg', SIZE).reshape(-1).astype(np.float64) @ weights
    np.testing.assert_allclose([*load(exported)(photos/'revolver'/'0.jpg').probabilities.values()],
                               np.exp(logits) / np.exp(logits).sum(), atol=1e-5)


def strange_photos():
    "Guns, noise and plain colours, as PNG."
    random = np.random.default_rng(5)
    for o in range(60):
        kind = [lambda: draw_photo(CLASSES[random.integers(6)], random, (64, 48)),
                lambda: Image.fromarray(random.integers(0, 256, (40, 40, 3), np.uint8)),
                lambda: Image.new('RGB', (30, 20), tuple(map(int, random.integers(0, 256, 3))))][o % 3]
        out = io.BytesIO()
        kind().save(out, 'PNG')
        yield out.getvalue()


def test_familiarity_and_reason_are_those_of_the_formula(exported):
    from basegun_fastai.data.photo import pixels
    model, reasons = load(exported), []
    for content in strange_photos():
        features = pixels(content, SIZE).reshape(-1).astype(np.float64) @ PROJECTION
        similarity = np.sort(features / np.linalg.norm(features) @ BANK)[-NEIGHBOUR]
        if np.abs(similarity - np.array(TABLE)).min() < 1e-5: continue  # rounding decides here
        answer = model(content)
        assert answer.familiarity == (1 + (np.array(TABLE) <= similarity).sum()) / (len(TABLE) + 1)
        reason = 'unfamiliar' if answer.familiarity < .1 else 'uncertain' if answer.confidence < .5 else None
        assert answer.reason == reason and (answer.level == 'low') == (reason is not None)
        assert model.batch([content]) == [answer]
        reasons.append(reason)
    assert len(reasons) > 50 and {*reasons} == {'unfamiliar', 'uncertain', None}


def test_an_export_of_before_is_opened_and_has_no_familiarity(older, exported, photos):
    model, photo = load(older), photos/'revolver'/'0.jpg'
    answer = model(photo)
    assert not model.has_familiarity and model.levels.unfamiliar_rate == 0 and answer.familiarity is None
    assert answer.probabilities == load(exported)(photo).probabilities and answer.reason == (
        None if answer.confidence >= .5 else 'uncertain')
    result = typed('predict', older, photo)
    assert result.returncode == 0 and len(result.stderr.splitlines()) == 1
    assert 'has no familiarity' in result.stderr and 'an older version exported it' in result.stderr
    assert rows(result.stdout)[0]['familiarity'] == ''


def test_a_model_of_too_few_val_photos_says_so(tmp_path, photos):
    about = described(familiarity=None)
    result = typed('predict', written(tmp_path/'exported', about, network(about, bank=None)), photos/'revolver')
    assert result.returncode == 0 and len(result.stderr.splitlines()) == 1
    assert 'has no familiarity' in result.stderr and 'too few val photos' in result.stderr
    assert all(o['familiarity'] == '' for o in rows(result.stdout))


def test_many_at_once_are_answered_as_one(exported, photos):
    model, files = load(exported), list(list_files([photos]))
    assert len(files) == 4 and model.batch([]) == []
    for one, of_many in zip(map(model, files), model.batch(files), strict=True):
        assert one.label == of_many.label and np.allclose([*one.probabilities.values()],
                                                          [*of_many.probabilities.values()], rtol=0, atol=1e-6)


def test_unreadable_bytes_are_told(exported):
    with pytest.raises(UnreadablePhoto, match='these bytes'): load(exported).get_typology(b'no photo')
    with pytest.raises(UnreadablePhoto): load(exported).batch([b''])


def test_a_backend_may_give_whatever_holds_bytes(exported, photos):
    model, content = load(exported), (photos/'revolver'/'0.jpg').read_bytes()
    for o in (bytearray(content), memoryview(content), io.BytesIO(content)):
        assert model.get_typology(o) == model.get_typology(content)
    for ask in (model, model.get_typology):
        with pytest.raises(TypeError, match='not of type PIL.Image.Image'): ask(Image.new('RGB', (9, 9)))
        with pytest.raises(predict.NotAPhoto): ask(bytearray(b'no photo'))
    assert issubclass(predict.PhotoTooLarge, UnreadablePhoto) and issubclass(predict.MissingDecoder, UnreadablePhoto)


def test_many_threads_get_the_same_answers(exported, photos):
    model, files = load(exported, threads=2), list(list_files([photos]))
    wanted = [model(o) for o in files]
    with ThreadPoolExecutor(8) as pool: actual = list(pool.map(model, files * 100))
    assert len(actual) == 400 and actual == wanted * 100


BACK = {1: None, 2: 0, 3: 3, 4: 1, 5: 5, 6: 2, 7: 6, 8: 4}  # the inverse of what Orientation does


def stored(upright, orientation):
    photo, exif = (upright if BACK[orientation] is None else upright.transpose(Image.Transpose(BACK[orientation])),
                   Image.Exif())
    exif[0x0112] = orientation
    return photo, exif


def contents(upright, kinds):
    for kind, options in kinds:
        for orientation in range(1, 9):
            out = io.BytesIO()
            photo, exif = stored(upright, orientation)
            photo.save(out, kind, exif=exif, **options)
            yield out.getvalue()


def test_containers_and_orientations_of_the_same_pixels_give_one_answer(exported):
    model, upright = load(exported), draw_photo('revolver', np.random.default_rng(3), (SIZE, 12))
    actual = [model(o) for o in contents(upright, [('PNG', {}), ('TIFF', {}),
                                                  ('WEBP', dict(lossless=True, exact=True))])]
    for kind in ('BMP', 'PNG', 'TIFF'):
        out = io.BytesIO()
        upright.save(out, kind)
        actual.append(model(out.getvalue()))
    assert len(actual) == 27 and all(o == actual[0] for o in actual)


def test_a_photo_in_16_orientations_and_containers_has_one_prediction(exported):
    model, upright = load(exported), draw_photo('epaule_a_pompe', np.random.default_rng(3), (640, 480))
    wanted = model(next(contents(upright, [('PNG', {})])))
    actual = [model(o) for o in contents(upright, [('JPEG', dict(quality=95)), ('PNG', {})])]
    for kind, options in (('WEBP', dict(quality=95)), ('AVIF', dict(quality=95)), ('TIFF', {}), ('BMP', {})):
        out = io.BytesIO()
        upright.save(out, kind, **options)
        actual.append(model(out.getvalue()))
    assert len(actual) == 20
    for o in actual: assert o.label == wanted.label and abs(o.confidence - wanted.confidence) < .01, (o, wanted)


# The command


def test_rows_are_those_of_the_model(exported, photos):
    result, model = typed('predict', exported, photos), load(exported)
    assert result.returncode == 0 and not result.stderr, result.stderr
    assert '\r' not in result.stdout and result.stdout.splitlines()[0] == (
        'file,label,confidence,level,familiarity,reason,error,' + ','.join(CLASSES))
    actual = rows(result.stdout)
    assert [o['file'] for o in actual] == [str(photos/o)
                                          for o in ('epaule_a_pompe/0.jpg', 'epaule_a_pompe/1.jpg', 'revolver/0.jpg',
                                                    'revolver/1.jpg')]
    for row in actual:
        answer = model(row['file'])
        assert (row['label'], float(row['confidence']), row['level'], row['error']) == (*answer[:3], '')
        assert float(row['familiarity']) == answer.familiarity and row['reason'] == (answer.reason or '')
        assert [float(row[o]) for o in CLASSES] == [*answer.probabilities.values()]


def test_json_lines_say_the_same(exported, photos):
    result = typed('predict', exported, photos/'revolver'/'0.jpg', photos/'.DS_Store', '--json')
    actual, bad = map(json.loads, result.stdout.splitlines())
    answer = load(exported)(photos/'revolver'/'0.jpg')
    assert actual == dict(file=str(photos/'revolver'/'0.jpg'), label=answer.label, confidence=answer.confidence,
                         level=answer.level, familiarity=answer.familiarity, reason=answer.reason,
                         error=None) | answer.probabilities
    assert (bad['label'] is None and bad['confidence'] is None and 'not a photo (JPEG' in bad['error']
            and list(bad) == list(actual) and result.returncode == 1)


def test_bad_photos_are_rows_and_the_command_goes_on(exported, photos, tmp_path):
    taken = shutil.copytree(photos, tmp_path/'taken')
    (taken/'a.jpg').write_bytes(b'')
    (taken/'b.jpg').symlink_to('nowhere')
    os.mkfifo(taken/'c.jpg')
    result = typed('predict', exported, taken)
    assert (result.returncode == 1
            and '3 of 7 photos could not be read; see the column error for the reason' in result.stderr)
    bad = {Path(o['file']).name: o for o in rows(result.stdout) if o['error']}
    assert len(rows(result.stdout)) == 7 and list(bad) == ['a.jpg', 'b.jpg',
                                                         'c.jpg'] and 'not a regular file' in bad['c.jpg']['error']
    assert all(v == '' for o in bad.values() for k, v in o.items() if k not in ('file', 'error'))


def test_links_in_a_circle_end(photos, tmp_path):
    taken = shutil.copytree(photos, tmp_path/'taken')
    (taken/'revolver'/'up').symlink_to(taken)
    (taken/'self').symlink_to('self')
    os.link(taken/'revolver'/'0.jpg', taken/'revolver'/'same.jpg')
    assert [os.path.relpath(o, taken) for o in list_files([taken])] == ['epaule_a_pompe/0.jpg', 'epaule_a_pompe/1.jpg',
        'revolver/0.jpg', 'revolver/1.jpg',
                                                                    'revolver/same.jpg', 'self']
    assert len(list(list_files([taken, taken]))) == 12


def test_a_million_photos_are_not_begun_at_once():
    begun, answer = [], Answer('a', 1., 'high', {'a': 1.})
    actual = answers(lambda photo: begun.append(photo) or answer, (str(o) for o in range(10**6)), 2)
    assert [next(actual)[0] for _ in range(10)] == [str(o) for o in range(10)] and len(begun) <= 14
    actual.close()


def test_a_row_does_not_wait_for_the_photo_after_it():
    answer, go = Answer('a', 1., 'high', {'a': 1.}), threading.Event()
    actual = answers(lambda photo: photo == 'quick' or go.wait(60) and answer, ['quick', 'slow', 'slow', 'slow'], 2)
    assert next(actual)[0] == 'quick' and not go.is_set()
    go.set()
    assert [o for o, _ in actual] == ['slow'] * 3


def test_a_wish_to_end_cannot_get_lost(exported, photos, monkeypatch):
    from basegun_fastai import predict
    from basegun_fastai.base import processes
    monkeypatch.setattr(processes, '_signals', [processes.Terminated])
    with pytest.raises(processes.Terminated): predict.predict(exported, [photos])


def test_rows_come_through_a_pipe_as_they_are_ready_and_sigterm_ends_it(exported, photos, tmp_path):
    Image.fromarray(np.random.default_rng(0).integers(0, 255, (5000, 5000, 3), np.uint8)).save(tmp_path/'slow.png',
        compress_level=1)
    with subprocess.Popen([COMMAND, 'predict', exported, photos/'revolver'/'0.jpg', *[tmp_path/'slow.png'] * 40],
                          stdout=subprocess.PIPE, stderr=subprocess.PIPE,
                          env={k: v for k, v in os.environ.items() if k != 'PYTHONUNBUFFERED'}) as process:
        came = b''
        # the current content of the pipe
        while came.count(b'\n') < 2: came += os.read(process.stdout.fileno(), 2**16)
        assert b'0.jpg' in came and came.count(b'slow.png') < 5
        process.send_signal(signal.SIGTERM)
        rest, result = process.communicate(timeout=60)
    assert process.returncode == 143 and b'Traceback' not in result and rest.count(b'\n') < 39


def test_an_interrupted_table_is_not_left(exported, tmp_path):
    Image.new('RGB', (5000, 5000)).save(tmp_path/'slow.png')
    (tmp_path/'out').mkdir()
    with subprocess.Popen([COMMAND, 'predict', exported, *[tmp_path/'slow.png'] * 200, '--out',
                           tmp_path/'out'/'rows.csv'], stderr=subprocess.DEVNULL) as process:
        while not any((tmp_path/'out').iterdir()): assert process.poll() is None
        process.send_signal(signal.SIGINT)
        assert process.wait(60) == 130
    assert not any((tmp_path/'out').iterdir())


def test_a_table_is_written_whole_and_never_over_another(exported, photos, tmp_path):
    out = tmp_path/'rows.csv'
    result = typed('predict', exported, photos, photos/'.DS_Store', '--out', out)
    assert (result.returncode == 1 and not result.stdout and result.stderr.splitlines()[0] == f"wrote 5 rows to '{out}'"
            and '1 of 5' in result.stderr.splitlines()[1])
    assert [o.name for o in tmp_path.iterdir()] == ['rows.csv']
    before = out.read_bytes()
    assert before.decode() == typed('predict', exported, photos, photos/'.DS_Store').stdout
    result = typed('predict', exported, photos, '--out', out)
    assert result.returncode == 1 and 'nothing is overwritten' in result.stderr and out.read_bytes() == before


def test_a_table_that_appears_meanwhile_is_not_overwritten(exported, photos, tmp_path, monkeypatch):
    from basegun_fastai import predict
    answer_or_error = predict._answer_or_error
    monkeypatch.setattr(predict, '_answer_or_error', lambda model, photo: (tmp_path/'rows.csv').write_text('mine')
                        and answer_or_error(model, photo))
    with pytest.raises(BasegunError, match='nothing is overwritten'):
        predict.predict(exported, [photos], out=tmp_path/'rows.csv')
    assert (tmp_path/'rows.csv').read_text() == 'mine' and len(list(tmp_path.iterdir())) == 1


def test_every_fault_is_told_before_anything_is_done(exported, photos, tmp_path):
    (tmp_path/'empty').mkdir()
    result = typed('predict', tmp_path/'nowhere', tmp_path/'a.jpg', photos, tmp_path/'b.jpg', tmp_path/'empty', '--out',
                 photos/'rows.csv')
    assert result.returncode == 1 and not result.stdout and len(result.stderr.splitlines()) == 5
    for o in ("no folder '", "a.jpg': give photos", "b.jpg': give photos", "empty' holds no photo",
              'is inside the data'):
        assert o in result.stderr
    assert 'there is no folder' in typed('predict', exported, photos, '--out', tmp_path/'no'/'rows.csv').stderr
    assert 'is inside the data' in typed('predict', exported, photos, '--out', exported/'rows.csv').stderr
    assert typed('predict', exported).returncode == 2


@pytest.mark.parametrize('odd', [b'a\nb.jpg', b'a\rb.jpg', b'a"b,c.jpg', b'\xff\xfe.jpg', b'=1+1.jpg',
                                 ' \u202e.jpg'.encode()])
def test_odd_names_are_one_row(exported, photos, tmp_path, odd):
    taken = tmp_path/'taken'
    taken.mkdir()
    name = os.fsdecode(odd)
    shutil.copy(photos/'revolver'/'0.jpg', taken/name)
    assert typed('predict', exported, taken, '--out', tmp_path/'rows.csv').returncode == 0
    row, = list(csv.DictReader(open(tmp_path/'rows.csv', encoding='utf-8', errors='surrogateescape', newline='')))
    assert row['file'] == str(taken/name) and row['label']
    shown = str(taken/name).encode('utf-8', 'backslashreplace').decode()
    assert [o['file'] for o in rows(typed('predict', exported, taken).stdout)] == [shown]
    assert typed('predict', exported, taken, '--json', '--out', tmp_path/'rows.jsonl').returncode == 0
    assert json.loads((tmp_path/'rows.jsonl').read_bytes())['file'] == str(taken/name)


def test_odd_names_do_not_stop_the_installed_command(exported, photos, tmp_path):
    shutil.copy(photos/'revolver'/'0.jpg', os.fsencode(tmp_path/'a') + b'\xff\n.jpg')
    result = run_command('predict', exported, tmp_path)
    assert result.returncode == 0 and len(rows(result.stdout)) == 1, result.stderr


def test_classes_named_like_columns_do_not_hide_them():
    front = ['file', 'label', 'confidence', 'level', 'familiarity', 'reason', 'error']
    assert columns(['a', 'error', 'class error', 'reason', 'file']) == [
        *front, 'a', 'class error', 'class class error', 'class reason', 'class file']


def test_classes_that_are_no_text_can_be_loaded(tmp_path):
    about = described(classes=['\udcff', *CLASSES[1:]])
    content = network(about)
    (tmp_path/'model.onnx').write_bytes(content)
    text = seal(about | {'onnx': {'sha256': sha256(content).hexdigest(), 'bytes': len(content)}})
    (tmp_path/'model.json').write_bytes(text.encode('utf-8', 'surrogateescape'))
    assert load(tmp_path).classes[0] == '\udcff'


# Requirements


def in_a_process(code, *arguments):
    result = subprocess.run([sys.executable, '-c', code, *map(str, arguments)], capture_output=True, text=True,
                          timeout=120)
    assert result.returncode == 0, result.stderr
    return result.stdout.splitlines()[-1]


HEAVY = '[o for o in ("torch", "fastai", "timm", "pandas", "sklearn", "scipy", "onnx", "tqdm") if o in sys.modules]'


def test_nothing_heavy_is_imported(exported, photos):
    assert in_a_process('import sys; from pathlib import Path; from basegun_fastai.predict import predict; '
                        'predict(Path(sys.argv[1]), [Path(sys.argv[2])])\n'
                        f'print({HEAVY} + [o for o in sys.modules if o.startswith("fastcore")])', exported,
                        photos) == '[]'
    assert in_a_process('import sys; from basegun_fastai import cli; sys.argv[1:] = ["predict", *sys.argv[1:]]; '
                        'cli.main()\n'
                        f'print({HEAVY})', exported, photos) == '[]'


def test_what_other_programs_leave_gets_no_row(exported, photos, tmp_path):
    folder = shutil.copytree(photos, tmp_path/'photos')
    for o in ('Thumbs.db', 'revolver/0.jpg.xmp', '@eaDir/0.jpg'):
        (folder/o).parent.mkdir(exist_ok=True)
        (folder/o).write_bytes(b'no photo')
    done = typed('predict', exported, folder)
    assert done.returncode == 0 and len(rows(done.stdout)) == 4
    assert done.stderr.startswith('3 files that other programs left beside the photos')
    alone = typed('predict', exported, folder/'Thumbs.db')  # a file that is named is read
    assert alone.returncode == 1 and len(rows(alone.stdout)) == 1


def test_nothing_is_unpickled(exported, photos):
    assert in_a_process('import sys; found = []; sys.addaudithook(lambda name, _: name == "pickle.find_class" and '
                        'found.append(name))\n'
                        'from basegun_fastai import cli; sys.argv[1:] = ["predict", *sys.argv[1:]]; '
                        'cli.main()\nprint(found)', exported, photos) == '[]'


@pytest.mark.slow
def test_the_package_without_its_dependencies_and_three_others_are_enough(exported, photos, tmp_path):
    def run(*command): subprocess.run(command, check=True, cwd=ROOT, capture_output=True, timeout=300)
    source = shutil.copytree(ROOT, tmp_path/'source', ignore=lambda _, names: set(names) - {
        'basegun_fastai', 'settings.ini', 'setup.py', 'pyproject.toml', 'README.md', 'LICENSE', 'MANIFEST.in'}
        if _ == str(ROOT) else [])
    run(sys.executable, '-m', 'pip', 'wheel', '-q', '--no-deps', '--no-build-isolation', '-w', tmp_path/'wheel', source)
    run(sys.executable, '-m', 'venv', '--without-pip', tmp_path/'venv')
    python, photo = tmp_path/'venv'/'bin'/'python', photos/'revolver'/'0.jpg'
    def install(*what):  # compiles nothing: Python compiles what it imports, a tenth of these packages
        run(sys.executable, '-m', 'pip', '--python', python, 'install', '-q', '--no-compile', *what)
    install('--no-deps', *(tmp_path/'wheel').glob('*.whl'))
    install('-c', ROOT/'constraints.txt', 'onnxruntime', 'numpy', 'pillow')
    result = subprocess.run([python, '-c', 'import json, sys; from basegun_fastai.predict import load\n'
                           'model = load(sys.argv[1]); print(json.dumps([model.get_typology(open(sys.argv[2], '
                           '"rb").read()), model.list_typologies()]))',
                           exported, photo], capture_output=True, text=True, cwd=tmp_path, timeout=60)
    assert result.returncode == 0, result.stderr
    model = load(exported)
    assert json.loads(result.stdout) == [list(model.get_typology(photo.read_bytes())), CLASSES]
    program = python.with_name('basegun-fastai')
    result = subprocess.run([program, '--version'], capture_output=True, text=True)
    assert result.stdout == run_command('--version').stdout
    result = subprocess.run([program, 'predict', '-h'], capture_output=True, text=True)
    needed = result.stderr.removeprefix('basegun-fastai: fastcore is not installed: type `').partition('`')[0]
    assert result.returncode == 1 and needed.startswith("pip install 'fastcore>="), result.stderr
    assert shlex.split(needed)[:2] == ['pip', 'install']
    install(*shlex.split(needed)[2:], '-c', ROOT/'constraints.txt')  # as the message says
    result = subprocess.run([program, 'predict', exported, photo], capture_output=True, text=True)
    assert result.returncode == 0 and not result.stderr and len(rows(result.stdout)) == 1, result.stderr


def test_nobody_is_told_that_a_model_is_opened(exported, tmp_path):
    "By default, onnxruntime writes an id of this machine and a queue of events for its maker at its import."
    environment = {k: v for k, v in os.environ.items() if k != 'ORT_DISABLE_TELEMETRY'}
    environment |= dict(TMPDIR=str(tmp_path), HOME=str(tmp_path), XDG_CACHE_HOME=str(tmp_path))
    program = 'import sys; from basegun_fastai import predict; predict.load(sys.argv[1])'
    subprocess.run([sys.executable, '-c', program, str(exported)], env=environment, check=True)
    assert not [*tmp_path.rglob('*')]
