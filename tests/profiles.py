"Colour profiles, made number by number as ICC.1 specifies them: none is copied."
import struct
import zlib
from io import BytesIO

import numpy as np

D50, D65 = np.array([.9642, 1, .8249]), (.3127, .3290)
SRGB, P3, ADOBE = [np.array(o) for o in (((.64, .33), (.30, .60), (.15, .06)),
                                         ((.680, .320), (.265, .690), (.150, .060)),
                                         ((.64, .33), (.21, .71), (.15, .06)))]
PATCHES = ((200, 60, 40), (60, 160, 60), (110, 75, 50))
BRADFORD = np.array([[.8951, .2664, -.1614], [-.7502, 1.7135, .0367], [.0389, -.0685, 1.0296]])


def _fixed(*numbers): return struct.pack(f'>{len(numbers)}i', *[round(float(o) * 65536) for o in numbers])
def _xyz(*numbers): return b'XYZ ' + bytes(4) + _fixed(*numbers)
def _text(words):
    return b'mluc' + bytes(4) + struct.pack('>II2s2sII', 1, 12, b'en', b'US', 2 * len(words),
                                            28) + words.encode('utf-16-be')
def _gamma(power): return b'para' + bytes(4) + struct.pack('>HH', 0, 0) + _fixed(power)
SRGB_CURVE = b'para' + bytes(4) + struct.pack('>HH', 3, 0) + _fixed(2.4, 1 / 1.055, .055 / 1.055, 1 / 12.92, .04045)


def profile(kind, colours, connection, tags):
    "A profile of class `kind`, with the given colour and connection spaces."
    tags = {b'desc': _text('made by a test'), b'cprt': _text('none'), b'wtpt': _xyz(*D50), **tags}
    at, table, body = 132 + 12 * len(tags), struct.pack('>I', len(tags)), b''
    for name, content in tags.items():
        content += bytes(-len(content) % 4)
        table += name + struct.pack('>II', at + len(body), len(content))
        body += content
    head = struct.pack('>I4sI4s4s4s12s4s', at + len(body), b'lcms', 0x04300000, kind, colours, connection, bytes(12),
                       b'acsp')
    head += bytes(64 - len(head)) + struct.pack('>I', 0) + _fixed(*D50)
    return head + bytes(128 - len(head)) + table + body


def to_xyz(primaries, white=D65):
    "The matrix from light in these primaries to XYZ under D50."
    def xyz(x, y): return np.array([x / y, 1, (1 - x - y) / y])
    columns = np.stack([xyz(*o) for o in primaries], 1)
    columns = columns * np.linalg.solve(columns, xyz(*white))
    return np.linalg.inv(BRADFORD) @ np.diag((BRADFORD @ D50) / (BRADFORD @ xyz(*white))) @ BRADFORD @ columns


def rgb_profile(primaries, curve):
    "A profile of three primaries, all with one curve."
    return profile(b'mntr', b'RGB ', b'XYZ ',
                   {b'%sXYZ' % o: _xyz(*column) for o, column in zip((b'r', b'g', b'b'), to_xyz(primaries).T,
        strict=True)}
                   | {b'%sTRC' % o: curve for o in (b'r', b'g', b'b')})


def grey_profile(power): return profile(b'mntr', b'GRAY', b'XYZ ', {b'kTRC': _gamma(power)})


def ink_profile(lab):
    "A profile of four inks; `lab` gives L, a and b for a row of 0 or 1 per ink."
    corners = [lab(*[(i >> (3 - k)) & 1 for k in range(4)]) for i in range(16)]
    table = b'mft1' + bytes(4) + bytes([4, 3, 2, 0]) + _fixed(*np.eye(3).ravel()) + bytes(range(256)) * 4
    table += b''.join(bytes([round(ell * 2.55), round(a + 128), round(b + 128)])
                      for ell, a, b in corners) + bytes(range(256)) * 3
    return profile(b'prtr', b'CMYK', b'Lab ', {b'A2B0': table})


def encoded(light):
    return np.where(light <= .0031308, light * 12.92, 1.055 * np.maximum(light, 1e-9) ** (1 / 2.4) - .055)
def decoded(level): return np.where(level <= .04045, level / 12.92, ((level + .055) / 1.055) ** 2.4)


def written(patch, primaries, power=None):
    "The levels that show an sRGB colour in other primaries, with an exponent or the curve of sRGB."
    light = (np.linalg.inv(to_xyz(primaries)) @ to_xyz(SRGB) @ decoded(np.array(patch) / 255)).clip(0, 1)
    return tuple(int(o) for o in ((light ** (1 / power) if power else encoded(light)) * 255).round())


PROFILES = {'sRGB': (rgb_profile(SRGB, SRGB_CURVE), SRGB, None), 'Display P3': (rgb_profile(P3, SRGB_CURVE), P3, None),
            'Adobe RGB': (rgb_profile(ADOBE, _gamma(563 / 256)), ADOBE, 563 / 256)}


def chunk(name, content):
    "A piece of a PNG."
    return struct.pack('>I', len(content)) + name + content + struct.pack('>I', zlib.crc32(name + content))


def chromaticities(primaries):
    "The chunk of a PNG that names white, red, green and blue."
    return chunk(b'cHRM', struct.pack('>8I', *[round(v * 100_000) for o in (D65, *primaries) for v in o]))


def tagged(image, *chunks):
    "A PNG with extra chunks after the first one."
    out = BytesIO()
    image.save(out, 'PNG')
    return out.getvalue()[:33] + b''.join(chunks) + out.getvalue()[33:]
