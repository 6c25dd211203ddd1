"""Check what training needs from a machine, one function per requirement; nothing is changed.

Only the standard library is imported before a check runs, so that a missing package is reported.
"""

from __future__ import annotations

import fcntl
import importlib.util
import os
import re
import shutil
import socket
import subprocess
import sys
import sysconfig
import tempfile
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Literal
from urllib.parse import urlsplit

from launch import versions

ROOT = Path(__file__).resolve().parents[1]

NETWORK = "afs beegfs ceph cifs fuse.ceph fuse.glusterfs fuse.sshfs gpfs lustre nfs nfs4 panfs smb3"
"""File systems, as Linux names them, on which sqlite cannot rely on locks."""

LEAST_FREE = 2**30
"""Bytes; a folder with less free space gets a warning."""

MEET = """from moram_dist.comm import env, joining
joining.join({timeout})
assert env.all_sum([1.0]) == [env.world_size()], "a wrong sum"; env.leave()"""
"""Program of each trial rank: the same first call as in training, then a sum over all ranks."""


@dataclass(frozen=True)
class CheckResult:
    """The finding of a check, and a remedy if it is not ok."""

    found: str
    state: Literal["ok", "warning", "fault"] = "ok"
    remedy: str = ""


def python(pyproject: Path = ROOT / "pyproject.toml") -> CheckResult:
    """Compare the interpreter with ``requires-python``."""
    least = versions.least_python(pyproject)
    found = f"{sys.version.split()[0]} at {sys.executable}"
    if sys.version_info >= tuple(int(part) for part in least.split(".")):
        return CheckResult(found)
    return CheckResult(found, "fault", f"recreate .venv with Python {least} or newer")


def packages(requirements: Path = ROOT / "requirements.txt", tracked: bool = True) -> CheckResult:
    """Compare installed packages with the pins of a checkout, or else with the package's ranges.

    ``tracked``: whether the ranges include MLflow; the pins always do.
    """
    if requirements.is_file():
        asked, fits = versions.pins(requirements), versions.is_pinned
        who, remedy = f"{requirements.name} pins", f"pip install -r {requirements}"
    else:
        extras = ("train", "eval", "report", *(("track",) if tracked else ()))
        asked, fits = versions.ranges(extras), versions.is_within
        who, remedy = "moram-dist needs", "pip install --upgrade 'moram-dist[train,track]'"
    wrong = versions.differing(asked, fits)
    if not wrong:
        return CheckResult(f"all {len(asked)} as {who} them")
    return CheckResult(f"not as {who} them: {', '.join(wrong)}", "fault", remedy)


def compiler() -> CheckResult:
    """The tools that build DeepSpeed's CPU extension, or on a GPU Triton's kernels."""
    from moram_dist.comm import env, extension

    if env.device().type == "cuda":
        return _compiler_of_kernels()
    lacking = [name for name in (os.environ.get("CXX", "c++"), "ninja") if not shutil.which(name)]
    lacking += _lacking_headers()
    if not lacking:
        return CheckResult(f"{shutil.which(os.environ.get('CXX', 'c++'))}, ninja, Python.h")
    found = f"missing: {', '.join(lacking)}"
    remedy = "source .venv/bin/activate (ninja); install g++ and python3-dev (a compiler, Python.h)"
    if _built(f"{extension.NAME}.so"):
        return CheckResult(f"{found}; the CPU extension is built already", "warning", remedy)
    return CheckResult(f"{found}, and the CPU extension is not built", "fault", remedy)


def _compiler_of_kernels() -> CheckResult:
    """What Triton needs to launch the first kernel; without Triton, torch's operations serve."""
    from moram_dist import kernels

    if not kernels.THERE:
        return CheckResult("not needed on a GPU without Triton")
    names = [name for name in (os.environ.get("CC"), "gcc", "clang") if name]
    found = next(filter(None, map(shutil.which, names)), None)
    lacking = [*([] if found else ["a C compiler"]), *_lacking_headers()]
    if not lacking:
        return CheckResult(f"{found}, Python.h")
    return CheckResult(
        f"missing: {', '.join(lacking)}; Triton cannot launch kernels",
        "fault",
        "install gcc and python3-dev",
    )


def _lacking_headers() -> list[str]:
    there = Path(sysconfig.get_paths()["include"], "Python.h").exists()
    return [] if there else ["Python.h"]


def extensions() -> Path:
    """The folder in which torch builds all extensions."""
    from torch.utils.cpp_extension import get_default_build_root

    return Path(os.environ.get("TORCH_EXTENSIONS_DIR") or get_default_build_root())


def _built(name: str) -> list[Path]:
    """Files of this name in the extensions' folders; the default root has one level more."""
    return sorted([*extensions().glob(f"*/{name}"), *extensions().glob(f"*/*/{name}")])


def extension_lock() -> CheckResult:
    """Find locks of builds: torch waits for a lock forever, without a message."""
    from moram_dist.comm import extension

    held = {path: extension.held_by(path.parent) for path in _built("lock")}
    if not held:
        return CheckResult(f"none in {extensions()}")
    stale = next((path for path, holder in held.items() if holder is None), None)
    if stale is not None:
        return CheckResult(f"{stale}: left by a build that was killed", "fault", f"rm {stale}")
    path, holder = next(iter(held.items()))
    return CheckResult(f"{path}, held by {holder}", "warning", "wait for the build that holds it")


def folder(path: Path, *, choose: str, needed: bool = True) -> CheckResult:
    """Whether files can be created and locked in ``path``, which ``choose`` (a flag) selects."""
    path = path.absolute()
    there = next(p for p in (path, *path.parents) if os.path.exists(p))
    bad: Literal["fault", "warning"] = "fault" if needed else "warning"
    try:
        probe = tempfile.TemporaryFile(dir=there)
    except OSError as error:
        return CheckResult(
            f"{path} cannot be written: {error.strerror}", bad, f"choose another: {choose}"
        )
    with probe:
        try:
            fcntl.flock(probe, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError as error:
            remedy = f"mount it with flock, or choose another: {choose}"
            return CheckResult(f"{path}: no locks there: {error.strerror}", bad, remedy)
    free = shutil.disk_usage(there).free
    found = f"{path}, {free / 2**30:.0f} GiB free"
    if free >= LEAST_FREE:
        return CheckResult(found)
    return CheckResult(found, "warning", f"make room, or choose another: {choose}")


def file_system(path: Path, mounts: Path = Path("/proc/self/mounts")) -> str:
    """The type of the file system of ``path``, which need not exist yet; '' if unknown."""
    best, kind = -1, ""
    for line in mounts.read_text(encoding="utf-8").splitlines() if mounts.exists() else ():
        where = re.sub(r"\\(\d{3})", lambda octal: chr(int(octal[1], 8)), line.split()[1])
        # If several file systems are mounted on one folder, the last one counts.
        if path.resolve().is_relative_to(where) and len(Path(where).parts) >= best:
            best, kind = len(Path(where).parts), line.split()[2]
    return kind


def tracking(uri: str, mounts: Path = Path("/proc/self/mounts")) -> CheckResult:
    """The MLflow store: sqlite on a disk of this machine, or a server that answers."""
    from moram_dist.tracking import sqlite_file

    server = "run mlflow server on one machine and set MLFLOW_TRACKING_URI, or --tracking none"
    parts = urlsplit(uri)
    database = sqlite_file(uri)
    if database is not None:
        kind = file_system(database, mounts)
        if kind in NETWORK.split():
            found = f"{database} is on {kind}: runs of several machines can ruin it"
            return CheckResult(found, "fault", server)
        return CheckResult(f"{database}, on {kind or 'an unknown file system'}")
    if parts.scheme not in ("http", "https"):
        return CheckResult(f"a store of kind {parts.scheme or 'unknown'}: not checked")
    port = parts.port or {"http": 80, "https": 443}[parts.scheme]
    where = f"{parts.hostname}:{port}"  # without a password that the address may contain
    try:
        socket.create_connection((parts.hostname or "", port), timeout=5).close()
    except OSError as error:
        found = f"{where} does not answer: {error.strerror or error}; logged values would wait"
        return CheckResult(found, "warning", "start the server, or set another MLFLOW_TRACKING_URI")
    return CheckResult(f"{where} answers")


def port(number: int) -> CheckResult:
    """Whether ranks can meet at this port."""
    with socket.socket() as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind(("", number))
        except OSError as error:
            from moram_dist.comm import env

            remedy = f"give the launcher another: deepspeed --master_port {env.free_port()}"
            return CheckResult(f"{number} cannot be obtained: {error.strerror}", "fault", remedy)
    return CheckResult(f"{number} is free")


def gpu() -> CheckResult:
    """Compare the GPUs that the driver and torch find; each must compute."""
    import torch

    query = ["nvidia-smi", "--query-gpu=name,driver_version", "--format=csv,noheader"]
    seen: list[str] = []
    if shutil.which("nvidia-smi"):
        asked = subprocess.run(query, capture_output=True, text=True, timeout=60)
        seen = asked.stdout.strip().splitlines()
        if asked.returncode:
            said = (asked.stdout + asked.stderr).strip().splitlines()[:1]
            found = f"the driver does not answer: {''.join(said)}"
            return CheckResult(found, "fault", "load the driver again, or restart the machine")
    if not torch.cuda.is_available():
        if not seen:
            return CheckResult("none: training runs on the CPU")
        found = f"the driver has {len(seen)} ({seen[0]}), torch {torch.__version__} sees none"
        remedy = "install the build of torch for a CUDA that this driver has, or a newer driver; "
        return CheckResult(found, "fault", f"{remedy}CUDA_VISIBLE_DEVICES must not be empty")
    count = torch.cuda.device_count()
    for device in range(count):
        try:
            torch.ones(8, 8, device=f"cuda:{device}").square().sum().item()
        except RuntimeError as error:
            found = f"cuda:{device} does not compute: {str(error).splitlines()[0]}"
            return CheckResult(
                found, "fault", "nvidia-smi shows which process uses it; else restart the machine"
            )
    found = f"{count}: {seen[0] if seen else torch.cuda.get_device_name()}"
    if not torch.cuda.is_bf16_supported():
        return CheckResult(f"{found}; no bf16", "warning", "train with --dtype fp32")
    return CheckResult(found)


def flash_attn(requirements: Path = ROOT / "requirements-gpu.txt") -> CheckResult:
    """Check flash attention, the default kernel on CUDA in bf16."""
    import torch

    pinned = versions.pins(requirements)["flash-attn"] if requirements.is_file() else None
    install = "pip install wheel && pip install --no-build-isolation "
    install += f"-r {requirements}" if pinned else "flash-attn"
    if importlib.util.find_spec("flash_attn") is None:
        if not torch.cuda.is_available():
            return CheckResult("not installed, and not needed on a CPU")
        return CheckResult("not installed: torch's own attention is used", "warning", install)
    # In a separate process: a build for another torch may crash instead of raising.
    tried = [sys.executable, "-c", "import flash_attn; print(flash_attn.__version__)"]
    done = subprocess.run(tried, capture_output=True, text=True, timeout=120)
    if done.returncode:
        found = f"does not import: {_last_line(done.stderr)}"
        remedy = f"pip uninstall flash-attn, then {install}; or train with --attention sdpa"
        return CheckResult(found, "fault", remedy)
    version = done.stdout.strip()
    if pinned in (version, None):
        return CheckResult(version)
    return CheckResult(f"{version} ({pinned} is pinned)", "warning", install)


def ranks(timeout_s: float = 300.0) -> CheckResult:
    """Start a rank on each GPU, or two on the CPU; they meet and compute a sum."""
    import torch

    from moram_dist.comm import env, extension

    on_gpus = torch.cuda.is_available()
    backend, count = ("nccl", torch.cuda.device_count()) if on_gpus else ("gloo", 2)
    if not on_gpus and any(path.parent.name == extension.NAME for path in _built("lock")):
        found = "gloo: not tried, as it would wait for the extension lock"
        return CheckResult(found, "warning", "see extension lock, then run this again")
    place = os.environ | {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(env.free_port())}
    place |= {"WORLD_SIZE": str(count), "LOCAL_SIZE": str(count)}
    said, began = [tempfile.TemporaryFile("w+") for _ in range(count)], time.monotonic()
    processes = [
        subprocess.Popen(
            [sys.executable, "-c", MEET.format(timeout=timeout_s)],
            cwd=ROOT,
            env=place | {"RANK": str(rank), "LOCAL_RANK": str(rank)},
            stdout=subprocess.DEVNULL,
            stderr=said[rank],
        )
        for rank in range(count)
    ]
    codes: list[int | None] = [None]
    while None in codes and not any(codes) and time.monotonic() < began + timeout_s:
        time.sleep(0.1)
        codes = [process.poll() for process in processes]
    for process in processes:
        process.kill()
        process.wait()
    if codes == [0] * count:
        return CheckResult(
            f"{backend}: {count} ranks met and summed, {time.monotonic() - began:.0f} s"
        )
    found = f"{backend}: {count} ranks did not meet within {timeout_s:.0f} s"
    for file, code in zip(said, codes, strict=False):
        if code:
            file.seek(0)
            found = f"{backend}: {_last_line(file.read())}"
    remedy = f"name the network interface: {backend.upper()}_SOCKET_IFNAME=lo on one machine"
    return CheckResult(found, "fault", remedy + ("; NCCL_DEBUG=INFO says more" if on_gpus else ""))


def _last_line(text: str) -> str:
    """The most informative line of a traceback."""
    lines = [line.strip() for line in text.splitlines() if line.strip()]
    errors = [line for line in lines if re.match(r"[\w.]*(Error|Exception)\b", line)]
    return ["no word of why", *lines[-1:], *errors[-1:]][-1][:300]
