"""`lenext predict` as a user meets it: forms, bad pictures, URLs, thresholds, saved pictures."""

from __future__ import annotations

import csv
import io
import json
import os

import numpy as np
import pyarrow.csv
import pyarrow.parquet as pq
import pytest
from PIL import Image

import lenext
from lenext.classifier import Prediction
from lenext.data import inputs
from lenext.predict import answers
from lenext.predict.gallery import draw, file_name, title
from tests.data import corpus
from tests.data.test_urls import BODY, net  # noqa: F401
from tests.test_cli import lenext_command


def rows_of(out: str) -> list[dict]:
    return [json.loads(line) for line in out.splitlines()]


@pytest.mark.parametrize("page", [1000, 7])
def test_every_form_says_the_same(page, run, shapes, tmp_path, capsys, monkeypatch):
    monkeypatch.setattr(answers, "PAGE", page)
    monkeypatch.setattr(answers, "GROUP", page)
    (tmp_path / "broken.png").write_bytes(b"")
    asked = ["predict", run, shapes / "圆", tmp_path / "broken.png", "--top-k", "9"]
    expected = [p.to_dict() for p in lenext.load(run).predict([str(shapes / f"圆/{i}.png") for i in range(30)], 9)]
    status, out, _ = lenext_command(*asked, "--format", "jsonl", capsys=capsys)
    rows = rows_of(out)
    assert (status, rows[:30]) == (0, expected)
    assert rows[30]["error"] == "the file is empty (0 bytes)"
    status, out, _ = lenext_command(*asked, "--format", "json", capsys=capsys)
    assert out == json.dumps(rows, ensure_ascii=False, indent=2) + "\n"
    for form in ("json", "jsonl", "csv", "parquet", "table"):
        file = tmp_path / "new folder" / f"answers.{form}"
        shown = "" if form == "parquet" else lenext_command(*asked, "--format", form, capsys=capsys)[1]
        status, out, _ = lenext_command(*asked, "--format", form, "--out", file, capsys=capsys)
        assert (status, out) == (0, "")
        if form == "parquet":
            assert pq.read_table(file).to_pylist() == rows
            assert pq.ParquetFile(file).num_row_groups == -(-31 // page)
        elif form == "table":
            assert file.read_bytes() == file.with_suffix(".csv").read_bytes()
            assert all(f"{i}.png" in shown for i in range(30))
            assert "the file is empty" in shown
        else:
            assert file.read_text(encoding="utf-8") == shown
    with open(tmp_path / "new folder/answers.csv", encoding="utf-8", newline="") as file:
        table = list(csv.DictReader(file))
    assert [row["label_2"] or None for row in table] == [row["top"][1]["label"] if row["top"] else None for row in rows]
    assert {path.name.partition(".")[0] for path in (tmp_path / "new folder").iterdir()} == {"answers"}


@pytest.mark.parametrize("form", ["json", "csv", "table"])
def test_a_terminal_without_the_characters_gets_them_escaped(form, run, shapes, capsys, monkeypatch):
    asked = ["predict", run, shapes / "圆/0.png", "--format", form]
    whole = lenext_command(*asked, capsys=capsys)[1]
    with io.TextIOWrapper(io.BytesIO(), "latin-1", write_through=True) as terminal:
        monkeypatch.setattr("sys.stdout", terminal)
        assert lenext_command(*asked, capsys=capsys)[0] == 0
        out = terminal.buffer.getvalue().decode("latin-1")
    assert "\\u5706" in out
    if form == "json":
        assert json.loads(out) == json.loads(whole)
    elif form == "csv":
        assert out.encode("ascii").decode("unicode-escape") == whole


@pytest.mark.parametrize(
    ("name", "form"),
    [("a.parquet", "parquet"), ("b.JSON", "json"), ("c.jsonl", "jsonl"), ("d.csv", "csv"), ("e.txt", "csv")],
)
def test_the_ending_of_the_file_names_the_form(name, form, run, shapes, tmp_path, capsys):
    asked, file = ["predict", run, shapes / "圆/0.png", "--out"], tmp_path / name
    assert lenext_command(*asked, file, capsys=capsys)[0] == 0
    lenext_command(*asked, tmp_path / "named", "--format", form, capsys=capsys)
    assert file.read_bytes() == (tmp_path / "named").read_bytes()
    lenext_command(*asked, file, "--format", "json", capsys=capsys)  # a form that is given is the one
    assert json.loads(file.read_text(encoding="utf-8"))


@pytest.mark.parametrize("several", [False, True])
def test_csv_is_a_table_for_every_reader(several, tmp_path):
    """Also with a broken picture and with the ends of lines of other systems in names."""
    names, file = ["a\r.png", "b\n.png", 'c\r\n", .png', "broken.png"], tmp_path / "a.csv"
    labels = ["猫"] if several else None
    rows = [Prediction(name, "猫", 0.75, [("猫", 0.75), ("狗", 0.25)], labels=labels) for name in names[:3]]
    rows += [Prediction(names[3], None, None, [], "empty", labels and [])]
    answers.write((row.to_dict() for row in rows), "csv", answers.Layout(2, several), file)
    with open(file, encoding="utf-8", newline="") as stream:
        table = list(csv.reader(stream))
    assert [row[0] for row in table] == ["image", *names]
    assert {len(row) for row in table} == {8 + several}
    options = pyarrow.csv.ParseOptions(newlines_in_values=True)
    found = pyarrow.csv.read_csv(file, parse_options=options)
    assert found["image"].to_pylist() == names
    assert found["probability_2"].to_pylist() == [0.25, 0.25, 0.25, None]


def test_every_malformed_picture_has_its_row_and_the_others_their_answers(run, tmp_path, capsys):
    files = corpus.corpus() | {"名 [字] 'x'\n.jpg": corpus.good()["plain.jpg"], "-dash.jpg": corpus.good()["plain.jpg"]}
    for name, data in files.items():
        (tmp_path / name).write_bytes(data)
    odd = os.fsencode(tmp_path) + b"/\xff\xfe.png"
    with open(odd, "wb") as file:
        file.write(corpus.good()["plain.png"])
    (tmp_path / "folder.jpg").mkdir()
    os.mkfifo(tmp_path / "pipe.jpg")
    extra = [tmp_path / "folder.jpg/no.png", tmp_path / "pipe.jpg", "x\0y.png", "/dev/zero", "zip:///x"]
    status, out, err = lenext_command("predict", run, tmp_path, *extra, "--format", "jsonl", capsys=capsys)
    rows = {os.path.basename(row["image"]): row for row in rows_of(out)}
    bad = {name for name in files if name.startswith("bad-")}
    assert len(bad) > 35
    assert status == 0
    assert {name for name, row in rows.items() if row["error"]} == bad | {"no.png", "pipe.jpg", "x\0y.png", "zero", "x"}
    assert rows.keys() - {"no.png", "pipe.jpg", "x\0y.png", "zero", "x"} == files.keys() | {"\\udcff\\udcfe.png"}
    assert f"{len(bad) + 5} of {len(rows)} pictures could not be read" in err
    classifier = lenext.load(run)
    for name, row in rows.items():
        if row["error"]:
            assert (row["label"], row["probability"], row["top"]) == (None, None, [])
            assert len(row["error"]) > 10
        elif name in files:
            alone = classifier.predict(files[name])
            assert (row["label"], row["probability"]) == (alone.label, pytest.approx(alone.probability, abs=1e-5))


def test_python_takes_any_mix_in_a_list_as_the_command_does(net, run, shapes, tmp_path, monkeypatch):  # noqa: F811
    monkeypatch.setattr("tests.data.test_urls.BODY", (shapes / "圆/3.png").read_bytes())
    classifier, file = lenext.load(run), shapes / "圆/3.png"
    missing, url = str(tmp_path / "none.png"), "http://public.example/a"
    pixels = np.asarray(Image.open(file).convert("RGB"))
    mixed = [shapes / "圆", file, f"{shapes}/三角/1?.png", missing, file.read_bytes(), pixels, Image.open(file), url]
    rows = classifier.predict(mixed, allow_urls=True)
    names = (
        [f"{shapes}/圆/{i}.png" for i in range(30)] + [str(file)] + [f"{shapes}/三角/{i}.png" for i in range(10, 20)]
    )
    assert [row.image for row in rows] == [*names, missing, "", "", "", url]
    assert rows[41].error == "the file does not exist"
    for row in (rows[30], *rows[42:]):
        # Of batches of other sizes, whose sums are rounded in another order.
        assert row.label == rows[3].label
        assert dict(row.top) == pytest.approx(dict(rows[3].top), abs=1e-6)
    refused = classifier.predict(url)
    assert refused.label is None
    assert "allow_urls=True" in str(refused.error)
    with pytest.raises(ValueError, match="no file fits the pattern"):
        classifier.predict([f"{tmp_path}/*.png"])
    for several in (str(shapes), f"{shapes}/*/1.png"):
        assert f"give it in a list: predict([{several!r}])" in str(classifier.predict(several).error)
    assert repr(classifier) == "<Classifier: lenet5, 2 classes, single-label, 32 x 32 pixels>"


def test_urls_are_fetched_only_where_it_is_allowed(net, run, shapes, capsys, monkeypatch):  # noqa: F811
    picture = (shapes / "圆/3.png").read_bytes()
    monkeypatch.setattr("tests.data.test_urls.BODY", picture)
    asked = ["http://public.example/a?b=c", "http://127.0.0.1/", "file:///etc/passwd", shapes / "圆/3.png",
             "HTTP://public.example/a?b=c", "http://public.example/endless"]  # fmt: skip
    monkeypatch.setattr(inputs, "URL_BYTES", 1_000_000)
    command_line = ["predict", run, *asked, "--format", "jsonl"]
    status, out, _ = lenext_command(*command_line, capsys=capsys)
    assert status == 0
    for row in [row for row in rows_of(out) if "://" in row["image"]]:
        assert "--allow-urls" in row["error"]
    assert (net.server.asked, net.connected) == ([], [])
    status, out, _ = lenext_command(*command_line, "--allow-urls", capsys=capsys)
    rows = rows_of(out)
    assert [row["image"] for row in rows] == [str(item) for item in asked]
    assert [row["error"] is None for row in rows] == [True, False, False, True, True, False]
    assert rows[0]["top"] == rows[3]["top"] == rows[4]["top"]
    assert "public internet" in rows[1]["error"]
    assert "only http and https" in rows[2]["error"]
    assert "more than the 1 MB" in rows[5]["error"]
    assert picture == BODY or set(net.connected) == {net.names["public.example"][0][0]}


def test_threshold_and_backend(run, shapes, tmp_path, capsys):
    pictures = ["predict", run, shapes]
    plain = rows_of(lenext_command(*pictures, "--format", "jsonl", capsys=capsys)[1])
    middle = sorted(row["probability"] for row in plain)[30]
    status, out, _ = lenext_command(*pictures, "--format", "jsonl", "--threshold", middle, capsys=capsys)
    rows = rows_of(out)
    assert [row["label"] for row in rows] == [p["label"] if p["probability"] >= middle else "unknown" for p in plain]
    assert [row["top"] for row in rows] == [row["top"] for row in plain]
    out = lenext_command(*pictures, "--threshold", "1", capsys=capsys)[1]
    assert out.count("unknown") == 60
    assert all(out.count(f"{name} ") >= 60 for name in ("圆", "三角"))  # what it would have been is said
    named = [*pictures, "--format", "jsonl", "--backend", "pytorch-bfloat16"]
    low = np.array([row["probability"] for row in rows_of(lenext_command(*named, capsys=capsys)[1])])
    difference = np.abs(low - [row["probability"] for row in plain]).max()
    assert 0 < difference < 0.05
    for wrong, message in (
        (["--threshold", "1.5"], "it is a probability between 0 and 1"),
        (["--backend", "openvin"], "there is no backend 'openvin'"),
        (["--out", tmp_path], "is not a file that can be replaced"),
        (["--out", "/dev/null"], "is not a file that can be replaced"),
        (["--format", "parquet"], "needs a file"),
        (["--save-pictures", run], "is not empty"),
        (["--save-pictures", run / "config.yaml"], "is a file"),
    ):
        rest = [] if "--out" in wrong or "parquet" in wrong else ["--out", tmp_path / "a.json"]
        status, _, err = lenext_command(*pictures, *wrong, *rest, capsys=capsys)
        assert (status, message in err) == (2, True), err
        assert list(tmp_path.iterdir()) == []


# ------------------------------------------------------------------------------------------------ saved pictures


def test_saved_pictures(run, shapes, tmp_path, capsys, caplog):
    (tmp_path / "broken.png").write_bytes(b"")
    folder = tmp_path / "saved"
    pictures = [shapes / "圆/0.png", tmp_path / "broken.png", shapes / "三角/0.png", shapes / "三角/../圆/0.png"]
    status, out, err = lenext_command(
        "predict", run, *pictures, "--save-pictures", folder, "--format", "jsonl", capsys=capsys
    )
    assert (status, len(rows_of(out))) == (0, 4)
    assert f"1 of 4 pictures could not be read, and are not in {folder}" in err
    assert sorted(path.name for path in folder.iterdir()) == ["000001-0.png", "000003-0.png", "000004-0.png"]
    assert "No installed font" not in err
    size = Image.open(folder / "000001-0.png").size
    assert size[0] == 640
    assert 640 < size[1] < 720
    status, _, err = lenext_command("predict", run, *pictures, "--save-pictures", folder, capsys=capsys)
    assert (status, "is not empty; choose another folder" in err) == (2, True)


def test_pictures_saved_inside_the_folder_in_question_are_not_asked_about(run, many, capsys):
    folder = many(12)
    arguments = ["predict", run, folder, folder / "**/*.png", "--save-pictures", folder / "saved", "--format", "jsonl"]
    status, out, _ = lenext_command(*arguments, capsys=capsys)
    assert (status, len(rows_of(out)), len(list((folder / "saved").iterdir()))) == (0, 24, 24)


def test_a_title_says_the_class_in_any_script(tmp_path):
    pixels = np.full((30, 50, 3), 200, np.uint8)
    pixels[:, 25:] = (0, 90, 200)
    heads = []
    for name in ("圆", "狗", "$a$ \x07" + "long " * 50):
        draw(pixels, name, tmp_path / "a.png")
        image = np.asarray(Image.open(tmp_path / "a.png").convert("RGB"))
        assert image.shape == (44 + 384, 640, 3)
        assert (image[100, 10] == (200, 200, 200)).all()
        assert (image[100, -10] == (0, 90, 200)).all()
        heads.append(image[:44])
        assert (heads[-1] < 100).any()
        assert (heads[-1][:, :8] == 255).all()  # a long title is cut, and not by the edge
    assert (heads[0] != heads[1]).any()  # boxes for missing characters would be alike


@pytest.mark.parametrize(
    ("prediction", "text"),
    [
        (Prediction("a", "猫", 0.914, [("猫", 0.914), ("狗", 0.08)]), "猫 91.4\u00a0%"),
        (Prediction("a", "unknown", 0.3, [("猫", 0.3), ("狗", 0.2)]), "unknown (猫 30.0\u00a0%)"),
        (Prediction("a", "car", 0.9, [("car", 0.9)], labels=["car", "tree"]), "car 90.0\u00a0%, tree"),
        (Prediction("a", "car", 0.1, [("car", 0.1)], labels=[]), "(none)"),
    ],
)
def test_titles(prediction, text):
    assert title(prediction) == text


@pytest.mark.parametrize(
    ("image", "name"),
    [
        ("a/b/猫 1.jpg", "000007-猫_1.png"),
        ("../../etc/passwd", "000007-passwd.png"),
        ("x/..", "000007-picture.png"),
        (".hidden", "000007-hidden.png"),
        ("a/" + "长" * 200 + ".jpg", "000007-" + "长" * 60 + ".png"),
        ("b/" + os.fsdecode(b"\xff\xfe") + "\n\0.png", "000007-picture.png"),
        ("https://a.example/x%2F..%2F../cat.jpg?size=../../2", "000007-cat.png"),
        ("https://a.example/", "000007-picture.png"),
    ],
)
def test_names_of_saved_pictures_stay_in_the_folder(image, name):
    assert file_name(7, image) == name
    assert len(os.fsencode(name)) <= 255
