"""Import directions: which part of the package may know which other, who may load torch, and who may print."""

from __future__ import annotations

import ast
import subprocess
import sys
from collections.abc import Iterator
from graphlib import CycleError, TopologicalSorter
from pathlib import Path
from typing import NamedTuple

import pytest

import pivot

ROOT = Path(pivot.__file__).parent

FLOOR = {
    "records",
    "pictures",
    "markup",
    "progress",
    "seen",
    "plain",
    "oneline",
    "recipe",
    "sections",
    "stages",
    "knobs",
    "files",
    "runfolder",
    "lookup",
    "answers",
    "chat",
}
# Objectives and rewards are arithmetic on numbers and text: they know of no disk, hence of no files.
SEES = {
    **dict.fromkeys(FLOOR, FLOOR),
    "world": FLOOR,
    "data": FLOOR | {"world"},
    "encoder": FLOOR | {"world", "data"},
    "model": FLOOR | {"world", "data", "encoder"},
    "objective": FLOOR - {"files", "runfolder"} | {"world", "data", "encoder", "model", "reward"},
    "train": FLOOR | {"world", "data", "encoder", "model", "objective", "reward"},
    "pretrain": FLOOR | {"world", "data", "encoder", "model", "objective"},
    "reward": {"answers", "chat", "records", "knobs", "lookup"},  # the last two for rewards that stand in a recipe, or in one another
    "reason": FLOOR | {"world", "data"},
    "probe": FLOOR | {"data", "encoder", "model"},
    "bench": FLOOR | {"data", "model"},
    "study": FLOOR | {"study.statistics"},
    "study.statistics": FLOOR,
    "report": FLOOR | {"study.statistics"},
    "base": set(),
    "recipes": set(),
    "pivot": set(),
    "screen": FLOOR | {"work", "study.statistics"},
    "__main__": {"cli"},
}
# These may import everything, stages only inside functions; what they may import at once:
CHAINS = {
    "cli": FLOOR | {"chain", "screen"},
    "plan": FLOOR | {"rehearsal"},
    "rehearsal": FLOOR,
    "chain": FLOOR | {"beginning", "crew", "work"},
    "work": FLOOR | {"beginning", "crew", "provenance"},
    "beginning": FLOOR,
    "crew": FLOOR,
    "provenance": FLOOR,
}
RENDERS = {"cli", "screen"}
TORCH = {"torch", "transformers", "accelerate"}
NO_TORCH = FLOOR | {"world", "reward", "report", "study.statistics"}
OPENS = {"transformers", "timm", "open_clip"}  # import torchvision, which pivot.encoder mends where it was made for another torch:
BEHIND_ENCODER = {"encoder", "model"}  # at import only below these two, whose own first line that is
NO_TORCH_AT_IMPORT = {"cli", "plan", "rehearsal", *CHAINS, "screen", "pivot", "__main__"}


class Import(NamedTuple):
    module: str
    line: int
    where: str  # "module", "function" or "typing" (only a type checker sees it)


def unit(module: str) -> str:
    """The part of the package that a module belongs to."""
    parts = module.split(".")
    if parts[1:3] == ["study", "statistics"]:
        return "study.statistics"
    return parts[1] if len(parts) > 1 else "pivot"


def imports(file: Path, root: Path) -> Iterator[Import]:
    """Everything that a file imports, by full name, wherever the statement stands; `import_module("...")` too."""
    inside = (root.name, *file.relative_to(root).with_suffix("").parts)
    package = inside[:-1]

    def named(node: ast.ImportFrom) -> Iterator[str]:
        base = package[: len(package) - node.level + 1] if node.level else ()
        stem = ".".join([*base, *([node.module] if node.module else [])])
        for alias in node.names:
            path = root.parent.joinpath(*stem.split("."), alias.name)
            yield f"{stem}.{alias.name}" if path.is_dir() or path.with_suffix(".py").is_file() else stem

    def walk(node: ast.AST, where: str) -> Iterator[Import]:
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef | ast.Lambda):
            where = "function"
        elif isinstance(node, ast.If) and "TYPE_CHECKING" in ast.unparse(node.test):
            for child in node.body:
                yield from walk(child, "typing")
            for child in node.orelse:
                yield from walk(child, where)
            return
        elif isinstance(node, ast.Import):
            yield from (Import(alias.name, node.lineno, where) for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            yield from (Import(name, node.lineno, where) for name in named(node))
        elif isinstance(node, ast.Call) and ast.unparse(node.func).split(".")[-1] in ("import_module", "__import__"):
            yield from (Import(str(name.value), node.lineno, where) for name in node.args[:1] if isinstance(name, ast.Constant))
        for child in ast.iter_child_nodes(node):
            yield from walk(child, where)

    yield from walk(ast.parse(file.read_text(encoding="utf-8")), "module")


def faults(root: Path) -> list[str]:
    """Each wrong arrow, torch where none may be, and printing outside the CLI, as `file:line: what`."""
    found = []
    for file in sorted(root.rglob("*.py")):
        inside = file.relative_to(root)
        own = unit(".".join([root.name, *inside.with_suffix("").parts]).removesuffix(".__init__"))
        if own not in SEES and own not in CHAINS:
            found.append(f"{inside}: '{own}' is not in the table of this test; say there what it may see")
            continue
        for module, line, where in imports(file, root):
            head, other = module.split(".")[0], unit(module)
            place = f"{inside}:{line}"
            if head in TORCH and where != "typing" and (own in NO_TORCH or (own in NO_TORCH_AT_IMPORT and where == "module")):
                found.append(f"{place}: {own} loads {head}")
            if head in OPENS and where == "module" and own not in BEHIND_ENCODER | NO_TORCH:
                found.append(f"{place}: {own} imports {head} before pivot.encoder may have mended torchvision")
            if head in ("rich", "typer") and own not in RENDERS:
                found.append(f"{place}: {own} renders; only cli and screen do")
            if head != root.name or other in (own, "pivot"):
                continue
            if own in CHAINS:
                if where == "module" and other not in CHAINS[own]:
                    found.append(f"{place}: {own} imports {other} before a verb needs it")
            elif other not in SEES[own]:
                found.append(f"{place}: {own} may not see {other}")
        if own != "cli":
            found += [f"{inside}:{line}: {own} prints; only cli does" for line in printing(file)]
    return list(dict.fromkeys(found))


def printing(file: Path) -> Iterator[int]:
    """Lines that write to the terminal."""
    for node in ast.walk(ast.parse(file.read_text(encoding="utf-8"))):
        prints = isinstance(node, ast.Call) and ast.unparse(node.func) in ("print", "pprint", "pprint.pprint")
        if prints or (isinstance(node, ast.Attribute) and ast.unparse(node) in ("sys.stdout", "sys.stderr")):
            yield node.lineno


def test_every_arrow_points_left() -> None:
    assert len(list(ROOT.rglob("*.py"))) > 20
    assert faults(ROOT) == []


def circle(root: Path) -> list[str]:
    """Modules that need each other at import, or for a type checker alone: the type then stands in the wrong place."""
    needs = {}
    for file in root.rglob("*.py"):
        name = ".".join([root.name, *file.relative_to(root).with_suffix("").parts]).removesuffix(".__init__")
        found = {module for module, _, where in imports(file, root) if where != "function" and module.split(".")[0] == root.name}
        needs[name] = set() if file.name == "__init__.py" else found - {name}  # a folder that names its contents is no step of its own
    try:
        TopologicalSorter(needs).prepare()
    except CycleError as error:
        return list(error.args[1])
    return []


def test_no_two_modules_need_each_other() -> None:
    assert circle(ROOT) == []


@pytest.mark.parametrize("how", ["from pivot.train.loop import train", "if TYPE_CHECKING:\n    from pivot.train import loop"])
def test_a_planted_circle_is_found(tmp_path: Path, how: str) -> None:
    root = plant(tmp_path, "train/checkpoint.py", how)
    assert circle(root) == []
    (root / "train/loop.py").write_text("from pivot.train.checkpoint import save")
    assert set(circle(root)) == {"pivot.train.loop", "pivot.train.checkpoint"}


def test_the_table_itself_has_no_cycle_above_the_floor() -> None:
    """Were there one, two parts could import each other with every arrow allowed."""
    rank: dict[str, int] = dict.fromkeys(FLOOR | set(CHAINS), 0)
    todo = {own: {other for other in sees if other not in FLOOR} for own, sees in SEES.items() if own not in FLOOR}
    while todo:
        ready = [own for own, sees in todo.items() if sees <= set(rank)]
        assert ready, f"a cycle among {sorted(todo)}"
        for own in ready:
            rank[own] = 1 + max((rank[other] for other in todo.pop(own)), default=0)
    assert rank["world"] < rank["data"] < rank["encoder"] < rank["model"] < rank["objective"] < rank["train"] == rank["pretrain"]


PLANTED = [
    ("data/world.py", "from pivot.model.mllm import MLLM", "data may not see model"),
    ("world/scene.py", "from pivot.data import world", "world may not see data"),
    ("model/score.py", "import pivot.train.loop as loop", "model may not see train"),
    ("encoder/export.py", "from ..model import mllm", "encoder may not see model"),
    ("objective/dpo.py", "from pivot.files import write_json", "objective may not see files"),
    ("train/loop.py", "from pivot import pretrain", "train may not see pretrain"),
    ("pretrain/masked.py", "from pivot.train.loop import train", "pretrain may not see train"),
    ("probe/linear.py", "def f():\n    from pivot.train.loop import train", "probe may not see train"),
    ("probe/linear.py", "import importlib\nx = importlib.import_module('pivot.objective.dpo')", "probe may not see objective"),
    ("bench/run.py", "class A:\n    def f(self):\n        import pivot.objective.dpo", "bench may not see objective"),
    ("bench/run.py", "from pivot.encoder.encoder import Encoder", "bench may not see encoder"),
    ("reward/exact.py", "from pivot.data import world", "reward may not see data"),
    ("report/page.py", "def f():\n    import torch", "report loads torch"),
    ("report/page.py", "from pivot.bench import run", "report may not see bench"),
    ("study/statistics.py", "from transformers import AutoModel", "study.statistics loads transformers"),
    ("records.py", "import torch.nn", "records loads torch"),
    ("runfolder.py", "from . import data", "runfolder may not see data"),
    (
        "records.py",
        "from typing import TYPE_CHECKING\nif TYPE_CHECKING:\n    from pivot.world.scene import Scene",
        "records may not see world",
    ),
    ("cli.py", "from pivot.train import loop", "cli imports train before a verb needs it"),
    ("cli.py", "import torch", "cli loads torch"),
    ("chain.py", "from pivot.report.page import page", "chain imports report before a verb needs it"),
    ("train/loop.py", "print('step')", "train prints"),
    ("chain.py", "import sys\nsys.stderr.write('x')", "chain prints"),
    ("train/loop.py", "from rich.progress import Progress", "train renders"),
    ("train/setup.py", "from transformers import AutoModel", "train imports transformers before pivot.encoder"),
    ("utils/misc.py", "x = 1", "'utils' is not in the table"),
]

FINE = [
    (
        "train/loop.py",
        "import torch\nfrom pivot.model.score import Scorer\nfrom pivot.files import write_json\nfrom . import checkpoint",
    ),
    ("records.py", "from typing import TYPE_CHECKING\nif TYPE_CHECKING:\n    import torch"),
    ("cli.py", "def run():\n    import torch\n    from pivot.train import loop\nfrom pivot import chain\nprint('x')"),
    ("chain.py", "def post():\n    from pivot.train.loop import train\n    from pivot.probe import linear"),
    (
        "report/collect.py",
        "from pivot.study.statistics import paired\nfrom pivot.runfolder import RunFolder\nfrom pivot.report import figures",
    ),
    ("bench/world.py", "from pivot import answers\nfrom pivot.data import world"),
    ("pretrain/masked.py", "from pivot import __version__\nx = 'print(1)'"),
]


def plant(root: Path, place: str, code: str) -> Path:
    """A package of empty modules, one of them with the given code."""
    tree = root / "pivot"
    empty = [
        "records",
        "files",
        "runfolder",
        "answers",
        "cli",
        "chain",
        "world/scene",
        "data/world",
        "encoder/encoder",
        "model/mllm",
        "model/score",
    ]
    empty += [
        "objective/dpo",
        "train/loop",
        "train/checkpoint",
        "pretrain/masked",
        "probe/linear",
        "bench/run",
        "report/page",
        "report/figures",
    ]
    for name in [*empty, "study/statistics"]:
        file = tree / f"{name}.py"
        file.parent.mkdir(parents=True, exist_ok=True)
        (file.parent / "__init__.py").touch()
        file.touch()
    (tree / place).parent.mkdir(exist_ok=True)
    (tree / place).write_text(code)
    return tree


@pytest.mark.parametrize(("place", "code", "says"), PLANTED)
def test_a_planted_fault_is_found(tmp_path: Path, place: str, code: str, says: str) -> None:
    (fault,) = faults(plant(tmp_path, place, code))
    assert fault.startswith(place) and says in fault


@pytest.mark.parametrize(("place", "code"), FINE)
def test_what_is_allowed_is_not_reported(tmp_path: Path, place: str, code: str) -> None:
    assert faults(plant(tmp_path, place, code)) == []


def test_importing_what_needs_no_torch_loads_none() -> None:
    """Also through what it imports, which reading the files one by one cannot see."""
    modules = []
    for file in sorted(ROOT.rglob("*.py")):
        name = ".".join(["pivot", *file.relative_to(ROOT).with_suffix("").parts]).removesuffix(".__init__")
        if unit(name) in (NO_TORCH | NO_TORCH_AT_IMPORT) - {"__main__"} or name in ("pivot.bench.run", "pivot.bench.world"):
            modules.append(name)
    assert {"pivot.records", "pivot.answers", "pivot.bench.run"} <= set(modules)
    code = f"import importlib, sys\nfor m in {modules}:\n    importlib.import_module(m)\n    assert 'torch' not in sys.modules, m"
    done = subprocess.run([sys.executable, "-c", code], check=False, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
