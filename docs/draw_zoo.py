"""Draws the figures of the zoo's page and writes its tables, from the networks themselves and from `zoo.csv`.

    python docs/draw_zoo.py             # all figures, and the tables of both pages; half a minute
    python docs/draw_zoo.py resnet van  # these figures only

Left in each figure is what the paper introduced, as described below with the parts of `drawing.py`; right is the whole
network, whose stages are run on shapes without values. Nothing depends on the day or the machine: drawing again
changes no file.
"""

from __future__ import annotations

import math
import sys
from collections.abc import Callable
from dataclasses import dataclass
from itertools import groupby, pairwise
from pathlib import Path

import torch
from drawing import (
    ATTENTION,
    BLUE,
    CONV,
    DATA,
    DEPTHWISE,
    GREEN,
    GREY,
    INK,
    LINEAR,
    MOVE,
    ORANGE,
    PINK,
    PLAIN,
    PURPLE,
    RED,
    Canvas,
    Kind,
    Part,
    box,
    chain,
    fork,
    grid,
    label,
    picture,
    plot,
    residual,
    row,
    square,
    stack,
    text_width,
    titled,
    wires,
)
from torch import nn
from zoo_facts import layers, stages, write_tables

from lenext.models import MODELS, create_model
from lenext.models.efficientnet import VARIANTS as EFFICIENTNETS
from lenext.models.table import PAPERS

DOCS = Path(__file__).parent
FIGURES = DOCS / "figures" / "zoo"

# --------------------------------------------------------------------------------------- the network, right in a figure


def network(name: str, *, apart: bool) -> Part:
    """A bar for each stage, as wide as the image's side and as high as its channels suggest."""
    steps = stages(name, apart=apart)
    pitch, middle, left = 43.0, 52.0, 116.0
    width = left + max(max(text_width(text, 10.5), 100) for text, _ in steps)
    largest = steps[0][1][-1]

    def draw(c: Canvas, x: float, y: float) -> None:
        before = y
        for i, (text, shape) in enumerate(steps):
            at, kind = y + i * pitch + 18, {1: DATA, 2: ATTENTION, 3: CONV if i else DATA}[len(shape)]
            channels, side = {1: (shape[0], 1), 2: (shape[-1], math.sqrt(shape[0])), 3: (shape[0], shape[-1])}[
                len(shape)
            ]
            w, h = 7 + 93 * math.sqrt(side / largest), 4 + 2.2 * math.log2(channels)
            if i:
                c.arrow((x + middle, before), (x + middle, at - h / 2))
            c.rect(x + middle - w / 2, at - h / 2, w, h, kind)
            c.text(x + left, at - 7.5, " x ".join(map(str, shape)), bold=True, at="left")
            c.text(x + left, at + 8, text, size=10.5, color=GREY, at="left")
            before = at + h / 2

    return titled(name, picture(width, pitch * len(steps) - 5, draw))


# ------------------------------------------------------------------------------------------------- one figure a paper

DRAWN: dict[str, tuple[str, bool, Callable[[], list[Part]]]] = {}


def figure(name: str, *, apart: bool = False) -> Callable[[Callable[[], list[Part]]], Callable[[], list[Part]]]:
    """For a paper of `table.PAPERS`: the parts that the function gives, side by side, then the network `name`."""

    def remember(function: Callable[[], list[Part]]) -> Callable[[], list[Part]]:
        DRAWN[function.__name__] = (name, apart, function)
        return function

    return remember


def draw_paper(paper: str) -> None:
    name, apart, function = DRAWN[paper]
    left, right, width = row(*function(), gap=24), network(name, apart=apart), 900
    assert left.width + right.width + 90 <= width, f"{paper}: {left.width:.0f} + {right.width:.0f} pixels are too wide"
    height, border = max(left.height, right.height) + 44, width - right.width - 50
    canvas = Canvas(width, height)
    canvas.line((border - 5, 22), (border - 5, height - 22), color="#dddddd")
    left.draw(canvas, (border - left.width) / 2, (height - left.height) / 2)
    right.draw(canvas, border + 25, (height - right.height) / 2)
    canvas.save(FIGURES / f"{paper}.svg", PAPERS[paper].title)


def excitation(first: str, second: str) -> Part:
    """Squeeze-and-excitation: a factor for every channel, from the averages of all."""
    return fork(None, chain("average over H, W", first, second), join="x", main=0, gap=24)


PERCEPTRON = residual("layer norm", "linear, 4C; GELU", "linear, C")


@figure("lenet5")
def lenet() -> list[Part]:
    image = grid(14, 14, 9, fill=square(2, 3, 5, BLUE))
    maps = grid(10, 10, 9, fill=square(2, 2, 2, GREEN) | {(2, 3): BLUE})
    small = grid(5, 5, 9, fill={(1, 1): GREEN})
    return [
        titled(
            "One filter for all places, then subsampling",
            row(image, maps, small, between=["5x5 conv", "2x2 pool"]),
            row("5x5 conv", "tanh", "2x2 average pool", between=["", ""]),
            "= The same 25 weights slide over the whole image:\na stroke is found wherever it is.",
        )
    ]


@figure("alexnet")
def alexnet() -> list[Part]:
    shared = {(1 + i, 3): "#e8d3b0" for i in range(3)}
    overlap = grid(5, 7, 14, fill=shared, frames=[(1, 1, 3, 3, "#2f6ca8"), (1, 3, 3, 3, "#c06a15")])
    first = chain("11x11 conv, 96, /4", "ReLU", "local response norm; lrn=True", "3x3 max-pool, /2")
    classifier = chain("dropout", "linear, 4096; ReLU", "dropout", "linear, 4096; ReLU", "linear, 1000")
    curves = plot({"ReLU": lambda u: max(u, 0), "tanh": math.tanh})
    return [
        stack(titled("Convolutional layer", first), titled("Poolings overlap", overlap), gap=24),
        stack(titled("Classifier", classifier), curves),
    ]


@figure("zfnet")
def zfnet() -> list[Part]:
    coarse = grid(17, 17, 9, frames=[(0, 0, 11, 11, "#2f6ca8"), (0, 4, 11, 11, RED)])
    fine = grid(17, 17, 9, frames=[(0, 0, 7, 7, "#2f6ca8"), (0, 2, 7, 7, RED)])
    before = chain("11x11 conv, 96, /4; 55 x 55", "3x3 max-pool, /2", "5x5 conv, 256; 27 x 27")
    after = chain("7x7 conv, 96, /2; 110 x 110", "3x3 max-pool, /2", "5x5 conv, 256, /2; 26 x 26")
    return [
        titled("AlexNet", coarse, "= two neighbouring windows", before),
        titled("ZFNet", fine, "= two neighbouring windows", after),
    ]


@figure("alexnet_owt")
def alexnet_owt() -> list[Part]:
    def widths(name: str) -> Part:
        with torch.device("meta"):
            convs = [m for m in create_model(name).modules() if isinstance(m, nn.Conv2d)]
        boxes = [box(f"{layers(m)[0]}, {m.out_channels}", width=m.out_channels / 2.4) for m in convs]
        return titled(name, chain(*boxes, gap=11))

    halves = [chain(f"half {n} of the images", "all filters") for n in (1, 2)]
    units = [f"half {n} of the units; of all images" for n in (1, 2)]
    trick = chain("= a batch", fork(*halves, join="exchange feature maps"), fork(*units, join="exchange units"))
    return [
        titled("Two GPUs share images, then units", trick),
        stack(widths("alexnet"), widths("alexnet_owt"), gap=18),
    ]


@figure("vgg16")
def vgg() -> list[Part]:
    five = grid(5, 5, 17, fill=square(0, 0, 5, BLUE), frames=[(0, 0, 3, 3, "#2f6ca8")])
    three = grid(3, 3, 17, fill=square(0, 0, 3, ORANGE) | {(0, 0): BLUE})
    seen = row(five, three, grid(1, 1, 17, fill={(0, 0): GREEN}), between=["3x3", "3x3"])
    level = chain("= C x H x W", "3x3 conv, C'; ReLU", "3x3 conv, C'; ReLU", "2x2 max-pool, /2", "= C' x H/2 x W/2")
    note = "= 2 · 9 C² = 18 C² weights\nin place of 25 C²,\nand one more ReLU"
    return [titled("Two 3x3 see 5x5", seen, note), titled("A level", level)]


@figure("googlenet")
def googlenet() -> list[Part]:
    inception = fork(
        "1x1 conv, 64",
        chain("1x1 conv, 96", "3x3 conv, 128"),
        chain("1x1 conv, 16", "3x3 conv, 32; paper: 5x5"),
        chain("3x3 max-pool", "1x1 conv, 32"),
        join="concatenate: 64 + 128 + 32 + 32 = 256",
        gap=12,
    )
    aux = row("4x4 average", "1x1 conv, 128", "linear, 1024", "linear, 1000", between=["", "", ""])
    block = titled("Inception block 3a", chain("= 192 x 28 x 28", inception, "= 256 x 28 x 28"))
    return [stack(block, titled("Auxiliary classifier (aux=True)", aux), gap=40)]


@figure("resnet50")
def resnet() -> list[Part]:
    basic = residual("3x3 conv, 64; BN, ReLU", "3x3 conv, 64; BN")
    bottleneck = residual("1x1 conv, 64; BN, ReLU", "3x3 conv, 64; BN, ReLU", "1x1 conv, 256; BN")
    return [
        titled("Basic block", chain("= 64 x H x W", basic, "ReLU"), "= ResNet-18, 34"),
        titled("Bottleneck", chain("= 256 x H x W", bottleneck, "ReLU"), "= ResNet-50, 101, 152"),
    ]


@figure("resnext50_32x4d")
def resnext() -> list[Part]:
    branch, dots = chain("1x1, 4", "3x3, 4", "1x1, 256"), label("\N{MIDLINE HORIZONTAL ELLIPSIS}", size=18)
    many = fork(fork(branch, branch, dots, branch, main=1, gap=10), None, main=0)
    grouped = residual("1x1 conv, 128", "3x3 conv, 128; 32 groups of 4", "1x1 conv, 256")
    return [
        titled("32 branches (cardinality)", chain("= 256 x H x W", many)),
        titled("Equal: a grouped convolution", chain("= 256 x H x W", grouped)),
    ]


@figure("wide_resnet50_2")
def wide_resnet() -> list[Part]:
    def block(dim: int) -> Part:
        widths = ((dim, "1x1 conv"), (dim, "3x3 conv"), (256, "1x1 conv"))
        boxes = [box(f"{wide}", text, width=0.9 * wide, kind=CONV) for wide, text in widths]
        return chain("= 256 x H x W", residual(*boxes), "ReLU")

    return [titled("ResNet-50", block(64)), titled("Wide ResNet-50-2", block(128))]


@figure("densenet121")
def densenet() -> list[Part]:
    inks, depth, k, start = [PLAIN[0], BLUE, ORANGE, GREEN, PURPLE, PINK, "#f2e28c"], 6, 26, 52

    def draw(c: Canvas, x: float, y: float) -> None:
        for i in range(depth + 1):
            top = y + i * 40
            for j in range(i + 1):
                left, width = (x, start) if j == 0 else (x + start + (j - 1) * k, k)
                c.rect(left, top, width, 18, (inks[j], "#777777"))
                c.text(left + width / 2, top + 9, "32" if j else "64", size=10)
            if i < depth:
                c.arrow((x + start / 2, top + 18), (x + start / 2, top + 40))
                right = x + start + i * k
                c.line((x + 2, top + 21), (right - 2, top + 21), color="#999999", width=0.8)
                c.arrow((right - 2, top + 21), (right + k / 2, top + 39), color=INK)

    block = picture(start + depth * k + 6, depth * 40 + 20, draw)
    layer = residual("1x1 conv, 128; after BN, ReLU", "3x3 conv, 32; after BN, ReLU", join="concatenate: C + 32")
    return [
        titled("Dense layer", chain("= C x H x W", layer, "= (C + 32) x H x W")),
        titled("Dense block 1", block, "= each layer reads all maps\nbefore it and adds 32"),
    ]


@figure("seresnet50")
def senet() -> list[Part]:
    squeeze = excitation("linear, 16; ReLU", "linear, 256; sigmoid")
    block = residual("1x1 conv, 64; BN, ReLU", "3x3 conv, 64; BN, ReLU", "1x1 conv, 256; BN", squeeze)
    return [titled("Bottleneck with squeeze-and-excitation", chain("= 256 x H x W", block, "ReLU"))]


@figure("mobilenetv1_100")
def mobilenet_v1() -> list[Part]:
    full = wires(("3x3", lambda i, j: True), channels=5)
    split = wires(("3x3 depthwise", lambda i, j: i == j), ("1x1", lambda i, j: True), channels=5)
    pair = chain("= C x H x W", "3x3 depthwise, C; BN, ReLU6", "1x1 conv, C'; BN, ReLU6", "= C' x H x W")
    ways = stack(
        titled("Convolution", full, "= 9 C C' weights"),
        titled("Depthwise separable", split, "= 9 C + C C' weights"),
        gap=26,
    )
    return [ways, titled("The pair", pair)]


@figure("shufflenet_v1_x1_0_g3")
def shufflenet_v1() -> list[Part]:
    grouped = ("grouped", lambda i, j: i // 3 == j // 3)
    mixing = wires(grouped, ("shuffle", lambda i, j: i % 3 * 3 + i // 3 == j), grouped, channels=9, groups=3)
    plain = chain("1x1 conv; 3 groups", "3x3 depthwise", "shuffle", "1x1 conv; 3 groups")
    down = chain("1x1 conv; 3 groups", "3x3 depthwise; /2", "shuffle", "1x1 conv; 3 groups")
    return [
        titled("Groups mix", mixing),
        titled("Stride 1", fork(plain, None, main=0, gap=10)),
        titled("Stride 2", fork(down, "3x3 average; pool, /2", join="concatenate", main=0, gap=10)),
    ]


@figure("mobilenet_v2")
def mobilenet_v2() -> list[Part]:
    outside = residual("1x1 conv, 64", "3x3 conv, 64", box("1x1 conv, 256", width=190))
    inside = residual(
        box("1x1 conv, 144", "BN, ReLU6", width=190),
        box("3x3 depthwise, 144", "BN, ReLU6", width=190),
        "1x1 conv, 24; BN, no activation",
    )
    return [
        titled("ResNet: narrow inside", chain("= 256 channels", outside, "ReLU")),
        titled("Inverted residual: wide inside", chain("= 24 channels", inside, "= 24 channels")),
    ]


@figure("shufflenet_v2_x1_0")
def shufflenet_v2() -> list[Part]:
    half = chain("1x1 conv; BN, ReLU", "3x3 depthwise; BN", "1x1 conv; BN, ReLU")
    first = chain("3x3 depthwise, /2; BN", "1x1 conv; BN, ReLU")
    second = chain("1x1 conv; BN, ReLU", "3x3 depthwise, /2; BN", "1x1 conv; BN, ReLU")
    block = chain("= C channels", "split: C/2 and C/2", fork(None, half, join="concatenate, shuffle", gap=60))
    down = chain("= C channels", fork(first, second, join="concatenate, shuffle"), "= C' channels, H/2 x W/2")
    return [titled("Block", block), titled("Down block", down)]


@figure("mobilenet_v3_large")
def mobilenet_v3() -> list[Part]:
    block = residual(
        "1x1 conv, 120; BN, ReLU or h-swish",
        "5x5 depthwise, 120; BN, ReLU or h-swish",
        excitation("linear, 32; ReLU", "linear, 120; h-sigmoid"),
        "1x1 conv, 40; BN, no activation",
    )
    curves = plot({"h-swish": lambda u: u * min(max(u + 3, 0), 6) / 6, "swish": lambda u: u / (1 + math.exp(-u))})
    return [
        titled("Block with excitation", chain("= 40 channels", block)),
        titled("Hard swish", curves, "= x · ReLU6(x + 3) / 6"),
    ]


@figure("efficientnet_b0")
def efficientnet() -> list[Part]:
    def tower(name: str) -> Part:
        given, side = EFFICIENTNETS[name].keywords, MODELS[name].preprocess.image_size
        levels, half = round(7 * given["depth"]), side * 36 / 380

        def draw(c: Canvas, x: float, y: float) -> None:
            for i in range(levels):
                c.rect(x + 36 - 17 * given["width"], y + 13 * (13 - levels + i), 34 * given["width"], 10, CONV)
            c.rect(x + 36 - half, y + 173, 2 * half, 2 * half, DATA)
            c.text(x + 36, y + 173 + half, str(side), size=10.5)

        return stack(picture(72, 247, draw), label(name.removeprefix("efficientnet_"), bold=True, color=INK), gap=2)

    block = residual(
        "1x1 conv, 144; BN, SiLU",
        "3x3 depthwise, 144; BN, SiLU",
        excitation("linear, 6; SiLU", "linear, 144; sigmoid"),
        "1x1 conv, 24; BN, no activation",
    )
    towers = row(*(tower(f"efficientnet_b{n}") for n in (0, 2, 4)), gap=4)
    return [
        titled("MBConv", chain("= 24 channels", block)),
        titled("Compound scaling", towers, "= depth, width and image side\ngrow together"),
    ]


@figure("tf_efficientnet_lite0")
def efficientnet_lite() -> list[Part]:
    full = residual(
        "1x1 conv, 144; BN, SiLU", "3x3 depthwise, 144; BN, SiLU", "squeeze-and-excitation", "1x1 conv, 24; BN"
    )
    lite = residual("1x1 conv, 144; BN, ReLU6", "3x3 depthwise, 144; BN, ReLU6", "1x1 conv, 24; BN")
    note = "= bounded activations and no\nweighing: quantises well"
    return [
        titled("EfficientNet", chain("= 24 channels", full)),
        titled("EfficientNet-Lite", chain("= 24 channels", lite), note),
    ]


@figure("efficientnet_v2_s")
def efficientnet_v2() -> list[Part]:
    mbconv = residual(
        "1x1 conv, 4C; BN, SiLU", "3x3 depthwise, 4C; BN, SiLU", "squeeze-and-excitation", "1x1 conv, C; BN"
    )
    fused = residual("3x3 conv, 4C; BN, SiLU", "1x1 conv, C; BN")
    return [
        titled("MBConv", mbconv, "= stages 4 to 6,\n6C from the fifth on"),
        titled("Fused MBConv", fused, "= stages 1 to 3 (the first: 3x3 alone),\nmore arithmetic, less memory traffic"),
    ]


@figure("vit_small_patch16_224")
def vit() -> list[Part]:
    inks = [BLUE, GREEN, ORANGE, PURPLE]
    patches = grid(4, 4, 22, fill={(i, j): inks[(i + j) % 4] for i in range(4) for j in range(4)})
    tokens = grid(1, 9, 20, fill={(0, 0): "#444444"} | {(0, 1 + j): inks[(j // 4 + j) % 4] for j in range(8)})
    attention = residual("layer norm", "self-attention; all tokens, several heads")
    return [
        titled(
            "Patches become tokens",
            patches,
            "= 14 x 14 patches of 16 x 16 pixels",
            "linear",
            tokens,
            "= class token, then 196 patches,\n+ learned positions",
        ),
        titled("Encoder block", chain("= 197 tokens of C", attention, PERCEPTRON)),
    ]


@figure("deit_small_distilled_patch16_224")
def deit() -> list[Part]:
    tokens = grid(1, 10, 22, fill={(0, 0): "#444444"} | {(0, j): BLUE for j in range(1, 9)} | {(0, 9): RED})
    heads = fork(
        "class head; learns the labels",
        "distillation head; learns the teacher's decisions",
        join="mean of the logits",
    )
    return [
        titled(
            "A second token listens to a teacher",
            row("= class", "= 196 patches", "= distillation", gap=34),
            chain(tokens, box("12 encoder blocks of ViT", width=220), heads),
            "= teacher: a trained convolutional network",
        )
    ]


@figure("t2t_vit_14")
def t2t_vit() -> list[Part]:
    windows = [(0, 0, 3, 3, "#2f6ca8"), (0, 2, 3, 3, "#c06a15"), (2, 0, 3, 3, "#558b2f"), (2, 2, 3, 3, "#7446a8")]
    overlap = {(i, 2): "#e2e2e2" for i in range(5)} | {(2, j): "#e2e2e2" for j in range(5)}
    step = chain(
        "= image: 3 x 224 x 224",
        "7x7 soft split, /4; 3136 tokens of 147",
        "Performer; 3136 tokens of 64",
        "laid out as an image; 64 x 56 x 56",
        "3x3 soft split, /2; 784 tokens of 576",
        label("\N{MIDLINE HORIZONTAL ELLIPSIS}", size=16),
    )
    soft = grid(5, 5, 22, fill=overlap, frames=windows)
    return [
        titled("Soft split", soft, "= patches overlap, so that\nneighbours share pixels"),
        titled("Tokens to token", step, "= t variants: Transformer, not Performer"),
    ]


@figure("swin_tiny_patch4_window7_224")
def swin() -> list[Part]:
    def windows(*cuts: int) -> Part:
        inks = ["#dcebf8", "#fdebd7", "#e3f1d9", "#e9dff4", "#f6dcd9", "#f7f2cf", "#d9f0ee", "#ececec", "#f3e1ee"]
        ends = list(pairwise((0, *cuts, 8)))
        areas = [(top, left, low - top, right - left) for top, low in ends for left, right in ends]
        cells = {
            (i, j): ink
            for (top, left, h, w), ink in zip(areas, inks)
            for i in range(top, top + h)
            for j in range(left, left + w)
        }
        return grid(8, 8, 15, fill=cells, frames=[(*area, RED) for area in areas])

    def block(attention: str) -> Part:
        return chain(residual("layer norm", attention), PERCEPTRON)

    grids = stack(titled("Windows", windows(4)), titled("Shifted by half", windows(2, 6)), "= 7 x 7 in the network")
    pair = [block("attention; in windows"), block("attention; in shifted windows")]
    return [grids, titled("One block", pair[0]), titled("The next block", pair[1])]


@figure("mixer_b16_224")
def mlp_mixer() -> list[Part]:
    tokens = grid(8, 6, 17, fill={(i, 2): ORANGE for i in range(8)})
    channels = grid(8, 6, 17, fill={(3, j): BLUE for j in range(6)})
    tables = stack(
        titled("Token mixing: columns", tokens),
        titled("Channel mixing: rows", channels, "= 196 tokens down,\n768 channels across"),
        gap=20,
    )
    block = chain(
        "= 196 tokens of 768",
        residual("layer norm", "transpose", "linear, 384; GELU", "linear, 196", "transpose"),
        residual("layer norm", "linear, 3072; GELU", "linear, 768"),
    )
    return [tables, titled("Mixer block", block)]


@figure("as_mlp_tiny")
def as_mlp() -> list[Part]:
    def draw(c: Canvas, x: float, y: float) -> None:
        for group, ink in enumerate((BLUE, GREEN, ORANGE, PURPLE, PINK)):
            for j in range(7):
                c.rect(x + (j + group) * 17, y + group * 19, 17, 17, ("#ffffff" if j != 5 - group else ink, "#999999"))
        c.rect(x + 5 * 17, y - 4, 17, 5 * 19 + 6, ("none", RED), line=2)

    shift = picture(11 * 17, 5 * 19, draw)
    inner = fork(chain("shift along W", "1x1 conv; GELU"), chain("shift along H", "1x1 conv; GELU"), gap=10)
    block = chain(
        residual("norm", "1x1 conv; norm, GELU", inner, "1x1 conv; after norm"),
        residual("norm", "1x1 conv, 4C; GELU", "1x1 conv, C"),
    )
    note = "= five groups of channels move by\n-2 to 2: a 1x1 convolution (red)\nreads five neighbours"
    return [titled("Axial shift", shift, note), titled("AS-MLP block", block)]


@figure("poolformer_s12")
def poolformer() -> list[Part]:
    mean = row(grid(5, 5, 18, fill=square(1, 1, 3, GREEN)), grid(5, 5, 18, fill={(2, 2): GREEN}), between=["mean"])
    frame = chain(residual("norm", "token mixer; anything"), residual("norm", "MLP"))
    block = chain(
        residual("norm", "3x3 average pool - input; no parameters", "layer scale"),
        residual("norm", "1x1 conv, 4C; GELU", "1x1 conv, C", "layer scale"),
    )
    return [stack(titled("MetaFormer", frame), mean, gap=24), titled("PoolFormer block", block)]


@figure("convnext_tiny")
def convnext() -> list[Part]:
    path = {
        "ResNet-50, trained as DeiT": 78.8,
        "stages of 3, 3, 9, 3 blocks": 79.4,
        "4x4 patches as stem": 79.5,
        "depthwise, wider": 80.5,
        "inverted bottleneck": 80.6,
        "7x7 kernels": 80.6,
        "GELU": 80.6,
        "one activation a block": 81.3,
        "one norm a block": 81.4,
        "layer norm": 81.5,
        "separate down-sampling": 82.0,
    }

    def draw(c: Canvas, x: float, y: float) -> None:
        for i, (name, accuracy) in enumerate(path.items()):
            at = y + 22 * i + 11
            c.text(x, at, name, size=11, at="left")
            c.rect(x + 172, at - 6, (accuracy - 78) * 14, 12, CONV)
            c.text(x + 268, at, f"{accuracy:.1f}", size=11, at="right")

    block = residual("7x7 depthwise, C", "layer norm", "linear, 4C; GELU", "linear, C", "layer scale")
    note = "= ImageNet top-1 in the paper, percent\n(bars begin at 78)"
    return [
        titled("From ResNet step by step", picture(270, 22 * len(path), draw), note),
        titled("ConvNeXt block", chain("= C x H x W", block, "= C x H x W")),
    ]


@figure("convmixer_768_32", apart=True)
def convmixer() -> list[Part]:
    patches = grid(6, 6, 18, fill={(i, j): (BLUE, GREEN)[(i + j) % 2] for i in range(6) for j in range(6)})
    places, channels = residual("7x7 depthwise, 768; ReLU, BN"), "1x1 conv, 768; ReLU, BN"
    block = chain("= 768 x 32 x 32", places, channels, "= 768 x 32 x 32")
    note = "= then one width and one\nresolution to the end"
    return [
        titled("Patches", patches, "7x7 conv, 768, /7; ReLU, BN", note),
        titled("ConvMixer block", block, "= places with a shortcut,\nthen channels"),
    ]


@figure("van_b1")
def van() -> list[Part]:
    near, far = grid(21, 21, 6, fill=square(8, 8, 5, BLUE)), grid(21, 21, 6, fill=square(1, 1, 7, ORANGE, step=3))
    reach = "= 7x7 depthwise,\nevery third pixel,\nthen 1x1: together\nin place of 21x21"
    large = fork(None, chain("5x5 depthwise", "7x7 depthwise; dilation 3", "1x1 conv"), join="x", main=0, gap=24)
    attention = residual("BN", residual("1x1 conv; GELU", large, "1x1 conv"), "layer scale")
    perceptron = residual("BN", "1x1 conv, 8C", "3x3 depthwise; GELU", "1x1 conv, C", "layer scale")
    return [
        titled("Large kernel", near, "= 5x5 depthwise", far, reach),
        titled("Attention", attention),
        titled("Perceptron", perceptron),
    ]


@figure("caformer_s18")
def metaformer() -> list[Part]:
    frame = chain(
        residual("norm", "token mixer", shortcut="scale"),
        residual("norm", "linear, 4C; StarReLU", "linear, C", shortcut="scale"),
    )
    curves = {"s · ReLU(x)² + b": lambda u: 0.8944 * max(u, 0) ** 2 - 0.4472, "ReLU": lambda u: max(u, 0)}
    mixers = stack(
        titled("PoolFormerV2 mixer", "3x3 average pool - input"),
        titled("ConvFormer mixer", chain("linear, 2C; StarReLU", "7x7 depthwise, 2C", "linear, C")),
        titled("CAFormer mixer", "self-attention; all pixels", "= stages 3 and 4; before\nas in ConvFormer"),
        gap=26,
    )
    left = stack(titled("MetaFormer block", frame, "= scale: stages 3 and 4"), titled("StarReLU", plot(curves)), gap=16)
    return [left, mixers]


# ---------------------------------------------------------------------------------------------------- the family tree


@dataclass
class Member:
    """A paper in the tree: its short name, kind, place (columns from the left, rows from the top) and ancestors.

    An ancestor may have a column after it, such as "swin 3.5", through which its arrow then runs.
    """

    name: str
    kind: Kind
    column: float
    row: float
    ancestors: str = ""


TREE = {
    "lenet": Member("LeNet-5", CONV, 3, 0),
    "alexnet": Member("AlexNet", CONV, 3, 1, "lenet"),
    "zfnet": Member("ZFNet", CONV, 5, 2, "alexnet"),
    "alexnet_owt": Member("AlexNet OWT", CONV, 4, 3, "alexnet"),
    "vgg": Member("VGG", CONV, 3, 3, "alexnet"),
    "googlenet": Member("GoogLeNet", CONV, 2, 3, "alexnet"),
    "resnet": Member("ResNet", CONV, 3, 4, "vgg"),
    "resnext": Member("ResNeXt", CONV, 4, 5, "resnet"),
    "wide_resnet": Member("Wide ResNet", CONV, 6, 5, "resnet"),
    "densenet": Member("DenseNet", CONV, 5, 5, "resnet"),
    "mobilenet_v1": Member("MobileNet", DEPTHWISE, 1, 6, "googlenet"),
    "shufflenet_v1": Member("ShuffleNet", DEPTHWISE, 0, 6, "resnext"),
    "senet": Member("SENet", CONV, 3, 6, "resnet"),
    "mobilenet_v2": Member("MobileNetV2", DEPTHWISE, 2, 7, "mobilenet_v1, resnet"),
    "shufflenet_v2": Member("ShuffleNetV2", DEPTHWISE, 0, 7, "shufflenet_v1"),
    "mobilenet_v3": Member("MobileNetV3", DEPTHWISE, 2, 8, "mobilenet_v2, senet 2.5"),
    "efficientnet": Member("EfficientNet", DEPTHWISE, 3, 8, "mobilenet_v2, senet"),
    "efficientnet_lite": Member("EfficientNet-Lite", DEPTHWISE, 2, 9, "efficientnet"),
    "vit": Member("ViT", ATTENTION, 5, 9, "transformer"),
    "deit": Member("DeiT", ATTENTION, 4, 10, "vit"),
    "t2t_vit": Member("T2T-ViT", ATTENTION, 5, 11, "vit"),
    "swin": Member("Swin", ATTENTION, 4, 11, "vit 4.5"),
    "efficientnet_v2": Member("EfficientNetV2", DEPTHWISE, 3, 11, "efficientnet"),
    "mlp_mixer": Member("MLP-Mixer", LINEAR, 6, 11, "vit"),
    "as_mlp": Member("AS-MLP", LINEAR, 5, 12, "swin, mlp_mixer"),
    "poolformer": Member("PoolFormer", MOVE, 6, 13, "vit 5.5, mlp_mixer"),
    "convnext": Member("ConvNeXt", CONV, 4, 14, "swin, resnext 3.5"),
    "convmixer": Member("ConvMixer", CONV, 5, 14, "mlp_mixer"),
    "van": Member("VAN", CONV, 3, 14, "swin"),
    "metaformer": Member("MetaFormer", MOVE, 6, 15, "poolformer"),
}
OUTSIDE = {"transformer": Member("Transformer", DATA, 5, 6)}
KINDS = {"convolution": CONV, "mobile convolution": DEPTHWISE, "attention": ATTENTION, "MLP": LINEAR, "hybrid": MOVE}


def draw_tree() -> None:
    """Time runs down, a band a year."""
    left, pitch, high, top = 66, 119, 54.0, 62
    everyone = TREE | OUTSIDE
    canvas = Canvas(900, top + 16 * high + 8)
    x = float(left)
    for name, kind in KINDS.items():
        canvas.rounded(x, 18, 22, 16, kind)
        canvas.text(x + 29, 26, name, at="left")
        x += 60 + text_width(name)
    years = groupby(sorted(TREE, key=lambda paper: PAPERS[paper].year), key=lambda paper: PAPERS[paper].year)
    for i, (year, papers) in enumerate(years):
        rows = [TREE[paper].row for paper in papers]
        first, last = min(rows), max(rows) + 1
        canvas.rect(0, top + first * high, 900, (last - first) * high, (("#ffffff", "#f6f6f6")[i % 2], "none"))
        canvas.text(32, top + (first + last) / 2 * high, str(year), bold=True, color=GREY)

    def place(column: float, row: float) -> tuple[float, float]:
        return left + (column + 0.5) * pitch, top + (row + 0.5) * high

    for member in TREE.values():
        for ancestor in filter(None, member.ancestors.split(", ")):
            name, _, via = ancestor.partition(" ")
            (x0, y0), (x1, y1) = place(everyone[name].column, everyone[name].row), place(member.column, member.row)
            between = [(place(float(via), 0)[0], y) for y in (y0 + 0.62 * high, y1 - 0.72 * high)] if via else []
            canvas.curve((x0, y0 + 14), *between, (x1, y1 - 14))
    for member in everyone.values():
        x, y = place(member.column, member.row)
        assert text_width(member.name, 11) < 102
        canvas.rounded(x - 52, y - 14, 104, 28, member.kind, dashed=member.kind == DATA)
        canvas.text(x, y, member.name, size=11)
    canvas.save(FIGURES / "family.svg", "The papers of the zoo and what they build on")


def main() -> None:
    wanted = sys.argv[1:] or list(DRAWN)
    FIGURES.mkdir(parents=True, exist_ok=True)
    for paper in wanted:
        draw_paper(paper)
    if not sys.argv[1:]:
        draw_tree()
        for language in ("en", "zh"):
            write_tables(DOCS / language / "zoo.md", {paper: member.name for paper, member in TREE.items()})


if __name__ == "__main__":
    main()
