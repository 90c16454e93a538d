"""Bytes to RGB pixels: the one decoder for training, prediction, serving and export.

Whatever the file holds, the answer is an array (H, W, 3) of uint8, or `UnreadableImage` with a reason a person
understands. EXIF orientation is applied, transparency lies on white, values of more than 8 bits are scaled and not
clipped, and of an animation or of several pages the first one counts. The number of pixels is checked in the header,
before memory is spent. Colour profiles are not applied.

JPEG goes through libjpeg-turbo directly (simplejpeg), still opaque WebP through torchvision, which is up to twice as
fast as Pillow; everything else, and every JPEG that the strict decoder refuses, goes through Pillow. All three give
the same pixels. Of JPEG and PNG, Pillow sees only the parts that make pixels: damaged or swollen metadata cannot harm.
A file that is cut off is unreadable, one with harmless defects (bytes too many, a missing end mark) is not.
"""

from __future__ import annotations

import io
import stat
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cache, partial
from pathlib import Path

import numpy as np
import simplejpeg
from PIL import Image, ImageCms, ImageFile, UnidentifiedImageError

MAX_PIXELS = 100_000_000
MAX_BYTES = 500_000_000
# A progressive JPEG may pass over its pixels any number of times, with a few bytes a pass.
MAX_JPEG_WORK = 20 * MAX_PIXELS
EXTENSIONS = frozenset(
    ".jpg .jpeg .jpe .jfif .jp2 .png .webp .avif .heic .heif .bmp .gif .tif .tiff .ppm .pgm .pbm".split()  # noqa: SIM905
)
# Pillow knows more, but some of them run other programs (EPS) and none of them is how photographs are kept.
FORMATS = ("JPEG", "PNG", "WEBP", "GIF", "BMP", "TIFF", "PPM", "JPEG2000", "AVIF")
HEIC_BRANDS = frozenset((b"heic", b"heix", b"heim", b"heis", b"hevc", b"hevx", b"hevm", b"hevs"))
SIGNATURES = (b"\x89PNG", b"RIFF", b"GIF8", b"BM", b"II*\0", b"MM\0*")  # of pictures, where no decoder takes them
PNG_PIXEL_CHUNKS = frozenset((b"IHDR", b"PLTE", b"tRNS", b"IDAT", b"IEND"))

# The limit above is checked by us and speaks the user's language, and what is wrong with a file is said with its name:
# Pillow's warnings would only repeat it without one.
warnings.filterwarnings("ignore", category=Image.DecompressionBombWarning)
warnings.filterwarnings("ignore", category=UserWarning, module=r"PIL\.")


class UnreadableImage(ValueError):
    """A file that gives no pixels; the message is the reason."""


def decode(source: str | Path | bytes, *, shrink_to: int | None = None) -> np.ndarray:
    """Pixels (H, W, 3), uint8, RGB of a path or of encoded bytes.

    shrink_to: the short side that the caller needs at least, in pixels. JPEG files that are at least twice as
    large are then decoded at a half, a quarter or an eighth of their size, which is up to twice as fast.

    Raises UnreadableImage.
    """
    data = source if isinstance(source, bytes) else read_bytes(Path(source))
    with _reasons(data):
        if data.startswith(b"\xff\xd8"):
            return _decode_jpeg(data, shrink_to)
        with _open(data) as image:
            width, height = image.size
            if image.format == "WEBP" and image.mode == "RGB" and not getattr(image, "is_animated", False):
                pixels = _turn(_decode_opaque_webp(data), _orientation(image.info.get("exif")))
            else:
                pixels = to_rgb(image)
            if pixels.size != 3 * width * height:
                raise UnreadableImage(f"damaged (the picture is not of the {width} x {height} pixels of its header)")
            return pixels


def read_size(source: str | Path | bytes) -> tuple[int, int] | None:
    """(width, height) in pixels, the right way up, from a file's header without decoding; None where there is none."""
    try:
        data = source if isinstance(source, bytes) else read_bytes(Path(source))
        with _reasons(data):
            if data.startswith(b"\xff\xd8"):
                jpeg = jpeg_header(data)
                size, orientation = (jpeg.width, jpeg.height), jpeg.orientation
            else:
                with _open(data) as image:
                    size = image.size
                    # Pillow turns a TIFF, and its size, by itself.
                    orientation = 1 if image.format == "TIFF" else _orientation(image.info.get("exif"))
    except UnreadableImage:  # the decoder names the reason when the picture is read
        return None
    return size[::-1] if orientation >= 5 else size


def to_rgb(image: Image.Image) -> np.ndarray:
    """Pixels (H, W, 3), uint8, of a picture in any of Pillow's modes, the right way up."""
    image.load()
    orientation = 1 if image.format == "TIFF" else _orientation(image.info.get("exif"))
    if image.mode in ("I", "F") or image.mode.startswith("I;"):
        pixels = np.repeat(_deep_grey(image)[:, :, None], 3, axis=2)
    else:
        pixels = np.array(_flat(image))
    return _turn(pixels, orientation)


# ---- JPEG


@dataclass(frozen=True)
class JpegHeader:
    width: int
    height: int
    components: int
    progressive: bool
    exif: bytes  # empty where there is none
    bare: tuple[tuple[int, int], ...]  # where the parts lie in the file that make pixels, (begin, end)

    @property
    def orientation(self) -> int:
        return _orientation(self.exif)


def _decode_jpeg(data: bytes, shrink_to: int | None) -> np.ndarray:
    jpeg = jpeg_header(data)
    _check_size(jpeg.width, jpeg.height)
    if jpeg.progressive:
        _check_passes(data, jpeg)
    factor = jpeg_factor(jpeg, shrink_to)
    pixels = _decode_odd_jpeg(data, jpeg, factor) if jpeg.components == 4 else _decode_usual_jpeg(data, jpeg, factor)
    return _turn(pixels, jpeg.orientation)


def jpeg_factor(jpeg: JpegHeader, shrink_to: int | None) -> int:
    """How many times smaller a JPEG is decoded: 1, 2, 4 or 8. Transforms of other sizes are slower than the whole."""
    side = min(jpeg.width, jpeg.height)
    return next(f for f in (8, 4, 2, 1) if f == 1 or (shrink_to and side >= f * shrink_to))


def _decode_usual_jpeg(data: bytes, jpeg: JpegHeader, factor: int) -> np.ndarray:
    height, width = -(-jpeg.height // factor), -(-jpeg.width // factor)
    strict = partial(simplejpeg.decode_jpeg, min_height=height, min_width=width, min_factor=factor)
    try:
        return strict(data)
    except ValueError as error:
        reason = str(error)
    if "Premature end of JPEG" in reason:
        try:  # fails when more than the end mark is missing, but in a progressive file a whole pass may be
            if not jpeg.progressive:
                return strict(data + b"\xff\xd9")
        except ValueError:
            pass
        raise UnreadableImage("damaged or cut off (the file ends before the picture does)")
    pixels = _decode_odd_jpeg(data, jpeg, factor)
    # What is missing at the end is filled with this grey; on its own it may well be in a photograph.
    if "premature end of data" in reason and (jpeg.progressive or (pixels[-1, -8:] == 128).all()):
        raise UnreadableImage("damaged or cut off (a part of the picture is missing)")
    return pixels


def _decode_odd_jpeg(data: bytes, jpeg: JpegHeader, factor: int) -> np.ndarray:
    """What the strict decoder refuses: four colour components, bytes too many, small damage."""
    _check_passes(data, jpeg)
    bare = b"".join(data[begin:end] for begin, end in jpeg.bare)
    with Image.open(io.BytesIO(bare), formats=["JPEG"]) as image:
        image.draft(None, (jpeg.width // factor, jpeg.height // factor))
        return to_rgb(image)


def jpeg_header(data: bytes) -> JpegHeader:
    """Everything up to the first scan; bytes between segments, which strict decoders refuse, are passed over."""
    exif, frame, at, bare = b"", None, 2, [(0, 2)]
    while True:
        at = data.find(b"\xff", at)
        while 0 <= at < len(data) - 1 and data[at + 1] == 0xFF:
            at += 1
        if not 0 <= at <= len(data) - 4:
            raise UnreadableImage("damaged or cut off (the file ends before the picture begins)")
        marker, end = data[at + 1], at + 2 + int.from_bytes(data[at + 2 : at + 4])
        if marker in (0x00, 0x01, *range(0xD0, 0xD9)):  # no segment
            at += 2
            continue
        if marker == 0xD9:
            raise UnreadableImage("damaged or cut off (the file ends before the picture begins)")
        if marker == 0xDA:
            if frame is None:
                raise UnreadableImage("damaged or cut off (the JPEG does not say its size)")
            return JpegHeader(*frame, exif, (*bare, (at, len(data))))
        if 0xC0 <= marker <= 0xCF and marker not in (0xC4, 0xC8, 0xCC):
            height, width = int.from_bytes(data[at + 5 : at + 7]), int.from_bytes(data[at + 7 : at + 9])
            frame = (width, height, data[at + 9], marker not in (0xC0, 0xC1))
        if marker == 0xE1 and not exif and data.startswith(b"Exif\0\0", at + 4):
            exif = data[at + 4 : end]
        if not (0xE1 <= marker <= 0xEF or marker == 0xFE) or marker == 0xEE:  # 0xEE is Adobe's, of the colours
            bare.append((at, end))
        at = end


def _check_passes(data: bytes, jpeg: JpegHeader) -> None:
    passes = data.count(b"\xff\xda")
    if passes * jpeg.width * jpeg.height > MAX_JPEG_WORK:
        raise UnreadableImage(f"a JPEG that is drawn in {passes} passes, which only serves to keep a decoder busy")


# ---- other formats


def _open(data: bytes) -> ImageFile.ImageFile:
    """The picture with its header read, its number of pixels checked, and nothing decoded."""
    if data[4:8] == b"ftyp" and _is_heic(data):
        _register_heic()
        image = Image.open(io.BytesIO(data), formats=["HEIF"])
    elif data.startswith(b"\x89PNG"):
        bare, exif = _strip_png(data)
        image = Image.open(io.BytesIO(bare), formats=["PNG"])
        image.info["exif"] = exif
    else:
        if data.startswith(b"RIFF") and data[8:12] == b"WEBP":
            _check_size(*_webp_size(data))  # some releases of Pillow make room for the pixels first
        image = Image.open(io.BytesIO(data), formats=FORMATS)
    _check_size(*image.size)
    if image.format == "TIFF":
        _check_planes(image)
        image.tile = [_native(tile) for tile in image.tile]
    if data[24:25] == b"\x10" and isinstance(image.info.get("transparency"), tuple):
        # The transparent colour of a PNG of 16 bits a channel; its pixels are read as the upper 8.
        image.info["transparency"] = tuple(value >> 8 for value in image.info["transparency"])
    return image


def _check_planes(image: ImageFile.ImageFile) -> None:
    """Refuses a TIFF with a plane for each channel in the forms that Pillow takes for others."""
    tags = image.tag_v2  # type: ignore[attr-defined]
    if tags.get(284) == 2 and (image.mode in ("LA", "La") or (tags.get(259, 1) == 1 and 16 in tags.get(258, ()))):
        raise UnreadableImage(
            "a TIFF with a plane for each channel, in a form that cannot be read; save it interleaved"
        )


def _native(tile: ImageFile._Tile) -> ImageFile._Tile:
    """libtiff itself swaps the bytes of compressed big-endian values; Pillow would do it once more."""
    if tile.codec_name != "libtiff" or not isinstance(tile.args, tuple):
        return tile
    rawmode = tile.args[0].replace(";32B", ";32N").replace(";16BS", ";16NS")
    return tile._replace(args=(rawmode, *tile.args[1:]))


def _is_heic(data: bytes) -> bool:
    """Whether the file type box (its length, `ftyp`, and names of four letters) names HEIC and not only AVIF."""
    box = data[8 : min(int.from_bytes(data[:4]), 256)]
    brands = {box[i : i + 4] for i in range(0, len(box), 4)}
    return not brands.isdisjoint(HEIC_BRANDS) or (b"mif1" in brands and b"avif" not in brands)


@cache
def _register_heic() -> None:
    try:
        import pillow_heif
    except ImportError:
        raise UnreadableImage("HEIC pictures need one more package: pip install pillow-heif") from None
    pillow_heif.register_heif_opener(thumbnails=False)


def _webp_size(data: bytes) -> tuple[int, int]:
    """(width, height) that a WebP file says it has, of its three kinds; (1, 1) where the decoder will know better."""
    if data[12:16] == b"VP8X" and len(data) >= 30:
        return 1 + int.from_bytes(data[24:27], "little"), 1 + int.from_bytes(data[27:30], "little")
    if data[12:16] == b"VP8L" and len(data) >= 25:
        bits = int.from_bytes(data[21:25], "little")
        return 1 + (bits & 0x3FFF), 1 + (bits >> 14 & 0x3FFF)
    if data[12:16] == b"VP8 " and len(data) >= 30:
        return int.from_bytes(data[26:28], "little") & 0x3FFF, int.from_bytes(data[28:30], "little") & 0x3FFF
    return 1, 1


def _strip_png(data: bytes) -> tuple[bytes, bytes]:
    """(the chunks that make pixels, the EXIF block): texts and colour profiles can be damaged, or be bombs."""
    parts, exif, at = [data[:8]], b"", 8
    while at + 12 <= len(data):
        kind, end = data[at + 4 : at + 8], at + 12 + int.from_bytes(data[at : at + 4])
        if kind in PNG_PIXEL_CHUNKS:
            parts.append(data[at:end])
        elif kind == b"eXIf" and not exif:
            exif = data[at + 8 : end - 4]
        at = end
    return b"".join(parts), exif


def _decode_opaque_webp(data: bytes) -> np.ndarray:
    import torch
    from torchvision.io import ImageReadMode, decode_webp

    pixels = decode_webp(torch.frombuffer(bytearray(data), dtype=torch.uint8), ImageReadMode.RGB)
    return pixels.permute(1, 2, 0).contiguous().numpy()


# ---- colours and orientation


def _flat(image: Image.Image) -> Image.Image:
    """RGB of a picture of at most 8 bits a channel, on white."""
    if image.mode == "La":
        image = image.convert("LA")
    if image.mode in ("RGBA", "LA", "RGBa", "PA") or "transparency" in image.info:
        image = image.convert("RGBA")
        canvas = Image.new("RGBA", image.size, (255, 255, 255, 255))
        canvas.alpha_composite(image)
        image = canvas
    if image.mode == "LAB":
        return ImageCms.applyTransform(image, _lab_to_rgb()) or image
    return image if image.mode == "RGB" else image.convert("RGB")


@cache
def _lab_to_rgb() -> ImageCms.ImageCmsTransform:
    return ImageCms.buildTransform(ImageCms.createProfile("LAB"), ImageCms.createProfile("sRGB"), "LAB", "RGB")


def _deep_grey(image: Image.Image) -> np.ndarray:
    """Grey values of more than 8 bits as uint8 (H, W).

    White is the highest value of the format where that says 12 or 16 bits, else the first of 1 (only of floats), 255
    and 65535 that no value exceeds. Pictures with values beyond these or below zero have no defined white: they are
    stretched from their lowest value (or zero) to their highest.
    """
    tags = getattr(image, "tag_v2", {})
    black, white = 0.0, 4095.0 if tags.get(258) == (12,) else 65535.0
    if image.mode.startswith("I;") or image.format == "PPM":
        values = np.asarray(image, np.float32)
    else:
        values = np.nan_to_num(np.asarray(image, np.float64), posinf=0, neginf=0)
        low, high = values.min(initial=0), values.max(initial=0)
        if low < 0 or high > 65535:
            black, white = low, high
        else:
            white = next(white for white in (1.0, 255.0, 65535.0)[image.mode == "I" :] if high <= white)
    grey = np.rint((values - black) * (255 / (white - black))).astype(np.uint8)
    if tags.get(262) == 0:  # zero is white; Pillow leaves the values as they are written
        grey = 255 - grey
    if isinstance(image.info.get("transparency"), int):
        grey[values == image.info["transparency"]] = 255
    return grey


def _orientation(exif: bytes | None) -> int:
    """1 to 8, as EXIF counts; 1, upright, where a broken block says nothing."""
    if not exif:
        return 1
    try:
        block = Image.Exif()
        block.load(exif)
        orientation = int(block.get(0x0112, 1))
    except Exception:
        return 1
    return orientation if 1 <= orientation <= 8 else 1


def _turn(pixels: np.ndarray, orientation: int) -> np.ndarray:
    """The right way up: from 5 on rows and columns change places, the rest are mirror images and half turns."""
    if orientation == 1:
        return pixels
    whole = np.ascontiguousarray(pixels).view("V3")[..., 0]  # a pixel as one thing is copied twice as fast as three
    if orientation >= 5:
        whole = whole.T
    if orientation in (3, 4, 7, 8):
        whole = whole[::-1]
    if orientation in (2, 3, 6, 7):
        whole = whole[:, ::-1]
    return np.ascontiguousarray(whole)[..., None].view(np.uint8)


# ---- limits and reasons


def read_bytes(path: Path) -> bytes:
    if "\0" in str(path):
        raise UnreadableImage("the file does not exist")
    try:
        status = path.stat()
        if stat.S_ISDIR(status.st_mode):
            raise UnreadableImage("this is a folder, not a file")
        if not stat.S_ISREG(status.st_mode):  # reading a pipe would wait for a writer
            raise UnreadableImage("not a regular file")
        if status.st_size > MAX_BYTES:
            raise UnreadableImage(f"{status.st_size / 1e6:.0f} MB is more than the limit of {MAX_BYTES / 1e6:.0f} MB")
        return path.read_bytes()
    except FileNotFoundError:
        raise UnreadableImage("the file does not exist") from None
    except PermissionError:
        raise UnreadableImage("no permission to read the file") from None
    except OSError as error:
        raise UnreadableImage(f"cannot be read ({error.strerror or error})") from None


def _check_size(width: int, height: int) -> None:
    if width * height > MAX_PIXELS:
        raise UnreadableImage(f"{width} x {height} pixels are more than the limit of {MAX_PIXELS // 10**6} megapixels")
    if not width * height:
        raise UnreadableImage("the picture has no pixels")


@contextmanager
def _reasons(data: bytes) -> Iterator[None]:
    """Turns whatever a library raises into a reason."""
    if not data:
        raise UnreadableImage("the file is empty (0 bytes)")
    try:
        yield
    except UnreadableImage:
        raise
    except UnidentifiedImageError:
        if data.startswith(SIGNATURES) or data[4:8] == b"ftyp":
            raise UnreadableImage("damaged or cut off in its header, or of a kind that cannot be read") from None
        raise UnreadableImage(f"not an image: the content is {_looks_like(data)}") from None
    except Image.DecompressionBombError:
        raise UnreadableImage(f"more pixels than the limit of {MAX_PIXELS // 10**6} megapixels") from None
    except Exception as error:
        # Decoders raise whatever their parsers raise on damaged input: all of it means "unreadable".
        raise UnreadableImage(f"damaged or cut off ({str(error).strip() or type(error).__name__})") from None


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
