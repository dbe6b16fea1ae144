"The format of a file, by its content, and the remedy if it is not a photo."
import struct
import subprocess
import sys
import time
from io import BytesIO

import numpy as np
import pytest
from heic import heic, tiled
from PIL import ExifTags, Image
from profiles import PATCHES

from basegun_fastai.data.formats import FORMATS, format_of
from basegun_fastai.data.photo import NEUTRAL, MissingDecoder, UnreadablePhoto, described_photo, read_photo


def box(brand, *others): return struct.pack('>I', 16 + 4 * len(others)) + b'ftyp' + brand + bytes(4) + b''.join(others)


OTHERS = {
    'JPEG XL': [b'\xff\x0a\xfa\x7f', b'\0\0\0\x0cJXL \r\n\x87\n\0\0\0\x14ftypjxl '],
    'JPEG 2000': [b'\0\0\0\x0cjP  \r\n\x87\n\0\0\0\x14ftypjp2 ', b'\xff\x4f\xff\x51\0\x2f'],
    "a camera's raw file": [b'II*\0\x10\0\0\0CR\x02\0', b'FUJIFILMCCD-RAW 0201', b'IIRO\x08\0\0\0',
                            b'MMOR\0\0\0\x08', b'IIU\0\x18\0\0\0', b'FOVb\0\0\2\0', b'\0MRM\0\0\0\0',
                            box(b'crx ', b'isom'), b'II\x1a\0\0\0HEAPCCDR'],
    'a video': [box(b'qt  '), box(b'isom', b'mp42'), box(b'M4V '), b'\0\0\0\x08wide\0\0\0\0mdat', b'\x1aE\xdf\xa3\x01',
                b'RIFF\0\0\1\0AVI LIST', b'\0\0\1\xba\x44'],
    'a PDF': [b'%PDF-1.7\n'],
    'SVG': [b'<svg xmlns="http://www.w3.org/2000/svg"/>', b'\xef\xbb\xbf<?xml version="1.0"?>\n<!-- a > b -->\n'
                                                          b'<!DOCTYPE svg PUBLIC "-//W3C//DTD SVG 1.1//EN">\n<svg>'],
    'git lfs pull': [b'version https://git-lfs.github.com/spec/v1\noid sha256:4d7a\nsize 12345\n'],
    'the download failed': [b'<!DOCTYPE html>\n<html><title>404', b'\n <!-- cached --><HTML lang="en">',
                            b'<html><head>', bytes(5000)],
    'an archive': [b'PK\x03\x04\x14\0', b'\x1f\x8b\x08\0', b'Rar!\x1a\x07', b'7z\xbc\xaf\x27\x1c'],
    'a Photoshop file': [b'8BPS\0\1'],
    'an icon': [b'\0\0\1\0\1\0\x10\x10'],
    'is empty': [b''],
    "it is text that starts with 'Not Found', not a photo (JPEG, PNG, WEBP, GIF, BMP, TIFF, AVIF, HEIC)":
        [b'Not Found', b'Not Found\n'],
    "text that starts with '%!PS-Adobe-3.0 EPSF-3.0', not a photo": [b'%!PS-Adobe-3.0 EPSF-3.0'],
    'it is not a photo of a supported format (JPEG': [b'\x7fELF\2\1\1\0', b'\0\5\x16\7\0\2\0\0']}


@pytest.mark.parametrize(('says', 'content'), [(says, o) for says, contents in OTHERS.items() for o in contents])
def test_what_is_no_photo_is_named_with_what_to_do(says, content):
    for o in (content, content + bytes(9)) if content else (content,):
        with pytest.raises(UnreadablePhoto) as error: read_photo(o)
        assert says in error.value.reason and '\n' not in error.value.reason


def test_comments_without_an_end_take_no_time():
    begun = time.process_time()
    for content in (b'<!--' * 1000, b'<!---->' * 585, b' ' * 4096, b'<?xml ' * 600, b'<!--a-->' * 500 + b'<!--'):
        with pytest.raises(ValueError, match='not a photo'): format_of(content)
    assert time.process_time() - begun < 1  # nested repetitions would take the age of the universe


def tiff(entries, order='<', more=b''):
    "A TIFF with one directory; values are shorts or longs."
    head = struct.pack(order + '2sHI', b'II' if order == '<' else b'MM', 42, 8) + struct.pack(order + 'H', len(entries))
    for tag, (kind, value) in sorted(entries.items()):
        head += struct.pack(order + 'HHI', tag, kind, 1)
        head += struct.pack(order + 'HH', value, 0) if kind == 3 else struct.pack(order + 'I', value)
    return head + bytes(4) + more


@pytest.mark.parametrize('order', '<>')
def test_a_raw_file_that_is_a_tiff_is_refused_by_what_it_says(order):
    at = 8 + 2 + 12 * 10 + 4
    preview = {256: (3, 16), 257: (3, 12), 258: (3, 8), 259: (3, 1), 262: (3, 1), 273: (4, at), 277: (3, 1),
               278: (3, 12), 279: (4, 192)}
    plain = tiff(preview | {254: (4, 0)}, order, bytes(192))
    assert read_photo(plain).size == (16, 12)
    for more in ({50706: (4, 0x0104)}, {254: (4, 1)}, {262: (3, 32803)}, {262: (3, 34892), 254: (4, 0)}):
        with pytest.raises(UnreadablePhoto, match="a camera's raw file: develop it, and save it as JPEG"):
            read_photo(tiff(preview | more, order, bytes(192)))


def three(turned=False):
    image = Image.fromarray(np.repeat(np.repeat(np.array([PATCHES], np.uint8), 48, 0), 48, 1))
    return image.transpose(Image.Transpose.ROTATE_90) if turned else image


def centres(image): return [image.getpixel((image.width * (2 * i + 1) // 6, image.height // 2)) for i in range(3)]
def close(actual, wanted, by=2):
    assert np.abs(np.asarray(actual, int) - np.asarray(wanted)).max() <= by, (actual, wanted)




@pytest.mark.parametrize('options', [{}, dict(bits=10), dict(bits=12), dict(chroma=420), dict(quality=-1)])
def test_a_heic_reads_as_what_was_written(options):
    content = heic(three(), **options)
    assert described_photo(content)[0] == ('HEIC', 144, 48)
    close(centres(read_photo(content)), PATCHES)
    close(centres(read_photo(content, 72)), PATCHES)


@pytest.mark.parametrize('turns', range(1, 9))
def test_a_heic_is_turned_once(turns):
    from basegun_fastai.data.photo import _TURNS
    content = heic(three(), turns=turns)
    exif = struct.pack('>HHIH', ExifTags.Base.Orientation, 3, 1, turns)
    assert exif in content  # the tag says it, and so do HEIF's own properties
    wanted = three() if turns == 1 else three().transpose(_TURNS[turns])
    read = read_photo(content)
    assert described_photo(content)[0][1:] == read.size == wanted.size
    assert np.abs(np.asarray(read).astype(int) - np.asarray(wanted)).mean() < 3


def test_of_several_pictures_in_a_heic_the_first_is_read():
    content = heic(three(), Image.new('RGB', (30, 20), 'blue'), Image.new('RGB', (300, 200), 'red'))
    assert described_photo(content)[0] == ('HEIC', 144, 48)
    close(centres(read_photo(content)), PATCHES)


def test_a_heic_with_transparency_shows_neutral():
    image = three().convert('RGBA')
    image.paste((9, 9, 9, 0), (0, 0, 48, 48))
    close(centres(read_photo(heic(image, quality=-1))), [NEUTRAL, *PATCHES[1:]])


def test_a_heic_in_tiles_is_one_photo():
    content = tiled([heic(Image.new('RGB', (64, 64), o)) for o in (*PATCHES, (20, 20, 200))], 2, 2, 100, 90)
    photo = read_photo(content)
    assert described_photo(content)[0] == ('HEIC', 100, 90) and photo.size == (100, 90)
    close([photo.getpixel(o) for o in ((9, 9), (90, 9), (9, 80), (90, 80))], (*PATCHES, (20, 20, 200)))


def test_every_piece_of_a_heic_is_refused_with_a_reason():
    content = heic(Image.fromarray(np.random.default_rng(0).integers(0, 256, (64, 64, 3), np.uint8)))
    for n in [*range(1, 40), *range(40, len(content) - 1, 97), len(content) - 200]:
        with pytest.raises(UnreadablePhoto) as error: read_photo(content[:n])
        assert error.value.reason


def test_a_heic_without_its_package_says_what_to_type(tmp_path):
    file = tmp_path/'IMG_0001.HEIC'
    file.write_bytes(heic(three()))
    code = ("import sys; sys.modules['pi_heif'] = None\nfrom basegun_fastai.data.photo import read_photo, "
            "UnreadablePhoto\n"
            'try: read_photo(sys.argv[1])\nexcept UnreadablePhoto as err: print(err.reason)')
    done = subprocess.run([sys.executable, '-c', code, str(file)], capture_output=True, text=True, check=True)
    assert done.stdout == 'it is HEIC: `pip install pi-heif`, or save it as JPEG\n'


def test_every_format_is_known_by_its_first_bytes():
    from test_odd_photos import photos
    for name in FORMATS: assert format_of(photos()[name][:4096]) == name
    out = BytesIO()
    Image.new('RGB', (9, 9)).save(out, 'AVIF')
    assert format_of(out.getvalue().replace(b'ftypavif', b'ftypmif1')) == 'AVIF'


@pytest.mark.parametrize('kind', ['AVIF', 'WEBP'])
def test_a_pillow_that_was_built_without_a_format_is_named(kind, monkeypatch):
    from PIL import AvifImagePlugin, WebPImagePlugin
    from test_odd_photos import photos
    monkeypatch.setattr(dict(AVIF=AvifImagePlugin, WEBP=WebPImagePlugin)[kind], 'SUPPORTED', False)
    with pytest.raises(MissingDecoder, match=f'it is {kind}, which the installed Pillow cannot read: `pip install'):
        read_photo(photos()[kind])
