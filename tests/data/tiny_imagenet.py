"""A small data set in exactly the layout of Tiny-ImageNet-200, made of shapes that can be learned."""

from __future__ import annotations

from pathlib import Path

import numpy as np

from tests.pictures import shape_picture

WNIDS = ("n03126707", "n02012849", "n01443537")
WORDS = "n01443537\tgoldfish, Carassius auratus\nn02012849\tcrane\nn03126707\tcrane\nn99999999\tother, unused\n"


def make_tiny_imagenet(root: Path, *, train: int = 3, val: int = 1) -> Path:
    """train, val: pictures of each of the three classes, 64 x 64 JPEG files; there are as many test pictures as val."""
    rng = np.random.default_rng(0)
    (root / "val/images").mkdir(parents=True)
    (root / "test/images").mkdir(parents=True)
    (root / "wnids.txt").write_text("\n".join(WNIDS) + "\n")
    (root / "words.txt").write_text(WORDS)
    rows = []
    for kind, wnid in enumerate(WNIDS):
        (root / "train" / wnid / "images").mkdir(parents=True)
        (root / "train" / wnid / f"{wnid}_boxes.txt").write_text(f"{wnid}_0.JPEG\t0\t0\t63\t63\n")
        for i in range(train):
            shape_picture(rng, kind, 64).convert("RGB").save(root / "train" / wnid / "images" / f"{wnid}_{i}.JPEG")
        for i in range(val):
            number = kind * val + i
            shape_picture(rng, kind, 64).convert("RGB").save(root / "val/images" / f"val_{number}.JPEG")
            rows.append(f"val_{number}.JPEG\t{wnid}\t0\t32\t44\t62\n")
            shape_picture(rng, kind, 64).convert("RGB").save(root / "test/images" / f"test_{number}.JPEG")
    (root / "val/val_annotations.txt").write_text("".join(rows))
    return root
