"""The torch forms of attention as one operator; what is not here runs as the function that ONNX defines it as."""

from __future__ import annotations

from .runtime import Lowering

LOWER: dict[str, Lowering] = {}
