"""Show which tasks' atoms answer each token of a prompt: one process, no DeepSpeed.

    moram inspect RUN --prompt "TEXT"
    moram inspect RUN --prompt "TEXT" --upto TASK --layer NAME --out page.html

A token has the colour of the task whose atoms have most of its mixture, and none if most of it is
below the threshold; where output has no colours, [2:text] marks the second task's. Shares are means
over all adapted linears, or over those of --layer: one linear, or all in a module.
"""

from __future__ import annotations

import os
import sys
from collections.abc import Sequence
from itertools import groupby
from pathlib import Path
from typing import TYPE_CHECKING

from moram_dist.command_line import Parser, run_command
from moram_dist.registry import InputError
from moram_dist.terminal import make_output_last, say, say_numbered

if TYPE_CHECKING:
    from moram_dist.use.inspected import InspectedPrompt

HUES = ("#2b6cb0", "#c05621", "#2f855a", "#b83280", "#6b46c1", "#b7791f", "#0e7490", "#9b2c2c")
"""Of tasks on the page, in order and then again."""


def main(words: Sequence[str]) -> int:
    """Inspect, and return the exit code."""
    return run_command(_inspect, words)


def _inspect(words: Sequence[str]) -> None:
    parser = Parser("moram inspect", __doc__)
    parser.add_argument("run", type=Path, metavar="RUN")
    parser.add_argument("--prompt", required=True, help="the text to read")
    parser.add_argument("--upto", metavar="TASK", help="as after this task: name or number")
    parser.add_argument("--layer", metavar="NAME", help="full name of a linear or of a module")
    parser.add_argument("--out", type=Path, help="also write this .html page")
    parser.add_argument("--model", help="the base; default: the run's")
    args = parser.parse_args(words)
    if not args.prompt.strip():
        raise InputError("--prompt is empty")
    if args.out is not None and (args.out.suffix != ".html" or os.path.isdir(args.out)):
        raise InputError(f"--out {args.out}: expected the name of a file that ends in .html")

    from launch.settings import quiet
    from moram_dist.use.answerer import Answerer, Asked, check_text
    from moram_dist.use.inspected import check_routes, chosen_linears, inspect_prompt
    from moram_dist.use.source import read_source

    quiet()
    source = read_source(args.run, args.model)
    check_routes(source)
    check_text(source.model)
    source.learned(args.upto)
    linears = chosen_linears(source, args.layer)
    answerer = Answerer(source, Asked(upto=args.upto, recall="all"))
    found = inspect_prompt(answerer, args.prompt, linears)
    if answerer.is_cut(args.prompt):
        most = answerer.task.max_prompt_tokens
        say(f"the prompt is cut to {most} tokens, as in task {answerer.task.name}", error=True)
    show(found)
    if args.out is not None:
        from moram_dist.files import write_atomically

        write_atomically(args.out, page(found, args.layer).encode("utf-8", errors="replace"))
        say(f"page: {args.out}", error=True)


def show(found: InspectedPrompt) -> None:
    """Print the prompt, then the shares of each task."""
    runs = groupby(found.tokens, key=lambda token: token.task)
    parts = [
        ("".join(token.text for token in tokens), None if task is None else task + 1)
        for task, tokens in runs
    ]
    *shares, silent = found.shares
    for i, (name, share) in enumerate(zip(found.tasks, shares, strict=True), start=1):
        parts += [("\n", None), (f"{name} {share:.1%}", i)]
    say_numbered([*parts, (f"\nsilent {silent:.1%}", None)])


def page(found: InspectedPrompt, layer: str | None) -> str:
    """The same as one HTML page that loads no other file; every text in it is escaped."""
    from eval.markup import visible
    from eval.templates import templates_in

    templates = templates_in(Path(__file__).parent, finalize=None)
    templates.filters["visible"] = visible
    where = layer or f"{len(found.linears)} linears"
    template = templates.get_template("inspection.html")
    return template.render(found=found, where=where, hues=HUES)


if __name__ == "__main__":
    make_output_last()
    sys.exit(main(sys.argv[1:]))
