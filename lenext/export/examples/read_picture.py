"""A picture file as the exported model wants it, for predict.py. Needs Pillow, and pillow-heif for HEIC."""

from contextlib import suppress
from io import BytesIO
from pathlib import Path

import numpy as np
from PIL import Image, ImageOps

with suppress(ImportError):
    import pillow_heif

    pillow_heif.register_heif_opener(thumbnails=False)


def read_picture(path, short_side):
    """uint8 (1, H, W, 3): RGB, the right way up, on white where it is transparent. short_side: what is needed of it."""
    file = Image.open(BytesIO(Path(path).read_bytes()))  # by path, Pillow garbles some turned TIFF files
    file.draft(None, (short_side, short_side))  # large JPEGs are decoded at a half, a quarter, an eighth
    image = file.copy()
    for other in ("Raw profile type exif", "XML:com.adobe.xmp", "xmp"):  # lenext reads EXIF blocks only
        image.info.pop(other, None)
    ImageOps.exif_transpose(image, in_place=True)
    if image.mode in ("I", "F") or image.mode.startswith("I;"):
        image = from_deep_grey(image, file.format, getattr(file, "tag_v2", {}))
    if image.has_transparency_data:
        image = Image.alpha_composite(Image.new("RGBA", image.size, "white"), image.convert("RGBA"))
    return np.array(image.convert("RGB"))[None]


def from_deep_grey(image, form, tags):
    """8 bits of more. White is what the format says, or the first of 1, 255, 65535 that no value exceeds."""
    values = np.nan_to_num(np.asarray(image, np.float64), posinf=0, neginf=0)
    low, high = values.min(initial=0), values.max(initial=0)
    black, white = 0, 4095 if tags.get(258) == (12,) else 65535
    if image.mode in ("I", "F") and form != "PPM":
        if low < 0 or high > 65535:
            black, white = low, high
        else:
            white = next(white for white in (1, 255, 65535)[image.mode == "I" :] if high <= white)
    grey = np.rint((values - black) * (255 / (white - black))).astype(np.uint8)
    if tags.get(262) == 0:  # zero is white
        grey = 255 - grey
    if isinstance(image.info.get("transparency"), int):
        grey[values == image.info["transparency"]] = 255
    return Image.fromarray(grey)
