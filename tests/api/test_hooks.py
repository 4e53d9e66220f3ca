"""A user's own loss, loop and callback, through the Python function and through the command line's spelling."""

import onnx_netadapt as na
import pytest
from onnx_netadapt.hooks import hooks_of
from onnx_netadapt.ir.errors import InputError
from onnx_netadapt.options import Options

torch = pytest.importorskip("torch")

OPTIONS = {"min_keep": 0.25, "finetune": "steps=6,check_every=2,batch=16,threads=1,patience=9"}

MINE = """
import torch

CALLS = []

def loss(outputs, targets, labels):
    CALLS.append((len(outputs), len(targets), None if labels is None else tuple(labels.shape)))
    return torch.nn.functional.mse_loss(outputs[0], targets[0])

def loop(training):
    CALLS.append("loop")
    next(training.batches())
    training.check(1)

NUMBER = 3
"""


@pytest.fixture
def mine(tmp_path, monkeypatch):
    """A module of the user's own in the current folder."""
    (tmp_path / "my_hooks_for_a_test.py").write_text(MINE)
    monkeypatch.chdir(tmp_path)
    return "my_hooks_for_a_test"


def test_functions_are_called(little):
    model, data = little
    losses, checks = [], []

    def loss(outputs, targets, labels):
        losses.append((len(outputs), len(labels)))
        return torch.nn.functional.mse_loss(outputs[0], targets[0])

    found = na.adapt(model, "macs=0.6x", data=data, loss=loss, callback=checks.append, **OPTIONS)
    assert losses == [(1, 16)] * 6
    assert [check.step for check in checks] == [2, 4, 6]
    assert [entry["step"] for entry in found.report.finetune["history"]] == [0, 2, 4, 6]
    assert found.report.finetune["images"] == 6 * 16


def test_a_loop_takes_the_place_of_ours(little):
    model, data = little
    seen = []

    def train(training):
        seen.append(sorted(next(training.batches()).inputs))
        training.check(1)

    found = na.adapt(model, "macs=0.6x", data=data, train=train, **OPTIONS)
    assert len(seen) == 1
    assert "--train" in found.report.finetune["reason"]


def test_names_are_found_in_the_current_folder(mine):
    hooks = hooks_of(Options(budgets=("0.5x",), loss=f"{mine}:loss", train=f"{mine}:loop"))
    assert hooks.loss is not None
    assert hooks.loss.__name__ == "loss"
    assert hooks.train is not None
    assert hooks.train.__name__ == "loop"
    assert hooks.callback is None


@pytest.mark.parametrize(
    ("option", "spec", "said"),
    [
        ("loss", "my_hooks_for_a_test:NUMBER", "not a function"), ("loss", "my_hooks_for_a_test:absent", "absent"),
        ("train", "no_such_module_here:f", "no_such_module_here"), ("train", "f", "package.module:function"),
        ("callback", 3, "callback"),
    ],
)  # fmt: skip
def test_what_is_no_function_is_refused_before_any_work(mine, little, option, spec, said):
    model, data = little
    with pytest.raises(InputError, match=said):
        na.adapt(model, "macs=0.6x", data=data, **{option: spec})
