"""Adapts a trained ONNX model to a measured budget: ONNX in, ONNX out.

    import onnx_netadapt as na
    adapted = na.adapt("model.onnx", "40ms", output="small.onnx", data="images/", preprocess="imagenet")
    print(adapted.report)

Every function takes a path, bytes or a ModelProto. Nothing heavy is imported before it is used.
"""

from importlib import import_module
from typing import Any

_HOMES = {
    "adapt": "facade",
    "adapt_each": "facade",
    "from_torch": "facade",
    "to_torch": "facade",
    "inspect": "facade",
    "measure": "facade",
    "profile": "facade",
    "prune": "facade",
    "train_elastic": "facade",
    "verify": "facade",
    "NetAdaptError": "ir.errors",
}

__all__ = [
    "NetAdaptError",
    "adapt",
    "adapt_each",
    "from_torch",
    "inspect",
    "measure",
    "profile",
    "prune",
    "to_torch",
    "train_elastic",
    "verify",
]


def __getattr__(name: str) -> Any:
    if name not in _HOMES:
        raise AttributeError(f"module 'onnx_netadapt' has no attribute '{name}'")
    return getattr(import_module(f"onnx_netadapt.{_HOMES[name]}"), name)
