"""A base's tokenizer: that it is there, whole, and the one that the model was trained with.

transformers makes a tokenizer that knows no word, or reads the vocabulary in another way, where a
file is missing; what it raises on a broken one depends on the kind.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

from moram_dist.models.folder import TOKENIZER, BaseError, because
from moram_dist.reading import read_json, read_object
from moram_dist.registry import InputError

WHOLE = "tokenizer.json"
SETTINGS = "tokenizer_config.json"

SPACE = "▁"
"""The one token that is no special one in T5's vocabulary where its file is missing."""


def read_tokenizer(source: str, folder: Path | None, name: str, *, trust_remote_code: bool) -> Any:
    """The tokenizer as it is in the files.

    Args:
        source: what transformers loads: a folder or a hub id.
        folder: where its files are, None where that is not known.
        name: of the base, for messages.
        trust_remote_code: whether its own code may run.

    Raises:
        InputError: which file is missing or broken.
    """
    from transformers import AutoTokenizer

    if folder is not None:
        _check_files(folder, name)
    try:
        tokenizer = AutoTokenizer.from_pretrained(source, trust_remote_code=trust_remote_code)
        ordinary = {*tokenizer.get_vocab()} - {*tokenizer.all_special_tokens, SPACE}
    except Exception as error:  # tokenizers raises bare ones
        if "trust_remote_code" in str(error):
            raise BaseError(
                name,
                "its tokenizer needs code of its own, which tokenizer_config.json names under "
                "auto_map; read it, then give --trust_remote_code true",
            ) from None
        found = [each for each in TOKENIZER if folder is not None and (folder / each).is_file()]
        files = f" from {', '.join(found)}" if found else ": it has no file of one"
        raise BaseError(
            name, f"no tokenizer can be made{files} ({because(error)}); download the files again"
        ) from None
    if len(ordinary) < 2:
        raise BaseError(
            name,
            "its tokenizer knows special tokens only: the file with its vocabulary is missing or "
            "empty (tokenizer.json, or tokenizer.model, or vocab.json and merges.txt)",
        )
    return tokenizer


def _check_files(folder: Path, name: str) -> None:
    for path in (folder / each for each in TOKENIZER):
        if not path.is_file():
            continue
        if not path.stat().st_size:
            raise BaseError(name, f"{path.name} is empty; download it again")
        if path.suffix == ".json" and path.name != WHOLE:  # large, and read by the library
            _read(path, name)
    if (folder / WHOLE).exists():
        return
    if not (folder / SETTINGS).exists():
        raise BaseError(
            name,
            f"holds neither {WHOLE} nor {SETTINGS}, which say how text becomes tokens; download "
            "them",
        )
    _check_class(folder / SETTINGS, name)


def _check_class(path: Path, name: str) -> None:
    """Whether transformers knows the class; else it takes another one, without a word."""
    from transformers.models.auto.tokenization_auto import tokenizer_class_from_name

    settings = read_object(path)
    kind = settings.get("tokenizer_class")
    if kind is None or "auto_map" in settings:
        return
    if not isinstance(kind, str) or tokenizer_class_from_name(kind) is None:
        raise BaseError(
            name, f"{path.name}: tokenizer_class {kind!r} is no tokenizer of transformers"
        )


def _read(path: Path, name: str) -> None:
    try:
        if path.name in (SETTINGS, "special_tokens_map.json"):
            read_object(path)
        else:
            read_json(path)
    except InputError as error:
        raise BaseError(name, f"{error}; download the file again") from None
