"""The fastest backend of a classifier, measured in a process of its own.

Converting a network to other libraries holds up Python for seconds; whoever sends pictures meanwhile should not wait.
"""

from __future__ import annotations

import ctypes
import os
import signal
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import TYPE_CHECKING

from lenext import runs

if TYPE_CHECKING:  # importing these takes seconds, in which the process would not yet end with its parent
    from torch import Tensor

    from lenext.classifier import Classifier

SAMPLE = "sample.npy"
PR_SET_PDEATHSIG = 1  # of Linux's prctl.h


class Measurement:
    """Looks for the backend while other things go on. sample, tolerance: as `fastest_backend` takes them.

    The process ends with the thread that made this, which must wait for the result.
    """

    def __init__(self, classifier: Classifier, sample: Tensor, tolerance: float) -> None:
        import numpy as np

        self._folder = tempfile.TemporaryDirectory(prefix="lenext-measure-")
        try:
            classifier.save(Path(self._folder.name) / runs.CLASSIFIER)
            np.save(Path(self._folder.name) / SAMPLE, sample.numpy())
            self._process = subprocess.Popen(
                [sys.executable, "-m", "lenext.serving.measure", self._folder.name, str(tolerance), str(os.getpid())],
                stdout=subprocess.PIPE,
                stderr=subprocess.PIPE,
                text=True,
            )
        except BaseException:
            self._folder.cleanup()
            raise

    def result(self) -> str:
        """The backend's name. Raises OSError where the process failed or was stopped."""
        with self._folder:
            said, complaint = self._process.communicate()
        if self._process.returncode:
            raise OSError(complaint.strip().rpartition("\n")[2] or "the measurement was stopped")
        return said.split()[-1]

    def stop(self) -> None:
        self._process.kill()


def end_with(parent: int) -> None:
    """Leave Ctrl-C to the parent, and end when it does, however that is, where the system sees to it."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    if sys.platform == "linux":
        ctypes.CDLL(None).prctl(PR_SET_PDEATHSIG, signal.SIGKILL)
        if os.getppid() != parent:  # it was faster
            sys.exit("the server has gone")


def main(folder: str, tolerance: str) -> None:
    import numpy as np
    import torch

    from lenext.classifier import load
    from lenext.inference.choose import CANDIDATES, WORTH_MEASURING, fastest_backend

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
    *arguments, parent = sys.argv[1:]
    end_with(int(parent))
    main(*arguments)
