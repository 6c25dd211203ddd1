"""What surrounds the code keeps its promises: commands, pins, image, job script, recipes, docs."""

from __future__ import annotations

import os
import re
import subprocess
from pathlib import Path

import pytest

from launch.flags import OWN
from moram_dist import config_io

ROOT = Path(__file__).resolve().parents[2]
RECIPES = sorted((ROOT / "launch" / "recipes").glob("*.yaml"))
REQUIREMENTS = sorted(ROOT.glob("requirements*.txt"))
README = ROOT / "README.md"
GUIDES = sorted(
    path
    for path in (README, ROOT / "CONTRIBUTING.md", *(ROOT / "docs").glob("*.md"))
    if path.exists()
)

ELSEWHERE = {
    "--no-deps",  # pip
    "--no-index",
    *("--num_gpus", "--include", "--master_port", "--launcher"),  # deepspeed
    *("--signal", "--dependency", "--batch"),  # sbatch, scancel
    *("--gpus", "--shm-size", "--target"),  # docker
    *("--backend-store-uri", "--help", "--no-build-isolation"),  # mlflow, pip
    *("--app-name", "--host", "--allowed-hosts", "--artifacts-destination"),  # mlflow
}
"""Flags of other programs that the documents use."""


def meaningful(path: Path) -> list[str]:
    """A file's lines without comments, blank lines, and continuations."""
    text = path.read_text(encoding="utf-8").replace("\\\n", " ")
    return [line for raw in text.splitlines() if (line := re.sub(r"(^|\s)#.*", "", raw).strip())]


def files_named_in(text: str) -> set[str]:
    """Paths in the project's folders that a text names, such as ``launch/train.py``."""
    return set(re.findall(r"(?<![\w./-])(?:launch|eval|ds_configs|tools)/[\w/]+\.\w+", text))


def test_ci_runs_the_tests_from_an_empty_environment():
    path = ROOT / ".ci" / "run"
    assert os.access(path, os.X_OK)
    lines = meaningful(path)
    assert "rm -rf .venv" in lines
    assert lines[-1].endswith("make test")


@pytest.mark.parametrize(
    ("target", "command"),
    [("test", "-m pytest"), ("check", "ruff check"), ("demo", "moram train --ranks 2")],
)
def test_make(target, command):
    done = subprocess.run(
        ["make", "--dry-run", target], cwd=ROOT, capture_output=True, text=True, timeout=30
    )
    assert done.returncode == 0, done.stderr
    assert command in done.stdout
    for name in files_named_in(done.stdout):
        assert (ROOT / name).is_file(), name


@pytest.mark.parametrize("path", REQUIREMENTS, ids=lambda path: path.name)
def test_every_requirement_is_pinned(path):
    for line in meaningful(path):
        if line.startswith("-r "):
            assert (path.parent / line.removeprefix("-r ")).is_file(), line
        else:
            assert re.fullmatch(r"[A-Za-z0-9_.\[\]-]+==[\w.]+", line), line


@pytest.mark.parametrize("path", RECIPES, ids=lambda path: path.name)
def test_recipes(path):
    config_io.build({}, path)


def test_there_are_recipes():
    assert RECIPES


def test_the_demos_have_their_bases_and_the_package_ships_them():
    for base, others in (
        ("demo_base", ("tokenizer.model",)),
        ("demo_clip", ("tokenizer.json", "preprocessor_config.json")),
    ):
        for name in ("config.json", "model.safetensors", "tokenizer_config.json", *others):
            assert (ROOT / "moram_dist" / "models" / base / name).is_file(), name
    shipped = '"moram_dist.models" = ["demo_base/*", "demo_clip/*"]'
    assert shipped in (ROOT / "pyproject.toml").read_text()


def own_flags() -> set[str]:
    """Every flag of every command of the project."""
    fields = config_io.fields()
    flags = {f"--{name}" for name in (*OWN, *fields)}
    flags |= {f"--{section}.{name}" for name, (section, _) in fields.items()}
    names = ("doctor.py", "flags.py", "generate.py", "inspection.py", "moram.py", "plan.py")
    names += ("submit.py", "editing/command.py", "export/command.py")
    names += ("importing/command.py", "serving/command.py")
    launch = (ROOT / "launch" / name for name in names)
    modules = (ROOT / name / "__main__.py" for name in ("bench", "moram_dist/tracking"))
    commands = (ROOT / "eval" / "run.py", *modules, *launch)
    for path in (*commands, *(ROOT / "tools").glob("*.py")):
        flags |= set(re.findall(r"(?<=[\" ])--\w+", path.read_text(encoding="utf-8")))
    return flags


@pytest.mark.parametrize("path", GUIDES, ids=lambda path: path.name)
def test_flags_in_the_documents_exist(path):
    named = set(re.findall(r"(?<![\w-])--[a-z][\w.-]*\w", path.read_text(encoding="utf-8")))
    assert named <= own_flags() | ELSEWHERE


@pytest.mark.parametrize("path", GUIDES, ids=lambda path: path.name)
def test_files_in_the_documents_exist(path):
    for name in files_named_in(path.read_text(encoding="utf-8")):
        assert (ROOT / name).is_file(), name


def test_the_readme_names_the_two_commands():
    text = README.read_text(encoding="utf-8")
    assert "make demo" in text and "make test" in text


def test_recorded_results_name_no_paths_of_a_machine():
    for path in (ROOT / "docs" / "results").glob("*.jsonl"):
        assert '"/' not in path.read_text(encoding="utf-8"), path.name
