"""The HTTP API in one process: every way to send pictures gives the answers of Classifier.predict."""

from __future__ import annotations

import base64

import pytest
from starlette.testclient import TestClient

from lenext import config
from lenext.classifier import Classifier
from lenext.inference.backends import PLAIN
from lenext.serving.command import names_of
from tests.data import corpus
from tests.serving.servers import BASE, app_of, engine_of

JPEG, PNG = corpus.good()["plain.jpg"], corpus.good()["alpha.png"]
BROKEN = corpus.bad()["cut-plain-50.jpg"]


def encoded(*pictures: bytes) -> dict[str, list[str]]:
    return {"images": [base64.b64encode(picture).decode() for picture in pictures]}


def test_every_way_to_send_a_picture_gives_the_answer_of_predict(classifier: Classifier, client: TestClient) -> None:
    expected = [prediction.to_dict() for prediction in classifier.predict([JPEG, PNG], backend=PLAIN)]
    answers = [
        client.post("/v1/predict", files=[("file", ("a.jpg", JPEG)), ("file", ("b.png", PNG))]),
        client.post("/v1/predict", json=encoded(JPEG, PNG)),
        client.post("/v1/predict", content=JPEG, headers={"content-type": "image/png"}),  # the content counts
        client.post("/v1/predict", content=PNG, headers={"content-type": "application/octet-stream"}),
        client.post("/v1/predict", content=PNG),
        client.post("/v1/predict", json={"images": ["data:image/jpeg;base64," + encoded(JPEG)["images"][0]]}),
    ]
    wanted = [(0, 1), (0, 1), (0,), (1,), (1,), (0,)]
    assert [answer.status_code for answer in answers] == [200] * 6, [answer.text for answer in answers]
    for answer, indices in zip(answers, wanted):
        for row, index in zip(answer.json()["predictions"], indices, strict=True):
            assert row["label"] == expected[index]["label"]
            assert row["probability"] == pytest.approx(expected[index]["probability"], abs=1e-3)
            assert row.keys() == expected[index].keys()
    assert [row["image"] for row in answers[0].json()["predictions"]] == ["a.jpg", "b.png"]


def test_all_raw_files_get_the_answers_of_predict(classifier: Classifier, client: TestClient) -> None:
    files = corpus.good()
    expected = classifier.predict(list(files.values()), backend=PLAIN)
    sent = [("file", (name, data)) for name, data in files.items()]
    rows = client.post("/v1/predict", files=sent).json()["predictions"]
    for name, row, other in zip(files, rows, expected, strict=True):
        assert (row["image"], row["label"], row["error"]) == (name, other.label, None)
        assert row["probability"] == pytest.approx(other.probability, abs=1e-3)


def test_a_broken_picture_has_its_reason_and_spoils_no_other(client: TestClient) -> None:
    answer = client.post("/v1/predict", files=[("file", ("bad.jpg", BROKEN)), ("file", ("good.jpg", JPEG))])
    bad, good = answer.json()["predictions"]
    assert answer.status_code == 200
    assert bad["label"] is None
    assert bad["error"].startswith("damaged or cut off")
    assert good["error"] is None
    assert good["label"]
    alone = client.post("/v1/predict", files={"file": ("bad.jpg", BROKEN)})
    assert alone.status_code == 422
    assert alone.json() == {"error": bad["error"], "predictions": [bad]}
    two = client.post("/v1/predict", json={"images": ["%%%", ""]})
    assert two.status_code == 422
    assert [row["error"] for row in two.json()["predictions"]] == ["not base64", "the file is empty (0 bytes)"]


def test_options(client: TestClient) -> None:
    def ask(query: str):
        return client.post(f"/v1/predict?{query}", content=JPEG)

    assert len(ask("top_k=1").json()["predictions"][0]["top"]) == 1
    assert ask("threshold=1").json()["predictions"][0]["label"] == "unknown"
    for query, reason in {
        "top_k=0": "top_k is 0; at least the best class must be asked for",
        "top_k=two": "top_k is 'two', which is no number",
        "threshold=nan": "threshold is nan; it is a probability between 0 and 1",
        "threshold=-1": "threshold is -1.0; it is a probability between 0 and 1",
        "topk=3": "unknown parameter 'topk'; did you mean 'top_k'?",
    }.items():
        assert ask(query).status_code == 400
        assert ask(query).json() == {"error": reason}


def test_names_are_text_and_nothing_else(client: TestClient) -> None:
    for name in ("../../etc/passwd", "/etc/passwd", "猫.jpg", "a b'.jpg", "<script>alert(1)</script>", "x" * 3000):
        row = client.post("/v1/predict", files={"file": (name, JPEG)}).json()["predictions"][0]
        assert (row["image"], row["error"]) == (name, None)
    body = b'--x\r\nContent-Disposition: form-data; name="file"; filename="a\0b.jpg"\r\n\r\n' + JPEG + b"\r\n--x--\r\n"
    answer = client.post("/v1/predict", content=body, headers={"content-type": "multipart/form-data; boundary=x"})
    assert answer.json()["predictions"][0]["image"] == "a\0b.jpg"
    # Half of a character, which a sender can spell in such a charset, is spelled out.
    body = body.replace(b"a\0b", rb"\ud800")
    kind = "multipart/form-data; boundary=x; charset=unicode_escape"
    answer = client.post("/v1/predict", content=body, headers={"content-type": kind})
    assert answer.json()["predictions"][0]["image"] == r"\ud800.jpg"


def test_what_the_server_says_of_its_models(classifier: Classifier) -> None:
    with (
        engine_of(classifier, "shapes") as first,
        engine_of(classifier, "形状") as second,
        TestClient(app_of(first, second), BASE) as client,
    ):
        assert client.get("/v1/models").json() == {"models": ["shapes", "形状"]}
        model = client.get("/v1/model").json()
        assert (model["name"], model["classes"]) == ("shapes", list(classifier.classes))
        assert model["evaluation"]["val"]["accuracy"] == classifier.about["evaluation"]["val"]["accuracy"]
        assert str(classifier.about["data"]) not in str(model)
        assert client.get("/v1/models/形状").json() == model | {"name": "形状"}
        assert (
            client.post("/v1/models/形状/predict", content=JPEG).json()
            == client.post("/v1/predict", content=JPEG).json()
        )
        missing = client.post("/v1/models/cats/predict", content=JPEG)
        assert missing.status_code == 404
        assert missing.json() == {"error": "there is no model 'cats'; there are shapes, 形状"}


def test_names_of_models() -> None:
    paths = [
        "runs/cats",
        "other/cats/",
        "dogs.safetensors",
        "/birds/classifier.safetensors",
        "hf:me/fish",
        "resnet18",
    ]
    assert names_of(paths) == ["cats", "cats-2", "dogs", "birds", "fish", "resnet18"]


def test_errors_are_json_and_tell_nothing_of_the_inside(
    client: TestClient, monkeypatch: pytest.MonkeyPatch, engine
) -> None:
    assert client.get("/nothing").json() == {"error": "there is nothing at /nothing; /openapi.json says what there is"}
    answer = client.get("/v1/predict")
    assert (answer.status_code, answer.json()) == (405, {"error": "/v1/predict does not take GET"})

    def broken(*_):
        raise RuntimeError("secret")

    monkeypatch.setattr(engine, "submit", broken)
    answer = client.post("/v1/predict", content=JPEG)
    assert (answer.status_code, answer.json()) == (500, {"error": "the server failed; its log says why"})


@pytest.mark.parametrize(
    "json", [b'{"images": [' + b"[]," * 9999 + b"[]]}", b'{"images": [' + b'"",' * 9999 + b'""]}', b"{," * 9999]
)
def test_more_json_than_pictures_is_not_parsed(
    client: TestClient, monkeypatch: pytest.MonkeyPatch, json: bytes
) -> None:
    with monkeypatch.context() as parser:
        parser.setattr("lenext.serving.uploads.json.loads", None)
        answer = client.post("/v1/predict", content=json, headers={"content-type": "application/json"})
    assert (answer.status_code, answer.json()) == (400, {"error": "the JSON holds far more than 128 pictures"})


def test_a_full_queue_asks_to_come_again(classifier: Classifier) -> None:
    with engine_of(classifier, most_waiting=2) as engine, TestClient(app_of(engine), BASE) as client:
        answer = client.post("/v1/predict", json=encoded(JPEG, JPEG, JPEG))
        assert (answer.status_code, answer.json()) == (400, {"error": "at most 2 pictures can be sent at once"})
        engine.waiting += 1
        answer = client.post("/v1/predict", json=encoded(JPEG, JPEG))
        engine.waiting -= 1
        assert answer.status_code == 503
        assert answer.json()["error"].endswith("try again later")
        assert int(answer.headers["retry-after"]) >= 1
        assert client.post("/v1/predict", json=encoded(JPEG, JPEG)).status_code == 200
        assert client.get("/readyz").status_code == 200
        engine.waiting += 2
        assert client.get("/readyz").status_code == 503
        assert client.get("/healthz").status_code == 200
        engine.waiting -= 2


def test_addresses_are_fetched_only_where_that_is_allowed(classifier: Classifier, client: TestClient) -> None:
    answer = client.post("/v1/predict", json={"urls": ["http://127.0.0.1/cat.jpg"]})
    assert answer.status_code == 403
    assert "--allow-urls" in answer.json()["error"]
    with engine_of(classifier) as engine, TestClient(app_of(engine, allow_urls=True), BASE) as allowed:
        answer = allowed.post("/v1/predict", json={"urls": ["http://127.0.0.1/cat.jpg", "file:///etc/passwd"]})
        assert answer.status_code == 422  # neither is public
        assert all(row["error"] for row in answer.json()["predictions"])
        broken = allowed.post(
            "/v1/predict", content=rb'{"urls": ["http://\ud800"]}', headers={"content-type": "application/json"}
        )
        assert broken.status_code == 422
        assert broken.json()["predictions"][0]["image"] == r"http://\ud800"


def test_metrics_count_what_happens(classifier: Classifier) -> None:
    parser = pytest.importorskip("prometheus_client.parser")
    with engine_of(classifier) as engine, TestClient(app_of(engine), BASE) as client:
        client.post("/v1/predict", files=[("file", ("a", JPEG)), ("file", ("b", BROKEN))])
        client.post("/v1/predict", content=BROKEN)
        client.get("/nothing")
        text = client.get("/metrics").text
    values = {
        (sample.name, *sample.labels.values()): sample.value
        for family in parser.text_string_to_metric_families(text)
        for sample in family.samples
    }
    assert values["lenext_requests_total", "predict", "200"] == 1
    assert values["lenext_requests_total", "predict", "422"] == 1
    assert values["lenext_requests_total", "other", "404"] == 1
    assert values["lenext_pictures_total", "shapes", "answered"] == 1
    assert values["lenext_pictures_total", "shapes", "unreadable"] == 2
    assert values["lenext_batch_size_sum", "shapes"] == 1
    assert values["lenext_request_seconds_count", "predict"] == 2
    assert values["lenext_queue", "shapes"] == 0


def test_the_description_is_valid_and_has_every_address(client: TestClient) -> None:
    validator = pytest.importorskip("openapi_spec_validator")
    document = client.get("/openapi.json").json()
    validator.validate(document)
    assert document["info"]["version"] == client.get("/v1/model").json()["version"]
    for path, operations in document["paths"].items():
        for method in operations.keys() - {"parameters"}:
            address = path.replace("{name}", "shapes")
            assert client.request(method, address, content=JPEG if method == "post" else None).status_code == 200, path


def test_answers_fit_their_description(client: TestClient) -> None:
    jsonschema = pytest.importorskip("jsonschema")
    document = client.get("/openapi.json").json()

    def fits(answer, name: str) -> None:
        schema = {"$ref": f"#/components/schemas/{name}", "components": document["components"]}
        jsonschema.validate(answer.json(), schema)

    fits(client.post("/v1/predict", files=[("file", ("a", JPEG)), ("file", ("b", BROKEN))]), "Predictions")
    fits(client.post("/v1/predict", content=BROKEN), "Unreadable")
    fits(client.post("/v1/predict", content=b""), "Error")
    fits(client.get("/v1/model"), "Model")
    fits(client.get("/v1/models"), "Models")
    fits(client.get("/readyz"), "Status")


def test_the_nearest_name_is_offered(client: TestClient) -> None:
    answer = client.post("/v1/predict", json={"image": []})
    assert answer.json()["error"].startswith("unknown key 'image'" + config.nearest("image", ["images"]))
