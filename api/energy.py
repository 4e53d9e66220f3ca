"""Energy as a budget: the meter, measurements of whole networks, and a predictor for what the search asks about.

The predictor is a Gaussian process over the shares of the widths that are kept (ChamNet, section 3.3: the same scheme
as for the score, filled by exploration alone): each further network measured is the one that it is least sure of. It
predicts the logarithm of the energy.
"""

import warnings
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import onnx
from numpy.typing import NDArray
from onnx_netadapt.functions import load_function
from onnx_netadapt.ir.errors import InputError
from onnx_netadapt.network import Narrowing
from onnx_netadapt.passes.search import Choice
from onnx_netadapt.profiler import Feeds, Target, runner
from onnx_netadapt.profiler.energy import Counter, Energy, Meter, find_meter, idle_watts, measure_energy
from onnx_netadapt.profiler.energy import EnergyClock as Clock
from onnx_netadapt.progress import Report

START, EXPLORED, POOL = 8, 24, 256
"""Networks measured at first and in all, and those that are chosen from."""

PULL = 0.6

Floats = NDArray[np.float64]
Fitted = Callable[[Floats], tuple[Floats, Floats]]


def meter_of(target: Target, hook: str | None) -> Meter:
    """The meter of a target, or that of `--meter package.module:function`; TargetError when there is none."""
    if hook is None:
        return find_meter(gpu=target.provider not in ("CPUExecutionProvider", "OpenVINOExecutionProvider"))
    function = load_function(hook, "--meter")

    def read() -> Sequence[float]:
        try:
            return [float(function())]
        except Exception as error:  # the user's own code may raise anything
            raise InputError(f"--meter {hook}: calling it failed ({error!r}); it must return joules so far") from error

    counter = Counter(hook, read, [0.0])
    counter.read()
    return counter


@dataclass
class EnergyModel:
    """Energy in mJ of one narrowed network on one target: `measure` runs it, a call predicts."""

    narrowing: Narrowing
    target: Target
    feeds: Feeds
    meter: Meter
    clock: Clock = field(default_factory=Clock)
    idle: float = 0.0
    _known: dict[tuple[float, ...], float] = field(default_factory=dict)
    _fitted: Fitted | None = None

    def __call__(self, widths: Mapping[str, int]) -> float:
        """The predicted energy of one run in mJ."""
        return float(np.exp(self._predict(np.array([self._features(widths)]))[0][0]))

    def measure(self, widths: Mapping[str, int]) -> float:
        """The measured energy of one run in mJ; the predictor takes it in."""
        found = self.of(self.narrowing.build(widths)).median_mj
        self._known[tuple(self._features(widths))] = found
        self._fitted = None
        return found

    def of(self, model: onnx.ModelProto) -> Energy:
        """The measured energy of one run of a model."""
        run = runner(model, self.target, self.feeds)
        return measure_energy(run, self.meter, idle=self.idle, clock=self.clock)

    def explore(self, choices: Sequence[Choice], rng: np.random.Generator, progress: Report) -> None:
        """Measures the idle power, the original and EXPLORED networks, each the least certain of a pool."""
        self.idle = idle_watts(self.meter, self.clock)
        pool = [self.narrowing.full | widths for widths in _drawn(choices, rng)]
        self.measure(self.narrowing.full)
        for number in range(min(EXPLORED, len(pool))):
            place = 0
            if number >= START:
                place = int(np.argmax(self._predict(np.array([self._features(w) for w in pool]))[1]))
            self.measure(pool.pop(place))
            progress(number + 1, EXPLORED, "measuring energy")

    def _features(self, widths: Mapping[str, int]) -> list[float]:
        full = self.narrowing.full
        macs = self.narrowing.sizes.macs({**full, **widths}) / max(self.narrowing.sizes.macs(full), 1)
        return [macs, *(widths.get(name, width) / width for name, width in full.items())]

    def _predict(self, rows: Floats) -> tuple[Floats, Floats]:
        if self._fitted is None:
            self._fitted = _fit(np.array(list(self._known)), np.log(np.array(list(self._known.values()))))
        return self._fitted(rows)


def _fit(x: Floats, y: Floats) -> Fitted:
    """A straight line in the first feature (the share of multiply-accumulates), and a process over what it leaves."""
    from sklearn.exceptions import ConvergenceWarning
    from sklearn.gaussian_process import GaussianProcessRegressor
    from sklearn.gaussian_process.kernels import RBF, ConstantKernel, WhiteKernel

    line = np.polyfit(np.log(x[:, 0]), y, 1) if len(x) > 2 else np.array([1.0, float(np.mean(y - np.log(x[:, 0])))])
    rest = y - np.polyval(line, np.log(x[:, 0]))
    kernel = ConstantKernel(0.1, (1e-4, 1e1)) * RBF(1.0, (1e-1, 1e2)) + WhiteKernel(1e-3, (1e-6, 1e0))
    process: Any = GaussianProcessRegressor(kernel, random_state=0)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", ConvergenceWarning)
        process.fit(x, rest)

    def predict(rows: Floats) -> tuple[Floats, Floats]:
        mean, deviation = process.predict(rows, return_std=True)
        return np.polyval(line, np.log(rows[:, 0])) + mean, deviation

    return predict


def _drawn(choices: Sequence[Choice], rng: np.random.Generator) -> list[dict[str, int]]:
    """Networks of all levels, each group about as narrow as the others."""
    found = []
    for _ in range(POOL):
        level = rng.random()
        at = [(1 - PULL) * rng.random() + PULL * level for _ in choices]
        found.append(
            {
                choice.id: choice.widths[min(int(share * len(choice.widths)), len(choice.widths) - 1)]
                for choice, share in zip(choices, at, strict=True)
            }
        )
    return found
