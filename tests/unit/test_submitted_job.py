"""A job's script, run with a pretended SLURM and launcher."""

from __future__ import annotations

import base64
import json
import os
import subprocess
import sys

import pytest

from tests.unit.test_submit import here, program, script, value  # noqa: F401 - two are fixtures


@pytest.fixture
def job(script, tmp_path):  # noqa: F811
    """Run a job's script with programs that stand in for SLURM's and for python.

    ``ends`` is what the run on node 1 of 2 does, in bash. Returns the exit code and what it said.
    """
    fake = tmp_path / "bin"
    fake.mkdir()
    program(fake, "srun", 'export SLURM_NODEID=1; exec "${@: -3}"')
    program(
        fake,
        "scontrol",
        'case "$*" in',
        '"show hostnames n[4-5]") printf "n4\\nn5\\n" ;;',
        '"--oneliner show node n4") echo "NodeName=n4 NodeAddr=10.0.0.4 NodeHostName=n4 x=1" ;;',
        f'requeue*) echo "$*" >> {tmp_path}/requeued; kill $PPID ;;',
        "*) exit 9 ;;",
        "esac",
    )
    text = script("--nodes", 2, "--gpus_per_node", 2, "--output_dir", "runs/run")
    text = text.replace(f"python={sys.executable}", f"python={fake}/python")

    def run(*ends, state="RUNNING", **variables):
        program(fake, "python", f'printf "%s\\n" "$@" > {tmp_path}/given', *ends)
        program(fake, "squeue", f"echo {state}")
        (tmp_path / "requeued").unlink(missing_ok=True)
        given = {"SLURM_JOB_ID": "77", "SLURM_JOB_NODELIST": "n[4-5]", "SLURM_CPUS_PER_TASK": "8"}
        done = subprocess.run(
            ["bash"],
            input=text,
            env={"PATH": f"{fake}:{os.environ['PATH']}"} | given | variables,
            capture_output=True,
            text=True,
            timeout=30,
        )
        requeued = tmp_path / "requeued"
        said = requeued.read_text().strip() if requeued.exists() else ""
        return done.returncode, said, done.stdout + done.stderr

    return run


def test_what_each_node_starts(job, tmp_path):
    code, requeued, said = job("exit 0", CUDA_VISIBLE_DEVICES="2,3")
    assert (code, requeued) == (0, ""), said
    words = (tmp_path / "given").read_text().splitlines()
    assert words[:2] == ["-m", "deepspeed.launcher.launch"]
    world = json.loads(base64.urlsafe_b64decode(value(words, "--world_info")))
    assert world == {"n4": ["2", "3"], "n5": ["2", "3"]} and list(world) == ["n4", "n5"]
    assert value(words, "--node_rank") == "1"
    assert value(words, "--master_addr") == "10.0.0.4"
    assert value(words, "--master_port") == "20077"
    assert value(words, "--output_dir") == f"{tmp_path}/runs/run"
    assert "attempt 1: job 77 on n[4-5]" in said and "attempt_001.log" in said
    (tmp_path / "runs" / "slurm" / "run" / "attempt_001.log").touch()
    job('echo "$OMP_NUM_THREADS" > ' + f"{tmp_path}/threads; exit 0")
    words = (tmp_path / "given").read_text().splitlines()
    world = json.loads(base64.urlsafe_b64decode(value(words, "--world_info")))
    assert world["n4"] == ["0", "1"]
    assert (tmp_path / "threads").read_text() == "4\n"


@pytest.mark.parametrize("code", [0, 1, 2, 3, 4, 75, 137, 247])
def test_what_follows_an_exit_code(code, job):
    again = code in (4, 75, 137, 247)
    ended, requeued, said = job(f"exit {code}")
    assert requeued == ("requeue 77" if again else ""), said
    assert f"attempt 1 ended with exit code {code}" in said
    if not again:
        assert ended == code


def test_what_is_not_requeued(job):
    code, requeued, said = job("exit 75", state="COMPLETING")  # somebody cancelled it
    assert (code, requeued) == (75, ""), said
    code, requeued, said = job("exit 75", SLURM_RESTART_COUNT="19")
    assert (code, requeued) == (75, "") and "no attempt is left of 20" in said


def test_a_task_of_an_array_goes_by_its_own_name(job):
    array = {"SLURM_ARRAY_JOB_ID": "70", "SLURM_ARRAY_TASK_ID": "0"}
    assert job("exit 75", **array)[1] == "requeue 70_0"


RANK = """
import os, psutil, signal, sys, time
signal.signal(signal.SIGUSR1, lambda *_: sys.exit({code}))
launcher, task, script, *_ = psutil.Process().parents()
os.kill(script.pid, signal.SIGUSR1)  # as SLURM does: to the script alone
time.sleep(20)
"""


def test_the_signal_reaches_the_ranks(job):
    """Whatever they end with then, the job goes on."""
    for code in (75, 1):
        ended = job(f"{sys.executable} -c '{RANK.format(code=code)}'", "exit $?")
        assert ended[1] == "requeue 77", ended
        assert "asked to stop" in ended[2] and f"exit code {code}" in ended[2]
