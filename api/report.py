"""The report of a run: plain data, written as JSON for programs and as one self-contained page for people."""

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from onnx_netadapt.ir.errors import InputError
from onnx_netadapt.ir.write import write_atomically

SCHEMA_VERSION = 1


@dataclass(frozen=True, slots=True)
class Score:
    """A score on the report set: higher is better; `labelled` says whether it was judged by labels."""

    name: str
    value: float
    n: int
    labelled: bool

    def __str__(self) -> str:
        return f"{self.name} {self.value:.4f} (n={self.n})"


@dataclass(frozen=True, slots=True)
class State:
    """What a model costs and scores: `latency_ms` is {median, p10, p90, runs, clock, wall_median}."""

    latency_ms: Mapping[str, Any]
    macs: int
    params: int
    size_bytes: int
    memory_bytes: int | None
    score: Score | None


@dataclass(frozen=True, slots=True)
class AdaptReport:
    """All that a run of the main job found out; field names are those of `OUT.report.json`."""

    tool_version: str
    command: str
    model: str
    output: str
    seed: int
    environment: Mapping[str, Any]
    target: str
    granularity: str
    budgets: tuple[Mapping[str, Any], ...]
    met: bool
    before: State
    after: State
    estimate_ms: float | None
    lut: Mapping[str, Any] | None
    data: Mapping[str, Any]
    search: Mapping[str, Any]
    recovery: Mapping[str, Any]
    finetune: Mapping[str, Any]
    equivalence: Mapping[str, Any]
    seconds: Mapping[str, float]
    widths: Mapping[str, int]
    plan: Mapping[str, Any]
    history: tuple[Mapping[str, Any], ...]
    barriers: tuple[Mapping[str, Any], ...]
    warnings: tuple[str, ...]
    resolution: Mapping[str, Any] | None = None
    schema_version: int = field(default=SCHEMA_VERSION)

    def as_json(self) -> dict[str, Any]:
        """The report as JSON data."""
        found: dict[str, Any] = plain(self)
        return found

    def __str__(self) -> str:
        before, after = self.before.latency_ms, self.after.latency_ms
        lines = [
            f"{self.output}: {'budget met' if self.met else 'BUDGET NOT MET'} on {self.target}",
            f"  latency  {before['median']:.3f} -> {after['median']:.3f} ms, "
            f"{after['median'] / before['median']:.2f}x (median of {after['runs']} runs, p90 {after['p90']:.3f})",
            f"  macs     {self.before.macs / 1e6:,.1f} -> {self.after.macs / 1e6:,.1f} M",
            f"  params   {self.before.params / 1e6:,.3f} -> {self.after.params / 1e6:,.3f} M",
        ]
        if self.resolution:
            lines.append(f"  input    {self.resolution['said']}")
        if gone := self.plan.get("branches"):
            names = ", ".join(str(branch.get("sum") or branch.get("layer")) for branch in gone)
            lines.append(f"  depth    {len(gone)} branches or layers went whole (--no-allow-depth keeps them): {names}")
        if self.before.score and self.after.score:
            kind = "by labels" if self.after.score.labelled else "compared with the original"
            lines.append(
                f"  {self.after.score.name:8} {self.before.score.value:.4f} -> {self.after.score.value:.4f} "
                f"({self.after.score.n} examples that chose nothing, {kind})"
            )
        return "\n".join([*lines, *(f"  warning: {text}" for text in self.warnings)])


def plain(value: Any) -> Any:
    """What json writes for dataclasses, mappings and numpy numbers."""
    if hasattr(value, "__dataclass_fields__"):
        return {name: plain(getattr(value, name)) for name in value.__dataclass_fields__ if not name.startswith("_")}
    if isinstance(value, Mapping):
        return {str(name): plain(item) for name, item in value.items()}
    if isinstance(value, list | tuple):
        return [plain(item) for item in value]
    if hasattr(value, "item") and not isinstance(value, str):
        value = value.item()
    if isinstance(value, float) and value != value:
        return None
    return str(value) if isinstance(value, Path) else value


def write_json(path: Path, value: Any) -> None:
    """Writes JSON in one step."""
    write_atomically(path, (json.dumps(plain(value), indent=1, allow_nan=False) + "\n").encode())


def read_report(output: Path) -> dict[str, Any]:
    """The report beside a written model; InputError when it cannot be read."""
    path = output.with_name(f"{output.name.removesuffix('.onnx')}.report.json")
    try:
        found: dict[str, Any] = json.loads(path.read_text())
    except (OSError, ValueError) as error:
        raise InputError(f"{path}: the report of {output.name} cannot be read ({error}); delete {output}") from error
    return found


def write_html(path: Path, report: AdaptReport) -> None:
    """Writes the page for people."""
    name = str(report.budgets[0]["resource"])
    points = [(float(s["measured"][name]), float(s["score"])) for s in report.history if s["score"] is not None]
    write_page(path, "report.html.j2", report=report.as_json(), chart=trade_off(name, points))


def write_page(path: Path, template: str, **values: Any) -> None:
    """Writes a page in one step: no scripts, no links to elsewhere."""
    from jinja2 import Environment, PackageLoader, select_autoescape

    environment = Environment(loader=PackageLoader("onnx_netadapt", "."), autoescape=select_autoescape(default=True))
    write_atomically(path, environment.get_template(template).render(**values).encode())


def trade_off(name: str, points: Sequence[tuple[float, float]]) -> dict[str, Any]:
    """Points (cost, score) of the trade-off of a resource in the units of an SVG; none for fewer than two."""
    if len(points) < 2:
        return {}
    low_x, high_x = min(x for x, _ in points), max(x for x, _ in points)
    low_y, high_y = min(y for _, y in points), max(y for _, y in points)
    span_x, span_y = (high_x - low_x) or 1.0, (high_y - low_y) or 1.0
    placed = [
        {"x": 60 + 520 * (x - low_x) / span_x, "y": 260 - 220 * (y - low_y) / span_y, "label": f"{x:.4g}, {y:.4g}"}
        for x, y in points
    ]
    return {
        "points": placed,
        "line": " ".join(f"{p['x']:.1f},{p['y']:.1f}" for p in placed),
        "x": (f"{low_x:.4g}", f"{high_x:.4g}", name),
        "y": (f"{low_y:.4g}", f"{high_y:.4g}"),
    }
