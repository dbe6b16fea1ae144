"""Odd, damaged and hostile photos: pixels or `UnreadablePhoto` comes out of each, in bounded time and memory.

The photos are decoded by this same file as a program, which a hang, a crash of a C library or a claim of memory may end.
"""
import base64
import faulthandler
import functools
import os
import re
import signal
import subprocess
import sys
import warnings
import zlib
from collections import Counter
from io import BytesIO
from math import isqrt
from pathlib import Path

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from PIL import Image

from basegun_fastai.photo import FORMATS, MOST_DECODED, MOST_PIXELS, UnreadablePhoto, pixels, read_photo

MOST_MEMORY = 2**30  # that decoding may add to what the process holds
MOST_SECONDS = dict(ITIMER_PROF=10, ITIMER_REAL=100)  # of the processor, and by the clock of a machine with other work
PROPERTIES = ['random bytes', 'bytes behind a beginning', 'truncated', 'damaged', 'spliced']
NUMBERS = [o.to_bytes(size, order) for size in (2, 4) for order in ('big', 'little')  # that a claim of a size may overflow at
           for o in (0, 1, 256**size // 2 - 1, 256**size // 2, 256**size - 1, 20000)]
on_linux = pytest.mark.skipif(not sys.platform.startswith('linux'), reason='it asks Linux how much memory a process took')


def saved(image, kind, **options):
    "Encode an image."
    out = BytesIO()
    image.save(out, kind, **options)
    return out.getvalue()


def noise(*shape, seed=0, most=256, kind=np.uint8): return np.random.default_rng(seed).integers(0, most, shape, dtype=kind)


def tiff(tags, data):
    "Write a TIFF by hand, its directory before its pixels: each tag is a type, and integers or bytes."
    codes = {1: 'B', 2: 'B', 3: 'H', 4: 'I', 5: 'I', 7: 'B'}
    values = {tag: (kind, np.array(list(o) if isinstance(o, list | bytes) else [o], f'<u{dict(B=1, H=2, I=4)[codes[kind]]}'))
              for tag, (kind, o) in sorted(tags.items())}
    at = 8 + 2 + 12 * len(values) + 4
    start = at + sum(o.nbytes for _, o in values.values() if o.nbytes > 4)
    entries = outside = b''
    for tag, (kind, value) in values.items():
        raw = (value + start if tag in (273, 324) else value).astype(value.dtype).tobytes()
        count = len(value) // 2 if kind == 5 else len(value)
        entries += np.array([tag, kind], '<u2').tobytes() + np.array(count, '<u4').tobytes()
        if len(raw) > 4:
            entries += np.array(at + len(outside), '<u4').tobytes()
            outside += raw
        else: entries += raw.ljust(4, b'\0')
    return b'II*\0\x08\0\0\0' + np.array(len(values), '<u2').tobytes() + entries + b'\0\0\0\0' + outside + data


def strips(width, height, data, *, bits=8, samples=1, compression=1, light=1, **more):
    "Write a TIFF of one strip."
    return tiff({256: (4, width), 257: (4, height), 258: (3, [bits] * samples), 259: (3, compression), 262: (3, light), 273: (4, 0),
                 277: (3, samples), 278: (4, height), 279: (4, len(data))} | {int(k[1:]): o for k, o in more.items()}, data)


def tiles(width, height, side, data, compression=8):
    "Write a grey TIFF of one tile."
    return tiff({256: (4, width), 257: (4, height), 258: (3, 8), 259: (3, compression), 262: (3, 1), 277: (3, 1), 322: (4, side),
                 323: (4, side), 324: (4, 0), 325: (4, len(data))}, data)


def twelve_bits(levels):
    "Pack samples of 12 bits, as a TIFF has them."
    pairs = levels.reshape(-1, 2)
    return np.stack([pairs[:, 0] >> 4, (pairs[:, 0] << 4 | pairs[:, 1] >> 8) & 255, pairs[:, 1] & 255], -1).astype(np.uint8).tobytes()


def chunk(name, body): return len(body).to_bytes(4, 'big') + name + body + zlib.crc32(name + body).to_bytes(4, 'big')


def png(width, height, bits, colour, row):
    "Write a PNG of equal rows."
    squeeze = zlib.compressobj(1)
    body = b''.join([squeeze.compress(row) for _ in range(height)] + [squeeze.flush()])
    header = width.to_bytes(4, 'big') + height.to_bytes(4, 'big') + bytes([bits, colour, 0, 0, 0])
    return b'\x89PNG\r\n\x1a\n' + chunk(b'IHDR', header) + chunk(b'IDAT', body) + chunk(b'IEND', b'')


def bmp(width, height, data):
    "Write a run-length encoded BMP."
    numbers = np.array([54 + 1024, 40, width, height, 1 | 8 << 16, 1, len(data), 0, 0, 256, 0], '<u4').tobytes()
    return b'BM\0\0\0\0\0\0\0\0' + numbers + bytes(range(256)) * 4 + data


@functools.cache
def photos():
    "A small noisy photo of each kind that the formats can hold."
    shape, exif = (60, 90), Image.Exif()
    exif[274], exif[271], exif[282] = 6, 'a maker of cameras', 72.5
    rgb, other = Image.fromarray(noise(*shape, 3)), Image.fromarray(noise(*shape, 3, seed=1))
    alpha, grey = Image.fromarray(noise(*shape, 4)), Image.fromarray(noise(*shape))
    deep = Image.fromarray(noise(*shape, most=2**16, kind=np.uint16))
    both, mixed = dict(save_all=True, append_images=[other]), rgb.quantize(64)
    found = {o: saved(rgb, o) for o in FORMATS} | {f'{o} with EXIF': saved(rgb, o, exif=exif) for o in FORMATS if o not in ('GIF', 'BMP')}
    found |= {f'animated {o}': saved(rgb, o, duration=100, **both) for o in ('GIF', 'WEBP', 'PNG', 'AVIF')}
    found |= {f'{o} with alpha': saved(alpha, o) for o in ('PNG', 'WEBP', 'TIFF', 'AVIF')}
    found |= {f'TIFF {o}': saved(rgb, 'TIFF', compression=o) for o in ('tiff_lzw', 'tiff_adobe_deflate', 'jpeg', 'packbits')}
    return found | {
        'MPO': saved(rgb, 'MPO', exif=exif, **both), 'progressive JPEG': saved(rgb, 'JPEG', progressive=True, quality=95),
        'CMYK JPEG': saved(rgb.convert('CMYK'), 'JPEG'), 'grey JPEG': saved(grey, 'JPEG', quality=30),
        'JPEG with restarts': saved(rgb, 'JPEG', restart_marker_blocks=3), 'palette PNG': saved(mixed, 'PNG', transparency=5),
        '16-bit PNG': saved(deep, 'PNG'), 'bilevel PNG': saved(grey.convert('1'), 'PNG'), 'grey and alpha PNG': saved(alpha.convert('LA'), 'PNG'),
        'transparent GIF': saved(mixed, 'GIF', transparency=5), 'interlaced GIF': saved(mixed, 'GIF', interlace=1),
        'palette BMP': saved(mixed, 'BMP'), 'RGBA BMP': saved(alpha, 'BMP'), 'run-length BMP': bmp(90, 60, b'\x5a\x07\0\0' * 59 + b'\x5a\x07\0\1'),
        '16-bit TIFF': saved(deep, 'TIFF'), 'float TIFF': saved(Image.fromarray(noise(*shape).astype(np.float32)), 'TIFF'),
        '12-bit TIFF': strips(90, 60, twelve_bits(noise(*shape, most=4096, kind=np.uint16)), bits=12),
        'deflated TIFF with its directory first': strips(90, 60, zlib.compress(noise(*shape, 3).tobytes()), samples=3, compression=8, light=2),
        'tiled TIFF': tiles(90, 60, 96, zlib.compress(noise(96, 96).tobytes())),
        'lossless WEBP': saved(rgb, 'WEBP', lossless=True), 'CMYK TIFF': saved(rgb.convert('CMYK'), 'TIFF')}


def bombs():
    "Small files that cost the most: photos of as many pixels as are decoded, and claims that cannot be true."
    side = isqrt(MOST_DECODED)
    def squeezed(size): return zlib.compress(bytes(size), 1)
    def jpeg(*size, kind='RGB', **options): return saved(Image.new(kind, size), 'JPEG', **options)
    def scans(width, height, count):
        content = jpeg(width, height)
        return content[:content.index(b'\xff\xda')] + b'\xff\xda\0\x08\1\1\0\0\x3f\0' * count + b'\xff\xd9'
    return {
        'RGBA PNG': png(side, side, 8, 6, bytes(1 + 4 * side)), 'grey and alpha PNG': png(side, side, 8, 4, bytes(1 + 2 * side)),
        '16-bit PNG': png(side, side, 16, 0, bytes(1 + 2 * side)),
        'float TIFF': strips(side, side, squeezed(4 * side**2), bits=32, compression=8, _339=(3, 3)),
        'lossy WEBP': saved(Image.new('RGB', (side, side)), 'WEBP', method=0),
        'RGBA AVIF': saved(Image.new('RGBA', (side, side)), 'AVIF', speed=10, subsampling='4:4:4'),
        'progressive JPEG': jpeg(side, side, kind='CMYK', progressive=True),
        'progressive JPEG above what is decoded': jpeg(isqrt(MOST_PIXELS), isqrt(MOST_PIXELS), progressive=True, subsampling=0),
        'JPEG of many empty scans': scans(8000, 8000, 2000), 'JPEG of many empty scans above what is decoded': scans(15000, 15000, 50),
        'BMP of short runs': bmp(8000, 8000, b'\1\5\0\0' * 8000), 'BMP of empty runs': bmp(10, 10, b'\x0a\5' + b'\1\5' * 15_000_000),
        'wide BMP': saved(Image.new('RGB', (15_000_000, 1)), 'BMP'), 'high PNG': png(1, 60_000_000, 8, 6, bytes(5)),
        'TIFF in a tile of 1.6 gigapixels': tiles(64, 64, 40_000, squeezed(100)),
        'TIFF of a million tiles': tiff({256: (4, 2000), 257: (4, 2000), 258: (3, 8), 259: (3, 1), 262: (3, 1), 277: (3, 1),
                                         322: (4, 16), 323: (4, 16), 324: (4, [0] * 2_000_000), 325: (4, 256)}, bytes(999)),
        'TIFF of a million fractions': strips(20, 20, bytes(400), _282=(5, [1, 3] * 3_000_000))}


def mended(content):
    "Give a PNG's chunks the check sums that they should have, so that what they say is believed."
    if not content.startswith(b'\x89PNG\r\n\x1a\n'): return content
    content, at = bytearray(content), 8
    while at + 12 <= len(content):
        end = at + 8 + int.from_bytes(content[at:at+4], 'big')
        if end + 4 > len(content): break
        content[end:end+4] = zlib.crc32(content[at+4:end]).to_bytes(4, 'big')
        at = end + 4
    return bytes(content)


def damaged(content, plan):
    "Damage a photo at some places: the plan has 9 bytes for each."
    content = bytearray(content)
    for kind, near, high, low, size, *new in zip(*[iter(plan)] * 9, strict=False):
        at = (low % 80, -low - 1, high << 8 | low, high << 7 | low >> 1)[near % 4] % (len(content) + 1)  # headers are at the ends
        size, new = size % 64 + 1, NUMBERS[new[1] % len(NUMBERS)] if new[0] % 2 else bytes(new)
        match kind % 8:
            case 0 | 1 | 2: content[at:at+1] = bytes(o ^ 1 << size % 8 for o in content[at:at+1])
            case 3 | 4: content[at:at+len(new)] = new
            case 5: content[at:at] = new
            case 6: del content[at:at+size]
            case 7: content[at:at] = content[at:at+size]
    return bytes(content)


def properties(check):
    "What may come in as a photo, by its name in `PROPERTIES`."
    whole, known = {}, list(photos().values())
    known_ones = st.sampled_from(known)
    place = st.integers(0, 80) | st.integers(-200, -1) | st.integers(0, 2**15)
    plan = st.binary(min_size=180, max_size=180)
    def random_bytes(content): check(content)
    def behind(start, size, content): check(mended(start[:size] + content))
    def truncated(content, size):
        size %= len(content) + 1
        if content not in whole: whole[content] = pixels(content, 64)
        found = check(content[:size])
        assert found is None or (found == whole[content]).all(), f'what is left at {size} bytes is shown as if it were the photo'
    def spoilt(content, count, plan, believed): check((mended if believed else bytes)(damaged(content, plan[:9*count])))
    def spliced(a, b, end, start): check(mended(a[:end % (len(a) + 1)] + b[start % (len(b) + 1):]))
    return dict(zip(PROPERTIES, [
        (300, given(st.binary(max_size=2000))(random_bytes)),
        (800, given(known_ones, st.integers(4, 200), st.binary(max_size=1000))(behind)),
        (1500, given(known_ones, st.integers(-40, -1) | st.integers(0, 2**15))(truncated)),
        (2500, given(known_ones, st.integers(1, 20), plan, st.booleans())(spoilt)),
        (700, given(known_ones, known_ones, place, place)(spliced))], strict=True))


def memory(field):
    "Ask how much memory this process has, in bytes; `getrusage` would tell the most of the process that started it, too."
    return int(re.search(rf'{field}:\s+(\d+) kB', Path('/proc/self/status').read_text())[1]) << 10


def decoded(source):
    "Decode a photo in both ways; none where it is an error with a reason."
    found = []
    for decode in (lambda: pixels(source, 64), lambda: np.asarray(read_photo(source))):
        try: found.append(decode())
        except UnreadablePhoto as error:
            assert error.reason.strip() and not isinstance(error.__cause__, MemoryError), f'the reason is {error.reason!r}'
        else: assert found[-1].dtype == np.uint8 and found[-1].ndim == 3 and found[-1].shape[2] == 3
    assert len(found) < 2 or found[0].shape == (64, 64, 3)
    return found[0] if len(found) == 2 else None


def main(last, what, most=None):
    "Decode what comes in within the bounds, and keep in the file `last` what is being decoded."
    import resource
    faulthandler.enable()
    warnings.simplefilter('ignore')
    todo, start = None if what not in PROPERTIES else properties(lambda o: check(o))[what], memory('VmRSS')
    size = memory('VmSize') + 2 * MOST_MEMORY
    resource.setrlimit(resource.RLIMIT_AS, (size, size))

    def check(source):
        Path(last).write_bytes(base64.b64encode(source) if isinstance(source, bytes) else os.fsencode(source))
        for timer, seconds in MOST_SECONDS.items(): signal.setitimer(getattr(signal, timer), seconds)
        found = decoded(source)
        for timer in MOST_SECONDS: signal.setitimer(getattr(signal, timer), 0)
        taken = memory('VmHWM') - start
        if taken > MOST_MEMORY:  # once taken it stays the most, so there is no other example to look for
            print(f'{taken >> 20} MiB were taken')
            sys.stdout.flush()
            os._exit(1)
        return found

    if todo:
        examples, given_test = todo
        settings(max_examples=int(most or examples), deadline=None, derandomize=True, database=None,
                 suppress_health_check=list(HealthCheck))(given_test)()
    else:
        reasons, read = Counter(), 0
        for folder, _, names in os.walk(what):
            for name in sorted(names):
                if check(os.path.join(folder, name)) is not None: read += 1
                else: reasons['refused'] += 1
        print(f'{read} read, {reasons["refused"]} refused')
    print(f'{memory("VmHWM") - start >> 20} MiB were taken at most')


def outcome(folder, what):
    "Run this file as a program to its end, and show the photo that ended it."
    last = folder/'last'
    ended = subprocess.run([sys.executable, '-P', __file__, str(last), what], capture_output=True, text=True, errors='replace')
    if ended.returncode: pytest.fail(f"it ended with {ended.returncode} at:\n{last.read_text(errors='replace') if last.exists() else ''}\n"
                                     f'{ended.stdout[-3000:]}\n{ended.stderr[-3000:]}')
    return ended.stdout


@on_linux
@pytest.mark.parametrize('what', PROPERTIES)
def test_whatever_comes_in_pixels_or_a_reason_come_out(what, tmp_path): print(outcome(tmp_path, what))


if __name__ == '__main__': main(*sys.argv[1:])
