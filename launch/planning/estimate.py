"""Plan a run: micro-batches, memory of a rank, traffic, files and time."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save

from eval.measure.harness import BATCH_TOKENS
from launch.planning.calibration import calibrate
from launch.planning.rehearsal import MemoryCall, Ranks, Rehearsal
from launch.planning.sizes import FP32, MOMENTS, Standing, standing
from launch.planning.steps import TaskSteps, task_steps
from moram_dist.config import PLACEMENTS, RunConfig
from moram_dist.decode.cache import most_tokens
from moram_dist.decode.classes import TEXTS_AT_ONCE
from moram_dist.decode.continuous_batching import READ_TOGETHER
from moram_dist.models import language_model
from moram_dist.tasks import Benchmark
from moram_dist.train.task_data import STEPS_AHEAD

AUTO, RESIDENT, GATHERED, STATIONARY = PLACEMENTS
RUN = "run"

LIBRARIES = {"cuda": 2_700_000_000}
"""Bytes that a process takes of a device beside torch's tensors: the context, NCCL, workspaces of
cuBLAS. From reports of others, not measured."""

PYTHON_INT = 36
"""Bytes per token of a task's examples, which are tuples of Python integers."""


@dataclass(frozen=True, kw_only=True)
class TaskPlan:
    """One task; sizes are in bytes, of the rank with the most."""

    name: str
    num_frozen: int
    """Atoms of each linear before the task."""

    num_examples: int
    num_steps: int
    num_micro_batches: int
    tokens: int
    """Tokens that a rank reads, including padding."""

    largest: tuple[int, int]
    """The largest micro-batch: rows, and tokens per row."""

    atoms: int
    """Frozen atoms: the rank's shard, and the copy of all atoms if the rank keeps one."""

    training: int
    """The peak of a micro-batch's tensors."""

    received: dict[str, tuple[int, ...]]
    """Placement, or ``run`` for the run's own choice -> bytes received in each step."""

    takes: dict[str, int]
    """Placement -> number of micro-batches for which the run chooses it."""

    texts: tuple[int, int]
    """Texts that each micro-batch reads beside pictures, and tokens per text; 0 for texts alone."""

    grown: int
    """Bytes received when the task's atoms are frozen."""

    file: int
    """Bytes of the task's memory file."""

    seconds: float | None = None
    """Time of its steps."""


@dataclass(frozen=True, kw_only=True)
class Plan:
    """All tasks and what they share; sizes are in bytes, of the rank with the most."""

    model: str
    num_parameters: int
    dtype: str
    ranks: Ranks
    placement: str
    reason: str
    standing: Standing
    base: int
    """The whole base model."""

    atoms: int
    """Frozen ones after the last task."""

    directions: int
    """Those of older tasks' inputs, which quiet keys are kept off; at most."""

    moments: int
    """What the moments of inputs need at a task's end."""

    answering: int
    """The peak of evaluation's tensors, without weights and atoms."""

    examples: int
    """The examples of the largest task as Python objects, in the host's memory; of pictures, the
    pixels of steps that are read ahead."""

    pictures: bool
    """Whether examples are pictures."""

    progress: int
    """The file that holds the state within a task."""

    tasks: tuple[TaskPlan, ...]
    process: int | None = None
    """The peak of a rank's process on a CPU; None: not measured."""

    @property
    def training(self) -> int:
        """Peak of training, in tensors."""
        largest = max(task.atoms + task.training for task in self.tasks)
        return self.standing.total + self.directions + largest

    @property
    def boundary(self) -> int:
        """Peak at a task's end, in tensors, while its directions are computed."""
        return self.standing.total + self.atoms + self.directions + self.moments

    @property
    def evaluation(self) -> int:
        """Peak of evaluation, in tensors; it uses whole weights."""
        kept = self.standing
        whole = self.base if kept.gathered or kept.base < self.base else 0
        memory = self.atoms + self.directions
        return kept.base + whole + kept.trained + kept.bucket + memory + self.answering

    @property
    def peak(self) -> int:
        """Peak of a rank: of its process where that was measured, else of tensors and libraries."""
        most = max(self.training, self.boundary, self.evaluation)
        return self.process or most + self.libraries

    @property
    def libraries(self) -> int:
        """The device's memory that is not in torch's tensors."""
        return LIBRARIES.get(self.ranks.device, 0)


class Planner:
    """Makes a plan; starts and writes nothing of the run."""

    def __init__(
        self,
        config: RunConfig,
        benchmark: Benchmark,
        ds_config: Mapping[str, Any],
        ranks: Ranks,
        say: Callable[[str], None] = lambda line: None,
    ) -> None:
        """Reads only the model's configuration so far.

        Args:
            config: resolved, with the dtype of the planned device.
            benchmark: of ``config``.
            ds_config: resolved for the planned ranks.
            ranks: planned.
            say: prints lines about progress.
        """
        self.config, self.benchmark, self.ranks, self.say = config, benchmark, ranks, say
        self.ds_config = ds_config
        self.run = self._rehearsal(config.parallel.placement)
        others = (GATHERED, STATIONARY) if ranks.in_group > 1 else ()
        self.others = {placement: self._rehearsal(placement) for placement in others}
        calls = self._rehearsal(RESIDENT, replace(ranks, in_group=1)).calls()
        self.calls = [call for call in calls if not call.beside]
        self.calls_beside = [call for call in calls if call.beside]
        self.found: list[TaskSteps] = []

    def _rehearsal(self, placement: str, ranks: Ranks | None = None) -> Rehearsal:
        stage = self.ds_config["zero_optimization"]["stage"]
        num_tasks = len(self.benchmark.tasks)
        return Rehearsal(self.config, ranks or self.ranks, placement, num_tasks, stage=stage)

    def plan(self) -> Plan:
        """The plan without seconds and without the memory of a process."""
        run = self.run
        tokenizer = language_model.load_tokenizer(self.config.model)
        family = run.family
        tasks = []
        for i, task in enumerate(self.benchmark.tasks):
            self.say(f"task {i + 1}/{len(self.benchmark.tasks)} {task.name}")
            found = task_steps(
                self.config, self.benchmark, run.method, family, tokenizer, i, self.ranks.count
            )
            self.found.append(found)
            tasks.append(self._task(found))
        trained = [parameter.numel() for parameter in run.trained]
        return Plan(
            model=self.config.model.model,
            num_parameters=sum(run.base_sizes),
            dtype=self.config.model.dtype,
            ranks=self.ranks,
            placement=run.placer.choice,
            reason=run.placer.reason,
            standing=self._standing(self.ranks.count),
            base=sum(run.base_sizes) * run.number_bytes,
            atoms=run.stored_bytes,
            directions=run.direction_bytes,
            moments=run.moment_bytes,
            answering=self._answering(),
            examples=self._examples(),
            pictures=family.reads_pictures,
            progress=FP32 * (1 + MOMENTS) * sum(trained),
            tasks=tuple(tasks),
        )

    def calibrated(self, plan: Plan, ds_path: Path, *, ranks: int) -> Plan:
        """Add seconds, and on a CPU the memory of a process, measured on ``ranks`` real ranks."""
        self.say(
            f"calibration: a few micro-batches on {ranks} rank{'s' * (ranks > 1)} of this machine"
        )
        largest = [task.largest for task in self.found]
        found = calibrate(self.config, ds_path, largest, ranks=ranks, placement=plan.placement)
        tasks = tuple(
            replace(task, seconds=sum(found.seconds(t) for step in of.steps for t in step))
            for task, of in zip(plan.tasks, self.found, strict=True)
        )
        process = None
        if self.ranks.device == "cpu":
            # Add what differs between the planned ranks and these, and what only evaluation needs.
            beside = plan.standing.total - self._standing(ranks).total
            further = max(0, max(plan.boundary, plan.evaluation) - plan.training)
            process = found.peak + beside + plan.examples + further
        return replace(plan, tasks=tasks, process=process)

    def _task(self, found: TaskSteps) -> TaskPlan:
        run = self.run
        distinct = {tokens for step in found.steps for tokens in step}
        auto = {tokens: run.takes(tokens) for tokens in distinct}
        moved = {tokens: self._moved(tokens, self.calls) for tokens in distinct}
        beside = Counter[str]()
        if self.calls_beside:
            beside.update(self._moved(math.prod(found.beside), self.calls_beside))
        received = {
            placement: tuple(
                sum(moved[tokens][placement] + beside[placement] for tokens in step)
                for step in found.steps
            )
            for placement in (RUN, RESIDENT, *self.others)
        }
        before = run.num_atoms
        atoms = run.stored_bytes
        training = max((run.train(batch) for batch in found.largest), default=0)
        takes = Counter(auto[tokens] for step in found.steps for tokens in step)
        file = len(save(run.task_file(torch.device("cpu"))))
        grown = sum(run.grow().values())
        for other in self.others.values():
            other.grow()
        largest = found.largest[0] if found.largest else None
        return TaskPlan(
            name=found.name,
            num_frozen=before,
            num_examples=found.num_examples,
            num_steps=len(found.steps),
            num_micro_batches=sum(map(len, found.steps)),
            tokens=sum(map(sum, found.steps)),
            largest=(len(largest.rows), largest.lengths[0]) if largest else (0, 0),
            texts=found.beside,
            atoms=atoms,
            training=training,
            received=received,
            takes=dict(takes),
            grown=grown,
            file=file,
        )

    def _moved(self, tokens: int, calls: Sequence[MemoryCall]) -> dict[str, int]:
        """Bytes received in a micro-batch for the tokens of a tower, by placement."""
        run, taken = self.run, self.run.takes(tokens)
        moved = {RESIDENT: 0} | {
            placement: sum(other.received(tokens, calls).values())
            for placement, other in self.others.items()
        }
        # To choose for each micro-batch, all ranks first announce their numbers of tokens.
        asked = run.placer.choice == AUTO and taken == GATHERED
        return moved | {RUN: moved[taken] + (sum(run.announced(tokens).values()) if asked else 0)}

    def _examples(self) -> int:
        if not self.run.family.reads_pictures:
            return PYTHON_INT * max(found.num_tokens for found in self.found)
        pixels = [b.inputs["pixel_values"].nbytes for found in self.found for b in found.largest]
        return (STEPS_AHEAD + 2) * max(pixels)  # the step's own, and the one being read

    def _answering(self) -> int:
        """What evaluation adds to weights and atoms."""
        return self._comparing() if self.run.family.reads_pictures else self._generating()

    def _comparing(self) -> int:
        """One forward pass over pictures, or over texts."""
        tests = max(len(task.test) for task in self.benchmark.tasks)
        pictures = min(self.config.eval.eval_batch_size, -(-tests // self.ranks.count))
        texts = {text for task in self.benchmark.tasks for own in task.texts for text in own}
        longest = max(found.beside[1] for found in self.found)
        share = min(TEXTS_AT_ONCE, -(-len(texts) // self.ranks.count))
        return self.run.compare(pictures, (share, longest))

    def _generating(self) -> int:
        """Keys and values of all prompts and answers of a batch, and one forward pass."""
        rows = [
            (found.longest_prompt + task.max_answer_tokens, len(task.test))
            for found, task in zip(self.found, self.benchmark.tasks, strict=True)
        ]
        all_tokens = sum(longest * -(-count // self.ranks.count) for longest, count in rows)
        longest = max(longest for longest, _ in rows)
        room = most_tokens(self.run.model, self.ranks.memory, BATCH_TOKENS)
        most = min(self.config.eval.eval_batch_size * longest, room, all_tokens)
        read = max(READ_TOGETHER, *(found.longest_prompt for found in self.found))
        kept, beside = self.run.read(read)
        # While rows join or leave, the keys and values of two layers exist twice.
        layers = self.run.model.config.get_text_config().num_hidden_layers
        return beside + max(most, longest) * (kept + 2 * kept // layers) // read

    def _standing(self, ranks: int) -> Standing:
        return standing(
            self.run.base_sizes,
            [parameter.numel() for parameter in self.run.trained],
            ds_config=self.ds_config,
            ranks=ranks,
            number_bytes=self.run.number_bytes,
            device=self.ranks.device,
        )
