"""How a target can be asked for the times of units, found by trying.

1. PER_NODE: a profile has times of nodes, and they add up to most of the run. Providers that compile the graph have one
   node for all of it; those that run asynchronously give the time of launching nodes, which is far less than the run.
2. ISOLATED: otherwise, if units of the network run alone on the target. Units are then those of the CPU provider, whose
   fusions (a convolution with what follows it element by element) compilers do as well.
3. WHOLE: otherwise. Only whole networks are measured there; how a network's time divides among its units is borrowed
   from the CPU provider, and whole networks on the target calibrate the sum.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from enum import StrEnum

import onnx

from ..ir.errors import ProfileError
from .isolated import Extractor, alone_us
from .structure import ShapesOf, Structure, Unit, Widths, structure_of
from .target import Target
from .timing import Feeds
from .trace import Trace, named_copy, trace
from .units import Attribution, attribute

_MOST = 0.5  # share of the run that the times of nodes must add up to
_TRIED = 3  # units that are tried alone
_RUNS, _WARM_UP = 6, 2


class Capability(StrEnum):
    """What a target can tell: times of nodes, of units alone, or of whole networks."""

    PER_NODE = "per_node"
    ISOLATED = "isolated"
    WHOLE = "whole"


@dataclass(frozen=True, slots=True)
class Survey:
    """A target's capability, and the structure of a network there."""

    capability: Capability
    structure: Structure


def survey(
    target: Target, base: onnx.ModelProto, other: onnx.ModelProto, feeds: Feeds, shapes: ShapesOf, widths: Widths
) -> Survey:
    """The Survey of `target` for the network `base` at `widths`; `other` is the same network at other widths.

    Raises TargetError if the target cannot run the network.
    """
    traced, attribution = _try_per_node(target, base, feeds)
    capability = Capability.PER_NODE
    if not attribution.executed:
        near = Target(threads=target.threads)
        traced = trace(base, near, feeds, runs=1, warm_up=0)
        attribution = attribute(traced)
        capability = Capability.ISOLATED
    structure = structure_of(traced.original, named_copy(other).graph, attribution, shapes(widths))
    if capability is Capability.ISOLATED and not _runs_alone(target, Extractor(base, shapes(widths)), structure.units):
        capability = Capability.WHOLE
    return Survey(capability, structure)


def _try_per_node(target: Target, base: onnx.ModelProto, feeds: Feeds) -> tuple[Trace, Attribution]:
    """The trace, and its attribution: empty if the times of nodes do not tell what the run took (rule 1)."""
    nothing = Attribution((), 0.0)
    try:
        traced = trace(base, target, feeds, runs=_RUNS, warm_up=_WARM_UP)
    except ProfileError:  # no times of nodes at all
        return Trace(base.graph, None, None, {}), nothing
    found = attribute(traced)
    # on a busy machine a run may lose most of its time between nodes: no sign of launching where there is none
    inside = 1.0 if target.synchronous else traced.inside
    return traced, found if (1 - found.unattributed_share) * inside >= _MOST else nothing


def _runs_alone(target: Target, extractor: Extractor, units: Sequence[Unit]) -> bool:
    """Whether the units with the most constants, which weigh most in a network, run alone."""
    largest = sorted(units, key=lambda unit: -len(unit.constants))[:_TRIED]
    return bool(largest) and all(alone_us(target, extractor, unit) > 0 for unit in largest)
