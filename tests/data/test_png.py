"Parts of a PNG that no pixel needs neither refuse nor change a photo."
import struct
import time
import zlib
from io import BytesIO

import numpy as np
import pytest
from PIL import Image
from profiles import PROFILES, chunk, tagged

from basegun_fastai.data.photo import UnreadablePhoto, read_photo
from basegun_fastai.data.png import MAX_INFLATED

PHOTO = Image.fromarray(np.random.default_rng(0).integers(0, 256, (40, 60, 3), np.uint8))
LONG = b'a stroke of the brush, ' * 2**17
XMP = (b'<x:xmpmeta xmlns:x="adobe:ns:meta/"><rdf:RDF xmlns:rdf="http://www.w3.org/1999/02/22-rdf-syntax-ns#">'
       b'<rdf:Description xmlns:tiff="http://ns.adobe.com/tiff/1.0/" tiff:Orientation="6"/></rdf:RDF><!--%s-->'
       b'</x:xmpmeta>')
EXIF = b'Exif\0\0' + b'II*\0\x08\0\0\0\x01\0' + struct.pack('<HHII', 274, 3, 1, 6) + bytes(4)


def text(keyword, content, kind=b'zTXt', compressed=True):
    squeezed = zlib.compress(content) if compressed else content
    middle = {b'tEXt': b'', b'zTXt': b'\0', b'iTXt': bytes([compressed, 0]) + b'en\0\0'}[kind]
    return chunk(kind, keyword + b'\0' + middle + squeezed)


def profile(content, name=b'a profile'): return chunk(b'iCCP', name + b'\0\0' + zlib.compress(content))
def read(*pieces): return read_photo(tagged(PHOTO, *pieces)).tobytes()
def broken(piece): return piece[:-1] + bytes([piece[-1] ^ 1])


USELESS = {
    'a long compressed text': text(b'history', LONG),
    'a long compressed text in other letters': text(b'history', LONG, b'iTXt'),
    'a long text': text(b'history', LONG * 30, b'tEXt', compressed=False),
    'a text that is compressed in an unknown way': chunk(b'zTXt', b'history\0\7' + LONG[:9]),
    'a text with a wrong sum': broken(text(b'history', b'short', b'tEXt', compressed=False)),
    'a text called transparency': text(b'transparency', b'red', b'tEXt', compressed=False),
    'a text called gamma': text(b'gamma', b'dark', b'tEXt', compressed=False),
    'a text called chromaticity': text(b'chromaticity', b'grey', b'tEXt', compressed=False),
    'a text called icc_profile': text(b'icc_profile', b'none', b'tEXt', compressed=False),
    'a text called exif': text(b'exif', EXIF[6:], b'tEXt', compressed=False),
    'XMP that is longer than what is read': text(b'XML:com.adobe.xmp', XMP % bytes(MAX_INFLATED), b'iTXt'),
    'dots an inch cut off': chunk(b'pHYs', b'\0\0'),
    'gamma cut off': chunk(b'gAMA', b'\0\0'),
    'primaries cut off': chunk(b'cHRM', bytes(16)),
    'an empty sRGB': chunk(b'sRGB', b''),
    'a profile that is compressed in an unknown way': chunk(b'iCCP', b'name\0\7' + bytes(99)),
    'a broken animation': chunk(b'acTL', b'\0'),
    'frames out of order': chunk(b'acTL', struct.pack('>II', 3, 0)) + chunk(b'fcTL', b'\0\0\0\7' + bytes(22)),
}


@pytest.mark.parametrize('what', USELESS)
def test_it_is_the_same_photo_with(what):
    assert read(USELESS[what]) == PHOTO.tobytes()


@pytest.mark.parametrize('piece', [
    chunk(b'eXIf', EXIF[6:]),
    text(b'Raw profile type exif', b'\nexif\n  %d\n%s\n' % (len(EXIF), EXIF.hex().encode())),
    text(b'XML:com.adobe.xmp', XMP % b'', b'iTXt', compressed=False),
    text(b'XML:com.adobe.xmp', XMP % LONG, b'iTXt')])
def test_what_turns_it_is_kept(piece):
    turned = PHOTO.transpose(Image.Transpose.ROTATE_270)
    assert read(text(b'history', LONG), piece) == turned.tobytes()


def test_a_large_profile_counts_as_a_small_one():
    content = PROFILES['Display P3'][0]
    small, large = (read(profile(o)) for o in (content, content + bytes(3 * 2**20)))
    assert small == large != PHOTO.tobytes()
    with pytest.raises(UnreadablePhoto, match='its colour profile has more than 16 MiB: save it without one, in sRGB'):
        read(profile(content + bytes(MAX_INFLATED)))


def test_ten_thousand_profiles_take_the_time_of_one():
    many = profile(bytes(MAX_INFLATED)) + text(b'XML:com.adobe.xmp', bytes(MAX_INFLATED), b'zTXt')
    begun = time.process_time()
    assert read(many * 10_000) == PHOTO.tobytes()
    assert time.process_time() - begun < 10  # inflated, they are 300 GB


@pytest.mark.parametrize('kind', ['JPEG', 'WEBP', 'TIFF', 'AVIF', 'GIF'])
def test_other_formats_may_have_as_much(kind):
    options = dict(xmp=XMP.replace(b'"6"', b'"1"') % LONG[:60_000 if kind == 'JPEG' else None])
    if kind in ('JPEG', 'GIF'): options['comment'] = LONG[:60_000 if kind == 'JPEG' else None]
    plain, more = BytesIO(), BytesIO()
    PHOTO.save(plain, kind)
    PHOTO.save(more, kind, icc_profile=PROFILES['sRGB'][0] + bytes(3 * 2**20), **options)
    assert len(more.getvalue()) > 2**20
    assert read_photo(more.getvalue()).tobytes() == read_photo(plain.getvalue()).tobytes()
