from __future__ import annotations

import pickle

import numpy as np
import pytest
import torch
from scipy.stats import ks_2samp
from torchvision.transforms import v2

from lenext.data.transforms import (
    PRESETS,
    Augmentation,
    dihedral,
    eval_transform,
    normalise,
    random_crop,
    resize,
    to_tensor,
    train_transform,
)
from lenext.preprocess import Preprocess
from tests.pictures import photograph


def apply(transform, image, seed):
    return transform(image, np.random.default_rng(seed))


def test_eval_transform_is_torchvisions_resize_and_centre_crop():
    preprocess = Preprocess(image_size=96, crop_fraction=0.75, interpolation="bicubic")
    reference = v2.Compose([v2.Resize(128, v2.InterpolationMode.BICUBIC, antialias=True), v2.CenterCrop(96)])
    for image in (photograph(), photograph()[:, :300], photograph()[:128, :128], photograph()[:50, :71]):
        assert torch.equal(eval_transform(preprocess)(image), reference(to_tensor(image.copy())))
    normalised = v2.Normalize(preprocess.mean, preprocess.std)(to_tensor(photograph()).float() / 255)
    torch.testing.assert_close(normalise(to_tensor(photograph())[None], preprocess)[0], normalised)


@pytest.mark.parametrize("interpolation", ["bilinear", "bicubic"])
@pytest.mark.parametrize(("short", "long"), [(5, 639), (4, 427), (3, 427), (2, 426), (1, 425)])
def test_only_the_middle_of_a_very_long_picture_is_resized_and_it_is_the_same(interpolation, short, long):
    preprocess = Preprocess(image_size=96, crop_fraction=0.75, interpolation=interpolation)
    mode = v2.InterpolationMode(interpolation)
    reference = v2.Compose([v2.Resize(128, mode, antialias=True), v2.CenterCrop(96)])
    for image in (photograph()[100 : 100 + short, :long], photograph()[:long, 100 : 100 + short]):
        difference = eval_transform(preprocess)(image).int() - reference(to_tensor(image.copy())).int()
        assert difference.abs().max() <= 1


def test_a_line_of_a_hundred_megapixels_becomes_a_square():
    """Resized as a whole it would take 20 TB."""
    line = np.broadcast_to(np.array([1, 2, 3], np.uint8), (1, 100_000_000, 3))
    x = eval_transform(Preprocess(image_size=224))(line)
    assert x.shape == (3, 224, 224)
    assert [int(channel.unique()) for channel in x] == [1, 2, 3]


@pytest.mark.parametrize("interpolation", ["bilinear", "bicubic"])
@pytest.mark.parametrize("box", [(0, 427, 0, 640), (10, 200, 30, 320), (100, 130, 5, 25)])
def test_resize_gives_torchvisions_pixels_and_takes_read_only_views(interpolation, box, recwarn):
    top, bottom, left, right = box
    image = photograph().copy()
    image.setflags(write=False)
    part = image[top:bottom, left:right]
    mode = v2.InterpolationMode(interpolation)
    reference = v2.functional.resize(to_tensor(part.copy()), [96, 80], mode, antialias=True)
    x = resize(part, (96, 80), interpolation)
    assert torch.equal(x, reference)
    assert x[None].is_contiguous(memory_format=torch.channels_last)
    assert torch.equal(resize(part, part.shape[:2]), to_tensor(part.copy()))
    assert not recwarn.list


@pytest.mark.parametrize(("height", "width"), [(375, 500), (300, 40), (40, 300)])
@pytest.mark.parametrize("smallest", [0.08, 0.7])
def test_crops_are_distributed_as_torchvisions(height, width, smallest):
    n = 1500
    rng = np.random.default_rng(0)
    ours = np.array([random_crop(height, width, smallest, rng) for _ in range(n)])
    reference = v2.RandomResizedCrop(224, scale=(smallest, 1.0))
    torch.manual_seed(0)
    picture = [torch.empty(3, height, width)]
    theirs = np.array([list(reference.make_params(picture).values()) for _ in range(n)])
    for column in range(4):
        assert ks_2samp(ours[:, column], theirs[:, column]).pvalue > 1e-4
    top, left, h, w = ours.T
    assert (top >= 0).all()
    assert (left >= 0).all()
    assert (top + h <= height).all()
    assert (left + w <= width).all()


def test_a_training_picture_is_the_resized_crop_mirrored_half_of_the_time():
    image, flipped = photograph(), 0
    transform = train_transform(Preprocess(image_size=64), Augmentation(crop_scale=0.3, flip="horizontal"))
    for seed in range(200):
        top, left, h, w = random_crop(427, 640, 0.3, np.random.default_rng(seed))
        plain = v2.functional.resized_crop(to_tensor(image), top, left, h, w, [64, 64], antialias=True)
        x = apply(transform, image, seed)
        assert torch.equal(x, plain) or torch.equal(x, plain.flip(-1))
        flipped += torch.equal(x, plain.flip(-1))
    assert 70 <= flipped <= 130


@pytest.mark.parametrize(
    ("flip", "turns", "views"),
    [
        ("none", False, [(0, False)]),
        ("horizontal", False, [(0, False), (0, True)]),
        ("both", False, [(0, False), (0, True), (2, False), (2, True)]),
        ("none", True, [(k, False) for k in range(4)]),
        ("both", True, [(k, mirrored) for k in range(4) for mirrored in (False, True)]),
    ],
)
def test_flips_and_turns_give_their_symmetries_and_no_others(flip, turns, views):
    image = photograph()[:32, :32]
    transform = train_transform(
        Preprocess(image_size=32, crop_fraction=1.0), Augmentation(flip=flip, turns=turns)
    )  # fmt: skip
    seen = {apply(transform, image, seed).numpy().tobytes() for seed in range(80)}
    x = to_tensor(image.copy())
    expected = {torch.rot90(x.flip(-1) if mirrored else x, k, (1, 2)).numpy().tobytes() for k, mirrored in views}
    assert seen == expected


@pytest.mark.parametrize("preset", PRESETS)
@pytest.mark.parametrize("shape", [(100, 300), (300, 100), (20, 24), (64, 64)])
def test_presets_give_the_input_size_and_vary_unless_none(preset, shape):
    image = photograph()[: shape[0], : shape[1]]
    transform = train_transform(Preprocess(image_size=64), PRESETS[preset])
    results = [apply(transform, image, seed) for seed in range(6)]
    assert all(x.shape == (3, 64, 64) and x.dtype == torch.uint8 for x in results)
    assert (len({x.numpy().tobytes() for x in results}) == 1) == (preset == "none")


@pytest.mark.parametrize(
    "augmentation",
    [
        *(Augmentation(policy=p) for p in ("randaugment", "trivialaugment", "autoaugment", "augmix")),
        Augmentation(color_jitter=0.4),
        Augmentation(erasing=1.0),
    ],
    ids=repr,
)
def test_policies_depend_on_the_given_generator_alone_and_leave_the_global_one(augmentation):
    image, transform = photograph(), train_transform(Preprocess(image_size=48), augmentation)
    torch.manual_seed(1)
    before = torch.random.get_rng_state()
    first = [apply(transform, image, seed) for seed in range(8)]
    assert torch.equal(torch.random.get_rng_state(), before)
    torch.manual_seed(2)
    again = pickle.loads(pickle.dumps(transform))  # as a spawned worker receives it
    assert all(torch.equal(apply(again, image, seed), x) for seed, x in enumerate(first))
    plain = eval_transform(Preprocess(image_size=48))(image)
    assert sum(not torch.equal(x, plain) for x in first) >= 4
    assert all(x.dtype == torch.uint8 for x in first)


@pytest.mark.parametrize("policy", ["randaugment", "trivialaugment", "autoaugment", "augmix"])
def test_policies_work_for_networks_whose_pictures_are_resized_bicubically(policy):
    transform = train_transform(Preprocess(image_size=48, interpolation="bicubic"), Augmentation(policy=policy))
    assert all(apply(transform, photograph(), seed).shape == (3, 48, 48) for seed in range(20))


def test_erased_rectangles_and_empty_corners_take_the_mean_colour():
    preprocess = Preprocess(image_size=64, mean=(0.2, 0.4, 0.6))
    image = np.zeros((64, 64, 3), np.uint8)
    x = apply(train_transform(preprocess, Augmentation(erasing=1.0)), image, 0)
    colours = x.flatten(1).T.unique(dim=0).tolist()
    assert colours == [[0, 0, 0], [51, 102, 153]]


@pytest.mark.parametrize(
    "wrong", [{"crop_scale": 0.0}, {"crop_scale": 1.5}, {"flip": "up"}, {"policy": "magic"}, {"erasing": 2.0}]
)
def test_settings_that_make_no_sense_are_named(wrong):
    with pytest.raises(ValueError, match=next(iter(wrong))):
        Augmentation(**wrong)


def test_dihedral_views_are_the_eight_symmetries_of_the_square():
    x = torch.arange(9).view(1, 1, 3, 3)
    views = [dihedral(x, view) for view in range(8)]
    assert torch.equal(views[0], x)
    expected = {torch.rot90(y, k, (2, 3)).numpy().tobytes() for k in range(4) for y in (x, x.flip(-1))}
    assert {view.contiguous().numpy().tobytes() for view in views} == expected
    assert torch.equal(views[1], x.flip(-1))
