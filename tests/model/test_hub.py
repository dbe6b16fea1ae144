"Weights are downloaded once, and each failure has its own message and remedy."
import logging
import os
import re
import signal
import subprocess
import sys
import time
from contextlib import suppress
from pathlib import Path

import pytest
import torch
from conftest import TINY, as_arguments, typed
from hub import ABSENT, environment, over_and_over, part, refused, silent, slow, status
from huggingface_hub import constants, file_download
from safetensors.torch import load, load_file, save
from warm import run_warm

from basegun_fastai.base.errors import BasegunError
from basegun_fastai.model import hub as module
from basegun_fastai.model.archs import EFFICIENTNETS, HEADS, architecture
from basegun_fastai.model.hub import hub_file
from basegun_fastai.model.learner import learner
from basegun_fastai.model.loaders import dataloaders
from basegun_fastai.model.weights import check_weights

NAME = 'test_efficientnet.r160_in1k'
FILE = f'timm/{NAME}/model.safetensors'
OPTIONS = TINY | dict(arch=NAME, weights='imagenet', head_epochs=1, fine_tune_epochs=1)


@pytest.fixture
def filled(hub, weights):
    hub.files[FILE] = weights.read_bytes()
    return hub


def test_a_file_is_downloaded_once(filled, weights, capfd):
    file = hub_file(NAME)
    assert file.read_bytes() == weights.read_bytes() and filled.count('GET /store') == 1
    assert capfd.readouterr().err == f'downloading the weights of {NAME} from 127.0.0.1:{filled.port}\n'
    n = len(filled.requests)
    assert hub_file(NAME) == file and len(filled.requests) == n and capfd.readouterr().err == ''


def test_an_old_file_of_tensors_is_taken_where_there_is_no_other(hub, weights, tmp_path):
    torch.save(load_file(weights), tmp_path/'state.bin')
    hub.files[f'timm/{NAME}/pytorch_model.bin'] = (tmp_path/'state.bin').read_bytes()
    assert check_weights(architecture(NAME), 'imagenet').name == 'pytorch_model.bin'


def test_the_hubs_other_protocol_is_left_alone(filled, weights):
    reply = filled.server.RequestHandlerClass.reply
    def with_hash(handler, code, headers=(), body=b''):
        reply(handler, code, {**dict(headers), 'X-Xet-Hash': 'a' * 64, 'X-Xet-Refresh-Route': filled.url}, body)
    filled.server.RequestHandlerClass.reply = with_hash
    assert hub_file(NAME).read_bytes() == weights.read_bytes() and not constants.HF_HUB_DISABLE_XET


def spoilt(change):
    return lambda content: save({k: v.contiguous() for k, v in change(load(content)).items()})


def without_a_half(state): return dict([*state.items()][len(state) // 2:])
def nan(state): return state | {'conv_stem.weight': state['conv_stem.weight'].fill_(torch.nan)}
def infinite(state): return state | {'classifier.bias': state['classifier.bias'].fill_(torch.inf)}


DAMAGE = {
    'keys are missing': (spoilt(without_a_half), ['weights are missing', ' of 86: ']),
    'keys of another': (spoilt(lambda o: {f'encoder.{k}': v for k, v in o.items()}), [
        'missing (73 of 86', 'does not have (88 of 88']),
    'another shape': (spoilt(lambda o: o | {'conv_stem.weight': torch.zeros(2, 2)}), ['another shape', 'conv_stem']),
    'another head': (spoilt(lambda o: o | {'classifier.weight': torch.zeros(7, 99)}), ['another shape', 'classifier']),
    'NaN': (spoilt(nan), ['NaN or infinite (1 of 88: conv_stem.weight)']),
    'infinite': (spoilt(infinite), ['NaN or infinite (1 of 88: classifier.bias)']),
    'truncated': (lambda o: o[:len(o) // 2], ['not a file of weights that can be read']),
    'a login page': (lambda _: b'<html>Please log in</html>', ['not a file of weights that can be read']),
}


@pytest.mark.parametrize('case', DAMAGE)
@pytest.mark.parametrize('head', HEADS)
def test_a_file_that_does_not_fit_is_refused_before_a_run_is_made(filled, data, tmp_path, case, head):
    "The next try reports it too, without another download; after the named file is deleted, a good one is used."
    damage, words = DAMAGE[case]
    good, filled.files[FILE] = filled.files[FILE], damage(filled.files[FILE])
    for _ in range(2):
        done = typed('train', data, '--out', tmp_path/'out', *as_arguments(**OPTIONS | dict(head=head)))
        assert done.returncode == 1 and all(o in done.stderr for o in words), done.stderr
    named = {*re.findall(r"the downloaded '([^']+)'", done.stderr)}
    assert filled.count('GET /store') == 1 and not (tmp_path/'out').exists() and 'Delete that file' in done.stderr
    assert len(named) == 1 and 'Traceback' not in done.stderr and 'smaller learning rate' not in done.stderr
    Path(*named).unlink()
    filled.files[FILE] = good
    assert load_file(check_weights(architecture(NAME), 'imagenet')).keys() == load(good).keys()


def test_the_main_command_from_an_empty_cache_to_a_run(filled, weights, data, tmp_path, monkeypatch):
    monkeypatch.setitem(EFFICIENTNETS, 'efficientnet_b3', (NAME, 32, 36))
    for n in (1, 2):
        done = typed('train', data, '--arch', 'efficientnet_b3', '--head-epochs', 1, '--fine-tune-epochs', 1,
                     '--batch-size', 16, '--workers', 0, '--out', tmp_path, '--name', f'run-{n}')
        assert done.returncode == 0 and done.stdout.endswith(f"{tmp_path/f'run-{n}'}\n"), done.stderr
        assert done.stderr.count('downloading the weights') == (n == 1) and filled.count('GET /store') == 1
        assert 'the pretraining classes (1,000)' in done.stderr
    cold, warm = (load_file(tmp_path/f'run-{o}'/'model.safetensors') for o in (1, 2))
    assert all(torch.equal(v, warm[k]) for k, v in cold.items())
    assert torch.equal(cold['bn1.running_mean'], load_file(weights)['bn1.running_mean'])


def test_the_rate_finder_downloads_too(filled, data, tmp_path):
    options = {k: v for k, v in OPTIONS.items() if 'epochs' not in k}
    done = typed('lr-find', data, '--out', tmp_path, '--name', 'rate', *as_arguments(**options))
    assert done.returncode == 0 and filled.count('GET /store') == 1, done.stderr


@pytest.mark.parametrize('change', [lambda o: {f'module.{k}': v for k, v in o.items()},
                                    lambda o: {k: v for k, v in o.items() if not k.startswith('classifier')}])
def test_weights_of_a_wrapped_network_and_those_without_a_classifier_arrive(filled, weights, data, change):
    filled.files[FILE] = spoilt(change)(filled.files[FILE])
    arch = architecture(NAME, size=32)
    learn = learner(dataloaders(data, arch, batch_size=16, workers=0), arch)
    state = learn.model[0].model.state_dict()
    assert all(torch.equal(v, state[k]) for k, v in load_file(weights).items() if not k.startswith('classifier'))
    assert learn.pretrained and not learn.model[1][-1].weight.any()


@pytest.mark.slow
def test_one_of_several_processes_downloads(filled, data, tmp_path):
    filled.send = slow
    store = dict(ENDPOINT=filled.url, HF_HUB_CACHE=str(tmp_path/'home'),
                 HUGGINGFACE_CO_URL_TEMPLATE=constants.HUGGINGFACE_CO_URL_TEMPLATE)  # read at the import
    done = run_warm('train', data, '--out', tmp_path/'out', '--gpus', 2, '--device', 'cpu', *as_arguments(
        **OPTIONS | dict(fine_tune_epochs=0, no_report=True)), env=os.environ | environment(filled, tmp_path/'home'),
        before=f'from huggingface_hub import constants; vars(constants).update({store})')
    assert done.returncode == 0 and done.stderr.count('downloading the weights') == 1, done.stderr
    assert filled.count('HEAD') == 2 and filled.count('GET /store') == 1  # one from us, one from the library


def test_nothing_is_downloaded_for_options_that_are_wrong(filled, data, tmp_path):
    done = typed('train', data, '--out', tmp_path, *as_arguments(**OPTIONS | dict(lr=-1)))
    assert done.returncode == 1 and filled.requests == []


NO_HUB = dict(body=b'<html>Please log in</html>', headers={'Content-Type': 'text/html'})
CAUSES = {
    'a key is asked for': (dict(answer=status(401)), ["responded with 401 Unauthorized", 'HF_TOKEN', f"'timm/{NAME}'"]),
    'gated': (dict(answer=status(403, {'X-Error-Code': 'GatedRepo', 'X-Error-Message': 'Access is restricted'})),
              ['responded with 403 Forbidden (Access is restricted)', 'HF_TOKEN']),
    'a firewall': (dict(answer=status(403, **NO_HUB)), ['responded with 403', 'firewall']),
    'no such file': (dict(answer=status(404, ABSENT)), ['responded with 404', 'HF_ENDPOINT']),
    'too many requests': (dict(answer=status(429, {'Retry-After': '3600'})), [
        'responded with 429 Too Many Requests (retry after 3600 s)', 'later', 'HF_TOKEN']),
    'the hub is broken': (dict(answer=status(500)), ['responded with 500 Internal Server Error (3 attempts)', 'later']),
    'a login page': (dict(answer=status(200, **NO_HUB)), ['is not a model hub', 'login page', 'HF_ENDPOINT']),
    'the hub is silent': (dict(answer=silent), ['failed (3 attempts; ', 'timed out', 'HTTP_PROXY']),
    'the hub hangs up': (dict(answer=refused), ['failed (3 attempts; ', 'disconnected']),
    'the store forbids it': (dict(send=status(403)), ['localhost', 'responded with 403', 'HF_TOKEN']),
    'the store is broken': (dict(send=status(500)), ['localhost', 'responded with 500', 'later']),
    'the store has a login page': (dict(send=status(200, **NO_HUB)), ['should be of size', 'has size 26']),
    'the store hangs up': (dict(send=refused), ['localhost', 'failed', 'disconnected']),
    'the body breaks off': (dict(send=part(refused)), ['localhost', 'failed']),
    'the body stops': (dict(send=part(silent)), ['localhost', 'failed', 'timed out']),
}


@pytest.mark.parametrize('case', CAUSES)
def test_each_cause_has_its_words_and_its_remedy(filled, capfd, case):
    behaviour, words = CAUSES[case]
    vars(filled).update(behaviour)
    lines, handler = [], logging.Handler()
    handler.emit = lines.append
    logging.getLogger('huggingface_hub').addHandler(handler)
    with pytest.raises(BasegunError) as err: hub_file(NAME)
    logging.getLogger('huggingface_hub').removeHandler(handler)
    text = str(err.value)
    assert not lines and all(o in text for o in words) and '\n' not in text, text
    assert text.startswith(f"--weights imagenet: the weights of '{NAME}' are not on this machine and cannot be ")
    assert text.endswith('. Or give --weights FILE with weights of that network, or --weights none to train from '
                         'scratch')
    assert capfd.readouterr().err.count('\n') == 1 and not [*Path(constants.HF_HUB_CACHE).rglob('*.incomplete')]
    assert len(filled.requests) <= 10, filled.requests


def test_nothing_listens(filled):
    filled.server.shutdown()
    filled.server.server_close()
    with pytest.raises(BasegunError, match=f'127.0.0.1:{filled.port} failed .3 attempts; .*Connection refused'):
        hub_file(NAME)


@pytest.mark.usefixtures('filled')
def test_a_dead_proxy_is_named(monkeypatch):
    monkeypatch.setenv('http_proxy', 'http://somebody:secret@127.0.0.1:9')
    monkeypatch.setenv('no_proxy', '')
    with pytest.raises(BasegunError, match="failed .3 attempts; .*the proxy '127.0.0.1:9' in HTTP_PROXY") as err:
        hub_file(NAME)
    assert 'secret' not in str(err.value)


@pytest.mark.usefixtures('filled')
def test_no_network_by_wish(monkeypatch):
    monkeypatch.setattr(constants, 'HF_HUB_OFFLINE', True)
    with pytest.raises(BasegunError, match='HF_HUB_OFFLINE is set. Unset it. Or'): hub_file(NAME)


@pytest.mark.usefixtures('filled')
def test_a_place_that_cannot_be_written(monkeypatch, tmp_path):
    (tmp_path/'file').touch()
    monkeypatch.setattr(constants, 'HF_HUB_CACHE', str(tmp_path/'file'/'hub'))
    with pytest.raises(BasegunError, match="Not a directory in '.*file/hub'. Set HF_HOME to a writable folder"):
        hub_file(NAME)


@pytest.mark.usefixtures('filled')
def test_a_disk_without_room():
    import resource
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (2**19, limits[1]))
    try:
        with pytest.raises(BasegunError, match='File too large in .*Set HF_HOME to a writable .* with enough space'):
            hub_file(NAME)
    finally: resource.setrlimit(resource.RLIMIT_FSIZE, limits)


def test_networks_that_have_no_weights():
    with pytest.raises(BasegunError, match="timm has no weights for 'efficientnet_b8'. Choose another --arch"):
        hub_file('efficientnet_b8')


@pytest.mark.parametrize('send', [status(429, {'Retry-After': '3600'}), over_and_over])
def test_what_has_no_end_is_ended(filled, monkeypatch, send):
    "The library waits for an hour if the hub says so, and retries for ever if it gets the same bytes again."
    filled.send = send
    monkeypatch.setattr(file_download, 'time', time)
    monkeypatch.setattr(module, 'MAX_SILENCE', .3)
    handler = signal.getsignal(signal.SIGALRM)
    with pytest.raises(BasegunError, match='sent nothing new for 0.3 s. Start the same command again later'):
        hub_file(NAME)
    assert signal.getsignal(signal.SIGALRM) == handler and signal.getitimer(signal.ITIMER_REAL) == (0, 0)
    assert not [*Path(constants.HF_HUB_CACHE).rglob('*.incomplete')]


def test_a_slow_download_goes_on(filled, weights, monkeypatch):
    filled.send = slow
    monkeypatch.setattr(module, 'MAX_SILENCE', .25)
    assert hub_file(NAME).read_bytes() == weights.read_bytes()


@pytest.mark.slow
def test_a_bar_shows_on_a_terminal_how_far_a_download_is(filled, tmp_path):
    "Also on one that does not know its width."
    filled.send = slow
    screen, terminal = os.openpty()
    command = f'from basegun_fastai.model.hub import hub_file; hub_file({NAME!r})'
    done = subprocess.run([sys.executable, '-c', command], stdin=terminal, stdout=terminal, stderr=terminal, timeout=60,
                          env=os.environ | environment(filled, tmp_path/'home'))
    os.close(terminal)
    text = ''
    with suppress(OSError):  # the end of a closed terminal's output
        while shown := os.read(screen, 10**6).decode(): text += shown
    os.close(screen)
    assert done.returncode == 0 and f'downloading the weights of {NAME}' in text, text
    assert len({*re.findall(r'weights: +(\d+)%', text)}) > 3 and '/1.44M' in text, text
