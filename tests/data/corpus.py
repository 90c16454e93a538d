"""Small picture files of every form, good and bad, and ways to damage them.

The writers of PNG, TIFF and EXIF here are independent of the libraries that the decoder uses, so that what they write
is known from the specification and not from the library under test.
"""

from __future__ import annotations

import importlib.util
import io
import struct
import zlib
from collections.abc import Sequence
from functools import cache

import numpy as np
from PIL import Image

from tests.pictures import photograph

HAS_HEIC = importlib.util.find_spec("pillow_heif") is not None


def picture(width: int = 40, height: int = 28) -> Image.Image:
    """A piece of a photograph with edges, colours and a clear up side, RGB."""
    return Image.fromarray(photograph()[100:380, 100:500]).resize((width, height), Image.Resampling.BOX)


def encoded(image: Image.Image, format: str, **options) -> bytes:
    if format == "HEIF":
        import pillow_heif

        pillow_heif.register_heif_opener(thumbnails=False)
    buffer = io.BytesIO()
    image.save(buffer, format, **options)
    return buffer.getvalue()


# ---- writers


def exif(orientation: int, order: str = ">", tag: int = 0x0112) -> bytes:
    """An EXIF block that holds the orientation and nothing else, or the same number under another tag."""
    head = b"MM\0*" if order == ">" else b"II*\0"
    return (
        b"Exif\0\0"
        + head
        + struct.pack(order + "I", 8)
        + struct.pack(order + "HHHIHHI", 1, tag, 3, 1, orientation, 0, 0)
    )


def xmp(orientation: int) -> bytes:
    """An XMP packet that holds the orientation and nothing else."""
    return (
        b'<x:xmpmeta xmlns:x="adobe:ns:meta/"><rdf:RDF xmlns:rdf="http://www.w3.org/1999/02/22-rdf-syntax-ns#">'
        b'<rdf:Description xmlns:tiff="http://ns.adobe.com/tiff/1.0/" tiff:Orientation="%d"/></rdf:RDF></x:xmpmeta>'
    ) % orientation


def xmp_text(orientation: int) -> tuple[bytes, bytes]:
    """An XMP packet as a chunk of a PNG."""
    return b"iTXt", b"XML:com.adobe.xmp\0\0\0\0\0" + xmp(orientation)


def raw_profile(orientation: int) -> tuple[bytes, bytes]:
    """EXIF as a chunk of a PNG of the time before there was one for it: hexadecimal in a compressed text."""
    block = exif(orientation)
    return b"zTXt", b"Raw profile type exif\0\0" + zlib.compress(
        b"\nexif\n%8d\n%s\n" % (len(block), block.hex().encode())
    )


def with_segment(jpeg: bytes, marker: int, body: bytes) -> bytes:
    """A JPEG with one more segment directly after its start."""
    return jpeg[:2] + bytes((0xFF, marker)) + struct.pack(">H", 2 + len(body)) + body + jpeg[2:]


def with_xmp(jpeg: bytes, orientation: int) -> bytes:
    return with_segment(jpeg, 0xE1, b"http://ns.adobe.com/xap/1.0/\0" + xmp(orientation))


def chunk(kind: bytes, body: bytes) -> bytes:
    return struct.pack(">I", len(body)) + kind + body + struct.pack(">I", zlib.crc32(kind + body))


def png(values: np.ndarray, *, before: Sequence[tuple[bytes, bytes]] = (), after: bytes = b"") -> bytes:
    """uint8 or uint16 (H, W) or (H, W, 2 to 4) as PNG: grey, grey and alpha, RGB, RGBA; `before` the pixels come
    further chunks, `after` the end come further bytes."""
    height, width = values.shape[:2]
    channels = 1 if values.ndim == 2 else values.shape[2]
    kind = {1: 0, 2: 4, 3: 2, 4: 6}[channels]
    rows = values.reshape(height, -1).astype(">u2" if values.dtype == np.uint16 else np.uint8)
    header = struct.pack(">IIBBBBB", width, height, 8 * rows.itemsize, kind, 0, 0, 0)
    return b"".join(
        [
            b"\x89PNG\r\n\x1a\n",
            chunk(b"IHDR", header),
            *(chunk(*extra) for extra in before),
            chunk(b"IDAT", zlib.compress(b"".join(b"\0" + row.tobytes() for row in rows))),
            chunk(b"IEND", b""),
            after,
        ]
    )


def png_header(width: int, height: int) -> bytes:
    """A valid PNG header that promises far more pixels than the file has."""
    header = struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0)
    data = chunk(b"IHDR", header) + chunk(b"IDAT", zlib.compress(b"\0" * 999)) + chunk(b"IEND", b"")
    return b"\x89PNG\r\n\x1a\n" + data


def tiff(
    values: np.ndarray,
    *,
    order: str = "<",
    photometric: int | None = None,
    compressed: bool = False,
    planar: bool = False,
    tags: Sequence[tuple[int, int, Sequence[int]]] = (),
    pages: int = 1,
) -> bytes:
    """A TIFF of (H, W) or (H, W, C) of any type of numbers in one strip, or a strip a channel.

    photometric: 0 zero is white, 1 zero is black, 2 RGB, 5 CMYK, 8 L*a*b*; tags: further (tag, type, values).
    """
    height, width = values.shape[:2]
    channels = 1 if values.ndim == 2 else values.shape[2]
    if photometric is None:
        photometric = 1 if channels < 3 else 2
    kind = {"u": 1, "i": 2, "f": 3}[values.dtype.kind]
    ordered = values.astype(order + values.dtype.str[1:]).reshape(height, width, channels)
    strips = [ordered[..., i].tobytes() for i in range(channels)] if planar else [ordered.tobytes()]
    strips = [zlib.compress(strip) for strip in strips] if compressed else strips
    begin, offsets = 8, []
    for strip in strips:
        offsets.append(begin)
        begin += len(strip) + len(strip) % 2
    body = b"".join(strip + b"\0" * (len(strip) % 2) for strip in strips)
    entries = [
        (256, 4, [width]),
        (257, 4, [height]),
        (258, 3, [8 * values.itemsize] * channels),
        (259, 3, [8 if compressed else 1]),
        (262, 3, [photometric]),
        (273, 4, offsets),
        (277, 3, [channels]),
        (278, 4, [height]),
        (279, 4, [len(strip) for strip in strips]),
        (284, 3, [2 if planar else 1]),
        (339, 3, [kind] * channels),
        *tags,
    ]
    data = (b"II*\0" if order == "<" else b"MM\0*") + struct.pack(order + "I", begin) + body
    for page in range(pages):
        start, extra, directory = len(data), b"", struct.pack(order + "H", len(entries))
        after = start + 2 + 12 * len(entries) + 4
        for tag, size, numbers in sorted(entries):
            packed = struct.pack(f"{order}{len(numbers)}{'HI'[size == 4]}", *numbers)
            if len(packed) > 4:
                place = struct.pack(order + "I", after + len(extra))
                extra += packed + b"\0" * (len(packed) % 2)
            else:
                place = packed.ljust(4, b"\0")
            directory += struct.pack(order + "HHI", tag, size, len(numbers)) + place
        following = after + len(extra) if page + 1 < pages else 0
        data += directory + struct.pack(order + "I", following) + extra
    return data


# ---- the corpus


@cache
def good() -> dict[str, bytes]:
    """Files that show `picture`, by name; all of them decode."""
    image = picture()
    rgb, grey = np.asarray(image), np.asarray(image.convert("L"))
    jpeg = encoded(image, "JPEG", quality=90)
    alpha = image.copy()
    alpha.putalpha(Image.linear_gradient("L").resize(image.size))
    deep = rgb.astype(np.uint16) * 257
    frames = [image, image.rotate(180)]
    animation = {"save_all": True, "append_images": frames[1:]}
    files = {
        "plain.jpg": jpeg,
        "grey.jpg": encoded(image.convert("L"), "JPEG", quality=90),
        "cmyk.jpg": encoded(image.convert("CMYK"), "JPEG", quality=90),
        "progressive.jpg": encoded(image, "JPEG", quality=90, progressive=True),
        "444.jpg": encoded(image, "JPEG", quality=90, subsampling=0),
        "restarts.jpg": encoded(image, "JPEG", quality=90, restart_marker_blocks=1),
        "bytes-after.jpg": jpeg + b"more" * 9,
        "no-end.jpg": jpeg[:-2],
        "junk-between.jpg": jpeg[:2] + b"abc" + jpeg[2:],
        "broken-exif.jpg": with_segment(jpeg, 0xE1, b"Exif\0\0MM\0*\xff\xff\xff\xff"),
        "broken-profile.jpg": with_segment(jpeg, 0xE2, b"ICC_PROFILE\0\x05\x02nonsense"),
        "really-a-png.jpg": encoded(image, "PNG"),
        "plain.png": encoded(image, "PNG"),
        "palette.png": encoded(image.quantize(32), "PNG"),
        "bits.png": encoded(image.convert("1"), "PNG"),
        "alpha.png": encoded(alpha, "PNG"),
        "grey-alpha.png": encoded(alpha.convert("LA"), "PNG"),
        "deep-grey.png": png(grey.astype(np.uint16) * 257),
        "deep.png": png(deep),
        "broken-profile.png": png(rgb, before=[(b"iCCP", b"name\0\0nonsense")]),
        "text-bomb.png": png(rgb, before=[(b"zTXt", b"name\0\0" + zlib.compress(b"\0" * 10**7, 9))]),
        "profile-bomb.png": png(rgb, before=[(b"iCCP", b"name\0\0" + zlib.compress(b"\0" * 10**7, 9))]),
        "bytes-after.png": png(rgb, after=b"more" * 9),
        "animated.png": encoded(image, "PNG", **animation),
        "lossy.webp": encoded(image, "WEBP", quality=90),
        "lossless.webp": encoded(image, "WEBP", lossless=True),
        "alpha.webp": encoded(alpha, "WEBP", quality=90),
        "animated.webp": encoded(image, "WEBP", **animation),
        "plain.gif": encoded(image, "GIF"),
        "animated.gif": encoded(image, "GIF", **animation),
        "plain.bmp": encoded(image, "BMP"),
        "palette.bmp": encoded(image.quantize(32), "BMP"),
        "plain.tif": tiff(rgb),
        "big-endian.tif": tiff(rgb, order=">"),
        "deep.tif": tiff(deep, order=">", compressed=True),
        "planes.tif": tiff(rgb, planar=True, compressed=True),
        "float.tif": tiff((grey / 255).astype(np.float32)),
        "zero-is-white.tif": tiff(255 - grey, photometric=0),
        "lzw.tif": encoded(image, "TIFF", compression="tiff_lzw"),
        "jpeg.tif": encoded(image, "TIFF", compression="jpeg", quality=90),
        "cmyk.tif": encoded(image.convert("CMYK"), "TIFF"),
        "pages.tif": tiff(rgb, pages=3),
        "plain.ppm": encoded(image, "PPM"),
        "plain.jp2": encoded(image, "JPEG2000"),
        "plain.avif": encoded(image, "AVIF", quality=90),
    }
    for orientation in range(1, 9):
        files[f"orientation-{orientation}.jpg"] = with_segment(jpeg, 0xE1, exif(orientation))
        files[f"orientation-{orientation}.png"] = png(rgb, before=[(b"eXIf", exif(orientation)[6:])])
        files[f"orientation-{orientation}.tif"] = tiff(rgb, tags=[(274, 3, [orientation])])
        files[f"orientation-{orientation}.webp"] = encoded(image, "WEBP", quality=90, exif=exif(orientation))
        files[f"orientation-{orientation}.avif"] = encoded(image, "AVIF", quality=90, exif=exif(orientation))
    # An orientation that is noted elsewhere than in EXIF, which Pillow's own functions follow, does not count.
    files["xmp.jpg"] = with_xmp(jpeg, 6)
    files["xmp-beside-exif.jpg"] = with_xmp(with_segment(jpeg, 0xE1, exif(1, tag=0x0101)), 6)
    files["xmp.png"] = png(rgb, before=[xmp_text(6)])
    files["xmp.webp"] = encoded(image, "WEBP", quality=90, xmp=xmp(6))
    files["xmp.avif"] = encoded(image, "AVIF", quality=90, xmp=xmp(6))
    files["raw-profile.png"] = png(rgb, before=[raw_profile(6)])
    if HAS_HEIC:
        files["plain.heic"] = encoded(image, "HEIF", quality=90)
        files["orientation-6.heic"] = encoded(image, "HEIF", quality=90, exif=exif(6))
    return files


@cache
def bad() -> dict[str, bytes]:
    """Files that hold no picture, a part of one, or more than a machine can bear; none of them decodes."""
    files = {
        "empty.jpg": b"",
        "text.jpg": b"no picture at all",
        "page.jpg": b"<html><body>404</body></html>",
        "drawing.png": b"<svg xmlns='http://www.w3.org/2000/svg'/>",
        "archive.png": b"PK\x03\x04" + b"\0" * 40,
        "document.png": b"%PDF-1.7\n",
        "zeros.jpg": b"\0" * 1000,
        "postscript.jpg": b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 9 9\n",
        "only-start.jpg": b"\xff\xd8\xff",
        "early-end.jpg": good()["plain.jpg"][:1000] + b"\xff\xd9",
        "bomb.png": png_header(20_000, 20_000),
        "tall-bomb.png": png_header(9_000, 11_112),
        "bomb.jpg": good()["plain.jpg"].replace(struct.pack(">HH", 28, 40), struct.pack(">HH", 65_000, 65_000), 1),
        "bomb.gif": b"GIF89a\xff\xff\xff\xff" + good()["plain.gif"][10:],
        "bomb.bmp": good()["plain.bmp"][:18] + struct.pack("<ii", 60_000, 60_000) + good()["plain.bmp"][26:],
        "bomb.ppm": b"P6 60000 60000 255\n" + b"\0" * 99,
        "bomb.webp": b"RIFF\x16\0\0\0WEBPVP8X\x0a\0\0\0\0\0\0\0\xff\x7f\x00\xff\x7f\x00",
        "passes.jpg": _many_passes(12_000, 8_000, 200),
        "flat.png": png_header(0, 9),
    }
    for name in ("plain.jpg", "progressive.jpg", "plain.png", "lossy.webp", "plain.gif", "plain.bmp", "plain.tif"):
        data, (stem, ending) = good()[name], name.split(".")
        for share in (5, 50, 90):
            files[f"cut-{stem}-{share}.{ending}"] = data[: len(data) * share // 100]
    for name in ("lzw.tif", "deep.tif", "plain.ppm", "plain.jp2", "plain.avif", "plain.heic"):
        if name in good():
            data, (stem, ending) = good()[name], name.split(".")
            files[f"cut-{stem}-50.{ending}"] = data[: len(data) // 2]
    return files


def corpus() -> dict[str, bytes]:
    """All files, by a name that says what is special and how a user would have it called."""
    return good() | {f"bad-{name}": data for name, data in bad().items()}


def _many_passes(width: int, height: int, passes: int) -> bytes:
    """A progressive JPEG of empty scans: a few bytes that make a decoder go over all pixels again and again."""
    data = encoded(Image.new("RGB", (16, 16)), "JPEG", progressive=True)
    data = data.replace(struct.pack(">HH", 16, 16), struct.pack(">HH", height, width), 1)
    scan = data.rindex(b"\xff\xda")
    return data[:scan] + data[scan:-2] * passes + data[-2:]


# ---- damage


def mutated(data: bytes, rng: np.random.Generator) -> bytes:
    """The file with one to four damages: flipped bits, a cut, a piece moved or doubled, a changed number.

    The checksums of a PNG are mended half of the time, so that the damage reaches the decoder.
    """
    damaged = bytearray(data)
    for _ in range(rng.integers(1, 5)):
        if not damaged:
            break
        at = int(rng.integers(len(damaged)))
        length = int(rng.integers(1, 1 + min(64, len(damaged))))
        match rng.integers(6):
            case 0:
                damaged[at] ^= 1 << int(rng.integers(8))
            case 1:
                damaged[at : at + length] = rng.bytes(len(damaged[at : at + length]))
            case 2:
                del damaged[at : at + (length if rng.random() < 0.7 else len(damaged))]
            case 3:  # a piece of the file, over another or between
                source = int(rng.integers(len(damaged)))
                damaged[at : at + (length if rng.random() < 0.5 else 0)] = damaged[source : source + length]
            case 4:  # lengths and sizes stand near the beginning
                at = int(rng.integers(min(len(damaged), 200)))
                number = int(rng.choice([0, 1, 2, 0x7F, 0xFF, 0x7FFF, 0xFFFF, 0x7FFFFFFF, 0xFFFFFFFF]))
                size, order = int(rng.choice([2, 4])), "<>"[rng.integers(2)]
                packed = struct.pack(order + "I", number) if size == 4 else struct.pack(order + "H", number & 0xFFFF)
                damaged[at : at + size] = packed[: len(damaged) - at]
            case 5:
                damaged[at] = int(rng.choice([0x00, 0xFF]))
    if data.startswith(b"\x89PNG") and rng.random() < 0.5:
        return _with_checksums(bytes(damaged))
    return bytes(damaged)


def _with_checksums(data: bytes) -> bytes:
    parts, at = [data[:8]], 8
    while at + 12 <= len(data):
        end = at + 8 + int.from_bytes(data[at : at + 4])
        if end > len(data) - 4:
            break
        parts.append(data[at:end] + struct.pack(">I", zlib.crc32(data[at + 4 : end])))
        at = end + 4
    return b"".join([*parts, data[at:]])
