"""What a person or a site gives arrives in a job as it is, or is refused: none runs as shell."""

from __future__ import annotations

import json
import shlex
import subprocess
from pathlib import Path

import pytest

from launch import submit
from launch.job_script import BODY, read_site
from moram_dist.registry import InputError

ROOT = Path(__file__).resolve().parents[2]


@pytest.fixture(autouse=True)
def here(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)


@pytest.fixture
def script(capsys):
    """Words of the command -> the script that a dry run prints; it is valid bash."""

    def of(*words):
        submit.main([*map(str, words), "--dry_run"])
        text = capsys.readouterr().out
        checked = subprocess.run(["bash", "-n"], input=text, capture_output=True, text=True)
        assert (checked.returncode, checked.stderr) == (0, "")
        return text

    return of


def commands(text):
    lines = [line.strip() for line in text.splitlines() if line.startswith("  command=(")]
    return [line.removeprefix("command=(").removesuffix(")").split() for line in lines]


def value(words, flag):
    return words[words.index(flag) + 1]


HOSTILE = "a b'c\"d$(touch PWNED)`touch PWNED`;touch PWNED&#é\\*?[x]~{a,b}%j"


def test_whatever_stands_in_a_path_arrives_as_it_is(script, tmp_path, monkeypatch):
    """Of the job's own folder, the run directory, a flag and the site's settings."""
    folder = tmp_path / HOSTILE
    folder.mkdir()
    monkeypatch.chdir(folder)
    site = folder / "site.yaml"
    site.write_text(json.dumps({"environment": {"NAME": HOSTILE}, "sbatch": {"comment": HOSTILE}}))
    text = script(
        *("--site", site, "--output_dir", HOSTILE, "--gpus_per_node", 0),
        *("--target_modules", HOSTILE, f"--ds_config={ROOT}/ds_configs/zero3.json"),
    )
    options = [line for line in text.splitlines() if line.startswith("#SBATCH")]
    words = {word for line in options for word in shlex.split(line.removeprefix("#SBATCH "))}
    assert f"--chdir={folder}" in words and f"--comment={HOSTILE}" in words
    # SLURM would replace %j by the job's number in a path, and only there.
    log = next(word for word in words if word.startswith("--output="))
    assert log.count("%%j") == 1 and log.endswith("-%j.log")
    header = text.removesuffix(BODY.read_text())
    # job.sh hands its variables on to a bash of their own on each node, in this way.
    inner = """node() { printf '%s\\0' "${command[@]}" "$logs" "$NAME"; }
    bash -c "$(declare -p command logs; declare -f node); node"
    """
    done = subprocess.run(
        ["bash"],
        input=header + inner,
        capture_output=True,
        text=True,
        check=True,
    )
    *words, logs, name, _ = done.stdout.split("\0")
    assert value(words, "--target_modules") == HOSTILE
    assert value(words, "--output_dir") == str(folder / HOSTILE)
    assert (logs, name) == (str(folder / "slurm" / HOSTILE), HOSTILE)
    assert not list(tmp_path.rglob("PWNED"))


@pytest.mark.parametrize("control", ["\n", "\r", "\x1b", "\x7f", "\u2028", "\x85"])
def test_a_value_with_a_control_character_is_refused(script, tmp_path, monkeypatch, control):
    bad = f"x{control}touch PWNED{control}#SBATCH --x"
    for flag in ("--output_dir", "--data_dir", "--target_modules", "--order", "--model"):
        with pytest.raises(InputError, match=f"{flag} holds "):
            script(flag, bad)
    (tmp_path / "runs").mkdir()
    for field in ("sbatch", "environment"):
        site = tmp_path / "site.yaml"
        site.write_text(json.dumps({field: {"NAME" if field == "environment" else "name": bad}}))
        with pytest.raises(InputError, match=rf"site\.yaml: {field}\..* holds "):
            script("--site", site)
    (tmp_path / bad).mkdir()
    monkeypatch.chdir(tmp_path / bad)
    with pytest.raises(InputError, match="the current folder's path holds "):
        script("--output_dir", tmp_path / "runs" / "a")


def test_a_value_that_looks_like_a_flag(script):
    (words,) = commands(script("--target_modules=--seed", "--output_dir", "runs/a"))
    assert "--target_modules=--seed" in words


@pytest.mark.parametrize(
    ("text", "word"),
    [
        ("partition: gpu", "partition"),
        ("cpus_per_rank: many", "cpus_per_rank"),
        ("cpus_per_rank: 0", "cpus_per_rank"),
        ("sbatch: gpu", "sbatch"),
        ("gpus: all", "gpus"),
        ("environment: {a-b: 1}", "a-b"),
        ("environment: {é: 1}", "no name of a variable"),
        ("environment: {A: [1]}", "must be a text"),
        ("sbatch: {'a b': 1}", "no name of an option"),
        ('sbatch: {"a\\n#SBATCH --b": 1}', "no name of an option"),
        ("sbatch: {exclusive: true}", "null for an option without a value"),
        ("sbatch: {comment: {a: 1}}", "must be a text"),
        ("gpus: 'gres=gpu:{n}\\'", "gpus must be option=value"),
        ("gpus: 'x={n};y'", "gpus must be option=value"),
        ('setup: "module load cuda\\r\\n"', "setup holds"),
        ("5: 3", "unknown setting"),
        ("partition: [", "malformed YAML"),
    ],
)
def test_wrong_site(text, word, tmp_path):
    (tmp_path / "site.yaml").write_text(text)
    with pytest.raises(InputError, match=word):
        read_site(tmp_path / "site.yaml")


def test_a_folder_without_a_name_that_can_be_written_down(script, tmp_path, monkeypatch):
    bad = tmp_path / "w_\udcff"
    bad.mkdir()
    monkeypatch.chdir(bad)
    with pytest.raises(InputError, match="--output_dir is not UTF-8"):
        script("--top_k", 4)
    bad.rmdir()
    with pytest.raises(InputError, match="the current folder is gone"):
        script("--top_k", 4)
