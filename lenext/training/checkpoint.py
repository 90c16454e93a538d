"""Exact resume: all that a run needs to go on as if it had not stopped, in safetensors, with a checksum.

No generator state is kept: order, augmentation and dropout are functions of (seed, epoch, index) and (seed, step).
"""

from __future__ import annotations

import hashlib
import json
import logging
import os
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor, nn

from lenext import runs
from lenext.classifier import save_tensors

NEWEST, BEFORE = "checkpoint.safetensors", "checkpoint.previous.safetensors"
log = logging.getLogger("lenext")


def save(run: Path, model: nn.Module, optimizer: torch.optim.Optimizer, progress: dict[str, Any]) -> None:
    """Write weights, optimiser and `progress` (numbers and texts) as the newest checkpoint; keep the one before."""
    state = optimizer.state_dict()
    tensors = {f"model.{name}": tensor for name, tensor in model.state_dict().items()}
    for index, values in state["state"].items():
        for key, value in values.items():
            if isinstance(value, Tensor):
                tensors[f"optimizer.{index}.{key}"] = value
    tensors = {name: tensor.detach().cpu().contiguous() for name, tensor in tensors.items()}
    metadata = {
        "progress": json.dumps(progress),
        "param_groups": json.dumps(state["param_groups"]),
        "digest": _digest(tensors),
    }

    def replace(file: Path) -> None:
        save_tensors(tensors, file, metadata)
        if (run / NEWEST).exists():
            os.replace(run / NEWEST, run / BEFORE)

    runs.write_atomically(run / NEWEST, replace)


def restore(run: Path, model: nn.Module, optimizer: torch.optim.Optimizer | None = None) -> None:
    """Load the newest whole checkpoint of a run into model and optimiser. Raises ValueError when there is none."""
    metadata, tensors = _newest_whole(run)
    model.load_state_dict({k.removeprefix("model."): v for k, v in tensors.items() if k.startswith("model.")})
    if optimizer is None:
        return
    state: dict[int, dict[str, Tensor]] = {}
    for key, tensor in tensors.items():
        if key.startswith("optimizer."):
            _, index, field = key.split(".", 2)
            state.setdefault(int(index), {})[field] = tensor
    optimizer.load_state_dict({"state": state, "param_groups": json.loads(metadata["param_groups"])})
    for parameter, values in optimizer.state.items():
        # The file is contiguous, a channels-last parameter is not, and fused optimisers walk both in memory order.
        for field, value in values.items():
            if value.shape == parameter.shape:
                values[field] = torch.empty_like(parameter, dtype=value.dtype).copy_(value)


def read_progress(run: Path) -> dict[str, Any]:
    """What `save` was given, from the newest whole checkpoint."""
    return json.loads(_newest_whole(run)[0]["progress"])


def _newest_whole(run: Path) -> tuple[dict[str, str], dict[str, Tensor]]:
    """(metadata, tensors) of the newest checkpoint that is whole; a damaged one is said and the one before is used."""
    reasons = []
    for name in (NEWEST, BEFORE):
        if (run / name).exists():
            try:
                return _read(run / name)
            except ValueError as error:
                log.warning("%s; trying the one before", error)
                reasons.append(str(error))
    raise ValueError(
        f"{run} has no checkpoint to go on from ({'; '.join(reasons) or 'none was written yet'}); start a new run"
    )


def exists(run: Path) -> bool:
    return (run / NEWEST).exists() or (run / BEFORE).exists()


def _read(path: Path) -> tuple[dict[str, str], dict[str, Tensor]]:
    try:
        with safe_open(path, framework="pt") as file:
            metadata, tensors = file.metadata(), {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
    except (SafetensorError, OSError) as error:
        raise ValueError(f"{path} is damaged or cut off ({error})") from None
    if metadata.get("digest") != _digest(tensors):
        raise ValueError(f"{path} is damaged: its checksum does not fit its content")
    return metadata, tensors


def _digest(tensors: dict[str, Tensor]) -> str:
    digest = hashlib.blake2b(digest_size=16)
    for name in sorted(tensors):
        digest.update(name.encode())
        digest.update(tensors[name].reshape(-1).view(torch.uint8).numpy().data)
    return digest.hexdigest()
