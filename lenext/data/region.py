"""Decode only the part of a JPEG that a random crop keeps, with TurboJPEG 3 where this machine has that library.

The entropy code of a JPEG must be read from its beginning, but the transforms and colours of what lies outside the crop
need not be computed, nor what lies below it be read: a quarter of the time of random crops. Only training uses it.
"""

from __future__ import annotations

import contextlib
import ctypes
import ctypes.util
import importlib.metadata
import threading
from functools import cache

import numpy as np

from lenext.data.decode import JpegHeader, UnreadableImage, decode, jpeg_factor, jpeg_header

# Numbers of turbojpeg.h, the same in every release since 3.0.
_DECOMPRESS, _RGB, _SUBSAMPLING = 1, 0, 4
_BLOCK_WIDTH = {0: 8, 1: 16, 2: 16, 3: 8, 4: 8, 5: 32, 6: 8}  # pixels, by subsampling


class _Region(ctypes.Structure):
    _fields_ = [("x", ctypes.c_int), ("y", ctypes.c_int), ("w", ctypes.c_int), ("h", ctypes.c_int)]


class _Scale(ctypes.Structure):
    _fields_ = [("num", ctypes.c_int), ("denom", ctypes.c_int)]


_local = threading.local()


class JpegRegions:
    """A JPEG that looks like pixels (H, W, 3) to who crops it, and of which the crop alone is decoded.

    shrink_to: as `decode` takes it; H and W are those of the smaller picture.
    """

    def __init__(self, data: bytes, header: JpegHeader, shrink_to: int) -> None:
        self.data, self.shrink_to = data, shrink_to
        self.factor = jpeg_factor(header, shrink_to)
        self.shape = (-(-header.height // self.factor), -(-header.width // self.factor), 3)

    def __getitem__(self, part: tuple[slice, slice]) -> np.ndarray:
        (top, bottom, _), (left, right, _) = (s.indices(side) for s, side in zip(part, self.shape))
        pixels = decode_region(self.data, top, left, bottom - top, right - left, self.factor)
        return decode(self.data, shrink_to=self.shrink_to)[part] if pixels is None else pixels

    def __array__(self, dtype: object = None, copy: bool | None = None) -> np.ndarray:
        return decode(self.data, shrink_to=self.shrink_to)


def as_regions(data: bytes, shrink_to: int) -> JpegRegions | None:
    """The picture, if parts of it can be decoded; None for other formats and for JPEG that is turned or progressive."""
    if find_library() is None or not data.startswith(b"\xff\xd8"):
        return None
    try:
        header = jpeg_header(data)
    except (UnreadableImage, IndexError):  # the decoder gives the reason
        return None
    usual = header.components in (1, 3) and not header.progressive and header.orientation == 1
    return JpegRegions(data, header, shrink_to) if usual else None


def decode_region(data: bytes, top: int, left: int, height: int, width: int, factor: int = 1) -> np.ndarray | None:
    """uint8 (height, width, 3): a rectangle of a JPEG that is decoded at 1 / factor of its size, factor 1, 2, 4 or 8.

    At its left and right border a region may differ by a few levels from the same part of the whole picture, where
    colour is interpolated. None where the library is missing or refuses the picture.
    """
    library = find_library()
    if library is None:
        return None
    if not hasattr(_local, "handle"):
        _local.handle = ctypes.c_void_p(library.tj3Init(_DECOMPRESS))
    handle, size = _local.handle, ctypes.c_size_t(len(data))
    if library.tj3DecompressHeader(handle, data, size):
        return None
    block = _BLOCK_WIDTH.get(library.tj3Get(handle, _SUBSAMPLING))
    if block is None or library.tj3SetScalingFactor(handle, _Scale(1, factor)):
        return None
    begin = left - left % max(block // factor, 1)  # a region begins at a block
    pixels = np.empty((height, left + width - begin, 3), np.uint8)
    if library.tj3SetCroppingRegion(handle, _Region(begin, top, pixels.shape[1], height)):
        return None
    if library.tj3Decompress8(handle, data, size, pixels.ctypes.data_as(ctypes.c_void_p), 0, _RGB):
        return None
    return pixels[:, left - begin :]


@cache
def find_library() -> ctypes.CDLL | None:
    """TurboJPEG 3 of the system or of the package `turbojpeg`; None where there is neither."""
    names = [ctypes.util.find_library("turbojpeg")]
    with contextlib.suppress(importlib.metadata.PackageNotFoundError):
        files = importlib.metadata.files("turbojpeg") or []
        names += [str(file.locate()) for file in files if "libturbojpeg" in file.name]
    for name in filter(None, names):
        with contextlib.suppress(OSError, AttributeError):  # cannot be loaded, or is of a release before 3
            library = ctypes.CDLL(name)
            library.tj3SetCroppingRegion  # noqa: B018
            library.tj3Init.restype = ctypes.c_void_p
            return library
    return None
