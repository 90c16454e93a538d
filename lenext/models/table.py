"""The table of the zoo: name -> paper, preprocessing, public ImageNet weights, published accuracy.

The rows are in `zoo.csv`, one a network; its columns are explained at `Entry`. The papers are below.
"""

from __future__ import annotations

import csv
from dataclasses import dataclass
from importlib import resources

from lenext.preprocess import IMAGENET_MEAN, IMAGENET_STD, Preprocess


@dataclass(frozen=True)
class Paper:
    """file: the module of `lenext.models` that explains it. link: where to read it."""

    file: str
    authors: str
    year: int
    title: str
    link: str


@dataclass(frozen=True)
class Entry:
    """One network: a row of `zoo.csv`.

    reference: the implementation that gives the same outputs from the same weights: "torchvision:NAME", "timm:NAME",
    "official:OWNER/REPOSITORY" on GitHub; "paper" where there is none, and shapes and counts are the paper's.
    parameters, multiply_adds: at 1,000 classes and three channels (LeNet-5: ten and one), for one image of the
    preprocessing's size, as `catalogue.count` counts them.
    preprocess: what the public weights were trained with; the paper's input where there are none. In the table the
    short side becomes `resize` pixels, of which the central `image_size` are cut.
    weights: "SCHEME:PLACE" of the public ImageNet weights, None where there are none. Schemes:
        package: an installed Python package, so that no network is needed;
        torchvision: a file of https://download.pytorch.org/models, whose name holds the beginning of its SHA-256;
        hub: REPOSITORY/FILE of the Hugging Face hub, which knows the file's SHA-256;
        url: a file of the authors', who publish no hash;
        page: a page of the authors' from which only a browser can fetch it.
    top1: ImageNet validation accuracy, percent, of these weights after this preprocessing, one centre crop, as
    `source` publishes it: torchvision, timm, the weights' "authors"; or of the network in its "paper".
    """

    paper: Paper
    reference: str
    parameters: int
    multiply_adds: int
    preprocess: Preprocess
    weights: str | None = None
    top1: float | None = None
    source: str = ""


def _arxiv(file: str, authors: str, year: int, title: str, number: str) -> Paper:
    return Paper(file, authors, year, title, f"https://arxiv.org/abs/{number}")


LENET = Paper(
    "lenet",
    "LeCun et al.",
    1998,
    "Gradient-Based Learning Applied to Document Recognition",
    "http://vision.stanford.edu/cs598_spring07/papers/Lecun98.pdf",
)
ALEXNET = Paper(
    "alexnet",
    "Krizhevsky et al.",
    2012,
    "ImageNet Classification with Deep Convolutional Neural Networks",
    "https://papers.nips.cc/paper/4824",
)
ZFNET = _arxiv("zfnet", "Zeiler & Fergus", 2013, "Visualizing and Understanding Convolutional Networks", "1311.2901")
ALEXNET_OWT = _arxiv(
    "alexnet_owt", "Krizhevsky", 2014, "One weird trick for parallelizing convolutional neural networks", "1404.5997"
)
VGG = _arxiv(
    "vgg",
    "Simonyan & Zisserman",
    2014,
    "Very Deep Convolutional Networks for Large-Scale Image Recognition",
    "1409.1556",
)
GOOGLENET = _arxiv("googlenet", "Szegedy et al.", 2014, "Going Deeper with Convolutions", "1409.4842")
RESNET = _arxiv("resnet", "He et al.", 2015, "Deep Residual Learning for Image Recognition", "1512.03385")
RESNEXT = _arxiv(
    "resnet", "Xie et al.", 2016, "Aggregated Residual Transformations for Deep Neural Networks", "1611.05431"
)
WIDE_RESNET = _arxiv("resnet", "Zagoruyko & Komodakis", 2016, "Wide Residual Networks", "1605.07146")
DENSENET = _arxiv("densenet", "Huang et al.", 2016, "Densely Connected Convolutional Networks", "1608.06993")
SENET = _arxiv("seresnet", "Hu et al.", 2017, "Squeeze-and-Excitation Networks", "1709.01507")
MOBILENET_V1 = _arxiv(
    "mobilenet_v1",
    "Howard et al.",
    2017,
    "MobileNets: Efficient Convolutional Neural Networks for Mobile Vision Applications",
    "1704.04861",
)
SHUFFLENET_V1 = _arxiv(
    "shufflenet_v1",
    "Zhang et al.",
    2017,
    "ShuffleNet: An Extremely Efficient Convolutional Neural Network for Mobile Devices",
    "1707.01083",
)
MOBILENET_V2 = _arxiv(
    "mobilenet_v2", "Sandler et al.", 2018, "MobileNetV2: Inverted Residuals and Linear Bottlenecks", "1801.04381"
)
SHUFFLENET_V2 = _arxiv(
    "shufflenet_v2",
    "Ma et al.",
    2018,
    "ShuffleNet V2: Practical Guidelines for Efficient CNN Architecture Design",
    "1807.11164",
)
MOBILENET_V3 = _arxiv("mobilenet_v3", "Howard et al.", 2019, "Searching for MobileNetV3", "1905.02244")
EFFICIENTNET = _arxiv(
    "efficientnet",
    "Tan & Le",
    2019,
    "EfficientNet: Rethinking Model Scaling for Convolutional Neural Networks",
    "1905.11946",
)
EFFICIENTNET_LITE = Paper(
    "efficientnet_lite",
    "Google",
    2020,
    "Higher accuracy on vision models with EfficientNet-Lite",
    "https://github.com/tensorflow/tpu/tree/master/models/official/efficientnet/lite",
)
EFFICIENTNET_V2 = _arxiv(
    "efficientnet_v2", "Tan & Le", 2021, "EfficientNetV2: Smaller Models and Faster Training", "2104.00298"
)
VIT = _arxiv(
    "vit",
    "Dosovitskiy et al.",
    2020,
    "An Image is Worth 16x16 Words: Transformers for Image Recognition at Scale",
    "2010.11929",
)
DEIT = _arxiv(
    "deit",
    "Touvron et al.",
    2020,
    "Training data-efficient image transformers & distillation through attention",
    "2012.12877",
)
T2T_VIT = _arxiv(
    "t2t_vit",
    "Yuan et al.",
    2021,
    "Tokens-to-Token ViT: Training Vision Transformers from Scratch on ImageNet",
    "2101.11986",
)
SWIN = _arxiv(
    "swin",
    "Liu et al.",
    2021,
    "Swin Transformer: Hierarchical Vision Transformer using Shifted Windows",
    "2103.14030",
)
MLP_MIXER = _arxiv(
    "mlp_mixer", "Tolstikhin et al.", 2021, "MLP-Mixer: An all-MLP Architecture for Vision", "2105.01601"
)
AS_MLP = _arxiv("as_mlp", "Lian et al.", 2021, "AS-MLP: An Axial Shifted MLP Architecture for Vision", "2107.08391")
POOLFORMER = _arxiv("poolformer", "Yu et al.", 2021, "MetaFormer Is Actually What You Need for Vision", "2111.11418")
CONVNEXT = _arxiv("convnext", "Liu et al.", 2022, "A ConvNet for the 2020s", "2201.03545")
CONVMIXER = _arxiv("convmixer", "Trockman & Kolter", 2022, "Patches Are All You Need?", "2201.09792")
VAN = _arxiv("van", "Guo et al.", 2022, "Visual Attention Network", "2202.09741")
METAFORMER = _arxiv("metaformer", "Yu et al.", 2022, "MetaFormer Baselines for Vision", "2210.13452")

PAPERS = {name.lower(): paper for name, paper in list(globals().items()) if isinstance(paper, Paper)}

HALF = (0.5, 0.5, 0.5)  # networks trained by Google see pixels from -1 to 1


def _read() -> dict[str, Entry]:
    models = {}
    with resources.files("lenext.models").joinpath("zoo.csv").open(encoding="utf-8") as file:
        for row in csv.DictReader(file):
            size, resize = int(row["image_size"]), int(row["resize"])
            mean, std = {"imagenet": (IMAGENET_MEAN, IMAGENET_STD), "half": (HALF, HALF)}[row["normalise"]]
            preprocess = Preprocess(
                image_size=size, mean=mean, std=std, interpolation=row["interpolation"], crop_fraction=size / resize
            )
            assert row["name"] not in models
            models[row["name"]] = Entry(
                PAPERS[row["paper"]],
                row["reference"],
                int(row["parameters"]),
                int(row["multiply_adds"]),
                preprocess,
                row["weights"] or None,
                float(row["top1"]) if row["top1"] else None,
                row["source"],
            )
    return models


MODELS = _read()
