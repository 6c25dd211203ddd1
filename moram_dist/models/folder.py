"""Check a base model's files: all present, intact, in a supported format, and no adapter."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from torch import Tensor

from moram_dist.reading import read_object, record
from moram_dist.registry import InputError

CONFIG = "config.json"
WHOLE = "model.safetensors"
INDEX = "model.safetensors.index.json"
SHARD = re.compile(r"model-\d+-of-\d+\.safetensors")

ADAPTER = ("adapter_config.json", "adapter_model.safetensors", "adapter_model.bin")
"""PEFT's files. transformers would load the adapter into the model, or another base model."""

TOKENIZER = (
    "tokenizer.json",
    "tokenizer_config.json",
    "special_tokens_map.json",
    "added_tokens.json",
    "tokenizer.model",
    "spiece.model",
    "sentencepiece.bpe.model",
    "tekken.json",
    "vocab.json",
    "merges.txt",
    "vocab.txt",
)

POINTER = b"version https://git-lfs"

COUNTS = re.compile(r"^(?!max_).*(layers?|experts|labels)$")
"""Settings that count parts of a model or class labels, each of which takes time to create."""

MOST_WITHOUT_WEIGHTS = 1000
"""Up to this number, parts may outnumber the tensors in the weights: some models share tensors."""

NAME_SHOWN = 100


class BaseError(InputError):
    """A problem with the base model. The message begins with the model's name as given."""

    def __init__(self, name: str, problem: str) -> None:
        shown = name if len(name) <= NAME_SHOWN else f"{name[:NAME_SHOWN]}..."
        if not shown.strip() or not shown.isprintable():
            shown = repr(shown)
        super().__init__(f"--model {shown}: {problem}")


def because(error: Exception) -> str:
    """A library's message, shortened to end a line."""
    return " ".join(str(error).split())[:200] or type(error).__name__


def check_name(name: str) -> Path | None:
    """The folder with this name; None for a hub id.

    Raises:
        InputError: the name can be neither, or the folder does not exist.
    """
    from huggingface_hub.errors import HFValidationError
    from huggingface_hub.utils import validate_repo_id

    path = Path(name)
    try:
        if path.exists():
            return path
    except (OSError, ValueError):  # too long a name, or one with a null byte
        raise BaseError(name, "cannot be the name of a folder or of a model of the hub") from None
    if name.startswith(("/", ".", "~")):  # never an id of the hub
        raise BaseError(name, "no such folder")
    try:
        validate_repo_id(name)
    except HFValidationError:
        raise BaseError(name, "no such folder, and no name of a model of the hub") from None
    return None


def local(source: str) -> Path | None:
    """The folder with a model's files, its own or in the hub's cache; None if not downloaded."""
    from huggingface_hub import try_to_load_from_cache

    path = Path(source)
    if path.exists():
        return path
    found = try_to_load_from_cache(source, CONFIG)
    return Path(found).parent if isinstance(found, str) else None


def fetch(source: str) -> Path:
    """Download a model's weight files from the hub if they are not cached; returns their folder.

    Raises:
        InputError: they cannot be downloaded.
    """
    from huggingface_hub import hf_hub_download
    from huggingface_hub.errors import EntryNotFoundError

    try:
        try:
            return Path(hf_hub_download(source, WHOLE)).parent
        except EntryNotFoundError:  # also raised if it is not cached and the hub is unreachable
            folder = Path(hf_hub_download(source, INDEX)).parent
            for file in _named_shards(folder, source):
                hf_hub_download(source, file)
            return folder
    except (EntryNotFoundError, OSError) as error:
        raise BaseError(
            source,
            f"neither {WHOLE} nor {INDEX} with its files is in the cache of the Hugging Face hub "
            f"or available from it: {because(error)}",
        ) from None


def check_folder(folder: Path, name: str) -> None:
    """Check all that needs no library: the kinds of files and the number of parts to create.

    Raises:
        InputError: names the file and says what to do.
    """
    if not folder.is_dir():
        raise BaseError(name, "is a file; give the folder that holds it")
    for path in sorted(folder.iterdir()):
        # Reading would wait for a pipe's writer, and never reach the end of a device.
        if path.exists() and not (path.is_file() or path.is_dir()):
            raise BaseError(name, f"{path.name} is no file but a device, pipe or socket")
    adapter = next((each for each in ADAPTER if (folder / each).exists()), None)
    if adapter:
        raise BaseError(
            name,
            f"holds {adapter}, of a PEFT adapter; give the folder of the base model alone, or "
            "merge the adapter into it (merge_and_unload) and save the result",
        )
    for each in (CONFIG, *TOKENIZER):
        refuse_pointer(folder / each, name)
    if not (folder / CONFIG).is_file():
        raise BaseError(name, f"{folder / CONFIG} does not exist")
    settings = _object(folder / CONFIG, name)
    parts = _most(settings)
    if parts[1] <= MOST_WITHOUT_WEIGHTS:
        return
    tensors = sum(len(header(path, name)) for path in weight_files(folder, name))
    if parts[1] > tensors:
        raise BaseError(
            name,
            f"{CONFIG}: {parts[0]} is {parts[1]}, and the weights have {tensors} tensors",
        )


def _object(path: Path, name: str) -> dict[str, Any]:
    try:
        return read_object(path)
    except InputError as error:
        raise BaseError(name, f"{error}; download the file again") from None


def _most(settings: dict[str, Any]) -> tuple[str, int]:
    """The setting that requires the most parts, and their number."""
    found = [("", 0)]
    for key, value in settings.items():
        if isinstance(value, dict):
            found.append(_most(value))
        elif isinstance(value, int | float) and COUNTS.match(key):
            found.append((key, int(min(value, 1e18))))
    return max(found, key=lambda each: each[1])


def refuse_pointer(path: Path, name: str) -> None:
    """Raises InputError where a file is only a git-lfs pointer."""
    try:
        with path.open("rb") as file:
            begins = file.read(len(POINTER))
    except FileNotFoundError:
        return
    except OSError as error:
        raise BaseError(name, f"{path}: cannot be read: {error.strerror}") from None
    if begins == POINTER:
        raise BaseError(
            name,
            f"{path.name} is a git-lfs pointer, not the file itself; fetch it (git lfs pull) or "
            "download it again",
        )


def weight_files(folder: Path, name: str) -> tuple[Path, ...]:
    """The files from which transformers loads weights.

    Raises:
        InputError: no file has a supported format, or the index does not match its shards.
    """
    if (folder / WHOLE).is_file():
        return (folder / WHOLE,)
    if (folder / INDEX).is_file():
        return _shards(folder, name)
    shard = next((path.name for path in sorted(folder.glob("*.safetensors"))), None)
    if shard and SHARD.fullmatch(shard):
        raise BaseError(name, f"{INDEX} does not exist, which says what {shard} holds")
    if shard:
        raise BaseError(name, f"holds {shard}, but neither {WHOLE} nor {INDEX}")
    raise BaseError(
        name,
        "holds no *.safetensors; other formats are not read, because unpickling runs code",
    )


def _shards(folder: Path, name: str) -> tuple[Path, ...]:
    path = folder / INDEX
    named = _weight_map(folder, name)
    files = _named_shards(folder, name)
    absent = [f for f in files if not (folder / f).is_file()]
    if absent:
        raise BaseError(
            name,
            f"{path.name} names {len(files)} files, of which {absent[0]} is missing; download it",
        )
    further = [f.name for f in sorted(folder.glob("*.safetensors")) if SHARD.fullmatch(f.name)]
    unnamed = next((f for f in further if f not in files), None)
    if unnamed:
        raise BaseError(
            name,
            f"holds {unnamed}, which {path.name} does not name: files of two versions of the model",
        )
    _compare(folder, named, name)
    return tuple(folder / f for f in files)


def _weight_map(folder: Path, name: str) -> dict[str, str]:
    """The index's map of tensors to files."""
    path = folder / INDEX
    refuse_pointer(path, name)
    where = _object(path, name).get("weight_map")
    named: dict[str, str] = record(dict[str, str], where, f"--model {name}: {path}: weight_map")
    if not named:
        raise BaseError(name, f"{path.name} names no tensor; download it again")
    return named


def _named_shards(folder: Path, name: str) -> list[str]:
    files = sorted(set(_weight_map(folder, name).values()))
    for file in files:
        parts = Path(file).parts
        if not parts or Path(file).is_absolute() or ".." in parts or "\0" in file:
            raise BaseError(name, f"{INDEX} names {file!r}, which is not in this folder")
    return files


def _compare(folder: Path, named: dict[str, str], name: str) -> None:
    """Check that shards hold the tensors that the index assigns to them, each tensor once."""
    holder: dict[str, str] = {}
    for file in sorted(set(named.values())):
        for tensor in header(folder / file, name):
            if tensor in holder:
                raise BaseError(name, f"{tensor} is in two files: {holder[tensor]} and {file}")
            holder[tensor] = file
    lost = next((tensor for tensor, file in named.items() if holder.get(tensor) != file), None)
    if lost is not None:
        raise BaseError(
            name,
            f"{INDEX} says that {lost} is in {named[lost]}, and it is not; download both again",
        )


def header(path: Path, name: str) -> dict[str, Tensor]:
    """A weight file's tensors by name, on the meta device without their content.

    Raises:
        InputError: the file is empty, truncated or damaged, or holds an unknown dtype.
    """
    from transformers.modeling_utils import load_state_dict

    refuse_pointer(path, name)
    if not path.stat().st_size:
        raise BaseError(name, f"{path.name} is empty; download it again")
    try:
        return load_state_dict(str(path), map_location=torch.device("meta").type)
    except (SafetensorError, OSError, ValueError, RuntimeError) as error:
        raise BaseError(
            name, f"{path.name} is cut short or damaged ({because(error)}); download it again"
        ) from None
