"A training writes the promised files, the same each time."
import json
from io import BytesIO
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import torch
from conftest import QUICK, TINY, WHOLE, as_arguments, fitted, tree, typed
from PIL import Image
from safetensors.torch import load_file
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
from torch import nn
from warm import run_warm

from basegun_fastai.base.errors import BasegunError
from basegun_fastai.base.record import Run
from basegun_fastai.data.folders import list_photos
from basegun_fastai.train import lr_find, train
from basegun_fastai.training.callbacks import EpochSeed
from basegun_fastai.training.training import Training

pytestmark = pytest.mark.slow

FILES = {'config.json', 'history.csv', 'train', 'val', 'hparams', 'model.safetensors', 'learner.pkl', 'metrics.json',
         'confusion-matrix.csv', 'confusion-matrix-normalized.csv', 'confusion-matrix.png', 'confidence.png',
         'predictions-val.csv', 'report.html', 'familiarity.safetensors', 'train-photos.npy'}


def history(run): return pd.read_csv(run.history)


def same(a, b):
    "Compare the files that must be byte-identical, and the history except for the seconds."
    assert a.weights.read_bytes() == b.weights.read_bytes()
    assert (a.path/'metrics.json').read_bytes() == (b.path/'metrics.json').read_bytes()
    banks = [o.familiarity.read_bytes() if o.familiarity.exists() else None for o in (a, b)]
    assert banks[0] == banks[1]
    assert history(a).drop(columns='seconds').equals(history(b).drop(columns='seconds'))


def test_the_run_folder(run):
    assert {o.name for o in run.path.iterdir()} == FILES
    assert run.finished and run.config.best['epoch'] == int(history(run).val_loss.idxmin()) + 1


def test_the_configuration_says_how_it_was_made(run, data):
    config = run.config
    assert config.classes == sorted(o.name for o in (data/'train').iterdir())
    assert config.options | TINY == config.options and config.resolved.batch_size == 16
    assert config.resolved.device in ('cpu', 'cuda') and config.resolved.lr == .005
    assert sum(config.dataset.counts['train'].values()) == 48 and len(config.dataset.fingerprint) == 64
    assert config.architecture['size'] == 32 and len(config.architecture['mean']) == 3
    assert {'torch', 'timm', 'fastai', 'python'} <= config.versions.keys() and config.seed == 42


def test_a_configuration_that_was_copied_as_text_is_read(run, tmp_path):
    content = run.config_file.read_bytes()
    for copied in (content.replace(b'\n', b'\r\n'), b'\xef\xbb\xbf' + content):
        (tmp_path/'config.json').write_bytes(copied)
        assert Run(tmp_path).config == run.config


def test_history_has_a_row_an_epoch_over_both_stages(run):
    rows = history(run)
    assert rows.columns.tolist() == ['stage', 'epoch', 'train_loss', 'val_loss', 'accuracy', 'precision', 'recall',
                                     'learning_rate', 'seconds']
    assert rows.stage.tolist() == ['head'] * 2 + ['fine-tune'] * 2 and rows.epoch.tolist() == [1, 2, 3, 4]


def test_the_kept_weights_are_those_of_the_best_epoch(run):
    best = history(run).set_index('epoch').loc[run.config.best['epoch']]
    numbers = json.loads((run.path/'metrics.json').read_text())
    assert numbers['calibration']['before']['nll'] == pytest.approx(best.val_loss,
        abs=1e-5) and numbers['accuracy'] == pytest.approx(best.accuracy)
    assert numbers['precision'] == pytest.approx(best.precision) and numbers['recall'] == pytest.approx(best.recall)


def test_all_tables_agree(run):
    from sklearn.metrics import confusion_matrix, log_loss
    rows, numbers = pd.read_csv(run.path/'predictions-val.csv'), json.loads((run.path/'metrics.json').read_text())
    classes = run.config.classes
    assert rows.columns.tolist() == ['file', 'label', 'predicted', 'confidence', 'familiarity', 'reason', *classes]
    assert len(rows) == 24
    assert (rows.label == [Path(o).parent.name for o in rows.file]).all() and rows.file.str.startswith('val/').all()
    assert (rows.predicted == rows[classes].idxmax(axis=1)).all() and np.allclose(rows.confidence,
        rows[classes].max(axis=1))
    counts = pd.read_csv(run.path/'confusion-matrix.csv', index_col=0)
    assert counts.columns.tolist() == counts.index.tolist() == classes
    assert (counts.to_numpy() == confusion_matrix(rows.label, rows.predicted, labels=classes)).all()
    shares = pd.read_csv(run.path/'confusion-matrix-normalized.csv', index_col=0)
    assert np.allclose(shares, counts.div(counts.sum(axis=1), axis=0), atol=1e-6)
    assert numbers['accuracy'] == pytest.approx((rows.label == rows.predicted).mean()) and numbers['n'] == 24
    assert numbers['loss'] == pytest.approx(log_loss(rows.label,
                                                     rows[classes].div(rows[classes].sum(axis=1), axis=0).to_numpy(),
                                                     labels=classes), abs=1e-4)


def test_the_weights_are_those_of_a_plain_timm_network(run, data):
    import timm

    from basegun_fastai.data.photo import pixels
    config, rows = run.config, pd.read_csv(run.path/'predictions-val.csv')
    model = timm.create_model(config.architecture['timm_name'], num_classes=len(config.classes)).eval()
    model.load_state_dict(load_file(run.weights))
    mean, std = (torch.tensor(config.architecture[o])[:, None, None] for o in ('mean', 'std'))
    photos = torch.stack([(torch.tensor(pixels(data/o, 32)).permute(2, 0, 1) / 255 - mean) / std for o in rows.file])
    with torch.no_grad(): actual = model(photos).softmax(1)
    assert np.abs(actual.numpy() - rows[config.classes].to_numpy()).max() < 1e-4


ASK = '''
import json, sys
for o in [o for o in sys.modules if o.partition('.')[0] == 'basegun_fastai']: del sys.modules[o]
pkl, *photos = json.load(open('asked.json'))
from fastai.learner import load_learner
learn = load_learner(pkl)
with learn.no_bar(): one = learn.predict(photos[0])
probs = learn.get_preds(dl=learn.dls.test_dl(photos, bs=4, num_workers=0))[0]
with open('said.json', 'w') as file:
    json.dump([one[0], one[2].tolist(), probs.tolist(), list(learn.dls.vocab)], file)
sys.exit()
'''


def test_fastai_opens_the_learner_where_nothing_of_this_package_is_imported(run, data, tmp_path):
    rows = pd.read_csv(run.path/'predictions-val.csv')
    (tmp_path/'asked.json').write_text(json.dumps([str(run.learner), *(str(data/o) for o in rows.file)]))
    asked = run_warm(before=ASK, cwd=tmp_path)
    assert asked.returncode == 0, asked.stderr
    label, first, actual, vocab = json.loads((tmp_path/'said.json').read_text())
    assert vocab == run.config.classes and label == rows.predicted[0]
    assert np.abs(np.array(actual) - rows[vocab].to_numpy()).max() < 1e-4 and np.allclose(first, actual[0], atol=1e-5)


def read_curves(run, split):
    events = EventAccumulator(str(run.path/split), dict(images=0))
    events.Reload()
    return events


def test_tensorboard_reads_the_curves_back(run):
    rows, train_events, val_events = history(run), read_curves(run, 'train'), read_curves(run, 'val')
    assert set(train_events.Tags()['scalars']) == {'loss', 'accuracy', 'precision', 'recall', 'learning_rate'}
    assert set(val_events.Tags()['scalars']) == {'loss', 'accuracy', 'precision', 'recall'}
    for events, columns in ((train_events, dict(loss='train_loss', learning_rate='learning_rate')),
                            (val_events, dict(loss='val_loss', accuracy='accuracy', precision='precision',
                                              recall='recall'))):
        for tag, column in columns.items():
            points = events.Scalars(tag)
            assert [o.step for o in points] == [1, 2, 3, 4] and np.allclose([o.value for o in points], rows[column],
                rtol=1e-5)
    assert [o.step for o in val_events.Images('confusion matrix')] == [1, 2, 3, 4]
    [grid] = train_events.Images('augmented photos')
    assert (grid.width, grid.height) == (4 * 34 + 2, 4 * 34 + 2)
    calls = np.asarray(Image.open(BytesIO(grid.encoded_image_string)))[2:34, 2:34]
    # a photo, neither white nor black
    assert calls.std() > 10 and 60 < np.median(calls) < 200


def test_two_runs_with_one_seed_are_identical_and_workers_change_nothing(run, data, tmp_path):
    for workers in (0, 2):
        train(data, out=tmp_path, name=f'workers {workers}', **WHOLE | dict(workers=workers, no_report=True))
        same(run, Run(tmp_path/f'workers {workers}'))


def test_a_training_without_its_end_has_the_weights_that_the_end_keeps(run, data, tmp_path):
    training = fitted(data, tmp_path, **WHOLE)
    assert not training.run.finished and not training.run.weights.exists()
    best, kept = training.memory.best['weights'], load_file(run.weights)
    assert all(torch.equal(best[f'0.model.{k}'], v) for k, v in kept.items() if not k.startswith('classifier.'))
    assert training.finish() == json.loads(run.metrics.read_bytes()) and training.run.finished
    same(run, training.run)


def test_levels_and_intervals_are_by_group_if_groups_are_known(data, tmp_path, capsys):
    files = list_photos(data).file
    sides, numbers = files.str.partition('/')[0], np.arange(len(files)) // 5
    groups = sides + '-' + pd.Series(numbers, files.index).astype(str)
    pd.DataFrame(dict(file=files, group=groups)).to_csv(tmp_path/'g.csv', index=False)
    train(data, fine_tune_epochs=1, out=tmp_path, name='run', groups=tmp_path/'g.csv', **QUICK)
    err, by_group = capsys.readouterr().err, f"intervals are by group: 24 photos in {groups[sides == 'val'].nunique()}"
    assert err.count(by_group) == 1 and err.index(by_group) < err.index('batches of')
    numbers = json.loads((tmp_path/'run'/'metrics.json').read_text())['intervals']
    assert numbers['groups'] == groups[sides == 'val'].nunique()


def test_a_group_in_train_and_val_is_refused_with_all_other_faults(data, tmp_path):
    files, file = list_photos(data).file, tmp_path/'g.csv'
    sides = files.str.partition('/')[0]
    groups = sides.where(~files.index.isin([0, len(files) - 1]), 'Luger\x1b[31m on both sides')
    for content, fault in (('photo\n', "has no column 'file'"),
                           (pd.DataFrame(dict(file=files, group=groups)).to_csv(index=False),
                            '--groups: 1 group in both train/ and val/, so the results would look too good: '
                            r'Luger\x1b[31m on both sides; make the folders with `split --groups`')):
        file.write_text(content)
        for more, message in ((dict(arch='efficientnet_b33'), "--arch 'efficientnet_b33'"),
                              (dict(arch='efficientnet_b0', lr=0), '--lr 0')):
            result = typed('train', data, '--groups', file, '--out', tmp_path, '--name', 'more',
                           *as_arguments(**TINY | more))
            assert result.returncode == 1 and not (tmp_path/'more').exists()
            for o in (fault, message): assert o in result.stderr, result.stderr


def test_groups_that_split_knows_are_offered_to_train_and_evaluate(run, copy, tmp_path, capsys):
    from basegun_fastai.evaluate import evaluate
    from basegun_fastai.training.options import Options
    (copy/'split.csv').write_text('file,split,label,group,sha256\nrevolver/0000.jpg,train,revolver,Nagant,0f\n')
    offer = f"the photos have groups: for intervals by group, add --groups {copy/'split.csv'}\n"
    training = Training(Options(data=copy, out=tmp_path, name='new', **TINY), Run(tmp_path/'new'))
    for step in (lambda: training.check([]), training.read, training.open): step()
    assert capsys.readouterr().err.count(offer) == 1
    evaluate(run.path, copy, tmp_path/'judged', workers=0)
    assert capsys.readouterr().err.count(offer) == 1


def test_another_seed_gives_another_run(run, data, tmp_path):
    best, kept = fitted(data, tmp_path, seed=1, **WHOLE).memory.best['weights'], load_file(run.weights)
    assert not all(torch.equal(best[f'0.model.{k}'], v) for k, v in kept.items() if not k.startswith('classifier.'))


def test_the_finder_leaves_the_rest_as_it_was(data, tmp_path, monkeypatch, capsys):
    options = dict(out=tmp_path) | TINY | dict(batch_size=4)
    train(data, lr='auto', name='auto', fine_tune_epochs=1, no_report=True, **options)
    rate = Run(tmp_path/'auto').config.resolved.lr
    train(data, lr=rate, name='given', fine_tune_epochs=1, no_report=True, **options)
    same(Run(tmp_path/'auto'), Run(tmp_path/'given'))
    capsys.readouterr()
    monkeypatch.setattr('basegun_fastai.base.progress.Bar.each', -1)  # one line per batch instead of per minute
    lr_find(data, name='found', **options)
    output = capsys.readouterr()
    assert float(output.out) == pytest.approx(rate, rel=.01)
    assert output.err.count('learning rates: batch 0 of 100\nlearning rates: batch 1 of 100\n') == 1
    tried = pd.read_csv(tmp_path/'found'/'lr-find.csv')
    assert tried.columns.tolist() == ['learning_rate',
                                      'loss'] and len(tried) > 20 and tried.learning_rate.is_monotonic_increasing


def test_the_finder_says_where_it_is_not_to_be_trusted(data, weights, tmp_path, capsys):
    for options, warned in ((TINY, False), (TINY | dict(weights=str(weights)), True)):
        lr_find(data, name=f'found {warned}', out=tmp_path, **options | dict(batch_size=4))
        assert ('the learning-rate finder suggests too small a rate' in capsys.readouterr().err) is warned


def test_random_weights_skip_the_head_and_train_at_one_rate(data, tmp_path, capsys):
    config = fitted(data, tmp_path, fine_tune_epochs=1).run.config
    assert [o.items() >= dict(name='fine-tune', epochs=1, body_rate=.005, head_rate=.005).items()
            for o in config.resolved.stages] == [True]
    assert 'the head stage is skipped' in capsys.readouterr().err


def test_the_body_of_a_head_training_is_that_of_the_file(data, weights, tmp_path):
    train(data, head_epochs=2, fine_tune_epochs=0, out=tmp_path, name='head', **QUICK | dict(weights=str(weights)))
    inputs, trained = load_file(weights), load_file(tmp_path/'head'/'model.safetensors')
    assert all(torch.equal(trained[k], v) for k, v in inputs.items() if not k.startswith('classifier.'))
    stages = Run(tmp_path/'head').config.resolved.stages
    assert [o.items() >= dict(name='head', epochs=2, body_rate=0., head_rate=.005).items() for o in stages] == [True]


def test_fine_tuning_rates_are_smaller_and_smaller_still_in_the_body(data, weights, tmp_path):
    train(data, head_epochs=1, fine_tune_epochs=1, out=tmp_path, name='both', head='bn-dropout', **QUICK
          | dict(weights=str(weights)))
    head, fine = Run(tmp_path/'both').config.resolved.stages
    assert fine['body_rate'] < fine['head_rate'] < head['head_rate']
    assert load_file(tmp_path/'both'/'model.safetensors').keys() == load_file(weights).keys()


def test_both_stages_leave_the_statistics_that_came_with_the_weights(pretrained, weights):
    inputs, trained = load_file(weights), load_file(pretrained.weights)
    statistics = [k for k in inputs if 'running_' in k]
    assert len(statistics) > 20 and all(torch.equal(trained[k], inputs[k]) for k in statistics)


def test_the_loss_that_epochs_are_compared_by_is_that_of_what_is_kept(pretrained):
    best, numbers = pretrained.config.best, json.loads((pretrained.path/'metrics.json').read_text())
    assert numbers['loss'] == pytest.approx(best['compared_loss'], abs=1e-4)
    assert numbers['calibration']['before']['nll'] == pytest.approx(best['val_loss'], abs=1e-4)


def test_a_fine_tuning_that_helped_nothing_is_told(data, weights, tmp_path, capsys):
    train(data, head_epochs=1, fine_tune_epochs=1, out=tmp_path, name='huge', lr=10., **QUICK
          | dict(weights=str(weights)))
    assert Run(tmp_path/'huge').config.best['stage'] == 'head'
    assert 'warning: no fine-tuning epoch was better than the head stage' in capsys.readouterr().err


def test_classes_are_weighed_when_asked_and_the_option_is_named_where_they_differ(copy, tmp_path, capsys):
    random = np.random.default_rng(77)
    for i in range(90):
        Image.fromarray(random.integers(0, 256, (40, 60, 3), np.uint8)).save(copy/'train'/'revolver'/f'more {i}.png')
    options = dict(fine_tune_epochs=1, out=tmp_path) | QUICK
    fitted(copy, tmp_path, 'none', fine_tune_epochs=1)
    assert '--class-weights balanced raises their recall, but costs accuracy' in capsys.readouterr().err
    train(copy, name='balanced', class_weights='balanced', **options)
    none, balanced = (history(Run(tmp_path/o)) for o in ('none', 'balanced'))
    assert balanced.train_loss[0] != none.train_loss[0]
    rows = pd.read_csv(tmp_path/'balanced'/'predictions-val.csv')
    numbers = json.loads((tmp_path/'balanced'/'metrics.json').read_text())
    # val stays unweighted
    assert numbers['calibration']['before']['nll'] == pytest.approx(balanced.val_loss[0], abs=1e-5) and len(rows) == 24


def test_few_photos_shrink_the_batch_aloud(data, tmp_path, capsys):
    training = fitted(data, tmp_path, head_epochs=0, fine_tune_epochs=1, batch_size=64)
    assert training.config.resolved.batch_size == 48
    assert 'only 48 train photos: the batch size is reduced from 64 to 48' in capsys.readouterr().err


def test_unreadable_photos_are_refused_or_noted(copy, tmp_path, capsys):
    file = copy/'train'/'revolver'/'0005.jpg'
    file.unlink()
    file.write_bytes(b'not a photo')
    before, options = tree(copy), dict(head_epochs=0, fine_tune_epochs=1, out=tmp_path/'out', name='skip') | QUICK
    with pytest.raises(BasegunError, match='(?s)--skip-unreadable.*train/revolver/0005.jpg: it is text'):
        train(copy, **options)
    assert not (tmp_path/'out').exists()
    train(copy, skip_unreadable=True, **options)
    assert Run(tmp_path/'out'/'skip').config.skipped == ['train/revolver/0005.jpg']
    assert Run(tmp_path/'out'/'skip').config.dataset.counts['train']['revolver'] == 7
    assert 'skipped because they cannot be read' in capsys.readouterr().err and tree(copy) == before


CHANGES = dict(vanishes=None, shrinks=slice(500), differs=slice(-1))


@pytest.mark.parametrize('change', CHANGES)
def test_a_photo_that_changes_during_training_is_named_and_put_back_for_the_rest(copy, tmp_path, monkeypatch, change):
    photo = copy/'train'/'revolver'/'0004.jpg'
    content, begin = photo.read_bytes(), Training._begin
    def begin_and_change(training):
        photo.unlink()
        if change != 'vanishes': photo.write_bytes(content[CHANGES[change]])
        return begin(training)
    options = QUICK | dict(workers=2, head_epochs=0, fine_tune_epochs=1, out=tmp_path, name='disk', cache='off')
    with monkeypatch.context() as patch, pytest.raises(BasegunError) as error:
        patch.setattr(Training, '_begin', begin_and_change)
        train(copy, **options)
    reason = 'No such file or directory' if change == 'vanishes' else 'has changed since the command started'
    assert f'{photo}' in str(error.value) and reason in str(error.value) and len(str(error.value).splitlines()) == 1
    assert 'Restore the photo; then the same command with --name disk --resume continues' in str(error.value)
    if change == 'vanishes':
        photo.write_bytes(content)
        train(copy, **options | dict(resume=True))
        assert Run(tmp_path/'disk').finished


def test_a_loss_that_is_no_number_stops_and_keeps_the_last_good_epoch(data, tmp_path, monkeypatch):
    from fastai.losses import CrossEntropyLossFlat
    steps, call = [], CrossEntropyLossFlat.__call__
    def explode_at_step_8(self, pred, target, **k):
        loss = call(self, pred, target, **k)
        if pred.requires_grad: steps.append(1)
        return loss * float('nan') if pred.requires_grad and len(steps) == 8 else loss
    monkeypatch.setattr(CrossEntropyLossFlat, '__call__', explode_at_step_8)
    with pytest.raises(BasegunError,
                       match=r'the loss is nan at step 2 of 3 of epoch 3 \(fine-tune\)\. Epoch . was the best.*--lr '
                             r'0.0005'):
        train(data, head_epochs=1, fine_tune_epochs=3, out=tmp_path, name='nan', **QUICK)
    run = Run(tmp_path/'nan')
    assert history(run).epoch.tolist() == [1, 2] and run.config.state == 'running'
    assert all(o.isfinite().all() for o in load_file(run.weights).values())


def test_a_huge_rate_that_explodes_by_itself_is_told(data, tmp_path):
    with pytest.raises(BasegunError, match='the loss is (nan|inf)'):
        train(data, head_epochs=0, fine_tune_epochs=12, out=tmp_path, name='huge', lr=10., **QUICK
              | dict(arch='test_vit', size=160))


def rows(run): return pd.read_csv(run.history)


def test_a_training_without_enough_memory_goes_on_with_half_the_batch(data, tmp_path, monkeypatch, capsys):
    before = EpochSeed.before_train
    def hungry(self):
        before(self)
        # refused by the allocator itself
        if self.epochs_before + self.epoch == 2 and self.dls.bs > 8: torch.empty(2 ** 46, dtype=torch.uint8)
    monkeypatch.setattr(EpochSeed, 'before_train', hungry)
    train(data, fine_tune_epochs=4, out=tmp_path, name='run', **QUICK)
    run = Run(tmp_path/'run')
    text = capsys.readouterr().err
    assert 'out of memory with batches of 16: continuing with batches of 8 from the last finished epoch' in text
    assert run.finished and run.config.resolved.batch_size == 8 and run.config.resolved.halved_from == [16]
    assert rows(run).epoch.tolist() == [1, 2, 3, 4] and json.loads((run.path/'metrics.json').read_text())['n'] == 24


def test_another_failure_is_not_taken_for_want_of_memory(data, tmp_path, monkeypatch):
    monkeypatch.setattr(EpochSeed, 'before_train', lambda _: torch.zeros(2) @ torch.zeros(3))
    with pytest.raises(RuntimeError, match='inconsistent tensor size|size mismatch'):
        train(data, fine_tune_epochs=1, out=tmp_path, name='run', **QUICK)


def test_running_out_of_memory_in_16_bits_leaves_no_trace(data, tmp_path, monkeypatch):
    options = dict(fine_tune_epochs=2, precision='bfloat16')
    plain = fitted(data, tmp_path, 'plain', **options | dict(batch_size=8))
    forward, many = nn.Linear.forward, []
    def hungry(self, x):
        many.append(len(x))
        # refused by the allocator itself, in the middle of the forward pass
        if len(x) > 8: torch.empty(2 ** 46, dtype=torch.uint8)
        return forward(self, x)
    with monkeypatch.context() as patch:
        patch.setattr(nn.Linear, 'forward', hungry)
        actual = fitted(data, tmp_path, 'run', **options)
    assert max(many) == 16 and not torch.is_autocast_enabled('cpu')
    assert actual.run.config.resolved.halved_from == [16]
    first, second = (o.memory.best['weights'] for o in (plain, actual))
    assert first.keys() == second.keys() and all(torch.equal(v, second[k]) for k, v in first.items())


def test_a_run_without_an_option_of_today_cannot_be_continued_and_that_is_told(data, tmp_path, monkeypatch):
    def broken(*_): raise KeyboardInterrupt
    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
        patch.setattr(EpochSeed, 'before_train', broken)
        train(data, out=tmp_path, name='run', fine_tune_epochs=1, **QUICK)
    config = Run(tmp_path/'run').config
    del config.options['head_views']
    Run(tmp_path/'run').save_config(config)
    result = typed('train', data, '--out', tmp_path, '--name', 'run', '--resume', '--fine-tune-epochs', 1,
                 *as_arguments(**QUICK))
    assert result.returncode == 1 and '--head-views did not exist, now 2' in result.stderr
