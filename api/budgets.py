"""Budgets: `40ms`, `0.5x`, `latency=40ms`, `macs=150M`, `params=2M`, `size=4MB`, `memory=30MB`, `energy=15mJ`."""

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from onnx_netadapt.ir.errors import InputError

_DECIMAL = {"": 1.0, "k": 1e3, "K": 1e3, "M": 1e6, "G": 1e9, "T": 1e12}
UNITS: Mapping[str, Mapping[str, float]] = {
    "latency": {"s": 1e3, "ms": 1.0, "us": 1e-3, "µs": 1e-3, "ns": 1e-6},
    "macs": _DECIMAL,
    "params": _DECIMAL,
    "size": {"B": 1.0, "kB": 1e3, "KB": 1e3, "MB": 1e6, "GB": 1e9, "KiB": 2.0**10, "MiB": 2.0**20, "GiB": 2.0**30},
    "memory": {"B": 1.0, "kB": 1e3, "KB": 1e3, "MB": 1e6, "GB": 1e9, "KiB": 2.0**10, "MiB": 2.0**20, "GiB": 2.0**30},
    "energy": {"J": 1e3, "mJ": 1.0, "uJ": 1e-3},
}
"""Units of every resource, as multiples of its own: ms, operations, elements, bytes, mJ."""

_FORM = re.compile(r"(?:(?P<resource>\w+)=)?(?P<number>\d+(?:\.\d*)?(?:e-?\d+)?|\.\d+)\s*(?P<unit>[A-Za-zµ]*)")
_HELP = "write for example 40ms, 900us, 0.5x, macs=150M, params=2M, size=4MB, memory=30MB or energy=15mJ"


@dataclass(frozen=True, slots=True)
class Budget:
    """An upper limit on a resource: `amount` in the resource's own unit, or as a share of the start when `relative`."""

    resource: str
    amount: float
    relative: bool
    text: str

    def limit(self, start: float) -> float:
        """The limit in the resource's unit for a model that starts at this cost."""
        return self.amount * start if self.relative else self.amount


def at_speed(costs: Mapping[str, float], scale: float) -> dict[str, float]:
    """Costs by resource with their latency so many times as long: at another speed of the machine."""
    return {name: value * (scale if name == "latency" else 1.0) for name, value in costs.items()}


def parse_budget(text: str) -> Budget:
    """The budget that a `--budget` option means; InputError when it means none."""
    found = _FORM.fullmatch(text.strip())
    if found is None:
        raise InputError(f"--budget {text}: not an amount; {_HELP}")
    resource = found["resource"] or "latency"
    if resource not in UNITS:
        raise InputError(f"--budget {text}: there is no resource '{resource}'; choose one of {', '.join(UNITS)}")
    amount, unit = float(found["number"]), found["unit"]
    if amount <= 0:
        raise InputError(f"--budget {text}: must be above zero; {_HELP}")
    if unit == "x":
        return Budget(resource, amount, True, text)
    if unit not in UNITS[resource]:
        known = ", ".join(name or "no unit" for name in UNITS[resource])
        raise InputError(f"--budget {text}: {resource} has no unit '{unit}'; it takes {known}, or x; {_HELP}")
    return Budget(resource, amount * UNITS[resource][unit], False, text)


def parse_budgets(texts: Sequence[str]) -> dict[str, Budget]:
    """The budgets by resource; InputError when there is none, or two for one resource."""
    found: dict[str, Budget] = {}
    for text in texts:
        budget = parse_budget(text)
        if budget.resource in found:
            raise InputError(f"--budget {text}: a budget for {budget.resource} is given already")
        found[budget.resource] = budget
    if not found:
        raise InputError(f"no budget is given; {_HELP}")
    return found


def each_budget(texts: Sequence[str]) -> tuple[tuple[str, ...], ...]:
    """The budgets of each model that a run is asked for: `0.8x,0.6x` asks for two; all others hold for both.

    InputError when more than one option has a list, or a list names a budget twice or mixes resources.
    """
    lists = [text for text in texts if "," in text]
    if len(lists) > 1:
        raise InputError(f"--budget {lists[1]}: only one --budget may be a list, and {lists[0]} is one")
    if not lists:
        return (tuple(texts),)
    parts = [part.strip() for part in lists[0].split(",")]
    resources = {parse_budget(part).resource for part in parts}
    if len(resources) > 1:
        raise InputError(f"--budget {lists[0]}: a list is of one resource, this one has {', '.join(sorted(resources))}")
    if len(set(parts)) < len(parts):
        raise InputError(f"--budget {lists[0]}: a budget is named twice")
    return tuple(tuple(part if text is lists[0] else text for text in texts) for part in parts)


def show_amount(resource: str, amount: float) -> str:
    """An amount with a unit that suits it."""
    if resource == "latency":
        return f"{amount:.3g} ms" if amount < 100 else f"{amount:.0f} ms"
    if resource == "energy":
        return f"{amount:.3g} mJ"
    if resource in ("size", "memory"):
        return f"{amount / 1e6:.3g} MB"
    unit, scale = ("G", 1e9) if amount >= 1e9 else ("M", 1e6) if amount >= 1e6 else ("k", 1e3)
    return f"{amount / scale:.3g} {unit}"
