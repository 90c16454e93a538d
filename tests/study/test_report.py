"""The report of a study, from run folders with figures that are known."""

from __future__ import annotations

import csv
import json
import math
import shutil

import pytest
from PIL import Image

from lenext import runs
from lenext.models import catalogue
from lenext.study import figures, report, wording
from lenext.study.design import Comparison, Factor, plan
from lenext.study.findings import Answer, gather
from lenext.study.statistics import Effect
from tests.study.constructed import SIZES, begin, fill, finish, study

HOSTILE = r"<b>|&%$#_{}~^\ `*[x]"
FILES = {
    "report.html", "report.md", "report.tex", "table.csv", "runs.csv", "comparisons.csv", "effects.csv", "costs.csv",
    "figures/curves.png", "figures/comparisons.png", "figures/cost.png", "figures/overfitting.png",
    "figures/effects.png",
}  # fmt: skip
# matplotlib leaves its fonts open.
pytestmark = pytest.mark.filterwarnings("error", "ignore::ResourceWarning", "ignore:.*FileIO.*fonts")


def written(folder):
    """{name: bytes} of what a report has written."""
    files = [path for path in folder.rglob("*") if path.is_file() and "runs" not in path.relative_to(folder).parts]
    return {str(path.relative_to(folder)): path.read_bytes() for path in files}


def table(folder, name):
    with open(folder / name, newline="", encoding="utf-8") as file:
        return list(csv.DictReader(file))


@pytest.fixture
def without_figures(monkeypatch):
    """Leave the figures out, which take most of the time."""
    monkeypatch.setattr(report.figures, "draw", lambda findings, folder: {})


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
    """(study, folder, findings) of a study whose runs are all done."""
    folder, made = tmp_path_factory.mktemp("study"), study()
    fill(made, folder)
    return made, folder, report.write("sizes", made, folder, 3)


def test_the_report_is_the_same_to_the_bit_when_made_again_from_the_run_folders(whole, tmp_path):
    made, folder, _ = whole
    before = written(folder)
    assert before.keys() == FILES
    shutil.copytree(folder / "runs", tmp_path / "runs")
    report.write("sizes", made, tmp_path, 3)
    assert written(tmp_path) == before


@pytest.mark.usefixtures("without_figures")
def test_what_depends_on_the_machine_is_in_costs_alone(whole, tmp_path):
    made, folder, _ = whole
    shutil.copytree(folder / "runs", tmp_path / "runs")
    for run in plan(made, tmp_path, 3):
        rows = runs.read_metrics(run.folder)
        (run.folder / runs.METRICS).unlink()
        for row in rows:
            other = {"seconds": row["seconds"] * 1.7, "images_per_second": 7.0, "peak_memory_mib": 3.0}
            runs.append_metrics(run.folder, row | other)
    report.write("sizes", made, tmp_path, 3)
    before, after = written(folder), written(tmp_path)
    changed = {name for name in FILES if name.endswith(".csv") and before[name] != after[name]}
    assert changed == {"costs.csv"}


def test_tables_hold_the_results(whole):
    made, folder, findings = whole
    rows = table(folder, "table.csv")
    assert [row["cell"] for row in rows] == list(made.cells)
    results = [one for one in findings.results if one.run.cell.name == "large, SGD"]
    mean = sum(one.accuracy for one in results) / 3
    large = rows[2]
    assert float(large["accuracy"]) == pytest.approx(mean, abs=1e-6)
    assert float(large["accuracy_low"]) < mean < float(large["accuracy_high"])
    assert (large["runs_done"], large["published"], large["factor size"]) == ("3", "0.64", "large")
    parameters, multiply_adds = catalogue.count("resnet34", num_classes=10, image_size=32)
    assert (int(large["parameters"]), int(large["multiply_adds"])) == (parameters, multiply_adds)
    assert float(large["overfitting"]) == pytest.approx(0.11 * (1 - math.exp(-3)), abs=1e-6)
    assert len(table(folder, "runs.csv")) == len(table(folder, "costs.csv")) == 12
    first = table(folder, "costs.csv")[0]
    assert (float(first["seconds"]), float(first["peak_memory_mib"])) == (186, 1000)
    effects = table(folder, "effects.csv")
    assert [row["level"] for row in effects if row["measure"] == "accuracy"] == ["large", "AdamW"]
    assert float(effects[0]["difference"]) == pytest.approx(0.08, abs=0.01)


def test_comparisons_are_corrected_and_judged(whole, capsys):
    _, folder, findings = whole
    size, overfitting, speed = table(folder, "comparisons.csv")
    assert (size["verdict"], size["expected"], size["published_difference"]) == ("confirmed", "more", "0.04")
    assert (overfitting["verdict"], overfitting["seeds"]) == ("confirmed", "3")
    assert speed["verdict"] in ("a difference", "no difference shown")
    assert all(float(row["p"]) <= float(row["p_corrected"]) for row in (size, overfitting, speed))
    text = (folder / "report.md").read_text(encoding="utf-8")
    assert "A larger network gains" in text
    assert "over 3 seeds): confirmed (p" in text
    assert "published: +4.00 points" in text
    page = (folder / "report.html").read_text(encoding="utf-8")
    assert page.index("A larger network gains") < page.index('id="cells"')
    assert "Another 10,000 test pictures would add about" in page
    report.show(findings)
    shown = capsys.readouterr().out
    assert "- Is larger better? A larger network gains" in shown
    assert str(folder / "report.html") in shown


def test_the_page_needs_nothing_else(whole):
    _, folder, _ = whole
    page = (folder / "report.html").read_text(encoding="utf-8")
    assert "default-src 'none'" in page
    assert "<script" not in page
    assert page.count('src="data:image/png;base64,') == 5
    assert str(folder) not in page


@pytest.mark.usefixtures("without_figures")
def test_what_was_not_run_is_named_with_its_reason(tmp_path):
    made = study()
    planned = {run.name: run for run in plan(made, tmp_path, 2)}
    for name in ("small, SGD, seed 0", "small, SGD, seed 1", "large, SGD, seed 0", "small, AdamW, seed 0"):
        finish(planned[name], 0.6)
    failed = planned["small, AdamW, seed 1"].folder
    failed.with_name(failed.name + ".failed").write_text("no memory | left\n", encoding="utf-8")
    begin(planned["large, SGD, seed 1"])
    findings = report.write("sizes", made, tmp_path, 2)
    states = {
        f"{row['cell']}, seed {row['seed']}": (row["state"], row["reason"]) for row in table(tmp_path, "runs.csv")
    }
    assert states["small, AdamW, seed 1"] == ("failed", "no memory | left")
    assert states["large, SGD, seed 1"] == ("unfinished", "")
    assert states["large, AdamW, seed 0"] == ("missing", "")
    assert table(tmp_path, "table.csv")[3]["accuracy"] == table(tmp_path, "table.csv")[3]["parameters"] == ""
    for name in ("report.html", "report.md"):
        text = (tmp_path / name).read_text(encoding="utf-8")
        assert "small, AdamW, seed 1" in text
        assert "large, AdamW, seed 0" in text
        assert "4 of 8 runs are done" in text
    _, lines = report.summary(findings)
    assert "failed: small, AdamW, seed 1: no memory | left" in lines
    assert "unfinished: large, SGD, seed 1" in lines
    assert "not begun: 2 runs" in lines
    assert "with the one seed that both are done with, which gives no interval" in lines[0]


def test_a_study_without_any_run_has_a_report(tmp_path):
    findings = report.write("sizes", study(), tmp_path, 1)
    assert {row["state"] for row in table(tmp_path, "runs.csv")} == {"missing"}
    assert written(tmp_path).keys() == {name for name in FILES if not name.startswith("figures/")}
    _, lines = report.summary(findings)
    assert lines[0].startswith("Is larger better? A larger network: not measured")


def test_figures_that_the_runs_no_longer_suffice_for_are_removed(tmp_path):
    made = study()
    (run, *_) = plan(made, tmp_path, 1)
    finish(run, 0.6)
    report.write("sizes", made, tmp_path, 1)
    assert (tmp_path / "figures" / "curves.png").exists()
    shutil.rmtree(run.folder)
    report.write("sizes", made, tmp_path, 1)
    assert not list((tmp_path / "figures").iterdir())


def test_a_single_cell_with_gaps_in_its_history_has_a_report(tmp_path):
    made = study(factors=(Factor("size", {"small": SIZES["small"]}),), comparisons=(), published={})
    short, long = plan(made, tmp_path, 2)
    finish(short, 0.1, epochs=1)  # no better than guessing
    finish(long, 0.1, epochs=4)
    row = runs.read_metrics(long.folder)[-1]
    runs.append_metrics(long.folder, row | {"epoch": 5, "train_loss": math.nan, "val_loss": None, "val_accuracy": None})
    findings = report.write("sizes", made, tmp_path, 2)
    assert findings.rows[0].learned == "did not learn"
    assert "did not learn" in (tmp_path / "report.html").read_text(encoding="utf-8")
    assert not (tmp_path / "effects.csv").exists()
    # Accuracy is the same with both seeds, and there is nothing to be said of cost without learning.
    assert table(tmp_path, "table.csv")[0]["accuracy_low"] == "0.1"
    assert {path.name for path in (tmp_path / "figures").iterdir()} == {"curves.png", "overfitting.png"}


@pytest.mark.usefixtures("without_figures")
def test_a_seed_that_did_not_learn_is_counted(tmp_path):
    made = study(factors=(Factor("size", {"small": SIZES["small"]}),), comparisons=(), published={})
    for run, accuracy in zip(plan(made, tmp_path, 3), (0.6, 0.1, 0.62)):
        finish(run, accuracy)
    assert report.write("sizes", made, tmp_path, 3).rows[0].learned == "1 of 3 seeds did not learn"


def test_names_of_others_stay_text(tmp_path, caplog):
    levels = {HOSTILE: SIZES["small"], "残差网络": SIZES["large"]}
    made = study(
        question=f"Is {HOSTILE} better?",
        factors=(Factor("size", levels),),
        comparisons=(Comparison(question=HOSTILE, change=f"换成{HOSTILE}", cell=HOSTILE, against="残差网络"),),
        published={HOSTILE: 0.5},
        published_in=HOSTILE,
        about=(HOSTILE,),
    )
    fill(made, tmp_path, 2)
    findings = report.write("sizes", made, tmp_path, 2)
    assert not [record for record in caplog.records if record.name == "lenext"]  # of letters that no font has

    page = (tmp_path / "report.html").read_text(encoding="utf-8")
    assert "<b>|" not in page
    assert "&lt;b&gt;|&amp;%$#_{}~^\\ `*[x]" in page
    markdown = (tmp_path / "report.md").read_text(encoding="utf-8")
    assert "<b>" not in markdown
    rows = [line for line in markdown.splitlines() if line.startswith("|")]
    assert len({line.replace(r"\|", "").count("|") for line in rows[:4]}) == 1
    tex = (tmp_path / "report.tex").read_text(encoding="utf-8")
    name = (
        r"\textless{}b\textgreater{}\textbar{}\&\%\$\#\_\{\}\textasciitilde{}\textasciicircum{}\textbackslash{} "
        r"`{*}{[}x{]}"
    )
    assert f"    {name} & " in tex
    assert "残差网络" in tex
    assert [row["cell"] for row in table(tmp_path, "table.csv")] == [HOSTILE, "残差网络"]
    shown, lines = report.summary(findings)
    assert shown.row_count == 2
    assert HOSTILE in lines[0]


def test_many_cells_fit_into_the_figures(tmp_path):
    rates = {f"a learning rate of 0.{number}": {"lr": number / 10} for number in range(1, 10)}
    made = study(factors=(Factor("size", SIZES), Factor("rate", rates)), comparisons=(), published={})
    for place, run in enumerate(plan(made, tmp_path, 1)):
        finish(run, 0.3 + 0.02 * place)
    for path in (one["path"] for one in figures.draw(gather("sizes", made, tmp_path, 1), tmp_path).values()):
        with Image.open(path) as picture:
            assert picture.width == round(9.6 * 144)
            assert not picture.info.keys() - {"dpi"}


def answer(difference, low, high, p, *, said, measure="accuracy", n=5):
    asked = Comparison(question="?", change="removing shortcuts", cell="a", against="b", measure=measure)
    return Answer(asked, Effect(difference, low, high, n, p), p, None, None, said)


@pytest.mark.parametrize(
    ("given", "text"),
    [
        (
            answer(-0.049, -0.056, -0.041, 0.001, said="confirmed"),
            "removing shortcuts costs 4.9 points (95 % interval 4.1 to 5.6, over 5 seeds)",
        ),
        (
            answer(0.01, 0.004, 0.016, 0.001, said="refuted"),
            "removing shortcuts gains 1.0 points (95 % interval 0.4 to 1.6, over 5 seeds)",
        ),
        (
            answer(0.003, -0.005, 0.011, 0.5, said="undecided", n=3),
            "removing shortcuts: +0.3 points (95 % interval −0.5 to 1.1), which 3 seeds cannot tell from no difference",
        ),
        (
            answer(0.0004, -0.0003, 0.0011, 0.5, said="no difference shown", n=3),
            "removing shortcuts: +0.04 points (95 % interval −0.03 to 0.11), "
            "which 3 seeds cannot tell from no difference",
        ),
        (
            answer(-0.02, None, None, None, said="undecided", n=1),
            "removing shortcuts costs 2.0 points with the one seed that both are done with, which gives no interval",
        ),
        (
            answer(-0.02, -0.03, -0.01, 0.01, said="a difference", measure="overfitting"),
            "removing shortcuts lowers overfitting by 2.0 points (95 % interval 1.0 to 3.0, over 5 seeds)",
        ),
        (
            answer(0.02, 0.01, 0.03, 0.01, said="a difference", measure="speed of learning"),
            "removing shortcuts speeds learning up by 2.0 points (95 % interval 1.0 to 3.0, over 5 seeds)",
        ),
    ],
)
def test_sentences_are_plain(given, text):
    assert wording.sentence(given) == text


@pytest.mark.usefixtures("without_figures")
def test_what_confounds_a_fraction_is_said(tmp_path):
    factors = (
        Factor("size", SIZES),
        Factor("optimizer", {"SGD": {"optimizer": "sgd"}, "AdamW": {}}),
        Factor("norm", {"batch": {}, "layer": {"arguments": {"norm": "layer"}}}, product_of=("size", "optimizer")),
    )
    made = study(factors=factors, comparisons=(), published={})
    findings = report.write("sizes", made, tmp_path, 2)
    assert not findings.effects
    fill(made, tmp_path, 2)
    report.write("sizes", made, tmp_path, 2)
    assert "norm = size × optimizer" in (tmp_path / "report.html").read_text(encoding="utf-8")
    assert [row["product_of"] for row in table(tmp_path, "effects.csv")][:3] == ["", "", "size x optimizer"]


@pytest.mark.usefixtures("without_figures")
def test_results_on_validation_pictures_are_said_to_be(tmp_path):
    made = study()
    (run, *_) = plan(made, tmp_path, 1)
    finish(run, 0.6)
    path = run.folder / "evaluation.json"
    measured = json.loads(path.read_text(encoding="utf-8"))
    runs.write_json(path, {"val": measured["test"]})
    report.write("sizes", made, tmp_path, 1)
    assert table(tmp_path, "runs.csv")[0]["split"] == "val"
    assert "validation pictures" in (tmp_path / "report.html").read_text(encoding="utf-8")
