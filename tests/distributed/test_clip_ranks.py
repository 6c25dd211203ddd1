"""CLIP on two and three ranks is what it is in one process, under every ZeRO stage.

Losses, gradients, answers, features of classes and statistics of pictures, over two tasks.
"""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Any

import pytest
import torch
from deepspeed.utils import safe_get_full_grad
from torch.nn import functional as F
from transformers import CLIPModel

from moram_dist.atoms import Placer
from moram_dist.comm import env
from moram_dist.comm.collectives import make_atom_group
from moram_dist.comm.zero3 import without_hooks
from moram_dist.config import MethodConfig, ModelConfig, RunConfig, TrainConfig
from moram_dist.data.stream import Step, steps
from moram_dist.methods import METHODS
from moram_dist.models import language_model
from moram_dist.tasks.task import Decoding, Task
from moram_dist.train import ds_config
from moram_dist.train.engine import make_engine, start_fresh
from moram_dist.train.recognition import statistics_of
from moram_dist.train.stop import StopSignals
from moram_dist.train.trainer import Trainer
from tests.helpers.configs import config_of
from tests.helpers.context import make_context
from tests.helpers.ranks import run_ranks
from tests.helpers.tiny_clip import draw_task, save_tiny_clip

DS_CONFIG = Path(__file__).resolve().parents[2] / "ds_configs" / "zero3.json"
TRAIN = TrainConfig(learning_rate=0.01, batch_size=7)
NUM_STEPS = 3


@dataclasses.dataclass(frozen=True)
class Setting:
    """What is trained, how it is sharded, where its atoms are."""

    method: str
    stage: int = 3
    placement: str = "resident"
    dropout: float = 0.0

    @property
    def config(self) -> MethodConfig:
        return config_of(
            method=self.method,
            atoms_per_task=4,
            alpha=8,
            dropout=self.dropout,
            top_k=5,
            temperature=0.2,
            target_modules="all-linear",
        )


SETTINGS = {
    2: [Setting("moram", dropout=0.2), Setting("moram", 0), Setting("sequential_lora", 2)],
    3: [Setting("moram", 3, "stationary"), Setting("moram", 1, "gathered", 0.2)],
}


def task_steps(base: Any, task: Task, i: int, rank: int, world_size: int) -> list[Step]:
    pairs = [(task, example) for example in task.train[:14]]
    return list(
        steps(
            base.family.encode_task(base.tokenizer, pairs, None, None),
            base.family,
            batch_size=TRAIN.batch_size,
            micro_batch_size=None,
            micro_batch_tokens=10**9,
            epochs=NUM_STEPS / 2,
            seed=TRAIN.seed,
            task=i,
            rank=rank,
            world_size=world_size,
            pad_id=base.tokenizer.pad_token_id,
        )
    )


def formula(model: Any, step: Step, task: Task) -> torch.Tensor:
    """The loss of a step, all pictures at once, as the published code writes it."""
    (batch,) = step.micro_batches
    read = {name: batch.inputs[name] for name in ("pixel_values", "input_ids")}
    logits = model(**read).logits_per_image
    targets = batch.labels[:, 1]
    many_hot = F.one_hot(targets, logits.shape[1]).float()
    of_texts = -(many_hot * logits.log_softmax(0)).sum()
    return F.cross_entropy(logits, targets) + task.text_to_image * of_texts


def trainer(method: Any, base: Any, engine: Any) -> Trainer:
    """For its step, and its keys of dropout."""
    config = RunConfig(method=config_of(), train=TRAIN)
    context = make_context(config=config, method=method, engine=engine, base=base)
    return Trainer(context, manifest=None, evaluate=None, stop=StopSignals("SIGTERM"))


def check(setting: Setting, world_size: int, folder: Path, tasks: list[Task]) -> None:
    """Two tasks of one setting, step by step beside the plain model."""
    file = ds_config.read(DS_CONFIG)
    file["zero_optimization"]["stage"] = setting.stage
    if setting.stage == 3:
        file["zero_optimization"]["stage3_param_persistence_threshold"] = 0
    resolved = ds_config.resolve(
        file, path=DS_CONFIG, batch_size=7, world_size=world_size, clip=0.0, bf16=False
    )
    base = language_model.load(ModelConfig(model=str(folder), dtype="fp32"), resolved)
    placer = Placer(make_atom_group("world"), setting.placement)
    method = METHODS[setting.method](setting.config, 3, placer)
    method.build(base.model)
    engine = make_engine(base.model, resolved, weight_decay=0.0)
    ours = trainer(method, base, engine)
    found: dict[str, torch.Tensor] = {}
    method.before_step = lambda engine: found.update(  # type: ignore[method-assign]
        {n: safe_get_full_grad(p) for n, p in engine.module.named_parameters() if p.requires_grad}
    )
    plain = base.family.prepared(CLIPModel.from_pretrained(folder))
    twin = METHODS[setting.method](setting.config, seed=3)
    twin.build(plain)
    trained = {n: p for n, p in plain.named_parameters() if p.requires_grad}
    beside = trainer(twin, dataclasses.replace(base, model=plain), None)
    optimizer = torch.optim.AdamW(trained.values(), lr=0.01)
    for i, task in enumerate(tasks):
        fresh = method.begin_task(i)
        start_fresh(engine, fresh)
        with torch.no_grad():
            for name, value in twin.begin_task(i).items():
                plain.get_parameter(name).copy_(value)
        losses = []
        engine.train()
        for mine, whole in zip(
            task_steps(base, task, i, env.rank(), world_size),
            task_steps(base, task, i, 0, 1),
            strict=True,
        ):
            loss = env.all_sum([float(ours._step(i, mine, NUM_STEPS))])[0]
            beside._seed_dropout(i, whole, 0)
            plain.train().zero_grad()
            expected = formula(plain, whole, task)
            expected.backward()
            losses.append(loss)
            assert loss == pytest.approx(expected.item(), rel=1e-5)
            norm = torch.stack([p.grad.norm() for p in trained.values()]).norm()
            for name, parameter in trained.items():
                error = (found[name] - parameter.grad).norm()
                assert error <= 1e-5 * norm, f"{name}: off by {error / norm:.1e} of all"
            optimizer.step()
            # From here on the same again: rounding would grow from step to step.
            start_fresh(engine, {n: p.detach() for n, p in trained.items()})
        assert losses[-1] < losses[0]
        twin.load_task(i, method.end_task(i, lambda _: (0, iter(()))))
        check_answers(base, engine, plain.eval(), task, in_step=method.in_step)
    check_statistics(base, plain, tasks[0])
    engine.destroy()


def check_answers(base: Any, engine: Any, plain: Any, task: Task, *, in_step: bool) -> None:
    """Of whole weights and of sharded ones, with features of classes that ranks share."""
    family, examples = base.family, task.test
    expected = family.score_labels(plain, base.tokenizer, examples, task)
    assert len({tuple(one.sums.values()) for one in expected}) == len(examples)
    engine.eval()

    def same(model: Any) -> None:
        mine = examples if in_step else examples[env.rank() :]
        with family.answering(model, base.tokenizer, [task], {}):
            scores = family.score_labels(model, base.tokenizer, mine, task)
            answers = family.generate(model, base.tokenizer, mine, task, Decoding())
        for ours, theirs in zip(scores, expected[len(examples) - len(mine) :], strict=True):
            assert ours.sums == pytest.approx(theirs.sums, rel=1e-3, abs=1e-4)
        assert answers == [max(one.sums, key=one.sums.__getitem__) for one in scores]

    with without_hooks(engine) as model:
        same(model)
    in_step = True
    same(engine.module)


def check_statistics(base: Any, plain: Any, task: Task) -> None:
    """Statistics are those of the bare base, whatever was learned, to the bit on any ranks."""
    ours = statistics_of(base, task).tensors()
    alone = base.family.features(plain, base.tokenizer, task.train, task)
    bare = CLIPModel.from_pretrained(plain.name_or_path).eval()
    for k in (0, -1):
        pixels = torch.from_numpy(base.tokenizer.read(task, task.train[k].prompt))[None]
        with torch.no_grad():
            feature = bare.get_image_features(pixels).pooler_output[0].double()
        assert torch.allclose(alone.mean_ND[k], feature / feature.norm(), atol=1e-6)
    every = env.gather_objects(ours)
    assert all(torch.equal(every[0][name], one[name]) for one in every for name in ours)


def live(rank: int, world_size: int, settings: list[Setting], folder: Path, at: Path) -> None:
    """Each setting in its turn."""
    tasks = [draw_task(at / str(rank) / name, name) for name in ("colours", "others")]
    for setting in settings:
        check(setting, world_size, folder, tasks)


@pytest.mark.parametrize("world_size", [2, 3])
def test_ranks(world_size, tmp_path):
    folder = save_tiny_clip(tmp_path / "base")
    run_ranks(
        live,
        world_size=world_size,
        tmp_path=tmp_path,
        args=(SETTINGS[world_size], folder, tmp_path / "pictures"),
    )
