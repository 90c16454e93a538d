"""Findings from samples and a scan, each planted by hand; pictures play no part here."""

from __future__ import annotations

import logging
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from lenext.data import check
from lenext.data.samples import Files, Names, Samples


@dataclass(frozen=True)
class Scanned:
    """What a scan tells, as a test wants it."""

    sizes: np.ndarray
    reasons: dict[int, str]
    exact: np.ndarray
    near: np.ndarray
    contrast: np.ndarray
    colour: np.ndarray

    def exact_duplicates(self) -> np.ndarray:
        return self.exact

    def near_duplicates(self) -> np.ndarray:
        return self.near


def make(
    train=20, val=20, test=20, classes=("a", "b"), *, exact=(), near=(), reasons=(), sizes=None, blank=(), **columns
) -> tuple[Any, Any]:
    """(samples, scan) of so many pictures of every class in each split. exact, near: sets of rows; near ones are
    joined with the exact ones, as in a scan."""
    splits = np.repeat(np.arange(3, dtype=np.int8), [n * len(classes) for n in (train, val, test)])
    n = len(splits)
    samples = Samples(
        store=Files(Path("photos")),
        images=Names(f"{i}.png" for i in range(n)),
        labels=np.arange(n) % len(classes),
        splits=splits,
        weights=np.ones(n, np.float32),
        classes=tuple(classes),
        **columns,
    )
    numbers = np.full((2, n), -1, np.int64)
    for column, sets in ((0, exact), (1, [*exact, *near])):
        for i, rows in enumerate(sets):
            numbers[column, list(rows)] = i
    all_sizes = np.full((n, 2), 100, np.int32)
    for row, size in (sizes or {}).items():
        all_sizes[row] = size
    contrast, colour = np.full(n, 50.0, np.float32), np.zeros((n, 6, 6, 2), np.uint8)
    contrast[[*blank, *reasons]] = 0
    return samples, Scanned(all_sizes, dict.fromkeys(reasons, "cut off"), numbers[0], numbers[1], contrast, colour)


def kinds(findings) -> dict[str, str]:
    return {finding.kind: finding.severity for finding in findings.found}


def test_a_sound_data_set_has_no_findings():
    findings = check.find(*make())
    assert findings.found == ()
    assert not findings.worthless
    assert (findings.exact, findings.near, findings.across, findings.conflicts) == ([], [], [], [])
    assert findings.missing == {}


# In 1,000 test pictures one equal picture is a thousandth, two are more; a hundred nearly equal ones are a tenth.
@pytest.mark.parametrize(
    ("exact", "near", "severity"), [(1, 0, "warn"), (2, 0, "stop"), (0, 100, "warn"), (0, 101, "stop"), (1, 99, "warn")]
)
def test_leaks_stop_above_their_share_of_the_held_out_split(exact, near, severity):
    sets = [(2 * i, 1400 + 2 * i) for i in range(exact + near)]  # of train and of test, of one class
    findings = check.find(*make(600, 100, 500, exact=sets[:exact], near=sets[exact:]))
    assert kinds(findings) == {"across_splits": severity}
    assert findings.found[0].rows.tolist() == [b for _, b in sets]
    assert f"{exact + near} of 1000 test pictures" in findings.found[0].text
    assert [rows.tolist() for rows in findings.across] == [list(pair) for pair in sets]


def test_a_leak_is_counted_where_it_is_measured():
    found = check.find(*make(exact=[(0, 40)], near=[(42, 80, 82, 84, 86, 88)])).found  # train and val; val and test
    assert [(one.kind, one.rows.tolist()) for one in found if one.severity == "stop"] == [
        ("across_splits", [40]),
        ("across_splits", [80, 82, 84, 86, 88]),
    ]


def test_copies_within_a_split_count_those_too_many():
    findings = check.find(*make(exact=[(0, 2, 4)], near=[(6, 8)]))
    assert kinds(findings) == {"exact_duplicates": "warn", "near_duplicates": "note"}
    assert [one.rows.tolist() for one in findings.found] == [[2, 4], [8]]
    assert [rows.tolist() for rows in findings.exact] == [[0, 2, 4]]
    assert [rows.tolist() for rows in findings.near] == [[6, 8]], "a set of one and the same file is not nearly equal"


def test_equal_pictures_with_different_labels_are_named():
    findings = check.find(*make(exact=[(2, 3)]))
    assert kinds(findings) == {"label_conflicts": "warn"}
    assert "2.png (a) and 3.png (b)" in findings.found[0].text
    assert [rows.tolist() for rows in findings.conflicts] == [[2, 3]]


@pytest.mark.parametrize(("bad", "severity"), [(6, "warn"), (7, "stop")])
def test_unreadable_pictures_stop_above_the_share_allowed(bad, severity):
    findings = check.find(*make(reasons=range(bad)), max_unreadable=0.05)
    assert kinds(findings) == {"unreadable": severity}
    assert findings.found[0].rows.tolist() == list(range(bad))


def test_a_class_whose_training_pictures_are_all_unreadable_stops():
    samples, scanned = make(reasons=range(0, 40, 2))
    findings = check.find(samples, scanned, max_unreadable=1.0)
    assert kinds(findings) == {"missing_classes": "stop", "unreadable": "warn"}
    assert findings.missing == {"train": ["a"]}


def test_a_class_missing_from_a_held_out_split_is_a_warning():
    samples, scanned = make(val=2)
    samples.labels[40:44] = 1
    findings = check.find(samples, scanned)
    assert kinds(findings) == {"missing_classes": "warn"}
    assert findings.missing == {"val": ["a"]}


def test_no_validation_pictures_and_one_class_stop():
    assert kinds(check.find(*make(val=0))) == {"no_validation": "stop"}
    assert kinds(check.find(*make(classes=("a",)))) == {"one_class": "stop"}


def test_few_pictures_and_imbalance():
    samples, scanned = make(train=50)
    samples.labels[:100] = [1] * 91 + [0] * 9
    findings = check.find(samples, scanned)
    assert kinds(findings) == {"few_pictures": "warn", "imbalance": "warn"}
    assert "'b' has 10 times as many training pictures as 'a'" in findings.found[1].text


def test_effective_number_of_classes():
    assert check.effective_number(np.array([5, 5, 5, 5])) == pytest.approx(4)
    assert check.effective_number(np.array([5, 0, 0])) == pytest.approx(1)
    assert 1 < check.effective_number(np.array([90, 10])) < 2


@pytest.mark.parametrize("names", [("Cat", "cat "), ("ｃａｔ", "cat"), ("sea_lion", "Sea Lion"), ("a\u200bb", "ab")])
def test_class_names_that_are_one_name(names):
    findings = check.find(*make(classes=(*names, "catfish", "1", "2")))
    assert kinds(findings) == {"class_names": "warn"}
    assert all(repr(name) in findings.found[0].text for name in names)
    assert "catfish" not in findings.found[0].text


def test_sizes():
    findings = check.find(*make(sizes={3: (30, 90), 5: (16, 16), 7: (600, 600), 9: (1000, 300), 11: (300, 100)}))
    assert {one.kind: one.rows.tolist() for one in findings.found} == {
        "tiny": [5, 3],
        "odd_sizes": [7],
        "odd_shapes": [9],
    }
    digits = make(sizes=dict.fromkeys(range(120), (8, 8)))
    assert check.find(*digits).found == (), "what all pictures have is no defect"


def test_blank_pictures_have_neither_contrast_nor_colours():
    samples, scanned = make(blank=[3, 9])
    scanned.colour[9, 0, 0] = 50
    findings = check.find(samples, scanned)
    assert [(one.kind, one.severity, one.rows.tolist()) for one in findings.found] == [("blank", "warn", [3])]


def test_groups_on_both_sides():
    groups = np.full(120, -1)
    groups[[0, 1]], groups[[2, 80]] = 0, 1
    assert kinds(check.find(*make(groups=groups))) == {"groups_across_splits": "warn"}


def test_unreadable_pictures_are_not_judged_by_their_size():
    samples, scanned = make(reasons=[4], sizes={4: (0, 0)})
    assert kinds(check.find(samples, scanned)) == {"unreadable": "warn"}


def test_training_says_warnings_and_stops_with_the_mend(caplog, monkeypatch):
    monkeypatch.setattr(logging.getLogger("lenext"), "propagate", True)
    check.require_sound(check.find(*make(exact=[(0, 2)], near=[(6, 8)])), "my photos")
    assert "1 picture is the very same" in caplog.text
    assert "nearly the same" not in caplog.text, "notes are for the check"
    with pytest.raises(ValueError, match=r"test pictures .* clean\.csv .* --check false trains"):
        check.require_sound(check.find(*make(exact=[(0, 80)]), "my photos"), "my photos")


def test_the_gravest_comes_first():
    findings = check.find(*make(exact=[(0, 2), (4, 80)], sizes={9: (1000, 300)}))
    assert [one.severity for one in findings.found] == ["stop", "warn", "note"]
