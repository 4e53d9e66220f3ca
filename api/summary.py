"""The report of a run, put together from what its parts found out."""

import os
import platform
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import onnx
from onnx_netadapt.costs import NetworkCost
from onnx_netadapt.ir.errors import NetAdaptError
from onnx_netadapt.ir.write import save
from onnx_netadapt.passes.search import SearchResult
from onnx_netadapt.profiler import Comparison, Latency, Target
from onnx_netadapt.report import AdaptReport, Score, State, write_html, write_json
from onnx_netadapt.run import Run


def state_of(
    cost: NetworkCost, widths: Mapping[str, int], model: onnx.ModelProto, latency: Latency, score: Score | None
) -> State:
    """What a model costs and scores."""
    try:
        memory_bytes: int | None = cost.memory_of(widths).total_bytes
    except NetAdaptError:
        memory_bytes = None
    return State(
        latency_ms=latency_facts(latency),
        macs=cost.narrowing.sizes.macs(widths),
        params=cost.narrowing.sizes.params(widths),
        size_bytes=model.ByteSize(),
        memory_bytes=memory_bytes,
        score=score,
    )


def latency_facts(latency: Latency) -> dict[str, Any]:
    """A latency as the report has it."""
    return {
        "median": latency.median_ms,
        "p10": latency.p10_ms,
        "p90": latency.p90_ms,
        "runs": latency.runs,
        "clock": latency.clock,
        "wall_median": latency.wall_median_ms,
    }


def budget_facts(
    run: Run, cost: NetworkCost, result: SearchResult, before: Latency, after: Latency
) -> tuple[dict[str, Any], ...]:
    """For every budget its limit, what was reached and its share of the limit."""
    found = []
    full = cost.measure({name: width for name, width in cost.narrowing.full.items()})
    for name, budget in run.budgets.items():
        reached = after.median_ms if name == "latency" else result.measured[name]
        limit = budget.limit(before.median_ms if name == "latency" else full[name])
        found.append(
            {"resource": name, "text": budget.text, "limit": limit, "measured": reached, "share": reached / limit}
        )
    return tuple(found)


def data_facts(run: Run) -> dict[str, Any]:
    """Where the examples came from, and how many each set has."""
    return {
        "origin": run.data.origin,
        "synthetic": run.data.synthetic,
        "calibration": len(run.calibration),
        "selection": len(run.selection),
        "report": len(run.report),
        "report_origin": run.report_data.origin,
    }


def noise_warnings(told: Comparison) -> list[str]:
    """A warning when the machine was busy, or disturbed all the time, while the result was measured."""
    latency, again = told.latency, "measure it again with `onnx-netadapt measure` when it is quiet"
    found = []
    if latency.busy:
        found.append(
            f"the machine was busy while the result was measured (wall {latency.wall_median_ms:.3f} ms, "
            f"CPU {latency.median_ms:.3f} ms): {again}"
        )
    if told.disturbed:
        found.append(
            "no moment was found in which the machine was as fast as before, so that the result's latency beside the "
            f"original's may be off by {told.error:.0%}: {again}"
        )
    return found


def slower_warnings(told: Comparison, bounded: bool) -> list[str]:
    """A warning when the model is slower than the original, unless a budget bounds its time (`bounded`)."""
    if bounded or told.ratio * (1 - told.error) <= 1:
        return []
    return [
        f"the adapted model is {told.ratio:.2f} times as slow as the original ({told.latency.median_ms:.3f} ms against "
        f"{told.reference.median_ms:.3f} ms): on this target fewer channels are not always faster; a second budget, "
        "`--budget latency=1x`, keeps to widths that are"
    ]


def environment(target: Target) -> dict[str, Any]:
    """What measured times depend on, and Python."""
    return {**target.fingerprint(), "python": platform.python_version(), "cores": os.cpu_count()}


def tool_version() -> str:
    """The version of this program."""
    from importlib.metadata import version

    return version("onnx-netadapt")


def write_all(path: Path, model: onnx.ModelProto, report: AdaptReport, *, external: bool) -> None:
    """The model last: whoever finds it finds its report and plan beside it."""
    base = path.with_suffix("") if path.suffix == ".onnx" else path
    write_json(base.with_name(base.name + ".plan.json"), report.plan)
    write_json(base.with_name(base.name + ".report.json"), report)
    write_html(base.with_name(base.name + ".report.html"), report)
    save(model, path, external=external)
