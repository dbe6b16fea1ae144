"HEIC files, made by pillow-heif in another process: in one process it clashes with pi-heif, which reads them."
import json
import subprocess
import sys
from io import BytesIO

from PIL import Image

MAKE = """
import base64, json, sys
from io import BytesIO
import pillow_heif
from PIL import Image
images, options = json.load(sys.stdin)
images = [Image.open(BytesIO(base64.b64decode(o))) for o in images]
for o in images: o.load()
options = {k: base64.b64decode(v[0]) if isinstance(v, list) else v for k, v in options.items()}
bits, turns = options.pop('bits', 8), options.pop('turns', None)
if turns:  # HEIF's own way to turn a picture, which pillow-heif makes of EXIF; the EXIF beside it is put back as it was
    exif = Image.Exif()
    exif[274] = turns
    options['exif'] = exif.tobytes()
pillow_heif.options.SAVE_HDR_TO_12_BIT = bits == 12
heif = pillow_heif.from_pillow(images[0])
if bits > 8:
    import numpy as np
    deep = (np.asarray(images[0].convert('RGB')).astype(np.uint16) * 257).tobytes()
    heif = pillow_heif.from_bytes(mode='RGB;16', size=images[0].size, data=deep)
for o in images[1:]: heif.add_from_pillow(o)
out = BytesIO()
heif.save(out, **dict(quality=95, chroma=444) | options)
sys.stdout.buffer.write(out.getvalue())
"""


def heic(*images, **options):
    "Write pictures into one HEIC; bytes among the options are sent as base64."
    from base64 import b64encode
    def png(image):
        out = BytesIO()
        image.save(out, 'PNG')
        return b64encode(out.getvalue()).decode()
    options = {k: v.tobytes() if isinstance(v, Image.Exif) else v for k, v in options.items()}
    options = {k: [b64encode(v).decode()] if isinstance(v, bytes) else v for k, v in options.items()}
    request = json.dumps([[png(o) for o in images], options]).encode()
    done = subprocess.run([sys.executable, '-c', MAKE], input=request, capture_output=True)
    assert done.returncode == 0, done.stderr.decode()
    return done.stdout


def _box(name, *content): return (8 + sum(map(len, content))).to_bytes(4) + name + b''.join(content)
def _full(name, *content, version=0): return _box(name, bytes([version, 0, 0, 0]), *content)


def tiled(tiles, columns, rows, width, height):
    "A picture in tiles, as iPhones write them: `tiles` are HEIC files of one size, whose data become items of a grid."
    def number(value, size=2): return value.to_bytes(size)
    def box_of(content, name):
        at = content.index(name) - 4
        return content[at:at + int.from_bytes(content[at:at + 4])]
    data = [box_of(o, b'mdat')[8:] for o in tiles]
    side = [int.from_bytes(box_of(tiles[0], b'ispe')[o:o + 4]) for o in (12, 16)]
    grid, n = bytes([0, 0, rows - 1, columns - 1]) + number(width) + number(height), len(tiles)
    properties = _box(b'ipco', box_of(tiles[0], b'hvcC'), _full(b'ispe', number(side[0], 4), number(side[1], 4)),
                      _full(b'ispe', number(width, 4), number(height, 4)))
    ties = number(n + 1, 4) + b''.join(number(i + 1) + b'\2\x81\x02' for i in range(n)) + number(n + 1) + b'\1\3'
    def info(i, kind): return _full(b'infe', number(i), number(0), kind, b'\0', version=2)
    items = [info(i + 1, b'hvc1') for i in range(n)] + [info(n + 1, b'grid')]
    brands = _box(b'ftyp', b'heic', bytes(4), b'mif1', b'heic')
    def meta(at):
        places, start = [], at
        for i, o in enumerate([*data, grid]):
            places.append(number(i + 1) + number(0) + number(1) + number(start, 4) + number(len(o), 4))
            start += len(o)
        return _full(b'meta', _full(b'hdlr', bytes(4), b'pict', bytes(13)), _full(b'pitm', number(n + 1)),
                     _full(b'iloc', b'\x44\0', number(n + 1), *places), _full(b'iinf', number(n + 1), *items),
                     _full(b'iref', _box(b'dimg', number(n + 1), number(n), *[number(i + 1) for i in range(n)])),
                     _box(b'iprp', properties, _full(b'ipma', ties)))
    at = len(brands) + len(meta(0)) + 8
    return brands + meta(at) + _box(b'mdat', *data, grid)
