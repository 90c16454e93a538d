"""Bytes to RGB pixels: the one decoder for training, prediction, serving and export.

Whatever the file holds, the answer is an array (H, W, 3) of uint8, or `UnreadableImage` with a reason a person
understands. EXIF orientation is applied, transparency lies on white, 16-bit values are scaled and not clipped,
and of an animation the first frame counts. The number of pixels is checked in the header, before memory is spent.
"""

from __future__ import annotations

import io
import warnings
from pathlib import Path

import numpy as np
from PIL import Image, ImageOps, UnidentifiedImageError

MAX_PIXELS = 100_000_000
MAX_BYTES = 500_000_000
EXTENSIONS = frozenset(
    ".jpg .jpeg .jpe .jfif .jp2 .png .webp .avif .bmp .gif .tif .tiff .ppm .pgm .pbm".split()  # noqa: SIM905
)

# The limit above is checked by us and speaks the user's language, and what is wrong with a file is said with its name:
# Pillow's warnings would only repeat it without one.
warnings.filterwarnings("ignore", category=Image.DecompressionBombWarning)
warnings.filterwarnings("ignore", category=UserWarning, module=r"PIL\.")


class UnreadableImage(ValueError):
    """A file that gives no pixels; the message is the reason."""


def decode(source: str | Path | bytes, *, shrink_to: int | None = None) -> np.ndarray:
    """Pixels (H, W, 3), uint8, RGB of a path or of encoded bytes.

    shrink_to: the short side that the caller needs at least, in pixels. JPEG files that are at least twice as
    large are then decoded at a half, a quarter or an eighth of their size, which is several times faster.

    Raises UnreadableImage.
    """
    data = source if isinstance(source, bytes) else _read(Path(source))
    if not data:
        raise UnreadableImage("the file is empty (0 bytes)")
    try:
        with Image.open(io.BytesIO(data)) as image:
            width, height = image.size
            if width * height > MAX_PIXELS:
                raise UnreadableImage(
                    f"{width} x {height} pixels are more than the limit of {MAX_PIXELS // 10**6} megapixels"
                )
            if shrink_to and image.format == "JPEG":
                # Keeps both sides at or above the request, so that resizing afterwards only shrinks.
                scale = shrink_to / min(width, height)
                image.draft("RGB", (round(width * scale), round(height * scale)))
            return to_rgb(image)
    except UnreadableImage:
        raise
    except UnidentifiedImageError:
        raise UnreadableImage(f"not an image: the content is {_looks_like(data)}") from None
    except Image.DecompressionBombError:
        raise UnreadableImage(f"more pixels than the limit of {MAX_PIXELS // 10**6} megapixels") from None
    except Exception as error:
        # Pillow's plugins raise whatever their parsers raise on damaged input: all of it means "unreadable".
        raise UnreadableImage(f"damaged or cut off ({str(error) or type(error).__name__})") from None


def to_rgb(image: Image.Image) -> np.ndarray:
    """Pixels (H, W, 3), uint8, of a picture in any of Pillow's modes, the right way up."""
    try:
        image = ImageOps.exif_transpose(image)
    except Exception:
        image.load()  # A broken EXIF block says nothing about the pixels, which must still be readable.
    if image.mode in ("I", "F") or image.mode.startswith("I;"):
        return np.repeat(_scale_deep(np.asarray(image))[:, :, None], 3, axis=2)
    if image.mode in ("RGBA", "LA", "La", "RGBa", "PA") or "transparency" in image.info:
        image = image.convert("RGBA")
        canvas = Image.new("RGBA", image.size, (255, 255, 255, 255))
        canvas.alpha_composite(image)
        image = canvas
    return np.array(image.convert("RGB"))


def _scale_deep(values: np.ndarray) -> np.ndarray:
    """Grey values of more than 8 bits as uint8: 16-bit integers by their range, floats by [0, 1] if they fit it."""
    if values.dtype == np.uint16 or (values.dtype.kind in "iu" and values.max(initial=0) > 255):
        scaled = values.astype(np.float32) / 257
    elif values.dtype.kind == "f":
        values = np.nan_to_num(values)
        top = values.max(initial=0.0)
        scaled = values * (255 if top <= 1 else 1 if top <= 255 else 255 / 65535)
    else:
        scaled = values
    return np.clip(np.rint(scaled), 0, 255).astype(np.uint8)


def _read(path: Path) -> bytes:
    try:
        size = path.stat().st_size
        if size > MAX_BYTES:
            raise UnreadableImage(f"{size / 1e6:.0f} MB is more than the limit of {MAX_BYTES / 1e6:.0f} MB")
        return path.read_bytes()
    except FileNotFoundError:
        raise UnreadableImage("the file does not exist") from None
    except IsADirectoryError:
        raise UnreadableImage("this is a folder, not a file") from None
    except PermissionError:
        raise UnreadableImage("no permission to read the file") from None
    except OSError as error:
        raise UnreadableImage(f"cannot be read ({error.strerror or error})") from None


def _looks_like(data: bytes) -> str:
    head = data[:512].lstrip()
    if head[:5].lower() in (b"<html", b"<!doc"):
        return "a web page (HTML)"
    if head.startswith((b"<svg", b"<?xml")):
        return "XML or SVG, which has no pixels"
    if head.startswith(b"PK\x03\x04"):
        return "a zip archive"
    if head.startswith(b"%PDF"):
        return "a PDF"
    if all(byte in b"\t\n\r" or 32 <= byte < 127 for byte in head):
        return "text"
    return "of no known image format"


def read_size(path: Path) -> tuple[int, int] | None:
    """(width, height) from a file's header, without decoding; None where there is none."""
    try:
        with Image.open(path) as image:
            return image.size
    except Exception:  # the decoder names the reason when the picture is read
        return None
