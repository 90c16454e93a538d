"""What is wrong with a data set, from its samples and one look at every picture. Nothing is decoded again here.

stop: a result would be worthless, and training does not begin. warn: a result would be worse, or say less, than it
seems. note: worth knowing. Every finding says which pictures it is about and what to do.
"""

from __future__ import annotations

import logging
import math
import shlex
import unicodedata
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Literal

import numpy as np

from lenext.data.samples import SPLITS, Files, Samples
from lenext.data.scan import Scan
from lenext.data.sources import listed

log = logging.getLogger("lenext")

Severity = Literal["stop", "warn", "note"]
SEVERITIES = ("stop", "warn", "note")

# Shares of a held-out split that may be in another split too. What is measured on it is then off by no more than that.
EXACT_LEAK, NEAR_LEAK = 0.001, 0.1
MAX_UNREADABLE = 0.05
FEW_PICTURES = 10  # of a class to train on
IMBALANCE = 10.0  # the largest class, in pictures, against the smallest
LONG = 3.0  # long side against short side: the middle square then shows less than a third
BLANK = 1.0  # standard deviation of the small grey version, grey levels
TINY = 32  # pixels of the short side, where the others are larger
ODD_SIZE = 5.0  # short side against the median of all


@dataclass(frozen=True)
class Finding:
    """kind: a word for programs. text, mend: a sentence each. rows: (M,) the pictures it is about, worst first."""

    kind: str
    severity: Severity
    text: str
    mend: str
    rows: np.ndarray


@dataclass(frozen=True, kw_only=True)
class Findings:
    """Everything found in a data set, the gravest first.

    exact, near, across, conflicts: sets of pictures (M,) that are the same file; that show nearly the same and are not
    all one file; that are equal or nearly so and lie in several splits; that are so and have different labels.
    missing: the classes without a readable picture, of each split that lacks some.
    same, alike: (N,) cluster numbers of equal pictures, and of equal and nearly equal ones together; -1 for none.
    """

    samples: Samples
    scanned: Scan
    found: tuple[Finding, ...]
    exact: list[np.ndarray]
    near: list[np.ndarray]
    across: list[np.ndarray]
    conflicts: list[np.ndarray]
    missing: dict[str, list[str]]
    same: np.ndarray
    alike: np.ndarray

    @property
    def worthless(self) -> bool:
        return any(finding.severity == "stop" for finding in self.found)

    @property
    def readable(self) -> np.ndarray:
        """(N,) bool."""
        return readable(self.scanned, len(self.samples))

    def with_more(self, more: Sequence[Finding]) -> Findings:
        return replace(self, found=in_order([*self.found, *more]))


def find(
    samples: Samples,
    scanned: Scan,
    data: str = "DATA",
    max_unreadable: float = MAX_UNREADABLE,
    near: np.ndarray | None = None,
) -> Findings:
    """What is wrong with `samples`, each of which has its split.

    scanned: row i tells of sample i. data: as the user wrote it, for the commands that mend.
    max_unreadable: the share of unreadable pictures above which nothing should be trained.
    near: `scanned.near_duplicates()`, which takes time, where it is known already.
    """
    good = readable(scanned, len(samples))
    exact = scanned.exact_duplicates()
    near = scanned.near_duplicates() if near is None else near
    sets = clusters(near)
    across = [rows for rows in sets if np.ptp(samples.splits[rows])]
    conflicts = [rows for rows in sets if np.ptp(samples.labels[rows])]
    missing = _missing(samples, good)
    found = [
        *_unreadable(samples, scanned, good, max_unreadable),
        *_leaks(samples, good, exact, near, data),
        *_shared_groups(samples),
        *_classes(samples, good, missing),
        *_class_names(samples),
        *_conflicts(samples, conflicts, data),
        *_copies(samples, exact, near, conflicts, data),
        *_blank(scanned, good),
        *_sizes(scanned, good),
    ]
    return Findings(
        samples=samples,
        scanned=scanned,
        found=in_order(found),
        exact=clusters(exact),
        near=[rows for rows in sets if exact[rows[0]] < 0 or np.ptp(exact[rows])],
        across=across,
        conflicts=conflicts,
        missing=missing,
        same=exact,
        alike=near,
    )


def require_sound(findings: Findings, data: str) -> None:
    """ValueError where a result would be worthless; else log the warnings."""
    stops = [finding for finding in findings.found if finding.severity == "stop"]
    if stops:
        more = "" if len(stops) == 1 else f" There is more like this: lenext check {shlex.quote(data)} lists all."
        raise ValueError(f"{data}: {stops[0].text} {stops[0].mend}{more} --check false trains regardless.")
    for finding in findings.found:
        if finding.severity == "warn":
            log.warning("%s", finding.text)


def in_order(found: Sequence[Finding]) -> tuple[Finding, ...]:
    """The gravest first, otherwise as they are."""
    return tuple(sorted(found, key=lambda finding: SEVERITIES.index(finding.severity)))


def readable(scanned: Scan, n: int) -> np.ndarray:
    """(N,) bool: which pictures give pixels."""
    good = np.ones(n, dtype=bool)
    good[list(scanned.reasons)] = False
    return good


def clusters(numbers: np.ndarray) -> list[np.ndarray]:
    """The rows of each cluster, from (N,) cluster numbers, -1 for rows in none; in the order of their first rows."""
    rows = np.flatnonzero(numbers >= 0)
    if not len(rows):
        return []
    order = rows[np.argsort(numbers[rows], kind="stable")]
    sets = np.split(order, np.flatnonzero(np.diff(numbers[order])) + 1)
    return sorted(sets, key=lambda rows: int(rows[0]))


def leaking(samples: Samples, numbers: np.ndarray) -> np.ndarray:
    """(N,) bool: held-out pictures whose cluster has a picture in an earlier split (train, then val, then test)."""
    together = numbers >= 0
    earliest = np.full(numbers.max(initial=-1) + 1, len(SPLITS), np.int64)
    np.minimum.at(earliest, numbers[together], samples.splits[together])
    result = np.zeros(len(samples), dtype=bool)
    result[together] = earliest[numbers[together]] < samples.splits[together]
    return result


# ----------------------------------------------------------------------------------------------- one kind each


def _unreadable(samples: Samples, scanned: Scan, good: np.ndarray, most: float) -> list[Finding]:
    rows = np.flatnonzero(~good)
    if not len(rows):
        return []
    share = len(rows) / len(samples)
    allow = f"; --max-unreadable {math.ceil(100 * share) / 100} allows more."
    text = f"{_count(len(rows), 'picture')} of {len(samples)} ({_percent(share)}) cannot be read, such as "
    return [
        Finding(
            "unreadable",
            "stop" if share > most else "warn",
            text + f"{samples.images[int(rows[0])]}: {scanned.reasons[int(rows[0])]}.",
            "Download or export these files again, or take them out" + (allow if share > most else "."),
            rows,
        )
    ]


def _leaks(samples: Samples, good: np.ndarray, exact: np.ndarray, near: np.ndarray, data: str) -> list[Finding]:
    same, alike = leaking(samples, exact), leaking(samples, near)
    found = []
    for code, split in enumerate(SPLITS):
        held_out = good & (samples.splits == code)
        n, n_same, n_alike = (int((held_out & mask).sum()) for mask in (held_out, same, alike))
        if not n_alike:
            continue
        worthless = n_same > EXACT_LEAK * n or n_alike > NEAR_LEAK * n
        found.append(
            Finding(
                "across_splits",
                "stop" if worthless else "warn",
                f"{n_alike} of {_count(n, f'{split} picture')} ({_percent(n_alike / n)}) {_are(n_alike)} in an earlier "
                f"split too, {n_same} as the very same picture, {n_alike - n_same} as nearly the same: what is "
                f"learned by heart would be counted as understood.",
                _clean(samples, data, "takes the training copies out"),
                np.flatnonzero(held_out & alike),
            )
        )
    return found


def _shared_groups(samples: Samples) -> list[Finding]:
    if samples.groups is None:
        return []
    rows = np.flatnonzero(leaking(samples, samples.groups))
    if not len(rows):
        return []
    n = len(np.unique(samples.groups[rows]))
    return [
        Finding(
            "groups_across_splits",
            "warn",
            f"{_count(n, 'group')} {_have(n)} pictures in several splits: held-out pictures are not of new groups.",
            "Give all pictures of a group the same split, or leave the column 'split' out.",
            rows,
        )
    ]


def _missing(samples: Samples, good: np.ndarray) -> dict[str, list[str]]:
    missing = {}
    for code, split in enumerate(SPLITS):
        inside = samples.splits == code
        if inside.any() or split == "train":
            counts = samples.class_counts(inside & good)
            missing[split] = [name for name, n in zip(samples.classes, counts) if not n]
    return {split: names for split, names in missing.items() if names}


def _classes(samples: Samples, good: np.ndarray, missing: dict[str, list[str]]) -> list[Finding]:
    none = np.zeros(0, np.int64)
    found = []
    if len(samples.classes) < 2:
        found.append(
            Finding(
                "one_class",
                "stop",
                f"There is one class only ({samples.classes[0]!r}).",
                "Put the pictures of each class into a folder of its own, named after it.",
                none,
            )
        )
    for split, names in missing.items():
        if split == "train":
            text = f"There is no readable training picture of {listed(names)}."
            found.append(
                Finding("missing_classes", "stop", text, "Add training pictures, or take the class out.", none)
            )
        else:
            text = f"{split} has no readable picture of {listed(names)}: its figures say nothing about that."
            found.append(Finding("missing_classes", "warn", text, f"Add some to {split}.", none))
    if not samples.in_split("val").any():
        found.append(
            Finding(
                "no_validation",
                "stop",
                "No picture is left for validation: the best model could not be chosen.",
                "Add pictures, or hold more out with --val-fraction.",
                none,
            )
        )
    counts = samples.class_counts(good & samples.in_split("train"))
    few = [name for name, n in zip(samples.classes, counts) if 0 < n < FEW_PICTURES]
    if few:
        text = f"Fewer than {FEW_PICTURES} training pictures are there of {listed(few)}."
        found.append(Finding("few_pictures", "warn", text, "Add pictures of it.", none))
    some = counts[counts > 0]
    if len(some) > 1 and some.max() > IMBALANCE * some.min():
        large = samples.classes[counts.argmax()]
        small = samples.classes[np.where(counts > 0, counts, some.max()).argmin()]
        found.append(
            Finding(
                "imbalance",
                "warn",
                f"{large!r} has {some.max() / some.min():.0f} times as many training pictures as {small!r}; the "
                f"{len(some)} classes are worth {effective_number(counts):.1f} equal ones.",
                "Add pictures of the small classes or train with --sampling balanced, and judge by macro F1 instead of "
                "accuracy.",
                none,
            )
        )
    return found


def effective_number(counts: np.ndarray) -> float:
    """How many classes of equal size have the same entropy: exp(-sum p log p)."""
    shares = counts[counts > 0] / max(counts.sum(), 1)
    return float(np.exp(-(shares * np.log(shares)).sum()))


def _class_names(samples: Samples) -> list[Finding]:
    """Names that people would write for the same class."""
    alike: dict[str, list[str]] = {}
    for name in samples.classes:
        plain = "".join(c for c in unicodedata.normalize("NFKC", name) if unicodedata.category(c) != "Cf")
        plain = " ".join(plain.casefold().replace("_", " ").replace("-", " ").split())
        alike.setdefault(plain, []).append(name)
    return [
        Finding(
            "class_names",
            "warn",
            f"{' and '.join(map(repr, names))} differ only in case, spaces or width: are they one class?",
            "If so, give them one name.",
            np.zeros(0, np.int64),
        )
        for names in alike.values()
        if len(names) > 1
    ]


def _conflicts(samples: Samples, conflicts: list[np.ndarray], data: str) -> list[Finding]:
    if not conflicts:
        return []
    rows = conflicts[0]
    a, b = int(rows[0]), int(rows[np.argmax(samples.labels[rows] != samples.labels[rows[0]])])
    return [
        Finding(
            "label_conflicts",
            "warn",
            f"{_count(len(conflicts), 'set')} of equal or nearly equal pictures {_have(len(conflicts))} different "
            f"labels, such as {samples.images[a]} ({samples.label_text(a)}) and {samples.images[b]} "
            f"({samples.label_text(b)}).",
            f"Keep the right ones. {_clean(samples, data, 'leaves all of them out')}",
            np.concatenate(conflicts),
        )
    ]


def _copies(
    samples: Samples, exact: np.ndarray, near: np.ndarray, conflicts: list[np.ndarray], data: str
) -> list[Finding]:
    """Copies within one split and of one label; the others are graver and are said elsewhere."""
    found = []
    said = np.concatenate([*conflicts, np.zeros(0, np.int64)])
    copies = np.setdiff1d(_repeats(exact, samples.splits), said)
    if len(copies):
        found.append(
            Finding(
                "exact_duplicates",
                "warn",
                f"{_count(len(copies), 'picture')} {_are(len(copies))} the very same as another of the same split and "
                "would count twice.",
                _clean(samples, data, "keeps one of each"),
                copies,
            )
        )
    alike = np.setdiff1d(_repeats(near, samples.splits), np.concatenate([copies, said]))
    if len(alike):
        found.append(
            Finding(
                "near_duplicates",
                "note",
                f"{_count(len(alike), 'picture')} {_are(len(alike))} nearly the same as another of the same split.",
                "Nothing has to be done: training keeps them on one side where it divides the data itself.",
                alike,
            )
        )
    return found


def _repeats(numbers: np.ndarray, splits: np.ndarray) -> np.ndarray:
    """Rows of a cluster that has an earlier row in the same split."""
    rows = np.flatnonzero(numbers >= 0)
    _, first = np.unique(numbers[rows] * len(SPLITS) + splits[rows], return_index=True)
    return np.delete(rows, first)


def _blank(scanned: Scan, good: np.ndarray) -> list[Finding]:
    plain = (scanned.contrast < BLANK) & (np.ptp(scanned.colour, axis=(1, 2)).max(1) <= 2)
    rows = np.flatnonzero(good & plain)
    if not len(rows):
        return []
    text = f"{_count(len(rows), 'picture')} {'shows' if len(rows) == 1 else 'show'} one plain colour."
    return [Finding("blank", "warn", text, "Take out what shows nothing.", rows)]


def _sizes(scanned: Scan, good: np.ndarray) -> list[Finding]:
    rows = np.flatnonzero(good)
    if not len(rows):
        return []
    short, long = scanned.sizes[rows].min(1), scanned.sizes[rows].max(1)
    median = float(np.median(short))
    found = []
    tiny = (short < TINY) & (2 * short < median)
    if tiny.any():
        text = f"{_count(int(tiny.sum()), 'picture')} {_have(int(tiny.sum()))} a side of fewer than {TINY} pixels."
        mend = "Replace these by larger ones, or take them out: enlarged, they show next to nothing."
        found.append(Finding("tiny", "warn", text, mend, rows[tiny][np.argsort(short[tiny], kind="stable")]))
    odd = ~tiny & (np.maximum(short / median, median / short) > ODD_SIZE)
    if odd.any():
        text = f"{_count(int(odd.sum()), 'picture')} {_are(int(odd.sum()))} more than {ODD_SIZE:.0f} times as large or "
        text += f"as small as the others ({median:.0f} pixels, short side)."
        mend = "Look at them: such pictures often come from elsewhere, or show something else."
        found.append(Finding("odd_sizes", "note", text, mend, rows[odd]))
    stretched = long > LONG * short
    if stretched.any():
        n = int(stretched.sum())
        text = f"{_count(n, 'picture')} {_are(n)} more than {LONG:.0f} times as long as wide: a network is shown the "
        text += "middle square."
        order = np.argsort(-(long / short)[stretched], kind="stable")
        mend = "Cut them to what matters."
        severity: Severity = "warn" if n > len(rows) / 2 else "note"
        found.append(Finding("odd_shapes", severity, text, mend, rows[stretched][order]))
    return found


# ----------------------------------------------------------------------------------------------- words


def _clean(samples: Samples, data: str, what: str) -> str:
    """The command that writes a cleaned data set."""
    files = isinstance(samples.store, Files)
    option = "--write-manifest clean.csv" if files else "--write-shards clean/"
    return f"lenext check {shlex.quote(data)} {option} {what}."


def _count(n: int, noun: str) -> str:
    return f"{n} {noun}" if n == 1 else f"{n} {noun}s"


def _are(n: int) -> str:
    return "is" if n == 1 else "are"


def _have(n: int) -> str:
    return "has" if n == 1 else "have"


def _percent(share: float) -> str:
    """Two digits that mean something: 0.012 %, 1.2 %, 12 %."""
    return f"{float(f'{100 * share:.2g}'):g} %"
