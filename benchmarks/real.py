"""The main job on real models: writes docs/results.md.

    python benchmarks/real.py [--only NAME] [--budgets 0.7x,0.5x] [--out docs/results.md]

Rows of the file that are not run again are kept.

Needs the folders `models` and `data` of the shared files beside the checkout; says so and stops when they are absent.
Every line is one run of the command line in a process of its own: wall time and peak memory are that process's.
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
from dataclasses import dataclass
from pathlib import Path

import numpy as np

SHARED = Path(__file__).resolve().parents[2] / "shared"
IMAGES = SHARED / "data" / "imagenet_sample"


DETECTOR = ("--finetune", "none")
"""Minutes of training at these sizes on two cores; the images are no detection data either."""


@dataclass(frozen=True)
class Case:
    """One model with the options that feed it."""

    model: str
    data: str
    preprocess: str
    report_data: str | None = None
    options: tuple[str, ...] = ()


def cases(folder: Path) -> list[Case]:
    cifar = "mean=0.485/0.456/0.406,std=0.229/0.224/0.225".replace("/", ",")
    train, test = cifar_files(folder)
    return [
        Case("derived_mbv2_imagenet_dynamo_dequant", str(IMAGES), "imagenet,crop=1"),
        Case("derived_torch_cifar10_resnet20", train, cifar, test),
        Case("derived_torch_cifar10_resnet56", train, cifar, test),
        Case(
            "cls_squeezenet11_imagenet_fp16_caffe2", str(IMAGES), "size=224,order=BGR,scale=1,mean=103.94,116.78,123.68"
        ),
        Case("det_yolox_nano", str(IMAGES), "size=416,order=BGR,scale=1", options=DETECTOR),
        Case("facedet_scrfd500m", str(IMAGES), "size=640,scale=1,mean=127.5,std=128", options=DETECTOR),
    ]


def cifar_files(folder: Path) -> tuple[str, str]:
    """CIFAR-10 as two files: training images (they calibrate and select) and test images (they report)."""
    data = np.load(SHARED / "data" / "cifar10_lossless.npz")
    paths = []
    for part in ("train", "test"):
        paths.append(folder / f"cifar10_{part}.npz")
        np.savez(paths[-1], x=data[f"x_{part}"], y=data[f"y_{part}"])
    return str(paths[0]), str(paths[1])


def run(case: Case, budget: str, folder: Path, extra: list[str]) -> dict[str, object]:
    """One run, its report, exit code, wall seconds and peak memory."""
    out = folder / f"{case.model}_{budget}.onnx"
    command = [
        sys.executable, "-m", "onnx_netadapt.cli", str(SHARED / "models" / f"{case.model}.onnx"), "--budget", budget,
        "--data", case.data, "--preprocess", case.preprocess, "-o", str(out), "--json", *case.options, *extra,
    ]  # fmt: skip
    if case.report_data:
        command += ["--report-data", case.report_data]
    log = folder / "log.txt"
    began = time.monotonic()
    with log.open("w") as errors, (folder / "out.json").open("w") as output:
        process = subprocess.Popen(command, stdout=output, stderr=errors)
        _, status, usage = os.wait4(process.pid, 0)
    found: dict[str, object] = {
        "code": os.waitstatus_to_exitcode(status),
        "seconds": time.monotonic() - began,
        "peak_mb": usage.ru_maxrss / 1024,
        "log": log.read_text(),
    }
    if found["code"] == 0:
        found["report"] = json.loads((folder / "out.json").read_text())
        found["verify"] = verify(SHARED / "models" / f"{case.model}.onnx", out)
    return found


def verify(original: Path, pruned: Path) -> bool:
    command = [sys.executable, "-m", "onnx_netadapt.cli", "verify", str(original), str(pruned)]
    return subprocess.run(command, capture_output=True, check=False).returncode == 0


def row(case: Case, budget: str, found: dict) -> str:
    if found["code"] != 0:
        last = found["log"].strip().splitlines()[-1:] or [""]
        return f"| {case.model} | {budget} | exit {found['code']}: {last[0][:120]} ||||||||"
    report = found["report"]
    before, after = report["before"], report["after"]
    limit = report["budgets"][0]
    score = (
        "-"
        if not after["score"]
        else (
            f"{after['score']['name']} {before['score']['value']:.4f} -> {after['score']['value']:.4f} "
            f"(n={after['score']['n']})"
        )
    )
    tuned = report["finetune"].get("said", "")
    return (
        f"| {case.model} | {budget} | {before['latency_ms']['median']:.3f} (p90 {before['latency_ms']['p90']:.3f}) "
        f"| {after['latency_ms']['median']:.3f} (p90 {after['latency_ms']['p90']:.3f}) | {limit['share']:.3f} "
        f"| {report['estimate_ms']:.3f} | {score} | {tuned} | {found['seconds']:.0f} | {found['peak_mb']:.0f} "
        f"| {'passed' if found['verify'] else 'FAILED'} |"
    )


HEADER = """# Results on real models

Made by `python benchmarks/real.py` on {machine}, ONNX Runtime {ort}, one thread, batch 1, seed 0.
Latency: median of interleaved runs on the thread's CPU clock. "of budget": the measured end latency over the budget.
Scores are on examples that chose nothing: part of the data kept aside, for CIFAR-10 the published test images.
`top1` is judged by labels; `cosine` compares all outputs with the original's. The detectors run with `--finetune none`.

| model | budget | start, ms | end, ms | of budget | estimated, ms | score | fine-tuning | wall, s | peak, MB | verify |
|---|---|---|---|---|---|---|---|---|---|---|
"""


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--only", default="")
    parser.add_argument("--budgets", default="0.7x,0.5x")
    parser.add_argument("--out", type=Path, default=Path("docs/results.md"))
    parser.add_argument("extra", nargs="*", help="further options for onnx-netadapt, after --")
    arguments = parser.parse_args()
    if not IMAGES.is_dir():
        sys.exit("the shared models and data are not beside this checkout: nothing to run")
    import onnxruntime

    rows = kept_rows(arguments.out)
    with tempfile.TemporaryDirectory() as name:
        for case in cases(Path(name)):
            if arguments.only not in case.model:
                continue
            for budget in arguments.budgets.split(","):
                found = run(case, budget, Path(name), arguments.extra)
                rows[case.model, budget] = row(case, budget, found)
                print(rows[case.model, budget], flush=True)
                head = HEADER.format(machine=machine(), ort=onnxruntime.__version__)
                arguments.out.write_text(head + "\n".join(rows.values()) + "\n")


def kept_rows(path: Path) -> dict[tuple[str, str], str]:
    """The rows of an earlier run, by model and budget."""
    lines = path.read_text().splitlines() if path.is_file() else []
    cells = [[cell.strip() for cell in line.split("|")] for line in lines]
    return {(c[1], c[2]): line for c, line in zip(cells, lines, strict=True) if len(c) > 3 and c[2].endswith("x")}


def machine() -> str:
    return f"{platform.processor() or platform.machine()}, {os.cpu_count()} cores"


if __name__ == "__main__":
    main()
