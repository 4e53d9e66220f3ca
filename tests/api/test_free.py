from collections.abc import Mapping

from onnx_netadapt.free import widen_free
from onnx_netadapt.passes.search import Choice

CHOICES = [Choice("a", (4, 8, 12, 16)), Choice("b", (8, 16, 24, 32))]


class Stair:
    """Latency in steps of 16 channels of `a` and 8 of `b`; a parameter for each channel."""

    def __call__(self, widths: Mapping[str, int], /) -> dict[str, float]:
        return {"latency": -(-widths["a"] // 16) + -(-widths["b"] // 8) / 4, "params": float(sum(widths.values()))}

    def measure(self, widths: Mapping[str, int], /) -> dict[str, float]:
        return self(widths)


def test_a_width_is_raised_where_it_costs_nothing_and_nowhere_else() -> None:
    assert widen_free(CHOICES, Stair(), {"a": 4, "b": 16}, {"latency": 9.0}) == {"a": 16, "b": 16}
    assert widen_free(CHOICES, Stair(), {"a": 16, "b": 8}, {"latency": 9.0}) == {"a": 16, "b": 8}


def test_another_budget_is_kept() -> None:
    limits = {"latency": 9.0, "params": 25.0}
    assert widen_free(CHOICES, Stair(), {"a": 4, "b": 16}, limits) == {"a": 8, "b": 16}


def test_what_is_over_a_budget_already_grows_no_further() -> None:
    limits = {"latency": 9.0, "params": 10.0}
    assert widen_free(CHOICES, Stair(), {"a": 4, "b": 16}, limits) == {"a": 4, "b": 16}
