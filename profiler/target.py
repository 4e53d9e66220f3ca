"""Where a model runs: execution provider, threads and options, as one value that opens sessions."""

import contextlib
import os
import platform
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
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
_THREADS_OPTION = {"OpenVINOExecutionProvider": "num_of_threads", "XnnpackExecutionProvider": "intra_op_num_threads"}
"""Providers with threads of their own, and the provider option that counts them."""

_ON_CALLER = (_CPU, "OpenVINOExecutionProvider")
"""Providers that do all work on the calling thread when they have one thread and the processor to run on."""

_SYNCHRONOUS = (*_ON_CALLER, "XnnpackExecutionProvider")
"""Providers that come back from a node when it is done, if they have the processor to run on."""

_NEEDS = {"DmlExecutionProvider": {"enable_mem_pattern": "0"}}
"""Session attributes without which a provider does not work (its documentation says so)."""

_QUIET_POOL = {"session.force_spinning_stop": "1"}
"""What sessions of several threads get: without it the threads of one model spin on while the next one is measured
(MobileNetV2, two threads on two cores, in alternating bursts: 6.4 ms for 2.7; decision 0017).
"""

_BOOLEANS = ("enable_mem_pattern", "enable_mem_reuse", "enable_cpu_mem_arena", "use_deterministic_compute")
_CHOICES = {
    "graph_optimization_level": {
        "disable": "ORT_DISABLE_ALL",
        "basic": "ORT_ENABLE_BASIC",
        "extended": "ORT_ENABLE_EXTENDED",
        "all": "ORT_ENABLE_ALL",
    },
    "execution_mode": {"sequential": "ORT_SEQUENTIAL", "parallel": "ORT_PARALLEL"},
}
_ATTRIBUTES = (*_BOOLEANS, *_CHOICES, "inter_op_num_threads")
"""Attributes of SessionOptions that may be set; all other session options are entries whose names have a dot."""
_METHOD = 3  # of how times are measured and stored: tables of another one do not mix
_SILENT = 4  # errors come as exceptions; printing them as well would break progress lines
_EXAMPLE = "write for example 'cpu', 'cpu:threads=4' or 'openvino:device_type=CPU,threads=2'"


@dataclass(frozen=True, slots=True)
class Target:
    """One execution provider with its options; the same target opens the same kind of session everywhere.

    `session_options` are ONNX Runtime session configuration entries (names with a dot, such as
    `session.intra_op.allow_spinning`) and attributes of its SessionOptions, set as a user sets them in production.
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
        session = {k: _checked(k, v) for k, v in options.items() if _is_session_option(k)}
        own = {k: v for k, v in options.items() if k not in session}
        if own and provider == _CPU:
            raise InputError(f"target '{text}': the cpu provider has no option '{next(iter(own))}'; {_EXAMPLE}")
        return Target(provider, threads, tuple(sorted(own.items())), tuple(sorted(session.items())))

    def with_session_options(self, texts: Sequence[str]) -> "Target":
        """The same target with session options `KEY=VALUE` added; a bad one raises InputError."""
        added = dict(self.session_options)
        for text in texts:
            key, equals, value = (part.strip() for part in text.partition("="))
            if not (equals and value and _is_session_option(key)):
                raise InputError(
                    f"--session-option {text}: write KEY=VALUE, where KEY is an entry of ONNX Runtime's session "
                    "configuration (it has a dot, as session.intra_op.allow_spinning) or one of "
                    f"{', '.join(_ATTRIBUTES)}"
                )
            added[key] = _checked(key, value)
        return replace(self, session_options=tuple(sorted(added.items())))

    @property
    def on_caller(self) -> bool:
        """Whether all work is done on the thread that calls `run`, so that its CPU time is the model's."""
        return self.threads == 1 and self.provider in _ON_CALLER and self.synchronous

    @property
    def synchronous(self) -> bool:
        """Whether a node's work is done when the provider comes back from it; it may still fuse all nodes into one."""
        device = dict(self.provider_options).get("device_type", "CPU")
        return self.provider in _SYNCHRONOUS and device.upper().startswith("CPU")

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
        try:
            with contextlib.redirect_stdout(sys.stderr):  # onnxruntime prints there when a provider fails
                session = ort.InferenceSession(source, options, providers=[(self.provider, self._own_options())])
        except Exception as error:  # onnxruntime has no common error class
            raise TargetError(f"{self} cannot load the model: {_first_line(error)}") from error
        self._check_runs_here(session)
        return session

    def _own_options(self) -> dict[str, str]:
        """The provider's options, its number of threads among them where it has threads of its own."""
        threads = {_THREADS_OPTION[self.provider]: str(self.threads)} if self.provider in _THREADS_OPTION else {}
        return threads | dict(self.provider_options)

    def _check_runs_here(self, session: "InferenceSession") -> None:
        """Raises TargetError if another provider runs the model: onnxruntime falls back without an error."""
        have = session.get_providers()
        if not have or have[0] != self.provider:
            raise TargetError(
                f"{self.provider} was silently replaced by {have[0] if have else 'nothing'}: check its options "
                f"({', '.join(f'{k}={v}' for k, v in self._own_options().items()) or 'none'}) and its libraries"
            )
        assigned: Any = getattr(session, "get_provider_graph_assignment_info", list)() if self.provider != _CPU else []
        nodes = {part.ep_name: len(part.get_nodes()) for part in assigned}
        if nodes and self.provider not in nodes:
            told = ", ".join(f"{count} on {name}" for name, count in nodes.items())
            raise TargetError(f"{self.provider} takes no node of this model; its nodes would run elsewhere: {told}")

    def _options(self, profile_prefix: str | None, optimized_path: str | None, fusions_only: bool) -> Any:
        import onnxruntime as ort

        options = ort.SessionOptions()
        options.log_severity_level = _SILENT
        options.intra_op_num_threads = self.threads
        options.inter_op_num_threads = 1
        options.execution_mode = ort.ExecutionMode.ORT_SEQUENTIAL
        options.graph_optimization_level = ort.GraphOptimizationLevel.ORT_ENABLE_ALL
        if self.provider != _CPU:
            options.add_session_config_entry("session.record_ep_graph_assignment_info", "1")
        for key, value in self._session_options().items():
            _set(options, key, value)
        if fusions_only:
            extended = ort.GraphOptimizationLevel.ORT_ENABLE_EXTENDED
            options.graph_optimization_level = min(options.graph_optimization_level, extended, key=int)
        if profile_prefix is not None:
            options.enable_profiling = True
            options.profile_file_prefix = profile_prefix
        if optimized_path is not None:
            options.optimized_model_filepath = optimized_path
        return options

    def _session_options(self) -> dict[str, str]:
        """The session's options: what the provider and several threads need, then the user's own."""
        return _NEEDS.get(self.provider, {}) | (_QUIET_POOL if self.threads > 1 else {}) | dict(self.session_options)

    def fingerprint(self) -> dict[str, Any]:
        """What measured times depend on besides the model: runtime, provider, options, threads, processor, method."""
        import onnxruntime as ort

        return {
            "method": _METHOD,
            "onnxruntime": ort.__version__,
            "provider": self.provider,
            "provider_options": dict(self.provider_options),
            "session_options": self._session_options(),
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


def _is_session_option(key: str) -> bool:
    return "." in key or key in _ATTRIBUTES


def _checked(key: str, value: str) -> str:
    """The value of a session option, if its attribute takes it."""
    allowed = list(_CHOICES.get(key, ("0", "1") if key in _BOOLEANS else ()))
    if (allowed and value not in allowed) or (key == "inter_op_num_threads" and not value.isdigit()):
        raise InputError(f"session option {key}={value}: must be {' or '.join(allowed) or 'a whole number'}")
    return value


def _set(options: Any, key: str, value: str) -> None:
    """Sets one session option, an attribute or an entry."""
    import onnxruntime as ort

    if key == "graph_optimization_level":
        options.graph_optimization_level = getattr(ort.GraphOptimizationLevel, _CHOICES[key][value])
    elif key == "execution_mode":
        options.execution_mode = getattr(ort.ExecutionMode, _CHOICES[key][value])
    elif key in _ATTRIBUTES:
        setattr(options, key, value == "1" if key in _BOOLEANS else int(value))
    else:
        options.add_session_config_entry(key, value)


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
