"""The loader beside its peers: pictures a second, from the same JPEG files to training batches.

    python benchmarks/data.py [--pictures 2048] [--rounds 5] [--only NAME...] [--again]

Every side shuffles the files, decodes them, takes RandomResizedCrop(224, scale (0.08, 1), antialiased) and a random
flip, and yields batches of 64. A measurement is the second epoch of a process of its own, the first being the
warm-up. Each side is tuned first (its ways of decoding, 1, 2 and 3 workers or threads), then the sides take turns at
their best setting. A peer that is not installed is left out, and the reason is recorded. Finished measurements are
kept and not made again unless asked. Writes benchmarks/results/data.json and data.md. Run it on a quiet machine.

    apt install ffmpeg libopencv-dev libturbojpeg0-dev pkg-config g++     # for SPDL and to build FFCV
    pip install simplejpeg timm datasets webdataset litdata spdl ffcv nvidia-dali-cuda120      # no GPU is needed

The pictures are made from the two photographs that scikit-learn carries (china.jpg, flower.jpg): random views of both
joined along a soft edge, with random colour, gamma, sensor noise and sharpening, 500 x 375, JPEG quality 95 with
4:2:0 chroma, which gives the mean file size of ImageNet, about 110 KB.
"""

from __future__ import annotations

import argparse
import importlib.metadata
import json
import math
import multiprocessing
import random
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image, ImageFilter
from torch import Tensor
from torch.utils.data import DataLoader, default_collate
from torchvision.datasets import ImageFolder
from torchvision.io import ImageReadMode, decode_image, decode_jpeg, read_file
from torchvision.transforms import v2

from lenext import runs
from lenext.data.cache import pack
from lenext.data.loader import Batches
from lenext.data.sources import open_data
from lenext.data.transforms import Augmentation, train_transform
from lenext.preprocess import Preprocess

RESULTS = Path(__file__).parent / "results"
SIZE, BATCH, SCALE, RATIO = 224, 64, (0.08, 1.0), (3 / 4, 4 / 3)
WIDTH, HEIGHT, QUALITY, CLASSES = 500, 375, 95, 8
MEAN, STD = [0.485, 0.456, 0.406], [0.229, 0.224, 0.225]
Epochs = Iterable[tuple[Tensor, Tensor]]  # every iteration is an epoch of (pictures, labels)


# ---------------------------------------------------------------------------------------------------------- pictures


def make_pictures(folder: Path, count: int) -> None:
    """Write `count` JPEG files folder/<class>/<number>.jpg, the same ones every time."""
    if len(list(folder.glob("*/*.jpg"))) == count:
        return
    for label in range(CLASSES):
        (folder / f"class{label}").mkdir(parents=True, exist_ok=True)
    with ProcessPoolExecutor() as pool:
        list(pool.map(partial(make_picture, folder), range(count), chunksize=32))


def make_picture(folder: Path, i: int) -> None:
    rng = np.random.default_rng((2026, i))
    angle = rng.uniform(0, 2 * np.pi)
    y, x = np.mgrid[:HEIGHT, :WIDTH]
    distance = np.cos(angle) * (x - WIDTH * rng.uniform(0.3, 0.7)) + np.sin(angle) * (
        y - HEIGHT * rng.uniform(0.3, 0.7)
    )
    side = 1 / (1 + np.exp(-distance / rng.uniform(1, 40)))[..., None]
    pixels = side * view(rng) + (1 - side) * view(rng)
    pixels = 255 * (pixels / 255) ** rng.uniform(0.7, 1.3) * rng.uniform(0.85, 1.15, 3)
    pixels += rng.normal(0, rng.uniform(0, 6), (HEIGHT, WIDTH, 1))
    picture = Image.fromarray(pixels.clip(0, 255).astype(np.uint8)).filter(ImageFilter.UnsharpMask(1, 90, 0))
    picture.save(folder / f"class{i % CLASSES}" / f"{i:06}.jpg", quality=QUALITY, subsampling="4:2:0")


def view(rng: np.random.Generator) -> np.ndarray:
    """(HEIGHT, WIDTH, 3) a random part of a random photograph, perhaps mirrored."""
    from sklearn.datasets import load_sample_images

    photo = Image.fromarray(load_sample_images().images[rng.integers(2)])
    width = rng.uniform(0.75, 1) * min(photo.width, photo.height * WIDTH / HEIGHT)
    height = width * HEIGHT / WIDTH
    x, y = rng.uniform(0, photo.width - width), rng.uniform(0, photo.height - height)
    part = photo.resize((WIDTH, HEIGHT), Image.Resampling.LANCZOS, box=(x, y, x + width, y + height))
    return np.asarray(part, np.float32)[:, :: rng.choice((-1, 1))]


def listing(folder: Path) -> list[tuple[str, int]]:
    """The files and the numbers of their classes."""
    return ImageFolder(str(folder)).samples


# ------------------------------------------------------------------------------------------------------------- sides


class OurBatches:
    """LeNeXt's batches as its training makes them; the cache holds a short side of 256 pixels."""

    def __init__(self, folder: Path, workers: int, cached: bool) -> None:
        samples = open_data(folder)
        pictures = pack(samples, 256, cache=cached, reasons=None if cached else {})
        assert pictures.cached == cached
        augmentation = Augmentation(crop_scale=SCALE[0], flip="horizontal")
        transform = train_transform(Preprocess(image_size=SIZE), augmentation)
        self.batches = Batches(pictures, transform, batch_size=BATCH, workers=workers)
        self.labels, self.epoch = torch.from_numpy(samples.labels), 0

    def __iter__(self) -> Iterator[tuple[Tensor, Tensor]]:
        self.epoch += 1
        return ((x, self.labels[index]) for x, index in self.batches.epoch(self.epoch))


def lenext_epoch(folder: Path, cached: bool, workers: int) -> Epochs:
    return OurBatches(folder, workers, cached)


def augment() -> v2.Transform:
    """uint8 in, uint8 out, for PIL pictures and for tensors."""
    return v2.Compose([v2.RandomResizedCrop(SIZE, SCALE, RATIO, antialias=True), v2.RandomHorizontalFlip()])


def documented() -> v2.Transform:
    """torchvision's documented training transform for PIL pictures: float, normalised."""
    return v2.Compose([augment(), v2.ToImage(), v2.ToDtype(torch.float32, scale=True), v2.Normalize(MEAN, STD)])


def read_rgb(path: str) -> Tensor:
    return decode_image(read_file(path), mode=ImageReadMode.RGB)


def decode_bytes(data: bytes) -> Tensor:
    return decode_jpeg(torch.frombuffer(bytearray(data), dtype=torch.uint8), mode=ImageReadMode.RGB)


def torchvision_pil(folder: Path, workers: int) -> Epochs:
    return loader(ImageFolder(str(folder), documented()), workers)


def torchvision_tensor(folder: Path, workers: int) -> Epochs:
    return loader(ImageFolder(str(folder), augment(), loader=read_rgb), workers)


def loader(dataset: Any, workers: int, **arguments: Any) -> DataLoader:
    arguments = {"batch_size": BATCH, "shuffle": True, **arguments}
    return DataLoader(dataset, num_workers=workers, persistent_workers=True, **arguments)


def timm_loader(folder: Path, workers: int, prefetcher: bool) -> Epochs:
    from timm.data import create_dataset, create_loader

    return create_loader(
        create_dataset("", root=str(folder)),
        (3, SIZE, SIZE),
        BATCH,
        is_training=True,
        scale=SCALE,
        ratio=RATIO,
        hflip=0.5,
        color_jitter=0.0,
        interpolation="bilinear",
        num_workers=workers,
        device=torch.device("cpu"),
        use_prefetcher=prefetcher,
    )


def hugging_face(folder: Path, workers: int, pil: bool) -> Epochs:
    import datasets

    datasets.disable_progress_bars()
    dataset = datasets.load_dataset(
        "imagefolder", data_dir=str(folder), split="train", cache_dir=str(folder.with_name("huggingface"))
    )
    if not pil:
        dataset = dataset.cast_column("image", datasets.Image(decode=False))
    transform = documented() if pil else augment()

    def prepare(rows: dict[str, list]) -> dict[str, list]:
        pictures = rows["image"] if pil else [read_rgb(row["path"]) for row in rows["image"]]
        return {"image": [transform(picture) for picture in pictures], "label": rows["label"]}

    def collate(rows: list[dict]) -> tuple[Tensor, Tensor]:
        return torch.stack([row["image"] for row in rows]), torch.tensor([row["label"] for row in rows])

    return loader(dataset.with_transform(prepare), workers, collate_fn=collate)


def web_dataset(folder: Path, workers: int, pil: bool) -> Epochs:
    import webdataset

    shards = folder.with_name("webdataset")
    if not shards.exists():
        rows = listing(folder)
        random.Random(0).shuffle(rows)
        shards.mkdir()
        # At least as many shards as workers, or some would have nothing to do.
        with webdataset.ShardWriter(str(shards / "%06d.tar"), maxcount=math.ceil(len(rows) / 12), verbose=0) as writer:
            for i, (path, label) in enumerate(rows):
                writer.write({"__key__": f"{i:06}", "jpg": Path(path).read_bytes(), "cls": label})
    dataset = webdataset.WebDataset(sorted(map(str, shards.glob("*.tar"))), shardshuffle=100).shuffle(1000)
    dataset = dataset.decode("pil") if pil else dataset.decode(only="cls")
    transform = augment()
    picture = documented() if pil else lambda data: transform(decode_bytes(data))
    dataset = dataset.to_tuple("jpg", "cls").map_tuple(picture, lambda label: label)
    dataset = dataset.batched(BATCH, collation_fn=default_collate)
    return webdataset.WebLoader(dataset, batch_size=None, num_workers=workers, persistent_workers=True)


def lit_data(folder: Path, workers: int) -> Epochs:
    import litdata

    chunks = folder.with_name("litdata")
    if not (chunks / "index.json").exists():
        litdata.optimize(
            litdata_row,
            listing(folder),
            str(chunks),
            chunk_bytes="64MB",
            num_workers=1,
            verbose=False,
            mode="overwrite",
        )
    transform = partial(litdata_sample, augment())
    dataset = litdata.StreamingDataset(str(chunks), shuffle=True, drop_last=False, transform=transform)
    return litdata.StreamingDataLoader(dataset, batch_size=BATCH, num_workers=workers, persistent_workers=True)


def litdata_row(sample: tuple[str, int]) -> dict[str, Any]:
    return {"image": Image.open(sample[0]), "label": sample[1]}  # an opened JPEG file is kept as it is


def litdata_sample(transform: v2.Transform, row: dict[str, Any]) -> tuple[Tensor, int]:
    return transform(row["image"]), row["label"]


@dataclass
class Shuffled:
    """The samples in a new order every time."""

    samples: list[tuple[str, int]]

    def __iter__(self) -> Iterator[tuple[str, int]]:
        return iter(random.sample(self.samples, len(self.samples)))


def spdl_decode(samples: list[tuple[str, int]]) -> tuple[Tensor, Tensor]:
    """A batch by FFmpeg: it crops and scales before it converts the colours, so that less has to be converted."""
    import spdl.io

    frames = []
    for path, _ in samples:
        packets = spdl.io.demux_image(path)
        y, x, h, w = random_crop(packets.height, packets.width)
        flip = "hflip," if random.random() < 0.5 else ""
        chain = f"crop={w}:{h}:{x}:{y},scale={SIZE}:{SIZE}:flags=bilinear,{flip}format=pix_fmts=rgb24"
        frames.append(spdl.io.decode_packets(packets, filter_desc=chain))
    pixels = spdl.io.to_torch(spdl.io.convert_frames(frames))  # B, H, W, C
    return pixels.permute(0, 3, 1, 2), torch.tensor([label for _, label in samples])


def random_crop(height: int, width: int) -> tuple[int, int, int, int]:
    """y, x, height and width of a RandomResizedCrop."""
    for _ in range(10):
        area = height * width * random.uniform(*SCALE)
        ratio = math.exp(random.uniform(math.log(RATIO[0]), math.log(RATIO[1])))
        w, h = round(math.sqrt(area * ratio)), round(math.sqrt(area / ratio))
        if w <= width and h <= height:
            return random.randint(0, height - h), random.randint(0, width - w), h, w
    side = min(height, width)
    return (height - side) // 2, (width - side) // 2, side, side


def spdl_pipeline(folder: Path, workers: int, apart: bool) -> Epochs:
    from spdl.pipeline import PipelineBuilder, build_pipeline, run_pipeline_in_subprocess

    builder: Any = PipelineBuilder()
    builder.add_source(Shuffled(listing(folder))).aggregate(BATCH).pipe(spdl_decode, concurrency=workers).add_sink(3)
    config = builder.get_config()
    if apart:
        return run_pipeline_in_subprocess(config, num_threads=workers)

    def epoch() -> Iterator[tuple[Tensor, Tensor]]:
        pipeline = build_pipeline(config, num_threads=workers)
        with pipeline.auto_stop():
            yield from pipeline

    return Repeated(epoch)


@dataclass
class Repeated:
    """A generator function as something that can be iterated again and again."""

    epoch: Callable[[], Iterator[tuple[Tensor, Tensor]]]

    def __iter__(self) -> Iterator[tuple[Tensor, Tensor]]:
        return self.epoch()


def dali(folder: Path, workers: int) -> Epochs:
    from nvidia.dali import fn, pipeline_def
    from nvidia.dali.plugin.pytorch import DALIClassificationIterator, LastBatchPolicy

    @pipeline_def(batch_size=BATCH, num_threads=workers, device_id=None)
    def pipeline() -> Any:
        files, labels = fn.readers.file(file_root=str(folder), random_shuffle=True, name="files")
        pictures = fn.decoders.image_random_crop(
            files, device="cpu", random_area=list(SCALE), random_aspect_ratio=list(RATIO)
        )
        pictures = fn.resize(pictures, size=[SIZE, SIZE])
        return fn.flip(pictures, horizontal=fn.random.coin_flip()), labels

    iterator = DALIClassificationIterator(
        pipeline(), reader_name="files", last_batch_policy=LastBatchPolicy.PARTIAL, auto_reset=True
    )
    return Repeated(lambda: ((batch["data"], batch["label"]) for (batch,) in iterator))


def ffcv(folder: Path, workers: int) -> Epochs:
    """FFCV keeps JPEG files only by encoding the pictures again, here at the same quality."""
    from ffcv.fields import IntField, RGBImageField
    from ffcv.fields.basics import IntDecoder
    from ffcv.fields.rgb_image import RandomResizedCropRGBImageDecoder
    from ffcv.loader import Loader, OrderOption
    from ffcv.transforms import RandomHorizontalFlip, Squeeze, ToTensor, ToTorchImage
    from ffcv.writer import DatasetWriter

    file = folder.with_name("jpeg.beton")
    if not file.exists():
        fields = {"image": RGBImageField(write_mode="jpg", jpeg_quality=QUALITY), "label": IntField()}
        DatasetWriter(str(file), fields, num_workers=1).from_indexed_dataset(ImageFolder(str(folder)))
    crop = RandomResizedCropRGBImageDecoder((SIZE, SIZE), scale=SCALE, ratio=RATIO)
    return Loader(
        str(file),
        batch_size=BATCH,
        num_workers=workers,
        os_cache=True,
        order=OrderOption.RANDOM,
        drop_last=False,
        pipelines={
            "image": [crop, RandomHorizontalFlip(), ToTensor(), ToTorchImage()],
            "label": [IntDecoder(), ToTensor(), Squeeze(1)],
        },
    )


class Bare:
    """Every file decoded whole by libjpeg-turbo in processes, and thrown away: no crop, no resizing, no batch."""

    def __init__(self, folder: Path, workers: int) -> None:
        self.samples = listing(folder)
        self.pool = multiprocessing.Pool(workers)

    def __iter__(self) -> Iterator[tuple[Tensor, Tensor]]:
        batches = [self.samples[i : i + BATCH] for i in range(0, len(self.samples), BATCH)]
        for labels in self.pool.imap_unordered(decode_whole, batches):
            yield torch.empty(len(labels), 3, SIZE, SIZE, dtype=torch.uint8), torch.tensor(labels)


def decode_whole(samples: list[tuple[str, int]]) -> list[int]:
    import simplejpeg

    for path, _ in samples:
        simplejpeg.decode_jpeg(Path(path).read_bytes())
    return [label for _, label in samples]


@dataclass(frozen=True, kw_only=True)
class Side:
    """One row: how to build it, its ways (arguments of `build` by what they mean), and the module that it needs."""

    build: Callable[..., Epochs]
    ways: dict[str, dict[str, Any]]
    module: str
    package: str = ""  # the module's name unless said
    workers: tuple[int, ...] = (1, 2, 3)  # processes or threads that are tried


OURS = ("LeNeXt, JPEG files", "LeNeXt, packed cache")
CEILING = "libjpeg-turbo, decoding alone"
SIDES = {
    OURS[0]: Side(build=lenext_epoch, ways={"processes": {"cached": False}}, module="lenext", workers=(0, 1, 2, 3)),
    OURS[1]: Side(build=lenext_epoch, ways={"processes": {"cached": True}}, module="lenext", workers=(0, 1, 2, 3)),
    "torchvision, PIL": Side(build=torchvision_pil, ways={"processes, float32": {}}, module="torchvision"),
    "torchvision, tensors": Side(build=torchvision_tensor, ways={"processes, uint8": {}}, module="torchvision"),
    "timm": Side(
        build=timm_loader,
        ways={"processes, prefetcher": {"prefetcher": True}, "processes, no prefetcher": {"prefetcher": False}},
        module="timm",
    ),
    "Hugging Face datasets": Side(
        build=hugging_face,
        ways={"processes, PIL, float32": {"pil": True}, "processes, decode_image, uint8": {"pil": False}},
        module="datasets",
    ),
    "WebDataset": Side(
        build=web_dataset,
        ways={"processes, PIL, float32": {"pil": True}, "processes, decode_jpeg, uint8": {"pil": False}},
        module="webdataset",
    ),
    "litdata": Side(build=lit_data, ways={"processes, uint8": {}}, module="litdata"),
    "SPDL": Side(
        build=spdl_pipeline,
        ways={"threads, uint8": {"apart": False}, "threads of one subprocess, uint8": {"apart": True}},
        module="spdl.io",
        package="spdl",
    ),
    # numba, which FFCV runs on, refuses more threads than cores.
    "FFCV": Side(build=ffcv, ways={"threads, uint8": {}}, module="ffcv", workers=(1, 2)),
    "NVIDIA DALI, CPU": Side(
        build=dali, ways={"threads, uint8": {}}, module="nvidia.dali", package="nvidia-dali-cuda120"
    ),
    CEILING: Side(build=Bare, ways={"processes": {}}, module="simplejpeg"),
}
TARGETS = (  # ours, how many times, which peer (None: the fastest)
    (OURS[0], 1.5, None),
    (OURS[0], 0.9, CEILING),
    (OURS[1], 4.0, "torchvision, PIL"),
    (OURS[1], 4.0, "torchvision, tensors"),
)


# ------------------------------------------------------------------------------------------------------- measurement


def measure(name: str, way: str, workers: int, folder: Path) -> float:
    """Pictures a second over an epoch after a warm-up epoch."""
    epochs = SIDES[name].build(folder, workers=workers, **SIDES[name].ways[way])
    wanted = torch.bincount(torch.tensor([label for _, label in listing(folder)])).tolist()
    for _ in range(2):
        counts = torch.zeros(CLASSES, dtype=torch.int64)
        begin = time.perf_counter()
        for pictures, labels in epochs:
            assert pictures.shape in ((len(labels), 3, SIZE, SIZE), (len(labels), SIZE, SIZE, 3)), pictures.shape
            counts += torch.bincount(labels.flatten(), minlength=CLASSES)
        seconds = time.perf_counter() - begin
        assert counts.tolist() == wanted, f"an epoch must be every picture once, not {counts.tolist()} by class"
    return sum(wanted) / seconds


def measure_apart(name: str, way: str, workers: int, folder: Path) -> float:
    """`measure` in a process of its own; RuntimeError with the last line of its errors when it fails."""
    command = [sys.executable, __file__, "--folder", str(folder), "--measure", json.dumps([name, way, workers])]
    done = subprocess.run(command, capture_output=True, text=True)
    if done.returncode:
        raise RuntimeError(done.stderr.strip().splitlines()[-1])
    return float(done.stdout.split()[-1])


def tune(name: str, folder: Path) -> dict[str, Any]:
    """Every way and number of workers once; RuntimeError where the side cannot run."""
    side = SIDES[name]
    package = side.package or side.module
    try:
        importlib.import_module(side.module)
    except ImportError as error:
        raise RuntimeError(f"not installed (pip install {package}): {error}") from None
    tuning = []
    for way in side.ways:
        for workers in side.workers:
            tuning.append({"way": way, "workers": workers, "speed": measure_apart(name, way, workers, folder)})
            print(f"{name}, {workers} {way}: {tuning[-1]['speed']:.0f}", flush=True)
    return {"version": importlib.metadata.version(package), "tuning": tuning, "rounds": []}


def best(side: dict[str, Any]) -> dict[str, Any]:
    return max(side["tuning"], key=lambda row: row["speed"])


def machine() -> dict[str, Any]:
    found = runs.environment()
    return {key: found[key] for key in ("processor", "cores", "memory_gib", "torch", "python")}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--pictures", type=int, default=2048)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--only", nargs="+", default=list(SIDES), choices=list(SIDES), metavar="NAME")
    parser.add_argument("--again", action="store_true", help="measure again what has been measured")
    parser.add_argument("--results", type=Path, default=RESULTS, help="folder of data.json and data.md")
    parser.add_argument("--folder", type=Path, help=argparse.SUPPRESS)
    parser.add_argument("--measure", type=json.loads, help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.measure:
        name, way, workers = args.measure
        print(measure(name, way, workers, args.folder))
        return
    folder = Path(tempfile.gettempdir()) / f"lenext-benchmark-{args.pictures}" / "jpeg"
    make_pictures(folder, args.pictures)
    sizes = [path.stat().st_size for path in folder.glob("*/*.jpg")]
    file = args.results / "data.json"
    kept: dict[str, Any] = {"pictures": len(sizes), "sides": {}, "left_out": {}}
    if file.exists() and json.loads(file.read_text())["pictures"] == len(sizes):
        kept = json.loads(file.read_text())
    kept |= {"mean_bytes": round(statistics.mean(sizes)), "machine": machine()}

    def save() -> None:
        args.results.mkdir(exist_ok=True)
        runs.write_json(file, kept)
        runs.write_text(args.results / "data.md", table(kept))

    for name in args.only:
        if args.again:
            kept["sides"].pop(name, None)
        if name not in kept["sides"]:
            kept["left_out"].pop(name, None)
            try:
                kept["sides"][name] = tune(name, folder)
            except RuntimeError as error:
                kept["left_out"][name] = str(error)
                print(f"{name}: {error}", flush=True)
            save()
    present = [name for name in args.only if name in kept["sides"]]
    for i in range(args.rounds):
        # Forwards and backwards in turn, so that a drift of the machine falls on all alike.
        for name in present if i % 2 == 0 else present[::-1]:
            side = kept["sides"][name]
            if len(side["rounds"]) <= i:
                side["rounds"].append(measure_apart(name, best(side)["way"], best(side)["workers"], folder))
                print(f"round {i + 1}: {name} {side['rounds'][-1]:.0f}", flush=True)
                save()
    print(table(kept))


def table(kept: dict[str, Any]) -> str:
    machine, sides = kept["machine"], {name: side for name, side in kept["sides"].items() if side["rounds"]}
    speed = {name: statistics.median(side["rounds"]) for name, side in sides.items()}
    peers = {name: speed[name] for name in speed if name not in (*OURS, CEILING)}
    lines = [
        "# The loader beside its peers",
        "",
        f"Pictures a second over an epoch of {kept['pictures']:,} JPEG files ({WIDTH} x {HEIGHT}, mean "
        f"{kept['mean_bytes'] / 1000:.0f} kB) to training batches of {BATCH} at {SIZE} x {SIZE}, after a warm-up "
        "epoch, in alternating rounds, each in a process of its own, on "
        f"{machine['cores']} cores of {machine['processor']}, {machine['memory_gib']} GiB, torch {machine['torch']}. "
        "Every side runs at the best of its settings. Made by `python benchmarks/data.py`.",
        "",
        "| side | pictures a second, median | lowest to highest | rounds | setting | version |",
        "| --- | --- | --- | --- | --- | --- |",
    ]
    for name in sorted(speed, key=lambda name: -speed[name]):
        rounds, setting = sides[name]["rounds"], best(sides[name])
        lines.append(
            f"| {name} | {speed[name]:,.0f} | {min(rounds):,.0f} to {max(rounds):,.0f} | {len(rounds)} "
            f"| {setting['workers']} {setting['way']} | {sides[name]['version']} |"
        )
    lines += ["", "| target | measured | met |", "| --- | --- | --- |"]
    for ours, times, peer in TARGETS:
        peer = peer or max(peers, key=lambda name: peers[name], default="")
        if ours in speed and peer in speed:
            ratio = speed[ours] / speed[peer]
            met = "yes" if ratio >= times else "no"
            lines.append(f"| {ours}: at least {times:g} times {peer} | {ratio:.2f} | {met} |")
    if kept["left_out"]:
        lines += ["", "Left out:", "", *(f"- {name}: {reason}" for name, reason in kept["left_out"].items())]
    return "\n".join([*lines, ""])


if __name__ == "__main__":
    main()
