"""A network in parts: each process holds a share of every weight, for networks that fit no single device.

Fully sharded data parallel (Zhao et al. 2023, https://arxiv.org/abs/2304.11277) as torch's `fully_shard` does it, in
place: the modules stay what they are, their parameters become distributed tensors. Files hold whole tensors, so that a
run may go on with another number of processes.
"""

from __future__ import annotations

from typing import Any

from torch import Tensor, nn
from torch.distributed.tensor import DTensor, distribute_tensor

# A part that is gathered at once holds at most this share of the parameters; smaller ones than the least are not
# worth a message of their own.
LARGEST, LEAST = 1 / 8, 100_000


def shard(network: nn.Module, mesh: Any) -> nn.Module:
    """Shard blocks that are small beside the network, then what is left, over the processes of a Fabric's mesh."""
    from torch.distributed.fsdp import fully_shard

    processes = mesh["data_parallel"]
    total = _size(network)

    def visit(module: nn.Module) -> None:
        for child in module.children():
            if _size(child) > total * LARGEST and next(child.children(), None) is not None:
                visit(child)
            elif _size(child) >= LEAST:
                fully_shard(child, mesh=processes)

    visit(network)
    fully_shard(network, mesh=processes)  # in place
    return network


def whole(tensor: Tensor) -> Tensor:
    """A tensor with all its parts; every process has to ask for it at the same time."""
    return tensor.full_tensor() if isinstance(tensor, DTensor) else tensor


def like(tensor: Tensor, whole: Tensor) -> Tensor:
    """This process's part of a whole tensor, divided as `tensor` is; the tensor itself where that is not divided."""
    if not isinstance(tensor, DTensor):
        return whole
    return distribute_tensor(whole.to(tensor.device), tensor.device_mesh, tensor.placements)


def _size(module: nn.Module) -> int:
    return sum(parameter.numel() for parameter in module.parameters())
