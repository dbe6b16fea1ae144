"An export predicts like the trained network; nothing else is exported."
import json
import os
import shutil
import sys
from types import SimpleNamespace

import numpy as np
import onnx
import pandas as pd
import pytest
from conftest import COMMAND, forget_familiarity, run_command, tree, typed
from safetensors.torch import load_file, save_file
from warm import run_warm

from basegun_fastai.base.record import Run
from basegun_fastai.data.demo import GUNS, draw_photo
from basegun_fastai.predict import load
from basegun_fastai.train import train
from basegun_fastai.trust.familiarity import Bank, read_bank, save_bank, similarity

pytestmark = pytest.mark.slow


@pytest.fixture(scope='module')
def place(data, tmp_path_factory):
    "A run on drawn photos with 204 photos in val, most of them parts of two, and its export."
    folder = tmp_path_factory.mktemp('made')
    shutil.copytree(data, folder/'data', copy_function=os.link)
    for c, label in enumerate(GUNS):
        for i, seed in enumerate([[c, 0], [c, 1]]):
            photo = draw_photo(label, np.random.default_rng(seed), (320, 240))
            for k, (left, top) in enumerate(np.random.default_rng(seed).integers(0, 60, (15, 2)).tolist()):
                photo.crop((left, top, 260 + left, 180 + top)).save(folder/'data'/'val'/label/f'{i} {k:02d}.jpg')
    train(folder/'data', arch='test_efficientnet', size=48, weights='none', fine_tune_epochs=12, lr=.01, batch_size=16,
          workers=0, out=folder, name='run', no_report=True)
    result = typed('export', folder/'run', '--out', folder/'served')
    assert result.returncode == 0, result.stderr
    assert (result.stdout.strip() == str(folder/'served') and 'give the same predictions' in result.stderr
            and len(result.stderr.splitlines()) == 2)
    return folder


@pytest.fixture
def copied(place, tmp_path):
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

    from basegun_fastai.base.record import Run
    from basegun_fastai.export import serving_network
    from basegun_fastai.data.photo import pixels
    with torch.no_grad():
        network = serving_network(Run(place/'run'), read_bank(Run(place/'run')))
        weights = network(torch.from_numpy(np.stack([pixels(o, 48) for o in photos])))[0].numpy()
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
    assert about['levels'] == {k: numbers['levels'][k] for k in ('low', 'high', 'unfamiliar_rate')}
    assert about['metrics'] == numbers and about['familiarity'] == dict(
        n_neighbors=5, similarities=read_bank(Run(place/'run')).table.tolist())
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
    kinds, by_output = [o.op_type for o in graph.node], {name: o for o in graph.node for name in o.output}
    assert {o.name for o in graph.initializer} <= {i for o in graph.node for i in o.input}  # onnxruntime would complain
    answering, names = set(), ['probabilities', 'evidence']
    while names:
        if node := by_output.get(names.pop()):
            answering.add(node.op_type)
            names += node.input
    assert 'GlobalAveragePool' in answering and not answering & {'ReduceMean', 'Gather', 'Shape'}
    for kind in ('Gather', 'Shape', 'TopK'): assert kinds.count(kind) <= 1, kind  # of similarity
    assert 'ReduceMean' not in kinds


def test_a_run_of_another_decoder_is_not_exported_and_told_when_judged(place, copied):
    file = copied/'config.json'
    config = json.loads(file.read_text())
    now = config['versions'].pop('decoder')
    file.write_text(json.dumps(config))
    result = typed('export', copied)
    assert result.returncode == 1 and not (copied/'exported').exists()
    assert f"trained with decoder 1, but this version has decoder {now}: export with" in result.stderr
    judged = typed('evaluate', copied, place/'data', '--out', copied.parent/'judged', '--workers', '0')
    assert judged.returncode == 0 and f'this version has decoder {now}: predictions may differ' in judged.stderr


def test_two_exports_are_equal(place, again):
    assert all((again.out/o).read_bytes() == (place/'served'/o).read_bytes() for o in ('model.json', 'model.onnx'))


@pytest.mark.parametrize('spoilt', ['weights', 'order', 'table'])
def test_what_answers_otherwise_is_not_exported(copied, tmp_path, spoilt):
    if spoilt == 'table':
        rows = pd.read_csv(copied/'predictions-val.csv')
        names = rows.columns[6:]
        rows[names[0]], rows[names[1]] = rows[names[1]].copy(), rows[names[0]].copy()
        rows.to_csv(copied/'predictions-val.csv', index=False)
    else:
        state, bank = load_file(copied/'model.safetensors'), read_bank(Run(copied))
        if spoilt == 'weights': state['classifier.weight'] = state['classifier.weight'] * 1.01
        else: state = state | {k: state[k].flip(0).contiguous() for k in ('classifier.weight', 'classifier.bias')}
        save_file(state, copied/'model.safetensors')
        result = typed('export', copied, '--out', tmp_path/'served')
        assert result.returncode == 1 and 'belongs to another network' in result.stderr
        save_bank(Run(copied), bank)
    result = typed('export', copied, '--out', tmp_path/'served')
    assert result.returncode == 1 and 'its predictions differ' in result.stderr and "val/" in result.stderr
    assert sorted(o.name for o in tmp_path.iterdir()) == ['run']


@pytest.mark.parametrize(('apart', 'n'), [(5e-8, 0), (.01, 6)])
def test_classes_that_are_as_probable_may_change_places(apart, n):
    from types import SimpleNamespace

    from basegun_fastai.export import _answer_faults
    one, other = np.array([[.4, .4 - apart, .2 + apart]] * 2), np.array([[.4 - apart, .4, .2 + apart]] * 2)
    answer = SimpleNamespace(probabilities=dict(zip('abc', other[0], strict=True)))
    class Model:
        classes = [*'abc']
        def __call__(self, _): return answer
        def batch(self, photos): return [answer] * len(photos)
    preds = SimpleNamespace(probabilities=other, files=['a.jpg', 'b.jpg'])
    largest, faults = _answer_faults(preds, one, Model(), preds.files)
    assert largest == pytest.approx(apart) and len(faults) == n


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
    refused('runs any code in it', place/'run'/'learner.pkl')
    refused('nothing is overwritten', place/'run', '--out', place/'served')
    refused('is inside the data', place/'run', '--out', place/'data'/'served')
    (tmp_path/'nothing').mkdir()
    refused('--data', copied, '--data', tmp_path/'nothing', '--out', tmp_path/'served')
    config = json.loads((copied/'config.json').read_text())
    (copied/'config.json').write_text(json.dumps(config | dict(state='running')))
    refused('--resume', copied)
    (copied/'config.json').write_text(json.dumps(config))
    (copied/'metrics.json').write_text('{}')
    refused('train again', copied)
    assert not (tmp_path/'served').exists()


def test_nothing_in_the_data_or_the_run_is_changed(again): assert again.unchanged


HOOKED = '''
import pickle, sys, types
def hook(event, arguments):
    if event == 'pickle.find_class': print('unpickled:', *arguments, file=sys.stderr)
sys.addaudithook(hook)
pickle.loads(pickle.dumps(types.SimpleNamespace))
'''


@pytest.fixture(scope='module')
def again(place, tmp_path_factory):
    "A second export, which says what it unpickles."
    out, before = tmp_path_factory.mktemp('again')/'served', tree(place)
    result = run_warm('export', place/'run', '--out', out, before=HOOKED)
    assert result.returncode == 0, result.stderr
    return SimpleNamespace(out=out, result=result, unchanged=tree(place) == before)


@pytest.mark.parametrize('command', ['export', 'evaluate', 'predict'])
def test_nothing_is_unpickled(request, place, tmp_path, command):
    arguments = dict(evaluate=[place/'run', place/'data', '--out', tmp_path/'out', '--workers', '0'],
                     predict=[place/'served', place/'data'/'val'])
    result = (request.getfixturevalue('again').result if command == 'export'
              else run_warm(command, *arguments[command], before=HOOKED))
    assert result.returncode == 0, result.stderr
    assert result.stderr.count('unpickled:') == result.stderr.count('unpickled: types SimpleNamespace\n') == 1


def test_the_command_is_installed(): assert run_command('export', '-h').returncode == 0 and COMMAND


# Evidence

@pytest.fixture(scope='module')
def photos(place): return [place/'data'/o for o in pd.read_csv(place/'run'/'predictions-val.csv').file]


def trained(run):
    from basegun_fastai.model.weights import trained_model
    from basegun_fastai.base.record import Run
    return trained_model(Run(run))


def normalised(squares, run):
    import torch

    from basegun_fastai.base.record import Run
    arch = Run(run).config.architecture
    mean, std = (torch.tensor(arch[o])[:, None, None] for o in ('mean', 'std'))
    return (torch.from_numpy(squares).permute(0, 3, 1, 2) / 255 - mean) / std


def test_evidence_of_onnx_of_torch_and_by_hand_is_one_and_adds_up_to_the_logits(place, photos):
    import torch

    from basegun_fastai.data.photo import pixels
    from basegun_fastai.trust.evidence import dense_layer, evidence
    model, net = load(place/'served'), trained(place/'run')
    layer, squares = dense_layer(net, 48), np.stack([pixels(o, 48) for o in photos])
    assert len(squares) >= 200
    with torch.no_grad():
        x = normalised(squares, place/'run')
        features, logits = net.forward_features(x), net(x).numpy()
        by_torch = evidence(features, layer).numpy()
    by_hand = np.einsum('nkhw,ck->nchw', features.numpy(), layer.weight.detach().numpy())
    by_onnx = np.concatenate([model.outputs(squares[i:i+16], 'evidence')[0] for i in range(0, len(squares), 16)])
    size = np.abs(by_hand).max()
    assert np.abs(by_torch - by_hand).max() <= 1e-5 * size and np.abs(by_onnx - by_hand).max() <= 1e-5 * size
    summed = by_onnx.mean((2, 3)) + layer.bias.detach().numpy()
    assert np.abs(summed - logits).max() <= 1e-5 * max(1, np.abs(logits).max())


def test_an_explanation_is_of_the_same_answer(place, photos):
    model = load(place/'served')
    for photo in photos[::20]:
        told_why, answer = model.explain(photo), model(photo)
        assert told_why.answer.label == answer.label and abs(told_why.answer.confidence - answer.confidence) < 1e-6
        second = sorted(answer.probabilities, key=answer.probabilities.get)[-2]
        assert told_why.runner_up == second and 0 <= told_why.on_padding <= 1 and 0 <= told_why.on_border <= 1
        assert told_why.evidence.shape[0] == len(model.classes) and told_why.picture().width > 600


def test_predict_leaves_a_picture_a_photo(place, photos, tmp_path):
    (tmp_path/'damaged.jpg').write_bytes(photos[0].read_bytes()[:500])
    result = typed('predict', place/'served', *photos[:3], tmp_path/'damaged.jpg', '--explain', tmp_path/'why', '--out',
                   tmp_path/'rows.csv')
    assert result.returncode == 1 and '1 of 4 photos could not be read' in result.stderr
    rows = pd.read_csv(tmp_path/'rows.csv')
    assert sorted(os.listdir(tmp_path/'why')) == rows.picture.dropna().tolist() == [f'{i:06d}.jpg' for i in (1, 2, 3)]
    assert rows.on_padding.dropna().between(0, 1).all() and rows.runner_up.isna().tolist() == [False] * 3 + [True]
    assert rows.error.notna().tolist() == [False] * 3 + [True]


def test_a_folder_of_explanations_that_exists_is_refused(place, photos, tmp_path):
    (tmp_path/'why').mkdir()
    result = typed('predict', place/'served', photos[0], '--explain', tmp_path/'why')
    assert result.returncode == 1 and 'give another --explain' in result.stderr and not os.listdir(tmp_path/'why')


@pytest.mark.parametrize(('options', 'words'), [
    (['--explain', 'data/why'], "'data/why' is inside the data 'data'"),
    (['--explain', 'why', '--out', 'why'], "--explain and --out are both 'why'")])
def test_a_place_for_explanations_that_cannot_be_is_told_by_its_option(place, monkeypatch, tmp_path, options, words):
    (tmp_path/'data').symlink_to(place/'data'/'val')
    before = tree(place/'data')
    monkeypatch.chdir(tmp_path)
    result = typed('predict', place/'served', 'data', *options)
    assert result.returncode == 1 and words in result.stderr and os.listdir(tmp_path) == ['data']
    assert ('never written to: give another --explain' in result.stderr) == (options[1] == 'data/why')
    assert 'give another --out' not in result.stderr and tree(place/'data') == before


def test_two_commands_do_not_make_one_folder_of_explanations(place, photos, tmp_path):
    from basegun_fastai.base.files import hold
    with hold(tmp_path/'why', new=True):
        result = run_command('predict', place/'served', photos[0], '--explain', tmp_path/'why')
    assert result.returncode == 1 and 'is being written by' in result.stderr and not (tmp_path/'why').exists()


def test_evidence_that_does_not_add_up_is_not_exported(place, copied, monkeypatch, tmp_path):
    from basegun_fastai.trust import evidence as module
    plain, calls = module.evidence, []
    def wrong(features, layer):
        calls.append(1)
        return plain(features, layer) * (1 if len(calls) == 1 else 1.01)  # the first call inspects the network
    monkeypatch.setattr(module, 'evidence', wrong)
    result = typed('export', copied, '--data', place/'data', '--out', tmp_path/'out')
    assert result.returncode == 1 and 'does not add up to its logits' in result.stderr and not (tmp_path/'out').exists()


def test_a_head_with_batch_norm_is_explained_too(data, tmp_path):
    from conftest import QUICK
    train(data, out=tmp_path, name='run', fine_tune_epochs=1, head='bn-dropout', **QUICK)
    assert typed('export', tmp_path/'run', '--out', tmp_path/'served').returncode == 0
    assert load(tmp_path/'served').has_evidence


def test_a_network_without_evidence_is_exported_and_says_so(data, tmp_path):
    from conftest import QUICK
    train(data, out=tmp_path, name='run', fine_tune_epochs=1, **QUICK | dict(arch='test_convnext'))
    result = typed('export', tmp_path/'run', '--out', tmp_path/'served')
    assert result.returncode == 0 and result.stderr.count('no exact evidence') == 1
    photo = next((data/'val').glob('*/*'))
    assert typed('predict', tmp_path/'served', photo).returncode == 0
    result = typed('predict', tmp_path/'served', photo, '--explain', tmp_path/'why')
    assert result.returncode == 1 and 'has no evidence' in result.stderr and not (tmp_path/'why').exists()


# Familiarity

@pytest.fixture(scope='module')
def squares(run, data):
    from basegun_fastai.data.photo import pixels
    return np.stack([pixels(data/o, 32) for o in pd.read_csv(run.predictions).file])


@pytest.fixture(scope='module')
def without_bank(run, tmp_path_factory):
    "The export of the same run without its bank, and its messages."
    folder = tmp_path_factory.mktemp('without')
    shutil.copytree(run.path, folder/'whole')
    forget_familiarity(Run(folder/'whole'))
    return folder/'served', typed('export', folder/'whole', '--out', folder/'served')


def test_similarity_of_onnx_of_torch_and_of_numpy_is_one_and_that_of_the_training(exported, run, squares):
    import torch

    from basegun_fastai.export import serving_network
    bank, net = read_bank(run), trained(run.path)
    serving = serving_network(run, bank)
    with torch.no_grad():
        features = net.forward_head(net.forward_features(normalised(squares, run.path)), pre_logits=True).flatten(1)
        by_torch = dict(zip(serving.outputs, serving(torch.from_numpy(squares)), strict=True))['similarity'].numpy()
    features = features.numpy()
    by_numpy = similarity(features / np.linalg.norm(features, axis=1, keepdims=True), bank.features)
    by_onnx = load(exported).outputs(squares, 'similarity')[0]
    one = np.concatenate([load(exported).outputs(o[None], 'similarity')[0] for o in squares])
    for actual in (by_torch, by_onnx, one): assert np.abs(actual - by_numpy).max() <= 1e-4
    assert by_numpy.std() > 1e-3 and np.abs(by_numpy - bank.val_similarities).max() <= 1e-3


def test_a_bank_changes_neither_labels_nor_probabilities(exported, without_bank, run, data):
    folder, result = without_bank
    assert result.returncode == 0 and result.stderr.count('has no familiarity: an older version') == 1
    model, plain = load(exported), load(folder)
    assert model.has_familiarity and not plain.has_familiarity and plain.about['familiarity'] is None
    rows = pd.read_csv(run.predictions)
    for file, before in zip(rows.file, rows.familiarity, strict=True):
        answer, other = model(data/file), plain(data/file)
        assert answer[:2] == other[:2] and answer.probabilities == other.probabilities and other.familiarity is None
        assert abs(answer.familiarity - before) < 1.01 / 25  # rounding moves exactly these photos by at most one place
        assert (answer.reason == 'unfamiliar') == (answer.familiarity < .1)
    photos = [data/o for o in rows.file]
    for answer, other in zip(model.batch(photos), plain.batch(photos), strict=True):
        assert answer.probabilities == other.probabilities
    result = typed('predict', folder, photos[0])
    assert result.returncode == 0 and result.stderr.count('has no familiarity') == len(result.stderr.splitlines()) == 1


def narrower(bank):
    features = bank.features[:, 1:].astype(np.float32)
    return Bank((features / np.linalg.norm(features, axis=1, keepdims=True)).astype(np.float16), bank.val_similarities)


def with_nan(bank): return Bank(np.where(np.arange(bank.features.size).reshape(bank.features.shape) == 9,
                                         np.float16('nan'), bank.features), bank.val_similarities)


def moved(bank): return Bank(bank.features, bank.val_similarities - np.float32(.01) * (np.arange(24) == 7))


def of_one_photo(bank): return Bank(bank.features[:1].repeat(len(bank.features), 0), bank.val_similarities)


@pytest.mark.parametrize(('change', 'words'), [
    (narrower, 'belongs to another network'), (with_nan, 'not all finite'),
    (moved, "similarity to the training photos differs by 0.01 from that of the training"),
    (of_one_photo, 'from that of the training')])
def test_a_run_with_another_bank_is_not_exported(run, tmp_path, change, words):
    shutil.copytree(run.path, tmp_path/'run')
    save_bank(Run(tmp_path/'run'), change(read_bank(run)))
    result = typed('export', tmp_path/'run', '--out', tmp_path/'served')
    assert result.returncode == 1 and words in result.stderr and 'Traceback' not in result.stderr, result.stderr
    if change is moved:
        faults = [o for o in result.stderr.splitlines() if 'its similarity' in o]
        assert len(faults) == 1 and pd.read_csv(run.predictions).file[7] in faults[0]
    assert [o.name for o in tmp_path.iterdir()] == ['run']


def test_a_bank_that_changed_in_the_network_alone_is_noticed(run, tmp_path, monkeypatch):
    from basegun_fastai import export as module
    plain, shape, reads = module.onnx_model, read_bank(run).features.shape, []
    def counting(run):
        reads.append(run)
        return read_bank(run)
    monkeypatch.setattr(module, 'read_bank', counting)  # it may have 100 MB
    def swapped(network, size):
        actual, n = plain(network, size), 0
        for o in actual.graph.initializer:
            if list(o.dims) in ([*shape], [*shape[::-1]]):
                o.CopyFrom(onnx.numpy_helper.from_array(np.flip(onnx.numpy_helper.to_array(o)).copy(), o.name))
                n += 1
        assert n == 1
        return actual
    monkeypatch.setattr(module, 'onnx_model', swapped)
    result = typed('export', run.path, '--out', tmp_path/'served')
    assert result.returncode == 1 and 'differs by' in result.stderr and not any(tmp_path.iterdir())
    assert 'from that of model.safetensors' in result.stderr and len(reads) == 1
