"""Put a trained memory on a plain model: one process, no DeepSpeed, ready for ``generate``."""

from __future__ import annotations

from pathlib import Path

from torch import nn

from moram_dist.atoms.memory_files import MemoryFiles
from moram_dist.config import MethodConfig
from moram_dist.methods.method import METHODS
from moram_dist.reading import record
from moram_dist.registry import InputError


def load_memory(model: nn.Module, path: str | Path, upto: int | None = None) -> nn.Module:
    """Adapt ``model`` in place with what a run has learned, and return it in eval mode.

    Args:
        model: the Hugging Face language model that the run started from, on any device and
            in any dtype; the memory takes on both.
        path: ``RUN/memory``, or RUN itself.
        upto: only the first so many tasks; default all.

    Raises:
        InputError: no memory there, fewer tasks than ``upto``, a file that is missing or changed,
            or a model without the layers that the memory belongs to, in name or size.
    """
    folder = Path(path)
    files = MemoryFiles(folder / "memory" if (folder / "memory").is_dir() else folder)
    manifest = files.manifest()
    if manifest is None:
        raise InputError(f"{files.path} does not exist: no memory was published there")
    count = len(manifest.tasks) if upto is None else upto
    if not 0 <= count <= len(manifest.tasks):
        raise InputError(f"upto={upto}, but {files.path} holds {len(manifest.tasks)} tasks")
    linears = {name: m for name, m in model.named_modules() if isinstance(m, nn.Linear)}
    lacking = [name for name in manifest.modules if name not in linears]
    if lacking:
        raise InputError(
            f"{files.path} belongs to {manifest.base.get('name')}: "
            f"this {type(model).__name__} has no linear {lacking[0]}"
        )
    settings = record(MethodConfig, manifest.settings, f"{files.path}: settings")
    method = METHODS[manifest.method](settings, seed=0, num_tasks=len(manifest.tasks))
    linears = {name: module for name, module in linears.items() if name in manifest.modules}
    for i, task in enumerate(manifest.tasks[:count]):
        files.check(task, method.shapes(i, linears))  # of all, before the model is touched
    method.build(model, manifest.modules)
    for i, task in enumerate(manifest.tasks[:count]):
        method.load_task(i, files.read(task))
    return model.eval()
