"TensorBoard's HPARAMS tab compares runs: it reads their options and their final metrics as they are."
import json
import shutil
from dataclasses import replace

import pytest
from conftest import QUICK
from tensorboard.backend.event_processing.data_provider import MultiplexerDataProvider
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
from tensorboard.backend.event_processing.plugin_event_multiplexer import EventMultiplexer
from tensorboard.context import RequestContext
from tensorboard.plugins.base_plugin import TBContext
from tensorboard.plugins.hparams import api_pb2
from tensorboard.plugins.hparams.backend_context import Context
from tensorboard.plugins.hparams.list_session_groups import Handler

from basegun_fastai.base.record import Run
from basegun_fastai.train import train
from basegun_fastai.training.hparams import hparam_values, save_hparams

pytestmark = pytest.mark.slow


@pytest.fixture(scope='module')
def logdir(run, pretrained, tmp_path_factory):
    "A folder of two runs."
    folder = tmp_path_factory.mktemp('runs')
    for name, o in dict(scratch=run, pretrained=pretrained).items(): shutil.copytree(o.path, folder/name)
    return folder


def test_a_path_that_is_no_text(run, tmp_path):
    other = Run(shutil.copytree(run.path, tmp_path/'run'))
    other.save_config(replace(other.config, options=other.config.options | dict(data='donn\udce9es')))
    save_hparams(other, other.config, json.loads(other.metrics.read_text()))
    assert hparam_values(other.config)['--data'] == 'donn\\udce9es'


def rows_of(logdir):
    "What TensorBoard's plugin shows of a folder of runs: its columns, and the options and metrics of each run."
    multiplexer = EventMultiplexer()
    multiplexer.AddRunsFromDirectory(str(logdir))
    multiplexer.Reload()
    tensorboard = TBContext(logdir=str(logdir), data_provider=MultiplexerDataProvider(multiplexer, str(logdir)))
    context, request = Context(tensorboard), RequestContext()
    experiment = context.experiment_from_metadata(
        request, '', True, context.hparams_metadata(request, ''), context.hparams_from_data_provider(request, '', 1000))
    columns = [api_pb2.ColParams(hparam=o.name) for o in experiment.hparam_infos]
    columns += [api_pb2.ColParams(metric=o.name) for o in experiment.metric_infos]
    asked = api_pb2.ListSessionGroupsRequest(start_index=0, slice_size=100, col_params=columns, include_metrics=True,
                                             allowed_statuses=[api_pb2.STATUS_SUCCESS])
    groups = Handler(request, context, '', asked).run().session_groups
    return experiment, {o.name: ({k: getattr(v, v.WhichOneof('kind')) for k, v in o.hparams.items()},
                                 {m.name.tag: m.value for m in o.metric_values}) for o in groups}


def test_tensorboard_has_a_row_for_each_run(run, pretrained, logdir):
    experiment, rows = rows_of(logdir)
    assert rows.keys() == {'scratch/hparams', 'pretrained/hparams'}
    for name, o in dict(scratch=run, pretrained=pretrained).items():
        (options, metrics), numbers = rows[f'{name}/hparams'], json.loads(o.metrics.read_bytes())
        assert metrics == pytest.approx({
            'final/accuracy': numbers['accuracy'], 'final/macro precision': numbers['precision'],
            'final/macro recall': numbers['recall'], 'final/log loss': numbers['loss'],
            'final/calibration error': numbers['calibration']['after']['ece']}, abs=1e-6)
        assert options['--weights'] == o.config.options['weights'] and options['--compile'] == 'False'
        assert (options['--size'], options['size'], options['batch size']) == (32, 32, 16)
        assert options['peak learning rate'] == .005 and options['architecture'] == 'test_efficientnet'
        assert not {'--workers', '--out', '--resume', '--no-report'} & options.keys()
    assert {o.name for o in experiment.hparam_infos if o.differs} == {'--weights', '--unfamiliar-rate'}


def test_the_curves_have_no_point_of_it(logdir):
    multiplexer = EventMultiplexer()
    multiplexer.AddRunsFromDirectory(str(logdir)).Reload()
    scalars = multiplexer.PluginRunToTagToContent('scalars')
    assert scalars.keys() == {f'{run}/{o}' for run in ('scratch', 'pretrained') for o in ('train', 'val', 'hparams')}
    for name, tags in scalars.items():
        assert {o.startswith('final/') for o in tags} == {name.endswith('/hparams')}, name


def test_a_training_that_was_killed_after_its_row_has_one_row(data, tmp_path, monkeypatch):
    options = QUICK | dict(fine_tune_epochs=1, out=tmp_path, name='run', resume=True)
    save = Run.save_config
    def killed(self, config):
        if config.state == 'finished': raise KeyboardInterrupt
        save(self, config)
    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
        patch.setattr(Run, 'save_config', killed)
        train(data, **options)
    hparams = Run(tmp_path/'run').hparams
    [file] = hparams.iterdir()
    (hparams/f'.{file.name}.0a1b2c3d.tmp').write_bytes(file.read_bytes()[:99])  # as if it was killed in the middle
    assert rows_of(tmp_path)[1].keys() == {'run/hparams'} and not Run(tmp_path/'run').finished
    train(data, **options)
    assert Run(tmp_path/'run').finished and [*hparams.iterdir()] == [file]
    events = EventAccumulator(str(hparams))
    events.Reload()
    assert [o.step for o in events.Scalars('final/accuracy')] == [1] and rows_of(tmp_path)[1].keys() == {'run/hparams'}
