"""One test record: a tiny network around one operator, and what coupling must find in it."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from net import Net

Middle = Callable[[Net, str], str]


@dataclass(frozen=True, slots=True)
class Record:
    """A network with `op` in it, for every version of the operator's definition that has a rule.

    `build(net)` adds nodes, inputs and outputs. `units` are the sizes of the groups that coupling must find, sorted;
    where it is empty nothing can be pruned, and `barrier` is part of the reason that must be given. `since` limits the
    versions; `label` tells several records of one operator apart.
    """

    op: str
    build: Callable[[Net], object]
    units: tuple[int, ...] = (7,)
    domain: str = ""
    since: tuple[int, ...] = ()
    label: str = ""
    barrier: str = ""
    open_batch: bool = True

    @property
    def name(self) -> str:
        """The record's name in test reports."""
        return f"{self.op}-{self.label}" if self.label else self.op


def between_convs(middle: Middle, *, channels: int = 7, after: int = 0) -> Callable[[Net], object]:
    """Conv to `channels` maps of 5 x 11 pixels, the operator, Conv from `after` (by default as many) maps."""

    def build(net: Net) -> object:
        x = net.conv(net.input(2, 3, 5, 11), 3, channels)
        return net.output(net.conv(middle(net, x), after or channels, 13))

    return build


def between_products(middle: Middle, *, channels: int = 7, after: int = 0) -> Callable[[Net], object]:
    """MatMul to `channels` features for each of 5 tokens, the operator, MatMul from `after` features."""

    def build(net: Net) -> object:
        x = net.dense(net.input(2, 5, 3), 3, channels)
        return net.output(net.dense(middle(net, x), after or channels, 13))

    return build
