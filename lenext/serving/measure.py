"""The fastest backend of a classifier, measured in a process of its own.

Converting a network to other libraries holds up Python for seconds; whoever sends pictures meanwhile should not wait.
"""

from __future__ import annotations

import subprocess
import sys
import tempfile
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from lenext import runs
from lenext.classifier import Classifier, load
from lenext.inference.choose import CANDIDATES, WORTH_MEASURING, fastest_backend

SAMPLE = "sample.npy"


class Measurement:
    """Looks for the backend while other things go on. sample, tolerance: as `fastest_backend` takes them."""

    def __init__(self, classifier: Classifier, sample: Tensor, tolerance: float) -> None:
        self._folder = tempfile.TemporaryDirectory(prefix="lenext-measure-")
        classifier.save(Path(self._folder.name) / runs.CLASSIFIER)
        np.save(Path(self._folder.name) / SAMPLE, sample.numpy())
        self._process = subprocess.Popen(
            [sys.executable, "-m", "lenext.serving.measure", self._folder.name, str(tolerance)],
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
            start_new_session=True,  # Ctrl-C is for the server, which ends it
        )

    def result(self) -> str:
        """The backend's name. Raises OSError where the process failed or was stopped."""
        with self._folder:
            said, complaint = self._process.communicate()
        if self._process.returncode:
            raise OSError(complaint.strip().rpartition("\n")[2] or "the measurement was stopped")
        return said.split()[-1]

    def stop(self) -> None:
        self._process.kill()


def main(folder: str, tolerance: str) -> None:
    classifier = load(Path(folder) / runs.CLASSIFIER)
    sample = torch.from_numpy(np.load(Path(folder) / SAMPLE))
    name, _ = fastest_backend(
        classifier.model,
        classifier.preprocess,
        sample,
        WORTH_MEASURING,
        tolerance=float(tolerance),
        candidates=CANDIDATES,
    )
    print(name)


if __name__ == "__main__":
    main(*sys.argv[1:])
