"""Findings in a benchmark's files that its examples do not show: spare splits, label lists, keys.

A benchmark reads ``train`` and ``test``. Other files in the folder are used to select checkpoints
(``dev``, ``eval``) or as the set of answers (``labels.json``).
"""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

from eval.audit.findings import NOTE, WARNING, Finding, listed
from moram_dist.reading import read_json
from moram_dist.registry import InputError
from moram_dist.tasks.readers import kind_of, read_records

_LABELS = "labels.json"
_ANSWERS = ("output", "label", "answer")


def check_files(data_dir: Path | None, tasks: Sequence[str]) -> list[Finding]:
    """All findings in the folders of ``data_dir`` that have a task's name and hold a test file.

    Names are compared without case. A benchmark without files there has no findings.
    """
    if data_dir is None:
        return []
    names = {name.casefold() for name in tasks}
    root = data_dir if data_dir.is_dir() else data_dir.parent
    folders = {path.parent for path in root.rglob("test.json*")}
    findings: list[Finding] = []
    headers: dict[str, dict[str, Any]] = {}
    for folder in sorted(folders):
        if folder.name.casefold() not in names:
            continue
        splits: dict[str, list[dict[str, Any]]] = {}
        for path in sorted(folder.glob("*.json*")):
            try:
                header, records = _read(path)
            except InputError as error:
                findings.append(_finding(folder, "unreadable", str(error)))
                continue
            if records is not None:
                splits[path.name] = records
                if header:
                    headers[f"{folder.name}/{path.name}"] = header
        findings += [*_spare(folder, splits), *_label_list(folder, splits)]
    return [*findings, *_odd_keys(headers)]


def _finding(folder: Path, kind: str, text: str) -> Finding:
    return Finding(severity=WARNING, where=f"{folder.name} files", kind=kind, text=text)


def _read(path: Path) -> tuple[dict[str, Any], list[dict[str, Any]] | None]:
    """A file's keys other than its records, and the records; None if it has none (a label list)."""
    if path.suffix == ".jsonl":
        return {}, [record for _, record in read_records(path)]
    content = read_json(path)
    header = content if isinstance(content, dict) else {}
    records = header.get("Instances") if header else content
    if not isinstance(records, list) or not all(isinstance(x, dict) for x in records):
        return {}, None
    return header, records


def _spare(folder: Path, splits: dict[str, list[dict[str, Any]]]) -> Iterable[Finding]:
    """Spare splits that share records with train or test, like a dev.json made of test records."""
    used = {name: set(map(_content, splits[name])) for name in splits if _is_used(name)}
    for name in splits:
        for other in used if name not in used else ():
            inside = sum(_content(record) in used[other] for record in splits[name])
            if inside:
                text = f"{inside} of the {len(splits[name])} records of {name} are also in {other}"
                yield _finding(folder, "spare_split", text)


def _is_used(name: str) -> bool:
    return Path(name).stem in ("train", "test")


def _content(record: dict[str, Any]) -> str:
    """A record without its id, which may be all that differs."""
    return json.dumps({key: record[key] for key in sorted(record) if key != "id"})


def _label_list(folder: Path, splits: dict[str, list[dict[str, Any]]]) -> Iterable[Finding]:
    """A labels.json that differs from the set of answers."""
    path = folder / _LABELS
    try:
        labels = read_json(path) if path.is_file() else None
    except InputError:
        return  # reported as unreadable
    if labels is None:
        return
    if not isinstance(labels, list):
        yield _finding(folder, "label_list", f"{_LABELS} is not a list but {kind_of(labels)}")
        return
    answers: Counter[str] = Counter()
    for name, records in splits.items():
        if _is_used(name):
            answers.update(text for record in records for text in _texts(record))
    missing = Counter({text: count for text, count in answers.items() if text not in labels})
    spare = [label for label in labels if label not in list(answers)]
    if missing:
        yield _finding(folder, "label_list", f"{_LABELS} lacks the answers {listed(missing)}")
    if spare:
        text = (
            f"{_LABELS} has labels that no record has as its answer: {', '.join(map(repr, spare))}"
        )
        yield _finding(folder, "label_list", text)


def _texts(record: dict[str, Any]) -> list[str]:
    value: Any = next((record[key] for key in _ANSWERS if key in record), [])
    return value if isinstance(value, list) else [value]


def _odd_keys(headers: dict[str, dict[str, Any]]) -> Iterable[Finding]:
    """Keys, other than the records, that only some files have."""
    for key in dict.fromkeys(key for header in headers.values() for key in header):
        having = [name for name, header in headers.items() if key in header]
        lacking = [name for name in headers if name not in having]
        if lacking:
            few, verb = (having, "have") if len(having) <= len(lacking) else (lacking, "lack")
            names = ", ".join(few[:3]) + (", ..." if len(few) > 3 else "")
            text = f"{len(few)} of {len(headers)} files {verb} the key {key!r}: {names}"
            yield Finding(severity=NOTE, where="files", kind="odd_key", text=text)
