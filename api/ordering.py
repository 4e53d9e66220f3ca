"""The coupled graph of a run with its units in nested order, and the statistics that the order was worked out from."""

from onnx_netadapt.ir.errors import BudgetError
from onnx_netadapt.network import Narrowing, check_prunable, why_whole
from onnx_netadapt.passes.branches import with_branches
from onnx_netadapt.passes.coupling import Coupling, couple
from onnx_netadapt.passes.gram import Statistics
from onnx_netadapt.passes.plain_layers import with_layers
from onnx_netadapt.run import Run, one_blas_thread

NO_BRANCH = (
    "--allow-depth: no residual branch of this model can go whole (what is added to a tensor x, made from x alone and "
    "of no other use), nor a layer whose output is of its input's shape: only widths change"
)
"""The warning when there is no depth to take out."""


def coupled(run: Run) -> Coupling:
    """The graph's coupled channels, and the branches that may go whole where depth is allowed.

    Raises BudgetError when there is nothing to prune.
    """
    with run.timed("analysis"):
        coupling = couple(run.graph, renormalize=run.options.renormalize)
        if run.depth:
            coupling = with_layers(with_branches(coupling))
            run.warnings += [NO_BRANCH] if run.options.allow_depth and not coupling.branches else []
    check_prunable(coupling)
    if not coupling.groups:
        raise BudgetError(
            f"there is nothing to prune in this model{why_whole(coupling)}; it costs {run.start.median_ms:.3f} ms as "
            "it is, and `inspect` shows every barrier"
        )
    return coupling


def ordered(run: Run) -> tuple[Narrowing, Statistics]:
    """The coupled graph with the nested order of its units, and the statistics that it was worked out from."""
    from onnx_netadapt.passes.gram import collect
    from onnx_netadapt.passes.importance import order

    coupling = coupled(run)
    # BLAS threads and ONNX Runtime's would spin beside each other
    with run.progress.phase("statistics of the original") as report, run.timed("statistics"), one_blas_thread():
        statistics = collect(coupling, run.batches, examples=len(run.calibration), progress=report)
        orders = order(coupling, statistics)
    run.warnings += list(getattr(statistics, "notes", ()))
    order_of = {name: found.order for name, found in orders.items()}
    curves = {name: found.error for name, found in orders.items()}
    amounts = {name: found.amount for name, found in orders.items()}
    return Narrowing(coupling, order_of, curves, amounts), statistics
