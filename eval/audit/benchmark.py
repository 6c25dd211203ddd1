"""Audit all tasks of a benchmark of texts: sizes, lengths, truncation, scores, findings.

Lengths and truncation follow the protocol, through the encoding that training and generation use;
scores are the task's own metric on the gold answers and on empty ones.
"""

from __future__ import annotations

import dataclasses
import itertools
import statistics
import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from eval.audit.files import check_files
from eval.audit.findings import ERROR, WARNING, Audited, Finding, by_severity, notes_of
from eval.audit.learned import LearnedExample, learned_example
from eval.audit.texts import check_texts
from moram_dist.data.encode import plain
from moram_dist.data.round_trip import lost_answers, lost_labels
from moram_dist.families.text import TextFamily
from moram_dist.metrics import score
from moram_dist.tasks.task import Benchmark, Example, Task

END_CHARACTERS = 8
"""A prompt has lost its cue to answer if these last characters change; ``Summary:`` has 8."""

FULL = 99.99
"""Scores from here on count as 100: ROUGE's F is slightly less, since it guards against 0 / 0."""


@dataclass(frozen=True, kw_only=True)
class Lengths:
    """In tokens, without BOS and EOS."""

    median: float
    longest: int


@dataclass(frozen=True, kw_only=True)
class SplitAudit:
    """Measurements of one split of one task."""

    task: str
    split: str
    examples: int
    prompt: Lengths
    answer: Lengths
    """Of the first references."""

    truncated: float
    """Percent of prompts that are truncated for generation."""

    lost_cue: float
    """Percent of prompts whose end is cut off."""

    oracle: float | None = None
    """Mean score of the first references, 0 to 100; test only."""

    through_tokens: float | None = None
    """The same after encoding and decoding the answers; test only."""

    empty: float | None = None
    """Mean score of empty predictions; test only."""


@dataclass(frozen=True, kw_only=True)
class Audit(Audited):
    """The audit of a benchmark of texts."""

    tokenizer: str
    splits: tuple[SplitAudit, ...]
    learned: tuple[LearnedExample, ...]


def audit_benchmark(
    benchmark: Benchmark,
    tokenizer: Any,
    family: TextFamily,
    *,
    data_dir: Path | None,
    say: Callable[[str], None],
) -> Audit:
    """Audit all tasks.

    Args:
        benchmark: with the rules of the protocol to audit.
        tokenizer: lengths are in its tokens.
        family: of the model, by whose rules texts are encoded.
        data_dir: the folder of the benchmark's files; None if it has none.
        say: prints a line of progress after each task.
    """
    tokenizer.model_max_length = sys.maxsize  # no warnings about long texts: the audit counts them
    splits: list[SplitAudit] = []
    findings = notes_of(benchmark)
    for number, task in enumerate(benchmark.tasks, start=1):
        of_task = [*check_texts(task), *_labels(task, tokenizer)]
        for split in ("train", "test"):
            figures, more = _measure(task, split, tokenizer, family)
            splits.append(figures)
            of_task += more
        findings += of_task
        say(f"{number}/{len(benchmark.tasks)} {task.name}: findings: {len(of_task)}")
    findings += check_files(data_dir, [task.name for task in benchmark.tasks])
    return Audit(
        benchmark=benchmark.name,
        order=benchmark.order,
        protocol=benchmark.protocol,
        tokenizer=Path(tokenizer.name_or_path).name,
        splits=tuple(splits),
        learned=tuple(learned_example(task, tokenizer, family) for task in benchmark.tasks),
        findings=by_severity(findings),
    )


def _measure(
    task: Task, split: str, tokenizer: Any, family: TextFamily
) -> tuple[SplitAudit, list[Finding]]:
    """Measure a split; returns the measurements and the findings in them."""
    examples = task.train if split == "train" else task.test
    roomy = dataclasses.replace(task, max_prompt_tokens=sys.maxsize)
    prompts, answers = [], []
    truncated: list[Example] = []
    lost: list[Example] = []
    endless: list[Example] = []
    long: list[Example] = []
    for example in examples:
        whole = _text(tokenizer, family.encode_question(tokenizer, example.prompt, roomy))
        answer = len(plain(tokenizer, example.references[0]))
        prompts.append(len(whole))
        answers.append(answer)
        if _surely_fits(task, len(whole), answer):
            continue
        kept = _text(tokenizer, family.encode_question(tokenizer, example.prompt, task))
        if kept != whole:
            truncated.append(example)
            end = tokenizer.decode(whole)[-(len(task.cue) or END_CHARACTERS) :]
            if not tokenizer.decode(kept).endswith(end):
                lost.append(example)
        if split == "train":
            learned = family.encode_training(tokenizer, example, task).tokens
            if learned[-1] != tokenizer.eos_token_id:
                endless.append(example)
        elif answer > task.max_answer_tokens:
            long.append(example)
    figures = SplitAudit(
        task=task.name,
        split=split,
        examples=len(examples),
        prompt=_lengths(prompts),
        answer=_lengths(answers),
        truncated=100 * len(truncated) / len(examples),
        lost_cue=100 * len(lost) / len(examples),
    )
    found = _Finder(f"{task.name} {split}", len(examples))
    found.add(WARNING, "truncated", f"prompts cut to {task.max_prompt_tokens} tokens", truncated)
    severity = ERROR if split == "test" else WARNING
    text = "prompts that lose their end and thus the cue to answer"
    found.add(severity, "lost_cue", text, lost)
    found.add(
        WARNING, "no_end", "training texts without room for the end-of-sequence token", endless
    )
    text = f"answers longer than the {task.max_answer_tokens} tokens that may be generated"
    found.add(WARNING, "long_answer", text, long)
    gone = lost_answers(tokenizer, examples, task)
    text = "answers that do not survive the tokenizer, so no model can give them"
    first = f": {gone[0]}" if gone else ""
    found.add(severity, "lost_answer", text, [one.example for one in gone], first)
    if split == "test":
        oracle, through, empty = _scores(task, examples, found, tokenizer)
        figures = dataclasses.replace(figures, oracle=oracle, through_tokens=through, empty=empty)
    return figures, found.findings


def _surely_fits(task: Task, prompt: int, answer: int) -> bool:
    """Whether lengths are so far below the limits that nothing is cut."""
    spare = 8  # BOS twice, EOS, a separator, and what joining prompt and answer may add
    return (
        prompt + answer + spare <= task.max_prompt_tokens
        and answer + spare <= task.max_answer_tokens
    )


class _Finder:
    """Collects findings about a split, each with the examples it applies to."""

    def __init__(self, where: str, number: int) -> None:
        self.where = where
        self.number = number
        self.findings: list[Finding] = []

    def add(
        self, severity: str, kind: str, text: str, examples: Sequence[Example], more: str = ""
    ) -> None:
        """Add a finding if it applies to any example; ``more`` follows the number of examples."""
        if examples:
            self.findings.append(
                Finding(
                    severity=severity,
                    where=self.where,
                    kind=kind,
                    text=f"{text}: {len(examples)} of {self.number}{more}",
                    examples=tuple(example.id for example in examples),
                )
            )


def _labels(task: Task, tokenizer: Any) -> list[Finding]:
    lost = lost_labels(tokenizer, task)
    if not lost:
        return []
    text = f"labels that do not survive the tokenizer: {', '.join(map(repr, lost))}"
    return [Finding(severity=ERROR, where=task.name, kind="lost_label", text=text)]


def _scores(
    task: Task, examples: Sequence[Example], found: _Finder, tokenizer: Any
) -> tuple[float, float, float]:
    """Mean scores of gold answers, of the same after the tokenizer, and of empty predictions."""
    gold = [_score(task, example, example.references[0]) for example in examples]
    empty = [_score(task, example, "") for example in examples]
    wrong = [e for e, value in zip(examples, gold, strict=True) if value < 50]
    short = [e for e, value in zip(examples, gold, strict=True) if 50 <= value < FULL]
    free = [e for e, value in zip(examples, empty, strict=True) if value > 0]
    found.add(ERROR, "gold_is_wrong", f"gold answers that score under 50 by {task.metric}", wrong)
    found.add(
        WARNING, "gold_below_100", f"gold answers that score under 100 by {task.metric}", short
    )
    found.add(
        WARNING, "empty_scores", f"empty predictions that score above 0 by {task.metric}", free
    )
    lost = {one.example.id: one for one in lost_answers(tokenizer, examples, task, limited=True)}
    through = [
        lost[e.id].score if e.id in lost else value for e, value in zip(examples, gold, strict=True)
    ]
    return statistics.fmean(gold), statistics.fmean(through), statistics.fmean(empty)


def _score(task: Task, example: Example, prediction: str) -> float:
    return score(
        task.metric,
        prompt=example.prompt,
        prediction=prediction,
        references=example.references,
        labels=task.labels,
    )


def _text(tokenizer: Any, tokens: list[int]) -> list[int]:
    """The tokens of a prompt's text, without the special tokens around it."""
    around = {tokenizer.bos_token_id, tokenizer.eos_token_id}
    begun = list(itertools.dropwhile(around.__contains__, tokens))
    return list(itertools.dropwhile(around.__contains__, reversed(begun)))[::-1]


def _lengths(values: Sequence[int]) -> Lengths:
    return Lengths(median=statistics.median(values), longest=max(values))
