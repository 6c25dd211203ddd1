"""The interface of a continual-learning method: hooks that the training loop calls.

    build(model)              insert the method's layers into the frozen base
    training_data(bench, i)   examples that task i trains on, each with the task it belongs to
    epochs(bench, i)          passes over them
    prepare_task(i, look)     before task i, unless the run is resumed within it
    begin_task(i)             start of task i; initial values of parameters
    penalty(seen)             added to the loss of each micro-batch
    before_step(engine)       after backward, before the optimizer step
    read_features(i, ...)     at the end of task i, for methods in closed form
    end_task(i, look)         consolidate the task; tensors for its memory file

The loop does not distinguish methods in any other way. Evaluation uses ``asked``, ``eval_rows``,
``recall``, ``recogniser`` and ``in_step``; the log uses ``metrics()``.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
import torch
from torch import Tensor, nn

from moram_dist.adapters.adapter import AdaptedLinear
from moram_dist.adapters.dropout import TokenKeys
from moram_dist.adapters.prefix import Prefix
from moram_dist.atoms import Placer
from moram_dist.atoms.manifest import TaskFile
from moram_dist.config import EvalRows, MethodConfig
from moram_dist.recognise import PromptFeatures
from moram_dist.registry import InputError, Registry
from moram_dist.tasks.task import Benchmark, Example, Task


@dataclass(frozen=True)
class ForwardOutput:
    """Logits and targets of a micro-batch after its forward pass, at its answer tokens.

    B rows, P positions, V vocabulary size. ``train.forward`` puts all positions into one row.
    """

    logits_BPV: Tensor
    targets_BP: Tensor
    """``data.stream.IGNORED`` at positions without an answer token."""

    weight: float
    """A sum over the micro-batch's answer tokens times this weight gives a penalty that is the mean
    over all answer tokens of the step, across micro-batches and ranks."""

    again: Callable[[], Tensor]
    """Recomputes the logits, without gradient, from the model's state at the call. Either all ranks
    call it or none does."""


Linears = Mapping[str, nn.Module]
"""Linear layers by full name; used for their sizes."""

ExampleLosses = Callable[[int], tuple[int, Iterator[Tensor]]]
"""Called with a count, it draws that many training examples of a task by seed, or all if there are
fewer. Returns their number over all ranks, and an iterator over this rank's losses.

Each loss is that of one example, -log p(answer | prompt) in nats, with its graph. All ranks get the
same number of losses; one without an example is 0. Take gradients by ``torch.autograd.grad``, with
respect to tensors that are not parameters of the model."""


class Method:
    """Base of all methods: adapts nothing, trains on the task's own examples."""

    eval_rows: EvalRows | None = None
    """Overrides ``EvalConfig.eval_rows``, unless None."""

    recall: str | None = None
    """Overrides ``EvalConfig.recall``, unless None."""

    recogniser: str | None = None
    """Overrides ``EvalConfig.recogniser``, unless None."""

    one_answers = False
    """Whether a single task answers a prompt, the newest unless another is chosen."""

    penalty_is_of_parameters = False
    """Whether ``penalty`` does not depend on the examples; a step then computes it once, unless
    weights are sharded."""

    keeps_prefixes = False
    """Whether the states after earlier tasks are kept, so that ``prefix`` can select them."""

    keeps_apart = False
    """Whether what a task added stands beside what others added and depends on none of it, so that
    a memory can leave a task out, or take tasks of another memory over."""

    learns_in_sequence = True
    """Whether each task is learned after the one before it, from its own examples on."""

    as_lora: Literal["newest", "sum"] | None = None
    """How a memory is one LoRA, if it is: the newest task's terms, or those of all tasks."""

    routes = False
    """Whether tokens choose among its atoms or experts: its linears are ``Routed``."""

    Config: type[MethodConfig] = MethodConfig
    """The settings that its results depend on. Settings of other methods do not reach it."""

    reads_features = False
    """Whether ``read_features`` is called at each task's end."""

    trains: bool = True
    """Whether it takes steps, so that its results depend on ``TrainConfig``."""

    reads_training_split: bool = True
    """Whether its results depend on the tasks' training examples."""

    reads_texts: bool = False
    """Whether prompts must be texts."""

    def __init__(
        self, config: MethodConfig, seed: int, placer: Placer | None = None, num_tasks: int = 1
    ) -> None:
        """Store the settings; ``build`` changes the model.

        Args:
            config: an instance of the method's ``Config``.
            seed: of initial values and of everything else that the method draws.
            placer: location of frozen atoms, for methods that have any; default: this rank.
            num_tasks: tasks in the whole sequence.
        """
        self.config = config
        self.seed = seed
        self.num_tasks = num_tasks
        self.placer = placer or Placer()
        self.token_keys = TokenKeys()
        """Keys that identify a micro-batch's tokens, for dropout; set before each training pass."""
        self.prefix = Prefix()
        """Number of tasks that answer each row, if ``keeps_prefixes``."""
        self.layers: dict[str, AdaptedLinear] = {}
        """Adapted linears by full name, in the model's order."""

    def build(self, model: nn.Module, modules: Sequence[str] | None = None) -> None:
        """Insert the method's layers into ``model``.

        Args:
            model: any Hugging Face language model, frozen.
            modules: full names to adapt; default: the matches of ``target_modules``.
        """

    @property
    def in_step(self) -> bool:
        """Whether ranks must make equally many forward passes, apart from ZeRO's requirements."""
        return False

    def metrics(self) -> dict[str, float]:
        """Values to log in addition to the loss, from this rank."""
        return {}

    def training_data(self, benchmark: Benchmark, i: int) -> Sequence[tuple[Task, Example]]:
        """Examples that task i trains on, each with the task by whose rules it is encoded.

        If empty, the task takes no step. Unless ``learns`` says otherwise, the model and its scores
        then stay those before it.
        """
        task = benchmark.tasks[i]
        return [(task, example) for example in task.train]

    def learns(self, benchmark: Benchmark, i: int) -> bool:
        """Whether task i changes the model."""
        return bool(self.training_data(benchmark, i))

    @classmethod
    def answers_unknown(cls, asked: str) -> str:
        """``EvalConfig.unknown`` as asked; ``all`` tasks cannot answer where only one can."""
        return "likeliest" if cls.one_answers and asked == "all" else asked

    def epochs(self, benchmark: Benchmark, i: int, batch_size: int) -> float:
        """Passes over ``training_data``, unless the user gives a number."""
        return benchmark.tasks[i].passes(batch_size)

    def asked(self, benchmark: Benchmark, fits: Callable[[Task, str], bool]) -> Benchmark:
        """The benchmark with the prompts that the model gets in evaluation.

        Test examples and their order are the same; only prompts may differ. Added notes are shown
        and recorded.

        Args:
            benchmark: as it is scored, and as predictions show it.
            fits: whether a prompt of a task would be encoded without truncation.
        """
        return benchmark

    def prepare_task(self, i: int, look: ExampleLosses) -> None:
        """For methods that read the task's data before it is learned.

        If a run is resumed within task i, ``load_state_dict`` restores the results instead.
        """

    def begin_task(self, i: int) -> dict[str, Tensor]:
        """Initial values of parameters for task i, by full name; other parameters keep theirs.

        The same on all ranks. The optimizer is always reset.
        """
        return {}

    def penalty(self, seen: ForwardOutput) -> Tensor | float:
        """Scalar to add to the loss; a step's penalty is the mean over micro-batches and ranks."""
        return 0.0

    def before_step(self, engine: Any) -> None:
        """Called after the last backward of a step, before the optimizer step."""

    def read_features(self, i: int, task: Task, features: PromptFeatures) -> None:
        """Before ``end_task``, the features of all of the task's training prompts, in order.

        They are those of the bare base, the same on all ranks.
        """

    def end_task(self, i: int, look: ExampleLosses) -> dict[str, Tensor]:
        """Consolidate the task; returns unsharded tensors for its memory file, on every rank.

        Args:
            i: the task.
            look: for methods that read the task's data once more.
        """
        return {}

    def shapes(self, i: int, linears: Linears) -> dict[str, tuple[int, ...]]:
        """Names and shapes of the tensors of ``end_task(i)`` and ``load_task``; -1: any size.

        Args:
            i: the task.
            linears: the adapted ones by full name, before or after they are adapted.
        """
        return {}

    def stored_shapes(self, i: int, task: TaskFile, linears: Linears) -> dict[str, tuple[int, ...]]:
        """``shapes`` of a published task, from which a prune may have taken atoms.

        Raises:
            InputError: the file says so, and the method has no atoms.
        """
        if task.atoms is not None:
            raise InputError(f"{task.file}: atoms: {self.config.method} has none to prune")
        return self.shapes(i, linears)

    def load_task(self, i: int, tensors: Mapping[str, Tensor]) -> None:
        """Apply the tensors of ``end_task(i)``, as if the task had just been learned."""

    def state_dict(self) -> dict[str, Tensor]:
        """Tensors that resuming within a task needs in addition to parameters and memory."""
        return {}

    def load_state_dict(self, state: Mapping[str, Tensor]) -> None:
        """Restore from a ``state_dict``."""

    def draw(self, benchmark: Benchmark, i: int, count: int) -> list[Example]:
        """``count`` random training examples of task i, or all; a smaller draw is a prefix."""
        train = benchmark.tasks[i].train
        order = torch.randperm(len(train), generator=self.generator(i))
        return [train[k] for k in order[:count].tolist()]

    def generator(self, i: int) -> torch.Generator:
        """A CPU generator whose numbers depend only on the seed and the task."""
        seed = np.random.SeedSequence([self.seed, i]).generate_state(1, np.uint64)[0]
        return torch.Generator().manual_seed(int(seed) >> 1)


METHODS: Registry[type[Method]] = Registry("method")
