"""Every network of the zoo beside its reference: seconds of a forward pass and of a training step, peak memory.

    python benchmarks/zoo.py [--official FOLDER] [--only NAME...] [--rounds 7] [--again]

Both networks get the same weights and the same batch, and take turns in one process; the ratio is the median over
the rounds of ours divided by theirs. Memory is the peak of what a training step allocates beyond the weights, from
the allocator's own record. FOLDER holds clones of the authors' repositories for the networks that no library has.
Finished networks are kept and not measured again unless asked. Writes benchmarks/results/zoo.json and zoo.md.
"""

from __future__ import annotations

import argparse
import gc
import importlib
import json
import statistics
import sys
import time
import types
import warnings
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from lenext import runs
from lenext.models import MODELS, create_model

RESULTS = Path(__file__).parent / "results"
LIMIT = 1.05
OFFICIAL = {  # beginning of the name: the authors' repository, the module and the function in it
    "t2t_vit_t_": ("T2T-ViT", "models.t2t_vit", "t2t_vit_t_{}"),
    "t2t_vit_": ("T2T-ViT", "models.t2t_vit", "t2t_vit_{}"),
    "van_": ("VAN-Classification", "models.van", "van_{}"),
}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--official", type=Path, help="folder with clones of the authors' repositories")
    parser.add_argument("--only", nargs="+", default=list(MODELS), choices=list(MODELS), metavar="NAME")
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--again", action="store_true", help="measure finished networks again")
    args = parser.parse_args()
    warnings.simplefilter("ignore")
    path = RESULTS / "zoo.json"
    kept = json.loads(path.read_text()) if path.exists() else {"networks": {}}
    machine = runs.environment()
    kept["machine"] = {key: machine[key] for key in ("processor", "cores", "memory_gib", "torch", "python")}
    for name in sorted(args.only, key=lambda name: MODELS[name].multiply_adds):
        if name in kept["networks"] and not args.again:
            continue
        reference = build_reference(name, args.official)
        if reference is None:
            continue
        rounds = args.rounds if MODELS[name].multiply_adds < 1e10 else max(args.rounds // 2, 3)
        row = measure(name, reference, rounds)
        if name in kept["networks"]:
            row["measured_again"] = 1
        kept["networks"][name] = row
        path.write_text(json.dumps(kept, indent=1) + "\n")
        (RESULTS / "zoo.md").write_text(table(kept), encoding="utf-8")
        print(name, {key: round(value, 3) for key, value in kept["networks"][name].items()}, flush=True)


def build_reference(name: str, official: Path | None) -> nn.Module | None:
    """The reference with random weights; None where there is nothing to compare with here."""
    library, _, reference = MODELS[name].reference.partition(":")
    if library == "torchvision":
        import torchvision

        extra = {"aux_logits": False, "init_weights": False} if reference == "googlenet" else {}
        return torchvision.models.get_model(reference, weights=None, **extra)
    if library == "timm":
        import timm

        return timm.create_model(reference)
    if library == "official" and official is not None:
        for prefix, (folder, module, function) in OFFICIAL.items():
            if name.startswith(prefix) and (official / folder).is_dir():
                return from_repository(official / folder, module, function.format(name.removeprefix(prefix)), {})
        if name.startswith("shufflenet_v1") and (official / "ShuffleNet-Series").is_dir():
            size, group = split_shufflenet(name)
            return from_repository(
                official / "ShuffleNet-Series" / "ShuffleNetV1",
                "network",
                "ShuffleNetV1",
                {"group": group, "model_size": size},
            )
    return None


def split_shufflenet(name: str) -> tuple[str, int]:
    """shufflenet_v1_x1_5_g3 -> ("1.5x", 3)."""
    whole, tenth, group = name.removeprefix("shufflenet_v1_x").split("_")
    return f"{whole}.{tenth}x", int(group.removeprefix("g"))


def from_repository(folder: Path, module: str, function: str, arguments: dict[str, Any]) -> nn.Module:
    """A network built by the authors' own code; their `models` package is not ours, so it is forgotten afterwards."""
    import timm.layers
    import timm.models

    # Their code imports timm's layers from where they were.
    shim = types.ModuleType("timm.models.layers")
    shim.__dict__.update({key: getattr(timm.layers, key) for key in dir(timm.layers)})
    before = set(sys.modules)
    sys.modules["timm.models.layers"] = shim
    sys.path.insert(0, str(folder))
    try:
        return getattr(importlib.import_module(module), function)(**arguments)
    finally:
        sys.path.remove(str(folder))
        for loaded in set(sys.modules) - before:
            if loaded.split(".")[0] in ("models", "network", "blocks"):
                del sys.modules[loaded]


def measure(name: str, reference: nn.Module, rounds: int) -> dict[str, float]:
    """Seconds, ratios and bytes of one pair."""
    entry = MODELS[name]
    ours = create_model(name)
    state = reference.state_dict()
    adapt = getattr(ours, "adapt_checkpoint", None)
    ours.load_state_dict(adapt(dict(state)) if adapt else state)
    size = entry.preprocess.image_size
    batch = (
        16 if entry.multiply_adds < 3e8 else 8 if entry.multiply_adds < 3e9 else 4 if entry.multiply_adds < 2e10 else 2
    )
    x, labels = torch.randn(batch, 3, size, size), torch.arange(batch)
    row: dict[str, float] = {"batch": batch, "image_size": size}
    pair = {"ours": ours, "reference": reference}
    for model in pair.values():
        without_chance(model)
    for what, step, training in (("forward", forward, False), ("training", train, True)):
        for model in pair.values():
            model.train(training)
            step(model, x, labels)  # the first calls choose kernels
            step(model, x, labels)
        seconds: dict[str, list[float]] = {"ours": [], "reference": []}
        for i in range(rounds):
            order = list(pair) if i % 2 == 0 else list(pair)[::-1]
            for side in order:
                seconds[side].append(timed(step, pair[side], x, labels))
        ratios = [a / b for a, b in zip(seconds["ours"], seconds["reference"], strict=True)]
        row |= {
            f"{what}_ours": statistics.median(seconds["ours"]),
            f"{what}_reference": statistics.median(seconds["reference"]),
            f"{what}_ratio": statistics.median(ratios),
            f"{what}_low": min(ratios),
            f"{what}_high": max(ratios),
        }
    for side, model in pair.items():
        model.zero_grad(set_to_none=True)
        row[f"memory_{side}"] = peak_bytes(partial(train, model, x, labels))
    row["memory_ratio"] = row["memory_ours"] / row["memory_reference"]
    return row


def without_chance(model: nn.Module) -> None:
    """No branches or units dropped: how many of them are by default differs between the two."""
    for module in model.modules():
        for rate in ("p", "drop_prob", "rate"):
            if isinstance(getattr(module, rate, None), float):
                setattr(module, rate, 0.0)


def forward(model: nn.Module, x: Tensor, labels: Tensor) -> None:
    with torch.inference_mode():
        model(x)


def train(model: nn.Module, x: Tensor, labels: Tensor) -> None:
    F.cross_entropy(model(x), labels).backward()
    model.zero_grad(set_to_none=True)


def timed(step: Callable[..., None], model: nn.Module, x: Tensor, labels: Tensor) -> float:
    begin = time.perf_counter()
    step(model, x, labels)
    return time.perf_counter() - begin


def peak_bytes(work: Callable[[], None]) -> int:
    """The most bytes that `work` held at once, by PyTorch's allocator."""
    gc.collect()
    with torch.profiler.profile(activities=[torch.profiler.ProfilerActivity.CPU], profile_memory=True) as profile:
        work()
    assert profile.profiler is not None
    events = [event for event in profile.profiler.kineto_results.events() if event.name() == "[memory]"]
    held = peak = 0
    for event in sorted(events, key=lambda event: event.start_ns()):
        held += event.nbytes()
        peak = max(peak, held)
    return peak


def table(kept: dict[str, Any]) -> str:
    machine, rows = kept["machine"], kept["networks"]
    worst = {what: [name for name in rows if rows[name][f"{what}_ratio"] > LIMIT] for what in WHATS}
    again = [name for name, row in rows.items() if row.get("measured_again")]
    lines = [
        "# The zoo beside its references",
        "",
        "Medians of alternating rounds in one process, float32, the same weights and batch, on "
        f"{machine['cores']} cores of {machine['processor']}, {machine['memory_gib']} GiB, torch {machine['torch']}. "
        "Seconds are ours; ratios are ours divided by the reference's, with the lowest and highest round. Memory is "
        "the peak that a training step holds beyond the weights. Made by `python benchmarks/zoo.py`.",
        "",
        f"Networks measured: {len(rows)}. Above {LIMIT}: "
        + "; ".join(
            f"{what} {len(names)}{' (' + ', '.join(names) + ')' if names else ''}" for what, names in worst.items()
        )
        + "."
        + (
            f" Measured a second time, with more rounds, of which this is the second: {', '.join(again)}."
            if again
            else ""
        ),
        "",
        "| network | batch | forward, s | ratio | training step, s | ratio | memory, MiB | ratio |",
        "| --- | --- | --- | --- | --- | --- | --- | --- |",
    ]
    for name in MODELS:
        if name in rows:
            r = rows[name]
            lines.append(
                f"| {name} | {r['batch']} x {r['image_size']} | {r['forward_ours']:.3f} | {spread(r, 'forward')} "
                f"| {r['training_ours']:.3f} | {spread(r, 'training')} "
                f"| {r['memory_ours'] / 2**20:,.0f} | {r['memory_ratio']:.2f} |"
            )
    return "\n".join([*lines, ""])


WHATS = ("forward", "training", "memory")


def spread(row: dict[str, float], what: str) -> str:
    return f"{row[f'{what}_ratio']:.2f} ({row[f'{what}_low']:.2f} to {row[f'{what}_high']:.2f})"


if __name__ == "__main__":
    main()
