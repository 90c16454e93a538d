from __future__ import annotations

import io
import struct
import zlib

import numpy as np
import pytest
from PIL import Image

from lenext.data.decode import MAX_PIXELS, UnreadableImage, decode
from tests.pictures import photograph


def encoded(image: Image.Image, format: str = "PNG", **options) -> bytes:
    buffer = io.BytesIO()
    image.save(buffer, format, **options)
    return buffer.getvalue()


PHOTO = Image.fromarray(photograph()[200:260, 150:230])


@pytest.mark.parametrize("format", ["PNG", "BMP", "TIFF", "PPM", "GIF", "WEBP"])
def test_lossless_formats_give_the_pixels_that_were_written(format):
    image = PHOTO.quantize(64).convert("RGB") if format == "GIF" else PHOTO
    options = {"lossless": True} if format == "WEBP" else {}
    pixels = decode(encoded(image, format, **options))
    assert pixels.dtype == np.uint8
    np.testing.assert_array_equal(pixels, np.asarray(image))


def test_jpeg_is_close_to_the_photograph():
    pixels = decode(encoded(PHOTO, "JPEG", quality=95)).astype(int)
    assert np.abs(pixels - np.asarray(PHOTO)).mean() < 5


def test_shrunk_jpeg_is_at_least_the_size_asked_for_and_shows_the_same():
    big = Image.fromarray(photograph()).resize((1600, 1068))
    pixels = decode(encoded(big, "JPEG", quality=95), shrink_to=224)
    assert 224 <= min(pixels.shape[:2]) < 1068
    small = np.asarray(big.resize(pixels.shape[1::-1], Image.Resampling.BOX)).astype(int)
    assert np.abs(pixels - small).mean() < 4


@pytest.mark.parametrize(("orientation", "turn"), [(3, 2), (6, 3), (8, 1)])
def test_exif_orientation_is_applied(orientation, turn):
    exif = Image.Exif()
    exif[0x0112] = orientation
    pixels = decode(encoded(PHOTO, "PNG", exif=exif))
    np.testing.assert_array_equal(pixels, np.rot90(np.asarray(PHOTO), turn))


def test_broken_exif_is_ignored():
    data = encoded(PHOTO, "JPEG", quality=95)
    broken = b"\xff\xe1" + struct.pack(">H", 2 + 14) + b"Exif\x00\x00MM\x00*\xff\xff\xff\xff"
    np.testing.assert_array_equal(decode(data[:2] + broken + data[2:]), decode(data))


def test_sixteen_bit_grey_is_scaled_and_not_clipped():
    values = np.linspace(0, 65535, 64 * 64).reshape(64, 64).astype(np.uint16)
    pixels = decode(encoded(Image.fromarray(values), "PNG"))
    np.testing.assert_array_equal(pixels[..., 0], np.rint(values / 257).astype(np.uint8))
    assert len(np.unique(pixels)) == 256


def test_float_tiff_in_zero_to_one_fills_the_range():
    values = np.linspace(0, 1, 64 * 64, dtype=np.float32).reshape(64, 64)
    pixels = decode(encoded(Image.fromarray(values), "TIFF"))
    np.testing.assert_array_equal(pixels[..., 1], np.rint(values * 255).astype(np.uint8))


def test_transparency_lies_on_white():
    rgba = np.zeros((8, 8, 4), np.uint8)
    rgba[:4] = (200, 10, 10, 255)
    pixels = decode(encoded(Image.fromarray(rgba), "PNG"))
    assert (pixels[:4] == (200, 10, 10)).all()
    assert (pixels[4:] == 255).all()


@pytest.mark.parametrize("mode", ["1", "L", "LA", "P", "RGB", "RGBA", "CMYK", "YCbCr", "LAB", "I;16", "I", "F"])
def test_every_mode_becomes_three_channels_that_show_the_picture(mode):
    grey = PHOTO.convert("L")
    if mode in ("I;16", "I"):
        image = Image.fromarray(np.asarray(grey).astype(np.uint16 if mode == "I;16" else np.int32) * 257)
    elif mode == "F":
        image = Image.fromarray(np.asarray(grey) / np.float32(255))
    else:
        image = PHOTO.convert(mode) if mode != "LAB" else PHOTO.convert("RGB")
    pixels = decode(encoded(image, "TIFF" if mode in ("CMYK", "YCbCr", "F", "I") else "PNG"))
    assert pixels.shape == (60, 80, 3)
    shown, truth = pixels.astype(float).mean(2), np.asarray(grey).astype(float)
    if mode in ("1", "P"):  # dithered: the local average shows the picture
        shown, truth = (x.reshape(10, 6, 10, 8).mean((1, 3)) for x in (shown, truth))
    assert np.corrcoef(shown.ravel(), truth.ravel())[0, 1] > 0.97


def test_animation_gives_its_first_frame():
    frames = [Image.new("RGB", (9, 9), colour) for colour in ("red", "blue")]
    data = encoded(frames[0], "GIF", save_all=True, append_images=frames[1:])
    assert (decode(data) == (255, 0, 0)).all()


def bomb_png(width: int, height: int) -> bytes:
    """A valid header that promises far more pixels than the file has."""

    def chunk(kind: bytes, body: bytes) -> bytes:
        return struct.pack(">I", len(body)) + kind + body + struct.pack(">I", zlib.crc32(kind + body))

    header = struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0)
    return (
        b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + chunk(b"IDAT", zlib.compress(b"\0" * 999)) + chunk(b"IEND", b"")
    )


@pytest.mark.parametrize(
    ("data", "reason"),
    [
        (b"", "empty"),
        (b"no picture at all", "text"),
        (b"<html><body>404</body></html>", "web page"),
        (b"PK\x03\x04" + b"\0" * 40, "zip"),
        (b"<svg xmlns='http://www.w3.org/2000/svg'/>", "SVG"),
        (encoded(PHOTO, "PNG")[:600], "damaged or cut off"),
        (encoded(PHOTO, "JPEG")[:600], "damaged or cut off"),
        (bomb_png(20_000, 20_000), "megapixels"),
        (bomb_png(9_000, MAX_PIXELS // 9_000 + 1), "megapixels"),
    ],
)
def test_a_file_without_pixels_is_named_with_its_reason(data, reason):
    with pytest.raises(UnreadableImage, match=reason):
        decode(data)


def test_paths_that_cannot_be_read(tmp_path):
    with pytest.raises(UnreadableImage, match="does not exist"):
        decode(tmp_path / "none.jpg")
    with pytest.raises(UnreadableImage, match="folder"):
        decode(tmp_path)
    mislabelled = tmp_path / "really-a-png.jpg"
    mislabelled.write_bytes(encoded(PHOTO))
    np.testing.assert_array_equal(decode(mislabelled), np.asarray(PHOTO))
