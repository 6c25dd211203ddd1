"""The Dockerfile, followed step by step in a clean folder, as there is no docker in the tests."""

from __future__ import annotations

import fnmatch
import json
import os
import re
import shutil
import subprocess
import sys
from dataclasses import dataclass, field
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
TARGETS = ("cpu", "gpu")


@dataclass
class Built:
    """What a stage has come to: its working folder on this disk, and what it says."""

    base: str
    folder: Path
    users: list[str] = field(default_factory=lambda: ["root"])
    commands: list[str] = field(default_factory=list)
    environment: dict[str, str] = field(default_factory=dict)
    entrypoint: list[str] = field(default_factory=list)


def instructions() -> list[tuple[str, str]]:
    text = (ROOT / "Dockerfile").read_text(encoding="utf-8")
    lines = re.sub(r"^#.*\n", "", text, flags=re.MULTILINE).replace("\\\n", " ").splitlines()
    return [
        (word, " ".join(rest.split()))
        for word, _, rest in (x.partition(" ") for x in lines)
        if word
    ]


def ignored(path: str) -> bool:
    """Whether .dockerignore keeps a path, or a folder above it, from the builder."""
    patterns = (ROOT / ".dockerignore").read_text(encoding="utf-8").split()
    parts = Path(path).parts
    return any(
        fnmatch.fnmatch(parts[k - 1] if pattern.startswith("**/") else "/".join(parts[:k]), wanted)
        for k in range(1, len(parts) + 1)
        for pattern in patterns
        for wanted in [pattern.removeprefix("**/")]
    )


def copy(source: str, folder: Path, to: str) -> None:
    """COPY of a file or a folder. Fails where docker would."""
    found = ROOT / source
    assert found.exists(), f"COPY {source}: there is no such file"
    assert not ignored(source), f"COPY {source}: .dockerignore keeps it out"
    if found.is_file():
        shutil.copy(found, folder / to)
        return

    def left_out(directory: str, names: list[str]) -> list[str]:
        return [n for n in names if ignored(str(Path(directory, n).relative_to(ROOT)))]

    shutil.copytree(found, folder / to, ignore=left_out)


@pytest.fixture(scope="module", params=TARGETS)
def built(request, tmp_path_factory) -> Built:
    """The stage of a target, built as far as that goes without its base."""
    stages: dict[str, Built] = {}
    now: Built | None = None
    for word, rest in instructions():
        if word == "FROM":
            base, _, name = rest.partition(" AS ")
            now = stages[name] = Built(base, tmp_path_factory.mktemp(name))
            continue
        assert now is not None
        if word == "USER":
            now.users.append(rest)
        elif word == "ENV":
            now.environment |= dict(pair.split("=", 1) for pair in rest.split())
        elif word == "COPY":
            *sources, to = [part for part in rest.split() if not part.startswith("--")]
            for source in sources:
                copy(source, now.folder, to)
        elif word == "RUN":
            for name in re.findall(r"-r (\S+)", rest):
                assert (now.folder / name).is_file(), f"RUN {rest}: {name} is not there yet"
            now.commands.append(rest)
        elif word == "ENTRYPOINT":
            now.entrypoint = json.loads(rest)
        else:
            assert word in ("WORKDIR", "ARG"), word
    assert tuple(stages) == TARGETS  # the last one is the default
    return stages[request.param]


def test_the_linter_finds_nothing():
    done = subprocess.run(
        ["hadolint", "--no-color", "Dockerfile"],
        cwd=ROOT,
        capture_output=True,
        text=True,
        timeout=60,
    )
    assert (done.returncode, done.stdout) == (0, ""), done.stdout + done.stderr


def test_it_is_built_on_an_exact_release(built):
    assert re.fullmatch(r"[\w/.-]+:\d+\.\d+\.\d+-[\w.-]+", built.base)


def test_it_does_not_run_as_root(built):
    assert built.users == ["root", "10001"]  # by number, so that a cluster can tell
    own = [i for i, command in enumerate(built.commands) if "pip install" in command]
    assert own and all("useradd" not in built.commands[i] for i in own)


def test_it_holds_no_secrets_and_no_more_than_it_needs(built):
    text = (ROOT / "Dockerfile").read_text(encoding="utf-8")
    assert not re.search(r"(?i)token|password|secret|api_key|://", text)
    found = {path.name for path in built.folder.iterdir()}
    assert found == {
        *("requirements.txt", "requirements-gpu.txt", "pyproject.toml", "__main__.py"),
        *("moram_dist", "launch", "eval", "ds_configs"),
    }
    for path in built.folder.rglob("*"):
        assert not path.name.startswith(".") and path.suffix != ".pyc", path
    for name in (".git", ".env", ".venv/bin/python", "moram_dist/__pycache__/x.pyc", "runs/a"):
        assert ignored(name), name
    for base in ("demo_base", "demo_clip"):
        assert not ignored(f"moram_dist/models/{base}/model.safetensors")


def test_what_is_installed_is_pinned(built):
    """By the same files as everywhere; what a build needs besides stands with its version."""
    for command in built.commands:
        for words in re.findall(r"pip install ([^&]*)", command):
            named = re.sub(r"-r \S+|--\S+", "", words).split()
            assert all(re.fullmatch(r"[\w-]+==[\d.]+", word) for word in named), words
    joined = " && ".join(built.commands)
    assert "-r requirements.txt" in joined
    assert ("-r requirements-gpu.txt" in joined) == built.base.startswith("nvidia/cuda")


def test_cuda_is_that_of_torch(built):
    """nvcc of another major release cannot build flash-attn for this torch."""
    import torch

    if built.base.startswith("nvidia/cuda"):
        assert "-devel-" in built.base  # which has nvcc
        if torch.version.cuda:
            assert built.base.split(":")[1].startswith(torch.version.cuda)


@pytest.mark.slow
def test_the_commands_run_from_what_was_copied(built):
    named = [word for word in built.entrypoint if "/" in word]
    assert len(named) == 2
    for name in named:
        assert (built.folder / name).is_file(), name
    environment = {n: v for n, v in os.environ.items() if n != "PYTHONPATH"}
    for script in ("launch/train.py", "launch/doctor.py", "launch/submit.py", "eval/run.py"):
        done = subprocess.run(
            [sys.executable, script, "--help"],
            cwd=built.folder,
            env=environment,
            capture_output=True,
            text=True,
            timeout=120,
        )
        assert done.returncode == 0, done.stderr
    checked = "from launch import checks; print(checks.python().state, checks.flash_attn().state)"
    done = subprocess.run(
        [sys.executable, "-c", checked],
        cwd=built.folder,
        env=environment,
        capture_output=True,
        text=True,
        timeout=120,
    )
    assert done.returncode == 0, done.stderr
