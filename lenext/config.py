"""The typed edge: every setting of a training run, in one frozen record, read from flags, recipes and files.

Order of precedence, weakest first: the defaults below, the recipe, the configuration file, the flags.
Importing this file costs nothing: the command line needs it for its help.
"""

from __future__ import annotations

import dataclasses
import difflib
import functools
import json
import types
import typing
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

Augment = Literal["none", "light", "standard", "strong", "dihedral"]
Flip = Literal["none", "horizontal", "both"]
Policy = Literal["none", "randaugment", "trivialaugment", "autoaugment", "augmix"]
Sampling = Literal["shuffled", "balanced", "weighted"]
Optimizer = Literal["adamw", "adam", "sgd", "lamb", "lion", "muon"]
Schedule = Literal["cosine", "constant", "decay", "step", "exponential", "one_cycle"]
Loss = Literal["cross_entropy", "bce", "focal"]
ClassWeights = Literal["none", "balanced", "effective"]
DistillationKind = Literal["soft", "hard"]
Strategy = Literal["auto", "ddp", "fsdp"]
SpeedSearch = Literal["auto", "off"]
Select = Literal["val_accuracy", "val_loss"]
Accelerator = Literal["auto", "cpu", "gpu"]
Precision = Literal["auto", "float32", "bfloat16"]


@dataclass(frozen=True, kw_only=True)
class TrainConfig:
    """Settings of `lenext train`. `None` means: chosen from the data and the machine, and said.

    Args:
        data: Folder of pictures (a folder a class, with or without train, val and test above), manifest file, data set
            as it is distributed (Tiny-ImageNet-200, IDX, CIFAR), shards-{000000..000127}.tar, or hf:NAME[:CONFIG].
        root: Folder that the pictures of a manifest lie in; the manifest's own when not given.
        check: Look for what would make the result worthless before training: the same pictures on both sides of a
            split, classes without pictures. false: train regardless.
        model: Architecture, see `lenext models`. Chosen when not given: the pretrained one on this machine.
        recipe: A set of settings by name. auto: quick classifier, then fine-tuning, within the time budget; probe: the
            quick classifier alone; finetune; scratch-small; scratch-vit; imagenet; fit: plain training of the whole
            network; others are listed in the documentation.
        pretrained: true: the public ImageNet weights of the model; false: start from random weights; or the path
            of a checkpoint. Chosen when not given: the weights if they are already on this machine.
        arguments: Arguments of the architecture, such as '{"stem": "small"}'.
        epochs: Passes over the training pictures. Chosen when not given: as many as the time budget allows.
        time_budget: Seconds that the whole command may take where epochs are not given, as far as the speed tells
            beforehand. One epoch is trained at least, none where a quick classifier stands without it.
        batch_size: Pictures in a step, over all devices.
        micro_batch: Pictures that go through the network at once on one device; gradients add up to the batch. Chosen
            when not given: the whole batch, halved until it fits the memory. Several devices halve it before the first
            step only.
        image_size: Side of the square network input, pixels. Chosen when not given: by the pictures and the model.
        mean: Mean of each of the three channels that inputs are normalised with, of pixels from 0 to 1. The network's
            own when not given.
        std: Deviation of each of the three channels, likewise.
        start_size: Side of the input in the first epochs, pixels; it grows to image_size over two thirds of the run.
            The same as image_size when not given.
        lr: Peak learning rate. Chosen when not given: by optimiser and by pretraining.
        optimizer: Update rule. muon: orthogonalised momentum for kernels and matrices, AdamW for the rest.
        weight_decay: Decay of weights, not of biases and norms: decoupled from the rate's own scale in adamw, lamb,
            lion and muon, L2 penalty in sgd.
        momentum: Momentum of sgd and muon, where 0.95 is usual for muon.
        nesterov: Look ahead along the momentum, in sgd.
        schedule: cosine: down to final_lr over the run; constant; decay: held for one epoch, then times lr_decay an
            epoch; step: times lr_decay every lr_epochs; exponential: times lr_decay an epoch, smoothly; one_cycle: up
            from a 25th over three tenths of the run, then down to final_lr.
        lr_decay: Factor of the schedules decay, step and exponential.
        lr_epochs: Epochs between the falls of schedule step.
        final_lr: Where cosine and one_cycle end, as a share of the peak.
        layer_decay: Factor between the learning rates of neighbouring layers, from the head down. 1: all learn alike.
        warmup_epochs: Epochs of linear warm-up.
        clip_norm: Largest gradient norm; larger gradients are scaled down to it. 0 for none.
        sam: Radius of sharpness-aware minimisation, which takes two passes a step; 0.05 is usual. 0: off.
        ema: Decay of a running average of the weights, which is validated beside them; 0.999 is usual. 0: off.
        average: Last epochs whose weights are averaged at the end, and kept if better; an early stop by patience may
            come before them. 0: off.
        freeze: Share of the network's layers, from the picture on, that stay as they are. 1: all but the head.
        unfreeze_epochs: Epochs over which frozen layers are let go, from the head down. 0: they stay frozen.
        loss: cross_entropy; bce: binary cross-entropy of a sigmoid for each class, and one for two classes; focal:
            cross-entropy that counts easy pictures less. Chosen when not given: cross_entropy, or bce where pictures
            have several labels, which are sigmoids in any case.
        label_smoothing: Share of the target spread evenly over all classes.
        focal_gamma: How much less easy pictures count in loss focal.
        class_weights: What a picture's class counts in the loss. balanced: rare classes as much as frequent ones;
            effective: by the effective number of pictures, which is milder.
        logit_adjustment: Strength of adjusting for class frequencies in the loss, 1 in theory. 0: off.
        teacher: Run folder, classifier file or network with ImageNet weights whose answers are learned as well.
        distillation: What of the teacher is learned: soft: its probabilities; hard: its winning class. A network with a
            distillation token learns it with that one.
        distillation_weight: Share of the loss that the teacher has.
        distillation_temperature: Divides the logits of both in distillation soft.
        augment: Random changes to training pictures. none; light: flips and mild crops; standard: flips and crops;
            strong: more on top; dihedral: flips and quarter turns. Chosen when not given.
        crop_scale: Smallest share of a picture's area that a random crop keeps, 1 for no crops. By augment.
        flip: Mirror images at random. By augment.
        policy: Automatic augmentation, one published policy. By augment.
        color_jitter: Strength of random brightness, contrast and saturation, 0 to 1. By augment.
        erasing: Probability that a random rectangle is erased. By augment.
        repeats: Times that a picture appears in a batch, each differently altered (repeated augmentation).
        mixup: Alpha of mixup: pairs of pictures and their labels are blended. 0: off.
        cutmix: Alpha of cutmix: a rectangle of another picture, with its share of the label. 0: off; with mixup, one
            of the two is drawn for each batch.
        sampling: shuffled: every picture once an epoch; balanced: every class equally often; weighted: by the weights
            of a manifest.
        select: What makes a model the best, and so the one that is kept.
        views: Mirrored and turned versions of a picture that an answer averages, 1 to 8. Chosen when not given: 1, or
            what the quick classifier gains from.
        patience: Epochs without improvement after which training stops. 0: never.
        val_fraction: Share of each class held out for validation where the data has no such split.
        test_fraction: Share of each class held out for the final test where the data has no splits at all.
        train_fraction: Share of the training pictures that are used, of each class; the rest is left out. For quick
            tries and curves of accuracy over data.
        val_as_test: The data's own validation pictures are for the test, and others are held out of training in their
            place, as is usual where the labels of the test pictures were never published.
        folds: Parts of a cross-validation, of which one validates and the others train. 0: val_fraction instead.
        fold: Which part validates, from 0.
        max_unreadable: Share of unreadable pictures above which the run does not start.
        seed: Seed of split, weights, order, augmentation and dropout.
        devices: Processes on this machine: GPUs, or parts of the CPU's cores.
        nodes: Machines, on each of which the same command is started, by torchrun, by Slurm, or with MASTER_ADDR,
            MASTER_PORT and NODE_RANK in its environment.
        accelerator: Kind of processor.
        strategy: How several processes share the work. ddp: each has the whole network; fsdp: each has a part of the
            weights, for networks that fit no single one. auto: ddp.
        sync_batchnorm: Batch norm over all GPUs together.
        speed: auto: precision, memory format, compiling and workers are timed on the first batches, where not given,
            and kept for next time; off: nothing is timed, but for the pace of a few steps where epochs are not given.
        precision: Arithmetic of training. auto: measured, the fastest that agrees with float32.
        channels_last: Memory format of training. Measured when not given.
        compile: Compile the network. Tried when not given and the run is long enough to pay for it.
        workers: Processes that prepare batches. 0: in the training process. Measured when not given.
        cache: Keep decoded pictures in a file between epochs and runs. Chosen when not given: where it pays.
        cache_limit: Most that all such files together may take, gigabytes.
        checkpoint_every: Seconds between checkpoints. Chosen when not given: as often as costs a hundredth of the time.
        track: Where figures go besides the run folder, joined by commas: tensorboard, wandb, mlflow, none.
    """

    data: str | None = None
    root: str | None = None
    check: bool = True
    model: str | None = None
    recipe: str = "auto"
    pretrained: bool | str | None = None
    arguments: dict[str, Any] = field(default_factory=dict)
    epochs: int | None = None
    time_budget: float = 300.0
    batch_size: int | None = None
    micro_batch: int | None = None
    image_size: int | None = None
    mean: list[float] | None = None
    std: list[float] | None = None
    start_size: int | None = None
    lr: float | None = None
    optimizer: Optimizer = "adamw"
    weight_decay: float = 0.05
    momentum: float = 0.9
    nesterov: bool = False
    schedule: Schedule = "cosine"
    lr_decay: float = 0.95
    lr_epochs: int = 30
    final_lr: float = 0.0
    layer_decay: float = 1.0
    warmup_epochs: float = 0.0
    clip_norm: float = 1.0
    sam: float = 0.0
    ema: float = 0.0
    average: int = 0
    freeze: float = 0.0
    unfreeze_epochs: int = 0
    loss: Loss | None = None
    label_smoothing: float = 0.0
    focal_gamma: float = 2.0
    class_weights: ClassWeights = "none"
    logit_adjustment: float = 0.0
    teacher: str | None = None
    distillation: DistillationKind = "soft"
    distillation_weight: float = 0.5
    distillation_temperature: float = 2.0
    augment: Augment | None = None
    crop_scale: float | None = None
    flip: Flip | None = None
    policy: Policy | None = None
    color_jitter: float | None = None
    erasing: float | None = None
    repeats: int = 1
    mixup: float = 0.0
    cutmix: float = 0.0
    sampling: Sampling = "shuffled"
    select: Select = "val_accuracy"
    views: int | None = None
    patience: int = 0
    val_fraction: float = 0.15
    test_fraction: float = 0.15
    train_fraction: float = 1.0
    val_as_test: bool = False
    folds: int = 0
    fold: int = 0
    max_unreadable: float = 0.05
    seed: int = 0
    devices: int = 1
    nodes: int = 1
    accelerator: Accelerator = "auto"
    strategy: Strategy = "auto"
    sync_batchnorm: bool = False
    speed: SpeedSearch = "auto"
    precision: Precision = "auto"
    channels_last: bool | None = None
    compile: bool | None = None
    workers: int | None = None
    cache: bool | None = None
    cache_limit: float = 20.0
    checkpoint_every: float | None = None
    track: str = "tensorboard"

    def __post_init__(self) -> None:
        for name, hint in _hints().items():
            if not _fits(getattr(self, name), hint):
                raise ValueError(f"{name} is {getattr(self, name)!r}; it must be {_spoken(hint)}")
        for name in POSITIVE:
            value = getattr(self, name)
            if value is not None and not 0 < value < float("inf"):
                raise ValueError(f"{name} is {value}; it must be greater than 0")
        for name in NOT_NEGATIVE:
            value = getattr(self, name)
            if value is not None and not 0 <= value < float("inf"):
                raise ValueError(f"{name} is {value}; it must be at least 0")
        for name in ("label_smoothing", "val_fraction", "test_fraction", "ema"):
            if not 0 <= getattr(self, name) < 1:
                raise ValueError(f"{name} is {getattr(self, name)}; it must be at least 0 and less than 1")
        for name in (
            "crop_scale",
            "color_jitter",
            "erasing",
            "freeze",
            "layer_decay",
            "distillation_weight",
            "final_lr",
            "train_fraction",
        ):
            if (value := getattr(self, name)) is not None and not 0 <= value <= 1:
                raise ValueError(f"{name} is {value}; it is a share between 0 and 1")
        for name in ("mean", "std"):
            value = getattr(self, name)
            if value is not None and not (len(value) == 3 and all(0 <= x <= 1 for x in value)):
                raise ValueError(f"{name} is {value}; it is three numbers between 0 and 1, such as [0.5, 0.5, 0.5]")
        if self.std is not None and 0 in self.std:
            raise ValueError(f"std is {self.std}; inputs are divided by it, so none of it is 0")
        if self.folds == 1 or (self.fold and self.fold >= self.folds):
            raise ValueError(f"fold is {self.fold} of {self.folds} folds; folds is at least 2 and fold less than that")
        if self.views is not None and not 1 <= self.views <= 8:
            raise ValueError(f"views is {self.views}; a square has 8 symmetries, so it is a number from 1 to 8")
        unknown = [name for name in self.trackers if name not in TRACKERS]
        if unknown:
            raise ValueError(f"track is {self.track!r}; {unknown[0]!r} is none of {', '.join(TRACKERS)}, none")
        if not 0 <= self.max_unreadable <= 1:
            raise ValueError(f"max_unreadable is {self.max_unreadable}; it is a share between 0 and 1")

    @property
    def trackers(self) -> tuple[str, ...]:
        """Names of the trackers asked for."""
        names = [name.strip() for name in self.track.split(",")]
        return tuple(name for name in names if name and name != "none")

    @property
    def alters_pictures(self) -> bool:
        """Whether the user asks for something that needs the pictures themselves, batch by batch."""
        chosen = (self.augment, self.crop_scale, self.flip, self.policy, self.color_jitter, self.erasing)
        return (
            any(value is not None for value in chosen)
            or bool(self.mixup or self.cutmix or self.teacher or self.start_size or self.freeze)
            or self.repeats > 1
            or self.sampling != "shuffled"
        )


TRACKERS = ("tensorboard", "wandb", "mlflow")
POSITIVE = (
    "epochs",
    "batch_size",
    "micro_batch",
    "image_size",
    "start_size",
    "devices",
    "nodes",
    "lr",
    "time_budget",
    "lr_decay",
    "lr_epochs",
    "layer_decay",
    "repeats",
    "crop_scale",
    "distillation_temperature",
    "checkpoint_every",
    "train_fraction",
)
NOT_NEGATIVE = (
    "weight_decay", "momentum", "warmup_epochs", "clip_norm", "sam", "average", "unfreeze_epochs", "focal_gamma",
    "logit_adjustment", "patience", "seed", "workers", "mixup", "cutmix", "folds", "fold", "cache_limit",
)  # fmt: skip
FIELDS = tuple(f.name for f in dataclasses.fields(TrainConfig))


def described_fields() -> list[tuple[str, Any, Any, str]]:
    """(name, type, default, help text) of every setting, for the command line."""
    from docstring_parser import parse

    texts = {p.arg_name: " ".join((p.description or "").split()) for p in parse(TrainConfig.__doc__ or "").params}
    hints, defaults = _hints(), TrainConfig()
    return [(name, hints[name], getattr(defaults, name), texts[name]) for name in FIELDS]


def build(*layers: dict[str, Any]) -> TrainConfig:
    """A configuration from layers of settings, later ones winning; an unknown key is an error naming the nearest."""
    merged: dict[str, Any] = {}
    for layer in layers:
        for key, value in layer.items():
            if key not in FIELDS:
                raise ValueError(f"unknown setting {key!r}{nearest(key, FIELDS)}")
            merged[key] = {**merged.get(key, {}), **value} if key == "arguments" and value else value
    return TrainConfig(**{key: _as_float(key, value) for key, value in merged.items()})


def read_file(path: str | Path) -> dict[str, Any]:
    """The settings of a YAML or JSON file, not yet checked."""
    path = Path(path)
    try:
        text = path.read_text(encoding="utf-8")
    except OSError as error:
        raise ValueError(f"configuration file {path} cannot be read: {error.strerror}") from None
    if path.suffix.lower() == ".json":
        try:
            values = json.loads(text)
        except json.JSONDecodeError as error:
            raise ValueError(f"{path}, line {error.lineno}: not valid JSON ({error.msg})") from None
    else:
        import yaml

        try:
            values = yaml.safe_load(text)
        except yaml.YAMLError as error:
            mark = getattr(error, "problem_mark", None)
            where = f", line {mark.line + 1}" if mark else ""
            raise ValueError(f"{path}{where}: not valid YAML ({getattr(error, 'problem', error)})") from None
    if not isinstance(values, dict):
        raise ValueError(f"{path} must hold settings such as 'epochs: 20', one a line")
    for key in values:
        if key not in FIELDS:
            raise ValueError(f"{path}: unknown setting {key!r}{nearest(str(key), FIELDS)}")
    return values


def nearest(word: str, known: typing.Iterable[str]) -> str:
    """'; did you mean ...?' for a word that resembles a known one, else ''."""
    close = difflib.get_close_matches(word, list(known), n=1, cutoff=0.6)
    return f"; did you mean {close[0]!r}?" if close else ""


@functools.cache
def _hints() -> dict[str, Any]:
    """{setting: its type}; a large study builds thousands of configurations."""
    return typing.get_type_hints(TrainConfig)


def _as_float(key: str, value: Any) -> Any:
    hint = _hints()[key]
    accepted = (hint, *typing.get_args(hint))
    if list[float] in accepted and isinstance(value, list):
        return [float(item) if type(item) is int else item for item in value]
    return float(value) if float in accepted and type(value) is int else value


def _fits(value: Any, hint: Any) -> bool:
    origin, options = typing.get_origin(hint), typing.get_args(hint)
    if origin in (typing.Union, types.UnionType):
        return any(_fits(value, option) for option in options)
    if origin is Literal:
        return value in options
    if origin is dict:
        return isinstance(value, dict)
    if origin is list:
        return isinstance(value, list) and all(_fits(item, options[0]) for item in value)
    if hint in (int, float):
        return type(value) is hint  # bool is an int to Python, not to a user
    return isinstance(value, hint)


def _spoken(hint: Any) -> str:
    origin, options = typing.get_origin(hint), typing.get_args(hint)
    if origin in (typing.Union, types.UnionType):
        return " or ".join(_spoken(option) for option in options if option is not type(None))
    if origin is Literal:
        return "one of " + ", ".join(map(str, options))
    if origin is list:
        return "a list such as [0.5, 0.5, 0.5]"
    names: dict[Any, str] = {int: "a whole number", float: "a number", bool: "true or false", str: "a text"}
    return names.get(hint, "a mapping")
