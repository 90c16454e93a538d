"""The training loop: a page to read from top to bottom.

Randomness is a function of (seed, epoch, index) for pictures and of (seed, step, rank) for dropout, and the run folder
holds everything else: a run that was interrupted between any two steps goes on bit for bit as if it had not been.
"""

from __future__ import annotations

import dataclasses
import functools
import logging
import time
from pathlib import Path
from typing import Any

import torch
from torch import nn

from lenext import runs, terminal
from lenext.classifier import Classifier, load
from lenext.config import TrainConfig
from lenext.data.dataset import Dataset
from lenext.data.loader import derive_seed
from lenext.data.mixing import mix
from lenext.data.samples import Samples
from lenext.evaluation.evaluate import finish_run
from lenext.evaluation.report import write_report
from lenext.models.catalogue import summarise
from lenext.training import allocator, checkpoint, devices, freezing, goals, prepare, settle, tracking
from lenext.training.averaging import MovingAverage, TailAverage, refresh_norms
from lenext.training.checkpoint import Checkpoint, Progress
from lenext.training.distillation import Goal, student
from lenext.training.interruption import Interruption
from lenext.training.keeper import Keeper
from lenext.training.objective import correct
from lenext.training.optim import learning_rate
from lenext.training.step import Step, endure
from lenext.training.task import AT_LAST, Targets, Task, image_task, micro_batch_of
from lenext.training.two_steps import quick_then_tuned, takes_two_steps

log = logging.getLogger("lenext")
eagerly = functools.partial(torch.compiler.set_stance, "force_eager")


def fit(
    run: Path,
    config: TrainConfig,
    data: Dataset,
    classifier: Classifier,
    fabric: Any,
    interruption: Interruption,
    started: float,
) -> None:
    """Train, or go on training, the classifier of a run folder, and measure the best model."""
    # ------------------------------------------------------------------------------------------------ pictures
    samples, first = data.samples, fabric.is_global_zero
    with fabric.rank_zero_first(local=True):
        pictures = prepare.read_pictures(config, data, classifier.preprocess)
    if first:
        prepare.report_unreadable(run, classifier, samples, pictures)
    rows = prepare.readable_rows(run, samples, pictures, config.max_unreadable)
    train_set = samples.take(rows["train"])
    targets = {name: Targets(samples.take(rows[name]), fabric.device) for name in ("train", "val")}
    weights = torch.from_numpy(train_set.weights).to(fabric.device)
    if config.sampling == "weighted":  # what comes more often must not count for more as well
        weights = torch.ones_like(weights)
    weights = torch.cat([weights, torch.zeros_like(weights)])  # an index beyond the last picture is a filler's

    # ----------------------------------------------------------------------- the quick classifier, and the task
    saved = Checkpoint(run) if devices.decide(fabric, lambda: checkpoint.exists(run)) else None
    progress, evaluation = saved.progress if saved else Progress(), None
    if first and not saved:
        runs.write_text(run / "model.txt", summarise(classifier.model, classifier.preprocess.image_size))
        prepare.draw_samples(run, train_set)

    def say(choice: str) -> None:
        log.info("%s", choice)
        if first:
            runs.add_choice(run, choice)

    def whole_network(workers: int) -> Task:
        return image_task(
            config, classifier, samples, pictures, rows,
            workers=workers, rank=fabric.global_rank, world_size=fabric.world_size,
        )  # fmt: skip

    task: Task | None = None
    if progress.quick and fabric.world_size > 1:
        raise ValueError(
            f"{run} was begun in one process, from a quick classifier, and several cannot go on with it: go on with "
            "--devices 1 --nodes 1, or train anew on several devices"
        )
    if fabric.world_size == 1 and takes_two_steps(config, classifier) and (progress.quick or not saved):
        task, evaluation = quick_then_tuned(
            run, config, classifier, samples, pictures, rows, progress, saved, started=started, say=say
        )
        if config.recipe == "probe":
            return _measure(run, samples)
    goal = goals.goal_of(config, classifier, train_set).to(fabric.device)
    plain = goals.plain_goal(config, classifier).to(fabric.device)
    if not saved:
        config = settle.settle(
            config, task, whole_network, targets["train"], goal, fabric, started=started, evaluation=evaluation,
            answers=classifier.views * int((~samples.in_split("train")).sum()), say=say,
        )  # fmt: skip
        if config.epochs is None:
            return _measure(run, samples)
        if first:
            runs.write_config(run, dataclasses.asdict(config))
    task = task or whole_network(config.workers or 0)
    assert config.epochs is not None
    assert config.lr is not None

    # ------------------------------------------------------------------------------------ network and optimiser
    divided = devices.divides(config.strategy, fabric.world_size)
    task.place(channels_last=bool(config.channels_last), device=fabric.device, divided=divided)
    network, bfloat16 = task.module, config.precision == "bfloat16"
    if config.sync_batchnorm and fabric.world_size > 1:
        nn.SyncBatchNorm.convert_sync_batchnorm(network)  # in place: no network is a batch norm itself
    learner = (student(network) if config.teacher else None) or network
    if config.compile:
        learner.compile()
    module = fabric.setup_module(learner)
    optimizer = goals.optimizer_of(config, network)
    ema = MovingAverage(network, config.ema) if config.ema else None
    tail = TailAverage(network) if config.average else None
    keeper = Keeper(
        run, classifier, optimizer, ema, tail, progress, fabric, every=config.checkpoint_every, select=config.select
    )
    if saved:
        keeper.restore(saved)
        log.info("going on after epoch %d of %d, step %d", progress.epoch, config.epochs, progress.batch)
    else:
        keeper.save()
    saved = None  # its tensors are in use or in the way
    step = Step(
        fabric, module, network, fabric.setup_optimizers(optimizer), goal,
        micro_batch=progress.micro_batch or micro_batch_of(config, fabric.world_size),
        bfloat16=bfloat16, clip_norm=config.clip_norm, sam=config.sam, several=targets["train"].several,
    )  # fmt: skip

    # --------------------------------------------------------------------------------------------------- epochs
    steps = len(task.train)
    board = tracking.Trackers(
        run, config.trackers if first else (), config=dataclasses.asdict(config), purge_after=progress.epoch
    )
    if first:
        runs.keep_metrics(run, progress.epoch)
        board.picture("samples", run / "figures/samples.png", 0)
    try:
        for epoch in range(progress.epoch + 1, config.epochs + 1):
            if config.patience and epoch - 1 - progress.best_epoch >= config.patience:
                log.info("no better %s for %d epochs: stopping", config.select, config.patience)
                break
            freezing.freeze(network, freezing.frozen_share(epoch, config.freeze, config.unfreeze_epochs))
            network.train()
            freezing.keep_still(network)
            begin = time.perf_counter() - progress.seconds
            with terminal.bar(f"epoch {epoch}/{config.epochs}", steps, done=progress.batch) as bar:
                batches = task.train.epoch(epoch, start=progress.batch)
                for number, (inputs, index) in enumerate(batches, progress.batch):
                    # ---- rate, pictures, and what is to be learned from them
                    now = (epoch - 1) * steps + number
                    lr = progress.backoff * learning_rate(
                        now, peak=config.lr, schedule=config.schedule, steps_per_epoch=steps, epochs=config.epochs,
                        warmup_epochs=config.warmup_epochs, lr_decay=config.lr_decay, lr_epochs=config.lr_epochs,
                        final_lr=config.final_lr,
                    )  # fmt: skip
                    x, labels = task.prepare(inputs, epoch), targets["train"](index)
                    y = labels
                    if config.mixup or config.cutmix:
                        seed = derive_seed("mix", config.seed, now, fabric.global_rank)
                        y = targets["train"].shares(labels)
                        x, y = mix(x, y, mixup=config.mixup, cutmix=config.cutmix, seed=seed)

                    # ---- gradients, which an interruption drops; then the step, which none divides
                    outcome = step.compute(
                        x, y, labels, weights[index.to(fabric.device)],
                        seed=derive_seed("step", config.seed, now, fabric.global_rank),
                        stop=interruption.asked, due=keeper.is_due(),
                    )  # fmt: skip
                    with interruption.held():
                        if outcome.finite:
                            step.apply(lr)
                            if ema is not None:
                                ema.update()
                            progress.add(outcome.loss, outcome.right, outcome.seen)
                        else:
                            step.undo()
                            endure(progress, f"step {number + 1} of epoch {epoch} (learning rate {lr:.1e})", run)
                        progress.batch, progress.micro_batch, progress.lr = number + 1, step.micro_batch, lr
                        progress.seconds = time.perf_counter() - begin
                        bar.advance(note=progress.note())
                        if outcome.due and number + 1 < steps:
                            keeper.save()
                    if outcome.stop:
                        raise KeyboardInterrupt

            # ----------------------------------------------------- validate, keep the best, save, say how it goes
            figures = validate(task, plain, targets["val"], fabric, bfloat16=bfloat16)
            row = {
                "epoch": epoch, "step": epoch * steps, **progress.figures(), **figures, "lr": progress.lr,
                **progress.pace(), "peak_memory_mib": round(allocator.peak_memory(fabric.device) / 2**20, 1),
            }  # fmt: skip
            is_best = keeper.offer(figures, epoch, "trained")
            if ema is not None:
                with ema.swapped_in():
                    figures = validate(task, plain, targets["val"], fabric, bfloat16=bfloat16)
                    row |= {f"ema_{name}": value for name, value in figures.items()}
                    is_best |= keeper.offer(figures, epoch, "moving average")
            with interruption.held():
                if tail is not None and epoch > config.epochs - config.average:
                    tail.add()
                progress.end_epoch()
                if first:
                    runs.append_metrics(run, row)
                    board.scalars(row, epoch)
                    log.info("%s", terminal.epoch_line(row, config.epochs, is_best))
                if epoch == 1 or devices.decide(fabric, keeper.is_due):
                    keeper.save()
            allocator.release_if_scarce()
        if tail is not None and not tail.count:
            log.warning("no mean of the last %d epochs: the training stopped before the first of them", config.average)
        if tail is not None and tail.count:
            # As in the last epoch, which a run that goes on from its end has not seen.
            freezing.freeze(network, freezing.frozen_share(progress.epoch, config.freeze, config.unfreeze_epochs))
            with tail.swapped_in():
                refresh_norms(
                    network, (task.prepare(x, AT_LAST) for x, _ in task.train.epoch(0)),
                    seed=derive_seed("norms", config.seed, fabric.global_rank),
                )  # fmt: skip
                figures = validate(task, plain, targets["val"], fabric, bfloat16=bfloat16)
                if keeper.offer(figures, progress.epoch, f"mean of {tail.count} epochs"):
                    log.info("mean of the last %d epochs: val accuracy %.4f", tail.count, figures["val_accuracy"])
        keeper.save()
    except BaseException as error:
        with interruption.held():
            interrupted = interruption.has_come(error)
            if interrupted:
                step.undo()
                keeper.put_back()
                keeper.save()
            else:  # a training that diverged leaves the best model it had
                keeper.save_best()
        board.close(failed=True)  # after what matters: a server may be slow
        if interrupted:
            raise KeyboardInterrupt from None
        raise

    # -------------------------------------------------------------------------------- the best model, measured
    if first:
        keeper.report()
        log.info("best epoch: %d", progress.best_epoch)
        if progress.quick:
            tuned = "quick and fine-tuned classifier together" if progress.quick["stored"] else "fine-tuned network"
            why = "" if progress.best_epoch else ": fine-tuning was clearly worse on the validation pictures"
            say(f"kept: the {tuned if progress.best_epoch else 'quick classifier'}{why}")
        finish_run(run, load(run), samples)
        tracking.write_csv(run)
        for name in ("confusion-val", "confusion-test", "classes-val", "classes-test"):
            board.picture(name, run / f"figures/{name}.png", progress.epoch)  # what there is of them
        board.graph(classifier.model, torch.zeros(1, 3, *[classifier.preprocess.image_size] * 2))
        board.close()
        write_report(run)  # last: with it the run is finished


def _measure(run: Path, samples: Samples) -> None:
    """Measure and report the classifier that a run has; with the report it is finished."""
    finish_run(run, load(run), samples)
    write_report(run)


@torch.no_grad()
def validate(task: Task, goal: Goal, targets: Targets, fabric: Any, *, bfloat16: bool) -> dict[str, float]:
    """{val_loss, val_accuracy} over the validation pictures, each counted once; the loss is the plain mean."""
    task.module.eval()
    devices.take_from_first(fabric, task.module.buffers())  # whose statistics are kept
    n = len(targets)
    figures = torch.zeros(2, dtype=torch.float64, device=fabric.device)
    for inputs, index in task.val.in_order():
        real = index < n
        # A compiled network would be compiled once more for evaluation, which takes longer than it saves.
        with torch.autocast(fabric.device.type, torch.bfloat16, enabled=bfloat16), eagerly():
            outputs = task.predict(inputs)
        outputs, y = outputs[real.to(outputs.device)], targets(index[real])
        if len(y):
            losses = goal(outputs, y)
            figures += torch.stack([losses.sum().double(), correct(outputs, y, targets.several).sum().double()])
    if fabric.world_size > 1:
        figures = fabric.all_reduce(figures, reduce_op="sum")
    loss, right = figures.tolist()
    return {"val_loss": loss / n, "val_accuracy": right / n}
