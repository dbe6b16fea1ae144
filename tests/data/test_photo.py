"The decoder: every kind of source gives the pixels that a person sees."
import base64
import json
import os
import signal
import socket
import sys
import time
import traceback
import zlib
from io import BytesIO, StringIO

import numpy as np
import pytest
from PIL import ExifTags, Image, ImageDraw
from test_odd_photos import chunk, photos, png, saved, strips, twelve_bits

from basegun_fastai.data.formats import FORMATS
from basegun_fastai.data.photo import _TURNS, MAX_BYTES, NEUTRAL, MissingDecoder, NotAPhoto, PhotoTooLarge
from basegun_fastai.data.photo import UnreadablePhoto, described_photo, from_record, pixels, read_photo

UNDO = {Image.Transpose.ROTATE_90: Image.Transpose.ROTATE_270, Image.Transpose.ROTATE_270: Image.Transpose.ROTATE_90}


def scene(width=640, height=400):
    "A smooth photo without any symmetry."
    y, x = np.mgrid[0:1:height * 1j, 0:1:width * 1j]
    image = Image.fromarray((np.stack([x, y, x * y], -1) * 200 + 20).astype(np.uint8))
    ImageDraw.Draw(image).polygon([(width * .1, height * .5), (width * .9, height * .3), (width * .8, height * .7)],
                                  fill=(200, 30, 40))
    return image


def difference(a, b): return np.abs(a.astype(float) - b.astype(float)).mean()


@pytest.mark.parametrize('kind', ['JPEG', 'MPO', 'PNG', 'WEBP', 'TIFF', 'AVIF'])
@pytest.mark.parametrize('size', [(640, 400), (400, 640), (300, 300)])
def test_the_eight_orientations_give_the_same_pixels(kind, size):
    image = scene(*size)
    options = dict(JPEG=dict(quality=95), WEBP=dict(lossless=True), AVIF=dict(quality=95, speed=10),
                   MPO=dict(quality=95, save_all=True, append_images=[Image.new('RGB', size)])).get(kind, {})
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


@pytest.fixture(scope='module')
def large():
    "A noisy photo like one from a phone."
    noise = np.random.default_rng(0).normal(0, 12, (3024, 4032, 1))
    image = Image.fromarray((np.asarray(scene(4032, 3024)) + noise).clip(0, 255).astype(np.uint8))
    return saved(image, 'JPEG', quality=90)


# of 4032: the middle sizes are at the limit of a scale
@pytest.mark.parametrize('side', [96, 224, 300, 315, 600, 630, 1260])
def test_a_scaled_jpeg_decode_is_the_full_one_within_one_level(large, side):
    full = Image.open(BytesIO(large)).convert('RGB').resize((side, round(side * 3 / 4)), Image.Resampling.BICUBIC)
    top = (side - full.height) // 2
    assert difference(pixels(large, side)[top:top+full.height], np.asarray(full)) < 1


def test_a_scaled_jpeg_decode_allocates_less_than_the_full_one(monkeypatch):
    sizes, resize = [], Image.Image.resize
    monkeypatch.setattr(Image.Image, 'resize', lambda self, *a, **k: sizes.append(self.size) or resize(self, *a, **k))
    for side in (224, 315, 316): pixels(saved(scene(4032, 3024), 'JPEG'), side)
    assert sizes == [(504, 378), (504, 378), (1008, 756)]


@pytest.mark.parametrize('mode', ['L', '1', 'P', 'LA', 'RGBA', 'CMYK', 'YCbCr'])
def test_modes(mode):
    image = scene().convert(mode)
    content = saved(image, 'TIFF' if mode in ('CMYK', 'YCbCr') else 'PNG')
    assert difference(pixels(content, 128), pixels(saved(image.convert('RGB'), 'PNG'), 128)) < 3


def test_cmyk_jpeg():
    assert difference(pixels(saved(scene().convert('CMYK'), 'JPEG', quality=95), 128),
                      pixels(saved(scene(), 'PNG'), 128)) < 12


@pytest.mark.parametrize('kind', ['PNG', 'TIFF'])
def test_sixteen_bits_keep_their_contrast(kind):
    grey = np.asarray(scene().convert('L'))
    content = saved(Image.fromarray(grey.astype(np.uint16) * 257), kind)
    square, reference = pixels(content, 128), pixels(saved(Image.fromarray(grey), 'PNG'), 128)
    assert abs(square.std() / reference.std() - 1) < .01 and difference(square, reference) < 1


def test_twelve_bits_keep_their_contrast():
    ramp = np.linspace(0, 4095, 64 * 64).reshape(64, 64).round().astype(np.uint16)
    square = pixels(strips(64, 64, twelve_bits(ramp), bits=12), 64)
    assert square.max() == 255 and difference(square, np.repeat((ramp / 4095 * 255)[..., None], 3, -1)) < 1


@pytest.mark.parametrize('kind', ['PNG', 'WEBP', 'TIFF', 'AVIF'])
def test_transparency_shows_the_neutral_colour(kind):
    image = Image.new('RGBA', (40, 40), (255, 0, 0, 0))
    image.paste((255, 0, 0, 128), (20, 0, 40, 40))
    square = pixels(saved(image, kind, **dict(WEBP=dict(lossless=True), AVIF=dict(quality=100)).get(kind, {})), 40)
    assert difference(square[:, :18], np.array(NEUTRAL)) < 1
    assert difference(square[:, 22:], (np.array(NEUTRAL) + (255, 0, 0)) / 2) < 2


@pytest.mark.parametrize('kind', ['GIF', 'PNG'])
def test_a_transparent_entry_of_a_palette_shows_the_neutral_colour(kind):
    image = Image.new('P', (40, 40), 3)
    image.putpalette(range(12))
    assert (pixels(saved(image, kind, transparency=3), 40) == NEUTRAL).all()


@pytest.mark.parametrize('kind', ['GIF', 'WEBP', 'PNG', 'AVIF', 'TIFF', 'MPO'])
def test_the_first_of_several_photos(kind):
    frames = [Image.new('RGB', (30, 30), o) for o in ('red', 'blue')]
    assert difference(pixels(saved(frames[0], kind, save_all=True, append_images=frames[1:]), 30),
                      np.array((255, 0, 0))) < 3


@pytest.mark.parametrize('size', [(600, 200), (200, 600), (3, 900), (1, 1), (50, 51)])
def test_nothing_is_cut_off(size):
    image = Image.new('RGB', size, 'white')
    square = pixels(saved(image, 'PNG'), 96)
    inside = (square > 250).all(-1)
    longest = max(size)
    assert inside.any(1).sum() == max(1, round(size[1] * 96 / longest))
    assert inside.any(0).sum() == max(1, round(size[0] * 96 / longest))


@pytest.mark.parametrize(('content', 'reason'), [
    (b'', 'empty'), (b'hello', 'not a photo (JPEG'),
    (b'%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 9 9\n', 'not a photo (JPEG'),
    (b'\x89PNG\r\n\x1a\n', ''), (b'\xff\xd8\xff\xe0' + b'\0' * 50, '')])
def test_what_is_no_photo(content, reason):
    with pytest.raises(UnreadablePhoto) as actual: pixels(content, 32)
    assert reason in actual.value.reason and actual.value.reason


@pytest.mark.parametrize('kind', FORMATS)
def test_every_format_reads_and_its_half_does_not(kind, tmp_path):
    random = np.random.default_rng(0)
    content = saved(Image.fromarray(random.integers(0, 255, (90, 120, 3), dtype=np.uint8)), kind)
    assert pixels(content, 64).shape == (64, 64, 3)
    file = tmp_path/'half.jpg'
    file.write_bytes(content[:len(content) // 2])
    with pytest.raises(UnreadablePhoto) as actual: pixels(file, 64)
    assert actual.value.path == str(file) and actual.value.reason


def test_a_bomb_is_refused_before_it_is_decoded():
    header = (60000).to_bytes(4, 'big') * 2 + bytes([8, 2, 0, 0, 0])
    content = b'\x89PNG\r\n\x1a\n' + chunk(b'IHDR', header) + chunk(b'IDAT',
        zlib.compress(b'\0' * 1000)) + chunk(b'IEND', b'')
    with pytest.raises(UnreadablePhoto, match='60000 × 60000 pixels'): pixels(content, 32)


@pytest.mark.parametrize('content', [
    png(9400, 9550, 1, 0, bytes(1 + 1175)),
    strips(9400, 9550, zlib.compress(bytes(1175 * 9550)), bits=1, compression=8)])
def test_a_large_photo_prints_no_warning(content, recwarn):
    try: pixels(content, 32)
    except UnreadablePhoto as error: assert '9400 × 9550' in error.reason
    assert not recwarn.list


def test_a_jpeg_of_200_million_pixels_is_read_at_a_side_and_refused_without():
    content = saved(Image.new('L', (16320, 12240), 200), 'JPEG')
    square = pixels(content, 224)
    assert difference(square[28:196], np.array(200)) < 1 and (square[:28] == NEUTRAL).all()
    with pytest.raises(UnreadablePhoto, match='16320 × 12240 pixels'): read_photo(content)


@pytest.mark.parametrize('name', ['photo.jpg', 'photo.PNG', 'photo.txt', 'photo', '.jpg', 'a\nb.gif', 'été 🔫.webp'])
def test_a_photo_is_known_by_its_content_and_not_by_its_name(name, tmp_path):
    file = tmp_path/name
    for kind in [*FORMATS, 'MPO']:
        file.write_bytes(photos()[kind])
        assert (pixels(file, 32) == pixels(photos()[kind], 32)).all(), kind
    for content, reason in ((b'not a photo', r"it is text that starts with 'not a photo', not a photo \(JPEG"),
                            (b'\x7fELF\2\1\1', 'it is not a photo of a supported format'),
                            (b'%PDF-1.7\n', 'it is a PDF'),
                            (b'<svg xmlns="http://www.w3.org/2000/svg"/>', 'it is SVG')):
        file.write_bytes(content)
        with pytest.raises(UnreadablePhoto, match=reason) as actual: pixels(str(file), 32)
        assert actual.value.path == str(file)


@pytest.mark.parametrize('kind', ['PNG', 'WEBP', 'JPEG'])
def test_damaged_exif_takes_no_pixels_away(kind):
    content = saved(scene(64, 64), kind, exif=b'Exif\0\0damaged', quality=95)
    assert difference(pixels(content, 64), np.asarray(scene(64, 64))) < 3


@pytest.fixture
def in_time():
    "Fail a test that waits for ever."
    def late(*_): pytest.fail('it waits for ever')
    before = signal.signal(signal.SIGALRM, late)
    signal.setitimer(signal.ITIMER_REAL, 20)
    yield
    signal.setitimer(signal.ITIMER_REAL, 0)
    signal.signal(signal.SIGALRM, before)


def a_pipe(path): os.mkfifo(path)
def a_folder(path): path.mkdir()
def a_loop_of_links(path): path.symlink_to(path)
def a_link_to_nothing(path): path.symlink_to('nothing')
def a_link_to_a_pipe(path): os.mkfifo(f'{path}.pipe'), path.symlink_to(f'{path}.pipe')
def an_endless_device(path): path.symlink_to('/dev/zero')
def nothing(path): assert not path.exists()


def a_socket(path):
    with socket.socket(socket.AF_UNIX) as server:
        here = os.getcwd()
        os.chdir(path.parent)  # the address of a socket must be short
        try: server.bind(path.name)
        finally: os.chdir(here)


@pytest.mark.skipif(os.name == 'nt', reason='Windows has none of these')
@pytest.mark.parametrize(('make', 'reason'), [
    (a_pipe, 'not a regular file'), (a_link_to_a_pipe, 'not a regular file'), (an_endless_device, 'not a regular file'),
    (a_folder, 'Is a directory'), (a_loop_of_links, 'Too many levels of symbolic links'), (a_socket, ''),
    (a_link_to_nothing, 'No such file or directory'), (nothing, 'No such file or directory')])
@pytest.mark.usefixtures('in_time')
def test_what_is_no_file_is_an_error_at_once(make, reason, tmp_path):
    path = tmp_path/'photo.jpg'
    make(path)
    with pytest.raises(UnreadablePhoto) as actual: pixels(path, 32)
    assert actual.value.path == str(path) and reason in actual.value.reason != ''


@pytest.mark.skipif(os.name == 'nt' or os.geteuid() == 0, reason='root may read every file')
def test_a_forbidden_file_is_an_error(tmp_path):
    path = tmp_path/'photo.jpg'
    path.write_bytes(photos()['JPEG'])
    path.chmod(0)
    with pytest.raises(UnreadablePhoto, match='Permission denied'): pixels(path, 32)


@pytest.mark.skipif(sys.platform != 'linux', reason='file names are text on this system')
def test_a_name_that_is_no_text(tmp_path):
    path = os.path.join(tmp_path, os.fsdecode(b'\xe9t\xe9 \xff.jpg'))
    with open(path, 'wb') as file: file.write(photos()['JPEG'])
    assert pixels(path, 32).shape == (32, 32, 3)
    with open(path, 'wb') as file: file.write(b'not a photo')
    with pytest.raises(UnreadablePhoto, match='not a photo') as actual: pixels(path, 32)
    assert os.fsencode(actual.value.path) == os.fsencode(path)


def test_a_file_of_too_many_bytes_is_refused_and_not_read(tmp_path):
    path, start = tmp_path/'photo.jpg', time.process_time()
    with open(path, 'wb') as file:
        file.write(photos()['JPEG'])
        file.truncate(2**40)
    with pytest.raises(UnreadablePhoto, match=f'MiB, more than {MAX_BYTES >> 20}'): pixels(path, 32)
    assert time.process_time() - start < 1


class Upload:
    "An uploaded file, as in Starlette."
    async def read(self): return b''


def test_a_photo_comes_in_whatever_holds_bytes(tmp_path):
    content = photos()['JPEG']
    (tmp_path/'photo').write_bytes(content)
    sources = [bytearray(content), memoryview(content), memoryview(b'xx' + content)[2:], BytesIO(content),
               tmp_path/'photo', str(tmp_path/'photo')]
    for source in sources:
        assert (pixels(source, 32) == pixels(content, 32)).all()
        assert isinstance(source, BytesIO) or described_photo(source)[0][0] == 'JPEG'
    with open(tmp_path/'photo', 'rb') as file: assert (pixels(file, 32) == pixels(content, 32)).all()
    for source in (bytearray(b'no'), memoryview(b'no'), BytesIO(b'no')):
        with pytest.raises(NotAPhoto, match="these bytes': it is text that starts") as error: pixels(source, 32)
        assert error.value.path == 'these bytes'
    (tmp_path/'photo').write_bytes(b'no')
    with open(tmp_path/'photo', 'rb') as file, pytest.raises(NotAPhoto) as error: pixels(file, 32)
    assert error.value.path == str(tmp_path/'photo')


class Drops(BytesIO):
    "A stream that returns less than was requested, like a pipe."
    def read(self, n): return super().read(min(n, 100))


class Texts(BytesIO):
    def read(self, *_): return 'text'


def test_a_stream_is_read_to_its_end_and_from_where_it_stands():
    content = photos()['JPEG']
    assert (pixels(Drops(content), 32) == pixels(content, 32)).all()
    stream = BytesIO(content)
    pixels(stream, 32)
    with pytest.raises(UnreadablePhoto, match=rf'nothing is left of it after byte {len(content)}: call seek') as error:
        pixels(stream, 32)
    assert not isinstance(error.value, NotAPhoto)
    with pytest.raises(NotAPhoto, match='the file is empty'): pixels(BytesIO(), 32)
    with pytest.raises(UnreadablePhoto, match="it gives text: open it with 'rb'"): pixels(Texts(), 32)


@pytest.mark.parametrize(('source', 'words'), [
    (None, 'NoneType'), (7, 'int'), ([b'x' * 3_000_000], 'list'), (StringIO('x'), '_io.StringIO'), (Upload, 'type'),
    (np.zeros((2000, 1000, 3), np.uint8), 'numpy.ndarray'), (Image.new('RGB', (9, 9)), 'PIL.Image.Image'),
    (Upload(), r'.*Upload: `await` its read\(\)'), (type('x' * 3_000_000, (), {})(), '')])
def test_what_no_photo_can_be_given_as_is_named_by_its_type(source, words):
    for read in (lambda: pixels(source, 32), lambda: described_photo(source)):
        with pytest.raises(TypeError, match=f'not of type {words}') as error: read()
        assert len(str(error.value)) < 1000


def test_no_message_repeats_a_photo():
    content = saved(Image.fromarray(np.random.default_rng(0).integers(0, 256, (900, 900, 3), np.uint8)), 'PNG')
    for text in (content.decode('latin-1'), repr(bytearray(content)), base64.encodebytes(content).decode(), 'x' * 5000):
        with pytest.raises(UnreadablePhoto) as error: pixels(text, 32)
        assert 'give the bytes of a photo as bytes' in str(error.value)
        shown = ''.join(traceback.format_exception(error.value.__cause__)) + str(error.value)
        assert len(str(error.value)) < 1000 and len(shown) < 4000


def test_a_program_can_tell_what_to_answer_to_who_sent_a_photo(tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, 'pi_heif', None)
    header = (60000).to_bytes(4, 'big') * 2 + bytes([8, 2, 0, 0, 0])
    bomb = b'\x89PNG\r\n\x1a\n' + chunk(b'IHDR', header) + chunk(b'IEND', b'')
    with open(tmp_path/'large', 'wb') as file: file.truncate(MAX_BYTES + 1)
    with open(tmp_path/'large', 'rb') as stream:
        kinds = [(b'', NotAPhoto, 'empty-file'), (b'hello', NotAPhoto, 'text-file'), (b'%PDF-1.7\n', NotAPhoto, 'pdf'),
                 (b'\0\5\7', NotAPhoto, 'not-a-photo'), (b'FUJIFILMCCD-RAW', NotAPhoto, 'raw-photo'),
                 (strips(9, 9, bytes(9), light=32803), NotAPhoto, 'raw-photo'),
                 (bomb, PhotoTooLarge, 'too-many-pixels'), (tmp_path/'large', PhotoTooLarge, 'too-many-bytes'),
                 (stream, PhotoTooLarge, 'too-many-bytes'), (photos()['HEIC'], MissingDecoder, 'heic-decoder-missing'),
                 (tmp_path/'none.jpg', UnreadablePhoto, 'file-error'), (tmp_path, UnreadablePhoto, 'file-error'),
                 (photos()['PNG'][:60], UnreadablePhoto, 'damaged')]
        for source, kind, code in kinds:
            with pytest.raises(UnreadablePhoto) as error: pixels(source, 32)
            assert (type(error.value), error.value.code) == (kind, code), error.value
            again = from_record(error.value.path, json.loads(json.dumps(error.value.record())))
            assert type(again) is kind and vars(again) == vars(error.value)
