"""The model card of an export: YAML that the hub reads, then what the folder holds."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import yaml

from eval.continual import Scores
from moram_dist.methods import METHODS
from moram_dist.models.folder import local
from moram_dist.models.language_model import SHIPPED
from moram_dist.models.language_model import source as source_of
from moram_dist.reading import parse_yaml, read_text
from moram_dist.registry import InputError
from moram_dist.use.lora import Lora
from moram_dist.use.source import MemorySource

LICENCE = ("license", "license_name", "license_link")
"""Keys of a card that state the licence."""

LOAD_PEFT = """from peft import PeftModel
from transformers import {auto_class}

base = {auto_class}.from_pretrained("{base}")
model = PeftModel.from_pretrained(base, FOLDER)
"""

LOAD_MEMORY = """from transformers import {auto_class}
from moram_dist import load_memory

model = {auto_class}.from_pretrained("{base}")
load_memory(model, FOLDER{recall})
"""


def card(
    source: MemorySource, upto: int, lora: Lora | None, loss: Sequence[str], auto_class: str
) -> str:
    """The text of README.md.

    Args:
        source: what was exported.
        upto: how many tasks.
        lora: the adapter in the folder; None: the memory itself.
        loss: lines on what an approximation loses.
        auto_class: transformers' class of the base.
    """
    tasks, method = source.tasks[:upto], source.manifest.method
    base = source.manifest.base
    name = base["name"]
    lines = [f"# {method} on {name}", ""]
    what = "memory" if lora is None else f"LoRA of rank {lora.rank}"
    kind = METHODS[method]
    imported = source.manifest.tasks[upto - 1].imported is not None
    alone = imported or (kind.as_lora == "newest" and kind.keeps_prefixes)  # one for each task
    if lora is not None and (loss or alone):
        made = "imported into a memory of moram-dist and exported again" if imported else None
        lines.append(f"A {what} for the task {tasks[-1]}, {made or 'made by moram-dist'}.")
    else:
        how = "was made of LoRAs for" if imported else "learned"
        lines.append(f"A {what} that {how} {len(tasks)} tasks in this order, by moram-dist:")
        lines += ["", *(f"{i}. {task}" for i, task in enumerate(tasks, start=1))]
    for edit in source.manifest.edits:
        lines += ["", edit.line]
    if loss:
        lines += ["", "This is an approximation: the memory weighs its atoms for each token anew."]
        lines += ["", "    " + "\n    ".join(loss)]
    lines += ["", "## Load", "", "FOLDER is this folder, or what `snapshot_download` returns.", ""]
    load = LOAD_MEMORY if lora is None else LOAD_PEFT
    recall = ', recall="prefix"' if source.recall == "prefix" else ""
    code = load.format(auto_class=auto_class, base=name, recall=recall)
    lines += ["```python", *code.rstrip("\n").split("\n"), "```"]
    lines += ["", "## Base", "", f"{name}, fingerprint `{base['fingerprint']}`."]
    licence = _licence(source)
    if not licence:
        lines.append("Its folder states no licence; that of the base applies to its use.")
    lines += ["", "## Scores", "", *_matrix(source, upto)]
    settings = json.dumps(source.manifest.settings, indent=2)
    lines += ["", "## Settings", "", "```json", *settings.split("\n"), "```", ""]
    return f"---\n{_front(source, lora, licence)}---\n\n" + "\n".join(lines)


def _front(source: MemorySource, lora: Lora | None, licence: Mapping[str, Any]) -> str:
    front: dict[str, Any] = dict(licence)
    model = source.model.model
    if model not in SHIPPED and not Path(model).exists():  # the hub refuses what is not an id
        front["base_model"] = model
        if lora is not None:
            front["base_model_relation"] = "adapter"
    front["library_name"] = "moram-dist" if lora is None else "peft"
    front["tags"] = ["continual-learning", source.manifest.method]
    return yaml.safe_dump(front, sort_keys=False, allow_unicode=True)


def _licence(source: MemorySource) -> dict[str, Any]:
    """What the card in the base's folder says of its licence; empty if it says nothing."""
    folder = local(source_of(source.model))
    path = folder / "README.md" if folder is not None else None
    if path is None or not path.is_file():
        return {}
    try:
        text = read_text(path)
        front = text.split("---\n")[1] if text.startswith("---\n") else ""
        found = parse_yaml(front, path) if front else {}
    except (InputError, IndexError):
        return {}
    if not isinstance(found, dict):
        return {}
    return {key: found[key] for key in LICENCE if isinstance(found.get(key), str)}


def _matrix(source: MemorySource, upto: int) -> Iterator[str]:
    """The score matrix of the exported tasks as Markdown."""
    path = source.path / "scores.json"
    if not path.is_file():
        yield "The folder that was exported holds no scores."
        return
    scores = Scores.load(path)
    tasks = source.tasks[:upto]
    yield f"Score on each task (columns) after each task (rows), recall {source.recall}:"
    yield ""
    yield "| after | " + " | ".join(f"{_cell(t)} ({scores.metrics[t]})" for t in tasks) + " |"
    yield "| --- |" + " ---: |" * len(tasks)
    for task, row in zip(tasks, scores.scores, strict=False):
        values = ("" if value is None else f"{value:.2f}" for value in row[:upto])
        yield f"| {_cell(task)} | " + " | ".join(values) + " |"


def _cell(text: str) -> str:
    return text.replace("|", "\\|")
