"""The main job, end to end, on the network and data that come with the package."""

import json
import subprocess
import sys

import numpy as np
import onnx
import onnx_netadapt as na
import pytest
from onnx_netadapt.ir.errors import InputError
from onnx_netadapt.journal import FileJournal
from onnx_netadapt.passes.equivalence import run_plain
from onnx_netadapt.passes.search import Step
from onnx_netadapt.splits import split

OPTIONS = {"finetune": "none", "min_keep": 0.25}


@pytest.fixture(scope="module")
def adapted(demo, tmp_path_factory):
    """One run with a budget of multiply-accumulates: nothing in it depends on a clock."""
    model, data = demo
    output = tmp_path_factory.mktemp("out") / "small.onnx"
    return na.adapt(model, "macs=0.6x", data=str(data), output=output, **OPTIONS), output


def test_the_budget_is_met_and_the_files_are_there(adapted):
    found, output = adapted
    assert found.report.met
    assert found.report.after.macs <= 0.6 * found.report.before.macs
    assert found.report.after.macs >= 0.9 * 0.6 * found.report.before.macs
    for end in (".onnx", ".plan.json", ".report.json", ".report.html"):
        assert output.with_name("small" + end).is_file()
    assert sorted(path.name for path in output.parent.iterdir()) == [
        "small.onnx", "small.plan.json", "small.report.html", "small.report.json",
    ]  # fmt: skip


def test_the_written_model_is_the_one_that_was_judged(adapted, demo):
    found, output = adapted
    written = onnx.load(output)
    onnx.checker.check_model(written, full_check=True)
    assert written.SerializeToString(deterministic=True) == found.model.SerializeToString(deterministic=True)
    original = onnx.load(demo[0])
    assert [v.name for v in written.graph.input] == [v.name for v in original.graph.input]
    assert list(written.graph.output) == list(original.graph.output)
    assert [n.name for n in written.graph.node] == [n.name for n in original.graph.node]


def test_the_score_is_that_of_the_report_set_alone(adapted, demo):
    found, output = adapted
    data = np.load(demo[1])
    name = onnx.load(output).graph.input[0].name
    from onnx_netadapt.data import load_data

    inputs = {name: ((None, *data[name].shape[1:]), data[name].dtype)}
    report = split(load_data(str(demo[1]), inputs), 0).report
    logits = run_plain(onnx.load(output), [{name: data[name][report]}], optimize=True)[0][0]
    assert found.report.after.score.name == "top1"
    assert found.report.after.score.n == len(report)
    assert found.report.after.score.value == pytest.approx((logits.argmax(1) == data["y"][report]).mean())


def test_it_keeps_most_of_the_accuracy(adapted):
    found, _ = adapted
    assert found.report.after.score.value >= 0.95 * found.report.before.score.value


def test_the_plan_proves_itself(adapted, demo):
    found, output = adapted
    checked = na.verify(demo[0], output, found.report.plan)
    assert checked.passed
    assert checked.refined


def test_a_wrong_plan_does_not(adapted, demo):
    found, output = adapted
    plan = json.loads(json.dumps(found.report.plan))
    member = next(m for m in plan["groups"][0]["members"] if m["role"] == "consumer")
    free = min(set(range(10**4)) - set(member["removed"]))
    member["removed"] = sorted([free, *member["removed"][1:]])
    assert not na.verify(demo[0], output, plan).passed


def test_the_json_report_follows_the_contract(adapted):
    report = json.loads(adapted[1].with_name("small.report.json").read_text())
    assert report["schema_version"] == 1
    assert {"median", "p10", "p90", "runs"} <= set(report["after"]["latency_ms"])
    assert {"name", "value", "n", "labelled"} == set(report["after"]["score"])
    assert all({"proposals", "measured", "estimate", "score", "widths"} <= set(step) for step in report["history"])
    assert report["plan"] == json.loads(adapted[1].with_name("small.plan.json").read_text())


def test_a_latency_budget_is_met_by_measurement(little, tmp_path):
    paths = {"output": tmp_path / "fast.onnx", "lut": tmp_path / "t.lut"}
    found = na.adapt(little[0], "0.7x", data=str(little[1]), **paths, **OPTIONS)
    budget = found.report.budgets[0]
    assert found.report.met
    assert budget["resource"] == "latency"
    assert found.report.history[-1]["measured"]["latency"] > 0
    assert found.report.lut["entries"] > 10


def test_without_data_it_says_so(little):
    found = na.adapt(little[0], "macs=0.9x", shapes={"image": (1, 1, 32, 32)}, only=("g1", "g3"), **OPTIONS)
    assert found.report.after.score is None
    assert any("synthetic" in text or "made up" in text or "no data" in text for text in found.report.warnings)


def test_uniform_search(little):
    found = na.adapt(little[0], "macs=0.5x", data=str(little[1]), search="multiplier", **OPTIONS)
    shares = [len(group["kept"]) / group["units"] for group in found.report.plan["groups"]]
    assert found.report.met
    assert max(shares) - min(shares) < 0.1


def test_a_model_within_its_budget_is_given_back_as_it_is(little):
    found = na.adapt(little[0], "macs=1G", data=str(little[1]))
    assert found.report.met
    assert found.model.SerializeToString(deterministic=True) == onnx.load(little[0]).SerializeToString(
        deterministic=True
    )


def test_excluded_groups_stay_whole(little):
    found = na.adapt(little[0], "macs=0.8x", data=str(little[1]), exclude=("g1", "g3"), **OPTIONS)
    assert not {"g1", "g3"} & {group["id"] for group in found.report.plan["groups"]}


def test_a_killed_run_resumes(little, tmp_path):
    """A run killed after its second step leaves no output; resumed, it ends where an unbroken run ends."""
    output = tmp_path / "out.onnx"
    script = (
        "import os, sys\n"
        "from onnx_netadapt import cli, journal\n"
        "add = journal.FileJournal.add\n"
        "def kill(self, step):\n"
        "    add(self, step)\n"
        "    if len(self._entries) == 2: os._exit(9)\n"
        "journal.FileJournal.add = kill\n"
        "cli._run(['adapt', *sys.argv[1:]])\n"
    )
    arguments = [str(little[0]), "--budget", "macs=0.8x", "--data", str(little[1]), "-o", str(output), "--quiet"]
    arguments += ["--finetune", "none", "--min-keep", "0.25", "--step", "0.05"]
    killed = subprocess.run([sys.executable, "-c", script, *arguments], capture_output=True, check=False)
    assert killed.returncode == 9
    assert sorted(path.name for path in tmp_path.iterdir()) == ["out.onnx.journal.jsonl"]
    from onnx_netadapt import cli

    assert cli._run(["adapt", *arguments, "--resume"]) == 0
    whole = na.adapt(little[0], "macs=0.8x", data=str(little[1]), step=0.05, **OPTIONS)
    assert output.read_bytes() == whole.model.SerializeToString(deterministic=True)  # also: same seed, same bytes


STEP = {
    "number": 0,
    "limits": {"latency": 5.0, "macs": 7},
    "proposals": [{"group": "g", "width": 2, "estimate": {"latency": 4.0}, "score": 1.0}],
    "widths": {"g": 2},
    "estimate": {"latency": 4.0, "macs": 6},
    "measured": {"latency": 4.5, "macs": 6},
    "score": 1.0,
}


def test_a_journal_of_a_slower_moment_is_told_at_the_speed_of_the_run(tmp_path):
    path = tmp_path / "j.jsonl"
    FileJournal(path, {"seed": 0}, resume=False, start_ms=10.0).add(Step(**STEP))
    (same,) = FileJournal(path, {"seed": 0}, resume=True, start_ms=10.0).past
    assert same.measured == STEP["measured"]
    (half,) = FileJournal(path, {"seed": 0}, resume=True, start_ms=5.0).past
    assert half.measured == {"latency": 2.25, "macs": 6}
    assert half.limits == {"latency": 2.5, "macs": 7}
    assert half.estimate["latency"] == half.proposals[0]["estimate"]["latency"] == 2.0
    counted = FileJournal(path, {"seed": 0}, resume=True)  # without a budget of latency nothing is told anew
    assert counted.past == [same]


@pytest.mark.parametrize("start", ['"ten"', "[1]", "{}x"])
def test_a_journal_whose_start_is_no_number_is_refused(tmp_path, start):
    path = tmp_path / "j.jsonl"
    path.write_text(f'{{"schema_version": 1, "start_ms": {start}}}\n{json.dumps(STEP)}\n')
    with pytest.raises(InputError, match="cannot be read"):
        FileJournal(path, {}, resume=True, start_ms=1.0)


@pytest.mark.parametrize("costs", [None, [1], 3, {"latency": "slow"}])
def test_a_journal_whose_costs_are_no_numbers_is_refused(tmp_path, costs):
    path = tmp_path / "j.jsonl"
    path.write_text(f'{{"schema_version": 1, "start_ms": 2.0}}\n{json.dumps(STEP | {"measured": costs})}\n')
    with pytest.raises(InputError, match="cannot be read"):
        FileJournal(path, {}, resume=True, start_ms=1.0)


def test_a_journal_of_another_run_is_refused(little, tmp_path):
    journal = tmp_path / "j.jsonl"
    journal.write_text('{"schema_version": 1, "seed": 5}\n')
    with pytest.raises(InputError, match="another run"):
        na.adapt(little[0], "macs=0.8x", data=str(little[1]), journal=journal, resume=True, **OPTIONS)


@pytest.mark.parametrize("text", ["[1]", "7", '{"schema_version": 1}\n[2]', '{"schema_version": 1}\n{"n": 1}', "{"])
def test_a_file_that_is_no_journal_is_refused(little, tmp_path, text):
    journal = tmp_path / "j.jsonl"
    journal.write_text(text)
    with pytest.raises(InputError, match="cannot be read"):
        na.adapt(little[0], "macs=0.8x", data=str(little[1]), journal=journal, resume=True, **OPTIONS)
