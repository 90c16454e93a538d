"""Ways to run a network: each beside float32 PyTorch, and the choice between them."""

from __future__ import annotations

import itertools
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from lenext.data.decode import decode
from lenext.data.transforms import eval_transform
from lenext.inference import choose
from lenext.inference.backends import NAMES, PLAIN, make_backend, torch_backend
from lenext.models import create_model
from lenext.preprocess import Preprocess
from tests.data import corpus
from tests.models.test_protocol import SMALLEST, lively, small

PREPROCESS = Preprocess(image_size=32)
# Share of the outputs' norm by which an arithmetic may differ on a small network.
ERRORS = {"float32": 1e-5, "tf32": 0.01, "float16": 0.01, "bfloat16": 0.05, "int8": 0.15}


@pytest.fixture(scope="module")
def network() -> nn.Module:
    return small_network()


def small_network() -> nn.Module:
    torch.manual_seed(0)
    return lively(create_model("resnet18", num_classes=5, stem="small", width=8)).eval()


@pytest.fixture(scope="module")
def pictures() -> Tensor:
    return some_pictures()


def some_pictures() -> Tensor:
    """uint8 (24, 3, 32, 32)."""
    whole = decode(corpus.encoded(corpus.picture(200, 150), "PNG"))
    rng = np.random.default_rng(0)
    corners = [(int(rng.integers(86)), int(rng.integers(136))) for _ in range(24)]
    return torch.stack([eval_transform(PREPROCESS)(whole[top : top + 64, left : left + 64]) for top, left in corners])


def difference(x: Tensor, reference: Tensor) -> float:
    return float((x - reference).norm() / reference.norm())


# Compiling takes minutes: the soak test has it.
@pytest.mark.parametrize("name", [name for name in NAMES if not name.startswith("compiled")])
def test_every_backend_answers_like_pytorch(name: str, network: nn.Module, pictures: Tensor) -> None:
    package = NAMES[name]
    if package is not None:
        pytest.importorskip(package, reason=f"{name} needs {package}")
    if name.startswith("cuda") and not torch.cuda.is_available():
        pytest.skip("no GPU is to be seen")
    require_agreement(name, network, pictures)


@pytest.mark.parametrize(
    ("backend", "name"),
    [
        ("onnxruntime-int8", "mobilenetv1_100"),  # depthwise convolutions
        ("openvino-int8", "poolformer_s12"),  # normalises like a transformer, has no attention
        ("openvino-int8", "swin_tiny_patch4_window7_224"),  # attention that loses by evened activations
    ],
)
def test_int8_tells_pictures_apart(backend: str, name: str) -> None:
    pytest.importorskip("nncf", reason="int8 needs nncf")
    pytest.importorskip(str(NAMES[backend]), reason=f"{backend} needs {NAMES[backend]}")
    torch.manual_seed(0)
    model, preprocess = lively(small(name)).eval(), Preprocess(image_size=SMALLEST[name][0])
    whole = decode(corpus.encoded(corpus.picture(200, 150), "PNG"))
    x = torch.stack([eval_transform(preprocess)(whole[i : i + 64, 2 * i : 2 * i + 64]) for i in range(0, 64, 8)])
    outputs, exact = make_backend(backend, model, preprocess, x)(x), torch_backend(model, preprocess)(x)
    assert difference(outputs - exact.mean(0), exact - exact.mean(0)) < 0.2


def require_agreement(name: str, network: nn.Module, pictures: Tensor) -> None:
    """With float32 PyTorch, for batches of any size, however they lie in memory."""
    run = make_backend(name, network, PREPROCESS, pictures)
    plain = torch_backend(network, PREPROCESS)
    channels_last = pictures.contiguous(memory_format=torch.channels_last)
    for part in (pictures, pictures[:1], pictures[:7], pictures[::2], pictures.transpose(2, 3), channels_last):
        outputs = run(part)
        assert outputs.dtype == torch.float32
        assert difference(outputs, plain(part)) < ERRORS[name.partition("-")[2]]


def test_a_backend_that_there_is_not_or_that_lacks_its_package_is_named(network: nn.Module, monkeypatch) -> None:
    with pytest.raises(ValueError, match=r"there is no backend 'tensorrt'; there are auto, pytorch-float32, .*int8"):
        make_backend("tensorrt", network, PREPROCESS)
    monkeypatch.setitem(NAMES, "openvino-float32", "no_such_package")
    with pytest.raises(ValueError, match=r"needs the package no_such_package: pip install 'lenext\["):
        make_backend("openvino-float32", network, PREPROCESS)
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    with pytest.raises(ValueError, match="cuda-float16 needs a GPU, and PyTorch sees none here; name another"):
        make_backend("cuda-float16", network, PREPROCESS)
    with pytest.raises(ValueError, match="needs pictures to set its scales by"):
        make_backend("onnxruntime-int8", network, PREPROCESS)


class Clock:
    """Time that passes only when someone sleeps, however busy the machine is."""

    now = 0.0

    def perf_counter(self) -> float:
        self.now += 1e-6
        return self.now

    def sleep(self, seconds: float) -> None:
        self.now += seconds


@pytest.fixture
def clock(monkeypatch) -> Clock:
    clock = Clock()
    monkeypatch.setattr(choose, "time", clock)
    return clock


@pytest.fixture
def made(clock, monkeypatch, tmp_path) -> dict[str, list[int]]:
    """Backends of three names that take the time and make the error that their names say, beside a slower PyTorch; what
    each has computed."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    work = {"openvino-float32": (0.002, 0.0), "openvino-bfloat16": (0.0, 0.02), "onnxruntime-float32": (0.05, 0.0)}
    done: dict[str, list[int]] = {name: [] for name in work}

    def make(name: str, model: nn.Module, preprocess: Preprocess, calibration: object = None) -> Callable:
        plain, (seconds, error) = torch_backend(model, preprocess), work[name]

        def run(x: Tensor) -> Tensor:
            done[name].append(len(x))
            outputs = plain(x)
            clock.sleep(seconds * len(x))
            return outputs * (1 + error)

        return run

    def slow(model: nn.Module, preprocess: Preprocess) -> Callable:
        plain = torch_backend(model, preprocess)

        def run(x: Tensor) -> Tensor:
            clock.sleep(0.012 * len(x))
            return plain(x)

        return run

    monkeypatch.setattr(choose, "make_backend", make)
    monkeypatch.setattr(choose, "torch_backend", slow)
    monkeypatch.setattr(choose.importlib.util, "find_spec", lambda name: name)
    return done


@pytest.mark.parametrize(("tolerance", "expected"), [(1e-3, "openvino-float32"), (0.05, "openvino-bfloat16")])
def test_the_fastest_that_agrees_is_taken_and_remembered(tolerance, expected, made, network, pictures) -> None:
    candidates = tuple(made)

    def chosen(pictures_to_come: int = 1000) -> str:
        return choose.fastest_backend(
            network, PREPROCESS, pictures, pictures_to_come, tolerance=tolerance, candidates=candidates
        )[0]

    for few in (choose.FEWEST - 1, 500):  # done before anything is compiled
        assert chosen(few) == PLAIN
    assert not any(made.values())
    assert chosen() == expected
    assert all(made.values())
    for done in made.values():
        done.clear()
    assert chosen() == expected
    assert not any(made.values())
    known = choose.remembered_backend(
        network, PREPROCESS, pictures[:3], tolerance=tolerance, candidates=candidates
    )  # however many there are at once
    assert known is not None
    assert known[0] == expected


def test_a_backend_is_made_for_as_many_pictures_as_pay_for_it(made, clock, network, pictures, monkeypatch) -> None:
    make = choose.make_backend

    def make_slowly(name: str, *rest: Any) -> Callable:
        clock.sleep(2)
        return make(name, *rest)

    monkeypatch.setattr(choose, "make_backend", make_slowly)
    asked, only = (network, PREPROCESS, pictures), ("openvino-float32",)
    assert choose.fastest_backend(*asked, 1000, candidates=only)[0] == "openvino-float32"
    made["openvino-float32"].clear()
    assert choose.fastest_backend(*asked, 100, candidates=only)[0] == PLAIN  # in 1.2 s
    assert choose.fastest_backend(*asked, 500, candidates=only)[0] == "openvino-float32"  # 3 s instead of 6
    assert choose.remembered_backend(*asked, candidates=only) is not None
    assert not any(made.values())


def test_threads_can_share_a_backend(network, pictures) -> None:
    pytest.importorskip("openvino")
    run, plain = make_backend("openvino-float32", network, PREPROCESS), torch_backend(network, PREPROCESS)
    parts = [pictures[i : i + 1 + i % 5] for i in range(20)] * 5
    with ThreadPoolExecutor(4) as pool:
        for part, outputs in zip(parts, pool.map(run, parts)):
            assert difference(outputs, plain(part)) < ERRORS["float32"]


def test_small_outputs_must_agree_as_well(made, pictures) -> None:
    """Those of an untrained MobileNetV3 are a hundred-millionth."""
    network = small_network()
    with torch.no_grad():
        for parameter in network.get_submodule("fc").parameters():
            parameter.mul_(1e-9)
    name, _ = choose.fastest_backend(network, PREPROCESS, pictures, 1000, tolerance=1e-3, candidates=tuple(made))
    assert name == "openvino-float32"


def test_a_machine_that_is_busy_at_first_does_not_decide(made, clock, network, pictures, monkeypatch) -> None:
    """As one that serves while it measures: the first candidate must not suffer for all."""
    make, timed = choose.make_backend, itertools.count()

    def make_slowly(name: str, *rest: Any) -> Callable:
        run = make(name, *rest)

        def work(x: Tensor) -> Tensor:
            if len(x) == len(pictures) and next(timed) < choose.ROUNDS:
                clock.sleep(1.5)
            return run(x)

        return work

    monkeypatch.setattr(choose, "make_backend", make_slowly)
    name, _ = choose.fastest_backend(network, PREPROCESS, pictures, 1000, tolerance=1e-3, candidates=tuple(made))
    assert name == "openvino-float32"


def test_what_the_other_leaves_running_does_not_decide(made, clock, network, pictures, monkeypatch) -> None:
    """ONNX Runtime's threads wait busily after their last run: whoever comes next begins slowly."""
    make, ran = choose.make_backend, [""]

    def make_disturbed(name: str, *rest: Any) -> Callable:
        run = make(name, *rest)

        def work(x: Tensor) -> Tensor:
            if name == "openvino-float32" and ran != [name]:
                clock.sleep(1.5)
            ran[:] = [name]
            return run(x)

        return work

    monkeypatch.setattr(choose, "make_backend", make_disturbed)
    name, _ = choose.fastest_backend(network, PREPROCESS, pictures, 1000, tolerance=1e-3, candidates=tuple(made))
    assert name == "openvino-float32"


@pytest.mark.parametrize("name", ["fc.weight", "bn1.running_mean"])
def test_other_weights_are_measured_anew(name, made, pictures) -> None:
    """Any of them, though it be the last of a layer, and also what is no parameter."""
    candidates, network = tuple(made), small_network()
    choose.fastest_backend(network, PREPROCESS, pictures, 1000, candidates=candidates)
    assert choose.remembered_backend(small_network(), PREPROCESS, pictures, candidates=candidates)
    network.state_dict()[name].view(-1)[-1] += 1
    assert choose.remembered_backend(network, PREPROCESS, pictures, candidates=candidates) is None


def test_another_version_of_a_package_is_measured_anew(made, network, pictures, monkeypatch) -> None:
    candidates = tuple(made)
    choose.fastest_backend(network, PREPROCESS, pictures, 1000, candidates=candidates)
    monkeypatch.setattr(choose.importlib.metadata, "version", lambda package: "2099.1")
    assert choose.remembered_backend(network, PREPROCESS, pictures, candidates=candidates) is None


KEPT = {"backend": "openvino-float32", "plain": 0.2, "chosen": 0.1, "making": 3.0}


@pytest.mark.parametrize(
    "value", [{}, [], None, 3, "openvino-float32", KEPT | {"backend": {}}, KEPT | {"backend": "tensorrt"},
              KEPT | {"plain": None}, KEPT | {"making": "long"}],
)  # fmt: skip
def test_a_damaged_memory_is_none(value, made, network, pictures, monkeypatch) -> None:
    monkeypatch.setattr(choose.runs, "recall", lambda room, key: value)
    assert choose.remembered_backend(network, PREPROCESS, pictures) is None


@pytest.mark.parametrize("tolerance", [-0.1, 1.5, float("nan")])
def test_a_tolerance_is_a_share(tolerance, network, pictures) -> None:
    with pytest.raises(ValueError, match="--tolerance is"):
        choose.fastest_backend(network, PREPROCESS, pictures, 1000, tolerance=tolerance)


def test_where_the_processor_has_no_bfloat16_pytorch_is_not_asked_for_it(made, network, pictures, monkeypatch) -> None:
    """One such step takes as long as ten."""
    tried: list[str] = []
    make = choose.make_backend
    monkeypatch.setattr(choose, "processor_has_bfloat16", lambda: False)

    def make_and_tell(name: str, *rest: Any) -> Callable:
        tried.append(name)
        return make(name, *rest)

    monkeypatch.setattr(choose, "make_backend", make_and_tell)
    choose.fastest_backend(network, PREPROCESS, pictures, 1000, candidates=("openvino-float32", "pytorch-bfloat16"))
    assert tried == ["openvino-float32"]
