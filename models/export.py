"""Torch networks with seeded weights, and ONNX models made from them by either of torch's exporters.

The weights are random but behave like trained ones where it matters to a tool that rewrites graphs:

1. every normalisation has a scale and statistics of its own, so that folding or dropping one shows in the output;
2. BatchNorm's statistics come from what really arrives there, so that deep networks neither explode nor fade;
3. biases are either all different, or all zero. Zero is what most networks start from, and TorchScript then writes
   ONE initializer for many nodes (BatchNorm's shift and mean are zero as well, or folding would give every convolution
   a bias of its own).
"""

from __future__ import annotations

import logging
import warnings
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from io import BytesIO
from typing import TYPE_CHECKING, Any, Literal

import numpy as np
import onnx

from ..ir.errors import InputError
from .spec import Architecture

if TYPE_CHECKING:
    import torch
    from torch import nn

Exporter = Literal["torchscript", "dynamo"]


def export(
    architecture: Architecture,
    *,
    exporter: Exporter = "torchscript",
    opset: int = 17,
    distinct_biases: bool = True,
    dynamic_batch: bool = False,
    seed: int = 0,
) -> onnx.ModelProto:
    """The network as an ONNX model: `to_onnx(materialize(architecture))`. The same arguments give the same weights."""
    module = materialize(architecture, distinct_biases=distinct_biases, seed=seed)
    return to_onnx(module, architecture, exporter=exporter, opset=opset, dynamic_batch=dynamic_batch)


def materialize(architecture: Architecture, *, distinct_biases: bool = True, seed: int = 0) -> nn.Module:
    """The network in eval mode with seeded weights, as the module docstring says; torch's random state stays as it was.

    Runs the network once, on its example inputs.
    """
    import torch

    with torch.random.fork_rng(devices=[]), torch.no_grad():
        torch.manual_seed(seed)
        module = architecture.build().eval()
        _randomize(module, distinct_biases=distinct_biases)
        _calibrate(module, architecture.example_inputs(seed=seed), centred=distinct_biases)
    return module


def run_torch(module: nn.Module, inputs: Mapping[str, np.ndarray]) -> list[np.ndarray]:
    """The outputs of `module` for inputs given in its own order, as arrays."""
    import torch

    with torch.no_grad():
        outputs = module(*(torch.from_numpy(x) for x in inputs.values()))
    return [y.numpy() for y in (outputs if isinstance(outputs, tuple) else (outputs,))]


def to_onnx(
    module: nn.Module,
    architecture: Architecture,
    *,
    exporter: Exporter = "torchscript",
    opset: int = 17,
    dynamic_batch: bool = False,
) -> onnx.ModelProto:
    """`module` as an ONNX model with the input and output names of `architecture`, traced at the shapes of its inputs.

    `dynamic_batch` leaves the first axis of every input open (and traces two samples, because the exporters take a
    batch of one for a constant). "torchscript" writes opsets 7 to 20, "dynamo" 18 and later, and needs onnxscript.
    Raises `InputError` for another exporter, or where the exporter wrote another opset than asked for; what an exporter
    cannot do otherwise it raises itself.
    """
    import torch

    if exporter not in _EXPORTERS:
        raise InputError(f"no exporter '{exporter}' for '{architecture.name}': choose one of {', '.join(_EXPORTERS)}")
    batch = 2 if dynamic_batch else None
    example = tuple(torch.from_numpy(x) for x in architecture.example_inputs(batch=batch).values())
    with _quiet_exporters():
        model = _EXPORTERS[exporter](module, example, architecture, opset, dynamic_batch)
    written = {entry.domain: entry.version for entry in model.opset_import}[""]
    if written != opset:  # the newer exporter says nothing when it cannot go down
        where = f"'{architecture.name}' through '{exporter}'"
        raise InputError(f"{where} came out at opset {written}, not {opset}: ask for {written} or the other exporter")
    return model


def _torchscript(
    module: nn.Module, example: tuple[torch.Tensor, ...], architecture: Architecture, opset: int, dynamic_batch: bool
) -> onnx.ModelProto:
    import torch

    names = (*architecture.inputs, *architecture.outputs)
    axes = {name: {0: "batch"} for name in names} if dynamic_batch else None
    file = BytesIO()
    torch.onnx.export(
        module,
        example,
        file,  # type: ignore[arg-type]  # the exporter takes any binary stream, its annotation says paths only
        dynamo=False,
        opset_version=opset,
        input_names=list(architecture.inputs),
        output_names=list(architecture.outputs),
        dynamic_axes=axes,
    )
    return onnx.load_from_string(file.getvalue())


def _dynamo(
    module: nn.Module, example: tuple[torch.Tensor, ...], architecture: Architecture, opset: int, dynamic_batch: bool
) -> onnx.ModelProto:
    import torch

    shapes = tuple({0: torch.export.Dim("batch")} for _ in example) if dynamic_batch else None
    program = torch.onnx.export(
        module,
        example,
        dynamo=True,
        verbose=False,
        opset_version=opset,
        input_names=list(architecture.inputs),
        output_names=list(architecture.outputs),
        dynamic_shapes=shapes,
    )
    if program is None:
        raise RuntimeError(f"torch.onnx.export gave nothing for '{architecture.name}' at opset {opset}")
    return program.model_proto


_EXPORTERS: Mapping[str, Callable[..., onnx.ModelProto]] = {"torchscript": _torchscript, "dynamo": _dynamo}


def _randomize(module: nn.Module, *, distinct_biases: bool) -> None:
    from torch import nn

    for layer in module.modules():
        for name, parameter in layer.named_parameters(recurse=False):
            if name.startswith("bias"):
                parameter.normal_(0.0, 0.1) if distinct_biases else parameter.zero_()
            elif name == "layer_scale" or (name == "weight" and parameter.dim() == 1):
                parameter.uniform_(0.5, 1.5)
            elif isinstance(layer, nn.modules.conv._ConvNd):
                parameter.mul_(6**0.5)  # torch draws with variance 1 / (3 fan_in); 2 / fan_in survives a ReLU
            elif isinstance(layer, nn.Linear):
                parameter.mul_(3**0.5)


def _calibrate(module: nn.Module, inputs: Mapping[str, np.ndarray], *, centred: bool) -> None:
    from torch import nn

    layers = [m for m in module.modules() if isinstance(m, nn.modules.batchnorm._BatchNorm)]
    handles = [layer.register_forward_pre_hook(_measure_centred if centred else _measure) for layer in layers]
    if layers:
        run_torch(module, inputs)
    for handle in handles:
        handle.remove()


def _measure(layer: Any, arguments: tuple[torch.Tensor, ...], *, centred: bool = False) -> None:
    import torch

    (x,) = arguments  # (n, c, …)
    axes = [axis for axis in range(x.dim()) if axis != 1]
    mean = x.mean(axes) if centred else torch.zeros(x.shape[1])
    spread = (x.square().mean(axes) - mean.square()).clamp(min=0)
    variance = (spread + x.square().mean()) / 2  # shrunk towards the whole map's: one channel may have a single value
    layer.running_var.copy_(variance * torch.empty_like(variance).uniform_(0.5, 2.0))
    layer.running_mean.copy_(mean + 0.3 * variance.sqrt() * torch.randn_like(mean) if centred else mean)


def _measure_centred(layer: Any, arguments: tuple[torch.Tensor, ...]) -> None:
    _measure(layer, arguments, centred=True)


_CHATTER: tuple[tuple[str, type[Warning]], ...] = (
    (r"You are using the legacy TorchScript-based ONNX export", DeprecationWarning),
    (r"The feature will be removed", DeprecationWarning),
    (r"Exporting a model to ONNX with a batch_size other than 1", UserWarning),
    (r"Constant folding - unsupported opset version", UserWarning),  # below opset 9
    (r"Setting 'keep_initializers_as_inputs=False' for opset version", UserWarning),  # below opset 9
    (r"You are trying to export the model with onnx:(Resize|Upsample)", UserWarning),  # below opset 11
    (r"This model contains a squeeze operation", UserWarning),  # below opset 11
    (r"`isinstance\(treespec, LeafSpec\)` is deprecated", FutureWarning),
    (r"The tensor attributes? .*_flat_weights", UserWarning),  # LSTM and GRU under torch.export
    (r"_check_is_size will be removed", FutureWarning),
    (r"The \.grad attribute of a Tensor that is not a leaf", UserWarning),  # its loop over an LSTM's steps
    (r"# The axis name: batch will not be used", UserWarning),  # several inputs with the same open axis
)


@contextmanager
def _quiet_exporters() -> Iterator[None]:
    """Silences what torch's exporters say about themselves; everything else still warns."""
    from torch.jit._trace import TracerWarning

    registry = logging.getLogger("torch.onnx._internal.exporter._registration")
    registry.addFilter(_not_torchvision)
    try:
        with warnings.catch_warnings():
            warnings.filterwarnings("ignore", category=TracerWarning)
            for message, category in _CHATTER:
                warnings.filterwarnings("ignore", message, category)
            yield
    finally:
        registry.removeFilter(_not_torchvision)


def _not_torchvision(record: logging.LogRecord) -> bool:
    return "torchvision is not installed" not in record.getMessage()
