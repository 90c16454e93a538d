"""The classifier file: everything that is needed to use a trained network, in one safetensors file without pickle.

Weights are its tensors; the header holds the architecture and its arguments, class names, preprocessing, task, views,
temperature, the data's fingerprint and the version that wrote it.
"""

from __future__ import annotations

import json
import logging
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal, overload

import numpy as np
import torch
from PIL import Image
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from scipy.special import expit
from torch import Tensor, nn

from lenext import runs
from lenext.config import nearest
from lenext.data.decode import UnreadableImage, decode, to_rgb
from lenext.data.inputs import expanded, fetched, is_several
from lenext.data.reading import read_batches
from lenext.data.transforms import dihedral, eval_transform
from lenext.inference.backends import Backend
from lenext.inference.calibration import training_pictures
from lenext.inference.choose import CANDIDATES, SAME, WORTH_MEASURING, Kept, fastest_backend
from lenext.models import MODELS, default_preprocess, hub
from lenext.models.imagenet import class_names
from lenext.models.pooled import build_network
from lenext.preprocess import Preprocess
from lenext.version import __version__

FORMAT = "lenext-classifier-1"
BATCH = 32
THRESHOLD = 0.5  # a picture that may have several classes has those of at least this probability
Input = str | Path | bytes | Image.Image | np.ndarray
Task = Literal["single-label", "multi-label"]
AUTO = "auto"
UNKNOWN = "unknown"
log = logging.getLogger("lenext")


@dataclass(frozen=True)
class Prediction:
    """The ranked classes of one picture; `error` says why there are none.

    image: the path as it was given, "" for pictures without one. label, probability: the winner.
    top: (label, probability), best first. labels: of a multi-label classifier, the classes of at least THRESHOLD, best
    first, possibly none; None of a single-label one.
    """

    image: str
    label: str | None
    probability: float | None
    top: list[tuple[str, float]]
    error: str | None = None
    labels: list[str] | None = None

    def to_dict(self) -> dict[str, Any]:
        top = [{"label": label, "probability": probability} for label, probability in self.top]
        answer = {
            "image": self.image,
            "label": self.label,
            "probability": self.probability,
            "top": top,
            "error": self.error,
        }
        return answer if self.labels is None else answer | {"labels": self.labels}


@dataclass(repr=False)
class Classifier:
    """A network with what belongs to it.

    architecture: what `lenext.models.pooled.build_network` takes to build `model` again.
    task: whether a picture has one of the classes, or each of them or not.
    views: how many of the eight symmetries of the square are averaged for a prediction: 1, 2 (mirror) up to 8.
    temperature: divides the logits, so that probabilities mean what they say.
    about: anything worth keeping, such as the data's fingerprint and the validation figures.
    running: the name of the backend that gave the latest answers, "" before the first.
    """

    model: nn.Module
    architecture: dict[str, Any]
    classes: tuple[str, ...]
    preprocess: Preprocess
    task: Task = "single-label"
    views: int = 1
    temperature: float = 1.0
    about: dict[str, Any] = field(default_factory=dict)
    running: str = field(default="", init=False, compare=False)
    _kept: Kept = field(default_factory=Kept, init=False, repr=False, compare=False)

    def __repr__(self) -> str:
        name, size = self.architecture["name"], self.preprocess.image_size
        return f"<Classifier: {name}, {len(self.classes)} classes, {self.task}, {size} x {size} pixels>"

    @overload
    def predict(
        self,
        inputs: Input,
        top_k: int = 5,
        *,
        threshold: float | None = None,
        backend: str = AUTO,
        allow_urls: bool = False,
    ) -> Prediction: ...
    @overload
    def predict(
        self,
        inputs: list[Any] | tuple[Any, ...],
        top_k: int = 5,
        *,
        threshold: float | None = None,
        backend: str = AUTO,
        allow_urls: bool = False,
    ) -> list[Prediction]: ...
    def predict(
        self,
        inputs: Input | Sequence[Input],
        top_k: int = 5,
        *,
        threshold: float | None = None,
        backend: str = AUTO,
        allow_urls: bool = False,
    ) -> Prediction | list[Prediction]:
        """Ranked classes of a picture, or of a list of pictures in the order given.

        inputs: a path, encoded bytes, a PIL picture, a uint8 array (H, W, 3) or (H, W), or a list of these, in which a
        folder or a pattern such as "photos/*.jpg" stands for all its pictures.
        threshold: below this probability the label is "unknown"; of a multi-label classifier, what a label needs.
        backend: a name of `lenext.inference.backends.NAMES`, or auto: the fastest that agrees, where there are pictures
        enough for the time that making it takes. allow_urls: fetch texts that are URLs, from addresses of the public
        internet alone.
        A picture that cannot be read gets a Prediction with `error`; it never stops the others.
        Raises ValueError for arguments that make no sense.
        """
        several = isinstance(inputs, (list, tuple))
        pictures: list[Any] = list(expanded(inputs)) if several else [inputs]  # type: ignore[arg-type]

        def pixels(item: Any, preprocess: Preprocess) -> np.ndarray:
            item = fetched(item, allow_urls)
            if not several and is_several(item):
                raise UnreadableImage(f"this stands for several pictures; give it in a list: predict([{str(item)!r}])")
            return pixels_of(item, preprocess)

        answers = list(
            self.stream(pictures, top_k, threshold=threshold, backend=backend, expected=len(pictures), pixels=pixels)
        )
        return answers if several else answers[0]

    def stream(
        self,
        inputs: Iterable[Input],
        top_k: int = 5,
        *,
        threshold: float | None = None,
        backend: str = AUTO,
        tolerance: float = SAME,
        expected: int = WORTH_MEASURING,
        pixels: Callable[[Any, Preprocess], np.ndarray] | None = None,
    ) -> Iterator[Prediction]:
        """Predictions one after the other, read and computed in batches: memory does not grow with the number.

        tolerance: how far the answers of a backend that auto chooses may be from float32, as a share of the outputs'
        norm. expected: about how many pictures there are; few are not worth making a faster backend.
        pixels: instead of `pixels_of`, for inputs that it does not know; called in several threads.
        """
        if top_k < 1:
            raise ValueError(f"top_k is {top_k}; at least the best class must be asked for")
        if threshold is not None and not 0 <= threshold <= 1:
            raise ValueError(f"threshold is {threshold}; it is a probability between 0 and 1")
        transform = eval_transform(self.preprocess)
        run: Backend | None = None

        def read(item: Input) -> Tensor:
            return transform((pixels or pixels_of)(item, self.preprocess))

        for batch in read_batches(inputs, read, BATCH):
            pictures = [x for _, x in batch if isinstance(x, Tensor)]
            rows: Iterator[np.ndarray] = iter(())
            if pictures:
                x = torch.stack(pictures)
                run = run or self.backend(backend, x, expected, tolerance)
                rows = iter(self.probabilities(x, run))
            for item, outcome in batch:
                name = str(item) if isinstance(item, (str, Path)) else ""
                if isinstance(outcome, str):
                    yield self.failed(name, outcome)
                else:
                    yield self.ranked(name, next(rows), top_k, threshold)

    def backend(self, name: str, sample: Tensor, expected: int, tolerance: float = SAME) -> Backend:
        """The backend of a name; for auto, the fastest that agrees with float32 on the sample. It is kept for the next
        call, as long as the weights stay as they are.

        sample: uint8 (B, 3, S, S). expected, tolerance: as `stream` takes them.
        """
        name, run = fastest_backend(
            self.model,
            self.preprocess,
            sample,
            expected * self.views,
            tolerance=tolerance,
            only=None if name == AUTO else name,
            candidates=CANDIDATES,
            calibration=lambda: training_pictures(self.about, self.preprocess),
            kept=self._kept,
        )
        log.debug("predicting with %s", name)
        self.running = name
        return run

    def logits(self, x: Tensor, backend: Backend) -> np.ndarray:
        """Averaged over the views, before the temperature: uint8 (B, 3, S, S) -> float32 (B, K)."""
        outputs = [as_logits(backend(dihedral(x, view))) for view in range(self.views)]
        return torch.stack(outputs).mean(0).numpy()

    def probabilities(self, x: Tensor, backend: Backend) -> np.ndarray:
        """uint8 (B, 3, S, S) -> (B, K)."""
        return self.to_probabilities(self.logits(x, backend))

    def to_probabilities(self, logits: np.ndarray) -> np.ndarray:
        """(B, K) -> (B, K): rows that sum to one, or of a multi-label classifier the probability of each class."""
        if self.task == "multi-label":
            return expit(logits.astype(np.float64) / self.temperature)  # in float32, sure ones would be certain
        return softmax(logits / self.temperature)

    def use_views(self, views: int | None) -> None:
        """Answer with another number of views; None leaves it as it was trained."""
        if views is not None and not 1 <= views <= 8:
            raise ValueError(f"--views is {views}; a square has 8 symmetries, so it is a number from 1 to 8")
        self.views = views or self.views

    def ranked(
        self, image: str, probabilities: np.ndarray, top_k: int = 5, threshold: float | None = None
    ) -> Prediction:
        """The Prediction of a picture from its probabilities (K,)."""
        order = np.argsort(-probabilities, kind="stable")
        top = [(self.classes[i], float(probabilities[i])) for i in order[:top_k]]
        label, probability = top[0]
        if self.task == "multi-label":
            least = THRESHOLD if threshold is None else threshold
            labels = [self.classes[i] for i in order if probabilities[i] >= least]
            return Prediction(image, label, probability, top, labels=labels)
        return Prediction(image, label if probability >= (threshold or 0) else UNKNOWN, probability, top)

    def failed(self, image: str, reason: str) -> Prediction:
        """The Prediction of a picture that cannot be read."""
        return Prediction(image, None, None, [], reason, [] if self.task == "multi-label" else None)

    def save(self, path: str | Path, weights: dict[str, Tensor] | None = None) -> Path:
        """Write the classifier file, whole or not at all. Raises OSError when the disk is full.

        weights: to be written instead of those that the model has now, by the names of its `state_dict()`.
        """
        path = Path(path)
        header = {
            "architecture": self.architecture,
            "classes": list(self.classes),
            "preprocess": self.preprocess.to_dict(),
            "views": self.views,
            "temperature": self.temperature,
            "task": self.task,
            "about": self.about,
            "lenext": __version__,
        }
        weights = weights or self.model.state_dict()
        tensors = {name: tensor.detach().cpu().contiguous() for name, tensor in weights.items()}
        metadata = {"format": FORMAT, "lenext": json.dumps(header, ensure_ascii=False)}
        path.parent.mkdir(parents=True, exist_ok=True)
        runs.write_atomically(path, lambda file: save_tensors(tensors, file, metadata))
        return path


def save_tensors(tensors: dict[str, Tensor], file: Path, metadata: dict[str, str]) -> None:
    """safetensors' save_file, with a full disk reported as what it is."""
    try:
        save_file(tensors, file, metadata)
    except SafetensorError as error:
        raise OSError(f"{file} could not be written: {error}") from None


def load(path: str | Path, language: str | None = None) -> Classifier:
    """The classifier of a run folder or of a classifier file; or a network of the zoo with its ImageNet weights.

    path: a folder, a file, hf:USER/NAME for one that `lenext push` put on the Hugging Face Hub, or a name of
    `lenext.list_models()` for the 1,000 classes of ImageNet.
    language: of the ImageNet class names, "en" (the default) or "zh"; a classifier of one's own has its own names.

    Raises ValueError for anything else: a missing file, a folder without one, a pickle, a file cut short; OSError
    where the Hub cannot be reached.
    """
    if str(path) in MODELS and not Path(path).exists():
        return imagenet_classifier(str(path), language or "en")
    if language is not None:
        raise ValueError(f"{path} has class names of its own; language is for networks with ImageNet weights")
    path = hub.download(str(path), runs.CLASSIFIER) if str(path).startswith(hub.PREFIX) else Path(path)
    if path.is_dir():
        runs.require(path)
        if not (path / runs.CLASSIFIER).is_file():
            raise ValueError(
                f"{path} has no {runs.CLASSIFIER} yet: its training did not get that far; continue it with "
                f"lenext train --resume {path}"
            )
        path = path / runs.CLASSIFIER
    if not path.is_file():
        raise ValueError(
            f"{path} does not exist; a run folder, a classifier file or a network's name (`lenext models`) was expected"
            + nearest(str(path), MODELS)
        )
    metadata, tensors = _read_tensors(path)
    if metadata.get("format") != FORMAT:
        raise ValueError(
            f"{path} is a safetensors file but not a classifier file: it carries weights without class names. "
            "Give it to training as --pretrained"
        )
    try:
        header = json.loads(metadata["lenext"])
        model = build_network(header["architecture"])
        model.load_state_dict(tensors)
        return Classifier(
            model=model.eval(),
            architecture=header["architecture"],
            classes=tuple(header["classes"]),
            preprocess=Preprocess.from_dict(header["preprocess"]),
            task=header["task"],
            views=header["views"],
            temperature=header["temperature"],
            about=header["about"],
        )
    except (KeyError, TypeError, RuntimeError, json.JSONDecodeError) as error:
        reason = str(error).strip().split("\n")[0]
        raise ValueError(f"{path} is damaged: what it says of its network does not fit ({reason})") from error


def imagenet_classifier(name: str, language: str = "en") -> Classifier:
    """A network of the zoo with its public weights, the 1,000 classes of ImageNet and the right preprocessing."""
    classes = class_names(language)
    preprocess = default_preprocess(name)
    architecture = {
        "name": name,
        "num_outputs": len(classes),
        "image_size": preprocess.image_size,
        "arguments": {},
    }
    return Classifier(
        model=build_network(architecture, pretrained=True).eval(),
        architecture=architecture,
        classes=classes,
        preprocess=preprocess,
        about={"data": "ImageNet-1k"},
    )


def _read_tensors(path: Path) -> tuple[dict[str, str], dict[str, Tensor]]:
    head = path.open("rb").read(9)
    if head.startswith((b"PK\x03\x04", b"\x80\x02", b"\x80\x03", b"\x80\x04", b"\x80\x05")):
        raise ValueError(
            f"{path} is a pickle, which can run code when it is read; lenext reads classifier files (safetensors). "
            "Weights of another toolkit go to training as --pretrained"
        )
    if head[8:] not in (b"{", b""):  # a safetensors file begins with a length of 8 bytes and JSON
        raise ValueError(f"{path} is no classifier file; a run folder or its {runs.CLASSIFIER} was expected")
    try:
        with safe_open(path, framework="pt") as file:
            return file.metadata() or {}, {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
    except (SafetensorError, OSError) as error:
        raise ValueError(f"{path} is damaged or cut off: no classifier can be read from it ({error})") from None


def as_logits(outputs: Tensor) -> Tensor:
    """(B, K) as it is; (B, 1), the logit of the second of two classes, as (B, 2) with the same probabilities."""
    return torch.cat([torch.zeros_like(outputs), outputs], 1) if outputs.shape[1] == 1 else outputs


def softmax(logits: np.ndarray) -> np.ndarray:
    shifted = np.exp(logits - logits.max(1, keepdims=True))
    return shifted / shifted.sum(1, keepdims=True)


def pixels_of(item: Input, preprocess: Preprocess) -> np.ndarray:
    """uint8 (H, W, 3) of any input."""
    if isinstance(item, (str, Path, bytes)):
        return decode(item, shrink_to=preprocess.resize)
    if isinstance(item, Image.Image):
        try:
            return to_rgb(item)
        except Exception as error:
            raise UnreadableImage(f"damaged or cut off ({error})") from None
    if isinstance(item, np.ndarray):
        if item.dtype != np.uint8 or item.ndim not in (2, 3) or (item.ndim == 3 and item.shape[2] not in (1, 3, 4)):
            raise UnreadableImage(f"an array of {item.dtype} {item.shape} is no picture; uint8 (H, W, 3) is")
        if item.size == 0:
            raise UnreadableImage("the array is empty")
        return to_rgb(Image.fromarray(item[:, :, 0] if item.ndim == 3 and item.shape[2] == 1 else item))
    raise ValueError(
        f"this is of type {type(item).__name__}, no picture; give a path, bytes, a PIL picture or a uint8 array"
    )
