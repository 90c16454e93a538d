"""Fine-tuning the upper part of a network on stored activations of the lower, frozen part.

The lower part holds most of a network's arithmetic and the least of what is particular to a task. It runs once over
every picture and view, on the fastest inference backend; what it gives at the boundary is kept in memory in half
precision. An epoch then costs a fraction of one through the whole network.
"""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
import torch
from torch import Tensor, nn

from lenext.classifier import as_logits
from lenext.config import TrainConfig
from lenext.data.loader import derive_seed, epoch_order
from lenext.evaluation.calibration import fit_temperature
from lenext.inference.memory import in_parts
from lenext.models.pooled import CombinedNetwork, combine
from lenext.models.weights import head_names
from lenext.training.quick import ANSWER_VIEWS, Extractor
from lenext.training.task import Layout, Task


class Upper(nn.Module):
    """The tuned part: the activation at the boundary -> (B, num_classes). It shares its parameters with the network.

    Batch norms keep the statistics they were pretrained with: small batches of one task would only blur them.
    What the head does before its last layer (dropout, in some networks) stays in evaluation mode, as the network is.
    """

    head_name = "head"

    def __init__(self, network: nn.Module, boundary: int) -> None:
        super().__init__()
        stages: list[nn.Module] = network.stages()  # type: ignore[operator]
        self.stages = nn.ModuleList(stages[boundary:])
        heads = [network.get_submodule(name) for name in head_names(network)]
        self.head = nn.ModuleList(heads)
        # What else the head is made of: hidden layers, a norm after pooling.
        known = {id(p) for module in (*stages, *heads) for p in module.parameters()}
        owners = [m for m in network.modules() if any(id(p) not in known for p in m.parameters(recurse=False))]
        self.before_head = nn.ModuleList(owners)
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

    views: a tensor (N, ...) of float16 for each view. In order, every picture comes once, with the
    quick classifier's logits (N, K): ((V, B, ...), (B, K)), V the views that answers are made with.
    """

    def __init__(self, views: list[Tensor], quick_logits: Tensor, *, batch_size: int, seed: int) -> None:
        self.views, self.quick_logits = views, quick_logits
        self.n, self.batch_size, self.seed = len(views[0]), batch_size, seed

    def __len__(self) -> int:
        """Batches in a training epoch, all of nearly the same size."""
        return max(round(self.n / self.batch_size), 1)

    def epoch(self, epoch: int, start: int = 0) -> Iterator[tuple[Tensor, Tensor]]:
        drawn = np.random.default_rng(derive_seed("views", self.seed, epoch)).integers(len(self.views), size=self.n)
        for chunk in np.array_split(epoch_order(self.n, self.seed, epoch), len(self))[start:]:
            yield torch.stack([self.views[drawn[i]][i] for i in chunk]), torch.from_numpy(chunk)

    def in_order(self) -> Iterator[tuple[tuple[Tensor, Tensor], Tensor]]:
        for start in range(0, self.n, self.batch_size):
            rows = slice(start, min(start + self.batch_size, self.n))
            views = torch.stack([view[rows] for view in self.views[:ANSWER_VIEWS]])
            yield (views, self.quick_logits[rows]), torch.arange(self.n)[rows]


def stored_task(
    config: TrainConfig, network: CombinedNetwork, extractor: Extractor, labels: dict[str, Tensor], views: int
) -> Task:
    """Training of the upper part on what the extractor stored: the training pictures first, then the validation ones.

    The quick classifier's confidence is set by the validation pictures; validation figures are those of both together.
    """
    assert config.batch_size is not None
    n_train, batch_size, seed = len(labels["train"]), config.batch_size, config.seed
    activations = [extractor.activations(view) for view in range(views)]
    answers = range(min(views, ANSWER_VIEWS))
    with torch.no_grad():
        quick = torch.stack([network.quick.classify(extractor.features(view)) for view in answers]).mean(0)
    network.quick_scale.fill_(1 / fit_temperature(as_logits(quick[n_train:]).numpy(), labels["val"].numpy()))
    upper = Upper(network.tuned, extractor.boundary)
    learned = {id(parameter) for parameter in network.parameters() if parameter.requires_grad}
    network.requires_grad_(False)
    for parameter in upper.parameters():
        parameter.requires_grad_(id(parameter) in learned)  # a fixed table stays as it is
    layout, answer = Layout(), in_parts(upper)

    def prepare(x: Tensor, epoch: int = 0) -> Tensor:
        return layout.put(x.to(layout.device, torch.float32, non_blocking=True))

    def predict(inputs: tuple[Tensor, Tensor]) -> Tensor:
        tuned = torch.stack([answer(prepare(view)) for view in inputs[0]]).mean(0)
        return combine(inputs[1].to(tuned.device), tuned, network.quick_scale)

    def stored(rows: slice) -> StoredViews:
        return StoredViews([view[rows] for view in activations], quick[rows], batch_size=batch_size, seed=seed)

    return Task(
        module=upper,
        train=stored(slice(0, n_train)),
        val=stored(slice(n_train, None)),
        val_pictures=len(labels["val"]) * len(answers),
        prepare=prepare,
        predict=predict,
        place=lambda **where: layout.place(network, **where),
    )
