"""What is here: versions, the device, packages that are missing."""

from __future__ import annotations

import os
import platform
import shutil
import subprocess
from importlib import metadata

import torch

from tools.gpu.record import How, Record

PACKAGES = (
    *("torch", "triton", "transformers", "deepspeed", "peft", "accelerate", "safetensors"),
    *("numpy", "pydantic", "mlflow", "rapidfuzz", "rouge-score", "nltk", "matplotlib"),
    *("pytest", "pytest-xdist", "flash-attn", "nvidia-ml-py"),
)

ASKED = "name,driver_version,memory.total,clocks.sm,clocks.mem,clocks.max.sm,power.limit"


def run(record: Record, how: How) -> None:
    """Write it all."""
    record.put(
        python=platform.python_version(),
        platform=platform.platform(),
        cores=os.cpu_count(),
        packages={name: version(name) for name in PACKAGES},
        cuda=torch.version.cuda,
        compiler=shutil.which("cc") or shutil.which("gcc"),
        matmul_precision=torch.get_float32_matmul_precision(),
    )
    if not torch.cuda.is_available():
        record.put(device=None)
        return
    own = torch.cuda.get_device_properties(0)
    record.put(
        device=own.name,
        capability=f"{own.major}.{own.minor}",
        multiprocessors=own.multi_processor_count,
        memory_bytes=own.total_memory,
        l2_bytes=getattr(own, "L2_cache_size", None),
        reduced_precision_bf16=torch.backends.cuda.matmul.allow_bf16_reduced_precision_reduction,
        nvidia_smi=said("nvidia-smi", f"--query-gpu={ASKED}", "--format=csv"),
    )


def version(package: str) -> str | None:
    """None if it is not installed."""
    try:
        return metadata.version(package)
    except metadata.PackageNotFoundError:
        return None


def said(*command: str) -> list[str]:
    """The lines of a command, or why there are none."""
    try:
        done = subprocess.run(command, capture_output=True, text=True, timeout=10)
    except (OSError, subprocess.TimeoutExpired) as error:
        return [str(error)]
    return (done.stdout or done.stderr).splitlines()
