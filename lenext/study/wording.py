"""Numbers and sentences of a report: accuracies in %, differences in points, plain words for what was found."""

from __future__ import annotations

import re
from collections.abc import Sequence

from lenext.study.design import Factor, Measure
from lenext.study.findings import Answer, Findings
from lenext.study.statistics import Effect, Mean, Verdict

MINUS, DASH = "\N{MINUS SIGN}", "–"
# {measure: (what a rise does, what a fall does, what no difference at all is)}, around the number of points.
VERBS: dict[Measure, tuple[str, str, str]] = {
    "accuracy": ("gains {}", "costs {}", "makes no difference"),
    "overfitting": ("raises overfitting by {}", "lowers overfitting by {}", "makes no difference to overfitting"),
    "speed of learning": (
        "speeds learning up by {}", "slows learning down by {}", "makes no difference to the speed of learning",
    ),
}  # fmt: skip


def accuracy(value: float | None) -> str:
    """A share in %, without the sign."""
    return DASH if value is None else f"{100 * value:.2f}".replace("-", MINUS)


def mean(value: Mean | None) -> str:
    """A mean in %, without the sign."""
    return accuracy(value.mean if value else None)


def interval(value: Mean | None) -> str:
    if value is None or value.low is None or value.high is None:
        return DASH
    return f"{accuracy(value.low)} to {accuracy(value.high)}"


def with_interval(value: Mean | None) -> str:
    """Mean and half the width of its interval, in %."""
    if value is None or value.high is None:
        return mean(value)
    return f"{mean(value)} ± {100 * (value.high - value.mean):.2f}"


def points(value: float | None, digits: int = 1, sign: str = "+") -> str:
    """A difference of shares in percentage points, its sign before it."""
    if value is None:
        return DASH
    text = f"{100 * value:{sign}.{digits}f}"
    return text.lstrip("+-") if not float(text) else text.replace("-", MINUS)


def digits(effect: Effect) -> int:
    """Decimals that an effect in points deserves: two where one would round it, or its interval, away."""
    width = effect.high - effect.difference if effect.high is not None else 1.0
    return 2 if abs(effect.difference) < 0.001 or width < 0.001 else 1


def p_value(p: float | None) -> str:
    if p is None:
        return DASH
    return "< 0.001" if p < 0.001 else f"{p:.3f}" if p < 0.1 else f"{p:.2f}"


def p_is(p: float) -> str:
    """p in a sentence."""
    text = p_value(p)
    return f"p {text}" if text.startswith("<") else f"p = {text}"


def count(value: int, thing: str) -> str:
    """Such as 3 seeds, 1 run."""
    return f"{value} {thing}{'' if value == 1 else 's'}"


def million(value: int | None) -> str:
    """In millions, three digits where it is small."""
    if value is None:
        return DASH
    size = value / 1e6
    return f"{size:.3f}" if size < 1 else f"{size:.2f}" if size < 100 else f"{size:,.0f}"


def sentence(answer: Answer) -> str:
    """What a comparison found, in plain words, without its p value."""
    change, effect = answer.comparison.change, answer.effect
    more, less, none = VERBS[answer.comparison.measure]
    if effect is None:
        return f"{change}: not measured, as no seed is done with both"
    places = digits(effect)
    size = points(abs(effect.difference), places, "")
    verb = (less if effect.difference < 0 else more).format(f"{size} points")
    if effect.low is None or effect.high is None:
        verb = verb if effect.difference else none
        return f"{change} {verb} with the one seed that both are done with, which gives no interval"
    seeds = count(effect.n, "seed")
    if answer.verdict in ("undecided", "no difference shown"):
        limits = f"95 % interval {points(effect.low, places, '')} to {points(effect.high, places, '')}"
        size = points(effect.difference, places)
        only = ", clear of zero only before correction for several comparisons" if effect.low * effect.high > 0 else ""
        on = "" if answer.comparison.measure == "accuracy" else f" in {answer.comparison.measure}"
        return f"{change}: {size} points{on} ({limits}), which {seeds} cannot tell from no difference{only}"
    low, high = effect.low, effect.high
    if effect.difference < 0:  # "costs 4.9 points": the sign is in the verb
        low, high = -high, -low
    return f"{change} {verb} (95 % interval {points(low, places, '')} to {points(high, places, '')}, over {seeds})"


def capital(text: str) -> str:
    """A sentence's first word, if a plain one, with a capital; names such as vgg16 stay as they are."""
    first = text.split(" ", 1)[0]
    return text[:1].upper() + text[1:] if re.fullmatch(r"[a-z]+", first) else text


def remark(findings: Findings, answer: Answer) -> str:
    """p and what was published, behind a sentence."""
    parts = []
    if answer.p is not None:
        several = f", corrected for {findings.questions} comparisons" if findings.questions > 1 else ""
        parts.append(p_is(answer.p) + several)
    if answer.published is not None:
        parts.append(f"published: {points(answer.published, 2)} points")
    if answer.comparison.expected:
        parts.append(f"expected: {answer.comparison.expected}")
    return "; ".join(parts)


def whole(findings: Findings, answer: Answer) -> str:
    """Question, sentence, verdict and remark on one line."""
    question, behind = answer.comparison.question, remark(findings, answer)
    question += "" if question.endswith(("?", "\N{FULLWIDTH QUESTION MARK}", ".", ":")) else ":"
    return f"{question} {capital(sentence(answer))}: {answer.verdict}" + (f" ({behind})" if behind else "")


def labels(answers: Sequence[Answer]) -> list[tuple[str, str]]:
    """What changes in each comparison, in few words, and what else tells it from the others, which may be nothing."""
    made = []
    for answer in answers:
        asked = answer.comparison
        same = sum((one.comparison.change, one.comparison.measure) == (asked.change, asked.measure) for one in answers)
        about = [asked.cell] if same > 1 else []
        about += [] if asked.measure == "accuracy" else [asked.measure]
        made.append((asked.change, "; ".join(about)))
    return made


def tally(findings: Findings) -> str:
    """How many comparisons had which answer: "3 confirmed, 1 undecided"."""
    verdicts: dict[Verdict, int] = {}
    for answer in findings.answers:
        verdicts[answer.verdict] = verdicts.get(answer.verdict, 0) + 1
    return ", ".join(f"{number} {name}" for name, number in verdicts.items())


def runs_done(findings: Findings) -> str:
    done, asked = len(findings.results) - len(findings.left), len(findings.results)
    return f"all {asked} runs are done" if done == asked else f"{done} of {asked} runs are done"


def confounded(factor: Factor) -> str:
    """What a factor of a fraction cannot be told apart from; nothing for a free one."""
    return f"{factor.name} = {' × '.join(factor.product_of)}" if factor.product_of else ""


def pictures_note(findings: Findings) -> str:
    """What the number of test pictures adds to what seeds say; nothing before the first run."""
    if findings.picture_error is None:
        return ""
    where = "test" if findings.split == "test" else "validation"
    size = points(1.96 * findings.picture_error, 2, "")
    return (
        f"Intervals over seeds say how training varies, on these {where} pictures. Another {findings.pictures:,} "
        f"{where} pictures would add about ±{size} points to every accuracy once; differences between cells, which "
        "share the pictures, would move less."
    )
