"""Targets: several refits share what was read of the original, and come to the same weights as each on its own."""

from contextlib import closing

import numpy as np
import pytest
from linear_cases import batches_of, coupled, examples, group_read_by
from onnx_netadapt.passes import rows, targets
from onnx_netadapt.passes.consumers import consumers_of
from onnx_netadapt.passes.coupling import Coupling
from onnx_netadapt.passes.prune import prune
from onnx_netadapt.passes.sequential import refit_sequential
from onnx_netadapt.passes.targets import Target, Targets
from test_recover import residual


def _networks(coupling: Coupling) -> list[dict[str, np.ndarray]]:
    """Two networks that are narrowed in different places."""
    one, two = (group_read_by(coupling, name) for name in ("ph", "qh"))
    return [{one: np.arange(4)}, {one: np.arange(5), two: np.arange(4)}]


def test_shared_targets_give_the_weights_of_each_refit_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    model, x = residual(), examples((5, 6, 7), 90)
    coupling = coupled(model)
    read: list[list[str]] = []
    kept_read = Targets.read

    def watched(self: Targets, wanted: list[Target]) -> None:
        before = set(self._known)
        kept_read(self, wanted)
        read.append(sorted(target.tensor for target in self._known - before))

    monkeypatch.setattr(Targets, "read", watched)
    networks = _networks(coupling)
    pruned = [prune(coupling, kept).model for kept in networks]
    with closing(Targets(coupling.graph, consumers_of(coupling).all, batches_of(x))) as shared:
        together = [refit_sequential(coupling, k, m, shared) for k, m in zip(networks, pruned, strict=True)]
        again = refit_sequential(coupling, networks[1], pruned[1], shared)
    alone = [refit_sequential(coupling, k, m, batches_of(x)) for k, m in zip(networks, pruned, strict=True)]
    for one, other in zip([*together, again], [*alone, alone[1]], strict=True):
        assert one.keys() == other.keys()
        assert all(np.array_equal(one[name], other[name]) for name in one)
    assert read[0]
    assert not read[2]  # the same network once more reads nothing
    assert len(read[1]) < len(read[4])  # what the first had read was not read for the second


def test_examples_beyond_the_disk_are_not_read(monkeypatch: pytest.MonkeyPatch) -> None:
    coupling, x = coupled(residual()), examples((5, 6, 7), 90)
    monkeypatch.setattr(targets, "DISK_BYTES", 1)
    monkeypatch.setattr(rows, "MAX_PIECE", 32)
    item = consumers_of(coupling).all[-1]
    wanted = Target(item.node.index, item.output, 1, 1, item.channels * item.taps)
    with closing(Targets(coupling.graph, consumers_of(coupling).all, batches_of(x, size=90))) as found:
        found.read([wanted])
        assert (found.count, found.examples) == (1, 32)
        assert [len(feeds["x"]) for feeds in found.pieces()] == [32]


def test_a_share_of_the_rows_is_read() -> None:
    rng = np.random.default_rng(0)
    assert [len(rows.sample(10_000, 500, rng, share)) for share in (1.0, 0.5, 0.1)] == [50, 25, 5]
    assert len(rows.sample(7, 500, rng, 0.5)) == 7
