"""Chinese names are drawn with their glyphs, not with boxes: on figures and in the report's font."""

import base64
import io
import logging
import warnings

import numpy as np
import pytest
from fontTools.ttLib import TTFont
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure

from lenext.evaluation import fonts
from lenext.evaluation.fonts import columns, embedded_font, figure_fonts, printable, shorten

PACKAGED_FONTS = fonts._packaged_fonts


def render(text):
    """The pixels of `text` as a figure draws it, where a missing glyph is an error."""
    with figure_fonts([text]), warnings.catch_warnings():
        warnings.simplefilter("error")
        warnings.simplefilter("ignore", ResourceWarning)  # matplotlib leaves its fonts open
        return pixels(text)


def pixels(text):
    figure = Figure(figsize=(2, 0.5))
    figure.text(0.1, 0.3, text)
    canvas = FigureCanvasAgg(figure)
    canvas.draw()
    return np.asarray(canvas.buffer_rgba())


@pytest.fixture
def no_installed_fonts(monkeypatch):
    """A machine with matplotlib's own font only."""
    for name in ("_known_fonts", "_packaged_fonts", "_new_fonts"):
        monkeypatch.setattr(fonts, name, list)
    caches = (fonts.fallback_fonts, fonts._tell_missing)
    for cache in caches:
        cache.cache_clear()
    yield
    for cache in caches:
        cache.cache_clear()


def test_chinese_is_drawn_with_its_own_glyphs():
    cat, dog, blank = render("猫"), render("狗"), render(" ")
    assert (cat != blank).any()
    assert (cat != dog).any()
    assert (render("猫") == cat).all()


def test_without_a_font_boxes_are_drawn_and_one_line_says_how_to_mend_it(no_installed_fonts, caplog):
    with caplog.at_level(logging.WARNING, "lenext"), warnings.catch_warnings():
        warnings.simplefilter("error")
        warnings.simplefilter("ignore", ResourceWarning)  # matplotlib leaves its fonts open
        with figure_fonts(["猫"]):
            box = pixels("猫")
        with figure_fonts(["猫"]):
            pixels("猫")
        with figure_fonts(["狗"]):
            other_box = pixels("狗")
    assert (box == other_box).all()
    messages = [record.getMessage() for record in caplog.records]
    assert len(messages) == 2  # one for each character, none twice
    assert "猫" in messages[0]
    assert "pip install cvttf-notosanscjk-regular" in messages[0]
    assert embedded_font(["猫"]) is None


def test_the_box_is_not_what_is_drawn_with_the_font(no_installed_fonts):
    with figure_fonts(["猫"]):
        box = pixels("猫")
    fonts.fallback_fonts.cache_clear()
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(fonts, "_packaged_fonts", PACKAGED_FONTS)
        assert (render("猫") != box).any()


def test_latin_needs_no_other_font():
    assert fonts.fallback_fonts(frozenset("Straße Ελλάδα Москва")) == ()


def test_a_dollar_is_a_dollar():
    assert (render("$x$ and $y$") != render("x and y")).any()
    render("US$5 {")  # as mathematics it would raise


def test_the_embedded_font_has_the_characters_and_little_else():
    texts = ["猫", "狗狗", "plain", "日本語"]
    encoded = embedded_font(texts)
    assert encoded is not None
    assert len(encoded) < 20_000  # of the 16 MB of the whole font
    font = TTFont(io.BytesIO(base64.b64decode(encoded)))
    assert font.flavor == "woff"
    assert {chr(code) for code in font.getBestCmap()} == set("猫狗日本語")


def test_nothing_is_embedded_that_every_machine_has():
    assert embedded_font(["cat", "Straße", "Москва", "a → b – “c” ├─"]) is None


def test_the_embedded_font_draws_the_same_outlines():
    from fontTools.pens.recordingPen import DecomposingRecordingPen

    def outline(font, character):
        pen = DecomposingRecordingPen(font.getGlyphSet())
        font.getGlyphSet()[font.getBestCmap()[ord(character)]].draw(pen)
        return pen.value

    encoded = embedded_font(["猫"])
    assert encoded is not None
    (entry,) = fonts.fallback_fonts(frozenset("猫"))
    whole = TTFont(entry.fname, fontNumber=getattr(entry, "index", 0), lazy=True)
    assert outline(TTFont(io.BytesIO(base64.b64decode(encoded))), "猫") == outline(whole, "猫")


def test_a_broken_font_file_is_passed_over(tmp_path):
    broken = tmp_path / "broken.ttf"
    broken.write_bytes(b"no font")
    assert fonts._covered(str(broken), frozenset("a")) == frozenset()
    assert fonts._covered(str(tmp_path / "absent.ttf"), frozenset("a")) == frozenset()
    assert fonts._add(str(broken)) == []


@pytest.mark.parametrize(
    ("text", "width", "expected"),
    [("cat", 3, "cat"), ("cats", 3, "ca…"), ("猫狗鸟", 6, "猫狗鸟"), ("猫狗鸟", 5, "猫狗…"), ("", 3, "")],
)
def test_shorten(text, width, expected):
    assert shorten(text, width) == expected
    assert columns(expected) <= width


def test_printable_keeps_letters_and_replaces_what_cannot_be_drawn():
    assert printable("a\nb\tc") == "a b c"
    assert printable("猫 \x00\udcff") == "猫 \N{REPLACEMENT CHARACTER}\N{REPLACEMENT CHARACTER}"
