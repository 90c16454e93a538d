"""The quick classifier: frozen pretrained features, extracted once, and a linear layer on them.

This needs one pass of the network over the pictures (a few times over, mirrored and turned, if that helps) on the
fastest inference backend of the machine, and some seconds of logistic regression. It is the first classifier of a
run, good enough to use, and where fine-tuning starts.
"""

from __future__ import annotations

import dataclasses
import logging
import time
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from lenext import runs, terminal
from lenext.classifier import Classifier
from lenext.config import TrainConfig
from lenext.data.cache import PackedImages
from lenext.data.sources import Samples
from lenext.data.transforms import dihedral, eval_transform
from lenext.inference import fastest_backend
from lenext.models.pooled import PooledNetwork

log = logging.getLogger("lenext")


def metrics_of(classifier: Classifier) -> dict[str, float] | None:
    """Validation figures of the classifier so far, None before the first."""
    return classifier.about.get("validation")
