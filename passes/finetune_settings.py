"""How to fine-tune, and how the command line says it."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, fields, replace
from typing import TYPE_CHECKING, Any

from ..ir.errors import InputError

if TYPE_CHECKING:
    from .finetune import Check, Training

LOSSES = ("mse", "kl", "ce")


@dataclass(frozen=True, slots=True)
class FinetuneSettings:
    """How to fine-tune; steps=0 means not at all.

    `lr` is a share of each weight's own size (`optimizer`), `features` the weight of the intermediate feature maps
    beside the outputs, `check_every` 0 judges some times in all, and after `patience` checks without a gain training
    ends (half as many when none was better than the start). `augment` crops and flips images. `precision` auto is
    bfloat16 (mixed: weights stay float32) on processors that compute in it. `threads` 0 leaves torch's own choice.
    """

    steps: int = 400
    lr: float = 1.5e-3
    loss: str = "mse"
    features: float = 1.0
    batch: int = 32
    seconds: float = math.inf
    check_every: int = 0
    patience: int = 4
    augment: bool = False
    precision: str = "auto"
    threads: int = 0
    seed: int = 0

    @classmethod
    def parse(cls, text: str) -> FinetuneSettings:
        """The settings that "none" or "steps=500,lr=1e-3,loss=mse,batch=32,seconds=120" asks for; InputError else."""
        if text.strip() == "none":
            return cls(steps=0)
        kinds = {field.name: type(getattr(cls(), field.name)) for field in fields(cls)}
        found: dict[str, Any] = {}
        for part in filter(None, (piece.strip() for piece in text.split(","))):
            name, equals, value = (piece.strip() for piece in part.partition("="))
            if not equals or name not in kinds:
                raise InputError(f"--finetune: '{part}' is not one of {', '.join(kinds)} with a value, as in steps=500")
            found[name] = _number(kinds[name], name, value)
        return replace(cls(), **found)._checked()

    def _checked(self) -> FinetuneSettings:
        choices = {"loss": LOSSES, "precision": ("auto", "float32", "bfloat16")}
        for name, allowed in choices.items():
            if getattr(self, name) not in allowed:
                raise InputError(f"--finetune: {name}={getattr(self, name)} is not one of {', '.join(allowed)}")
        least = {"steps": 0, "batch": 1, "check_every": 0, "patience": 1, "threads": 0, "features": 0}
        for name, bound in least.items():
            if not getattr(self, name) >= bound:
                raise InputError(f"--finetune: {name}={getattr(self, name)} is less than {bound}")
        for name in ("lr", "seconds"):
            if not getattr(self, name) > 0:
                raise InputError(f"--finetune: {name}={getattr(self, name)} is not a number above 0")
        return self


@dataclass(frozen=True, slots=True)
class Hooks:
    """A user's own parts of fine-tuning; docs/hooks.md.

    `loss(outputs, targets, labels)` gives the loss of a batch as a torch scalar: the model's outputs in order, the
    original's, and the labels (None without). `callback(check)` is told every check; training ends when it returns
    True. `train(training)` is a whole loop in place of ours.
    """

    loss: Callable[[Sequence[Any], Sequence[Any], Any], Any] | None = None
    callback: Callable[[Check], Any] | None = None
    train: Callable[[Training], Any] | None = None


def _number(kind: type, name: str, text: str) -> Any:
    if kind is bool and text.lower() in ("true", "false", "1", "0", "yes", "no"):
        return text.lower() in ("true", "1", "yes")
    try:
        return text if kind is str else kind(text) if kind is not bool else int("no number")
    except ValueError as error:
        raise InputError(f"--finetune: {name}={text} is not a value of {name} ({kind.__name__})") from error
