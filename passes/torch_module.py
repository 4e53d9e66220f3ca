"""The nn.Module that `to_torch` makes; torch is imported when the first one is made.

1. torch forbids '.' in the names of parameters, so that inside the module 'a.b' is called 'w_a~1b' ('~' is '~0', as in
   JSON pointers). `state_dict`, `load_state_dict` and `weights` speak ONNX names.
2. Every tensor that is not tiny is a registered parameter or buffer and held once: the module keeps the model without
   the weights' numbers, and reads its tensors by attribute at each call, so that wrappers (DDP, FSDP,
   `functional_call`, parametrizations) can put others in their place.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cache
from typing import TYPE_CHECKING, Any

import onnx

from ..ir.errors import InputError, NetAdaptError
from ..ir.graph import Graph, Shape
from ..ir.load import reload
from ..ir.lowering import Program, bare_graph, build, held
from ..ir.ops.quant_torch import on_grid
from ..ir.ops.runtime import RANGES, as_tensor, carrier
from ..ir.ops.training import grid_of
from .lean import lean

if TYPE_CHECKING:
    from torch import nn

    Module = nn.Module
else:
    Module = object

Shapes = tuple[Shape, ...]


@cache
def module_class() -> Any:
    """The class of the modules: `LoweredModule` on top of nn.Module."""
    from torch import nn

    return type("LoweredModule", (LoweredModule, nn.Module), {"__module__": __name__, "__doc__": LoweredModule.__doc__})


def _empty() -> Any:
    """A module without anything, to be filled by `__setstate__`."""
    return module_class().__new__(module_class())


def escape(name: str) -> str:
    """The attribute name of a tensor."""
    return "w_" + name.replace("~", "~0").replace(".", "~1")


def unescape(name: str) -> str:
    """The tensor's name of an attribute; the opposite of `escape`."""
    return name.removeprefix("w_").replace("~1", ".").replace("~0", "~")


@dataclass(frozen=True, slots=True)
class Slot:
    """Where the program's constant `path` is: the module's attribute, and its grid where it is trained on one."""

    key: str
    path: str
    grid: tuple[int, int] | None


class LoweredModule(Module):
    """A graph in torch; see `onnx_netadapt.passes.to_torch.to_torch`.

    One program serves all input shapes where no computed size depends on them; else each set of shapes gets its own.
    """

    def __init__(self, graph: Graph, trainable: Iterable[str], frozen: Mapping[str, str]) -> None:
        import torch
        from torch import nn

        super().__init__()
        self.frozen = dict(frozen)
        self._program = build(graph, torch)
        self._programs: dict[Shapes, Program] = {}
        self._own_shapes = tuple(graph.shapes.get(port.name, ()) for port in graph.inputs)
        self._any_shape = _serves_any_shape(graph, self._program)
        self._texts: dict[str, Any] = {}
        chosen, constants, slots = frozenset(trainable), held(graph), []
        names = display_names(graph)
        for path in sorted(self._program.constants):
            value, name = as_tensor(constants[path].array(), torch), names[path]
            if not isinstance(value, torch.Tensor):
                self._texts[path] = value
            elif name in chosen:
                master = value if value.is_floating_point() else value.to(torch.float32)
                self.register_parameter(escape(name), nn.Parameter(master))
                slots.append(Slot(escape(name), path, grid_of(constants[path])))
            else:
                self.register_buffer(escape(name), value, persistent=value.is_floating_point())
                slots.append(Slot(escape(name), path, None))
        self._slots = tuple(slots)
        self.graph = lean(graph, self._program.constants)

    def weights(self) -> Iterator[tuple[str, nn.Parameter]]:
        """Trainable tensors by ONNX name."""
        for key, parameter in self._parameters.items():
            if parameter is not None:
                yield unescape(key), parameter

    def forward(self, *inputs: Any) -> Any:
        """The model's outputs in order (the tensor itself when there is one) for its inputs in order, or for one dict.

        Narrow floats are carried as float32 and wide unsigned integers as int64, in and out.
        """
        tensors = self._take(inputs)
        program = self._program_for(tensors)
        given = dict(self._texts)
        for slot in self._slots:
            given[slot.path] = self._value(slot)
        found = program.run(tensors, given)
        outputs = [_finish(value, port.dtype) for value, port in zip(found, self.graph.outputs, strict=True)]
        return outputs[0] if len(outputs) == 1 else tuple(outputs)

    def _value(self, slot: Slot) -> Any:
        import torch

        value = getattr(self, slot.key)
        return value if slot.grid is None else on_grid(value, slot.grid, torch)

    def _take(self, inputs: Sequence[Any]) -> list[Any]:
        ports = self.graph.inputs
        if len(inputs) == 1 and isinstance(inputs[0], Mapping):
            missing = [port.name for port in ports if port.name not in inputs[0]]
            if missing:
                raise InputError(f"the model needs the inputs {', '.join(missing)}; it got {', '.join(inputs[0])}")
            inputs = [inputs[0][port.name] for port in ports]
        if len(inputs) != len(ports):
            names = ", ".join(port.name for port in ports)
            raise InputError(f"the model has {len(ports)} inputs ({names}), it was given {len(inputs)}")
        return [_carried(value, port.dtype) for value, port in zip(inputs, ports, strict=True)]

    def _program_for(self, tensors: Sequence[Any]) -> Program:
        if self._any_shape:
            return self._program
        shapes = tuple(tuple(tensor.shape) if hasattr(tensor, "shape") else () for tensor in tensors)
        if shapes == self._own_shapes:
            return self._program
        if shapes not in self._programs:
            import torch

            # torch.compile leaves this to Python; a shape that was run once before is no break in its graph
            disable: Any = torch.compiler.disable
            self._programs[shapes] = disable(_program_at)(self.graph, shapes)
        return self._programs[shapes]

    def _save_to_state_dict(self, destination: Any, prefix: str, keep_vars: bool) -> None:
        inner: dict[str, Any] = {}
        super()._save_to_state_dict(inner, "", keep_vars)
        for key, value in inner.items():
            destination[prefix + unescape(key)] = value

    def _load_from_state_dict(
        self,
        state_dict: Any,
        prefix: str,
        local_metadata: Any,
        strict: bool,
        missing_keys: list[str],
        unexpected_keys: list[str],
        error_msgs: list[str],
    ) -> None:
        inner = {escape(key.removeprefix(prefix)): v for key, v in state_dict.items() if key.startswith(prefix)}
        missing: list[str] = []
        unexpected: list[str] = []
        super()._load_from_state_dict(inner, "", local_metadata, strict, missing, unexpected, error_msgs)
        missing_keys.extend(prefix + unescape(key) for key in missing)
        unexpected_keys.extend(prefix + unescape(key) for key in unexpected)

    def __reduce__(self) -> tuple[Any, ...]:
        # programs are functions made on the spot, which cannot be pickled; they are built again
        state = {key: v for key, v in self.__dict__.items() if key not in ("_program", "_programs")}
        return _empty, (), state

    def __setstate__(self, state: dict[str, Any]) -> None:
        import torch

        super().__setstate__(state)  # type: ignore[no-untyped-call]
        self._program = build(self.graph, torch)
        self._programs = {}


def display_names(graph: Graph) -> dict[str, str]:
    """What each constant is called, by its path: its own name; in a body, the path where the name is not its own."""
    found = held(graph)
    taken = Counter(constant.name for constant in found.values())
    return {
        path: path if path in graph.constants or taken[constant.name] > 1 else constant.name
        for path, constant in found.items()
    }


def _carried(value: Any, dtype: int) -> Any:
    """An input in the type that carries its elements; what is not a tensor (a sequence, nothing) as it is."""
    import torch

    if not isinstance(value, torch.Tensor) or dtype in (0, onnx.TensorProto.FLOAT, onnx.TensorProto.DOUBLE):
        return value
    return value.to(carrier(dtype, torch))


def _finish(value: Any, dtype: int) -> Any:
    """An output; quantized values that were carried as floats become integers."""
    import torch

    if dtype in RANGES and isinstance(value, torch.Tensor) and value.is_floating_point():
        return torch.round(value).to(carrier(dtype, torch))
    return value


def _used_values(graph: Graph, program: Program) -> dict[str, Any]:
    read = {name for step in program.steps for name in step.reads}
    return {name: graph.known[name].tolist() for name in read if name in graph.known}


def _serves_any_shape(graph: Graph, program: Program) -> bool:
    """Whether no computed size that the program uses changes when the open dimensions do."""
    if not any(None in port.dims for port in graph.inputs):
        return False
    used = _used_values(graph, program)
    if not used:
        return True
    larger = {
        port.name: tuple(
            size + 1 if dim is None else size for dim, size in zip(port.dims, graph.shapes[port.name], strict=True)
        )
        for port in graph.inputs
        if None in port.dims
    }
    try:
        other = reload(graph, larger)
    except NetAdaptError:
        return False
    return all(name in other.known and other.known[name].tolist() == value for name, value in used.items())


def _program_at(graph: Graph, shapes: Shapes) -> Program:
    """The program for other input shapes than those at which the graph was loaded; its outputs stay the graph's own.

    Where nothing can be inferred at them it is the one that reads all sizes from its tensors.
    """
    import torch

    opened = onnx.ModelProto()
    opened.CopyFrom(graph.model)
    wanted = {port.name: shape for port, shape in zip(graph.inputs, shapes, strict=True)}
    for value in opened.graph.input:
        for dim in value.type.tensor_type.shape.dim if value.name in wanted else ():
            dim.Clear()
    del opened.graph.value_info[:]
    for value in opened.graph.output:
        value.type.tensor_type.ClearField("shape")
    try:
        other = reload(replace(graph, model=opened), wanted)
    except NetAdaptError:
        other = replace(bare_graph(graph.model), dtypes=graph.dtypes)
    return build(replace(other, outputs=graph.outputs), torch)
