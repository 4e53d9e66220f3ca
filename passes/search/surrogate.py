"""A Gaussian process that predicts the score of a network from its genes (ChamNet, section 3.2).

1. y = f(x) + noise, f ~ GP(0, K), K(x, x') = a exp(-sum_i ((x_i - x'_i) / l_i)^2 / 2). One length scale for all genes
   or one for each, whichever predicts left-out samples better; all constants by the marginal likelihood.
2. Left-out predictions need no refit: y_i - [C^-1 y]_i / [C^-1]_ii with C = K + noise (Rasmussen and Williams, 2006,
   equations 5.10 to 5.12).

DEVIATION: scores are put on another scale first, -log(top - y + floor), of mean 0 and deviation 1: what a network loses
grows by factors when it is narrowed step by step, and what tells good networks of one level apart is small beside what
tells the levels apart. The order of scores, which is what the search needs, stays.
DEVIATION: the paper has one fixed length scale and unit amplitude on data that are not standardised.
"""

from __future__ import annotations

import warnings
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

MOST_FITTED = 120
"""Samples that the constants are found from at most, spread over all; the process then stands on all samples. Their
likelihood takes the third power of the count: with 240 samples it took a quarter of a search's time.
"""

FLOOR = 0.1
"""Added to a loss before its logarithm is taken, as a share of the median loss."""

Floats = NDArray[np.float64]


@dataclass(frozen=True, slots=True)
class Surrogate:
    """A fitted process: `loo` are the left-out predictions of the samples and `known` their values, on one scale."""

    process: Any
    known: Floats
    loo: Floats
    many_scales: bool

    def __call__(self, x: Floats) -> tuple[Floats, Floats]:
        """Mean and standard deviation at the rows of x (rows, genes), on the scale of `by_loss`."""
        mean, deviation = self.process.predict(x, return_std=True)
        return np.asarray(mean), np.asarray(deviation)

    @property
    def error(self) -> float:
        """Root mean square of the left-out errors, as a share of the standard deviation of the samples."""
        return float(np.sqrt(np.mean((self.known - self.loo) ** 2)) / max(float(self.known.std()), 1e-12))

    @property
    def kendall(self) -> float:
        """Rank correlation of left-out predictions and samples: 1 for the same order, 0 for none; 0 when undefined."""
        from scipy.stats import kendalltau

        found = float(kendalltau(self.known, self.loo).statistic)
        return found if np.isfinite(found) else 0.0


def fit(x: Floats, scores: Floats) -> Surrogate:
    """The surrogate of samples: x (samples, genes), scores (samples,), higher is better."""
    y = by_loss(scores)
    plain = _fitted(x, y, np.ones(1))
    if x.shape[1] == 1:
        return plain
    # the likelihood has several hills: one start beside the common length scale, one at the width of the cube
    scale = float(plain.process.kernel_.k1.k2.length_scale)
    each = [_fitted(x, y, np.full(x.shape[1], start)) for start in (scale, 1.0)]
    return min([plain, *each], key=lambda found: found.error)


def refit(found: Surrogate, x: Floats, scores: Floats) -> Surrogate:
    """The surrogate of other samples with constants that were found before: as `fit`, in a hundredth of its time."""
    return _on(found.process.kernel_, x, by_loss(scores), many_scales=found.many_scales)


def by_loss(scores: Floats) -> Floats:
    """Scores on the scale that the process sees; minus infinity counts as the worst finite one."""
    finite = scores[np.isfinite(scores)]
    filled = np.where(np.isfinite(scores), scores, finite.min() if len(finite) else 0.0)
    loss = filled.max() - filled
    floor = FLOOR * (float(np.median(loss)) or float(loss.max()) or 1.0)
    bent = -np.log(loss + floor)
    found: Floats = (bent - bent.mean()) / (bent.std() or 1.0)
    return found


def _fitted(x: Floats, y: Floats, scales: Floats) -> Surrogate:
    from sklearn.exceptions import ConvergenceWarning
    from sklearn.gaussian_process import GaussianProcessRegressor
    from sklearn.gaussian_process.kernels import RBF, ConstantKernel, WhiteKernel

    few = np.unique(np.linspace(0, len(y) - 1, min(len(y), MOST_FITTED)).astype(int))
    start = float(scales[0]) if len(scales) == 1 else scales
    kernel = ConstantKernel(1.0, (1e-2, 1e3)) * RBF(start, (3e-2, 1e2)) + WhiteKernel(1e-2, (1e-6, 1e1))
    process = GaussianProcessRegressor(kernel, random_state=0)
    with warnings.catch_warnings():
        # a constant at its bound is an answer here: a gene that changes nothing has an endless length scale
        warnings.simplefilter("ignore", ConvergenceWarning)
        process.fit(x[few], y[few])
    return _on(process.kernel_, x, y, many_scales=len(scales) > 1)


def _on(kernel: Any, x: Floats, y: Floats, *, many_scales: bool) -> Surrogate:
    """The process of a kernel whose constants stay."""
    from sklearn.gaussian_process import GaussianProcessRegressor

    process = GaussianProcessRegressor(kernel, optimizer=None).fit(x, y)
    return Surrogate(process, y, _left_out(process, x, y), many_scales)


def _left_out(process: Any, x: Floats, y: Floats) -> Floats:
    """Rule 2."""
    inverse = np.linalg.pinv(process.kernel_(x), hermitian=True)
    found: Floats = y - (inverse @ y) / np.maximum(np.diag(inverse), 1e-12)
    return found
