"""Load a base's tokenizer and check that its files are complete and intact.

If a file is missing, transformers makes a tokenizer that knows no word or reads the vocabulary in
another way. Its exceptions for a broken file depend on the kind of tokenizer.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

from moram_dist.models.folder import TOKENIZER, BaseError, because
from moram_dist.reading import read_object, read_text
from moram_dist.registry import InputError

WHOLE = "tokenizer.json"
SETTINGS = "tokenizer_config.json"

VOCABULARY = "vocab.json"
MERGES = "merges.txt"

END = "</w>"
"""End of a word in the vocabularies of XLM and CLIP."""

FEW = 100
"""Words allowed without a merge, plus a tenth of the vocabulary: special tokens, fillers."""

SPACE = "▁"
"""The only ordinary token in T5's vocabulary if its file is missing."""


def read_tokenizer(source: str, folder: Path | None, name: str, *, trust_remote_code: bool) -> Any:
    """Load the tokenizer unchanged from its files.

    Args:
        source: the folder or hub id that transformers loads.
        folder: with its files; None if not known.
        name: of the base, for messages.
        trust_remote_code: whether its own code may run.

    Raises:
        InputError: a file is missing or broken.
    """
    from transformers import AutoTokenizer

    if folder is not None:
        _check_files(folder, name)
    try:
        tokenizer = AutoTokenizer.from_pretrained(source, trust_remote_code=trust_remote_code)
        ordinary = {*tokenizer.get_vocab()} - {*tokenizer.all_special_tokens, SPACE}
    except Exception as error:  # the tokenizers library raises plain Exception
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
        if path.suffix == ".json" and path.name != WHOLE:  # WHOLE is large; the library checks it
            _object(path, name)
    if (folder / WHOLE).exists():
        return
    if (folder / VOCABULARY).exists() and (folder / MERGES).exists():
        _check_merges(folder, name)
    if not (folder / SETTINGS).exists():
        raise BaseError(
            name,
            f"holds neither {WHOLE} nor {SETTINGS}, which say how text becomes tokens; download "
            "them",
        )
    _check_class(folder / SETTINGS, name)


def _check_merges(folder: Path, name: str) -> None:
    """Check that the merges make the vocabulary's words: transformers accepts a truncated list."""
    lines = read_text(folder / MERGES).split("\n")
    merged = {"".join(line.split(" ")[:2]) for line in lines}
    vocabulary = _object(folder / VOCABULARY, name)
    words = {word.removesuffix(END) for word in vocabulary if len(word) > 1} - merged
    if len(words) > FEW + len(vocabulary) // 10:
        raise BaseError(
            name,
            f"{MERGES} does not make {len(words)} of the {len(vocabulary)} tokens of {VOCABULARY}, "
            f"such as {max(words)!r}; it is cut short, or of another model",
        )


def _check_class(path: Path, name: str) -> None:
    """Check that transformers knows the class; otherwise it silently takes another one."""
    from transformers.models.auto.tokenization_auto import tokenizer_class_from_name

    settings = _object(path, name)
    kind = settings.get("tokenizer_class")
    if kind is None or "auto_map" in settings:
        return
    if not isinstance(kind, str) or tokenizer_class_from_name(kind) is None:
        raise BaseError(
            name, f"{path.name}: tokenizer_class {kind!r} is no tokenizer of transformers"
        )


def _object(path: Path, name: str) -> dict[str, Any]:
    try:
        return read_object(path)
    except InputError as error:
        raise BaseError(name, f"{error}; download the file again") from None
