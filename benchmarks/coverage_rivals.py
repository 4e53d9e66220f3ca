"""What onnxsim and Torch-Pruning remove at a ratio of 0.5, for benchmarks/coverage.py.

    python benchmarks/coverage_rivals.py onnxsim|torch-pruning NAME    one rival, one network; prints one line of JSON

A process of its own, because rivals may run for ever. Both are measured as we are: elements of the weights in the ONNX
file, which ONNX Runtime must run. Torch-Pruning is told which layers the outputs come from (it prunes classes
otherwise), and is checked as we are: the same channels, set to zero where they are read.
"""

from __future__ import annotations

import copy
import json
import sys
import warnings
from typing import Any

import numpy as np
import onnx
from onnx_netadapt.ir import load
from onnx_netadapt.models.architectures import ARCHITECTURES
from onnx_netadapt.models.export import export, materialize, to_onnx
from onnx_netadapt.models.micro import MICRO_NETS
from onnx_netadapt.models.spec import Architecture
from onnx_netadapt.passes.equivalence import run_plain

NETWORKS: dict[str, Architecture] = {**ARCHITECTURES, **{f"micro/{name}": net for name, net in MICRO_NETS.items()}}
"""The networks of `models/` by name; a few micro-nets have the name of a larger one."""

RATIO = 0.5


def elements(model: onnx.ModelProto) -> int:
    """Numbers in the initializers and Constant nodes of a model, integers that hold sizes left out."""
    graph = load(model)
    return sum(c.size for c in graph.constants.values() if c.proto.data_type != onnx.TensorProto.INT64)


def by_onnxsim(architecture: Architecture) -> dict[str, Any]:
    """With one shared zero bias, as exported from a fresh network; where that fails, with biases of their own too."""
    import onnxsim

    found: dict[str, Any] = {}
    for distinct in (False, True):
        model = export(architecture, opset=17, distinct_biases=distinct)
        before = elements(model)
        try:
            small = onnxsim.apply_structured_pruning(model, sparsity=RATIO)
            run_plain(small, [architecture.example_inputs(seed=3)], optimize=True)
        except Exception as error:
            found.setdefault("error", type(error).__name__)
            continue
        return {**found, "removed": 1 - elements(small) / before}
    return found


def by_torch_pruning(architecture: Architecture) -> dict[str, Any]:
    """Its recommended pruner on the module; `difference` where its result can be checked."""
    import torch
    import torch_pruning

    module = materialize(architecture, distinct_biases=True, seed=0)
    inputs = tuple(torch.from_numpy(array) for array in architecture.example_inputs(seed=3).values())
    before = elements(to_onnx(module, architecture, opset=17))
    reference = copy.deepcopy(module)
    pruner = torch_pruning.pruner.BasePruner(
        module,
        inputs,
        importance=torch_pruning.importance.MagnitudeImportance(p=2),
        pruning_ratio=RATIO,
        ignored_layers=_output_layers(module, inputs),
    )
    known = _prune_and_zero(pruner, module, reference)
    with torch.no_grad():
        have, want = (_arrays(net(*inputs)) for net in (module, reference))
    difference = max(_apart(a, b) for a, b in zip(want, have, strict=True))
    removed = 1 - elements(to_onnx(module, architecture, opset=17)) / before
    return {"removed": removed} | ({"difference": difference} if known else {})


def _arrays(outputs: Any) -> list[np.ndarray]:
    return [y.numpy() for y in (outputs if isinstance(outputs, tuple) else (outputs,))]


def _apart(want: np.ndarray, have: np.ndarray) -> float:
    if want.shape != have.shape:
        return float("inf")
    return float(np.abs(want - have).max() / (np.abs(want).max() or 1.0))


def _output_layers(module: Any, inputs: tuple[Any, ...]) -> list[Any]:
    """The convolutions and matrix products from which the outputs come without another between (found by autograd)."""
    import torch

    layers = [m for m in module.modules() if isinstance(m, torch.nn.Linear | torch.nn.modules.conv._ConvNd)]
    made: dict[Any, Any] = {}
    hooks = [
        layer.register_forward_hook(lambda layer, _, output: made.__setitem__(output.grad_fn, layer))
        for layer in layers
    ]
    outputs = module(*inputs)
    for hook in hooks:
        hook.remove()
    todo = [y.grad_fn for y in (outputs if isinstance(outputs, tuple) else (outputs,))]
    seen, found = set(todo), []
    while todo:
        function = todo.pop()
        if function in made:
            found.append(made[function])
            continue
        for before, _ in function.next_functions:
            if before is not None and before not in seen:
                seen.add(before)
                todo.append(before)
    return found


def _prune_and_zero(pruner: Any, module: Any, reference: Any) -> bool:
    """Prunes, and sets the same channels of the reference to zero where they are read.

    False where grouped convolutions read them: which columns those are is the rival's own secret.
    """
    import torch

    names = {layer: name for name, layer in module.named_modules()}
    left: dict[str, torch.Tensor] = {}
    known = True
    for group in pruner.step(interactive=True):
        for dependency, channels in group:
            layer = dependency.target.module
            if dependency.handler.__name__ != "prune_in_channels":
                continue
            if not isinstance(layer, torch.nn.Linear | torch.nn.modules.conv._ConvNd):
                continue
            groups = getattr(layer, "groups", 1)
            if groups > 1:
                known = known and groups == layer.in_channels
                continue
            axis = 0 if getattr(layer, "transposed", False) else 1
            name = names[layer]
            weight = reference.get_submodule(name).weight
            now = left.setdefault(name, torch.arange(weight.shape[axis]))  # the channels that are there still
            gone = torch.as_tensor(channels)
            with torch.no_grad():
                weight.index_fill_(axis, now[gone], 0.0)
            stay = torch.ones(len(now), dtype=torch.bool)
            stay[gone] = False
            left[name] = now[stay]
        group.prune()
    return known


RIVALS = {"onnxsim": by_onnxsim, "torch-pruning": by_torch_pruning}


def main() -> None:
    rival, name = sys.argv[1:]
    warnings.simplefilter("ignore")
    try:
        found = RIVALS[rival](NETWORKS[name])
    except Exception as error:
        found = {"error": type(error).__name__}
    print(json.dumps(found))


if __name__ == "__main__":
    main()
