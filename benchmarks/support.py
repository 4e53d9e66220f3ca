"""The support table: writes docs/operators.md and the short table in README.md from the rules themselves.

    python benchmarks/support.py

Nothing is written down twice: the operators, the definitions that their rules were written for, and whether they have
a torch form come from `ir/ops`. Every definition listed has a test record (a test checks that), and another test fails
when these files are stale.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import partial
from importlib import import_module
from pathlib import Path

from onnx_netadapt.ir.ops import FAMILIES, OpRule
from onnx_netadapt.ir.ops.opaque import relate_opaque
from onnx_netadapt.ir.ops.torch_only import forms

ROOT = Path(__file__).resolve().parents[1]
BEGIN, END = "<!-- operators: begin -->", "<!-- operators: end -->"

PREFACE = """# Operators

Made by `python benchmarks/support.py` from the rules in `ir/ops`. "Definitions" are ONNX's since_version numbers: each
has a test record of its own, with the zeroing check and a planted mistake. A definition that is not listed, or an
operator that is not, is a barrier that names itself. "torch": models with it can be fine-tuned. "Holds": no channel can
be followed through it, for this reason; what it touches stays whole.
"""

HEAD = "| operator | domain | definitions | torch | holds |\n|---|---|---|---|---|"


@dataclass(frozen=True)
class Operator:
    """One operator of one domain: its family, definitions that have a rule, the reason where it holds everything."""

    name: str
    domain: str
    family: str
    since: tuple[int, ...]
    held: str
    torch: bool


def operators() -> list[Operator]:
    """All operators with a rule, family by family, each in the order of their names."""
    found: list[Operator] = []
    for family in FAMILIES:
        for name, given in sorted(import_module(f"onnx_netadapt.ir.ops.{family}").RULES.items()):
            rules = given if isinstance(given, tuple) else (given,)
            found += [
                _operator(name, domain, family, [rule for rule in rules if rule.domain == domain])
                for domain in sorted({rule.domain for rule in rules})
            ]
    return found


def _operator(name: str, domain: str, family: str, rules: list[OpRule]) -> Operator:
    since = tuple(sorted(version for rule in rules for version in rule.since))
    relate = rules[0].relate
    held = str(relate.keywords["reason"]) if isinstance(relate, partial) and relate.func is relate_opaque else ""
    lowered = any(rule.lower is not None for rule in rules) or (domain, name) in forms()
    return Operator(name, domain, family, since, held, lowered)


def title(family: str) -> str:
    """What a family's file says of itself, first sentence."""
    text = import_module(f"onnx_netadapt.ir.ops.{family}").__doc__ or family
    return " ".join(text.split("\n\n")[0].split()).split(". ")[0].split(": ")[0].rstrip(".")


def full_table() -> str:
    """docs/operators.md."""
    blocks = [PREFACE]
    for family in FAMILIES:
        rows = [
            f"| {o.name} | {o.domain or 'ai.onnx'} | {', '.join(map(str, o.since))} | {'yes' if o.torch else '-'} "
            f"| {o.held or '-'} |"
            for o in operators()
            if o.family == family
        ]
        blocks.append("\n".join([f"## {title(family)}\n", HEAD, *rows]) + "\n")
    return "\n".join(blocks)


def short_table() -> str:
    """The table of the README: the operators of each family by name."""
    lines = ["| family | channels are followed through | held, with a reason |", "|---|---|---|"]
    for family in FAMILIES:
        its = [operator for operator in operators() if operator.family == family]
        followed = sorted({o.name for o in its if not o.held})
        held = sorted({o.name for o in its if o.held})
        lines.append(f"| {title(family)} | {', '.join(followed) or '-'} | {', '.join(held) or '-'} |")
    return "\n".join(lines)


def in_readme(text: str) -> str:
    """The README with the short table between its markers."""
    before, _, rest = text.partition(BEGIN)
    _, _, after = rest.partition(END)
    return f"{before}{BEGIN}\n{short_table()}\n{END}{after}"


def main() -> None:
    (ROOT / "docs" / "operators.md").write_text(full_table())
    readme = ROOT / "README.md"
    readme.write_text(in_readme(readme.read_text()))


if __name__ == "__main__":
    main()
