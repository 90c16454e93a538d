"""The names of the 1,000 ImageNet-1k classes: their order, that they are distinct, and some of them read closely."""

from __future__ import annotations

import csv
import re
from pathlib import Path

import pytest
from timm.data import ImageNetInfo

import lenext.models

FILE = Path(lenext.models.__file__).with_name("imagenet_classes.tsv")


@pytest.fixture(scope="module")
def rows() -> list[dict[str, str]]:
    with FILE.open(encoding="utf-8", newline="") as file:
        return list(csv.DictReader(file, delimiter="\t", quoting=csv.QUOTE_NONE))


def test_the_file_is_utf_8_with_plain_line_ends() -> None:
    text = FILE.read_bytes().decode("utf-8")
    assert text.startswith("wnid\tenglish\tchinese\n")
    assert text.endswith("\n")
    assert "\r" not in text
    assert {line.count("\t") for line in text.splitlines()} == {2}


def test_classes_stand_in_the_order_of_the_index(rows: list[dict[str, str]]) -> None:
    wnids = [row["wnid"] for row in rows]
    assert len(wnids) == 1000
    assert wnids == sorted(wnids)
    assert wnids == ImageNetInfo("imagenet-1k").label_names()


@pytest.mark.parametrize("language", ["english", "chinese"])
def test_names_are_distinct_and_clean(rows: list[dict[str, str]], language: str) -> None:
    names = [row[language] for row in rows]
    assert all(name and name == name.strip() for name in names)
    assert len({name.lower() for name in names}) == 1000


def test_each_name_is_in_its_script(rows: list[dict[str, str]]) -> None:
    assert [row for row in rows if not row["english"].isascii()] == []
    assert [row for row in rows if not re.search("[\u4e00-\u9fff]", row["chinese"])] == []


@pytest.mark.parametrize(
    ("index", "english", "chinese"),
    [
        (0, "tench", "丁鱥"),
        (134, "crane (bird)", "鹤"),
        (207, "golden retriever", "金毛寻回犬"),
        (242, "boxer (dog)", "拳师犬"),
        (264, "Cardigan Welsh corgi", "卡迪根威尔士柯基犬"),
        (281, "tabby cat", "虎斑猫"),
        (474, "cardigan (garment)", "开襟毛衣"),
        (517, "crane (machine)", "起重机"),
        (673, "mouse (computer)", "鼠标"),
        (698, "palace", "宫殿"),
        (985, "daisy", "雏菊"),
        (998, "ear (of corn)", "玉米穗"),
        (999, "toilet tissue", "卫生纸"),
    ],
)
def test_spot_checks(rows: list[dict[str, str]], index: int, english: str, chinese: str) -> None:
    assert (rows[index]["english"], rows[index]["chinese"]) == (english, chinese)
