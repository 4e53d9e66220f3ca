"""What makes a file elastic: the order of its units, written into the model's own metadata by `train-elastic`.

1. The record lies in `metadata_props` under KEY, as JSON, so that a file and its order cannot be separated.
   docs/files.md has the form.
2. The order means something for these weights of this graph alone: `digest` tells when either was changed afterwards.
   Names, doc strings and other metadata may change.
3. A model that is cut out of an elastic one has no record: it is not elastic itself.
"""

import hashlib
import json
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import onnx
from numpy.typing import NDArray
from onnx_netadapt.ir.errors import InputError
from onnx_netadapt.ir.graph import Graph
from onnx_netadapt.network import Narrowing
from onnx_netadapt.passes.coupling import Coupling

KEY = "onnx_netadapt.elastic"
SCHEMA_VERSION = 1
AGAIN = "train it again with `onnx-netadapt train-elastic`, or go on with --no-elastic as with any other model"


@dataclass(frozen=True, slots=True)
class Record:
    """The nested order of every group's units (kept first to removed first), the least trained width, and the error
    that each width of a group costs (units + 1 numbers), from which whole networks are proposed.
    """

    order: Mapping[str, NDArray[np.int64]]
    least: Mapping[str, int]
    curves: Mapping[str, NDArray[np.float64]]
    renormalize: bool
    digest: str

    def as_json(self) -> dict[str, Any]:
        """The record as JSON data."""
        groups = {
            name: {
                "order": order.tolist(),
                "least": self.least[name],
                "error": [float(f"{value:.6g}") for value in self.curves[name]],
            }
            for name, order in self.order.items()
        }
        return {
            "schema_version": SCHEMA_VERSION,
            "digest": self.digest,
            "renormalize": self.renormalize,
            "groups": groups,
        }


def digest(graph: Graph) -> str:
    """SHA-256 of what a model computes: its nodes, weights, inputs and outputs (rule 2)."""
    found = hashlib.sha256()
    for ports in (graph.inputs, graph.outputs):
        found.update(repr([(port.name, port.dims, port.dtype) for port in ports]).encode())
    for node in graph.model.graph.node:
        bare = onnx.NodeProto()
        bare.CopyFrom(node)
        for name in ("name", "doc_string", "metadata_props"):
            bare.ClearField(name)
        found.update(bare.SerializeToString(deterministic=True))
    for name in sorted(graph.constants):
        array = graph.constants[name].array()
        found.update(repr((name, str(array.dtype), array.shape)).encode())
        found.update(np.ascontiguousarray(array).tobytes())
    return found.hexdigest()


def read_record(graph: Graph) -> Record | None:
    """The record of a model; None without one. InputError when it cannot be read or is of another model (rule 2)."""
    text = next((entry.value for entry in graph.model.metadata_props if entry.key == KEY), None)
    if text is None:
        return None
    try:
        record, version = _parsed(json.loads(text))
    except (ValueError, TypeError, KeyError, AttributeError) as error:
        raise InputError(f"the model's elastic record ('{KEY}') cannot be read ({error!r}); {AGAIN}") from error
    if version != SCHEMA_VERSION:
        raise InputError(
            f"the model's elastic record has schema {version}, this version reads {SCHEMA_VERSION}; {AGAIN}"
        )
    if record.digest != digest(graph):
        raise InputError(
            "the model was changed after it was trained to be elastic: its nodes, weights, inputs or outputs are not "
            f"those that its record was made for (sha256 {digest(graph)[:12]}, recorded {record.digest[:12]}); {AGAIN}"
        )
    return record


def _parsed(told: Mapping[str, Any]) -> tuple[Record, int]:
    groups = told["groups"].items()
    record = Record(
        order={name: np.array(group["order"], dtype=np.int64) for name, group in groups},
        least={name: int(group["least"]) for name, group in groups},
        curves={name: np.array(group["error"], dtype=np.float64) for name, group in groups},
        renormalize=bool(told["renormalize"]),
        digest=str(told["digest"]),
    )
    return record, int(told["schema_version"])


def wanted_record(graph: Graph, elastic: bool | None) -> Record | None:
    """The record of a model where it is to be used: `elastic` is what the user says, None for nothing.

    InputError when it is asked for and there is none, or as `read_record`.
    """
    record = None if elastic is False else read_record(graph)
    if record is None and elastic:
        raise InputError("--elastic: the model has no elastic weights; make them with `onnx-netadapt train-elastic`")
    return record


def narrowing_of(record: Record, coupling: Coupling) -> Narrowing:
    """The coupled graph in the order that it was trained in; InputError when the groups are not those of the record."""
    _check_groups(record, coupling)
    return Narrowing(coupling, record.order, record.curves, least=record.least)


def _check_groups(record: Record, coupling: Coupling) -> None:
    """Raises InputError when the groups are not those of the record, as with other input shapes."""
    found = {group.id: group.units for group in coupling.groups}
    wanted = {name: len(order) for name, order in record.order.items()}
    different = sorted(name for name in found.keys() | wanted.keys() if found.get(name) != wanted.get(name))
    if different:
        name = different[0]
        raise InputError(
            f"the model's elastic record has {wanted.get(name, 'no')} units for group {name}, and at these input "
            f"shapes there are {found.get(name, 'none')} ({len(different)} groups differ); give the --shape that it "
            "was trained with"
        )


def with_record(model: onnx.ModelProto, record: Record) -> onnx.ModelProto:
    """A copy of the model with the record in its metadata."""
    found = onnx.ModelProto()
    found.CopyFrom(without_record(model))
    found.metadata_props.add(key=KEY, value=json.dumps(record.as_json(), separators=(",", ":")))
    return found


def without_record(model: onnx.ModelProto) -> onnx.ModelProto:
    """The model without a record (rule 3): a copy where it has one."""
    if all(entry.key != KEY for entry in model.metadata_props):
        return model
    found = onnx.ModelProto()
    found.CopyFrom(model)
    kept = [entry for entry in found.metadata_props if entry.key != KEY]
    del found.metadata_props[:]
    found.metadata_props.extend(kept)
    return found
