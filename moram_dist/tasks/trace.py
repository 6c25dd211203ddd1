"""TRACE: eight tasks from stance detection to code, 500 training examples each.

Files are ``<data_dir>/<task>/{train,eval,test}.json``, each one list of ``prompt`` and ``answer``.
The prompt is complete; nothing is added to it.

Source: Wang et al. 2023, arXiv:2310.06762; sizes, epochs, metrics and decoding as in the code of
Lu et al. 2026, arXiv:2506.21035, called protocol ``moram`` here.
"""

from __future__ import annotations

from pathlib import Path

from moram_dist.registry import InputError, unknown
from moram_dist.tasks.orders import choose_order
from moram_dist.tasks.readers import read_examples
from moram_dist.tasks.rules import RULES, TaskRules
from moram_dist.tasks.task import BENCHMARKS, Benchmark, Decoding, Example, Source

_ABC = ("A", "B", "C")

TASKS: dict[str, TaskRules] = {
    "C-STANCE": TaskRules(metric="choice", labels=_ABC, epochs=2),
    "FOMC": TaskRules(metric="choice", labels=_ABC, epochs=1),
    # Meetings are long, and the protocol keeps their beginning, which may cost the final cue.
    "MeetingBank": TaskRules(
        metric="rouge_l_set", epochs=3, max_prompt_tokens=4096, truncate_prompt="right"
    ),
    "Py150": TaskRules(metric="edit_similarity", epochs=2),
    "ScienceQA": TaskRules(metric="first_character", epochs=1),
    "NumGLUE-cm": TaskRules(metric="math_answer", epochs=2),
    "NumGLUE-ds": TaskRules(metric="math_answer", epochs=2),
    "20Minuten": TaskRules(metric="sari", epochs=3),
}
"""Every task's rules, in the one published order. Reading them needs no files."""

RULES.register("trace")(TASKS)

ORDERS = {"default": tuple(TASKS)}
PROTOCOLS = {"moram": Decoding(repetition_penalty=1.2, no_repeat_ngram_size=3)}

_USED = ("train", "test")
_SPLITS = ("train", "eval", "test")


@BENCHMARKS.register("trace")
def trace(source: Source) -> Benchmark:
    """Read TRACE, or the tasks of it that ``source.order`` names.

    A task without ``train.json`` trains on its ``eval.json``; that and every replaced split is
    said in the benchmark's notes.

    Raises:
        InputError: no ``data_dir``, an unknown order, protocol, task or split, or a bad file.
    """
    order, names = choose_order(source.order, named=ORDERS, tasks=tuple(TASKS))
    protocol = "moram" if source.protocol is None else source.protocol
    if protocol not in PROTOCOLS:
        raise unknown("protocol of trace", protocol, PROTOCOLS)
    for name, splits in source.splits.items():
        if name not in TASKS:
            raise unknown("task in splits", name, TASKS)
        for split in splits:
            if split not in _USED:
                raise unknown(f"split of {name}", split, _USED)
    root = _root(source)

    tasks, notes = [], []
    for name in names:
        train, train_notes = _read(source, root, name, "train", source.limit_train)
        test, test_notes = _read(source, root, name, "test", source.limit_eval)
        tasks.append(TASKS[name].task(name, train=train, test=test))
        notes += train_notes + test_notes
    return Benchmark(
        name="trace",
        order=order,
        protocol=protocol,
        tasks=tuple(tasks),
        decoding=PROTOCOLS[protocol],
        notes=tuple(notes),
    )


def _root(source: Source) -> Path:
    if source.data_dir is None:
        raise InputError("trace needs --data_dir, the folder that holds <task>/train.json")
    if not source.data_dir.is_dir():
        raise InputError(f"--data_dir: no such folder: {source.data_dir}")
    return source.data_dir


def _read(
    source: Source, root: Path, name: str, split: str, limit: int | None
) -> tuple[tuple[Example, ...], list[str]]:
    """Examples of a split, from its file or the replacement, and the note that this deserves."""
    path, file_split, notes = root / name / f"{split}.json", split, []
    replacement = source.splits.get(name, {}).get(split)
    did = {"train": "trained", "test": "tested"}[split]
    if replacement in _SPLITS:
        path, file_split = root / name / f"{replacement}.json", replacement
        notes = [f"{name}: {did} on {replacement}.json in place of {split}.json"]
    elif replacement is not None:
        path = Path(replacement)
        if not path.is_file():
            raise InputError(
                f"splits of {name}: {split} is {replacement!r}, which is neither a file nor one of "
                f"{', '.join(_SPLITS)}"
            )
        notes = [f"{name}: {did} on {path} in place of {split}.json"]
    elif split == "train" and not path.exists() and path.with_name("eval.json").exists():
        path, file_split = path.with_name("eval.json"), "eval"
        notes = [f"{name}: train.json is missing, trained on eval.json"]
    return read_examples(path, split=file_split, limit=limit), notes
