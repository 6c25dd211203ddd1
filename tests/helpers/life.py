"""A method on the tiny model in an engine, trained by the trainer's own step.

Tests of growth, state, baselines and traffic live such lives.
"""

from __future__ import annotations

import dataclasses
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import torch
from torch import Tensor

from moram_dist.atoms import Placer
from moram_dist.comm import env
from moram_dist.comm.collectives import make_atom_group
from moram_dist.comm.zero3 import whole
from moram_dist.config import MethodConfig, ModelConfig, RunConfig, TrainConfig
from moram_dist.data.encode import Encoded
from moram_dist.data.stream import Step, steps
from moram_dist.families.causal import Causal
from moram_dist.methods import METHODS, Method
from moram_dist.models import language_model
from moram_dist.train import ds_config
from moram_dist.train.engine import make_engine, start_fresh
from moram_dist.train.stop import StopSignals
from moram_dist.train.trainer import Trainer
from tests.helpers.configs import config_of
from tests.helpers.context import make_context
from tests.helpers.tiny import tokens

DS_CONFIGS = Path(__file__).resolve().parents[2] / "ds_configs"
NUM_TASKS = 3
OUTPUTS = "outputs.safetensors"
METHOD = config_of(atoms_per_task=4, alpha=10, dropout=0, top_k=5, temperature=0.2)
# Five examples in micro-batches of two: on 2 and on 3 ranks one rank ends with an empty one.
CAUSAL = Causal()
TRAIN = TrainConfig(
    learning_rate=0.01, batch_size=5, micro_batch_size=2, weight_decay=0.1, clip=0.05
)
RATE = 0.01


@dataclasses.dataclass(frozen=True)
class Setting:
    """A DeepSpeed file, what differs from it, and a precision."""

    file: str
    stage: int
    dtype: str
    shard_all: bool = False
    """Shard active atoms too. By the files' threshold, parameters as small are kept whole."""
    placement: str = "resident"

    @property
    def name(self) -> str:
        return f"{self.file}-{self.stage}-{self.dtype}-{self.shard_all}-{self.placement}"

    def resolve(self, world_size: int) -> dict[str, Any]:
        """The DeepSpeed configuration of a run."""
        path = DS_CONFIGS / self.file
        file = ds_config.read(path)
        file["zero_optimization"]["stage"] = self.stage
        if self.shard_all:
            file["zero_optimization"]["stage3_param_persistence_threshold"] = 0
        return ds_config.resolve(
            file,
            path=path,
            batch_size=TRAIN.batch_size or 0,
            world_size=world_size,
            clip=TRAIN.clip,
            bf16=self.dtype == "bf16",
        )


class Life:
    """A method on the tiny model in an engine, trained by the trainer's own step."""

    def __init__(
        self,
        model: Path,
        setting: Setting,
        world_size: int,
        method: MethodConfig = METHOD,
        **model_settings: Any,
    ) -> None:
        self.setting = setting
        config = setting.resolve(world_size)
        self.base = language_model.load(
            ModelConfig(model=str(model), dtype=setting.dtype, **model_settings), config
        )
        placer = Placer(make_atom_group("world"), setting.placement)
        self.method: Method = METHODS[method.method](method, 3, placer, num_tasks=NUM_TASKS)
        self.method.build(self.base.model)
        self.engine = make_engine(self.base.model, config, weight_decay=TRAIN.weight_decay)
        tasks = [SimpleNamespace(name=f"task {i}") for i in range(NUM_TASKS)]
        context = make_context(
            benchmark=SimpleNamespace(tasks=tasks),
            config=RunConfig(method=config_of(), train=TRAIN),
            method=self.method,
            engine=self.engine,
            base=self.base,
        )
        self.trainer = Trainer(
            context, manifest=None, evaluate=None, stop=StopSignals("SIGTERM")
        )  # for its steps

    def begin(self, i: int) -> dict[str, Tensor]:
        """Start task i; what its parameters start with."""
        fresh = self.method.begin_task(i)
        start_fresh(self.engine, fresh)
        return fresh

    def train(self, i: int, start: int, stop: int) -> list[float]:
        """Some of task i's steps; their losses."""
        self.engine.train()
        chosen = task_steps(i, env.rank(), env.world_size())[start:stop]
        return [env.all_sum([float(self.trainer._step(i, step, 100))])[0] for step in chosen]

    def logits(self) -> Tensor:
        """Of some fixed input, through the engine."""
        self.engine.eval()
        with torch.no_grad():
            return self.engine(input_ids=tokens(2, 12)).logits.clone()

    def parameters(self, *, trained: bool) -> dict[str, Tensor]:
        """Whole copies of the active atoms, or of the base."""
        named = dict(self.engine.module.named_parameters())
        named = {name: p for name, p in named.items() if p.requires_grad == trained}
        with whole(named.values()):
            return {name: p.detach().clone() for name, p in named.items()}

    def frozen(self, num_atoms: int) -> dict[str, Tensor]:
        """The first so many frozen atoms of every layer."""
        out = {}
        for name, layer in self.method.layers.items():
            bank, which = layer.asked.memory.bank, layer.asked.layers.index(layer)
            flat = env.gather_objects(bank.shard_F)
            shards = [bank.views(f, rank, len(flat))[which] for rank, f in enumerate(flat)]
            for rank, shard in enumerate(shards if bank.copied else []):
                copies = bank.views(bank.copy_F)[which]
                assert all(
                    torch.equal(c[rank :: len(flat)], s) for c, s in zip(copies, shard, strict=True)
                )
            for kind, rows in zip(("keys", "values"), zip(*shards, strict=True), strict=True):
                order = [rows[i % len(rows)][i // len(rows)] for i in range(num_atoms)]
                out[f"{name}.{kind}"] = torch.stack(order)
        return out


def examples(i: int) -> list[Encoded]:
    """Task i's training data: eight rows of unlike lengths."""
    return [
        Encoded(f"{i}-{k}", tuple(tokens(6 + k, seed=10 * i + k).tolist()), 2 + k % 3)
        for k in range(8)
    ]


def task_steps(i: int, rank: int, world_size: int) -> list[Step]:
    """Task i's steps of five, three, five, three examples."""
    return list(
        steps(
            examples(i),
            CAUSAL,
            batch_size=TRAIN.batch_size,
            micro_batch_size=TRAIN.micro_batch_size,
            micro_batch_tokens=TRAIN.micro_batch_tokens,
            epochs=2,
            seed=TRAIN.seed,
            task=i,
            rank=rank,
            world_size=world_size,
            pad_id=0,
        )
    )
