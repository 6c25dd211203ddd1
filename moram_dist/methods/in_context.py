"""The unchanged base model, with some solved examples of the task before each question."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace

from moram_dist.config import MethodConfig
from moram_dist.data.encode import answer_text
from moram_dist.methods.method import METHODS
from moram_dist.methods.zero_shot import ZeroShot
from moram_dist.section import Count, section
from moram_dist.tasks.task import Benchmark, Example, Task

BETWEEN = "\n\n"


@section
class InContextConfig(MethodConfig):
    """Settings of ``in_context``."""

    demonstrations: Count = 6
    """in_context: solved training examples before each question, as many as fit in its prompt."""


@METHODS.register("in_context")
class InContext(ZeroShot):
    """Trains on nothing; the prompt demonstrates the task.

    ``demonstrations`` training examples are drawn for each task, the same for all its questions,
    and written as in training, prompt and answer. A question gets as many of them as fit into its
    task's ``max_prompt_tokens`` together with it, so the question is never truncated for them.

    Source: Brown et al. 2020, arXiv:2005.14165. As many as in the baseline of TRACE, Wang et al.
    2023, arXiv:2310.06762, whose script states the instruction once and takes the demonstrations
    from the test set.
    """

    Config = InContextConfig
    config: InContextConfig
    reads_training_split = True
    reads_texts = True

    def asked(self, benchmark: Benchmark, fits: Callable[[Task, str], bool]) -> Benchmark:
        """Add demonstrations before each test prompt; a note for each task where not all fit."""
        tasks: list[Task] = []
        notes: list[str] = []
        for i, task in enumerate(benchmark.tasks):
            drawn = self.draw(benchmark, i, self.config.demonstrations)
            shown = [f"{one.prompt}{answer_text(one, task)}" for one in drawn]
            chosen = [_that_fit(shown, example, task, fits) for example in task.test]
            test = (
                replace(example, prompt=BETWEEN.join([*fitting, example.prompt]))
                for example, fitting in zip(task.test, chosen, strict=True)
            )
            tasks.append(replace(task, test=tuple(test)))
            mean = sum(map(len, chosen)) / len(chosen)
            if mean < len(drawn):
                notes.append(
                    f"{task.name} is asked with {mean:.1f} of {len(drawn)} demonstrations on "
                    f"average: {task.max_prompt_tokens} prompt tokens have no room for more"
                )
        return replace(benchmark, tasks=tuple(tasks), notes=(*benchmark.notes, *notes))


def _that_fit(
    shown: Sequence[str], example: Example, task: Task, fits: Callable[[Task, str], bool]
) -> list[str]:
    """Demonstrations for one question, in order; those that are too long are skipped."""
    if fits(task, BETWEEN.join([*shown, example.prompt])):  # true for most: one check, not many
        return [*shown]
    chosen: list[str] = []
    for demonstration in shown:
        if fits(task, BETWEEN.join([*chosen, demonstration, example.prompt])):
            chosen.append(demonstration)
    return chosen
