"""What a study is: a base configuration, factors with their levels, seeds, and the questions that this answers.

A study file is Python and ends in one `STUDY = Study(...)`; lenext/studies/ holds those that come along. A cell is one
level of every factor; each cell is trained once with each seed, and runs of one seed share split, order and weights'
seed, so that comparisons are paired.
"""

from __future__ import annotations

import itertools
import os
import re
import runpy
import traceback
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any, Literal

from lenext import config
from lenext.config import nearest

Measure = Literal["accuracy", "overfitting", "speed of learning"]
FOLDER = Path(__file__).parents[1] / "studies"
# What the runner decides for every run.
RESERVED = ("data", "seed", "devices", "nodes")
# As a teacher: the run of another cell with the same seed.
TAUGHT_BY = "cell:"


@dataclass(frozen=True)
class Factor:
    """Something that is varied. levels: {name: settings of TrainConfig that make it so}; `{}` is the base as it is.

    The setting teacher may be "cell:NAME": the run of that cell with the same seed, which is then trained before.
    product_of: names of earlier factors. The level, one of two, is then set by theirs, the product of their signs, so
    that a fraction of all cells is enough (Box, Hunter, Hunter: Statistics for Experimenters, chapter 6).
    """

    name: str
    levels: Mapping[str, Mapping[str, Any]]
    product_of: tuple[str, ...] = ()


@dataclass(frozen=True, kw_only=True)
class Comparison:
    """A question and the two cells, by name, whose difference answers it.

    change: what leads from the cell `against` to the cell `cell`, as the subject of a sentence: "removing shortcuts".
    expected: whether it is said to raise ("more") or to lower ("less") the measure, or to do neither; by the published
    figures of the two cells where not given.
    measure: accuracy on the test pictures; overfitting: training minus validation accuracy in the last epoch; speed of
    learning: validation accuracy, averaged over the epochs.
    """

    question: str
    change: str
    cell: str
    against: str
    measure: Measure = "accuracy"
    expected: Literal["more", "less"] | None = None


@dataclass(frozen=True, kw_only=True)
class Study:
    """A controlled comparison.

    question: what it is to find out, one sentence. factors: at least one. base: settings of all runs.
    seeds: how many, from 0. comparisons: the questions in detail. published: {cell: accuracy, 0 to 1} that the cells
    are held against, and published_in: where those figures stand.
    places: folders or files where the data is looked for. data_help: where to get it, and how large it is.
    pictures, classes, image_size: training pictures, classes and input of the data, to estimate the time without it.
    about: what has to be known to read the result, such as deviations from what is reproduced; a paragraph each.

    Raises ValueError for what does not go together, naming factor, level, cell or setting and the nearest one.
    """

    question: str
    factors: tuple[Factor, ...]
    base: Mapping[str, Any] = field(default_factory=dict)
    seeds: int = 3
    comparisons: tuple[Comparison, ...] = ()
    published: Mapping[str, float] = field(default_factory=dict)
    published_in: str = ""
    places: tuple[str, ...] = ()
    data_help: str = ""
    pictures: int = 0
    classes: int = 0
    about: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        if not isinstance(self.seeds, int) or self.seeds < 1:
            raise ValueError(f"seeds is {self.seeds!r}; it must be a whole number of at least 1")
        if not self.factors:
            raise ValueError("a study needs at least one factor, something that is varied")
        for i, factor in enumerate(self.factors):
            self._require_factor(factor, self.factors[:i])
        assert self.cells  # raises where two would have one name
        for word, accuracy in self.published.items():
            self.cell(word, "published names")
            if not 0 <= accuracy <= 1:
                raise ValueError(f"published: the accuracy of {word!r} is {accuracy}; it is a share between 0 and 1")
        for cell in self.cells.values():
            if cell.teacher and self.cell(cell.teacher, f"the teacher of {cell.name!r} is").teacher:
                raise ValueError(f"the teacher of {cell.name!r} is {cell.teacher!r}, which is taught by a cell itself")
        for comparison in self.comparisons:
            for word in (comparison.cell, comparison.against):
                self.cell(word, f"the comparison {comparison.question!r} names")
            if comparison.cell == comparison.against:
                raise ValueError(f"the comparison {comparison.question!r} compares {comparison.cell!r} with itself")

    def _require_factor(self, factor: Factor, before: tuple[Factor, ...]) -> None:
        if not factor.levels:
            raise ValueError(f"factor {factor.name!r} has no levels")
        names = [other.name for other in before]
        if factor.name in names:
            raise ValueError(f"there are two factors called {factor.name!r}")
        if factor.product_of and len({*factor.product_of}) < max(len(factor.product_of), 2):
            raise ValueError(
                f"factor {factor.name!r} is a product of {factor.product_of}; it takes two factors or more"
            )
        for word in factor.product_of:
            if word not in names:
                hint = nearest(word, names)
                raise ValueError(f"factor {factor.name!r} is a product of {word!r}, which is no factor before it{hint}")
        for other in before if factor.product_of else ():
            if other.name in factor.product_of and len(other.levels) != 2:
                raise ValueError(f"factor {other.name!r} has {len(other.levels)} levels; in a product each has two")
        if factor.product_of and len(factor.levels) != 2:
            raise ValueError(f"factor {factor.name!r} has {len(factor.levels)} levels; a product has two")
        for level, settings in factor.levels.items():
            where = f"factor {factor.name!r}, level {level!r}"
            for key in (*self.base, *settings):
                if key in RESERVED:
                    raise ValueError(f"{where}: {key} is set by the runner, not by a study")
            try:
                config.build(dict(self.base), dict(settings))
            except ValueError as error:
                raise ValueError(f"{where}: {error}") from None

    @cached_property
    def cells(self) -> dict[str, Cell]:
        """{name: cell} in the order of the levels, the last factor changing fastest."""
        free = [factor for factor in self.factors if not factor.product_of]
        cells = {}
        for choice in itertools.product(*(factor.levels for factor in free)):
            levels = dict(zip((factor.name for factor in free), choice))
            for factor in self.factors:
                if factor.product_of:
                    levels[factor.name] = self._product(factor, levels)
            levels = {factor.name: levels[factor.name] for factor in self.factors}
            name = ", ".join(levels.values())
            if name in cells:
                raise ValueError(f"two cells are called {name!r}; give the levels different names")
            settings = [dict(factor.levels[levels[factor.name]]) for factor in self.factors]
            cells[name] = Cell(name, levels, merge(dict(self.base), *settings))
        return cells

    def _product(self, factor: Factor, levels: Mapping[str, str]) -> str:
        """The level of a factor whose sign is the product of those of others."""
        sign = 1
        for other in self.factors:
            if other.name in factor.product_of:
                sign *= 1 if levels[other.name] == list(other.levels)[1] else -1
        return list(factor.levels)[1 if sign > 0 else 0]

    def cell(self, name: str, who: str) -> Cell:
        """The cell of that name; ValueError, saying who asked, if there is none."""
        if name not in self.cells:
            raise ValueError(f"{who} the cell {name!r}, which there is not{nearest(name, self.cells)}")
        return self.cells[name]

    @property
    def crossed(self) -> bool:
        """Whether factors have main effects: there are several."""
        return len(self.factors) > 1


@dataclass(frozen=True)
class Cell:
    """One level of every factor. levels: {factor: level}. settings: of TrainConfig, base and levels together."""

    name: str
    levels: Mapping[str, str]
    settings: Mapping[str, Any]

    @property
    def slug(self) -> str:
        """The name as a folder's."""
        return re.sub(r"[^\w.+-]+", "_", self.name).strip("_.") or "cell"

    @property
    def teacher(self) -> str | None:
        """The name of the cell whose runs teach those of this one."""
        word = str(self.settings.get("teacher"))
        return word.removeprefix(TAUGHT_BY) if word.startswith(TAUGHT_BY) else None


@dataclass(frozen=True)
class Run:
    """A cell with a seed: one training. folder: its run folder. teacher: that of the run that has to be done before."""

    cell: Cell
    seed: int
    folder: Path
    teacher: Path | None = None

    @property
    def name(self) -> str:
        return f"{self.cell.name}, seed {self.seed}"

    @property
    def request(self) -> dict[str, Any]:
        """What training is asked for, but for the data."""
        taught = {"teacher": os.path.abspath(self.teacher)} if self.teacher else {}
        return {**self.cell.settings, **taught, "seed": self.seed}


def plan(study: Study, folder: Path, seeds: int) -> list[Run]:
    """Every run of a study, seed by seed, so that whatever is finished first makes whole comparisons."""
    slugs: dict[str, str] = {}
    for cell in study.cells.values():
        other = slugs.setdefault(cell.slug.casefold(), cell.name)
        if other != cell.name:
            raise ValueError(f"the cells {other!r} and {cell.name!r} would share a folder; give one another name")

    def place(name: str, seed: int) -> Path:
        return folder / "runs" / study.cells[name].slug / f"seed-{seed}"

    return [
        Run(cell, seed, place(cell.name, seed), place(cell.teacher, seed) if cell.teacher else None)
        for seed in range(seeds)
        for cell in study.cells.values()
    ]


def merge(*layers: dict[str, Any]) -> dict[str, Any]:
    """Settings with later ones winning; arguments of the architecture are joined, as in `config.build`."""
    merged: dict[str, Any] = {}
    for layer in layers:
        joined = {**merged.get("arguments", {}), **layer.get("arguments", {})}
        merged |= {**layer, **({"arguments": joined} if joined else {})}
    return merged


def names() -> list[str]:
    """The studies that come along."""
    return sorted(path.stem.replace("_", "-") for path in FOLDER.glob("*.py") if path.stem != "__init__")


def read(name: str) -> tuple[str, Study]:
    """(name, study) of a study that comes along, by name, or of a file, by path.

    Raises ValueError that names file and line where the file has an error.
    """
    path = Path(name)
    if path.suffix == ".py":
        if not path.is_file():
            raise ValueError(f"{path} does not exist; a study file was expected")
    else:
        path = FOLDER / f"{name.replace('-', '_')}.py"
        if name not in names():
            raise ValueError(
                f"there is no study {name!r}{nearest(name, names())}; there are {', '.join(names())}, "
                "and a file of your own by its path, such as ./mine.py"
            )
    try:
        study = runpy.run_path(str(path)).get("STUDY")
    except SyntaxError as error:
        raise ValueError(f"{error.filename}, line {error.lineno}: {error.msg}") from None
    except Exception as error:  # a file of the user's may raise anything
        lines = [frame.lineno for frame in traceback.extract_tb(error.__traceback__) if frame.filename == str(path)]
        what = str(error) if isinstance(error, ValueError) else f"{type(error).__name__}: {error}"
        raise ValueError(f"{path}, line {lines[-1] if lines else 1}: {what}") from None
    if not isinstance(study, Study):
        raise ValueError(f"{path} does not end in STUDY = Study(...)")
    return path.stem.replace("_", "-"), study


def distinct(values: Iterator[Any]) -> list[Any]:
    """Values without their repetitions, in order; they need not be hashable."""
    found: list[Any] = []
    for value in values:
        if value not in found:
            found.append(value)
    return found
