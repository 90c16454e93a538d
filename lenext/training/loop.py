"""Training, from data to a finished run folder: a page to read from top to bottom.

`train` settles the configuration and makes the run folder, `resume` takes up an interrupted one, and both end in
`_run`, which depends on the run folder alone. Randomness is a function of (seed, epoch, index) for pictures and of
(seed, step) for dropout, so a resumed run gives bit for bit the weights of one that was never interrupted.
"""

from __future__ import annotations

import contextlib
import dataclasses
import logging
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from lenext import config as settings
from lenext import recipes, runs, terminal
from lenext.classifier import Classifier, load
from lenext.config import TrainConfig
from lenext.data import dataset
from lenext.data.dataset import Dataset
from lenext.data.loader import derive_seed
from lenext.data.mixing import mix
from lenext.data.samples import Samples
from lenext.data.sources import absolute
from lenext.evaluation.evaluate import finish_run
from lenext.models.catalogue import summarise
from lenext.models.pooled import build_network
from lenext.training import checkpoint, prepare
from lenext.training.choose import choose
from lenext.training.objective import compute_loss, correct, num_outputs
from lenext.training.optim import learning_rate, make_optimizer
from lenext.training.two_steps import quick_then_tuned

log = logging.getLogger("lenext")


def configure(given: dict[str, Any], file: dict[str, Any] | None = None) -> TrainConfig:
    """The configuration of what the user gave, over a configuration file, over the recipe, over the defaults."""
    file = file or {}
    recipe = given.get("recipe", file.get("recipe", "auto"))
    return settings.build(recipes.get(recipe), file, given)


def train(config: TrainConfig, out: str | Path | None = None, *, started: float | None = None) -> Path:
    """Train from the beginning; returns the run folder. Nothing is written before data and settings are sound.

    started: when the time budget began, in seconds since the epoch; now if not given.
    """
    started = time.time() if started is None else started
    if config.data is None:
        raise ValueError("DATA is missing: a folder of pictures (a folder a class), a manifest, shards, or hf:NAME")
    data = dataset.read(config.data, prepare.data_options(config))
    prepare.require_sound(config, data)
    # The run may be used from elsewhere.
    config = dataclasses.replace(config, data=absolute(config.data), root=config.root and absolute(config.root))
    config, choices = choose(config, data.samples)
    prepare.device_of(config)  # a processor that is not there ends it here
    membership = data.membership()
    classifier = _new_classifier(config, data.samples, dataset.fingerprint(membership))
    run = runs.create(out, str(config.model if config.recipe in ("auto", "fit") else config.recipe))
    runs.write_config(run, dataclasses.asdict(config))
    runs.write_samples(run, membership)
    prepare.write_data(run, classifier, data.samples, unreadable=[])
    with runs.logging_to(run), _resumable(run):
        for sentence in choices:
            log.info("%s", sentence)
        runs.write_json(run / "environment.json", runs.environment())
        runs.write_json(run / "choices.json", choices)
        return _run(run, config, data, classifier, started)


def resume(path: str | Path) -> Path:
    """Go on with an interrupted run with the settings it has; a finished run is left as it is."""
    run = runs.require(path)
    if runs.is_finished(run):
        log.info("%s is finished already; nothing to resume", run)
        return run
    config = settings.build(runs.read_config(run))
    assert config.data is not None
    data = dataset.read(config.data, prepare.data_options(config))
    membership = data.membership()
    fingerprint = dataset.fingerprint(membership)
    if fingerprint != runs.read_json(run / runs.DATA)["fingerprint"]:
        before = runs.read_samples(run)
        changes = "" if before is None else f" ({dataset.differences(before, membership)})"
        raise ValueError(
            f"{config.data} is not what the run {run} began with{changes}. Put it back as it was, or train anew"
        )
    with runs.logging_to(run), _resumable(run):
        log.info("resuming %s", run)
        return _run(run, config, data, _new_classifier(config, data.samples, fingerprint), time.time())


def _run(run: Path, config: TrainConfig, data: Dataset, classifier: Classifier, started: float) -> Path:
    # ------------------------------------------------------------------------------------------------ pictures
    samples, preprocess = data.samples, classifier.preprocess
    pictures, readable = prepare.read_pictures(run, config, data, classifier)
    rows = {name: np.flatnonzero(readable & samples.in_split(name)) for name in ("train", "val")}
    train_set, val_set = samples.take(rows["train"]), samples.take(rows["val"])
    prepare.draw_samples(run, train_set)

    labels = {"train": torch.from_numpy(train_set.labels), "val": torch.from_numpy(val_set.labels)}
    weights = torch.from_numpy(train_set.weights)
    if config.sampling == "weighted":  # what comes more often must not count for more as well
        weights = torch.ones_like(weights)

    # ----------------------------------------------------------------------- the quick classifier, and the task
    begun, evaluation = checkpoint.exists(run), 0.0
    progress: dict[str, Any] = checkpoint.read_progress(run) if begun else {"epoch": 0, "best": None, "best_epoch": 0}
    if not begun:
        runs.write_text(run / "model.txt", summarise(classifier.model, preprocess.image_size))
    if config.pretrained and config.recipe == "auto" and hasattr(classifier.model, "stages"):
        task, evaluation = quick_then_tuned(
            run, config, classifier, samples, pictures, rows, labels, progress, started=started
        )
    else:
        task = prepare.image_task(config, classifier, samples, pictures, rows)
    if not begun:
        spent = time.time() - started
        config = prepare.settle_speed(config, task, train_set, spent=spent, evaluation=evaluation)
        runs.write_config(run, dataclasses.asdict(config))
    assert config.epochs is not None
    assert config.lr is not None

    # ------------------------------------------------------------------------------------ optimiser and devices
    fabric = prepare.make_fabric(config)
    task.use_layout(channels_last=bool(config.channels_last), device=fabric.device)
    optimizer = make_optimizer(
        task.module, config.optimizer, lr=config.lr, weight_decay=config.weight_decay, momentum=config.momentum,
        fresh=prepare.fresh_head(config, task.module),
    )  # fmt: skip
    if begun:
        checkpoint.restore(run, classifier.model, optimizer)
        log.info("going on after epoch %d of %d", progress["epoch"], config.epochs)
    else:
        checkpoint.save(run, classifier.model, optimizer, progress)
    runs.keep_metrics(run, progress["epoch"])
    module, optimizer = fabric.setup(task.module, optimizer)
    labels, weights = {name: y.to(fabric.device) for name, y in labels.items()}, weights.to(fabric.device)

    # --------------------------------------------------------------------------------------------------- epochs
    board = runs.tensorboard(run)
    steps = len(task.train)
    try:
        for epoch in range(progress["epoch"] + 1, config.epochs + 1):
            if config.patience and epoch - 1 - progress["best_epoch"] >= config.patience:
                log.info("no better %s for %d epochs: stopping", config.select, config.patience)
                break
            begin, seen, loss_sum, right = time.perf_counter(), 0, 0.0, 0
            lr = 0.0
            task.module.train()
            with terminal.bar(f"epoch {epoch}/{config.epochs}", steps) as bar:
                for number, (inputs, index) in enumerate(task.train.epoch(epoch)):
                    step = (epoch - 1) * steps + number
                    lr = learning_rate(
                        step,
                        peak=config.lr,
                        schedule=config.schedule,
                        steps_per_epoch=steps,
                        epochs=config.epochs,
                        warmup_epochs=config.warmup_epochs,
                        lr_decay=config.lr_decay,
                    )
                    for group in optimizer.param_groups:
                        group["lr"] = lr * group["lr_scale"]
                    torch.manual_seed(derive_seed("step", config.seed, step, fabric.global_rank))
                    y = labels["train"][index]
                    x, targets = task.prepare(inputs), y
                    if config.mixup or config.cutmix:
                        shares = F.one_hot(y, len(classifier.classes)).float()
                        seed = derive_seed("mix", config.seed, step, fabric.global_rank)
                        x, targets = mix(x, shares, mixup=config.mixup, cutmix=config.cutmix, seed=seed)
                    outputs = module(x)
                    loss = compute_loss(config.loss, outputs, targets, weights[index], config.label_smoothing)
                    if not torch.isfinite(loss):
                        raise FloatingPointError(_diverged(run, epoch, number + 1, lr))
                    fabric.backward(loss)
                    if config.clip_norm:
                        fabric.clip_gradients(module, optimizer, max_norm=config.clip_norm, error_if_nonfinite=False)
                    optimizer.step()
                    optimizer.zero_grad(set_to_none=True)

                    seen += len(y)
                    loss_sum += loss.item() * len(y)
                    right += int(correct(outputs.detach(), y))
                    rate = seen / (time.perf_counter() - begin)
                    bar.advance(note=f"loss {loss_sum / seen:.3f}  accuracy {right / seen:.3f}  {rate:.0f} images/s")

            # ------------------------------------------------------- validate, keep the best, save, say how it goes
            seconds = time.perf_counter() - begin
            val_loss, val_accuracy = validate(config, task, module, labels["val"])
            row = {
                "epoch": epoch,
                "step": epoch * steps,
                "train_loss": loss_sum / seen,
                "train_accuracy": right / seen,
                "val_loss": val_loss,
                "val_accuracy": val_accuracy,
                "lr": lr,
                "seconds": round(seconds, 3),
                "images_per_second": round(seen / seconds, 2),
            }
            is_best = better(row, progress["best"], config.select)
            if is_best:
                progress |= {
                    "best": {"val_loss": val_loss, "val_accuracy": val_accuracy},
                    "best_epoch": epoch,
                }
                classifier.about["validation"] = progress["best"] | {"epoch": epoch}
                classifier.save(run / runs.CLASSIFIER)
            runs.append_metrics(run, row)
            runs.write_scalars(board, row)
            progress["epoch"] = epoch
            checkpoint.save(run, classifier.model, optimizer.optimizer, progress)
            log.info(
                "epoch %d/%d  loss %.4f  accuracy %.4f  val loss %.4f  val accuracy %.4f%s  lr %.1e  %.0f s, "
                "%.0f images/s",
                epoch, config.epochs, row["train_loss"], row["train_accuracy"], val_loss, val_accuracy,
                " (best)" if is_best else "", lr, seconds, seen / seconds,
            )  # fmt: skip
    finally:
        board.close()

    # -------------------------------------------------------------------------------- the best model, measured
    best = load(run)
    log.info("best epoch: %d", progress["best_epoch"])
    finish_run(run, best, samples)
    return run


@contextlib.contextmanager
def _resumable(run: Path) -> Iterator[None]:
    """Ctrl-C anywhere in a run says how to go on."""
    try:
        yield
    except KeyboardInterrupt:
        raise KeyboardInterrupt(f"what was finished is saved; go on with: lenext train --resume {run}") from None


@torch.no_grad()
def validate(config: TrainConfig, task: prepare.Task, module: nn.Module, labels: Tensor) -> tuple[float, float]:
    """(loss, accuracy) over the validation pictures, each counted once; the loss is the plain mean."""
    task.module.eval()
    loss_sum, right = 0.0, 0
    for inputs, index in task.val.in_order():
        outputs, y = task.predict(module, inputs), labels[index]
        loss_sum += float(compute_loss(config.loss, outputs, y, torch.ones_like(y, dtype=torch.float32), 0.0)) * len(y)
        right += int(correct(outputs, y))
    return loss_sum / len(labels), right / len(labels)


def better(row: dict[str, float], best: dict[str, float] | None, select: str) -> bool:
    """Whether an epoch beats the best so far; at equal accuracy the lower loss wins."""
    if best is None:
        return True
    if select == "val_loss":
        return row["val_loss"] < best["val_loss"]
    return (row["val_accuracy"], -row["val_loss"]) > (best["val_accuracy"], -best["val_loss"])


def _new_classifier(config: TrainConfig, samples: Samples, fingerprint: dict[str, str]) -> Classifier:
    """A network with fresh or pretrained weights and what belongs to it, not yet trained."""
    architecture = {
        "name": config.model,
        "num_outputs": num_outputs(config.loss, len(samples.classes)),
        "image_size": config.image_size,
        "arguments": config.arguments,
    }
    torch.manual_seed(derive_seed("weights", config.seed))
    return Classifier(
        model=build_network(architecture, pretrained=config.pretrained or False),
        architecture=architecture,
        classes=samples.classes,
        preprocess=prepare.preprocess_of(config),
        about={
            "data": config.data,
            "data_options": prepare.data_options(config).to_dict(),
            "fingerprint": fingerprint,
        },
    )


def _diverged(run: Path, epoch: int, step: int, lr: float) -> str:
    return (
        f"the loss is not a number at step {step} of epoch {epoch} (learning rate {lr:.1e}): the training diverged. "
        f"Weights and files of the epoch before are whole in {run}; train again with a lower --lr"
    )
