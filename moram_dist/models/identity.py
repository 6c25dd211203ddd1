"""Identify a base model by a fingerprint of its content, independent of its folder's name.

    identify(source)           files, digests and fingerprint; reads every weight once
    is_base(saved, source)     whether it is the model that a memory's manifest names
    origin(model)              the source of a loaded model

Two folders, or a folder and a hub id, are the same base if their configuration, weights and own
code are equal. File names do not count, so a shard may be renamed.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from moram_dist.models.digests import content_digest
from moram_dist.models.model_folder import ModelFolder
from moram_dist.reading import read_object
from moram_dist.registry import InputError

WEIGHTS = "model.safetensors"
INDEX = "model.safetensors.index.json"

NOT_THE_MODEL = ("transformers_version", "dtype", "torch_dtype")
"""Keys of config.json that depend on the program that saved it. The run chooses its precision."""


@dataclass(frozen=True, kw_only=True)
class BaseIdentity:
    """The content of a base model."""

    name: str
    """A folder's name or a hub id, for messages. Never compared."""

    fingerprint: str
    """sha256 over the digests of configuration, weights and code."""

    files: dict[str, str]
    """File name -> sha256. For config.json, the digest is of its values, not of its text."""

    commit: str | None = None
    """For a hub id, the commit that was read. For information."""

    @property
    def saved(self) -> dict[str, Any]:
        """Name and fingerprint, as a memory's manifest stores them."""
        return {"name": self.name, "fingerprint": self.fingerprint}


def identify(
    source: str,
    *,
    revision: str | None = None,
    name: str | None = None,
    say: Callable[[str], None] = lambda line: None,
) -> BaseIdentity:
    """Read a base model's configuration, weights and own code, and digest them.

    Digests of large files are cached for the user and reused until the file changes. Files of a
    hub id that are not on this machine yet are downloaded.

    Args:
        source: a folder or a hub id, as for ``from_pretrained``.
        revision: commit, branch or tag of a hub id.
        name: the name for messages; default: the folder's name, or the id.
        say: called with one line before a large file is read.

    Raises:
        InputError: config.json or a weight file is missing or cannot be read.
    """
    folder = ModelFolder(source, revision)
    values = read_object(folder.file("config.json"))
    files = {"config.json": _of_values(values)}
    names = [*_weights(folder), *(folder.code() if "auto_map" in values else ())]
    files |= {each: content_digest(folder.file(each), say) for each in names}
    plain = Path(source)
    return BaseIdentity(
        name=name or (plain.resolve().name if plain.exists() else source),
        fingerprint=hashlib.sha256("\n".join(_unnamed(files)).encode()).hexdigest(),
        files=files,
        commit=folder.commit,
    )


def fingerprint_of(source: str, revision: str | None = None) -> dict[str, Any]:
    """Name and fingerprint of a base, as a memory's manifest stores them: ``Manifest.base``.

    Raises:
        InputError: as ``identify``.
    """
    return identify(source, revision=revision).saved


def is_base(
    saved: Mapping[str, Any],
    source: str,
    *,
    revision: str | None = None,
    architecture: Any = None,
    known: BaseIdentity | None = None,
) -> bool:
    """Whether the base at ``source`` is the one that a manifest's ``base`` names.

    Also accepts fingerprints of older versions, which digested the first megabyte of each file.

    Args:
        saved: ``Manifest.base``.
        source: a folder or a hub id.
        revision: as for ``identify``.
        architecture: the loaded model's configuration; default: read from ``source``.
        known: the result of ``identify`` for ``source``, if available.

    Raises:
        InputError: as ``identify``.
    """
    found = saved.get("fingerprint")
    if known is not None and found == known.fingerprint:
        return True
    if architecture is None:
        from transformers import AutoConfig

        try:
            # A configuration with custom code has no older fingerprint. Without False,
            # transformers would ask at the terminal whether to run the code.
            architecture = AutoConfig.from_pretrained(
                source, revision=revision, trust_remote_code=False
            )
        except (OSError, ValueError, KeyError):
            architecture = None
    if architecture is not None and found in older_fingerprints(source, architecture):
        return True
    return known is None and found == identify(source, revision=revision).fingerprint


def origin(model: Any) -> tuple[str, str | None] | None:
    """Source and revision of a loaded model; None for a model created in memory."""
    config = getattr(model, "config", None)
    source = getattr(config, "_name_or_path", "") or ""
    return (source, getattr(config, "_commit_hash", None)) if source else None


def changes(then: BaseIdentity, now: BaseIdentity) -> list[str]:
    """The differences between two bases, one line each; empty if they are the same."""
    if then.fingerprint == now.fingerprint:
        return []
    both = then.files.keys() & now.files.keys()
    lines = [
        f"{name} is another file" for name in sorted(both) if then.files[name] != now.files[name]
    ]
    for one, other, verb in ((then, now, "is gone"), (now, then, "is new")):
        kept = {*other.files.values()}
        lines += [
            f"{name} {verb}"
            for name, digest in sorted(one.files.items())
            if name not in other.files and digest not in kept
        ]
    return lines


def older_fingerprints(source: str, architecture: Any) -> set[str]:
    """The fingerprints that versions before whole-content fingerprints may have given this base.

    They digested transformers' configuration in memory, with ``use_cache`` off under gradient
    checkpointing, and the first megabyte of each weight file of a folder.
    """
    plain = {
        key: value
        for key, value in architecture.to_dict().items()
        if not key.startswith("_") and key not in ("transformers_version", "dtype")
    }
    found = set()
    for values in (plain, plain | {"use_cache": True}, plain | {"use_cache": False}):
        digest = hashlib.sha256(json.dumps(values, sort_keys=True, default=str).encode())
        for path in sorted(Path(source).glob("*.safetensors")):
            with path.open("rb") as file:
                digest.update(f"{path.name} {path.stat().st_size}".encode())
                digest.update(file.read(1 << 20))
        found.add(digest.hexdigest())
    return found


def _weights(folder: ModelFolder) -> list[str]:
    """Names of the weight files that transformers reads."""
    if folder.has(WEIGHTS):
        return [WEIGHTS]
    if folder.has(INDEX):
        index = folder.file(INDEX)
        shards = read_object(index).get("weight_map")
        if not isinstance(shards, dict) or not all(isinstance(x, str) for x in shards.values()):
            raise InputError(f"{index}: weight_map must map tensors to files")
        return sorted({*shards.values()})
    found = sorted(path.name for path in folder.path.glob("*.safetensors"))
    if not found:
        raise InputError(
            f"--model {folder.source}: holds no *.safetensors; other formats are not read, because "
            "unpickling runs code"
        )
    return found


def _of_values(config: Mapping[str, Any]) -> str:
    """Digest of a configuration's values without ``NOT_THE_MODEL`` and private keys."""
    text = json.dumps(_plain(config), sort_keys=True, ensure_ascii=False)
    return hashlib.sha256(text.encode()).hexdigest()


def _plain(value: Any) -> Any:
    if isinstance(value, Mapping):
        return {
            key: _plain(part)
            for key, part in value.items()
            if not key.startswith("_") and key not in NOT_THE_MODEL
        }
    return [_plain(part) for part in value] if isinstance(value, list) else value


def _unnamed(files: Mapping[str, str]) -> list[str]:
    """The configuration's digest, then the others sorted, so that file names do not matter."""
    return [files["config.json"], *sorted(d for n, d in files.items() if n != "config.json")]
