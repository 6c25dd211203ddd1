"""The settings of a run in sections; those of a method are in the method's file.

The text under a field is its help on the command line. Field names are unique across sections, so a
flag is the bare name (``--top_k 4``) or the dotted one (``--method.top_k 4``).
"""

from __future__ import annotations

import hashlib
import os
import re
from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated, Literal, get_args

from pydantic import Field

from moram_dist.registry import InputError, one_of
from moram_dist.section import Count, section

EMBEDDED = "demo"
"""Name of a benchmark that ships with the package, and of the base model for it."""

EMBEDDED_IMAGES = "demo_images"
"""The same for pictures."""

DEFAULT_METHOD = "moram"
"""The method of a run that names none."""

STOP_SIGNALS = ("SIGTERM", "SIGUSR1", "SIGUSR2", "SIGINT", "SIGHUP")
"""Signals with which a scheduler or a person can ask a run to stop."""

Placement = Literal["auto", "resident", "gathered", "stationary"]
PLACEMENTS: tuple[str, ...] = get_args(Placement)
"""Where atoms and tokens of a memory meet; see ``ParallelConfig.placement``."""

EvalRows = Literal["all", "seen", "last", "diagonal"]
"""Which tasks are evaluated after each; see ``EvalConfig.eval_rows``."""

ANSWERS = ("generate", "constrained", "labels", "labels_mean")
"""Ways to get an answer from a model; see ``EvalConfig.answers``."""

RECALLS = ("all", "prefix", "oracle")
"""Which tasks of a memory answer a prompt; see ``EvalConfig.recall``."""

LONGEST_NAME = 200
"""Longest name of a run, in bytes. Its folder, its lock file and its jobs are named after it."""


@section
class ModelConfig:
    """The frozen base model."""

    model: str = EMBEDDED
    """Folder or Hugging Face id of a causal language model, a T5 or a CLIP; `demo` and, for
    pictures, `demo_images` are built in, and the default for the benchmarks of these names."""

    dtype: Literal["auto", "fp32", "bf16"] = "auto"
    """Type of parameters and compute: fp32, bf16, or auto (bf16 on an accelerator, else fp32)."""

    attention: Literal["auto", "flash_attention_2", "sdpa", "eager"] = "auto"
    """flash_attention_2, sdpa, eager, or auto: the first of these that the model supports here."""

    gradient_checkpointing: bool = False
    """Recompute activations in backward: less memory, about a third more time."""

    deterministic: bool = False
    """On a GPU, compute the same bits each time, more slowly; an operation that cannot ends the
    run. A CPU always does."""

    trust_remote_code: bool = False
    """Let the model's repository run its own Python code on this machine."""


@section
class DataConfig:
    """The tasks, their order, and how many examples of each are used."""

    benchmark: str = EMBEDDED
    """demo (generated), trace, superni, long_sequence, standard_cl, or jsonl (your own files); of
    pictures, for CLIP: demo_images (drawn), xtail, mtil, or images (your own)."""

    data_dir: Path | None = None
    """Folder with the tasks' files or, for pictures, with a folder of each data set; for jsonl and
    images also a YAML listing of them."""

    order: str | None = None
    """A named order of the benchmark, or task names joined by commas."""

    protocol: str | None = None
    """A protocol of the benchmark: its prompts, truncation, decoding and metrics."""

    limit_train: Count | None = None
    """Use only the first N training examples of each task; of pictures N evenly spaced ones."""

    limit_eval: Count | None = None
    """Evaluate only the first N test examples of each task; of pictures N evenly spaced ones."""

    shots: Count | None = None
    """Training pictures of each class, drawn by seed; default: the protocol's."""

    splits: dict[str, dict[str, str]] = field(default_factory=dict)
    """Replace a task's split: {"MeetingBank": {"train": "eval"}}, or by a file path."""

    loss_turns: Literal["all", "last"] | None = None
    """Turns of the assistant that training learns in chats: all (the default) or the last one."""


@section
class MethodConfig:
    """The continual-learning method. Defaults: the published TRACE settings of MoRAM."""

    method: str
    """How the tasks are learned."""


@section
class TrainConfig:
    """Optimisation, the same for each task: every task starts with a fresh optimizer."""

    seed: Annotated[int, Field(ge=0, le=2**63 - 1)] = 0
    """Determines initial atoms, sample order and dropout."""

    learning_rate: Annotated[float, Field(gt=0, ge=1e-30, le=1e30)] | None = None
    """Peak learning rate of AdamW; default: the protocol's."""

    schedule: Literal["constant", "linear", "cosine"] = "constant"
    """Learning rate after warm-up, per task: constant, linear or cosine to 0."""

    warmup_ratio: Annotated[float, Field(ge=0, le=1)] = 0.0
    """Fraction of a task's steps in which the learning rate rises from 0, in [0, 1]."""

    batch_size: Count | None = None
    """Examples per optimizer step, over all ranks; default: the protocol's."""

    micro_batch_tokens: Count = 4096
    """Most tokens per forward pass of a rank, with padding; a longer example gets its own pass.
    Gradients add up over a step. Fewer tokens save memory and change results by rounding."""

    micro_batch_size: Count | None = None
    """Examples in one forward pass; default: as many as ``micro_batch_tokens`` allows."""

    epochs: Annotated[float, Field(gt=0, le=10_000)] | None = None
    """Passes over each task's examples; default: the protocol's for each task."""

    weight_decay: Annotated[float, Field(ge=0, le=1_000)] = 0.0
    """Decoupled weight decay."""

    beta2: Annotated[float, Field(ge=0, lt=1)] = 0.95
    """Second beta of AdamW, the decay of its mean of squared gradients."""

    clip: Annotated[float, Field(ge=0, le=1e30)] = 1.0
    """Largest norm of a step's gradient; 0 turns clipping off."""


@section
class EvalConfig:
    """The evaluation after each task."""

    eval_rows: EvalRows = "seen"
    """seen: tasks learned so far; all: every task and the untouched base; last: the newest task,
    and all of them after the last; diagonal: the newest task only, as always for single_task."""

    answers: str = "generate"
    """How answers are obtained, joined by commas: generate (freely), constrained (only labels can
    be generated), labels (the likeliest label), labels_mean (the same, per token). The first gives
    the scores; each of the others gets its own matrix. Without labels, answers are generated."""

    recall: str = "all"
    """Which tasks of a memory answer, joined by commas: all (the published method), prefix (up to
    the task that a prompt is recognised as), oracle (up to its true task: not task-agnostic). The
    first gives the scores; each of the others gets its own matrix."""

    recogniser: str = "discriminant"
    """How --recall prefix recognises the task from the prompt alone: means, discriminant or
    ridge."""

    unknown: Literal["all", "base", "likeliest"] = "all"
    """What answers a prompt that resembles no task: all tasks (all), only the base (base), or the
    task that it resembles most (likeliest; in place of all for any_ssr and single_task)."""

    eval_batch_size: Count = 128
    """Prompts for which one rank generates at a time; fewer if they are long."""

    eval_gather: Literal["auto", "true", "false"] = "auto"
    """Generate with whole weights: true, auto (if they fit), or false (sharded: slow)."""

    max_prompt_tokens: Count | None = None
    """Overrides every task's longest prompt, in tokens."""

    max_answer_tokens: Count | None = None
    """Overrides every task's longest answer, in tokens."""

    def __post_init__(self) -> None:
        """Raises InputError where a list names something unknown, or something twice."""
        for flag, names, known in (
            ("answers", self.answer_modes, ANSWERS),
            ("recall", self.recalls, RECALLS),
        ):
            for name in names:
                one_of(flag, name, known)
                if names.count(name) > 1:
                    raise InputError(f"--{flag} names {name} twice")

    @property
    def answer_modes(self) -> tuple[str, ...]:
        """The names in ``answers``; the first one gives the scores."""
        return tuple(self.answers.split(","))

    @property
    def recalls(self) -> tuple[str, ...]:
        """The names in ``recall``; the first one gives the scores."""
        return tuple(self.recall.split(","))


@section
class RecordConfig:
    """Where results go."""

    output_dir: Path | None = None
    """The run directory; default runs/<benchmark>-<method>-seed<seed>."""

    tracking: Literal["mlflow", "none"] = "mlflow"
    """mlflow or none; metrics.jsonl in the run directory is written either way."""

    tracking_uri: str | None = None
    """MLflow store; default MLFLOW_TRACKING_URI, else sqlite next to the run directory."""

    register_memory: bool = False
    """Also register the memory as a model in MLflow, with a version and an alias for each task."""

    log_every: Count = 10
    """Optimizer steps between two progress lines."""

    save_every: str = "10m"
    """Time between two saves within a task: optimizer steps (200), or minutes (10m)."""

    observe: Literal["routing", "none"] = "routing"
    """routing: after each task (of long sequences: after 16), count which tasks' atoms or experts
    answer a sample of the test tokens, for methods that have any; or none."""

    general: str | None = None
    """Tasks of lm-eval that measure general abilities, joined by commas: names, YAML files, or demo
    (sentences of the demo). The report shows their changes against the base."""

    general_rows: Literal["last", "all"] = "last"
    """When: last (the untouched base, and after the last task) or all (after each task too)."""

    stop_signals: str = "SIGTERM,SIGUSR1"
    """Signals, joined by commas, at which a run saves its state and ends with exit code 75."""

    def __post_init__(self) -> None:
        """Raises InputError on an unknown signal, or a time that is none."""
        for name in self.general_tasks:
            if not name.strip() or self.general_tasks.count(name) > 1:
                raise InputError(f"--general names {name!r} twice, or nothing: {self.general!r}")
        for name in self.stop_signals.split(","):
            one_of("stop_signals", name, STOP_SIGNALS)
        valid = re.fullmatch(r"[0-9]{1,9}|[0-9]{1,7}(\.[0-9]{0,9})?m", self.save_every)
        if not valid or not (self.save_steps or self.save_seconds):
            raise InputError(
                f"--save_every must be steps (200) or minutes (10m), got {self.save_every!r}"
            )

    @property
    def general_tasks(self) -> tuple[str, ...]:
        """The names in ``general``."""
        return tuple(self.general.split(",")) if self.general else ()

    @property
    def save_steps(self) -> int | None:
        """Optimizer steps between two saves; None if ``save_every`` is in minutes."""
        return None if self.save_every.endswith("m") else int(self.save_every)

    @property
    def save_seconds(self) -> float | None:
        """Seconds between two saves; None if ``save_every`` is in steps."""
        return 60 * float(self.save_every[:-1]) if self.save_every.endswith("m") else None


@section
class ParallelConfig:
    """How the ranks work together. Nothing here changes a result by more than rounding."""

    placement: Placement = "auto"
    """Where atoms and tokens meet: resident (a copy of all atoms on each rank), gathered (atoms
    move), stationary (tokens move), or auto (resident if the memory fits, else the one that moves
    less data)."""

    atom_group: Literal["world", "node"] = "world"
    """Ranks over which a memory's atoms are sharded: world, or node (each machine holds all)."""

    resident_fraction: Annotated[float, Field(ge=0, le=1)] = 0.1
    """Fraction of a rank's device memory that copies of all atoms may take, for placement auto."""

    wait_limit: Annotated[float, Field(gt=0, le=1_000_000)] = 1800.0
    """Seconds for which a rank waits for the others, in one step or batch, before the run ends."""


@dataclass(frozen=True, kw_only=True)
class RunConfig:
    """All settings of a run except the DeepSpeed file."""

    model: ModelConfig = field(default_factory=ModelConfig)
    data: DataConfig = field(default_factory=DataConfig)
    method: MethodConfig
    train: TrainConfig = field(default_factory=TrainConfig)
    eval: EvalConfig = field(default_factory=EvalConfig)
    record: RecordConfig = field(default_factory=RecordConfig)
    parallel: ParallelConfig = field(default_factory=ParallelConfig)

    @property
    def name(self) -> str:
        """Short name of the run: benchmark, order if one was chosen, method, seed."""
        order = "" if self.data.order in (None, "default") else f"-{self.data.order}"
        name = f"{self.data.benchmark}{order}-{self.method.method}-seed{self.train.seed}"
        name = name.replace(os.sep, "_").replace(",", "+")
        if len(name.encode()) <= LONGEST_NAME:
            return name
        digest = hashlib.sha256(name.encode()).hexdigest()[:8]  # e.g. an order of a hundred tasks
        return f"{name.encode()[: LONGEST_NAME - 9].decode(errors='ignore')}-{digest}"

    @property
    def run_dir(self) -> Path:
        """The folder that holds the run's files."""
        return self.record.output_dir or Path("runs") / self.name
