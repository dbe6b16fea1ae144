"Resemblance compares the features of the last layer, for any size of batch."
import numpy as np
import pytest
import torch

from basegun_fastai.data.folders import list_photos
from basegun_fastai.trust.evidence import dense_layer
from basegun_fastai.trust.judge import Judge
from basegun_fastai.trust.inspection import nearest, neighbours
from basegun_fastai.trust.predictions import read_predictions


def directions(n, seed):
    x = np.random.default_rng(seed).normal(size=(n, 8)).astype(np.float32)
    return x / np.linalg.norm(x, axis=1, keepdims=True)


@pytest.mark.parametrize('width', [1, 3, 7, 50])
def test_batches_change_nothing(width):
    queries, stored = directions(5, 0), directions(50, 1)
    cosines, indices = nearest(queries, (stored[i:i + width] for i in range(0, 50, width)), 4)
    wanted = np.argsort(-queries @ stored.T, 1)[:, :4]
    assert np.array_equal(indices, wanted)
    assert np.allclose(cosines, np.take_along_axis(queries @ stored.T, wanted, 1), atol=1e-6)


def test_fewer_train_photos_than_neighbours_are_all_of_them():
    cosines, indices = nearest(directions(4, 0), [directions(2, 1)])
    assert cosines.shape == indices.shape == (4, 2)


@pytest.fixture(scope='module')
def judge(run, data):
    return Judge.of_run(run, data, list_photos(data, 'classes'), 0, 'cpu')


@pytest.mark.slow
def test_features_are_what_the_last_layer_decides_by(judge, run):
    preds = read_predictions(run, run.config.classes)
    x, layer = np.vstack([*judge.features(preds.files, '')]), dense_layer(judge.network, 32)
    assert np.allclose(np.linalg.norm(x, axis=1), 1, atol=1e-5)
    weight, bias = (o.detach().numpy() for o in (layer.weight, layer.bias))
    logits = np.log(preds.probabilities)
    lengths = [np.linalg.lstsq(np.stack([weight @ o, np.ones(len(bias))], 1), p - bias)[0][0]
               for o, p in zip(x, logits, strict=True)]
    again = torch.from_numpy(np.array(lengths)[:, None] * (x @ weight.T) + bias).softmax(1).numpy()
    assert np.abs(again - preds.probabilities).max() < 1e-4


@pytest.mark.slow
def test_a_photo_that_is_in_train_too_is_its_own_neighbour(run, copy):
    leak, again = sorted((copy/'val').glob('*/*'))[7], copy/'train'/'revolver'/'again.jpg'
    again.write_bytes(leak.read_bytes())
    val, train = ([o.relative_to(copy).as_posix() for o in sorted((copy/split).glob('*/*'))]
                  for split in ('val', 'train'))
    rows = neighbours(Judge.of_run(run, copy, list_photos(copy, 'classes'), 0, 'cpu'), val, train)
    best, leak = rows.drop_duplicates('file').set_index('file'), val[7]
    assert len(rows) == 3 * len(val) and best.loc[leak].train_file == 'train/revolver/again.jpg'
    assert best.loc[leak].cosine == pytest.approx(1, abs=1e-5) and best.cosine.idxmax() == leak
    for _, part in rows.groupby('file'): assert part.cosine.is_monotonic_decreasing
