"""Fine-tuning the upper part of a network on stored activations of the lower, frozen part.

The lower part holds most of a network's arithmetic and the least of what is particular to a task. It runs once over
every picture and view, on the fastest inference backend; what it gives at the boundary is kept in memory in half
precision. An epoch then costs a fraction of one through the whole network.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from lenext.classifier import Classifier
from lenext.config import TrainConfig
from lenext.data.loader import derive_seed, epoch_order
from lenext.training.prepare import Task
from lenext.training.quick import Extractor


class Upper(nn.Module):
    """The tuned part: the activation at the boundary -> (B, num_classes). It shares its parameters with the network.

    Batch norms keep the statistics they were pretrained with: small batches of one task would only blur them.
    """

    def __init__(self, network: nn.Module, boundary: int) -> None:
        super().__init__()
        self.stages = nn.ModuleList(network.stages()[boundary:])  # type: ignore[operator]
        self.head = network.get_submodule(network.head_name)  # type: ignore[arg-type]
        self._forward_head = network.forward_head

    def forward(self, x: Tensor) -> Tensor:
        for stage in self.stages:
            x = stage(x)
        return self._forward_head(x)  # type: ignore[operator]

    def train(self, mode: bool = True) -> Upper:
        super().train(mode)
        for module in self.modules():
            if isinstance(module, nn.modules.batchnorm._BatchNorm):
                module.eval()
        return self


class StoredViews:
    """Batches (activation, index) of stored pictures, each in a view that is drawn from (seed, epoch, index).

    views: a tensor (N, ...) of float16 for each view. In order, the batches are (V, B, ...): every picture once, in
    all its views.
    """

    def __init__(self, views: list[Tensor], *, batch_size: int, seed: int) -> None:
        self.views, self.batch_size, self.seed = views, batch_size, seed
        self.n = len(views[0])

    def __len__(self) -> int:
        """Batches in a training epoch, all of nearly the same size."""
        return max(round(self.n / self.batch_size), 1)

    def epoch(self, epoch: int) -> Iterator[tuple[Tensor, Tensor]]:
        drawn = np.random.default_rng(derive_seed("views", self.seed, epoch)).integers(len(self.views), size=self.n)
        for chunk in np.array_split(epoch_order(self.n, self.seed, epoch), len(self)):
            yield torch.stack([self.views[drawn[i]][i] for i in chunk]), torch.from_numpy(chunk)

    def in_order(self) -> Iterator[tuple[Tensor, Tensor]]:
        for start in range(0, self.n, self.batch_size):
            rows = slice(start, min(start + self.batch_size, self.n))
            yield torch.stack([view[rows] for view in self.views]), torch.arange(self.n)[rows]


def stored_task(config: TrainConfig, classifier: Classifier, extractor: Extractor, n_train: int) -> Task:
    """Training of the upper part on what the extractor stored: its first `n_train` pictures train, the rest validate."""
    assert config.batch_size is not None
    network, batch_size = classifier.model, config.batch_size
    views = [extractor.activations(view) for view in range(classifier.views)]
    upper = Upper(network, extractor.boundary)
    network.requires_grad_(False)
    upper.requires_grad_(True)
    layout: dict[str, Any] = {"format": torch.contiguous_format, "device": torch.device("cpu")}

    def use_layout(*, channels_last: bool, device: torch.device) -> None:
        layout.update(format=torch.channels_last if channels_last else torch.contiguous_format, device=device)
        network.to(device=device, memory_format=layout["format"])  # type: ignore[call-overload]

    def prepare(x: Tensor) -> Tensor:
        x = x.to(layout["device"], torch.float32, non_blocking=True)
        return x.contiguous(memory_format=layout["format"]) if x.ndim == 4 else x

    return Task(
        module=upper,
        train=StoredViews([view[:n_train] for view in views], batch_size=batch_size, seed=config.seed),
        val=StoredViews([view[n_train:] for view in views], batch_size=batch_size, seed=config.seed),
        val_pictures=(extractor.n - n_train) * classifier.views,
        prepare=prepare,
        predict=lambda module, x: torch.stack([module(prepare(view)) for view in x]).mean(0),
        use_layout=use_layout,
    )
