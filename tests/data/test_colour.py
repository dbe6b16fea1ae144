"Colours become those of sRGB, for every meaning of a file's numbers."
import struct
from io import BytesIO

import numpy as np
import pytest
from heic import heic
from PIL import ExifTags, Image
from profiles import ADOBE, P3, PATCHES, PROFILES, SRGB, SRGB_CURVE, chromaticities, chunk, encoded, grey_profile
from profiles import ink_profile, rgb_profile, tagged, to_xyz, written

from basegun_fastai.data.photo import NEUTRAL, pixels, read_photo

LOSSLESS = {'PNG': {}, 'WEBP': dict(lossless=True), 'TIFF': {}, 'AVIF': dict(quality=100, subsampling='4:4:4'),
            'JPEG': dict(quality=100, subsampling=0), 'HEIC': {}}


def file(image, format='PNG', **options):
    if format == 'HEIC': return heic(image, **options)
    out = BytesIO()
    image.save(out, format, **LOSSLESS[format], **options)
    return out.getvalue()


def three(colours): return Image.fromarray(np.repeat(np.repeat(np.array([colours], np.uint8), 48, 0), 48, 1))
def centres(image):
    return np.array([image.getpixel((image.width * (2 * i + 1) // 6, image.height // 2)) for i in range(3)]).astype(int)
def close(actual, wanted, by=2): assert np.abs(np.asarray(actual) - np.asarray(wanted)).max() <= by, (actual, wanted)


@pytest.mark.parametrize('format', LOSSLESS)
@pytest.mark.parametrize('name', PROFILES)
def test_a_profile_says_what_the_numbers_mean(name, format):
    profile, primaries, power = PROFILES[name]
    content = file(three([written(o, primaries, power) for o in PATCHES]), format, icc_profile=profile)
    levels = 4 if format in ('JPEG', 'AVIF', 'HEIC') else 2  # these formats round in YCbCr
    for side in (None, 72): close(centres(read_photo(content, side)), PATCHES, levels)


@pytest.mark.parametrize('format', ['PNG', 'TIFF', 'JPEG'])
def test_a_grey_profile_says_what_the_numbers_mean(format):
    # above the linear part
    levels = [[round(((v / 255 + .055) / 1.055) ** (2.4 / 1.8) * 255)] * 3 for v in (60, 128, 200)]
    close(centres(read_photo(file(three(levels).convert('L'), format, icc_profile=grey_profile(1.8)), 72)),
          [[v] * 3 for v in (60, 128, 200)])


def test_a_grey_photo_may_have_a_profile_of_three_colours():
    grey = Image.new('L', (30, 20), 100)
    assert read_photo(file(grey, icc_profile=rgb_profile(P3, SRGB_CURVE)), 30).getpixel((9, 9)) == (100, 100, 100)
    linear = rgb_profile(SRGB, b'para' + bytes(8) + struct.pack('>i', 65536))
    close(read_photo(file(grey, icc_profile=linear), 30).getpixel((9, 9)), [168] * 3)


@pytest.mark.parametrize('format', ['TIFF', 'JPEG'])
def test_the_inks_of_a_profile_have_the_colours_that_it_gives_them(format):
    profile = ink_profile(lambda c, m, y, k: (95 - 45 * (c or m) - 40 * k, 50 * m - 40 * c, 30 * y - 30 * c))
    for inks, lab in (((255, 0, 0, 0), (50, -40, -30)), ((0, 255, 0, 0), (50, 50, 0)), ((0, 0, 255, 0), (95, 0, 30)),
                      ((0, 0, 0, 255), (55, 0, 0))):
        fy = (lab[0] + 16) / 116
        f = np.array([fy + lab[1] / 500, fy, fy - lab[2] / 200])
        xyz = np.where(f > 6 / 29, f ** 3, 3 * (6 / 29) ** 2 * (f - 4 / 29)) * [.9642, 1, .8249]
        wanted = encoded((np.linalg.inv(to_xyz(SRGB)) @ xyz).clip(0, 1)) * 255
        close(read_photo(file(Image.new('CMYK', (40, 40), inks), format, icc_profile=profile), 32).getpixel((16, 16)),
              wanted, 4)


def test_one_scene_reads_the_same_from_a_phone_and_a_camera():
    scene = np.random.default_rng(1).integers(40, 216, (48, 48, 3), np.uint8)
    plain = file(Image.fromarray(scene))
    for profile, primaries, power in PROFILES.values():
        other = np.array([written(o, primaries, power) for o in scene.reshape(-1, 3)], np.uint8).reshape(scene.shape)
        away = np.abs(pixels(file(Image.fromarray(other), icc_profile=profile), 48).astype(int) - pixels(plain, 48))
        assert away.mean() < .7 and away.max() <= 3


@pytest.mark.parametrize('mode', ['RGB', 'L', 'P', '1', 'RGBA', 'LA', 'CMYK', 'I;16'])
def test_what_is_srgb_already_is_not_touched(mode):
    scene = Image.fromarray(np.random.default_rng(2).integers(0, 256, (50, 70, 3), np.uint8))
    image = Image.fromarray((np.asarray(scene.convert('L')).astype(np.uint16)
                             * 257)) if mode == 'I;16' else scene.convert(mode)
    format = 'TIFF' if mode == 'CMYK' else 'PNG'
    for side in (None, 40):
        plain = np.asarray(read_photo(file(image, format), side))
        for profile in (PROFILES['sRGB'][0], b'no profile', PROFILES['Display P3'][0][:200],
                        ink_profile(lambda *_: (50, 0, 0))):
            if mode == 'CMYK' and profile[16:20] == b'CMYK': continue
            assert np.array_equal(np.asarray(read_photo(file(image, format, icc_profile=profile), side)), plain)


def test_a_profile_of_other_channels_is_as_none():
    for image, profile in ((Image.new('CMYK', (9, 9), (10, 90, 30, 5)), PROFILES['Display P3'][0]),
                           (Image.new('RGB', (9, 9), (200, 60, 40)), grey_profile(1))):
        assert np.array_equal(read_photo(file(image, 'TIFF', icc_profile=profile)), read_photo(file(image, 'TIFF')))


def test_transparency_shows_neutral_under_a_profile_too():
    image = Image.new('RGBA', (30, 20), (*written((200, 60, 40), P3), 255))
    image.paste((9, 9, 9, 0), (15, 0, 30, 20))
    read = read_photo(file(image, icc_profile=PROFILES['Display P3'][0]))
    close(read.getpixel((4, 9)), (200, 60, 40))
    assert read.getpixel((25, 9)) == NEUTRAL


def test_a_profile_goes_with_a_palette_and_with_sixteen_bits():
    palette = three([written(o, P3) for o in PATCHES]).quantize(8)
    close(centres(read_photo(file(palette, icc_profile=PROFILES['Display P3'][0]))), PATCHES)
    deep = Image.fromarray(np.full((20, 20), 100 * 257, np.uint16))
    close(read_photo(file(deep, icc_profile=grey_profile(1)), 20).getpixel((9, 9)), [168] * 3)


def test_the_tags_of_a_png_say_what_the_numbers_mean():
    def gamma(value): return chunk(b'gAMA', struct.pack('>I', value))
    p3, adobe = three([written(o, P3) for o in PATCHES]), three([written(o, ADOBE, 1.8) for o in PATCHES])
    close(centres(read_photo(tagged(adobe, gamma(round(1e5 / 1.8)), chromaticities(ADOBE)))), PATCHES)
    close(centres(read_photo(tagged(p3, gamma(45455), chromaticities(P3)))), PATCHES)  # 1/2.2 stands for sRGB's curve
    linear = Image.new('RGB', (9, 9), (55, 55, 55))
    close(read_photo(tagged(linear, gamma(100_000))).getpixel((4, 4)), [128] * 3)
    for kept in ((gamma(45455),), (gamma(45455), chromaticities(SRGB)), (gamma(100_000), chunk(b'sRGB', b'\0')),
                 (gamma(1),), (gamma(2 ** 31),), (chunk(b'cHRM', bytes(32)),), (chunk(b'cHRM', b'\xff' * 32),)):
        assert np.array_equal(read_photo(tagged(p3, *kept)), p3), kept


def test_the_numbers_of_a_heic_say_what_the_levels_mean():
    photo = three([written(o, P3) for o in PATCHES])
    for primaries, wanted in ((12, PATCHES), (1, centres(photo))):
        numbers = dict(color_primaries=primaries, transfer_characteristics=13, matrix_coefficients=6, full_range_flag=1)
        close(centres(read_photo(heic(photo, **numbers))), wanted)


def test_a_camera_that_is_set_to_adobe_rgb_says_so_in_exif():
    exif = Image.Exif()
    exif.get_ifd(ExifTags.IFD.Exif).update({0xA001: 65535, ExifTags.IFD.Interop: {1: 'R03'}})
    photo = three([written(o, ADOBE, 563 / 256) for o in PATCHES])
    close(centres(read_photo(file(photo, 'JPEG', exif=exif), 72)), PATCHES, 4)
    exif.get_ifd(ExifTags.IFD.Exif)[ExifTags.IFD.Interop] = {1: 'R98'}
    assert np.array_equal(read_photo(file(photo, 'JPEG', exif=exif), 72), read_photo(file(photo, 'JPEG'), 72))
