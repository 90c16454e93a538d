from __future__ import annotations

import gzip
import io
import json
import logging
import os
import pickle
import struct
import sys
import tarfile
import threading
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from lenext.data.decode import UnreadableImage
from lenext.data.forms import hub, shard_writing, shards, tar
from lenext.data.samples import SPLITS, UNSPLIT
from lenext.data.sources import open_data
from tests.data.tiny_imagenet import make_tiny_imagenet
from tests.pictures import crop, make_folder


@pytest.fixture
def said(caplog, monkeypatch):
    monkeypatch.setattr(logging.getLogger("lenext"), "propagate", True)
    caplog.set_level(logging.INFO, "lenext")
    return caplog


def names_of(samples):
    return [samples.label_text(i) for i in range(len(samples))]


def split_names(samples):
    return [None if code == UNSPLIT else SPLITS[code] for code in samples.splits]


def encoded(pixels: np.ndarray, form: str = "PNG") -> bytes:
    file = io.BytesIO()
    Image.fromarray(pixels).save(file, form)
    return file.getvalue()


def some_pixels(seed: int, size: int = 12) -> np.ndarray:
    return np.array(crop(np.random.default_rng(seed), size))


# Tiny-ImageNet


@pytest.mark.parametrize("above", [False, True])
def test_tiny_imagenet(tmp_path, said, above):
    root = make_tiny_imagenet(tmp_path / "tiny-imagenet-200")
    samples = open_data(tmp_path if above else root)
    assert samples.classes == ("crane (n02012849)", "crane (n03126707)", "goldfish")
    assert {split: set(counts.values()) for split, counts in samples.counts().items()} == {"train": {3}, "val": {1}}
    for image, label in zip(samples.images, names_of(samples)):
        if image.startswith("train"):
            assert label == "goldfish" if "n01443537" in image else image.split("/")[1] in label
    val = {image: label for image, label in zip(samples.images, names_of(samples)) if image.startswith("val")}
    assert val == {
        "val/images/val_0.JPEG": "crane (n03126707)",
        "val/images/val_1.JPEG": "crane (n02012849)",
        "val/images/val_2.JPEG": "goldfish",
    }
    assert "3 test pictures have no labels" in said.text
    assert samples.decode(0).shape == (64, 64, 3)


def test_tiny_imagenet_with_parts_missing(tmp_path):
    root = make_tiny_imagenet(tmp_path)
    with open(root / "val/val_annotations.txt", "a") as file:
        file.write("../../x.JPEG\tn01443537\t0\t0\t1\t1\n")
    with pytest.raises(ValueError, match=r"val_annotations.txt, line 4: '\.\./\.\./x"):
        open_data(root)
    (root / "train/n01443537").rename(root / "elsewhere")
    with pytest.raises(ValueError, match="n01443537 is missing"):
        open_data(root)


# IDX


def idx(array: np.ndarray) -> bytes:
    return struct.pack(f">HBB{array.ndim}I", 0, 8, array.ndim, *array.shape) + array.tobytes()


def write_idx(
    root: Path, *, prefix: str = "", test: str = "t10k", joint: str = "-", packed: bool = False, labels=(0, 1, 9, 1)
):
    root.mkdir(parents=True, exist_ok=True)
    pictures = np.random.default_rng(0).integers(0, 256, (2 * len(labels), 5, 7), np.uint8)
    write, ending = (gzip.compress, ".gz") if packed else (bytes, "")
    for half, part in (("train", pictures[: len(labels)]), (test, pictures[len(labels) :])):
        (root / f"{prefix}{half}-images{joint}idx3-ubyte{ending}").write_bytes(write(idx(part)))
        (root / f"{prefix}{half}-labels{joint}idx1-ubyte{ending}").write_bytes(write(idx(np.array(labels, np.uint8))))
    return pictures


@pytest.mark.parametrize("joint", "-.")
@pytest.mark.parametrize("packed", [False, True])
@pytest.mark.parametrize("below", ["", "raw"])
def test_mnist(tmp_path, joint, packed, below):
    pictures = write_idx(tmp_path / below, joint=joint, packed=packed)
    samples = open_data(tmp_path)
    assert samples.classes == ("0", "1", "9")
    assert names_of(samples) == ["0", "1", "9", "1"] * 2
    assert split_names(samples) == ["train"] * 4 + ["test"] * 4
    assert [samples.images[i] for i in (0, 7)] == ["train/0", "test/3"]
    turned = pickle.loads(pickle.dumps(samples)).take([7, 0, 3])  # as a worker process gets it
    for i, place in enumerate((7, 0, 3)):
        np.testing.assert_array_equal(turned.decode(i), np.dstack([pictures[place]] * 3))
    assert samples.size(0) == (7, 5)


def test_mnist_without_test_pictures_is_undivided(tmp_path):
    write_idx(tmp_path)
    for file in tmp_path.glob("t10k*"):
        file.unlink()
    assert set(split_names(open_data(tmp_path))) == {None}


def test_emnist_is_put_upright_and_named(tmp_path):
    pictures = write_idx(tmp_path, prefix="emnist-letters-", test="test", labels=(1, 2, 1))
    (tmp_path / "emnist-letters-mapping.txt").write_text("1 65 97\n2 66 98\n")
    samples = open_data(tmp_path)
    assert samples.classes == ("Aa", "Bb")
    assert names_of(samples) == ["Aa", "Bb", "Aa"] * 2
    np.testing.assert_array_equal(samples.decode(1)[:, :, 0], np.fliplr(np.rot90(pictures[1], -1)))
    write_idx(tmp_path, prefix="emnist-digits-", test="test")
    with pytest.raises(ValueError, match="several data sets \\(emnist-digits-, emnist-letters-\\)"):
        open_data(tmp_path)


def test_fashion_mnist_has_its_names(tmp_path, said):
    write_idx(tmp_path / "fashion-mnist")
    assert open_data(tmp_path / "fashion-mnist").classes == ("Ankle boot", "T-shirt/top", "Trouser")
    assert "Fashion-MNIST" in said.text


PICTURES = np.zeros((4, 5, 7), np.uint8)


@pytest.mark.parametrize(
    ("file", "content", "message"),
    [
        ("train-images-idx3-ubyte", idx(PICTURES)[:-1], "4 x 5 x 7 values are 140 bytes, it has 139"),
        ("train-images-idx3-ubyte", idx(PICTURES) + b"x", "140 bytes, it has more"),
        ("train-images-idx3-ubyte", b"<html>", "not an IDX file: it begins with 3c 68"),
        ("train-images-idx3-ubyte", b"", "begins with nothing"),
        ("train-images-idx3-ubyte", idx(PICTURES.reshape(4, 35)) + bytes(4), "in 2 dimensions; bytes .* in 3"),
        ("train-images-idx3-ubyte", b"\0\0\x0d\3" + idx(PICTURES)[4:], "type 0x0d"),
        ("train-images-idx3-ubyte", idx(PICTURES[:3]), "3 pictures but train-labels-idx1-ubyte 4 labels"),
        ("train-images-idx3-ubyte", struct.pack(">HBB3I", 0, 8, 3, 2**32 - 1, 2**32 - 1, 9), "cut off"),
        ("train-labels-idx1-ubyte", None, "lacks the file train-labels-idx1-ubyte"),
    ],
)
def test_damaged_idx_files(tmp_path, file, content, message):
    write_idx(tmp_path)
    if content is None:
        (tmp_path / file).unlink()
    else:
        (tmp_path / file).write_bytes(content)
    with pytest.raises(ValueError, match=message):
        open_data(tmp_path)


@pytest.mark.parametrize("damage", [lambda d: d[:-20], lambda d: d[:30] + b"\xff" * 9 + d[39:], lambda d: b"no gzip"])
def test_damaged_compressed_idx_file(tmp_path, damage):
    write_idx(tmp_path, packed=True)
    file = tmp_path / "train-images-idx3-ubyte.gz"
    file.write_bytes(damage(file.read_bytes()))
    with pytest.raises(ValueError, match=r"train-images-idx3-ubyte.gz is cut off or damaged"):
        open_data(tmp_path)


# CIFAR


def make_cifar(root: Path, labels: list[list[int]], names: list[str]) -> np.ndarray:
    """Two records a file; `labels` are the one or two bytes before each picture."""
    root.mkdir(parents=True)
    ten = len(labels[0]) == 1
    files = [*(f"data_batch_{i}.bin" for i in range(1, 6)), "test_batch.bin"] if ten else ["train.bin", "test.bin"]
    pictures = np.random.default_rng(0).integers(0, 256, (2 * len(files), 32, 32, 3), np.uint8)
    for number, file in enumerate(files):
        records = [
            bytes(labels[k % len(labels)]) + pictures[k].transpose(2, 0, 1).tobytes()
            for k in (2 * number, 2 * number + 1)
        ]
        (root / file).write_bytes(b"".join(records))
    (root / ("batches.meta.txt" if ten else "fine_label_names.txt")).write_text("\n".join(names) + "\n\n")
    return pictures


@pytest.mark.parametrize("above", [False, True])
@pytest.mark.parametrize("coarse", [(), (7,)])
def test_cifar(tmp_path, above, coarse):
    labels = [[*coarse, 2], [*coarse, 0], [*coarse, 1]]
    pictures = make_cifar(tmp_path / "cifar", labels, ["truck", "cat", "airplane"])
    samples = open_data(tmp_path if above else tmp_path / "cifar")
    assert samples.classes == ("airplane", "cat", "truck")
    assert names_of(samples) == [("airplane", "truck", "cat")[i % 3] for i in range(len(pictures))]
    assert split_names(samples) == ["train"] * (len(pictures) - 2) + ["test"] * 2
    assert samples.images[len(samples) - 1] == "test/1"
    copied = pickle.loads(pickle.dumps(samples))
    assert len(pickle.dumps(samples.store)) < 2000  # no pixels
    for i in range(len(pictures)):
        np.testing.assert_array_equal(copied.decode(i), pictures[i])


def test_cifar_that_is_incomplete(tmp_path):
    root = tmp_path / "a"
    make_cifar(root, [[0], [1]], ["cat", "dog"])
    whole = (root / "data_batch_3.bin").read_bytes()
    (root / "data_batch_3.bin").write_bytes(whole[:-5])
    with pytest.raises(ValueError, match=r"data_batch_3.bin is cut off: 6141 bytes are not whole pictures of 3073"):
        open_data(root)
    (root / "data_batch_3.bin").write_bytes(b"\x05" + whole[1:])
    with pytest.raises(ValueError, match=r"data_batch_3.bin has the label 5, but batches.meta.txt names 2"):
        open_data(root)
    (root / "data_batch_3.bin").unlink()
    with pytest.raises(ValueError, match=r"data_batch_3.bin is missing"):
        open_data(root)


@pytest.mark.parametrize("files", [["data_batch_1", "batches.meta"], ["train", "test", "meta"]])
def test_pickles_are_refused_unread(tmp_path, files):
    for file in files:
        (tmp_path / file).write_bytes(b"\x80\x04never loaded")
    with pytest.raises(ValueError, match=r"pickles, which can run any code.*binary version"):
        open_data(tmp_path)


# Shards


def make_tar(path: Path, members: dict[str, bytes] | list[tuple[str, bytes]], form: int = tarfile.USTAR_FORMAT) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    with tarfile.open(path, "w", format=form) as file:
        for name, content in dict(members).items() if isinstance(members, dict) else members:
            info = tarfile.TarInfo(name)
            info.size = len(content)
            file.addfile(info, io.BytesIO(content))
    return path


def test_shards_of_any_tool(tmp_path):
    pixels = [some_pixels(i) for i in range(6)]
    make_tar(
        tmp_path / "train/x-000.tar",
        {
            "a/0.png": encoded(pixels[0]), "a/0.cls": b"1",
            "a/1.JPG": encoded(pixels[1], "JPEG"), "a/1.txt": " 猫 \n".encode(),
            "a/2.json": b'{"label": 0, "weight": 0.5, "other": [1]}', "a/2.image.webp": encoded(pixels[2], "WEBP"),
        },
    )  # fmt: skip
    make_tar(
        tmp_path / "train/x-001.tar",
        {"0.png": encoded(pixels[3]), "0.cls": b"dog", "0.txt": b"a caption", "__notes__.txt": b"x"},
    )
    make_tar(
        tmp_path / "val/x-000.tar",
        {
            "0.png": encoded(pixels[4]), "0.json": b'{"label": "dog", "split": "test"}',
            "1.png": encoded(pixels[5]), "1.cls": b"1",
        },
    )  # fmt: skip
    (tmp_path / "classes.txt").write_text("cat\ndog\n")
    for data in (f"{tmp_path}/{{train,val}}/x-*.tar", tmp_path):
        samples = open_data(data)
        assert samples.classes == ("cat", "dog", "猫")
        assert names_of(samples) == ["dog", "猫", "cat", "dog", "dog", "dog"]
        assert split_names(samples) == ["train"] * 4 + ["test", "val"]
        assert samples.weights.tolist() == [1, 1, 0.5, 1, 1, 1]
        assert list(samples.images)[:4] == [
            "train/x-000/a/0.png", "train/x-000/a/1.JPG", "train/x-000/a/2.image.webp", "train/x-001/0.png",
        ]  # fmt: skip
        for i in (0, 3, 4, 5):
            np.testing.assert_array_equal(samples.decode(i), pixels[i])


def test_braces_are_written_out_as_a_shell_does(tmp_path):
    for i in (8, 9, 10, 11):
        make_tar(tmp_path / f"s-{i:04d}.tar", {f"{i}.png": encoded(some_pixels(i)), f"{i}.cls": b"0"})
    assert len(open_data(f"{tmp_path}/s-{{0008..0011}}.tar")) == 4
    assert list(open_data(f"{tmp_path}/s-{{0010..0011}}.tar").images) == ["s-0010/10.png", "s-0011/11.png"]
    assert len(open_data(f"{tmp_path}/s-000?.tar")) == 2
    assert len(open_data(tmp_path / "s-0009.tar")) == 1
    with pytest.raises(ValueError, match=r"s-0012.tar does not exist"):
        open_data(f"{tmp_path}/s-{{0008..0012}}.tar")
    with pytest.raises(ValueError, match="counts backwards"):
        open_data(f"{tmp_path}/s-{{0011..0008}}.tar")


PNG = encoded(np.zeros((2, 2, 3), np.uint8))


@pytest.mark.parametrize(
    ("members", "message"),
    [
        ([("0.png", PNG), ("1.png", PNG), ("1.cls", b"1")], "1 of 2 samples have no label .* such as .*s.tar, 0"),
        ([("0.png", PNG), ("0.cls", b"1"), ("1.png", PNG), ("1.cls", b"1"), ("0.txt", b"x")], "the sample '0' twice"),
        ([("0.png", PNG), ("0.cls", b"1"), ("0.cls", b"2")], "holds '0.cls' twice"),
        ([("0.png", PNG), ("0.jpg", PNG), ("0.cls", b"1")], "which of the pictures .png, .jpg"),
        ([("/etc/0.png", PNG), ("/etc/0.cls", b"1")], "member '/etc/0.png', which points outside"),
        ([("a/../../0.png", PNG)], "'a/../../0.png', which points outside"),
        ([("0.png", PNG), ("0.json", b"{")], "0.json is not valid JSON"),
        ([("0.png", PNG), ("0.json", b'{"label": "x", "split": "trian"}')], "split 'trian'"),
        ([("0.png", PNG), ("0.json", b'{"label": "x", "weight": -1}')], "weight -1"),
        ([("0.png", PNG), ("0.json", b'{"label": {"a": 1}}')], "neither a class name nor a number"),
        ([("0.png", PNG), ("0.cls", b"\xff\xfe")], "not UTF-8"),
        ([("0.cls", b"1")], "hold no pictures"),
    ],
)
def test_shards_that_make_no_sense(tmp_path, members, message):
    make_tar(tmp_path / "s.tar", members)
    with pytest.raises(ValueError, match=message):
        open_data(tmp_path / "s.tar")


def test_number_beyond_the_listed_classes(tmp_path):
    make_tar(tmp_path / "s.tar", {"0.png": PNG, "0.cls": b"2"})
    (tmp_path / "classes.json").write_text('["cat", "dog"]')
    with pytest.raises(ValueError, match="label 2 is not the number of one of 2 classes"):
        open_data(tmp_path / "s.tar")


@pytest.mark.parametrize(("ending", "command"), [(".tar.gz", "gunzip"), (".tgz", "gunzip"), (".tar.zst", "zstd -d")])
def test_compressed_shards_are_refused(tmp_path, ending, command):
    (tmp_path / f"s-0{ending}").write_bytes(b"x")
    for data in (tmp_path, tmp_path / f"s-0{ending}"):
        with pytest.raises(ValueError, match=f"compressed.*`{command}`"):
            open_data(data)


@pytest.mark.parametrize("kind", [tarfile.SYMTYPE, tarfile.LNKTYPE, tarfile.CHRTYPE, tarfile.FIFOTYPE])
def test_links_and_devices_are_refused(tmp_path, kind):
    with tarfile.open(tmp_path / "s.tar", "w") as file:
        info = tarfile.TarInfo("0.png")
        info.type, info.linkname = kind, "/etc/passwd"
        file.addfile(info)
    with pytest.raises(ValueError, match=r"a (link|device|pipe) \('0.png'\); a shard holds plain files only"):
        open_data(tmp_path / "s.tar")


def test_every_cut_of_a_shard_is_found(tmp_path):
    path = make_tar(tmp_path / "s.tar", {"0.png": PNG, "0.cls": b"1", "1.png": PNG, "1.cls": b"2"})
    whole = path.read_bytes()
    content = whole.rstrip(b"\0")
    ends = -(-len(content) // 512) * 512
    for length in (0, 1, 511, 512, 700, ends - 512, ends - 100, ends, ends + 511):
        path.write_bytes(whole[:length])
        with pytest.raises(ValueError, match=r"s.tar is (cut off|empty)"):
            open_data(path)
    path.write_bytes(whole[: ends + 512])
    assert len(open_data(path)) == 2


NAMES = st.text(st.characters(exclude_characters="/\0", exclude_categories=["Cs"]), min_size=1, max_size=90)


@given(
    form=st.sampled_from([tarfile.USTAR_FORMAT, tarfile.GNU_FORMAT, tarfile.PAX_FORMAT]),
    members=st.lists(
        st.tuples(st.lists(NAMES, min_size=1, max_size=3), st.binary(max_size=1200)), max_size=5
    ),
)  # fmt: skip
@settings(max_examples=100, deadline=None)
def test_members_are_those_that_tarfile_finds(form, members):
    file = io.BytesIO()
    with tarfile.open(fileobj=file, mode="w", format=form) as written:
        for parts, content in members:
            info = tarfile.TarInfo("x" + "/x".join(parts))
            info.size = len(content)
            try:
                written.addfile(info, io.BytesIO(content))
            except ValueError:  # ustar has no room for it
                continue
    memory = file.getvalue()
    found = [(m.name, memory[m.offset : m.offset + m.size]) for m in tar.members(Path("x"), memory)]
    with tarfile.open(fileobj=io.BytesIO(memory)) as again:
        for (name, content), member in zip(found, again.getmembers(), strict=True):
            unpacked = again.extractfile(member)
            assert unpacked is not None
            assert (name, content) == (member.name, unpacked.read())


@given(data=st.data())
@settings(max_examples=200, deadline=None)
def test_damaged_tar_ends_in_a_sentence(data):
    file = io.BytesIO()
    with tarfile.open(fileobj=file, mode="w", format=tarfile.PAX_FORMAT) as written:
        for name in ("猫" * 60, "1.png"):
            info = tarfile.TarInfo(name)
            info.size = len(PNG)
            written.addfile(info, io.BytesIO(PNG))
    memory = bytearray(file.getvalue()[:8192])
    for _ in range(data.draw(st.integers(1, 4))):
        memory[data.draw(st.integers(0, 5119))] = data.draw(st.integers(0, 255))
    try:
        found = list(tar.members(Path("x.tar"), bytes(memory)))
    except ValueError as error:
        found, said = [], str(error)
    else:
        said = "x.tar is fine"
    assert said.startswith("x.tar ")
    assert all(0 < member.offset <= member.offset + member.size <= len(memory) for member in found)


def test_sizes_beyond_eight_gigabytes():
    assert tar._number(b"\x80" + (9 * 2**30).to_bytes(11)) == 9 * 2**30
    info = tarfile.TarInfo("x")
    info.size = 9 * 2**30
    header = info.tobuf(tarfile.GNU_FORMAT)
    with pytest.raises(ValueError, match=f"'x' needs {9 * 2**30} bytes"):
        list(tar.members(Path("x"), header))


@pytest.fixture
def manifest(tmp_path) -> Path:
    """Pictures with splits, weights and names that need care."""
    make_folder(tmp_path / "m", ["猫", "a b"], 4, size=16)
    rows = [
        {"image": f"{name}/{i}.png", "label": name, "split": split, "weight": weight, "group": group}
        for name in ("猫", "a b")
        for i, (split, weight, group) in enumerate(
            [("train", 1.0, "x"), ("val", 0.25, None), ("test", 1.0, 7), ("train", 2.0, "x")]
        )
    ]
    (tmp_path / "m/m.json").write_text(json.dumps(rows))
    return tmp_path / "m/m.json"


def members(samples, i) -> set[str]:
    """The pictures of the group that picture i is in."""
    if samples.groups is None or samples.groups[i] < 0:
        return set()
    return {samples.images[int(k)] for k in np.flatnonzero(samples.groups == samples.groups[i])}


def assert_same(first, second, *, bytes_too=True):
    """Equal samples, in whatever order."""
    assert first.classes == second.classes
    where = {name: i for i, name in enumerate(second.images)}
    assert len(first) == len(second) == len(where)
    for i, name in enumerate(first.images):
        j = where[name]
        assert first.label_text(i) == second.label_text(j)
        assert (first.splits[i], first.weights[i]) == (second.splits[j], second.weights[j])
        assert members(first, i) == members(second, j)
        np.testing.assert_array_equal(first.decode(i), second.decode(j))
        if bytes_too:
            assert first.path(i).read_bytes() == second.read(j)


def test_written_shards_give_the_same_samples(tmp_path, manifest):
    samples = open_data(manifest)
    done: list[int] = []
    paths = shard_writing.write(samples, tmp_path / "out", shard_bytes=3000, progress=done.append)
    assert sum(done) == len(samples)
    assert all(path.exists() for path in paths)
    assert sorted(p.name for p in (tmp_path / "out").iterdir()) == sorted([*(p.name for p in paths), "classes.json"])
    assert {p.name.rpartition("-")[0] for p in paths} == {"train", "val", "test"}
    assert len(paths) > 3
    assert_same(samples, open_data(tmp_path / "out"))
    with pytest.raises(ValueError, match="not empty"):
        shard_writing.write(samples, tmp_path / "out")


def test_webdataset_reads_our_shards_and_we_read_its(tmp_path, manifest):
    webdataset = pytest.importorskip("webdataset")
    samples = open_data(manifest)
    paths = shard_writing.write(samples, tmp_path / "out")
    found = list(webdataset.WebDataset([str(path) for path in paths], shardshuffle=False).decode())
    assert sorted(samples.classes[row["cls"]] for row in found) == sorted(names_of(samples))
    assert sorted(row["json"]["image"] for row in found) == sorted(samples.images)
    with webdataset.TarWriter(str(tmp_path / "theirs.tar")) as writer:
        for i in range(3):
            writer.write({"__key__": f"s{i}", "png": some_pixels(i) / 255.0, "cls": i, "json": {"weight": i}})
    theirs = open_data(tmp_path / "theirs.tar")
    assert names_of(theirs) == ["0", "1", "2"]
    assert theirs.weights.tolist() == [0, 1, 2]
    np.testing.assert_allclose(theirs.decode(2).astype(int), some_pixels(2), atol=1)


def test_pixels_and_label_lists_are_written_too(tmp_path):
    write_idx(tmp_path / "mnist")
    samples = open_data(tmp_path / "mnist")
    shard_writing.write(samples, tmp_path / "a")
    assert_same(samples, open_data(tmp_path / "a"), bytes_too=False)
    make_folder(tmp_path / "m", ["x"], 4, size=16)
    rows = [{"image": f"x/{i}.png", "label": label} for i, label in enumerate([["a", "b"], [], ["b"], ["a", "b"]])]
    (tmp_path / "m/m.json").write_text(json.dumps(rows))
    samples = open_data(tmp_path / "m/m.json")
    shard_writing.write(samples, tmp_path / "b")
    again = open_data(tmp_path / "b")
    assert_same(samples, again)
    np.testing.assert_array_equal(again.targets().toarray(), [[1, 1], [0, 0], [0, 1], [1, 1]])


def test_writing_shards_leaves_out_what_cannot_be_read_and_nothing_half_done(tmp_path, said):
    make_folder(tmp_path / "d", ["a", "b"], 3, size=16)
    (tmp_path / "d/a/1.png").unlink()
    (tmp_path / "d/a/1.png").symlink_to("1.png")
    samples = open_data(tmp_path / "d")
    shard_writing.write(samples, tmp_path / "out")
    assert len(open_data(tmp_path / "out")) == 5
    assert "1 pictures cannot be read and are left out: a/1.png" in said.text

    def stop(done):
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        shard_writing.write(samples, tmp_path / "stopped", progress=stop)
    (tmp_path / ".late.partial").mkdir()
    (tmp_path / ".late.partial/train-000000.tar").write_bytes(b"of a process that was killed")
    shard_writing.write(samples, tmp_path / "late")
    assert sorted(path.name for path in tmp_path.iterdir()) == ["d", "late", "out"]
    assert len(open_data(tmp_path / "late")) == 5


def test_shards_are_read_by_threads_forks_and_copies(tmp_path, monkeypatch):
    monkeypatch.setattr(shards, "MOST_OPEN", 2)
    pixels = [some_pixels(i) for i in range(12)]
    for i in range(0, 12, 3):
        members = {f"{k}.{end}": c for k in range(i, i + 3) for end, c in (("png", encoded(pixels[k])), ("cls", b"0"))}
        make_tar(tmp_path / f"{i:02d}.tar", members)
    samples = open_data(tmp_path)
    wrong = []

    def check(seed, samples=samples):
        for i in np.random.default_rng(seed).integers(0, 12, 60):
            if not np.array_equal(samples.decode(i), pixels[i]):
                wrong.append(i)

    threads = [threading.Thread(target=check, args=(seed,)) for seed in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    check(5, pickle.loads(pickle.dumps(samples)))
    assert not wrong
    child = os.fork()
    if child == 0:  # pragma: no cover
        check(6)
        os._exit(1 if wrong else 0)
    check(7)
    assert os.waitpid(child, 0)[1] == 0
    assert not wrong


def test_shard_that_changes_or_goes_away_gives_a_reason(tmp_path):
    path = make_tar(tmp_path / "s.tar", {"0.png": PNG, "0.cls": b"1"})
    samples = open_data(path)
    path.write_bytes(path.read_bytes()[:520])
    with pytest.raises(UnreadableImage, match="changed after it was opened"):
        samples.decode(0)
    samples = pickle.loads(pickle.dumps(samples))
    path.unlink()
    with pytest.raises(UnreadableImage, match=r"s.tar cannot be read \(No such file"):
        samples.decode(0)
    assert samples.size(0) is None


def test_a_tar_beside_class_folders_is_no_shard(tmp_path):
    make_folder(tmp_path, ["a", "b"], 2, size=16)
    make_tar(tmp_path / "backup.tar", {"0.png": PNG})
    assert open_data(tmp_path).classes == ("a", "b")


# Hugging Face datasets


@pytest.fixture
def datasets(tmp_path, monkeypatch):
    """The package, with all its caches and ours under `tmp_path`, and without a network."""
    library = pytest.importorskip("datasets")
    monkeypatch.setattr(library.config, "HF_DATASETS_CACHE", tmp_path / "hf")
    monkeypatch.setattr(library.config, "HF_HUB_OFFLINE", True)
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    library.disable_progress_bars()
    return library


PIXELS = [some_pixels(i, 16) for i in range(8)]


def part(datasets, labels, feature, image="image", label="label", **more):
    """Pictures in PNG of PIXELS, one for each label."""
    rows = {image: [{"bytes": encoded(PIXELS[i]), "path": None} for i in range(len(labels))], label: labels, **more}
    features = {image: datasets.Image(), label: feature, **{name: datasets.Value("int64") for name in more}}
    return datasets.Dataset.from_dict(rows, features=datasets.Features(features))


def classes_of(datasets):
    return datasets.ClassLabel(names=["cat", "dog", "猫"])


def test_saved_data_set(tmp_path, datasets, said):
    feature = classes_of(datasets)
    data = datasets.DatasetDict(
        train=part(datasets, [2, 0, 1, -1], feature, extra=[5, 6, 7, 8]).select([3, 1, 0, 2]),
        validation=part(datasets, [0, 1], feature, extra=[1, 2]),
        test=part(datasets, [-1, -1, -1], feature, extra=[1, 2, 3]),
    )
    data.save_to_disk(tmp_path / "saved")
    samples = open_data(f"hf:{tmp_path / 'saved'}")
    assert samples.classes == ("cat", "dog", "猫")
    assert list(samples.images) == ["train/1", "train/2", "train/3", "validation/0", "validation/1"]
    assert names_of(samples) == ["cat", "猫", "dog", "cat", "dog"]
    assert split_names(samples) == ["train"] * 3 + ["val"] * 2
    assert "1 of 4 pictures of train have no label" in said.text
    assert "3 of 3 pictures of test have no label" in said.text
    copied = pickle.loads(pickle.dumps(samples)).take([4, 0])
    for i, picture in enumerate((1, 1)):
        np.testing.assert_array_equal(copied.decode(i), PIXELS[picture])
    np.testing.assert_array_equal(samples.decode(1), PIXELS[0])
    assert isinstance(samples.read(0), bytes)


def test_folder_of_parquet_and_folder_of_pictures(tmp_path, datasets):
    (tmp_path / "parquet").mkdir()
    table = part(datasets, [0, 1, 2], classes_of(datasets), "img", "fine")
    table.to_parquet(tmp_path / "parquet/train-00000-of-00001.parquet")
    table.to_parquet(tmp_path / "parquet/test-00000-of-00001.parquet")
    samples = open_data(f"hf:{tmp_path / 'parquet'}")
    assert split_names(samples) == ["train"] * 3 + ["test"] * 3
    assert names_of(samples) == ["cat", "dog", "猫"] * 2
    np.testing.assert_array_equal(samples.decode(5), PIXELS[2])
    make_folder(tmp_path / "pictures", ["b", "a"], 3, size=16)
    samples, own = open_data(f"hf:{tmp_path / 'pictures'}"), open_data(tmp_path / "pictures")
    assert samples.classes == ("a", "b")
    assert set(split_names(samples)) == {None}
    assert {str(samples.path(i)): name for i, name in enumerate(names_of(samples))} == {
        str(own.path(i)): name for i, name in enumerate(names_of(own))
    }


def test_labels_of_every_kind(tmp_path, datasets):
    cases = {
        "text": (datasets.Value("string"), ["b", "a", None, "b"], ["b", "a", "b"]),
        "number": (datasets.Value("int32"), [10, 9, -1, 9], ["10", "9", "9"]),
        "bool": (datasets.Value("bool"), [True, False, True], ["true", "false", "true"]),
        "several": (datasets.List(classes_of(datasets)), [[0, 2], [], None, [1]], ["cat, 猫", "(none)", "dog"]),
        "tags": (datasets.List(datasets.Value("string")), [["x"], ["y", "x"]], ["x", "x, y"]),
    }
    for name, (feature, labels, expected) in cases.items():
        part(datasets, labels, feature).save_to_disk(tmp_path / name)
        assert names_of(open_data(f"hf:{tmp_path / name}")) == expected


def test_data_sets_that_are_not_understood(tmp_path, datasets, monkeypatch):
    feature = classes_of(datasets)

    def fails(name, data, message):
        data.save_to_disk(tmp_path / name)
        with pytest.raises(ValueError, match=message):
            open_data(f"hf:{tmp_path / name}")

    good = part(datasets, [0, 1], feature)
    fails("split", datasets.DatasetDict(train=good, extra=good), "the split 'extra' among 'train', 'extra'")
    other = good.rename_column("image", "b").remove_columns("label")
    pair = datasets.concatenate_datasets([good.rename_column("image", "a"), other], axis=1)
    fails("image", pair, "which of its columns is the picture\\? They are 'a', 'label', 'b'")
    two = part(datasets, [0, 1], feature, label="fine")
    fails("two", two.add_column("coarse", [0, 0], feature=feature), "which of its columns is the label\\?.*'coarse'")
    fails("no_image", good.remove_columns("image"), "which of its columns is the picture\\? They are 'label'")
    fails("none", part(datasets, [-1, -1], feature), "holds no picture with a label")
    fails("empty", part(datasets, [[0, -1]], datasets.List(feature)), "has an empty label in it")
    different = datasets.DatasetDict(train=good, test=two)
    fails("different", different, "the split 'test' has other columns than 'train'")
    with pytest.raises(ValueError, match="hf:nobody/nothing cannot be loaded"):
        open_data("hf:nobody/nothing")
    monkeypatch.setitem(sys.modules, "datasets", None)
    with pytest.raises(ValueError, match="pip install 'lenext\\[hub\\]'"):
        open_data("hf:nobody/nothing")


def test_large_data_set_is_streamed_into_shards_once(tmp_path, datasets, monkeypatch, said):
    monkeypatch.setattr(hub, "LARGE", 1000)
    folder = tmp_path / "large"
    folder.mkdir()
    big = encoded(some_pixels(1, 400).repeat(2, 0).repeat(4, 1))  # 1600 x 800
    contents = [encoded(PIXELS[0]), big, b"no picture", encoded(PIXELS[2], "JPEG")]
    rows = {"image": [{"bytes": content, "path": None} for content in contents], "label": [2, 0, 1, -1]}
    features = datasets.Features(image=datasets.Image(decode=False), label=classes_of(datasets))
    table = datasets.Dataset.from_dict(rows, features=features).cast_column("image", datasets.Image())
    table.to_parquet(folder / "train-0.parquet")
    table.to_parquet(folder / "validation-0.parquet")
    whole = open_data(f"hf:{folder}")
    (kept,) = [path for path in (tmp_path / "cache/lenext/shards").iterdir() if not path.name.startswith(".")]
    assert sorted(path.name for path in kept.iterdir()) == ["classes.json", "train-000000.tar", "val-000000.tar"]
    assert whole.classes == ("cat", "dog", "猫")
    assert list(whole.images) == [f"{split}/{i}" for split in ("train", "validation") for i in range(3)]
    assert names_of(whole) == ["猫", "cat", "dog"] * 2
    assert split_names(whole) == ["train"] * 3 + ["val"] * 3
    assert [whole.read(i) for i in (0, 2)] == [contents[0], contents[2]]
    assert bytes(whole.read(1))[:2] == b"\xff\xd8"
    assert whole.decode(1).shape == (512, 1024, 3)
    expected = np.array(Image.open(io.BytesIO(big)).resize((1024, 512), Image.Resampling.BOX))
    assert np.abs(whole.decode(1).astype(int) - expected).mean() < 4
    assert "2 pictures have no label" in said.text
    monkeypatch.setattr(hub, "_write_stream", None)  # would fail if it was called
    assert list(open_data(f"hf:{folder}").images) == list(whole.images)


def test_stream_of_files_that_is_stopped_leaves_nothing(tmp_path, datasets, monkeypatch):
    monkeypatch.setattr(hub, "LARGE", 1000)
    make_folder(tmp_path / "pictures", ["a", "b"], 4, size=40)
    shrink = hub.shrink
    monkeypatch.setattr(hub, "shrink", lambda value: 1 / 0)
    with pytest.raises(ZeroDivisionError):
        open_data(f"hf:{tmp_path / 'pictures'}")
    shards_folder = tmp_path / "cache/lenext/shards"
    assert [path for path in shards_folder.iterdir() if path.is_dir()] == []
    monkeypatch.setattr(hub, "shrink", shrink)
    samples = open_data(f"hf:{tmp_path / 'pictures'}")
    own = open_data(tmp_path / "pictures")
    assert sorted(zip(names_of(samples), (samples.read(i) for i in range(8)))) == sorted(
        zip(names_of(own), (own.path(i).read_bytes() for i in range(8)))
    )
    assert set(split_names(samples)) == {None}
