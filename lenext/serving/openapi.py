"""The description of the HTTP API for programs, OpenAPI 3.1."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from lenext.version import __version__

JSON = "application/json"


def document(models: Sequence[str], *, allow_urls: bool) -> dict[str, Any]:
    """models: the names that there are. allow_urls: whether a request may name addresses of pictures."""
    name = {"name": "name", "in": "path", "required": True, "schema": {"type": "string", "enum": list(models)}}
    return {
        "openapi": "3.1.0",
        "info": {"title": "LeNeXt", "version": __version__, "description": "Image classification."},
        "paths": {
            "/v1/predict": {"post": _predict("predict", "Name the classes of pictures", allow_urls)},
            "/v1/models/{name}/predict": {
                "parameters": [name],
                "post": _predict("predictWith", "Name the classes of pictures with one of several models", allow_urls),
            },
            "/v1/model": {"get": _get("model", "The model that answers /v1/predict", "Model")},
            "/v1/models": {"get": _get("models", "The names of the models", "Models")},
            "/v1/models/{name}": {"parameters": [name], "get": _get("modelOf", "One of several models", "Model")},
            "/healthz": {"get": _get("healthz", "Whether the process lives", "Status")},
            "/readyz": {"get": _get("readyz", "Whether it takes requests", "Status")},
            "/metrics": {
                "get": {
                    "operationId": "metrics",
                    "summary": "Counters in the form that Prometheus reads",
                    "responses": {"200": {"description": "Counters", "content": {"text/plain": {}}}},
                }
            },
            "/openapi.json": {
                "get": {
                    "operationId": "openapi",
                    "summary": "This document",
                    "responses": {"200": {"description": "OpenAPI 3.1", "content": {JSON: {}}}},
                }
            },
        },
        "components": {
            "schemas": SCHEMAS,
            "securitySchemes": {
                "bearer": {"type": "http", "scheme": "bearer"},
                "header": {"type": "apiKey", "in": "header", "name": "X-API-Key"},
            },
        },
        "security": [{}, {"bearer": []}, {"header": []}],
    }


def _predict(operation: str, summary: str, allow_urls: bool) -> dict[str, Any]:
    picture = {"schema": {"type": "string", "format": "binary"}}
    texts = {"type": "array", "items": {"type": "string"}}
    keys = {"images": texts | {"description": "Encoded pictures in base64"}}
    if allow_urls:
        keys["urls"] = texts | {"description": "Public http or https addresses of pictures"}
    form = {
        "type": "object",
        "required": ["file"],
        "properties": {"file": {"type": "array", "items": {"type": "string", "format": "binary"}}},
    }
    return {
        "operationId": operation,
        "summary": summary,
        "parameters": [
            {
                "name": "top_k",
                "in": "query",
                "description": "Number of classes in each answer",
                "schema": {"type": "integer", "minimum": 1, "default": 5},
            },
            {
                "name": "threshold",
                "in": "query",
                "description": "Below this probability the label is 'unknown'; with several labels a picture, what a "
                "label needs (0.5 if not given)",
                "schema": {"type": "number", "minimum": 0, "maximum": 1},
            },
        ],
        "requestBody": {
            "required": True,
            "content": {
                "multipart/form-data": {"schema": form},
                JSON: {"schema": {"type": "object", "properties": keys, "additionalProperties": False}},
                "image/*": picture,
                "application/octet-stream": picture,
            },
        },
        "responses": {
            "200": _answer("Answers in the order sent; a picture that cannot be read has an error", "Predictions"),
            "422": _answer("None of the pictures can be read", "Unreadable"),
            "503": _answer("Too many pictures are waiting; Retry-After says how many seconds to wait", "Error"),
            "4XX": _answer("The request was refused", "Error"),
        },
    }


def _get(operation: str, summary: str, schema: str) -> dict[str, Any]:
    return {
        "operationId": operation,
        "summary": summary,
        "responses": {"200": _answer(summary, schema), "default": _answer("The request was refused", "Error")},
    }


def _answer(description: str, schema: str) -> dict[str, Any]:
    return {
        "description": description,
        "content": {JSON: {"schema": {"$ref": f"#/components/schemas/{schema}"}}},
    }


def _object(**properties: Any) -> dict[str, Any]:
    return {"type": "object", "required": list(properties), "properties": properties}


def _list(items: dict[str, Any]) -> dict[str, Any]:
    return {"type": "array", "items": items}


_TEXT, _PROBABILITY = {"type": "string"}, {"type": "number", "minimum": 0, "maximum": 1}
_ROWS = _list({"$ref": "#/components/schemas/Prediction"})
_PREDICTION = _object(
    image=_TEXT | {"description": "The file's name as it was sent, empty where there is none"},
    label={"type": ["string", "null"]},
    probability={"type": ["number", "null"], "minimum": 0, "maximum": 1},
    top=_list(_object(label=_TEXT, probability=_PROBABILITY)) | {"description": "Best first"},
    error={"type": ["string", "null"], "description": "Why the picture cannot be read"},
)
_PREDICTION["properties"]["labels"] = _list(_TEXT) | {"description": "Only with several labels a picture"}
SCHEMAS = {
    "Prediction": _PREDICTION,
    "Predictions": _object(predictions=_ROWS),
    "Unreadable": _object(error=_TEXT, predictions=_ROWS),
    "Error": _object(error=_TEXT),
    "Models": _object(models=_list(_TEXT)),
    "Status": _object(status=_TEXT),
    "Model": _object(
        name=_TEXT,
        architecture=_TEXT,
        task={"type": "string", "enum": ["single-label", "multi-label"]},
        classes=_list(_TEXT),
        preprocess={"type": "object"},
        views={"type": "integer"},
        temperature={"type": "number"},
        evaluation={"type": ["object", "null"], "description": "Accuracy with its 95 % interval by split"},
        backend=_TEXT,
        version=_TEXT,
    ),
}
