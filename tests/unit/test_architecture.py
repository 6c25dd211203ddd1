"""Imports point down, some packages have one home, and no file outgrows one sitting."""

from __future__ import annotations

import ast
import re
from graphlib import CycleError, TopologicalSorter
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]

LAYERS = [  # a package imports only packages on lines above its own
    {"registry", "redaction", "terminal"},
    {"section"},
    {"config", "command_line"},
    {"presets"},
    {"files", "reading"},
    {"values"},
    {"comm", "kernels", "metrics", "tracking"},
    {"tasks"},
    {"adapters", "recognise"},
    {"atoms"},
    {"data", "memory"},
    {"decode", "losses"},
    {"families"},
    {"models"},
    {"methods"},
    {"config_io"},
    {"train"},
    {"use"},
]
LEVEL = {package: level for level, packages in enumerate(LAYERS) for package in packages}

ABOVE = {  # top-level packages of ours: which of the others each may import
    "moram_dist": set(),
    "eval": {"moram_dist"},
    "launch": {"moram_dist", "eval"},
    "tools": {"moram_dist", "eval", "launch", "bench"},
    "bench": {"moram_dist", "eval"},
}

ROOMS = {"measure", "report", "compare", "audit"}  # of eval; none imports another

ONE_HOME = {  # module -> the only packages that import it, those inside functions too
    "deepspeed": {"comm", "train"},
    "torch.distributed": {"comm"},
    "transformers.integrations": {"models"},
    "mlflow": {"tracking"},
    "triton": {"adapters", "atoms"},
    "peft": {"bench"},
    "fire": set(),
}

LONGEST_FILE = 350


def sources(*folders):
    return [path for folder in folders for path in sorted((ROOT / folder).rglob("*.py"))]


def imports(path):
    """Full names of what a file imports, anywhere in it: ``from a.b import c`` is ``a.b.c``."""
    names = []
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            names += [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{path}: relative import"
            names += [f"{node.module}.{alias.name}" for alias in node.names]
    return names


def package(path):
    """``comm`` for moram_dist/comm/env.py, ``launch`` for launch/flags.py; __init__ is its own."""
    top, *rest = path.relative_to(ROOT).with_suffix("").parts
    return rest[0] if top == "moram_dist" else top


def import_graph(folder):
    """Each module of a folder with those that it imports there, inside functions too."""
    modules = {
        ".".join(path.relative_to(ROOT).with_suffix("").parts).removesuffix(".__init__"): path
        for path in sources(folder)
    }

    def module(name):
        """The module that a name is or is in; None if it is in none of the folder's."""
        while name and name not in modules:
            name = name.rpartition(".")[0]
        return name or None

    return {
        own: {found for name in imports(path) if (found := module(name))} - {own}
        for own, path in modules.items()
    }


def within(name, module):
    return name == module or name.startswith(f"{module}.")


def test_there_is_something_to_look_at():
    assert LEVEL.keys() == {package(path) for path in sources("moram_dist")} - {"__init__"}
    assert "eval.report.page" in import_graph("eval")["eval.report.write"]
    assert "moram_dist.registry.InputError" in imports(ROOT / "moram_dist" / "config.py")
    assert any(
        within(name, "torch.distributed") for name in imports(ROOT / "moram_dist/comm/env.py")
    )


@pytest.mark.parametrize("path", sources("moram_dist"), ids=lambda p: str(p.relative_to(ROOT)))
def test_imports_point_down(path):
    own = package(path)
    if own == "__init__":
        return  # the package's front: lazy names of whatever it offers
    for name in imports(path):
        top, *rest = name.split(".")
        if top == "moram_dist" and rest[0] != own:
            assert LEVEL[rest[0]] < LEVEL[own], f"{own} imports {rest[0]}"


@pytest.mark.parametrize("folder", ABOVE)
def test_top_level_packages_point_down(folder):
    others = {*ABOVE, "tests"} - ABOVE[folder] - {folder}
    for path in sources(folder):
        found = {name.split(".")[0] for name in imports(path)} & others
        assert not found, f"{path.relative_to(ROOT)} imports {found}"


def test_rooms_of_eval_point_down():
    """No room imports another, and of what lies beside the rooms only the command imports any."""
    assert {path.parent.name for path in sources("eval")} == {"eval", *ROOMS}
    for path in sources("eval"):
        if path != ROOT / "eval" / "run.py":
            others = ROOMS - {path.parent.name}
            found = [n for n in imports(path) if any(within(n, f"eval.{room}") for room in others)]
            assert not found, f"{path.relative_to(ROOT)} imports {found}"


@pytest.mark.parametrize("folder", [*ABOVE])
def test_no_imports_in_circles(folder):
    try:
        TopologicalSorter(import_graph(folder)).prepare()
    except CycleError as error:
        pytest.fail(" -> ".join(error.args[1]))


@pytest.mark.parametrize("module", ONE_HOME)
def test_one_home(module):
    homes = {
        package(path)
        for path in sources(*ABOVE)
        if any(within(name, module) for name in imports(path))
    }
    assert homes <= ONE_HOME[module], f"{module} is imported by {homes - ONE_HOME[module]}"


def test_one_file_knows_what_an_encoder_decoder_is():
    told = re.compile(r"is_encoder_decoder|decoder_start|decoder_input_ids|encoder_outputs")
    knows = {path.name for path in sources(*ABOVE) if told.search(path.read_text("utf-8"))}
    assert knows == {"encoder_decoder.py"}


def test_metrics_and_tasks_need_no_torch():
    for path in sources("moram_dist/metrics", "moram_dist/tasks"):
        assert not any(within(name, "torch") for name in imports(path)), path


def test_no_file_outgrows_one_sitting():
    long = {
        str(path.relative_to(ROOT)): length
        for path in sources(*ABOVE, "tests")
        if (length := len(path.read_text(encoding="utf-8").splitlines())) > LONGEST_FILE
    }
    assert not long
