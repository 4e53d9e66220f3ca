"""Scores of networks by their widths: the model, refitted in closed form, is judged against the original.

`MaskedScorer` judges many networks in one batch, which is possible only without the refit: masks share one set of
weights, and the refit gives each network its own. On ResNet20 the order of random proposals without the refit says
next to nothing about their order with it (Kendall's tau 0.1 to 0.2), so that it is used only where it is asked for:
`--scoring masked`, for networks that were trained to work at every width.
"""

from collections.abc import Mapping, Sequence
from functools import cached_property, lru_cache

import numpy as np
import onnx
from onnx_netadapt.evaluate import Evaluator
from onnx_netadapt.ir.errors import InputError
from onnx_netadapt.network import Narrowing
from onnx_netadapt.passes.gram import Statistics
from onnx_netadapt.passes.masks import MaskedModel, NotMasked, mask_places, with_masks
from onnx_netadapt.passes.recover import apply_weights, refit_symmetric
from onnx_netadapt.passes.search.common import Key, key_of
from onnx_netadapt.passes.sharing import Base, Part, shared

MODELS_BYTES = 256_000_000
"""Refitted models are kept up to this size together: a proposal that does well is scored again on more examples."""

MOST_MODELS = 64

RUNGS = (9, 3)
"""Coarse scores take one of so many selection examples."""

LEAST_EXAMPLES = 24
"""A coarse score on fewer examples tells too little."""

BLOCK = 16
"""Masked groups are cut to multiples of so many units: ONNX Runtime's fast convolutions come in such blocks (a ResNet20
of odd widths with half the multiply-accumulates took 0.58 ms an image, the whole one 0.51).
"""


class Candidates:
    """The refitted models of a narrowed network, by widths; the latest ones are kept.

    Without statistics nothing is refitted: the weights serve every width as they are (`elastic`).
    """

    def __init__(self, narrowing: Narrowing, statistics: Statistics | None) -> None:
        self.narrowing, self.statistics = narrowing, statistics
        room = MODELS_BYTES // max(narrowing.graph.model.ByteSize(), 1)
        self._at = lru_cache(maxsize=max(1, min(MOST_MODELS, room)))(self._made)

    def __call__(self, widths: Mapping[str, int]) -> onnx.ModelProto:
        """The model at these widths, the weights behind removed units refitted."""
        found: onnx.ModelProto = self._at(key_of(widths))
        return found

    def _made(self, key: Key) -> onnx.ModelProto:
        widths = dict(key)
        pruned = self.narrowing.pruned(widths).model
        if self.statistics is None:
            return pruned
        weights = refit_symmetric(self.narrowing.coupling, self.statistics, self.narrowing.kept(widths))
        return apply_weights(pruned, weights)


class Scorer:
    """The score of widths by an evaluator; every network is judged once."""

    def __init__(self, candidates: Candidates, evaluator: Evaluator) -> None:
        self.candidates, self.evaluator = candidates, evaluator
        self._known: dict[Key, float] = {}

    def __call__(self, widths: Mapping[str, int]) -> float:
        """The score: higher is better."""
        key = key_of(widths)
        if key not in self._known:
            self._known[key] = self.evaluator.score(self.candidates(widths))
        return self._known[key]

    @property
    def judged(self) -> int:
        """How many networks were judged."""
        return len(self._known)

    def coarse(self) -> list["Scorer"]:
        """Scores on parts of the examples, the cheapest first; none where the parts would be too small."""
        evaluator = self.evaluator
        counts = [len(evaluator.indices) // rung for rung in RUNGS]
        return [Scorer(self.candidates, evaluator.on(evaluator.indices[:n])) for n in counts if n >= LEAST_EXAMPLES]


class MaskedScorer:
    """The score of widths without a refit; many networks share a batch and one session."""

    def __init__(
        self,
        narrowing: Narrowing,
        evaluator: Evaluator,
        asked_by: str = "--scoring masked",
        instead: str = "use --scoring refit",
    ) -> None:
        places = mask_places(narrowing.coupling)
        if isinstance(places, NotMasked):
            raise InputError(f"{asked_by}: {places.reason}; {instead}")
        self.narrowing, self.evaluator = narrowing, evaluator
        self._places, self._told = places, (asked_by, instead)
        self._known: dict[Key, float] = {}
        self._check()

    @cached_property
    def masked(self) -> MaskedModel:
        """The whole model with all masks."""
        return with_masks(self.narrowing.coupling, self._places)

    def _check(self) -> None:
        """One batch of networks must score what the same networks score when they are cut out."""
        full = self.narrowing.full
        probes = [{name: max(1, width * share // 4) for name, width in full.items()} for share in (3, 2)]
        wanted = [self.evaluator.score(self.narrowing.build(widths)) for widths in probes]
        found = self.many(probes)
        if not np.allclose(wanted, found, rtol=1e-3, atol=1e-3):
            raise InputError(
                f"{self._told[0]}: masked networks score {found} and the same networks cut out {wanted}; "
                f"the examples of a batch are not independent in this model; {self._told[1]}"
            )

    def __call__(self, widths: Mapping[str, int]) -> float:
        """The score: higher is better."""
        return self.many([widths])[0]

    def many(self, networks: Sequence[Mapping[str, int]]) -> list[float]:
        """The scores of several networks."""
        keys = [key_of(widths) for widths in networks]
        new = [key for key in dict.fromkeys(keys) if key not in self._known]
        if new:
            parts = self._parts([self.narrowing.full | dict(key) for key in new])
            self._known.update(zip(new, self.evaluator.score_shared(parts), strict=True))
        return [self._known[key] for key in keys]

    def _parts(self, networks: Sequence[Mapping[str, int]]) -> tuple[Part, ...]:
        """The runs that make these networks: what none of them keeps is cut out first."""
        narrowing = self.narrowing
        widest = {name: self._widest([widths[name] for widths in networks], name) for name in narrowing.full}
        macs = narrowing.sizes.node_macs(narrowing.shapes(widest))
        base = Base(narrowing.build(widest), narrowing.kept(widest), macs)
        kept = [narrowing.kept(widths) for widths in networks]
        return shared(narrowing.coupling, self._places, base, kept, len(self.evaluator.indices))

    def _widest(self, widths: Sequence[int], name: str) -> int:
        """The width at which a group is masked.

        The largest that occurs, if most have it: those need no mask. Else the next BLOCK: all are masked anyway.
        """
        most = max(widths)
        if 2 * list(widths).count(most) > len(widths):
            return most
        return min(-(-most // BLOCK) * BLOCK, self.narrowing.full[name])

    @property
    def judged(self) -> int:
        """How many networks were judged."""
        return len(self._known)

    def coarse(self) -> list["MaskedScorer"]:
        """None: what is cheap needs no cheaper score before it."""
        return []


AnyScorer = Scorer | MaskedScorer
