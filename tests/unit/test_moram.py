"""The command ``moram``: what it starts, what it says, and how soon."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

import launch.train
from launch import moram
from launch.flags import train_script
from moram_dist.command_line import EXTRAS, run_command

ROOT = Path(__file__).resolve().parents[2]
COMMANDS = ["train", *moram.MODULES, *moram.SCORING]


@pytest.fixture(autouse=True)
def alone(monkeypatch, tmp_path):
    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv("RANK", raising=False)


@pytest.fixture
def trained(monkeypatch):
    """The words that training was given, one list for each call."""
    given = []
    monkeypatch.setattr(launch.train, "run", given.append)
    return given


def test_it_lists_its_commands(capsys):
    assert run_command(moram.main, ["--help"]) == 0
    listed = re.findall(r"^    (\w+)  ", capsys.readouterr().out, re.MULTILINE)
    assert listed == [*moram_order()]
    assert run_command(moram.main, []) == 2


def moram_order():
    """As they are listed: from training to what one does with its results."""
    first = ["train", "plan", "doctor", "submit", "memory", "generate", "inspect"]
    first += ["serve", "export", "import"]
    return [*first, "report", "compare", "audit", "rescore", "metrics", "tracking"]


def test_nothing_else_is_a_command(capsys):
    assert sorted(COMMANDS) == sorted(moram_order())
    assert run_command(moram.main, ["trian"]) == 2
    assert capsys.readouterr().err.startswith(
        "error: unknown command 'trian'; did you mean 'train'?"
    )


@pytest.mark.parametrize("command", COMMANDS)
def test_each_has_a_help_of_its_own(command, capsys):
    try:
        assert not run_command(moram.main, [command, "--help"])
    except SystemExit as ended:
        assert not ended.code
    assert f"moram {command}" in capsys.readouterr().out


@pytest.mark.parametrize(
    "command",
    [
        *([], ["train"], ["plan"], ["doctor"], ["submit"], ["report"]),
        *(["generate"], ["inspect"], ["serve"], ["export"]),
    ],
)
def test_help_does_not_wait_for_torch(command):
    code = (
        "import sys, launch.moram as m\n"
        f"try: m.main([*{command}, '--help'])\n"
        "except SystemExit: pass\n"
        "assert not {'torch', 'transformers', 'deepspeed', 'mlflow'} & {*sys.modules}"
    )
    done = subprocess.run(
        [sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, timeout=60
    )
    assert done.returncode == 0, done.stderr


def test_one_process_says_how_to_have_more(trained, capsys):
    moram.main(["train", "--top-k=3", "--tracking", "none"])
    assert trained == [["--top_k", "3", "--tracking", "none"]]
    said = capsys.readouterr().err
    assert said.count("\n") == 1 and "moram train --ranks N" in said


def test_a_rank_says_nothing(trained, capsys, monkeypatch):
    monkeypatch.setenv("RANK", "0")
    moram.main(["train", "--local_rank=0"])
    assert trained == [["--local_rank", "0"]] and capsys.readouterr().err == ""


def test_ranks_are_started_by_the_launcher(trained, monkeypatch):
    def become(program, words, environment):
        assert environment["PYTHONSAFEPATH"] == "1"
        raise SystemExit([program, *words])

    monkeypatch.setattr(os, "execve", become)
    with pytest.raises(SystemExit) as ended:
        moram.main(["train", "--ranks", "2", "--data_dir=--x", "--top_k", "3"])
    program, *words = ended.value.code
    assert program == words[0] == sys.executable and not trained
    assert words[1:5] == ["-m", "deepspeed.launcher.runner", "--num_gpus", "2"]
    assert words[5] == "--master_port" and 0 < int(words[6]) < 65536
    assert words[7:] == [*train_script(), "--data_dir=--x", "--top_k", "3"]


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["--ranks", "0"], "--ranks must be from 1 to 1,024, got 0"),
        (["--ranks", "two"], "--ranks "),
        (["--ranks", "2", "--topk", "1"], "unknown flag '--topk'; did you mean '--top_k'?"),
        (["stray"], "unexpected argument 'stray'"),
    ],
)
def test_wrong_input_is_one_line(words, said, capsys, trained):
    assert run_command(moram.main, ["train", *words]) == 2
    found = capsys.readouterr().err
    assert found.startswith(f"error: {said}") and found.count("\n") == 1 and not trained


def test_a_rank_starts_no_ranks(monkeypatch, capsys, trained):
    monkeypatch.setenv("RANK", "0")
    assert run_command(moram.main, ["train", "--ranks", "2"]) == 2
    assert "leave it out" in capsys.readouterr().err and not trained


def test_without_the_packages_of_training(monkeypatch, capsys, trained):
    monkeypatch.setattr(moram, "find_spec", lambda name: None)
    assert run_command(moram.main, ["train"]) == 2
    assert "pip install 'moram-dist[train,track]'" in capsys.readouterr().err and not trained


@pytest.mark.parametrize("name", EXTRAS)
def test_a_package_that_is_missing_names_its_extra(name, capsys, tmp_path):
    def main(words):
        raise ModuleNotFoundError(f"No module named '{name}.part'", name=f"{name}.part")

    assert run_command(main, []) == 2
    said = capsys.readouterr().err
    assert said == f"error: {name} is not installed: pip install 'moram-dist[{EXTRAS[name]}]'\n"
    assert not list(tmp_path.iterdir())


def test_version(capsys):
    moram.main(["--version"])
    assert re.fullmatch(r"moram-dist \d+\.\d+\.\d+\n", capsys.readouterr().out)


def test_a_checkout_runs_without_being_installed(tmp_path):
    done = subprocess.run(
        [sys.executable, ROOT, "metrics", "--scores", "none.json"],
        cwd=tmp_path,
        capture_output=True,
        text=True,
        timeout=60,
    )
    assert done.returncode == 2 and "none.json" in done.stderr and done.stderr.count("\n") == 1
