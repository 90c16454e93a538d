"""Distillation: a network learns from the labels and from the answers of a teacher.

Soft: the teacher's probabilities, softened by a temperature (Hinton, Vinyals, Dean: "Distilling the knowledge in a
neural network", 2015, https://arxiv.org/abs/1503.02531). Hard: its winning class (Touvron et al.: "Training
data-efficient image transformers & distillation through attention", 2020, https://arxiv.org/abs/2012.12877), which
also says what the network needs for it: a distillation token, whose head learns from the teacher while the class head
learns from the labels. A network without one learns both with its only head.

The teacher sees exactly what the student sees, crops, mixtures and all, in its own normalisation and size. Its classes
are found by name, so it may know more of them and in any order.

Deviation: Touvron et al. divide the soft loss by the number of classes in their code; here, as Hinton et al. write it,
it is a sum over them. Of a student with a sigmoid for each class or label, every sigmoid learns the teacher's
probability of its own, and the loss is the mean over them, as is that of the labels.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from lenext.classifier import Classifier, as_logits
from lenext.config import DistillationKind
from lenext.preprocess import Preprocess
from lenext.training.objective import Objective

Outputs = Tensor | tuple[Tensor, Tensor]


class Distillation(nn.Module):
    """An objective, and a teacher beside it. Called as `Objective` is.

    teacher: is used in evaluation mode and never trained; it moves with `.to(device)`, but its weights are neither
        parameters nor state of this module.
    classes: names of the student's classes, in the order of its outputs. preprocess: what its input went through.
    weight: share of the loss that the teacher has. temperature: divides the logits of both where kind is "soft".

    Raises ValueError where the teacher lacks a class, or one of the two gives several labels and the other one.
    """

    index: Tensor
    scale: Tensor
    offset: Tensor

    def __init__(
        self,
        objective: Objective,
        teacher: Classifier,
        *,
        classes: tuple[str, ...],
        preprocess: Preprocess,
        kind: DistillationKind,
        weight: float,
        temperature: float,
    ) -> None:
        super().__init__()
        if objective.several != (teacher.task == "multi-label"):
            gives, have = ("one label", "several") if objective.several else ("several labels", "one")
            raise ValueError(
                f"the teacher gives a picture {gives}, and these pictures have {have}; take a teacher that was trained "
                "on such pictures, or leave --teacher out"
            )
        # Classifier is no module: its network is not registered here, and no optimiser or checkpoint comes upon it.
        self.objective, self.teacher = objective, teacher
        self.kind, self.weight, self.temperature = kind, weight, temperature
        teacher.model.eval().requires_grad_(False).to(memory_format=torch.channels_last)
        self.register_buffer("index", torch.tensor(_places(classes, teacher.classes)), persistent=False)
        mean, std = torch.tensor(preprocess.mean).view(3, 1, 1), torch.tensor(preprocess.std).view(3, 1, 1)
        its_mean = torch.tensor(teacher.preprocess.mean).view(3, 1, 1)
        its_std = torch.tensor(teacher.preprocess.std).view(3, 1, 1)
        self.register_buffer("scale", std / its_std, persistent=False)
        self.register_buffer("offset", (mean - its_mean) / its_std, persistent=False)

    def forward(self, outputs: Outputs, targets: Tensor, inputs: Tensor) -> Tensor:
        """Losses (B,), float32.

        outputs: (B, O), or those of the class head and of the distillation head. targets: as in `Objective`.
        inputs: (B, 3, H, W), what the student saw, normalised. Called under autocast, the teacher computes in it.
        """
        from_labels, from_teacher = outputs if isinstance(outputs, tuple) else (outputs, outputs)
        losses = self.objective(from_labels, targets)
        return (1 - self.weight) * losses + self.weight * self.divergence(from_teacher, self.teach(inputs))

    def answers(self, outputs: Outputs) -> Tensor:
        """The logits (B, O) to answer with: the mean of both heads."""
        return (outputs[0] + outputs[1]) / 2 if isinstance(outputs, tuple) else outputs

    @torch.no_grad()
    def teach(self, inputs: Tensor) -> Tensor:
        """The student's input (B, 3, H, W) -> the teacher's logits (B, K), float32, for the student's classes."""
        x = inputs * self.scale + self.offset
        preprocess = self.teacher.preprocess
        size = (preprocess.image_size, preprocess.image_size)
        if x.shape[-2:] != size:
            x = F.interpolate(x, size, mode=preprocess.interpolation, antialias=True)
        outputs = self.teacher.model(x).float()
        logits = outputs if self.teacher.task == "multi-label" else as_logits(outputs)
        return logits[:, self.index] / self.teacher.temperature

    def divergence(self, outputs: Tensor, teacher: Tensor) -> Tensor:
        """(B,) Kullback-Leibler divergence of the student's outputs (B, O) from the teacher's logits (B, K).

        Softened, it is multiplied by the temperature squared, which keeps the size of its gradients; from a winner, it
        is the cross-entropy.
        """
        several, hard = self.objective.several, self.kind == "hard"
        each = several or (self.objective.sigmoid and outputs.shape[1] > 1)  # a decision a class, not one among all
        T = 1.0 if hard else self.temperature
        if several:
            shares = (teacher > 0).float() if hard else torch.sigmoid(teacher / T)
        elif hard:
            shares = F.one_hot(teacher.argmax(1), teacher.shape[1]).float()
        else:
            shares = torch.sigmoid(torch.logit(teacher.softmax(1)) / T) if each else (teacher / T).softmax(1)
        logits = outputs.float() / T
        if not each:
            return T**2 * F.kl_div(as_logits(logits).log_softmax(1), shares, reduction="none").sum(1)
        yes = F.kl_div(F.logsigmoid(logits), shares, reduction="none")
        no = F.kl_div(F.logsigmoid(-logits), 1 - shares, reduction="none")
        return T**2 * (yes + no).mean(1)

    def _apply(self, fn: Callable[[Tensor], Tensor], recurse: bool = True) -> Any:
        self.teacher.model._apply(fn)  # .to(device) comes through here
        return super()._apply(fn, recurse)


class BothHeads(nn.Module):
    """A network with a distillation token: the logits of both heads in training mode, their mean in evaluation mode.

    The mode is the network's, which others may set.
    """

    def __init__(self, network: nn.Module) -> None:
        super().__init__()
        self.network = network

    def forward(self, x: Tensor) -> Outputs:
        """(B, 3, S, S) -> two times (B, K) in training, else (B, K)."""
        return self.network.forward_distilled(x) if self.network.training else self.network(x)  # type: ignore[operator]


def student(network: nn.Module) -> nn.Module | None:
    """What `Distillation` trains of a network with a distillation token, on the same parameters; else None."""
    return BothHeads(network) if hasattr(network, "forward_distilled") else None


def _places(classes: tuple[str, ...], known: tuple[str, ...]) -> list[int]:
    """Where the classes stand among those that the teacher knows."""
    missing = [name for name in classes if name not in known]
    if missing:
        raise ValueError(
            f"the teacher does not know the class {_some(missing)}; it knows {_some(known)}. Classes are matched by "
            "name: take a teacher that was trained on all classes of the data, or leave --teacher out"
        )
    return [known.index(name) for name in classes]


def _some(names: Sequence[str], most: int = 3) -> str:
    rest = f" and {len(names) - most} more" if len(names) > most else ""
    return ", ".join(map(repr, names[:most])) + rest


# What can be minimised.
Goal = Objective | Distillation
