"""What a test network is: how to build it, what to feed it, and how far back it can be exported.

Nothing here imports torch: a registry of `Architecture` is as light as the numbers in it, and torch is loaded when
`Architecture.build` is called.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import partial
from importlib import import_module
from typing import TYPE_CHECKING, Any, cast

import numpy as np

if TYPE_CHECKING:
    from torch import nn


@dataclass(frozen=True, slots=True)
class Input:
    """One input of a network: standard normal float32, or int64 ids below `high` where that is given.

    The first axis of `shape` is the batch.
    """

    shape: tuple[int, ...]
    high: int | None = None

    def sample(self, rng: np.random.Generator, batch: int | None = None) -> np.ndarray:
        """Random values for this input: `shape`, with `batch` in place of its first axis where that is given."""
        shape = self.shape if batch is None else (batch, *self.shape[1:])
        if self.high is not None:
            return rng.integers(0, self.high, size=shape, dtype=np.int64)
        return rng.standard_normal(shape, dtype=np.float32)


@dataclass(frozen=True, slots=True)
class Architecture:
    """One network: its builder, its inputs and its outputs by name.

    `build()` gives a fresh torch module with torch's current random state (see `export.materialize` for seeded
    weights). From `min_opset` on, what torch's TorchScript exporter writes gives the module's own results. `quick`,
    where there is one, is a network of the same blocks, but narrower, shallower or with smaller inputs, for tests.
    """

    name: str
    family: str
    build: Callable[[], nn.Module]
    inputs: Mapping[str, Input]
    outputs: tuple[str, ...] = ("output",)
    min_opset: int = 7
    quick: Architecture | None = None

    @property
    def quickest(self) -> Architecture:
        """The network's `quick` variant, or itself where it is quick already."""
        return self.quick or self

    def example_inputs(self, *, seed: int = 0, batch: int | None = None) -> dict[str, np.ndarray]:
        """Random inputs by name, the same for the same seed; `batch` replaces the first axis of every input."""
        rng = np.random.default_rng(seed)
        return {name: spec.sample(rng, batch) for name, spec in self.inputs.items()}


def lazy(module: str, function: str, /, **arguments: Any) -> Callable[[], nn.Module]:
    """A builder that imports `module` (below this package) only when called: `module.function(**arguments)`."""
    return partial(_call, module, function, arguments)


def _call(module: str, function: str, arguments: Mapping[str, Any]) -> nn.Module:
    builder = getattr(import_module(f".{module}", __package__), function)
    return cast("nn.Module", builder(**arguments))
