from __future__ import annotations

import json
import os
import shutil
import socket
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
import torch
from huggingface_hub import ModelCard, constants
from safetensors import safe_open
from safetensors.torch import save

from lenext import cli, runs
from lenext.classifier import load
from lenext.hub import push
from tests.hub.server import Hub, Repository, running

FILES = {"README.md", "classifier.safetensors", "preprocess.json"}


@pytest.fixture
def hub(tmp_path, monkeypatch) -> Iterator[Hub]:
    """A Hub where ada may write, carol may only read, and bob has a repository; ada is logged in, the cache empty."""
    with running(Hub(tokens={"a": ("ada", True), "c": ("carol", False)})) as hub:
        hub.repositories["bob/cats"] = Repository()
        at(hub.url, monkeypatch)
        monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path / "cache"))
        monkeypatch.setattr(constants, "HF_TOKEN_PATH", str(tmp_path / "token"))
        monkeypatch.setattr(constants, "HF_HUB_DISABLE_XET", True)
        monkeypatch.setenv("HF_TOKEN", "a")
        monkeypatch.delenv("HUGGING_FACE_HUB_TOKEN", raising=False)
        yield hub


def at(url: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """What HF_ENDPOINT does to a new process."""
    monkeypatch.setattr(constants, "ENDPOINT", url)
    monkeypatch.setattr(constants, "HUGGINGFACE_CO_URL_TEMPLATE", url + "/{repo_id}/resolve/{revision}/{filename}")


def command(*arguments: object) -> int:
    with pytest.raises(SystemExit) as end:
        cli.main([str(argument) for argument in arguments])
    assert isinstance(end.value.code, int)
    return end.value.code


def refusal(capsys, *arguments: object, status: int = 2) -> str:
    assert command(*arguments) == status
    return capsys.readouterr().err


@pytest.fixture
def pictures(shapes) -> list[Path]:
    return sorted(shapes.rglob("*.png"))[::7]


# ---------------------------------------------------------------------------------------------------- there and back


def test_a_classifier_that_was_pushed_answers_the_same(hub, run, pictures, capsys):
    assert command("push", run, "hf:ada/shapes", "--license", "mit") == 0
    assert f"{hub.url}/ada/shapes" in capsys.readouterr().out
    assert hub.repositories["ada/shapes"].files.keys() == FILES
    assert not hub.repositories["ada/shapes"].private
    theirs, ours = (load(path).predict(pictures) for path in ("hf:ada/shapes", run))
    assert theirs == ours


def test_the_command_line_reads_it_back(hub, run, pictures, capsys):
    push.command(str(run), "hf:ada/shapes")
    assert command("predict", "hf:ada/shapes", pictures[0], "--format", "json") == 0
    (answer,) = json.loads(capsys.readouterr().out)
    assert answer["label"] == load(run).predict(pictures[0]).label
    data = pictures[0].parents[1]
    assert command("evaluate", "hf:ada/shapes", data, "--format", "json") == 0
    assert json.loads(capsys.readouterr().out)["n"] == 60
    assert "give DATA" in refusal(capsys, "evaluate", "hf:ada/shapes")


def test_the_card_and_the_preprocessing_are_readable(hub, run):
    push.command(str(run), "hf:ada/shapes", license="mit")
    files = hub.repositories["ada/shapes"].files
    card = files["README.md"].decode()
    assert ModelCard(card).data.to_dict()["license"] == "mit"
    assert 'lenext.load("hf:ada/shapes")' in card
    found, classifier = json.loads(files["preprocess.json"]), load(run)
    assert tuple(found["classes"]) == classifier.classes
    assert found["crop"] == classifier.preprocess.image_size
    assert found["temperature"] == classifier.temperature


def test_nothing_private_leaves_the_machine(hub, run, shapes, pictures):
    push.command(str(run), "hf:ada/shapes")
    files = hub.repositories["ada/shapes"].files
    secrets = [str(shapes.parent), str(run.parent), "/圆/", "1.png"]
    for name, content in files.items():
        header = content[:20_000] if name.endswith(".safetensors") else content
        assert not [text for text in secrets if text.encode() in header or json.dumps(text)[1:-1].encode() in header]
    kept = load("hf:ada/shapes").about
    assert kept["data"] == shapes.name
    assert kept["evaluation"] == load(run).about["evaluation"]
    assert load(run).about["data"] == str(shapes)  # the run itself is as it was


def test_pushing_again_sends_what_has_changed(hub, run, tmp_path):
    push.command(str(run), "hf:ada/shapes")
    before = load("hf:ada/shapes")
    changed = tmp_path / "run"
    shutil.copytree(run, changed)
    classifier = load(run)
    with torch.no_grad():
        next(classifier.model.parameters()).mul_(2)
    classifier.save(changed / runs.CLASSIFIER)
    push.command(str(changed), "hf:ada/shapes")
    after = load("hf:ada/shapes")
    ratio = next(after.model.parameters()) / next(before.model.parameters())
    np.testing.assert_allclose(ratio.detach().numpy(), 2, rtol=1e-6)


def test_a_download_is_kept_and_serves_without_network(hub, run, pictures):
    push.command(str(run), "hf:ada/shapes")
    first = load("hf:ada/shapes").predict(pictures)
    hub.requests.clear()
    assert load("hf:ada/shapes").predict(pictures) == first
    assert not [path for method, path in hub.requests if method == "GET"]
    hub.down = True
    assert load("hf:ada/shapes").predict(pictures) == first


def test_private_repositories(hub, run, tmp_path, capsys, monkeypatch):
    assert command("push", run, "hf:ada/secret", "--private") == 0
    assert hub.repositories["ada/secret"].private
    assert load("hf:ada/secret").classes == load(run).classes
    assert command("push", run, "hf:ada/secret", "--private") == 0  # a second time
    monkeypatch.setenv("HF_TOKEN", "c")
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path / "elsewhere"))
    assert "not on the Hub, or it is private" in refusal(capsys, "predict", "hf:ada/secret", "--format", "json", "x")


def test_private_never_means_public(hub, run, capsys):
    hub.repositories["ada/open"] = Repository()
    assert "public" in refusal(capsys, "push", run, "hf:ada/open", "--private")
    assert not hub.repositories["ada/open"].files


def test_with_the_environment_that_users_set(hub, run, tmp_path):
    environment = {
        **{key: value for key, value in os.environ.items() if not key.startswith("HF_")},
        "HF_ENDPOINT": hub.url,
        "HF_HOME": str(tmp_path / "home"),
        "HF_TOKEN": "a",
        "HF_HUB_DISABLE_XET": "1",
    }
    arguments = [sys.executable, "-m", "lenext.cli", "push", str(run), "hf:ada/shapes"]
    done = subprocess.run(arguments, env=environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert "Traceback" not in done.stderr
    assert hub.repositories["ada/shapes"].files.keys() == FILES


# ------------------------------------------------------------------------------------------------------- what fails


def test_without_a_token(hub, run, capsys, monkeypatch):
    monkeypatch.delenv("HF_TOKEN")
    said = refusal(capsys, "push", run, "hf:ada/shapes")
    assert "hf auth login" in said
    assert not hub.requests  # known before anything is sent


def test_a_token_from_the_file_of_a_login(hub, run, monkeypatch):
    monkeypatch.delenv("HF_TOKEN")
    Path(constants.HF_TOKEN_PATH).write_text("a")
    push.command(str(run), "hf:ada/shapes")
    assert "ada/shapes" in hub.repositories


def test_a_wrong_token(hub, run, capsys, monkeypatch):
    hub.repositories["ada/shapes"] = Repository()
    monkeypatch.setenv("HF_TOKEN", "stolen")
    for arguments in (("push", run, "hf:ada/new"), ("push", run, "hf:ada/shapes"), ("predict", "hf:ada/shapes", "x")):
        assert "does not accept the token" in refusal(capsys, *arguments)


@pytest.mark.parametrize(("token", "address"), [("a", "hf:bob/cats"), ("a", "hf:bob/dogs"), ("c", "hf:carol/new")])
def test_where_the_token_may_not_write(hub, run, capsys, monkeypatch, token, address):
    monkeypatch.setenv("HF_TOKEN", token)
    said = refusal(capsys, "push", run, address)
    assert address in said
    assert "right to write" in said
    assert not hub.repositories["bob/cats"].files


@pytest.mark.parametrize(
    "address", ["ada/shapes", "hf:shapes", "hf:a/b/c", "hf:ada/圆", "hf:ada/-x", "hf:", "hf:a/../b"]
)
def test_malformed_names(hub, run, capsys, address):
    assert "hf:USER/NAME" in refusal(capsys, "push", run, address)
    assert not hub.requests


def test_a_licence_that_the_hub_does_not_know(hub, run, capsys):
    assert "license" in refusal(capsys, "push", run, "hf:ada/shapes", "--license", "Apache 2")
    assert not hub.repositories["ada/shapes"].files


def test_no_network(hub, run, capsys, monkeypatch):
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        at(f"http://127.0.0.1:{free.getsockname()[1]}", monkeypatch)
        monkeypatch.setattr("huggingface_hub.utils._http.time.sleep", lambda seconds: None)
        assert "cannot be reached" in refusal(capsys, "push", run, "hf:ada/shapes", status=1)
        said = refusal(capsys, "predict", "hf:ada/shapes", "x", status=1)
    assert "not on this machine yet" in said
    assert "cannot be reached" in said


def test_a_hub_that_fails(hub, run, capsys):
    hub.down = True
    assert "500" in refusal(capsys, "push", run, "hf:ada/shapes", status=1)


def test_what_is_no_classifier(hub, capsys):
    weights = save({"x": torch.zeros(2)})
    cases = {
        "no file of ours": ({"model.bin": b"x"}, "no classifier that `lenext push` has written"),
        "weights alone": ({runs.CLASSIFIER: weights}, "not a classifier file"),
        "a pickle": ({runs.CLASSIFIER: b"PK\x03\x04" + bytes(99)}, "pickle"),
        "cut short": ({runs.CLASSIFIER: weights[:20]}, "damaged or cut off"),
    }
    for name, (files, reason) in cases.items():
        hub.repositories["ada/" + name.replace(" ", "-")] = Repository(files=files)
        assert reason in refusal(capsys, "predict", "hf:ada/" + name.replace(" ", "-"), "x"), name
    assert "not on the Hub" in refusal(capsys, "predict", "hf:ada/nothing", "x")


def test_the_file_on_the_hub_is_a_classifier_file(hub, run, tmp_path):
    push.command(str(run), "hf:ada/shapes")
    (tmp_path / "file").write_bytes(hub.repositories["ada/shapes"].files[runs.CLASSIFIER])
    with (
        safe_open(tmp_path / "file", framework="pt") as theirs,
        safe_open(run / runs.CLASSIFIER, framework="pt") as ours,
    ):
        assert theirs.keys() == ours.keys()
        assert all(torch.equal(theirs.get_tensor(key), ours.get_tensor(key)) for key in ours.keys())  # noqa: SIM118
