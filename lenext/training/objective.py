"""The objective: outputs of the network and what the pictures show -> a loss for each picture.

One softmax over the classes, or a sigmoid for each. Either takes one class a picture, shares of several classes (mixup,
CutMix, annotators who disagree) or, with sigmoids, several labels a picture. A loss of shares is the mean of the
losses of its classes, weighted by the shares, with class weights and in the focal loss too.

Sigmoid losses are means over the classes, as in the published recipes whose learning rates are for them ("ResNet
strikes back", Wightman et al. 2021, https://arxiv.org/abs/2110.00476; DeiT III, Touvron et al. 2022,
https://arxiv.org/abs/2204.07118). Those recipes call every class of a mixed picture wholly present; here it is present
by its share.
"""

from __future__ import annotations

import math

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from lenext.config import ClassWeights, Loss

# Of the effective number of pictures, the value that Cui et al. find good for long tails.
BETA = 0.999
# A rarer label does not count for more than this many of mean frequency: a single picture would bend every step.
MOST_POSITIVE = 10.0


class Objective(nn.Module):
    """The loss of every picture; made by `make_objective`.

    sigmoid: a sigmoid for each output rather than one softmax. several: several labels a picture.
    gamma: the focal loss's exponent, 0 for plain cross-entropy.
    class_weights: (K,), of a picture by its class; with several labels, of a label that is present.
    shift: (O,), added to the outputs in the loss alone.
    """

    class_weights: Tensor
    shift: Tensor

    def __init__(
        self,
        *,
        sigmoid: bool,
        several: bool,
        label_smoothing: float,
        gamma: float,
        class_weights: Tensor,
        shift: Tensor,
    ) -> None:
        super().__init__()
        self.sigmoid, self.several = sigmoid, several
        self.label_smoothing, self.gamma = label_smoothing, gamma
        # They follow from the data: a checkpoint need not carry them.
        self.register_buffer("class_weights", class_weights.float(), persistent=False)
        self.register_buffer("shift", shift.float(), persistent=False)

    def forward(self, outputs: Tensor, targets: Tensor, inputs: Tensor | None = None) -> Tensor:
        """Losses (B,), float32 whatever the network computed in.

        outputs: (B, O). targets: int64 (B,) classes, or float (B, K) shares that sum to one; with several labels float
        (B, K), each in [0, 1]. inputs: not looked at.
        """
        outputs = outputs.float() + self.shift
        K = len(self.class_weights)
        shares = targets.float() if targets.is_floating_point() else F.one_hot(targets, K).float()  # (B, K)
        choices = 2 if self.several else K
        smooth = shares * (1 - self.label_smoothing) + self.label_smoothing / choices
        if self.several:
            return self._of_sigmoids(outputs, smooth, self.class_weights)
        weights = (shares * self.class_weights).sum(1)
        if not self.sigmoid:
            return weights * self._of_softmax(outputs, smooth)
        return weights * self._of_sigmoids(outputs, smooth[:, -outputs.shape[1] :])  # one output is the second class's

    def answers(self, outputs: Tensor) -> Tensor:
        """The logits (B, O) to answer with: the outputs themselves."""
        return outputs

    def _of_softmax(self, outputs: Tensor, shares: Tensor) -> Tensor:
        log_p = F.log_softmax(outputs, 1)
        losses = -log_p
        if self.gamma:
            # The power has no slope at 0, where a probability rounds to 1.
            losses = losses * (-torch.expm1(log_p)).clamp_min(1e-12) ** self.gamma
        return (shares * losses).sum(1)

    def _of_sigmoids(self, outputs: Tensor, present: Tensor, positive: Tensor | float = 1.0) -> Tensor:
        yes, no = -F.logsigmoid(outputs), -F.logsigmoid(-outputs)  # the losses of a class that is there, and is not
        if self.gamma:
            yes, no = yes * torch.exp(-self.gamma * no), no * torch.exp(-self.gamma * yes)
        return (present * positive * yes + (1 - present) * no).mean(1)


def make_objective(
    loss: Loss,
    num_classes: int,
    *,
    several: bool = False,
    counts: Tensor | np.ndarray | None = None,
    label_smoothing: float = 0.0,
    focal_gamma: float = 2.0,
    class_weights: ClassWeights = "none",
    logit_adjustment: float = 0.0,
) -> Objective:
    """The objective of a configuration.

    loss: cross_entropy; bce, a sigmoid for each class, and a single one for two classes; focal (Lin et al. 2017,
        https://arxiv.org/abs/1708.02002), cross-entropy times (1 - p) ** focal_gamma; class_weights stand for its
        alpha. With several labels every loss takes sigmoids.
    counts: (K,) training pictures of each class; class_weights and logit_adjustment need it.
    label_smoothing: share of the target that is spread over all classes; with several labels, over present and absent.
    class_weights: see `frequency_weights`. With several labels the weight is that of a label that is present, at most
        10; absent ones count 1.
    logit_adjustment: tau of Menon et al. 2021, https://arxiv.org/abs/2007.07314: tau times the log of the class's
        frequency is added to its logit in the loss, so that the logits without it treat all classes alike. Each of
        several sigmoids tells its class from the rest and gets the log of the odds, which for two classes is the same.

    Raises ValueError where a loss does not fit the labels.
    """
    outputs = num_outputs(loss, num_classes, several)
    sigmoid = several or loss == "bce"
    if logit_adjustment and several:
        raise ValueError(
            "logit_adjustment weighs classes against one another, and these pictures have several labels; leave it "
            "out, or use --class-weights balanced"
        )
    weights, shift = torch.ones(num_classes), torch.zeros(outputs)
    if class_weights != "none" or logit_adjustment:
        assert counts is not None
        n = torch.as_tensor(counts, dtype=torch.float64)
        if class_weights != "none":
            weights = frequency_weights(n, class_weights)
            weights = weights.clamp_max(MOST_POSITIVE) if several else weights
        n = n.clamp_min(1)
        odds = n / (n.sum() - n) if sigmoid else n / n.sum()
        shift = logit_adjustment * odds.log()[-outputs:]
    return Objective(
        sigmoid=sigmoid,
        several=several,
        label_smoothing=label_smoothing,
        gamma=focal_gamma if loss == "focal" else 0.0,
        class_weights=weights,
        shift=shift,
    )


def frequency_weights(counts: Tensor, kind: ClassWeights) -> Tensor:
    """(K,) weights of classes with `counts` (K,) training pictures, of mean 1 over these pictures (or their labels).

    balanced: in inverse proportion to the pictures. effective: to their effective number, (1 - beta^n) / (1 - beta)
    (Cui et al. 2019, https://arxiv.org/abs/1901.05555, who scale the weights to a mean of 1 over the classes; over the
    pictures it leaves the learning rate what it was). A class without pictures is taken to have one.
    """
    n = counts.double().clamp_min(1)
    number = n if kind == "balanced" else -torch.expm1(n * math.log(BETA)) / (1 - BETA)
    return counts.sum() / (counts / number).sum() / number


def num_outputs(loss: Loss, num_classes: int, several: bool = False) -> int:
    """Outputs of the network's last layer: one a class, but a single one for the sigmoid of two classes."""
    if loss != "bce" or several:
        return num_classes
    if num_classes < 2:
        raise ValueError("loss bce tells classes apart, the data has one; add pictures of another class")
    return 1 if num_classes == 2 else num_classes


def correct(outputs: Tensor, targets: Tensor, several: bool = False) -> Tensor:
    """(B,) bool, whether the winner is the class of the target; with several labels, whether all K are right.

    outputs: (B, O), or (B, 1) for the sigmoid of two classes. targets: as in `Objective`.
    """
    if several:
        return ((outputs > 0) == (targets > 0.5)).all(1)
    winners = (outputs[:, 0] > 0).long() if outputs.shape[1] == 1 else outputs.argmax(1)
    return winners == (targets.argmax(1) if targets.is_floating_point() else targets)
