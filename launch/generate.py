"""Answer prompts with the memory of a run: one process, no DeepSpeed.

    moram generate RUN --prompt "TEXT"
    moram generate RUN --prompt "TEXT" --upto TASK --recall prefix
    moram generate RUN --file prompts.jsonl --out answers.jsonl
    moram generate RUN/memory --model BASE --prompt "TEXT"

RUN is a run directory or a folder of save_pretrained. The answer goes to standard output as it is
generated, all else to standard error. A file holds one {"prompt": "..."} or {"messages": [...]} per
line; answers add "prediction" to it. If the program ends early, the same command resumes.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import sys
import time
from collections.abc import Sequence
from dataclasses import asdict, replace
from pathlib import Path
from typing import TYPE_CHECKING

from moram_dist.command_line import Parser, run_command
from moram_dist.registry import InputError
from moram_dist.terminal import make_output_last, say
from moram_dist.values import coerce

if TYPE_CHECKING:
    from moram_dist.use.answerer import Answerer, Plan
    from moram_dist.use.prompt_file import Question
    from moram_dist.use.source import MemorySource

MOST_NEW_TOKENS = 2**20
SHOWN_EVERY_S = 10.0


def main(words: Sequence[str]) -> int:
    """Answer, and return the exit code."""
    return run_command(_generate, words)


def _generate(words: Sequence[str]) -> None:
    parser = Parser("moram generate", __doc__)
    parser.add_argument("run", type=Path, metavar="RUN")
    parser.add_argument("--prompt", help="the text to answer")
    parser.add_argument("--file", type=Path, help="a .jsonl or .json file of prompts")
    parser.add_argument("--out", type=Path, help="the .jsonl file of answers to --file")
    parser.add_argument("--model", help="the base; default: the run's")
    parser.add_argument("--upto", metavar="TASK", help="as after this task: name or number")
    parser.add_argument("--recall", help="all or prefix; default: what the run's scores are of")
    parser.add_argument("--task", help="whose rules of length apply; default: the newest")
    parser.add_argument("--max_new_tokens", help="default: the longest answer of that task")
    parser.add_argument("--chat", action="store_true", help="a prompt is a turn of a chat")
    args = parser.parse_args(words)
    if (args.prompt is None) == (args.file is None):
        raise InputError("give one of --prompt and --file")
    if (args.file is None) != (args.out is None):
        raise InputError("--file and --out belong together")
    if args.prompt is not None and not args.prompt.strip():
        raise InputError("--prompt is empty")
    most = coerce("max_new_tokens", args.max_new_tokens, int | None)
    if most is not None and not 1 <= most <= MOST_NEW_TOKENS:
        raise InputError(f"--max_new_tokens must be from 1 to {MOST_NEW_TOKENS:,}, got {most}")

    from launch.settings import quiet
    from moram_dist.use.answerer import Answerer, Asked, check_text, plan
    from moram_dist.use.prompt_file import check_out
    from moram_dist.use.source import read_source

    quiet()
    source = read_source(args.run, args.model)
    check_text(source.model)
    asked = Asked(upto=args.upto, recall=args.recall, task=args.task, max_new_tokens=most)
    plan(source, asked)
    questions = _questions(args, source)
    asked = replace(asked, is_chat=questions[0].is_chat)
    digest = _digest(plan(source, asked), source, questions)
    if args.file is not None:
        check_out(args.out, digest)
    answerer = Answerer(source, asked)
    for question in questions:
        answerer.encoded(question.text)
    num_cut = sum(answerer.is_cut(question.text) for question in questions)
    if num_cut:
        say(
            f"{num_cut} of {len(questions)} prompts are cut to {answerer.task.max_prompt_tokens} "
            f"tokens, as in task {answerer.task.name}",
            error=True,
        )
    if args.file is None:
        _answer_one(answerer, questions[0].text)
    else:
        _answer_file(answerer, questions, args.out, digest)


def _questions(args: argparse.Namespace, source: MemorySource) -> list[Question]:
    """The prompts, as the model reads them. Raises InputError as ``read_questions``."""
    from moram_dist.models.language_model import load_tokenizer
    from moram_dist.use.prompt_file import Question, read_questions, user_says

    if args.file is None and not args.chat:
        return [Question({}, args.prompt)]
    tokenizer = load_tokenizer(source.model)
    if args.file is not None:
        return read_questions(args.file, tokenizer, chat=args.chat)
    return [Question({}, user_says(tokenizer, args.prompt, "--chat"), is_chat=True)]


def _answer_one(answerer: Answerer, prompt: str) -> None:
    from moram_dist.use.text_stream import TextStream

    ((number, name),) = answerer.recognised([prompt])
    if answerer.recogniser is not None:
        say(f"recognised: {name or 'no task'}", error=True)
    if answerer.task.answer_after:  # the answer is a part of the text
        say(answerer.say(prompt, number))
        return
    stream = TextStream(answerer.tokenizer, lambda piece: say(piece, end=""))
    answerer.say(prompt, number, stream)
    say("")


def _answer_file(answerer: Answerer, questions: Sequence[Question], out: Path, digest: str) -> None:
    from moram_dist.use.prompt_file import answer_file

    prompts = [question.text for question in questions]
    with answer_file(out, digest, questions) as kept:
        if kept.found:
            say(f"{len(kept.found)} of {len(prompts)} answers are there already", error=True)
        left = [i for i in range(len(prompts)) if i not in kept.found]
        texts = [prompts[i] for i in left]
        found = answerer.recognised(texts) if texts else []
        started = shown = time.monotonic()
        for done, (k, text) in enumerate(answerer.answers(texts, [n for n, _ in found]), start=1):
            answer: dict[str, str | None] = {"prediction": text}
            if answerer.recogniser is not None:
                answer["recognised"] = found[k][1]
            kept.add(left[k], answer)
            if time.monotonic() - shown > SHOWN_EVERY_S:
                shown = time.monotonic()
                rate = done / (shown - started)
                seconds = (len(left) - done) / rate
                say(f"{done}/{len(left)} answered, about {seconds:,.0f} s left", error=True)
    say(f"{len(prompts)} answers: {out}", error=True)


def _digest(planned: Plan, source: MemorySource, questions: Sequence[Question]) -> str:
    """Of everything that determines the answers."""
    tasks = source.manifest.tasks[: planned.upto]
    prompts = [question.text for question in questions]
    content = [
        [prompts, asdict(planned.task), asdict(source.decoding)],
        [source.manifest.settings, source.manifest.base, [task.sha256 for task in tasks]],
        [planned.recall, source.recogniser, source.unknown, source.model.dtype],
    ]
    return hashlib.sha256(json.dumps(content, default=str).encode()).hexdigest()


if __name__ == "__main__":
    make_output_last()
    sys.exit(main(sys.argv[1:]))
