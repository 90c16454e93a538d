from __future__ import annotations

import numpy as np
import pytest
import torch
from torchvision.transforms import v2

from lenext.data.cache import pack
from lenext.data.loader import Batches, derive_seed, epoch_order
from lenext.data.transforms import (
    AUGMENTATIONS,
    dihedral,
    eval_transform,
    normalise,
    to_tensor,
    train_transform,
)
from lenext.preprocess import Preprocess
from tests.pictures import make_folder, photograph


@pytest.fixture(scope="module")
def pictures(tmp_path_factory):
    root = make_folder(tmp_path_factory.mktemp("pictures"), ["a", "b"], 13, size=40)
    return pack(sorted(root.rglob("*.png")), short_side=40)


def batches(pictures, **options):
    transform = train_transform(Preprocess(image_size=32), "strong")
    return Batches(pictures, transform, batch_size=8, **options)


def collect(source, epoch):
    parts = list(source.epoch(epoch))
    return torch.cat([x for x, _ in parts]), torch.cat([index for _, index in parts])


def test_batches_depend_on_seed_and_epoch_and_not_on_workers(pictures):
    x, index = collect(batches(pictures, seed=1), 3)
    for workers in (1, 2):
        again, same = collect(batches(pictures, seed=1, workers=workers), 3)
        assert torch.equal(again, x)
        assert torch.equal(same, index)
    torch.manual_seed(99)  # the state of the global generator has no say
    assert torch.equal(collect(batches(pictures, seed=1), 3)[0], x)
    for seed, epoch in ((2, 3), (1, 4)):
        other, order = collect(batches(pictures, seed=seed), epoch)
        assert not torch.equal(order, index)
        assert not torch.equal(other, x)


def test_every_picture_comes_once_and_small_rests_are_dropped(pictures):
    assert sorted(torch.cat([i for _, i in batches(pictures).in_order()]).tolist()) == list(range(26))
    assert len(batches(pictures)) == 3  # 26 = 3 * 8 + 2, and 2 is less than half a batch
    assert len(collect(batches(pictures), 0)[1].unique()) == 24


def test_global_order_is_the_same_for_every_world_size(pictures):
    whole = collect(batches(pictures, seed=5), 1)[1]
    ranks = [list(batches(pictures, seed=5, rank=rank, world_size=2).epoch(1)) for rank in (0, 1)]
    merged = [torch.stack([a, b], 1).flatten() for (_, a), (_, b) in zip(*ranks)]
    assert torch.equal(torch.cat(merged), whole)


def test_orders_are_permutations_that_look_unrelated():
    orders = [epoch_order(1000, seed, epoch) for seed in (0, 1) for epoch in (0, 1, 2)]
    for order in orders:
        assert sorted(order) == list(range(1000))
    agreement = [np.mean(a == b) for i, a in enumerate(orders) for b in orders[:i]]
    assert max(agreement) < 0.02
    assert len({derive_seed("x", i) for i in range(1000)}) == 1000


def test_eval_transform_is_torchvisions_resize_and_centre_crop():
    preprocess = Preprocess(image_size=96, crop_fraction=0.75, interpolation="bicubic")
    image = photograph()
    reference = v2.Compose([v2.Resize(128, v2.InterpolationMode.BICUBIC, antialias=True), v2.CenterCrop(96)])
    assert torch.equal(eval_transform(preprocess)(image), reference(to_tensor(image)))
    normalised = v2.Normalize(preprocess.mean, preprocess.std)(to_tensor(image).float() / 255)
    torch.testing.assert_close(normalise(to_tensor(image)[None], preprocess)[0], normalised)


@pytest.mark.parametrize("augment", AUGMENTATIONS)
@pytest.mark.parametrize("shape", [(100, 300), (300, 100), (20, 24), (64, 64)])
def test_training_transforms_give_the_input_size_and_vary_unless_none(augment, shape):
    image = photograph()[: shape[0], : shape[1]]
    transform = train_transform(Preprocess(image_size=64), augment)
    results = []
    for seed in range(6):
        torch.manual_seed(seed)
        results.append(transform(image))
    assert all(x.shape == (3, 64, 64) and x.dtype == torch.uint8 for x in results)
    assert (len({x.numpy().tobytes() for x in results}) == 1) == (augment == "none")


def test_dihedral_views_are_the_eight_symmetries_of_the_square():
    x = torch.arange(9).view(1, 1, 3, 3)
    views = [dihedral(x, view) for view in range(8)]
    assert torch.equal(views[0], x)
    expected = {torch.rot90(y, k, (2, 3)).numpy().tobytes() for k in range(4) for y in (x, x.flip(-1))}
    assert {view.contiguous().numpy().tobytes() for view in views} == expected
    assert torch.equal(views[1], x.flip(-1))


def test_pack_names_broken_files_and_shrinks_large_ones(tmp_path):
    make_folder(tmp_path, ["a"], 3, size=100)
    (tmp_path / "a/1.png").write_bytes(b"")
    packed = pack([tmp_path / f"a/{i}.png" for i in range(4)], short_side=50)
    assert packed[0].shape == (50, 50, 3)
    assert packed.readable.tolist() == [0, 2]
    assert "empty" in packed.reasons[1]
    assert "does not exist" in packed.reasons[3]


def test_pictures_beyond_the_memory_are_decoded_again_to_the_same_pixels(tmp_path, monkeypatch):
    make_folder(tmp_path, ["a"], 4, size=64)
    paths = sorted(tmp_path.rglob("*.png"))
    whole = pack(paths, short_side=64)
    monkeypatch.setattr("lenext.data.cache.MEMORY_SHARE", 1e-12)
    bare = pack(paths, short_side=64)
    assert all(pixels is None for pixels in bare.pixels)
    for a, b in zip(whole, bare):
        np.testing.assert_array_equal(a, b)
