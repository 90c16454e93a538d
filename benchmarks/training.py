"""Training beside its peers: pictures a second from JPEG files to updated weights, and the way to a fixed accuracy.

    python benchmarks/training.py --peers FOLDER [--models resnet18 resnet50] [--only NAME...] [--rounds 3]
    python benchmarks/training.py --peers FOLDER --accuracy [--fashion IDX_FOLDER] [--limit SECONDS]
    python benchmarks/training.py --report

Speed: ResNet-18 and ResNet-50 from random weights on 224 x 224 pictures, batches of 32, SGD with momentum 0.9,
RandomResizedCrop(224, scale (0.08, 1)) and a random flip. What else a peer does by default it does here. "By hand"
is a peer with the settings that an expert would add; "bare" is a step on one batch in memory, without any loop. Both
are in bfloat16 where the processor has instructions for it and in float32 elsewhere. Every measurement is a process of
its own and ends as soon as enough steps are timed, in the middle of an epoch, when files are still being read; the
first steps are not counted. The sides take turns, forwards and backwards.

Accuracy: Fashion-MNIST as PNG files, the 10,000 test pictures measured after every epoch, seconds from the start of
the command. What the test pictures say chooses nothing. A side that was interrupted goes on from its own checkpoint.

Finished measurements stay in benchmarks/results/training.jsonl and are not made again unless asked; --report writes
training.md from them, and so does every measurement. Run it on a quiet machine. FOLDER has an environment a peer:

    cd FOLDER && for peer in timm fastai ultralytics transformers keras; do python -m venv $peer; done
    git clone https://github.com/huggingface/pytorch-image-models && timm/bin/pip install -r \
        pytorch-image-models/requirements.txt
    fastai/bin/pip install fastai
    ultralytics/bin/pip install ultralytics
    transformers/bin/pip install "transformers[torch]" datasets torchvision
    keras/bin/pip install keras keras-hub tensorflow-cpu

The pictures are those of benchmarks/data.py.
"""

from __future__ import annotations

import argparse
import contextlib
import gzip
import importlib.metadata
import itertools
import json
import os
import resource
import runpy
import shutil
import signal
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

# The peers' interpreters run this file as well: nothing outside the standard library is imported up here.

RESULTS = Path(__file__).parent / "results"
SIZE, BATCH, MOMENTUM, LR = 224, 32, 0.9, 0.05
MEAN, STD = [0.485, 0.456, 0.406], [0.229, 0.224, 0.225]
MODELS = ("resnet18", "resnet50")
# Steps are timed after the first ones until there are enough of them, or as many as need be and enough seconds.
SKIPPED, LEAST, MOST, SECONDS = 2, 4, 12, 12.0
BEYOND = 16  # batches of the epoch after the last timed step: more than any peer has ready in advance
TIMEOUT = 900.0
CURVE = Path("run/metrics.jsonl")  # where every side writes {"epoch", "val_accuracy"}, an epoch a line
LEVELS = (0.90, 0.92, 0.93, 0.94)


def native_bfloat16() -> str:
    """What the processor multiplies bfloat16 with: its matrix unit, its vector unit, or nothing that is known of."""
    found = Path("/proc/cpuinfo")
    flags = set(found.read_text().split()) if found.exists() else set()
    return "AMX" if "amx_bf16" in flags else "AVX-512" if "avx512_bf16" in flags else ""


# What an expert would choose on this processor.
PRECISION = "bfloat16" if native_bfloat16() else "float32"


@dataclass(frozen=True, kw_only=True)
class Job:
    """One measurement, as its process is told. data: folder with train/<class>/ and val/<class>/. work: a folder of
    its own. began: when the command was given, in seconds since the epoch."""

    kind: str
    side: str
    model: str
    data: str
    work: str
    peers: str
    began: float


class Stopwatch:
    """Called after every update of the weights; writes the times and ends the process when there are enough."""

    def __init__(self, job: Job, package: str) -> None:
        self.job, self.package, self.ends = job, package, list[float]()

    def __call__(self, *_: Any) -> None:
        ends = self.ends
        ends.append(time.time())
        timed = len(ends) - SKIPPED
        if timed == MOST or (timed >= LEAST and ends[-1] - ends[SKIPPED - 1] >= SECONDS):
            scale = 1 if sys.platform == "darwin" else 1024
            answer = {
                "first_step": ends[0] - self.job.began,
                "ends": [end - ends[0] for end in ends],
                "memory_mib": round(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * scale / 2**20),
                "version": version(self.package),
            }
            (Path(self.job.work) / "answer.json").write_text(json.dumps(answer))
            os._exit(0)

    def watch_torch(self) -> None:
        """Every optimiser of PyTorch calls it from now on."""
        from torch.optim.optimizer import register_optimizer_step_post_hook

        register_optimizer_step_post_hook(self)


def version(package: str) -> str:
    module = sys.modules.get(package)
    return str(getattr(module, "__version__", None) or importlib.metadata.version(package))


# -------------------------------------------------------------------------------------------------- sides: speed


def lenext_speed(job: Job, clock: Stopwatch) -> None:
    clock.watch_torch()
    run_module(
        "lenext.cli",
        f"train {job.data} --recipe fit --model {job.model} --pretrained false --image-size {SIZE} --batch-size {BATCH}"
        f" --optimizer sgd --momentum {MOMENTUM} --lr {LR} --epochs 1 --augment standard --crop-scale 0.08"
        f" --check false --out {job.work}/run",
    )


def timm_speed(job: Job, clock: Stopwatch, more: str = "") -> None:
    """The training script of the repository; its colour jitter and random interpolation are turned off."""
    clock.watch_torch()
    script = Path(job.peers) / "pytorch-image-models" / "train.py"
    sys.path.insert(0, str(script.parent))
    sys.argv = [
        str(script),
        *f"{job.data} --model {job.model} --num-classes {len(classes(job))} -b {BATCH} --device cpu".split(),
        *f"--train-split train --val-split val --lr {LR} --color-jitter 0 --train-interpolation bilinear".split(),
        *f"--output {job.work}/run {more}".split(),
    ]
    runpy.run_path(str(script), run_name="__main__")


def timm_by_hand(job: Job, clock: Stopwatch, more: str = "") -> None:
    amp = "--amp --amp-dtype bfloat16" if PRECISION == "bfloat16" else ""
    timm_speed(job, clock, f"{amp} --channels-last -j 2 {more}")


def timm_compiled(job: Job, clock: Stopwatch) -> None:
    timm_by_hand(job, clock, "--torchcompile")


def fastai_speed(job: Job, clock: Stopwatch) -> None:
    from functools import partial

    from fastai.vision import all as fastai

    class Ticks(fastai.Callback):
        def after_batch(self) -> None:
            if self.training:
                clock()

    loaders = fastai.ImageDataLoaders.from_folder(
        job.data,
        valid="val",
        bs=BATCH,
        item_tfms=[fastai.RandomResizedCrop(SIZE, min_scale=0.08), fastai.FlipItem()],
        batch_tfms=fastai.Normalize.from_stats(MEAN, STD),
        device="cpu",
    )
    network = getattr(fastai, job.model)
    sgd = partial(fastai.SGD, mom=MOMENTUM)
    learner = fastai.vision_learner(loaders, network, pretrained=False, opt_func=sgd, metrics=fastai.accuracy)
    learner.fit_one_cycle(1, LR, cbs=Ticks())


def ultralytics_speed(job: Job, clock: Stopwatch) -> None:
    """Its classifier on torchvision's ResNet; colour changes and erasing are off, and every batch updates weights."""
    from ultralytics import YOLO

    width, layers = {"resnet18": (512, 2), "resnet50": (2048, 2)}[job.model]
    config = Path(job.work) / f"yolo11-cls-{job.model}.yaml"
    config.write_text(
        f"nc: {len(classes(job))}\n"
        f"backbone:\n  - [-1, 1, TorchVision, [{width}, {job.model}, None, True, {layers}]]\n"
        "head:\n  - [-1, 1, Classify, [nc]]\n"
    )
    model = YOLO(str(config), task="classify")
    model.add_callback("on_train_batch_end", lambda trainer: clock())
    model.train(
        data=job.data,
        epochs=1,
        batch=BATCH,
        nbs=BATCH,
        imgsz=SIZE,
        device="cpu",
        optimizer="SGD",
        momentum=MOMENTUM,
        lr0=LR,
        pretrained=False,
        scale=0.92,
        auto_augment=None,
        erasing=0.0,
        hsv_h=0.0,
        hsv_s=0.0,
        hsv_v=0.0,
        project=job.work,
        plots=False,
    )


def transformers_speed(job: Job, clock: Stopwatch, **arguments: Any) -> None:
    """As the library's example run_image_classification.py does it, with SGD."""
    import torch
    from datasets import load_dataset
    from torchvision.transforms import Compose, Normalize, RandomHorizontalFlip, RandomResizedCrop, ToTensor
    from transformers import ResNetConfig, ResNetForImageClassification, Trainer, TrainingArguments

    clock.watch_torch()
    transforms = Compose([RandomResizedCrop(SIZE), RandomHorizontalFlip(), ToTensor(), Normalize(MEAN, STD)])

    def prepare(rows: dict[str, list]) -> dict[str, list]:
        return {**rows, "pixel_values": [transforms(picture.convert("RGB")) for picture in rows["image"]]}

    def collate(rows: list[dict]) -> dict[str, Any]:
        return {
            "pixel_values": torch.stack([row["pixel_values"] for row in rows]),
            "labels": torch.tensor([row["label"] for row in rows]),
        }

    basic = {"layer_type": "basic", "hidden_sizes": [64, 128, 256, 512], "depths": [2, 2, 2, 2]}
    shape: dict[str, Any] = basic if job.model == "resnet18" else {}
    model = ResNetForImageClassification(ResNetConfig(num_labels=len(classes(job)), **shape))
    settings = TrainingArguments(
        output_dir=f"{job.work}/run",
        per_device_train_batch_size=BATCH,
        num_train_epochs=1,
        learning_rate=LR,
        optim="sgd",
        optim_args=f"momentum={MOMENTUM}",
        remove_unused_columns=False,
        report_to="none",
        use_cpu=True,
        **arguments,
    )
    pictures = load_dataset("imagefolder", data_dir=job.data, cache_dir=f"{job.work}/datasets")
    pictures.set_transform(prepare)
    Trainer(model=model, args=settings, train_dataset=pictures["train"], data_collator=collate).train()


def transformers_by_hand(job: Job, clock: Stopwatch) -> None:
    transformers_speed(job, clock, bf16=PRECISION == "bfloat16", dataloader_num_workers=2)


def keras_speed(job: Job, clock: Stopwatch, policy: str = "float32") -> None:
    """Pictures by image_dataset_from_directory in their own size, then cropped and flipped in the same pipeline."""
    import keras
    import tensorflow as tf

    keras.config.set_dtype_policy(policy)

    class Ticks(keras.callbacks.Callback):
        def on_train_batch_end(self, batch: int, logs: Any = None) -> None:
            clock()

    def augment(picture: Any, label: Any) -> tuple[Any, Any]:
        whole = tf.constant([[[0.0, 0.0, 1.0, 1.0]]])
        at, size, _ = tf.image.sample_distorted_bounding_box(
            tf.shape(picture), whole, min_object_covered=0.0, area_range=(0.08, 1.0), aspect_ratio_range=(3 / 4, 4 / 3)
        )
        picture = tf.image.resize(tf.slice(picture, at, size), (SIZE, SIZE))
        return tf.image.random_flip_left_right(tf.ensure_shape(picture, (SIZE, SIZE, 3))), label

    pictures = keras.utils.image_dataset_from_directory(f"{job.data}/train", image_size=(375, 500), batch_size=None)
    pictures = pictures.map(augment, num_parallel_calls=tf.data.AUTOTUNE).batch(BATCH).prefetch(tf.data.AUTOTUNE)
    model = keras_network(job)
    model.compile(
        optimizer=keras.optimizers.SGD(LR, momentum=MOMENTUM),
        loss=keras.losses.SparseCategoricalCrossentropy(from_logits=True),
        metrics=["accuracy"],
    )
    model.fit(pictures, epochs=1, callbacks=[Ticks()], verbose=2)


def keras_network(job: Job) -> Any:
    import keras

    inputs = keras.Input((SIZE, SIZE, 3))
    x = keras.layers.Normalization(mean=[255 * m for m in MEAN], variance=[(255 * s) ** 2 for s in STD])(inputs)
    if job.model == "resnet50":
        body = keras.applications.ResNet50(
            weights=None, classes=len(classes(job)), classifier_activation=None, input_shape=(SIZE, SIZE, 3)
        )
        return keras.Model(inputs, body(x))
    import keras_hub

    body = keras_hub.models.ResNetBackbone(
        input_conv_filters=[64],
        input_conv_kernel_sizes=[7],
        stackwise_num_filters=[64, 128, 256, 512],
        stackwise_num_blocks=[2, 2, 2, 2],
        stackwise_num_strides=[1, 2, 2, 2],
        block_type="basic_block",
        image_shape=(SIZE, SIZE, 3),
    )
    x = keras.layers.GlobalAveragePooling2D()(body(x))
    return keras.Model(inputs, keras.layers.Dense(len(classes(job)), dtype="float32")(x))


def bare_step(job: Job, clock: Stopwatch) -> None:
    """bfloat16 autocast or float32, channels-last, on one random batch in memory."""
    import torch
    import torchvision

    clock.watch_torch()
    model = torchvision.models.get_model(job.model, num_classes=len(classes(job)))
    model.to(memory_format=torch.channels_last)
    optimizer = torch.optim.SGD(model.parameters(), lr=LR, momentum=MOMENTUM)
    x = torch.randn(BATCH, 3, SIZE, SIZE).contiguous(memory_format=torch.channels_last)
    labels = torch.arange(BATCH) % len(classes(job))
    while True:
        with torch.autocast("cpu", torch.bfloat16, enabled=PRECISION == "bfloat16"):
            loss = torch.nn.functional.cross_entropy(model(x), labels)
        loss.backward()
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)


def bare_step_our_memory(job: Job, clock: Stopwatch) -> None:
    from lenext.training.allocator import keep_memory

    keep_memory()
    bare_step(job, clock)


# ----------------------------------------------------------------------------------------------- sides: accuracy


def lenext_accuracy(job: Job) -> None:
    """The settings that the docstring of the recipe gives."""
    run = Path(job.work) / "run"
    new = (
        f"train {job.data} --recipe scratch-small --image-size 24 --start-size 20 --crop-scale 0.9 --batch-size 512"
        f" --lr 0.02 --epochs 5 --check false --out {run}"
    )
    run_module("lenext.cli", f"train --resume {run}" if (run / "config.yaml").exists() else new)


def fastai_accuracy(job: Job) -> None:
    """The defaults of the library on ResNet-18: Adam, one cycle, batches of 64, without augmentation."""
    from fastai.vision import all as fastai

    class Curve(fastai.Callback):
        order = 60  # after the recorder

        def after_epoch(self) -> None:
            self.learn.save("last")
            write_epoch(job, self.epoch + 1, self.learn.recorder.values[-1][-1])

    loaders = fastai.ImageDataLoaders.from_folder(job.data, valid="val", device="cpu")
    learner = fastai.vision_learner(loaders, fastai.resnet18, pretrained=False, metrics=fastai.accuracy)
    learner.path = Path(job.work)
    done = epochs_done(job)
    if done:
        learner.load("last")
    learner.fit_one_cycle(10, start_epoch=done, cbs=Curve())


def keras_accuracy(job: Job) -> None:
    """The network, batch and number of epochs of the library's own example for MNIST (mnist_convnet)."""
    import keras

    class Curve(keras.callbacks.Callback):
        def on_epoch_end(self, epoch: int, logs: Any = None) -> None:
            write_epoch(job, epoch + 1, logs["val_accuracy"])

    def pictures(split: str, **arguments: Any) -> Any:
        return keras.utils.image_dataset_from_directory(
            f"{job.data}/{split}", color_mode="grayscale", image_size=(28, 28), batch_size=128, **arguments
        )

    layers = keras.layers
    model = keras.Sequential(
        [
            keras.Input((28, 28, 1)),
            layers.Rescaling(1 / 255),
            layers.Conv2D(32, 3, activation="relu"),
            layers.MaxPooling2D(),
            layers.Conv2D(64, 3, activation="relu"),
            layers.MaxPooling2D(),
            layers.Flatten(),
            layers.Dropout(0.5),
            layers.Dense(10, activation="softmax"),
        ]
    )
    model.compile(optimizer="adam", loss="sparse_categorical_crossentropy", metrics=["accuracy"])
    kept = keras.callbacks.BackupAndRestore(f"{job.work}/backup", delete_checkpoint=False)
    model.fit(
        pictures("train"),
        validation_data=pictures("val", shuffle=False),
        epochs=15,
        callbacks=[kept, Curve()],
        verbose=2,
    )


def write_epoch(job: Job, epoch: int, accuracy: float) -> None:
    path = Path(job.work) / CURVE
    path.parent.mkdir(exist_ok=True)
    with path.open("a") as file:
        file.write(json.dumps({"epoch": epoch, "val_accuracy": float(accuracy)}) + "\n")


def epochs_done(job: Job) -> int:
    return max((row["epoch"] for row in read_rows(Path(job.work) / CURVE)), default=0)


# --------------------------------------------------------------------------------------------------- the table


@dataclass(frozen=True, kw_only=True)
class Side:
    """One row. peer: the folder of its environment, none for our own. setting: what it says of itself."""

    measure: Callable[..., None]
    package: str
    peer: str = ""
    setting: str = ""


OURS = "LeNeXt"
SPEED = {
    OURS: Side(measure=lenext_speed, package="lenext"),
    "timm": Side(measure=timm_speed, package="timm", peer="timm", setting="defaults"),
    "timm, by hand": Side(measure=timm_by_hand, package="timm", peer="timm", setting=f"{PRECISION}, channels-last"),
    "timm, by hand, compiled": Side(
        measure=timm_compiled, package="timm", peer="timm", setting=f"{PRECISION}, channels-last, torch.compile"
    ),
    "fastai": Side(measure=fastai_speed, package="fastai", peer="fastai", setting="defaults"),
    "Ultralytics": Side(measure=ultralytics_speed, package="ultralytics", peer="ultralytics", setting="defaults"),
    "Keras": Side(measure=keras_speed, package="keras", peer="keras", setting="defaults, TensorFlow"),
    "Hugging Face Trainer": Side(
        measure=transformers_speed, package="transformers", peer="transformers", setting="defaults"
    ),
    "Hugging Face Trainer, by hand": Side(
        measure=transformers_by_hand, package="transformers", peer="transformers", setting=f"{PRECISION}, 2 workers"
    ),
    "PyTorch, bare": Side(measure=bare_step, package="torch", setting=f"{PRECISION}, channels-last, no files"),
    "PyTorch, bare, our memory": Side(
        measure=bare_step_our_memory, package="torch", setting=f"{PRECISION}, channels-last, no files, our allocator"
    ),
}
ACCURACY = {
    OURS: Side(measure=lenext_accuracy, package="lenext", setting="recipe scratch-small, 24 pixels, five epochs"),
    "fastai": Side(measure=fastai_accuracy, package="fastai", peer="fastai", setting="ResNet-18, defaults"),
    "Keras": Side(measure=keras_accuracy, package="keras", peer="keras", setting="its example for MNIST"),
}


# --------------------------------------------------------------------------------------------------- measurement


def run_module(module: str, arguments: str) -> None:
    """`python -m module arguments`, in this process."""
    sys.argv = [module, *arguments.split()]
    runpy.run_module(module, run_name="__main__", alter_sys=True)


def classes(job: Job) -> list[str]:
    return sorted(path.name for path in (Path(job.data) / "train").iterdir() if path.is_dir())


def inside(job: Job) -> None:
    """The measurement itself, in the process and the interpreter of its side."""
    sys.path.pop(0)  # the folder of this file, whose neighbours have common names
    if job.kind == "accuracy":
        ACCURACY[job.side].measure(job)
        return
    side = SPEED[job.side]
    side.measure(job, Stopwatch(job, side.package))
    raise RuntimeError("the training ended before enough steps were timed")


@contextlib.contextmanager
def started(side: Side, job: Job) -> Iterator[subprocess.Popen]:
    """The process of a measurement; it and its children end with the block. What it says goes to work/log.txt."""
    python = Path(job.peers) / side.peer / "bin" / "python" if side.peer else Path(sys.executable)
    if not python.exists():
        raise RuntimeError(f"there is no environment {python.parent.parent}")
    own = ("LD_PRELOAD", "GLIBC_TUNABLES", "PYTHONPATH")
    environment = {key: value for key, value in os.environ.items() if key not in own} | {
        "CUDA_VISIBLE_DEVICES": "",
        "HF_HUB_OFFLINE": "1",
        "YOLO_OFFLINE": "true",
        "YOLO_CONFIG_DIR": job.work,
        "TF_CPP_MIN_LOG_LEVEL": "2",
        # Nothing is known from the measurement before.
        "XDG_CACHE_HOME": f"{job.work}/cache",
        "TORCHINDUCTOR_CACHE_DIR": f"{job.work}/inductor",
    }
    command = [str(python), str(Path(__file__).resolve()), "--inside", json.dumps(asdict(job))]
    with (Path(job.work) / "log.txt").open("a") as log:
        process = subprocess.Popen(
            command, stdout=log, stderr=subprocess.STDOUT, env=environment, cwd=job.work, start_new_session=True
        )
    try:
        yield process
    finally:
        with contextlib.suppress(ProcessLookupError):
            os.killpg(process.pid, signal.SIGKILL)
        process.wait()


def last_words(work: Path) -> str:
    lines = [line.strip() for line in (work / "log.txt").read_text(errors="replace").splitlines() if line.strip()]
    return lines[-1] if lines else "it said nothing"


def measure_speed(name: str, model: str, data: Path, peers: Path) -> dict[str, Any]:
    """A row of results; RuntimeError with the last line of what was said when it fails."""
    side = SPEED[name]
    with tempfile.TemporaryDirectory(ignore_cleanup_errors=True) as folder:
        work = Path(folder)
        began = time.time()
        job = Job(kind="speed", side=name, model=model, data=str(data), work=folder, peers=str(peers), began=began)
        with started(side, job) as process:
            try:
                process.wait(TIMEOUT)
            except subprocess.TimeoutExpired:
                raise RuntimeError(f"not done after {TIMEOUT:.0f} s") from None
        if not (work / "answer.json").exists():
            raise RuntimeError(last_words(work))
        answer = json.loads((work / "answer.json").read_text())
        setting = our_setting(work / "run") if name == OURS else side.setting
    ends = answer.pop("ends")
    return {
        "images_per_second": BATCH * (len(ends) - SKIPPED) / (ends[-1] - ends[SKIPPED - 1]),
        "steps": [round(b - a, 4) for a, b in itertools.pairwise(ends)],
        "setting": setting,
        **answer,
    }


def our_setting(run: Path) -> str:
    """What the program chose by itself."""
    from lenext import runs

    config = runs.read_config(run)
    layout = "channels-last" if config["channels_last"] else "contiguous"
    compiled = ", compiled" if config["compile"] else ""
    return f"chosen: {config['precision']}, {layout}{compiled}"


def measure_accuracy(name: str, data: Path, peers: Path, limit: float, before: list[dict], keep: Callable) -> None:
    """Rows of (epoch, seconds, accuracy), each kept when it is known; the last one says whether the side came to an end
    by itself or was stopped."""
    side, work = ACCURACY[name], Path(tempfile.gettempdir()) / "lenext-benchmark-accuracy" / name
    if not before:
        shutil.rmtree(work, ignore_errors=True)
    work.mkdir(parents=True, exist_ok=True)
    # Our run goes on from the middle of an epoch, a peer from the end of one: that is up to where its time counts.
    spent = max((row["seconds"] for row in before if name == OURS or row["accuracy"] is not None), default=0.0)
    epoch = max((row["epoch"] for row in before), default=0)
    begin = time.time()
    job = Job(kind="accuracy", side=name, model="", data=str(data), work=str(work), peers=str(peers), began=begin)
    seconds, running = spent, True
    with started(side, job) as process:
        try:
            while running and seconds < limit:
                time.sleep(0.2)
                running = process.poll() is None
                seconds = spent + time.time() - begin
                for row in read_rows(work / CURVE):
                    if row["epoch"] > epoch:
                        epoch = row["epoch"]
                        keep({"epoch": epoch, "seconds": round(seconds, 1), "accuracy": row["val_accuracy"]})
            if process.returncode:
                raise RuntimeError(last_words(work))
        finally:
            keep({"epoch": epoch, "seconds": round(seconds, 1), "accuracy": None, "ended": process.returncode == 0})


def read_rows(file: Path) -> list[dict[str, Any]]:
    """The whole lines of a file of JSON lines."""
    text = file.read_text() if file.exists() else ""
    return [json.loads(line) for line in text[: text.rfind("\n") + 1].splitlines()]


# ------------------------------------------------------------------------------------------------------- pictures


def write_fashion(source: Path, folder: Path) -> None:
    """Fashion-MNIST as folder/{train,val}/<class>/<number>.png; val has the test pictures."""
    import numpy as np
    from PIL import Image

    if (folder / "done").exists():
        return
    for split, stem in (("train", "train"), ("val", "t10k")):
        pixels = np.frombuffer(gzip.decompress((source / f"{stem}-images-idx3-ubyte.gz").read_bytes()), np.uint8)
        labels = np.frombuffer(gzip.decompress((source / f"{stem}-labels-idx1-ubyte.gz").read_bytes()), np.uint8)
        for label in range(10):
            (folder / split / str(label)).mkdir(parents=True, exist_ok=True)
        for i, (picture, label) in enumerate(zip(pixels[16:].reshape(-1, 28, 28), labels[8:], strict=True)):
            Image.fromarray(picture).save(folder / split / str(label) / f"{i:05}.png")
    (folder / "done").touch()


def machine() -> dict[str, Any]:
    from lenext import runs

    found = runs.environment()
    own = {"bfloat16": native_bfloat16(), "threads": os.environ.get("OMP_NUM_THREADS", "all")}
    return {key: found[key] for key in ("processor", "cores", "memory_gib", "torch", "python")} | own


def described(machine: dict[str, Any]) -> str:
    """A machine in words."""
    unit = f"bfloat16 in {machine['bfloat16']}" if machine["bfloat16"] else "no instructions for bfloat16"
    threads = "" if machine["threads"] == "all" else f", OMP_NUM_THREADS={machine['threads']}"
    return (
        f"{machine['cores']} cores of {machine['processor']}, {unit}, {machine['memory_gib']} GiB, "
        f"torch {machine['torch']}{threads}"
    )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--peers", type=Path, default=Path("peers"), help="folder of the peers' environments")
    parser.add_argument("--models", nargs="+", default=list(MODELS), choices=MODELS, metavar="NAME")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--only", nargs="+", default=list(SPEED), choices=list(SPEED), metavar="NAME")
    parser.add_argument("--again", action="store_true", help="forget what has been measured of these")
    parser.add_argument("--accuracy", action="store_true", help="measure the way to a fixed accuracy instead of speed")
    parser.add_argument("--fashion", type=Path, default=Path("/usr/share/datasets/fashion-mnist"),
                        help="folder of Fashion-MNIST, IDX files (Debian: dataset-fashion-mnist)")  # fmt: skip
    parser.add_argument("--limit", type=float, default=1800.0, help="seconds a side, with --accuracy")
    parser.add_argument("--report", action="store_true", help="only write training.md from what has been measured")
    parser.add_argument("--results", type=Path, default=RESULTS, help="folder of training.jsonl and training.md")
    parser.add_argument("--inside", type=json.loads, help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.inside:
        inside(Job(**args.inside))
        return
    from lenext import runs

    here, file, peers = machine(), args.results / "training.jsonl", args.peers.resolve()
    rows = read_rows(file)
    args.results.mkdir(exist_ok=True)
    if args.report:
        runs.write_text(args.results / "training.md", report(rows))
        return
    kind = "accuracy" if args.accuracy else "speed"
    models = ["fashion"] if args.accuracy else args.models
    if args.again:
        rows = [r for r in rows if r["kind"] != kind or r["side"] not in args.only or r["model"] not in models]
        runs.write_text(file, "".join(json.dumps(row) + "\n" for row in rows))

    def save(row: dict[str, Any]) -> None:
        rows.append({**row, "machine": here})
        with file.open("a") as lines:
            lines.write(json.dumps(rows[-1]) + "\n")
        runs.write_text(args.results / "training.md", report(rows))
        print({key: value for key, value in row.items() if key != "steps"}, flush=True)

    def measured(about: dict[str, Any]) -> list[dict[str, Any]]:
        """The rows of a side on this machine; what failed is tried again."""
        about = {**about, "machine": here}
        return [row for row in rows if about.items() <= row.items() and "failed" not in row]

    if args.accuracy:
        data = Path(tempfile.gettempdir()) / "lenext-benchmark-fashion"
        write_fashion(args.fashion, data)
        for name in [name for name in args.only if name in ACCURACY]:
            about = {"kind": kind, "side": name, "model": "fashion"}
            before = measured(about)
            if any(row.get("ended") or row["seconds"] >= args.limit for row in before):
                continue
            try:
                measure_accuracy(name, data, peers, args.limit, before, lambda row, about=about: save(about | row))
            except RuntimeError as error:
                save({**about, "failed": str(error)})
        return

    from data import make_pictures

    pictures = (SKIPPED + MOST + BEYOND) * BATCH
    data = Path(tempfile.gettempdir()) / f"lenext-benchmark-training-{pictures}"
    make_pictures(data / "train", pictures)
    make_pictures(data / "val", 2 * BATCH)
    failed = set()
    for model in args.models:
        for i in range(args.rounds):
            # Forwards and backwards in turn, so that a drift of the machine falls on all alike.
            for name in args.only if i % 2 == 0 else args.only[::-1]:
                about = {"kind": kind, "side": name, "model": model, "round": i}
                if measured(about) or (name, model) in failed:
                    continue
                try:
                    save({**about, **measure_speed(name, model, data, peers)})
                except RuntimeError as error:
                    failed.add((name, model))
                    save({**about, "failed": str(error)})


# --------------------------------------------------------------------------------------------------------- report


def report(rows: list[dict[str, Any]]) -> str:
    if not rows:
        raise SystemExit("nothing has been measured yet")
    lines = ["# Training beside its peers", "", "Made by `python benchmarks/training.py`."]
    for machine in [json.loads(text) for text in dict.fromkeys(json.dumps(row["machine"]) for row in rows[::-1])]:
        lines += report_of(machine, [row for row in rows if row["machine"] == machine])
    return "\n".join([*lines, ""])


def report_of(machine: dict[str, Any], rows: list[dict[str, Any]]) -> list[str]:
    """What one machine has measured."""
    lines = ["", f"## On {described(machine)}"]
    for model in MODELS:
        of = {name: found for name in SPEED if (found := of_side(rows, "speed", name, model))}
        if not of:
            continue
        speed = {name: statistics.median(row["images_per_second"] for row in found) for name, found in of.items()}
        lines += [
            "",
            f"### {model}, {SIZE} x {SIZE}, batches of {BATCH}, SGD",
            "",
            f"Pictures a second after the first {SKIPPED} steps, from JPEG files to updated weights, over {MOST} steps "
            f"or {SECONDS:.0f} s and at least {LEAST} steps; medians of alternating rounds, each a process of its own. "
            "Start: from the command to the end of the first step, with all that is chosen or compiled before it. "
            "Memory: the most that the training process held, without those that read files.",
            "",
            "| side | pictures a second | lowest to highest | rounds | LeNeXt is | start, s | memory, GiB | setting | "
            "version |",
            "| --- | --- | --- | --- | --- | --- | --- | --- | --- |",
        ]
        for name in sorted(speed, key=lambda name: -speed[name]):
            rates = [row["images_per_second"] for row in of[name]]
            times = f"{speed[OURS] / speed[name]:.2f} times" if OURS in speed and name != OURS else ""
            start = statistics.median(row["first_step"] for row in of[name])
            memory = statistics.median(row["memory_mib"] for row in of[name]) / 1024
            settings = " / ".join(dict.fromkeys(row["setting"] for row in of[name]))
            lines.append(
                f"| {name} | {speed[name]:.1f} | {min(rates):.1f} to {max(rates):.1f} | {len(rates)} | {times} "
                f"| {start:.0f} | {memory:.1f} | {settings} | {of[name][-1]['version']} |"
            )
    curves = {name: found for name in ACCURACY if (found := of_side(rows, "accuracy", name, "fashion"))}
    if curves:
        levels = " | ".join(f"{level:.0%}" for level in LEVELS)
        lines += [
            "",
            "### Fashion-MNIST: seconds to an accuracy on the 10,000 test pictures",
            "",
            "From the start of the command, imports and reading included, to the end of the first epoch that is as "
            "good; the test pictures are measured after every epoch and choose nothing.",
            "",
            f"| side | {levels} | best | epochs | seconds in all | setting |",
            f"| --- |{' --- |' * (len(LEVELS) + 4)}",
        ]
        for name, found in curves.items():
            epochs = [row for row in found if row["accuracy"] is not None]
            reached = [
                next((f"{row['seconds']:.0f}" for row in epochs if row["accuracy"] >= level), "") for level in LEVELS
            ]
            best = max((row["accuracy"] for row in epochs), default=0.0)
            lines.append(
                f"| {name} | {' | '.join(reached)} | {best:.2%} | {len(epochs)} | {found[-1]['seconds']:.0f} "
                f"| {ACCURACY[name].setting} |"
            )
    failures = {
        f"{row['side']}, {row['model']}": row["failed"]
        for row in rows
        if "failed" in row and not of_side(rows, row["kind"], row["side"], row["model"])
    }
    if failures:
        lines += ["", "Left out:", "", *(f"- {name}: {reason}" for name, reason in failures.items())]
    return lines


def of_side(rows: list[dict[str, Any]], kind: str, name: str, model: str) -> list[dict[str, Any]]:
    return [
        row for row in rows if (row["kind"], row["side"], row["model"]) == (kind, name, model) and "failed" not in row
    ]


if __name__ == "__main__":
    main()
