"""The options of a run as plain data, the same for the command line and for Python."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from onnx_netadapt.ir.errors import InputError
from onnx_netadapt.ir.graph import Shape
from onnx_netadapt.resolution import parse_downsample, parse_resolution

SCORINGS = ("refit", "masked")
"""How the search judges a network: with its weights refitted, or as it stands, many at once (see `scoring`)."""


@dataclass(frozen=True, slots=True)
class Options:
    """Options of the main job; CONTRACTS section 1 says what each means.

    `loss`, `train` and `callback` are parts of fine-tuning of the user's own (docs/hooks.md). `elastic` tells whether
    to cut from the weights of train-elastic as they are; None: when the model has them. `allow_depth` tells whether
    whole branches and layers may go; None: where latency or energy is budgeted (`pipeline.takes_depth`).
    """

    budgets: tuple[str, ...]
    output: Path | None = None
    data: str | None = None
    report_data: str | None = None
    preprocess: str | None = None
    metric: str | None = None
    target: str = "cpu"
    search: str = "netadapt"
    finetune: str | None = None
    loss: str | Callable[..., Any] | None = None
    train: str | Callable[..., Any] | None = None
    callback: Callable[..., Any] | None = None
    shapes: Mapping[str, Shape] = field(default_factory=dict)
    exclude: tuple[str, ...] = ()
    only: tuple[str, ...] = ()
    min_keep: float = 0.1
    step: float | None = None
    decay: float = 0.96
    lut: Path | None = None
    journal: Path | None = None
    resume: bool = False
    best_effort: bool = False
    published: bool = False
    renormalize: bool = False
    allow_depth: bool | None = None
    elastic: bool | None = None
    scoring: str = "refit"
    predictor: Path | None = None
    resolution: str | None = None
    downsample: str = "auto"
    meter: str | None = None
    seed: int = 0

    def __post_init__(self) -> None:
        if not 0 < self.min_keep <= 1:
            raise InputError(f"--min-keep {self.min_keep}: must be above 0 and at most 1")
        if self.step is not None and not 0 < self.step < 1:
            raise InputError(f"--step {self.step}: must be a share of the starting cost between 0 and 1")
        if self.scoring not in SCORINGS:
            raise InputError(f"--scoring {self.scoring}: choose one of {', '.join(SCORINGS)}")
        if self.allow_depth and self.scoring == "masked":
            raise InputError("--allow-depth: a mask switches channels off, not branches; use --scoring refit")
        if self.predictor is not None and self.search != "chamnet":
            raise InputError(f"--predictor {self.predictor}: --search {self.search} has none; use --search chamnet")
        if self.resolution is not None:
            parse_resolution(self.resolution)
            if self.search != "chamnet":
                raise InputError(
                    f"--resolution {self.resolution}: --search {self.search} changes widths only; use --search chamnet"
                )
        if parse_downsample(self.downsample) is not None and (self.resolution or self.scoring == "masked"):
            raise InputError(
                f"--downsample {self.downsample}: does not go with --resolution and --scoring masked; leave it out"
            )
        if not 0 < self.decay <= 1:
            raise InputError(f"--decay {self.decay}: must be above 0 and at most 1")


def parse_shape(text: str) -> tuple[str, Shape]:
    """The input name and shape of a `--shape NAME=1,3,224,224` option."""
    name, equals, dims = text.rpartition("=")
    try:
        shape = tuple(int(dim) for dim in dims.replace("x", ",").split(","))
    except ValueError:
        shape = ()
    if not equals or not name or not shape or min(shape) < 1:
        raise InputError(f"--shape {text}: write the input's name and all its dimensions, as in input=1,3,224,224")
    return name, shape


def default_output(model: Path) -> Path:
    """`MODEL.adapted.onnx` beside the input."""
    return model.with_name(f"{model.stem}.adapted.onnx")
