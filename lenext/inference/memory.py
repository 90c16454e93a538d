"""What to do where the memory ends: answer in smaller parts."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor


def is_out_of_memory(error: BaseException) -> bool:
    """Whether an allocation failed, on a GPU or on the CPU, where torch says so only in words."""
    return isinstance(error, torch.OutOfMemoryError) or "can't allocate memory" in str(error)


def in_parts(network: Callable[[Tensor], Tensor]) -> Callable[[Tensor], Tensor]:
    """The same function of a batch, but where the memory ends each half goes by itself, and so on to single pictures.

    Of a network that answers: the outputs of a picture do not depend on the others.
    """

    def answer(x: Tensor) -> Tensor:
        try:
            return network(x)
        except RuntimeError as error:
            if not is_out_of_memory(error) or len(x) == 1:
                raise
        if torch.cuda.is_available():
            torch.cuda.empty_cache()
        half = len(x) // 2
        return torch.cat([answer(x[:half]), answer(x[half:])])

    return answer
