"""Count whose atoms answer a sample of each task's test tokens, after each task.

These are passes of their own, in which all tasks answer, so no score depends on them. A rank passes
one example at a time: nothing is padding. Sums are kept in integers, so that they are equal on any
number of ranks if the weights are; only placement ``stationary`` rounds these differently.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from contextlib import nullcontext
from functools import partial

import torch
from torch import Tensor, nn

from eval.routing import LinearRouting, TaskRouting, routing_path, to_json
from moram_dist.adapters.routed import Routed, Weights, routed_linears, watching
from moram_dist.comm import env
from moram_dist.data.tokens import WorkProgress
from moram_dist.files import write_atomically
from moram_dist.tasks.task import Benchmark, Example
from moram_dist.train.context import RunContext

EXAMPLES = 16
"""Most test examples of a task, spread evenly over its test set."""

TOKENS = 2048
"""Most tokens of these: only the first of them are taken, but at least one."""

ROWS = 16
"""Most rows that are observed, evenly spaced, the last among them: each passes examples of all
tasks so far."""

TABLES = 2**20
"""Most weights in the tables of all linears together. They grow with the square of the tasks; where
there would be more, all linears share one table."""

ALL_LINEARS = "all linears"
"""Name in the file of what linears count that share a table."""

UNIT = 2**24
"""Weights are counted in units of 1 / UNIT, the precision of float32."""

Work = list[tuple[int, Example]]
"""Tasks by index and their examples."""


class Observer:
    """Observes a row that it has not observed before. All ranks call it together."""

    def __init__(self, context: RunContext, asked: Benchmark) -> None:
        """``asked``: the benchmark with the prompts that the model gets (``Method.asked``)."""
        self.asked = asked
        self.base = context.base
        self.run_dir = context.run_dir.path
        self.say = context.progress.say
        self.watchdog = context.watchdog
        self.is_on = context.config.record.observe != "none"
        self._samples: dict[int, list[Example]] = {}

    def is_wanted(self, row: int, model: nn.Module) -> bool:
        """Whether a row is to be observed."""
        later = len(self.asked.tasks) - 1 - row
        is_spaced = later % -(-len(self.asked.tasks) // ROWS) == 0
        if row < 0 or not is_spaced or not self.is_on or not routed_linears(model):
            return False
        return env.from_main(not routing_path(self.run_dir, row).exists())

    def __call__(self, row: int, model: nn.Module, when: str) -> None:
        """Pass the examples through the model and write the row's file."""
        linears = routed_linears(model)
        work = [(i, example) for i in range(row + 1) for example in self._sample(i)]
        groups = {name: [name] for name in linears}
        if len(linears) * (row + 1) ** 2 > TABLES:
            groups = {ALL_LINEARS: [*linears]}
        tallies: dict[str, Tally] = {}
        for names in groups.values():
            table = Table(row + 1, row + 1, env.device())
            tallies |= {name: Tally(linears[name].task_ends, table) for name in names}
        what = f"whose atoms answer {when}"
        done = WorkProgress(what, len(work), self.say, self.watchdog.at).started()
        # Sharded weights and atoms need the same number of passes on every rank.
        for start in range(0, len(work), env.world_size()):
            k = start + env.rank()
            i, example = work[k % len(work)]
            done(min(k, len(work)))
            take = partial(_add, tallies, i)
            with watching(linears, take) if k < len(work) else nullcontext():
                self.base.family.read(model, self.base.tokenizer, example, self.asked.tasks[i])
        counted = [
            result(
                title,
                [tallies[name] for name in names],
                [newest_cosine(linears[name]) for name in names],
            )
            for title, names in groups.items()
        ]
        if env.is_main():
            found = TaskRouting(
                tasks=tuple(task.name for task in self.asked.tasks[: row + 1]),
                examples=tuple(len(self._sample(i)) for i in range(row + 1)),
                linears=tuple(one for one in counted if all(one.tokens)),
            )
            if found.linears:
                write_atomically(routing_path(self.run_dir, row), to_json(found))

    def _sample(self, i: int) -> list[Example]:
        if i not in self._samples:
            task = self.asked.tasks[i]
            spread = task.test[:: 1 + (len(task.test) - 1) // EXAMPLES]
            encode = self.base.family.encode_training
            lengths = [encode(self.base.tokenizer, one, task).num_tokens for one in spread]
            fits = [sum(lengths[: k + 1]) <= TOKENS for k in range(len(spread))]
            self._samples[i] = [one for one, fit in zip(spread, fits, strict=True) if fit]
            self._samples[i] = self._samples[i] or [spread[0]]
        return self._samples[i]


class Table:
    """Sums over the tokens of one linear, or of several."""

    def __init__(self, num_tested: int, num_tasks: int, device: torch.device) -> None:
        """``num_tested``: tasks that the tokens belong to; ``num_tasks``: that atoms belong to."""
        self.weight = torch.zeros(num_tested, num_tasks, dtype=torch.int64, device=device)
        self.counts = torch.zeros(num_tested, 3, dtype=torch.int64, device=device)
        """Tokens, tokens without an answer, effective atoms."""


class Tally:
    """Adds the tokens of one linear to its table, and knows which of its atoms were chosen."""

    def __init__(self, ends: Sequence[int], table: Table) -> None:
        """``ends``: ``Routed.task_ends``."""
        self.ends = tuple(ends)
        self.table = table
        self.chosen_N = torch.zeros(ends[-1], dtype=torch.int64, device=table.weight.device)

    def add(self, tested: int, weights: Weights) -> None:
        """Add the tokens of a call, which belong to task ``tested``."""
        index_TK = weights.index_TK.long().clamp(max=self.ends[-1] - 1)
        spoken_TK = weights.spoken_TK.double().nan_to_num(0.0)
        weight_TK = weights.weight_TK.double().nan_to_num(0.0)
        task_TK = weights.tasks(self.ends)
        self.table.weight[tested].scatter_add_(0, task_TK.flatten(), _units(spoken_TK).flatten())
        self.chosen_N.scatter_add_(0, index_TK.flatten(), (spoken_TK > 0).long().flatten())
        has_mixture_T = (weight_TK > 0).any(-1)
        effective_T = torch.special.entr(weight_TK).sum(-1).exp() * has_mixture_T
        unanswered = (spoken_TK <= 0).all(-1).sum()
        self.table.counts[tested, 0] += len(index_TK)
        self.table.counts[tested, 1] += unanswered
        self.table.counts[tested, 2] += _units(effective_T).sum()

    def atoms(self) -> Tensor:
        """Atoms, and atoms never chosen, of each task, (2, tasks)."""
        sizes = [end - first for first, end in zip(self.ends, self.ends[1:], strict=False)]
        unchosen = [int((~part).sum()) for part in (self.chosen_N > 0).split(sizes)]
        return torch.tensor([sizes, unchosen])


def result(name: str, tallies: Sequence[Tally], cosines: Sequence[float | None]) -> LinearRouting:
    """What linears with one table counted, on all ranks, which call it together.

    Args:
        name: of the linear, or of the linears.
        tallies: of each.
        cosines: of each, the result of ``newest_cosine``.
    """
    table = tallies[0].table
    for sums in (table.weight, table.counts, *(tally.chosen_N for tally in tallies)):
        env.sum_(sums)
    tokens, unanswered, effective = table.counts.T.tolist()
    atoms, unchosen = torch.stack([tally.atoms() for tally in tallies]).sum(0).tolist()
    cosine = max((one for one in cosines if one is not None), default=None)
    return LinearRouting(
        name=name,
        tokens=tuple(tokens),
        weight=tuple(tuple(map(_number, row)) for row in table.weight.tolist()),
        unanswered=tuple(unanswered),
        effective=tuple(map(_number, effective)),
        atoms=tuple(atoms),
        unchosen=tuple(unchosen),
        cosine=None if cosine is None else round(cosine, 4),
    )


def newest_cosine(linear: Routed) -> float | None:
    """Largest cosine between a key of the newest task and an earlier one; None without both."""
    keys_ND = linear.whole_keys().float()
    first = linear.task_ends[-2]
    if not 0 < first < len(keys_ND):
        return None
    unit_ND = nn.functional.normalize(keys_ND, dim=-1)
    return float((unit_ND[first:] @ unit_ND[:first].T).max())


def _add(tallies: Mapping[str, Tally], tested: int, name: str, weights: Weights) -> None:
    tallies[name].add(tested, weights)


def _units(numbers: Tensor) -> Tensor:
    return (numbers * UNIT).round().long()


def _number(units: int) -> float:
    return round(units / UNIT, 4)
