"""The generated support tables say what the rules say."""

import importlib.util
import sys
from pathlib import Path
from types import ModuleType

import pytest

ROOT = Path(__file__).resolve().parents[1]


@pytest.fixture(scope="module")
def support() -> ModuleType:
    spec = importlib.util.spec_from_file_location("support", ROOT / "benchmarks" / "support.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules["support"] = module  # dataclasses look their module up
    spec.loader.exec_module(module)
    return module


def test_the_tables_are_up_to_date(support: ModuleType) -> None:
    readme = (ROOT / "README.md").read_text()
    fix = "run `python benchmarks/support.py`"
    assert (ROOT / "docs" / "operators.md").read_text() == support.full_table(), fix
    assert readme == support.in_readme(readme), fix


def test_a_stale_table_is_noticed(support: ModuleType, monkeypatch: pytest.MonkeyPatch) -> None:
    before = support.full_table(), support.short_table()
    fewer = support.operators()[:-1]
    monkeypatch.setattr(support, "operators", lambda: fewer)
    assert support.full_table() != before[0]
    assert support.short_table() != before[1]


def test_every_rule_is_in_the_table(support: ModuleType) -> None:
    from onnx_netadapt.ir.ops import all_rules

    listed = {(o.domain, o.name, since) for o in support.operators() for since in o.since}
    assert listed == all_rules().keys()
