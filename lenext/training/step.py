"""One optimiser step: micro-batches forward and backward, the gradients checked, clipped and applied.

Nothing that is not a number gets into the weights: the gradients of a whole step are known to be finite before the
optimiser sees them, and what the forward pass wrote into buffers (batch-norm statistics) is taken back if they are not.
"""

from __future__ import annotations

import logging
import math
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from lenext.data.loader import derive_seed
from lenext.inference.memory import is_out_of_memory
from lenext.training.checkpoint import BACK_OFF, Progress
from lenext.training.distillation import Goal
from lenext.training.objective import correct
from lenext.training.sharding import whole
from lenext.training.sharpness import Sharpness

log = logging.getLogger("lenext")

# Steps in a row without finite gradients that end a run.
MOST_BAD_STEPS = 10


class Outcome(NamedTuple):
    """What a step gave, over all processes: the sum of the losses, right answers, pictures.

    finite: whether the gradients can be applied. stop, due: whether some process was asked to end or has to save.
    """

    loss: float
    right: int
    seen: int
    finite: bool
    stop: bool
    due: bool


class Step:
    """Gradients of a batch, and their application.

    module: what the pictures go through, as Fabric has set it up. network: what holds the buffers.
    micro_batch: pictures that go through at once; it halves where the memory ends, and the step begins again. Several
    processes wait for each other's gradients half way through a step, so there the step ends the run.
    bfloat16: autocast. clip_norm: 0 for none. sam: radius of sharpness-aware minimisation, 0 for none. several: whether
    pictures have several labels.
    """

    def __init__(
        self,
        fabric: Any,
        module: Any,
        network: nn.Module,
        optimizer: Any,
        goal: Goal,
        *,
        micro_batch: int,
        bfloat16: bool,
        clip_norm: float,
        sam: float,
        several: bool,
    ) -> None:
        self.fabric, self.module, self.optimizer, self.goal = fabric, module, optimizer, goal
        self.micro_batch, self.bfloat16, self.clip_norm = micro_batch, bfloat16, clip_norm
        self.sharpness = Sharpness(network.parameters(), sam) if sam else None
        self.several = several
        self.parameters = list(network.parameters())
        self.buffers = list(network.buffers())
        self._kept = [buffer.clone() for buffer in self.buffers]
        self._pending = False

    def compute(
        self,
        x: Tensor,
        targets: Tensor,
        labels: Tensor,
        weights: Tensor,
        *,
        seed: int,
        stop: bool = False,
        due: bool = False,
    ) -> Outcome:
        """Forward and backward of a batch; weights stay as they are, if need be with the help of `undo`.

        x: (B, ...) input. targets: (B,) or (B, K), what is learned. labels: what the pictures show, for the accuracy.
        weights: (B,) of the samples in the loss; those of weight 0 are not counted either. seed: of dropout. stop, due:
        what this process says, see Outcome.

        Raises MemoryError, with the mend, where the step does not fit the memory.
        """
        mine = weights.sum()
        share = self.fabric.all_reduce(mine, reduce_op="mean") if self.fabric.world_size > 1 else mine
        weights = weights / share.clamp_min(1e-12)
        while True:
            self._keep()
            try:
                figures = self._gradients(x, targets, labels, weights, seed)
                if self.sharpness is not None:
                    statistics = [buffer.clone() for buffer in self.buffers]
                    self.sharpness.climb()
                    self._gradients(x, targets, labels, weights, seed)
                    self.sharpness.restore()
                    for buffer, value in zip(self.buffers, statistics):  # those of the first pass count
                        buffer.copy_(value)
                break
            except (torch.OutOfMemoryError, RuntimeError) as error:
                if not is_out_of_memory(error):
                    raise
                if self.micro_batch == 1:
                    raise MemoryError(
                        "out of memory with a single picture at once: --image-size N makes pictures smaller, "
                        "--model NAME takes a smaller network"
                    ) from None
                if self.fabric.world_size > 1:
                    raise MemoryError(
                        f"out of memory on device {self.fabric.global_rank} with {self.micro_batch} pictures at once: "
                        f"train with --micro-batch {math.ceil(self.micro_batch / 2)}, the batch stays what it is"
                    ) from None
                self.micro_batch = math.ceil(self.micro_batch / 2)
                self.undo()
                if x.device.type == "cuda":
                    torch.cuda.empty_cache()
                log.warning("out of memory: %d pictures at once from here on, the batch stays", self.micro_batch)
        return self._judge(figures, (stop, due))

    def apply(self, lr: float) -> None:
        """Move the weights along the gradients at a learning rate."""
        for group in self.optimizer.param_groups:
            group["lr"] = lr * group["lr_scale"]
        self.optimizer.step()
        self.optimizer.zero_grad(set_to_none=True)
        self._pending = False

    def undo(self) -> None:
        """Forget the gradients and what the passes wrote into buffers and weights, if they were not applied."""
        if self._pending:
            if self.sharpness is not None:
                self.sharpness.restore()
            self._put_back()
            self.optimizer.zero_grad(set_to_none=True)
            self._pending = False

    def _gradients(self, x: Tensor, targets: Tensor, labels: Tensor, weights: Tensor, seed: int) -> Tensor:
        """(3,): the sum of the losses, right answers, pictures; the gradients are added up in the parameters."""
        figures = torch.zeros(3, dtype=torch.float64, device=x.device)
        chunks = range(0, len(x), self.micro_batch)
        for number, start in enumerate(chunks):
            part = slice(start, start + self.micro_batch)
            torch.manual_seed(derive_seed(seed, number))
            last = number + 1 == len(chunks)
            with self.fabric.no_backward_sync(self.module, enabled=not last):
                with torch.autocast(x.device.type, torch.bfloat16, enabled=self.bfloat16):
                    outputs = self.module(x[part])
                    losses = self.goal(outputs, targets[part], x[part])
                self.fabric.backward((losses * weights[part]).sum())
            answers, counts = self.goal.answers(outputs).detach(), weights[part] > 0
            right = correct(answers, labels[part], self.several)
            figures += torch.stack([(losses.detach() * counts).sum(), (right & counts).sum(), counts.sum()])
        return figures

    def _judge(self, figures: Tensor, mine: tuple[float, ...]) -> Outcome:
        """Clip, and read everything that the host has to know in one go."""
        gradients = [p.grad for p in self.parameters if p.grad is not None]
        norm = whole(nn.utils.get_total_norm(gradients, foreach=True)) if gradients else torch.zeros(())
        if self.clip_norm:
            nn.utils.clip_grads_with_norm_(self.parameters, self.clip_norm, norm, foreach=True)
        sound = torch.isfinite(norm) & torch.isfinite(figures[0])
        row = torch.cat([figures, figures.new_tensor(mine), (~sound).to(figures)[None]])
        if self.fabric.world_size > 1:
            row = self.fabric.all_reduce(row, reduce_op="sum")
        loss, right, seen, stop, due, unsound = row.tolist()
        return Outcome(loss, round(right), round(seen), not unsound, bool(stop), bool(due))

    def _keep(self) -> None:
        if self.buffers:
            torch._foreach_copy_(self._kept, self.buffers)
        self._pending = True

    def _put_back(self) -> None:
        if self.buffers:
            torch._foreach_copy_(self.buffers, self._kept)


def endure(progress: Progress, where: str, run: Path) -> None:
    """Count a step that could not be applied, and back off; FloatingPointError after too many of them in a row."""
    progress.bad_steps, progress.skipped = progress.bad_steps + 1, progress.skipped + 1
    progress.backoff *= BACK_OFF
    if progress.bad_steps >= MOST_BAD_STEPS:
        raise FloatingPointError(
            f"the loss is not a number at {where}, nor at {progress.bad_steps - 1} steps before it: the training "
            f"diverged. Weights and files from before are whole in {run}; train again with a lower --lr"
        )
    log.warning("the loss or its gradient is not a number at %s: left out, and the rate halved", where)
