"""What others can do with the web page: ask about pictures that they sent, and nothing else."""

from __future__ import annotations

import asyncio
import csv
import io
import os
import re
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx
import pytest

pytest.importorskip("gradio", reason="the web page needs lenext[serve]")

from lenext.classifier import Prediction, load
from lenext.serving import page, page_view
from lenext.serving.page_guard import Guard, files_of, lies_in
from lenext.serving.page_text import CHINESE, ENGLISH, language_of
from tests.data import corpus
from tests.serving.pages import MOST_BYTES, answer, ask, file_data, page_of, upload


@pytest.fixture(scope="module")
def address(run: Path) -> Iterator[str]:
    with page_of(run) as address:
        yield address


SECRETS = ("/etc/passwd", "/proc/self/environ", "../../../../etc/passwd", "/tmp", "http://127.0.0.1:1/a.png", "a\0b")


@pytest.mark.parametrize("path", SECRETS)
def test_no_path_or_address_in_a_question_is_opened(address, path):
    sent = upload(address, b"x").json()[0]
    for picture in (
        file_data(path),
        {"path": path},
        {"url": path},
        file_data(sent + "/../../../../../../" + path),
        [file_data(sent), file_data(path)],
        {"value": {"image": file_data(path)}},
        file_data("", url=path),
    ):
        response = ask(address, picture)
        assert response.status_code == 403
        assert "must be sent" in response.json()["error"]


@pytest.mark.parametrize(
    "path",
    [
        *("/gradio_api/file=/etc/passwd", "/gradio_api/file=%2Fetc%2Fpasswd", "/gradio_api/file=%252Fetc%252Fpasswd"),
        *("/gradio_api/file=http://127.0.0.1:1/", "/gradio_api/file=../../etc/passwd"),
        *("/gradio_api/proxy=http://127.0.0.1:1/", "/gradio_api/file/etc/passwd", "/file=/etc/passwd", "/monitoring"),
        *("/gradio_api/runs", "/gradio_api/deep_link", "/gradio_api/openapi.json", "/docs", "/nothing", "/login"),
        *("/static/../../../etc/passwd", "/assets/%2e%2e/%2e%2e/%2e%2e/%2e%2e/etc/passwd"),
    ],
)
def test_only_what_the_page_needs_is_open(address, path):
    response = httpx.get(address + path)
    assert 400 <= response.status_code < 500
    assert "root:" not in response.text


@pytest.mark.parametrize("name", ["a.html", "a.svg", "a.xhtml", "a"])
def test_a_browser_does_not_open_what_was_sent_as_a_page(address, name):
    sent = upload(address, b'<svg xmlns="http://www.w3.org/2000/svg"><script>alert(1)</script></svg>', name).json()[0]
    response = httpx.get(f"{address}/gradio_api/file={sent}")
    assert response.status_code == 200
    assert response.headers["content-disposition"].startswith("attachment")
    assert response.headers["x-content-type-options"] == "nosniff"


@pytest.mark.parametrize(
    "path", ["call/answer", "api/predict", "component_server", "process_recording", "vibe-edit", "stream/x"]
)
def test_nothing_else_of_the_library_can_be_called(address, path):
    response = httpx.post(f"{address}/gradio_api/{path}", json={"data": []})
    assert response.status_code == 404
    assert "error" in response.json()


def test_the_limit_of_the_api_holds_for_uploads(address):
    assert upload(address, b"x" * (MOST_BYTES - 1000)).status_code == 200
    response = upload(address, b"x" * (MOST_BYTES + 1000))
    assert response.status_code == 413
    assert "limit of 1 MB" in response.json()["error"]
    chunked = httpx.post(f"{address}/gradio_api/upload", content=iter([b"x"]))
    assert chunked.status_code == 411


@pytest.mark.parametrize("body", [b"", b"{", b"[" * 100_000, b"null", b'{"data": [' + b"[" * 50 + b"]" * 50 + b"]}"])
def test_a_malformed_question_is_refused(address, body):
    headers = {"content-type": "application/json"}
    response = httpx.post(f"{address}/gradio_api/queue/join", content=body, headers=headers)
    assert 400 <= response.status_code < 500


def test_the_upload_gives_the_reason_of_every_malformed_picture(run, address):
    """The same reason as everywhere else: content is looked at by our decoder alone."""
    classifier = load(run)
    for number, (name, data) in enumerate(list(corpus.bad().items())[::4]):
        expected = classifier.predict(data).error
        assert expected is not None
        sent = upload(address, data, name).json()[0]
        shown = answer(address, file_data(sent), f"bad{number}")
        assert page_view.failure(ENGLISH.unreadable.format(reason=expected)) in shown, name


def test_names_of_classes_and_files_are_text():
    evil = "<script>alert(1)</script>"
    prediction = Prediction(evil, evil, 0.5, [(evil, 0.5)])
    heat = {"picture": "data:,", "overlay": "data:,", "coarse": False}
    for shown in (page_view.answer(ENGLISH, prediction, heat), page_view.table(ENGLISH, [prediction])):
        assert "<script" not in shown
        assert "&lt;script&gt;" in shown


def test_of_several_classes_those_of_the_picture_are_ticked():
    top = [("cat", 0.9), ("dog", 0.6), ("car", 0.1)]
    shown = page_view.answer(ENGLISH, Prediction("", "cat", 0.9, top, labels=["cat", "dog"]), {})
    assert shown.count("lx-ticked") == 2
    assert ENGLISH.at_least.format(threshold="50.0 %") in shown
    assert ENGLISH.no_heat in shown
    rows = [Prediction("a", "cat", 0.9, top, labels=["cat", "dog"]), Prediction("b", "cat", 0.2, top, labels=[])]
    assert "cat, dog" in page_view.table(ENGLISH, rows)
    found = list(csv.DictReader(io.StringIO(page_view.to_csv(rows).decode("utf-8-sig"))))
    assert [row["labels"] for row in found] == ["cat, dog", ""]


def test_a_spreadsheet_takes_no_name_for_a_formula():
    rows = [Prediction('=HYPERLINK("http://a")', "-1", 0.5, [("-1", 0.5)])]
    found = next(csv.DictReader(io.StringIO(page_view.to_csv(rows).decode("utf-8-sig"))))
    assert found["image"].startswith("'=")
    assert found["label"] == "'-1"


def test_what_was_sent_is_gone_soon_and_the_folder_with_the_server(run, monkeypatch):
    monkeypatch.setattr(page, "KEPT_SECONDS", 0.5)
    monkeypatch.setattr(page, "LOOKED_AFTER_SECONDS", 0.1)
    with page_of(run) as address:
        kept = Path(os.environ["GRADIO_TEMP_DIR"])
        assert kept.stat().st_mode & 0o077 == 0  # nobody else of the machine can read it
        sent = Path(upload(address, b"x" * 1000).json()[0])
        assert sent.is_relative_to(kept)
        for _ in range(300):
            if not sent.parent.exists():
                break
            time.sleep(0.1)
        assert not sent.parent.exists()
        assert list(kept.rglob("*.png"))  # the samples stay
    assert not kept.exists()


def test_a_full_folder_takes_no_more(tmp_path):
    (tmp_path / "a").write_bytes(b"x" * 5001)
    sent: list[Any] = []

    async def app(scope: Any, receive: Any, send: Any) -> None:
        raise AssertionError("it was let in")

    async def receive() -> Any:
        raise AssertionError("it was read")

    async def send(message: Any) -> None:
        sent.append(message)

    scope = {"type": "http", "method": "POST", "path": "/gradio_api/upload", "headers": [(b"content-length", b"9")]}
    asyncio.run(Guard(app, tmp_path, 100)(scope, receive, send))
    assert sent[0]["status"] == 503


def test_only_what_lies_in_the_folder_is_a_file_that_was_sent(tmp_path):
    inside = tmp_path / "in"
    inside.mkdir()
    (tmp_path / "secret").write_text("x")
    (inside / "link").symlink_to(tmp_path / "secret")
    (inside / "a").write_text("x")
    assert lies_in(str(inside / "a"), inside)
    for path in (inside / "link", inside / ".." / "secret", f"{inside}/%2e%2e/secret", "a" * 10_000, None, 5, "\0"):
        assert not lies_in(path if path in (None, 5) else str(path), inside)
    assert files_of(None, inside) == []
    assert files_of({"path": str(inside / "a"), "orig_name": "b"}, inside) == [("b", inside / "a")]
    for sent in ("text", [["x"]], {"path": "/etc/passwd"}, [{"path": str(inside / "a")}, {}]):
        with pytest.raises(PermissionError):
            files_of(sent, inside)


@pytest.mark.parametrize(
    ("header", "language"),
    [
        ("", "en"),
        ("zh-CN,zh;q=0.9,en;q=0.8", "zh"),
        ("en-GB,en;q=0.9,zh;q=0.8", "en"),
        ("fr-FR,fr;q=0.9,zh-TW;q=0.5", "zh"),
        ("zh;q=0.2, en;q=0.7", "en"),
        ("zh;q=x, de", "en"),
        ("ZH-hans", "zh"),
    ],
)
def test_the_language_is_the_browsers(header, language):
    assert language_of(header) == language


def test_both_languages_fill_in_the_same_names():
    for name in ENGLISH.__dataclass_fields__:
        here, there = getattr(ENGLISH, name), getattr(CHINESE, name)
        assert sorted(re.findall(r"{\w+}", str(here))) == sorted(set(re.findall(r"{\w+}", str(there)))) or (
            name == "too_many"
        )
