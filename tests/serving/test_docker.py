"""What of the Dockerfile can be checked without Docker."""

from __future__ import annotations

import json
import re
import tomllib
from pathlib import Path
from urllib.parse import urlsplit

import pytest
from starlette.testclient import TestClient

ROOT = Path(__file__).parents[2]


@pytest.fixture(scope="module")
def instructions() -> list[tuple[str, str]]:
    """(name, rest) of every instruction, its lines joined."""
    text = re.sub(r"^#.*\n", "", (ROOT / "Dockerfile").read_text(encoding="utf-8"), flags=re.MULTILINE)
    lines = text.replace("\\\n", " ").splitlines()
    return [(name, rest.strip()) for name, _, rest in (line.partition(" ") for line in lines if line.strip())]


def last(instructions: list[tuple[str, str]], name: str) -> str:
    return [rest for found, rest in instructions if found == name][-1]


def test_it_runs_as_a_user_without_rights(instructions: list[tuple[str, str]]) -> None:
    names = [name for name, _ in instructions]
    assert names.index("USER") > len(names) - 1 - names[::-1].index("FROM")  # of the image, not of what builds it
    assert last(instructions, "USER") not in ("root", "0")
    users = [rest for name, rest in instructions if name == "RUN" and rest.startswith("useradd")]
    assert last(instructions, "USER") in users[0].split()
    assert names.index("USER") < names.index("ENTRYPOINT")


def test_its_health_is_that_the_process_lives(instructions: list[tuple[str, str]], client: TestClient) -> None:
    check = last(instructions, "HEALTHCHECK")
    program = json.loads(check[check.index("[") :])
    compile(program[-1], "HEALTHCHECK", "exec")
    found = re.search(r"urlopen\('([^']+)'", program[-1])
    assert found
    address = urlsplit(found[1])
    assert address.path == "/healthz"  # /readyz says no while the queue is full
    assert client.get(address.path).status_code == 200
    start = json.loads(last(instructions, "ENTRYPOINT"))
    assert str(address.port) == start[start.index("--port") + 1] == last(instructions, "EXPOSE")


def test_every_file_that_it_copies_is_there(instructions: list[tuple[str, str]]) -> None:
    let_in = (ROOT / ".dockerignore").read_text(encoding="utf-8").splitlines()
    assert "*" in let_in  # and what is excepted
    copies = [rest.split() for name, rest in instructions if name == "COPY" and not rest.startswith("--from")]
    assert copies
    for *files, _ in copies:
        for file in files:
            assert (ROOT / file).exists(), file
            assert f"!{file}" in let_in, file


def test_it_installs_extras_that_there_are(instructions: list[tuple[str, str]]) -> None:
    project = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    asked = re.findall(r"/source\[([\w,-]+)\]", " ".join(rest for name, rest in instructions if name == "RUN"))
    extras = {extra for group in asked for extra in group.split(",")}
    assert "serve" in extras
    assert extras <= project["optional-dependencies"].keys()
    copied = " ".join(rest for name, rest in instructions if name == "COPY")
    for file in ("pyproject.toml", project["readme"], *project["license-files"]):  # what building the package needs
        assert file in copied.split()
    found = re.search(r"python:(\d+)\.(\d+)", last(instructions, "FROM"))
    assert found
    assert (int(found[1]), int(found[2])) >= tuple(map(int, project["requires-python"].strip(">=").split(".")))


def test_it_starts_the_server_for_all_addresses(instructions: list[tuple[str, str]]) -> None:
    start = json.loads(last(instructions, "ENTRYPOINT"))
    assert start[:2] == ["lenext", "serve"]
    assert start[start.index("--host") + 1] == "0.0.0.0"
    assert json.loads(last(instructions, "CMD")) == ["/classifier"]
