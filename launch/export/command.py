"""Write what a run learned in a form that other programs and the Hugging Face hub take.

    moram export RUN --to peft --out DIR [--task TASK]
    moram export RUN --to hub --out DIR [--task TASK]

peft: PeftModel.from_pretrained(base, DIR). Exact for methods whose memory is one LoRA; a task of
moram becomes one by approximation, and its loss is measured on the task's data and printed.
hub: the memory and a model card, for huggingface_hub.upload_folder. --task: as after this task.
"""

from __future__ import annotations

import os
import sys
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING

from moram_dist.command_line import Parser, run_command
from moram_dist.registry import InputError, one_of
from moram_dist.terminal import make_output_last, say

if TYPE_CHECKING:
    from torch import nn

    from moram_dist.use.lora import Lora
    from moram_dist.use.source import MemorySource


@dataclass(frozen=True)
class Export:
    """What is written, before anything is."""

    source: MemorySource
    upto: int
    lora: Lora | None = None
    loss: Sequence[str] = field(default=())
    """Lines on what an approximation loses; empty if there is none."""


def main(words: Sequence[str]) -> int:
    """Export, and return the exit code."""
    return run_command(_export, words)


def _export(words: Sequence[str]) -> None:
    parser = Parser("moram export", __doc__)
    parser.add_argument("run", type=Path, metavar="RUN")
    parser.add_argument("--to", required=True, help="peft or hub")
    parser.add_argument("--out", required=True, type=Path, help="a folder that is not there yet")
    parser.add_argument("--task", help="name or number; default: the newest")
    parser.add_argument("--model", help="the base; default: the run's")
    args = parser.parse_args(words)
    one_of("to", args.to, ("peft", "hub"))
    check_new(args.out)

    from launch.settings import quiet
    from moram_dist.files import complete_folder
    from moram_dist.models import language_model
    from moram_dist.use.source import read_source

    quiet()
    source = read_source(args.run, args.model)
    upto = source.learned(args.task)
    model = language_model.skeleton(source.model)
    if args.to == "hub":
        export = Export(source, upto)
    else:
        export = _as_lora(source, upto, model, named=args.task is not None)
    with complete_folder(args.out) as folder:
        _write(export, folder, model)
    for line in export.loss:
        say(line)
    say(f"{args.to}: {args.out}", error=True)


def _as_lora(source: MemorySource, upto: int, model: nn.Module, *, named: bool) -> Export:
    from launch.export.measure import moram_as_lora
    from moram_dist.methods import METHODS
    from moram_dist.use.lora import exact_lora
    from moram_dist.use.lora_atoms import imported_lora

    method = source.manifest.method
    if not named and (method == "moram" or METHODS[method].recall == "prefix"):
        raise InputError(
            f"{source.path}: {method} answers each prompt in another way, so only a single task "
            "can become a LoRA: give --task"
        )
    if source.manifest.tasks[upto - 1].imported is not None:
        return Export(source, upto, imported_lora(source, upto, model))
    if method == "moram":
        lora, loss = moram_as_lora(source, upto)
        return Export(source, upto, lora, loss)
    return Export(source, upto, exact_lora(source, upto, model))


def _write(export: Export, folder: Path, model: nn.Module) -> None:
    from launch.export.card import card
    from moram_dist.families import family_of_model
    from moram_dist.files import write_atomically
    from moram_dist.methods.saved import of_first, write_memory
    from moram_dist.models import language_model
    from moram_dist.use.peft_folder import write_peft

    source = export.source
    auto_class = family_of_model(model).auto_class().__name__
    if export.lora is None:
        write_memory(folder / "memory", source.files, of_first(source.manifest, export.upto))
    else:
        base = language_model.source(source.model)
        write_peft(folder, export.lora, model, base, auto_class)
    text = card(source, export.upto, export.lora, export.loss, auto_class)
    write_atomically(folder / "README.md", text)


def check_new(out: Path) -> None:
    """Raises InputError if a folder to write is there already."""
    if os.path.lexists(out):
        raise InputError(f"--out {out}: is there already; give another name")


if __name__ == "__main__":
    make_output_last()
    sys.exit(main(sys.argv[1:]))
