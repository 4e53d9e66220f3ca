"""Channels that cost nothing: on a target that computes in steps, some widths can be raised at no latency at all."""

from collections.abc import Mapping, Sequence

from onnx_netadapt.passes.search import Choice
from onnx_netadapt.passes.search.common import Cost, over

NOTHING = 1e-3
"""A rise of the estimated latency, as a share, that counts as none; for all groups together."""


def widen_free(
    choices: Sequence[Choice], cost: Cost, widths: Mapping[str, int], limits: Mapping[str, float]
) -> dict[str, int]:
    """`widths` with every group raised to the largest width at which the estimated latency stays, widest groups first.

    All other resources must stay within `limits` by their estimates, if they are there now.
    """
    found = dict(widths)
    start = cost(found)
    allowed = {name: max(limit, start[name]) for name, limit in limits.items()}
    if "latency" in start:
        allowed["latency"] = start["latency"] * (1 + NOTHING)
    for choice in sorted(choices, key=lambda c: -c.widths[-1]):
        for width in sorted((w for w in choice.widths if w > found[choice.id]), reverse=True):
            if not over(cost({**found, choice.id: width}), allowed):
                found[choice.id] = width
                break
    return found
