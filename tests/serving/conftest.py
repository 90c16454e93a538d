from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

pytest.importorskip("uvicorn", reason="serving needs lenext[serve]")

from starlette.testclient import TestClient

from lenext.classifier import Classifier, load
from lenext.serving.engine import Engine
from tests.serving.servers import BASE, app_of, engine_of


@pytest.fixture(scope="session")
def classifier(run: Path) -> Classifier:
    return load(run)


@pytest.fixture(scope="module")
def engine(classifier: Classifier) -> Iterator[Engine]:
    with engine_of(classifier) as engine:
        yield engine


@pytest.fixture(scope="module")
def client(engine: Engine) -> Iterator[TestClient]:
    """Asks an app in this process, with uploads of up to a megabyte."""
    with TestClient(app_of(engine), BASE, raise_server_exceptions=False) as client:
        yield client
