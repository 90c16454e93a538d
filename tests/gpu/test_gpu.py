"""What only a GPU can show: the same gradients as on the processor, memory that ends, answers of its backends."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from lightning_fabric import Fabric
from torch import nn

import lenext
from lenext import cli, runs
from lenext.inference import choose
from lenext.inference.backends import NAMES, make_backend, torch_backend
from lenext.models import create_model
from lenext.models.catalogue import summarise
from lenext.preprocess import Preprocess
from lenext.training.objective import make_objective
from lenext.training.step import Step
from tests.inference.test_backends import PREPROCESS, difference, small_network, some_pictures
from tests.models.test_protocol import SMALLEST
from tests.soak.test_compile import gradients, require_exact_gradients

pytestmark = pytest.mark.skipif(not torch.cuda.is_available(), reason="no GPU is to be seen")


@pytest.fixture
def exact(monkeypatch) -> None:
    """float32 with its whole mantissa."""
    monkeypatch.setattr(torch.backends.cudnn, "allow_tf32", False)
    monkeypatch.setattr(torch.backends.cuda.matmul, "allow_tf32", False)


@pytest.mark.parametrize("name", SMALLEST)
def test_gradients_are_those_of_the_processor(name: str, exact: None) -> None:
    # 1e-4, since kernels by Fourier transform and Winograd's tricks round more than a plain sum.
    require_exact_gradients(name, lambda model, x, labels: gradients(model.cuda(), x.cuda(), labels.cuda()), share=1e-4)


@pytest.fixture
def little_memory():
    """Sets a limit, in bytes, to what this process may hold on the GPU."""
    total = torch.cuda.get_device_properties(0).total_memory

    def limit(size: int) -> None:
        torch.cuda.empty_cache()
        torch.cuda.set_per_process_memory_fraction(size / total)

    yield limit
    torch.cuda.set_per_process_memory_fraction(1.0)
    torch.cuda.empty_cache()


def test_a_step_that_does_not_fit_is_made_in_parts(little_memory, exact: None) -> None:
    """The real end of the memory: the gradients are those of the whole batch."""
    torch.manual_seed(0)
    model = nn.Sequential(nn.Conv2d(3, 64, 3, padding=1), nn.Tanh(), nn.Flatten(), nn.Linear(64 * 32 * 32, 4)).cuda()
    fabric = Fabric(accelerator="cuda", devices=1)
    module, optimizer = fabric.setup(model, torch.optim.SGD(model.parameters(), lr=0.0))
    x, labels = torch.randn(1024, 3, 32, 32).cuda(), torch.arange(1024).cuda() % 4

    def step(micro_batch: int) -> tuple[Step, list[torch.Tensor]]:
        goal = make_objective("cross_entropy", 4).cuda()
        settings: dict[str, Any] = {"bfloat16": False, "clip_norm": 0.0, "sam": 0.0, "several": False}
        made = Step(fabric, module, model, optimizer, goal, micro_batch=micro_batch, **settings)
        outcome = made.compute(x, labels, labels, torch.ones(1024).cuda(), seed=1)
        assert (outcome.seen, outcome.finite) == (1024, True)
        found = [p.grad.clone() for p in model.parameters() if p.grad is not None]
        made.optimizer.zero_grad(set_to_none=True)
        return made, found

    made, whole = step(1024)
    assert made.micro_batch == 1024
    standing = torch.cuda.memory_allocated()
    little_memory(standing + 200 * 2**20)
    made, parts = step(1024)
    assert made.micro_batch < 512
    for a, b in zip(whole, parts):
        torch.testing.assert_close(a, b, rtol=1e-3, atol=1e-5)


def test_an_answer_that_does_not_fit_is_made_in_parts(little_memory) -> None:
    model, preprocess = create_model("resnet18", num_classes=5).eval(), Preprocess(image_size=224)
    x = torch.randint(0, 256, (128, 3, 224, 224), dtype=torch.uint8)
    run = make_backend("cuda-float32", model, preprocess)
    whole = run(x)
    little_memory(torch.cuda.memory_allocated() + 400 * 2**20)
    torch.testing.assert_close(run(x), whole, rtol=1e-3, atol=1e-5)


def test_the_fastest_backend_is_one_of_the_gpu_and_agrees(tmp_path, monkeypatch) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    model, pictures = small_network(), some_pictures()
    name, run = choose.fastest_backend(model, PREPROCESS, pictures, choose.WORTH_MEASURING, tolerance=1e-3)
    assert name.startswith("cuda")
    assert difference(run(pictures), torch_backend(model, PREPROCESS)(pictures)) < 2e-3
    known = choose.remembered_backend(model, PREPROCESS, pictures, tolerance=1e-3, candidates=choose.FEW)
    assert known is not None
    assert known[0] == name
    assert next(model.parameters()).device.type == "cpu"


@pytest.mark.parametrize("name", [name for name in NAMES if name.startswith("cuda")])
def test_predict_on_the_gpu(name: str, run: Path, shapes: Path, capsys) -> None:
    answers = {}
    for backend in ("pytorch-float32", name):
        with pytest.raises(SystemExit) as end:
            cli.main(["predict", str(run), str(shapes), "--backend", backend, "--format", "jsonl"])
        assert end.value.code == 0
        answers[backend] = [json.loads(line) for line in capsys.readouterr().out.splitlines()]
    for one, other in zip(*answers.values(), strict=True):
        assert one["image"] == other["image"]
        assert abs(one["probability"] - other["probability"]) < (0.02 if name.endswith("16") else 2e-3)


def test_the_run_says_which_gpu_and_what_it_held(run: Path) -> None:
    assert torch.cuda.get_device_name() in (run / "environment.json").read_text()
    weights = sum(p.numel() * 4 for p in lenext.load(run).model.parameters())
    assert all(row["peak_memory_mib"] > weights / 2**20 for row in runs.read_metrics(run))


def test_to_summarise_a_network_leaves_it_where_it_is() -> None:
    model = small_network()
    summarise(model, 32)
    assert next(model.parameters()).device.type == "cpu"
