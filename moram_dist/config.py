"""The settings of a run: frozen dataclasses, checked when they are created.

The text under a field is its help on the command line. Field names are unique across sections, so a
flag is the bare name (``--top_k 4``) or the dotted one (``--method.top_k 4``).
"""

from __future__ import annotations

import hashlib
import os
import re
from dataclasses import dataclass, field
from pathlib import Path

from moram_dist.ranges import bounded, one_of, positive
from moram_dist.registry import InputError

EMBEDDED = "demo"
"""Name of the base model and of the benchmark that ship with the package."""

STOP_SIGNALS = ("SIGTERM", "SIGUSR1", "SIGUSR2", "SIGINT", "SIGHUP")
"""Signals with which a scheduler or a person can ask a run to stop."""


PLACEMENTS = ("auto", "resident", "gathered", "stationary")
"""Where atoms and tokens of a memory meet; see ``ParallelConfig.placement``."""

ANSWERS = ("generate", "constrained", "labels", "labels_mean")
"""Ways to get an answer from a model; see ``EvalConfig.answers``."""

RECALLS = ("all", "prefix", "oracle")
"""Which tasks of a memory answer a prompt; see ``EvalConfig.recall``."""

LONGEST_NAME = 200
"""Longest name of a run, in bytes. Its folder, its lock file and its jobs are named after it."""


@dataclass(frozen=True, kw_only=True)
class ModelConfig:
    """The frozen base model."""

    model: str = EMBEDDED
    """Folder or Hugging Face id of a causal language model or a T5; `demo` is the built-in one."""

    dtype: str = "auto"
    """Type of parameters and compute: fp32, bf16, or auto (bf16 on an accelerator, else fp32)."""

    attention: str = "auto"
    """flash_attention_2, sdpa, eager, or auto: the first of these that the model supports here."""

    gradient_checkpointing: bool = False
    """Recompute activations in backward: less memory, about a third more time."""

    trust_remote_code: bool = False
    """Let the model's repository run its own Python code on this machine."""

    def __post_init__(self) -> None:
        """Raises InputError on a value that cannot be meant."""
        one_of("dtype", self.dtype, ("auto", "fp32", "bf16"))
        one_of("attention", self.attention, ("auto", "flash_attention_2", "sdpa", "eager"))
        bounded(self)


@dataclass(frozen=True, kw_only=True)
class DataConfig:
    """The tasks, their order, and how many examples of each are used."""

    benchmark: str = EMBEDDED
    """demo (generated), trace, superni, long_sequence, standard_cl, or jsonl (your own files)."""

    data_dir: Path | None = None
    """Folder with the tasks' files, or for jsonl a YAML listing of them."""

    order: str | None = None
    """A named order of the benchmark, or task names joined by commas."""

    protocol: str | None = None
    """A protocol of the benchmark: its prompts, truncation, decoding and metrics."""

    limit_train: int | None = None
    """Use only the first N training examples of each task."""

    limit_eval: int | None = None
    """Evaluate only the first N test examples of each task."""

    splits: dict[str, dict[str, str]] = field(default_factory=dict)
    """Replace a task's split: {"MeetingBank": {"train": "eval"}}, or by a file path."""

    def __post_init__(self) -> None:
        """Raises InputError on a value that cannot be meant."""
        positive("data", limit_train=self.limit_train, limit_eval=self.limit_eval)
        bounded(self)


@dataclass(frozen=True, kw_only=True)
class MethodConfig:
    """The continual-learning method. Defaults: the published TRACE settings of MoRAM."""

    method: str = "moram"
    """moram, sequential_lora, inc_lora, o_lora, inf_lora, gain_lora, gpm_lora, ewc, lwf, replay,
    moe_lora, slao, any_ssr, multitask, single_task, zero_shot or in_context."""

    target_modules: str = "attention"
    """Linears to adapt: attention, all-linear, names joined by commas, or a regex of full names."""

    atoms_per_task: int = 8
    """Atoms that a task adds to each adapted linear; for methods with a LoRA, its rank."""

    alpha: float = 16.0
    """Active values are scaled by alpha / atoms_per_task; freezing folds the scale in."""

    dropout: float = 0.1
    """Dropout on the input of the scores, in training."""

    top_k: int = 8
    """Atoms that answer a token."""

    temperature: float = 0.03
    """Softmax temperature in units of relevance (at most 1, so 0.03 is sharp)."""

    threshold: float = 0.2
    """Relevance below which an atom is silent at inference, in [0, 1]; never used in training."""

    quiet_keys: float = 0.0
    """moram: keeps new keys orthogonal to the directions that hold this part of the energy of older
    tasks' inputs, in [0, 1), so that new atoms hardly answer older tasks; 0 leaves keys free."""

    orthogonal_weight: float = 0.5
    """o_lora: weight of the overlap of new and old subspaces (published: 0.5)."""

    ewc_weight: float = 400.0
    """ewc: weight of the penalty for moving away from older tasks (published for TRACE: 400)."""

    distill_weight: float = 1.0
    """lwf: weight of the distance to the answers given before the task (published: 1)."""

    distill_temperature: float = 2.0
    """lwf: temperature of both softmaxes in that distance (published: 2)."""

    top_experts: int = 2
    """moe_lora: experts that answer a token (published: 2)."""

    replay_budget: int = 200
    """replay: examples of earlier tasks, all together, that each task trains on again."""

    demonstrations: int = 6
    """in_context: solved training examples before each question, as many as fit in its prompt."""

    def __post_init__(self) -> None:
        """Raises InputError on a value that cannot be meant."""
        if self.top_k < 1:
            raise InputError(f"--top_k must be >= 1, got {self.top_k}")
        if self.atoms_per_task < 1:
            raise InputError(f"--atoms_per_task must be >= 1, got {self.atoms_per_task}")
        if not self.temperature > 0:
            raise InputError(f"--temperature must be > 0, got {self.temperature}")
        if not 0 <= self.quiet_keys < 1:
            raise InputError(f"--quiet_keys must be in [0, 1), got {self.quiet_keys}")
        if not 0 <= self.threshold <= 1:
            raise InputError(f"--threshold must be in [0, 1], got {self.threshold}")
        if not 0 <= self.dropout < 1:
            raise InputError(f"--dropout must be in [0, 1), got {self.dropout}")
        for name in ("orthogonal_weight", "ewc_weight", "distill_weight"):
            if not getattr(self, name) >= 0:
                raise InputError(f"--{name} must be >= 0, got {getattr(self, name)}")
        if self.top_experts < 2:
            raise InputError(
                f"--top_experts must be >= 2, got {self.top_experts}: the weight of a single "
                "expert is always 1, so the router would learn nothing"
            )
        positive("method", alpha=self.alpha, distill_temperature=self.distill_temperature)
        positive("method", replay_budget=self.replay_budget, demonstrations=self.demonstrations)
        bounded(self)


@dataclass(frozen=True, kw_only=True)
class TrainConfig:
    """Optimisation, the same for each task: every task starts with a fresh optimizer."""

    seed: int = 0
    """Determines initial atoms, sample order and dropout."""

    learning_rate: float | None = None
    """Peak learning rate of AdamW; default: the protocol's."""

    schedule: str = "constant"
    """Learning rate after warm-up, per task: constant, linear or cosine to 0."""

    warmup_ratio: float = 0.0
    """Fraction of a task's steps in which the learning rate rises from 0, in [0, 1]."""

    batch_size: int | None = None
    """Examples per optimizer step, over all ranks; default: the protocol's."""

    micro_batch_tokens: int = 4096
    """Most tokens per forward pass of a rank, with padding; a longer example gets its own pass.
    Gradients add up over a step. Fewer tokens save memory and change results by rounding."""

    micro_batch_size: int | None = None
    """Examples in one forward pass; default: as many as ``micro_batch_tokens`` allows."""

    epochs: float | None = None
    """Passes over each task's examples; default: the protocol's for each task."""

    weight_decay: float = 0.0
    """Decoupled weight decay."""

    clip: float = 1.0
    """Largest norm of a step's gradient; 0 turns clipping off."""

    def __post_init__(self) -> None:
        """Raises InputError on a value that cannot be meant."""
        one_of("schedule", self.schedule, ("constant", "linear", "cosine"))
        positive("train", learning_rate=self.learning_rate, epochs=self.epochs)
        positive("train", batch_size=self.batch_size, micro_batch_size=self.micro_batch_size)
        positive("train", micro_batch_tokens=self.micro_batch_tokens)
        if not 0 <= self.warmup_ratio <= 1:
            raise InputError(f"--warmup_ratio must be in [0, 1], got {self.warmup_ratio}")
        for name in ("seed", "weight_decay", "clip"):
            if getattr(self, name) < 0:
                raise InputError(f"--{name} must be >= 0, got {getattr(self, name)}")
        bounded(self)


@dataclass(frozen=True, kw_only=True)
class EvalConfig:
    """The evaluation after each task."""

    eval_rows: str = "seen"
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

    unknown: str = "all"
    """Whether all tasks (all) or only the base (base) answer a prompt that resembles no task."""

    eval_batch_size: int = 128
    """Prompts for which one rank generates at a time; fewer if they are long."""

    eval_gather: str = "auto"
    """Generate with whole weights: true, auto (if they fit), or false (sharded: slow)."""

    max_prompt_tokens: int | None = None
    """Overrides every task's longest prompt, in tokens."""

    max_answer_tokens: int | None = None
    """Overrides every task's longest answer, in tokens."""

    def __post_init__(self) -> None:
        """Raises InputError on a value that cannot be meant."""
        one_of("eval_rows", self.eval_rows, ("all", "seen", "last", "diagonal"))
        for flag, names, known in (
            ("answers", self.answer_modes, ANSWERS),
            ("recall", self.recalls, RECALLS),
        ):
            for name in names:
                one_of(flag, name, known)
                if names.count(name) > 1:
                    raise InputError(f"--{flag} names {name} twice")
        one_of("unknown", self.unknown, ("all", "base"))
        one_of("eval_gather", self.eval_gather, ("auto", "true", "false"))
        positive("eval", eval_batch_size=self.eval_batch_size)
        positive("eval", max_prompt_tokens=self.max_prompt_tokens)
        positive("eval", max_answer_tokens=self.max_answer_tokens)
        bounded(self)

    @property
    def answer_modes(self) -> tuple[str, ...]:
        """The names in ``answers``; the first one gives the scores."""
        return tuple(self.answers.split(","))

    @property
    def recalls(self) -> tuple[str, ...]:
        """The names in ``recall``; the first one gives the scores."""
        return tuple(self.recall.split(","))


@dataclass(frozen=True, kw_only=True)
class RecordConfig:
    """Where results go."""

    output_dir: Path | None = None
    """The run directory; default runs/<benchmark>-<method>-seed<seed>."""

    tracking: str = "mlflow"
    """mlflow or none; metrics.jsonl in the run directory is written either way."""

    tracking_uri: str | None = None
    """MLflow store; default MLFLOW_TRACKING_URI, else sqlite next to the run directory."""

    register_memory: bool = False
    """Also register the memory as a model in MLflow, with a version and an alias for each task."""

    log_every: int = 10
    """Optimizer steps between two progress lines."""

    save_every: str = "10m"
    """Time between two saves within a task: optimizer steps (200), or minutes (10m)."""

    stop_signals: str = "SIGTERM,SIGUSR1"
    """Signals, joined by commas, at which a run saves its state and ends with exit code 75."""

    def __post_init__(self) -> None:
        """Raises InputError on a value that cannot be meant."""
        for name in self.stop_signals.split(","):
            one_of("stop_signals", name, STOP_SIGNALS)
        one_of("tracking", self.tracking, ("mlflow", "none"))
        positive("record", log_every=self.log_every)
        valid = re.fullmatch(r"[0-9]{1,9}|[0-9]{1,7}(\.[0-9]{0,9})?m", self.save_every)
        if not valid or not (self.save_steps or self.save_seconds):
            raise InputError(
                f"--save_every must be steps (200) or minutes (10m), got {self.save_every!r}"
            )
        bounded(self)

    @property
    def save_steps(self) -> int | None:
        """Optimizer steps between two saves; None if ``save_every`` is in minutes."""
        return None if self.save_every.endswith("m") else int(self.save_every)

    @property
    def save_seconds(self) -> float | None:
        """Seconds between two saves; None if ``save_every`` is in steps."""
        return 60 * float(self.save_every[:-1]) if self.save_every.endswith("m") else None


@dataclass(frozen=True, kw_only=True)
class ParallelConfig:
    """How the ranks work together. Nothing here changes a result by more than rounding."""

    placement: str = "auto"
    """Where atoms and tokens meet: resident (a copy of all atoms on each rank), gathered (atoms
    move), stationary (tokens move), or auto (resident if the memory fits, else the one that moves
    less data)."""

    atom_group: str = "world"
    """Ranks over which a memory's atoms are sharded: world, or node (each machine holds all)."""

    resident_fraction: float = 0.1
    """Fraction of a rank's device memory that copies of all atoms may take, for placement auto."""

    wait_limit: float = 1800.0
    """Seconds for which a rank waits for the others, in one step or batch, before the run ends."""

    def __post_init__(self) -> None:
        """Raises InputError on a value that cannot be meant."""
        one_of("placement", self.placement, PLACEMENTS)
        one_of("atom_group", self.atom_group, ("world", "node"))
        positive("parallel", wait_limit=self.wait_limit)
        if not 0 <= self.resident_fraction <= 1:
            raise InputError(f"--resident_fraction must be in [0, 1], got {self.resident_fraction}")
        bounded(self)


@dataclass(frozen=True, kw_only=True)
class RunConfig:
    """All settings of a run except the DeepSpeed file."""

    model: ModelConfig = field(default_factory=ModelConfig)
    data: DataConfig = field(default_factory=DataConfig)
    method: MethodConfig = field(default_factory=MethodConfig)
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
