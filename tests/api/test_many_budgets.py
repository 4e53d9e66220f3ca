"""Many budgets in one run, on the network and data that come with the package."""

import itertools
import json
import subprocess
import sys
from dataclasses import replace

import onnx
import onnx_netadapt as na
import pytest
from onnx_netadapt import cli, finish
from onnx_netadapt.budgets import each_budget
from onnx_netadapt.ir.errors import BudgetError, InputError
from onnx_netadapt.options import Options
from onnx_netadapt.passes.search import Step, frontier
from onnx_netadapt.pipeline import set_up
from onnx_netadapt.progress import Progress
from onnx_netadapt.run import Shared
from onnx_netadapt.sweep import row_of

OPTIONS = {"finetune": "none", "min_keep": 0.25, "only": ("g1", "g3", "g5"), "search": "mcd"}
FLAGS = ["--finetune", "none", "--min-keep", "0.25", "--only", "g1", "--only", "g3", "--only", "g5", "--search", "mcd"]


@pytest.fixture(scope="module")
def swept(little, tmp_path_factory):
    output = tmp_path_factory.mktemp("out") / "small.onnx"
    return na.adapt_each(little[0], ["macs=0.7x", "macs=0.9x"], data=little[1], output=output, **OPTIONS), output


def test_every_budget_has_its_model_with_the_budget_in_its_name(swept):
    found, output = swept
    assert [row.budgets for row in found.pareto.rows] == [("macs=0.9x",), ("macs=0.7x",)]
    for row, model, share in zip(found.pareto.rows, found.models, (0.9, 0.7), strict=True):
        assert row.met
        assert row.measured["macs"] == row.macs <= share * found.pareto.original.macs
        written = output.with_name(f"small.macs-{share}x.onnx")
        assert row.output == str(written)
        assert written.read_bytes() == model.SerializeToString(deterministic=True)
        onnx.checker.check_model(onnx.load(written), full_check=True)
    ends = ("onnx", "plan.json", "report.html", "report.json")
    names = {f"small.macs-{share}x.{end}" for share in (0.7, 0.9) for end in ends}
    assert {path.name for path in output.parent.iterdir()} == names | {"small.pareto.json", "small.pareto.html"}


def _is_the_search_s(step):
    return step["proposals"] and step["proposals"][0]["group"] != "finalist"


def test_one_pass_goes_through_all_budgets(swept):
    _, output = swept
    loose, tight = (
        json.loads(output.with_name(f"small.macs-{share}x.report.json").read_text()) for share in (0.9, 0.7)
    )
    # finalists of the looser budget, and what spends the rest of it, are not gone on from
    searched = list(itertools.takewhile(_is_the_search_s, loose["history"]))
    assert tight["history"][: len(searched)] == searched
    assert len(tight["history"]) > len(searched) > 0


def test_the_table_has_the_whole_frontier_and_the_plot_its_points(swept):
    found, output = swept
    told = json.loads(output.with_name("small.pareto.json").read_text())
    assert told["schema_version"] == 1
    assert [row["output"] for row in told["rows"]] == [row.output for row in found.pareto.rows]
    costs = [step["measured"]["macs"] for step in told["frontier"]]
    scores = [step["score"] for step in told["frontier"]]
    assert costs == sorted(costs, reverse=True)
    assert scores == sorted(scores, reverse=True)
    page = output.with_name("small.pareto.html").read_text()
    assert page.count("<circle") == 3 + len(costs)
    assert "macs=0.7x" in str(found.pareto)


def _measured(before, after, resource="latency"):
    """A report of a moment at which the original took so many milliseconds."""
    state = {"latency_ms": {"median": after}, "macs": 1, "params": 1, "size_bytes": 1, "score": None}
    budgets = [{"resource": resource, "measured": after if resource == "latency" else 7}]
    return {"before": {"latency_ms": {"median": before}}, "after": state, "budgets": budgets, "output": "", "met": True}


def test_latencies_that_were_measured_at_other_speeds_of_the_machine_are_told_at_one():
    quiet, busy = _measured(4.0, 2.0), _measured(6.0, 3.0)
    rows = [row_of(("0.5x",), report, report["after"], 5.0) for report in (quiet, busy)]
    assert [(row.latency_ms, row.measured["latency"]) for row in rows] == [(2.5, 2.5)] * 2
    counted = _measured(6.0, 3.0, "macs")
    row = row_of(("macs=0.5x",), counted, counted["after"], 5.0)
    assert (row.latency_ms, row.measured["macs"]) == (2.5, 7)


def test_a_budget_in_milliseconds_is_told_as_the_clock_had_it():
    report = _measured(6.0, 3.0)
    row = row_of(("3.1ms",), report, report["after"], 5.0)
    assert (row.latency_ms, row.measured["latency"]) == (3.0, 3.0)


def test_the_frontier_leaves_out_what_another_step_beats_in_everything():
    def step(number, macs, size, score):
        return Step(number, {}, (), {"a": number}, {}, {"macs": macs, "size": size}, score)

    steps = [step(0, 9, 9, 5.0), step(1, 7, 8, 4.0), step(2, 7, 9, 3.0), step(3, 8, 2, 3.5), step(4, 1, 1, 1.0)]
    assert [s.number for s in frontier(steps, ["macs", "size"])] == [0, 3, 1, 4]
    assert [s.number for s in frontier(steps, ["macs"])] == [0, 1, 4]


def test_a_killed_run_goes_on_and_leaves_what_is_written(little, swept, tmp_path):
    script = (
        "import os, sys\n"
        "from onnx_netadapt import cli, journal\n"
        "finish = journal.FileJournal.finish\n"
        "def kill(self):\n"
        "    finish(self)\n"
        "    os._exit(9)\n"
        "journal.FileJournal.finish = kill\n"
        "cli._run(['adapt', *sys.argv[1:]])\n"
    )
    arguments = [little[0], "--budget", "macs=0.7x,macs=0.9x", "--data", little[1], "-o", str(tmp_path / "small.onnx")]
    arguments += ["--quiet", *FLAGS]
    killed = subprocess.run([sys.executable, "-c", script, *arguments], capture_output=True, check=False)
    assert killed.returncode == 9
    first = tmp_path / "small.macs-0.9x.onnx"
    assert (tmp_path / "small.onnx.journal.jsonl").is_file()
    assert not (tmp_path / "small.macs-0.7x.onnx").exists()
    before = first.stat().st_mtime_ns
    assert cli._run(["adapt", *arguments, "--resume"]) == 0
    assert first.stat().st_mtime_ns == before
    for share in (0.7, 0.9):
        name = f"small.macs-{share}x.onnx"
        assert (tmp_path / name).read_bytes() == swept[1].with_name(name).read_bytes()
    assert not (tmp_path / "small.onnx.journal.jsonl").exists()


def test_nothing_is_written_when_the_tightest_budget_is_out_of_reach(little, tmp_path):
    output = tmp_path / "small.onnx"
    with pytest.raises(BudgetError, match="budget cannot be met"):
        na.adapt_each(little[0], ["macs=0.9x", "macs=0.01x"], data=little[1], output=output, **OPTIONS)
    assert list(tmp_path.iterdir()) == []


def test_lists_of_budgets():
    assert each_budget(["40ms", "size=4MB"]) == (("40ms", "size=4MB"),)
    assert each_budget(["0.8x,0.6x", "size=4MB"]) == (("0.8x", "size=4MB"), ("0.6x", "size=4MB"))
    for texts, why in (
        (["0.8x,0.6x", "size=4MB,size=3MB"], "only one"),
        (["0.8x,macs=0.6x"], "one resource"),
        (["0.8x,0.8x"], "named twice"),
        (["0.8x,"], "not an amount"),
    ):
        with pytest.raises(InputError, match=why):
            each_budget(texts)


def test_the_original_is_judged_once_for_all_budgets(little, monkeypatch):
    model, data = little
    run = set_up(model, Options(("macs=0.5x",), data=data), "demo", Progress(quiet=True), "").run
    scores = finish.report_scores(run, run.graph.model)
    assert scores[0] == scores[1]
    goal = run.goal
    monkeypatch.setattr(finish, "report_evaluator", "nobody else is made to judge")
    other = replace(run, budgets={}, warnings=[], seconds={})
    assert finish.report_scores(other, run.graph.model) == scores
    assert other.goal is goal
    with pytest.raises(TypeError):  # negative control
        finish.report_scores(replace(run, shared=Shared()), run.graph.model)
