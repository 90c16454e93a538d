"""What the runs of a study say: each cell's figures, each comparison's answer, the main effects, what was not run."""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Literal

from lenext import runs
from lenext.study.design import Cell, Comparison, Measure, Study
from lenext.study.results import Result, read
from lenext.study.statistics import (
    Effect,
    LevelEffect,
    MainEffects,
    Mean,
    Verdict,
    holm,
    is_chance,
    main_effects,
    mean_interval,
    paired,
    picture_error,
    verdict,
)

MEASURES: dict[Measure, Callable[[Result], float | None]] = {
    "accuracy": lambda result: result.accuracy,
    "overfitting": lambda result: result.overfitting,
    "speed of learning": lambda result: result.learning,
}


@dataclass(frozen=True)
class Row:
    """A cell: means over its seeds, shares of 1 where not said; None where no run of it is done.

    results: of all seeds that were asked for. chance: seeds that did no better than guessing.
    seconds: of training and validating. memory: MiB at most.
    """

    cell: Cell
    results: tuple[Result, ...]
    accuracy: Mean | None
    top5: Mean | None
    train_accuracy: Mean | None
    val_accuracy: Mean | None
    overfitting: Mean | None
    learning: Mean | None
    published: float | None
    parameters: int | None
    multiply_adds: int | None
    chance: int
    seconds: Mean | None
    images_per_second: Mean | None
    memory: Mean | None

    @property
    def done(self) -> tuple[Result, ...]:
        return tuple(result for result in self.results if result.state == "done")

    @property
    def learned(self) -> str:
        """What has to be said of a cell that is no better than guessing; else nothing."""
        if not self.chance:
            return ""
        some = "" if self.chance == len(self.done) else f"{self.chance} of {len(self.done)} seeds "
        return f"{some}did not learn"


@dataclass(frozen=True)
class Answer:
    """To a comparison. p: corrected for all of them. published: the difference there; expected: by study or paper."""

    comparison: Comparison
    effect: Effect | None
    p: float | None
    published: float | None
    expected: Literal["more", "less"] | None
    verdict: Verdict


@dataclass(frozen=True)
class Findings:
    """All that the report shows. effects: of each measure, with p corrected within it; empty where nothing is crossed.

    split, pictures, classes: what accuracy was measured on; None before the first run is done.
    picture_error: the largest standard error of a cell's accuracy for the number of these pictures.
    machines: what the runs ran on, in words.
    """

    name: str
    study: Study
    folder: Path
    seeds: int
    results: tuple[Result, ...]
    rows: tuple[Row, ...]
    answers: tuple[Answer, ...]
    effects: dict[Measure, MainEffects]
    corrected: dict[Measure, tuple[float | None, ...]]
    split: str | None
    pictures: int | None
    classes: int | None
    picture_error: float | None
    machines: tuple[str, ...]

    @property
    def questions(self) -> int:
        """How many comparisons the p values are corrected for."""
        return sum(answer.p is not None for answer in self.answers)

    @property
    def left(self) -> tuple[Result, ...]:
        return tuple(result for result in self.results if result.state != "done")


def gather(name: str, study: Study, folder: Path, seeds: int) -> Findings:
    """Read every run of a study and work out what they say."""
    results = tuple(read(study, folder, seeds))
    of_cell: dict[str, list[Result]] = {name: [] for name in study.cells}
    for result in results:
        of_cell[result.run.cell.name].append(result)
    rows = tuple(_row(study, cell, tuple(of_cell[cell.name])) for cell in study.cells.values())
    effects = _effects(study, results) if study.crossed else {}
    done = [result for result in results if result.state == "done"]
    errors = [picture_error(result.accuracy, result.n) for result in done if result.accuracy is not None and result.n]
    first = done[0] if done else None
    return Findings(
        name=name,
        study=study,
        folder=folder,
        seeds=seeds,
        results=results,
        rows=rows,
        answers=_answers(study, results),
        effects=effects,
        corrected={measure: tuple(holm([one.p for one in found.effects])) for measure, found in effects.items()},
        split=first.split if first else None,
        pictures=first.n if first else None,
        classes=first.classes if first else None,
        picture_error=max(errors, default=None),
        machines=tuple(sorted({_machine(result.run.folder) for result in done} - {""})),
    )


def _row(study: Study, cell: Cell, results: tuple[Result, ...]) -> Row:
    done = [result for result in results if result.state == "done"]

    def mean(of: Callable[[Result], float | None]) -> Mean | None:
        values = [value for value in map(of, done) if value is not None]
        return mean_interval(values) if values else None

    parameters, multiply_adds = _size(done[0]) if done else (None, None)
    return Row(
        cell=cell,
        results=results,
        accuracy=mean(lambda result: result.accuracy),
        top5=mean(lambda result: result.top5),
        train_accuracy=mean(lambda result: result.train_accuracy),
        val_accuracy=mean(lambda result: result.val_accuracy),
        overfitting=mean(lambda result: result.overfitting),
        learning=mean(lambda result: result.learning),
        published=study.published.get(cell.name),
        parameters=parameters,
        multiply_adds=multiply_adds,
        chance=sum(
            is_chance(result.accuracy, result.classes, result.n)
            for result in done
            if result.accuracy is not None and result.classes and result.n
        ),
        seconds=mean(lambda result: result.seconds),
        images_per_second=mean(lambda result: result.images_per_second),
        memory=mean(lambda result: result.peak_memory_mib),
    )


def _size(result: Result) -> tuple[int, int]:
    """(parameters, multiply-adds of one picture) of the network that a run has trained."""
    assert result.config is not None
    assert result.classes is not None
    config = result.config
    arguments = json.dumps(config.get("arguments") or {}, sort_keys=True)
    return _count(config["model"], result.classes, config["image_size"], arguments)


@lru_cache(maxsize=256)
def _count(model: str, classes: int, image_size: int, arguments: str) -> tuple[int, int]:
    from lenext.models import catalogue

    # Training feeds RGB, also to networks whose paper has grey pictures.
    given = {"num_classes": classes, "image_size": image_size, "in_channels": 3}
    return catalogue.count(model, **given, **json.loads(arguments))


def _answers(study: Study, results: Sequence[Result]) -> tuple[Answer, ...]:
    effects = []
    for comparison in study.comparisons:
        values, against = (
            _by_seed(results, name, MEASURES[comparison.measure]) for name in (comparison.cell, comparison.against)
        )
        effects.append(paired(values, against))
    corrected = holm([effect.p if effect else None for effect in effects])
    answers = []
    for comparison, effect, p in zip(study.comparisons, effects, corrected):
        published = _published(study, comparison)
        expected = comparison.expected
        if expected is None and published:
            expected = "more" if published > 0 else "less"
        answers.append(Answer(comparison, effect, p, published, expected, verdict(effect, p, expected)))
    return tuple(answers)


def _published(study: Study, comparison: Comparison) -> float | None:
    if comparison.measure != "accuracy" or not {comparison.cell, comparison.against} <= study.published.keys():
        return None
    return study.published[comparison.cell] - study.published[comparison.against]


def _by_seed(results: Sequence[Result], cell: str, of: Callable[[Result], float | None]) -> dict[int, float]:
    found = {result.run.seed: of(result) for result in results if result.run.cell.name == cell}
    return {seed: value for seed, value in found.items() if value is not None}


def _effects(study: Study, results: Sequence[Result]) -> dict[Measure, MainEffects]:
    cells = {cell.name: cell.levels for cell in study.cells.values()}
    factors = {factor.name: list(factor.levels) for factor in study.factors}
    effects = {}
    for measure, of in MEASURES.items():
        values = {(result.run.cell.name, result.run.seed): of(result) for result in results}
        known = {key: value for key, value in values.items() if value is not None}
        if found := main_effects(known, cells, factors):
            effects[measure] = found
    return effects


def corrected_effects(findings: Findings, measure: Measure) -> list[tuple[LevelEffect, float | None]]:
    """(effect, its corrected p) of every level of a measure."""
    return list(zip(findings.effects[measure].effects, findings.corrected[measure]))


def _machine(run: Path) -> str:
    """What a run ran on, by its environment.json; nothing without one."""
    path = run / "environment.json"
    if not path.is_file():
        return ""
    known = runs.read_json(path)
    gpu = known.get("gpu", "none")
    parts = [str(known.get("processor", "")), f"{known.get('cores')} cores", "" if gpu == "none" else str(gpu)]
    return ", ".join([part for part in parts if part] + [f"torch {known.get('torch')}"])
