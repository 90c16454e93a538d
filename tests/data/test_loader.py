from __future__ import annotations

import os
import signal
import time

import numpy as np
import psutil
import pytest
import torch

from lenext.data.decode import UnreadableImage
from lenext.data.loader import Batches, default_workers, derive_seed, epoch_order
from lenext.data.transforms import PRESETS, eval_transform, train_transform
from lenext.preprocess import Preprocess
from tests.pictures import crop

N = 26


class Pictures:
    """26 small pictures; asking for number `broken` fails as a vanished file does."""

    def __init__(self, broken: int | None = None) -> None:
        rng = np.random.default_rng(0)
        self.pixels = [np.array(crop(rng, 40)) for _ in range(N)]
        self.broken = broken

    def __len__(self) -> int:
        return N

    def __getitem__(self, index: int) -> np.ndarray:
        if index == self.broken:
            raise UnreadableImage("cats/7.jpg: the file does not exist")
        return self.pixels[index]


PICTURES = Pictures()


def batches(pictures=PICTURES, preset="standard", **options):
    transform = train_transform(Preprocess(image_size=32), PRESETS[preset])
    return Batches(pictures, transform, batch_size=options.pop("batch_size", 8), **options)


def collect(iterator):
    parts = list(iterator)
    return torch.cat([x for x, _ in parts]), torch.cat([index for _, index in parts])


def test_batches_depend_on_seed_and_epoch_and_not_on_workers():
    x, index = collect(batches(seed=1, preset="strong").epoch(3))
    for workers in (1, 2):
        again, same = collect(batches(seed=1, preset="strong", workers=workers).epoch(3))
        assert torch.equal(again, x)
        assert torch.equal(same, index)
    torch.manual_seed(99)  # the state of the global generator has no say
    assert torch.equal(collect(batches(seed=1, preset="strong").epoch(3))[0], x)
    for seed, epoch in ((2, 3), (1, 4)):
        other, order = collect(batches(seed=seed, preset="strong").epoch(epoch))
        assert not torch.equal(order, index)
        assert not torch.equal(other, x)


def test_a_batch_holds_what_the_transform_gives_for_its_pictures():
    source = batches(seed=4)
    transform = train_transform(Preprocess(image_size=32), PRESETS["standard"])
    for x, index in source.epoch(2):
        assert x.is_contiguous(memory_format=torch.channels_last)
        for picture, i in zip(x, index.tolist()):
            rng = np.random.default_rng(derive_seed("augment", 4, 2, i, 0))
            assert torch.equal(picture, transform(PICTURES[i], rng))


def test_in_order_gives_every_picture_once_as_evaluation_sees_it():
    transform = eval_transform(Preprocess(image_size=32))
    x, index = collect(Batches(PICTURES, transform, batch_size=8).in_order())
    assert index.tolist() == list(range(N))
    assert torch.equal(x, torch.stack([transform(picture) for picture in PICTURES.pixels]))


def test_small_rests_are_dropped():
    assert len(batches()) == 3  # 26 = 3 * 8 + 2, and 2 is less than half a batch
    assert len(collect(batches().epoch(0))[1].unique()) == 24
    assert [len(i) for _, i in batches(batch_size=9).epoch(0)] == [9, 9, 8]


def test_an_epoch_can_begin_in_its_middle():
    source = batches(seed=3)
    whole = list(source.epoch(5))
    for start in (1, 2, 3):
        rest = list(source.epoch(5, start))
        assert len(rest) == 3 - start
        for (x, index), (y, same) in zip(whole[start:], rest, strict=True):
            assert torch.equal(index, same)
            assert torch.equal(x, y)


@pytest.mark.parametrize(
    "options",
    [{}, {"repeats": 2}, {"sampling": "balanced", "labels": np.arange(N) % 3}],
    ids=["shuffled", "repeated", "balanced"],
)
def test_global_batches_are_the_same_for_every_world_size(options):
    whole_x, whole = collect(batches(seed=5, **options).epoch(1))
    ranks = [list(batches(seed=5, rank=rank, world_size=2, **options).epoch(1)) for rank in (0, 1)]
    merged = [torch.stack([a, b], 1).flatten() for (_, a), (_, b) in zip(*ranks, strict=True)]
    assert torch.equal(torch.cat(merged), whole)
    merged_x = [torch.stack([a, b], 1).flatten(0, 1) for (a, _), (b, _) in zip(*ranks, strict=True)]
    assert torch.equal(torch.cat(merged_x), whole_x)


@pytest.mark.parametrize(("batch_size", "world_size"), [(10, 4), (7, 4), (8, 8), (3, 5)])
def test_processes_get_equally_many_pictures_and_know_which_are_fillers(batch_size, world_size):
    whole = [index for _, index in batches(seed=2, batch_size=batch_size).epoch(1)]
    sources = [batches(seed=2, batch_size=batch_size, rank=r, world_size=world_size) for r in range(world_size)]
    for start in (0, 1):
        for expected, *ranks in zip(whole[start:], *(source.epoch(1, start) for source in sources), strict=True):
            assert len({len(x) for x, _ in ranks}) == 1
            assert all(len(x) == len(index) for x, index in ranks)
            merged = torch.stack([index for _, index in ranks], 1).flatten()
            assert torch.equal(merged[merged < N], expected)
            assert set((merged[merged >= N] % N).tolist()) <= set(expected.tolist())  # a picture of the batch again


def test_orders_are_permutations_that_look_unrelated():
    orders = [epoch_order(1000, seed, epoch) for seed in (0, 1) for epoch in (0, 1, 2)]
    for order in orders:
        assert sorted(order) == list(range(1000))
    agreement = [np.mean(a == b) for i, a in enumerate(orders) for b in orders[:i]]
    assert max(agreement) < 0.02
    assert len({derive_seed("x", i) for i in range(1000)}) == 1000


def test_repeated_pictures_stand_in_one_batch_each_altered_anew():
    for x, index in batches(repeats=4, seed=1).epoch(0):
        _, counts = index.unique(return_counts=True)
        assert counts.tolist() == [4, 4]
        assert len({picture.numpy().tobytes() for picture in x}) == 8
    for n, repeats in ((100, 3), (8, 8), (10, 4)):
        order = epoch_order(n, 0, 0, repeats=repeats)
        assert len(order) == n
        assert len(np.unique(order)) == -(-n // repeats)
    seen = np.concatenate([epoch_order(100, 0, epoch, repeats=4) for epoch in range(40)])
    assert len(np.unique(seen)) == 100  # another quarter every epoch
    with pytest.raises(ValueError, match="batch_size 8 is not a multiple of repeats 3"):
        batches(repeats=3)


def test_balanced_epochs_have_every_class_equally_often_and_large_classes_in_turn():
    labels = np.repeat([0, 1, 5], [900, 90, 10])  # class numbers may have gaps
    orders = [epoch_order(1000, 0, epoch, labels=labels) for epoch in range(8)]
    for order in orders:
        counts = np.bincount(labels[order])[[0, 1, 5]]
        assert abs(counts - 1000 / 3).max() <= 1
        times = np.bincount(order, minlength=1000)
        for size, members in ((900, labels == 0), (90, labels == 1), (10, labels == 5)):
            assert times[members].min() >= 1000 // 3 // size
            assert times[members].max() <= -(-1000 // 3 // size) + 1
        assert np.abs(np.corrcoef(labels[order], np.arange(1000))[0, 1]) < 0.15  # classes are not in blocks
    assert len(np.unique(np.concatenate(orders))) > 900  # what one epoch leaves out comes in another
    assert not np.array_equal(orders[0], orders[1])


def test_weighted_epochs_draw_in_proportion_to_the_weights():
    weights = np.random.default_rng(0).exponential(size=500).astype(np.float32)
    weights[:5] = 0
    expected = 500 * weights / weights.sum()
    counts = [np.bincount(epoch_order(500, 0, epoch, weights=weights), minlength=500) for epoch in range(200)]
    for count in counts:
        assert count.sum() == 500
        assert (np.floor(expected) <= count).all()
        assert (count <= np.ceil(expected)).all()
    assert np.abs(np.mean(counts, 0) - expected).max() < 0.2


def test_pictures_drawn_repeatedly_are_altered_anew_in_an_epoch():
    source = batches(sampling="weighted", weights=np.eye(1, N, 3)[0])
    x, index = collect(source.epoch(0))
    assert set(index.tolist()) == {3}
    assert len({picture.numpy().tobytes() for picture in x}) == len(x)


def test_workers_live_from_epoch_to_epoch_and_end_with_their_batches():
    source = batches(workers=2)
    before = {child.pid for child in psutil.Process().children()}
    list(source.epoch(0))
    workers = {child.pid for child in psutil.Process().children()} - before
    assert len(workers) == 2
    next(source.epoch(1))  # an epoch that is not finished does not disturb the next
    assert torch.equal(collect(source.epoch(2))[0], collect(batches().epoch(2))[0])
    for pid in workers:
        os.kill(pid, signal.SIGINT)  # Ctrl-C is the training process's to handle
    list(source.epoch(3))
    assert {child.pid for child in psutil.Process().children()} - before == workers
    del source
    assert not any(psutil.pid_exists(pid) for pid in workers)


# Torch raises the error wherever this process is when it learns of the death, once more perhaps while it cleans up.
@pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning")
def test_a_worker_that_is_killed_ends_the_epoch_with_an_error():
    def go_on() -> None:
        try:
            list(iterator)
        finally:
            time.sleep(0.3)  # where the loader missed its memory first, torch's own notice is still on its way

    source = batches(workers=1, batch_size=2)
    before = {child.pid for child in psutil.Process().children()}
    iterator = source.epoch(0)
    next(iterator)
    (worker,) = {child.pid for child in psutil.Process().children()} - before
    os.kill(worker, signal.SIGKILL)
    begin = time.monotonic()
    with pytest.raises(RuntimeError, match=r"(?s)was killed|is killed by signal"):
        go_on()
    assert time.monotonic() - begin < 60


@pytest.mark.parametrize("workers", [0, 1])
def test_a_picture_that_has_become_unreadable_ends_the_epoch_by_its_name(workers):
    with pytest.raises(UnreadableImage, match=r"^cats/7.jpg: the file does not exist$"):
        list(batches(Pictures(broken=5), workers=workers).epoch(0))


def test_the_processor_that_trains_is_left_alone_where_pictures_are_decoded():
    assert default_workers(torch.device("cpu"), cached=True) == 0
    assert default_workers(torch.device("cpu"), cached=False) >= 1
    assert default_workers(torch.device("cuda"), cached=True) >= 1
