"The drawn data set shows what it is meant to show."
import numpy as np
import pytest
from conftest import run_command, tree
from PIL import ExifTags, Image

from basegun_fastai.data.demo import GUNS, LONG, demo_data
from basegun_fastai.data.photo import pixels

BASEGUN = {'autre_pistolet', 'epaule_a_levier_sous_garde', 'epaule_a_pompe', 'epaule_a_un_coup_par_canon',
           'epaule_a_verrou', 'epaule_mecanisme_ancien', 'epaule_semi_auto_style_chasse',
           'epaule_semi_auto_style_militaire_milieu_20e',
           'pistolet_mecanisme_ancien', 'pistolet_semi_auto_moderne', 'revolver', 'semi_auto_style_militaire_autre'}


def contents(folder): return {k: v[1] for k, v in tree(folder).items()}


def test_six_of_baseguns_classes_long_and_hand_guns():
    assert set(GUNS) <= BASEGUN and len(GUNS) >= 6 and LONG and LONG < set(GUNS)


@pytest.mark.slow
def test_a_seed_gives_the_same_bytes_of_fewer_photos_too(data, tmp_path):
    demo_data(tmp_path/'fewer', photos_per_class=np.int64(4), seed=np.int64(42))  # numbers of numpy are Python's
    assert contents(tmp_path/'fewer'/'val') == contents(data/'val')
    fewer, more = contents(tmp_path/'fewer'/'train'), contents(data/'train')
    assert fewer.items() < more.items() and len(fewer) < len(more)


@pytest.mark.slow
def test_the_command_draws_other_bytes_from_another_seed(data, tmp_path):
    result = run_command('demo-data', tmp_path/'mes photos', '--photos-per-class', 4, '--seed', 1)
    assert (result.returncode == 0 and result.stdout.strip() == str(tmp_path/'mes photos')
            and not result.stderr.startswith('Trace'))
    assert sum(o.is_file() for o in (tmp_path/'mes photos').rglob('*')) == 48
    assert not set(contents(tmp_path/'mes photos').values()) & {v for v in contents(data).values() if v}


def test_the_odd_kinds_are_there_in_every_class(data):
    for folder in [*(data/'train').iterdir(), *(data/'val').iterdir()]:
        kinds = [Image.open(o) for o in sorted(folder.iterdir())]
        phone = kinds[0]
        assert phone.width * phone.height >= 12e6 and phone.getexif()[ExifTags.Base.Orientation] == 6
        assert {'L', 'CMYK', 'RGBA'} <= {o.mode for o in kinds}


def test_most_photos_are_wide_and_sizes_vary(data):
    sizes = [pixels_of(o) for o in (data/'train').rglob('*.jpg')]
    assert sum(w > h for w, h in sizes) / len(sizes) > .6 and len(set(sizes)) > 20


def pixels_of(file):
    with Image.open(file) as image: return image.size[::-1] if image.getexif().get(274) == 6 else image.size


def test_an_interrupted_drawing_leaves_nothing(tmp_path, monkeypatch):
    import pytest

    from basegun_fastai.data import demo
    def stop(*_): raise KeyboardInterrupt
    monkeypatch.setattr(demo, 'save_photo', stop)
    with pytest.raises(KeyboardInterrupt): demo_data(tmp_path/'demo')
    assert list(tmp_path.iterdir()) == []


def test_every_photo_can_be_read(data):
    for file in data.rglob('*.*'): assert pixels(file, 32).shape == (32, 32, 3)
