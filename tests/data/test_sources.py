from __future__ import annotations

import json
import logging
import unicodedata
from collections import Counter

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from lenext.data import sources
from lenext.data.sources import fingerprint, read
from tests.pictures import make_folder


def test_folder_of_classes_is_split_by_class_and_reproducibly(tmp_path):
    make_folder(tmp_path, ["b", "a", "猫"], 20, size=16)
    samples = read(tmp_path, seed=3)
    assert samples.classes == ("a", "b", "猫")
    for split, n in (("train", 14), ("val", 3), ("test", 3)):
        assert samples.counts()[split] == dict.fromkeys(samples.classes, n)
    for image, label in zip(samples.images, samples.labels):
        assert image.split("/")[0] == samples.classes[label]
    assert fingerprint(read(tmp_path, seed=3)) == fingerprint(samples)
    assert fingerprint(read(tmp_path, seed=4)) != fingerprint(samples)


def test_adding_a_picture_moves_few_others(tmp_path):
    make_folder(tmp_path, ["a", "b"], 40, size=16)
    before = dict(zip((s := read(tmp_path)).images, s.splits))
    (tmp_path / "a/new.png").write_bytes((tmp_path / "b/0.png").read_bytes()[:-1] + b"x")
    after = dict(zip((s := read(tmp_path)).images, s.splits))
    assert sum(before[name] != after[name] for name in before) <= 2


def test_equal_files_stay_on_one_side(tmp_path):
    make_folder(tmp_path, ["a", "b"], 20, size=16)
    for i in range(10):
        (tmp_path / f"a/copy{i}.png").write_bytes((tmp_path / "a/0.png").read_bytes())
    for seed in range(8):
        samples = read(tmp_path, seed=seed)
        sides = {split for name, split in zip(samples.images, samples.splits) if "copy" in name or name == "a/0.png"}
        assert len(sides) == 1


def test_split_folders_keep_their_split_and_classes_match_by_name(tmp_path):
    make_folder(tmp_path / "train", ["x", "y", "z"], 8, size=16)
    make_folder(tmp_path / "valid", ["x", "z"], 3, size=16)
    samples = read(tmp_path)
    assert samples.counts() == {"train": {"x": 8, "y": 8, "z": 8}, "val": {"x": 3, "y": 0, "z": 3}}
    for image, label, split in zip(samples.images, samples.labels, samples.splits):
        folder, name, _ = image.split("/")
        assert samples.classes[label] == name
        assert split == {"train": "train", "valid": "val"}[folder]


def test_train_and_test_folders_get_a_validation_split_out_of_train(tmp_path):
    make_folder(tmp_path, ["x", "y"], 20, size=16, splits=["train", "test"])
    assert read(tmp_path).counts() == {s: {"x": n, "y": n} for s, n in (("train", 17), ("val", 3), ("test", 20))}


def test_names_are_in_natural_order_and_normalised(tmp_path):
    decomposed = unicodedata.normalize("NFD", "café")
    make_folder(tmp_path, ["10", "9", "1", decomposed], 3, size=16)
    (tmp_path / "__MACOSX/1").mkdir(parents=True)
    (tmp_path / "1/.hidden.png").write_bytes(b"x")
    (tmp_path / "1/notes.txt").write_text("x")
    samples = read(tmp_path)
    assert samples.classes == ("1", "9", "10", "café")
    assert len(samples) == 12


def test_link_to_the_parent_folder_is_followed_once(tmp_path):
    make_folder(tmp_path, ["a", "b"], 3, size=16)
    (tmp_path / "a/loop").symlink_to(tmp_path / "a")
    assert len(read(tmp_path)) == 6


ROWS = [
    {"image": f"{name}/{i}.png", "label": name, "split": split, "weight": weight}
    for name in ("猫", "狗")
    for i, (split, weight) in enumerate([("train", 1.0), ("train", 0.5), ("val", 1.0), ("test", 2.0)])
]


def write_manifest(path, rows):
    kind = path.suffix
    if kind == ".parquet":
        pq.write_table(pa.Table.from_pylist(rows), path)
    elif kind == ".json":
        path.write_text(json.dumps(rows, ensure_ascii=False), encoding="utf-8")
    elif kind == ".jsonl":
        path.write_text("\n".join(json.dumps(row) for row in rows) + "\n")
    else:
        comma = "\t" if kind == ".tsv" else ","
        lines = [comma.join(rows[0])] + [comma.join(str(value) for value in row.values()) for row in rows]
        path.write_text("\n".join(lines), encoding="utf-8-sig")


@pytest.mark.parametrize("kind", ["csv", "tsv", "json", "jsonl", "parquet"])
def test_every_manifest_form_says_the_same(tmp_path, kind):
    make_folder(tmp_path, ["猫", "狗"], 4, size=16)
    write_manifest(tmp_path / f"data.{kind}", ROWS)
    samples = read(tmp_path / f"data.{kind}")
    assert samples.images == tuple(row["image"] for row in ROWS)
    assert [samples.classes[i] for i in samples.labels] == [row["label"] for row in ROWS]
    assert samples.splits.tolist() == [row["split"] for row in ROWS]
    np.testing.assert_array_equal(samples.weights, [row["weight"] for row in ROWS])
    assert samples.path(0).exists()


def test_numeric_labels_are_names(tmp_path):
    rows = [{"image": f"{i}.png", "label": value} for i, value in enumerate([0, 1, 1.0, 0, True, 10, 2] * 4)]
    write_manifest(tmp_path / "m.json", rows)
    samples = read(tmp_path / "m.json")
    assert samples.classes == ("0", "1", "2", "10", "true")
    assert Counter(samples.classes[i] for i in samples.labels) == {"0": 8, "1": 8, "2": 4, "10": 4, "true": 4}


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("m.csv", "image,class\na.png,x\n", "no column 'label', only 'image', 'class'"),
        ("m.csv", "images,label\na.png,x\n", "is it 'images'\\? Rename it to 'image'"),
        ("m.csv", "image,label\n", "no rows"),
        ("m.csv", "image,label\na.png,x\nb.png,\n", "row 2: 'label' is empty"),
        ("m.csv", "image,label,split\na.png,x,trian\nb.png,y,val\n", "row 1: split 'trian'"),
        ("m.csv", "image,label,split\na.png,x,train\nb.png,y,\n", "some rows name a split and some do not"),
        ("m.csv", "image,label,weight\na.png,x,heavy\n", "row 1: weight 'heavy'"),
        ("m.csv", "image,label\na.png,x\nb.png,x\n", "one class only \\('x'\\)"),
        (
            "m.csv",
            "image,label,split\na.png,x,train\nb.png,y,val\n",
            "class 'y' has pictures in val but none in train",
        ),
        ("m.csv", "image,label,split\na.png,x,val\nb.png,y,val\n", "no picture is in the train split"),
        ("m.csv", b"image,label\n\xff\xfe,x\n", "not UTF-8"),
        ("m.json", '[{"image": "a.png" "label": 1}]', "line 1: not valid JSON"),
        ("m.json", '{"image": "a.png"}', "must hold a list of records"),
        ("m.json", '[{"image": "a.png", "label": ["x", "y"]}]', "not a single class name"),
        ("m.parquet", b"PAR1 nonsense", "cannot be read"),
        ("m.xlsx", b"", "neither a folder nor a manifest"),
    ],
)
def test_bad_manifests(tmp_path, name, content, message):
    path = tmp_path / name
    path.write_bytes(content if isinstance(content, bytes) else content.encode())
    with pytest.raises(ValueError, match=message):
        read(path)


def test_bad_folders(tmp_path):
    with pytest.raises(ValueError, match="does not exist"):
        read(tmp_path / "none")
    with pytest.raises(ValueError, match="holds no pictures"):
        read(tmp_path)
    make_folder(tmp_path / "loose", [""], 2, size=16)
    with pytest.raises(ValueError, match="no class folders"):
        read(tmp_path / "loose")
    make_folder(tmp_path / "one", ["cat"], 4, size=16)
    with pytest.raises(ValueError, match="one class only \\('cat'\\)"):
        read(tmp_path / "one")
    make_folder(tmp_path / "split", ["a", "b"], 4, size=16, splits=["val", "test"])
    with pytest.raises(ValueError, match="no picture is in the train split"):
        read(tmp_path / "split")
    make_folder(tmp_path / "new", ["a", "b"], 4, size=16, splits=["train"])
    make_folder(tmp_path / "new/val", ["a", "b", "c"], 2, size=16)
    with pytest.raises(ValueError, match="class 'c' has pictures in val but none in train"):
        read(tmp_path / "new")
    make_folder(tmp_path / "single", ["a", "b"], 1, size=16)
    with pytest.raises(ValueError, match="no picture is left for validation"):
        read(tmp_path / "single")
    make_folder(tmp_path / "fine", ["a", "b"], 9, size=16)
    with pytest.raises(ValueError, match="leave nothing to train on"):
        read(tmp_path / "fine", val_fraction=0.5, test_fraction=0.5)


def test_empty_class_folder_and_class_without_validation_are_said(tmp_path, caplog, monkeypatch):
    monkeypatch.setattr(logging.getLogger("lenext"), "propagate", True)
    make_folder(tmp_path, ["a", "b"], 6, size=16, splits=["train"])
    make_folder(tmp_path / "val", ["a"], 2, size=16)
    (tmp_path / "train/empty").mkdir()
    samples = sources.read(tmp_path)
    assert samples.classes == ("a", "b")
    assert "holds no pictures" in caplog.text
    assert "val has no picture of class 'b'" in caplog.text
