"""Capacity of `serve`: prints a table and writes benchmarks/load.json. It needs `hey` (Debian's package).

EfficientNet-B0 at 224 pixels, photos of 0.5 and 12 megapixels, server and load on one machine over loopback:

- bare: the ONNX session on all cores and the decoding of the photo in a loop, without HTTP, and the same with one
  process per core and one thread each, which no server can exceed;
- ours at 1 to 64 clients, each of which sends the next request as soon as it has its response: photos per second, and
  p50, p95, p99 of those that got a prediction; the others got 503 immediately;
- the same with 64 places: a longer queue instead of refusals;
- the peer: FastAPI with `predict.load` in a thread, a typical server of ten lines;
- overload: requests at four times the rate that the server can handle, and the time of the admitted ones relative to
  those at capacity (as many clients as places).
"""
import csv
import json
import re
import subprocess
import sys
import time
from concurrent.futures import ProcessPoolExecutor
from contextlib import contextmanager, redirect_stderr, redirect_stdout
from io import BytesIO, StringIO
from multiprocessing import get_context
from pathlib import Path
from tempfile import TemporaryDirectory

import numpy as np
from bench import bare_session, exported, scaled_decode

from basegun_fastai.base.processes import cores, say
from basegun_fastai.data.demo import draw_photo

HERE, SECONDS = Path(__file__).parent, 8
COMMAND = str(Path(sys.executable).with_name('basegun-fastai'))
SIZES = {'0.5 MP': (816, 612), '12 MP': (4032, 3024)}
PEER = '''
import sys
from fastapi import FastAPI, Request
from fastapi.concurrency import run_in_threadpool
from basegun_fastai.predict import load
import uvicorn
model, app = load(sys.argv[1]), FastAPI()

@app.post('/predict')
async def predict(request: Request): return await run_in_threadpool(model.get_typology, await request.body())

print('http://127.0.0.1:8790', file=sys.stderr, flush=True)
uvicorn.run(app, port=8790, log_level='error')
'''


def looped(run, threads, content, seconds):
    "Photos per second of session and decoding, without a server."
    session, end, n = bare_session(run, threads), None, -3
    while end is None or time.perf_counter() < end:
        scaled_decode(content, 224)
        session()
        n += 1
        if n == 0: started, end = time.perf_counter(), time.perf_counter() + seconds
    return n / (time.perf_counter() - started)


@contextmanager
def listening(*command):
    "A server, and its address."
    output = dict(stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True)
    with subprocess.Popen([*map(str, command)], **output) as process:
        try:
            url = next(filter(None, (re.search(r'http://[\d.:]+', o) for o in process.stderr)))[0]
            time.sleep(1)
            yield url
        finally: process.terminate()


def asked(url, file, clients, rate=None, apart=1):
    """Results of this number of clients. With a rate they run in `apart` programs, each a little later than the one
    before: the clients of one program all send at the same moment."""
    limit = [] if rate is None else ['-q', str(rate / clients)]
    command = ['hey', '-z', f'{SECONDS}s', '-c', str(clients // apart), *limit, '-m', 'POST', '-D', str(file), '-T',
               'application/octet-stream', '-o', 'csv', f'{url}/predict']
    programs = []
    for _ in range(apart):
        programs.append(subprocess.Popen(command, stdout=subprocess.PIPE, text=True))
        if rate: time.sleep(clients / rate / apart)
    rows = [row for o in programs for row in csv.DictReader(o.communicate()[0].splitlines())]
    times = np.array([[float(o['response-time']), int(o['status-code']), float(o['offset'])] for o in rows])
    right = times[times[:, 1] == 200]
    p50, p95, p99 = (float(np.percentile(right[:, 0], o)) for o in (50, 95, 99))
    took = (times[:, 2] + times[:, 0]).max()
    return dict(clients=clients, photos_a_second=len(right) / took, p50=p50, p95=p95, p99=p99,
                refused=float((times[:, 1] == 503).mean()),
                other=int(np.isin(times[:, 1], (200, 503), invert=True).sum()))


def main():
    rows = []
    with TemporaryDirectory() as folder:
        folder = Path(folder)
        with redirect_stdout(StringIO()), redirect_stderr(StringIO()): run, model = exported('efficientnet_b0', folder)
        (folder/'peer.py').write_text(PEER)
        for name, shape in SIZES.items():
            content = BytesIO()
            draw_photo('revolver', np.random.default_rng(7), shape).save(content, 'JPEG', quality=92)
            file, content = folder/f'{name}.jpg', content.getvalue()
            file.write_bytes(content)
            loop = looped(run, cores(), content, SECONDS)
            with ProcessPoolExecutor(cores(), mp_context=get_context('spawn')) as pool:
                apart = sum(pool.map(looped, *zip(*[(run, 1, content, SECONDS)] * cores(), strict=True)))
            say(f'{name}: bare loop {loop:.1f}, one process per core {apart:.1f} photos per second')
            row = dict(photo=name, bytes=len(content), loop=loop, apart=apart)
            with listening(COMMAND, 'serve', model, '--port', 0) as url:
                row['ours'] = [asked(url, file, o) for o in (1, 2, 4, 8, 16, 64)]
                capacity = asked(url, file, 2 * cores())
                overload = asked(url, file, 64, 4 * capacity['photos_a_second'], 16)
                row |= dict(capacity=capacity, overload=overload)
            with listening(COMMAND, 'serve', model, '--port', 0, '--limit-concurrency', 64) as url:
                row['64 places'] = [asked(url, file, o) for o in (16, 64)]
            with listening(sys.executable, folder/'peer.py', model) as url:
                row['peer'] = [asked(url, file, o) for o in (1, 4, 16, 64)]
            rows.append(row)
            for arm in ('ours', '64 places', 'peer'):
                for o in row[arm]:
                    slow = ' '.join(f'{k} {o[k]:.3f}' for k in ('p50', 'p95', 'p99'))
                    print(f"{name:7} {arm:9} {o['clients']:3} clients {o['photos_a_second']:6.1f} per second, "
                          f"{o['photos_a_second'] / loop:.2f} of the loop, {slow}, refused {o['refused']:.2f}, "
                          f"other {o['other']}", flush=True)
            print(f"{name:7} overload at four times: {overload['photos_a_second'] / loop:.2f} of the loop, p95 "
                  f"{overload['p95'] / capacity['p95']:.2f} times that at capacity, refused {overload['refused']:.2f}, "
                  f"other {overload['other']}", flush=True)
    (HERE/'load.json').write_text(json.dumps(rows, indent=1) + '\n')


if __name__ == '__main__': main()
