"""Drawing blocks of layers: a canvas that writes SVG, and parts that know their size and can be put together.

A part may be written as a string: "3x3 conv, 64; BN, ReLU" is a box with a second, smaller line, whose colour follows
from its words, and "= text" is text alone. Letters become outlines, so that a figure looks the same everywhere.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from xml.sax.saxutils import escape

import matplotlib
from fontTools.pens.svgPathPen import SVGPathPen
from fontTools.ttLib import TTFont

Kind = tuple[str, str]  # fill, edge
CONV, DEPTHWISE, LINEAR = ("#d3e4f5", "#2f6ca8"), ("#cfeee9", "#1f8a7a"), ("#fde4c8", "#c06a15")
ATTENTION, POOL, PLAIN = ("#e6daf3", "#7446a8"), ("#ddefc9", "#558b2f"), ("#eeeeee", "#8a8a8a")
MOVE, DATA = ("#fff2bf", "#a88a00"), ("#ffffff", "#555555")
BLUE, ORANGE, GREEN, PURPLE, PINK = "#9cc3e8", "#f6b26b", "#a9d18e", "#b79ad6", "#f4a6a0"
INK, GREY, RED = "#222222", "#666666", "#c0392b"
# The first of these words in a box's text decides its colour.
WORDS = {
    "depthwise": DEPTHWISE,
    "conv": CONV,
    "1x1": CONV,
    "3x3,": CONV,
    "filters": CONV,
    "pool": POOL,
    "average": POOL,
    "linear": LINEAR,
    "MLP": LINEAR,
    "units": LINEAR,
    "head": LINEAR,
    "attention": ATTENTION,
    "token mixer": ATTENTION,
    "Performer": ATTENTION,
    "encoder": ATTENTION,
    "split": MOVE,
    "shift": MOVE,
    "shuffle": MOVE,
    "transpose": MOVE,
    "laid out": MOVE,
    "images": DATA,
}

# -------------------------------------------------------------------------------------------------------- the canvas


class Font:
    """Outlines of DejaVu Sans, which comes with Matplotlib."""

    def __init__(self, file: str) -> None:
        self.file = TTFont(Path(matplotlib.get_data_path()) / "fonts" / "ttf" / file)
        self.glyphs, self.names = self.file.getGlyphSet(), self.file.getBestCmap()

    def advance(self, letter: str) -> int:
        """Width in units of 1/2048 of the font's size."""
        return self.glyphs[self.names[ord(letter)]].width

    def outline(self, letter: str) -> str:
        pen = SVGPathPen(self.glyphs, ntos=lambda value: str(round(value)))
        self.glyphs[self.names[ord(letter)]].draw(pen)
        return pen.getCommands()


FONTS = {False: Font("DejaVuSans.ttf"), True: Font("DejaVuSans-Bold.ttf")}  # bold -> outlines


def text_width(text: str, size: float = 12, bold: bool = False) -> float:
    return sum(FONTS[bold].advance(letter) for letter in text) * size / 2048


def num(value: float) -> str:
    return f"{value:.1f}".removesuffix(".0")


class Canvas:
    """A drawing of width x height pixels; x to the right and y down from the top left."""

    def __init__(self, width: float, height: float) -> None:
        self.width, self.height = math.ceil(width), math.ceil(height)
        self.shapes: list[str] = []
        self.letters: dict[str, str] = {}  # id -> outline
        self.rect(0, 0, self.width, self.height, ("#ffffff", "none"))

    def add(self, shape: str, kind: Kind, line: float = 1.2, more: str = "") -> None:
        stroke = "" if kind[1] == "none" else f' stroke="{kind[1]}" stroke-width="{num(line)}"'
        self.shapes.append(f'<{shape} fill="{kind[0]}"{stroke}{more}/>')

    def rect(self, x: float, y: float, w: float, h: float, kind: Kind, *, line: float = 1.0, more: str = "") -> None:
        self.add(f'rect x="{num(x)}" y="{num(y)}" width="{num(w)}" height="{num(h)}"', kind, line, more)

    def rounded(self, x: float, y: float, w: float, h: float, kind: Kind, *, dashed: bool = False) -> None:
        self.rect(x, y, w, h, kind, line=1.2, more=' rx="5"' + ' stroke-dasharray="4 3"' * dashed)

    def disc(self, x: float, y: float, radius: float, kind: Kind) -> None:
        self.add(f'circle cx="{num(x)}" cy="{num(y)}" r="{num(radius)}"', kind)

    def line(self, *points: tuple[float, float], color: str = "#555555", width: float = 1.2) -> None:
        path = "L".join(f"{num(x)} {num(y)}" for x, y in points)
        self.add(f'path d="M{path}"', ("none", color), width, ' stroke-linejoin="round"')

    def arrow(self, *points: tuple[float, float], color: str = "#555555") -> None:
        (x0, y0), (x1, y1) = points[-2:]
        length = math.hypot(x1 - x0, y1 - y0)
        ux, uy = (x1 - x0) / length, (y1 - y0) / length
        self.line(*points[:-1], (x1 - 4 * ux, y1 - 4 * uy), color=color)
        wings = [(x1 - 6.5 * ux - s * 3.2 * uy, y1 - 6.5 * uy + s * 3.2 * ux) for s in (1, -1)]
        path = "L".join(f"{num(x)} {num(y)}" for x, y in [(x1, y1), *wings])
        self.add(f'path d="M{path}Z"', (color, "none"))

    def curve(self, *points: tuple[float, float], color: str = "#777777") -> None:
        """An arrow through points, vertical at each of them."""
        (x, y), *rest = points
        path = f"M{num(x)} {num(y)}"
        for x1, y1 in [*rest[:-1], (rest[-1][0], rest[-1][1] - 6)]:
            middle = num((y + y1) / 2)
            path += f"C{num(x)} {middle} {num(x1)} {middle} {num(x1)} {num(y1)}"
            x, y = x1, y1
        self.add(f'path d="{path}"', ("none", color), 1.2)
        self.arrow((x, y - 0.5), (x, y + 6), color=color)

    def text(
        self,
        x: float,
        y: float,
        text: str,
        *,
        size: float = 12,
        color: str = INK,
        bold: bool = False,
        at: str = "center",
    ) -> None:
        """`y` is the middle of the text; `at` is where in the text `x` is."""
        font, uses, along = FONTS[bold], [], 0
        for letter in text:
            name = f"{'b' if bold else 'r'}{ord(letter)}"
            self.letters[name] = font.outline(letter)
            if self.letters[name]:
                uses.append(f'<use href="#{name}" x="{along}"/>')
            along += font.advance(letter)
        scale = size / 2048
        x -= {"left": 0, "center": 0.5, "right": 1}[at] * along * scale
        turn = f"translate({num(x)} {num(y + 0.36 * size)}) scale({scale:.5f} {-scale:.5f})"
        self.shapes.append(f'<g transform="{turn}" fill="{color}">{"".join(uses)}</g>')

    def save(self, path: Path, title: str) -> None:
        size = f'width="{self.width}" height="{self.height}" viewBox="0 0 {self.width} {self.height}"'
        letters = [f'<path id="{name}" d="{outline}"/>' for name, outline in sorted(self.letters.items()) if outline]
        lines = [f'<svg xmlns="http://www.w3.org/2000/svg" {size} role="img">', f"<title>{escape(title)}</title>"]
        lines += ["<defs>", *letters, "</defs>", *self.shapes, "</svg>"]
        path.write_text("\n".join(lines) + "\n", encoding="utf-8")


# ------------------------------------------------------------------------------------------------------- single parts

Draw = Callable[[Canvas, float, float], None]  # canvas, left, top


@dataclass
class Part:
    """Something of width x height pixels; a connection enters and leaves it `axis` pixels from its left.

    splits: it begins with a line that splits, into which no arrow's head belongs.
    """

    width: float
    height: float
    axis: float
    draw: Draw
    splits: bool = False


Item = Part | str


def picture(width: float, height: float, draw: Draw) -> Part:
    return Part(width, height, width / 2, draw)


def part(item: Item) -> Part:
    """A part from how it is written."""
    if isinstance(item, Part):
        return item
    if item.startswith("= "):
        return label(*item[2:].split("\n"))
    text, _, sub = item.partition("; ")
    return box(text, sub)


def box(text: str, sub: str = "", *, width: float = 0, kind: Kind | None = None) -> Part:
    """A layer, as wide as its text and at least `width`."""
    width = max(width, text_width(text) + 18, text_width(sub, 10.5) + 18, 50)
    height = 38 if sub else 25
    kind = kind or next((color for word, color in WORDS.items() if word in text), PLAIN)

    def draw(c: Canvas, x: float, y: float) -> None:
        c.rounded(x, y, width, height, kind)
        c.text(x + width / 2, y + (13 if sub else height / 2), text)
        if sub:
            c.text(x + width / 2, y + 27, sub, size=10.5, color=GREY)

    return picture(width, height, draw)


def label(*lines: str, size: float = 11, bold: bool = False, color: str = GREY) -> Part:
    width, height = max(text_width(line, size, bold) for line in lines) + 4, len(lines) * (size + 4)

    def draw(c: Canvas, x: float, y: float) -> None:
        for i, line in enumerate(lines):
            c.text(x + width / 2, y + (i + 0.5) * (size + 4), line, size=size, bold=bold, color=color)

    return picture(width, height, draw)


def grid(
    rows: int,
    columns: int,
    cell: float,
    *,
    fill: dict[tuple[int, int], str] | None = None,
    frames: Sequence[tuple[float, float, float, float, str]] = (),
) -> Part:
    """Pixels or tokens. fill: (row, column) -> colour. frames: (row, column, height, width, colour)."""

    def draw(c: Canvas, x: float, y: float) -> None:
        c.rect(x, y, columns * cell, rows * cell, ("#ffffff", "#b5b5b5"), line=0.8)
        for (i, j), color in (fill or {}).items():
            c.rect(x + j * cell, y + i * cell, cell, cell, (color, "none"))
        for i in range(1, rows):
            c.line((x, y + i * cell), (x + columns * cell, y + i * cell), color="#c9c9c9", width=0.7)
        for j in range(1, columns):
            c.line((x + j * cell, y), (x + j * cell, y + rows * cell), color="#c9c9c9", width=0.7)
        for top, left, h, w, color in frames:
            c.rect(x + left * cell, y + top * cell, w * cell, h * cell, ("none", color), line=2.4)

    return picture(columns * cell, rows * cell, draw)


def square(i: int, j: int, side: int, color: str, *, step: int = 1) -> dict[tuple[int, int], str]:
    """Cells of a square, every `step`-th, for `grid(fill=...)`."""
    return {(i + step * a, j + step * b): color for a in range(side) for b in range(side)}


def wires(*layers: tuple[str, Callable[[int, int], bool]], channels: int, groups: int = 1) -> Part:
    """Channels as discs, and which read which. layers: a name, and whether output j reads input i.

    groups: of the input, each in a colour; an output that mixes colours has none.
    """
    step, pitch = min(20.0, 126 / channels), 46.0
    width = channels * step
    shades = [[(CONV, LINEAR, POOL)[i * groups // channels] if groups > 1 else PLAIN for i in range(channels)]]
    for _, reads in layers:
        seen = [{shades[-1][i] for i in range(channels) if reads(i, j)} for j in range(channels)]
        shades.append([colors.pop() if len(colors) == 1 else PLAIN for colors in seen])

    def draw(c: Canvas, x: float, y: float) -> None:
        spots = [x + (i + 0.5) * step for i in range(channels)]
        for level, (name, reads) in enumerate(layers):
            top = y + 6 + level * pitch
            for i, j in ((i, j) for i in range(channels) for j in range(channels) if reads(i, j)):
                c.line((spots[i], top), (spots[j], top + pitch), color="#9a9a9a", width=0.8)
            c.text(x + width + 8, top + pitch / 2, name, size=10.5, color=GREY, at="left")
        for level, colors in enumerate(shades):
            for spot, color in zip(spots, colors):
                c.disc(spot, y + 6 + level * pitch, 5.5, color)

    return picture(width + 10 + max(text_width(name, 10.5) for name, _ in layers), 12 + len(layers) * pitch, draw)


def plot(curves: dict[str, Callable[[float], float]]) -> Part:
    """Activation functions from -4 to 4."""
    width, height, bottom, top = 160.0, 130.0, -1.3, 4.2
    inks = [RED, "#2f6ca8"]

    def draw(c: Canvas, x: float, y: float) -> None:
        def at(u: float, v: float) -> tuple[float, float]:
            return x + (u + 4) / 8 * width, y + (top - v) / (top - bottom) * height

        c.line(at(-4, 0), at(4, 0), color="#bbbbbb", width=0.8)
        c.line(at(0, bottom), at(0, top), color="#bbbbbb", width=0.8)
        for i, (name, function) in enumerate(curves.items()):
            values = [(u, function(u)) for u in (step / 10 - 4 for step in range(81))]
            c.line(*(at(u, v) for u, v in values if v <= top), color=inks[i], width=2)
            c.text(x + 2, y + 8 + 16 * i, name, size=11, color=inks[i], at="left")

    return picture(width, height, draw)


# ------------------------------------------------------------------------------------------------------ parts together


def chain(*items: Item, gap: float = 15, arrows: bool = True) -> Part:
    """One below the other, connected along their axes."""
    parts = [part(item) for item in items]
    axis = max(piece.axis for piece in parts)
    width = axis + max(piece.width - piece.axis for piece in parts)
    height = sum(piece.height for piece in parts) + gap * (len(parts) - 1)

    def draw(c: Canvas, x: float, y: float) -> None:
        for i, piece in enumerate(parts):
            piece.draw(c, x + axis - piece.axis, y)
            y += piece.height
            if arrows and i < len(parts) - 1:
                (c.line if parts[i + 1].splits else c.arrow)((x + axis, y), (x + axis, y + gap))
            y += gap

    return Part(width, height, axis, draw, parts[0].splits)


def stack(*items: Item, gap: float = 12) -> Part:
    """One below the other, centred, without arrows."""
    parts = [part(item) for item in items]
    return chain(*(picture(piece.width, piece.height, piece.draw) for piece in parts), gap=gap, arrows=False)


def titled(title: str, *items: Item) -> Part:
    """A heading above."""
    return stack(label(title, size=12, bold=True, color=INK), *items)


def row(*items: Item, between: Sequence[str] | None = None, gap: float = 22) -> Part:
    """Side by side; `between` puts an arrow with a text between neighbours."""
    parts = [part(item) for item in items]
    gaps = [max(gap, text_width(text, 10.5) + 12) for text in between or [""] * (len(parts) - 1)]
    width, height = sum(piece.width for piece in parts) + sum(gaps), max(piece.height for piece in parts)

    def draw(c: Canvas, x: float, y: float) -> None:
        for i, piece in enumerate(parts):
            piece.draw(c, x, y + (height - piece.height) / 2)
            x += piece.width
            if i < len(gaps):
                if between:
                    c.arrow((x + 3, y + height / 2), (x + gaps[i] - 3, y + height / 2))
                    c.text(x + gaps[i] / 2, y + height / 2 - 11, between[i], size=10.5, color=GREY)
                x += gaps[i]

    return picture(width, height, draw)


def fork(*items: Item | None, join: str = "+", main: int | None = None, gap: float = 16) -> Part:
    """The same input to several branches, None being a plain line; `join` is "+", "x" or the text of a bar.

    main: the branch that is straight below the input and above the join; else these are in the middle.
    """
    parts = [Part(4, 0, 2, lambda c, x, y: None) if item is None else part(item) for item in items]
    lefts = [sum(piece.width + gap for piece in parts[:i]) for i in range(len(parts))]
    axes = [left + piece.axis for left, piece in zip(lefts, parts)]
    axis = (axes[0] + axes[-1]) / 2 if main is None else axes[main]
    width, depth = lefts[-1] + parts[-1].width, max(piece.height for piece in parts)
    circle = join in ("+", "x")
    bar_left, bar_width = 0.0, 0.0
    if not circle:
        bar_width = max(axes[-1] - axes[0] + 40, text_width(join) + 18)
        bar_left = min(max((axes[0] + axes[-1] - bar_width) / 2, 0), max(width - bar_width, 0))
        width = max(width, bar_left + bar_width)
    joint = 20 + depth + (22 if circle else 14)  # centre of the circle, or top of the bar
    height = joint + (9 if circle else 25)

    def draw(c: Canvas, x: float, y: float) -> None:
        c.line((x + axis, y), (x + axis, y + 7))
        c.line((x + axes[0], y + 7), (x + axes[-1], y + 7))
        for item, piece, left, at in zip(items, parts, lefts, axes):
            below = y + 20 + piece.height
            connect = c.line if item is None or piece.splits else c.arrow
            connect((x + at, y + 7), (x + at, y + 20))
            piece.draw(c, x + left, y + 20)
            if not circle or abs(at - axis) < 9:
                c.arrow((x + at, below), (x + at, y + joint - (9 if circle else 0)))
            else:
                c.arrow((x + at, below), (x + at, y + joint), (x + axis + math.copysign(9, at - axis), y + joint))
        if circle:
            c.disc(x + axis, y + joint, 9, DATA)
            for angle in (0, 90) if join == "+" else (45, 135):
                dx, dy = 5 * math.cos(math.radians(angle)), 5 * math.sin(math.radians(angle))
                c.line((x + axis - dx, y + joint - dy), (x + axis + dx, y + joint + dy), color=INK)
        else:
            c.rounded(x + bar_left, y + joint, bar_width, 25, MOVE)
            c.text(x + bar_left + bar_width / 2, y + joint + 12.5, join)

    return Part(width, height, axis, draw, splits=True)


def residual(*items: Item, shortcut: Item | None = None, join: str = "+") -> Part:
    """A chain with a shortcut past it."""
    return fork(chain(*items), shortcut, join=join, main=0)
