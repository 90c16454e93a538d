"""Fonts for class names in any script: on figures, and inside the report."""

from __future__ import annotations

import base64
import importlib.util
import io
import logging
import unicodedata
import warnings
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from functools import lru_cache
from itertools import accumulate
from pathlib import Path

import matplotlib
from matplotlib.font_manager import FontEntry, findSystemFonts, fontManager
from matplotlib.ft2font import FT2Font

log = logging.getLogger("lenext")

FIGURE_FONT = "DejaVu Sans"  # comes with matplotlib
PACKAGED_FONT = "cvttf_NotoSansCJK_Regular"  # PyPI cvttf-notosanscjk-regular: Noto Sans CJK, SIL Open Font License


@contextmanager
def figure_fonts(texts: Iterable[str]) -> Iterator[None]:
    """Within this context matplotlib draws `texts` with fonts that have their characters, `$` as a plain `$`.

    Draw and save inside it. Where no font has a character, a box is drawn, and one log line says how to mend
    that.
    """
    characters = _characters(texts)
    families = [FIGURE_FONT, *(entry.name for entry in fallback_fonts(characters))]
    with (
        matplotlib.rc_context({"font.family": families, "text.parse_math": False}),
        warnings.catch_warnings(),
    ):
        warnings.filterwarnings("ignore", message="Glyph .* missing from")  # fallback_fonts has logged it, once
        yield


def embedded_font(texts: Iterable[str]) -> str | None:
    """A WOFF font, base64, with only the characters of `texts` that a browser may lack; None without such.

    Latin, Greek, Cyrillic and symbols are left to the reader's machine. Several scripts may need several
    fonts: the one with the most of the characters is embedded.
    """
    from fontTools import subset

    characters = frozenset(c for c in _characters(texts) if ord(c) > 0x52F and not 0x2000 <= ord(c) < 0x2C00)
    fonts = [entry for entry in (_matplotlib_font(), *fallback_fonts(characters)) if _covered(entry.fname, characters)]
    if not fonts:
        return None
    font = max(fonts, key=lambda entry: len(_covered(entry.fname, characters)))
    logging.getLogger("fontTools.subset").setLevel(logging.ERROR)  # it warns of every table that it drops
    options = subset.Options(flavor="woff", font_number=getattr(font, "index", 0), notdef_outline=True)
    loaded = subset.load_font(font.fname, options)
    subsetter = subset.Subsetter(options)
    subsetter.populate(text="".join(characters))
    subsetter.subset(loaded)
    buffer = io.BytesIO()
    subset.save_font(loaded, buffer, options)
    return base64.b64encode(buffer.getvalue()).decode("ascii")


@lru_cache(maxsize=64)
def fallback_fonts(characters: frozenset[str]) -> tuple[FontEntry, ...]:
    """A few installed fonts that have the `characters` which matplotlib's own font lacks.

    Looked for among the fonts that matplotlib knows, in the packaged font, and among fonts installed since
    matplotlib made its list; matplotlib knows them afterwards.
    """
    chosen: list[FontEntry] = []
    missing = characters - _covered(_matplotlib_font().fname, characters)
    for find in (_known_fonts, _packaged_fonts, _new_fonts):
        if not missing:
            break
        found = find()
        while missing and found:
            best = _best(found, missing)
            covered = _covered(best.fname, missing)
            if not covered:
                break
            chosen.append(best)
            missing -= covered
    if missing:
        _tell_missing(missing)
    return tuple(chosen)


def printable(text: str) -> str:
    """`text` on one line, control characters and undecodable bytes of file names replaced by U+FFFD."""
    return "".join(c if c.isprintable() else "\N{REPLACEMENT CHARACTER}" for c in " ".join(text.split()))


def columns(text: str) -> int:
    """The width of `text` in columns: Chinese, Japanese and Korean characters fill two."""
    return sum(_columns(c) for c in text)


def shorten(text: str, width: int) -> str:
    """`text` cut to `width` columns with an ellipsis."""
    if columns(text) <= width:
        return text
    return text[: sum(end < width for end in accumulate(map(_columns, text)))] + "\N{HORIZONTAL ELLIPSIS}"


def _columns(character: str) -> int:
    return 2 if unicodedata.east_asian_width(character) in "WF" else 1


def _characters(texts: Iterable[str]) -> frozenset[str]:
    return frozenset(c for text in texts for c in text if c.isprintable() and not c.isspace())


@lru_cache(maxsize=1024)
def _covered(path: str, characters: frozenset[str]) -> frozenset[str]:
    """Those of `characters` that the font file has a glyph for; the fonts of a collection share theirs."""
    try:
        with open(path, "rb") as file:
            font = FT2Font(file)
            return frozenset(c for c in characters if font.get_char_index(ord(c)))
    except (OSError, RuntimeError):  # removed since the list was made, or not a font that FreeType can read
        return frozenset()


def _best(fonts: list[FontEntry], characters: frozenset[str]) -> FontEntry:
    """The first font with all `characters`, else the one with most of them."""
    for entry in fonts:
        if _covered(entry.fname, characters) == characters:
            return entry
    return max(fonts, key=lambda entry: len(_covered(entry.fname, characters)))


@lru_cache(maxsize=64)
def _tell_missing(characters: frozenset[str]) -> None:
    """Log, once, that no font has `characters`."""
    log.warning(
        "No installed font has the characters %s: figures show boxes in their place. Install a font that has "
        "them; for Chinese, Japanese and Korean: pip install cvttf-notosanscjk-regular",
        "".join(sorted(characters)[:20]) + ("..." if len(characters) > 20 else ""),
    )


def _matplotlib_font() -> FontEntry:
    path = Path(matplotlib.get_data_path()) / "fonts" / "ttf" / "DejaVuSans.ttf"
    return FontEntry(fname=str(path), name=FIGURE_FONT)


def _known_fonts() -> list[FontEntry]:
    """Fonts in the order of preference: sans serif, upright, of regular weight, Simplified Chinese forms."""

    def preference(entry: FontEntry) -> tuple[object, ...]:
        name = entry.name.lower()
        decorative = "mono" in name or ("serif" in name and "sans" not in name) or "ming" in name or "song" in name
        weight = entry.weight if isinstance(entry.weight, int) else 400
        return entry.style != "normal", decorative, abs(weight - 400), not name.endswith(" sc"), name

    # Last Resort draws a box for every character, and bitmap fonts have colour pictures that Agg cannot draw.
    usable = [e for e in fontManager.ttflist if e.size == "scalable" and "LastResort" not in Path(e.fname).stem]
    return sorted(usable, key=preference)


def _packaged_fonts() -> list[FontEntry]:
    spec = importlib.util.find_spec(PACKAGED_FONT)
    if spec is None or spec.origin is None:
        return []
    return [entry for path in sorted(Path(spec.origin).parent.glob("*.[ot]t[fc]")) for entry in _add(str(path))]


def _new_fonts() -> list[FontEntry]:
    known = {entry.fname for entry in fontManager.ttflist}
    return [entry for path in sorted(findSystemFonts()) if path not in known for entry in _add(path)]


def _add(path: str) -> list[FontEntry]:
    if all(entry.fname != path for entry in fontManager.ttflist):
        try:
            fontManager.addfont(path)
        except (OSError, RuntimeError):
            log.debug("Font %s cannot be read", path)
    return [entry for entry in fontManager.ttflist if entry.fname == path]
