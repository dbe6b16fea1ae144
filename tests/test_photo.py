"The decoder: every way a photo can come in gives the pixels that a person would see."
from io import BytesIO

import numpy as np
import pytest
from PIL import ExifTags, Image, ImageDraw

from basegun_fastai.photo import _TURNS, FORMATS, NEUTRAL, UnreadablePhoto, pixels

UNDO = {Image.Transpose.ROTATE_90: Image.Transpose.ROTATE_270, Image.Transpose.ROTATE_270: Image.Transpose.ROTATE_90}


def scene(width=640, height=400):
    "A smooth photo without any symmetry."
    y, x = np.mgrid[0:1:height * 1j, 0:1:width * 1j]
    image = Image.fromarray((np.stack([x, y, x * y], -1) * 200 + 20).astype(np.uint8))
    ImageDraw.Draw(image).polygon([(width * .1, height * .5), (width * .9, height * .3), (width * .8, height * .7)], fill=(200, 30, 40))
    return image


def saved(image, kind, **options):
    out = BytesIO()
    image.save(out, kind, **options)
    return out.getvalue()


def difference(a, b): return np.abs(a.astype(float) - b.astype(float)).mean()


@pytest.mark.parametrize('kind', ['JPEG', 'PNG', 'WEBP', 'TIFF', 'AVIF'])
@pytest.mark.parametrize('size', [(640, 400), (400, 640), (300, 300)])
def test_the_eight_orientations_give_the_same_pixels(kind, size):
    image = scene(*size)
    options = dict(JPEG=dict(quality=95), WEBP=dict(lossless=True), AVIF=dict(quality=95)).get(kind, {})
    upright = pixels(saved(image, kind, **options), 128)
    assert difference(upright, pixels(saved(image, 'PNG'), 128)) < 2
    for orientation in range(1, 9):
        exif = Image.Exif()
        exif[ExifTags.Base.Orientation] = orientation
        turn = _TURNS.get(orientation)
        stored = image if turn is None else image.transpose(UNDO.get(turn, turn))
        if kind == 'TIFF' and orientation > 1: content = saved(stored, kind, tiffinfo={274: orientation})
        else: content = saved(stored, kind, exif=exif, **options)
        assert difference(pixels(content, 128), upright) < 2, orientation


@pytest.mark.parametrize('side', [96, 224, 300, 600])
def test_a_scaled_jpeg_decode_is_the_full_one_within_one_level(side):
    random = np.random.default_rng(0)
    image = scene(4032, 3024)
    image = Image.fromarray((np.asarray(image) + random.normal(0, 12, (3024, 4032, 1))).clip(0, 255).astype(np.uint8))
    content = saved(image, 'JPEG', quality=90)
    full = Image.open(BytesIO(content)).convert('RGB').resize((side, round(side * 3 / 4)), Image.Resampling.BICUBIC)
    top = (side - full.height) // 2
    assert difference(pixels(content, side)[top:top+full.height], np.asarray(full)) < 1


def test_a_scaled_jpeg_decode_allocates_less_than_the_full_one(monkeypatch):
    sizes, resize = [], Image.Image.resize
    monkeypatch.setattr(Image.Image, 'resize', lambda self, *a, **k: sizes.append(self.size) or resize(self, *a, **k))
    pixels(saved(scene(4032, 3024), 'JPEG'), 224)
    assert sizes == [(504, 378)]


@pytest.mark.parametrize('mode', ['L', '1', 'P', 'LA', 'RGBA', 'CMYK', 'YCbCr'])
def test_modes(mode):
    image = scene().convert(mode)
    content = saved(image, 'TIFF' if mode in ('CMYK', 'YCbCr') else 'PNG')
    assert difference(pixels(content, 128), pixels(saved(image.convert('RGB'), 'PNG'), 128)) < 3


def test_cmyk_jpeg():
    assert difference(pixels(saved(scene().convert('CMYK'), 'JPEG', quality=95), 128), pixels(saved(scene(), 'PNG'), 128)) < 12


@pytest.mark.parametrize('kind', ['PNG', 'TIFF'])
def test_sixteen_bits_keep_their_contrast(kind):
    grey = np.asarray(scene().convert('L'))
    content = saved(Image.fromarray(grey.astype(np.uint16) * 257), kind)
    square, reference = pixels(content, 128), pixels(saved(Image.fromarray(grey), 'PNG'), 128)
    assert abs(square.std() / reference.std() - 1) < .01 and difference(square, reference) < 1


def test_transparency_shows_the_neutral_colour():
    image = Image.new('RGBA', (40, 40), (255, 0, 0, 0))
    assert (pixels(saved(image, 'PNG'), 40) == NEUTRAL).all()
    palette = Image.new('P', (40, 40), 3)
    assert (pixels(saved(palette, 'GIF', transparency=3), 40) == NEUTRAL).all()


def test_the_first_frame_of_an_animation():
    frames = [Image.new('RGB', (30, 30), o) for o in ('red', 'blue')]
    assert pixels(saved(frames[0], 'GIF', save_all=True, append_images=frames[1:]), 30)[15, 15].tolist() == [254, 0, 0] or \
        pixels(saved(frames[0], 'GIF', save_all=True, append_images=frames[1:]), 30)[15, 15].tolist() == [255, 0, 0]


@pytest.mark.parametrize('size', [(600, 200), (200, 600), (3, 900), (1, 1), (50, 51)])
def test_nothing_is_cut_off(size):
    image = Image.new('RGB', size, 'white')
    square = pixels(saved(image, 'PNG'), 96)
    inside = (square > 250).all(-1)
    longest = max(size)
    assert inside.any(1).sum() == max(1, round(size[1] * 96 / longest))
    assert inside.any(0).sum() == max(1, round(size[0] * 96 / longest))


@pytest.mark.parametrize(('content', 'reason'), [
    (b'', 'empty'), (b'hello', 'none of'), (b'%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 9 9\n', 'none of'),
    (b'\x89PNG\r\n\x1a\n', ''), (b'\xff\xd8\xff\xe0' + b'\0' * 50, '')])
def test_what_is_no_photo(content, reason):
    with pytest.raises(UnreadablePhoto) as found: pixels(content, 32)
    assert reason in found.value.reason and found.value.reason


@pytest.mark.parametrize('kind', FORMATS)
def test_every_format_reads_and_its_half_does_not(kind, tmp_path):
    random = np.random.default_rng(0)
    content = saved(Image.fromarray(random.integers(0, 255, (90, 120, 3), dtype=np.uint8)), kind)
    assert pixels(content, 64).shape == (64, 64, 3)
    file = tmp_path/'half.jpg'
    file.write_bytes(content[:len(content) // 2])
    with pytest.raises(UnreadablePhoto) as found: pixels(file, 64)
    assert found.value.path == str(file) and found.value.reason


def test_a_bomb_is_refused_before_it_is_decoded():
    import zlib
    def chunk(name, body): return len(body).to_bytes(4, 'big') + name + body + zlib.crc32(name + body).to_bytes(4, 'big')
    header = (60000).to_bytes(4, 'big') * 2 + bytes([8, 2, 0, 0, 0])
    content = b'\x89PNG\r\n\x1a\n' + chunk(b'IHDR', header) + chunk(b'IDAT', zlib.compress(b'\0' * 1000)) + chunk(b'IEND', b'')
    with pytest.raises(UnreadablePhoto, match='60000 × 60000 pixels'): pixels(content, 32)
