"""Is the evidence correct? Prints a table and writes benchmarks/evidence.json.

A tiny network is trained on drawn guns, and one with real weights on real photos (BASEGUN_REAL, default ../shared/real;
left out if the folder is missing). Then, on val:

- sums: the largest difference between a logit and the sum of its evidence;
- randomised: rank correlation of the map with that of the same network with a random head, or with all its weights
  random (Adebayo 2018);
- deletion and insertion: the probability of the predicted class while places are greyed out, or restored, in the order
  of the evidence, in a random order, and in the order of Grad-CAM (`pip install grad-cam`; left out if not installed);
- pointing (drawn guns): share of the positive evidence on the gun, and the share of the photo that the gun covers;
- mirror pair (drawn guns): which half of the gun has the evidence for one of the pair against the other;
- latency: EfficientNet-B0 at 224 pixels in onnxruntime, for only the probabilities and for the evidence too, divided
  by the time of the same network exported without evidence.
"""
import json
import os
import statistics
import time
from contextlib import redirect_stderr, redirect_stdout
from functools import partial
from io import StringIO
from pathlib import Path
from tempfile import TemporaryDirectory

import numpy as np
import onnxruntime
import timm
import torch
from scipy.stats import spearmanr

from basegun_fastai.base.processes import cores, say
from basegun_fastai.base.record import Run
from basegun_fastai.data.demo import GUNS, demo_data, draw_photo_and_mask
from basegun_fastai.data.photo import NEUTRAL, in_square, pixels
from basegun_fastai.export import onnx_model
from basegun_fastai.model.archs import run_architecture
from basegun_fastai.model.weights import trained_model
from basegun_fastai.train import train
from basegun_fastai.trust.evidence import coverage, dense_layer, evidence

HERE, PHOTOS = Path(__file__).parent, 30
REAL = Path(os.environ.get('BASEGUN_REAL', HERE.parents[1]/'shared'/'real'))


class Judged:
    "A trained network and the squares of some val photos."

    def __init__(self, run, data):
        self.run, arch = Run(run), run_architecture(Run(run).config)
        self.net, self.arch = trained_model(self.run), arch
        self.layer = dense_layer(self.net, arch.size)
        files = sorted(data.glob('val/*/*'))
        self.squares = np.stack([pixels(o, arch.size) for o in files[::max(1, len(files) // PHOTOS)][:PHOTOS]])

    def normal(self, squares):
        mean, std = (torch.tensor(o).view(1, 3, 1, 1) for o in (self.arch.mean, self.arch.std))
        return (torch.from_numpy(squares).permute(0, 3, 1, 2).float() / 255 - mean) / std

    @torch.no_grad()
    def logits(self, squares): return self.net(self.normal(squares)).numpy()

    @torch.no_grad()
    def maps(self, squares, net=None, layer=None):
        return evidence((net or self.net).forward_features(self.normal(squares)), layer or self.layer).numpy()


def sums(judged):
    summed = judged.maps(judged.squares).mean((2, 3)) + judged.layer.bias.detach().numpy()
    logits = judged.logits(judged.squares)
    return float(np.abs(summed - logits).max() / max(1, np.abs(logits).max()))


def randomised(judged):
    "Mean rank correlation of the predicted class's map with that of a random head, and of a random network."
    torch.manual_seed(1)
    best, own = judged.logits(judged.squares).argmax(1), judged.maps(judged.squares)
    head = torch.nn.Linear(judged.layer.in_features, judged.layer.out_features)
    net = timm.create_model(judged.arch.timm_name, num_classes=judged.layer.out_features).eval()
    def correlation(maps):
        return float(np.mean([spearmanr(a[o].ravel(), b[o].ravel()).statistic
                              for a, b, o in zip(own, maps, best, strict=True)]))
    return correlation(judged.maps(judged.squares, layer=head)), correlation(judged.maps(judged.squares, net,
        net.get_classifier()))


def grad_cam(judged, best):
    "Maps of pytorch-grad-cam on the last feature map, or None if it is not installed."
    try:
        from pytorch_grad_cam import GradCAM
        from pytorch_grad_cam.utils.model_targets import ClassifierOutputTarget
    except ImportError: return None
    class Features(torch.nn.Module):
        def __init__(self):
            super().__init__()
            self.net, self.last = judged.net, torch.nn.Identity()
        def forward(self, x): return self.net.forward_head(self.last(self.net.forward_features(x)))
    net, maps = Features(), []
    with GradCAM(net, [net.last]) as cam:
        for square, o in zip(judged.squares, best, strict=True):
            maps.append(cam(judged.normal(square[None]), [ClassifierOutputTarget(int(o))])[0])
    n = judged.maps(judged.squares[:1]).shape[2]
    side = len(judged.squares[0]) // n
    return np.stack([o[:side * n, :side * n].reshape(n, side, n, side).mean((1, 3)) for o in maps])


def curves(judged, orders, best):
    "Mean probability of the predicted class over deletion (lower is better) and insertion (higher is better)."
    n, side = orders.shape[1], judged.squares.shape[1]
    edges = np.linspace(0, side, n + 1).round().astype(int)
    deleted, inserted = judged.squares.copy(), np.full_like(judged.squares, NEUTRAL)
    ranks, areas = (-orders.reshape(len(orders), -1)).argsort(1), [[], []]
    for step in range(n * n + 1):
        for which, squares in enumerate((deleted, inserted)):
            logits = judged.logits(squares)
            probs = np.exp(logits - logits.max(1, keepdims=True))
            areas[which].append(float((probs / probs.sum(1, keepdims=True))[np.arange(len(best)), best].mean()))
        if step == n * n: break
        for i, place in enumerate(ranks[:, step]):
            row, column = divmod(int(place), n)
            part = np.s_[i, edges[row]:edges[row + 1], edges[column]:edges[column + 1]]
            deleted[part], inserted[part] = NEUTRAL, judged.squares[part]
    return [float(np.mean(o)) for o in areas]


def ordered(judged):
    best = judged.logits(judged.squares).argmax(1)
    own = judged.maps(judged.squares)[np.arange(len(best)), best]
    orders = dict(evidence=own, random=np.random.default_rng(0).random(own.shape))
    if (peer := grad_cam(judged, best)) is not None: orders['Grad-CAM'] = peer
    return {k: dict(zip(('deletion', 'insertion'), curves(judged, o, best), strict=True)) for k, o in orders.items()}


def pointing(judged, n=10):
    "Share of the positive evidence against the second class on the gun, and share of the square that the gun covers."
    shares, areas = [], []
    for label in GUNS:
        for i in range(n):
            photo, mask = draw_photo_and_mask(label, np.random.default_rng([9, i]))
            photo.thumbnail((judged.arch.size,) * 2)
            square, gun = in_square(photo, judged.arch.size)[0], np.zeros((judged.arch.size,) * 2)
            left, top = (judged.arch.size - photo.width) // 2, (judged.arch.size - photo.height) // 2
            gun[top:top + photo.height, left:left + photo.width] = np.asarray(mask.resize(photo.size)) / 255
            maps, logits = judged.maps(square[None])[0], judged.logits(square[None])[0]
            second, first = np.argsort(logits)[-2:]
            positive = np.maximum(maps[first] - maps[second], 0)
            grid = positive.shape[0]
            places = np.array([[gun[int(r * len(gun) / grid):int((r + 1) * len(gun) / grid),
                                    int(c * len(gun) / grid):int((c + 1) * len(gun) / grid)].mean()
                                for c in range(grid)] for r in range(grid)])
            if positive.sum():
                shares.append(float((positive * places).sum() / positive.sum()))
                areas.append(float(places.mean()))
    return float(np.mean(shares)), float(np.mean(areas))


def mirror_pair(judged, classes, n=20):
    "Share of right classes, and of the evidence for the class against its mirror twin in the photo's middle half."
    a, b = (classes.index(o) for o in ('epaule_a_verrou', 'epaule_semi_auto_style_chasse'))
    right, shares = 0, []
    for own, other, label in ((a, b, 'epaule_a_verrou'), (b, a, 'epaule_semi_auto_style_chasse')):
        for i in range(n):
            photo, _ = draw_photo_and_mask(label, np.random.default_rng([11, i]), (320, 200))
            photo.thumbnail((judged.arch.size,) * 2)
            square, box = in_square(photo, judged.arch.size)
            maps = judged.maps(square[None])[0]
            difference = maps[own] - maps[other]
            right += difference.mean() > 0
            positive, height = np.maximum(difference, 0), box[3] - box[1]
            band = coverage(difference.shape, (box[0], box[1] + height / 4, box[2], box[3] - height / 4))
            if positive.sum(): shares.append(float((positive * band).sum() / positive.sum()))
    return right / (2 * n), float(np.mean(shares))


class Serving(torch.nn.Module):
    "B0 as `export.serving_network` makes it, with or without evidence."

    def __init__(self, explained):
        super().__init__()
        torch.manual_seed(0)
        self.net = timm.create_model('efficientnet_b0', num_classes=12).eval()
        self.layer = dense_layer(self.net, 224) if explained else None

    def forward(self, photos):
        features = self.net.forward_features(photos.permute(0, 3, 1, 2).contiguous().float() / 255)
        probs = self.net.forward_head(features).softmax(1)
        return probs if self.layer is None else (probs, evidence(features, self.layer))


def latency(repeats=200):
    "Ratios of medians, in turn: only probabilities, and evidence too, over a network without evidence."
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = cores()
    plain, explained = (onnxruntime.InferenceSession(onnx_model(Serving(o).eval(), 224).SerializeToString(), options)
                        for o in (False, True))
    alone = onnxruntime.RunOptions()
    alone.only_execute_path_to_fetches = True
    photo, seconds = dict(photos=np.zeros((1, 224, 224, 3), np.uint8)), [[], [], []]
    asks = [partial(plain.run, ['probabilities'], photo), partial(explained.run, ['probabilities'], photo, alone),
            partial(explained.run, ['probabilities', 'evidence'], photo)]
    for _ in range(repeats):
        for ask, times in zip(asks, seconds, strict=True):
            started = time.perf_counter()
            ask()
            times.append(time.perf_counter() - started)
    without, alone, both = (statistics.median(o[10:]) for o in seconds)
    return dict(milliseconds=1000 * without, probabilities=alone / without, evidence=both / without)


def main():
    torch.set_num_threads(2)
    rows = []
    with TemporaryDirectory() as folder:
        folder = Path(folder)
        with redirect_stdout(StringIO()): demo_data(folder/'drawn', photos_per_class=100)
        sets = [('drawn guns', folder/'drawn', dict(arch='test_efficientnet', size=96, weights='none', lr=.006,
                                                    fine_tune_epochs=16, batch_size=16))]
        weights = REAL/'weights'/'tf_efficientnet_lite0.safetensors'
        if weights.is_file():
            real = dict(arch='tf_efficientnet_lite0', weights=str(weights), batch_size=32)
            sets += [('drawn guns, real weights', folder/'drawn', real | dict(head_epochs=10, fine_tune_epochs=2)),
                     ('hymenoptera', REAL/'hymenoptera', real | dict(head_epochs=10, fine_tune_epochs=0))]
        for name, data, options in sets:
            say(f'training on {name}')
            with redirect_stdout(StringIO()), redirect_stderr(StringIO()):
                train(data, out=folder/'runs', name=name, workers=0, **options)
            judged = Judged(folder/'runs'/name, data)
            head, network = randomised(judged)
            row = dict(photos=name, grid=judged.maps(judged.squares[:1]).shape[2], sums=sums(judged), random_head=head,
                       random_network=network, orders=ordered(judged))
            if name.startswith('drawn guns'):
                classes = judged.run.config.classes
                row |= dict(zip(('on_gun', 'gun_area'), pointing(judged), strict=True))
                row |= dict(zip(('pair_right', 'pair_in_middle'), mirror_pair(judged, classes), strict=True))
            rows.append(row)
            print(json.dumps(row, indent=1))
    rows.append(dict(photos='latency', **latency()))
    print(json.dumps(rows[-1], indent=1))
    (HERE/'evidence.json').write_text(json.dumps(rows, indent=1) + '\n')


if __name__ == '__main__': main()
