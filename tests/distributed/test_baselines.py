"""Baselines with parameters or losses of their own, on two ranks under ZeRO-3.

Gradients are those of one process that knows no ZeRO and writes each penalty out by its formula.
Freezing changes no bit, and the memory files restore each model. Lives share one spawn.
"""

from __future__ import annotations

import dataclasses
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from safetensors.torch import save_file
from torch import Tensor, nn

from moram_dist.adapters import directions, moments
from moram_dist.adapters.prompts import asking
from moram_dist.atoms.manifest import Manifest
from moram_dist.atoms.memory_files import MemoryFiles
from moram_dist.comm import env
from moram_dist.config import RunConfig
from moram_dist.data.encode import Encoded
from moram_dist.data.stream import order
from moram_dist.methods import METHODS, Method, ewc, inf_lora
from moram_dist.models.identity import fingerprint_of
from moram_dist.train.engine import BETAS, start_fresh
from moram_dist.train.forward import Forward, answer_loss
from moram_dist.train.state import read_state
from moram_dist.train.trainer import Trainer
from tests.distributed.test_growth import check_restored, same_everywhere
from tests.helpers.configs import config_of
from tests.helpers.life import NUM_TASKS, OUTPUTS, TRAIN, Life, Setting, examples, task_steps
from tests.helpers.ranks import run_ranks
from tests.helpers.tiny import save_tiny_model, tiny_model

METHOD: dict[str, Any] = dict(
    atoms_per_task=4,
    alpha=10,
    dropout=0.1,
    orthogonal_weight=0.5,
    ewc_weight=3.0,
    distill_weight=0.7,
    distill_temperature=2.0,
    quiet_keys=0.9,
)
NAMES = ("inc_lora", "o_lora", "inf_lora", "gain_lora", "ewc", "lwf", "moe_lora")


class Bare(Setting):
    """Gradients are not clipped, and no parameter stays gathered because it is needed soon."""

    def resolve(self, world_size: int) -> dict[str, Any]:
        """The DeepSpeed configuration of a run."""
        config = super().resolve(world_size)
        config["gradient_clipping"] = 0
        config["zero_optimization"]["stage3_max_reuse_distance"] = 0
        return config


FP32 = Bare("zero3.json", 3, "fp32", shard_all=True)
BF16 = Bare("zero3.json", 3, "bf16", shard_all=True)
ROUNDING = 2e-6
LOOKED_AT = 5
MOMENTS_AT_ONCE = 3 * 8 * 32**2


def open_life(model: Path, setting: Setting, name: str, **model_settings: Any) -> Life:
    """An engine whose trainer can look at a task once more."""
    config = config_of(name, **METHOD)
    life = Life(model, setting, env.world_size(), config, **model_settings)
    life.trainer.data.examples = examples
    return life


def prepare(life: Life, i: int) -> None:
    """What comes before task i begins."""
    life.method.prepare_task(i, lambda limit: life.trainer.data.look(i, limit))


def end(life: Life, i: int) -> dict[str, Tensor]:
    """Freeze task i; outputs must stay."""
    before = life.logits()
    tensors = life.method.end_task(i, lambda limit: life.trainer.data.look(i, limit))
    assert torch.equal(life.logits(), before), "freezing changed the outputs"
    assert same_everywhere(tensors)
    return tensors


def displaced(life: Life) -> dict[str, Tensor]:
    """Trained parameters, each a little elsewhere, so that no gradient is 0 by chance.

    The router's row of an expert to come stays 0.
    """
    generator = torch.Generator().manual_seed(5)
    out = {}
    for name, value in life.parameters(trained=True).items():
        out[name] = value + 0.05 * torch.randn(value.shape, generator=generator)
        if name.endswith("router"):
            out[name][2:] = 0
    return out


def gradient(life: Life, i: int) -> dict[str, Tensor]:
    """What the first step of task i averages: Adam's first moment, without clipping."""
    life.train(i, 0, 1)
    state, _ = read_state(life.engine)
    return {
        name: state[f"{name}/exp_avg"] / (1 - BETAS[0]) for name in life.parameters(trained=True)
    }


def plain(name: str, memory: dict[str, Tensor]) -> tuple[nn.Module, Method]:
    """The method on a plain model in one process, as it is after task 0. In eval mode."""
    model = tiny_model()
    method = METHODS[name](config_of(name, **METHOD), 3, num_tasks=NUM_TASKS)
    method.build(model)
    method.load_task(0, memory)
    return model.eval(), method


def plain_gradient(
    name: str, memory: dict[str, Tensor], values: dict[str, Tensor], state: dict[str, Tensor]
) -> dict[str, Tensor]:
    """Of the first step of task 1 at ``values``, the penalty by its formula."""
    model, method = plain(name, memory)
    before, _ = plain(name, memory)
    method.begin_task(1)
    method.load_state_dict(state)
    trained = {n: p for n, p in model.named_parameters() if p.requires_grad}
    with torch.no_grad():
        for parameter, value in values.items():
            trained[parameter].copy_(value)
    model.train()
    step = task_steps(1, 0, 1)[0]
    total = penalty_of_parameters(name, memory, trained)
    for m, batch in enumerate(step.micro_batches):
        settings = SimpleNamespace(config=RunConfig(method=config_of(), train=TRAIN), method=method)
        Trainer._seed_dropout(settings, 1, step, m)  # type: ignore[arg-type]
        seen = Forward(model, model)(batch)
        total = total + answer_loss(seen) / step.num_answer_tokens
        if name == "lwf":
            with torch.no_grad():
                p_BPV = (Forward(before, before)(batch).logits_BPV / 2.0).softmax(-1)
            q_BPV = (seen.logits_BPV / 2.0).softmax(-1)
            kl_BP = (p_BPV * (p_BPV.log() - q_BPV.log())).sum(-1)
            total = total + 0.7 * kl_BP[seen.targets_BP != -100].sum() / step.num_answer_tokens
    total.backward()
    return {parameter: p.grad for parameter, p in trained.items() if p.grad is not None}


def penalty_of_parameters(name: str, memory: dict[str, Tensor], trained: dict[str, Any]) -> Tensor:
    """With the weights of ``METHOD``."""
    total = torch.zeros(())
    for full, now in trained.items():
        if name == "o_lora" and full.endswith("lora_A"):
            total = total + 0.5 * torch.einsum("nd,rd->nr", memory[full], now).abs().sum()
        if name == "ewc":
            fisher = memory[full.replace("lora_", "fisher_")]
            total = total + 3.0 / 2 * (fisher * (now - memory[full]) ** 2).sum()
    return total


def plain_fisher(memory: dict[str, Tensor], i: int) -> dict[str, Tensor]:
    """Mean squared gradient of log p(answer | prompt) over the drawn examples, one by one."""
    model, _ = plain("ewc", memory)
    trained = {n: p for n, p in model.named_parameters() if p.requires_grad}
    sums = {name: torch.zeros_like(p) for name, p in trained.items()}
    for example in looked_at(i):
        ids = torch.tensor([example.tokens])
        log_p_TV = model(input_ids=ids).logits[0].log_softmax(-1)
        start = len(example.tokens) - example.num_answer
        log_p = sum(log_p_TV[t - 1, ids[0, t]] for t in range(start, ids.shape[1]))
        found = torch.autograd.grad(log_p, list(trained.values()))
        for name, gradient in zip(trained, found, strict=True):
            sums[name] += gradient**2 / LOOKED_AT
    return {name.replace("lora_", "fisher_"): value for name, value in sums.items()}


def looked_at(i: int) -> list[Encoded]:
    """The examples of task i that a method sees before and after it."""
    chosen = order(len(examples(i)), seed=TRAIN.seed, task=i, epoch=0)[:LOOKED_AT]
    return [examples(i)[k] for k in chosen]


def check_design(name: str, memory: dict[str, Tensor], state: dict[str, Tensor]) -> None:
    """A of task 1: what its inputs have beside task 0's subspace, by singular values."""
    model, method = plain(name, memory)
    inputs: dict[str, list[Tensor]] = {layer: [] for layer in method.layers}
    for layer, module in method.layers.items():
        module.register_forward_pre_hook(lambda _, x, layer=layer: inputs[layer].append(x[0][0]))
    for example in looked_at(1):
        with torch.no_grad(), asking(model, [example.tokens[: -example.num_answer]]):
            model(input_ids=torch.tensor([example.tokens]))
    for layer, found in inputs.items():
        x_ND, basis = torch.cat(found).double(), memory[f"{layer}.subspace"].double()
        assert 0 < len(basis) < x_ND.shape[1]
        torch.testing.assert_close(basis @ basis.T, torch.eye(len(basis)).double())
        moment = x_ND.T @ x_ND
        left, values, _ = torch.linalg.svd(moment - basis.T @ basis @ moment)
        A = state[f"{layer}.lora_A"].double() * 3**0.5
        assert (values[:4] > 2e-3 * values[0]).all()
        torch.testing.assert_close(
            (A @ left).abs()[:, :4], torch.eye(4).double(), atol=1e-4, rtol=0
        )


def assert_close(found: dict[str, Tensor], expected: dict[str, Tensor], rounding: float) -> None:
    assert found.keys() == expected.keys()
    for name, value in expected.items():
        assert value.norm() > 0, name
        error = float((found[name] - value).norm() / value.norm())
        assert error <= rounding, f"{name}: off by {error:.1e}"


def kept(life: Life) -> int:
    """Most base weights that are whole where backward comes to a layer: those of layers behind it.

    (The pass in the penalty breaks ZeRO-3's trace, so nothing is there because it was prefetched.)
    """
    most = 0

    def look(*_: Any) -> None:
        nonlocal most
        whole_now = [p for p in life.engine.module.parameters() if p.ds_status.name == "AVAILABLE"]
        most = max(most, sum(p.ds_numel for p in whole_now if not p.requires_grad))

    def after_forward(module: nn.Module, inputs: Any, output: Tensor) -> None:
        if output.requires_grad:
            output.register_hook(look)

    layers = life.engine.module.model.layers
    handles = [layer.register_forward_hook(after_forward) for layer in layers]
    life.engine.train()
    *before, last = task_steps(2, env.rank(), env.world_size())[0].micro_batches
    for batch in (*before, last):
        life.engine.set_gradient_accumulation_boundary(batch is last)
        seen = life.trainer.forward(batch)
        life.engine.backward(answer_loss(seen) + life.method.penalty(seen))
        life.engine.step()
    for handle in handles:
        handle.remove()
    return most


def check(model: Path, folder: Path, name: str, setting: Setting, **model_settings: Any) -> None:
    """Three tasks."""
    life = open_life(model, setting, name, **model_settings)
    published = MemoryFiles(folder / "memory")
    manifest = Manifest(
        method=name,
        settings=dataclasses.asdict(life.method.config),
        base=fingerprint_of(str(model)),
        modules=list(life.method.layers),
    )
    memory: dict[str, Tensor] = {}
    outputs: list[Tensor] = []
    for i in range(NUM_TASKS):
        prepare(life, i)
        life.begin(i)
        if i == 1 and setting.dtype == "fp32":
            values = displaced(life)
            start_fresh(life.engine, values)
            state = life.method.state_dict()
            if "lora" in name and state:
                check_design(name, memory, state)
            expected = plain_gradient(name, memory, values, state)
            # The projection leaves a small part of a quiet key's gradient, and all its rounding.
            rounding = 5 * ROUNDING if name in ("moram", "gpm_lora") else ROUNDING
            assert_close(gradient(life, 1), expected, rounding)
        life.train(i, 1, 3)
        memory = end(life, i)
        outputs.append(life.logits())
        if name == "ewc" and i == 0 and setting.dtype == "fp32":
            fisher = {n: t for n, t in memory.items() if "fisher" in n}
            assert_close(fisher, plain_fisher(memory, i), 1e-5)
        if env.is_main():
            manifest = published.publish(manifest, f"task {i}", memory)
    if name == "lwf" and setting is FP32 and not model_settings:
        assert kept(life) == 0
    life.engine.destroy()
    if env.is_main():
        save_file({str(i + 1): logits for i, logits in enumerate(outputs)}, folder / OUTPUTS)


KINDS: dict[str, tuple[Setting, dict[str, Any]]] = {
    "fp32": (FP32, {}),
    "checkpointed": (FP32, {"gradient_checkpointing": True}),
    "bf16": (BF16, {}),
    "stage 2": (Bare("zero2.json", 2, "fp32"), {}),
    "stage 0": (Bare("zero2.json", 0, "fp32"), {}),
}
LIVES = [(name, kind) for name in NAMES for kind in ("fp32", "checkpointed", "bf16")]
LIVES += [(name, f"stage {n}") for name in ("ewc", "gain_lora") for n in (0, 2)]
LIVES += [(name, kind) for name in ("moram", "gpm_lora") for kind in ("fp32", "bf16", "stage 2")]
"""With quiet keys; without them it has tests of its own."""

EVERY_CHANGE = [(name, kind) for name, kind in LIVES if kind == "fp32"]
EVERY_CHANGE += [("gain_lora", "checkpointed"), ("lwf", "checkpointed"), ("ewc", "bf16")]
EVERY_CHANGE += [("ewc", "stage 2"), ("moram", "stage 2")]
"""Each method once, and where a method has passes of its own or a stage averages otherwise."""

NIGHTLY = [one for one in LIVES if one not in EVERY_CHANGE]


def live(rank: int, world_size: int, lives: list, model: Path, folder: Path) -> None:
    """Of the five examples that are looked at one rank lacks the last.

    Moments of their inputs take more than one round.
    """
    ewc.FISHER_EXAMPLES = inf_lora.EXAMPLES = directions.EXAMPLES = LOOKED_AT
    moments.AT_ONCE = MOMENTS_AT_ONCE
    for name, kind in lives:
        setting, model_settings = KINDS[kind]
        try:
            check(model, folder / f"{name}-{kind}", name, setting, **model_settings)
        except Exception as error:
            error.add_note(f"in {name}, {kind}")
            raise


@pytest.mark.distributed
@pytest.mark.parametrize(
    "lives",
    [EVERY_CHANGE, pytest.param(NIGHTLY, marks=pytest.mark.nightly)],
    ids=["every change", "nightly"],
)
def test_baselines(lives, tmp_path):
    model = save_tiny_model(tmp_path / "model")
    run_ranks(live, world_size=2, tmp_path=tmp_path, args=(lives, model, tmp_path))
    for name, kind in lives:
        check_restored(model, tmp_path / f"{name}-{kind}")
