"""A folder with a whole model: its base, its memory, and how the memory answers.

    config.json    names no architecture of transformers, so that it refuses the folder
    moram.json     the recall, and the fingerprint of base/; written last
    base/          the base, as transformers saves it, with its tokenizer
    memory/        the memory, as in a run

transformers can load no memory. With the base's config.json beside its weights, it would load the
base alone and say nothing.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any, NoReturn

from torch import nn

from moram_dist.adapters.adapter import AdaptedLinear
from moram_dist.adapters.inject import put
from moram_dist.atoms.manifest import Manifest, as_text
from moram_dist.atoms.memory_files import MemoryFiles
from moram_dist.files import make_folder, write_atomically
from moram_dist.models.folder import CONFIG, TOKENIZER, local
from moram_dist.models.identity import identify, origin
from moram_dist.reading import read_record
from moram_dist.registry import InputError

SAVED = "moram.json"
VERSION = 1

MODEL_TYPE = "moram: load this folder by moram_dist.from_pretrained"
"""In config.json: transformers shows it when it refuses the folder."""

OF_TOKENIZER = (*TOKENIZER, "chat_template.jinja", "preprocessor_config.json")


@dataclass(frozen=True, kw_only=True)
class Saved:
    """``moram.json``."""

    recall: str
    recogniser: str
    unknown: str
    base: str
    """Fingerprint of ``base/``."""

    dtype: str
    """Of the adapted linears and the memory, as torch calls it: ``bfloat16``."""

    attention: str | None
    """The kernel, where every machine has it."""

    version: int = VERSION


def read_saved(folder: Path) -> Saved:
    """Read ``moram.json``. Raises InputError if it is damaged or of another version."""
    saved = read_record(folder / SAVED, Saved)
    if saved.version != VERSION:
        raise InputError(f"{folder / SAVED} has version {saved.version}; this program: {VERSION}")
    return saved


class Saver:
    """Replaces ``save_pretrained`` of a model with a memory."""

    def __init__(
        self,
        model: nn.Module,
        layers: Mapping[str, AdaptedLinear],
        files: MemoryFiles,
        manifest: Manifest,
        recall: Mapping[str, str],
    ) -> None:
        """``manifest`` names the loaded tasks only; ``recall`` holds the fields of ``Saved``."""
        self.model: Any = model
        self.layers = layers
        self.files = files
        self.manifest = manifest
        self.recall: dict[str, Any] = dict(recall)
        self.dtype = _dtype(layers)

    def __call__(self, save_directory: str | Path, **settings: Any) -> None:
        """Write base, memory and recall, for ``moram_dist.from_pretrained``.

        Args:
            save_directory: a folder that holds no model; it is created.
            settings: further arguments of transformers' ``save_pretrained``, such as
                ``max_shard_size``.

        Raises:
            InputError: the folder holds a model, the base is quantised, the memory's files are gone
                or the model's dtype was changed after the memory was loaded.
        """
        folder = Path(save_directory)
        self._check(folder, settings)
        for task in self.manifest.tasks:
            for stored in task.files:
                self.files.verify(stored)
        make_folder(folder / "base")
        self._save_base(folder / "base", settings)
        write_memory(folder / "memory", self.files, self.manifest)
        write_atomically(folder / CONFIG, json.dumps({"model_type": MODEL_TYPE}, indent=2) + "\n")
        kernel = getattr(self.model.config, "_attn_implementation", None)
        saved = Saved(
            **self.recall,
            base=identify(str(folder / "base")).fingerprint,
            dtype=self.dtype,
            attention=kernel if kernel in ("eager", "sdpa") else None,
        )
        write_atomically(folder / SAVED, json.dumps(asdict(saved), indent=2) + "\n")

    def _check(self, folder: Path, settings: Mapping[str, Any]) -> None:
        for name in (CONFIG, SAVED, "base", "memory"):
            if (folder / name).exists():
                raise InputError(f"{folder} already holds {name}: give a new folder")
        for name in ("push_to_hub", "state_dict"):
            if settings.get(name):
                raise InputError(f"save_pretrained of a model with a memory takes no {name}")
        if any(layer.is_quantised for layer in self.layers.values()):
            raise InputError(
                f"a quantised base is not saved with its memory; keep {self.files.folder}, and put "
                "it on the base by load_memory"
            )
        if _dtype(self.layers) != self.dtype:
            raise InputError(
                f"the model was {self.dtype} when its memory was loaded and is "
                f"{_dtype(self.layers)} now; load the memory again after the conversion"
            )

    def _save_base(self, folder: Path, settings: Mapping[str, Any]) -> None:
        for name, layer in self.layers.items():
            put(self.model, name, layer.base)
        try:
            type(self.model).save_pretrained(self.model, folder, **settings)
        finally:
            for name, layer in self.layers.items():
                put(self.model, name, layer)
        found = origin(self.model)
        source = local(found[0]) if found else None
        for name in OF_TOKENIZER:
            if source is not None and (source / name).is_file() and not (folder / name).exists():
                write_atomically(folder / name, (source / name).read_bytes())


class RefusedPush:
    """Replaces ``push_to_hub`` of a model that has a memory."""

    def __call__(self, *args: Any, **kwargs: Any) -> NoReturn:
        """Raise InputError."""
        raise InputError(
            "push_to_hub of a model with a memory is not supported: write a folder by "
            "save_pretrained, or by moram export RUN --to hub, and give it to "
            "huggingface_hub.upload_folder"
        )


def write_memory(folder: Path, files: MemoryFiles, manifest: Manifest) -> None:
    """Copy the files of a memory that a manifest names, then write the manifest.

    Raises:
        InputError: a file is missing or changed.
    """
    for task in manifest.tasks:
        for stored in task.files:
            write_atomically(folder / stored.file, files.verify(stored).read_bytes())
    write_atomically(folder / files.path.name, as_text(manifest))


def of_first(manifest: Manifest, count: int) -> Manifest:
    """The manifest of the first ``count`` tasks."""
    return replace(manifest, tasks=manifest.tasks[:count])


def _dtype(layers: Mapping[str, AdaptedLinear]) -> str:
    dtypes = {str(layer.like.dtype).removeprefix("torch.") for layer in layers.values()}
    return ", ".join(sorted(dtypes))
