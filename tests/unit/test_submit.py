"""Job scripts: what is written for which flags, what a script does when a run ends, bad input."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from launch import submit
from launch.job_script import BODY, read_site, seconds
from moram_dist.registry import InputError

ROOT = Path(__file__).resolve().parents[2]
COMMAND = ROOT / "launch" / "submit.py"

HEADER = f"""\
#!/usr/bin/env bash
#SBATCH --job-name=moram-run-NAME
#SBATCH --nodes=4
#SBATCH --ntasks-per-node=1
#SBATCH --cpus-per-task=32
#SBATCH --time=12:00:00
#SBATCH --chdir=FOLDER
#SBATCH --output=FOLDER/runs/slurm/moram-run-NAME-%j.log
#SBATCH --open-mode=append
#SBATCH --requeue
#SBATCH --signal=B:USR1@180
#SBATCH --dependency=singleton
#SBATCH --gpus-per-node=8
# Made by: python launch/submit.py --nodes 4 --gpus_per_node 8 --time 12:00:00 --top_k 4 \
--output_dir runs/run --dry_run

python={sys.executable}
ranks_per_node=8
max_attempts=20
case ${{SLURM_ARRAY_TASK_ID:-0}} in
0)
  logs=FOLDER/runs/slurm/run
  command=({ROOT}/launch/train.py --ds_config {ROOT}/ds_configs/zero3.json --top_k 4 \
--output_dir FOLDER/runs/run)
  ;;
esac

"""


def program(folder, name, *lines):
    path = folder / name
    path.write_text("\n".join(["#!/bin/bash", *lines, ""]))
    path.chmod(0o755)


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


def options(text):
    lines = [line for line in text.splitlines() if line.startswith("#SBATCH ")]
    return dict(line.removeprefix("#SBATCH --").partition("=")[::2] for line in lines)


def commands(text):
    lines = [line.strip() for line in text.splitlines() if line.startswith("  command=(")]
    return [line.removeprefix("command=(").removesuffix(")").split() for line in lines]


def value(words, flag):
    return words[words.index(flag) + 1]


def test_one_sequence(script, tmp_path):
    flags = ("--nodes", 4, "--gpus_per_node", 8, "--time", "12:00:00", "--top_k", 4)
    text = script(*flags, "--output_dir", "runs/run")
    name = options(text)["job-name"].rpartition("-")[2]
    assert text == HEADER.replace("FOLDER", str(tmp_path)).replace("NAME", name) + BODY.read_text()
    assert not list(tmp_path.iterdir())


def test_a_sweep(script, tmp_path):
    sweep = ("--orders", "default", "topic,mood", "--methods", "moram", "replay", "--seeds", 0, 7)
    text = script(*sweep, "--output_dir", "runs", "--parallel", 3, "--limit_train=8")
    assert options(text)["array"] == "0-7%3"
    assert options(text)["dependency"] == "singleton"
    found = commands(text)
    assert len(found) == 8
    run_dirs = [value(words, "--output_dir") for words in found]
    assert len(set(run_dirs)) == 8
    assert run_dirs[0] == f"{tmp_path}/runs/demo-moram-seed0"
    assert run_dirs[-1] == f"{tmp_path}/runs/demo-topic+mood-replay-seed7"
    for words in found:
        assert value(words, "--limit_train") == "8"
    swept = [tuple(value(w, f"--{name}") for name in ("order", "method", "seed")) for w in found]
    assert len(set(swept)) == 8 and swept[-1] == ("topic,mood", "replay", "7")
    assert text.count("  logs=") == 8


def test_a_name_stands_for_run_directories(script):
    """Jobs of one name wait for each other."""
    name = options(script("--output_dir", "a"))["job-name"]
    assert options(script("--output_dir", "./a", "--nodes", 2))["job-name"] == name
    assert options(script("--output_dir", "b"))["job-name"] != name
    both = options(script("--seeds", 0, 1, "--output_dir", "a"))["job-name"]
    assert options(script("--seeds", 0, 1, "--record.output_dir", "a"))["job-name"] == both
    assert options(script("--seeds", 1, 0, "--output_dir", "a"))["job-name"] == both != name


def test_what_is_special_about_a_site(script, tmp_path):
    site = tmp_path / "site.yaml"
    site.write_text(
        "sbatch: {partition: gpu, exclusive: null, comment: it's mine}\n"
        "gpus: gres=gpu:{n}\ncpus_per_rank: 3\nenvironment: {NAME: a b}\n"
        "setup: |\n  module load cuda\n"
    )
    text = script("--site", site, "--gpus_per_node", 2)
    asked = options(text)
    assert (asked["gres"], asked["cpus-per-task"], asked["partition"]) == ("gpu:2", "6", "gpu")
    assert "#SBATCH --exclusive\n" in text and "gpus-per-node" not in text
    assert "\nexport NAME='a b'\nmodule load cuda\npython=" in text
    text = script("--site", site, "--gpus_per_node", 0)
    assert "gres" not in text and "ranks_per_node=1" in text and "DS_ACCELERATOR=cpu" in text
    read_site(ROOT / "launch" / "slurm" / "site.yaml")


SECRET = "s3cr3t-W0rd"


def test_a_script_keeps_no_password(tmp_path, capsys, monkeypatch):
    site = tmp_path / "site.yaml"
    site.write_text(
        f"environment: {{HF_TOKEN: {SECRET}, A: b, https_proxy: 'http://u:{SECRET}@p'}}"
    )
    fake = tmp_path / "bin" / "sbatch"
    fake.parent.mkdir()
    fake.write_text("#!/bin/sh\nenv > sbatch.env\necho 7\n")
    fake.chmod(0o755)
    monkeypatch.setenv("PATH", f"{fake.parent}:{os.environ['PATH']}")
    address = f"http://alice:{SECRET}@host:5000/?token={SECRET}"
    for words in (["--tracking_uri", address], [f"--record.tracking_uri={address}"]):
        submit.main([*words, "--site", str(site), "--output_dir", "runs/run"])
        said = capsys.readouterr()
        assert SECRET not in said.out + said.err
        assert "note: HF_TOKEN, MLFLOW_TRACKING_URI, https_proxy held a password" in said.err
        (kept,) = (tmp_path / "runs" / "slurm").iterdir()
        assert kept.read_text() == said.out and kept.stat().st_mode & 0o777 == 0o600
        assert "export A=b\n" in said.out and "tracking_uri" not in commands(said.out)[0]
        passed = (tmp_path / "sbatch.env").read_text().splitlines()
        assert f"MLFLOW_TRACKING_URI={address}" in passed and f"HF_TOKEN={SECRET}" in passed


@pytest.mark.parametrize(
    ("site", "words", "complaint"),
    [
        (f"setup: 'export HF_TOKEN={SECRET}'", [], "setup: HF_TOKEN holds a password"),
        (f"setup: 'X=\"http://u:{SECRET}@h\"'", [], "setup: X holds a password"),
        (f"sbatch: {{comment: 'http://u:{SECRET}@h'}}", [], "sbatch: comment holds a password"),
        ("sbatch: {export: NONE}\nenvironment: {HF_TOKEN: x}", [], "must pass on HF_TOKEN"),
        ("sbatch: {export: 'A,B'}\nenvironment: {HF_TOKEN: x}", [], "must pass on HF_TOKEN"),
        ("cpus_per_rank: 1", ["--model", f"http://u:{SECRET}@h/m"], "--model holds a password"),
        ("cpus_per_rank: 1", ["--tracking_uri", f"ftp://u:{SECRET}@h"], "no store of kind 'ftp'"),
    ],
)
def test_passwords_that_cannot_be_passed_on(tmp_path, capsys, site, words, complaint):
    (tmp_path / "site.yaml").write_text(site)
    with pytest.raises(InputError, match=complaint) as said:
        submit.main([*words, "--site", str(tmp_path / "site.yaml"), "--dry_run"])
    assert SECRET not in str(said.value) + capsys.readouterr().out


def test_passwords_that_setup_reads_elsewhere_are_let_be(script, tmp_path):
    (tmp_path / "site.yaml").write_text(
        "sbatch: {export: 'ALL,A'}\nsetup: |\n  export HF_TOKEN=$(cat ~/.token) WANDB_API_KEY=$K\n"
        "environment: {MLFLOW_TRACKING_PASSWORD: x}\n"
    )
    text = script("--site", tmp_path / "site.yaml")
    assert "HF_TOKEN=$(cat" in text and "MLFLOW_TRACKING_PASSWORD" not in text


def test_evaluation_alone(script, tmp_path):
    run = tmp_path / "run"
    (run / "memory").mkdir(parents=True)
    (run / "benchmark.json").write_text(json.dumps({"tasks": [{}, {}]}))
    (run / "memory" / "memory.json").write_text(json.dumps({"tasks": [{}]}))
    with pytest.raises(InputError, match="no run is recorded"):
        script("--evaluate", run)
    from moram_dist import config_io
    from moram_dist.config import RunConfig

    config = submit.checked({"order": "topic,mood", "output_dir": str(tmp_path / "other")})
    assert isinstance(config, RunConfig)
    (run / "run.yaml").write_text(json.dumps(config_io.to_dict(config)))
    with pytest.raises(InputError, match="1 of 2 tasks are trained"):
        script("--evaluate", run)
    (run / "memory" / "memory.json").unlink()
    (run / "benchmark.json").write_text(json.dumps({"tasks": []}))  # so that none is missing
    (words,) = commands(script("--evaluate", run, "--eval_batch_size", 4))
    assert value(words, "--recipe") == f"{run}/run.yaml"
    assert value(words, "--output_dir") == str(run)
    assert value(words, "--eval_batch_size") == "4"
    with pytest.raises(InputError, match="another configuration"):
        script("--evaluate", run, "--top_k", 3)


@pytest.mark.parametrize(
    ("flags", "word"),
    [
        ("--nodes 0", "--nodes"),
        ("--nodes two", "--nodes"),
        ("--gpus_per_node -1", "--gpus_per_node"),
        ("--time soon", "--time"),
        ("--time 2 --stop_before 90", "--stop_before"),
        ("--topk 3", "--topk"),
        ("--top_k 0", "--top_k"),
        ("RUN", "RUN"),
        ("--order nope", "nope"),
        ("--methods moram magic", "magic"),
        ("--method moram --methods moram replay", "--methods"),
        ("--seeds 1 1", "same run directory"),
        ("--ds_config none.json", "none.json"),
        ("--site none.yaml", "none.yaml"),
        ("--benchmark trace --data_dir nowhere", "nowhere"),
        ("--evaluate nowhere", "nowhere"),
        ("--evaluate RUN --seeds 1 2", "--seeds"),
        ("--evaluate RUN --output_dir X", "--output_dir"),
        ("--evaluate RUN --record.output_dir X", "--output_dir"),
        ("--train.seed 9 --seeds 1 2", "--seeds"),
    ],
)
def test_wrong_input(flags, word):
    with pytest.raises(InputError) as error:
        submit.main([*flags.split(), "--dry_run"])
    assert word in str(error.value)


def test_time_limits():
    read = {"90": 5400, "1:30": 90, "24:00:00": 86400, "2-0": 172800, "1-12:30": 131400}
    read |= {"1-0:0:5": 86405}
    assert {text: seconds(text) for text in read} == read


def test_submission(tmp_path, monkeypatch, capsys):
    fake = tmp_path / "bin"
    fake.mkdir()
    monkeypatch.setenv("PATH", str(fake))
    with pytest.raises(InputError, match="no sbatch on PATH"):
        submit.main(["--output_dir", "runs/run"])
    assert not (tmp_path / "runs").exists()
    program(fake, "sbatch", "echo 'invalid partition' >&2; exit 1")
    with pytest.raises(InputError, match="invalid partition"):
        submit.main(["--output_dir", "runs/run"])
    program(fake, "sbatch", f'[ "$1" = --parsable ] && echo "$2" > {tmp_path}/given; echo 42')
    capsys.readouterr()
    submit.main(["--output_dir", "runs/run"])
    script, said = capsys.readouterr()
    told = json.loads(said)
    assert told["job"] == "42"
    assert (tmp_path / "given").read_text().strip() == told["script"]
    assert Path(told["script"]).read_text() == script


def test_by_the_command():
    done = subprocess.run(
        [sys.executable, COMMAND, "--nodes", "0"], capture_output=True, text=True, timeout=60
    )
    assert (done.returncode, done.stdout) == (2, "")
    assert done.stderr.startswith("error: --nodes") and done.stderr.count("\n") == 1
