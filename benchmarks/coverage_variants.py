"""What other tools make of an exported model, for benchmarks/coverage.py: simplified, optimized, quantized, halved."""

from __future__ import annotations

import logging
import tempfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial
from pathlib import Path

import numpy as np
import onnx
import onnxruntime
from onnx_netadapt.ir import InputError

Feed = dict[str, np.ndarray]


def simplified(model: onnx.ModelProto, feed: Feed) -> onnx.ModelProto:
    """onnxsim's main job."""
    try:
        import onnxsim
    except ImportError as error:
        raise InputError("onnxsim is not installed: install it to have these rows") from error
    small: onnx.ModelProto = onnxsim.simplify(model)[0]
    return small


def optimized(model: onnx.ModelProto, feed: Feed, level: str) -> onnx.ModelProto:
    """What ONNX Runtime runs in the model's place, saved."""
    with tempfile.TemporaryDirectory() as folder:
        options = onnxruntime.SessionOptions()
        options.log_severity_level = 4
        options.graph_optimization_level = getattr(onnxruntime.GraphOptimizationLevel, f"ORT_ENABLE_{level}")
        options.optimized_model_filepath = str(Path(folder) / "model.onnx")
        onnxruntime.InferenceSession(model.SerializeToString(), options, providers=["CPUExecutionProvider"])
        return onnx.load(options.optimized_model_filepath)


class _Calibration:
    """One example, as ONNX Runtime's quantizer asks for it."""

    def __init__(self, feed: Feed) -> None:
        self.feeds = iter([feed])

    def get_next(self) -> Feed | None:
        return next(self.feeds, None)


def quantized(model: onnx.ModelProto, feed: Feed, form: str, *, per_channel: bool) -> onnx.ModelProto:
    """ONNX Runtime's static quantization, behind its own preparation."""
    from onnxruntime.quantization import QuantFormat, quantize_static
    from onnxruntime.quantization.shape_inference import quant_pre_process

    with _files(model) as (source, target):
        quant_pre_process(source, source, skip_symbolic_shape=True)
        quantize_static(
            source, target, _Calibration(feed), quant_format=getattr(QuantFormat, form), per_channel=per_channel
        )
        return onnx.load(target)


def dynamically_quantized(model: onnx.ModelProto, feed: Feed) -> onnx.ModelProto:
    """ONNX Runtime's dynamic quantization."""
    from onnxruntime.quantization import quantize_dynamic

    with _files(model) as (source, target):
        try:
            quantize_dynamic(source, target)
        except ValueError as error:  # it refuses a weight that two convolutions share
            raise InputError(f"ONNX Runtime cannot quantize the model: {error}") from error
        return onnx.load(target)


def halved(model: onnx.ModelProto, feed: Feed) -> onnx.ModelProto:
    """float16 inside, float32 outside, by ONNX Runtime's converter."""
    from onnxruntime.transformers.float16 import convert_float_to_float16

    half: onnx.ModelProto = convert_float_to_float16(model, keep_io_types=True)
    return half


@contextmanager
def _files(model: onnx.ModelProto) -> Iterator[tuple[str, str]]:
    """A file with the model and a place for another; the root logger is quiet meanwhile."""
    with tempfile.TemporaryDirectory() as folder:
        source, target = str(Path(folder) / "source.onnx"), str(Path(folder) / "target.onnx")
        onnx.save(model, source)
        logging.disable(logging.WARNING)
        try:
            yield source, target
        finally:
            logging.disable(logging.NOTSET)


VARIANTS: dict[str, Callable[[onnx.ModelProto, Feed], onnx.ModelProto]] = {
    "onnxsim": simplified,
    "ORT basic": partial(optimized, level="BASIC"),
    "ORT extended": partial(optimized, level="EXTENDED"),
    "ORT QDQ": partial(quantized, form="QDQ", per_channel=True),
    "ORT QOperator": partial(quantized, form="QOperator", per_channel=False),
    "ORT dynamic": dynamically_quantized,
    "float16": halved,
}
