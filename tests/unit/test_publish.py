"""What is not finite is never published."""

import types

import pytest
import torch

from moram_dist.comm.watchdog import PeerWatchdog
from moram_dist.train.trainer import NonFiniteLossError, Trainer


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_a_penalty_that_broke_the_last_step(value):
    """Its weights are in no loss that was looked at."""
    trainer = object.__new__(Trainer)
    trainer.benchmark = types.SimpleNamespace(tasks=[types.SimpleNamespace(name="first")])
    trainer.watchdog = PeerWatchdog(60.0)
    learned = {"q.lora_A": torch.ones(2), "q.lora_B": torch.tensor([1.0, value])}
    trainer.method = types.SimpleNamespace(end_task=lambda i, look: learned, reads_features=False)
    with pytest.raises(NonFiniteLossError, match="not finite after task first"):
        trainer._publish(0)
