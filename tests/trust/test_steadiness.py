"Each variation does what its name says, and the table counts predictions that change."
import numpy as np
import pytest
from PIL import Image

from basegun_fastai.data.photo import NEUTRAL
from basegun_fastai.trust.steadiness import VARIATIONS, sample_evenly, steadiness, varied_squares

AT = {name: i for i, name in enumerate(VARIATIONS, 1)}


@pytest.fixture(scope='module')
def squares(tmp_path_factory):
    "A square photo with one red, one green, one blue and one grey quarter, in all variations."
    photo = Image.new('RGB', (256, 256), (120, 120, 120))
    for place, colour in (((0, 0), 'red'), ((128, 0), 'lime'), ((0, 128), 'blue')):
        photo.paste(Image.new('RGB', (128, 128), colour), place)
    file = tmp_path_factory.mktemp('photo')/'quarters.png'
    photo.save(file)
    return varied_squares(file, 64).astype(int)


def test_there_is_the_photo_and_each_variation_of_it(squares):
    assert squares.shape == (1 + len(VARIATIONS), 64, 64, 3)
    assert all(np.abs(squares[i] - squares[0]).max() > 8 for i in AT.values())


@pytest.mark.parametrize('name, undo', [
    ('turned 90° to the left', lambda o: np.rot90(o, -1)), ('turned 90° to the right', lambda o: np.rot90(o)),
    ('turned 180°', lambda o: np.rot90(o, 2)), ('mirrored', lambda o: o[:, ::-1])])
def test_what_moves_pixels_alone_can_be_undone(squares, name, undo):
    assert np.array_equal(undo(squares[AT[name]]), squares[0])


@pytest.mark.parametrize('degrees, side', [(5, 'left'), (15, 'left'), (5, 'right'), (15, 'right')])
def test_small_turns_go_the_way_that_they_are_called(squares, degrees, side):
    turned, middle = squares[AT[f'turned {degrees}° to the {side}']], 32
    height = np.flatnonzero(turned[:, 12].argmax(1) == 2)[0]  # the top of the blue quarter, left of the middle
    wanted = middle + (1 if side == 'left' else -1) * 20 * np.tan(np.radians(degrees))
    assert height == pytest.approx(wanted, abs=2)
    assert np.array_equal(turned[0, 0], NEUTRAL) and np.abs(turned[0, 32] - NEUTRAL).max() < 140


def test_light_and_place(squares):
    assert squares[AT['lighter by 40 %']][50, 50].tolist() == [168] * 3
    assert squares[AT['darker by 40 %']][50, 50].tolist() == [72] * 3
    shifted = squares[AT['shifted by a twentieth']]
    assert np.array_equal(shifted[3:, 3:], squares[0][:-3, :-3]) and np.array_equal(shifted[0, 0], NEUTRAL)


def test_a_coarser_photo_is_blurred_and_no_brighter(squares):
    for name in ('at half the size', 'JPEG of quality 40'):
        difference = squares[AT[name]] - squares[0]
        assert abs(difference.mean()) < 2 and np.abs(difference)[28:36].max() > 8


@pytest.mark.parametrize('n, size', [(40, 12), (400, 300), (5, 300)])
def test_rare_classes_are_among_those_that_are_asked_about(n, size):
    labels = np.where(np.arange(n) < 3, 1, 0)
    chosen = sample_evenly(labels, size)
    assert len(chosen) == min(n, size) == len(set(chosen)) and (labels[chosen] == 1).sum() == 3
    assert np.array_equal(chosen, sample_evenly(labels, size)) and (np.diff(chosen) > 0).all()


def test_the_table_counts_by_class():
    probabilities = np.tile([.7, .2, .1], (4, 1 + len(VARIATIONS), 1))
    probabilities[0, AT['mirrored']] = probabilities[1, AT['mirrored']] = [.1, .8, .1]
    probabilities[3, AT['turned 180°']] = [.3, .3, .4]
    table = steadiness(probabilities, ['fusil', 'fusil', 'fusil', 'revolver'])
    assert table.columns.tolist() == ['changed', 'confidence', 'fusil', 'revolver']
    assert table.loc['mirrored'].tolist() == pytest.approx([.5, (.1 + .1 + .7 + .7) / 4, 2 / 3, 0])
    assert table.loc['turned 180°'].tolist() == pytest.approx([.25, (.7 * 3 + .3) / 4, 0, 1])
    assert table.loc['as it is'].tolist() == pytest.approx([0, .7, 0, 0]) and len(table) == 1 + len(VARIATIONS)
