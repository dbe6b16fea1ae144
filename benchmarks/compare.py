"""Which model to ship: whole trainings of several networks on real photos, compared by `compare`, exports timed.

The folder of photos comes from BASEGUN_REAL (default: ../shared/real beside the checkout); if it is missing, nothing is
measured. Six runs of real firearms (typology) and three of ants and bees: `tf_efficientnet_lite0` with ImageNet weights
at 224 and 160 pixels, with several seeds, and a tiny network from random weights. Each run is exported. `compare` ranks
them, three times, because its milliseconds should repeat. BASEGUN_RUNS=FOLDER keeps the runs, and trains only those
that are not in it; BASEGUN_SETS="hymenoptera" measures a part. Prints the tables and writes compare.json, from which
the chapter `Which model to ship` is drawn. A training takes 2 to 5 minutes on two cores.
"""
import json
import os
from contextlib import nullcontext, redirect_stderr, redirect_stdout
from io import StringIO
from pathlib import Path
from tempfile import TemporaryDirectory

from basegun_fastai.base.files import write_whole
from basegun_fastai.compare import compare
from basegun_fastai.export import export
from basegun_fastai.train import train

HERE = Path(__file__).parent
REAL = Path(os.environ.get('BASEGUN_REAL') or HERE.parents[1]/'shared'/'real')
NOTED, ARCH = HERE/'compare.json', 'tf_efficientnet_lite0'
WEIGHTS = REAL/'weights'/f'{ARCH}.safetensors'
LITE = dict(arch=ARCH, weights=str(WEIGHTS))
TINY = dict(arch='test_efficientnet', weights='none', fine_tune_epochs=15)
RUNS = {  # by set, then by name
    'typology': {'lite0_224_1': LITE | dict(seed=1), 'lite0_224_2': LITE | dict(seed=2),
                 'lite0_224_3': LITE | dict(seed=3), 'lite0_160_1': LITE | dict(seed=1, size=160),
                 'lite0_160_2': LITE | dict(seed=2, size=160), 'tiny_160': TINY | dict(seed=1, size=160)},
    'hymenoptera': {'lite0_224_1': LITE | dict(seed=1), 'lite0_224_2': LITE | dict(seed=2),
                    'lite0_160_1': LITE | dict(seed=1, size=160)},
}


def ranked(name, folder):
    "Train what is missing, and return what `compare` says, and the milliseconds of each of three calls."
    with redirect_stdout(StringIO()), redirect_stderr(StringIO()):
        for run, options in RUNS[name].items():
            if not (folder/run).exists():
                train(REAL/name, out=folder, name=run, batch_size=32, skip_unreadable=True, workers=0, no_report=True,
                      **options)
            if not (folder/run/'exported').exists(): export(folder/run)
    calls = []
    for _ in range(3):
        with redirect_stdout(StringIO()) as out, redirect_stderr(StringIO()):
            compare([folder/o for o in RUNS[name]], json=True)
        calls.append(json.loads(out.getvalue()))
    compare([folder/o for o in RUNS[name]], out=folder/'compare.html')
    numbers = {k: calls[0][k] for k in ('reason', 'seeds', 'runs')}
    for o in numbers['runs']:
        del o['path']
        o['milliseconds_of_calls'] = [row['milliseconds'] for call in calls for row in call['runs']
                                      if row['run'] == o['run']]
    return numbers


def main():
    if not WEIGHTS.is_file():
        return print(f"no real photos and weights at '{REAL}': nothing is measured. Set BASEGUN_REAL to their folder")
    for name in (os.environ.get('BASEGUN_SETS') or ';'.join(RUNS)).split(';'):
        kept = os.environ.get('BASEGUN_RUNS')
        with nullcontext(kept) if kept else TemporaryDirectory() as folder: numbers = ranked(name, Path(folder)/name)
        noted = json.loads(NOTED.read_text()) if NOTED.exists() else {}
        write_whole(NOTED, json.dumps(noted | {name: numbers}, indent=1) + '\n')
        for o in numbers['runs']: print(o['run'], [round(t, 1) for t in o['milliseconds_of_calls']])


if __name__ == '__main__': main()
