"""The errors of onnx-netadapt, each with the exit code that the command line gives for it.

Every message has four parts: what is wrong, where (file, node, tensor), the numbers on both sides, what to do next.
"""


class NetAdaptError(Exception):
    """The root of all errors that are meant for the user; anything else is a defect of this program."""

    exit_code = 2


class InputError(NetAdaptError, ValueError):
    """A model, a data set or an option cannot be used as it is (exit code 2)."""


class UnsupportedOp(InputError):
    """An operator has no rule for what was asked of it."""


class ShapeError(InputError):
    """Shapes do not fit, or cannot be worked out."""


class PruneError(NetAdaptError, ValueError):
    """A plan cannot be applied to a graph."""


class BudgetError(NetAdaptError):
    """The budget cannot be met (exit code 3); the message gives the smallest reachable cost."""

    exit_code = 3


class TargetError(NetAdaptError, RuntimeError):
    """The target is not there, or cannot run the model (exit code 4)."""

    exit_code = 4


class ProfileError(TargetError):
    """A measurement failed, or is not to be trusted."""
