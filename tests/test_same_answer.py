"""One picture, one answer: the same raw files through every way to a prediction that lenext has.

Each way reads the files by itself, as its users have them: Python and the command line by path, the API and the web
page from uploads, the exports by the program that lies beside the model and knows nothing of lenext.
"""

from __future__ import annotations

import base64
import csv
import html
import io
import json
import os
import re
import struct
import subprocess
import sys
from collections.abc import Callable, Iterator, Sequence
from functools import cache, partial
from itertools import combinations, cycle, islice
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image, ImageCms

pytest.importorskip("gradio", reason="the web page needs lenext[serve]")
pytest.importorskip("onnxscript", reason="exports need lenext[export]")

import httpx

import lenext
from lenext import cli
from tests.data import corpus
from tests.data.corpus import encoded, exif, png, raw_profile, tiff, with_segment, with_xmp, xmp, xmp_text
from tests.export.classifiers import classifier
from tests.pictures import photograph
from tests.serving.pages import NAME, file_data, page_of
from tests.test_cli import lenext_command

FILES = 200
SAME = 1e-3
TURNS = range(1, 9)  # the orientations of EXIF
TOGETHER = 5  # pictures of a request, whose body has a limit
Answer = tuple[str, dict[str, float]]  # the class, and the probabilities of all classes that the way tells

# ------------------------------------------------------------------------------------------------------- files


def piece(rng: np.random.Generator, scale: int) -> Image.Image:
    """Another part of a photograph each time, lying or standing, up to three times as long as wide."""
    source = Image.fromarray(photograph(("china.jpg", "flower.jpg")[int(rng.integers(2))]))
    short, ratio = int(rng.integers(20, 81)), 3 ** rng.uniform(-1, 1)
    width, height = (round(short * max(ratio, 1)), round(short * max(1 / ratio, 1)))
    zoom = rng.uniform(0.4, 1) * min(source.width / width, source.height / height)
    left, top = rng.uniform(0, source.width - zoom * width), rng.uniform(0, source.height - zoom * height)
    box = (left, top, left + zoom * width, top + zoom * height)
    return source.resize((scale * width, scale * height), Image.Resampling.BOX, box)


Form = tuple[str, Callable[[], bytes]]  # what a file is, and the file


def forms(image: Image.Image) -> Iterator[Form]:
    """Every format, mode and orientation that cameras and programs write, and that Pillow reads with its plug-ins."""
    for make in (photographs, pngs, webs, tiffs, rare):
        yield from make(image)


def made(kind: str, image: Image.Image, form: str, **options: Any) -> Form:
    return kind, lambda: encoded(image, form, **options)


def frames(image: Image.Image) -> dict[str, Any]:
    return {"save_all": True, "append_images": [image.rotate(180)]}


def in_palette(image: Image.Image, colours: int = 32) -> Image.Image:
    return image.quantize(colours, Image.Quantize.FASTOCTREE)


def with_alpha(image: Image.Image) -> Image.Image:
    image = image.copy()
    image.putalpha(Image.linear_gradient("L").resize(image.size))
    return image


@cache
def to_lab() -> ImageCms.ImageCmsTransform:
    return ImageCms.buildTransform(ImageCms.createProfile("sRGB"), ImageCms.createProfile("LAB"), "RGB", "LAB")


def in_16_bits(grey: np.ndarray) -> np.ndarray:
    return grey.astype(np.uint16) * 257 - grey  # whose lower bytes are others


def photographs(image: Image.Image) -> Iterator[Form]:
    def jpeg(kind: str, image: Image.Image = image, form: str = "JPEG", **options: Any) -> Form:
        return made(f"{kind}.jpg", image, form, **{"quality": 88} | options)

    def turned(turn: int) -> bytes:
        return with_segment(encoded(image, "JPEG", progressive=turn > 4), 0xE1, exif(turn, "<>"[turn % 2]))

    yield jpeg("baseline")
    yield jpeg("progressive", progressive=True)
    yield jpeg("all colours", subsampling=0)
    yield jpeg("half the colours", subsampling=1)
    yield jpeg("of RGB", keep_rgb=True)
    yield jpeg("with restarts", restart_marker_blocks=1)
    profile = ImageCms.ImageCmsProfile(ImageCms.createProfile("sRGB"))
    yield jpeg("with a profile", icc_profile=profile.tobytes())
    yield jpeg("two pictures", form="MPO", **frames(image))
    yield jpeg("grey", image.convert("L"))
    yield jpeg("grey progressive", image.convert("L"), progressive=True)
    yield jpeg("CMYK", image.convert("CMYK"))
    yield jpeg("CMYK progressive", image.convert("CMYK"), progressive=True)
    for turn in TURNS:
        yield f"orientation {turn}.jpg", partial(turned, turn)
        yield made(f"orientation {turn}.avif", image, "AVIF", quality=88, exif=exif(turn))
        if corpus.HAS_HEIC:
            yield made(f"orientation {turn}.heic", image, "HEIF", quality=88, exif=exif(turn))
    yield "orientation in XMP.jpg", lambda: with_xmp(encoded(image, "JPEG"), 6)
    yield (
        "orientation in XMP beside EXIF.jpg",
        lambda: with_xmp(with_segment(encoded(image, "JPEG"), 0xE1, exif(1, tag=0x0101)), 6),
    )
    yield made("orientation in XMP.avif", image, "AVIF", xmp=xmp(6))
    yield made("RGB.avif", image, "AVIF", quality=88)
    yield made("alpha.avif", with_alpha(image), "AVIF", quality=88)
    if corpus.HAS_HEIC:
        yield made("alpha.heic", with_alpha(image), "HEIF", quality=88)


def pngs(image: Image.Image) -> Iterator[Form]:
    rgb, lightness, palette, alpha = np.asarray(image), image.convert("L"), in_palette(image), with_alpha(image)
    grey = np.asarray(lightness)
    deep, deep_grey = rgb.astype(np.uint16) * 257, in_16_bits(grey)
    hidden = int(np.bincount(grey.ravel()).argmax())  # the commonest value is made transparent
    place = tuple(np.argwhere(grey == hidden)[0])

    def clear(*values: int) -> list[tuple[bytes, bytes]]:
        return [(b"tRNS", struct.pack(f">{len(values)}H", *values))]

    yield made("bits.png", image.convert("1"), "PNG")
    yield made("grey.png", lightness, "PNG")
    yield made("grey transparent.png", lightness, "PNG", transparency=hidden)
    yield made("grey alpha.png", alpha.convert("LA"), "PNG")
    yield made("palette.png", palette, "PNG")
    yield made("palette of 4.png", in_palette(image, 4), "PNG", bits=2)
    yield made("palette transparent.png", palette, "PNG", transparency=3)
    yield made("palette alpha.png", palette, "PNG", transparency=bytes(range(0, 256, 8)))
    yield made("RGB.png", image, "PNG")
    yield made("RGB transparent.png", image, "PNG", transparency=tuple(map(int, rgb[place])))
    yield made("RGBA.png", alpha, "PNG")
    yield made("animated.png", image, "PNG", **frames(image))
    yield "16-bit grey.png", lambda: png(deep_grey)
    yield "16-bit grey transparent.png", lambda: png(deep_grey, before=clear(int(deep_grey[place])))
    yield "16-bit grey alpha.png", lambda: png(np.dstack([deep_grey, deep_grey[::-1]]))
    yield "16-bit grey turned.png", lambda: png(deep_grey, before=[(b"eXIf", exif(8)[6:])])
    yield "orientation in XMP.png", lambda: png(rgb, before=[xmp_text(6)])
    yield "orientation in a raw profile.png", lambda: png(rgb, before=[raw_profile(6)])
    yield "16-bit RGB.png", lambda: png(deep)
    yield "16-bit RGB transparent.png", lambda: png(deep, before=clear(*map(int, deep[place])))
    yield "16-bit RGBA.png", lambda: png(np.dstack([deep, deep_grey]))
    for turn in TURNS:
        yield made(f"orientation {turn}.png", (image, palette, alpha)[turn % 3], "PNG", exif=exif(turn)[6:])


def webs(image: Image.Image) -> Iterator[Form]:
    alpha, palette = with_alpha(image), in_palette(image)
    yield made("lossy.webp", image, "WEBP", quality=88)
    yield made("lossless.webp", image, "WEBP", lossless=True)
    yield made("lossy alpha.webp", alpha, "WEBP", quality=88)
    yield made("lossless alpha.webp", alpha, "WEBP", lossless=True)
    yield made("orientation in XMP.webp", image, "WEBP", xmp=xmp(6))
    yield made("animated.webp", image, "WEBP", **frames(image))
    yield made("plain.gif", palette, "GIF")
    yield made("grey.gif", image.convert("L"), "GIF")
    yield made("not interlaced.gif", palette, "GIF", interlace=0)
    yield made("transparent.gif", palette, "GIF", transparency=3)
    yield made("animated.gif", image, "GIF", **frames(image))
    for turn in TURNS:
        yield made(f"orientation {turn}.webp", (image, alpha)[turn % 2], "WEBP", quality=88, exif=exif(turn))


def tiffs(image: Image.Image) -> Iterator[Form]:
    rgb, lightness, palette, bits = np.asarray(image), image.convert("L"), in_palette(image), image.convert("1")
    grey, alpha, cmyk = np.asarray(lightness), with_alpha(image), image.convert("CMYK")
    deep_grey = in_16_bits(grey)
    for mode in (bits, lightness, alpha.convert("LA"), palette, image, alpha, cmyk, to_lab().apply(image)):
        yield made(f"{mode.mode}.tif", mode, "TIFF")
    for way in ("tiff_lzw", "tiff_adobe_deflate", "packbits", "jpeg"):
        yield made(f"{way.removeprefix('tiff_')}.tif", image, "TIFF", compression=way)
    yield made("fax.tif", bits, "TIFF", compression="group4")
    yield made("large offsets.tif", image, "TIFF", big_tiff=True)
    yield "pages.tif", lambda: tiff(rgb, pages=3)
    yield "planes.tif", lambda: tiff(rgb, planar=True, compressed=True)
    yield "zero is white.tif", lambda: tiff(255 - grey, photometric=0)
    yield "16-bit grey.tif", lambda: tiff(deep_grey)
    yield "16-bit grey big-endian.tif", lambda: tiff(deep_grey, order=">", compressed=True)
    yield "16-bit zero is white.tif", lambda: tiff(65535 - deep_grey, photometric=0)
    yield "16-bit RGB.tif", lambda: tiff(rgb.astype(np.uint16) * 257, order=">")
    yield "16-bit whole numbers.tif", lambda: tiff((deep_grey // 2).astype(np.int16))
    yield "32-bit whole numbers.tif", lambda: tiff(deep_grey.astype(np.int32))
    yield "numbers to 1.tif", lambda: tiff((grey / 255).astype(np.float32))
    yield "numbers to 255.tif", lambda: tiff(grey.astype(np.float32))
    yield "numbers below zero.tif", lambda: tiff(grey.astype(np.float32) - 99)
    for turn in TURNS:  # where Pillow maps a file into memory, it does so by mode
        mode = (lightness, image, alpha, cmyk, palette)[turn % 5]
        yield made(f"orientation {turn} {mode.mode}.tif", mode, "TIFF", tiffinfo={274: turn})
        yield f"orientation {turn} 16-bit.tif", partial(tiff, deep_grey, tags=[(274, 3, [turn])])
        yield made(f"orientation {turn} lzw.tif", image, "TIFF", compression="tiff_lzw", tiffinfo={274: turn})


def rare(image: Image.Image) -> Iterator[Form]:
    lightness, alpha = image.convert("L"), with_alpha(image)
    deep_grey = Image.fromarray(in_16_bits(np.asarray(lightness)))
    for mode in (image, lightness, in_palette(image), image.convert("1"), alpha):
        yield made(f"{mode.mode}.bmp", mode, "BMP")
    yield made("RGB.ppm", image, "PPM")
    yield made("grey.pgm", lightness, "PPM")
    yield made("16-bit.pgm", deep_grey, "PPM")
    yield made("bits.pbm", image.convert("1"), "PPM")
    for mode in (image, lightness, alpha, deep_grey):
        yield made(f"{mode.mode.replace(';', ' ')}.jp2", mode, "JPEG2000")


@pytest.fixture(scope="module")
def files(tmp_path_factory: pytest.TempPathFactory) -> list[Path]:
    """200 raw files of 200 pictures; there are more files of the first kinds than of the last."""
    folder, rng = tmp_path_factory.mktemp("raw") / "图片", np.random.default_rng(0)
    folder.mkdir()
    kinds = [kind for kind, _ in forms(piece(rng, 1))]
    assert len(set(kinds)) == len(kinds) <= FILES
    for number, kind in enumerate(islice(cycle(kinds), FILES)):
        # Large JPEG files are decoded at a half, a quarter or an eighth.
        image = piece(rng, (1, 2, 5)[number % 3] if kind.endswith(".jpg") else 1)
        make = next(make for name, make in forms(image) if name == kind)
        (folder / f"照片{number:03} {kind}").write_bytes(make())
    return sorted(folder.iterdir())


# -------------------------------------------------------------------------------------------------------- ways


@pytest.fixture(scope="module")
def saved(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return classifier("lenet5", 32).save(tmp_path_factory.mktemp("classifier") / "分类器.safetensors")


@pytest.fixture(scope="module")
def address(saved: Path) -> Iterator[str]:
    """Of a server with the API and the page."""
    with page_of(saved) as address:
        yield address


def from_python(saved: Path, files: Sequence[Path]) -> list[Answer]:
    return [(str(row.label), dict(row.top)) for row in lenext.load(saved).predict(list(files))]


def from_the_command_line(saved: Path, files: Sequence[Path], capsys: pytest.CaptureFixture[str]) -> list[Answer]:
    status, out, err = lenext_command("predict", saved, *files, "--format", "json", capsys=capsys)
    assert status == 0, err
    rows = json.loads(out)
    assert [row["image"] for row in rows] == [str(file) for file in files]
    return [answer_of(row) for row in rows]


def from_the_api(client: httpx.Client, files: Sequence[Path]) -> list[Answer]:
    rows = []
    for some in batches(files):
        sent = client.post("/v1/predict", files=[("file", (file.name, file.read_bytes())) for file in some])
        assert sent.status_code == 200, sent.text
        rows += sent.json()["predictions"]
    assert [row["image"] for row in rows] == [file.name for file in files]
    return [answer_of(row) for row in rows]


def answer_of(row: dict[str, Any]) -> Answer:
    return str(row["label"]), {entry["label"]: entry["probability"] for entry in row["top"]}


def sent_to_the_page(client: httpx.Client, files: Sequence[Path]) -> list[dict[str, Any]]:
    sent = []
    for some in batches(files):
        reply = client.post("/gradio_api/upload", files=[("files", (file.name, file.read_bytes())) for file in some])
        assert reply.status_code == 200, reply.text
        sent += [file_data(path, orig_name=file.name) for path, file in zip(reply.json(), some, strict=True)]
    return sent


def shown(client: httpx.Client, place: int, questions: Sequence[Any], session: str) -> list[str]:
    """What the page shows first at each question, asked of one of its two places for pictures."""
    functions = [f["id"] for f in client.get("/config").json()["dependencies"] if len(f["inputs"]) == 2]
    asked: list[str] = []
    first: dict[str, str] = {}
    for question in questions:
        body = {"data": [NAME, question], "fn_index": functions[place], "session_hash": session}
        asked.append(client.post("/gradio_api/queue/join", json=body).json()["event_id"])
    left = set(asked)
    with client.stream("GET", "/gradio_api/queue/data", params={"session_hash": session}) as events:
        for line in events.iter_lines():
            message = json.loads(line.removeprefix("data:")) if line.startswith("data:") else {}
            if message.get("msg") in ("process_generating", "process_completed"):
                data = message["output"].get("data") or [None]  # later ones only say what has changed
                first.setdefault(message["event_id"], data[0])
            if message.get("msg") == "process_completed":
                left.discard(message["event_id"])
            if not left:
                break
    return [first[event] for event in asked]


def from_the_page(client: httpx.Client, files: Sequence[Path]) -> list[Answer]:
    """One picture after the other; probabilities as per cent with one decimal."""
    answers = []
    pattern = re.compile(r'<span class="lx-name">(.*?)</span><span class="lx-share">(.*?) %</span>', re.DOTALL)
    sent = sent_to_the_page(client, files)
    # The page refuses whoever asks much and reads nothing.
    texts = [text for i in range(0, len(sent), 8) for text in shown(client, 0, sent[i : i + 8], f"one-{i}")]
    for text in texts:
        ranked = {html.unescape(name): share for name, share in pattern.findall(text)}
        assert ranked, text
        shares = {name: 0.0 if share == "&lt;0.1" else float(share) / 100 for name, share in ranked.items()}
        answers.append((next(iter(ranked)), shares))
    return answers


def from_the_table_of_the_page(client: httpx.Client, files: Sequence[Path]) -> list[Answer]:
    """All pictures at once; the table to download has the best class of each."""
    (table,) = shown(client, 1, [sent_to_the_page(client, files)], "many")
    content = re.search(r'href="data:text/csv;charset=utf-8;base64,([^"]*)"', table)
    assert content, table
    text = base64.b64decode(html.unescape(content[1])).decode("utf-8-sig")
    rows = list(csv.DictReader(io.StringIO(text, newline="")))
    assert [row["image"] for row in rows] == [file.name for file in files]
    return [(row["label"], {row["label"]: float(row["probability"])}) for row in rows]


def from_the_export(form: str, saved: Path, files: Sequence[Path], folder: Path) -> list[Answer]:
    """By the program that `lenext export` leaves, where there is no lenext."""
    with pytest.raises(SystemExit) as end:
        cli.main(["export", str(saved), "--format", form, "--pictures", "0", "--out", str(folder / form)])
    assert not end.value.code
    (folder / "sitecustomize.py").write_text("import sys\nsys.modules['lenext'] = None\n")
    program = [sys.executable, str(folder / form / "predict.py"), *map(str, files)]
    environment = {**os.environ, "PYTHONPATH": str(folder)}
    result = subprocess.run(program, env=environment, capture_output=True, text=True, cwd=folder)
    assert result.returncode == 0, result.stderr
    rows = [json.loads(line) for line in result.stdout.splitlines()]
    assert [row["image"] for row in rows] == [str(file) for file in files]
    return [answer_of(row) for row in rows]


def batches(files: Sequence[Path]) -> Iterator[Sequence[Path]]:
    for begin in range(0, len(files), TOGETHER):
        yield files[begin : begin + TOGETHER]


# -------------------------------------------------------------------------------------------------------- test


def test_the_same_files_have_the_same_answers_by_every_way(saved, files, address, tmp_path, capsys) -> None:
    answers = {
        "Python": from_python(saved, files),
        "the command line": from_the_command_line(saved, files, capsys),
        "ONNX Runtime": from_the_export("onnx", saved, files, tmp_path),
        "OpenVINO": from_the_export("openvino", saved, files, tmp_path),
    }
    with httpx.Client(base_url=address, timeout=60) as client:
        answers["the HTTP API"] = from_the_api(client, files)
        answers["the web page"] = from_the_page(client, files)
        answers["the table of the web page"] = from_the_table_of_the_page(client, files)
    assert all(len(rows) == len(files) == FILES for rows in answers.values())

    # Such answers tell whether two ways have seen the same pixels.
    classes = lenext.load(saved).classes
    expected = np.array([[row[name] for name in classes] for _, row in answers["Python"]])
    assert len(set(expected.argmax(1))) > 2
    apart = np.abs(expected[:, None] - expected[None]).max(2)
    assert np.median(apart) > 100 * SAME

    found = differences(answers, files)
    assert not found, "\n".join(found)


def differences(answers: dict[str, list[Answer]], files: Sequence[Path]) -> list[str]:
    """Every file for which two ways differ, with the two."""
    found = []
    for (one, these), (other, those) in combinations(answers.items(), 2):
        for file, (label, row), (another, column) in zip(files, these, those, strict=True):
            far = max((abs(row[name] - column[name]) for name in row.keys() & column.keys()), default=1.0)
            if label != another or far > SAME:
                found.append(f"{file.name}: {one} says {label!r}, {other} {another!r}; up to {far:.4f} apart")
    return found
