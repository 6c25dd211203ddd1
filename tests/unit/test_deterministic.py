"""Deterministic operations: what is set, in a process of its own, since it holds for all of it."""

from __future__ import annotations

import os
import subprocess
import sys

import pytest
import torch

CODE = """
import os, torch
from moram_dist.comm import env
env.make_deterministic()
print(torch.are_deterministic_algorithms_enabled())
print(torch.is_deterministic_algorithms_warn_only_enabled())
print(os.environ["CUBLAS_WORKSPACE_CONFIG"], os.environ["FLASH_ATTENTION_DETERMINISTIC"])
"""


@pytest.mark.slow
def test_what_is_set():
    """A workspace that the user has chosen stays."""
    environment = os.environ | {"CUBLAS_WORKSPACE_CONFIG": ":16:8"}
    words = [sys.executable, "-c", CODE]
    done = subprocess.run(words, env=environment, capture_output=True, text=True, timeout=600)
    assert done.stdout.split("\n")[:3] == ["True", "False", ":16:8 1"], done.stderr
    assert not torch.are_deterministic_algorithms_enabled()
