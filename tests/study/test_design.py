"""Study files: cells, fractions, and everything that does not go together, named before anything is trained."""

from __future__ import annotations

import dataclasses
import itertools
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from lenext.data import dataset
from lenext.study import command, design, estimate, ready
from lenext.study.design import Comparison, Factor, Study
from lenext.training import begin, prepare
from tests.data.tiny_imagenet import make_tiny_imagenet

TWO = Factor("model", {"small": {"model": "lenet5"}, "large": {"model": "resnet18", "arguments": {"width": 8}}})
RATES = Factor("rate", {"low": {"lr": 0.01}, "high": {"lr": 0.1}})


def make(**changes: Any) -> Study:
    return Study(**{"question": "Which?", "factors": (TWO, RATES), "base": {"epochs": 2}, **changes})


def question(cell: str = "large, low", against: str = "small, low") -> Comparison:
    return Comparison(question="Larger?", change="a larger network", cell=cell, against=against)


def test_cells_are_all_combinations_in_the_order_of_the_levels():
    cells = make(base={"epochs": 2, "arguments": {"stem": "small"}}).cells
    assert list(cells) == ["small, low", "small, high", "large, low", "large, high"]
    assert cells["large, high"].settings == {
        "epochs": 2, "model": "resnet18", "arguments": {"stem": "small", "width": 8}, "lr": 0.1,
    }  # fmt: skip
    assert cells["large, high"].levels == {"model": "large", "rate": "high"}


def test_runs_come_seed_by_seed_in_folders_of_their_own(tmp_path):
    runs = design.plan(make(), tmp_path, 2)
    assert [run.seed for run in runs] == [0] * 4 + [1] * 4
    assert len({run.folder for run in runs}) == 8
    assert runs[5].request == {**make().cells["small, high"].settings, "seed": 1}
    assert runs[5].folder == tmp_path / "runs/small_high/seed-1"


def test_names_in_chinese_and_with_signs_become_folders():
    cells = make(factors=(Factor("网络", {"小/网络": {}, "a:b*c": {}, "...": {}}),)).cells
    assert [cell.slug for cell in cells.values()] == ["小_网络", "a_b_c", "cell"]


def test_cells_that_would_share_a_folder_are_refused(tmp_path):
    made = make(factors=(Factor("rate", {"a b": {"lr": 0.1}, "A/B": {"lr": 0.2}}),))
    with pytest.raises(ValueError, match="the cells 'a b' and 'A/B' would share a folder"):
        design.plan(made, tmp_path, 1)


def test_a_fraction_is_balanced_and_its_last_factor_is_the_product_of_the_others():
    third = Factor("ema", {"off": {}, "on": {"ema": 0.9}}, product_of=("model", "rate"))
    cells = list(make(factors=(TWO, RATES, third)).cells.values())
    assert len(cells) == 4
    signs = np.array([[cell.levels["model"] == "large", cell.levels["rate"] == "high", cell.levels["ema"] == "on"]
                      for cell in cells]) * 2 - 1  # fmt: skip
    assert (signs.prod(axis=1) == 1).all()
    assert (signs.T @ signs == 4 * np.eye(3)).all()


def test_the_recipes_are_a_design_of_resolution_four():
    """Main effects are orthogonal to one another and to every interaction of two factors."""
    _, made = design.read("recipes")
    assert len(made.cells) == 16
    signs = np.array(
        [
            [1 if cell.levels[factor.name] == list(factor.levels)[1] else -1 for factor in made.factors]
            for cell in made.cells.values()
        ]
    )
    assert (signs.T @ signs == 16 * np.eye(7)).all()
    for a, b, c in itertools.combinations(range(7), 3):
        assert (signs[:, a] * signs[:, b]) @ signs[:, c] == 0


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"factors": ()}, "at least one factor"),
        ({"seeds": 0}, "seeds is 0"),
        ({"factors": (Factor("rate", {}),)}, "factor 'rate' has no levels"),
        ({"factors": (TWO, TWO)}, "two factors called 'model'"),
        ({"factors": (Factor("rate", {"x": {"lrr": 1}}),)}, "'rate', level 'x': unknown setting 'lrr'; did you mean"),
        ({"factors": (Factor("rate", {"x": {"lr": "fast"}}),)}, "'rate', level 'x': lr is 'fast'; it must be a number"),
        ({"base": {"seed": 3}}, "seed is set by the runner"),
        ({"base": {"epochs": 0}}, "level 'small': epochs is 0; it must be greater than 0"),
        ({"factors": (TWO, Factor("same", {"low": {}}, product_of=("rate", "model")))}, "a product of 'rate', which"),
        ({"factors": (TWO, RATES, Factor("c", {"x": {}, "y": {}}, product_of=("rate",)))}, "takes two factors or more"),
        (
            {"factors": (TWO, RATES, Factor("c", {"x": {}}, product_of=("rate", "model")))},
            "factor 'c' has 1 levels; a product has two",
        ),
        ({"published": {"larg, low": 0.5}}, "published names the cell 'larg, low', which there is not; did you mean"),
        ({"published": {"large, low": 55.0}}, "the accuracy of 'large, low' is 55.0; it is a share between 0 and 1"),
        ({"comparisons": (question("large"),)}, "the comparison 'Larger\\?' names the cell 'large', which there"),
        ({"comparisons": (question("small, low"),)}, "compares 'small, low' with itself"),
        ({"base": {"teacher": "cell:big"}}, "the teacher of 'small, low' is the cell 'big', which there is not"),
        ({"base": {"teacher": "cell:small, low"}}, "is 'small, low', which is taught by a cell itself"),
        ({"factors": (Factor("a", {"x, y": {}, "x": {}}), Factor("b", {"z": {}, "y, z": {}}))}, "two cells are called"),
    ],
)  # fmt: skip
def test_what_does_not_go_together_is_named(changes, said):
    with pytest.raises(ValueError, match=said):
        make(**changes)


# ------------------------------------------------------------------------------------------------------ the files


@pytest.mark.parametrize(
    ("text", "line", "said"),
    [
        ("STUDY = Study(", 1, "'(' was never closed"),
        ("x = 1\n\nSTUDY = Studie()", 3, "NameError: name 'Studie' is not defined"),
        ("from lenext.study.design import *\n\nSTUDY = Study(question='?', factors=())", 3, "at least one factor"),
        ("from lenext.study.design import *\n\nSTUDY = Study(questoin='?')", 3, "questoin"),
        ("def f():\n    return 1 / 0\n\nf()", 2, "ZeroDivisionError"),
    ],
)
def test_an_error_in_a_study_file_is_shown_with_its_line(tmp_path, text, line, said):
    file = tmp_path / "mine.py"
    file.write_text(text)
    with pytest.raises(ValueError, match=f"mine.py, line {line}: ") as error:
        design.read(str(file))
    assert said in str(error.value)


def test_what_is_no_study_is_said(tmp_path):
    file = tmp_path / "mine.py"
    file.write_text("study = 3")
    with pytest.raises(ValueError, match=r"mine.py does not end in STUDY = Study\(...\)"):
        design.read(str(file))
    with pytest.raises(ValueError, match="there is no study 'smal'; did you mean 'small'"):
        design.read("smal")
    with pytest.raises(ValueError, match=r"nowhere.py does not exist"):
        design.read("nowhere.py")


@pytest.mark.parametrize("name", design.names())
def test_every_study_that_comes_along_can_be_planned(name, tmp_path):
    known, made = design.read(name)
    assert known == name
    assert made.pictures
    assert made.classes
    assert made.data_help
    assert design.plan(made, tmp_path, made.seeds)


def test_the_tiny_imagenet_study_has_the_published_networks():
    """Parameters at 200 classes as published; the position table of T2T-ViT counts."""
    _, made = design.read("tiny-imagenet")
    published = {
        "ResNet-18": 11_271_432,
        "ResNet-34": 21_379_592,
        "ResNet-50": 23_910_152,
        "ResNet-50 without shortcuts": 21_133_576,
        "ResNeXt-50": 23_382_024,
        "T2T-ViT": 21_233_070,
    }
    for name, parameters in published.items():
        with torch.device("meta"):
            network = estimate.Network.of(begin.configure(dict(made.cells[name].settings)), 200).build()
        assert sum(p.numel() for p in network.parameters()) == parameters, name


def test_the_tiny_imagenet_study_reads_its_data_as_distributed(tmp_path):
    """A fifth of the training pictures validates, the distributed validation pictures test, every network is built."""
    _, made = design.read("tiny-imagenet")
    data = make_tiny_imagenet(tmp_path / "tiny-imagenet-200", train=20, val=4)
    unchecked = dataclasses.replace(made, base={**made.base, "check": False})  # drawn shapes are alike
    ready.require_sound(unchecked, str(data), tmp_path)
    config = begin.configure(dict(unchecked.cells["ResNet-18"].settings))
    samples = dataset.read(data, prepare.data_options(config)).samples
    counts = {split: sum(of.values()) for split, of in samples.counts().items()}
    assert counts["test"] == 12
    assert counts["train"] + counts["val"] == 60
    assert 6 <= counts["val"] <= 18


def test_ten_thousand_cells_are_planned(tmp_path):
    factors = tuple(
        Factor(name, {f"{name} {i}": {name: 0.001 * (i + 1)} for i in range(10)})
        for name in ("lr", "weight_decay", "label_smoothing", "ema")
    )
    made = make(factors=factors)
    runs = design.plan(made, tmp_path, 1)
    assert len(runs) == 10_000
    assert ready.to_do(runs) == runs
    assert len({run.folder for run in runs}) == 10_000


# -------------------------------------------------------------------------------------------------- what is listed


def test_the_list_names_every_study_and_one_its_cells(monkeypatch, capsys):
    monkeypatch.setattr(estimate, "images_per_second", lambda *_, **__: 100.0)
    assert command.list()
    said = capsys.readouterr().out
    for name in design.names():
        assert name in said
    assert command.list("small")
    said = capsys.readouterr().out
    for cell in design.read("small")[1].cells:
        assert cell in said
    assert "52.79 %" in said


def test_the_time_of_a_cell_is_its_work_over_its_rate(monkeypatch):
    monkeypatch.setattr(estimate, "images_per_second", lambda *_, **__: 50.0)
    cell = make(base={"epochs": 4, "image_size": 32, "train_fraction": 0.5}).cells["small, low"]
    found = estimate.estimate(cell, 1000, 10)
    assert found.seconds == pytest.approx(estimate.STARTED + 4 * 1000 * 0.5 / 50)
    assert found.parameters == 61_706 + 6 * 25 * 2  # LeNet-5 for three channels


def test_a_rate_is_timed_once_and_remembered(tmp_path, monkeypatch):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    network = estimate.Network("lenet5", 10, 32, {})
    rate = estimate.images_per_second(network, 8)
    assert rate > 0
    monkeypatch.setattr(estimate, "_step_seconds", lambda *_: 1 / 0)
    assert estimate.images_per_second(network, 8) == rate


def test_a_relative_path_to_a_file_is_a_study(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    Path("mine.py").write_text(
        "from lenext.study.design import *\nSTUDY = Study(question='?', factors=(Factor('a', {'b': {}}),))"
    )
    assert design.read("mine.py")[0] == "mine"
