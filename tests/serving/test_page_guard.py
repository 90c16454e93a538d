"""What others can do with the web page: ask about pictures that they sent, and nothing else. Whatever they send has a
clear answer, and the server goes on."""

from __future__ import annotations

import asyncio
import json
import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx
import numpy as np
import pytest

pytest.importorskip("gradio", reason="the web page needs lenext[serve]")

from lenext.classifier import load
from lenext.serving import page, page_guard, page_view
from lenext.serving.engine import Engine
from lenext.serving.page_text import ENGLISH
from tests.data import corpus
from tests.serving import servers
from tests.serving.pages import MOST_BYTES, WEB, answer, ask, file_data, functions, page_of, question, read, upload

PICTURE = corpus.good()["plain.jpg"]
MUTATIONS = int(os.environ.get("LENEXT_MUTATIONS", "300"))
FORM = {"content-type": "multipart/form-data; boundary=x"}
JSON = {"content-type": "application/json"}


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
    response = WEB.get(address + path)
    assert 400 <= response.status_code < 500
    assert "root:" not in response.text


@pytest.mark.parametrize("name", ["a.html", "a.svg", "a.xhtml", "a"])
def test_a_browser_does_not_open_what_was_sent_as_a_page(address, name):
    sent = upload(address, b'<svg xmlns="http://www.w3.org/2000/svg"><script>alert(1)</script></svg>', name).json()[0]
    response = WEB.get(f"{address}/gradio_api/file={sent}")
    assert response.status_code == 200
    assert response.headers["content-disposition"].startswith("attachment")
    assert response.headers["x-content-type-options"] == "nosniff"


@pytest.mark.parametrize(
    "path", ["call/answer", "api/predict", "component_server", "process_recording", "vibe-edit", "stream/x"]
)
def test_nothing_else_of_the_library_can_be_called(address, path):
    response = WEB.post(f"{address}/gradio_api/{path}", json={"data": []})
    assert response.status_code == 404
    assert "error" in response.json()


def test_the_limit_of_the_api_holds_for_uploads(address):
    assert upload(address, b"x" * (MOST_BYTES - 1000)).status_code == 200
    response = upload(address, b"x" * (MOST_BYTES + 1000))
    assert response.status_code == 413
    assert "limit of 1 MB" in response.json()["error"]
    chunked = WEB.post(f"{address}/gradio_api/upload", content=iter([b"x"]))
    assert chunked.status_code == 411


def post(address: str, path: str, body: bytes, headers: dict[str, str]) -> httpx.Response:
    return WEB.post(f"{address}/gradio_api/{path}", content=body, headers=headers)


def part(data: bytes, head: bytes = b'name="files"; filename="a.jpg"') -> bytes:
    return b"--x\r\nContent-Disposition: form-data; " + head + b"\r\n\r\n" + data + b"\r\n"


WHOLE = part(PICTURE) + b"--x--\r\n"
TEXT = part(b"hello", b'name="files"') + b"--x--\r\n"
PUNYCODE = {"content-type": "multipart/form-data; boundary=x; charset=punycode"}
UPLOADS: dict[str, tuple[str, dict[str, str], bytes, int, str]] = {
    "nothing": ("upload", FORM, b"", 400, "cut off"),
    "no form": ("upload", {"content-type": "text/plain"}, WHOLE, 415, "multipart/form-data"),
    "no type": ("upload", {}, WHOLE, 415, "multipart/form-data"),
    "a picture itself": ("upload", {"content-type": "image/jpeg"}, PICTURE, 415, "multipart/form-data"),
    "another boundary": ("upload", FORM, WHOLE.replace(b"--x", b"--y"), 400, "the form is damaged"),
    "no boundary": ("upload", {"content-type": "multipart/form-data"}, WHOLE, 400, "boundary"),
    "a form cut in its picture": ("upload", FORM, WHOLE[:-200], 400, "cut off"),
    "a form cut before its end": ("upload", FORM, part(PICTURE), 400, "cut off"),
    "a form cut in its headers": ("upload", FORM, WHOLE[:30], 400, "cut off"),
    "a form without parts": ("upload", FORM, b"--x--\r\n", 400, "no field 'files'"),
    "a text": ("upload", FORM, TEXT, 400, "as a file"),
    "a text to be followed": ("upload?upload_id=1", FORM, TEXT, 400, "as a file"),
    "another field": ("upload", FORM, WHOLE.replace(b"files", b"file"), 400, "did you mean 'files'"),
    "a charset for host names": ("upload", PUNYCODE, WHOLE, 400, "the form is damaged"),
    "too many": ("upload", FORM, part(b"x") * 129 + b"--x--\r\n", 400, "Too many files"),
    "a compressed form": ("upload", FORM | {"content-encoding": "gzip"}, WHOLE, 415, "Content-Encoding"),
}


@pytest.mark.parametrize("name", UPLOADS)
def test_uploads_that_are_refused(address, name):
    path, headers, body, status, reason = UPLOADS[name]
    response = post(address, path, body, headers)
    assert response.status_code == status
    assert reason in response.json()["error"]
    assert upload(address, PICTURE).status_code == 200


@pytest.mark.parametrize("path", ["queue/join", "run/predict", "cancel", "reset"])
@pytest.mark.parametrize(
    "body",
    [
        *(b"", b"{", b"[" * 100_000, b"null", b"[]", b"1", b'"a"', b"\xff\xfe", b"{}", b'{"data": []}', b"9" * 100_000),
        *(b'{"data": [' + b"[" * 50 + b"]" * 50 + b"]}", rb'{"session_hash": "\ud800"}', rb'{"\udfff": 1}'),
        *(b'{"session_hash": 5, "event_id": {}, "fn_index": "x"}', b'{"data": [{"path": "/etc/passwd"}]}'),
        b'{"a": "' + b"b" * 1_000_000 + b'"}',
    ],
    ids=lambda body: body[:20],
)
def test_malformed_questions_are_refused(address, path, body):
    response = post(address, path, body, JSON)
    assert 400 <= response.status_code < 500
    assert response.headers["content-type"] == "application/json"
    assert 5 < len(response.json()["error"]) < 300


@pytest.mark.parametrize("path", ["queue/join", "run/predict", "cancel", "reset"])
def test_a_long_question_is_refused(address, path, monkeypatch):
    monkeypatch.setattr(page_guard, "MOST_ASKED", 1000)
    response = post(address, path, b" " * 1001, JSON)
    assert (response.status_code, response.json()) == (413, {"error": "the question is too long"})


@pytest.mark.parametrize("path", ["queue/join", "run/predict"])
def test_only_the_pages_own_questions_are_passed_on(address, path):
    numbers = functions(address)
    good = question(address, None) if path == "queue/join" else at_once(address)
    assert WEB.post(f"{address}/gradio_api/{path}", json=good).status_code == 200
    other = numbers["load_example"] if path == "queue/join" else numbers["_answer"]
    values: dict[str, list[Any]] = {
        "fn_index": [other, 999, -1, None, "1", 1.0, True, [], {}],
        "data": [None, 5, "x", {}, [], [None] * 9],
        "session_hash": [None, "", "x" * 101, 5, []],
    }
    for wrong in ({key: value} for key, those in values.items() for value in those):
        response = WEB.post(f"{address}/gradio_api/{path}", json=good | wrong)
        assert response.status_code == 400, wrong
        assert response.json()["error"]
    # Values that the library would understand, but that the page never sends, stay here.
    strange = {"batched": True, "simple_format": True, "event_id": 5, "trigger_id": "x", "event_data": [[]]}
    assert WEB.post(f"{address}/gradio_api/{path}", json=good | strange).status_code == 200


def at_once(address: str, sample: Any = 0) -> dict[str, Any]:
    """The page's question for a sample picture."""
    return {"data": [sample], "fn_index": functions(address)["load_example"], "session_hash": "s"}


@pytest.mark.parametrize("sample", [-1, 1000, 10**30, None, "0", 0.0, True, [0], {"path": "/etc/passwd"}])
def test_only_samples_that_there_are_can_be_had(address, sample):
    response = WEB.post(f"{address}/gradio_api/run/predict", json=at_once(address, sample))
    assert response.status_code in (400, 403)
    assert response.json()["error"]


@pytest.mark.parametrize("path", ["queue/data", "queue/data?session_hash=nobody", "startup-events/", "theme.css/.."])
def test_errors_of_reading_are_in_the_same_form(address, path):
    response = WEB.get(f"{address}/gradio_api/{path}")
    assert response.status_code == 404
    assert response.json()["error"]


def test_errors_of_the_library_are_in_the_same_form(address):
    response = post(address, "queue/join", json.dumps(question(address, None)).encode(), {"content-type": "text/plain"})
    assert (response.status_code, response.json()) == (422, {"error": "unprocessable entity"})


def test_a_body_that_comes_too_slowly_is_refused_in_the_same_form(address, monkeypatch):
    monkeypatch.setattr("lenext.serving.limits.BODY_SECONDS", 0.2)
    host, _, port = address.removeprefix("http://").partition(":")
    for path, kind in (("upload", FORM["content-type"]), ("queue/join", JSON["content-type"])):
        head = f"POST /gradio_api/{path} HTTP/1.1\r\nHost: {host}\r\nContent-Type: {kind}\r\nContent-Length: 50\r\n\r\n"
        status, _, content = servers.ask(int(port), head.encode() + b"--x")
        assert (status, content) == (408, {"error": "the request's body came too slowly"})


def test_the_upload_gives_the_reason_of_every_malformed_picture(run, address):
    """The same reason as everywhere else: content is looked at by our decoder alone."""
    classifier = load(run)
    for number, (name, data) in enumerate(corpus.bad().items()):
        expected = classifier.predict(data).error
        assert expected is not None
        sent = upload(address, data, name).json()[0]
        shown = answer(address, file_data(sent), f"bad{number}")
        assert page_view.failure(ENGLISH.unreadable.format(reason=expected)) in shown, name


@pytest.mark.parametrize("function", ["_answer", "_answer_all"])
def test_what_is_no_picture_fills_no_log(address, caplog, function):
    number, folder = functions(address)[function], os.environ["GRADIO_TEMP_DIR"]
    sent = upload(address, PICTURE).json()[0]
    wrong: list[Any] = ["/etc/passwd", 5, {}, {"path": sent}, {"path": 5}, [5], ["a"], [[]], [None]]
    for picture in (*wrong, file_data(sent, meta=1), file_data(folder), [file_data(f"{folder}/samples")]):
        asked = question(address, picture) | {"fn_index": number}
        assert 400 <= WEB.post(f"{address}/gradio_api/queue/join", json=asked).status_code <= 403, picture
    assert not caplog.records


def test_questions_together_read_few_pictures_at_a_time(run, monkeypatch):
    now, most = 0, 0

    async def counted(self, data, *options, **more):
        nonlocal now, most
        most, now = max(most, now + 1), now + 1
        await asyncio.sleep(0.05)
        now -= 1
        return self.classifier.failed("", "late")

    monkeypatch.setattr(page, "MOST_READ", 3)
    monkeypatch.setattr(Engine, "answer", counted)
    with page_of(run) as address:
        sent = [file_data(upload(address, PICTURE).json()[0]) for _ in range(6)]
        sessions = [f"together{number}" for number in range(4)]
        for session in sessions:
            asked = question(address, sent, session) | {"fn_index": functions(address)["_answer_all"]}
            assert WEB.post(f"{address}/gradio_api/queue/join", json=asked).status_code == 200
        for session in sessions:
            assert "".join(read(address, session)).count("late") >= len(sent)
    assert most == 3


@pytest.mark.parametrize(
    "name", ["../../etc/passwd", "/etc/passwd", "a\\..\\b.png", "猫.jpg", "x" * 3000, "<script>.svg"]
)
def test_a_name_leads_nowhere(address, name):
    sent = Path(upload(address, PICTURE, name).json()[0])
    assert sent.parent == Path(os.environ["GRADIO_TEMP_DIR"])
    assert len(sent.name) < 50
    assert "lx-ranked" in answer(address, file_data(str(sent)), "names")


@pytest.mark.parametrize("name", [b"a\0b.jpg", b"", b"\xff\xfe.jpg", b'a";x="b', b"%00.jpg"])
def test_a_name_of_no_letters_is_none(address, name):
    body = part(PICTURE, b'name="files"; filename="' + name + b'"') + b"--x--\r\n"
    sent = post(address, "upload", body, FORM).json()[0]
    assert "lx-ranked" in answer(address, file_data(sent), "names")


def good_requests(address: str) -> list[tuple[str, dict[str, str], bytes]]:
    """What the page itself sends, to be damaged."""
    sent = upload(address, PICTURE).json()[0]
    several = {"data": ["形状", [file_data(sent)] * 3], "fn_index": functions(address)["_answer_all"]}
    asked = [("queue/join", question(address, file_data(sent))), ("queue/join", several | {"session_hash": "t"})]
    asked += [("run/predict", at_once(address)), ("reset", {"event_id": "x"})]
    asked += [("cancel", {"session_hash": "s", "fn_index": 1, "event_id": "x"})]
    drawing = part(b"<svg xmlns='http://www.w3.org/2000/svg'/>", b'name="files"; filename="a.svg"')
    return [
        *(
            (path, JSON, json.dumps(each, ensure_ascii=number % 2 == 0).encode())
            for number, (path, each) in enumerate(asked)
        ),
        ("upload", FORM, WHOLE),
        ("upload?upload_id=x", FORM, drawing + part(b"PK\x03\x04") + part(b"<!doctype html>") + b"--x--\r\n"),
    ]


def test_damaged_requests_are_answered(address):
    """The number can be set by LENEXT_MUTATIONS."""
    rng, good = np.random.default_rng(0), good_requests(address)
    seen = set()
    for _ in range(MUTATIONS):
        path, headers, body = good[rng.integers(len(good))]
        response = post(address, path, corpus.mutated(body, rng), headers)
        seen.add(response.status_code)
        # 503: its answers are never fetched.
        assert response.status_code in (200, 400, 403, 413, 415, 422, 503), response.text
        if response.status_code != 200:
            assert response.json()["error"]
    assert {200, 400, 403} <= seen
    assert "lx-ranked" in answer(address, file_data(upload(address, PICTURE).json()[0]), "after")
