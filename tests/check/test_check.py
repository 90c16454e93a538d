"""The whole check on real files: what is planted is found, nothing else is, and nothing of the data is touched."""

from __future__ import annotations

import hashlib
import importlib.util
import json
import shutil
from dataclasses import replace
from pathlib import Path
from typing import cast

import numpy as np
import pytest
import torch
from PIL import Image
from sklearn.datasets import load_digits
from torch.nn import functional as F

from lenext import check
from lenext.check import clean, command, labels, report
from lenext.classifier import Classifier
from lenext.data import sources
from lenext.data.samples import Store
from lenext.data.transforms import eval_transform, normalise
from lenext.models import create_model
from lenext.preprocess import Preprocess
from tests.evaluation.test_report import Page
from tests.pictures import crop, make_folder, photograph

CONTRACT = {"counts", "unreadable", "exact_duplicates", "near_duplicates", "across_splits", "missing_classes"}


@pytest.fixture(autouse=True)
def own_cache(tmp_path, monkeypatch):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    # Choosing the fastest backend takes longer than these pictures do.
    monkeypatch.setattr("lenext.inference.choose.FEWEST", 10_000)


def sound_folder(root: Path, classes=("圆", "三角"), n: int = 12) -> Path:
    """root/{train,val,test}/<class>/*.png: pieces of two photographs."""
    rng = np.random.default_rng(0)
    pieces = [
        photograph(name)[y : y + 60, x : x + 60]
        for name in ("china.jpg", "flower.jpg")
        for y in range(0, 360, 40)
        for x in range(0, 580, 40)
    ]
    bright = [piece for piece in pieces if np.percentile(piece, 90) > 140 and np.percentile(piece, 10) < 200]
    busy = sorted(bright, key=lambda piece: -piece.std())[: len(classes) * n * 3]
    order = iter(rng.permutation(len(busy)))
    for split in ("train", "val", "test"):
        for kind in classes:
            folder = root / split / kind
            folder.mkdir(parents=True)
            for i in range(n):
                Image.fromarray(busy[next(order)]).save(folder / f"{i}.png")
    return root


@pytest.fixture
def planted(tmp_path) -> Path:
    """A sound folder with one problem of each kind."""
    root = sound_folder(tmp_path / "photos")
    train, test = root / "train/圆", root / "test/圆"
    shutil.copy(train / "0.png", test / "leak.png")
    Image.open(train / "1.png").save(test / "again.jpg", quality=92)
    shutil.copy(train / "2.png", train / "copy.png")
    shutil.copy(train / "3.png", root / "train/三角/conflict.png")
    (train / "cut.png").write_bytes((train / "4.png").read_bytes()[:400])
    (train / "notes.txt").write_text("not a picture")
    rng = np.random.default_rng(1)
    Image.new("RGB", (60, 60), (240, 240, 240)).save(train / "blank.png")
    crop(rng, 20, "flower.jpg").save(train / "tiny.png")
    Image.fromarray((photograph("flower.jpg")[:60, :60] * 0.15).astype(np.uint8)).save(train / "dark.png")
    Image.fromarray(photograph()[100:160, :400]).save(train / "long.png")
    Image.fromarray(photograph()).save(train / "large.png")
    Image.fromarray(photograph()[200:260, 200:260]).convert("L").save(train / "grey.png")
    (root / "val/第三").mkdir()
    Image.fromarray(photograph()[300:360, 500:560]).save(root / "val/第三/0.png")
    return root


def tree(root: Path) -> dict[str, tuple[str, int]]:
    """Content and time of change of every file."""
    return {
        str(path): (hashlib.sha256(path.read_bytes()).hexdigest(), path.stat().st_mtime_ns)
        for path in root.rglob("*")
        if path.is_file()
    }


def test_a_sound_folder_has_no_findings(tmp_path, capsys):
    root = sound_folder(tmp_path / "photos")
    assert command.run(str(root), form="json")
    answer = json.loads(capsys.readouterr().out)
    assert answer["findings"] == []
    assert answer["counts"] == {split: {"三角": 12, "圆": 12} for split in ("train", "val", "test")}
    assert not any(answer[key] for key in CONTRACT - {"counts"})


def test_what_is_planted_is_found_and_nothing_else(planted, tmp_path):
    before = tree(planted)
    assert not command.run(str(planted), form="json", out=str(tmp_path / "a.json"), html=str(tmp_path / "a.html"))
    answer = json.loads((tmp_path / "a.json").read_text())
    assert answer.keys() >= CONTRACT
    assert {(one["kind"], one["severity"]) for one in answer["findings"]} == {
        ("across_splits", "stop"),
        ("missing_classes", "stop"),
        ("missing_classes", "warn"),
        ("unreadable", "warn"),
        ("label_conflicts", "warn"),
        ("exact_duplicates", "warn"),
        ("tiny", "warn"),
        ("blank", "warn"),
        ("odd_shapes", "note"),
        ("odd_sizes", "note"),
        ("dark", "note"),
        ("grayscale", "note"),
        ("other_files", "note"),
    }
    assert [one["image"] for one in answer["unreadable"]] == ["train/圆/cut.png"]
    sets = {key: {frozenset(one) for one in answer[key]} for key in CONTRACT if key.endswith(("duplicates", "splits"))}
    leak, again = frozenset({"train/圆/0.png", "test/圆/leak.png"}), frozenset({"train/圆/1.png", "test/圆/again.jpg"})
    assert sets["across_splits"] == {leak, again}
    assert sets["near_duplicates"] == {again}
    copy, conflict = {"train/圆/2.png", "train/圆/copy.png"}, {"train/圆/3.png", "train/三角/conflict.png"}
    assert sets["exact_duplicates"] == {leak, frozenset(copy), frozenset(conflict)}
    assert answer["missing_classes"] == {"train": ["第三"], "test": ["第三"]}
    assert {one["image"] for one in answer["label_conflicts"][0]} == conflict
    assert answer["odd_pictures"] == {
        kind: [f"train/圆/{name}.png"]
        for kind, name in [
            ("tiny", "tiny"), ("blank", "blank"), ("dark", "dark"), ("grayscale", "grey"),
            ("odd_shapes", "long"), ("odd_sizes", "large"),
        ]
    }  # fmt: skip
    assert tree(planted) == before


@pytest.mark.parametrize("kind", ["csv", "tsv", "json", "jsonl", "parquet"])
def test_the_cleaned_manifest_has_nothing_that_stops(planted, tmp_path, kind):
    shutil.rmtree(planted / "val/第三")
    before = tree(planted)
    checked = check.check_data(planted)
    said = clean.write_manifest(checked, tmp_path / f"clean.{kind}")
    assert said == f"lenext train {tmp_path}/clean.{kind} --root {planted}"
    assert tree(planted) == before
    kept = sources.open_data(tmp_path / f"clean.{kind}", planted)
    dropped = {"cut.png", "3.png", "conflict.png", "0.png", "copy.png", "1.png"}
    every = [path.relative_to(planted) for path in planted.rglob("*.*") if path.suffix in (".png", ".jpg")]
    wanted = {
        str(name)
        for name in every
        if not (name.parent == Path("train/圆") and name.name in dropped) and name.name != "conflict.png"
    }
    assert set(kept.images) == wanted
    assert {image.split("/")[0] for image in kept.split("test").images} == {"test"}
    again = check.check_data(tmp_path / f"clean.{kind}", root=planted)
    assert not again.findings.worthless
    assert not {"unreadable", "exact_duplicates", "label_conflicts"} & {one.kind for one in again.findings.found}
    with pytest.raises(ValueError, match="exists already"):
        clean.write_manifest(checked, tmp_path / f"clean.{kind}")


def test_data_without_splits_stays_without_them(tmp_path):
    make_folder(tmp_path / "photos", ["a", "b"], 20)
    checked = check.check_data(tmp_path / "photos")
    assert set(report.to_dict(checked)["counts"]) == {"train", "val", "test"}
    assert clean.write_manifest(checked, tmp_path / "photos/clean.csv") == f"lenext train {tmp_path}/photos/clean.csv"
    assert (tmp_path / "photos/clean.csv").read_text().startswith("image,label\n")


def test_pictures_that_are_no_files_go_into_shards(tmp_path):
    checked = check.check_data(sound_folder(tmp_path / "photos"))
    findings = checked.findings
    store = cast(Store, object())  # any but Files
    packed = replace(checked, findings=replace(findings, samples=replace(findings.samples, store=store)))
    with pytest.raises(ValueError, match="--write-shards"):
        clean.write_manifest(packed, tmp_path / "clean.csv")
    with pytest.raises(ValueError, match=r"one of \.csv"):
        clean.write_manifest(checked, tmp_path / "clean.xlsx")


def test_cleaned_shards_hold_what_is_kept(planted, tmp_path):
    shutil.rmtree(planted / "val/第三")
    checked = check.check_data(planted)
    clean.write_shards(checked, tmp_path / "shards")
    written = sources.open_data(tmp_path / "shards")
    assert len(written) == len(clean.kept(checked))
    assert written.split("test").counts()["test"] == {"三角": 12, "圆": 14}
    with pytest.raises(ValueError, match="exists already"):
        clean.write_shards(checked, tmp_path / "shards")


def test_without_cleanvision_all_else_works(planted, monkeypatch):
    find_spec = importlib.util.find_spec
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None if name == "cleanvision" else find_spec(name))
    found = {one.kind: one for one in check.check_data(planted).findings.found}
    assert {"not_looked_for", "blank", "across_splits"} <= found.keys()
    assert not {"dark", "grayscale"} & found.keys()
    assert found["not_looked_for"].mend == "pip install 'lenext[check]'"


def test_the_page_needs_nothing_and_escapes_names(planted, tmp_path):
    evil = planted / "train/<img src=x onerror=alert(1)>"
    evil.mkdir()
    for i in range(3):
        shutil.copy(planted / f"train/三角/{i}.png", evil)
    command.run(str(planted), html=str(tmp_path / "page.html"))
    html = (tmp_path / "page.html").read_text()
    page = Page(html)
    assert "script" not in page.tags
    assert "<img src=x" not in html
    assert "<img src=x onerror=alert(1)>" in page.text
    assert {"https:", "http:"} & {str(value)[:6].split("/")[0] for _, value in page.attributes} == set()
    sources_ = [value or "" for name, value in page.attributes if name == "src"]
    assert len(sources_) > 10
    assert all(value.startswith("data:image/webp;base64,") for value in sources_)
    anchors = {(value or "")[1:] for name, value in page.attributes if name == "href"}
    assert anchors <= {value for name, value in page.attributes if name == "id"}
    assert "font-face" in html
    assert "In several splits" in page.text


def test_a_page_without_findings(tmp_path):
    command.run(str(sound_folder(tmp_path / "photos")), html=str(tmp_path / "page.html"))
    assert "Nothing wrong was found" in Page((tmp_path / "page.html").read_text()).text


@pytest.fixture(scope="module")
def mislabelled(tmp_path_factory) -> tuple[Path, Path, dict[str, str]]:
    """(folder of 600 digits, a classifier quickly trained on them, {image with a wrong label: its true label})."""
    folder = tmp_path_factory.mktemp("digits")
    digits, rng = load_digits(), np.random.default_rng(0)
    rows = np.concatenate([np.flatnonzero(digits.target == k)[:60] for k in range(10)])
    images, true = (digits.images[rows] * 255 / 16).astype(np.uint8), digits.target[rows]
    given = true.copy()
    wrong = rng.choice(len(rows), 10, replace=False)
    given[wrong] = (given[wrong] + rng.integers(1, 10, 10)) % 10
    for i, (image, label) in enumerate(zip(images, given)):
        (folder / f"photos/{label}").mkdir(parents=True, exist_ok=True)
        Image.fromarray(image).save(folder / f"photos/{label}/{i}.png")
    preprocess = Preprocess(image_size=32, mean=(0.5,) * 3, std=(0.5,) * 3, interpolation="bilinear", crop_fraction=1.0)
    transform = eval_transform(preprocess)
    x = normalise(torch.stack([transform(np.repeat(image[:, :, None], 3, 2)) for image in images]), preprocess)
    torch.manual_seed(0)
    model, y = create_model("lenet5", num_classes=10), torch.from_numpy(given)
    optimizer = torch.optim.Adam(model.parameters(), 2e-3)
    for _ in range(10):
        for batch in torch.randperm(len(x)).split(32):
            optimizer.zero_grad()
            F.cross_entropy(model(x[batch]), y[batch]).backward()
            optimizer.step()
    architecture = {"name": "lenet5", "num_outputs": 10, "image_size": 32, "arguments": {}}
    classifier = Classifier(model.eval(), architecture, tuple(map(str, range(10))), preprocess)
    classifier.save(folder / "classifier.safetensors")
    return folder / "photos", folder / "classifier.safetensors", {f"{given[i]}/{i}.png": str(true[i]) for i in wrong}


def test_wrong_labels_are_found(mislabelled, tmp_path):
    photos, classifier, wrong = mislabelled
    page = tmp_path / "page.html"
    command.run(str(photos), run=str(classifier), out=str(tmp_path / "a.json"), html=str(page))
    errors = json.loads((tmp_path / "a.json").read_text())["label_errors"]
    found = {one["image"]: one["suggested"] for one in errors[:15] if one["image"] in wrong}
    assert len(found) >= 7
    assert sum(found[image] == wrong[image] for image in found) >= 6
    assert [one["suspicion"] for one in errors] == sorted((one["suspicion"] for one in errors), reverse=True)
    assert all(one["label"] == one["image"].split("/")[0] != one["suggested"] for one in errors)
    assert "Probable label errors" in Page(page.read_text()).text


def test_no_label_is_judged_by_a_copy_of_its_picture():
    """Ten times the same wrong picture: were the copies in several folds, they would vouch for each other."""
    rng = np.random.default_rng(0)
    truth = np.repeat([0, 1], 100)
    features = (rng.normal(size=(200, 8)) + 3 * truth[:, None]).astype(np.float32)
    given = truth.copy()
    features[:10], given[:10] = features[0], 1
    apart, together = np.arange(200) % 5, np.arange(200) % 5
    together[:10] = 0
    assert {row for row, _, _ in labels.rank(features, given, together)} >= set(range(10))
    assert not {row for row, _, _ in labels.rank(features, given, apart)} & set(range(10))


def test_label_errors_need_cleanlab(mislabelled, monkeypatch):
    photos, classifier, _ = mislabelled
    find_spec = importlib.util.find_spec
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None if name == "cleanlab" else find_spec(name))
    checked = check.check_data(photos, run=classifier)
    assert checked.label_errors == []
    assert [one.mend for one in checked.findings.found if one.kind == "not_looked_for"] == [
        "pip install 'lenext[check]'"
    ]


def test_copies_are_held_out_together(mislabelled, monkeypatch):
    photos, classifier, _ = mislabelled
    samples, seen = sources.open_data(photos), []

    def rank(features, given, fold):
        seen.append(fold)
        return []

    monkeypatch.setattr(labels, "rank", rank)
    together = np.full(len(samples), -1)
    together[:20] = 0
    labels.find_label_errors(classifier, samples, np.arange(len(samples)), together)
    assert len(set(seen[0][:20])) == 1
    assert len(set(seen[0])) == labels.FOLDS
