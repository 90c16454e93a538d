from __future__ import annotations

import json
import logging
import os
import unicodedata
from collections import Counter
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import given
from hypothesis import strategies as st

from lenext.data import splits
from lenext.data.decode import UnreadableImage
from lenext.data.forms import folder
from lenext.data.samples import SPLITS, UNSPLIT, Files, Names, Samples
from lenext.data.sources import SplitOptions, fill_splits, open_data, read
from tests.data.tiny_imagenet import make_tiny_imagenet
from tests.pictures import make_folder


def test_folder_of_classes_is_split_by_class_and_reproducibly(tmp_path):
    make_folder(tmp_path, ["b", "a", "猫"], 20, size=16)
    samples = read(tmp_path, SplitOptions(seed=3))
    assert samples.classes == ("a", "b", "猫")
    for split, share in (("train", 0.7), ("val", 0.15), ("test", 0.15)):
        for n in samples.counts()[split].values():
            assert abs(n - 20 * share) <= (20 * share * (1 - share)) ** 0.5
    for image, label in zip(samples.images, samples.labels):
        assert image.split("/")[0] == samples.classes[label]
    assert read(tmp_path, SplitOptions(seed=3)).splits.tolist() == samples.splits.tolist()
    assert read(tmp_path, SplitOptions(seed=4)).splits.tolist() != samples.splits.tolist()


def test_split_folders_keep_their_split_and_classes_match_by_name(tmp_path):
    make_folder(tmp_path / "train", ["x", "y", "z"], 8, size=16)
    make_folder(tmp_path / "valid", ["x", "z"], 3, size=16)
    samples = read(tmp_path)
    assert samples.counts() == {"train": {"x": 8, "y": 8, "z": 8}, "val": {"x": 3, "y": 0, "z": 3}}
    for image, label, split in zip(samples.images, samples.labels, samples.splits):
        folder, name, _ = image.split("/")
        assert samples.classes[label] == name
        assert SPLITS[split] == {"train": "train", "valid": "val"}[folder]


def test_train_and_test_folders_get_a_validation_split_out_of_train(tmp_path):
    make_folder(tmp_path, ["x", "y"], 20, size=16, splits=["train", "test"])
    counts = read(tmp_path).counts()
    assert counts["test"] == {"x": 20, "y": 20}
    for name in ("x", "y"):
        assert counts["train"][name] + counts["val"][name] == 20
        assert abs(counts["val"][name] - 3) <= 1.6  # one standard deviation


def test_names_are_in_natural_order_and_normalised(tmp_path):
    decomposed = unicodedata.normalize("NFD", "café")
    make_folder(tmp_path, ["10", "9", "1", decomposed], 3, size=16)
    (tmp_path / "__MACOSX/1").mkdir(parents=True)
    (tmp_path / "1/.hidden.png").write_bytes(b"x")
    (tmp_path / "1/notes.txt").write_text("x")
    samples = read(tmp_path)
    assert samples.classes == ("1", "9", "10", "café")
    assert len(samples) == 12


def test_classes_that_differ_in_case_only_have_one_order(tmp_path):
    make_folder(tmp_path, ["b", "a", "B", "A"], 1, size=16)
    assert open_data(tmp_path).classes == ("A", "a", "B", "b")


def test_two_spellings_of_a_class_are_one(tmp_path):
    make_folder(tmp_path / "train", ["x", "caf\u00e9"], 6, size=16)
    make_folder(tmp_path / "test", ["x", "cafe\u0301"], 2, size=16)
    samples = read(tmp_path)
    assert samples.classes == ("caf\u00e9", "x")
    assert samples.counts()["test"] == {"caf\u00e9": 2, "x": 2}
    assert all(samples.path(i).exists() for i in range(len(samples)))


def test_pictures_are_in_natural_order_whatever_their_names():
    assert folder.natural_order(["10.png", "9.png", "100.png", "1.png"]) == ["1.png", "9.png", "10.png", "100.png"]
    assert folder.natural_order(["b2.png", "B10.png", "b1.jpg"]) == ["b1.jpg", "b2.png", "B10.png"]
    assert folder.natural_order(["1_10.png", "2_0.png", "1_5.png"]) == ["1_5.png", "1_10.png", "2_0.png"]
    assert folder.natural_order(["x", "x1", "x02", "x10"][::-1]) == ["x", "x1", "x02", "x10"]
    assert folder.natural_order(["a/2.png", "a/10.png", "a.png"][::-1]) == ["a.png", "a/2.png", "a/10.png"]


@given(st.lists(st.tuples(st.sampled_from(["a", "ab", "b"]), st.integers(0, 120), st.integers(0, 120)), unique=True))
def test_natural_order_compares_numbers_as_numbers(parts):
    names = ["{}{}_{}.png".format(*part) for part in parts]
    assert folder.natural_order(names) == ["{}{}_{}.png".format(*part) for part in sorted(parts)]


def test_links_are_followed_once(tmp_path):
    make_folder(tmp_path / "d", ["a", "b"], 3, size=16)
    make_folder(tmp_path, ["elsewhere"], 2, size=16)
    (tmp_path / "d/a/loop").symlink_to(tmp_path / "d/a")
    (tmp_path / "d/a/more").symlink_to(tmp_path / "elsewhere")
    (tmp_path / "d/a/again").symlink_to(tmp_path / "elsewhere")
    assert open_data(tmp_path / "d").counts() == {}
    assert open_data(tmp_path / "d").class_counts().tolist() == [5, 3]


def test_link_to_itself_is_an_unreadable_picture(tmp_path):
    make_folder(tmp_path, ["a", "b"], 2, size=16)
    (tmp_path / "a/loop.png").symlink_to("loop.png")
    (tmp_path / "loop").symlink_to("loop")
    samples = open_data(tmp_path)
    assert len(samples) == 5
    with pytest.raises(UnreadableImage):
        samples.decode(list(samples.images).index("a/loop.png"))


def test_names_that_are_no_text_and_names_with_newlines(tmp_path):
    make_folder(tmp_path, ["a", "b"], 2, size=16)
    (tmp_path / "a/0.png").rename(os.fsdecode(os.fsencode(tmp_path) + b"/a/\xff\xfe.png"))
    (tmp_path / "b/0.png").rename(tmp_path / "b/x\ny.png")
    samples = read(tmp_path)
    assert all(samples.decode(i).shape == (16, 16, 3) for i in range(4))
    assert samples.images == Names(list(samples.images))


def test_train_beside_other_folders_with_pictures(tmp_path):
    make_folder(tmp_path, ["train/a", "train/b", "more"], 2, size=16)
    with pytest.raises(ValueError, match="holds the split 'train' beside other folders with pictures \\(more\\)"):
        open_data(tmp_path)
    for file in (tmp_path / "more").iterdir():
        file.rename(file.with_suffix(".txt"))
    assert open_data(tmp_path).classes == ("a", "b")


def test_test_without_train_is_a_class(tmp_path):
    make_folder(tmp_path, ["test", "other"], 2, size=16)
    samples = open_data(tmp_path)
    assert samples.classes == ("other", "test")
    assert (samples.splits == UNSPLIT).all()


def test_loose_pictures_are_said(tmp_path, caplog, monkeypatch):
    monkeypatch.setattr(logging.getLogger("lenext"), "propagate", True)
    make_folder(tmp_path, ["a", "b", ""], 2, size=16)
    assert len(open_data(tmp_path)) == 4
    assert "2 pictures lie in" in caplog.text


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
    assert list(samples.images) == [row["image"] for row in ROWS]
    assert [samples.classes[i] for i in samples.labels] == [row["label"] for row in ROWS]
    assert [SPLITS[code] for code in samples.splits] == [row["split"] for row in ROWS]
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
        ("m.json", '[{"image": "a.png", "label": ["x", ["y"]]}]', "row 1: the label .* is not a list of class names"),
        ("m.json", '[{"image": "a.png", "label": {"x": 1}}]', "neither a class name nor a list"),
        ("m.json", '[{"image": "a.png", "label": []}]', "holds no labels"),
        ("m.json", '[{"image": "a\\u0000.png", "label": "x"}]', "holds a character that no file name has"),
        ("m.json", '[{"image": "\\ud800.png", "label": "x"}]', "holds a character that no file name has"),
        ("m.csv", "image,label\n../a.png,x\n", "row 1: ../a.png lies outside .*--root"),
        ("m.csv", "image,label\nb/../../a.png,x\n", "row 1: b/../../a.png lies outside"),
        ("m.csv", "image,label\n/etc/a.png,x\n", "row 1: /etc/a.png lies outside"),
        ("m.csv", "image,label\n.,x\n", "row 1: . lies outside"),
        ("m.parquet", b"PAR1 nonsense", "cannot be read"),
        ("m.xlsx", b"", "neither a folder nor a manifest"),
    ],
)
def test_bad_manifests(tmp_path, name, content, message):
    path = tmp_path / name
    path.write_bytes(content if isinstance(content, bytes) else content.encode())
    with pytest.raises(ValueError, match=message):
        read(path)


def test_pictures_of_a_manifest_lie_below_its_root(tmp_path):
    make_folder(tmp_path / "pictures", ["a", "b"], 2, size=16)
    (tmp_path / "lists").mkdir()
    names = ["a/0.png", "./a/1.png", "b/../b/0.png", str(tmp_path / "pictures/b/1.png")]
    write_manifest(tmp_path / "lists/m.json", [{"image": name, "label": name.split("/")[-2]} for name in names])
    with pytest.raises(ValueError, match=r"row 4: .* lies outside .*--root"):
        open_data(tmp_path / "lists/m.json")
    samples = open_data(tmp_path / "lists/m.json", tmp_path / "pictures")
    assert list(samples.images) == names
    assert all(samples.decode(i).shape == (16, 16, 3) for i in range(4))
    with pytest.raises(ValueError, match="--root is for manifests"):
        open_data(tmp_path / "pictures", tmp_path)


@pytest.mark.parametrize("kind", ["csv", "json", "parquet"])
def test_several_labels_and_groups(tmp_path, kind):
    labels = [["sun", "sea"], [], ["sea"], ["sea", "sun", "sea"]]
    rows = [{"image": f"{i}.png", "label": label, "group": f"g{i % 2}"} for i, label in enumerate(labels)]
    if kind == "csv":
        lines = [f"{row['image']}\t{json.dumps(row['label'])}\t{row['group']}" for row in rows]
        (tmp_path / "m.tsv").write_text("image\tlabel\tgroup\n" + "\n".join(lines))
        kind = "tsv"
    else:
        write_manifest(tmp_path / f"m.{kind}", rows)
    samples = open_data(tmp_path / f"m.{kind}")
    assert samples.classes == ("sea", "sun")
    np.testing.assert_array_equal(samples.targets().toarray(), [[1, 1], [0, 0], [1, 0], [1, 1]])
    assert samples.class_counts().tolist() == [3, 2]
    assert samples.label_text(1) == "(none)"
    assert samples.groups is not None
    assert samples.groups.tolist() == [0, 1, 0, 1]
    part = samples.take([3, 1])
    np.testing.assert_array_equal(part.targets().toarray(), [[1, 1], [0, 0]])


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
        read(tmp_path / "fine", SplitOptions(val_fraction=0.5, test_fraction=0.5))


def test_empty_class_folder_and_class_without_validation_are_said(tmp_path, caplog, monkeypatch):
    monkeypatch.setattr(logging.getLogger("lenext"), "propagate", True)
    make_folder(tmp_path, ["a", "b"], 6, size=16, splits=["train"])
    make_folder(tmp_path / "val", ["a"], 2, size=16)
    (tmp_path / "train/empty").mkdir()
    samples = read(tmp_path)
    assert samples.classes == ("a", "b")
    assert "holds no pictures" in caplog.text
    assert "val has no picture of class 'b'" in caplog.text


# Splits


def make_samples(labels, names=None, **columns):
    names = [f"{label}/{i}.png" for i, label in enumerate(labels)] if names is None else names
    count = len(labels)
    return Samples(
        store=Files(Path()),
        images=Names(names),
        labels=np.array(labels, np.int64),
        splits=np.full(count, UNSPLIT, np.int8),
        weights=np.ones(count, np.float32),
        classes=tuple(str(k) for k in range(max(labels) + 1)),
        **columns,
    )


SHARES = {"val": 0.15, "test": 0.15}


def per_class(labels, parts, count):
    """(classes, count): how many of each class are in each part."""
    return np.stack([np.bincount(parts[labels == k], minlength=count) for k in np.unique(labels)])


@pytest.mark.parametrize("size", [3, 4, 5, 7, 10, 13, 30, 100, 1000])
def test_every_class_is_split_within_a_standard_deviation(size):
    samples = make_samples(list(range(20)) * size)
    for seed in range(3):
        counts = per_class(samples.labels, splits.assign(samples, SHARES, seed), 3)
        assert counts.min() >= 1
        for split, share in (("train", 0.7), ("val", 0.15), ("test", 0.15)):
            far = np.abs(counts[:, SPLITS.index(split)] - size * share)
            # A class of a few pictures gives up training pictures so that each split has one.
            assert far.max() <= max((size * share * (1 - share)) ** 0.5, 1 if split != "train" or size > 3 else 1.2)


@pytest.mark.parametrize(("size", "limit"), [(10, 0.05), (30, 0.03), (300, 0.01)])
def test_splits_hold_still_while_the_data_grows(size, limit):
    labels = list(range(20)) * size
    before = splits.assign(make_samples(labels), SHARES, 0)
    more = labels + list(range(20)) * (size // 10)
    after = splits.assign(make_samples(more), SHARES, 0)[: len(labels)]
    assert (before != after).mean() <= limit


def test_splits_depend_on_names_and_seed_and_not_on_the_order_of_rows():
    labels = np.random.default_rng(0).integers(0, 7, 500)
    samples = make_samples(labels.tolist())
    order = np.random.default_rng(1).permutation(500)
    first = splits.assign(samples, SHARES, 0)
    np.testing.assert_array_equal(splits.assign(samples.take(order), SHARES, 0), first[order])
    assert 0.2 < (splits.assign(samples, SHARES, 1) != first).mean() < 0.7  # 0.465 for independent draws
    fold = splits.folds(samples, 5, 0)
    np.testing.assert_array_equal(splits.folds(samples.take(order), 5, 0), fold[order])


@pytest.mark.parametrize("count", [2, 3, 5, 10])
def test_folds_are_a_partition_with_every_class_in_each(count):
    sizes = [count, count + 1, 3 * count, 200]
    labels = np.repeat(np.arange(4), sizes)
    fold = splits.folds(make_samples(labels.tolist()), count, 0)
    assert set(fold) == set(range(count))
    counts = per_class(labels, fold, count)
    assert counts.min() >= 1
    for size, row in zip(sizes, counts):
        assert np.abs(row - size / count).max() <= max((size / count * (1 - 1 / count)) ** 0.5, 1)


def test_every_fold_validates_once_and_the_test_pictures_stay():
    samples = make_samples([0, 1] * 60)
    seen = []
    for fold in range(4):
        options = SplitOptions(folds=4, fold=fold)
        filled = fill_splits(samples, options)
        seen.append(filled.in_split("val"))
        assert (filled.splits != UNSPLIT).all()
        np.testing.assert_array_equal(filled.in_split("test"), fill_splits(samples, SplitOptions()).in_split("test"))
    test = fill_splits(samples, SplitOptions()).in_split("test")
    np.testing.assert_array_equal(np.sum(seen, axis=0), np.where(test, 0, 1))


@pytest.mark.parametrize("share", [0.05, 0.3, 0.5, 0.9])
def test_a_share_of_the_training_pictures_is_one_of_each_class(share):
    sizes = [1, 2, 5, 30, 1000]
    labels = np.repeat(np.arange(5), sizes)
    for seed in range(5):
        counts = np.bincount(labels[splits.part(make_samples(labels.tolist()), share, seed)], minlength=5)
        assert counts.min() >= 1
        for size, count in zip(sizes, counts):
            assert abs(count - size * share) <= max((size * share * (1 - share)) ** 0.5, 1)


@pytest.mark.parametrize("several", [False, True])
def test_smaller_shares_are_parts_of_larger_ones(tmp_path, several):
    rng = np.random.default_rng(0)
    labels: list[list[str]] = [[str(k) for k in range(8) if rng.random() < 0.5**k] or ["0"] for _ in range(400)]
    rows = [{"image": f"{i}.png", "label": row if several else row[-1]} for i, row in enumerate(labels)]
    write_manifest(tmp_path / "m.json", rows)
    samples = open_data(tmp_path / "m.json")
    for seed in range(3):
        smaller = np.zeros(400, dtype=bool)
        for share in np.linspace(0.01, 0.99, 99):
            larger = splits.part(samples, share, seed)
            assert not (smaller & ~larger).any()
            assert samples.class_counts(larger).min() >= 1
            smaller = larger
        assert (splits.part(samples, 0.3, seed) != splits.part(samples, 0.3, seed + 1)).mean() > 0.2


def test_a_share_for_training_leaves_the_other_splits_alone(tmp_path):
    make_folder(tmp_path, ["a", "b"], 60, size=16)

    def names(split, **options):
        return list(read(tmp_path, SplitOptions(**options)).split(split).images)

    for options in ({}, {"seed": 1}, {"folds": 4, "fold": 1}):
        for split in ("val", "test"):
            assert names(split, train_fraction=0.1, **options) == names(split, **options)
        tenth, third, whole = (set(names("train", train_fraction=share, **options)) for share in (0.1, 0.3, 1.0))
        assert tenth < third < whole
    assert names("train", train_fraction=0.3) != names("train", train_fraction=0.3, seed=1)


def test_groups_and_like_pictures_are_never_parted():
    rng = np.random.default_rng(0)
    labels = rng.integers(0, 5, 600)
    groups = np.where(rng.random(600) < 0.5, rng.integers(0, 60, 600), -1)
    together = np.where(rng.random(600) < 0.3, rng.integers(0, 50, 600), -1)
    samples = make_samples(labels.tolist(), groups=groups)
    for seed in range(5):
        for parts in (splits.assign(samples, SHARES, seed, together), splits.folds(samples, 3, seed, together)):
            for key in (groups, together):
                for value in np.unique(key[key >= 0]):
                    assert len(set(parts[key == value].tolist())) == 1
    alone = groups[together < 0]
    assert len(set(splits.assign(samples, SHARES, 0)[groups < 0])) == 3
    assert len(alone)


def test_patients_with_every_class_are_shared_out():
    patients = np.repeat(np.arange(20), 30)
    samples = make_samples((np.arange(600) % 3).tolist(), groups=patients)
    for seed in range(20):
        counts = np.bincount(splits.assign(samples, SHARES, seed), minlength=3)
        assert counts.min() >= 30
        assert np.abs(counts - [420, 90, 90]).max() <= 90


def test_a_class_of_one_group_trains():
    samples = make_samples([0] * 10 + [1] * 50, groups=np.array([0] * 10 + [-1] * 50))
    for seed in range(20):
        parts = splits.assign(samples, SHARES, seed)
        assert set(parts[:10]) == {SPLITS.index("train")}
    two = make_samples([0] * 40, groups=np.repeat([0, 1], 20))
    for seed in range(20):
        parts = splits.assign(two, SHARES, seed)
        assert sorted(np.bincount(parts, minlength=3)) == [0, 20, 20]
        assert set(parts) == {SPLITS.index("train"), SPLITS.index("val")}


def test_every_class_of_label_lists_is_split(tmp_path):
    rng = np.random.default_rng(0)
    rows = []
    for i in range(600):
        labels = [name for name, share in (("often", 0.8), ("half", 0.5), ("rare", 0.02)) if rng.random() < share]
        rows.append({"image": f"{i}.png", "label": labels})
    write_manifest(tmp_path / "m.json", rows)
    samples = open_data(tmp_path / "m.json")
    for seed in range(5):
        parts = splits.assign(samples, SHARES, seed)
        targets = samples.targets().toarray()
        for k in range(3):
            n = targets[:, k].sum()
            counts = np.bincount(parts[targets[:, k]], minlength=3)
            assert counts.min() >= 1
            assert np.abs(counts / n - [0.7, 0.15, 0.15]).max() < 0.2


# Validation pictures as test pictures


def test_validation_pictures_become_the_test_and_others_are_held_out(tmp_path):
    root = make_tiny_imagenet(tmp_path, train=20, val=4)
    samples = read(root, SplitOptions(val_as_test=True, val_fraction=0.2))
    split = {name: SPLITS[side] for name, side in zip(samples.images, samples.splits)}
    assert {side for name, side in split.items() if name.startswith("val")} == {"test"}
    assert {side for name, side in split.items() if name.startswith("train")} == {"train", "val"}
    counts = samples.counts()["val"]
    assert set(counts) == set(samples.classes)
    assert all(2 <= n <= 6 for n in counts.values())  # 4 of 20, give or take a standard deviation


def test_what_has_no_validation_pictures_or_a_test_already_is_refused(tmp_path):
    make_folder(tmp_path / "plain", ["a", "b"], 4)
    with pytest.raises(ValueError, match="no validation pictures of its own"):
        read(tmp_path / "plain", SplitOptions(val_as_test=True))
    make_folder(tmp_path / "all", ["a", "b"], 2, splits=("train", "val", "test"))
    with pytest.raises(ValueError, match="has test pictures already"):
        read(tmp_path / "all", SplitOptions(val_as_test=True))
