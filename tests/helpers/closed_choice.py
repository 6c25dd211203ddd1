"""Prompts and labels of which some merge when they are tokenised together."""

from __future__ import annotations

from moram_dist.tasks.task import Example, Task

LABELS = ("Sports", "Sports day", "World", "x", "Science or Technology")
PROMPTS = (
    "Say what it is about.\nA dog ran home.\nOutput: ",  # its last space merges with a label
    "Topic:",
    "The nurse gladly moved the tiny hammer near the harbour at dawn.\nTopic:",
    "A dog.\nOutput:\n",
    "Which?\nThe market at noon was full of old people with new hats and red shoes.\nOutput: ",
)
EXAMPLES = tuple(Example(f"test-{i}", text, ("x",)) for i, text in enumerate(PROMPTS))


def task(**changes) -> Task:
    """A task with these examples and labels, by rules that may be changed."""
    rules = {"labels": LABELS, "max_prompt_tokens": 80, "max_answer_tokens": 16, "separator": " "}
    return Task(name="t", metric="accuracy_prefix", train=(), test=EXAMPLES, **(rules | changes))
