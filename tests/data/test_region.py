from __future__ import annotations

import numpy as np
import pytest
from PIL import Image

from lenext.data import region
from lenext.data.cache import pack
from lenext.data.decode import decode
from lenext.data.region import as_regions, decode_region
from lenext.data.samples import Files, Names, Samples
from tests.data.corpus import corpus, encoded, exif
from tests.pictures import photograph

needs_library = pytest.mark.skipif(region.find_library() is None, reason="TurboJPEG 3 is not on this machine")
PHOTO = Image.fromarray(photograph())


@needs_library
@pytest.mark.parametrize("subsampling", ["4:4:4", "4:2:2", "4:2:0"])
@pytest.mark.parametrize("grey", [False, True])
@pytest.mark.parametrize("shrink_to", [1000, 213, 100, 50])
def test_a_region_is_that_part_of_the_whole_picture(subsampling, grey, shrink_to):
    image = PHOTO.convert("L") if grey else PHOTO
    data = encoded(image, "JPEG", quality=92, **({} if grey else {"subsampling": subsampling}))
    whole, regions = decode(data, shrink_to=shrink_to), as_regions(data, shrink_to)
    assert regions is not None
    assert regions.shape == whole.shape
    np.testing.assert_array_equal(np.asarray(regions), whole)
    H, W, _ = whole.shape
    rng = np.random.default_rng(0)
    for _ in range(10):
        top, left = int(rng.integers(H - 8)), int(rng.integers(W - 8))
        part = slice(top, int(rng.integers(top + 1, H + 1))), slice(left, int(rng.integers(left + 1, W + 1)))
        pixels, truth = regions[part].astype(int), whole[part].astype(int)
        assert pixels.shape == truth.shape
        # Colour is interpolated over the border of a region, brightness is not.
        assert abs(pixels - truth)[:, 2:-2].max(initial=0) == 0
        assert abs(pixels - truth).max(initial=0) <= 40


@needs_library
def test_what_cannot_be_decoded_in_part_is_decoded_as_a_whole(tmp_path):
    files = {name: data for name, data in corpus().items() if not name.startswith("bad-")}
    files["progressive.jpg"] = encoded(PHOTO, "JPEG", progressive=True)
    files["turned.jpg"] = encoded(PHOTO, "JPEG", exif=exif(6))
    files["usual.jpg"] = encoded(PHOTO, "JPEG")
    for name, data in files.items():
        (tmp_path / name).write_bytes(data)
    n = len(files)
    samples = Samples(
        store=Files(tmp_path), images=Names(files), labels=np.zeros(n, np.int64), splits=np.zeros(n, np.int8),
        weights=np.ones(n, np.float32), classes=("a",),
    )  # fmt: skip
    pictures = pack(samples, 20, cache=False)
    in_parts = {name for i, name in enumerate(files) if not isinstance(pictures[i], np.ndarray)}
    assert "usual.jpg" in in_parts
    assert not {"progressive.jpg", "turned.jpg"} & in_parts
    for i, data in enumerate(files.values()):
        if i in pictures.reasons:
            continue
        whole = decode(data, shrink_to=20)
        assert pictures[i].shape == whole.shape
        height, width = max(whole.shape[0] // 2, 1), max(whole.shape[1] // 2, 1)
        difference = abs(pictures[i][:height, :width].astype(int) - whole[:height, :width])
        assert difference.max() == 0 or difference[:, :-2].max(initial=0) == 0


def test_without_the_library_pictures_are_decoded_as_a_whole(monkeypatch):
    monkeypatch.setattr(region, "find_library", lambda: None)
    data = encoded(PHOTO, "JPEG")
    assert as_regions(data, 100) is None
    assert decode_region(data, 0, 0, 10, 10) is None
