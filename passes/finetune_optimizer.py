"""The optimizer of fine-tuning, and the length and shape of its learning-rate schedule."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

WARM_UP = 0.05
"""Share of the steps in which the learning rate rises."""

TIMED_STEPS = 3
"""Steps after the first from which the time of a step is taken."""


BETAS, EPSILON = (0.9, 0.999), 1e-8
"""Those of the paper."""


class RelativeAdam:
    """Adam (Kingma and Ba, 2015, algorithm 1) whose steps are shares of a weight's own size.

    Folded batch normalization leaves channels of very different magnitude behind. One absolute step that is right for a
    plain network breaks a depthwise one (1e-3 made MobileNetV2 worse than no training, RECOVERY C). Each step of Adam
    is therefore multiplied by the root mean square of the weight's output channel (axis 0 of a convolution), of the
    whole tensor where there are no channels to tell apart. The sizes are those at the start.

    Not a `torch.optim.Optimizer`: the first of them in a process imports torch's compiler, which takes 1.6 s.
    """

    def __init__(self, parameters: Sequence[Any]) -> None:
        import torch

        self._parameters = list(parameters)
        self._sizes = _sizes(self._parameters)
        self._means = [torch.zeros_like(p, requires_grad=False) for p in self._parameters]
        self._squares = [torch.zeros_like(p, requires_grad=False) for p in self._parameters]
        self._made = [0] * len(self._parameters)

    def zero_grad(self) -> None:
        """Forgets the gradients."""
        for parameter in self._parameters:
            parameter.grad = None

    def step(self, lr: float) -> None:
        """One step; `lr` is the share."""
        import torch

        with torch.no_grad():
            for place, weight in enumerate(self._parameters):
                if weight.grad is None:
                    continue
                self._made[place] += 1
                first, second = (1 - beta ** self._made[place] for beta in BETAS)
                mean, square = self._means[place], self._squares[place]
                mean.lerp_(weight.grad, 1 - BETAS[0])
                square.lerp_(weight.grad.square(), 1 - BETAS[1])
                weight -= lr * self._sizes[place] * (mean / first) / ((square / second).sqrt() + EPSILON)


def _sizes(parameters: Sequence[Any]) -> list[Any]:
    """The size of each weight, broadcastable to it; a tensor of zeros has the median size of the others."""
    import torch

    whole = [float(p.detach().square().mean().sqrt()) for p in parameters]
    known = sorted(size for size in whole if size > 0)
    usual = known[len(known) // 2] if known else 1.0
    found = []
    for parameter, size in zip(parameters, whole, strict=True):
        if parameter.dim() < 3 or not size > 0:
            found.append(torch.tensor(size or usual, device=parameter.device))
            continue
        axes = tuple(range(1, parameter.dim()))
        channels = parameter.detach().square().mean(dim=axes, keepdim=True).sqrt()
        found.append(torch.where(channels > 0, channels, torch.full_like(channels, size)))
    return found


@dataclass(slots=True)
class Schedule:
    """A warm-up, then a cosine to zero over as many of the wanted `steps` as fit into `seconds`.

    The clock counts only where time is short: otherwise the same seed gives the same weights.
    """

    steps: int
    seconds: float
    _first: float = 0.0

    def rate(self, step: int) -> float:
        """The share of the learning rate for a step, counted from 1."""
        warm = max(1, round(WARM_UP * self.steps))
        done = min((step - 1) / max(self.steps, 1), 1.0)
        return min(1.0, step / warm) * 0.5 * (1 + math.cos(math.pi * done))

    def made(self, step: int, elapsed: float) -> None:
        """Takes note of the time after a step: fewer steps are made when the rest would take too long."""
        if step == 1:
            self._first = elapsed  # it also sets up what later steps only use
            return
        if not math.isfinite(self.seconds) or step < 1 + TIMED_STEPS:
            return
        one = (elapsed - self._first) / (step - 1)
        room = step + max(0, int((self.seconds - elapsed) / max(one, 1e-9)))
        self.steps = min(self.steps, max(room, step))
