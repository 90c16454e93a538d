"""Whatever is sent, the answer is a clear 4xx with a reason, and the server goes on."""

from __future__ import annotations

import base64
import itertools
import os

import numpy as np
import pytest
from starlette.testclient import TestClient

from tests.data import corpus

JPEG = corpus.good()["plain.jpg"]
FORM = {"content-type": "multipart/form-data; boundary=x"}
PUNYCODE = {"content-type": "multipart/form-data; boundary=x; charset=punycode"}
UNDEFINED = {"content-type": "multipart/form-data; boundary=x; charset=undefined"}
JSON = {"content-type": "application/json"}
MUTATIONS = int(os.environ.get("LENEXT_MUTATIONS", "300"))


def part(data: bytes, head: bytes = b'name="file"; filename="a.jpg"') -> bytes:
    return b"--x\r\nContent-Disposition: form-data; " + head + b"\r\n\r\n" + data + b"\r\n"


@pytest.mark.parametrize("name", corpus.bad())
def test_every_malformed_picture_is_refused_in_every_form(name: str, client: TestClient) -> None:
    data = corpus.bad()[name]
    answers = [
        client.post("/v1/predict", files={"file": (name, data)}),
        client.post("/v1/predict", content=data, headers={"content-type": "image/jpeg"}),
        client.post("/v1/predict", json={"images": [base64.b64encode(data).decode()]}),
    ]
    for answer in answers:
        assert answer.status_code == (422 if data or answer is not answers[1] else 400)
        assert 5 < len(answer.json()["error"]) < 300


REQUESTS: dict[str, tuple[dict[str, str], bytes, int, str]] = {
    "an empty body": ({}, b"", 400, "the request is empty"),
    "an empty form": (FORM, b"", 400, "cut off"),
    "an empty JSON body": (JSON, b"", 400, "the request is empty"),
    "a form without parts": (FORM, b"--x--\r\n", 400, "no field 'file'"),
    "a form without its boundary": ({"content-type": "multipart/form-data"}, part(JPEG), 400, "boundary"),
    "a form cut in its picture": (FORM, part(JPEG)[:-200], 400, "cut off"),
    "a form cut before its end": (FORM, part(JPEG), 400, "cut off"),
    "a form cut in its headers": (FORM, part(JPEG)[:30], 400, "cut off"),
    "a form of nonsense": (FORM, b"\0\xff" * 100, 400, "form"),
    "a part without a name": (FORM, part(JPEG, b'filename="a"') + b"--x--\r\n", 400, "name"),
    "another field": (FORM, part(JPEG, b'name="files"; filename="a"') + b"--x--\r\n", 400, "did you mean 'file'"),
    "a field of text": (FORM, part(b"cat.jpg", b'name="file"') + b"--x--\r\n", 400, "as a file"),
    "too many files": (FORM, part(b"x") * 129 + b"--x--\r\n", 400, "Too many files"),
    "too many fields": (FORM, part(b"x", b'name="a"') * 129 + b"--x--\r\n", 400, "Too many fields"),
    "a form in punycode": (PUNYCODE, part(JPEG) + b"--x--\r\n", 400, "the form is damaged"),
    "a form in a charset that is none": (UNDEFINED, part(JPEG) + b"--x--\r\n", 400, "the form is damaged"),
    "a form with an empty boundary": ({"content-type": "multipart/form-data; boundary="}, part(JPEG), 400, "form"),
    "JSON that is none": (JSON, b"{images: 1}", 400, "not valid JSON"),
    "JSON of bytes that are no text": (JSON, b"\xff\xfe\xfa", 400, "not valid JSON"),
    "JSON that is a list": (JSON, b"[]", 400, "must be an object"),
    "JSON without pictures": (JSON, b'{"images": []}', 400, "names no pictures"),
    "JSON with a path": (JSON, b'{"path": "/etc/passwd"}', 400, "unknown key 'path'"),
    "JSON with a number": (JSON, b'{"images": [1]}', 400, "list of texts"),
    "JSON with a text": (JSON, b'{"images": "/etc/passwd"}', 400, "list of texts"),
    "JSON with a path as a picture": (JSON, b'{"images": ["/etc/passwd"]}', 422, "not "),
    "JSON with too many": (JSON, b'{"images": [' + b'"",' * 200 + b'""]}', 400, "at most 128"),
    "JSON deep as a well": (JSON, b"[" * 9_000, 400, "nested too deeply"),
    "JSON as deep as the sea": (JSON, b"[" * 200_000, 400, "far more than 128 pictures"),
    "a number without end": (JSON, b'{"images": ' + b"9" * 100_000 + b"}", 400, "JSON"),
    "a web form": ({"content-type": "application/x-www-form-urlencoded"}, JPEG, 415, "cannot be sent as"),
    "a text": ({"content-type": "text/plain"}, JPEG, 415, "cannot be sent as text/plain"),
    "a compressed body": ({"content-type": "image/jpeg", "content-encoding": "gzip"}, JPEG, 415, "Content-Encoding"),
    "a zip archive": ({"content-type": "application/zip"}, b"PK\x03\x04" + b"\0" * 99, 415, "application/zip"),
    "a zip as a picture": ({"content-type": "image/png"}, b"PK\x03\x04" + b"\0" * 99, 422, "a zip archive"),
    "an SVG": ({"content-type": "image/svg+xml"}, b"<svg xmlns='http://www.w3.org/2000/svg'/>", 422, "SVG"),
    "a web page": ({"content-type": "image/jpeg"}, b"<!doctype html><p>hello", 422, "a web page"),
    "300 megapixels": (
        {"content-type": "image/png"},
        corpus.png_header(20_000, 15_000),
        422,
        "limit of 100 megapixels",
    ),
    "more than the limit": ({"content-type": "image/jpeg"}, JPEG + b"\0" * 1_000_001, 413, "limit of 1 MB"),
}


@pytest.mark.parametrize("name", REQUESTS)
def test_requests_that_are_refused(name: str, client: TestClient) -> None:
    headers, body, status, reason = REQUESTS[name]
    answer = client.post("/v1/predict", content=body, headers=headers)
    assert answer.status_code == status
    assert reason in answer.json()["error"]
    assert len(answer.json()["error"]) < 400
    assert client.post("/v1/predict", content=JPEG).status_code == 200


def requests() -> list[tuple[dict[str, str], bytes]]:
    """Good requests of every kind, to be damaged."""
    files = [data for data in corpus.good().values() if len(data) < 20_000]
    form = [(FORM, part(a) + part(b) + b"--x--\r\n") for a, b in itertools.pairwise(files)]
    texts = [base64.b64encode(data).decode() for data in files]
    return [
        *form,
        *((JSON, f'{{"images": ["{text}"]}}'.encode()) for text in texts),
        *(({"content-type": "image/png"}, data) for data in files),
    ]


def test_damaged_requests_are_answered(client: TestClient) -> None:
    """The number can be set by LENEXT_MUTATIONS."""
    rng, good = np.random.default_rng(0), requests()
    seen = set()
    for _ in range(MUTATIONS):
        headers, body = good[rng.integers(len(good))]
        answer = client.post("/v1/predict", content=corpus.mutated(body, rng), headers=headers)
        seen.add(answer.status_code)
        assert answer.status_code in (200, 400, 403, 413, 415, 422), answer.text
        if answer.status_code != 200:
            assert answer.json()["error"]
    assert {200, 400, 422} <= seen
    assert client.post("/v1/predict", content=JPEG).status_code == 200
