"""Losses: outputs, labels and weights of the samples -> one number."""

from __future__ import annotations

import torch.nn.functional as F
from torch import Tensor


def cross_entropy(outputs: Tensor, labels: Tensor, weights: Tensor, label_smoothing: float = 0.0) -> Tensor:
    """Weighted mean of the softmax cross-entropy. outputs (B, K), labels (B,) int64 or shares (B, K), weights (B,)."""
    losses = F.cross_entropy(outputs, labels, reduction="none", label_smoothing=label_smoothing)
    return (losses * weights).sum() / weights.sum().clamp_min(1e-12)


def binary_cross_entropy(outputs: Tensor, labels: Tensor, weights: Tensor, label_smoothing: float = 0.0) -> Tensor:
    """Weighted mean of the sigmoid cross-entropy of one output. outputs (B, 1), labels (B,) or shares (B, 2)."""
    labels = labels[:, 1] if labels.ndim == 2 else labels
    targets = labels.to(outputs.dtype) * (1 - label_smoothing) + label_smoothing / 2
    losses = F.binary_cross_entropy_with_logits(outputs[:, 0], targets, reduction="none")
    return (losses * weights).sum() / weights.sum().clamp_min(1e-12)


def compute_loss(loss: str, outputs: Tensor, labels: Tensor, weights: Tensor, label_smoothing: float) -> Tensor:
    """The loss of a configuration's name. Always in float32, whatever the network computed in."""
    outputs = outputs.float()
    if loss == "bce":
        return binary_cross_entropy(outputs, labels, weights, label_smoothing)
    return cross_entropy(outputs, labels, weights, label_smoothing)


def correct(outputs: Tensor, labels: Tensor) -> Tensor:
    """How many winners are right, a scalar tensor. outputs (B, K), or (B, 1) for the sigmoid of two classes."""
    winners = (outputs[:, 0] > 0).long() if outputs.shape[1] == 1 else outputs.argmax(1)
    return (winners == labels).sum()


def num_outputs(loss: str, num_classes: int) -> int:
    """Outputs of the network's last layer."""
    if loss != "bce":
        return num_classes
    if num_classes != 2:
        raise ValueError(f"loss bce is for two classes, the data has {num_classes}; use --loss cross_entropy")
    return 1
