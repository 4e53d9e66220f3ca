"""`--allow-depth`, end to end: branches that give little go whole, and everything written about it can be checked."""

import json
from types import SimpleNamespace

import numpy as np
import onnx
import onnx_netadapt as na
import pytest
from net import Net
from onnx import numpy_helper
from onnx_netadapt import cli
from onnx_netadapt.budgets import parse_budgets
from onnx_netadapt.finalists import FEWEST, MOST, WHOLE, _rivals
from onnx_netadapt.ir import load
from onnx_netadapt.ir.errors import BudgetError, InputError
from onnx_netadapt.network import by_weight
from onnx_netadapt.options import Options
from onnx_netadapt.passes.branches import with_branches
from onnx_netadapt.passes.coupling import couple
from onnx_netadapt.passes.plain_layers import with_layers
from onnx_netadapt.passes.search import SearchResult
from onnx_netadapt.passes.sizes import Sizes
from onnx_netadapt.pipeline import set_up, takes_depth
from onnx_netadapt.profiler import Lut, Target, fill
from onnx_netadapt.profiler.trace import node_id
from onnx_netadapt.progress import Progress
from onnx_netadapt.searching import searcher_of

EXAMPLES = 120
BUDGET = "macs=0.55x"
"""Out of reach of the widths that OPTIONS leave, which keep 0.63 of the multiply-accumulates."""

OPTIONS = {"finetune": "none", "min_keep": 0.6, "exclude": ("g0",)}


def residual(path):
    """A net of four ResNet blocks, of which the first and the third give little, and inputs for it."""
    net = Net(seed=1)
    x = net.op("Relu", net.conv(net.input(1, 3, 12, 12), 3, 16, kernel=(3, 3), pads=[1] * 4))
    shares = {}
    for share in (0.03, 0.7, 0.03, 0.7):
        inner = net.op("Relu", net.conv(x, 16, 16, kernel=(3, 3), pads=[1] * 4))
        output = net.conv(inner, 16, 16, kernel=(3, 3), pads=[1] * 4)
        shares |= {name: share for name in net.nodes[-1].input[1:]}
        x = net.op("Relu", net.op("Add", output, x))
    pooled = net.op("Flatten", net.op("GlobalAveragePool", x))
    model = net.output(net.op("Gemm", pooled, net.weight(6, 16), net.weight(6), transB=1)).model()
    for tensor in model.graph.initializer:
        array = shares.get(tensor.name, 1.0) * numpy_helper.to_array(tensor)
        tensor.CopyFrom(numpy_helper.from_array(array.astype(np.float32), tensor.name))
    onnx.save(model, path)
    data = path.with_suffix(".npz")
    rng = np.random.default_rng(2)
    tones = 2 * rng.standard_normal((EXAMPLES, 3, 1, 1))
    np.savez(data, x0=(tones + rng.standard_normal((EXAMPLES, 3, 12, 12))).astype(np.float32))
    return path, data


@pytest.fixture(scope="module")
def files(tmp_path_factory):
    """The model and its inputs."""
    return residual(tmp_path_factory.mktemp("residual") / "net.onnx")


@pytest.fixture(scope="module")
def adapted(files, tmp_path_factory):
    """One run of the command line that writes everything; its journal stays."""
    output = tmp_path_factory.mktemp("out") / "small.onnx"
    code = cli._run(["adapt", *_arguments(files, output), "--journal", str(output.with_suffix(".jsonl"))])
    return code, output


def _arguments(files, output):
    told = [str(files[0]), "--budget", BUDGET, "--data", str(files[1]), "-o", str(output), "--quiet", "--allow-depth"]
    return [*told, "--finetune", "none", "--min-keep", "0.6", "--exclude", "g0"]


def _report(output):
    return json.loads(output.with_suffix(".report.json").read_text())


def test_branches_that_give_little_go_where_widths_alone_cannot_meet_the_budget(files, adapted):
    code, output = adapted
    report = _report(output)
    assert code == 0
    assert report["met"]
    gone = {branch["id"] for branch in report["plan"]["branches"]}
    assert gone
    assert gone <= {"g1", "g3"}
    assert {name for name, width in report["widths"].items() if width == 0} == gone
    assert report["equivalence"]["passed"]
    page = output.with_suffix(".report.html").read_text()
    assert all(branch["output"] in page and branch["nodes"][0] in page for branch in report["plan"]["branches"])
    with pytest.raises(BudgetError, match="cannot be met"):
        na.adapt(files[0], BUDGET, data=str(files[1]), **OPTIONS)


def test_the_written_model_is_shallower_and_counts_as_reported(files, adapted):
    report, model = _report(adapted[1]), onnx.load(adapted[1])
    onnx.checker.check_model(model, full_check=True)
    gone = report["plan"]["branches"]
    operators = [node.op_type for node in model.graph.node]
    assert operators.count("Conv") == 9 - 2 * len(gone)
    assert "Identity" not in operators
    coupling = couple(load(model))
    full = {group.id: group.units for group in coupling.groups}
    sizes = Sizes(coupling, {name: np.arange(width) for name, width in full.items()})
    assert (sizes.macs(full), sizes.params(full)) == (report["after"]["macs"], report["after"]["params"])
    original = onnx.load(files[0])
    assert list(model.graph.output) == list(original.graph.output)
    assert list(model.graph.input) == list(original.graph.input)


def test_verify_works_from_the_files_and_notices_a_wrong_plan(files, adapted, tmp_path, capsys):
    arguments = ["verify", str(files[0]), str(adapted[1])]
    assert cli._run(arguments) == 0
    plan = json.loads(adapted[1].with_suffix(".plan.json").read_text())
    plan["branches"] = []
    (tmp_path / "wrong.json").write_text(json.dumps(plan))
    assert cli._run([*arguments, "--plan", str(tmp_path / "wrong.json")]) == 2
    assert "FAILED" in capsys.readouterr().out


def test_a_run_goes_on_from_a_journal_with_branches_gone(files, adapted, tmp_path):
    lines = adapted[1].with_suffix(".jsonl").read_text().splitlines()
    first = next(n for n, line in enumerate(lines) if 0 in json.loads(line).get("widths", {}).values())
    assert first < len(lines) - 1
    output = tmp_path / "again.onnx"
    journal = output.with_suffix(".jsonl")
    journal.write_text("\n".join(lines[: first + 1]) + "\n")
    arguments = [*_arguments(files, output), "--journal", str(journal), "--resume"]
    assert cli._run(["adapt", *arguments]) == 0
    assert output.read_bytes() == adapted[1].read_bytes()


def test_a_journal_of_a_run_without_depth_is_refused(files, adapted):
    journal = adapted[1].with_suffix(".jsonl")
    with pytest.raises(InputError, match="allow_depth"):
        na.adapt(files[0], BUDGET, data=str(files[1]), journal=journal, resume=True, **OPTIONS)


@pytest.mark.parametrize("search", ["mcd", pytest.param("chamnet", marks=pytest.mark.slow)])
def test_the_other_searches_take_branches_out_too(files, search):
    found = na.adapt(files[0], BUDGET, data=str(files[1]), search=search, allow_depth=True, **OPTIONS)
    assert found.report.met
    assert "branches" in found.report.plan


def test_a_network_without_a_branch_is_fine_tuned_like_any_other(files):
    options = OPTIONS | {"finetune": "steps=4,check_every=2"}
    found = na.adapt(files[0], BUDGET, data=str(files[1]), allow_depth=True, **options)
    assert found.report.finetune["history"][-1]["step"] == 4
    assert "branches" in found.report.plan


@pytest.mark.parametrize(
    ("budget", "options", "taken"),
    [
        ("0.5x", {}, True),
        ("5ms", {"search": "mcd"}, True),
        ("energy=0.5x", {}, True),
        ("macs=0.5x", {}, False),
        ("size=0.5x", {}, False),
        ("macs=0.5x", {"allow_depth": True}, True),
        ("0.5x", {"allow_depth": False}, False),
        ("0.5x", {"published": True}, False),
        ("0.5x", {"search": "multiplier"}, False),
        ("0.5x", {"scoring": "masked"}, False),
    ],
)
def test_branches_may_go_where_what_is_measured_is_budgeted_unless_the_user_says_otherwise(budget, options, taken):
    run = SimpleNamespace(options=Options((budget,), **options), budgets=parse_budgets([budget]))
    assert takes_depth(run, None) is taken
    assert takes_depth(run, "a record of train-elastic") is bool(options.get("allow_depth"))


def test_a_budget_of_latency_below_the_least_widths_is_met_by_branches_that_go(files, tmp_path):
    """Four blocks of 16 channels on 12 x 12 pixels: what calling them takes does not shrink with their widths."""
    options = {"data": str(files[1]), "finetune": "none", "min_keep": 0.9, "quiet": True}
    found = na.adapt(files[0], "0.6x", best_effort=True, **options)
    assert found.report.plan["branches"]
    assert "went whole (--no-allow-depth keeps them)" in str(found.report)
    assert not any("--allow-depth" in warning for warning in found.report.warnings)


def test_a_branch_stays_where_a_group_within_it_is_to_stay():
    """A bottleneck: the last product sums over the second group, and the first one would go with it."""
    net = Net(seed=1)
    x = net.op("Relu", net.conv(net.input(1, 3, 12, 12), 3, 16, kernel=(3, 3), pads=[1] * 4))
    first = net.op("Relu", net.conv(x, 16, 8))
    second = net.op("Relu", net.conv(first, 8, 8, kernel=(3, 3), pads=[1] * 4))
    y = net.op("Relu", net.op("Add", net.conv(second, 8, 16), x))
    model = net.output(net.conv(net.conv(y, 16, 8), 8, 6)).model()
    narrowing = by_weight(with_branches(couple(load(model))))
    (branch,) = narrowing.coupling.branches
    (other,) = branch.inside - {branch.id}

    def may_go(**told):
        return any(choice.widths[0] == 0 for choice in narrowing.choices(None, 0.1, **told))

    assert may_go()
    assert not may_go(exclude=[other])
    assert not may_go(only=[branch.id])
    assert may_go(only=[branch.id, other])


def rivals_of(files, search):
    options = Options(budgets=(BUDGET,), data=str(files[1]), allow_depth=True, exclude=("g0",), search=search)
    bench = set_up(files[0], options, "", Progress(quiet=True), "")
    limits = bench.limits(bench.run.budgets)
    searcher = searcher_of(bench.run, bench.narrowing, bench.cost, bench.choices, bench.scorer, limits, bench.samples)
    widths = dict(bench.narrowing.full)
    result = SearchResult(widths, bench.cost.measure(widths), ())
    return list(_rivals(bench.narrowing, searcher, result, []))


def test_one_of_the_finalists_keeps_all_branches(files):
    rivals = rivals_of(files, "netadapt")
    assert len([rival for rival in rivals if 0 not in rival.values()]) >= WHOLE
    assert any(0 in rival.values() for rival in rivals)
    assert len(rivals) <= MOST + WHOLE


def test_what_a_predictor_found_meets_the_first_of_the_curves_networks(files):
    rivals, all_of_them = rivals_of(files, "chamnet"), rivals_of(files, "netadapt")
    assert 0 < len(rivals) <= FEWEST
    assert rivals == all_of_them[: len(rivals)]


def test_a_model_without_branches_says_so(files, tmp_path):
    net = Net()
    x = net.op("Relu", net.conv(net.input(1, 3, 12, 12), 3, 8, kernel=(3, 3)))
    onnx.save(net.output(net.op("GlobalAveragePool", net.conv(x, 8, 6))).model(), tmp_path / "net.onnx")
    options = Options(budgets=("macs=0.8x",), data=str(files[1]), allow_depth=True)
    bench = set_up(tmp_path / "net.onnx", options, "", Progress(quiet=True), "")
    assert any("--allow-depth: no residual branch" in warning for warning in bench.run.warnings)
    assert all(choice.widths[0] > 0 for choice in bench.choices)


@pytest.fixture(scope="module")
def chain(files, tmp_path_factory):
    """A net without sums, of whose six convolutions of one width the second and the fifth do little."""
    net = Net(seed=1)
    x = net.op("Relu", net.conv(net.input(1, 3, 12, 12), 3, 16, kernel=(3, 3), pads=[1] * 4))
    shares = {}
    for share in (1.0, 0.05, 1.0, 1.0, 0.05, 1.0):
        x = net.op("Relu", net.conv(x, 16, 16, kernel=(3, 3), pads=[1] * 4))
        shares |= {name: share for name in net.nodes[-2].input[1:] if share < 1}
    x = net.op("Relu", net.conv(x, 16, 16, kernel=(3, 3), pads=[1] * 4, group=16))
    pooled = net.op("Flatten", net.op("GlobalAveragePool", x))
    model = net.output(net.op("Gemm", pooled, net.weight(6, 16), net.weight(6), transB=1)).model()
    for tensor in model.graph.initializer:
        if tensor.name in shares:
            array = shares[tensor.name] * numpy_helper.to_array(tensor)
            if array.ndim == 4:
                array[:, :, 1, 1] += np.eye(16)
            tensor.CopyFrom(numpy_helper.from_array(array.astype(np.float32), tensor.name))
    path = tmp_path_factory.mktemp("chain") / "net.onnx"
    onnx.save(model, path)
    return path


@pytest.fixture(scope="module")
def shortened(chain, files, tmp_path_factory):
    """One run of the command line on it, fine-tuned for a few steps."""
    output = tmp_path_factory.mktemp("out") / "small.onnx"
    told = [str(chain), "--budget", "macs=0.3x", "--data", str(files[1]), "-o", str(output), "--quiet", "--allow-depth"]
    code = cli._run(["adapt", *told, "--finetune", "steps=4,check_every=2", "--min-keep", "0.6"])
    return code, output


def test_plain_layers_that_do_little_go_where_widths_alone_cannot_meet_the_budget(chain, files, shortened):
    code, output = shortened
    report = _report(output)
    assert code == 0
    assert report["met"]
    gone = [entry["layer"] for entry in report["plan"]["branches"]]
    assert gone
    assert report["equivalence"]["passed"]
    assert report["finetune"]["history"][-1]["step"] == 4
    with pytest.raises(BudgetError, match="cannot be met"):
        na.adapt(chain, "macs=0.3x", data=str(files[1]), finetune="none", min_keep=0.6)


@pytest.mark.parametrize("search", [pytest.param(name, marks=pytest.mark.slow) for name in ("mcd", "chamnet")])
def test_the_other_searches_take_plain_layers_out_too(chain, files, search):
    options = {"finetune": "none", "min_keep": 0.6, "search": search, "allow_depth": True}
    found = na.adapt(chain, "macs=0.3x", data=str(files[1]), **options)
    assert found.report.met
    assert any("layer" in entry for entry in found.report.plan["branches"])


def test_the_shortened_model_counts_as_reported_and_is_verified_from_its_files(chain, shortened, tmp_path, capsys):
    report, model = _report(shortened[1]), onnx.load(shortened[1])
    onnx.checker.check_model(model, full_check=True)
    operators = [node.op_type for node in model.graph.node]
    assert operators.count("Conv") == 8 - len(report["plan"]["branches"])
    assert "Identity" not in operators
    coupling = couple(load(model))
    full = {group.id: group.units for group in coupling.groups}
    sizes = Sizes(coupling, {name: np.arange(width) for name, width in full.items()})
    assert (sizes.macs(full), sizes.params(full)) == (report["after"]["macs"], report["after"]["params"])
    assert cli._run(["verify", str(chain), str(shortened[1])]) == 0
    plan = json.loads(shortened[1].with_suffix(".plan.json").read_text())
    plan["branches"] = []
    (tmp_path / "wrong.json").write_text(json.dumps(plan))
    assert cli._run(["verify", str(chain), str(shortened[1]), "--plan", str(tmp_path / "wrong.json")]) == 2
    assert "FAILED" in capsys.readouterr().out


def test_estimates_without_a_plain_layer_leave_what_writes_its_input(chain, files):
    narrowing = by_weight(with_layers(with_branches(couple(load(chain)))))
    feeds = {"x0": np.load(files[1])["x0"][:1]}
    with Lut.open(":memory:", Target.parse("cpu").fingerprint()) as lut:
        network = narrowing.measurable(narrowing.choices(None, 0.5), feeds)
        model = fill(lut, Target.parse("cpu"), network, np.random.default_rng(0), variants=4, off_edges=0)
    nodes = narrowing.graph.model.graph.node
    layer = narrowing.coupling.branches[1]
    writer, last = (node_id(nodes[narrowing.graph.producer[name].index]) for name in (layer.shortcut, layer.output))

    def us(name):
        return sum(part.us for part in model.explain({layer.id: 0}).parts if name in part.nodes)

    assert us(last) == 0
    assert us(writer) > 0


def test_masks_cannot_take_branches_out():
    with pytest.raises(InputError, match="refit"):
        Options(budgets=("0.5x",), scoring="masked", allow_depth=True)


def test_estimates_count_what_is_gone_as_nothing(files):
    narrowing = by_weight(with_branches(couple(load(files[0]))))
    choices = narrowing.choices(None, 0.5)
    feeds = {"x0": np.load(files[1])["x0"][:1]}
    with Lut.open(":memory:", Target.parse("cpu").fingerprint()) as lut:
        network = narrowing.measurable(choices, feeds)
        model = fill(lut, Target.parse("cpu"), network, np.random.default_rng(0), variants=4, off_edges=0)
    (branch,) = [branch for branch in narrowing.coupling.branches if branch.id == "g3"]
    names = {node_id(narrowing.graph.model.graph.node[index]) for index in (*branch.nodes, branch.total)}
    inside = [part for part in model.explain(narrowing.full).parts if names & set(part.nodes)]
    assert sum(part.us for part in inside) > 0
    without = [part for part in model.explain({"g3": 0}).parts if names & set(part.nodes)]
    assert {(part.kind, part.us) for part in without} == {("", 0.0)}
    others = [part.us for part in model.explain({"g3": 0}).parts if not names & set(part.nodes)]
    assert others
    assert model.estimates([{"g3": 0}])[0] == pytest.approx(model.estimate({"g3": 0}))
    assert all(0 not in edges for edges in network.edges.values())
