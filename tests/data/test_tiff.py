"Every kind of TIFF is read correctly or refused by name, never with wrong levels."
import struct
import zlib
from io import BytesIO
from itertools import product

import numpy as np
import pytest
from PIL import Image

from basegun_fastai.data.photo import UnreadablePhoto, read_photo

WHITE_IS_ZERO, BLACK_IS_ZERO, RGB, CMYK = 0, 1, 2, 5
UNSIGNED, SIGNED, FLOAT, VOID = 1, 2, 3, 4
RAW, DEFLATE, PACKBITS = 1, 8, 32773
HEIGHT, WIDTH = 8, 16
COLOURS = {RGB: 3, CMYK: 4}
COMPRESS = {RAW: bytes, DEFLATE: zlib.compress,
            PACKBITS: lambda o: b''.join(bytes([len(o[i:i+100]) - 1]) + o[i:i+100] for i in range(0, len(o), 100))}


def file(fields, content, order, big=False):
    "Write a TIFF, or a BigTIFF, of one strip by hand."
    number, entry, size = ('Q', 'HHQ', 8) if big else ('I', 'HHI', 4)
    head = (b'II' if order == '<' else b'MM') + (struct.pack(order + 'HHHQQ', 43, 8, 0, 16, len(fields)) if big else
                                                 struct.pack(order + 'HIH', 42, 8, len(fields)))
    at = len(head) + len(fields) * (4 + 2 * size) + size
    start = at + sum(2 * len(o) for o in fields.values() if 2 * len(o) > size)
    outside = b''
    for tag, values in sorted(fields.items()):
        kind = 'I' if tag == 273 else 'H'
        numbers = struct.pack(f'{order}{len(values)}{kind}', *[start if tag == 273 else o for o in values])
        inside = numbers.ljust(size, b'\0')
        if len(numbers) > size:
            inside = struct.pack(order + number, at + len(outside))
            outside += numbers
        head += struct.pack(order + entry, tag, 4 if tag == 273 else 3, len(values)) + inside
    return head + bytes(size) + outside + content


def packed(levels, bits, kind, order):
    if bits in (8, 16, 32): return levels.astype(f"{order if bits > 8 else '|'}{'uuifu'[kind]}{bits // 8}").tobytes()
    rows = [''.join(f'{o:0{bits}b}' for o in row) for row in levels.reshape(HEIGHT, -1).tolist()]
    return b''.join(int(o.ljust(-(-len(o) // 8) * 8, '0'), 2).to_bytes(-(-len(o) // 8)) for o in rows)


def ramp(light, bits, kind, order='<', compression=RAW, fill=1, alpha=None, big=False):
    "A TIFF from the lowest level to the highest, and the levels that a person sees."
    share = np.linspace(0, 1, HEIGHT * WIDTH).reshape(HEIGHT, WIDTH)
    most = {FLOAT: 1, SIGNED: 2 ** (bits - 1) - 1}.get(kind, 2 ** bits - 1)
    levels = share if kind == FLOAT else np.array([[min(most, round(o * most)) for o in row] for row in share.tolist()])
    # CMYK has only black ink
    planes = [levels * (light != CMYK or i == 3) for i in range(COLOURS.get(light, 1))]
    if alpha is not None: planes.append(levels * 0 + most)
    content = packed(np.stack(planes, -1), bits, kind, order)
    if fill == 2: content = bytes(int(f'{o:08b}'[::-1], 2) for o in content)
    content = COMPRESS[compression](content)
    fields = {256: [WIDTH], 257: [HEIGHT], 258: [bits] * len(planes), 259: [compression], 266: [fill], 273: [0],
              277: [len(planes)], 278: [HEIGHT], 279: [len(content)], 339: [kind] * len(planes)}
    if light is not None: fields[262] = [light]
    if alpha is not None: fields[338] = [alpha]
    grey = levels / most * 255
    return file(fields, content, order, big), 255 - grey if light in (WHITE_IS_ZERO, CMYK) else grey


KINDS = [o for o in product((None, WHITE_IS_ZERO, BLACK_IS_ZERO, RGB, CMYK), (1, 2, 4, 6, 8, 10, 12, 14, 16, 32),
                            (UNSIGNED, SIGNED, FLOAT, VOID)) if o[1] >= (1, 1, 8, 16, 8)[o[2]]]
LAYOUTS = list(product('<>', (RAW, DEFLATE, PACKBITS), (1, 2), (None, 0, 1, 2)))
READ = ({(light, bits, UNSIGNED) for light in (WHITE_IS_ZERO, BLACK_IS_ZERO) for bits in (1, 2, 4, 8, 12, 16, 32)}
        | {(light, 32, FLOAT) for light in (WHITE_IS_ZERO, BLACK_IS_ZERO)}
        | {(light, bits, UNSIGNED) for light in (RGB, CMYK) for bits in (8, 16)})


@pytest.mark.filterwarnings('ignore')
@pytest.mark.parametrize('light, bits, kind', KINDS)
def test_a_kind_is_read_rightly_or_refused(light, bits, kind):
    right = set()
    for order, compression, fill, alpha in LAYOUTS:
        if fill == 2 and compression != RAW: continue
        content, wanted = ramp(light, bits, kind, order, compression, fill, alpha)
        try: levels = np.asarray(read_photo(content)).astype(float)
        except UnreadablePhoto as err:
            assert 'it is a TIFF of an unsupported kind (' in err.reason and f'bits {bits}' in err.reason
            continue
        assert np.abs(levels - wanted[..., None]).max() <= 1.01, (order, compression, fill, alpha)
        right.add((order, compression, fill, alpha))
    assert (('<', RAW, 1, None) in right) == ((light, bits, kind) in READ)
    if bits in (8, 16) and right: assert {(o, c, 1, None) for o in '<>' for c in COMPRESS} <= right


@pytest.mark.parametrize('light, bits', [(WHITE_IS_ZERO, 8), (WHITE_IS_ZERO, 16), (BLACK_IS_ZERO, 16), (RGB, 16)])
def test_a_big_tiff_is_read_as_a_small_one(light, bits):
    assert read_photo(ramp(light, bits, UNSIGNED, big=True)[0]) == read_photo(ramp(light, bits, UNSIGNED)[0])
    with pytest.raises(UnreadablePhoto, match='a big-endian BigTIFF: save it as PNG'):
        read_photo(ramp(light, bits, UNSIGNED, '>', big=True)[0])


def test_what_a_tiff_is_comes_before_what_can_be_done():
    with pytest.raises(UnreadablePhoto) as error: read_photo(ramp(None, 16, SIGNED, '>')[0])
    assert error.value.reason == ('it is a TIFF of an unsupported kind (bits 16, samples 1, sample format 2): '
                                  'save it as PNG')
    content = BytesIO()
    Image.fromarray(np.linspace(0, 10**5, 64).astype(np.int32).reshape(8, 8)).save(content, 'TIFF')
    with pytest.raises(UnreadablePhoto, match='photometric interpretation 1, bits 32, sample format 2'):
        read_photo(content.getvalue())
