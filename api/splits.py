"""Three disjoint sets of examples: calibration (repairs weights), selection (ranks proposals), report (the score).

1. Half of the examples calibrate, up to 2,000: below 500 recovery gets clearly worse, above 2,000 it gains little.
   Where half of them are fewer than 500, up to 70% do.
2. 15% select, up to 1,000: proposals are compared on the same images, so that small differences show.
3. The rest report, up to 10,000, where the standard error of an accuracy is at most half a point. Where there are
   examples apart for that, 85% calibrate and the rest select.

With class labels each class is shared out in these proportions; classes of one example each go round the sets.
"""

from dataclasses import dataclass

import numpy as np
from onnx_netadapt.inputs import Data, Indices

MOST_CALIBRATION, MOST_SELECTION, MOST_REPORT = 2_000, 1_000, 10_000
GOOD_CALIBRATION, LEAST_CALIBRATION, GOOD_REPORT = 500, 200, 100


@dataclass(frozen=True, slots=True)
class Splits:
    """Positions of the examples of each set, in random order, so that any first part of a set is a fair sample."""

    calibration: Indices
    selection: Indices
    report: Indices
    warnings: tuple[str, ...] = ()


def split(data: Data, seed: int = 0, *, reporting_apart: bool = False) -> Splits:
    """Three disjoint sets of the positions 0 to n - 1; some are empty below three examples, and `warnings` says so.

    With `reporting_apart` other examples give the score, and the report set is empty (rule 3).
    """
    rng = np.random.default_rng(seed)
    calibrating, selecting, reporting = sizes(data.n, reporting_apart=reporting_apart)
    calibration, rest = _spread(_by_class(data, rng), calibrating)
    selection, rest = _spread(rest, selecting)
    report, _ = _spread(rest, reporting)
    return Splits(
        calibration=rng.permutation(calibration),
        selection=rng.permutation(selection),
        report=rng.permutation(report),
        warnings=_warnings(calibrating, selecting, None if reporting_apart else reporting),
    )


def sizes(n: int, *, reporting_apart: bool = False) -> tuple[int, int, int]:
    """The numbers of calibration, selection and report examples among `n`."""
    if reporting_apart:
        calibration = min(MOST_CALIBRATION, max(1, n * 17 // 20))
        return calibration, min(MOST_SELECTION, n - calibration), 0
    calibration = min(MOST_CALIBRATION, max(1, n // 2, min(n * 7 // 10, GOOD_CALIBRATION)))
    selection = min(MOST_SELECTION, max(1, n * 3 // 20), n - calibration)
    return calibration, selection, min(MOST_REPORT, n - calibration - selection)


def _by_class(data: Data, rng: np.random.Generator) -> Indices:
    """All positions, those of one class side by side; classes, and examples within a class, in random order."""
    shuffled, labels = rng.permutation(data.n), data.labels
    if labels is None or labels.ndim != 1 or labels.dtype.kind not in "iu":
        return shuffled  # nothing to stratify by
    classes, which = np.unique(labels, return_inverse=True)
    rank = rng.permutation(len(classes))[which]
    return shuffled[np.argsort(rank[shuffled], kind="stable")]


def _spread(order: Indices, count: int) -> tuple[Indices, Indices]:
    """`count` members of `order`, evenly spread along it, and the others: every stretch gives its share, within one."""
    n = len(order)
    steps = np.arange(n + 1) * count // max(n, 1)
    taken = np.diff(steps) > 0
    return order[taken], order[~taken]


def _warnings(calibration: int, selection: int, report: int | None) -> tuple[str, ...]:
    found = []
    if selection == 0 or report == 0:
        found.append(f"{calibration + selection} examples cannot fill three sets: some are empty; give at least 3")
    if calibration < LEAST_CALIBRATION:
        found.append(
            f"only {calibration} calibration examples, below {LEAST_CALIBRATION}: the repair of weights is unreliable; "
            f"give {2 * GOOD_CALIBRATION} examples or more"
        )
    elif calibration < GOOD_CALIBRATION:
        found.append(
            f"{calibration} calibration examples: at least {GOOD_CALIBRATION} keep clearly more accuracy; "
            f"give {2 * GOOD_CALIBRATION} examples or more"
        )
    if report and report < GOOD_REPORT:
        error = 50 / report**0.5
        found.append(f"only {report} report examples: the score may be off by {error:.0f} points (one standard error)")
    return tuple(found)
