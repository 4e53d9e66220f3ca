"""Elastic weights: one set that serves every width, trained by ordered dropout.

1. Every group has a nested order of its units, and a width keeps a prefix of it. Each example of a batch runs through a
   network of its own widths, all with the same weights (masks in front of the sums, `masks`), and all learn the
   original's outputs. What is cut out afterwards is one of these networks: there is nothing left to repair.
   (Yang et al., "NetAdaptV2", CVPR 2021, ordered dropout; Horvath et al., "FjORD", NeurIPS 2021.)
2. Widths are drawn for each example: the full ones and the least ones in a fixed share of the examples (the sandwich
   rule of Yu and Huang, "Universally slimmable networks", ICCV 2019, section 3.2), a network of a ladder in half of the
   others, else each group's width from one of two networks of the ladder, or a width of its own. A ladder leads from
   the original to small networks whose widths were chosen with care: the kind that a later budget will ask for.
   DEVIATION: NetAdaptV2's distribution could not be read; this one is ours.
   DEVIATION: NetAdaptV2 trains from random weights with labels, and orders channels by their place; here a trained
   model is given, whose order of units is taken by importance, and which is the teacher.
3. Narrow sums have another scale than full ones. No layer normalizes by statistics of its own when batch normalization
   is folded, so that only training at every width can set that right.
4. The best checkpoint has the highest mean score over a few networks of different size. The start is one of them.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import onnx
from numpy.typing import NDArray

from ..ir.graph import Graph
from ..ir.load import load
from ..ir.write import Changes, apply
from .finetune import Draw, FinetuneResult, Progress, Validate, finetune
from .finetune_settings import FinetuneSettings, Hooks
from .masks import MaskedModel, Prefixes
from .sizes import Order
from .teacher import Array, Batch

CHANCES = (1 / 8, 1 / 8, 3 / 8, 1 / 4, 1 / 8)
"""Shares of the examples at full width, at the least one, on the ladder, between two of its networks, and anywhere."""

Rows = NDArray[np.int64]


@dataclass(frozen=True)
class Widths:
    """Draws rows of widths (rule 2), with a number for each group; `ladder` (networks, groups), the largest first."""

    ladder: Rows
    least: Rows
    full: Rows
    rng: np.random.Generator

    def draw(self, count: int) -> Rows:
        """Widths (count, groups)."""
        groups = len(self.full)
        kind = self.rng.choice(len(CHANCES), (count, 1), p=CHANCES)
        one, two = self.ladder[self.rng.integers(len(self.ladder), size=(2, count))]
        mixed = np.where(self.rng.random((count, groups)) < 0.5, one, two)
        anywhere = self.rng.integers(self.least, self.full + 1, (count, groups))
        rows = [np.broadcast_to(row, (count, groups)) for row in (self.full, self.least)]
        return np.choose(kind, [*rows, one, mixed, anywhere])


def train(
    model: MaskedModel,
    order: Order,
    widths: Widths,
    batches: Sequence[Batch],
    settings: FinetuneSettings,
    validate: Validate,
    progress: Progress | None = None,
    *,
    labels: Sequence[Array] | None = None,
    hooks: Hooks | None = None,
) -> FinetuneResult:
    """The masked model with weights that serve the widths that are drawn; it learns from the original.

    `validate` judges a masked model (rule 4), and so does `FinetuneResult.model` hold one: see `unmasked`. A model that
    torch cannot run is returned as it is, with the reason.
    """
    prefixes = Prefixes(model, order)
    names = frozenset(item.name for item in model.inputs)
    draw = Draw(names, lambda count: prefixes.feeds(widths.draw(count)))
    return finetune(
        load(model.model),
        model.coupling.graph.model,
        batches,
        settings,
        validate,
        progress,
        labels=labels,
        hooks=hooks,
        draw=draw,
    )


def unmasked(model: onnx.ModelProto, graph: Graph) -> onnx.ModelProto:
    """The graph's model with the weights of its masked form; what did not change stays bit for bit."""
    theirs = load(model).constants
    arrays = {name: (constant.array(), theirs[name].array()) for name, constant in graph.constants.items()}
    changed = {name: new for name, (old, new) in arrays.items() if old.tobytes() != new.tobytes()}
    return apply(graph, Changes(tensors={**changed}))
