from __future__ import annotations

import json
import re
import shutil
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from huggingface_hub import ModelCard
from markdown_it import MarkdownIt
from PIL import Image

from lenext import cli, runs
from lenext.classifier import load
from lenext.hub.card import make_card
from lenext.models.pooled import CombinedNetwork
from lenext.training.quick import pooled_network


def edited(run: Path, folder: Path, **files: Any) -> Path:
    """A copy of a run; each keyword is a JSON file of it and what becomes of its content."""
    shutil.copytree(run, folder)
    for name, change in files.items():
        path = folder / f"{name}.json"
        runs.write_json(path, change(runs.read_json(path)))
    return folder


def metadata(card: str) -> Any:
    """As the Hub's own parser reads it."""
    return ModelCard(card).data


def cells(markdown: str) -> list[list[str]]:
    """The rows of all tables as a Markdown reader shows them."""
    tokens = MarkdownIt("commonmark").enable("table").parse(markdown)
    rows: list[list[str]] = []
    for token, inside in zip(tokens, [*tokens[1:], None]):
        if token.type == "tr_open":
            rows.append([])
        elif token.type in ("td_open", "th_open") and inside is not None:
            rows[-1].append("".join(child.content for child in inside.children or []))
    return rows


def test_metadata_is_what_the_hub_reads(run):
    data = metadata(make_card(run, license="apache-2.0", address="hf:ada/shapes"))
    measured = runs.read_json(run / "evaluation.json")["test"]
    assert data.license == "apache-2.0"
    assert data.library_name == "lenext"
    assert data.pipeline_tag == "image-classification"
    assert "lenet5" in data.tags
    results = {result.metric_type: result for result in data.eval_results}
    assert results["accuracy"].metric_value == pytest.approx(measured["accuracy"], abs=5e-5)
    assert results["f1"].metric_value == pytest.approx(measured["macro_f1"], abs=5e-5)
    assert {result.dataset_split for result in results.values()} == {"test"}
    assert metadata(make_card(run)).license is None


def test_figures_are_those_of_the_run(run):
    card = ModelCard(make_card(run)).text
    measured = runs.read_json(run / "evaluation.json")["test"]
    counts = runs.read_json(run / "data.json")["counts"]
    low, high = measured["accuracy_interval"]
    assert f"{100 * low:.1f}\N{NO-BREAK SPACE}% to {100 * high:.1f}\N{NO-BREAK SPACE}%" in card
    rows = {row[0]: row for row in cells(card)}
    for name in ("圆", "三角"):
        shown = [int(number) for number in rows[name][1:4]]
        assert shown == [counts[split][name] for split in ("train", "val", "test")]
        assert rows[name][5] == f"{100 * measured['per_class'][name]['recall']:.1f}\N{NO-BREAK SPACE}%"
    assert rows["epochs"][1] == "2"


def test_nothing_of_the_machine_is_in_it(run, shapes, tmp_path):
    run = shutil.copytree(run, tmp_path / "run")
    typed = "lenext train /home/somebody/pictures"
    runs.write_json(run / "environment.json", runs.read_json(run / "environment.json") | {"command": typed})
    card = make_card(run)
    secrets = {str(shapes.parent), str(run.parent), typed, ".png"}
    assert not [text for text in secrets if text in card]


def test_the_example_works_beside_the_classifier_file(run, tmp_path, monkeypatch, capsys):
    code = re.search(r"```python\n(.*?)```", make_card(run), re.DOTALL)
    assert code is not None
    assert len([line for line in code[1].splitlines() if line and not line.startswith("#")]) == 4
    shutil.copy(run / runs.CLASSIFIER, tmp_path)
    Image.new("RGB", (40, 40), "red").save(tmp_path / "picture.jpg")
    monkeypatch.chdir(tmp_path)
    exec(code[1], {})
    assert load(run).predict(tmp_path / "picture.jpg").label in capsys.readouterr().out


def test_names_of_others_are_shown_letter_by_letter(run, tmp_path):
    odd = "a|b *c* _d_ <script>x</script> [e](http://f) `g` &amp; \\h\n# i"
    names = {"圆": odd, "三角": "三角"}

    def renamed(value: Any) -> Any:
        if isinstance(value, dict):
            return {names.get(key, key): renamed(inner) for key, inner in value.items()}
        return [renamed(inner) for inner in value] if isinstance(value, list) else names.get(value, value)

    folder = edited(run, tmp_path / "run", data=renamed, evaluation=renamed)
    replace(load(run), classes=tuple(names[name] for name in load(run).classes)).save(folder / runs.CLASSIFIER)
    card = ModelCard(make_card(folder))
    assert " ".join(odd.split()) in [row[0] for row in cells(card.text)]
    assert "<script>" not in MarkdownIt("commonmark").enable("table").render(card.text)


def limits(card: str) -> str:
    return card.split("## Limits")[1]


def test_limits_follow_from_the_figures(run, tmp_path):
    def of_one_kind(evaluation: dict) -> dict:
        result = evaluation["val"]
        result["per_class"]["圆"] |= {"n": 400, "recall": 1.0}
        result["per_class"]["三角"] |= {"n": 12, "recall": 0.25}
        result |= {"n": 412, "ece": 0.2, "accuracy": 0.95, "balanced_accuracy": 0.625}
        return {"val": result}

    def unequal(data: dict) -> dict:
        return data | {"counts": data["counts"] | {"train": {"圆": 900, "三角": 30}}}

    text = limits(make_card(edited(run, tmp_path / "odd", evaluation=of_one_kind, data=unequal)))
    assert "There was no test split" in text
    assert "Measured on fewer than 30 pictures, so that their own figures say little: 三角" in text
    assert "三角 (25.0" in text
    assert "900 training pictures of 圆, 30 of 三角" in text
    assert "97.1" in text  # 400 of 412: always the commonest class
    assert "off by 20.0" in text

    def all_well(evaluation: dict) -> dict:
        result = evaluation["test"]
        for row in result["per_class"].values():
            row |= {"n": 500, "recall": 0.99}
        return {"test": result | {"n": 1000, "ece": 0.01, "accuracy": 0.99, "balanced_accuracy": 0.99}}

    text = limits(make_card(edited(run, tmp_path / "well", evaluation=all_well)))
    for absent in ("no test split", "fewer than", "Missed", "unequal", "off by"):
        assert absent not in text


def test_a_run_that_was_never_evaluated_says_so(run, tmp_path):
    folder = edited(run, tmp_path / "run")
    (folder / "evaluation.json").unlink()
    card = make_card(folder)
    assert metadata(card).eval_results is None
    assert "It has not been evaluated" in card
    assert "## Accuracy" not in card


def test_a_run_with_several_labels_a_picture(run, tmp_path):
    def several(evaluation: dict) -> dict:
        result = evaluation["test"]
        for key in ("confusion", "balanced_accuracy", "brier", "roc_auc", "average_precision"):
            result.pop(key)
        return {"test": result | {"task": "multi-label", "hamming_accuracy": 0.75, "micro_f1": 0.5, "top5": None}}

    folder = edited(run, tmp_path / "run", evaluation=several)
    replace(load(run), task="multi-label").save(folder / runs.CLASSIFIER)
    card = make_card(folder)
    assert "a picture may have several of them" in card
    assert ["decisions right", "0.750"] in cells(card)
    assert "What is taken for what" not in card


def test_a_kept_quick_classifier_is_not_called_trained(run, tmp_path):
    """The settings and epochs of a fine-tuning that was not kept say nothing of it."""
    folder, classifier = edited(run, tmp_path / "run"), load(run)
    model, architecture = pooled_network(classifier)
    replace(classifier, model=model, architecture=architecture).save(folder / runs.CLASSIFIER)
    card = make_card(folder)
    assert "It is a linear layer on the features of a pretrained, unchanged `lenet5`" in card
    assert "epoch" not in card
    assert [row[0] for row in cells(card.split("## Training")[1])] == ["setting", "recipe", "image_size"]
    combined = CombinedNetwork(model, load(run).model, boundary=1)
    replace(classifier, model=combined, architecture=architecture | {"boundary": 1}).save(folder / runs.CLASSIFIER)
    card = make_card(folder)
    assert "with a fine-tuned upper part, averaged with a linear layer on its pretrained features" in card
    assert "trained for 2 epochs" in card


def test_command(run, tmp_path, capsys):
    with pytest.raises(SystemExit) as end:
        cli.main(["card", str(run), "--license", "mit"])
    assert end.value.code == 0
    printed = capsys.readouterr().out
    with pytest.raises(SystemExit):
        cli.main(["card", str(run), "--license", "mit", "--out", str(tmp_path / "new/README.md")])
    said = capsys.readouterr()
    assert (said.out, said.err) == ("", f"the card is in {tmp_path / 'new/README.md'}\n")
    assert metadata((tmp_path / "new/README.md").read_text(encoding="utf-8")).license == "mit"
    assert (tmp_path / "new/README.md").read_text(encoding="utf-8") == printed
    with pytest.raises(SystemExit) as end:
        cli.main(["card", str(run), "--out", str(tmp_path)])
    assert (end.value.code, f"{tmp_path} is a folder" in capsys.readouterr().err) == (2, True)


def test_the_classifier_file_of_a_run_stands_for_it(run):
    assert make_card(run / runs.CLASSIFIER) == make_card(run)


def test_command_on_what_is_no_run(run, tmp_path, capsys):
    alone = Path(shutil.copy(run / runs.CLASSIFIER, tmp_path))
    for path in (alone, tmp_path, tmp_path / "nothing"):
        with pytest.raises(SystemExit) as end:
            cli.main(["card", str(path)])
        assert end.value.code == 2
        assert "run folder" in capsys.readouterr().err


def test_unfinished_runs_are_refused(run, tmp_path, capsys):
    folder = edited(run, tmp_path / "run")
    (folder / runs.CLASSIFIER).unlink()
    with pytest.raises(ValueError, match="lenext train --resume"):
        make_card(folder)
    (folder / "data.json").write_text(json.dumps({})[:-1])
    with pytest.raises(ValueError, match=r"data\.json cannot be read|no classifier"):
        make_card(folder)
