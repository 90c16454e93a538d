"""Exact resume: all that a run needs to go on as if it had not stopped, in safetensors, with a checksum.

No generator state is kept: order, augmentation and dropout are functions of (seed, epoch, index) and (seed, step). So
a checkpoint may be taken between any two steps, and going on from one costs the same wherever in an epoch it lies.
"""

from __future__ import annotations

import dataclasses
import hashlib
import json
import logging
import os
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor, nn

from lenext import runs
from lenext.classifier import save_tensors
from lenext.training.sharding import like, whole

NEWEST, BEFORE = "checkpoint.safetensors", "checkpoint.previous.safetensors"
# After a step without finite gradients the learning rate falls, and rises again with every good one.
BACK_OFF, RECOVER = 0.5, 1.02
log = logging.getLogger("lenext")


@dataclass
class Progress:
    """How far a run has come.

    epoch: finished epochs. batch: steps done in the epoch after them, with `seen` pictures, their losses' sum, right
    answers, skipped steps and seconds so far.
    lr: of the last step. best, best_epoch: the best validation figures and when they were reached. bad_steps: steps in
    a row whose gradients were not finite. backoff: factor of the learning rate because of them. micro_batch: pictures
    at once.
    quick: what a resumed run must know of its quick classifier.
    """

    epoch: int = 0
    batch: int = 0
    seen: int = 0
    loss: float = 0.0
    right: int = 0
    skipped: int = 0
    seconds: float = 0.0
    lr: float = 0.0
    best: dict[str, float] | None = None
    best_epoch: int = 0
    bad_steps: int = 0
    backoff: float = 1.0
    micro_batch: int | None = None
    quick: dict[str, Any] = field(default_factory=dict)

    def add(self, loss: float, right: int, seen: int) -> None:
        """Count a step that was applied; one after bad ones gives a little of the learning rate back."""
        self.loss, self.right, self.seen = self.loss + loss, self.right + right, self.seen + seen
        self.bad_steps, self.backoff = 0, min(self.backoff * RECOVER, 1.0)

    def figures(self) -> dict[str, float]:
        """What the epoch's steps gave on the training pictures as they were shown."""
        n = max(self.seen, 1)
        return {"train_loss": self.loss / n, "train_accuracy": self.right / n}

    def pace(self) -> dict[str, float]:
        """How the epoch went: seconds, images a second, and steps left out, if there were any."""
        figures = {"seconds": round(self.seconds, 3), "images_per_second": round(self.seen / self.seconds, 2)}
        return figures | ({"skipped": self.skipped} if self.skipped else {})

    def note(self) -> str:
        """The epoch so far, for a progress bar."""
        figures, rate = self.figures(), self.seen / max(self.seconds, 1e-9)
        return f"loss {figures['train_loss']:.3f}  accuracy {figures['train_accuracy']:.3f}  {rate:.0f} images/s"

    def end_epoch(self) -> None:
        self.epoch, self.batch = self.epoch + 1, 0
        self.seen, self.loss, self.right, self.skipped, self.seconds = 0, 0.0, 0, 0, 0.0


def state_of(
    model: nn.Module, optimizer: torch.optim.Optimizer, extra: dict[str, dict[str, Tensor]]
) -> tuple[dict[str, Tensor], list[dict[str, Any]]]:
    """(every tensor of a training by name, the optimiser's groups); extra: {part: its tensors}.

    Where weights are divided among processes, each of them has to ask.
    """
    state = optimizer.state_dict()
    tensors = {f"model.{name}": tensor for name, tensor in model.state_dict().items()}
    for index, values in state["state"].items():
        for key, value in values.items():
            if isinstance(value, Tensor):
                tensors[f"optimizer.{index}.{key}"] = value
    for part, values in extra.items():
        tensors |= {f"{part}.{name}": tensor for name, tensor in values.items()}
    return {name: whole(tensor.detach()).cpu().contiguous() for name, tensor in tensors.items()}, state["param_groups"]


def save(run: Path, state: tuple[dict[str, Tensor], list[dict[str, Any]]], progress: Progress) -> None:
    """Write a state (see `state_of`) and `progress` as the newest checkpoint; keep the one before.

    Raises FloatingPointError, and writes nothing, if anything in it is not a finite number.
    """
    tensors, groups = state
    for name, tensor in tensors.items():
        if tensor.is_floating_point() and not torch.isfinite(tensor).all():
            raise FloatingPointError(
                f"the training diverged: {name} is not a number any more. Weights and files from before are whole in "
                f"{run}; train again with a lower --lr"
            )
    metadata = {
        "progress": json.dumps(dataclasses.asdict(progress)),
        "param_groups": json.dumps(groups),
    }
    metadata["digest"] = _digest(metadata, tensors)
    runs.write_atomically(run / NEWEST, lambda file: save_tensors(tensors, file, metadata), before=run / BEFORE)


class Checkpoint:
    """The newest whole checkpoint of a run, read once. Raises ValueError when there is none."""

    def __init__(self, run: Path) -> None:
        self.path, (self.progress, self.groups, self.tensors) = _newest_whole(run)

    def stand_first(self) -> None:
        """Take the place of a newest one that is damaged, which would take this one's when the next is written."""
        if self.path.name == BEFORE:
            os.replace(self.path, self.path.with_name(NEWEST))

    def part(self, name: str) -> dict[str, Tensor]:
        """The tensors that were saved as one part, by their names within it; empty if there was none."""
        return {k.removeprefix(f"{name}."): v for k, v in self.tensors.items() if k.startswith(f"{name}.")}

    def restore(self, model: nn.Module, optimizer: torch.optim.Optimizer | None = None) -> None:
        """Load the weights into the model, and the state of the optimiser."""
        weights, current = self.part("model"), model.state_dict()
        model.load_state_dict({k: like(current[k], v) if k in current else v for k, v in weights.items()})
        if optimizer is None:
            return
        state: dict[int, dict[str, Tensor]] = {}
        for key, tensor in self.part("optimizer").items():
            index, entry = key.split(".", 1)
            state.setdefault(int(index), {})[entry] = tensor
        optimizer.load_state_dict({"state": state, "param_groups": self.groups})
        for parameter, values in optimizer.state.items():
            # The file is contiguous, a channels-last parameter is not, and fused optimisers walk both in memory order.
            for entry, value in values.items():
                if value.shape == parameter.shape:
                    values[entry] = torch.empty_like(parameter, dtype=value.dtype).copy_(like(parameter, value))


def exists(run: Path) -> bool:
    return (run / NEWEST).exists() or (run / BEFORE).exists()


def _newest_whole(run: Path) -> tuple[Path, tuple[Progress, list[dict[str, Any]], dict[str, Tensor]]]:
    """(path, content) of the newest checkpoint that is whole; a damaged one is said and the one before is used."""
    reasons = []
    for name in (NEWEST, BEFORE):
        if (run / name).exists():
            try:
                return run / name, _read(run / name)
            except ValueError as error:
                log.warning("%s; trying the one before", error)
                reasons.append(str(error))
    raise ValueError(
        f"{run} has no checkpoint to go on from ({'; '.join(reasons) or 'none was written yet'}); start a new run"
    )


def _read(path: Path) -> tuple[Progress, list[dict[str, Any]], dict[str, Tensor]]:
    """(progress, the optimiser's groups, every tensor by name). Raises ValueError for a file that is not whole."""
    try:
        with safe_open(path, framework="pt") as file:
            metadata = file.metadata() or {}
            tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
    except (SafetensorError, OSError) as error:
        raise ValueError(f"{path} is damaged or cut off ({error})") from None
    if metadata.pop("digest", None) != _digest(metadata, tensors):
        raise ValueError(f"{path} is damaged: its checksum does not fit its content")
    return Progress(**json.loads(metadata["progress"])), json.loads(metadata["param_groups"]), tensors


def _digest(metadata: dict[str, str], tensors: dict[str, Tensor]) -> str:
    """Of all that a checkpoint says, in its header and in its tensors."""
    digest = hashlib.blake2b(json.dumps(metadata, sort_keys=True).encode(), digest_size=16)
    for name in sorted(tensors):
        tensor = tensors[name]
        digest.update(f"{name} {tensor.dtype} {tuple(tensor.shape)}".encode())
        digest.update(tensor.reshape(-1).view(torch.uint8).numpy().data)
    return digest.hexdigest()
