"""An adaptive genetic algorithm over points of the unit cube (Srinivas and Patnaik, IEEE Trans. SMC 24(4), 1994).

Pairs of parents cross with probability K1 (fmax - f') / (fmax - fmean) when the better of them, f', is above the mean,
else always; a child's genes mutate with probability K2 (fmax - f) / (fmax - fmean) when its parent is above the mean,
else K2: the best are left alone, the rest are disturbed. The best PARENTS of a generation are kept and make the next.

DEVIATION: genes are real numbers: crossing mixes two parents' genes, mutation moves one by a normal step or draws it
anew.
"""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
from numpy.typing import NDArray

PARENTS, GENERATIONS = 12, 100
K1, K2 = 1.0, 0.5
STEP, FRESH = 0.1, 0.2
"""The deviation of a mutation, and the share of mutations that draw a gene anew."""

Floats = NDArray[np.float64]


def evolve(
    fitness: Callable[[Floats], Floats], population: Floats, rng: np.random.Generator, generations: int = GENERATIONS
) -> tuple[Floats, float]:
    """The fittest point and its fitness; `population` (individuals, genes) is the first generation.

    `fitness` takes points (rows, genes) and gives one value for each, higher is better.
    """
    size = len(population)
    values = fitness(population)
    for _ in range(generations):
        elite = np.argsort(-values, kind="stable")[:PARENTS]
        parents, known = population[elite], values[elite]
        children = _children(parents, known, float(values.mean()), size - len(parents), rng)
        population = np.concatenate([parents, children])
        values = np.concatenate([known, fitness(children)])
    best = int(np.argmax(values))
    return population[best], float(values[best])


def _children(parents: Floats, values: Floats, mean: float, count: int, rng: np.random.Generator) -> Floats:
    pairs = rng.integers(len(parents), size=(count, 2))
    crossing = rng.random(count) < K1 * _room(values[pairs].max(axis=1), values, mean)
    mixed = np.where(rng.random((count, parents.shape[1])) < 0.5, parents[pairs[:, 0]], parents[pairs[:, 1]])
    children = np.where(crossing[:, None], mixed, parents[pairs[:, 0]])
    moving = rng.random(children.shape) < K2 * _room(values[pairs[:, 0]], values, mean)[:, None]
    # a child that neither crosses nor mutates would be its parent once more
    still = ~crossing & ~moving.any(axis=1)
    moving[still, rng.integers(parents.shape[1], size=int(still.sum()))] = True
    moved = children + rng.normal(0.0, STEP, children.shape)
    moved = np.where(rng.random(children.shape) < FRESH, rng.random(children.shape), moved)
    return np.clip(np.where(moving, moved, children), 0.0, 1.0)


def _room(own: Floats, values: Floats, mean: float) -> Floats:
    """(fmax - f) / (fmax - fmean) where f is above the mean, else 1."""
    best = float(values.max())
    spread = best - mean
    if not spread > 0:
        return np.ones_like(own)
    found: Floats = np.where(own >= mean, (best - own) / spread, 1.0)
    return found
