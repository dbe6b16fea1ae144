"A training photo is rotated and tilted, always whole, and never mirrored."
import pytest
import torch
from conftest import sized
from fastai.data.transforms import IntToFloatTensor
from fastai.torch_core import TensorImage, set_seed
from fastai.vision.augment import Flip
from PIL import Image, ImageDraw
from torch.nn.functional import interpolate

from basegun_fastai.model.archs import architecture
from basegun_fastai.model.augment import FitInFrame, Reframe, augmentation
from basegun_fastai.model.loaders import PhotoSquare, dataloaders
from basegun_fastai.model.workers import seed_all

ARCH = architecture('test_efficientnet', size=32)


def test_an_augmentation_does_not_wait_for_the_device(data):
    from torch.utils._python_dispatch import TorchDispatchMode
    class Reads(TorchDispatchMode):
        def __torch_dispatch__(self, func, types, args=(), kwargs=None):
            if func is torch.ops.aten._local_scalar_dense.default: actual.append(func)
            return func(*args, **kwargs or {})
    actual, dl = [], dataloaders(data, ARCH, batch_size=16, workers=0).train
    dl.before_iter()
    batch = dl.create_batch([dl.do_item(o) for o in range(4)])
    with Reads(): dl.after_batch(batch)
    assert not actual


RED, BLUE = 0, 2


@pytest.fixture(scope='module')
def wide(tmp_path_factory):
    "A photo of 600×200 with a red mark at the left end and a blue one at the right, both of full height."
    image = Image.new('RGB', (600, 200), 'white')
    draw = ImageDraw.Draw(image)
    draw.rectangle((0, 0, 24, 199), fill=(255, 0, 0))
    draw.rectangle((575, 0, 599, 199), fill=(0, 0, 255))
    file = tmp_path_factory.mktemp('wide')/'wide.png'
    image.save(file)
    return file


def places(batch, mark):
    "Mean column, from 0 to 1, and area in pixels of a mark in each photo; NaN if it is invisible."
    other = BLUE if mark == RED else RED
    calls = ((batch[:, mark] - batch[:, other]) > .3).float()                          # (n, height, width)
    columns = torch.linspace(0, 1, batch.shape[-1])
    return (calls.sum(1) * columns).sum(1) / calls.sum((1, 2)), calls.sum((1, 2))


def sample(photo, n, size, before_crop):
    "Draw `n` augmentations of a photo."
    set_seed(0)
    square = PhotoSquare(size, before_crop)(photo, split_idx=0)
    batch = IntToFloatTensor()(TensorImage(torch.stack([square] * n)))
    for tfm in augmentation(size): batch = tfm(batch, split_idx=0)
    return torch.as_tensor(batch)


def train_photos(data, **options):
    dls = dataloaders(data, sized(64, 72), batch_size=16, workers=0, **options)
    seed_all(3, 1, dls)
    return torch.cat([xb for xb, _ in dls.train])


def test_500_draws_never_mirror_and_keep_both_ends(wide):
    batch = sample(wide, 500, 128, 146)
    (left, red), (right, blue) = places(batch, RED), places(batch, BLUE)
    assert (left < .25).all() and (right > .75).all()
    whole = 128 * 128 / 3 / 24                                                          # a mark's area, unaugmented
    assert red.min() > .5 * whole and blue.min() > .5 * whole


def test_the_mirror_test_would_see_a_mirror(wide):
    batch = Flip(p=.5)(TensorImage(sample(wide, 64, 128, 146)), split_idx=0)
    assert (places(torch.as_tensor(batch), RED)[0] > .5).any()


@pytest.mark.parametrize('size', [(600, 200), (200, 600), (300, 300)])
def test_the_outermost_pixels_survive_500_draws(size, tmp_path):
    image = Image.new('RGB', size, 'white')
    for corner in [(0, 0), (size[0] - 1, 0), (0, size[1] - 1), (size[0] - 1, size[1] - 1)]:
        box = [min(max(o - 12, 0), n - 1) for o, n in zip(corner, size, strict=True)] + [min(o + 12, n - 1)
            for o, n in zip(corner, size, strict=True)]
        ImageDraw.Draw(image).rectangle(box, fill='black')
    image.save(tmp_path/'corners.png')
    batch = sample(tmp_path/'corners.png', 500, 128, 146)
    dark = torch.nn.functional.max_pool2d((batch.amax(1, keepdim=True) < .35).float(), 3, 1, 1)
    two_halves = [dark[..., :64, :64], dark[..., :64, 64:], dark[..., 64:, :64], dark[..., 64:, 64:]]
    assert all((o.sum((1, 2, 3)) > 0).all() for o in two_halves)


def test_room_holds_the_whole_photo_and_no_more():
    set_seed(0)
    tfm = Reframe(64)
    batch = TensorImage(torch.zeros(200, 3, 64, 64))
    tfm.before_call(batch, 0)
    coords = torch.nn.functional.affine_grid(tfm.mat, (200, 3, 64, 64), align_corners=False)
    for f in tfm.coord_fs: coords = f(coords)
    corners = coords[:, [0, 0, -1, -1], [0, -1, -1, 0]].double()
    side = corners.roll(-1, 1) - corners
    normal = torch.stack([side[..., 1], -side[..., 0]], -1)
    normal = normal * (normal * corners).sum(-1, keepdim=True).sign()                    # outward
    photo = torch.tensor([[-1., -1], [1, -1], [1, 1], [-1, 1]], dtype=torch.double)
    # (n, sides, corners of the photo)
    slack = (normal * corners).sum(-1)[..., None] - normal @ photo.T
    assert slack.min() > -1e-5 and slack.amin((1, 2)).max() < 1e-5


def test_angles_are_uniform_in_five_degrees_for_every_photo():
    tfm, x = Reframe(32), torch.zeros(2000, 3, 32, 32)
    set_seed(0)
    tfm.before_call(TensorImage(x), 0)
    degrees = torch.rad2deg(torch.atan2(tfm.mat[:, 0, 1], tfm.mat[:, 0, 0]))
    assert degrees.abs().max() <= 5 and (degrees.abs() > 4).float().mean() == pytest.approx(.2, abs=.04)
    assert (degrees != 0).all()


def test_every_training_photo_is_changed_in_light_and_place(wide):
    batch = sample(wide, 200, 64, 72)
    same = torch.cdist(batch.flatten(1), batch.flatten(1), p=float('inf')) < 1e-4
    assert same.sum() == 200                                                             # each equals only itself
    # neutral before the light changes
    padding = batch[:, :, 2, 32]
    assert (padding.std(0) > .02).all() and ((padding[:, 0] - padding[:, 2]).std() > .005)


def test_room_alone_leaves_a_frame_that_fits():
    grid = torch.nn.functional.affine_grid(torch.eye(2, 3)[None], (1, 3, 100, 100), align_corners=True)
    assert torch.equal(FitInFrame()(grid), grid)


def test_a_tilt_is_the_perspective_of_fastai():
    from fastai.vision.augment import Warp

    from basegun_fastai.model.augment import Perspective
    ours, theirs, photos = Perspective(.1), Warp(.1, p=1.).coord_fs[0], torch.zeros(5, 3, 8, 8)
    torch.manual_seed(0)
    ours.before_call(photos)
    torch.manual_seed(0)
    up, side = torch.empty(2, 5).uniform_(-.1, .1)
    theirs.draw_x, theirs.draw_y = (lambda _: side), (lambda _: up)
    theirs.before_call(photos)
    grid = torch.nn.functional.affine_grid(torch.eye(2, 3).expand(5, 2, 3), (5, 3, 8, 8), align_corners=False)
    assert torch.allclose(ours(grid), theirs(grid.clone()), atol=1e-6) and (ours(grid) - grid).abs().max() > .01


def test_the_share_of_turned_photos_is_the_one_that_is_asked_for():
    batch = torch.rand(400, 3, 72, 72)
    seed_all(1, 1)
    for p in (0., .3, 1.):
        reframe = Reframe(64, p_affine=p)
        actual = reframe(TensorImage(batch), split_idx=0)
        plain = interpolate(batch, (64, 64), mode='bicubic', antialias=True).clamp(0, 1)
        share = (actual - plain).abs().amax((1, 2, 3)).gt(1e-6).float().mean().item()
        assert share == pytest.approx(p, abs=.08), p


def test_by_default_every_photo_is_turned_and_nothing_more_is_drawn(data):
    assert torch.equal(train_photos(data), train_photos(data, p_affine=1.))
    assert not torch.equal(train_photos(data), train_photos(data, p_affine=.99))
