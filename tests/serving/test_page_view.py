"""What the web page shows, and in which language."""

from __future__ import annotations

import csv
import io
import re

import pytest

from lenext.classifier import Prediction
from lenext.data.decode import UnreadableImage, decode
from lenext.serving import page_view
from lenext.serving.page_text import CHINESE, ENGLISH, language_of
from tests.data import corpus


def test_names_of_classes_and_files_are_text():
    evil = "<script>alert(1)</script>"
    prediction = Prediction(evil, evil, 0.5, [(evil, 0.5)])
    heat = {"picture": "data:,", "overlay": "data:,", "coarse": False}
    for shown in (page_view.answer(ENGLISH, prediction, heat), page_view.table(ENGLISH, [prediction])):
        assert "<script" not in shown
        assert "&lt;script&gt;" in shown


def test_of_several_classes_those_of_the_picture_are_ticked():
    top = [("cat", 0.9), ("dog", 0.6), ("car", 0.1)]
    shown = page_view.answer(ENGLISH, Prediction("", "cat", 0.9, top, labels=["cat", "dog"]), {})
    assert shown.count("lx-ticked") == 2
    assert ENGLISH.at_least.format(threshold="50.0 %") in shown
    assert ENGLISH.no_heat in shown
    rows = [Prediction("a", "cat", 0.9, top, labels=["cat", "dog"]), Prediction("b", "cat", 0.2, top, labels=[])]
    assert "cat, dog" in page_view.table(ENGLISH, rows)
    found = list(csv.DictReader(io.StringIO(page_view.to_csv(rows).decode("utf-8-sig"))))
    assert [row["labels"] for row in found] == ["cat, dog", ""]


def test_the_chinese_page_says_in_chinese_why_a_picture_cannot_be_read():
    reasons = []
    for data in corpus.bad().values():
        with pytest.raises(UnreadableImage) as refused:
            decode(data, shrink_to=64)
        reasons.append(str(refused.value))
    assert len(set(reasons)) > 20
    for reason in reasons:
        said = CHINESE.why_unreadable(reason)
        foreign = re.sub("JPEG|HTML|XML|SVG|PDF|TIFF|zip| x ", "", said)
        assert not re.search("[A-Za-z]", foreign), said
        assert reason in ENGLISH.why_unreadable(reason)
    assert "65000 x 65000 像素，超过 100 百万" in CHINESE.why_unreadable(
        next(r for r in reasons if r.startswith("65000"))
    )


def test_a_spreadsheet_takes_no_name_for_a_formula():
    rows = [Prediction('=HYPERLINK("http://a")', "-1", 0.5, [("-1", 0.5)])]
    found = next(csv.DictReader(io.StringIO(page_view.to_csv(rows).decode("utf-8-sig"))))
    assert found["image"].startswith("'=")
    assert found["label"] == "'-1"


@pytest.mark.parametrize(
    ("header", "language"),
    [
        ("", "en"),
        ("zh-CN,zh;q=0.9,en;q=0.8", "zh"),
        ("en-GB,en;q=0.9,zh;q=0.8", "en"),
        ("fr-FR,fr;q=0.9,zh-TW;q=0.5", "zh"),
        ("zh;q=0.2, en;q=0.7", "en"),
        ("zh;q=x, de", "en"),
        ("ZH-hans", "zh"),
    ],
)
def test_the_language_is_the_browsers(header, language):
    assert language_of(header) == language


def test_both_languages_fill_in_the_same_names():
    for name in ENGLISH.__dataclass_fields__:
        here, there = getattr(ENGLISH, name), getattr(CHINESE, name)
        assert sorted(re.findall(r"{\w+}", str(here))) == sorted(set(re.findall(r"{\w+}", str(there)))) or (
            name == "too_many"
        )
