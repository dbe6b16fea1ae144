"What is exported answers as what was trained, and nothing else is exported."
import json
import os
import subprocess
import sys

import numpy as np
import onnx
import pandas as pd
import pytest
from conftest import COMMAND, run_command, tree, typed
from safetensors.torch import load_file, save_file

from basegun_fastai.data.demo import demo_data
from basegun_fastai.predict import load
from basegun_fastai.train import train

pytestmark = pytest.mark.slow


@pytest.fixture(scope='module')
def place(tmp_path_factory):
    "A run on drawn photos, and what was exported of it; 200 photos in val."
    folder = tmp_path_factory.mktemp('made')
    demo_data(folder/'data', photos_per_class=102)
    train(folder/'data', arch='test_efficientnet', size=48, weights='none', fine_tune_epochs=2, lr=.01, batch_size=32,
          workers=0, out=folder, name='run')
    result = typed('export', folder/'run', '--out', folder/'served')
    assert result.returncode == 0, result.stderr
    assert (result.stdout.strip() == str(folder/'served') and 'get the same answer' in result.stderr
            and len(result.stderr.splitlines()) == 2)
    return folder


@pytest.fixture
def copied(place, tmp_path):
    import shutil
    shutil.copytree(place/'run', tmp_path/'run')
    return tmp_path/'run'


def test_two_hundred_photos_get_one_answer_from_everything(place):
    rows = pd.read_csv(place/'run'/'predictions-val.csv')
    model, photos = load(place/'served'), [place/'data'/o for o in rows.file]
    classes = model.classes
    wanted = rows[classes].to_numpy()
    assert len(rows) >= 200
    from fastai.learner import load_learner
    learn = load_learner(place/'run'/'learner.pkl')
    with learn.no_bar():
        pickled = learn.get_preds(dl=learn.dls.test_dl([str(o) for o in photos], num_workers=0))[0].numpy()
    import torch

    from basegun_fastai.run import Run
    from basegun_fastai.export import serving_network
    from basegun_fastai.data.photo import pixels
    with torch.no_grad():
        weights = serving_network(Run(place/'run'))(torch.from_numpy(np.stack([pixels(o, 48) for o in photos]))).numpy()
    one = np.array([list(model(o).probabilities.values()) for o in photos])
    result = run_command('predict', place/'served', place/'data'/'val')
    typed_rows = pd.read_csv(pd.io.common.StringIO(result.stdout))
    lines = typed_rows.assign(file=[os.path.relpath(o, place/'data')
                                    for o in typed_rows.file]).set_index('file').loc[rows.file]
    for actual in (pickled, weights, one, lines[classes].to_numpy()):
        assert (actual.argmax(1) == wanted.argmax(1)).all() and np.abs(actual - wanted).max() <= 1e-4
    assert (lines.label == rows.predicted.to_numpy()).all() and result.returncode == 0


def test_what_is_told_is_what_the_run_is(place):
    about, config = (json.loads((place/'served'/'model.json').read_text()),
                     json.loads((place/'run'/'config.json').read_text()))
    numbers = json.loads((place/'run'/'metrics.json').read_text())
    assert (about['classes'] == config['classes'] and about['size'] == 48
            and about['temperature'] == numbers['calibration']['temperature'])
    assert about['levels'] == {k: numbers['levels'][k] for k in ('low', 'high')} and about['metrics'] == numbers
    assert about['dataset']['fingerprint'] == config['dataset']['fingerprint'] and about['id'].startswith('run-')
    inside = json.loads({o.key: o.value
                         for o in onnx.load(place/'served'/'model.onnx').metadata_props}['basegun-fastai'])
    assert (inside['classes'] == about['classes'] and inside['levels'] == about['levels']
            and inside['temperature'] == about['temperature'])


def test_the_network_tells_nothing_of_the_machine(place):
    content = (place/'served'/'model.onnx').read_bytes()
    for word in (os.getcwd(), sys.prefix, 'site-packages', str(place)): assert word.encode() not in content


def test_the_network_is_laid_out_once(place):
    graph = onnx.load(place/'served'/'model.onnx').graph
    kinds = {o.op_type for o in graph.node}
    assert {o.name for o in graph.initializer} <= {i for o in graph.node for i in o.input}  # onnxruntime would complain
    assert 'GlobalAveragePool' in kinds and not kinds & {'ReduceMean', 'Gather', 'Shape'}


def test_a_run_of_another_decoder_is_not_exported_and_told_when_judged(place, copied):
    file = copied/'config.json'
    config = json.loads(file.read_text())
    now = config['versions'].pop('decoder')
    file.write_text(json.dumps(config))
    result = typed('export', copied)
    assert result.returncode == 1 and not (copied/'exported').exists()
    assert f"as decoder 1 read them, and this version has decoder {now}: export with" in result.stderr
    judged = typed('evaluate', copied, place/'data', '--out', copied.parent/'judged', '--workers', '0')
    assert judged.returncode == 0 and f'this version has decoder {now}: answers may differ' in judged.stderr


def test_two_exports_are_equal(place, tmp_path):
    assert typed('export', place/'run', '--out', tmp_path/'again').returncode == 0
    assert all((tmp_path/'again'/o).read_bytes() == (place/'served'/o).read_bytes()
               for o in ('model.json', 'model.onnx'))


@pytest.mark.parametrize('spoilt', ['weights', 'order', 'table'])
def test_what_answers_otherwise_is_not_exported(copied, tmp_path, spoilt):
    if spoilt == 'table':
        rows = pd.read_csv(copied/'predictions-val.csv')
        names = rows.columns[4:]
        rows[names[0]], rows[names[1]] = rows[names[1]].copy(), rows[names[0]].copy()
        rows.to_csv(copied/'predictions-val.csv', index=False)
    else:
        state = load_file(copied/'model.safetensors')
        if spoilt == 'weights': state['classifier.weight'] = state['classifier.weight'] * 1.01
        else: state = state | {k: state[k].flip(0).contiguous() for k in ('classifier.weight', 'classifier.bias')}
        save_file(state, copied/'model.safetensors')
    result = typed('export', copied, '--out', tmp_path/'served')
    assert result.returncode == 1 and 'the answers differ' in result.stderr and "val/" in result.stderr
    assert sorted(o.name for o in tmp_path.iterdir()) == ['run']


def test_a_class_that_moved_in_the_network_alone_is_noticed(place, tmp_path, monkeypatch):
    from basegun_fastai import export as module
    plain = module.onnx_model
    def swapped(network, size):
        actual = plain(network, size)
        for o in actual.graph.initializer:
            if list(o.dims) in ([6], [6, 256], [256, 6]):
                values = onnx.numpy_helper.to_array(o)
                axis = values.shape.index(6)
                o.CopyFrom(onnx.numpy_helper.from_array(np.take(values, [1, 0, 2, 3, 4, 5], axis), o.name))
        return actual
    monkeypatch.setattr(module, 'onnx_model', swapped)
    result = typed('export', place/'run', '--out', tmp_path/'served')
    assert result.returncode == 1 and 'by model.onnx' in result.stderr and not any(tmp_path.iterdir())


def test_faults_of_an_export(place, copied, tmp_path):
    def refused(word, *arguments):
        result = typed('export', *arguments)
        assert result.returncode == 1 and word in result.stderr and 'Traceback' not in result.stderr, result
    refused('is not the folder of a run', tmp_path)
    refused('runs whatever code is in it', place/'run'/'learner.pkl')
    refused('nothing is overwritten', place/'run', '--out', place/'served')
    refused('lies inside the data', place/'run', '--out', place/'data'/'served')
    (tmp_path/'nothing').mkdir()
    refused('--data', copied, '--data', tmp_path/'nothing', '--out', tmp_path/'served')
    config = json.loads((copied/'config.json').read_text())
    (copied/'config.json').write_text(json.dumps(config | dict(state='running')))
    refused('--resume', copied)
    (copied/'config.json').write_text(json.dumps(config))
    (copied/'metrics.json').write_text('{}')
    refused('train again', copied)
    assert not (tmp_path/'served').exists()


def test_nothing_in_the_data_or_the_run_is_changed(place, tmp_path):
    before = tree(place)
    assert typed('export', place/'run', '--out', tmp_path/'served').returncode == 0
    assert tree(place) == before


HOOKED = '''
import sys
found = []
def hook(event, arguments):
    if event == 'pickle.find_class': found.append(arguments[:])
sys.addaudithook(hook)
sys.argv = ['basegun-fastai', *sys.argv[1:]]
from basegun_fastai.cli import main
try: main()
finally: print('unpickled:', sorted({f'{a[1]}.{a[2]}' for a in found}), file=sys.stderr)
'''


@pytest.mark.parametrize('command', ['export', 'evaluate', 'predict'])
def test_nothing_is_unpickled(place, tmp_path, command):
    arguments = dict(export=[place/'run', '--out', tmp_path/'out'],
                     evaluate=[place/'run', place/'data', '--out', tmp_path/'out', '--workers', '0'],
                     predict=[place/'served', place/'data'/'val'])[command]
    result = subprocess.run([sys.executable, '-W', 'ignore', '-c', HOOKED, command, *map(str, arguments)],
                          capture_output=True, text=True, timeout=300)
    assert result.returncode == 0 and result.stderr.endswith('unpickled: []\n'), result.stderr[-2000:]


def test_the_command_is_installed(): assert run_command('export', '-h').returncode == 0 and COMMAND
