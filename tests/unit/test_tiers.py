"""What ``make test-fast`` and ``make test`` run, and that nothing falls between them."""

from __future__ import annotations

import multiprocessing
import os
import re
import subprocess
import time
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]


@pytest.mark.parametrize("method", ["spawn", "forkserver"])
def test_a_unit_test_starts_no_ranks(method):
    process = multiprocessing.get_context(method).Process(target=time.sleep, args=(0,))
    with pytest.raises(pytest.fail.Exception, match="is for tests marked slow"):
        process.start()


def test_a_unit_test_forks_one_process_at_a_time():
    first, second = (
        multiprocessing.get_context("fork").Process(target=time.sleep, args=(60,)) for _ in "ab"
    )
    first.start()
    try:
        with pytest.raises(pytest.fail.Exception, match="a second process at once"):
            second.start()
    finally:
        first.kill()
        first.join()


def test_a_unit_test_calls_no_launcher():
    for command in (["/bin/deepspeed", "x.py"], "torchrun x.py"):
        with pytest.raises(pytest.fail.Exception, match="is for tests marked slow"):
            subprocess.run(command, shell=isinstance(command, str))


def recipe(target: str) -> str:
    """The last line that ``make`` would run."""
    command = [
        "make",
        "--no-print-directory",
        "--dry-run",
        "--assume-old",
        ".venv/installed",
        target,
    ]
    # Without what a make around the tests leaves to those that it starts.
    env = {name: value for name, value in os.environ.items() if not name.startswith("MAKE")}
    done = subprocess.run(
        command, cwd=ROOT, env=env, capture_output=True, text=True, timeout=300, check=True
    )
    return done.stdout.splitlines()[-1]


def test_each_tier_contains_the_one_before():
    default = re.findall(r"""^addopts = .*-m '(.*)'""", (ROOT / "pyproject.toml").read_text(), re.M)
    assert default == ["not nightly"]
    fast, change, every = map(recipe, ("test-fast", "test", "test-all"))
    assert fast.endswith('-m "not slow and not nightly" tests/unit')
    assert re.search(r"-m pytest (?!.* -m )(?!.*tests/)", change), change
    assert "WALK=1" in every and every.endswith('-m ""')


def test_what_is_nightly_is_listed():
    """In CONTRIBUTING.md, by file."""
    listed = (ROOT / "CONTRIBUTING.md").read_text(encoding="utf-8")
    for path in sorted((ROOT / "tests").rglob("test_*.py")):
        if path != Path(__file__) and "mark.nightly" in path.read_text(encoding="utf-8"):
            assert f"`{path.relative_to(ROOT)}`" in listed, path.name
