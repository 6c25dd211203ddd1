"""Environment of every test, set before torch is imported here or in a spawned rank."""

from __future__ import annotations

import os
import sys
import tempfile
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT))

# No test asks the network: without one, each question to the hub would take 23 seconds.
os.environ["HF_HUB_OFFLINE"] = "1"
# Ranks share the machine's cores. ninja, which DeepSpeed's CPU extension needs, is beside python.
os.environ.setdefault("OMP_NUM_THREADS", "1")
os.environ["PATH"] = os.pathsep.join([str(Path(sys.executable).parent), os.environ["PATH"]])


def _extensions() -> Path:
    """A folder of our own: a killed build elsewhere leaves a lock that would hang these tests."""
    home = ROOT / ".venv" if (ROOT / ".venv").is_dir() else Path(tempfile.gettempdir())
    return home / "torch_extensions"


os.environ.setdefault("TORCH_EXTENSIONS_DIR", str(_extensions()))


@pytest.fixture(scope="session")
def shared() -> Path:
    """Data and papers beside the repository, where the machine has them."""
    folder = ROOT.parent / "shared"
    if not folder.is_dir():
        pytest.skip(f"{folder} does not exist: its data is not part of the repository")
    return folder
