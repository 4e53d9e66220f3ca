"""The test networks and oracles of tests/ir serve here as well; the network and data that come with the package."""

import importlib
import math
import sys
from pathlib import Path

import numpy as np
import pytest
from onnx_netadapt.models.demo import write_demo

sys.path.insert(0, str(Path(__file__).resolve().parents[1] / "ir"))


@pytest.fixture(autouse=True)
def however_noisy(monkeypatch):
    """A table that the machine's neighbours bend by a fifth is refused to users; no test here looks at its times."""
    monkeypatch.setattr(importlib.import_module("onnx_netadapt.profiler.fill"), "_HOPELESS", math.inf)


@pytest.fixture(scope="session")
def demo(tmp_path_factory):
    """The files of the demo: a model and its data."""
    return write_demo(tmp_path_factory.mktemp("demo"))


@pytest.fixture(scope="session")
def little(demo, tmp_path_factory):
    """The same model with a fifth of the data, for runs whose scores are not looked at."""
    data = np.load(demo[1])
    path = tmp_path_factory.mktemp("little") / "digits.npz"
    np.savez(path, **{name: data[name][:200] for name in data.files})
    return str(demo[0]), str(path)
