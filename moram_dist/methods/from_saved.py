"""Load a model with its memory from a folder that ``save_pretrained`` wrote."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from torch import nn

from moram_dist.families import family_of
from moram_dist.methods.restore import load_memory
from moram_dist.methods.saved import SAVED, read_saved
from moram_dist.models.identity import identify
from moram_dist.registry import InputError


def from_pretrained(folder: str | Path, **settings: Any) -> nn.Module:
    """The model with its memory and its recall, as it was saved, in eval mode.

    Args:
        folder: written by ``save_pretrained`` of a model with a memory.
        settings: further arguments of transformers' ``from_pretrained`` for the base, such as
            ``device_map`` or ``dtype``; default: as saved.

    Raises:
        InputError: the folder holds no such model, or a part of it is damaged or replaced.
    """
    from transformers import AutoConfig

    path = Path(folder)
    if not (path / SAVED).is_file():
        raise InputError(
            f"{path}: holds no {SAVED}: it is not a folder that save_pretrained of a model with a "
            "memory wrote to its end; for a folder on the hub, give the path that "
            "huggingface_hub.snapshot_download returns"
        )
    saved, base = read_saved(path), str(path / "base")
    if identify(base).fingerprint != saved.base:
        raise InputError(f"{base} is not the base that was saved with this memory")
    trusted = {k: settings[k] for k in ("trust_remote_code",) if k in settings}
    kind = family_of(AutoConfig.from_pretrained(base, **trusted)).auto_class()
    if saved.attention is not None:
        settings.setdefault("attn_implementation", saved.attention)
    model = kind.from_pretrained(base, **{"dtype": "auto"} | settings)
    return load_memory(
        model,
        path,
        any_base=True,
        recall=saved.recall,
        recogniser=saved.recogniser,
        unknown=saved.unknown,
    )
