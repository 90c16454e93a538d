"""Pictures that a network was trained on, by whose activations an int8 network sets its scales."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from torch import Tensor

from lenext.data import dataset
from lenext.data.dataset import DataOptions
from lenext.data.reading import read_batches
from lenext.data.transforms import eval_transform
from lenext.preprocess import Preprocess

MOST = 300


def training_pictures(about: dict[str, Any], preprocess: Preprocess, *, most: int = MOST) -> Tensor:
    """uint8 (N, 3, S, S): pictures of the training split, evenly over it, as the network sees them; at most `most`.

    about: what a classifier knows of its data. Raises ValueError where that is not to be found or none can be read.
    """
    if "data_options" not in about:
        raise ValueError("int8 sets its scales by pictures of the training, and this classifier does not name any")
    samples = dataset.read(about["data"], DataOptions(**about["data_options"])).samples
    rows = np.flatnonzero(samples.in_split("train"))
    rows = rows[np.linspace(0, len(rows) - 1, min(most, len(rows))).astype(int)]
    transform = eval_transform(preprocess)

    def read(row: int) -> Tensor:
        return transform(samples.decode(row, shrink_to=preprocess.resize))

    pictures = [x for batch in read_batches(rows.tolist(), read, 32) for _, x in batch if isinstance(x, Tensor)]
    if not pictures:
        raise ValueError(f"none of the pictures of {about['data']} can be read any more")
    return torch.stack(pictures)
