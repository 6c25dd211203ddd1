"""moram-dist: continual learning of language models with MoRAM, on one GPU or many nodes."""

from typing import Any

__version__ = "0.1.0"
__all__ = ["__version__", "answered_by", "from_pretrained", "load_memory"]


def __getattr__(name: str) -> Any:
    # Imported late, so that scoring and reports, which need no model, do not wait for torch.
    if name in ("answered_by", "load_memory"):
        from moram_dist.methods import restore

        return getattr(restore, name)
    if name == "from_pretrained":
        from moram_dist.methods.from_saved import from_pretrained

        return from_pretrained
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
