"""The functions of the package, for Python: each takes a path, bytes or a ModelProto, and returns a dataclass."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import onnx
from onnx_netadapt.commands import (
    Measurement,
    ProfileReport,
    Verification,
    measure_model,
    profile_model,
    prune_model,
    verify_models,
)
from onnx_netadapt.elastic import Elastic
from onnx_netadapt.elastic import train_elastic as run_train_elastic
from onnx_netadapt.inspection import inspect
from onnx_netadapt.ir.graph import Shape
from onnx_netadapt.ir.load import Source, load, read_model
from onnx_netadapt.options import Options
from onnx_netadapt.passes.prune import Pruned
from onnx_netadapt.pipeline import Adapted
from onnx_netadapt.pipeline import adapt as run_adapt
from onnx_netadapt.progress import Progress
from onnx_netadapt.sweep import Sweep
from onnx_netadapt.sweep import sweep as run_sweep

__all__ = [
    "adapt",
    "adapt_each",
    "from_torch",
    "inspect",
    "measure",
    "profile",
    "prune",
    "to_torch",
    "train_elastic",
    "verify",
]


def adapt(
    model: Source,
    budget: str | Sequence[str],
    *,
    output: str | Path | None = None,
    quiet: bool = True,
    **options: Any,
) -> Adapted:
    """The adapted model (`.model`) and the report (`.report`); options are those of the command line (`Options`).

    With `output` the model, its plan and its reports are written as well. Raises NetAdaptError; see CONTRACTS 4.
    """
    budgets = (budget,) if isinstance(budget, str) else tuple(budget)
    path = Path(output) if output is not None else None
    chosen = Options(budgets=budgets, output=path, **options)
    name = str(model) if isinstance(model, str | Path) else "model"
    return run_adapt(model, chosen, name=name, progress=Progress(quiet=quiet))


def adapt_each(
    model: Source,
    budgets: Sequence[str],
    *,
    also: Sequence[str] = (),
    output: str | Path | None = None,
    quiet: bool = True,
    **options: Any,
) -> Sweep:
    """One model for each of several budgets of one resource (`.models`, the loosest first) and their table (`.pareto`).

    `also` are budgets that hold for all of them. With `output` each model is written beside it, its budget in its name.
    """
    path = Path(output) if output is not None else None
    chosen = Options(budgets=(",".join(budgets), *also), output=path, **options)
    name = str(model) if isinstance(model, str | Path) else "model"
    return run_sweep(model, chosen, name=name, progress=Progress(quiet=quiet))


def train_elastic(
    model: Source,
    data: str,
    *,
    output: str | Path | None = None,
    quiet: bool = True,
    min_keep: float = 0.25,
    **options: Any,
) -> Elastic:
    """The model with weights that serve every width from `min_keep` on (`.model`), and the report (`.report`).

    `adapt` cuts any later budget from it without more training. With `output` both are written.
    """
    path = Path(output) if output is not None else None
    chosen = Options(budgets=(), output=path, data=data, min_keep=min_keep, **options)
    name = str(model) if isinstance(model, str | Path) else "model"
    return run_train_elastic(model, chosen, name=name, progress=Progress(quiet=quiet))


def prune(
    model: Source,
    *,
    keep: float | None = None,
    widths: Mapping[str, int] | None = None,
    exclude: Sequence[str] = (),
    only: Sequence[str] = (),
    renormalize: bool = False,
    shapes: Mapping[str, Shape] | None = None,
) -> Pruned:
    """The model (`.model`) with a share of every group kept, or at given widths, and the plan (`.plan`).

    `renormalize` also prunes channels that LayerNormalization and its like mix: they then normalize over those left.
    """
    return prune_model(
        model,
        keep=keep,
        widths=widths,
        exclude=tuple(exclude),
        only=tuple(only),
        renormalize=renormalize,
        shapes=shapes,
    )[0]


def measure(
    model: Source, *, target: str = "cpu", shapes: Mapping[str, Shape] | None = None, runs: int = 50
) -> Measurement:
    """The latency of a whole model on a target."""
    return measure_model(model, target=target, shapes=shapes, runs=runs)


def profile(
    model: Source,
    lut: str | Path,
    *,
    target: str = "cpu",
    shapes: Mapping[str, Shape] | None = None,
    check: int = 12,
    seed: int = 0,
) -> ProfileReport:
    """Fills a target's latency table, and says how good it is on unseen networks."""
    return profile_model(model, Path(lut), target, shapes, check, 0.1, seed, Progress(quiet=True))


def to_torch(model: Source, *, shapes: Mapping[str, Shape] | None = None) -> Any:
    """The model as an `nn.Module` whose `state_dict` has the ONNX names; UnsupportedOp when torch cannot run it."""
    from onnx_netadapt.passes.to_torch import to_torch as lowered

    return lowered(load(model, shapes=shapes))


def from_torch(module: Any, model: Source) -> onnx.ModelProto:
    """The model with the weights of the module that `to_torch` made of it; untouched weights stay the same bytes."""
    from onnx_netadapt.passes.to_torch import write_back

    return write_back(module, read_model(model))


def verify(
    original: Source,
    pruned: Source,
    plan: Mapping[str, Any],
    *,
    shapes: Mapping[str, Shape] | None = None,
) -> Verification:
    """The zeroing check of a pruned model, from its plan."""
    return verify_models(original, pruned, plan, shapes=shapes)
