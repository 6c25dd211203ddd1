"""An edited run whose tasks choose among the classes of all tasks: fewer tasks, other questions."""

from __future__ import annotations

import dataclasses
from pathlib import Path

import pytest
import yaml

from eval.edited import EditRecord
from launch.editing.run_folder import plan_run
from launch.settings import resolve
from moram_dist import config_io
from moram_dist.atoms.manifest import Manifest, TaskFile
from moram_dist.atoms.memory_files import MemoryFiles
from moram_dist.models import language_model
from moram_dist.registry import InputError
from moram_dist.train.inputs import gather
from moram_dist.use.source import MemorySource

NAMES = ("shapes", "stripes", "colours")


def source(folder: Path, protocol: str | None) -> MemorySource:
    """What a command reads of a run on pictures, without its memory."""
    flags = {"benchmark": "demo_images", "model": "demo_images", "order": ",".join(NAMES)}
    flags |= {"limit_train": 4, "limit_eval": 2, "protocol": protocol}
    config, benchmark = resolve(config_io.build(flags))
    folder.mkdir()
    (folder / "run.yaml").write_text(yaml.safe_dump(config_io.to_dict(config)))
    tokenizer = language_model.load_tokenizer(config.model)
    inputs = gather(config, benchmark, {}, tokenizer, say=lambda line: None)
    stored = [
        TaskFile(name=name, file=f"{name}.safetensors", sha256="0" * 64, bytes=0, tensors=0)
        for name in NAMES
    ]
    manifest = Manifest(
        method="moram", settings={}, base=inputs.base.saved, modules=[], tasks=tuple(stored)
    )
    files = MemoryFiles(folder / "memory")
    return MemorySource(path=folder, files=files, manifest=manifest, inputs=inputs)


@pytest.mark.parametrize(("protocol", "other"), [("all", True), (None, False)])
def test_fewer_tasks_have_fewer_classes_where_all_compete(tmp_path, protocol, other):
    run = source(tmp_path / "run", protocol)
    assert not plan_run([run], NAMES).other_classes
    found = plan_run([run], ["shapes", "colours"])
    assert found.other_classes == other
    labels = [len(task.rules["labels"]) for task in found.inputs.tasks]
    before = [len(task.rules["labels"]) for task in run.inputs.tasks]
    assert (labels < [before[0], before[2]]) == other


def test_other_rules_are_still_refused(tmp_path):
    run = source(tmp_path / "run", "all")
    task = run.inputs.tasks[0]
    for name, value in (("metric", "accuracy"), ("train_labels", ["shapes/none"])):
        rules = {**task.rules, name: value}
        changed = dataclasses.replace(task, rules=rules)
        tasks = (changed, *run.inputs.tasks[1:])
        inputs = dataclasses.replace(run.inputs, tasks=tasks)
        with pytest.raises(InputError, match=f"task shapes: {name} was "):
            plan_run([dataclasses.replace(run, inputs=inputs)], ["shapes", "colours"])


def test_it_is_said():
    one = EditRecord(
        command="drop", what="a dropped", caution="b", sources=("c",), before={}, other_classes=True
    )
    *_, last = one.lines
    assert last.startswith("The classes of all tasks compete and were others before")
