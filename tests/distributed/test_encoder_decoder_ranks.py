"""An encoder-decoder model on two ranks under ZeRO-3 is what it is in one process.

Losses, gradients, answers and label scores, over two tasks, with dropout. Settings share one spawn.
"""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Any

import pytest
import torch
from deepspeed.utils import safe_get_full_grad
from torch.nn import functional as F
from transformers import AutoModelForSeq2SeqLM

from moram_dist import load_memory
from moram_dist.atoms import Placer
from moram_dist.atoms.manifest import Manifest
from moram_dist.atoms.memory_files import MemoryFiles
from moram_dist.comm import env
from moram_dist.comm.collectives import make_atom_group
from moram_dist.comm.zero3 import without_hooks
from moram_dist.config import MethodConfig, ModelConfig, RunConfig, TrainConfig
from moram_dist.data.stream import Step, steps
from moram_dist.families.encoder_decoder import EncoderDecoder
from moram_dist.methods import METHODS, Method
from moram_dist.models import language_model
from moram_dist.models.identity import fingerprint_of
from moram_dist.tasks.task import Decoding, Example, Task
from moram_dist.train import ds_config
from moram_dist.train.engine import make_engine, start_fresh
from moram_dist.train.stop import StopSignals
from moram_dist.train.trainer import Trainer
from tests.helpers.answers import generate_batch, score_batch
from tests.helpers.configs import config_of
from tests.helpers.context import make_context
from tests.helpers.ranks import run_ranks
from tests.helpers.tiny_t5 import START, WIDE, save_tiny_t5, tiny_t5

WORLD_SIZE = 2
DS_CONFIG = Path(__file__).resolve().parents[2] / "ds_configs" / "zero3.json"
# Five examples in micro-batches of two: one rank ends with an empty one.
TRAIN = TrainConfig(learning_rate=0.01, batch_size=5, micro_batch_size=2, schedule="constant")
TEXTS = {
    "the small red house": "house",
    "a dog": "an animal that barks",
    "who are you": "me",
    "seven green bottles hanging on the wall": "bottles",
    "one": "number",
}
TASK = Task(
    name="t",
    metric="exact",
    train=(),
    test=(),
    labels=("house", "number", "an animal that barks"),
    max_prompt_tokens=16,
    max_answer_tokens=6,
)
EXAMPLES = [Example(f"e{i}", *pair[:1], pair[1:]) for i, pair in enumerate(TEXTS.items())]
NUM_TASKS, NUM_STEPS = 2, 3
FAMILY = EncoderDecoder(START)


@dataclasses.dataclass(frozen=True)
class Setting:
    """What is trained, where its atoms are, whether layers are computed again in backward."""

    method: str
    placement: str = "resident"
    checkpointing: bool = False

    @property
    def config(self) -> MethodConfig:
        targets = "all-linear" if self.checkpointing else "attention"
        return config_of(
            method=self.method,
            atoms_per_task=4,
            alpha=40,
            dropout=0.3,
            top_k=5,
            target_modules=targets,
        )


EVERY_CHANGE = [
    Setting("gain_lora", checkpointing=True),
    Setting("moram", "gathered"),
    Setting("moram", "stationary", checkpointing=True),
]
NIGHTLY = [Setting("sequential_lora"), Setting("moram", checkpointing=True)]


def task_steps(tokenizer: Any, i: int, rank: int, world_size: int, micro: int) -> list[Step]:
    return list(
        steps(
            [FAMILY.encode_training(tokenizer, example, TASK) for example in EXAMPLES],
            FAMILY,
            batch_size=TRAIN.batch_size,
            micro_batch_size=micro,
            micro_batch_tokens=TRAIN.micro_batch_tokens,
            epochs=NUM_STEPS,
            seed=TRAIN.seed,
            task=i,
            rank=rank,
            world_size=world_size,
            pad_id=tokenizer.pad_token_id,
        )
    )


def trainer(method: Method, base: Any, engine: Any) -> Trainer:
    """For its step, and its keys of dropout."""
    context = make_context(
        config=RunConfig(method=config_of(), train=TRAIN), method=method, engine=engine, base=base
    )
    return Trainer(context, manifest=None, evaluate=None, stop=StopSignals("SIGTERM"))


class Plain:
    """The same in this process alone, by torch and the formula of the loss."""

    def __init__(self, setting: Setting, base: language_model.Base) -> None:
        self.model = tiny_t5(**WIDE)
        self.method = METHODS[setting.method](setting.config, seed=3)
        self.method.build(self.model)
        self.trained = {n: p for n, p in self.model.named_parameters() if p.requires_grad}
        self.trainer = trainer(self.method, dataclasses.replace(base, model=self.model), None)

    def begin(self, i: int) -> None:
        with torch.no_grad():
            for name, value in self.method.begin_task(i).items():
                self.model.get_parameter(name).copy_(value)

    def gradients(self, i: int, step: Step) -> float:
        """Of a step of one micro-batch; its loss."""
        (batch,) = step.micro_batches
        self.trainer._seed_dropout(i, step, 0)
        self.model.train().zero_grad()
        read = batch.inputs
        targets = read["decoder_input_ids"][:, 1:].masked_fill(batch.labels[:, 1:] == -100, -100)
        logits = self.model(**read).logits[:, :-1]
        loss = F.cross_entropy(logits.flatten(0, 1), targets.flatten())
        loss.backward()
        return loss.item()


def check(setting: Setting, folder: Path, out: Path) -> None:
    """Two tasks of one setting, step by step beside the plain model."""
    file = ds_config.read(DS_CONFIG)
    file["zero_optimization"]["stage3_param_persistence_threshold"] = 0
    resolved = ds_config.resolve(
        file,
        path=DS_CONFIG,
        batch_size=TRAIN.batch_size or 0,
        world_size=WORLD_SIZE,
        clip=0.0,
        bf16=False,
    )
    model_config = ModelConfig(
        model=str(folder), dtype="fp32", gradient_checkpointing=setting.checkpointing
    )
    base = language_model.load(model_config, resolved)
    method = METHODS[setting.method](
        setting.config, 3, Placer(make_atom_group("world"), setting.placement)
    )
    method.build(base.model)
    engine = make_engine(base.model, resolved, weight_decay=0.0)
    ours = trainer(method, base, engine)
    found: dict[str, torch.Tensor] = {}
    method.before_step = lambda engine: found.update(  # type: ignore[method-assign]
        {n: safe_get_full_grad(p) for n, p in engine.module.named_parameters() if p.requires_grad}
    )
    plain = Plain(setting, base)
    optimizer = torch.optim.AdamW(plain.trained.values(), lr=0.01, betas=(0.9, 0.95))
    files = MemoryFiles(out / "memory")
    manifest = Manifest(
        method=setting.method,
        settings=dataclasses.asdict(setting.config),
        base=fingerprint_of(str(folder)),
        modules=list(method.layers),
    )
    for i in range(NUM_TASKS):
        start_fresh(engine, method.begin_task(i))
        plain.begin(i)
        optimizer.state.clear()
        losses = []
        engine.train()
        for mine, whole in zip(
            task_steps(base.tokenizer, i, env.rank(), WORLD_SIZE, TRAIN.micro_batch_size),
            task_steps(base.tokenizer, i, 0, 1, TRAIN.batch_size),
            strict=True,
        ):
            loss = env.all_sum([float(ours._step(i, mine, NUM_STEPS))])[0]
            losses.append(plain.gradients(i, whole))
            assert loss == pytest.approx(losses[-1], rel=1e-5)
            assert set(found) == set(plain.trained)
            norm = torch.stack([p.grad.norm() for p in plain.trained.values()]).norm()
            for name, parameter in plain.trained.items():
                error = (found[name] - parameter.grad).norm()
                assert error <= 1e-5 * norm, f"{name}: off by {error / norm:.1e} of all"
            # From here on the same again: rounding would grow from step to step.
            optimizer.step()
            start_fresh(engine, {n: p.detach() for n, p in plain.trained.items()})
        assert losses[-1] < losses[0]
        tensors = method.end_task(i, lambda _: (0, iter(())))
        plain.method.load_task(i, tensors)
        if env.is_main():
            manifest = files.publish(manifest, f"task {i}", tensors)
        answers = check_answers(engine, plain.model.eval(), base.tokenizer, synced=method.in_step)
    assert len(set(answers)) > 1
    engine.destroy()


def check_answers(engine: Any, plain: Any, tokenizer: Any, *, synced: bool) -> list[str]:
    """Of ranks that have unlike work where they may, and of ranks in step."""
    expected = generate_batch(plain, tokenizer, EXAMPLES, TASK, Decoding())
    scores = score_batch(plain, tokenizer, EXAMPLES, TASK)
    engine.eval()
    mine = slice(None) if env.rank() == 0 else slice(1, 3)

    def same(model: Any, synced: bool) -> None:
        answers = generate_batch(model, tokenizer, EXAMPLES[mine], TASK, Decoding(), synced=synced)
        assert answers == expected[mine]
        for ours, theirs in zip(
            score_batch(model, tokenizer, EXAMPLES[mine], TASK), scores[mine], strict=True
        ):
            assert ours.sums == pytest.approx(theirs.sums, rel=1e-4)

    with without_hooks(engine) as model:
        for _ in range(1 if synced else env.rank() + 1):
            same(model, synced)
    same(engine.module, True)
    return expected


def live(rank: int, world_size: int, settings: list[Setting], folder: Path, out: Path) -> None:
    """Each in its folder."""
    for k, setting in enumerate(settings):
        try:
            check(setting, folder, out / str(k))
        except Exception as error:
            error.add_note(f"in {setting}")
            raise


@pytest.mark.distributed
@pytest.mark.parametrize(
    "settings",
    [EVERY_CHANGE, pytest.param(NIGHTLY, marks=pytest.mark.nightly)],
    ids=["every change", "nightly"],
)
def test_two_ranks(settings, tmp_path):
    folder = save_tiny_t5(tmp_path / "model")
    run_ranks(live, world_size=WORLD_SIZE, tmp_path=tmp_path, args=(settings, folder, tmp_path))
    for k in range(len(settings)):
        plain = AutoModelForSeq2SeqLM.from_pretrained(folder, dtype="float32")
        load_memory(plain, tmp_path / str(k))
