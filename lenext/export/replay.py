"""Raw picture files through an exported classifier in its own runtime, beside the classifier itself in PyTorch.

Both get the pixels that the classifier's own predictions start from; all that follows is the artefact's. So this
measures what a user of the export gets, and not only whether two networks are equal.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import Any

import numpy as np
import torch
from torch import Tensor

from lenext import terminal
from lenext.classifier import THRESHOLD, Classifier
from lenext.data.reading import read_batches
from lenext.data.samples import Samples
from lenext.data.transforms import eval_transform
from lenext.export.formats import Artefact
from lenext.inference.backends import torch_backend

BATCH = 8  # pictures of twice that number are held as they are, and some have a hundred megapixels


def replay(classifier: Classifier, artefact: Artefact, samples: Samples) -> dict[str, Any]:
    """What the classifier and the artefact say of labelled pictures, as JSON can hold it.

    samples: with labels that index the classifier's classes.
    "agreement": share of pictures with the same class, or of a multi-label classifier the same set of classes.
    "largest_difference": of any probability. "before", the classifier in float32 PyTorch, and "after", the artefact:
    "accuracy" (of several labels: all of them right) and "pictures_per_second", from pixels to probabilities, in
    batches before and one by one after. "failed": pictures that could not be read, which no other figure counts.
    Raises ValueError where none can.
    """
    transform, plain = eval_transform(classifier.preprocess), torch_backend(classifier.model, classifier.preprocess)

    def read(row: int) -> Tensor:  # (H, W, 3)
        return torch.from_numpy(samples.decode(row, shrink_to=classifier.preprocess.resize))

    def classify(pictures: list[np.ndarray]) -> np.ndarray:
        return classifier.probabilities(torch.stack([transform(x) for x in pictures]), plain)

    def run(pictures: list[np.ndarray]) -> np.ndarray:
        return np.concatenate([artefact(x[None]) for x in pictures])

    before, after = Stopwatch(classify), Stopwatch(run)
    rows: list[int] = []
    with terminal.bar("replaying", len(samples)) as bar:
        for batch in read_batches(range(len(samples)), read, BATCH):
            good = [(row, x.numpy()) for row, x in batch if isinstance(x, Tensor)]
            if good:
                pictures = [x for _, x in good]
                if not rows:  # the first call is for preparations
                    classify(pictures[:1])
                    run(pictures[:1])
                rows += [row for row, _ in good]
                before(pictures)
                after(pictures)
            bar.advance(len(batch))
    if not rows:
        raise ValueError("none of the pictures for the replay can be read")
    known = samples.take(rows)
    several = classifier.task == "multi-label"
    truth = known.targets().toarray() if several else known.labels[:, None]
    decisions = [w.answers >= THRESHOLD if several else w.answers.argmax(1, keepdims=True) for w in (before, after)]
    figures: dict[str, Any] = {
        "pictures": len(rows),
        "failed": len(samples) - len(rows),
        "agreement": float((decisions[0] == decisions[1]).all(1).mean()),
        "largest_difference": float(np.abs(before.answers - after.answers).max()),
    }
    for name, watch, decided in zip(("before", "after"), (before, after), decisions):
        accuracy = float((decided == truth).all(1).mean())
        figures[name] = {"accuracy": accuracy, "pictures_per_second": len(rows) / watch.seconds}
    return figures


class Stopwatch:
    """A function from pictures to probabilities that keeps its answers and counts its seconds."""

    def __init__(self, work: Callable[[list[np.ndarray]], np.ndarray]) -> None:
        self.work, self.seconds, self.kept = work, 0.0, []  # type: ignore[var-annotated]

    def __call__(self, pictures: list[np.ndarray]) -> None:
        begin = time.perf_counter()
        self.kept.append(self.work(pictures))
        self.seconds += time.perf_counter() - begin

    @property
    def answers(self) -> np.ndarray:
        return np.concatenate(self.kept)
