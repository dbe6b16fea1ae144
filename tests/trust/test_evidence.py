"Evidence adds up to the logits, depends on what the network has learnt, and its shares match the areas."
import numpy as np
import pytest
import timm
import torch
from PIL import Image
from scipy.stats import spearmanr

from basegun_fastai.trust.evidence import SCALE, colours, coverage, dense_layer, evidence
from basegun_fastai.trust.evidence import explanation_picture, misplaced_shares


def trained(name, seed=0, classes=5):
    torch.manual_seed(seed)
    return timm.create_model(name, num_classes=classes).eval()


@pytest.mark.parametrize('name', ['test_efficientnet', 'test_resnet', 'efficientnet_b0', 'tf_efficientnet_lite0'])
def test_evidence_adds_up_to_the_logits(name):
    net, photos = trained(name), torch.rand(3, 3, 96, 64)
    layer = dense_layer(net, 96)
    with torch.no_grad():
        summed = evidence(net.forward_features(photos), layer).mean((2, 3)) + layer.bias
        assert torch.allclose(summed, net(photos), atol=1e-5)


@pytest.mark.parametrize('name', ['test_convnext', 'test_vit', 'mobilenetv3_small_050', 'test_nfnet'])
def test_a_network_that_ends_otherwise_has_none_or_one_that_adds_up(name):
    net = trained(name)
    layer, photos = dense_layer(net, 160), torch.rand(2, 3, 160, 160)
    if name != 'test_nfnet': assert layer is None
    if layer is not None:
        with torch.no_grad():
            summed = evidence(net.forward_features(photos), layer).mean((2, 3)) + layer.bias
            assert torch.allclose(summed, net(photos), atol=1e-4)


def test_looking_for_it_leaves_the_network_as_it_was():
    net = trained('test_efficientnet').train()
    before = {k: v.clone() for k, v in net.state_dict().items()}
    assert dense_layer(net, 64) is not None and net.training
    assert all(torch.equal(v, before[k]) for k, v in net.state_dict().items())


def test_the_map_depends_on_the_weights_of_the_head():  # Adebayo et al. 2018
    net, photos = trained('test_efficientnet'), torch.rand(8, 3, 128, 128)
    with torch.no_grad():
        features = net.forward_features(photos)
        maps = evidence(features, dense_layer(net, 128)).numpy()
        torch.manual_seed(7)
        torch.nn.init.normal_(net.classifier.weight)
        others = evidence(features, net.classifier).numpy()
    correlations = [spearmanr(a.ravel(), b.ravel()).statistic for a, b in zip(maps[:, 0], others[:, 0], strict=True)]
    again = [spearmanr(a.ravel(), a.ravel() * 3).statistic for a in maps[:, 0]]
    assert np.mean(np.abs(correlations)) < .9 and min(again) > .99


def test_coverage_is_that_of_areas():
    fine = np.zeros((700, 700))
    fine[70:490, 175:665] = 1
    wanted = fine.reshape(7, 100, 7, 100).mean((1, 3))
    assert np.allclose(coverage((7, 7), (.25, .1, .95, .7)), wanted)


def test_shares_of_a_wide_photo():
    on_padding, on_border = misplaced_shares(np.ones((14, 14)), (0, .25, 1, .75))
    assert on_padding == pytest.approx(.5) and on_border == pytest.approx(.5 * .36)
    assert misplaced_shares(-np.ones((7, 7)), (0, .25, 1, .75)) == (0, 0)  # nothing supports the predicted class


def test_warm_is_for_and_cool_is_against_on_one_scale():
    square = np.full((64, 64, 3), 128, np.uint8)
    half = np.zeros((2, 2))
    half[:, 0], half[:, 1] = SCALE, -SCALE
    picture = np.asarray(colours(half, square)).astype(int)
    left, right = picture[:, :8].mean((0, 1)), picture[:, -8:].mean((0, 1))
    assert left[0] > left[2] + 60 and right[2] > right[0] + 60
    faint = np.asarray(colours(half / 10, square)).astype(int)
    assert abs(faint - faint.mean(2, keepdims=True)).max() < abs(picture - picture.mean(2, keepdims=True)).max() / 2
    full, more = (np.asarray(colours(half * o, square))[:, [0, -1]] for o in (1, 50))
    assert np.array_equal(full, more)


def test_a_picture_takes_lines_of_any_length_and_script():
    page = explanation_picture(np.zeros((48, 48, 3), np.uint8), np.ones((3, 3)), ['é' * 300, '銃', ''])
    assert isinstance(page, Image.Image) and page.size == (664, 410)


def test_overlays_are_of_the_photos_and_pairs_that_are_asked_for(run, data):
    from basegun_fastai.data.folders import list_photos
    from basegun_fastai.trust.judge import Judge
    from basegun_fastai.trust.predictions import Predictions
    judge = Judge.of_run(run, data, list_photos(data, 'classes'), 0, 'cpu')
    n, classes = len(judge.files), run.config.classes
    zero_as_one, one_as_zero = (Predictions(judge.files, classes, np.full(n, a), np.eye(6)[np.full(n, 1 - a)])
                                for a in (0, 1))
    indices = [*range(0, n, 3)]
    overlays, against = (judge.overlays(o, indices) for o in (zero_as_one, one_as_zero))
    assert [*overlays] == [judge.files[i] for i in indices] and all(o.size == (128, 128) for o in overlays.values())
    for a, b in zip(overlays.values(), against.values(), strict=True):  # evidence for one is against the other
        warmth = [(np.asarray(o, float)[..., 0] - np.asarray(o, float)[..., 2]).mean() for o in (a, b)]
        assert warmth[0] * warmth[1] < 0 or max(map(abs, warmth)) < 1
    assert judge.overlays(zero_as_one, []) == {}
