"""A memory that grows under a DeepSpeed engine: freezing, the reset between tasks, the files.

Every setting lives the same life of three tasks. Settings of a world size share one spawn.
"""

from __future__ import annotations

import dataclasses
import functools
import hashlib
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor
from torch.nn import functional as F
from transformers import AutoModelForCausalLM

from moram_dist.atoms.manifest import Manifest
from moram_dist.atoms.memory_files import MemoryFiles
from moram_dist.comm import env
from moram_dist.comm.zero3 import whole, without_hooks
from moram_dist.methods import METHODS
from moram_dist.methods.restore import load_memory
from moram_dist.models.identity import fingerprint_of
from moram_dist.train.engine import BETAS, inner_optimizer
from tests.helpers.life import (
    CAUSAL,
    METHOD,
    NUM_TASKS,
    OUTPUTS,
    RATE,
    TRAIN,
    Life,
    Setting,
    examples,
    task_steps,
)
from tests.helpers.padding import check_padding_is_no_weight
from tests.helpers.ranks import run_ranks
from tests.helpers.tiny import VOCABULARY, save_tiny_model, tiny_model, tokens

NIGHTLY = functools.partial(pytest.param, marks=pytest.mark.nightly)
SETTINGS = {
    2: [
        *(Setting("zero2.json", stage, d) for stage in (0, 1, 2) for d in ("fp32", "bf16")),
        Setting("zero2.json", 2, "bf16", placement="stationary"),
        Setting("zero3.json", 3, "bf16"),
        Setting("zero3.json", 3, "fp32", shard_all=True),
        Setting("zero3.json", 3, "bf16", shard_all=True),
        Setting("zero3_offload.json", 3, "bf16"),
        Setting("zero3_offload.json", 3, "fp32", shard_all=True),
        Setting("zero3.json", 3, "fp32", shard_all=True, placement="gathered"),
        Setting("zero3.json", 3, "fp32", shard_all=True, placement="stationary"),
    ],
    3: [
        Setting("zero3.json", 3, "fp32"),
        Setting("zero3.json", 3, "bf16", shard_all=True, placement="stationary"),
    ],
}


def digest(tensors: dict[str, Tensor]) -> str:
    """sha256 over names and bytes."""
    out = hashlib.sha256()
    for name, tensor in sorted(tensors.items()):
        out.update(name.encode())
        out.update(tensor.contiguous().view(torch.uint8).numpy().tobytes())
    return out.hexdigest()


def same_everywhere(tensors: dict[str, Tensor]) -> bool:
    """Whether all ranks hold the same bits."""
    return len(set(env.gather_objects(digest(tensors)))) == 1


def one_step_from(fresh: dict[str, Tensor], now: dict[str, Tensor]) -> bool:
    """Whether one step of AdamW, from new moments, may lead from one to the other.

    Such a step moves a number by at most the learning rate, and decay by a part of itself.
    """
    for name, start in fresh.items():
        dtype = now[name].dtype
        start = start.to(dtype).float()
        rounding = torch.finfo(dtype).eps * (start.abs() + RATE)
        reach = RATE * (1 + 1e-3) + RATE * TRAIN.weight_decay * start.abs() + rounding
        if ((now[name].float() - start).abs() > reach).any():
            return False
    return True


def check_growth(life: Life, folder: Path) -> None:
    """Three tasks: freezing, the reset, what is frozen stays, files restore it on a plain model."""
    base = digest(life.parameters(trained=False))
    published = MemoryFiles(folder / "memory")
    manifest = Manifest(
        method="moram",
        settings=dataclasses.asdict(METHOD),
        base=fingerprint_of(life.base.model.config._name_or_path),
        modules=list(life.method.layers),
    )
    frozen: list[str] = []
    outputs: list[Tensor] = []
    for i in range(NUM_TASKS):
        fresh = life.begin(i)
        if i == 0:
            outputs.append(life.logits())  # of the base, since new values are 0
        life.train(i, 0, 1)
        assert one_step_from(fresh, life.parameters(trained=True))
        life.train(i, 1, 3)
        now = life.parameters(trained=True)
        assert same_everywhere(now)
        assert not one_step_from(fresh, now)  # so a reset that did nothing cannot pass above

        before = life.logits()
        tensors = life.method.end_task(i, lambda: [])
        assert torch.equal(life.logits(), before), "freezing changed the outputs"
        outputs.append(before)
        if env.is_main():
            manifest = published.publish(manifest, f"task {i}", tensors)
        frozen.append(digest(life.frozen(METHOD.atoms_per_task * (i + 1))))
        assert same_everywhere(life.frozen(METHOD.atoms_per_task * (i + 1)))

    for i, then in enumerate(frozen):
        assert digest(life.frozen(METHOD.atoms_per_task * (i + 1))) == then
    assert digest(life.parameters(trained=False)) == base
    assert len(set(map(digest, ({"": logits} for logits in outputs)))) == NUM_TASKS + 1

    if env.is_main():
        save_file({str(upto): logits for upto, logits in enumerate(outputs)}, folder / OUTPUTS)


def check_reset(life: Life) -> None:
    """Moments and counts are 0, and the same task trained again is the same, bit for bit.

    The second time ranks leave the engine between two steps, for unlike amounts of work.
    """
    life.begin(0)
    first = life.train(0, 0, 4)
    atoms = digest(life.parameters(trained=True))
    assert any(float(entry.abs().max()) > 0 for entry in optimizer_state(life))

    life.begin(0)
    assert all(float(entry.abs().max()) == 0 for entry in optimizer_state(life))
    again = life.train(0, 0, 2)
    life.engine.eval()
    with without_hooks(life.engine) as model, torch.no_grad():
        in_step = life.method.in_step
        for turn in range(1 if in_step else env.rank() + 1):
            model.generate(
                input_ids=tokens(2 + env.rank(), 4 + turn),
                max_new_tokens=2 + env.rank(),
                synced_gpus=in_step,  # transformers' own choice under ZeRO-3 is to keep step
            )
        model(input_ids=tokens(1, 5))
    again += life.train(0, 2, 4)
    assert again == first
    assert digest(life.parameters(trained=True)) == atoms


def optimizer_state(life: Life) -> list[Tensor]:
    """Moments and step counts, which must be there once a step was taken."""
    state = inner_optimizer(life.engine).state.values()
    found = [torch.as_tensor(entry) for entries in state for entry in entries.values()]
    groups = inner_optimizer(life.engine).param_groups
    found += [torch.tensor(group["step"]) for group in groups if "step" in group]
    assert found
    return found


def check_weights_alone_are_no_reset(life: Life) -> None:
    """The bug that ``start_fresh`` guards against: ZeRO's masters undo an edit of the weights."""
    life.begin(0)
    life.train(0, 0, 1)
    named = {n: p for n, p in life.engine.module.named_parameters() if p.requires_grad}
    with whole(named.values(), write=True), torch.no_grad():
        for parameter in named.values():
            parameter.add_(1.0)
    edited = life.parameters(trained=True)
    life.train(0, 1, 2)
    assert not one_step_from(edited, life.parameters(trained=True))


def check_against_plain_training(life: Life) -> None:
    """Losses, gradient norms and atoms after four steps are those of one process without ZeRO."""
    model = tiny_model()
    method = METHODS["moram"](METHOD, seed=3)
    method.build(model)
    trained = {name: p for name, p in model.named_parameters() if p.requires_grad}
    optimizer = torch.optim.AdamW(
        trained.values(), lr=RATE, betas=BETAS, weight_decay=TRAIN.weight_decay
    )
    fresh = method.begin_task(0)
    with torch.no_grad():
        for name, value in fresh.items():
            trained[name].copy_(value)
    known = {example.id: example for example in examples(0)}
    model.train()
    life.begin(0)
    for number, step in enumerate(task_steps(0, rank=0, world_size=1)):
        batch = CAUSAL.collate([known[name] for name in step.ids], pad_id=0)
        logits = model(input_ids=batch.inputs["input_ids"]).logits
        loss = F.cross_entropy(
            logits[:, :-1].reshape(-1, VOCABULARY), batch.labels[:, 1:].flatten()
        )
        optimizer.zero_grad()
        loss.backward()
        norm = torch.nn.utils.clip_grad_norm_(trained.values(), TRAIN.clip)
        assert norm > TRAIN.clip  # or clipping is not tested
        optimizer.step()

        assert life.train(0, number, number + 1) == [pytest.approx(loss.item(), rel=1e-5)]
        if life.setting.stage > 0:  # stage 0 does not tell
            found = float(life.engine.get_global_grad_norm())
            assert found == pytest.approx(norm.item(), rel=1e-5)
    for name, now in life.parameters(trained=True).items():
        moved = (trained[name] - fresh[name]).detach()
        error = (now - trained[name].detach()).norm() / moved.norm()
        assert error <= 1e-5, f"{name}: off by {error:.1e} of the way"


def check_restored(model: Path, folder: Path) -> None:
    """One process without DeepSpeed answers as the engine did, after each task."""
    for upto, expected in load_file(folder / OUTPUTS).items():
        plain = AutoModelForCausalLM.from_pretrained(model, dtype=expected.dtype)
        with torch.no_grad():
            found = load_memory(plain, folder, upto=int(upto))(input_ids=tokens(2, 12)).logits
        # One rank sums over atoms in one go, several shard by shard.
        rounding = 3e-6 if expected.dtype == torch.float32 else 2e-2
        assert (found - expected).norm() <= rounding * expected.norm()


def live(rank: int, world_size: int, model: Path, tmp_path: Path, settings: list[Setting]) -> None:
    """All checks of each."""
    for setting in settings:
        life = Life(model, setting, world_size)
        try:
            if setting.dtype == "fp32":
                check_against_plain_training(life)
            check_reset(life)
            if setting.stage > 0:  # only ZeRO keeps masters
                check_weights_alone_are_no_reset(life)
            check_growth(life, tmp_path / setting.name)
            if setting.stage == 3:
                check_padding_is_no_weight(life.engine.module)
        except Exception as error:
            error.add_note(f"in {setting}")
            raise
        life.engine.destroy()


@pytest.mark.distributed
@pytest.mark.parametrize(("ranks", "first"), [(2, 0), (3, 1), NIGHTLY(2, 1), NIGHTLY(3, 0)])
def test_growth(ranks, first, tmp_path):  # every second setting is nightly
    model, settings = save_tiny_model(tmp_path / "model"), SETTINGS[ranks][first::2]
    run_ranks(live, world_size=ranks, tmp_path=tmp_path, args=(model, tmp_path, settings))
    for setting in settings:
        check_restored(model, tmp_path / setting.name)
