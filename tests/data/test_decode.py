from __future__ import annotations

import builtins
import io
import os
import struct
import sys
import time
from collections.abc import Callable

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays
from PIL import Image, ImageCms

from lenext.data import decode as decoder
from lenext.data.decode import EXTENSIONS, MAX_BYTES, MAX_PIXELS, UnreadableImage, _webp_size, decode, read_size, to_rgb
from tests.data.corpus import (
    HAS_HEIC,
    bad,
    encoded,
    exif,
    good,
    picture,
    png,
    png_header,
    tiff,
    with_segment,
)
from tests.pictures import photograph

PHOTO = Image.fromarray(photograph()[200:260, 150:230])
RGB, GREY = np.asarray(PHOTO), np.asarray(PHOTO.convert("L"))
DEEP = np.random.default_rng(0).integers(0, 65536, (20, 30, 4)).astype(np.uint16)


def three(grey: np.ndarray) -> np.ndarray:
    return np.repeat(np.rint(grey)[..., None], 3, axis=2)


def on_white(rgb: np.ndarray, alpha: np.ndarray) -> np.ndarray:
    """Channels (H, W, C) and alpha (H, W, 1) from 0 to 255."""
    return rgb * (alpha / 255) + 255 * (1 - alpha / 255)


def by_pillow(data: bytes) -> np.ndarray:
    with Image.open(io.BytesIO(data)) as image:
        return np.asarray(image.convert("RGB"))


def assert_close(pixels: np.ndarray, truth: np.ndarray, most: float = 1) -> None:
    assert pixels.dtype == np.uint8
    assert pixels.shape == truth.shape
    assert np.abs(pixels.astype(float) - truth).max() <= most


# ---- formats


@pytest.mark.parametrize("name", sorted(good()))
def test_every_good_file_shows_the_picture(name):
    pixels = decode(good()[name])
    assert pixels.dtype == np.uint8
    assert pixels.flags.writeable
    assert pixels.flags.c_contiguous
    assert read_size(good()[name]) == pixels.shape[1::-1]
    turn = TURNS[int(name[12])] if name.startswith("orientation") else TURNS[1]
    shown = turn(np.asarray(picture()))
    assert pixels.shape == shown.shape
    if "alpha" not in name:
        shown, seen = (x.reshape(-1, 3).mean(1).astype(float) for x in (shown, pixels))
        assert np.corrcoef(shown, seen)[0, 1] > (0.5 if name == "bits.png" else 0.98)


@pytest.mark.parametrize("format", ["PNG", "BMP", "TIFF", "PPM", "GIF", "WEBP", "JPEG2000", "AVIF"])
def test_lossless_formats_give_the_pixels_that_were_written(format):
    image = PHOTO.quantize(64).convert("RGB") if format == "GIF" else PHOTO
    options: dict[str, object] = {"WEBP": {"lossless": True}, "AVIF": {"quality": 100, "subsampling": "4:4:4"}}.get(
        format, {}
    )  # type: ignore[assignment]
    pixels = decode(encoded(image, format, **options))
    assert_close(pixels, np.asarray(image), 3 if format == "AVIF" else 0)


def test_every_extension_has_a_format_that_is_read():
    heic = {".heic", ".heif"}
    assert EXTENSIONS - heic <= {ending for ending, name in Image.registered_extensions().items()}
    assert heic <= EXTENSIONS


def test_a_heic_file_without_the_plugin_says_what_to_install(monkeypatch):
    real = builtins.__import__

    def without(name, *args, **kwargs):
        if name == "pillow_heif":
            raise ImportError(name)
        return real(name, *args, **kwargs)

    decoder._register_heic.cache_clear()
    monkeypatch.setattr(builtins, "__import__", without)
    monkeypatch.delitem(sys.modules, "pillow_heif", raising=False)
    box = b"\0\0\0\x18ftypmif1\0\0\0\0mif1heic"
    with pytest.raises(UnreadableImage, match="pip install pillow-heif"):
        decode(box + b"\0" * 99)
    with pytest.raises(UnreadableImage, match="header"):  # AVIF shares the box, not the plugin
        decode(box.replace(b"heic", b"avif") + b"\0" * 99)


# ---- JPEG


@pytest.mark.parametrize("subsampling", [0, 1, 2])
@pytest.mark.parametrize("options", [{}, {"progressive": True}, {"optimize": True, "restart_marker_rows": 1}])
def test_jpeg_gives_pillows_pixels_at_every_scale(subsampling, options):
    big = Image.fromarray(photograph()).resize((333, 251))
    data = encoded(big, "JPEG", quality=88, subsampling=subsampling, **options)
    np.testing.assert_array_equal(decode(data), by_pillow(data))
    for factor in (2, 4, 8):
        with Image.open(io.BytesIO(data)) as image:
            image.draft("RGB", (333 // factor, 251 // factor))
            np.testing.assert_array_equal(decode(data, shrink_to=251 // factor), np.asarray(image))


def test_jpeg_is_close_to_the_photograph():
    pixels = decode(encoded(PHOTO, "JPEG", quality=95)).astype(int)
    assert np.abs(pixels - RGB).mean() < 5


@given(width=st.integers(1, 400), height=st.integers(1, 400), shrink_to=st.integers(1, 200))
@settings(max_examples=60, deadline=None)
def test_a_shrunk_jpeg_keeps_the_short_side_that_was_asked_for(width, height, shrink_to):
    image = Image.linear_gradient("L").resize((width, height)).convert("RGB")
    plain = encoded(image, "JPEG")
    strict, tolerant = decode(plain, shrink_to=shrink_to), decode(plain[:2] + b"junk" + plain[2:], shrink_to=shrink_to)
    np.testing.assert_array_equal(strict, tolerant)  # whichever library reads it
    short = min(strict.shape[:2])
    assert min(shrink_to, width, height) <= short
    assert short <= 2 * shrink_to or min(width, height) >= 8 * shrink_to  # equal where half a pixel was rounded up
    factor = max(f for f in (1, 2, 4, 8) if f == 1 or min(width, height) >= f * shrink_to)
    assert strict.shape == (-(-height // factor), -(-width // factor), 3)


def test_a_shrunk_jpeg_shows_the_same():
    big = Image.fromarray(photograph()).resize((1600, 1068))
    for data in (encoded(big, "JPEG", quality=95), encoded(big.convert("CMYK"), "JPEG", quality=95)):
        pixels = decode(data, shrink_to=224)
        assert pixels.shape[:2] == (267, 400)
        small = np.asarray(big.resize((400, 267), Image.Resampling.BOX)).astype(int)
        assert np.abs(pixels - small).mean() < 4


def test_cmyk_and_ycck_jpegs_have_the_colours_of_their_components():
    cmyk = encoded(PHOTO.convert("CMYK"), "JPEG", quality=95)
    assert np.abs(decode(cmyk).astype(int) - RGB).mean() < 5
    # The same components, said to be YCCK: the first three turn to RGB and are the inverse of ink.
    adobe = cmyk.index(b"Adobe")
    ycck = cmyk[: adobe + 11] + b"\x02" + cmyk[adobe + 12 :]
    with Image.open(io.BytesIO(cmyk)) as image:
        ink = 255 - np.asarray(image).astype(float)  # as it is in the file: Pillow has inverted it
    y, cb, cr, k = ink[..., 0], ink[..., 1] - 128, ink[..., 2] - 128, ink[..., 3:]
    rgb = np.stack([y + 1.402 * cr, y - 0.344136 * cb - 0.714136 * cr, y + 1.772 * cb], axis=2)
    # libjpeg stores 255 minus the converted value as ink, and Pillow inverts what the file has.
    truth = (255 - np.clip(rgb, 0, 255)) * k / 255
    assert_close(decode(ycck), truth, 2)


@pytest.mark.parametrize("name", ["bytes-after", "no-end", "junk-between", "broken-exif", "broken-profile"])
def test_harmless_defects_of_a_jpeg_change_no_pixel(name):
    np.testing.assert_array_equal(decode(good()[f"{name}.jpg"]), decode(good()["plain.jpg"]))


@pytest.mark.parametrize("progressive", [False, True])
def test_a_jpeg_that_is_cut_off_is_unreadable_with_an_end_mark_or_without(progressive):
    data = encoded(PHOTO, "JPEG", quality=90, progressive=progressive)
    scan, end = data.index(b"\xff\xda"), len(data) - 2
    starts = [i for i in range(scan, end) if data[i : i + 2] == b"\xff\xda"]  # of the passes, of which one may be last
    for cut in (*np.linspace(scan + 60, end - 40, 30).astype(int), *starts):
        with pytest.raises(UnreadableImage, match="cut off"):
            decode(data[:cut])
    with pytest.raises(UnreadableImage, match="cut off"):
        decode(data[: scan + 60] + b"\xff\xd9")


def test_damage_in_the_middle_of_a_jpeg_leaves_the_rest_of_the_picture():
    whole = encoded(PHOTO, "JPEG", quality=90, restart_marker_rows=1)
    data = bytearray(whole)
    third = data.index(b"\xff\xd2")  # ends the rows 32 to 47
    data[third - 20 : third - 16] = b"\xff\x00\xff\x00"
    seen, truth = decode(bytes(data)), decode(whole)
    np.testing.assert_array_equal(seen[50:], truth[50:])
    assert (seen[32:48] != truth[32:48]).any()


# ---- orientation


TURNS: dict[int, Callable[[np.ndarray], np.ndarray]] = {
    1: lambda x: x,
    2: np.fliplr,
    3: lambda x: np.rot90(x, 2),
    4: np.flipud,
    5: lambda x: x.transpose(1, 0, 2),
    6: lambda x: np.rot90(x, 3),
    7: lambda x: np.rot90(x.transpose(1, 0, 2), 2),
    8: np.rot90,
}


@pytest.mark.parametrize("order", ["<", ">"])
@pytest.mark.parametrize("orientation", range(1, 9))
def test_exif_orientation_is_applied_once(orientation, order):
    turned = TURNS[orientation](RGB)
    block = exif(orientation, order)
    jpeg = encoded(PHOTO, "JPEG", quality=95)
    plain = decode(jpeg)
    files = [
        (png(RGB, before=[(b"eXIf", block[6:])]), turned),
        (tiff(RGB, order=order, tags=[(274, 3, [orientation])]), turned),
        (tiff(RGB, order=order, compressed=True, tags=[(274, 3, [orientation])]), turned),
        (encoded(PHOTO, "WEBP", lossless=True, exif=block), turned),
        (with_segment(jpeg, 0xE1, block), TURNS[orientation](plain)),
        (with_segment(jpeg[:2] + b"junk" + jpeg[2:], 0xE1, block), TURNS[orientation](plain)),
    ]
    for data, truth in files:
        np.testing.assert_array_equal(decode(data), truth)
        assert read_size(data) == truth.shape[1::-1]
        with Image.open(io.BytesIO(data)) if b"junk" not in data else Image.open(io.BytesIO(files[0][0])) as image:
            np.testing.assert_array_equal(to_rgb(image), truth if b"junk" not in data else turned)


@pytest.mark.skipif(not HAS_HEIC, reason="pillow-heif is not installed")
def test_a_heic_file_is_turned_once():
    data = encoded(PHOTO, "HEIF", quality=95, exif=exif(6))
    truth = np.rot90(RGB, 3)
    pixels = decode(data)
    assert pixels.shape == truth.shape
    assert np.abs(pixels.astype(int) - truth).mean() < 6
    assert read_size(data) == truth.shape[1::-1]
    with Image.open(io.BytesIO(data)) as image:
        np.testing.assert_array_equal(to_rgb(image), pixels)


@pytest.mark.parametrize(
    "block", [b"", b"Exif\0\0", b"Exif\0\0MM\0*\xff\xff\xff\xff", exif(9), exif(0), b"Exif\0\0" + b"\xff" * 60]
)
def test_broken_exif_is_ignored(block):
    data = encoded(PHOTO, "JPEG", quality=95)
    np.testing.assert_array_equal(decode(with_segment(data, 0xE1, block)), decode(data))
    np.testing.assert_array_equal(decode(png(RGB, before=[(b"eXIf", block[6:])])), RGB)


# ---- more than 8 bits


def test_sixteen_bit_png_is_scaled_and_not_clipped():
    values = np.linspace(0, 65535, 64 * 64).reshape(64, 64).astype(np.uint16)
    pixels = decode(png(values))
    np.testing.assert_array_equal(pixels, three(values / 257))
    assert len(np.unique(pixels)) == 256
    assert_close(decode(png(DEEP[..., :3])), DEEP[..., :3] / 257)
    assert_close(decode(png(DEEP)), on_white(DEEP[..., :3] / 257, DEEP[..., 3:] / 257), 2)
    assert_close(decode(png(DEEP[..., :2])), on_white(three(DEEP[..., 0] / 257), DEEP[..., 1:2] / 257), 2)


def test_a_dark_sixteen_bit_picture_stays_dark():
    values = np.full((4, 5), 200, np.uint16)
    for data in (png(values), tiff(values), b"P5 5 4 65535\n" + values.astype(">u2").tobytes()):
        assert (decode(data) == 1).all()


@pytest.mark.parametrize("order", ["<", ">"])
@pytest.mark.parametrize("compressed", [False, True])
@pytest.mark.parametrize("zero_is_white", [False, True])
@pytest.mark.parametrize("kind", ["u1", "u2", "u4", "i2", "i4", "f4", "f8"])
def test_grey_tiff_of_any_number_is_scaled_or_refused(kind, zero_is_white, compressed, order):
    grey = DEEP[..., 0] // 2
    values = grey // 257 if kind == "u1" else grey / 65535 if kind[0] == "f" else grey
    truth = values if kind == "u1" else grey / 257
    data = tiff(values.astype(kind), photometric=int(not zero_is_white), compressed=compressed, order=order)
    refused = kind == "f8" or (zero_is_white and kind not in ("u1", "u2", "f4"))
    refused |= order == ">" and (kind == "u4" or (kind == "u2" and zero_is_white))
    if refused:
        with pytest.raises(UnreadableImage, match="cannot be read"):
            decode(data)
    else:
        assert_close(decode(data), 255 - three(truth) if zero_is_white else three(truth))


@pytest.mark.parametrize("order", ["<", ">"])
@pytest.mark.parametrize("compressed", [False, True])
@pytest.mark.parametrize("planar", [False, True])
@pytest.mark.parametrize("bits", [8, 16])
@pytest.mark.parametrize("kind", ["rgb", "rgba", "premultiplied", "grey-alpha", "grey-premultiplied", "cmyk"])
def test_colour_tiff_has_its_colours_or_is_refused(kind, bits, planar, compressed, order):
    values = DEEP if bits == 16 else (DEEP >> 8).astype(np.uint8)
    top = 2**bits - 1
    scaled = values * (255 / top)
    colour, alpha = scaled[..., :3], scaled[..., 3:]
    if kind.startswith("grey"):
        values, colour, alpha = values[..., [0, 3]], np.repeat(colour[..., :1], 3, axis=2), alpha
    if kind.endswith("premultiplied"):
        values = values.copy()
        values[..., :-1] = values[..., :-1].astype(np.int64) * values[..., -1:] // top
    if kind == "rgb":
        values, truth = values[..., :3], colour
    elif kind == "cmyk":
        truth = (255 - colour) * (255 - alpha) / 255
    else:
        truth = on_white(colour, alpha)
    tags = [(338, 3, [1 if kind.endswith("premultiplied") else 2])] if kind not in ("rgb", "cmyk") else []
    photometric = 5 if kind == "cmyk" else 1 if kind.startswith("grey") else 2
    data = tiff(values, photometric=photometric, planar=planar, compressed=compressed, order=order, tags=tags)
    try:
        pixels = decode(data)
    except UnreadableImage:
        # Premultiplied grey is read since Pillow 13.
        assert planar or (kind.startswith("grey") and (bits == 16 or kind.endswith("premultiplied")))
    else:
        assert_close(pixels, truth, 3)


def test_twelve_bit_grey_tiff_fills_the_range():
    values = np.linspace(0, 4095, 16 * 20).astype(int).reshape(16, 20)
    even, odd = values[:, ::2], values[:, 1::2]
    packed = np.stack([even >> 4, (even & 15) << 4 | odd >> 8, odd & 255], axis=2).astype(np.uint8).reshape(16, 30)
    data = tiff(packed)
    data = data.replace(struct.pack("<HHII", 256, 4, 1, 30), struct.pack("<HHII", 256, 4, 1, 20))
    data = data.replace(struct.pack("<HHII", 258, 3, 1, 8), struct.pack("<HHII", 258, 3, 1, 12))
    assert_close(decode(data), three(values * 255 / 4095), 0)


@pytest.mark.parametrize(
    ("values", "truth"),
    [
        ([0.0, 0.5, 1.0], [0, 128, 255]),
        ([0.0, 100.0, 255.0], [0, 100, 255]),
        ([0.0, 257.0, 65535.0], [0, 1, 255]),
        ([-1.0, 0.0, 1.0], [0, 128, 255]),
        ([0.0, 5e5, 1e6], [0, 128, 255]),
        ([np.nan, 0.5, np.inf], [0, 128, 0]),
    ],
)
def test_float_values_are_scaled_by_the_range_they_fit(values, truth):
    pixels = decode(tiff(np.array([values], np.float32)))
    assert_close(pixels, three(np.array([truth])))


# ---- modes


HELD = {  # what each format can hold and give back as it was; None is Pillow's picture itself
    "PNG": ["1", "L", "LA", "P", "RGB", "RGBA", "I;16"],
    "TIFF": ["1", "L", "LA", "P", "PA", "RGB", "RGBA", "RGBX", "CMYK", "I;16", "I", "F"],
    "BMP": ["1", "L", "P", "RGB"],
    "GIF": ["1", "L"],
    "WEBP": ["L", "LA", "P", "RGB", "RGBA"],
    "PPM": ["1", "L", "RGB", "I;16"],
    "JPEG2000": ["L", "LA", "RGB", "RGBA", "I;16"],
    None: ["1", "L", "LA", "P", "PA", "RGB", "RGBA", "RGBX", "CMYK", "I;16", "I", "F"],
}


@given(
    pixels=arrays(np.uint8, st.tuples(st.integers(1, 40), st.integers(1, 40), st.just(4))),
    held=st.sampled_from([(format, mode) for format, modes in HELD.items() for mode in modes]),
)
@settings(max_examples=200, deadline=None)
def test_every_mode_in_every_format_shows_its_pixels(pixels, held):
    format, mode = held
    image, truth = in_mode(pixels, mode)
    assert image.mode == mode
    if format is None:
        assert_close(to_rgb(image), truth)
    else:
        options = {"lossless": True, "exact": True} if format == "WEBP" else {}
        assert_close(decode(encoded(image, format, **options)), truth)


def in_mode(pixels: np.ndarray, mode: str) -> tuple[Image.Image, np.ndarray]:
    """A picture of uint8 (H, W, 4) in a mode, and the RGB that it shows."""
    height, width = pixels.shape[:2]
    grey, rgb, alpha = pixels[..., 0], pixels[..., :3], pixels[..., 3:].astype(float)
    deep = (grey.astype(np.uint16) * 257).astype({"I": np.int32, "F": np.float32}.get(mode, np.uint16))
    deep[0, 0] = 65535  # shows of what range the others are
    palette = np.random.default_rng(0).integers(0, 256, (256, 3)).astype(np.uint8)
    match mode:
        case "1":
            return Image.fromarray(grey > 127), three(np.where(grey > 127, 255, 0))
        case "L":
            return Image.fromarray(grey), three(grey)
        case "LA":
            return Image.fromarray(pixels[..., [0, 3]]), on_white(three(grey), alpha)
        case "P" | "PA":
            image = Image.frombytes("P", (width, height), grey.tobytes())
            image.putpalette(palette.tobytes())
            return image.convert(mode), palette[grey]
        case "RGB":
            return Image.fromarray(rgb), rgb
        case "RGBA":
            return Image.fromarray(pixels), on_white(rgb, alpha)
        case "RGBX":
            return Image.frombytes("RGBX", (width, height), pixels.tobytes()), rgb
        case "CMYK":
            return Image.frombytes("CMYK", (width, height), pixels.tobytes()), (255.0 - rgb) * (255 - alpha) / 255
        case _:
            return Image.fromarray(deep), three(np.asarray(deep, np.float64) / 257)


@pytest.mark.parametrize("mode", ["HSV", "YCbCr", "LAB", "RGBa", "La"])
def test_modes_of_pillow_that_few_files_have(mode):
    if mode == "LAB":
        profiles = ImageCms.createProfile("sRGB"), ImageCms.createProfile("LAB")
        image = ImageCms.profileToProfile(PHOTO, *profiles, outputMode="LAB")
        assert image is not None
        assert_close(decode(encoded(image, "TIFF")), to_rgb(image), 0)
    elif mode in ("RGBa", "La"):
        image = PHOTO.convert({"RGBa": "RGBA", "La": "LA"}[mode]).convert(mode)
    else:
        image = PHOTO.convert(mode)
    truth = three(GREY) if mode == "La" else RGB
    difference = np.abs(to_rgb(image).astype(int) - truth)
    assert difference.mean() < 1.5
    assert difference.max() < 20


def test_transparency_lies_on_white():
    rgba = np.zeros((8, 8, 4), np.uint8)
    rgba[:4] = (200, 10, 10, 255)
    rgba[4] = (0, 0, 0, 128)
    for data in (png(rgba), encoded(Image.fromarray(rgba), "WEBP", lossless=True)):
        pixels = decode(data)
        assert (pixels[:4] == (200, 10, 10)).all()
        assert (pixels[4] == 127).all()
        assert (pixels[5:] == 255).all()


def test_the_transparent_colour_of_a_png_lies_on_white():
    for values in (DEEP[..., 0], DEEP[..., :3], (DEEP[..., 0] >> 8).astype(np.uint8), (DEEP >> 8).astype(np.uint8)):
        if values.ndim == 3:
            values = values[..., :3]
        colour = np.atleast_1d(values[3, 4])
        shown = (values if values.ndim == 3 else three(values)) / (257 if values.dtype == np.uint16 else 1)
        truth = np.where((values.reshape(20, 30, -1) == colour).all(2, keepdims=True), 255, shown)
        assert_close(decode(png(values, before=[(b"tRNS", colour.astype(">u2").tobytes())])), truth)


def test_a_palette_with_transparent_entries_lies_on_white():
    image = Image.frombytes("P", (3, 1), bytes([0, 1, 2]))
    image.putpalette([250, 0, 0, 0, 250, 0, 0, 0, 250])
    pixels = decode(encoded(image, "PNG", transparency=bytes([255, 0, 51])))
    assert_close(pixels, np.array([[[250, 0, 0], [255, 255, 255], [204, 204, 254]]]))
    pixels = decode(encoded(image, "GIF", transparency=1))
    assert pixels.tolist() == [[[250, 0, 0], [255, 255, 255], [0, 0, 250]]]


@pytest.mark.parametrize("format", ["GIF", "WEBP", "PNG", "TIFF", "AVIF"])
def test_animations_and_pages_give_the_first(format):
    frames = [Image.new("RGB", (16, 16), colour) for colour in ("red", "blue", "lime")]
    data = encoded(frames[0], format, save_all=True, append_images=frames[1:])
    assert_close(decode(data), np.broadcast_to([255, 0, 0], (16, 16, 3)), 3)


def test_webp_gives_pillows_pixels_whichever_library_reads_it():
    for options in ({"quality": 80}, {"lossless": True}, {"quality": 80, "exif": exif(1)}):
        data = encoded(PHOTO, "WEBP", **options)
        np.testing.assert_array_equal(decode(data), by_pillow(data))


# ---- limits and reasons


@pytest.mark.parametrize("name", sorted(bad()))
def test_every_bad_file_is_named_with_its_reason(name):
    begin = time.perf_counter()
    with pytest.raises(UnreadableImage, match=r"\w"):
        decode(bad()[name])
    assert time.perf_counter() - begin < 5
    if name == "empty.jpg":
        assert read_size(bad()[name]) is None


@pytest.mark.parametrize(
    ("name", "reason"),
    [
        ("empty.jpg", "empty"),
        ("text.jpg", "text"),
        ("page.jpg", "web page"),
        ("archive.png", "zip"),
        ("document.png", "PDF"),
        ("drawing.png", "SVG"),
        ("postscript.jpg", "not an image"),
        ("early-end.jpg", "cut off"),
        ("cut-plain-50.png", "cut off"),
        ("cut-plain-50.jpg", "cut off"),
        ("cut-plain-50.tif", "cut off"),
        ("bomb.png", "megapixels"),
        ("tall-bomb.png", "megapixels"),
        ("bomb.jpg", "megapixels"),
        ("bomb.webp", "megapixels"),
        ("passes.jpg", "passes"),
    ],
)
def test_reasons(name, reason):
    with pytest.raises(UnreadableImage, match=reason):
        decode(bad()[name])


@pytest.mark.parametrize(
    ("mode", "options", "kind"),
    [
        ("RGB", {}, b"VP8 "),
        ("RGB", {"lossless": True}, b"VP8L"),
        ("RGBA", {}, b"VP8X"),
    ],
)
def test_webp_says_its_size_in_three_ways(mode, options, kind):
    for size in ((1, 1), (300, 17), (1023, 2049)):
        file = io.BytesIO()
        Image.new(mode, size, 100).save(file, "WEBP", **options)
        data = file.getvalue()
        assert data[12:16] == kind
        assert _webp_size(data) == size
        assert decode(data).shape == (size[1], size[0], 3)


def test_the_limit_of_pixels_is_that_of_the_header():
    for height, allowed in ((MAX_PIXELS // 9_000, True), (MAX_PIXELS // 9_000 + 1, False)):
        reason = "cut off" if allowed else "megapixels"
        with pytest.raises(UnreadableImage, match=reason):
            decode(png_header(9_000, height))


def test_long_and_narrow_pictures_are_read():
    long = np.tile(np.arange(256, dtype=np.uint8), 250)[None, :, None].repeat(3, axis=2)
    np.testing.assert_array_equal(decode(png(long)), long)
    assert decode(encoded(Image.fromarray(long), "JPEG"), shrink_to=224).shape == (1, 64_000, 3)


def test_a_cut_tiff_whose_header_comes_first_is_unreadable():
    data = encoded(PHOTO, "TIFF")
    with pytest.raises(UnreadableImage, match="cut off"):
        decode(data[: len(data) - 200])


def test_paths_that_cannot_be_read(tmp_path, monkeypatch):
    with pytest.raises(UnreadableImage, match="does not exist"):
        decode(tmp_path / "none.jpg")
    with pytest.raises(UnreadableImage, match="does not exist"):
        decode(str(tmp_path) + "/a\0b.jpg")
    with pytest.raises(UnreadableImage, match="folder"):
        decode(tmp_path)
    mislabelled = tmp_path / "really-a-png.jpg"
    mislabelled.write_bytes(encoded(PHOTO, "PNG"))
    np.testing.assert_array_equal(decode(mislabelled), RGB)
    assert read_size(mislabelled) == PHOTO.size
    assert read_size(tmp_path / "none.jpg") is None
    monkeypatch.setattr(decoder, "MAX_BYTES", 100)
    with pytest.raises(UnreadableImage, match="more than the limit"):
        decode(mislabelled)


def test_a_file_over_the_limit_is_not_read(tmp_path):
    large = tmp_path / "large.jpg"
    with open(large, "wb") as file:
        file.truncate(MAX_BYTES + 1)  # takes no room on the disk
    with pytest.raises(UnreadableImage, match="MB is more than the limit"):
        decode(large)


@pytest.mark.skipif(not hasattr(os, "mkfifo"), reason="this system has no named pipes")
def test_a_pipe_named_like_a_picture_does_not_wait(tmp_path):
    os.mkfifo(tmp_path / "pipe.jpg")
    for path in (tmp_path / "pipe.jpg", "/dev/zero"):
        with pytest.raises(UnreadableImage, match="not a regular file"):
            decode(path)
    assert read_size(tmp_path / "pipe.jpg") is None
