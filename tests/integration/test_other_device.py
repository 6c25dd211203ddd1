"""Whole runs and loaded memories answer on a device that is not the CPU as they do on the CPU.

The device is pretended (``tests.helpers.other_device``), and a plain optimizer stands for
DeepSpeed's engine. Tensors on the wrong device fail here as they would on a GPU.
"""

from __future__ import annotations

import json
from contextlib import ExitStack
from pathlib import Path
from typing import Any
from unittest.mock import patch

import pytest
import torch
from torch import nn
from transformers import AutoModelForCausalLM

from launch import session
from launch.flags import read_flags
from moram_dist import load_memory
from moram_dist.comm import env
from moram_dist.config import ModelConfig
from moram_dist.methods import METHODS
from moram_dist.models.language_model import DEMO_BASE, load_tokenizer
from moram_dist.train import ds_check
from moram_dist.train.trainer import Trainer
from tests.helpers.drawn_runs import demo_benchmark, draw_run
from tests.helpers.other_device import pretended
from tests.helpers.ranks import run_ranks
from tests.helpers.tiny_t5 import save_tiny_t5

ROOT = Path(__file__).resolve().parents[2]
SMALL = {
    "ds_config": str(ROOT / "ds_configs" / "zero2.json"),
    "tracking": "none",
    "limit_train": "12",
    "limit_eval": "4",
    "epochs": "1",
    "batch_size": "4",
}
TEXT = SMALL | {
    "order": "topic,mood,place",
    "micro_batch_size": "2",
    "answers": "generate,labels,constrained",
}
PICTURES = SMALL | {"benchmark": "demo_images", "order": "shapes,colours", "limit_train": "20"}
RECALLS = {"recall": "all,prefix,oracle"}


class Engine:
    """What the trainer uses of DeepSpeed's engine, with a plain optimizer."""

    def __init__(self, module: nn.Module, optimizer: Any) -> None:
        self.module, self.optimizer, self.ends = module, optimizer, True
        self.modules, self.train, self.eval = module.modules, module.train, module.eval

    def __call__(self, *args: Any, **named: Any) -> Any:
        return self.module(*args, **named)

    def backward(self, loss: torch.Tensor, scale_wrt_gas: bool) -> None:
        (loss / env.world_size()).backward()

    def zero_optimization_partition_weights(self) -> bool:
        return False

    def set_gradient_accumulation_boundary(self, ends: bool) -> None:
        self.ends = ends

    def is_gradient_accumulation_boundary(self) -> bool:
        return self.ends

    def step(self) -> None:
        if self.ends:
            for parameter in self.module.parameters():
                if parameter.grad is not None:
                    env.sum_(parameter.grad)
            self.optimizer.step()
            self.optimizer.zero_grad()


def make_engine(model: nn.Module, config: dict[str, Any], **given: Any) -> Engine:
    model.to(env.device())
    trained = [p for p in model.parameters() if p.requires_grad]
    given |= {"lr": 0.0, "foreach": False}
    return Engine(model, torch.optim.AdamW(trained, **given) if trained else None)


def run(folder: Path, flags: dict[str, str], *, elsewhere: bool) -> None:
    """A run from flags to the report, on the device from when the base is loaded."""
    config, path = read_flags((), flags | {"output_dir": str(folder)})
    with patch.object(ds_check, "check"):  # DeepSpeed expects that ranks have not met
        prepared = session.prepare(config, path)
    with ExitStack() as stack:

        def begin(*args: Any, **given: Any) -> Engine:
            if elsewhere:
                device = stack.enter_context(pretended())
                stack.enter_context(patch.object(env, "device", lambda: device))
            return make_engine(*args, **given)

        for place, name, stand_in in (
            (session, "make_engine", begin),
            (session, "check_loaded", lambda *args: None),
            (Trainer, "_save", lambda *args: None),  # it reads DeepSpeed's own engine
            (env, "leave", env.barrier),  # there are more runs to come
        ):
            stack.enter_context(patch.object(place, name, stand_in))
        prepared.run()


def predictions(folder: Path) -> dict[tuple[str, int], dict[str, Any]]:
    """By file and line."""
    return {
        (str(path.relative_to(folder)), i): json.loads(line)
        for path in (folder / "predictions").rglob("*.jsonl")
        for i, line in enumerate(path.read_text().splitlines())
    }


def check(rank: int, world_size: int, folder: Path, cases: list[dict[str, str]]) -> None:
    for i, flags in enumerate(cases):
        found = []
        for elsewhere in (False, True):
            run(folder / f"{i}-{elsewhere}", flags, elsewhere=elsewhere)
            found.append(predictions(folder / f"{i}-{elsewhere}"))
        here, there = found
        assert here and here.keys() == there.keys(), flags
        for place, one in here.items():
            other = there[place]
            assert other["prediction"] == one["prediction"], (flags, place)
            scores = [tuple(p.get("log_likelihoods", {}).values()) for p in (one, other)]
            assert scores[1] == pytest.approx(scores[0], abs=1e-2), (flags, place)


def kept(name: str) -> dict[str, str]:
    """The recalls that a method has."""
    return RECALLS if METHODS[name].keeps_prefixes and name != "any_ssr" else {}


@pytest.mark.distributed
def test_moram(tmp_path):
    cases = [
        TEXT | RECALLS | {"method": "moram", "quiet_keys": "0.9", "threshold": "0"},
        PICTURES | RECALLS | {"method": "moram", "unknown": "base"},
    ]
    run_ranks(check, world_size=1, tmp_path=tmp_path, args=(tmp_path, cases))


@pytest.mark.distributed
def test_two_ranks(tmp_path):
    placed = {"method": "moram", "order": "topic,mood", "answers": "labels"}
    cases = [TEXT | placed | {"placement": name} for name in ("resident", "gathered", "stationary")]
    run_ranks(check, world_size=2, tmp_path=tmp_path, args=(tmp_path, cases))


@pytest.mark.nightly
@pytest.mark.distributed
def test_every_method(tmp_path):
    t5 = {"model": str(save_tiny_t5(tmp_path / "t5")), "answers": "generate,labels"}
    cases = [TEXT | kept(name) | {"method": name} for name in METHODS if name != "rail"]
    cases += [TEXT | t5 | kept(name) | {"method": name} for name in ("moram", "inc_lora")]
    cases += [PICTURES | kept(name) | {"method": name} for name in ("rail", "inc_lora", "ewc")]
    run_ranks(check, world_size=1, tmp_path=tmp_path, args=(tmp_path, cases))


@pytest.mark.parametrize("memory_first", [False, True])
def test_a_loaded_memory(tmp_path, memory_first):
    """``generate`` with a memory of each kind, which a model may get before or after it moves."""
    tokenizer = load_tokenizer(ModelConfig())
    prompts = [task.test[0].prompt for task in demo_benchmark().tasks] + ["Something else?"]
    encoded = tokenizer(prompts, return_tensors="pt", padding=True, padding_side="left")
    ids, mask = encoded["input_ids"], encoded["attention_mask"]

    def answers(model: Any, device: Any) -> torch.Tensor:
        given = {"input_ids": ids.to(device), "attention_mask": mask.to(device)}
        rules = {"max_new_tokens": 6, "do_sample": False, "eos_token_id": 2, "pad_token_id": 3}
        return model.generate(**given, **rules).cpu()

    def base() -> Any:
        return AutoModelForCausalLM.from_pretrained(DEMO_BASE, dtype=torch.float32)

    for name in ("moram", "inc_lora", "moe_lora", "gain_lora", "single_task", "slao"):
        path = draw_run(tmp_path / name, method=name)
        how = {"recall": "prefix", "unknown": "base"} if kept(name) else {}
        model, expected = base(), answers(load_memory(base(), path, **how), "cpu")
        with pretended() as device:
            model = model if memory_first else model.to(device)
            found = answers(load_memory(model, path, **how).to(device), device)
        assert torch.equal(found, expected), name
