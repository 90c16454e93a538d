"""LeNeXt: image classification from LeNet to ConvNeXt.

    import lenext
    classifier = lenext.train("photos/")
    classifier.predict("cat.jpg").label

Names are imported when they are first used, so that `import lenext` and `lenext --help` cost nothing.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

from lenext.version import __version__

if TYPE_CHECKING:
    from lenext.classifier import Classifier, Prediction, load
    from lenext.models import create_model, list_models
    from lenext.training import train

_HOME = {
    "train": "lenext.training",
    "load": "lenext.classifier",
    "Classifier": "lenext.classifier",
    "Prediction": "lenext.classifier",
    "create_model": "lenext.models",
    "list_models": "lenext.models",
}
__all__ = ["Classifier", "Prediction", "__version__", "create_model", "list_models", "load", "train"]


def __getattr__(name: str) -> Any:
    if name not in _HOME:
        raise AttributeError(f"module 'lenext' has no attribute {name!r}")
    return getattr(importlib.import_module(_HOME[name]), name)


def __dir__() -> list[str]:
    return sorted(__all__)
