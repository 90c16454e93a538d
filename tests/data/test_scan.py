from __future__ import annotations

import hashlib
import io
import itertools
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from PIL import Image, ImageEnhance
from sklearn.datasets import load_digits

from lenext.data import scan as scanning
from lenext.data import sources
from lenext.data.decode import UnreadableImage
from lenext.data.duplicates import MAX_BITS, WINDOW, near_pairs
from lenext.data.samples import Files, Names, Samples, Store
from lenext.data.scan import scan
from tests.pictures import crop, make_folder, photograph


@pytest.fixture(autouse=True)
def cache(tmp_path_factory, monkeypatch) -> Path:
    folder = tmp_path_factory.mktemp("cache")
    monkeypatch.setenv("XDG_CACHE_HOME", str(folder))
    return folder / "lenext" / "scan"


class Contents:
    """A store of encoded bytes or pixels."""

    def __init__(self, items: list) -> None:
        self.items = items

    def read(self, name: str, place: int) -> bytes | np.ndarray:
        return self.items[place]


def samples(store: Store, names: list[str]) -> Samples:
    n = len(names)
    return Samples(
        store=store,
        images=Names(names),
        labels=np.zeros(n, np.int64),
        splits=np.zeros(n, np.int8),
        weights=np.ones(n, np.float32),
        classes=("a",),
    )


def folder(root: Path) -> Samples:
    return samples(Files(root), sorted(p.name for p in root.iterdir()))


def of(*items: bytes | np.ndarray) -> Samples:
    return samples(Contents(list(items)), [str(i) for i in range(len(items))])


def encoded(image: Image.Image, format: str = "PNG", **options) -> bytes:
    buffer = io.BytesIO()
    image.save(buffer, format, **options)
    return buffer.getvalue()


def photos(count: int, size: int = 96, seed: int = 0) -> list[Image.Image]:
    """Cut-outs of two photographs that hardly overlap."""
    rng = np.random.default_rng(seed)
    return [crop(rng, size, ("china.jpg", "flower.jpg")[i % 2]) for i in range(count)]


@pytest.fixture
def pictures(tmp_path) -> Path:
    root = tmp_path / "pictures"
    root.mkdir()
    for i, photo in enumerate(photos(4)):
        photo.save(root / f"{i}.png")
    return root


# ---- what one look tells


def test_a_look_gives_digest_size_and_reason(tmp_path):
    photo = Image.fromarray(photograph())
    exif = Image.Exif()
    exif[0x0112] = 6  # a quarter turn
    good = encoded(photo, "JPEG", exif=exif)
    big = encoded(photo.resize((1280, 854)), "JPEG")
    contents = {"a.jpg": good, "b.jpg": big[: len(big) - 400], "c.txt.png": b"no picture", "d.jpg": big}
    for name, data in contents.items():
        (tmp_path / name).write_bytes(data)
    seen = scan(folder(tmp_path))
    assert seen.digests[0].tobytes() == hashlib.blake2b(good, digest_size=16).digest()
    assert seen.sizes.tolist() == [[427, 640], [0, 0], [0, 0], [1280, 854]]
    assert list(seen.reasons) == [1, 2]
    assert "cut off" in seen.reasons[1]  # although only a small version is decoded
    assert not seen.digests[[1, 2]].any()
    assert (seen.exact_duplicates() == -1).all()
    assert seen.brightness[3] == pytest.approx(np.asarray(photo.convert("L")).mean(), abs=2)
    assert seen.contrast[3] == pytest.approx(np.asarray(photo.convert("L").resize((24, 24))).std(), abs=3)


def test_pixels_are_looked_at_as_files_are():
    photo = photos(1)[0]
    seen = scan(of(np.asarray(photo), encoded(photo), np.asarray(photo).copy()))
    np.testing.assert_array_equal(seen.grey[0], seen.grey[1])
    assert seen.exact_duplicates().tolist() == [0, -1, 0]
    assert seen.near_duplicates().tolist() == [0, 0, 0]


def test_progress_counts_to_the_end():
    counts: list[int] = []
    scan(of(*(encoded(photo) for photo in photos(70, 16))), counts.append)
    assert counts == sorted(counts)
    assert counts[-1] == 70


def test_without_a_home_folder_the_scan_is_not_kept_but_made(monkeypatch):
    def no_home():
        raise RuntimeError("Could not determine home directory.")

    monkeypatch.delenv("XDG_CACHE_HOME")
    monkeypatch.setattr(Path, "home", no_home)
    assert scan(of(encoded(photos(1)[0]))).digests.any()


def test_nothing_to_look_at():
    seen = scan(of())
    assert len(seen.near_duplicates()) == len(seen.exact_duplicates()) == 0
    assert seen.hashes.shape == (0, 32)
    assert scan(of(encoded(photos(1)[0]))).near_duplicates().tolist() == [-1]


# ---- duplicates


def test_exact_duplicates_are_numbered_and_unreadable_pictures_are_alone():
    a, b, c = (encoded(photo) for photo in photos(3))
    seen = scan(of(b"x", a, b, a, c, b, b"x", a))
    assert groups(seen.exact_duplicates()) == [[1, 3, 7], [2, 5]]
    assert groups(seen.near_duplicates()) == [[1, 3, 7], [2, 5]]


def groups(numbers: np.ndarray) -> list[list[int]]:
    assert set(numbers) - {-1} == set(range(numbers.max() + 1))
    return sorted(np.flatnonzero(numbers == number).tolist() for number in range(numbers.max() + 1))


CHANGES = {
    "JPEG 50": lambda im: encoded(im, "JPEG", quality=50),
    "WebP": lambda im: encoded(im, "WEBP", quality=80),
    "smaller": lambda im: encoded(im.resize((64, 64)), "JPEG", quality=85),
    "larger": lambda im: encoded(im.resize((400, 400)), "PNG"),
    "much larger JPEG": lambda im: encoded(im.resize((1100, 1100)), "JPEG"),
    "cut": lambda im: encoded(im.crop((2, 0, 200, 198)), "JPEG", quality=90),
    "darker": lambda im: encoded(ImageEnhance.Brightness(im).enhance(0.85)),
    "flatter": lambda im: encoded(ImageEnhance.Contrast(im).enhance(0.85)),
    "grey": lambda im: encoded(im.convert("L")),
}


@pytest.mark.parametrize("change", CHANGES)
def test_changed_copies_are_near_duplicates_of_their_own_picture_only(change):
    whole = photograph(), photograph("flower.jpg")
    originals = [Image.fromarray(w[y : y + 200, x : x + 200]) for w in whole for y in (0, 220) for x in (0, 210, 420)]
    n = len(originals)
    seen = scan(of(*map(encoded, originals), *map(CHANGES[change], originals)))
    clusters = seen.near_duplicates()
    np.testing.assert_array_equal(clusters[:n], clusters[n:])
    found = clusters[:n][clusters[:n] >= 0]
    assert len(set(found)) == len(found) >= n - 3  # in a piece of sky, little is left to know a copy by
    assert (seen.exact_duplicates() == -1).all()


@pytest.mark.parametrize("size", [32, 64, 128])
def test_equal_drawings_before_different_skies_are_no_duplicates(size, tmp_path):
    seen = scan(sources.open_data(make_folder(tmp_path, ["a", "b", "c"], 40, size=size)))
    assert (seen.near_duplicates() >= 0).mean() < 0.08


def test_pictures_that_are_merely_alike_are_no_duplicates():
    digits = [np.repeat((x * 15.9).astype(np.uint8)[:, :, None], 3, axis=2) for x in load_digits().images[:600]]
    rng = np.random.default_rng(0)
    # The same frame, as a camera at an assembly line sees it, with another part in it.
    parts = []
    for x, y in itertools.product(range(60, 120, 12), repeat=2):
        part = np.full((200, 200, 3), 150, np.uint8)
        part[:20], part[-20:], part[:, 90:100] = 30, 30, 60
        part[y : y + 25, x : x + 25] = 220
        parts.append(np.clip(part + rng.normal(0, 4, part.shape), 0, 255).astype(np.uint8))
    assert (scan(of(*digits)).near_duplicates() == -1).all()
    assert (scan(of(*parts)).near_duplicates() == -1).all()


def test_another_colour_is_another_picture():
    red, blue = np.full((2, 80, 80, 3), 255, np.uint8)
    red[20:60, 20:60] = (230, 60, 60)
    blue[20:60, 20:60] = (60, 114, 230)  # of the same grey
    both = [Image.fromarray(pixels) for pixels in (red, blue)]
    assert scan(of(*map(encoded, both))).near_duplicates().tolist() == [-1, -1]
    without_colour = [encoded(image.convert("L")) for image in both]
    assert scan(of(*without_colour)).near_duplicates().tolist() == [0, 0]


def test_pictures_without_contrast_are_duplicates_only_if_equal():
    rng = np.random.default_rng(0)
    blank = [np.full((50, 50, 3), level, np.uint8) for level in (255, 255, 254, 0)]
    nearly = [rng.integers(252, 256, (50 + i, 50, 3)).astype(np.uint8) for i in range(40)]
    clusters = scan(of(*blank, *nearly)).near_duplicates()
    assert clusters.tolist() == [0, 0] + [-1] * 42


def test_many_copies_of_one_picture_are_one_cluster():
    rng = np.random.default_rng(0)
    photo = np.asarray(photos(1)[0]).astype(int)
    copies = [np.clip(photo + rng.integers(-3, 4, photo.shape), 0, 255).astype(np.uint8) for _ in range(60)]
    others = [np.asarray(image) for image in photos(20, 150, seed=1)]
    clusters = scan(of(*copies, *others)).near_duplicates()
    assert set(clusters[:60]) == {clusters[0]}
    assert clusters[0] not in clusters[60:]


# ---- the search among hashes


def brute_force(hashes: np.ndarray, most: int) -> set[tuple[int, int]]:
    bits = np.unpackbits(hashes, axis=1).astype(int)
    distance = (bits[:, None] != bits[None]).sum(axis=2)
    return {(int(i), int(j)) for i, j in np.argwhere(distance <= most) if i < j}


def planted(rng: np.random.Generator, n: int, flips: int) -> np.ndarray:
    """(2n, 32): random hashes, and copies with some bits flipped."""
    bits = rng.integers(0, 2, (n, 256)).astype(np.uint8)
    copies = bits.copy()
    for row in copies:
        row[rng.choice(256, flips, replace=False)] ^= 1
    return np.packbits(np.concatenate([bits, copies]), axis=1)


@pytest.mark.parametrize("flips", [0, 8, 24])
def test_search_finds_what_comparing_all_pairs_finds(flips):
    hashes = planted(np.random.default_rng(flips), 600, flips)
    found = [tuple(pair) for pair in near_pairs(hashes).tolist()]
    assert len(found) == len(set(found))
    assert set(found) == brute_force(hashes, MAX_BITS)


def test_search_compares_all_pairs_of_a_few_rows():
    hashes = planted(np.random.default_rng(0), (WINDOW + 1) // 2, MAX_BITS)
    assert {tuple(pair) for pair in near_pairs(hashes).tolist()} == brute_force(hashes, MAX_BITS) != set()


def test_search_of_equal_hashes_stays_small():
    assert len(near_pairs(np.zeros((3000, 32), np.uint8))) < 3000 * 200


# ---- the cache


def equal(a: scanning.Scan, b: scanning.Scan) -> bool:
    return a.reasons == b.reasons and all(
        np.array_equal(getattr(a, name), getattr(b, name)) for name in ("digests", "sizes", "grey", "colour")
    )


@pytest.fixture
def looks(monkeypatch) -> list[bytes]:
    """The contents that were decoded."""
    seen: list[bytes] = []
    real = scanning.decode

    def spy(source: bytes, **options):
        seen.append(source)
        return real(source, **options)

    monkeypatch.setattr(scanning, "decode", spy)
    return seen


def test_only_new_and_changed_files_are_looked_at_again(pictures, looks):
    first = scan(folder(pictures))
    assert len(looks) == 4
    looks.clear()
    assert equal(scan(folder(pictures)), first)
    assert looks == []
    changed, new = photos(2, 50, seed=9)
    changed.save(pictures / "2.png")
    new.save(pictures / "9.png")
    again = scan(folder(pictures))
    assert sorted(looks) == sorted((pictures / name).read_bytes() for name in ("2.png", "9.png"))
    np.testing.assert_array_equal(again.digests[[0, 1, 3]], first.digests[[0, 1, 3]])
    assert again.sizes[[2, 4]].tolist() == [[50, 50], [50, 50]]


def test_a_part_of_the_pictures_does_not_drive_out_the_others(pictures, looks):
    scan(samples(Files(pictures), ["0.png"]))
    scan(samples(Files(pictures), ["1.png", "2.png"]))
    looks.clear()
    scan(folder(pictures))
    assert looks == [(pictures / "3.png").read_bytes()]


def test_unreadable_files_are_looked_at_every_time(pictures, looks):
    (pictures / "4.png").write_bytes(b"still being copied")
    assert list(scan(folder(pictures)).reasons) == [4]
    looks.clear()
    assert list(scan(folder(pictures)).reasons) == [4]
    assert looks == [b"still being copied"]


def test_pictures_in_containers_are_known_by_their_bytes(looks):
    items = [encoded(photo) for photo in photos(3)]
    first = scan(of(*items))
    looks.clear()
    assert equal(scan(of(*items)), first)
    assert looks == []
    other = encoded(photos(1, seed=5)[0])
    scan(of(other, *items[1:]))
    assert looks == [other]


def cut_off(data: bytes) -> bytes:
    return data[: len(data) // 2]


def flip(data: bytes) -> bytes:
    middle = len(data) // 2
    return data[:middle] + bytes([data[middle] ^ 64]) + data[middle + 1 :]


@pytest.mark.parametrize("damage", [cut_off, flip, lambda data: b"", lambda data: os.urandom(len(data))])
def test_a_damaged_cache_is_rebuilt(pictures, cache, looks, damage):
    first = scan(folder(pictures))
    [file] = cache.iterdir()
    whole = file.read_bytes()
    file.write_bytes(damage(whole))
    looks.clear()
    assert equal(scan(folder(pictures)), first)
    assert len(looks) == 4
    looks.clear()
    scan(folder(pictures))
    assert looks == []


def test_without_a_place_for_the_cache_the_scan_works(pictures, tmp_path, monkeypatch):
    blocked = tmp_path / "a-file"
    blocked.write_text("")
    monkeypatch.setenv("XDG_CACHE_HOME", str(blocked))
    assert len(set(scan(folder(pictures)).digests[:, 0])) > 1


def test_the_files_unused_for_longest_are_removed(pictures, cache, monkeypatch):
    cache.mkdir(parents=True)
    for age, name in enumerate(("newer", "older"), start=1):
        (cache / name).write_bytes(bytes(10_000))
        os.utime(cache / name, (1000 - age, 1000 - age))
    monkeypatch.setattr(scanning, "CACHE_BYTES", 17_000)
    scan(folder(pictures))
    names = {file.name for file in cache.iterdir()}
    assert "newer" in names
    assert "older" not in names
    assert len(names) == 2


def test_an_interrupted_scan_keeps_what_it_saw(tmp_path, looks):
    for i, photo in enumerate(photos(100, 20)):
        photo.save(tmp_path / f"{i:03}.png")

    def interrupt(done: int) -> None:
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        scan(folder(tmp_path), interrupt)
    before = len(looks)
    assert before > 0
    scan(folder(tmp_path))
    assert len(looks) == 100


def test_an_error_that_is_no_fault_of_the_picture_is_raised(pictures, monkeypatch):
    def fail(source, **options):
        raise MemoryError("no memory left")

    monkeypatch.setattr(scanning, "decode", fail)
    with pytest.raises(MemoryError):
        scan(folder(pictures))


def test_a_store_may_say_that_it_has_no_picture():
    class Missing:
        def read(self, name: str, place: int) -> bytes:
            raise UnreadableImage("the shard is cut off")

    assert scan(samples(Missing(), ["a"])).reasons == {0: "the shard is cut off"}


def test_two_processes_at_once(pictures, cache):
    program = (
        "import sys; from pathlib import Path\n"
        "from lenext.data.scan import scan; from tests.data.test_scan import folder\n"
        "print(scan(folder(Path(sys.argv[1]))).digests.tobytes().hex())"
    )
    both = [
        subprocess.Popen([sys.executable, "-c", program, str(pictures)], stdout=subprocess.PIPE, text=True)
        for _ in range(2)
    ]
    answers = {process.communicate()[0].strip() for process in both}
    assert answers == {scan(folder(pictures)).digests.tobytes().hex()}
    assert [file.suffix for file in cache.iterdir()] == [".npz"]
