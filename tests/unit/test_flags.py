"""Flags mean the same to every command that takes those of training."""

from __future__ import annotations

from pathlib import Path

import pytest

from launch import plan, submit
from launch.flags import DS_CONFIGS, OWN, RECIPES, as_words, read_flags, train_flags, usage
from moram_dist import config_io
from moram_dist.command_line import Parser, spelled
from moram_dist.methods import METHODS

FLAGS = [*config_io.fields(), *OWN]
SECTIONED = [f"{section}.{name}" for name, (section, _) in config_io.fields().items()]


@pytest.mark.parametrize("command", [plan, submit], ids=lambda module: module.__name__)
def test_every_flag_of_training_is_taken(command):
    """As it stands, in each form; none is one of the command's own."""
    for name in (*FLAGS, *SECTIONED):
        dashed = name.replace("_", "-")
        for words in (
            [f"--{name}", "-1"],
            [f"--{name}=-1"],
            [f"--{dashed}", "-1"],
            [f"--{name}", "0", f"--{name}", "-1"],
            ["--nodes", "2", f"--{name}=-1", "--gpus-per-node=3"],
        ):
            own, rest = command.parser().parse_known_args(words)
            assert train_flags(rest) == {name: "-1"}, words
            assert own.nodes == (2 if "--nodes" in words else 1)
        _, rest = command.parser().parse_known_args([f"--{name}"])
        assert train_flags(rest) == {name: "True"}


def test_words_of_flags_are_read_as_these_flags():
    flags = {
        "top_k": "4",
        "data_dir": "--odd=",
        "register_memory": "True",
        "order": "",
        "x.y": "a b",
    }
    assert train_flags(as_words(flags)) == flags


@pytest.mark.parametrize(
    ("word", "expected"),
    [
        ("--top-k", "--top_k"),
        ("--top-k=a-b=c-d", "--top_k=a-b=c-d"),
        ("--method.top-k=1", "--method.top_k=1"),
        ("-x-y", "-x-y"),
        ("a-b", "a-b"),
        ("--", "--"),
    ],
)
def test_dashes_in_names(word, expected):
    assert spelled(word) == expected


def test_help_lists_every_flag_with_its_text_and_default():
    """Those of methods are read from text, and must be what importing them gives."""
    lines = usage("").split("\n")
    for name in FLAGS:
        (line,) = (line for line in lines if line.startswith(f"  --{name} "))
        text, _, default = line.removeprefix(f"  --{name}").strip().rpartition(" [")
        if name in OWN:
            continue
        assert text[-1] in ".)" and text[0] != "[", line
        section, _ = config_io.fields()[name]
        runs = [config_io.build({"method": method}) for method in METHODS]
        defaults = {str(getattr(getattr(run, section), name, default[:-1])) for run in runs}
        assert name == "method" or defaults == {default[:-1]}
    assert f"One of {', '.join(METHODS)}. [moram]" in "\n".join(lines)


def test_any_command_takes_dashes():
    parser = Parser("x", None)
    parser.add_argument("--tracking_uri")
    assert parser.parse_args(["--tracking-uri", "a-b"]).tracking_uri == "a-b"


def test_bare_names_are_of_the_project(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    _, ds_config = read_flags((), {"ds_config": "zero2.json"})
    assert ds_config == DS_CONFIGS / "zero2.json" and ds_config.is_file()
    config, _ = read_flags((), {"recipe": "trace_llama2_7b.yaml"})
    assert config.data.benchmark == "trace" and list(RECIPES.glob("*.yaml"))
    for there in ("no/zero2.json", "none.json"):
        assert read_flags((), {"ds_config": there})[1] == Path(there)
    (tmp_path / "zero2.json").write_text("{}")
    assert read_flags((), {"ds_config": "zero2.json"})[1] == Path("zero2.json")
