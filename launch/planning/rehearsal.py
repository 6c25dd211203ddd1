"""Run a model with its memory on the meta device to count the bytes that it keeps and receives."""

from __future__ import annotations

import copy
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn

from launch.planning.meter import AsOnDevice, Meter, PretendGroup
from launch.planning.sizes import FP32
from moram_dist.adapters.moments import round_bytes
from moram_dist.atoms import Placer
from moram_dist.atoms.placement import Resident, Stationary
from moram_dist.comm import zero3
from moram_dist.config import RunConfig
from moram_dist.data.stream import MicroBatch
from moram_dist.decode.cache import RoomyCache
from moram_dist.decode.classes import image_features
from moram_dist.families.targets import choose_targets
from moram_dist.methods.moram import Moram, MoramConfig
from moram_dist.models import language_model
from moram_dist.train.forward import Forward

META = torch.device("meta")


@dataclass(frozen=True)
class Ranks:
    """The ranks for which a plan is made."""

    count: int
    in_group: int
    """How many hold one memory together."""

    device: str
    """cpu or cuda."""

    memory: float
    """Bytes of memory of a rank."""


@dataclass(frozen=True)
class MemoryCall:
    """One query of a memory in a forward pass."""

    names: tuple[str, ...]
    """Full names of the linears that share the memory."""

    members: tuple[int, ...]
    """Which of them this query serves."""

    wanted: bool
    """Whether their input needs a gradient."""

    beside: bool
    """Whether they read the texts of classes, beside the pictures of the examples."""


class Rehearsal:
    """A model with one placement of the atoms. Its memory grows like that of the run."""

    def __init__(
        self, config: RunConfig, ranks: Ranks, placement: str, num_tasks: int, *, stage: int
    ) -> None:
        """``stage``: the ZeRO stage."""
        self.linear = zero3.linear() if stage == 3 else None
        self._moved_by_like: dict[Any, dict[str, int]] = {}
        self.group = PretendGroup(ranks.in_group)
        self.placer = Placer(
            self.group,
            placement,
            room=config.parallel.resident_fraction * ranks.memory,
            num_tasks=num_tasks,
            device=ranks.device,
        )
        dtype = language_model.resolve_dtype(config.model)
        model: Any = language_model.skeleton(config.model)
        self.model: Any = model.to(dtype).requires_grad_(False)
        self.base_sizes = [p.numel() for p in self.model.parameters()]
        self.number_bytes = dtype.itemsize
        assert isinstance(config.method, MoramConfig)  # launch/plan.py refuses other methods
        self.keeps_directions = config.method.quiet_keys > 0
        """Of older tasks' inputs. They change no shapes, so they are counted apart."""
        method = replace(config.method, quiet_keys=0.0)
        self.method = Moram(method, config.train.seed, self.placer, num_tasks)
        targets = choose_targets(self.model, self.method.config.target_modules, is_skeleton=True)
        self.method.build(self.model, targets.names)
        self.model.to(META)
        self.forward = Forward(self.model, self.model, META)
        self.family = self.forward.family

    @property
    def trained(self) -> list[nn.Parameter]:
        """Active atoms."""
        return [p for p in self.model.parameters() if p.requires_grad]

    @property
    def num_atoms(self) -> int:
        """Frozen atoms of each linear."""
        return next(iter(self.method.memories.values())).bank.num_atoms

    @property
    def stored_bytes(self) -> int:
        """Frozen atoms on a rank: its shard, and the copy of all atoms if it keeps one."""
        banks = [memory.bank for memory in self.method.memories.values()]
        return sum(bank.shard_F.nbytes + bank.copy_F.nbytes for bank in banks)

    @property
    def direction_bytes(self) -> int:
        """Directions of older tasks' inputs on a rank: at most as many as an input has elements."""
        return sum(FP32 * size**2 for size in self.inputs) if self.keeps_directions else 0

    @property
    def moment_bytes(self) -> int:
        """What taking the moments of inputs at a task's end needs."""
        return round_bytes(self.inputs) if self.keeps_directions else 0

    @property
    def inputs(self) -> list[int]:
        """Elements of each input that linears with a memory read."""
        return [memory.bank.shapes[0][0] for memory in self.method.memories.values()]

    def task_file(self, device: torch.device = META) -> dict[str, Tensor]:
        """The tensors of a task's memory file."""
        out = {}
        for names, memory in self.method.memories.items():
            for one, name in enumerate(names):
                for kind, atoms in zip(("keys", "values"), memory.active(one), strict=True):
                    out[f"{name}.{kind}"] = torch.zeros_like(atoms, device=device)
        return out

    def grow(self) -> dict[str, int]:
        """End a task. Returns the bytes received, by name of the collective."""
        self.group.traffic.clear()
        self.method.load_task(0, self.task_file())
        self._moved_by_like.clear()
        return self._traffic()

    def train(self, batch: MicroBatch) -> int:
        """Run a micro-batch of training. Returns the peak of its tensors in bytes."""
        self.model.train()
        self.method.token_keys.set([0] * len(batch.rows), batch.lengths, META)
        rows, length = batch.shared
        if rows:
            self.method.token_keys.add([0] * rows, length, META)
        for memory in self.method.memories.values():
            memory.learning = True
        with Meter(self._standing()) as meter, AsOnDevice(self.linear):
            seen = self.forward(batch)
            loss = self.family.loss(seen.logits_BPV, seen.targets_BP, batch, 1)
            loss = loss + self.method.penalty(seen)
            del seen
            loss.backward()
        self.placer.growing()
        for parameter in self.trained:
            parameter.grad = None
        return meter.peak

    def read(self, num_tokens: int) -> tuple[int, int]:
        """Read a prompt as in evaluation.

        Returns:
            Bytes that the cache keeps of its tokens, and the peak of all other tensors.
        """
        kept = RoomyCache.of(self.model)
        self.model.eval()
        with torch.no_grad(), Meter(self._standing()) as meter, AsOnDevice(self.linear):
            ids = torch.zeros(1, num_tokens, dtype=torch.long, device=META)
            out = self.model(input_ids=ids, past_key_values=kept, use_cache=True, logits_to_keep=1)
            del out, ids
        self.placer.growing()
        return meter.now, meter.peak - meter.now

    def compare(self, num_pictures: int, texts: tuple[int, int]) -> int:
        """Compute features of pictures, and of texts, as in evaluation.

        Args:
            num_pictures: in one forward pass.
            texts: their number in one forward pass, and their length in tokens.

        Returns:
            The peak of all tensors.
        """
        vision: Any = self.model.config.vision_config
        size = vision.image_size
        self.model.eval()
        with torch.no_grad(), Meter(self._standing()) as meter, AsOnDevice(self.linear):
            pixels = torch.zeros(num_pictures, 3, size, size, device=META)
            out = image_features(self.model, pixels)
            del pixels, out
            out = self.model.get_text_features(
                input_ids=torch.zeros(*texts, dtype=torch.long, device=META)
            )
            del out
        self.placer.growing()
        return meter.peak

    def calls(self) -> list[MemoryCall]:
        """The queries of the memory in a forward pass of training."""
        found: list[MemoryCall] = []
        of_source = self.family.towers(self.model)[0].is_source

        def record(names: tuple[str, ...], _: nn.Module, given: tuple[Any, ...]) -> None:
            x, members = given
            beside = self.family.reads_source(names[0]) != of_source
            found.append(MemoryCall(names, members, x.requires_grad, beside))

        hooks = [
            memory.register_forward_pre_hook(partial(record, names))
            for names, memory in self.method.memories.items()
        ]
        self.model.eval()  # without dropout, which changes none of them
        for memory in self.method.memories.values():
            memory.learning = True
        with Meter(), AsOnDevice(self.linear):
            self.model(**self.family.trial_inputs(self.model.config, 2))
        self.placer.growing()
        for hook in hooks:
            hook.remove()
        return found

    def received(self, num_tokens: int, calls: Sequence[MemoryCall]) -> dict[str, int]:
        """Bytes that a rank receives in a micro-batch, if no rank has more than ``num_tokens``.

        The bytes of every collective are a linear function of the number of tokens, so two short
        micro-batches determine them.
        """
        two, three = (self._moved(count, calls) for count in (2, 3))
        return {name: two[name] + (num_tokens - 2) * (three[name] - two[name]) for name in two}

    def _moved(self, num_tokens: int, calls: Sequence[MemoryCall]) -> dict[str, int]:
        total: Counter[str] = Counter(self.announced(num_tokens))
        for call in calls:
            total.update(self._moved_by(num_tokens, call))
        return dict(total)

    def _moved_by(self, num_tokens: int, call: MemoryCall) -> dict[str, int]:
        """Of one query, forward and backward; queries of equally shaped linears move the same.

        With so few tokens, real tensors on a CPU take less time than tensors on the meta device,
        whose operations run in Python.
        """
        memory = self.method.memories[call.names]
        key = (num_tokens, memory.bank.shapes, call.members, call.wanted)
        if key not in self._moved_by_like:
            alone = Placer(self.group, self.placer.choice, device="cpu")
            same = {id(memory.placer): alone, id(self.group): self.group}
            real = copy.deepcopy(memory, same).to_empty(device="cpu")
            for tensor in (*real.parameters(), *real.buffers()):
                tensor.data.zero_()
            alone.plan([real.bank], 0)
            alone.begin(num_tokens, source=memory.reads_source)
            like = real.active(call.members[0])[0]
            x = torch.zeros_like(like[:1].expand(num_tokens, -1), requires_grad=call.wanted)
            self.group.traffic.clear()
            real.learning = True
            sum(out.sum() for out in real(x, call.members)).backward()  # type: ignore[union-attr]
            self._moved_by_like[key] = self._traffic()
        return self._moved_by_like[key]

    def announced(self, num_tokens: int) -> dict[str, int]:
        """Bytes that a rank receives at the start of a forward pass, to choose its placement."""
        self.group.traffic.clear()
        self.placer.begin(num_tokens)
        return self._traffic()

    def _traffic(self) -> dict[str, int]:
        return {name: moved.bytes for name, moved in self.group.traffic.items()}

    def takes(self, num_tokens: int) -> str:
        """The placement of a forward pass in which no rank has more than ``num_tokens``."""
        self.placer.begin(num_tokens)
        now = self.placer.now
        if isinstance(now, Resident):
            return "resident"
        return "stationary" if isinstance(now, Stationary) else "gathered"

    def _standing(self) -> list[Tensor]:
        return [*self.model.parameters(), *self.model.buffers()]
