"""Compare two tokenizers by their files and by their behaviour."""

from __future__ import annotations

import hashlib
import json
from dataclasses import dataclass
from typing import Any

from moram_dist.files import sha256
from moram_dist.models.model_folder import ModelFolder

SETTINGS = ("tokenizer_config.json", "special_tokens_map.json", "added_tokens.json")
"""Files of any tokenizer; the names of vocabulary files depend on its class."""


@dataclass(frozen=True, kw_only=True)
class TokenizerIdentity:
    """The files and the behaviour of a tokenizer."""

    files: dict[str, str]
    """File name -> sha256."""

    behaviour: str | None
    """sha256 of its rules, vocabulary and special tokens; None if it cannot export them."""


def identify_tokenizer(source: str, tokenizer: Any) -> TokenizerIdentity:
    """Digest a loaded tokenizer and its files.

    Raises:
        InputError: there is neither such a folder nor such a hub id.
    """
    folder = ModelFolder(source)
    names = {*SETTINGS, *getattr(tokenizer, "vocab_files_names", {}).values()}
    if folder.has(SETTINGS[0]) and b'"auto_map"' in folder.file(SETTINGS[0]).read_bytes():
        names |= {*folder.code()}
    files = {name: sha256(folder.file(name)) for name in sorted(names) if folder.has(name)}
    return TokenizerIdentity(files=files, behaviour=_behaviour(tokenizer))


def has_files_of(source: str, then: TokenizerIdentity) -> bool:
    """Whether a folder or hub id holds the files of a tokenizer unchanged, without loading it."""
    folder = ModelFolder(source)
    names = {*SETTINGS, *then.files}
    return then.files == {name: sha256(folder.file(name)) for name in names if folder.has(name)}


def tokenizer_changes(then: TokenizerIdentity, now: TokenizerIdentity) -> list[str]:
    """The differences between two tokenizers, one line each; empty if they are the same.

    Equal files are the same tokenizer, even if a newer library reads them differently; so are equal
    rules, vocabulary and special tokens. Chat templates count in the digests of prompts instead.
    """
    if then.files == now.files or (then.behaviour and then.behaviour == now.behaviour):
        return []
    lines = []
    for name in sorted(then.files.keys() | now.files.keys()):
        if then.files.get(name) != now.files.get(name):
            both = name in then.files and name in now.files
            verb = "is another file" if both else "is gone" if name in then.files else "is new"
            lines.append(f"{name} {verb}")
    return lines


def _behaviour(tokenizer: Any) -> str | None:
    backend = getattr(tokenizer, "backend_tokenizer", None)
    if backend is None:
        return None
    special = [
        [name, getattr(tokenizer, f"{name}_token", None), getattr(tokenizer, f"{name}_token_id")]
        for name in ("bos", "eos", "unk", "pad")
    ]
    content = json.dumps([backend.to_str(), special], ensure_ascii=False)
    return hashlib.sha256(content.encode("utf-8", "surrogatepass")).hexdigest()
