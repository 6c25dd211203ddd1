"""Look after a memory by the real commands: written, measured, killed, learned on, and used."""

from __future__ import annotations

import json
import signal
import sys
import time
from pathlib import Path

import pytest

from launch.export.command import main as export
from launch.generate import main as generate
from launch.inspection import main as inspect
from moram_dist.atoms.memory_files import MemoryFiles
from moram_dist.files import sha256
from tests.integration.launching import ROOT, Done, run, started, train

pytestmark = pytest.mark.integration

FLAGS = ("--limit_train", "32", "--limit_eval", "6", "--epochs", "2", "--batch_size", "8")
FLAGS += ("--dtype", "fp32", "--tracking", "none", "--recall", "prefix,all")
TASKS = ("topic", "mood", "place")
PROMPT = "What sort of thing is it about?\nText: The boy sold the cake.\nTopic:"


@pytest.fixture(scope="module")
def runs(tmp_path_factory):
    """A run of three tasks, and one of another task; no command may change them."""
    folder = tmp_path_factory.mktemp("edits")
    for name, order in (("three", ",".join(TASKS)), ("one", "time")):
        done = train(*FLAGS, "--order", order, "--output_dir", folder / name, ranks=1)
        assert done.code == 0, done.out + done.err
    before = hashes(folder)
    yield folder
    assert hashes(folder) == before


def hashes(folder: Path) -> dict[str, str]:
    return {str(path): sha256(path) for path in sorted(folder.rglob("*")) if path.is_file()}


def moram(*words, cwd: Path) -> Done:
    """The command of this checkout."""
    done = run(sys.executable, ROOT, *words, cwd=cwd)
    assert done.code == 0, done.out + done.err
    return done


def scores(folder: Path, suffix: str = "") -> list:
    return json.loads((folder / f"scores{suffix}.json").read_text())["scores"]


def is_whole(matrix: list) -> bool:
    return all(row[j] is not None for i, row in enumerate(matrix) for j in range(i + 1))


def check_use(folder: Path, out: Path, capsys) -> None:
    """All that reads a memory reads an edited one."""
    for main, words in (
        (generate, [folder, "--prompt", PROMPT]),
        (generate, [folder, "--prompt", PROMPT, "--upto", "1", "--recall", "all"]),
        (inspect, [folder, "--prompt", PROMPT]),
        (export, [folder, "--to", "hub", "--out", out / "hub"]),
        (export, [folder, "--to", "peft", "--task", "place", "--out", out / "peft"]),
    ):
        assert main([str(word) for word in words]) == 0, capsys.readouterr().err
    assert "Edited by " in (out / "hub" / "README.md").read_text()
    moram("report", "--run", folder, cwd=out)
    assert "An edited memory" in (folder / "report" / "index.html").read_text()


def test_a_task_is_dropped_and_the_rest_is_measured(runs, tmp_path, capsys):
    out = tmp_path / "dropped"
    done = moram("memory", "drop", runs / "three", "--task", "mood", "--out", out, cwd=tmp_path)
    assert "\nmood (exact_match_normalised): " in done.out and " without its atoms" in done.out
    assert "what it was made from scored:" in done.out
    for suffix in ("", ".all"):
        before, after = scores(runs / "three", suffix), scores(out, suffix)
        assert len(after) == 2 and is_whole(after)
        assert after[0][0] == before[0][0]
    left = json.loads((out / "edit.json").read_text())["left_out"]
    assert left["before"] == scores(runs / "three")[2][1] and 0 <= left["after"] <= 100
    again = moram("train", "--recipe", out / "run.yaml", "--output_dir", out, cwd=tmp_path)
    assert "all 2 tasks are done" in again.out
    check_use(out, tmp_path, capsys)


@pytest.mark.nightly
def test_a_memory_is_pruned_merged_and_measured_by_two_ranks(runs, tmp_path, capsys):
    pruned, merged = tmp_path / "pruned", tmp_path / "merged"
    words = ("memory", "prune", runs / "three", "--keep", "3", "--out", pruned)
    moram(*words, "--write_only", cwd=tmp_path)
    assert not (pruned / "scores.json").exists()
    words = ("memory", "merge", pruned, runs / "one", "--out", merged, "--ranks", "2")
    done = moram(*words, cwd=tmp_path)
    assert "topic, mood, place merged with time." in done.out
    manifest = MemoryFiles(merged / "memory").manifest()
    assert [task.atoms for task in manifest.tasks] == [3, 3, 3, None]
    assert [edit.command for edit in manifest.edits] == ["prune", "merge"]
    for suffix in ("", ".all"):
        matrix = scores(merged, suffix)
        assert len(matrix) == 4 and is_whole(matrix)
    check_use(merged, tmp_path, capsys)


def test_a_branch_that_learns_the_same_has_the_same_bytes(runs, tmp_path):
    out = tmp_path / "branch"
    words = ("memory", "branch", runs / "three", "--upto", "topic", "--order", "mood,place")
    moram(*words, "--out", out, cwd=tmp_path)
    done = train("--recipe", out / "run.yaml", "--output_dir", out, ranks=1)
    assert done.code == 0, done.out + done.err
    assert "task 1/3" not in done.out and "task 2/3 mood" in done.out
    same = [path.name for path in (runs / "three" / "memory").glob("*.safetensors")]
    assert len(same) == 6
    for name in same:
        assert sha256(out / "memory" / name) == sha256(runs / "three" / "memory" / name)
    for suffix in ("", ".all"):
        assert scores(out, suffix) == scores(runs / "three", suffix)


@pytest.mark.nightly
def test_a_kill_while_it_is_measured_is_made_good_by_training(runs, tmp_path):
    out = tmp_path / "dropped"
    command = (sys.executable, ROOT, "memory", "drop", runs / "three", "--task", "topic")
    with started(*command, "--out", out, cwd=tmp_path) as process:
        while not (out / ".lock").exists():  # the measuring session has it
            assert process.poll() is None, process.communicate()
            time.sleep(0.05)
        process.send_signal(signal.SIGKILL)
        process.wait()
    refused = run(*command, "--out", out, cwd=tmp_path)
    assert refused.code == 2 and f"--output_dir {out} finishes it" in refused.err
    moram("train", "--recipe", out / "run.yaml", "--output_dir", out, cwd=tmp_path)
    matrix = scores(out)
    assert len(matrix) == 2 and is_whole(matrix)
