"""Small classifiers with random weights whose answers are far from even, and raw files of every kind."""

from __future__ import annotations

from typing import Any

import torch
from torch import nn

from lenext.classifier import Classifier
from lenext.data.decode import decode
from lenext.data.transforms import eval_transform
from lenext.inference.backends import torch_backend
from lenext.models import create_model
from lenext.models.weights import head_names
from lenext.preprocess import Preprocess
from tests.data import corpus
from tests.models.test_protocol import lively

CLASSES = ("猫", "dog", "bird with a\nbreak", "fish", "horse")


def classifier(
    name: str, size: int = 64, *, num_outputs: int = 5, interpolation: str = "bilinear", **settings: Any
) -> Classifier:
    """A network of the zoo as a classifier of `num_outputs` classes, of two where that is 1."""
    torch.manual_seed(0)
    model = lively(create_model(name, num_classes=num_outputs, image_size=size))
    return as_classifier(model, name, Preprocess(image_size=size, interpolation=interpolation), num_outputs, **settings)


def as_classifier(
    model: nn.Module, name: str, preprocess: Preprocess, num_outputs: int = 5, **settings: Any
) -> Classifier:
    """With a bias and a temperature that let the pictures decide, and make it neither sure nor undecided."""
    x = torch.stack([eval_transform(preprocess)(decode(data)) for data in some_files().values()])
    run = torch_backend(model.eval(), preprocess)
    for name_of_head in head_names(model):
        if isinstance(bias := model.get_submodule(name_of_head).bias, nn.Parameter):
            bias.data -= run(x).mean(0)
    logits = run(x)
    return Classifier(
        model=model,
        architecture={
            "name": name,
            "num_outputs": num_outputs,
            "image_size": preprocess.image_size,
            "arguments": {},
        },
        classes=CLASSES[: max(num_outputs, 2)],
        preprocess=preprocess,
        temperature=float(logits.abs().mean() if num_outputs == 1 else logits.std(1).mean()) / 2,
        **settings,
    )


def some_files() -> dict[str, bytes]:
    names = ("plain.jpg", "palette.png", "orientation-6.jpg", "grey.jpg")
    return {name: corpus.good()[name] for name in names} | large_files()


def large_files() -> dict[str, bytes]:
    """Pictures that are made smaller, of odd sizes, lying and standing, and a JPEG that is decoded at a half."""
    sizes = {
        "wide.png": (301, 97),
        "tall.png": (90, 263),
        "same.png": (73, 73),
        "line.png": (20_000, 3),
        "pole.png": (7, 5001),
    }
    pictures = {name: corpus.encoded(corpus.picture(*size), "PNG") for name, size in sizes.items()}
    return pictures | {"large.jpg": corpus.encoded(corpus.picture(341, 229), "JPEG", quality=90)}
