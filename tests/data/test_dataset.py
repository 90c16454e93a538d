"""A data set that has changed since it was recorded is named file by file, and never measured unawares."""

from __future__ import annotations

import shutil

import numpy as np
import pyarrow as pa
import pytest

from lenext.data import dataset
from lenext.data.dataset import DataOptions, differences, fingerprint
from lenext.data.samples import SPLITS
from tests.pictures import make_folder


@pytest.fixture
def folder(tmp_path):
    return make_folder(tmp_path / "data", ["a", "猫"], 12, size=64, splits=["train", "val", "test"])


def test_membership_lists_every_picture_with_its_content(folder):
    table = dataset.read(folder, DataOptions()).membership()
    assert table.num_rows == 72
    rows = {row["image"]: row for row in table.to_pylist()}
    row = rows["test/猫/3.png"]
    assert (row["label"], row["split"]) == ("猫", "test")
    assert len({row["content"] for row in rows.values()}) == 72
    assert fingerprint(table).keys() == set(SPLITS)
    assert fingerprint(table.take(np.random.default_rng(0).permutation(72))) == fingerprint(table)


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ("remove", "test/a/0.png is gone"),
        ("add", "test/a/new.png is new"),
        ("overwrite", "test/a/0.png has other content"),
        ("break", "test/a/0.png cannot be read"),
    ],
)
def test_every_change_is_named_and_touches_the_fingerprint_of_its_split_only(folder, change, said):
    before = dataset.read(folder, DataOptions()).membership()
    file = folder / "test/a/0.png"
    if change == "remove":
        file.unlink()
    elif change == "add":
        shutil.copy(folder / "test/猫/1.png", file.with_name("new.png"))
    elif change == "overwrite":
        file.write_bytes((folder / "test/猫/1.png").read_bytes())
    else:
        file.write_bytes(b"no picture")
    after = dataset.read(folder, DataOptions()).membership()
    assert differences(before, after) == differences(before, after, "test") == said
    assert differences(before, after, "val") == differences(before, before) == ""
    changed = {split for split in SPLITS if fingerprint(before)[split] != fingerprint(after)[split]}
    assert changed == {"test"}


def test_changes_of_labels_and_splits_are_named():
    def table(label, split):
        return pa.table({"image": ["x"], "label": [label], "split": [split], "content": ["1"]})

    assert differences(table("a", "val"), table("b", "val")) == "x was 'a' and is 'b'"
    assert differences(table("a", "val"), table("a", "test")) == "x was in val and is in test"


def test_many_changes_are_counted(folder):
    before = dataset.read(folder, DataOptions()).membership()
    for i in range(8):
        (folder / f"train/a/{i}.png").unlink()
    after = dataset.read(folder, DataOptions()).membership()
    assert differences(before, after).endswith("train/a/4.png is gone, and 3 more")


def test_nearly_equal_pictures_are_kept_on_one_side(tmp_path):
    root = make_folder(tmp_path, ["a", "b"], 30, size=128)
    from PIL import Image

    for i in range(30):
        Image.open(root / f"a/{i}.png").save(root / f"b/copy{i}.jpg", quality=90)
    for seed in range(3):
        samples = dataset.read(root, DataOptions(seed=seed)).samples
        side = dict(zip(samples.images, samples.splits))
        assert sum(side[f"a/{i}.png"] == side[f"b/copy{i}.jpg"] for i in range(30)) >= 28
    parted = dataset.read(root, DataOptions(check=False)).samples
    side = dict(zip(parted.images, parted.splits))
    assert sum(side[f"a/{i}.png"] == side[f"b/copy{i}.jpg"] for i in range(30)) < 25
