"""The IR: ONNX models as read-only graphs, and all that is known about operators."""

from .errors import (
    BudgetError,
    InputError,
    NetAdaptError,
    ProfileError,
    PruneError,
    ShapeError,
    TargetError,
    UnsupportedOp,
)
from .graph import Constant, Graph, Node, Port
from .load import load, read_model

__all__ = [
    "BudgetError",
    "Constant",
    "Graph",
    "InputError",
    "NetAdaptError",
    "Node",
    "Port",
    "ProfileError",
    "PruneError",
    "ShapeError",
    "TargetError",
    "UnsupportedOp",
    "load",
    "read_model",
]
