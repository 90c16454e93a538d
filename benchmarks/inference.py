"""Inference beside its peers: pictures a second from JPEG files to labels, the backend that is chosen, int8's accuracy.

    python benchmarks/inference.py --peers FOLDER [--models resnet18 ...] [--only NAME...] [--rounds 3]
    python benchmarks/inference.py --accuracy [--seeds 3]
    python benchmarks/inference.py --report

Speed: eight networks at 224 x 224, with random weights where no installed package has others. Every measurement is a
process of its own, which names the classes of one JPEG file after the other without end; the first pictures, and all
that is built, chosen or compiled until they are done, are not counted. The sides take turns, forwards and backwards.
A peer runs as its documentation shows it. "By hand" is the loop that one would write in torchvision, "tuned" with all
that an expert would add without leaving PyTorch. LeNeXt runs as it is, which answers like float32 (to 0.001 of the
outputs), with a tolerance of 0.01, and on every backend by name.

Accuracy: classifiers of solar cells (`lenext demo`), each of another random split and trained here, on their test
photographs through every backend but the compiled; int8 sets its scales by the photographs of the training.

Finished measurements stay in benchmarks/results/inference.jsonl and are not made again unless asked; --report writes
inference.md from them, and so does every measurement. Run it on a quiet machine. FOLDER is that of
benchmarks/training.py; of its environments timm, transformers and ultralytics are used. The pictures are those of
benchmarks/data.py.
"""

from __future__ import annotations

import argparse
import contextlib
import itertools
import json
import os
import random
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

from training import MEAN, RESULTS, STD, described, last_words, machine, read_rows, version

# The peers' interpreters run this file as well: nothing outside the standard library is imported up here.

SIZE, BATCH, PICTURES = 224, 32, 2048
# Pictures are timed after the first ones until there are enough of them, or enough seconds.
SKIPPED, LEAST, MOST, SECONDS = 3 * BATCH, 2 * BATCH, 200 * BATCH, 10.0
TIMEOUT = 900.0
TOLERANCES = (1e-3, 1e-2)
BACKENDS = (
    "pytorch-float32", "pytorch-bfloat16", "compiled-float32", "compiled-bfloat16", "openvino-float32",
    "openvino-bfloat16", "openvino-int8", "onnxruntime-float32", "onnxruntime-int8",
)  # fmt: skip
# Compiling takes minutes and changes no accuracy.
ARITHMETICS = tuple(name for name in BACKENDS if not name.startswith("compiled"))


@dataclass(frozen=True, kw_only=True)
class Job:
    """One measurement, as its process is told. data: folder of <class>/<number>.jpg. work: a folder of its own.
    began: when the command was given, in seconds since the epoch."""

    side: str
    model: str
    data: str
    work: str
    peers: str
    began: float


@dataclass(frozen=True, kw_only=True)
class Network:
    """The names of a network elsewhere, None where it is not.

    hugging_face: the model's name, its processor's and the settings that make it this size. ultralytics: channels of
    the last features and how many layers after them torchvision's network has.
    """

    timm: str
    torchvision: str | None = None
    hugging_face: tuple[str, str, dict[str, Any]] | None = None
    ultralytics: tuple[int, int] | None = None


BASIC = {"layer_type": "basic", "hidden_sizes": [64, 128, 256, 512], "depths": [2, 2, 2, 2]}
SMALL = {"hidden_size": 384, "num_attention_heads": 6, "intermediate_size": 1536}
NETWORKS = {
    "resnet18": Network(
        timm="resnet18", torchvision="resnet18", hugging_face=("ResNet", "ConvNext", BASIC), ultralytics=(512, 2)
    ),
    "resnet50": Network(
        timm="resnet50", torchvision="resnet50", hugging_face=("ResNet", "ConvNext", {}), ultralytics=(2048, 2)
    ),
    "tf_efficientnet_lite0": Network(timm="tf_efficientnet_lite0"),
    "mobilenet_v3_large": Network(timm="mobilenetv3_large_100", torchvision="mobilenet_v3_large", ultralytics=(960, 2)),
    "convnext_tiny": Network(
        timm="convnext_tiny",
        torchvision="convnext_tiny",
        hugging_face=("ConvNext", "ConvNext", {}),
        ultralytics=(768, 2),
    ),
    "swin_tiny_patch4_window7_224": Network(
        timm="swin_tiny_patch4_window7_224",
        torchvision="swin_t",
        hugging_face=("Swin", "ViT", {}),
        ultralytics=(768, 3),
    ),
    "vit_small_patch16_224": Network(timm="vit_small_patch16_224", hugging_face=("ViT", "ViT", SMALL)),
    "densenet121": Network(timm="densenet121", torchvision="densenet121", ultralytics=(1024, 1)),
}


def files(job: Job) -> list[str]:
    """In an order that has nothing to do with their classes."""
    found = sorted(str(path) for path in Path(job.data).rglob("*.jpg"))
    random.Random(0).shuffle(found)
    return found


# --------------------------------------------------------------------------------------------------------- our side


def lenext_labels(job: Job, found: dict[str, Any], backend: str = "auto", tolerance: float = TOLERANCES[0]) -> Any:
    """Also says which backend was taken, and how far its answers are from float32."""
    import torch

    from lenext import create_model
    from lenext.classifier import Classifier
    from lenext.inference.backends import torch_backend
    from lenext.models import default_preprocess
    from lenext.models.weights import has_offline_weights

    torch.manual_seed(0)
    classifier = Classifier(
        model=create_model(job.model, pretrained=has_offline_weights(job.model)).eval(),
        architecture={},
        classes=tuple(f"class {i}" for i in range(1000)),
        preprocess=default_preprocess(job.model),
        about={"data": job.data, "data_options": {"check": False}},
    )
    plain, logits = torch_backend(classifier.model, classifier.preprocess), classifier.logits

    def compared(x: Any, run: Any) -> Any:
        """The first batch, in the time that is not counted, in float32 as well."""
        outputs = logits(x, run)
        if "difference" not in found:
            reference = plain(x).numpy()
            found["difference"] = float(((outputs - reference) ** 2).sum() ** 0.5 / (reference**2).sum() ** 0.5)
        return outputs

    setattr(classifier, "logits", compared)  # noqa: B010
    endless = itertools.cycle(files(job))
    for prediction in classifier.stream(endless, backend=backend, tolerance=tolerance, expected=1_000_000):
        assert prediction.error is None, prediction
        found["chosen"] = classifier.running
        yield prediction.label


# ------------------------------------------------------------------------------------------------------------ peers


def timm_labels(job: Job, found: dict[str, Any]) -> Any:
    """As the library's model cards show it: one picture after the other."""
    timm = import_timm(job)
    import torch
    from PIL import Image

    model = timm.create_model(NETWORKS[job.model].timm).eval()
    settings = timm.data.resolve_model_data_config(model)
    transform = timm.data.create_transform(**settings, is_training=False)
    for path in itertools.cycle(files(job)):
        with torch.no_grad():
            yield int(model(transform(Image.open(path).convert("RGB")).unsqueeze(0)).argmax())


def timm_loader_labels(job: Job, found: dict[str, Any]) -> Any:
    """As its script inference.py does it, which reads files in two processes."""
    timm = import_timm(job)
    import torch

    model = timm.create_model(NETWORKS[job.model].timm).eval()
    settings = timm.data.resolve_model_data_config(model)
    loader = timm.data.create_loader(
        timm.data.create_dataset("", root=job.data),
        batch_size=BATCH,
        num_workers=2,
        device=torch.device("cpu"),
        persistent_workers=True,
        **settings,
    )
    while True:
        for x, _ in loader:
            with torch.no_grad():
                yield from model(x).argmax(1).tolist()


def import_timm(job: Job) -> Any:
    sys.path.insert(0, str(Path(job.peers) / "pytorch-image-models"))
    import timm
    import timm.data

    return timm


def hugging_face_labels(job: Job, found: dict[str, Any]) -> Any:
    """`pipeline("image-classification")` over a stream of paths."""
    import transformers

    network = NETWORKS[job.model].hugging_face
    assert network is not None
    name, processor, arguments = network
    config = getattr(transformers, f"{name}Config")(num_labels=1000, **arguments)
    model = getattr(transformers, f"{name}ForImageClassification")(config).eval()
    pipeline = transformers.pipeline(
        "image-classification",
        model=model,
        image_processor=getattr(transformers, f"{processor}ImageProcessor")(),
        device="cpu",
    )
    for answer in pipeline(path for path in itertools.cycle(files(job))):
        yield answer[0]["label"]


def ultralytics_labels(job: Job, found: dict[str, Any]) -> Any:
    """`predict` over a folder as a stream; its classifier on the features of torchvision's network."""
    from ultralytics import YOLO

    network = NETWORKS[job.model]
    assert network.ultralytics is not None
    width, after = network.ultralytics
    config = Path(job.work) / f"yolo11-cls-{job.model}.yaml"
    config.write_text(
        "nc: 1000\n"
        f"backbone:\n  - [-1, 1, TorchVision, [{width}, {network.torchvision}, null, True, {after}]]\n"
        "head:\n  - [-1, 1, Classify, [nc]]\n"
    )
    model = YOLO(str(config), task="classify")
    while True:
        for answer in model.predict(
            f"{job.data}/**/*.jpg", imgsz=SIZE, device="cpu", stream=True, verbose=False, project=job.work
        ):
            yield answer.probs.top1


def network_by_hand(job: Job) -> Any:
    """torchvision's network; timm's where torchvision has none."""
    import torchvision

    network = NETWORKS[job.model]
    if network.torchvision:
        return torchvision.models.get_model(network.torchvision).eval()
    import timm

    return timm.create_model(network.timm).eval()


def by_hand_labels(job: Job, found: dict[str, Any]) -> Any:
    """A data loader over an ImageFolder, with the documented transform, and the network in float32."""
    import torch
    from torch.utils.data import DataLoader
    from torchvision.datasets import ImageFolder
    from torchvision.transforms import v2

    transform = v2.Compose(
        [
            v2.Resize(256),
            v2.CenterCrop(SIZE),
            v2.ToImage(),
            v2.ToDtype(torch.float32, scale=True),
            v2.Normalize(MEAN, STD),
        ]
    )
    model, loader = network_by_hand(job), DataLoader(ImageFolder(job.data, transform), BATCH)
    while True:
        for x, _ in loader:
            with torch.inference_mode():
                yield from model(x).argmax(1).tolist()


def tuned_labels(job: Job, found: dict[str, Any]) -> Any:
    """bfloat16, channels-last, frozen, and files decoded by libjpeg in two processes."""
    import torch
    from torch.utils.data import DataLoader
    from torchvision.datasets import ImageFolder
    from torchvision.io import ImageReadMode, decode_image
    from torchvision.transforms import v2

    resize = v2.Compose([v2.Resize(256), v2.CenterCrop(SIZE)])
    normalise = v2.Compose([v2.ToDtype(torch.float32, scale=True), v2.Normalize(MEAN, STD)])
    data = ImageFolder(job.data, resize, loader=lambda path: decode_image(path, ImageReadMode.RGB))
    model = network_by_hand(job).to(memory_format=torch.channels_last)
    loader = DataLoader(data, BATCH, num_workers=2, persistent_workers=True)
    with torch.inference_mode(), torch.autocast("cpu", torch.bfloat16):
        x = torch.zeros(BATCH, 3, SIZE, SIZE).contiguous(memory_format=torch.channels_last)
        model = torch.jit.freeze(torch.jit.trace(model, x, check_trace=False))
        while True:
            for x, _ in loader:
                x = normalise(x).contiguous(memory_format=torch.channels_last)
                yield from model(x).argmax(1).tolist()


# -------------------------------------------------------------------------------------------------------- the table


@dataclass(frozen=True, kw_only=True)
class Side:
    """One row. labels(job, found) yields labels without end. peer: the folder of its environment, none for our own.
    default: whether it counts as what people get who follow a documentation. has: what it needs a network to have."""

    labels: Callable[..., Iterator[Any]]
    package: str
    peer: str = ""
    default: bool = False
    has: str = "timm"
    arguments: tuple[tuple[str, Any], ...] = ()


OURS = ("LeNeXt", "LeNeXt, tolerance 0.01")
SIDES = {
    OURS[0]: Side(labels=lenext_labels, package="lenext"),
    OURS[1]: Side(labels=lenext_labels, package="lenext", arguments=(("tolerance", TOLERANCES[1]),)),
    **{
        f"LeNeXt, {name}": Side(labels=lenext_labels, package="lenext", arguments=(("backend", name),))
        for name in BACKENDS
    },
    "timm": Side(labels=timm_labels, package="timm", peer="timm", default=True),
    "timm, its loader": Side(labels=timm_loader_labels, package="timm", peer="timm", default=True),
    "Hugging Face pipeline": Side(
        labels=hugging_face_labels, package="transformers", peer="transformers", default=True, has="hugging_face"
    ),
    "Ultralytics": Side(
        labels=ultralytics_labels, package="ultralytics", peer="ultralytics", default=True, has="ultralytics"
    ),
    "torchvision by hand": Side(labels=by_hand_labels, package="torchvision", default=True),
    "torchvision by hand, tuned": Side(labels=tuned_labels, package="torchvision"),
}


# ------------------------------------------------------------------------------------------------------ measurement


def inside(job: Job) -> None:
    """The measurement itself, in the process and the interpreter of its side."""
    sys.path.pop(0)  # the folder of this file, whose neighbours have common names
    side, found = SIDES[job.side], dict[str, Any]()
    begin = start = 0.0
    for count, label in enumerate(side.labels(job, found, **dict(side.arguments)), 1):
        assert label is not None
        if count == SKIPPED:
            begin, start = time.perf_counter(), time.time() - job.began
        timed, seconds = count - SKIPPED, time.perf_counter() - begin
        # Labels come batch by batch, and the clock is read where every side has just finished one.
        if timed >= LEAST and timed % BATCH == 0 and (seconds >= SECONDS or timed == MOST):
            answer = {"images_per_second": timed / seconds, "pictures": timed, "start": start}
            answer |= found | {"version": version(side.package)}
            (Path(job.work) / "answer.json").write_text(json.dumps(answer))
            os._exit(0)


def measure(name: str, model: str, data: Path, peers: Path) -> dict[str, Any]:
    """A row of results; RuntimeError with the last line of what was said when it fails."""
    side = SIDES[name]
    if getattr(NETWORKS[model], side.has) is None:
        raise RuntimeError(f"{side.package} has no {model}")
    python = peers / side.peer / "bin" / "python" if side.peer else Path(sys.executable)
    if not python.exists():
        raise RuntimeError(f"there is no environment {python.parent.parent}")
    with tempfile.TemporaryDirectory(ignore_cleanup_errors=True) as folder:
        work = Path(folder)
        job = Job(side=name, model=model, data=str(data), work=folder, peers=str(peers), began=time.time())
        environment = {
            **os.environ,
            "CUDA_VISIBLE_DEVICES": "",
            "HF_HUB_OFFLINE": "1",
            "YOLO_OFFLINE": "true",
            "YOLO_CONFIG_DIR": folder,
            "XDG_CACHE_HOME": f"{folder}/cache",  # nothing is known from the measurement before
        }
        if side.peer:
            environment.pop("PYTHONPATH", None)
        command = [str(python), str(Path(__file__).resolve()), "--inside", json.dumps(asdict(job))]
        with (work / "log.txt").open("w") as log:
            process = subprocess.Popen(
                command, stdout=log, stderr=subprocess.STDOUT, env=environment, cwd=folder, start_new_session=True
            )
        try:
            process.wait(TIMEOUT)
        except subprocess.TimeoutExpired:
            raise RuntimeError(f"not done after {TIMEOUT:.0f} s") from None
        finally:
            with contextlib.suppress(ProcessLookupError):
                os.killpg(process.pid, signal.SIGKILL)
            process.wait()
        if not (work / "answer.json").exists():
            raise RuntimeError(last_words(work))
        return json.loads((work / "answer.json").read_text())


def measure_accuracy(seed: int, wanted: list[str]) -> Iterator[dict[str, Any]]:
    """A row a backend: which of the test photographs of one split it names rightly, as a text of 0 and 1."""
    from lenext import demo, load
    from lenext.data import sources
    from lenext.training import begin

    folder = Path(tempfile.gettempdir()) / "lenext-benchmark-inference"
    run, manifest = folder / f"run-{seed}", demo.write_manifest(seed, folder)
    if not (run / "evaluation.json").exists():
        settings = {"data": str(manifest), "root": str(demo.photographs()), "model": demo.MODEL, "seed": seed}
        begin.train(begin.configure({**settings, "time_budget": 165.0}), run)
    classifier = load(run)
    test = sources.open_data(manifest, demo.photographs()).split("test")
    pictures: list[Any] = [test.path(i) for i in range(len(test))]
    for name in wanted:
        try:
            answers = classifier.predict(pictures, backend=name)
        except ValueError as error:
            yield {"side": name, "failed": str(error)}
            continue
        right = [answer.label == test.classes[label] for answer, label in zip(answers, test.labels, strict=True)]
        yield {"side": name, "right": "".join(str(int(x)) for x in right)}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--peers", type=Path, default=Path("peers"), help="folder of the peers' environments")
    parser.add_argument("--models", nargs="+", default=list(NETWORKS), choices=NETWORKS, metavar="NAME")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--only", nargs="+", default=list(SIDES), choices=SIDES, metavar="NAME")
    parser.add_argument("--again", action="store_true", help="forget what has been measured of these")
    parser.add_argument("--accuracy", action="store_true", help="measure accuracy by backend instead of speed")
    parser.add_argument("--seeds", type=int, default=3, help="random splits of the photographs, with --accuracy")
    parser.add_argument("--report", action="store_true", help="only write inference.md from what has been measured")
    parser.add_argument("--results", type=Path, default=RESULTS, help="folder of inference.jsonl and inference.md")
    parser.add_argument("--inside", type=json.loads, help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.inside:
        inside(Job(**args.inside))
        return
    from lenext import runs
    from lenext.inference.backends import NAMES

    ours = tuple(name for name in NAMES if not name.startswith("cuda"))
    assert ours == BACKENDS, "every backend of the processor is measured"
    here, file, kind = machine(), args.results / "inference.jsonl", "accuracy" if args.accuracy else "speed"
    rows = read_rows(file)
    args.results.mkdir(exist_ok=True)
    if args.report:
        runs.write_text(args.results / "inference.md", report(rows))
        return
    if args.again:
        sides = ARITHMETICS if args.accuracy else args.only
        rows = [
            row for row in rows
            if row["kind"] != kind or row["side"] not in sides or row.get("model") not in (None, *args.models)
        ]  # fmt: skip
        runs.write_text(file, "".join(json.dumps(row) + "\n" for row in rows))

    def save(row: dict[str, Any]) -> None:
        rows.append({**row, "machine": here})
        with file.open("a") as lines:
            lines.write(json.dumps(rows[-1]) + "\n")
        runs.write_text(args.results / "inference.md", report(rows))
        print({key: value for key, value in row.items() if key != "right"}, flush=True)

    def measured(about: dict[str, Any]) -> bool:
        """Whether there is a row on this machine; what failed is tried again."""
        about = {**about, "machine": here}
        return any(about.items() <= row.items() and "failed" not in row for row in rows)

    if args.accuracy:
        for seed in range(args.seeds):
            missing = [name for name in ARITHMETICS if not measured({"kind": kind, "seed": seed, "side": name})]
            for row in measure_accuracy(seed, missing) if missing else ():
                save({"kind": kind, "seed": seed, **row})
        return

    from data import make_pictures

    data = Path(tempfile.gettempdir()) / f"lenext-benchmark-{PICTURES}" / "jpeg"
    make_pictures(data, PICTURES)
    failed = set()
    for model in args.models:
        for i in range(args.rounds):
            # Forwards and backwards in turn, so that a drift of the machine falls on all alike.
            for name in args.only if i % 2 == 0 else args.only[::-1]:
                about = {"kind": kind, "side": name, "model": model, "round": i}
                if measured(about) or (name, model) in failed:
                    continue
                try:
                    save({**about, **measure(name, model, data, args.peers.resolve())})
                except RuntimeError as error:
                    failed.add((name, model))
                    save({**about, "failed": str(error)})


# ----------------------------------------------------------------------------------------------------------- report


def report(rows: list[dict[str, Any]]) -> str:
    if not rows:
        raise SystemExit("nothing has been measured yet")
    lines = ["# Inference beside its peers", "", "Made by `python benchmarks/inference.py`."]
    for here in [json.loads(text) for text in dict.fromkeys(json.dumps(row["machine"]) for row in rows[::-1])]:
        lines += report_of(here, [row for row in rows if row["machine"] == here])
    return "\n".join([*lines, ""])


def report_of(here: dict[str, Any], rows: list[dict[str, Any]]) -> list[str]:
    """What one machine has measured."""
    good = [row for row in rows if "failed" not in row]
    lines = ["", f"## On {described(here)}"]
    speeds = {
        model: {
            name: [row for row in good if (row["kind"], row["side"], row.get("model")) == ("speed", name, model)]
            for name in SIDES
        }
        for model in NETWORKS
    }
    speeds = {
        model: {name: found for name, found in sides.items() if found}
        for model, sides in speeds.items()
        if any(sides.values())
    }
    lines += targets(speeds) + accuracy_table([row for row in good if row["kind"] == "accuracy"])
    for model, sides in speeds.items():
        lines += speed_table(model, sides)
    done = {(row["side"], row.get("model"), row.get("seed")) for row in good}
    failures = {
        f"{row['side']}, {row.get('model', 'accuracy')}": row["failed"]
        for row in rows
        if "failed" in row and (row["side"], row.get("model"), row.get("seed")) not in done
    }
    if failures:
        lines += ["", "### Left out", "", *(f"- {name}: {reason}" for name, reason in failures.items())]
    return lines


def median(rows: list[dict[str, Any]], key: str = "images_per_second") -> float:
    return statistics.median(row[key] for row in rows)


def targets(speeds: dict[str, dict[str, list[dict[str, Any]]]]) -> list[str]:
    """Against the best default, and against the best backend that agrees."""
    lines = [
        "",
        "### Beside the best default",
        "",
        "Pictures a second, medians. The best default is the fastest of timm, the Hugging Face pipeline, Ultralytics "
        "and the loop by hand in float32.",
        "",
        f"| network | {OURS[0]} | times | {OURS[1]} | times | the best default | the tuned loop |",
        "| --- | ---: | ---: | ---: | ---: | ---: | ---: |",
    ]
    for model, sides in speeds.items():
        speed = {name: median(rows) for name, rows in sides.items()}
        best = max((name for name in speed if SIDES[name].default), key=lambda name: speed[name], default=None)
        cells = [model]
        for name in OURS:
            cells += [f"{speed[name]:.0f}" if name in speed else ""]
            cells += [f"{speed[name] / speed[best]:.2f}" if name in speed and best else ""]
        cells += [f"{speed[best]:.0f}, {best}" if best else ""]
        tuned = "torchvision by hand, tuned"
        lines.append(f"| {' | '.join([*cells, f'{speed[tuned]:.0f}' if tuned in speed else ''])} |")
    lines += [
        "",
        "### The choice",
        "",
        "What was chosen beside the fastest of all backends whose outputs are within the tolerance of float32: the "
        "share of its speed that the chosen backend has, each measured by name.",
        "",
        "| network | tolerance | chosen, round by round | the fastest that agrees | share |",
        "| --- | ---: | --- | --- | ---: |",
    ]
    for model, sides in speeds.items():
        named = {name: sides[f"LeNeXt, {name}"] for name in BACKENDS if f"LeNeXt, {name}" in sides}
        for side, tolerance in zip(OURS, TOLERANCES, strict=True):
            agree = {name: median(rows) for name, rows in named.items() if median(rows, "difference") <= tolerance}
            chosen = list(dict.fromkeys(row["chosen"] for row in sides.get(side, ())))
            if agree and chosen and named.keys() >= set(chosen):
                best = max(agree, key=lambda name: agree[name])
                share = min(median(named[name]) for name in chosen) / agree[best]
                lines.append(f"| {model} | {tolerance:g} | {', '.join(chosen)} | {best} | {share:.3f} |")
    return lines if speeds else []


def speed_table(model: str, sides: dict[str, list[dict[str, Any]]]) -> list[str]:
    lines = [
        "",
        f"### {model}",
        "",
        f"From JPEG files to labels after the first {SKIPPED} pictures; medians of alternating rounds, each a process "
        "of its own. Start: from the command to the end of those first pictures. Difference: of the outputs from "
        "float32 PyTorch, as a share of their norm.",
        "",
        "| side | pictures a second | lowest to highest | rounds | start, s | difference | backend | version |",
        "| --- | ---: | --- | ---: | ---: | ---: | --- | --- |",
    ]
    for name in sorted(sides, key=lambda name: -median(sides[name])):
        rows = sides[name]
        rates = [row["images_per_second"] for row in rows]
        difference = f"{median(rows, 'difference'):.1e}" if "difference" in rows[0] else ""
        chosen = ", ".join(dict.fromkeys(row["chosen"] for row in rows)) if "chosen" in rows[0] else ""
        lines.append(
            f"| {name} | {median(rows):.1f} | {min(rates):.1f} to {max(rates):.1f} | {len(rows)} "
            f"| {median(rows, 'start'):.0f} | {difference} | {chosen} | {rows[-1]['version']} |"
        )
    return lines


def accuracy_table(rows: list[dict[str, Any]]) -> list[str]:
    """Accuracy by backend, and how much of it float32 has more, picture by picture."""
    right = {(row["side"], row["seed"]): [int(x) for x in row["right"]] for row in rows}
    plain = BACKENDS[0]
    seeds = sorted({seed for side, seed in right if side == plain})
    if not seeds:
        return []
    lines = [
        "",
        "### Accuracy by backend",
        "",
        f"EfficientNet-Lite0 on the test photographs of solar cells, {len(seeds)} random splits, "
        f"{sum(len(right[plain, seed]) for seed in seeds)} answers. The loss against float32 in points, with its 95 % "
        "interval from the pictures on which the two differ.",
        "",
        "| backend | accuracy, % | loss, points | 95 % interval |",
        "| --- | ---: | ---: | --- |",
    ]
    for name in ARITHMETICS:
        of = [seed for seed in seeds if (name, seed) in right]
        if not of:
            continue
        answers = [x for seed in of for x in right[name, seed]]
        loss = [a - b for seed in of for a, b in zip(right[plain, seed], right[name, seed], strict=True)]
        mean, half = statistics.mean(loss), 1.96 * statistics.pstdev(loss) / len(loss) ** 0.5
        interval = "" if name == plain else f"{100 * (mean - half):+.2f} to {100 * (mean + half):+.2f}"
        lines.append(f"| {name} | {100 * statistics.mean(answers):.2f} | {100 * mean:+.2f} | {interval} |")
    return lines


if __name__ == "__main__":
    main()
