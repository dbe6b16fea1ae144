"""Odd, damaged and hostile photos: each gives pixels or `UnreadablePhoto`, in bounded time and memory.

This file is also the program that decodes them, so that a hang, a crash of a C library or too much memory ends no test.
"""
import base64
import faulthandler
import functools
import os
import re
import signal
import struct
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
from heic import heic, tiled
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from PIL import Image
from profiles import P3, PROFILES, chromaticities, chunk, ink_profile, tagged

from basegun_fastai.data.formats import FORMATS
from basegun_fastai.data.photo import MAX_DECODED, MAX_PIXELS, UnreadablePhoto, pixels, read_photo

pytestmark = pytest.mark.slow

MAX_MEMORY = 5 * 2**28  # that decoding may add: 20 bytes per pixel that is decoded in one step
# per decoding: processor time, twice that of HEIC with 256 tiles on the slowest machine; and elapsed time under load
MAX_SECONDS = dict(ITIMER_PROF=16, ITIMER_REAL=100)
PROPERTIES = ['random bytes', 'bytes behind a header', 'truncated', 'damaged', 'spliced']
NUMBERS = [o.to_bytes(size, order) for size in (2, 4) for order in ('big', 'little')  # at which a size may overflow
           for o in (0, 1, 256**size // 2 - 1, 256**size // 2, 256**size - 1, 20000)]
on_linux = pytest.mark.skipif(not sys.platform.startswith('linux'), reason='only Linux reports the memory of a process')


def saved(image, kind, **options):
    "Encode an image."
    if kind == 'HEIC': return heic(image, **options)
    out = BytesIO()
    image.save(out, kind, **options)
    return out.getvalue()


def noise(*shape, seed=0, most=256, kind=np.uint8):
    "Draw noise, which no format compresses."
    return np.random.default_rng(seed).integers(0, most, shape, dtype=kind)


def tiff(tags, data):
    "Write a TIFF by hand, its directory before its pixels: each tag is a type of integer and its values."
    size = {3: 2, 4: 4, 5: 4}  # bytes; 5 is a fraction, of two integers
    values = {tag: np.atleast_1d(o).astype(f'<u{size[kind]}') for tag, (kind, o) in sorted(tags.items())}
    at = 8 + 2 + 12 * len(values) + 4
    start = at + sum(o.nbytes for o in values.values() if o.nbytes > 4)
    entries, outside = [struct.pack('<4sIH', b'II*\0', 8, len(values))], []
    for tag, value in values.items():
        raw, kind = (value + np.uint32(start if tag in (273, 324) else 0)).astype(value.dtype).tobytes(), tags[tag][0]
        inside = raw if len(raw) <= 4 else struct.pack('<I', at)
        entries.append(struct.pack('<HHI4s', tag, kind, len(value) // (2 if kind == 5 else 1), inside))
        if len(raw) > 4: outside.append(raw)
        at += len(raw) if len(raw) > 4 else 0
    return b''.join([*entries, b'\0\0\0\0', *outside, data])


def strips(width, height, data, *, bits=8, samples=1, compression=1, light=1, more=()):
    "Write a TIFF of one strip."
    return tiff({256: (4, width), 257: (4, height), 258: (3, [bits] * samples), 259: (3, compression), 262: (3, light),
                 273: (4, 0), 277: (3, samples), 278: (4, height), 279: (4, len(data))} | dict(more), data)


def tiles(width, height, side, data, *, compression=8, starts=0):
    "Write a grey TIFF of tiles."
    return tiff({256: (4, width), 257: (4, height), 258: (3, 8), 259: (3, compression), 262: (3, 1), 277: (3, 1),
                 322: (4, side), 323: (4, side), 324: (4, starts), 325: (4, len(data))}, data)


def twelve_bits(levels):
    "Pack samples of 12 bits, as a TIFF has them."
    first, second = levels.reshape(-1, 2).T
    return np.stack([first >> 4, (first << 4 | second >> 8) & 255, second & 255], -1).astype(np.uint8).tobytes()


def png(width, height, bits, colour, row):
    "Write a PNG of equal rows."
    squeeze, some = zlib.compressobj(1), 1 + 2**20 // len(row)
    body = b''.join([squeeze.compress(row * min(some, height - o)) for o in range(0, height, some)]) + squeeze.flush()
    header = struct.pack('>IIBBBBB', width, height, bits, colour, 0, 0, 0)
    return b'\x89PNG\r\n\x1a\n' + chunk(b'IHDR', header) + chunk(b'IDAT', body) + chunk(b'IEND', b'')


def bmp(width, height, runs):
    "Write a run-length encoded BMP."
    header = struct.pack('<2s8xIIIIHHIIIIII', b'BM', 54 + 1024, 40, width, height, 1, 8, 1, len(runs), 0, 0, 256, 0)
    return header + bytes(range(256)) * 4 + runs


def scans(width, height, count):
    "Write a CMYK JPEG of empty scans that claims a size."
    content = saved(Image.new('CMYK', (8, 8)), 'JPEG')
    size, first = content.index(b'\xff\xc0') + 5, content.index(b'\xff\xda')
    names = content[size+5:size+5+3*4:3]
    empty = [b'\xff\xda\0\x08\1%c\0\0\x3f\0' % o for o in names]
    claimed = content[:size] + struct.pack('>HH', height, width) + content[size+4:first]
    return claimed + b''.join(empty) * (count // 4) + b'\xff\xd9'


@functools.cache
def photos():
    "A small noisy photo of each kind that the formats support."
    shape, exif = (60, 90), Image.Exif()
    exif[274], exif[271], exif[282] = 6, 'a maker of cameras', 72.5
    rgb, other, alpha, grey = (Image.fromarray(noise(*shape, *o, seed=i)) for i, o in enumerate([[3], [3], [4], []]))
    deep, single = noise(*shape, most=2**16, kind=np.uint16), noise(*shape, 3).tobytes()
    both, mixed = dict(save_all=True, append_images=[other]), rgb.quantize(64)
    actual = {o: saved(rgb, o) for o in FORMATS}
    actual |= {f'{o} with EXIF': saved(rgb, o, exif=exif) for o in ('JPEG', 'PNG', 'WEBP', 'TIFF', 'AVIF', 'HEIC')}
    actual |= {f'{o} with alpha': saved(alpha, o) for o in ('PNG', 'WEBP', 'TIFF', 'AVIF', 'HEIC')}
    actual |= {f'{o} with a profile': saved(rgb, o, icc_profile=PROFILES['Display P3'][0])
              for o in ('JPEG', 'PNG', 'WEBP', 'TIFF', 'AVIF', 'HEIC')}
    actual |= {f'animated {o}': saved(rgb, o, duration=100, **both) for o in ('GIF', 'WEBP', 'PNG', 'AVIF')}
    actual |= {f'TIFF in {o}': saved(rgb, 'TIFF', compression=o)
              for o in ('tiff_lzw', 'tiff_adobe_deflate', 'jpeg', 'packbits')}
    return actual | {
        'MPO': saved(rgb, 'MPO', exif=exif, **both),
        'progressive JPEG': saved(rgb, 'JPEG', progressive=True, quality=95),
        'JPEG with restarts': saved(rgb, 'JPEG', restart_marker_blocks=3),
        'HEIC of 10 bits': heic(rgb, bits=10),
        'HEIC of two pictures': heic(rgb, other),
        'HEIC in tiles': tiled([heic(Image.fromarray(noise(64, 64, 3, seed=i))) for i in range(2)], 2, 1, 90, 60),
        'CMYK JPEG with a profile': saved(rgb.convert('CMYK'), 'JPEG', icc_profile=ink_profile(
            lambda c, m, y, k: (90 - 60 * k - 20 * c, 40 * m, 40 * y))),
        'PNG with tags of colour': tagged(rgb, chunk(b'gAMA', struct.pack('>I', 55556)), chromaticities(P3)),
        'CMYK JPEG': saved(rgb.convert('CMYK'), 'JPEG'),
        'grey JPEG': saved(grey, 'JPEG', quality=30),
        'palette PNG': saved(mixed, 'PNG', transparency=5),
        'bilevel PNG': saved(grey.convert('1'), 'PNG'),
        'grey and alpha PNG': saved(alpha.convert('LA'), 'PNG'),
        '16-bit PNG': saved(Image.fromarray(deep), 'PNG'),
        'lossless WEBP': saved(rgb, 'WEBP', lossless=True),
        'transparent GIF': saved(mixed, 'GIF', transparency=5),
        'interlaced GIF': saved(mixed, 'GIF', interlace=1),
        'palette BMP': saved(mixed, 'BMP'),
        'RGBA BMP': saved(alpha, 'BMP'),
        'run-length BMP': bmp(90, 60, b'\x5a\x07\0\0' * 60),
        'CMYK TIFF': saved(rgb.convert('CMYK'), 'TIFF'),
        'float TIFF': saved(Image.fromarray(deep.astype(np.float32)), 'TIFF'),
        '16-bit TIFF': saved(Image.fromarray(deep), 'TIFF'),
        '12-bit TIFF': strips(90, 60, twelve_bits(deep >> 4), bits=12),
        'TIFF with its directory first': strips(90, 60, zlib.compress(single), samples=3, compression=8, light=2),
        'tiled TIFF': tiles(90, 60, 96, zlib.compress(noise(96, 96).tobytes()))}


# Of these, both ways decode the same at full size, and only `pixels` then shrinks it: once is enough, except in
# `make soak`.
DECODED_ONCE = () if os.environ.get('BASEGUN_SOAK') else (b'float TIFF', b'HEIC of 256 tiles')


def bombs():
    "The costliest photos for their bytes: as many pixels as are decoded in one step, and claims that are refused."
    def entry(tag, kind, count, value): return struct.pack('<HHQQ', tag, kind, count, value)
    tags = entry(256, 4, 1, 20) * 70_000 + entry(257, 4, 1, 20) + entry(282, 5, 3_000_000, 16 + 8 + 70_002 * 20 + 8)
    side, claimed, floats = isqrt(MAX_DECODED), isqrt(MAX_PIXELS), dict(bits=32, more={339: (3, 3)})
    return {
        'float TIFF': strips(side, side, zlib.compress(bytes(4 * side**2), 1), compression=8, **floats),
        'lossless WEBP': saved(Image.new('RGBA', (side, side)), 'WEBP', lossless=True, method=0),
        'HEIC of 256 tiles': tiled([heic(Image.fromarray(noise(500, 500, 3)), chroma=420, quality=22)] * 256, 16, 16,
                                   side, side),
        'HEIC of too many bytes': tiled([heic(Image.fromarray(noise(500, 500, 3)))] * 256, 16, 16, side, side),
        'HEIC that claims more pixels than it may': tiled([heic(Image.new('RGB', (64, 64)))] * 4, 2, 2, 60_000, 60_000),
        'lossless WEBP with a profile': saved(Image.new('RGBA', (side, side)), 'WEBP', lossless=True, method=0,
                                              icc_profile=PROFILES['Display P3'][0]),
        'JPEG of scans': scans(side, side, 40),
        'JPEG of scans above what is decoded at once': scans(claimed, claimed, 4),
        'JPEG of too many scans': scans(4000, 4000, 20_000),
        'BMP of short runs': bmp(7900, 7900, b'\1\5\0\0' * 7900),
        'BMP of runs without a place': bmp(9, 9, b'\1\5' * 30_000_000),
        'wide BMP': saved(Image.new('RGB', (15_000_000, 1)), 'BMP'),
        'high PNG': png(1, 60_000_000, 8, 6, bytes(5)),
        'TIFF in a tile of 1.6 gigapixels': tiles(64, 64, 40_000, zlib.compress(b'')),
        'TIFF of 2 million tiles': tiles(2000, 2000, 16, bytes(256), compression=1, starts=np.zeros(2_000_000)),
        'TIFF of 3 million fractions': strips(20, 20, bytes(400), more={282: (5, np.ones(6_000_000))}),
        'BigTIFF of 70 thousand tags': struct.pack('<4sHHQQ', b'II+', 8, 0, 16, 70_002) + tags + bytes(8 + 24_000_000)}


def mended(content):
    "Correct the check sums of a PNG's chunks, so that their content is used."
    if not content.startswith(b'\x89PNG\r\n\x1a\n'): return content
    content, at = bytearray(content), 8
    while (end := at + 8 + int.from_bytes(content[at:at+4], 'big')) + 4 <= len(content):
        content[end:end+4] = struct.pack('>I', zlib.crc32(content[at+4:end]))
        at = end + 4
    return bytes(content)


def damaged(content, plan):
    "Damage a photo at some places: the plan has 9 bytes per place."
    content = bytearray(content)
    for kind, neighbours, high, low, size, pick, *new in zip(*[iter(plan)] * 9, strict=True):
        # in headers, in ends, anywhere
        at = (low % 80, -low - 1, high << 8 | low, high << 7 | low)[neighbours % 4] % (len(content) + 1)
        size, new = size % 64 + 1, NUMBERS[new[0] % len(NUMBERS)] if pick % 2 else bytes(new)
        match kind % 8:
            case 0 | 1 | 2: content[at:at+1] = bytes(o ^ 1 << size % 8 for o in content[at:at+1])
            case 3 | 4: content[at:at+len(new)] = new
            case 5: content[at:at] = new
            case 6: del content[at:at+size]
            case 7: content[at:at] = content[at:at+size]
    return bytes(content)


def properties(check):
    "Possible inputs by their name in `PROPERTIES`: the number of examples, and a test of one example."
    known, whole = st.sampled_from(list(photos().values())), functools.cache(decoded)
    place = st.integers(0, 80) | st.integers(-200, -1) | st.integers(0, 2**15)
    plan = st.binary(min_size=9 * 20, max_size=9 * 20)
    def random_bytes(content): check(content)
    def behind(start, size, content): check(mended(start[:size] + content))
    def truncated(content, size):
        actual = check(content[:size % (len(content) + 1)])
        assert isinstance(actual, str) or np.array_equal(actual, whole(content)), 'a part is shown as a whole photo'
    def spoilt(content, count, plan, mend): check((mended if mend else bytes)(damaged(content, plan[:9*count])))
    def spliced(a, b, end, start): check(mended(a[:end % (len(a) + 1)] + b[start % (len(b) + 1):]))
    return dict(zip(PROPERTIES, [
        (300, given(st.binary(max_size=2000))(random_bytes)),
        (800, given(known, st.integers(4, 200), st.binary(max_size=1000))(behind)),
        (1200, given(known, place)(truncated)),
        (2000, given(known, st.integers(1, 20), plan, st.booleans())(spoilt)),
        (700, given(known, known, place, place)(spliced))], strict=True))


def memory(field):
    "Memory of this process in bytes; `getrusage` also counts that of its parent process."
    return int(re.search(rf'{field}:\s+(\d+) kB', Path('/proc/self/status').read_text())[1]) << 10


def decoded(source, both=True):
    "Decode a photo, or decode it in both ways, and return the pixels or the reason from the first."
    actual = []
    for decode in (lambda: pixels(source, 64), lambda: read_photo(source))[:2 if both else 1]:
        for timer, seconds in MAX_SECONDS.items(): signal.setitimer(getattr(signal, timer), seconds)
        try: actual.append(decode())
        except UnreadablePhoto as error:
            assert error.reason.strip() and not isinstance(error.__cause__, MemoryError), error
            actual.append(error.reason)
    square, photo = actual[0], actual[-1]
    assert isinstance(square, str) or (square.shape, square.dtype) == ((64, 64, 3), np.uint8)
    assert not both or isinstance(photo, str) or photo.mode == 'RGB'
    return square


def main(last, what, part=1):
    "Decode inputs, one in `part`, within the bounds; the file `last` holds the current one."
    import resource
    faulthandler.enable()
    warnings.simplefilter('ignore')
    examples, held = properties(lambda o: check(o)).get(what), memory('VmRSS')
    room = memory('VmSize') + 2**31
    resource.setrlimit(resource.RLIMIT_AS, (room, room))

    def check(source):
        Path(last).write_bytes(base64.b64encode(source) if isinstance(source, bytes) else os.fsencode(source))
        same = os.fsencode(source) if isinstance(source, str) else b''
        actual = decoded(source, both=not os.path.basename(same).startswith(DECODED_ONCE))
        for timer in MAX_SECONDS: signal.setitimer(getattr(signal, timer), 0)
        if memory('VmHWM') - held > MAX_MEMORY:  # the peak stays, so hypothesis cannot simplify the example
            print(f'it took {memory("VmHWM") - held >> 20} MiB', flush=True)
            os._exit(1)
        return actual

    if examples:
        number, test = examples
        settings(max_examples=number // int(part), deadline=None, derandomize=True, database=None,
                 suppress_health_check=list(HealthCheck))(test)()
    else:
        paths = [os.path.join(folder, o) for folder, _, names in os.walk(what) for o in sorted(names)]
        if not paths: sys.exit('the folder has no files')
        reasons = Counter(o if isinstance(o, str) else 'read' for o in map(check, paths))
        for reason, count in reasons.most_common(30): print(f'{count:8} {reason}')
    print(f'{memory("VmHWM") - held >> 20} MiB at most')


def outcome(folder, what, part=1):
    "Run this file as a program to its end; if it fails, show the photo, in base 64 or by its name."
    last = folder/'last'
    last.touch()
    command = [sys.executable, __file__, last, what, str(part)]
    environment = os.environ | dict(PYTHONPATH=os.pathsep.join(filter(None,
        [str(Path(__file__).parents[1]), os.environ.get('PYTHONPATH')])))
    ended = subprocess.run(command, capture_output=True, text=True, errors='replace', env=environment)
    text = f'{ended.stdout[-3000:]}\n{ended.stderr[-3000:]}'
    if ended.returncode: pytest.fail(f'exit {ended.returncode} at {last.read_text(errors="replace")}\n{text}')
    print(ended.stdout)
    return ended.stdout


@on_linux
@pytest.mark.soak
@pytest.mark.parametrize('what', PROPERTIES)
def test_whatever_comes_in_pixels_or_a_reason_come_out(what, tmp_path):
    from conftest import soak  # the program does not need it
    part = soak(4, 1)
    outcome(tmp_path, what, part)


@on_linux
@pytest.mark.soak
def test_the_costliest_photos_are_bounded(tmp_path):
    (tmp_path/'bombs').mkdir()
    for name, content in bombs().items(): (tmp_path/'bombs'/name).write_bytes(content)
    result = outcome(tmp_path, tmp_path/'bombs')
    for answer in ('5 read', '1 it is HEIC of 168 MiB', '1 it has 60000 × 60000', '2 it is a BMP with run-length',
                   '2 its tags', '1 it has too many tags or directories of tags: directory 1 has 70002 tags',
                   '1 its tiles', '1 it has several scans', '1 it has 20000 scans', '1 its longest side has 15000000',
                   '1 its longest side has 60000000'):
        assert f'  {answer}' in result


@on_linux
@pytest.mark.skipif(not os.environ.get('BASEGUN_ODD_PHOTOS'),
                    reason='BASEGUN_ODD_PHOTOS=<folder> decodes every file in that folder')
def test_a_folder_of_odd_files(tmp_path): outcome(tmp_path, Path(os.environ['BASEGUN_ODD_PHOTOS']).absolute())


@pytest.mark.parametrize('kind', list(photos()))
def test_every_kind_of_photo_is_read(kind):
    if kind != 'run-length BMP': assert pixels(photos()[kind], 64).shape == (64, 64, 3)
    else:
        with pytest.raises(UnreadablePhoto, match='run-length'): pixels(photos()[kind], 64)


@pytest.mark.filterwarnings('ignore:Corrupt EXIF')
@pytest.mark.parametrize('part', [.3, .5, .9])
@pytest.mark.parametrize('kind', list(photos()))
def test_a_truncated_photo_is_an_error(kind, part):
    content = photos()[kind]
    if kind in ('MPO', 'animated GIF', 'animated PNG'):
        content = content[:len(content) // 2]  # the first of two photos is complete without the second
    with pytest.raises(UnreadablePhoto) as actual: pixels(content[:round(len(content) * part)], 64)
    assert actual.value.reason


if __name__ == '__main__': main(*sys.argv[1:])
