"""Starting a rank does not import MLflow, which DeepSpeed would import for its autotuner."""

from __future__ import annotations

import importlib.util
import subprocess
import sys
from pathlib import Path

import pytest

from moram_dist.comm.lean import hidden

ROOT = Path(__file__).resolve().parents[2]


def test_a_hidden_module_is_there_again_afterwards():
    name = "wave"
    sys.modules.pop(name, None)
    with hidden(name):
        assert importlib.util.find_spec(name) is None
        with pytest.raises(ImportError):
            import wave
    import wave

    with hidden(name):  # imported already: nothing changes
        assert sys.modules[name] is wave


@pytest.mark.slow
def test_an_engine_does_not_need_mlflow():
    """It is installed, and the main rank imports it if it tracks."""
    code = """
import sys, torch
from moram_dist.comm.joining import join
from moram_dist.train.engine import make_engine
join()
config = {"zero_optimization": {"stage": 3}, "train_micro_batch_size_per_gpu": 1}
make_engine(torch.nn.Linear(2, 2), config, weight_decay=0.0)
assert "mlflow" not in sys.modules
import mlflow
"""
    subprocess.run([sys.executable, "-c", code], cwd=ROOT, check=True, timeout=300)
