from __future__ import annotations

import os
import tempfile
from pathlib import Path

import pytest

from tests.pictures import make_folder

# The tests are about the processor, and say the same on every machine; `make gpu` runs what a GPU can run on one.
if "LENEXT_TEST_GPU" not in os.environ:
    os.environ["CUDA_VISIBLE_DEVICES"] = ""

# What a run leaves in the user's cache goes to a folder of the tests; one that is set from outside stays.
CACHE = None
if "LENEXT_TEST_CACHE" not in os.environ:
    CACHE = tempfile.TemporaryDirectory(prefix="lenext-cache-")  # goes with the process
    os.environ["XDG_CACHE_HOME"] = os.environ["LENEXT_TEST_CACHE"] = CACHE.name

if "PYTEST_XDIST_WORKER" in os.environ:  # processes that each use all cores would only wait for one another
    os.environ.setdefault("OMP_NUM_THREADS", "1")


@pytest.fixture(scope="session")
def shapes(tmp_path_factory) -> Path:
    """A folder of two classes with Chinese names, 30 pictures each, 32 x 32."""
    return make_folder(tmp_path_factory.mktemp("shapes") / "数据", ["圆", "三角"], 30, size=32)


@pytest.fixture(scope="session")
def run(shapes, tmp_path_factory) -> Path:
    """A finished run on `shapes`: LeNet-5 from random weights, two epochs."""
    from lenext.training import begin

    config = begin.configure({"data": str(shapes), "model": "lenet5", "epochs": 2})
    return begin.train(config, tmp_path_factory.mktemp("runs") / "run")
