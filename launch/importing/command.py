"""Make a memory of MoRAM of LoRAs in PEFT's format, each of them a task.

    moram import --peft LORA --out MEMORY
    moram import --peft LORA LORA ... --benchmark BENCHMARK --data_dir DIR --out MEMORY

A task is named like its LoRA's folder. A LoRA alone answers as it did. Several share the memory,
which loses some of each: that is measured and printed, on the tasks of the benchmark that are named
like the LoRAs (--benchmark as for moram train). MEMORY then serves the commands that use a run.
"""

from __future__ import annotations

import sys
from collections import Counter
from collections.abc import Sequence
from dataclasses import asdict, fields, replace
from pathlib import Path
from typing import TYPE_CHECKING

from launch.export.command import check_new
from moram_dist.command_line import Parser, run_command
from moram_dist.registry import InputError, unknown
from moram_dist.terminal import make_output_last, say

if TYPE_CHECKING:
    from moram_dist.config import ModelConfig
    from moram_dist.tasks import Benchmark, Task
    from moram_dist.use.from_peft import PeftLora, PeftSettings
    from moram_dist.use.imported import Measured


def main(words: Sequence[str]) -> int:
    """Import, and return the exit code."""
    return run_command(_import, words)


def _import(words: Sequence[str]) -> None:
    parser = Parser("moram import", __doc__)
    parser.add_argument(
        "--peft", required=True, nargs="+", type=Path, metavar="LORA", help="folders of adapters"
    )
    parser.add_argument("--out", required=True, type=Path, help="a folder that is not there yet")
    parser.add_argument("--benchmark", help="whose tasks show what is lost; needed for several")
    parser.add_argument("--data_dir", type=Path, help="the benchmark's files")
    parser.add_argument("--model", help="the base; default: the one that the LoRAs name")
    args = parser.parse_args(words)
    check_new(args.out)

    from launch.importing.write import write_loras
    from launch.settings import quiet
    from moram_dist.files import complete_folder
    from moram_dist.models import language_model
    from moram_dist.use.from_peft import read_lora, read_settings
    from moram_dist.use.imported import ImportedMemory, write_imported

    quiet()
    settings = [read_settings(folder) for folder in args.peft]
    for name, times in Counter(one.name for one in settings).items():
        if times > 1:
            raise InputError(f"--peft: {times} folders are called {name}, as their tasks would be")
    if len(settings) > 1 and args.benchmark is None:
        raise InputError(
            "--peft: several LoRAs share a memory, which loses some of each: give --benchmark, "
            "whose tasks of the same names show how much"
        )
    if args.benchmark is None and args.data_dir is not None:
        raise InputError("--data_dir: give --benchmark too")
    base = _base(settings, args.model)
    skeleton = language_model.skeleton(base)
    loras = [read_lora(one, skeleton, base.model) for one in settings]
    tasks: list[Task] = []
    benchmark = None
    if args.benchmark is not None:
        benchmark = _benchmark(base, args.benchmark, args.data_dir)
        tasks = _named_like(loras, benchmark)
    with complete_folder(args.out) as folder:
        write_loras(loras, skeleton, base, folder / "memory")
        made = ImportedMemory(
            model=base.model,
            dtype=str(language_model.resolve_dtype(base)).removeprefix("torch."),
            rules={task.name: _rules(task) for task in tasks},
            decoding=asdict(benchmark.decoding) if benchmark else {},
        )
        write_imported(folder, made)
        measured: tuple[Measured, ...] = ()
        if tasks:
            from launch.importing.measure import measure

            measured = measure(folder, loras, tasks)
            write_imported(folder, replace(made, measured=measured))
    for line in _told(loras, measured):
        say(line)
    say(f"imported: {args.out}", error=True)


def _base(settings: Sequence[PeftSettings], model: str | None) -> ModelConfig:
    """The base of all LoRAs. Raises InputError if they name several, none, or another one."""
    from moram_dist.config import ModelConfig
    from moram_dist.models import language_model
    from moram_dist.models.identity import identify

    named = {one.base: one.folder for one in settings if one.base is not None}
    if model is None:
        if not named:
            raise InputError(f"{settings[0].folder} does not name its base: give --model")
        if len(named) > 1:
            raise InputError(f"--peft: several bases: {', '.join(sorted(named))}; give --model")
        (name,) = named
        shipped = {str(folder): name for name, folder in language_model.SHIPPED.items()}
        return ModelConfig(model=shipped.get(name, name))
    config = ModelConfig(model=model)
    language_model.check(config)
    found = identify(language_model.source(config)).fingerprint
    for name, folder in named.items():
        if _fingerprint(name) not in (None, found):
            raise InputError(f"{folder} was trained on {name}, and --model {model} is another one")
    return config


def _fingerprint(name: str) -> str | None:
    """That of a base, or None if it is not on this machine: then the sizes of linears decide."""
    from moram_dist.models.folder import check_name, local
    from moram_dist.models.identity import identify

    try:
        check_name(name)
        return None if local(name) is None else identify(name).fingerprint
    except InputError:
        return None


def _benchmark(base: ModelConfig, name: str, data_dir: Path | None) -> Benchmark:
    from launch.settings import resolve
    from moram_dist import config_io
    from moram_dist.use.answerer import check_text

    check_text(base)
    flags = {"method": "moram", "model": base.model, "benchmark": name}
    if data_dir is not None:
        flags["data_dir"] = str(data_dir)
    return resolve(config_io.build(flags))[1]


def _named_like(loras: Sequence[PeftLora], benchmark: Benchmark) -> list[Task]:
    tasks = {task.name: task for task in benchmark.tasks}
    for lora in loras:
        if lora.name not in tasks:
            found = unknown(f"task of {benchmark.name}", lora.name, tasks)
            raise InputError(f"{lora.settings.folder}: {found}; name the folder like its task")
    return [tasks[lora.name] for lora in loras]


def _rules(task: Task) -> dict[str, object]:
    from moram_dist.tasks.task import TaskRules

    return {field.name: getattr(task, field.name) for field in fields(TaskRules)}


def _told(loras: Sequence[PeftLora], measured: Sequence[Measured]) -> list[str]:
    """What was imported, and what it loses."""
    lines = [f"{'LoRA':16} {'rank':>5} {'linears':>8}"]
    lines += [f"{lora.name:16} {lora.rank:5} {len(lora.terms):8}" for lora in loras]
    if not measured:
        return [*lines, "It is alone, so it answers as before, up to rounding."]
    columns = ("base", "alone", "together", "recognised")
    lines += ["", f"{'':16} {'':24}" + "".join(f"{column:>12}" for column in columns)]
    for one in measured:
        for what, field, digits in (
            (one.metric, "score", 2),
            ("loss per answer token", "loss", 4),
            ("KL from the LoRA alone", "divergence", 4),
        ):
            values = (getattr(getattr(one, column), field) for column in columns)
            cells = "".join(f"{value:12.{digits}f}" for value in values)
            lines.append(f"{one.task if field == 'score' else '':16} {what:24}{cells}")
    return lines


if __name__ == "__main__":
    make_output_last()
    sys.exit(main(sys.argv[1:]))
