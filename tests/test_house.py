"""The rules of the house: who may import whom, where operators are known, what is packed, what names a machine."""

import ast
import importlib.metadata
import importlib.util
import json
import re
import subprocess
import sys
import tomllib
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]
ROOMS = {"ir": "ir", "passes": "passes", "profiler": "profiler", "models": "models", "api": ""}
MAY_IMPORT = {  # DESIGN, section 2; a room always may import itself
    "ir": set(),
    "passes": {"ir"},
    "profiler": {"ir"},
    "models": {"ir"},
    "api": {"ir", "passes", "profiler", "models"},
}
HEAVY = {"torch", "onnxruntime", "scipy", "sklearn", "matplotlib"}
IR_PACKAGES = {"numpy", "onnx", "google"}  # google.protobuf: how onnx reports a damaged file
IR_PACKAGES_INSIDE_FUNCTIONS = IR_PACKAGES | {"onnxruntime"}
PACKAGE = "onnx_netadapt"
SKIPPED = {"build", "dist", "demo", "__pycache__"}
MACHINE = re.compile(rb"(?<![\w.~$}-])/(?:home|root|Users|work|opt|mnt|media)/\w|[A-Z]:\\\\?Users\\")


def _sources(room: str) -> list[Path]:
    return sorted(p for p in (ROOT / room).rglob("*.py") if "__pycache__" not in p.parts)


def _module(path: Path) -> list[str]:
    """The import name of a source file's package, as parts: ir/ops/conv.py gives [onnx_netadapt, ir, ops]."""
    parts = list(path.relative_to(ROOT).parent.parts)
    return [PACKAGE, *([] if parts[0] == "api" else [parts[0]]), *parts[1:]]


def _imported(path: Path, tree: ast.AST) -> Iterator[str]:
    """The absolute name of everything that the nodes of `tree` import."""
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            package = _module(path)
            base = package[: len(package) - node.level + 1] if node.level else []
            stem = ".".join([*base, *([node.module] if node.module else [])])
            yield from (f"{stem}.{alias.name}" for alias in node.names)


def _at_import_time(tree: ast.Module) -> Iterator[ast.AST]:
    """The statements that run when the module is imported: not in functions, not under `if TYPE_CHECKING`."""
    stack: list[ast.AST] = list(tree.body)
    while stack:
        node = stack.pop()
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef | ast.Lambda):
            continue
        if isinstance(node, ast.If) and "TYPE_CHECKING" in ast.dump(node.test):
            stack.extend(node.orelse)
            continue
        if isinstance(node, ast.Import | ast.ImportFrom):
            yield node
        stack.extend(ast.iter_child_nodes(node))


def _room_of(name: str) -> str | None:
    """The room that an import name leads to, None for other packages."""
    first, *rest = name.split(".")
    if first != PACKAGE:
        return None
    return rest[0] if rest and rest[0] in ROOMS else "api"


def _arrow_faults(path: Path, room: str, tree: ast.Module) -> list[str]:
    allowed = MAY_IMPORT[room] | {room}
    return [name for name in _imported(path, tree) if (_room_of(name) or room) not in allowed]


@pytest.mark.parametrize("room", ROOMS)
def test_rooms_import_only_what_they_may(room: str) -> None:
    faults = {str(p.relative_to(ROOT)): _arrow_faults(p, room, ast.parse(p.read_bytes())) for p in _sources(room)}
    assert {p: f for p, f in faults.items() if f} == {}


@pytest.mark.parametrize(
    ("where", "statement"),
    [
        ("ir/graph.py", "from ..passes import coupling"),
        ("ir/ops/conv.py", "from ...profiler.lut import Lut"),
        ("passes/prune.py", "from .. import profiler"),
        ("passes/search/netadapt.py", "from ...profiler import lut"),
        ("profiler/lut.py", "import onnx_netadapt.passes.prune"),
        ("models/digits.py", "def f():\n    from onnx_netadapt import data"),
        ("ir/graph.py", "from .. import api_function"),
    ],
)
def test_a_wrong_arrow_is_seen(where: str, statement: str) -> None:
    assert _arrow_faults(ROOT / where, where.split("/")[0], ast.parse(statement)) != []


def test_a_right_arrow_is_let_through() -> None:
    tree = ast.parse("from ...ir.ops import rules\nfrom ..prune import prune\nfrom .. import coupling\nimport numpy")
    assert _arrow_faults(ROOT / "passes/search/netadapt.py", "passes", tree) == []


def _foreign(names: Iterator[str]) -> set[str]:
    return {n.split(".")[0] for n in names} - sys.stdlib_module_names - {PACKAGE}


def test_ir_stands_on_numpy_and_onnx_only() -> None:
    for path in _sources("ir"):
        tree = ast.parse(path.read_bytes())
        assert _foreign(_imported(path, tree)) <= IR_PACKAGES_INSIDE_FUNCTIONS, path
        at_import = _foreign(n for node in _at_import_time(tree) for n in _imported(path, node))
        assert at_import <= IR_PACKAGES, path


@pytest.mark.parametrize("room", ROOMS)
def test_heavy_packages_are_imported_inside_functions(room: str) -> None:
    for path in _sources(room):
        if path.is_relative_to(ROOT / "models" / "architectures"):
            continue  # torch modules from end to end: the folder as a whole is imported inside functions
        nodes = _at_import_time(ast.parse(path.read_bytes()))
        assert HEAVY & _foreign(n for node in nodes for n in _imported(path, node)) == set(), path


def _setuptools() -> dict[str, object]:
    return dict(tomllib.loads((ROOT / "pyproject.toml").read_text())["tool"]["setuptools"])


def test_the_package_list_names_every_folder() -> None:
    folders = {".".join(_module(p)): p.parent for room in ROOMS for p in _sources(room) if p.name == "__init__.py"}
    expected = {name: folder.relative_to(ROOT).as_posix() for name, folder in folders.items()}
    assert _setuptools()["package-dir"] == expected
    assert sorted(_setuptools()["packages"]) == sorted(expected)  # type: ignore[call-overload]


def test_every_source_file_lies_in_a_package() -> None:
    assert [p for room in ROOMS for p in _sources(room) if not (p.parent / "__init__.py").exists()] == []


def _asks_for_operators(tree: ast.AST) -> list[int]:
    """Lines that compare an `op_type`, in whichever way."""

    def is_op_type(node: ast.AST) -> bool:
        return (isinstance(node, ast.Attribute) and node.attr == "op_type") or (
            isinstance(node, ast.Name) and node.id == "op_type"
        )

    return [
        node.lineno
        for node in ast.walk(tree)
        if (isinstance(node, ast.Compare) and any(map(is_op_type, [node.left, *node.comparators])))
        or (isinstance(node, ast.Match) and is_op_type(node.subject))
    ]


def test_operators_are_known_in_ir_ops_only() -> None:
    paths = [p for room in ROOMS for p in _sources(room) if not p.is_relative_to(ROOT / "ir" / "ops")]
    found = {str(p.relative_to(ROOT)): _asks_for_operators(ast.parse(p.read_bytes())) for p in paths}
    assert {p: lines for p, lines in found.items() if lines} == {}


@pytest.mark.parametrize(
    "line", ["n.op_type == 'Conv'", "'Conv' != op_type", "a.b.op_type in (1,)", "x not in op_type"]
)
def test_a_comparison_of_operators_is_seen(line: str) -> None:
    assert _asks_for_operators(ast.parse(line)) == [1]


def _files() -> Iterator[Path]:
    """Every file of the project, without what git ignores."""
    stack = [ROOT]
    while stack:
        for path in stack.pop().iterdir():
            hidden = path.name.startswith(".") and path.name not in (".ci", ".gitignore")
            if hidden or path.name in SKIPPED or path.suffix == ".egg-info" or path.is_symlink():
                continue
            if path.is_dir():
                stack.append(path)
            else:
                yield path


def test_no_file_names_a_path_of_a_machine() -> None:
    assert [str(p.relative_to(ROOT)) for p in _files() if MACHINE.search(p.read_bytes())] == []


def test_a_path_of_a_machine_is_seen() -> None:
    for parts in (("", "home", "me", "x"), ("", "root", "y"), ("see (", "work", "z"), ("C:", "Users", "me")):
        text = ("\\" if parts[0] == "C:" else "/").join(parts)
        assert MACHINE.search(text.encode()), text
    for parts in (("..", "shared", "models"), ("docs", "work", "x"), ("https:", "", "host.org", "a", "home", "b")):
        text = "/".join(parts)
        assert not MACHINE.search(text.encode()), text


def _loaded_by(code: str) -> set[str]:
    """The heavy packages that a fresh interpreter has loaded after `code`."""
    ask = f"{code}\nimport sys\nprint('loaded:', *(m for m in {sorted(HEAVY)!r} if m in sys.modules))"
    done = subprocess.run([sys.executable, "-c", ask], capture_output=True, text=True, check=False, timeout=120)
    assert done.returncode == 0, done.stderr
    return set(done.stdout.rpartition("loaded:")[2].split())


def test_importing_the_ir_is_light() -> None:
    assert _loaded_by(f"import {PACKAGE}.ir") == set()


def test_a_heavy_import_is_seen() -> None:
    assert "scipy" in _loaded_by("import scipy")


def test_asking_for_help_is_light() -> None:
    if importlib.util.find_spec(f"{PACKAGE}.cli") is None:
        pytest.skip("api/cli.py does not exist yet")
    code = f"""
import sys
from {PACKAGE}.cli import main
sys.argv = ["onnx-netadapt", "--help"]
try:
    main()
except SystemExit as end:
    assert not end.code, end.code"""
    assert _loaded_by(code) == set()


def test_the_tests_judge_the_installed_package() -> None:
    origin = importlib.metadata.distribution("onnx-netadapt").read_text("direct_url.json")
    if origin and json.loads(origin).get("dir_info", {}).get("editable"):
        pytest.skip("an editable install, which is the checkout by intent; `make test` installs plainly")
    spec = importlib.util.find_spec(PACKAGE)
    assert spec is not None
    assert spec.origin is not None
    assert Path(spec.origin).is_relative_to(sys.prefix)
    assert not Path(spec.origin).is_relative_to(ROOT / "api")
