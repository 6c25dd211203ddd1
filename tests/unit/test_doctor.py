"""The doctor finds each planted fault, says what to do, and calls nothing else a fault."""

from __future__ import annotations

import os
import re
import socket
import subprocess
import sys
import time
from collections import namedtuple
from importlib import metadata
from pathlib import Path

import pytest
import torch
from PIL import features

from launch import checks, codecs, doctor, versions
from moram_dist import kernels
from moram_dist.comm import env, extension

ROOT = Path(__file__).resolve().parents[2]
COMMAND = ROOT / "launch" / "doctor.py"
TIMEOUT_S = 400
"""The CPU extension may have to be built first."""


def run(*flags, cwd, **variables):
    """The command as a shell sees it. Returns exit code, state of each check, and its text."""
    done = subprocess.run(
        [sys.executable, COMMAND, *map(str, flags)],
        cwd=cwd,
        env=os.environ | {name: str(value) for name, value in variables.items()},
        capture_output=True,
        text=True,
        timeout=TIMEOUT_S,
    )
    states = dict(
        reversed(found)
        for found in re.findall(
            r"^(ok|warning|fault) +(\w\S*(?: \w+)?)  ", done.stdout, re.MULTILINE
        )
    )
    return done.returncode, states, done.stdout + done.stderr


def program(folder, name, *lines):
    path = folder / name
    path.write_text("\n".join(["#!/bin/sh", *lines, ""]))
    path.chmod(0o755)
    return path


def stale_lock(home):
    lock = home / extension.NAME / "lock"
    lock.parent.mkdir(parents=True)
    lock.touch()
    os.utime(lock, (time.time() - 3600,) * 2)
    return lock


@pytest.fixture
def free_port():
    return env.free_port()


@pytest.mark.slow
def test_a_healthy_machine(tmp_path, free_port):
    shared_memory = Path("/dev/shm")
    before = set(shared_memory.glob("deepspeed_*"))
    code, states, said = run("--port", free_port, "--output_dir", tmp_path / "run", cwd=tmp_path)
    assert code == 0, said
    assert set(shared_memory.glob("deepspeed_*")) <= before  # DeepSpeed leaves some at each start
    assert "fault" not in states.values()
    assert (states["ranks"], states["packages"]) == ("ok", "ok")
    assert len(states) == 14
    assert re.search(r"^14 checks: 0 at fault, \d with a warning$", said, re.MULTILINE)
    assert not list(tmp_path.iterdir())


@pytest.mark.slow
def test_all_faults_at_once(tmp_path):
    """By the command, each planted where the machine would have it."""
    info = tmp_path / "site" / "rapidfuzz-0.0.1.dist-info"
    info.mkdir(parents=True)
    (info / "METADATA").write_text("Metadata-Version: 2.1\nName: rapidfuzz\nVersion: 0.0.1\n")
    (tmp_path / "site" / "flash_attn").mkdir()
    (tmp_path / "site" / "flash_attn" / "__init__.py").write_text("raise ImportError('symbol')")
    lock = stale_lock(tmp_path / "extensions")
    (tmp_path / "file").touch()
    only = tmp_path / "bin"
    only.mkdir()
    program(only, "nvidia-smi", "echo Failed to initialize NVML; exit 18")
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        code, states, said = run(
            *("--port", taken.getsockname()[1], "--output_dir", tmp_path / "file" / "run"),
            cwd=tmp_path,
            PYTHONPATH=tmp_path / "site",
            PATH=only,
            TORCH_EXTENSIONS_DIR=tmp_path / "extensions",
        )
    assert code == 1, said
    faults = {name for name, state in states.items() if state == "fault"}
    planted = {"packages", "compiler", "extension lock", "run directory", "port", "gpu"}
    assert faults == planted | {"flash-attn"}
    assert states["ranks"] == "warning"  # with that lock it would wait for ever
    assert "rapidfuzz 0.0.1 (3.14.6)" in said and "pip install -r" in said
    assert f"rm {lock}" in said
    assert "7 at fault" in said
    lines = said.splitlines()
    for number, line in enumerate(lines):
        if line.startswith(("fault", "warning")):
            assert lines[number + 1].strip().startswith("-> ")


def test_each_result_decides_the_exit_code(capsys):
    ok, warning = checks.CheckResult("a"), checks.CheckResult("b", "warning", "mend b")
    assert doctor.examine({"one": lambda: ok, "two": lambda: warning}) == 0
    assert (
        doctor.examine({"one": lambda: ok, "two": lambda: checks.CheckResult("c", "fault", "d")})
        == 1
    )

    def breaks():
        raise RuntimeError("nobody\nthought of it")

    assert doctor.examine({"one": breaks, "two": lambda: ok}) == 1
    said = capsys.readouterr().out
    assert "not checked: RuntimeError: nobody thought of it" in said
    assert said.splitlines()[-3].startswith("ok       two")  # the rest went on


@pytest.mark.parametrize(
    ("flags", "word"),
    [
        (["--port", "x"], "--port"),
        (["--port", "0"], "--port"),
        (["--tracking", "wandb"], "--tracking"),
        (["--tracking_uri", "some/folder"], "--tracking_uri"),
        (["--nodes", "2"], "--nodes"),
        (["RUN"], "RUN"),
    ],
)
def test_wrong_input(flags, word, tmp_path):
    code, states, said = run(*flags, cwd=tmp_path)
    assert (code, states) == (2, {})
    assert said.startswith("error:") and word in said and said.count("\n") == 1


def test_an_old_python(monkeypatch):
    assert checks.python().state == "ok"
    version = namedtuple("version", "major minor micro")(3, 10, 4)
    monkeypatch.setattr(sys, "version_info", version)
    result = checks.python()
    assert (result.state, "3.11" in result.remedy) == ("fault", True)


@pytest.mark.parametrize(
    ("lacking", "state", "words"),
    [
        ((), "ok", "decodes JPEG, PNG, WebP, compressed TIFF"),
        (("webp",), "ok", "does not decode WebP"),
        (("jpg", "webp"), "warning", "does not decode JPEG, WebP, which tasks of pictures need"),
    ],
)
def test_what_pictures_are_decoded(monkeypatch, lacking, state, words):
    monkeypatch.setattr(features, "check", lambda name: name not in lacking)
    result = codecs.pictures()
    assert result.state == state and result.found.endswith(words)
    assert bool(result.remedy) == (state != "ok")


def test_packages(tmp_path):
    requirements = tmp_path / "requirements.txt"
    requirements.write_text(
        "sentencepiece==0.2.3  # why\n-r other.txt\nno-such-package==1.0\npyyaml==5.1\n"
    )
    result = checks.packages(requirements)
    assert result.state == "fault"
    assert "no-such-package is missing (1.0)" in result.found
    assert f"pyyaml {metadata.version('pyyaml')} (5.1)" in result.found
    assert "sentencepiece" not in result.found
    assert set(versions.pins(ROOT / "requirements.txt")) >= {"torch", "deepspeed", "transformers"}


def test_the_label_of_a_build_is_no_other_version(tmp_path, monkeypatch):
    (tmp_path / "requirements.txt").write_text("torch==2.13.0\nfire==0.7.1+own\n")
    installed = {"torch": "2.13.0+cpu", "fire": "0.7.1"}
    monkeypatch.setattr(versions.metadata, "version", installed.__getitem__)
    result = checks.packages(tmp_path / "requirements.txt")
    assert "torch" not in result.found and "fire 0.7.1 (0.7.1+own)" in result.found


def test_no_compiler(tmp_path, monkeypatch):
    monkeypatch.setenv("PATH", str(tmp_path))
    monkeypatch.setenv("TORCH_EXTENSIONS_DIR", str(tmp_path / "extensions"))
    result = checks.compiler()
    assert result.state == "fault" and "c++" in result.found and "ninja" in result.found
    built = tmp_path / "extensions" / extension.NAME / f"{extension.NAME}.so"
    built.parent.mkdir(parents=True)
    built.touch()
    assert checks.compiler().state == "warning"  # there is nothing left to build
    for name in ("c++", "ninja"):
        program(tmp_path, name)
    assert checks.compiler().state == "ok"


def test_no_compiler_for_kernels(tmp_path, monkeypatch):
    """Triton compiles a kernel's launcher when it is first launched."""
    monkeypatch.setattr(env, "device", lambda: torch.device("cuda"))
    monkeypatch.setenv("PATH", str(tmp_path))
    monkeypatch.delenv("CC", raising=False)
    monkeypatch.setattr(kernels, "THERE", True)
    result = checks.compiler()
    assert result.state == "fault" and "a C compiler; Triton" in result.found
    program(tmp_path, "gcc")
    assert checks.compiler().state == "ok"
    monkeypatch.setattr(kernels, "THERE", False)
    assert checks.compiler().state == "ok" and "without Triton" in checks.compiler().found


def test_locks(tmp_path, monkeypatch):
    monkeypatch.setenv("TORCH_EXTENSIONS_DIR", str(tmp_path / "extensions"))
    assert checks.extension_lock().state == "ok"
    assert not (tmp_path / "extensions").exists()
    lock = stale_lock(tmp_path / "extensions")
    assert checks.extension_lock().state == "fault"
    with lock.open():  # as torch's builder holds it
        held = checks.extension_lock()
        assert held.state == "warning" and f"process {os.getpid()}" in held.found
    in_default_root = tmp_path / "extensions" / "py311_cpu" / "other" / "lock"
    in_default_root.parent.mkdir(parents=True)
    in_default_root.touch()
    with lock.open():
        assert str(in_default_root) in checks.extension_lock().remedy


def test_folders(tmp_path, monkeypatch):
    assert checks.folder(tmp_path / "new" / "run", choose="--output_dir").state == "ok"
    assert not (tmp_path / "new").exists()
    (tmp_path / "file").touch()
    result = checks.folder(tmp_path / "file" / "run", choose="--output_dir")
    assert result.state == "fault" and "--output_dir" in result.remedy
    result = checks.folder(tmp_path / "file" / "run", choose="HF_HOME", needed=False)
    assert result.state == "warning"

    def refused(*_):
        raise OSError(38, "Function not implemented")

    monkeypatch.setattr(checks.fcntl, "flock", refused)
    result = checks.folder(tmp_path, choose="--output_dir")
    assert result.state == "fault" and "flock" in result.remedy
    monkeypatch.undo()
    usage = namedtuple("usage", "free")(2**20)
    monkeypatch.setattr(checks.shutil, "disk_usage", lambda _: usage)
    assert checks.folder(tmp_path, choose="TMPDIR").state == "warning"


def test_sqlite_on_a_network_disk(tmp_path):
    mounts = tmp_path / "mounts"
    mounts.write_text(
        "/dev/sda1 / ext4 rw 0 0\n"
        "server:/home /home nfs4 rw 0 0\n"
        "/dev/sdb1 /home/own ext4 rw 0 0\n"
        "pool@tcp:/x /big\\040data lustre rw 0 0\n"
    )
    for database, state in (
        ("/home/me/runs/mlflow.db", "fault"),
        ("/big data/mlflow.db", "fault"),
        ("/home/own/mlflow.db", "ok"),
        ("/homes/mlflow.db", "ok"),
    ):
        result = checks.tracking(f"sqlite:///{database}", mounts)
        assert result.state == state, database
        assert ("MLFLOW_TRACKING_URI" in result.remedy) == (state == "fault")
    assert checks.file_system(Path("/x"), tmp_path / "none") == ""


def test_tracking_server(free_port):
    result = checks.tracking(f"http://me:secret@127.0.0.1:{free_port}")
    assert result.state == "warning" and "secret" not in result.found
    with socket.socket() as server:
        server.bind(("127.0.0.1", free_port))
        server.listen()
        assert checks.tracking(f"http://127.0.0.1:{free_port}").state == "ok"


def test_ports(free_port):
    assert checks.port(free_port).state == "ok"
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", free_port))
        taken.listen()
        result = checks.port(free_port)
    assert result.state == "fault" and "--master_port" in result.remedy


def test_a_driver_that_torch_does_not_see(tmp_path, monkeypatch):
    import torch

    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    monkeypatch.setenv("PATH", f"{tmp_path}{os.pathsep}{os.environ['PATH']}")
    program(tmp_path, "nvidia-smi", "echo 'NVIDIA H100, 550.54'")
    result = checks.gpu()
    assert result.state == "fault" and "H100, 550.54" in result.found and "torch" in result.remedy
    program(tmp_path, "nvidia-smi", "echo Driver/library version mismatch >&2; exit 18")
    result = checks.gpu()
    assert result.state == "fault" and "mismatch" in result.found


def test_flash_attention(tmp_path, monkeypatch):
    import torch

    package = tmp_path / "flash_attn"
    package.mkdir()
    monkeypatch.setenv("PYTHONPATH", str(tmp_path))
    monkeypatch.syspath_prepend(tmp_path)
    (package / "__init__.py").write_text("raise ImportError('undefined symbol: _ZN3c10')")
    result = checks.flash_attn()
    assert result.state == "fault" and "undefined symbol" in result.found
    pinned = versions.pins(ROOT / "requirements-gpu.txt")["flash-attn"]
    for version, state in (("1.0", "warning"), (pinned, "ok")):
        (package / "__init__.py").write_text(f"__version__ = {version!r}")
        assert checks.flash_attn().state == state
    monkeypatch.setattr(checks.importlib.util, "find_spec", lambda name: None)
    for cuda, state in ((True, "warning"), (False, "ok")):
        monkeypatch.setattr(torch.cuda, "is_available", lambda cuda=cuda: cuda)
        assert checks.flash_attn().state == state


@pytest.mark.slow
def test_a_backend_that_does_not_come_up(monkeypatch):
    backend = "NCCL" if env.device().type == "cuda" else "GLOO"
    monkeypatch.setenv(f"{backend}_SOCKET_IFNAME", "no_such_interface")
    result = checks.ranks()
    assert result.state == "fault" and f"{backend}_SOCKET_IFNAME" in result.remedy
    assert "no_such_interface" in result.found
