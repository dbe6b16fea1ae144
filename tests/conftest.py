"Shared by the tests: a drawn data set, a trained run, and the installed command."
import fcntl
import hashlib
import os
import shutil
import signal
import subprocess
import sys
import tempfile
from contextlib import redirect_stderr, redirect_stdout
from dataclasses import replace
from io import StringIO
from pathlib import Path

import pytest

os.environ.setdefault('OMP_NUM_THREADS', '2')  # before torch, which only some tests import
os.environ.setdefault('OMP_WAIT_POLICY', 'PASSIVE')  # spinning threads take the cores of other tests
# cache of photo contents, for only this session
CACHE = os.environ['XDG_CACHE_HOME'] = tempfile.mkdtemp(prefix='basegun-cache-')

COMMAND = str(Path(sys.executable).with_name('basegun-fastai'))
TINY = dict(arch='test_efficientnet', size=32, weights='none', batch_size=16, workers=0)
QUICK = TINY | dict(no_report=True)  # for tests that do not need the page, the longest part of a training's end
# of the fixture `run`; at this rate its 24 val photos suffice for familiarity, and one of them is unfamiliar
WHOLE = TINY | dict(head_epochs=2, fine_tune_epochs=2, unfamiliar_rate=.1)


def soak(few, many):
    "The number of repeats: `few` in `make test`, `many` in `make soak`, whose tests are marked `soak`."
    return many if os.environ.get('BASEGUN_SOAK') else few


def pytest_configure(config):
    is_whole_run = config.args_source != config.ArgsSource.ARGS and config.getoption('markexpr') != 'not slow'
    if is_whole_run and config.getoption('numprocesses', None) and not hasattr(config, 'workerinput'):
        from warm import start_for_all
        start_for_all()


def pytest_unconfigure():
    shutil.rmtree(CACHE, ignore_errors=True)


# files that take minutes start first, so that no process waits for the last one
SLOWEST = ['test_distributed.py', 'test_train.py', 'test_export.py', 'test_processes.py', 'test_resume.py',
           'test_serve.py', 'test_cache.py', 'test_predict.py', 'test_report.py', 'test_model_wheel.py',
           'test_compare.py', 'test_check.py', 'test_split.py', 'test_review_page.py', 'test_odd_photos.py',
           'test_many_classes.py', 'test_run_page.py', 'test_hostile.py', 'test_files.py', 'test_streams.py',
           'test_frozen.py']


def pytest_collection_modifyitems(items):
    items.sort(key=lambda o: SLOWEST.index(o.path.name) if o.path.name in SLOWEST else len(SLOWEST))


def tree(folder):
    "Content and times of everything in a folder."
    return {o.relative_to(folder).as_posix(): (o.lstat().st_mtime_ns, o.is_file()
                                               and hashlib.sha256(o.read_bytes()).hexdigest())
            for o in sorted(Path(folder).rglob('*'))}


def run_command(*arguments, **options):
    "Run the installed command to its end."
    return subprocess.run([COMMAND, *map(str, arguments)], capture_output=True, text=True, timeout=600, **options)


def typed(*arguments):
    "Run the command in this process, which has the imports already."
    from basegun_fastai.cli import main
    handlers = {o: signal.getsignal(o) for o in (signal.SIGTERM, signal.SIGINT)}
    argv, hook, out, err = sys.argv, sys.unraisablehook, StringIO(), StringIO()
    sys.argv = ['basegun-fastai', *map(str, arguments)]
    try:
        with redirect_stdout(out), redirect_stderr(err): main()
        code = 0
    except SystemExit as end: code = end.code or 0
    finally:
        sys.argv, sys.unraisablehook = argv, hook
        for number, handler in handlers.items(): signal.signal(number, handler)
    return subprocess.CompletedProcess(arguments, code, out.getvalue(), err.getvalue())


def sized(size, before_crop, **others):
    "A small network for photos of a given size."
    from basegun_fastai.model.archs import architecture
    return replace(architecture('test_efficientnet'), size=size, before_crop=before_crop, **others)


TYPOLOGIES = ['autre_pistolet', 'epaule_a_levier_sous_garde', 'epaule_a_pompe', 'epaule_a_un_coup_par_canon',
              'epaule_a_verrou', 'epaule_mecanisme_ancien', 'epaule_semi_auto_style_chasse',
              'epaule_semi_auto_style_militaire_milieu_20e', 'pistolet_mecanisme_ancien', 'pistolet_semi_auto_moderne',
              'revolver', 'semi_auto_style_militaire_autre_avec_un_nom_de_classe_vraiment_tres_long']


def draw_typologies(data, classes=TYPOLOGIES, train=7, val=4):
    "Draw some photos of many classes, not equally many of each."
    import numpy as np

    from basegun_fastai.data.demo import GUNS, draw_photo
    for split, n in dict(train=train, val=val).items():
        for c, label in enumerate(classes):
            (data/split/label).mkdir(parents=True)
            for i in range(n + c % 3):
                photo = draw_photo(list(GUNS)[c % 6], np.random.default_rng([n, c, i]), (320, 240))
                photo.save(data/split/label/f'une photo, {i}.jpg')


KINDS = ['autre_pistolet', 'fusil', 'revolver']


def prediction_table(answers, classes=KINDS):
    "`Predictions` from rows of (file, label, predicted, confidence); the label gets the remaining probability."
    import numpy as np

    from basegun_fastai.trust.predictions import Predictions
    probabilities = np.full((len(answers), len(classes)), 1e-300)
    for row, (_, label, predicted, confidence) in zip(probabilities, answers, strict=True):
        row[classes.index(label)] = 1 - confidence or 1e-300
        row[classes.index(predicted)] = confidence
    labels = np.array([classes.index(o[1]) for o in answers], int)
    return Predictions([o[0] for o in answers], list(classes), labels, np.log(probabilities))


def as_arguments(**options):
    "Write options as they are typed; a switch that is True gives its name."
    return [o for k, v in options.items() for o in (f"--{k.replace('_', '-')}", str(v))[:1 if v is True else 2]]


def once(factory, name, make):
    "A folder of a session: the first of its processes fills it, the others use it."
    root = factory.getbasetemp()
    if 'PYTEST_XDIST_WORKER' in os.environ: root = root.parent
    folder, whole = root/name, root/f'{name} is whole'
    with open(root/f'{name}.lock', 'w') as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        if not whole.exists():
            shutil.rmtree(folder, ignore_errors=True)
            folder.mkdir()
            make(folder)
            whole.touch()
    return folder


@pytest.fixture(scope='session')
def data(tmp_path_factory):
    "A drawn data set of 48 train and 24 val photos, in a folder with a space and an accent; no test may change it."
    from basegun_fastai.data.demo import demo_data
    name = 'les données'
    out = once(tmp_path_factory, 'été à la mer', lambda folder: demo_data(folder/name, photos_per_class=8))/name
    before = tree(out)
    yield out
    assert tree(out) == before, 'a command changed its data'


@pytest.fixture(scope='session')
def run(data, tmp_path_factory):
    "A finished run of both stages, with familiarity."
    from basegun_fastai.base.record import Run
    from basegun_fastai.train import train
    return Run(once(tmp_path_factory, 'runs', lambda out: train(data, out=out, name='whole', **WHOLE))/'whole')


def fitted(data, out, name='fitted', **options):
    """A training without its end, which takes most of a short one's time: `memory` has rows and best weights, `config`
    the decisions, and `finish()` completes the run.
    """
    from basegun_fastai.base.record import Run
    from basegun_fastai.training.options import Options
    from basegun_fastai.training.training import Training
    training = Training(Options(data=data, out=out, name=name, **TINY | options), Run(Path(out)/name))
    training.check([])
    training.read()
    training.open()
    training.fit()
    return training


def forget_familiarity(run):
    "Turn a copy of a run into one of an older version, which had no familiarity."
    import json
    run.familiarity.unlink()
    numbers = json.loads(run.metrics.read_bytes())
    del numbers['familiarity'], numbers['levels']['unfamiliar_rate']
    run.metrics.write_text(json.dumps(numbers))


@pytest.fixture(scope='session')
def exported(run, tmp_path_factory):
    "The export of the run; tests of other modules have their own fixtures of this name."
    from basegun_fastai.export import export
    return once(tmp_path_factory, 'exported', lambda folder: export(run.path, folder/'le modèle'))/'le modèle'


@pytest.fixture(scope='session')
def weights(tmp_path_factory):
    "A file of weights for `TINY`'s network."
    import timm
    import torch
    from safetensors.torch import save_file
    def make(folder):
        torch.manual_seed(1)
        save_file(timm.create_model('test_efficientnet').state_dict(), folder/'tiny.safetensors')
    return once(tmp_path_factory, 'weights', make)/'tiny.safetensors'


@pytest.fixture(scope='session')
def pretrained(data, weights, tmp_path_factory):
    "A finished run of both stages that started from the weights of a file."
    from basegun_fastai.base.record import Run
    from basegun_fastai.train import train
    options = TINY | dict(head_epochs=2, fine_tune_epochs=2, weights=str(weights))
    return Run(once(tmp_path_factory, 'pretrained', lambda out: train(data, out=out, name='whole', **options))/'whole')


@pytest.fixture
def copy(data, tmp_path):
    "A copy of the data that a test may change; the photos are links to the same bytes until they are replaced."
    import shutil
    out = tmp_path/'copy'
    shutil.copytree(data, out, copy_function=os.link)
    return out


@pytest.fixture
def others(tmp_path):
    "Photos without a gun."
    import numpy as np
    from PIL import Image
    random, folder = np.random.default_rng(0), tmp_path/'other things'
    (folder/'inner').mkdir(parents=True)
    for i in range(24):
        place = folder/'inner' if i % 2 else folder
        Image.fromarray(random.integers(0, 256, (40, 60, 3), np.uint8)).save(place/f'{i}.png')
    return folder


@pytest.fixture(scope='session')
def trained_weights(tmp_path_factory):
    "Weights of a small network whose BatchNorm statistics differ from those of a new one."
    import timm
    import torch
    from fastai.torch_core import set_seed
    from safetensors.torch import save_file
    set_seed(5)
    model = timm.create_model('test_efficientnet')
    for layer in model.modules():
        if isinstance(layer, torch.nn.BatchNorm2d):
            layer.running_mean.normal_(0, .1)
            layer.running_var.uniform_(.5, 2)
    file = tmp_path_factory.mktemp('weights')/'tiny.safetensors'
    save_file(model.state_dict(), file)
    return file


@pytest.fixture
def hub(tmp_path, monkeypatch):
    "A stand-in for the model hub, used by this process; it has weights of a small network, and waits are short."
    from types import SimpleNamespace

    from hub import Hub
    from huggingface_hub import close_session, constants, file_download

    from basegun_fastai.model import hub as module
    hub = Hub()
    patched = dict(ENDPOINT=hub.url, HF_HUB_CACHE=str(tmp_path/'cache'), HF_HUB_ETAG_TIMEOUT=.2,
                   HUGGINGFACE_CO_URL_TEMPLATE=hub.url + '/{repo_id}/resolve/{revision}/{filename}',
                   HF_HUB_DOWNLOAD_TIMEOUT=.2)
    for k, v in patched.items(): monkeypatch.setattr(constants, k, v)
    monkeypatch.setattr(module, 'RETRY_WAITS', (0, 0))
    monkeypatch.setattr(file_download, 'time', SimpleNamespace(sleep=lambda _: None))
    for o in ('HTTP_PROXY', 'http_proxy', 'ALL_PROXY', 'all_proxy'): monkeypatch.delenv(o, raising=False)
    close_session()  # the client keeps the proxies of its creation
    yield hub
    close_session()
    hub.close()
