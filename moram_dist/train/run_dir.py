"""The run directory: a run's identity, written before its first step, and its finished tasks."""

from __future__ import annotations

import json
import os
import platform
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import asdict, replace
from importlib import metadata
from pathlib import Path
from typing import Any

import yaml

from moram_dist import config_io
from moram_dist.atoms.memory_files import MemoryFiles
from moram_dist.config import ModelConfig, RunConfig
from moram_dist.files import (
    IN_THE_WAY,
    LONGEST_NAME,
    NoLocksError,
    WriteError,
    exclusive_lock,
    sync_folder,
    write_atomically,
    writing,
)
from moram_dist.models import language_model
from moram_dist.models.identity import is_base
from moram_dist.reading import read_mapping
from moram_dist.redaction import clean_command, clean_tree
from moram_dist.registry import InputError
from moram_dist.tasks.task import Benchmark
from moram_dist.train.checkpoint import ProgressFiles
from moram_dist.train.inputs import RunInputs, differences, in_one_line, read_inputs, task_order
from moram_dist.train.older_runs import differences_from_older

INPUTS = "inputs.json"

ALWAYS_RECORDED = ("model", "data", "method", "train", "eval")
"""Sections that every version wrote to run.yaml."""

PACKAGES = ("torch", "deepspeed", "transformers", "safetensors", "mlflow", "numpy")

LOCK = ".lock"
FOLDERS = tuple("general memory observe predictions progress report tokens tracking".split())
SUFFIXES = (".json", ".jsonl", ".yaml", ".safetensors")
"""Names with these endings must be files, not folders."""


class RunDir:
    """Paths of a run, and its identity.

    run.yaml holds the resolved configuration, inputs.json digests of data, base and tokenizer. A
    second command on the same folder must be the same run, except for settings that do not define
    its results (``config_io.MAY_CHANGE``).
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        self.memory = MemoryFiles(path / "memory")
        self.progress = ProgressFiles(path / "progress")

    def check(self, config: RunConfig) -> None:
        """Check that this run may use the folder. Writes nothing.

        Raises:
            InputError: the folder cannot be written, holds another configuration or a memory
                learned with one, or holds files that are not a run's, or a link.
            WriteError: the disk fails.
        """
        self._check_entries()
        self._check_writable()
        record = self.path / "run.yaml"
        if not record.exists():
            # Hidden files do not count: they are a lock, or left by a stop during a write.
            if self.path.exists() and any(p.name[0] != "." for p in self.path.iterdir()):
                raise InputError(f"--output_dir {self.path} is not empty and holds no run")
            return
        ran_with = read_mapping(record)
        lacking = [section for section in ALWAYS_RECORDED if section not in ran_with]
        if lacking:
            raise InputError(
                f"{record} lacks {', '.join(lacking)}: it was cut short; choose another folder"
            )
        saved = config_io.from_saved(ran_with, record)
        manifest = self.memory.manifest()
        ignored = config_io.recall_may_differ(config.eval, saved.eval)
        by_content = {"model.dtype"}
        if manifest or self.has_inputs:
            by_content.add("model.model")
        if self.has_inputs:
            by_content.add("data.splits")
        different = config_io.differences(config, saved, ignored | by_content)
        if different:
            raise InputError(
                f"--output_dir {self.path} holds another configuration ({'; '.join(different)}); "
                "choose another folder or the same settings"
            )
        if manifest:
            method = {**manifest.settings, "method": manifest.method}
            learned = config_io.from_saved({"method": method}, self.memory.path)
            learned_with = replace(config, method=learned.method)
            different = config_io.differences(config, learned_with, ignored)
            if different:
                raise InputError(
                    f"{self.memory.path} was learned with other settings ({'; '.join(different)}); "
                    "choose another folder or the same settings"
                )

    def check_inputs(self, now: RunInputs, model: ModelConfig) -> None:
        """Check that the folder's run was started with the same data, base and tokenizer.

        Raises:
            InputError: names the changes, or the other base or tasks of the memory.
        """
        if self.has_inputs:
            changed = differences(read_inputs(self.path / INPUTS), now)
        else:
            changed = differences_from_older(self.path, now)
        if changed:
            raise InputError(
                f"--output_dir {self.path} was started with other input ({in_one_line(changed)}); "
                "choose another folder or the same input"
            )
        manifest = self.memory.manifest()
        if manifest is None:
            return
        if not is_base(manifest.base, language_model.source(model), known=now.base):
            raise InputError(
                f"{self.memory.path} was trained on {manifest.base.get('name')}, and --model "
                f"{model.model} is another model or another version of it"
            )
        learned = [task.name for task in manifest.tasks]
        changed = task_order(learned, [task.name for task in now.tasks][: len(learned)])
        if changed:
            raise InputError(f"{self.memory.path} holds other tasks than this run: {changed[0]}")

    def record_inputs(self, inputs: RunInputs, say: Callable[[str], None]) -> None:
        """Write inputs.json if it does not exist. Main rank only."""
        if self.has_inputs:
            return
        if self.memory.path.exists() or self.progress.folder.exists():
            say(
                f"{self.path} was started by an older version of this program: its records match; "
                f"from now on {INPUTS} defines which data and base it needs"
            )
        self._json(INPUTS, asdict(inputs))

    @property
    def has_inputs(self) -> bool:
        """Whether inputs.json exists; older versions did not write it."""
        return (self.path / INPUTS).exists()

    def _check_writable(self) -> None:
        """Check that files can be created in the folder, or the folder itself can be."""
        if "\0" in str(self.path):
            raise InputError(f"--output_dir {str(self.path)!r} cannot be a folder's name")
        try:
            # A name as long as the longest one that the run will create.
            deepest = self.path / "predictions" / "after_000" / ("x" * (LONGEST_NAME + 50))
            with suppress(FileNotFoundError):
                deepest.lstat()
            there = self.path.absolute()
            while not os.path.lexists(there):
                there = there.parent
            if not there.is_dir():
                raise InputError(f"--output_dir {self.path}: {there} is not a folder")
            with tempfile.TemporaryFile(dir=there, prefix="."):
                pass
        except OSError as error:
            problem = f"--output_dir {self.path}: cannot write: {error.strerror}"
            if error.errno in IN_THE_WAY:
                raise InputError(problem) from None
            raise WriteError(problem) from None

    def _check_entries(self) -> None:
        """Check that folders are folders, files are files, and nothing is a link.

        The run directory itself may be a link, but nothing may be written outside of it.
        """
        try:
            if not self.path.is_dir():
                return
            for entry in self._entries():
                name = Path(entry.path).relative_to(self.path)
                place = f"--output_dir {self.path}: {name}"
                if entry.is_symlink():
                    raise InputError(
                        f"--output_dir {self.path}: {name} is a link; runs are not written "
                        "through links"
                    )
                if entry.is_dir():
                    if entry.name == LOCK or Path(entry.name).suffix in SUFFIXES:
                        raise InputError(f"{place} is not a file")
                elif not entry.is_file() or entry.name in FOLDERS:
                    raise InputError(f"{place} is not a {_kind(entry.name)}")
        except OSError as error:
            raise InputError(
                f"--output_dir {self.path}: cannot be read: {error.strerror}"
            ) from None

    def _entries(self) -> Iterator[os.DirEntry[str]]:
        """The entries of the folder and of its subfolders."""
        with os.scandir(self.path) as entries:
            for entry in entries:
                yield entry
                if entry.is_dir(follow_symlinks=False):
                    with os.scandir(entry) as inner:
                        yield from inner

    @contextmanager
    def locked(self) -> Iterator[None]:
        """Create the folder and lock it against a second run. Main rank only.

        Raises:
            InputError: another run holds the lock, the lock's name is not a file, or the file
                system has no locks.
            WriteError: the folder cannot be created, or the disk is full.
        """
        path = self.path / LOCK
        with ExitStack() as stack:
            try:
                file = stack.enter_context(exclusive_lock(path, wait=False))
            except BlockingIOError:
                holder = path.read_bytes()[:200].decode("utf-8", errors="replace").strip()
                raise InputError(
                    f"--output_dir {self.path} is in use by another run ({holder})"
                ) from None
            except NoLocksError as error:
                raise InputError(f"--output_dir: {error}; choose another file system") from None
            with writing(path):
                file.truncate(0)
                file.write(f"process {os.getpid()} on {platform.node()}".encode())
                self._sync_folders()
            yield

    def _sync_folders(self) -> None:
        """Sync all names in the folder to disk: an earlier process may have died before it did.

        Later files depend on them and are synced, so these must not be lost first.
        """
        sync_folder(self.path.resolve().parent)
        for folder, _, _ in os.walk(self.path):
            sync_folder(Path(folder))

    def describe(
        self,
        config: RunConfig,
        benchmark: Benchmark,
        ds_config: dict[str, Any],
        world_size: int,
    ) -> None:
        """Write the files that describe the run. Main rank only."""
        record = self.path / "run.yaml"
        kept = config_io.to_dict(config)
        if record.exists():  # the first start's settings stay; older versions stored passwords
            kept = read_mapping(record)
        now = config_io.with_recalls(kept, config.eval)
        if not record.exists() or clean_tree(now) != kept:
            kept = now
            text = yaml.safe_dump(clean_tree(kept), sort_keys=False, allow_unicode=True)
            write_atomically(record, text, private=True)
        tasks = [
            {
                "name": task.name,
                "metric": task.metric,
                "train": len(task.train),
                "test": len(task.test),
                "epochs": task.epochs,
            }
            for task in benchmark.tasks
        ]
        self._json(
            "benchmark.json",
            {
                "name": benchmark.name,
                "order": benchmark.order,
                "protocol": benchmark.protocol,
                "decoding": asdict(benchmark.decoding),
                "notes": list(benchmark.notes),
                "tasks": tasks,
            },
        )
        self._json("ds_config.json", ds_config)
        self._json("environment.json", environment(world_size))

    def finished_tasks(self) -> int:
        """Number of published tasks. Raises InputError where one of their files is damaged."""
        manifest = self.memory.manifest()
        tasks = manifest.tasks if manifest else ()
        for task in tasks:
            for stored in task.files:
                self.memory.verify(stored)
        return len(tasks)

    def _json(self, name: str, value: Any) -> None:
        text = json.dumps(clean_tree(value), indent=2, ensure_ascii=False) + "\n"
        write_atomically(self.path / name, text, private=True)


def _kind(name: str) -> str:
    return "folder" if name in FOLDERS else "file"


def environment(world_size: int) -> dict[str, Any]:
    """Versions, machine and commit."""
    import torch

    cuda = torch.cuda.is_available()
    return {
        "python": platform.python_version(),
        "platform": platform.platform(),
        "cores": os.cpu_count(),
        "device": torch.cuda.get_device_name() if cuda else "cpu",
        "world_size": world_size,
        "packages": {name: _version(name) for name in PACKAGES},
        "commit": _commit(),
        "command": clean_command(sys.argv),
    }


def _version(package: str) -> str | None:
    """A package's version; None if not installed, for example MLflow."""
    try:
        return metadata.version(package)
    except metadata.PackageNotFoundError:
        return None


def _commit() -> str | None:
    """Commit of this checkout; None if there is none, as for an installed package."""
    root = Path(__file__).resolve().parents[2]
    if not (root / "pyproject.toml").is_file():  # site-packages may be in a repository of the user
        return None
    try:
        found = subprocess.run(
            ["git", "rev-parse", "HEAD"], cwd=root, capture_output=True, text=True, timeout=10
        )
    except (OSError, subprocess.TimeoutExpired):
        return None
    return found.stdout.strip() or None
