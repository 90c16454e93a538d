from __future__ import annotations

import logging
import multiprocessing
import os
import pickle
import resource
import signal
import threading
import time
import warnings
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from lenext import runs
from lenext.data import cache
from lenext.data import packs as sharing
from lenext.data.cache import pack
from lenext.data.decode import UnreadableImage
from lenext.data.samples import Files, Names, Samples
from tests.pictures import crop, photograph


@pytest.fixture(autouse=True)
def home(tmp_path, monkeypatch):
    """A cache folder of each test's own."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "home"))
    return tmp_path / "home"


def samples_of(root: Path, names: list[str] | None = None) -> Samples:
    names = names or sorted(str(path.relative_to(root)) for path in root.rglob("*.*"))
    n = len(names)
    return Samples(
        store=Files(root),
        images=Names(names),
        labels=np.zeros(n, np.int64),
        splits=np.full(n, -1, np.int8),
        weights=np.ones(n, np.float32),
        classes=("a",),
    )


@pytest.fixture
def root(tmp_path):
    """Twelve pictures of several sizes and formats."""
    folder, rng = tmp_path / "pictures", np.random.default_rng(0)
    folder.mkdir()
    for i in range(12):
        picture = crop(rng, 40 + 20 * (i % 4)).crop((0, 0, 40, 30 + 10 * (i % 3)))
        picture.save(folder / f"{i:02}.{('png', 'jpg', 'bmp')[i % 3]}")
    return folder


def forbid_decoding(monkeypatch):
    def fail(*_, **__):
        raise AssertionError("decoded again")

    monkeypatch.setattr(Samples, "decode", fail)


def packs() -> list[Path]:
    return sorted(path.parent for path in runs.cache_folder("packed").glob("*/index.npz"))


def assert_same(a, b):
    assert len(a) == len(b)
    for x, y in zip(a, b):
        np.testing.assert_array_equal(x, y)


def test_packed_pictures_are_the_decoded_ones_and_are_decoded_once(root, monkeypatch):
    samples, told = samples_of(root), list[int]()
    packed = pack(samples, 64, progress=told.append)
    assert packed.cached
    assert told[:12] == list(range(1, 13))
    assert_same(packed, [samples.decode(i) for i in range(12)])
    forbid_decoding(monkeypatch)
    assert_same(pack(samples, 64, progress=told.append), packed)
    assert told[-1] == 12


def test_large_pictures_are_shrunk_as_pillow_does_it(tmp_path):
    image = photograph()  # 427 x 640
    Image.fromarray(image).save(tmp_path / "large.png")
    Image.fromarray(image[:50, :300]).save(tmp_path / "small.png")
    large, small = pack(samples_of(tmp_path), 100)
    assert large.shape == (100, 150, 3)
    reference = np.array(Image.fromarray(image).resize((150, 100), Image.Resampling.BILINEAR))
    assert np.abs(large.astype(int) - reference).max() <= 2
    np.testing.assert_array_equal(small, image[:50, :300])


@pytest.mark.parametrize("cached", [True, False])
def test_broken_pictures_are_named_also_the_second_time(root, cached):
    (root / "00.png").write_bytes(b"")
    names = [*sorted(path.name for path in root.iterdir()), "gone.png"]
    for _ in range(2):
        packed = pack(samples_of(root, names), 64, cache=cached)
        assert packed.readable.tolist() == list(range(1, 12))
        assert "empty" in packed.reasons[0]
        assert "does not exist" in packed.reasons[12]
        with pytest.raises(UnreadableImage):
            packed[12]


def test_all_pictures_broken_or_none_at_all(tmp_path):
    (tmp_path / "a.png").write_bytes(b"no picture")
    for _ in range(2):
        packed = pack(samples_of(tmp_path), 64)
        assert packed.cached
        assert len(packed.readable) == 0
    assert len(pack(samples_of(tmp_path).take([]), 64)) == 0


def test_on_demand_gives_the_same_pictures_and_names_one_that_vanished(root):
    samples = samples_of(root)
    bare = pack(samples, 64, cache=False)
    assert not bare.cached
    assert not packs()
    assert_same(bare, pack(samples, 64))
    (root / "03.png").unlink()
    with pytest.raises(UnreadableImage, match=r"03\.png: the file does not exist"):
        bare[3]


def test_known_reasons_save_decoding(root, monkeypatch):
    forbid_decoding(monkeypatch)
    bare = pack(samples_of(root), 64, cache=False, reasons={2: "broken"})
    assert bare.readable.tolist() == [i for i in range(12) if i != 2]


def test_changed_pictures_sizes_and_digests_make_other_packs(root):
    samples = samples_of(root)
    pack(samples, 64)
    pack(samples, 32)
    assert len(packs()) == 2
    Image.fromarray(photograph()[:30, :30]).save(root / "00.png")
    assert pack(samples, 64)[0].shape == (30, 30, 3)
    assert len(packs()) == 3
    digests = np.zeros((12, 16), np.uint8)
    pack(samples, 64, digests=digests)
    os.utime(root / "00.png")  # content counts where it is known, not the time
    pack(samples, 64, digests=digests)
    assert len(packs()) == 4
    digests[5, 7] = 1
    pack(samples, 64, digests=digests)
    assert len(packs()) == 5


def test_other_processes_read_a_pack(root):
    packed = pack(samples_of(root), 64)
    with multiprocessing.get_context("fork").Pool(1) as pool:
        assert_same(pool.map(packed.__getitem__, range(12)), packed)


def test_a_pack_is_sent_to_a_spawned_process_by_its_place(root):
    packed = pack(samples_of(root), 64)
    data = pickle.dumps(packed)
    assert len(data) < 1000
    assert_same(pickle.loads(data), packed)


@pytest.mark.parametrize("damage", ["cut data", "no data", "cut index", "flipped index", "empty index", "no index"])
def test_damaged_packs_are_built_again(root, damage):
    samples = samples_of(root)
    expected = [samples.decode(i) for i in range(12)]
    pack(samples, 64)
    (folder,) = packs()
    what, name = damage.split()
    file = folder / {"data": "pixels", "index": "index.npz"}[name]
    data = bytearray(file.read_bytes())
    if what == "no":
        file.unlink()
    else:
        middle = len(data) // 2
        flipped = data[:middle] + bytes([data[middle] ^ 1]) + data[middle + 1 :]
        file.write_bytes(bytes({"cut": data[:-5], "flipped": flipped, "empty": bytearray()}[what]))
    assert_same(pack(samples, 64), expected)


# ------------------------------------------------------------------------------- processes that die, wait and compete


def slow_decode(monkeypatch, seconds: float) -> None:
    decode = Samples.decode

    def slow(self, index, *, shrink_to=None):
        time.sleep(seconds)
        return decode(self, index, shrink_to=shrink_to)

    monkeypatch.setattr(Samples, "decode", slow)


def in_process(function, *arguments):
    process = multiprocessing.get_context("fork").Process(target=function, args=arguments)
    process.start()
    return process


def wait_for(condition, seconds=30) -> None:
    end = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < end
        time.sleep(0.005)


def test_a_killed_builder_leaves_nothing_that_is_taken_for_a_pack(root, monkeypatch):
    samples = samples_of(root)
    with monkeypatch.context() as patch:
        slow_decode(patch, 0.2)
        builder = in_process(pack, samples, 64)
        wait_for(lambda: list(runs.cache_folder("packed").glob("*/pixels")))
        os.kill(builder.pid, signal.SIGKILL)
        builder.join()
    (leftover,) = runs.cache_folder("packed").iterdir()
    assert not packs()
    pack(samples, 32)  # another pack: the leftover goes
    assert not leftover.exists()
    assert_same(pack(samples, 64), [samples.decode(i) for i in range(12)])


def test_an_interrupted_builder_cleans_up(root):
    def interrupt(n: int) -> None:
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        pack(samples_of(root), 64, progress=interrupt)
    assert not list(runs.cache_folder("packed").iterdir())


def test_of_two_processes_one_builds_and_the_other_says_that_it_waits(root, monkeypatch, caplog, tmp_path):
    samples = samples_of(root)

    def build() -> None:
        pack(samples, 64)
        (tmp_path / "built").touch()

    with monkeypatch.context() as patch:
        slow_decode(patch, 0.1)
        builder = in_process(build)
    wait_for(lambda: list(runs.cache_folder("packed").glob("*/pixels")))
    forbid_decoding(monkeypatch)
    with caplog.at_level(logging.INFO, "lenext"):
        packed = pack(samples, 64)
    assert "waiting" in caplog.text
    builder.join()
    assert builder.exitcode == 0
    assert (tmp_path / "built").exists()
    assert len(packed) == 12


def test_who_waits_for_a_builder_that_dies_builds_itself(root, monkeypatch):
    samples = samples_of(root)
    expected = [samples.decode(i) for i in range(12)]
    with monkeypatch.context() as patch:
        slow_decode(patch, 1.0)
        builder = in_process(pack, samples, 64)
    wait_for(lambda: list(runs.cache_folder("packed").glob("*/pixels")))
    threading.Timer(0.2, os.kill, (builder.pid, signal.SIGKILL)).start()
    assert_same(pack(samples, 64), expected)
    builder.join()


# ------------------------------------------------------------------------------------------------------- disk space


def folders_of_noise(tmp_path, count: int) -> list[Samples]:
    """Data sets of 4 pictures with 10,800 bytes of pixels each, 43,200 a data set."""
    rng, found = np.random.default_rng(0), []
    for number in range(count):
        folder = tmp_path / f"noise{number}"
        folder.mkdir()
        for i in range(4):
            Image.fromarray(rng.integers(0, 256, (60, 60, 3), np.uint8)).save(folder / f"{i}.png")
        found.append(samples_of(folder))
    return found


def test_packs_used_least_recently_make_way_and_none_in_use(tmp_path):
    first, second, third, fourth = folders_of_noise(tmp_path, 4)
    limit = 3 * 43_200
    pack(first, 64, limit_bytes=limit)
    (first_folder,) = packs()
    used = pack(second, 64, limit_bytes=limit)
    (used_folder,) = set(packs()) - {first_folder}
    pack(third, 64, limit_bytes=limit)
    os.utime(used_folder / "index.npz", (1, 1))  # the oldest, but in use
    os.utime(first_folder / "index.npz", (2, 2))
    pack(first, 64, limit_bytes=limit)  # used again, so the third goes
    pack(fourth, 64, limit_bytes=limit)
    assert len(packs()) == 3
    assert first_folder in packs()
    assert used_folder in packs()
    assert_same(used, [second.decode(i) for i in range(4)])


def test_a_pack_in_use_by_another_process_stays(tmp_path):
    first, second = folders_of_noise(tmp_path, 2)
    ready, done = multiprocessing.Event(), multiprocessing.Event()

    def use() -> None:
        packed = pack(first, 64)
        ready.set()
        done.wait(60)
        assert_same(packed, [first.decode(i) for i in range(4)])

    user = in_process(use)
    assert ready.wait(60)
    (kept,) = packs()
    assert not pack(second, 64, limit_bytes=60_000).cached
    assert packs() == [kept]
    done.set()
    user.join()
    assert user.exitcode == 0
    assert pack(second, 64, limit_bytes=60_000).cached
    assert kept not in packs()


def test_pictures_stay_encoded_where_pixels_would_be_too_many(tmp_path):
    root = tmp_path / "mixed"
    root.mkdir()
    rng = np.random.default_rng(0)
    for i in range(6):
        Image.new("RGB", (60, 60), (i, 40, 200)).save(root / f"flat{i}.png")  # 200 bytes against 10,800
        Image.fromarray(rng.integers(0, 256, (10, 10, 3), np.uint8)).save(root / f"noise{i}.png")  # 300 are less
    samples = samples_of(root)
    packed = pack(samples, 64, limit_bytes=10_000)
    assert packed.cached
    (folder,) = packs()
    assert (folder / "pixels").stat().st_size < 5_000
    with np.load(folder / "index.npz") as index:
        kinds = dict(zip(samples.images, index["kinds"].tolist()))
    assert {kind for name, kind in kinds.items() if name.startswith("flat")} == {cache.ENCODED}
    assert {kind for name, kind in kinds.items() if name.startswith("noise")} == {cache.PIXELS}
    assert_same(packed, [samples.decode(i) for i in range(12)])


def test_what_turns_out_larger_than_estimated_stays_in_the_limit(tmp_path, monkeypatch):
    (samples,) = folders_of_noise(tmp_path, 1)
    monkeypatch.setattr(cache, "_estimate", lambda *_: (1000, 1000))
    packed = pack(samples, 64, limit_bytes=20_000)
    assert not packed.cached
    assert not list(runs.cache_folder("packed").iterdir())
    assert_same(packed, [samples.decode(i) for i in range(4)])


def without_cache(samples: Samples, caplog, **options) -> None:
    """Packing is said to be impossible in one line, and the pictures come all the same."""
    caplog.clear()
    with caplog.at_level(logging.INFO, "lenext"):
        packed = pack(samples, 64, **options)
    assert len(caplog.records) == 1
    assert "decoded anew" in caplog.text
    assert not packed.cached
    assert_same(packed, [samples.decode(i) for i in range(len(samples))])


def test_without_a_place_pictures_are_decoded_on_demand(root, home, caplog, monkeypatch):
    samples = samples_of(root)
    without_cache(samples, caplog, limit_bytes=1000)
    with monkeypatch.context() as patch:
        usage = sharing.shutil.disk_usage(root)
        patch.setattr(sharing.shutil, "disk_usage", lambda _: usage._replace(free=sharing.RESERVE_BYTES + 10_000))
        without_cache(samples, caplog)
    for path in (home / "lenext/packed", home / "lenext"):
        for left in path.iterdir():
            left.rmdir() if left.is_dir() else left.unlink()
    home.joinpath("lenext").rmdir()
    home.joinpath("lenext").write_text("a file where the folder should be")
    without_cache(samples, caplog)


def test_a_disk_that_fills_half_way_leaves_nothing_and_fails_nothing(root, caplog):
    samples = samples_of(root)
    before = signal.signal(signal.SIGXFSZ, signal.SIG_IGN)  # then the write fails as on a full disk
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (10_000, hard))
    try:
        without_cache(samples, caplog)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
        signal.signal(signal.SIGXFSZ, before)
    assert not list(runs.cache_folder("packed").iterdir())


def test_packed_pixels_make_batches_without_a_warning(root):
    from lenext.data.loader import Batches
    from lenext.data.transforms import PRESETS, train_transform
    from lenext.preprocess import Preprocess

    with warnings.catch_warnings():
        warnings.simplefilter("error")
        source = Batches(
            pack(samples_of(root), 64),
            train_transform(Preprocess(image_size=24), PRESETS["light"]),
            batch_size=4,
        )  # fmt: skip
        assert sum(len(x) for x, _ in source.epoch(0)) == 12
