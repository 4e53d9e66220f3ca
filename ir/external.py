"""Large weights kept apart from the ModelProto: read when asked for, written one after the other, never held twice.

1. A *skeleton* is a ModelProto whose large initializers are placeholders: name, type and dims, without their numbers.
   Beside it stand the `Weights`: for each placeholder a `Lazy` array, which is made whenever somebody asks for it.
2. What a file says about its external data is checked before a byte is read: the data must lie in the model's folder
   (links followed), be there, and be long enough.
3. Only initializers of the main graph are kept apart, of types that lie in the file as numpy lays them out. Everything
   else (sub-graphs, attributes, packed 4-bit numbers, text) is small or rare, and is loaded.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np
import onnx
from numpy.typing import NDArray
from onnx import TensorProto, external_data_helper, helper, numpy_helper

from .errors import InputError

LARGE_BYTES = 1 << 20
"""Initializers of at least this size are kept apart in a skeleton."""

PAGE = 4096
"""Where a tensor may begin in a data file that is to be mapped into memory (onnx.proto: multiples of 4096)."""

_PLAIN = frozenset({
    TensorProto.FLOAT, TensorProto.DOUBLE, TensorProto.FLOAT16, TensorProto.BFLOAT16, TensorProto.INT8,
    TensorProto.UINT8, TensorProto.INT16, TensorProto.UINT16, TensorProto.INT32, TensorProto.UINT32, TensorProto.INT64,
    TensorProto.UINT64, TensorProto.BOOL,
})  # fmt: skip


@dataclass(frozen=True, slots=True)
class Lazy:
    """An array of a known shape and type that `make` makes anew at each call; nobody need keep it."""

    shape: tuple[int, ...]
    dtype: np.dtype[Any]
    make: Callable[[], NDArray[Any]]

    @property
    def nbytes(self) -> int:
        """The bytes of the array."""
        return int(np.prod(self.shape, dtype=np.int64)) * self.dtype.itemsize


Weights = Mapping[str, Lazy]


def is_external(tensor: TensorProto) -> bool:
    """Whether a tensor's numbers are elsewhere."""
    return bool(external_data_helper.uses_external_data(tensor))


def all_tensors(model: onnx.ModelProto) -> Iterator[TensorProto]:
    """Every tensor of a model: initializers, those of sub-graphs and functions, and attributes."""
    yield from external_data_helper._get_all_tensors(model)


def data_files(model: onnx.ModelProto, path: Path) -> list[Path]:
    """The files that hold the external data of a model file, whether they are there or not."""
    records = [tensor.external_data for tensor in all_tensors(model) if is_external(tensor)]
    locations = {entry.value for record in records for entry in record if entry.key == "location"}
    return [path.parent / location for location in sorted(locations)]


def fetch(model: onnx.ModelProto, path: Path, *, keep_apart: bool = False) -> dict[str, Lazy]:
    """Loads the external data of a model file into the model; with `keep_apart` the large ones become placeholders.

    Returns the weights of the placeholders. Raises InputError for data that is missing, too short, or outside the
    model's folder (rule 2).
    """
    folder = path.resolve().parent
    top = list(model.graph.initializer) if keep_apart else []  # protobuf's views are the same objects while they live
    apart = {id(tensor) for tensor in top}
    found = {}
    for tensor in all_tensors(model):
        if not is_external(tensor):
            continue
        file, offset, length = _record(tensor, path, folder)
        if id(tensor) in apart and tensor.data_type in _PLAIN and length >= LARGE_BYTES:
            found[tensor.name] = _mapped(file, offset, tensor)
            continue
        with file.open("rb") as stream:
            stream.seek(offset)
            tensor.raw_data = stream.read(length)
        tensor.data_location = TensorProto.DEFAULT
        del tensor.external_data[:]
    return found


def _record(tensor: TensorProto, path: Path, folder: Path) -> tuple[Path, int, int]:
    """The file, offset and length of a tensor's data (rule 2)."""
    where = {entry.key: entry.value for entry in tensor.external_data}
    location, name = where.get("location", ""), f"tensor '{tensor.name}' of {path}"
    file = (folder / location).resolve()
    if not file.is_relative_to(folder):
        raise InputError(
            f"{name} points to external data outside the model's folder ('{location}'); "
            "this is refused: put the data file beside the model"
        )
    if not file.is_file():
        raise InputError(f"{name} keeps its data in '{location}', which is missing; put that file beside the model")
    needed = _bytes_of(tensor)
    try:
        offset = int(where.get("offset") or 0)
        length = int(where.get("length") or 0) or (file.stat().st_size - offset if needed is None else needed)
    except ValueError as error:
        raise InputError(
            f"{name}: the record of its external data holds no numbers ({error}); export it again"
        ) from error
    if offset < 0 or length < 0 or offset + length > file.stat().st_size or (needed is not None and length != needed):
        raise InputError(
            f"external data of {name} in '{location}' cannot be read: it should be {needed or length:,} bytes at "
            f"{offset:,}, the record says {length:,} and the file has {file.stat().st_size:,}; it is cut off, or "
            "belongs to another model: copy it again"
        )
    return file, offset, length


def _bytes_of(tensor: TensorProto) -> int | None:
    """What a tensor's numbers take in a file; None for packed types."""
    if tensor.data_type not in _PLAIN:
        return None
    return int(np.prod(tensor.dims, dtype=np.int64)) * helper.tensor_dtype_to_np_dtype(tensor.data_type).itemsize


def _mapped(file: Path, offset: int, tensor: TensorProto) -> Lazy:
    shape, dtype = tuple(tensor.dims), np.dtype(helper.tensor_dtype_to_np_dtype(tensor.data_type))
    return Lazy(shape, dtype, lambda: np.memmap(file, dtype, "r", offset, shape))


def placeholder(tensor: TensorProto, shape: tuple[int, ...] | None = None) -> TensorProto:
    """The tensor without its numbers, for a skeleton; `shape` where it is another."""
    new = TensorProto(name=tensor.name, data_type=tensor.data_type, doc_string=tensor.doc_string)
    new.dims.extend(tensor.dims if shape is None else shape)
    new.data_location = TensorProto.EXTERNAL
    return new


def split(model: onnx.ModelProto, least: int = LARGE_BYTES) -> tuple[onnx.ModelProto, dict[str, Lazy]]:
    """The skeleton of a model and its weights of at least `least` bytes, which go on living in the model."""
    skeleton, weights = onnx.ModelProto(), {}
    copy_fields(model, skeleton, but="graph")
    copy_fields(model.graph, skeleton.graph, but="initializer")
    for tensor in model.graph.initializer:
        size = _bytes_of(tensor)
        if is_external(tensor) or size is None or size < least:
            skeleton.graph.initializer.append(tensor)
        else:
            skeleton.graph.initializer.append(placeholder(tensor))
            weights[tensor.name] = _held(tensor)
    return skeleton, weights


def copy_fields(source: Any, target: Any, *, but: str) -> None:
    """Copies all fields of a message except one."""
    for item, value in source.ListFields():
        if item.name == but:
            continue
        if isinstance(value, str | bytes | int | float):
            setattr(target, item.name, value)
        elif hasattr(value, "CopyFrom"):
            getattr(target, item.name).CopyFrom(value)
        else:
            getattr(target, item.name).extend(value)


def _held(tensor: TensorProto) -> Lazy:
    dtype = np.dtype(helper.tensor_dtype_to_np_dtype(tensor.data_type))
    return Lazy(tuple(tensor.dims), dtype, lambda: numpy_helper.to_array(tensor))


def byte_size(model: onnx.ModelProto, weights: Weights | None = None) -> int:
    """The bytes of a model with its weights, counted without writing it out (protobuf's own count makes copies)."""
    skeleton, held = split(model)
    return int(skeleton.ByteSize()) + sum(weight.nbytes for weight in (*held.values(), *(weights or {}).values()))


def write_data(skeleton: onnx.ModelProto, weights: Weights, stream: BinaryIO, location: str) -> None:
    """Writes the weights of a skeleton one after the other, and says in its placeholders where they are."""
    for tensor in skeleton.graph.initializer:
        if tensor.name not in weights:
            continue
        stream.write(b"\0" * (-stream.tell() % PAGE))
        offset = stream.tell()
        array = np.ascontiguousarray(weights[tensor.name].make())
        stream.write(array.reshape(-1).view(np.uint8).data)
        del tensor.external_data[:]
        for key, value in (("location", location), ("offset", offset), ("length", array.nbytes)):
            tensor.external_data.add(key=key, value=str(value))
