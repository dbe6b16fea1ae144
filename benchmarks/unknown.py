"""Photos of things that a network has never seen: how well confidence, energy and familiarity separate them from val.

The folder comes from BASEGUN_REAL (default: ../shared/real beside the checkout); without it only the latency is
measured. `train` runs with its defaults on four sets, three seeds each. Then, with the kept network:

- typology against its five kinds of other things, and hymenoptera, trash and caltech each against the val photos of
  the other two: AUROC and FPR95 of the confidence, the energy (logsumexp of the logits) and the similarity to the 5th
  nearest train photo, of which familiarity is a rank; `hard` is grenade, melee and flamethrower together;
- the same with the features of the pretrained weights, before any training;
- with a bank of 64 to 4,096 train photos, chosen at random, as k-means centres, or by a greedy cover;
- val split in two at random, 100 times: how many photos of one half are unfamiliar by the table of the other;
- whether photos of other things should also move the threshold on the confidence: levels from one half of val and of
  the other things, measured on the other half;
- time of a prediction and size of model.onnx with and without a bank (EfficientNet-B0, one thread, interleaved).

Prints tables and writes unknown.json. In the folder BASEGUN_RUNS the runs are kept as <set>-<seed> for the next time;
BASEGUN_SEEDS="1" takes fewer seeds. Two cores take about two hours for the trainings, then 20 minutes.
"""
import json
import os
import statistics
import time
import warnings
from contextlib import nullcontext, redirect_stderr, redirect_stdout
from io import BytesIO, StringIO
from pathlib import Path
from tempfile import TemporaryDirectory

warnings.filterwarnings('ignore')

import numpy as np  # noqa: E402
import torch  # noqa: E402
from bench import exported  # noqa: E402
from load import SIZES  # noqa: E402
from real import ARCH, BATCH, REAL, SEEDS, WEIGHTS, photos  # noqa: E402
from scipy.special import logsumexp, softmax  # noqa: E402
from sklearn.cluster import KMeans  # noqa: E402
from timm.models import load_state_dict  # noqa: E402

from basegun_fastai.base.files import write_whole# noqa: E402
from basegun_fastai.data.demo import draw_photo  # noqa: E402
from basegun_fastai.data.folders import list_photos  # noqa: E402
from basegun_fastai.export import export  # noqa: E402
from basegun_fastai.model.archs import run_architecture  # noqa: E402
from basegun_fastai.model.loaders import photos_loader, run_loaders  # noqa: E402
from basegun_fastai.model.weights import trained_model  # noqa: E402
from basegun_fastai.predict import load  # noqa: E402
from basegun_fastai.base.record import Run# noqa: E402
from basegun_fastai.train import train  # noqa: E402
from basegun_fastai.trust.familiarity import MAX_BANK, Bank, familiarity, familiarity_table  # noqa: E402
from basegun_fastai.trust.familiarity import save_bank, similarity  # noqa: E402
from basegun_fastai.trust.judge import features_and_logits  # noqa: E402
from basegun_fastai.trust.levels import familiar_confidences, find_levels, ood_metrics  # noqa: E402
from basegun_fastai.trust.steadiness import sample_evenly  # noqa: E402

HERE = Path(__file__).parent
KINDS, HARD = ('grenade', 'melee', 'flamethrower', 'knife', 'thing'), ('grenade', 'melee', 'flamethrower')
CROSS = ('hymenoptera', 'trash', 'caltech')
BANKS, SPLITS, REPEATS, RATE = (64, 128, 256, 512, 1024, 2048, 4096), 100, 150, .02


def trained(name, seed, folder):
    "A run with the defaults; an existing one is used again."
    run = Run(folder/f'{name}-{seed}')
    if not run.exists:
        with redirect_stdout(StringIO()), redirect_stderr(StringIO()):
            train(REAL/name, arch=ARCH, weights=str(WEIGHTS), batch_size=BATCH, seed=seed, out=folder,
                  name=run.path.name, skip_unreadable=True)
    return run


def groups_of_photos(name):
    "Files to predict, by group: train, val, and things that are no class of the set."
    table = photos(REAL/name)
    groups = {split: [str(REAL/name/o) for o in table.file[table.split == split]] for split in ('train', 'val')}
    if name == 'typology':
        for kind in KINDS:
            folder = REAL/name/'not-a-gun'/kind
            groups[kind] = [str(folder/o) for o in list_photos(folder, 'any').file]
    else:
        for other in CROSS:
            if other == name: continue
            others = photos(REAL/other)
            groups[other] = [str(REAL/other/o) for o in others.file[others.split == 'val']]
    return table, groups


def asked(network, dls, files):
    "Features of length 1, and logits."
    dl, parts = photos_loader(dls, files), []
    with torch.no_grad():
        for (x,) in dl: parts.append(features_and_logits(network, x.as_subclass(torch.Tensor)))
    dl.close()
    pooled, logits = (torch.cat(o).cpu().numpy() for o in zip(*parts, strict=True))
    return pooled / np.linalg.norm(pooled, axis=1, keepdims=True), logits


def answers(run, name, as_they_came=False):
    "Features and logits of each group, labels of train and val, temperature."
    table, groups = groups_of_photos(name)
    dls = run_loaders(run, REAL/name, table[table.split == 'val'], device='cpu')
    network = trained_model(run)
    if as_they_came:  # the body's pretrained weights, and a classifier that is not used
        state = load_state_dict(str(WEIGHTS), device='cpu', weights_only=True)
        classifier = run_architecture(run.config).classifier
        network.load_state_dict({k: v for k, v in state.items() if not k.startswith(classifier)}, strict=False)
    asked_of = {group: asked(network, dls, files) for group, files in groups.items()}
    dls.valid.close()
    labels = {o: table.label[table.split == o].to_numpy() for o in ('train', 'val')}
    temperature = json.loads(run.metrics.read_bytes())['calibration']['temperature']
    return dict(of=asked_of, labels=labels, classes=sorted(set(labels['train'])), temperature=temperature)


def scores(measured, bank):
    "Of each group: confidence, energy and similarity."
    return {group: dict(confidence=softmax(logits.astype(float), 1).max(1),
                        energy=logsumexp(logits.astype(float) * measured['temperature'], 1),
                        familiarity=similarity(features, bank))
            for group, (features, logits) in measured['of'].items() if group != 'train'}


def others(name, of):
    "What val is compared with: each group, and some together."
    names = [o for o in of if o not in ('train', 'val')]
    together = dict(hard=HARD, all=KINDS) if name == 'typology' else {}
    return {o: (o,) for o in names} | together


def told_apart(name, of, score):
    "AUROC and FPR95 of a score, by the group that val is compared with."
    return {group: ood_metrics(of['val'][score], np.concatenate([of[o][score] for o in parts]))
            for group, parts in others(name, of).items()}


def k_means(features, _, size):
    centres = KMeans(size, n_init=1, random_state=0).fit(features).cluster_centers_
    return centres / np.linalg.norm(centres, axis=1, keepdims=True)


def greedy_cover(features, _, size):
    "Each chosen photo is the one farthest from the earlier ones."
    chosen, nearest = [0], features @ features[0]
    while len(chosen) < size:
        chosen.append(int(nearest.argmin()))
        nearest = np.maximum(nearest, features @ features[chosen[-1]])
    return features[chosen]


def chance(features, labels, size): return features[sample_evenly(labels, size)]


def bank_sizes(name, measured):
    "AUROC by size of the bank and method of choice, on the hardest comparison of the set."
    (train_features, _), labels = measured['of']['train'], measured['labels']['train']
    rows, group = [], 'hard' if name == 'typology' else 'all others'
    for size in BANKS:
        if size > len(labels) and rows and rows[-1]['photos'] == len(labels): break
        for choose in (chance, k_means, greedy_cover):
            n = min(size, len(labels))
            if choose is not chance and n > 512: continue
            of = scores(measured, choose(train_features, labels, n))
            parts = HARD if name == 'typology' else [o for o in of if o != 'val']
            actual = ood_metrics(of['val']['familiarity'], np.concatenate([of[o]['familiarity'] for o in parts]))
            rows.append(dict(set=name, against=group, photos=n, chosen=choose.__name__, **actual))
    return rows


def random_half(n, seed):
    half = np.zeros(n, bool)
    half[np.random.default_rng(seed).permutation(n)[:n // 2]] = True
    return half


def split_val(of):
    "Share of one half of val that is unfamiliar by the table of the other."
    similarities, shares = of['val']['familiarity'], []
    for seed in range(SPLITS):
        half = random_half(len(similarities), seed)
        table = familiarity_table(similarities[half])
        shares.append(float((familiarity(similarities[~half], table) < RATE).mean()))
    return shares


def levels(name, measured, of):
    "Shares of other things and val photos that are not low, for each of four methods, on the halves not used."
    names = np.array(measured['classes'])
    right = names[measured['of']['val'][1].argmax(1)] == measured['labels']['val']
    val, ood = of['val'], {k: np.concatenate([of[o][k] for o in others(name, of) if o in of]) for k in of['val']}
    rows = {}
    for how in ('confidence', 'confidence, moved', 'familiarity', 'familiarity, moved'):
        shown, ood_shown, rates = [], [], []
        for seed in range(SPLITS):
            a, b = random_half(len(right), seed), random_half(len(ood['confidence']), seed)
            table = familiarity_table(val['familiarity'][a])
            rate = RATE if how.startswith('familiarity') else 0.
            confidences, ood_confidences = (
                familiar_confidences(o['confidence'], familiarity(o['familiarity'], table), rate) for o in (val, ood))
            half_levels = find_levels(confidences[a], right[a], ood=ood_confidences[b] if 'moved' in how else None)
            low = 2. if half_levels.low is None else half_levels.low
            is_shown = confidences[~a] >= low
            shown.append(is_shown.mean())
            ood_shown.append((ood_confidences[~b] >= low).mean())
            if is_shown.any(): rates.append(right[~a][is_shown].mean())
        rows[how] = dict(shown=float(np.mean(shown)), ood_shown=float(np.mean(ood_shown)),
                         right=float(np.mean(rates)) if rates else None)
    return rows


def measure(name, seed, run):
    "All numbers of one run."
    measured = answers(run, name)
    features, labels = measured['of']['train'][0].astype(np.float16), measured['labels']['train']
    of = scores(measured, chance(features, labels, MAX_BANK))
    row = dict(set=name, seed=seed, apart={o: told_apart(name, of, o) for o in ('confidence', 'energy', 'familiarity')},
               unfamiliar_in_other_half=float(np.mean(split_val(of))), levels=levels(name, measured, of))
    if seed == SEEDS[0]:
        before = answers(run, name, as_they_came=True)
        of_before = scores(before, chance(before['of']['train'][0], labels, MAX_BANK))
        row |= dict(as_they_came=told_apart(name, of_before, 'familiarity'), banks=bank_sizes(name, measured))
    return row


def with_bank(run, folder, size):
    "Export a run with a bank of random unit vectors."
    network, random, config = trained_model(run), np.random.default_rng(0), run.config
    data = Path(config.options['data'])
    val = list_photos(data)
    val = val[val.split == 'val']
    dls = run_loaders(run, data, val, device='cpu')
    rows = asked(network, dls, [str(data/o) for o in val.file])[0]
    dls.valid.close()
    bank = random.normal(size=(size, rows.shape[1])).astype(np.float32)
    bank = (bank / np.linalg.norm(bank, axis=1, keepdims=True)).astype(np.float16)
    save_bank(run, Bank(bank, similarity(rows, bank)))
    with redirect_stdout(StringIO()), redirect_stderr(StringIO()): export(run.path, folder)
    run.familiarity.unlink()
    return folder


def latency(folder):
    "Milliseconds per prediction without a bank, with ours and the largest; sizes of model.onnx; equal predictions."
    path, plain = exported('efficientnet_b0', folder)
    folders = {0: plain, **{o: with_bank(Run(path), folder/f'bank-{o}', o) for o in (MAX_BANK, 4096)}}
    models = {size: load(o, threads=1) for size, o in folders.items()}
    rows, same = [], True
    for name, shape in SIZES.items():
        content, times = BytesIO(), {o: [] for o in models}
        draw_photo('revolver', np.random.default_rng(0), shape).save(content, 'JPEG', quality=90)
        for _ in range(REPEATS):
            answer = {}
            for size, model in models.items():
                started = time.perf_counter()
                answer[size] = model(content.getvalue())
                times[size].append(1000 * (time.perf_counter() - started))
            same &= all(o[0] == answer[0][0] and o.probabilities == answer[0].probabilities for o in answer.values())
        medians = {size: statistics.median(o) for size, o in times.items()}
        rows.append(dict(photo=name, milliseconds=medians,
                         times_as_slow={o: medians[o] / medians[0] for o in models if o}))
    sizes = {o: (folders[o]/'model.onnx').stat().st_size for o in folders}
    return dict(rows=rows, bytes_more={o: sizes[o] - sizes[0] for o in sizes if o}, answers_bit_identical=bool(same))


def mean(rows, *keys):
    "Mean over the seeds of the value in each row under the keys."
    values = []
    for row in rows:
        for key in keys: row = row[key]
        values.append(row)
    return statistics.mean(values)


def print_told_apart(noted):
    "AUROC and FPR95 by score."
    print(f"{'':12} {'':14} {'AUROC':^32} {'FPR95':^32}")
    print(f"{'val':12} {'against':14}" + 2 * f"{'confidence':>11}{'energy':>9}{'familiarity':>12} ")
    cross = []
    for name in dict.fromkeys(o['set'] for o in noted['rows']):
        rows = [o for o in noted['rows'] if o['set'] == name]
        for group in rows[0]['apart']['confidence']:
            cells = [mean(rows, 'apart', score, group, number) for number in ('auroc', 'fpr95')
                     for score in ('confidence', 'energy', 'familiarity')]
            print(f'{name:12} {group:14}' + '{:11.3f}{:9.3f}{:12.4f} {:11.3f}{:9.3f}{:12.4f}'.format(*cells))
            if name != 'typology': cross.append(cells[2])
    if cross: print(f'mean AUROC of familiarity over the {len(cross)} cross pairs: {statistics.mean(cross):.4f}')


def print_set(name, rows):
    "The other measurements on a set."
    shares = [o['unfamiliar_in_other_half'] for o in rows]
    print(f"{name}: unfamiliar in the half of val that the table is not from: {statistics.mean(shares):.2%} "
          f"({', '.join(f'{o:.2%}' for o in shares)} by seed)")
    for how in rows[0]['levels']:
        print(f"  not low by {how:20} {mean(rows, 'levels', how, 'shown'):6.1%} of val, "
              f"{mean(rows, 'levels', how, 'ood_shown'):6.1%} of other things")
    for o in rows:
        if 'as_they_came' not in o: continue
        print('  pretrained weights: ' + ', '.join(f"{k} {v['auroc']:.4f}" for k, v in o['as_they_came'].items()))
        for b in o['banks']:
            print(f"  bank of {b['photos']:5} by {b['chosen']:12}: AUROC {b['auroc']:.4f}, FPR95 {b['fpr95']:.3f}")


def print_tables(noted):
    "Means over the seeds."
    print_told_apart(noted)
    for name in dict.fromkeys(o['set'] for o in noted['rows']):
        print_set(name, [o for o in noted['rows'] if o['set'] == name])
    if not (measured := noted.get('latency')): return
    for o in measured['rows']:
        slower = ', '.join(f'{v:.3f} with a bank of {k}' for k, v in o['times_as_slow'].items())
        print(f"{o['photo']}: time of a prediction relative to one without a bank: {slower}")
    print(f"bytes more in model.onnx: {measured['bytes_more']}; predictions bit-identical: "
          f"{measured['answers_bit_identical']}")


def main():
    file, seeds = HERE/'unknown.json', [int(o) for o in os.environ.get('BASEGUN_SEEDS', '').split(';') if o] or SEEDS
    noted = dict(weights=ARCH, bank=MAX_BANK, rows=[])
    with TemporaryDirectory() as folder: noted['latency'] = latency(Path(folder))
    runs = os.environ.get('BASEGUN_RUNS')
    with nullcontext(runs) if runs else TemporaryDirectory() as folder:
        for name in ('typology', *CROSS) if WEIGHTS.is_file() else ():
            for seed in seeds:
                noted['rows'].append(measure(name, seed, trained(name, seed, Path(folder))))
                write_whole(file, json.dumps(noted, indent=1) + '\n')
                print(f'{name}, seed {seed}', flush=True)
    if not WEIGHTS.is_file(): print(f"no real photos at '{REAL}': only the latency was measured. Set BASEGUN_REAL")
    print_tables(noted)


if __name__ == '__main__': main()
