"""The command line. Imports of everything heavy wait until a command runs, so that `--help` answers at once."""

import sys
from pathlib import Path
from typing import Annotated, Any

import typer
from typer.main import get_command

COMMANDS = ("train-elastic", "inspect", "prune", "measure", "profile", "verify")
MAIN = "adapt"
INTERRUPTED = 130

app = typer.Typer(
    add_completion=False,
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    rich_markup_mode=None,
    help="Adapts a trained ONNX model to a measured budget: onnx-netadapt MODEL.onnx --budget 40ms",
)

Model = Annotated[Path, typer.Argument(help="the model file", metavar="MODEL.onnx")]
TargetOption = Annotated[str, typer.Option("--target", help="cpu[:threads=N], openvino, cuda, ...")]
SessionOption = Annotated[
    list[str], typer.Option("--session-option", help="KEY=VALUE, as session.intra_op.allow_spinning=0; repeatable")
]
ShapeOption = Annotated[list[str], typer.Option("--shape", help="NAME=1,3,224,224: fixes an open input shape")]
JsonOption = Annotated[bool, typer.Option("--json", help="the result as JSON on standard output")]
DataOption = Annotated[str | None, typer.Option("--data", help=".npz, folder of images, or package.module:function")]
ReportDataOption = Annotated[
    str | None, typer.Option("--report-data", help="data for the final score [part of --data]")
]
MetricOption = Annotated[str | None, typer.Option("--metric", help="top1, agreement, cosine, package.module:function")]
LossOption = Annotated[str | None, typer.Option("--loss", help="package.module:function: a loss of your own")]
TrainOption = Annotated[
    str | None, typer.Option("--train", help="package.module:function: a training loop of your own")
]
ElasticOption = Annotated[
    bool | None,
    typer.Option("--elastic/--no-elastic", help="cut from weights of train-elastic as they are [if it has them]"),
]
PreprocessOption = Annotated[str | None, typer.Option("--preprocess", help="imagenet, or size=224,mean=...,std=...")]
LutOption = Annotated[Path | None, typer.Option("--lut", help="table of measured times to use and extend")]
SeedOption = Annotated[int, typer.Option("--seed", help="seed of everything random")]
QuietOption = Annotated[bool, typer.Option("--quiet", help="no progress")]
OutputOption = Annotated[Path | None, typer.Option("--output", "-o", help="file to write")]
ExcludeOption = Annotated[list[str], typer.Option("--exclude", help="group or node names that must not be pruned")]
OnlyOption = Annotated[list[str], typer.Option("--only", help="group or node names that alone may be pruned")]
RenormalizeOption = Annotated[
    bool,
    typer.Option(
        "--renormalize", help="also prune channels that LayerNormalization mixes: it then normalizes over those left"
    ),
]
AllowDepthOption = Annotated[
    bool | None,
    typer.Option(
        "--allow-depth/--no-allow-depth",
        help="also take out whole residual branches and layers, where that keeps the score higher "
        "[for budgets of latency and energy]",
    ),
]
MinKeepOption = Annotated[float, typer.Option("--min-keep", help="least share of every width that stays")]


@app.command(MAIN, help="The main job; `adapt` itself may be left out.")
def adapt_command(
    model: Model,
    budget: Annotated[
        list[str],
        typer.Option("--budget", help="40ms, 0.5x, macs=150M, size=4MB, ...; repeatable; 0.8x,0.6x: two models"),
    ] = [],
    output: OutputOption = None,
    data: DataOption = None,
    report_data: ReportDataOption = None,
    preprocess: PreprocessOption = None,
    metric: MetricOption = None,
    target: TargetOption = "cpu",
    session_option: SessionOption = [],
    search: Annotated[str, typer.Option("--search", help="netadapt, mcd, chamnet or multiplier")] = "netadapt",
    finetune: Annotated[
        str | None, typer.Option("--finetune", help="none, or steps=500,seconds=300,lr=1e-3,... [400 steps or 80 s]")
    ] = None,
    loss: LossOption = None,
    train: TrainOption = None,
    shape: ShapeOption = [],
    exclude: ExcludeOption = [],
    only: OnlyOption = [],
    renormalize: RenormalizeOption = False,
    allow_depth: AllowDepthOption = None,
    min_keep: MinKeepOption = 0.1,
    step: Annotated[float | None, typer.Option("--step", help="first reduction, as a share of the start")] = None,
    decay: Annotated[float, typer.Option("--decay", help="factor of the reduction per step")] = 0.96,
    lut: LutOption = None,
    journal: Annotated[Path | None, typer.Option("--journal", help="file that keeps the steps of the search")] = None,
    resume: Annotated[bool, typer.Option("--resume", help="go on with an interrupted run")] = False,
    published: Annotated[
        bool, typer.Option("--published", help="the search exactly as published: single-group proposals only")
    ] = False,
    predictor: Annotated[
        Path | None, typer.Option("--predictor", help="chamnet: file of scored samples to use and extend")
    ] = None,
    resolution: Annotated[
        str | None, typer.Option("--resolution", help="chamnet: sizes the input may take, 96..224 [:32], in pixels")
    ] = None,
    downsample: Annotated[
        str, typer.Option("--downsample", help="auto, never or PIXELS: the model makes its image smaller itself")
    ] = "auto",
    meter: Annotated[
        str | None, typer.Option("--meter", help="package.module:function that returns the joules counted so far")
    ] = None,
    scoring: Annotated[
        str, typer.Option("--scoring", help="refit, or masked: no refit, many networks in one batch")
    ] = "refit",
    elastic: ElasticOption = None,
    best_effort: Annotated[
        bool, typer.Option("--best-effort", help="write the nearest model if the budget is out of reach")
    ] = False,
    seed: SeedOption = 0,
    quiet: QuietOption = False,
    json: JsonOption = False,
) -> None:
    """Adapts a model to the budgets."""
    from onnx_netadapt.options import Options, default_output, parse_shape
    from onnx_netadapt.pipeline import adapt
    from onnx_netadapt.progress import Progress
    from onnx_netadapt.sweep import sweep

    out = output or default_output(model)
    options = Options(
        budgets=tuple(budget), output=out, data=data, report_data=report_data, preprocess=preprocess, metric=metric,
        target=_target(target, session_option), search=search, finetune=finetune, loss=loss, train=train,
        shapes=dict(map(parse_shape, shape)), exclude=tuple(exclude), only=tuple(only), renormalize=renormalize,
        allow_depth=allow_depth, min_keep=min_keep, step=step, decay=decay, lut=lut, journal=journal, resume=resume,
        best_effort=best_effort, published=published, scoring=scoring, predictor=predictor,
        resolution=resolution, downsample=downsample, meter=meter, elastic=elastic, seed=seed,
    )  # fmt: skip
    command = " ".join(["onnx-netadapt", *sys.argv[1:]])
    told: dict[str, Any] = {"name": str(model), "progress": Progress(quiet=quiet), "command": command}
    many = any("," in text for text in budget)
    result = sweep(model, options, **told).pareto if many else adapt(model, options, **told).report
    _print(result, json)
    if not result.met:
        raise typer.Exit(3)


@app.command("train-elastic")
def train_elastic_command(
    model: Model,
    data: DataOption = None,
    output: OutputOption = None,
    report_data: ReportDataOption = None,
    preprocess: PreprocessOption = None,
    metric: MetricOption = None,
    finetune: Annotated[
        str | None, typer.Option("--finetune", help="steps=2000,seconds=300,lr=1e-3,... [2000 steps or 300 s]")
    ] = None,
    loss: LossOption = None,
    train: TrainOption = None,
    shape: ShapeOption = [],
    exclude: ExcludeOption = [],
    only: OnlyOption = [],
    renormalize: RenormalizeOption = False,
    min_keep: Annotated[float, typer.Option("--min-keep", help="least share of every width to train for")] = 0.25,
    seed: SeedOption = 0,
    quiet: QuietOption = False,
    json: JsonOption = False,
) -> None:
    """Trains one set of weights for every width: any later budget is cut from them without more training."""
    from onnx_netadapt.elastic import default_output, train_elastic
    from onnx_netadapt.options import Options
    from onnx_netadapt.progress import Progress

    options = Options(
        budgets=(), output=output or default_output(model), data=data, report_data=report_data, preprocess=preprocess,
        metric=metric, finetune=finetune, loss=loss, train=train, shapes=_shapes(shape), exclude=tuple(exclude),
        only=tuple(only), renormalize=renormalize, min_keep=min_keep, seed=seed,
    )  # fmt: skip
    command = " ".join(["onnx-netadapt", *sys.argv[1:]])
    found = train_elastic(model, options, name=str(model), progress=Progress(quiet=quiet), command=command)
    _print(found.report, json)


@app.command("inspect")
def inspect_command(
    model: Model,
    renormalize: RenormalizeOption = False,
    shape: ShapeOption = [],
    lut: LutOption = None,
    target: TargetOption = "cpu",
    session_option: SessionOption = [],
    json: JsonOption = False,
) -> None:
    """Shows groups, widths, barriers with reasons, multiply-accumulates and parameters."""
    from onnx_netadapt.inspection import inspect

    where = _target(target, session_option)
    found = inspect(model, shapes=_shapes(shape), lut=lut, target=where, renormalize=renormalize)
    _print(found, json)
    if found.problem is not None:
        from onnx_netadapt.ir.errors import TargetError

        raise TargetError(f"{found.problem}; it can be looked at, but not be pruned")


@app.command("prune")
def prune_command(
    model: Model,
    keep: Annotated[float | None, typer.Option("--keep", help="share of every group to keep")] = None,
    widths: Annotated[Path | None, typer.Option("--widths", help="JSON file of group id to width")] = None,
    output: OutputOption = None,
    exclude: ExcludeOption = [],
    only: OnlyOption = [],
    renormalize: RenormalizeOption = False,
    elastic: ElasticOption = None,
    shape: ShapeOption = [],
    json: JsonOption = False,
) -> None:
    """Prunes the structure only: nothing is measured, no data is used."""
    from onnx_netadapt.commands import prune_file

    out = output or model.with_name(f"{model.stem}.pruned.onnx")
    found = prune_file(model, out, keep, widths, tuple(exclude), tuple(only), renormalize, _shapes(shape), elastic)
    _print(found, json)


@app.command("measure")
def measure_command(
    model: Model,
    target: TargetOption = "cpu",
    session_option: SessionOption = [],
    shape: ShapeOption = [],
    runs: Annotated[int, typer.Option("--runs", help="least number of runs")] = 50,
    json: JsonOption = False,
) -> None:
    """Measures the latency of a whole model."""
    from onnx_netadapt.commands import measure_model

    _print(measure_model(model, target=_target(target, session_option), shapes=_shapes(shape), runs=runs), json)


@app.command("profile")
def profile_command(
    model: Model,
    lut: LutOption = None,
    target: TargetOption = "cpu",
    session_option: SessionOption = [],
    shape: ShapeOption = [],
    merge: Annotated[
        list[Path], typer.Option("--merge", help="another table of this target, to take over first; repeatable")
    ] = [],
    variants: Annotated[int, typer.Option("--check", help="unseen networks to judge the table by")] = 12,
    min_keep: MinKeepOption = 0.1,
    seed: SeedOption = 0,
    quiet: QuietOption = False,
    json: JsonOption = False,
) -> None:
    """Fills a target's latency table, and says how good it is."""
    from onnx_netadapt.commands import profile_model
    from onnx_netadapt.progress import Progress

    progress = Progress(quiet=quiet)
    where = _target(target, session_option)
    _print(profile_model(model, lut, where, _shapes(shape), variants, min_keep, seed, progress, merge), json)


@app.command("verify")
def verify_command(
    original: Annotated[Path, typer.Argument(metavar="ORIGINAL.onnx")],
    pruned: Annotated[Path, typer.Argument(metavar="PRUNED.onnx")],
    plan: Annotated[Path | None, typer.Option("--plan", help="the plan [beside PRUNED]")] = None,
    data: DataOption = None,
    preprocess: PreprocessOption = None,
    shape: ShapeOption = [],
    json: JsonOption = False,
) -> None:
    """Checks that removing equals zeroing, from the plan beside the pruned model."""
    from onnx_netadapt.commands import verify_files

    found = verify_files(original, pruned, plan, data, preprocess, _shapes(shape))
    _print(found, json)
    if not found.passed:
        raise typer.Exit(2)


def _target(text: str, session_options: list[str]) -> str:
    """The target with the session options in its text."""
    if not session_options:
        return text
    from onnx_netadapt.profiler import Target

    return str(Target.parse(text).with_session_options(session_options))


def _shapes(texts: list[str]) -> dict[str, tuple[int, ...]]:
    from onnx_netadapt.options import parse_shape

    return dict(map(parse_shape, texts))


def _print(result: Any, as_json: bool) -> None:
    if as_json:
        from json import dumps

        from onnx_netadapt.report import plain

        print(dumps(plain(result), indent=1, allow_nan=False))
    else:
        print(result)


def main() -> None:
    """Runs the command line and exits with the code of CONTRACTS section 4."""
    arguments = sys.argv[1:]
    if arguments == ["--version"]:
        from importlib.metadata import version

        print(version("onnx-netadapt"))
        return
    if arguments and arguments[0] not in (*COMMANDS, MAIN, "--help", "-h"):
        arguments = [MAIN, *arguments]
    sys.exit(_run(arguments))


def _run(arguments: list[str]) -> int:
    try:
        code = get_command(app).main(arguments, prog_name="onnx-netadapt", standalone_mode=False)
    except typer.TyperException as error:
        print(f"onnx-netadapt: {error.format_message()}; see onnx-netadapt --help", file=sys.stderr)
        return 2
    except (KeyboardInterrupt, typer.Abort):
        code = INTERRUPTED
    except Exception as error:
        return _report(error)
    if code == INTERRUPTED:
        print(_interrupted(arguments), file=sys.stderr)
    return code if isinstance(code, int) else 0


def _interrupted(arguments: list[str]) -> str:
    if arguments[:1] != [MAIN]:
        return "interrupted; nothing was written"
    given = [word for word in arguments[1:] if word != "--resume"]
    return f"interrupted; no output was written. Go on with: onnx-netadapt {' '.join([*given, '--resume'])}"


def _report(error: Exception) -> int:
    from onnx_netadapt.ir.errors import NetAdaptError

    if isinstance(error, NetAdaptError):
        print(f"onnx-netadapt: {error}", file=sys.stderr)
        return error.exit_code
    import traceback

    traceback.print_exception(error)
    print("onnx-netadapt: this is a defect of the program; please report the lines above", file=sys.stderr)
    return 1


if __name__ == "__main__":
    main()
