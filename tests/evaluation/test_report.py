"""The report: complete, self-contained, safe against names that are HTML, content with what is there."""

import base64
import io
import json
from html.parser import HTMLParser

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from fontTools.ttLib import TTFont
from PIL import Image

from lenext.evaluation import figures, report
from lenext.evaluation.metrics import evaluate
from lenext.evaluation.predictions import read_mistakes
from lenext.evaluation.report import write_report

VOID = {"meta", "img", "input", "br"}


class Page(HTMLParser):
    """Tags, attributes and text of a page; checks that every element is closed where it was opened."""

    def __init__(self, html):
        super().__init__()
        self.tags: list[str] = []
        self.attributes: list[tuple[str, str | None]] = []
        self.texts: list[str] = []
        self.open: list[str] = []
        self.feed(html)
        self.close()
        assert self.open == []

    def handle_starttag(self, tag, attributes):
        self.tags.append(tag)
        self.attributes += attributes
        if tag not in VOID:
            self.open.append(tag)

    def handle_endtag(self, tag):
        assert self.open.pop() == tag, f"</{tag}> closes another element"

    def handle_data(self, data):
        if self.open and self.open[-1] != "style":
            self.texts.append(data)

    @property
    def text(self):
        return " ".join(" ".join(self.texts).split())


def minimal_run(run, classes=("cat", "dog"), data="photos"):
    run.mkdir(parents=True, exist_ok=True)
    (run / "config.yaml").write_text("model: lenet5\nepochs: 2\n", encoding="utf-8")
    counts = {split: dict.fromkeys(classes, 10) for split in ("train", "val")}
    about = {"data": data, "classes": list(classes), "counts": counts, "unreadable": [], "fingerprint": {}}
    (run / "data.json").write_text(json.dumps(about), encoding="utf-8")
    return run


def full_run(run, classes=("cat", "dog", "bird"), evil=""):
    """A run folder with everything; `evil` is added to every text that comes from outside."""
    classes = [name + evil for name in classes]
    K = len(classes)
    minimal_run(run, classes, "photos" + evil)
    about = json.loads((run / "data.json").read_text())
    about["unreadable"] = [{"image": f"broken{evil}.jpg", "reason": "truncated" + evil}]
    (run / "data.json").write_text(json.dumps(about))
    (run / "environment.json").write_text(json.dumps({"python": "3.11" + evil, "cores": 2}))
    (run / "choices.json").write_text(json.dumps(["Two epochs, as the pictures are few." + evil]))
    (run / "model.txt").write_text("Conv2d ├─ 6 filters" + evil)
    rows = [
        {"epoch": 1, "seconds": 60.0, "images_per_second": 100.0, "val_accuracy": 0.5},
        {"epoch": 2, "seconds": 65.0, "images_per_second": 120.0, "val_accuracy": None},
    ]
    (run / "metrics.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    generator = np.random.default_rng(0)
    evaluation, predictions = {}, []
    for split in ("val", "test"):
        labels = generator.integers(0, K, 60)
        probabilities = generator.dirichlet(np.ones(K), 60) / 2 + np.eye(K)[labels] / 2
        failed = [{"image": f"lost{evil}.jpg", "reason": "empty" + evil}]
        evaluation[split] = evaluate(probabilities, labels, classes, failed=failed)
        for i, label in enumerate(labels):
            predictions.append(
                {
                    "split": split,
                    "image": f"{split}/{i}{evil}.jpg",
                    "label": classes[label],
                    "prediction": classes[probabilities[i].argmax()],
                    "probability": float(probabilities[i].max()),
                    "probabilities": probabilities[i].tolist(),
                }
            )
    names = ["samples", "curves"]
    names += [f"{name}-{split}" for name in ("confusion", "reliability", "mistakes") for split in evaluation]
    (run / "figures").mkdir()
    for name in names:
        Image.new("RGB", (300, 200)).save(run / "figures" / f"{name}.png")
    (run / "evaluation.json").write_text(json.dumps(evaluation))
    pq.write_table(pa.Table.from_pylist(predictions), run / "predictions.parquet")
    return run


def read(path):
    return Page(path.read_text(encoding="utf-8"))


def test_a_full_report_says_it_all(tmp_path):
    run = full_run(tmp_path / "run")
    path = write_report(run)
    assert path == run / "report.html"
    page = read(path)
    test = json.loads((run / "evaluation.json").read_text())["test"]
    low, high = (figures.percent(value) for value in test["accuracy_interval"])
    headline = f"{figures.percent(test['accuracy'])} of 60 test pictures are classified correctly"
    for expected in (
        "lenet5 on photos",
        headline,
        f"{low} to {high}",
        "Two epochs, as the pictures are few.",
        "1 unreadable file was left out",
        "broken.jpg",
        "truncated",
        "2 epochs in 2 min, 110 pictures a second",
        "Results on test",
        "Results on val",
        "macro F1",
        "calibration error",
        "lost.jpg",
        "taken for",
        "Conv2d ├─ 6 filters",
        "epochs: 2",
        "python 3.11",
        "lenext predict",
        "lenext evaluate",
        "lenext.load(",
    ):
        assert " ".join(expected.split()) in page.text, expected
    assert page.tags.count("img") == 8
    for name in ("cat", "dog", "bird"):
        assert name in page.text


def test_the_report_needs_nothing_else(tmp_path):
    path = write_report(full_run(tmp_path / "run"))
    page = read(path)
    assert not {"script", "link", "iframe", "object", "embed"} & set(page.tags)
    for name, value in page.attributes:
        assert not name.startswith("on")
        if name in ("src", "href"):
            assert value.startswith(("data:image/png;base64,", "#"))
    html = path.read_text(encoding="utf-8")
    assert "http://" not in html
    assert "https://" not in html
    assert "@import" not in html
    assert "default-src 'none'" in html
    anchors = {value for name, value in page.attributes if name == "id"}
    assert {value[1:] for name, value in page.attributes if name == "href"} <= anchors
    assert all(value for name, value in page.attributes if name == "alt")


@pytest.mark.parametrize(
    "evil",
    [
        "<script>alert(1)</script>",
        '"><img src=x onerror=alert(1)>',
        "{{ 7 * 7 }}",
        "</pre></style><b>",
        "&lt;",
    ],
)
def test_names_cannot_inject_html(evil, tmp_path):
    clean = read(write_report(full_run(tmp_path / "clean")))
    page = read(write_report(full_run(tmp_path / "run", evil=evil)))
    assert page.tags == clean.tags
    assert [name for name, _ in page.attributes] == [name for name, _ in clean.attributes]
    assert " ".join(evil.split()) in page.text


def test_only_configuration_and_data_are_needed(tmp_path):
    page = read(write_report(minimal_run(tmp_path / "run")))
    assert "has not been evaluated yet" in page.text
    assert "img" not in page.tags
    assert "Training" not in page.text
    assert "What was chosen" not in page.text
    assert "lenext predict" in page.text


@pytest.mark.parametrize(
    ("name", "images"),
    [
        ("environment.json", 8),
        ("choices.json", 8),
        ("model.txt", 8),
        ("metrics.jsonl", 8),
        ("evaluation.json", 2),
        ("predictions.parquet", 8),
        ("figures/samples.png", 7),
        ("figures/curves.png", 7),
        ("figures/confusion-test.png", 7),
        ("figures/reliability-test.png", 7),
        ("figures/mistakes-test.png", 7),
    ],
)
def test_any_optional_thing_may_be_absent(name, images, tmp_path):
    run = full_run(tmp_path / "run")
    (run / name).unlink()
    assert read(write_report(run)).tags.count("img") == images


def test_without_predictions_or_mistakes(tmp_path):
    run = full_run(tmp_path / "run")
    pq.write_table(pa.Table.from_pylist([]), run / "predictions.parquet")
    assert read_mistakes(run / "predictions.parquet", 12) == {}
    write_report(run)


def test_what_is_no_run_folder_is_named(tmp_path):
    with pytest.raises(ValueError, match="not a run folder"):
        write_report(tmp_path)
    with pytest.raises(ValueError, match="does not exist"):
        write_report(tmp_path / "absent")


def test_chinese_names_carry_their_font(tmp_path):
    html = write_report(full_run(tmp_path / "run", classes=("猫", "狗", "bird"))).read_text(encoding="utf-8")
    assert "猫" in Page(html).text
    encoded = html.split("data:font/woff;base64,")[1].split(")")[0]
    cmap = TTFont(io.BytesIO(base64.b64decode(encoded))).getBestCmap()
    assert {ord("猫"), ord("狗")} <= set(cmap)


def test_latin_names_carry_no_font(tmp_path):
    html = write_report(full_run(tmp_path / "run")).read_text(encoding="utf-8")
    assert "@font-face" not in html


def test_names_that_are_no_text(tmp_path):
    run = minimal_run(tmp_path / "run", classes=("a\udcff", "b\x00\nc"))
    page = read(write_report(run))
    assert "a\N{REPLACEMENT CHARACTER}" in page.text


def test_the_commands_quote_the_path(tmp_path):
    page = read(write_report(minimal_run(tmp_path / "it's a run")))
    assert f"""lenext evaluate '{tmp_path}/it'"'"'s a run'""" in page.text
    assert f'''lenext.load("{tmp_path}/it's a run")''' in page.text


def test_mistakes_are_the_most_confident_of_each_split(tmp_path):
    rows = [
        {
            "split": "test",
            "image": f"{i}.jpg",
            "label": "a",
            "prediction": "ab"[i % 2],
            "probability": i / 100,
        }
        for i in range(60)
    ]
    pq.write_table(pa.Table.from_pylist(rows), tmp_path / "predictions.parquet")
    mistakes = read_mistakes(tmp_path / "predictions.parquet", 12)["test"]
    assert [row["image"] for row in mistakes] == [f"{i}.jpg" for i in range(59, 59 - 24, -2)]


def test_confusions_are_the_most_frequent():
    rows = report.confusions([[5, 3, 0], [1, 2, 7], [0, 0, 0]], ["a", "b", "c"])
    assert rows[0] == {"label": "b", "prediction": "c", "count": 7, "share": 0.7}
    assert [(row["label"], row["prediction"]) for row in rows] == [("b", "c"), ("a", "b"), ("b", "a")]


def test_numbers_for_people():
    assert report.number(1234567) == "1\N{NARROW NO-BREAK SPACE}234\N{NARROW NO-BREAK SPACE}567"
    assert report.share(None) == "–"
    assert report.score(0.12345) == "0.123"
    assert [report.duration(s) for s in (3.2, 125, 7200, 480 * 3600)] == ["3 s", "2 min", "2.0 h", "20 days"]
