"""Where a model runs: execution provider, threads and options, as one value that opens sessions."""

import os
import platform
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import onnx

from ..ir.errors import InputError, TargetError

if TYPE_CHECKING:
    from onnxruntime import InferenceSession

Model = bytes | onnx.ModelProto | str | Path
Options = tuple[tuple[str, str], ...]

_SHORT_NAMES = {
    "cpu": "CPUExecutionProvider",
    "xnnpack": "XnnpackExecutionProvider",
    "openvino": "OpenVINOExecutionProvider",
    "cuda": "CUDAExecutionProvider",
    "tensorrt": "TensorrtExecutionProvider",
    "coreml": "CoreMLExecutionProvider",
    "dml": "DmlExecutionProvider",
    "qnn": "QNNExecutionProvider",
}
_CPU = _SHORT_NAMES["cpu"]
_SILENT = 4  # errors come as exceptions; printing them as well would break progress lines
_EXAMPLE = "write for example 'cpu', 'cpu:threads=4' or 'openvino:device_type=CPU,threads=2'"


@dataclass(frozen=True, slots=True)
class Target:
    """One execution provider with its options; the same target opens the same kind of session everywhere.

    `session_options` are ONNX Runtime session configuration entries (names with a dot, such as
    `session.intra_op.allow_spinning`), set as a user sets them in production.
    """

    provider: str = _CPU
    threads: int = 1
    provider_options: Options = ()
    session_options: Options = ()

    @staticmethod
    def parse(text: str) -> "Target":
        """The target that `text` names: `provider[:option=value,…]`; bad text raises InputError."""
        name, _, rest = text.strip().partition(":")
        provider = _SHORT_NAMES.get(name.lower(), name)
        if not provider.endswith("ExecutionProvider"):
            raise InputError(
                f"target '{text}': unknown provider '{name}'; known: {', '.join(_SHORT_NAMES)}; {_EXAMPLE}"
            )
        options = _parse_options(text, rest)
        threads = _parse_threads(text, options.pop("threads", "1"))
        session = {k: v for k, v in options.items() if "." in k}
        own = {k: v for k, v in options.items() if "." not in k}
        if own and provider == _CPU:
            raise InputError(f"target '{text}': the cpu provider has no option '{next(iter(own))}'; {_EXAMPLE}")
        return Target(provider, threads, tuple(sorted(own.items())), tuple(sorted(session.items())))

    def __str__(self) -> str:
        short = next((k for k, v in _SHORT_NAMES.items() if v == self.provider), self.provider)
        options = [f"threads={self.threads}", *(f"{k}={v}" for k, v in self.provider_options + self.session_options)]
        return f"{short}:{','.join(options)}"

    def session(
        self,
        model: Model,
        *,
        profile_prefix: str | None = None,
        optimized_path: str | None = None,
        fusions_only: bool = False,
    ) -> "InferenceSession":
        """An ONNX Runtime session of `model` here: sequential, all optimizations, this target's threads.

        `fusions_only` stops before the layout optimizations, to see what was fused (used by `units`).
        Raises TargetError if the provider is absent, was replaced by another, or cannot load the model.
        """
        import onnxruntime as ort

        ort.set_default_logger_severity(_SILENT)
        if self.provider not in ort.get_available_providers():
            have = ", ".join(ort.get_available_providers())
            raise TargetError(f"provider {self.provider} is not in this onnxruntime {ort.__version__}; it has: {have}")
        options = self._options(profile_prefix, optimized_path, fusions_only)
        source = model.SerializeToString() if isinstance(model, onnx.ModelProto) else model
        source = str(source) if isinstance(source, Path) else source
        providers = [(self.provider, dict(self.provider_options))]
        try:
            session = ort.InferenceSession(source, options, providers=providers)
        except Exception as error:  # onnxruntime has no common error class
            raise TargetError(f"{self} cannot load the model: {_first_line(error)}") from error
        if session.get_providers()[0] != self.provider:
            raise TargetError(
                f"{self.provider} was silently replaced by {session.get_providers()[0]}: check its options"
            )
        return session

    def _options(self, profile_prefix: str | None, optimized_path: str | None, fusions_only: bool) -> Any:
        import onnxruntime as ort

        options = ort.SessionOptions()
        options.log_severity_level = _SILENT
        options.execution_mode = ort.ExecutionMode.ORT_SEQUENTIAL
        level = ort.GraphOptimizationLevel
        options.graph_optimization_level = level.ORT_ENABLE_EXTENDED if fusions_only else level.ORT_ENABLE_ALL
        options.intra_op_num_threads = self.threads
        options.inter_op_num_threads = 1
        for key, value in self.session_options:
            options.add_session_config_entry(key, value)
        if profile_prefix is not None:
            options.enable_profiling = True
            options.profile_file_prefix = profile_prefix
        if optimized_path is not None:
            options.optimized_model_filepath = optimized_path
        return options

    def fingerprint(self) -> dict[str, Any]:
        """What measured times depend on besides the model: runtime, provider, options, threads, processor."""
        import onnxruntime as ort

        return {
            "onnxruntime": ort.__version__,
            "provider": self.provider,
            "provider_options": dict(self.provider_options),
            "session_options": dict(self.session_options),
            "threads": self.threads,
            **_processor(),
        }


def _parse_options(text: str, rest: str) -> dict[str, str]:
    options: dict[str, str] = {}
    for part in filter(None, (p.strip() for p in rest.split(","))):
        key, equals, value = (s.strip() for s in part.partition("="))
        if not (key and equals and value):
            raise InputError(f"target '{text}': '{part}' is not option=value; {_EXAMPLE}")
        if key in options:
            raise InputError(f"target '{text}': option '{key}' is given twice")
        options[key] = value
    return options


def _parse_threads(text: str, value: str) -> int:
    limit = 4 * (os.cpu_count() or 1)
    if not value.isascii() or not value.isdigit() or not 1 <= int(value) <= limit:
        raise InputError(f"target '{text}': threads={value} must be a whole number from 1 to {limit} on this machine")
    return int(value)


def _first_line(error: Exception) -> str:
    return (str(error).splitlines() or [type(error).__name__])[0]


def _processor() -> dict[str, Any]:
    """Architecture, model and instruction-set flags of this machine's processor, as far as the system tells."""
    fields = _first_cpuinfo_block()
    flags = (fields.get("flags") or fields.get("Features") or "").split()
    model = [fields.get(k, "") for k in ("model name", "cpu family", "model", "CPU implementer", "CPU part")]
    name = " / ".join(filter(None, model)) or platform.processor() or platform.machine()
    return {"machine": f"{platform.system()} {platform.machine()}", "cpu": name, "cpu_flags": " ".join(sorted(flags))}


def _first_cpuinfo_block() -> Mapping[str, str]:
    try:
        text = Path("/proc/cpuinfo").read_text(encoding="utf-8", errors="replace")
    except OSError:
        return {}
    pairs = (line.split(":", 1) for line in text.split("\n\n")[0].splitlines() if ":" in line)
    return {key.strip(): value.strip() for key, value in pairs}
