"""Nothing that the tool writes is slower than it should be: writes docs/never_slower.md.

    python benchmarks/never_slower.py [--only PART] [--budgets 0.9x,0.75x,0.5x] [--all] [--folder DIR]
                                      [--out docs/never_slower.md]

Every file of the shared models (or of another folder) that runs and takes at least 0.3 ms goes through the main job
without fine-tuning and on a few random inputs, one process for each; the result is then measured against the original
in another, fresh process, in alternating bursts. Good is a ratio in [0.95, 1.0] of the budget, or exit code 3 with
what can be reached, or an exit code 2 or 4 that names why the model cannot be pruned or run. Rows that are there are
kept and not run again; `--all` runs all of them again.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import subprocess
import sys
import tempfile
import time
from pathlib import Path

SHARED = Path(__file__).resolve().parents[2] / "shared" / "models"
LEAST_MS = 0.3
PATIENCE_S = 300
EXAMPLES = 24
LOW, HIGH = 0.95, 1.0
FAST = ("--finetune", "none", "--step", "0.1", "--quiet")
"""Only latency is looked at here: no training, and few steps of the search."""

HEAD = """# No model is slower than its budget

Made by `python benchmarks/never_slower.py` on {machine}, ONNX Runtime {ort}, one thread, options `{options}`.
`end`: the written model against the original, measured in a fresh process, as a share of the original; `of budget`:
that over the budget, good in [0.95, 1.0]. Files below {least} ms, and files that do not run, are left out.

| model | budget | start, ms | end | of budget | verdict | wall, s | what the tool said |
|---|---|---|---|---|---|---|---|
"""


def latency(path: Path) -> dict | str:
    """What `measure` says about a file, or its complaint."""
    command = [sys.executable, "-m", "onnx_netadapt.cli", "measure", str(path), "--json"]
    found = subprocess.run(command, capture_output=True, text=True, check=False, timeout=PATIENCE_S)
    return json.loads(found.stdout) if found.returncode == 0 else last_line(found.stderr)


def ratio(original: Path, written: Path) -> float:
    """The written model's latency as a multiple of the original's, in a fresh process."""
    command = [sys.executable, __file__, "--compare", str(original), str(written)]
    return float(subprocess.run(command, capture_output=True, text=True, check=True).stdout)


def compare(original: str, written: str) -> float:
    """The same, in this process: median over alternating bursts."""
    from onnx_netadapt.ir.load import load
    from onnx_netadapt.passes.equivalence import random_feeds
    from onnx_netadapt.profiler import Reference, Target, measure_against, runner

    target, graphs = Target(), [load(path) for path in (original, written)]
    feeds = random_feeds(graphs[0], 1)[0]
    before, after = (runner(graph.model, target, feeds) for graph in graphs)
    return measure_against(Reference(before), after, target, min_runs=50, min_seconds=2.0, patience=10.0).ratio


def run(path: Path, budget: str, start_ms: float, table: Path) -> str:
    """The row of one run; runs of one model share the latency table."""
    with tempfile.TemporaryDirectory() as folder:
        out = Path(folder, "out.onnx")
        command = [sys.executable, "-m", "onnx_netadapt.cli", str(path), "--budget", budget, "-o", str(out), *FAST]
        command += ["--data", str(few_examples(path, Path(folder))), "--lut", str(table)]
        began = time.monotonic()
        try:
            found = subprocess.run(command, capture_output=True, text=True, check=False, timeout=PATIENCE_S)
        except subprocess.TimeoutExpired:
            return cells(path, budget, start_ms, "", "", "TOO LONG", PATIENCE_S, "")
        seconds = time.monotonic() - began
        said = last_line(found.stderr)
        if found.returncode:
            verdict = {2: "refused", 3: "told", 4: "refused"}.get(found.returncode, "DEFECT")
            return cells(path, budget, start_ms, "", "", f"{verdict} (exit {found.returncode})", seconds, said)
        end = ratio(path, out)
        share = end / float(budget.removesuffix("x"))
        verdict = "met" if LOW <= share <= HIGH else "OVER" if share > HIGH else "under"
        return cells(path, budget, start_ms, f"{end:.3f}", f"{share:.3f}", verdict, seconds, "")


def few_examples(path: Path, folder: Path) -> Path:
    """Random inputs for a model: the search only has to go somewhere."""
    command = [sys.executable, __file__, "--examples", str(path), str(folder / "data.npz")]
    subprocess.run(command, capture_output=True, check=True)
    return folder / "data.npz"


def write_examples(path: str, out: str) -> None:
    """The same, in this process."""
    import numpy as np
    import onnx
    from onnx_netadapt.ir.load import load

    graph, rng = load(path), np.random.default_rng(0)
    arrays = {}
    for port in graph.inputs:
        dtype = onnx.helper.tensor_dtype_to_np_dtype(port.dtype)
        shape = (EXAMPLES, *graph.shapes[port.name][1:])
        drawn = rng.standard_normal(shape) if np.dtype(dtype).kind == "f" else np.zeros(shape)
        arrays[port.name] = drawn.astype(dtype)
    np.savez(out, **arrays)


def cells(
    path: Path, budget: str, start_ms: float, end: str, share: str, verdict: str, seconds: float, said: str
) -> str:
    text = said.removeprefix("onnx-netadapt: ").replace("|", "/")[:200]
    return f"| {path.stem} | {budget} | {start_ms:.3f} | {end} | {share} | {verdict} | {seconds:.0f} | {text} |"


def last_line(text: str) -> str:
    return (text.strip().splitlines() or [""])[-1]


def kept_rows(path: Path) -> dict[tuple[str, str], str]:
    """The rows of earlier runs, by model and budget."""
    lines = path.read_text().splitlines() if path.is_file() else []
    found = [([cell.strip() for cell in line.split("|")], line) for line in lines]
    return {(c[1], c[2]): line for c, line in found if len(c) > 8 and c[2].endswith("x")}


def summary(rows: dict[tuple[str, str], str]) -> str:
    counts: dict[str, int] = {}
    for row in rows.values():
        verdict = row.split("|")[6].strip()
        counts[verdict] = counts.get(verdict, 0) + 1
    return f"{len(rows)} runs: " + ", ".join(f"{n} {verdict}" for verdict, n in sorted(counts.items()))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--only", default="", help="part of a file's name")
    parser.add_argument("--budgets", default="0.9x,0.75x,0.5x")
    parser.add_argument("--all", action="store_true", help="run also what is in the document already")
    parser.add_argument("--folder", type=Path, default=SHARED, help="where the models are")
    parser.add_argument("--out", type=Path, default=Path("docs/never_slower.md"))
    parser.add_argument("--compare", nargs=2, help=argparse.SUPPRESS)
    parser.add_argument("--examples", nargs=2, help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.examples:
        write_examples(*arguments.examples)
        return
    if arguments.compare:
        print(compare(*arguments.compare))
        return
    if not arguments.folder.is_dir():
        sys.exit(f"there are no models in {arguments.folder}: nothing to run")
    import onnxruntime

    machine = f"{platform.processor() or platform.machine()}, {os.cpu_count()} cores"
    head = HEAD.format(machine=machine, ort=onnxruntime.__version__, options=" ".join(FAST), least=LEAST_MS)
    rows = kept_rows(arguments.out)
    for path in sorted(arguments.folder.glob("*.onnx")):
        budgets = [b for b in arguments.budgets.split(",") if arguments.all or (path.stem, b) not in rows]
        if arguments.only not in path.stem or not budgets:
            continue
        found = latency(path)
        if isinstance(found, str) or found["latency_ms"]["median"] < LEAST_MS:
            why = found if isinstance(found, str) else f"{found['latency_ms']['median']:.3f} ms"
            print(f"{path.stem} is left out: {why}", file=sys.stderr, flush=True)
            continue
        with tempfile.TemporaryDirectory() as folder:
            for budget in budgets:
                table = Path(folder, "table.lut")
                rows[path.stem, budget] = run(path, budget, found["latency_ms"]["median"], table)
                print(rows[path.stem, budget], flush=True)
                draft = arguments.out.with_suffix(".tmp")
                draft.write_text(head + "\n".join(rows.values()) + f"\n\n{summary(rows)}.\n")
                draft.replace(arguments.out)


if __name__ == "__main__":
    main()
