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


def test_what_is_known_of_pictures_stays_with_them_when_others_are_left_out(tmp_path):
    root = make_folder(tmp_path, ["a", "b"], 30, size=64)
    for i in range(0, 30, 3):
        shutil.copy(root / f"a/{i}.png", root / f"a/copy{i}.png")
    for i in range(5, 15):
        (root / f"b/{i}.png").write_bytes(b"no picture")
    whole, part = (dataset.read(root, DataOptions(train_fraction=share)) for share in (1.0, 0.5))
    place = {name: i for i, name in enumerate(whole.samples.images)}
    rows = [place[name] for name in part.samples.images]
    assert len(rows) < len(place)
    assert part.membership().to_pylist() == [whole.membership().to_pylist()[row] for row in rows]
    assert set(part.samples.images) >= set(whole.samples.split("val").images) | set(whole.samples.split("test").images)
    assert part.scanned is not None
    assert whole.scanned is not None
    np.testing.assert_array_equal(part.scanned.grey, whole.scanned.grey[rows])
    assert 0 < len(part.scanned.reasons) < 10
    assert {part.samples.images[i] for i in part.scanned.reasons} == {
        name for name in part.samples.images if name in {whole.samples.images[i] for i in whole.scanned.reasons}
    }
    assert part.near is not None
    assert whole.near is not None
    alike = [number for number in part.near if number >= 0]
    assert 0 < len(alike) < (whole.near >= 0).sum()
    assert min(alike.count(number) for number in alike) >= 2
    kept = whole.near[rows]
    assert [kept[i] if (kept == kept[i]).sum() > 1 else -1 for i in range(len(rows))] == part.near.tolist()
    assert fingerprint(part.membership())["test"] == fingerprint(whole.membership())["test"]
    assert fingerprint(part.membership())["train"] != fingerprint(whole.membership())["train"]
