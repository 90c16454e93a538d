"""The results of a study as files for programs and papers: CSV, Markdown and LaTeX.

In CSV accuracies and differences are shares of 1, to six digits. Time and memory, which differ between machines and
repetitions, are in costs.csv alone; the other files are the same for a study that was interrupted and gone on with.
"""

from __future__ import annotations

import csv
import io
import re
from collections.abc import Iterable, Sequence
from pathlib import PurePath
from typing import Any

from lenext.evaluation.fonts import printable
from lenext.evaluation.report import duration
from lenext.study import wording
from lenext.study.design import Measure
from lenext.study.findings import Findings, Row, corrected_effects
from lenext.study.statistics import Mean

LATEX = {
    "\\": r"\textbackslash{}", "~": r"\textasciitilde{}", "^": r"\textasciicircum{}", "<": r"\textless{}",
    ">": r"\textgreater{}", "|": r"\textbar{}", "[": "{[}", "]": "{]}", "*": "{*}",
    wording.MINUS: "$-$", "×": r"$\times$", "±": r"$\pm$", "–": "--",
    **{c: "\\" + c for c in "&%$#_{}"},
}  # fmt: skip


def csv_files(findings: Findings) -> dict[str, str]:
    """{file name: text}."""
    files = {
        "table.csv": _cells(findings),
        "runs.csv": _runs(findings),
        "comparisons.csv": _comparisons(findings),
        "costs.csv": _costs(findings),
    }
    return files | ({"effects.csv": _effects(findings)} if findings.study.crossed else {})


def _cells(findings: Findings) -> str:
    factors = [factor.name for factor in findings.study.factors]
    head = ["cell", *(f"factor {name}" for name in factors), "runs_done", "runs_asked", "accuracy", "accuracy_low",
            "accuracy_high", "published", "parameters", "multiply_adds", "top5", "train_accuracy", "val_accuracy",
            "overfitting", "overfitting_low", "overfitting_high", "speed_of_learning", "speed_of_learning_low",
            "speed_of_learning_high", "seeds_at_chance"]  # fmt: skip
    return _csv(head, ([
        row.cell.name, *(row.cell.levels[name] for name in factors), len(row.done), len(row.results),
        *_limits(row.accuracy), row.published, row.parameters, row.multiply_adds,
        *(mean and mean.mean for mean in (row.top5, row.train_accuracy, row.val_accuracy)),
        *_limits(row.overfitting), *_limits(row.learning), row.chance if row.done else None,
    ] for row in findings.rows))  # fmt: skip


def _runs(findings: Findings) -> str:
    head = ["cell", "seed", "state", "split", "pictures", "accuracy", "top5", "nll", "ece", "train_accuracy",
            "val_accuracy", "overfitting", "speed_of_learning", "epochs", "reason"]  # fmt: skip
    return _csv(head, ([
        one.run.cell.name, one.run.seed, one.state, one.split, one.n, one.accuracy, one.top5, one.nll, one.ece,
        one.train_accuracy, one.val_accuracy, one.overfitting, one.learning, len(one.history) or None, one.reason,
    ] for one in findings.results))  # fmt: skip


def _comparisons(findings: Findings) -> str:
    head = ["question", "change", "cell", "against", "measure", "seeds", "difference", "low", "high", "p",
            "p_corrected", "expected", "published_difference", "verdict"]  # fmt: skip
    rows = []
    for answer in findings.answers:
        asked, effect = answer.comparison, answer.effect
        numbers = (effect.n, effect.difference, effect.low, effect.high, effect.p) if effect else (0, *[None] * 4)
        rows.append([
            asked.question, asked.change, asked.cell, asked.against, asked.measure, *numbers, answer.p,
            answer.expected, answer.published, answer.verdict,
        ])  # fmt: skip
    return _csv(head, rows)


def _effects(findings: Findings) -> str:
    head = ["measure", "factor", "level", "against", "difference", "low", "high", "p", "p_corrected", "product_of"]
    products = {factor.name: " x ".join(factor.product_of) for factor in findings.study.factors}
    return _csv(head, (
        [measure, one.factor, one.level, one.against, one.difference, one.low, one.high, one.p, p, products[one.factor]]
        for measure in findings.effects
        for one, p in corrected_effects(findings, measure)
    ))  # fmt: skip


def _costs(findings: Findings) -> str:
    head = ["cell", "seed", "seconds", "images_per_second", "peak_memory_mib"]
    return _csv(head, (
        [one.run.cell.name, one.run.seed, one.seconds, one.images_per_second, one.peak_memory_mib]
        for one in findings.results
        if one.state == "done"
    ))  # fmt: skip


def _limits(mean: Mean | None) -> tuple[float | None, float | None, float | None]:
    return (mean.mean, mean.low, mean.high) if mean else (None, None, None)


def _csv(head: Sequence[str], rows: Iterable[Sequence[Any]]) -> str:
    file = io.StringIO()
    writer = csv.writer(file, lineterminator="\n")
    writer.writerow(head)
    for row in rows:
        writer.writerow([_plain(value) for value in row])
    return file.getvalue()


def _plain(value: Any) -> Any:
    # Machines add up in different orders, so the last digits are theirs; what is left of a zero is none.
    return f"{round(value, 12) + 0.0:.6g}" if isinstance(value, float) else value


def columns(findings: Findings) -> list[str]:
    """Heads of the table of cells, shared by all its forms."""
    published = ["published %"] if findings.study.published else []
    return ["cell", "accuracy %", "95 % interval", *published, "runs", "M parameters", "M mult-adds", "training",
            "images/s", "peak MiB"]  # fmt: skip


def cell_texts(findings: Findings, row: Row) -> list[str]:
    """What stands under `columns` for a cell."""
    published = [wording.accuracy(row.published)] if findings.study.published else []
    return [
        row.cell.name + (f" ({row.learned})" if row.learned else ""),
        wording.mean(row.accuracy),
        wording.interval(row.accuracy),
        *published,
        f"{len(row.done)}/{len(row.results)}",
        wording.million(row.parameters),
        wording.million(row.multiply_adds),
        duration(row.seconds.mean) if row.seconds else wording.DASH,
        f"{row.images_per_second.mean:.0f}" if row.images_per_second else wording.DASH,
        f"{row.memory.mean:.0f}" if row.memory else wording.DASH,
    ]


def markdown(findings: Findings, pictures: Iterable[str]) -> str:
    """The report as GitHub's Markdown. pictures: paths of the figures, seen from there."""
    study = findings.study
    parts = [f"# {_md(study.question)}", f"Study {_md(findings.name)}; {wording.runs_done(findings)}."]
    if findings.answers:
        parts.append("\n".join(f"- {_md(wording.whole(findings, answer))}" for answer in findings.answers))
    parts += [_md(text) for text in study.about]
    parts += ["## Cells", _md_table(columns(findings), [cell_texts(findings, row) for row in findings.rows])]
    if study.published_in:
        parts.append(f"Published: {_md(study.published_in)}.")
    parts.append(_md_table(LEARNING, [learning_texts(row) for row in findings.rows]))
    for measure in findings.effects:
        rows = effect_texts(findings, measure)
        parts += [f"## Main effects on {measure}, points", _md_table(EFFECTS, rows, words=3)]
    if findings.effects:
        parts += map(_md, effect_notes(findings))
    if findings.left:
        rows = [[one.run.name, one.state, one.reason or wording.DASH] for one in findings.left]
        parts += ["## What was not run", _md_table(["run", "state", "reason"], rows, words=3)]
    if links := [f"![{PurePath(path).stem}]({path})" for path in pictures]:
        parts += ["## Figures", *links]
    note = wording.pictures_note(findings)
    parts += ["## How it was measured", *([note] if note else []), *how(findings)]
    parts += [f"Ran on: {_md(machine)}" for machine in findings.machines]
    return "\n\n".join(parts) + "\n"


LEARNING = ["cell", "training %", "validation %", "overfitting, points", "95 % interval", "speed of learning %"]
EFFECTS = ["factor", "level", "against", "effect", "95 % interval", "p, corrected"]


def learning_texts(row: Row) -> list[str]:
    """What stands under `LEARNING` for a cell."""
    means = (row.train_accuracy, row.val_accuracy, row.overfitting)
    numbers = [wording.mean(one) for one in means]
    speed = wording.mean(row.learning)
    return [row.cell.name, *numbers, wording.interval(row.overfitting), speed]


def effect_texts(findings: Findings, measure: Measure) -> list[list[str]]:
    """A row under `EFFECTS` for every level of a measure."""
    return [
        [
            one.factor,
            one.level,
            one.against,
            wording.points(one.difference, 2) if one.difference is not None else "cannot be told",
            wording.DASH if one.low is None else f"{wording.points(one.low, 2)} to {wording.points(one.high, 2)}",
            wording.p_value(p),
        ]
        for one, p in corrected_effects(findings, measure)
    ]


def effect_notes(findings: Findings) -> list[str]:
    """What has to be known to read main effects."""
    notes = []
    if found := findings.effects.get("accuracy"):
        notes.append(
            f"Each effect is averaged over the levels of the other factors, in {wording.count(found.runs, 'run')} of "
            f"{wording.count(found.cells, 'cell')} with {wording.count(found.seeds, 'seed')}, each cell counting once "
            "(least squares, seeds as blocks). What is not done is left out."
        )
        if found.interaction_p is not None:
            joint = found.interaction_p < 0.05
            p = wording.p_is(found.interaction_p)
            notes.append(
                f"The factors interact in accuracy ({p}): an effect depends on the other levels, so look at the cells."
                if joint
                else f"No interaction of the factors is shown in accuracy ({p})."
            )
    if products := [wording.confounded(factor) for factor in findings.study.factors if factor.product_of]:
        notes.append(
            f"Only a fraction of all cells is run: {', '.join(products)}. So a main effect cannot be told apart from "
            "the interactions that share its signs, such as that of the factors in such a product; it is a main effect "
            "only as far as these are small."
        )
    return notes


def how(findings: Findings) -> list[str]:
    """How the figures came about, a paragraph each."""
    return [
        "Each cell is trained once with each seed. Runs of one seed share the split, the order of the pictures and the "
        "seed of the weights, so cells are compared in pairs: an effect is the mean over seeds of their differences. "
        "Intervals are of 95 %, by Student's t over seeds, each for itself; p values are of the paired t test, "
        "corrected for all comparisons together (Holm 1979). Confirmed: significant at 5 % after correction, and of "
        "the expected sign; refuted: of the other; undecided: not significant, which does not show equality.",
        "Accuracy is that of the epoch that validated best. Overfitting is training minus validation accuracy in the "
        "last epoch, training accuracy being that of the pictures as they were trained on, with their random "
        "changes. Speed of learning is the validation accuracy, averaged over the epochs. Training time is that of all "
        "epochs with validation, and parameters and multiply-adds of one picture are those of the network as trained.",
    ]


def latex(findings: Findings) -> str:
    """Two tables, of cells and of comparisons, to be had with \\input."""
    label = re.sub(r"[^A-Za-z0-9-]+", "-", findings.name).strip("-")
    caption = _tex(findings.study.question)
    if findings.study.published_in:
        caption += f" Published: {_tex(findings.study.published_in)}."
    head = columns(findings)
    lines = [
        "% Needs \\usepackage{booktabs}, and for other than Latin names XeLaTeX or LuaLaTeX with a font that has them.",
        *_tex_table(caption, label, head, [cell_texts(findings, row) for row in findings.rows]),
    ]
    if findings.answers:
        rows = []
        for (change, about), answer in zip(wording.labels(findings.answers), findings.answers):
            effect = answer.effect
            low_high = wording.DASH
            if effect and effect.low is not None:
                low_high = f"{wording.points(effect.low, 2)} to {wording.points(effect.high, 2)}"
            numbers = [
                wording.points(effect.difference if effect else None, 2),
                low_high,
                wording.points(answer.published, 2),
            ]
            name = f"{change} ({about})" if about else change
            rows.append([name, *numbers, wording.p_value(answer.p), answer.verdict])
        head = ["change", "points", "95 % interval", "published", "p, corrected", "verdict"]
        lines += ["", *_tex_table("Paired effects over seeds.", f"{label}-comparisons", head, rows, words=1)]
    return "\n".join(lines) + "\n"


def _tex_table(caption: str, label: str, head: list[str], rows: list[list[str]], words: int = 0) -> list[str]:
    """words: how many of the last columns are words, not numbers."""
    align = "l" + "r" * (len(head) - 1 - words) + "l" * words
    return [
        "\\begin{table}", "  \\centering", f"  \\caption{{{caption}}}", f"  \\label{{tab:{label}}}",
        f"  \\begin{{tabular}}{{{align}}}", "    \\toprule",
        f"    {' & '.join(map(_tex, head))} \\\\", "    \\midrule",
        *(f"    {' & '.join(map(_tex, row))} \\\\" for row in rows),
        "    \\bottomrule", "  \\end{tabular}", "\\end{table}",
    ]  # fmt: skip


def _tex(text: str) -> str:
    return "".join(LATEX.get(c, c) for c in printable(text))


def _md(text: str) -> str:
    escaped = re.sub(r"([\\`*_{}\[\]#|~$])", r"\\\1", printable(text))
    return escaped.replace("&", "&amp;").replace("<", "&lt;").replace(">", "&gt;")


def _md_table(head: Sequence[str], rows: Iterable[Sequence[str]], words: int = 1) -> str:
    """words: how many of the first columns are words, not numbers."""
    line = ["---"] * words + ["---:"] * (len(head) - words)
    return "\n".join(f"| {' | '.join(texts)} |" for texts in (head, line, *(map(_md, row) for row in rows)))
