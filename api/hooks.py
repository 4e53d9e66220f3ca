"""The user's own parts of fine-tuning, as functions or as `package.module:function`; docs/hooks.md."""

from collections.abc import Callable
from typing import Any

from onnx_netadapt.functions import load_function
from onnx_netadapt.ir.errors import InputError
from onnx_netadapt.options import Options
from onnx_netadapt.passes.finetune_settings import Hooks


def hooks_of(options: Options) -> Hooks:
    """The user's own loss, loop and callback: functions, or `package.module:function`; InputError for what is none."""
    return Hooks(
        loss=_function(options.loss, "--loss"),
        train=_function(options.train, "--train"),
        callback=_function(options.callback, "callback"),
    )


def _function(given: Any, option: str) -> Callable[..., Any] | None:
    if given is None or callable(given):
        return given  # type: ignore[no-any-return]
    if not isinstance(given, str) or ":" not in given:
        raise InputError(f"{option} {given!r} is not a function; write package.module:function")
    return load_function(given, option)
