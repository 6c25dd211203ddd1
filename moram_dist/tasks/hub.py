"""Read the records of a Hugging Face data set: an id on the hub, or a folder of the same form.

The library ``datasets`` reads it and keeps a copy in its cache, so later starts need no network.
"""

from __future__ import annotations

import re
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from moram_dist.registry import InputError
from moram_dist.tasks.record_files import Records

_ID = re.compile(r"[A-Za-z0-9][\w.-]*(/[A-Za-z0-9][\w.-]*)?")


@dataclass(frozen=True)
class DataSet:
    """One split of a data set."""

    source: str
    """A folder, or an id on the hub: ``owner/name``."""

    subset: str | None
    """The library calls it a configuration; None: the only one, or the default."""

    split: str
    """A name, or a part of one as the library writes it: ``train[:90%]``."""

    def __str__(self) -> str:
        return " ".join(filter(None, (self.source, self.subset, self.split)))

    def records(self) -> Records:
        """The records of the split; labels are given by their names.

        Raises:
            InputError: nothing of this name, subset or split can be read.
        """
        found = self._load()
        names = {key: _namer(feature) for key, feature in found.features.items()}
        for index, row in enumerate(found):
            yield f"{self}, record {index}", {key: names[key](row[key]) for key in row}

    def _load(self) -> Any:
        is_folder = Path(self.source).is_dir()
        if not is_folder and not _ID.fullmatch(self.source):
            raise InputError(f"{self.source}: no such folder, and no id of a data set on the hub")
        import datasets

        datasets.disable_progress_bars()  # of every rank
        try:
            return datasets.load_dataset(self.source, self.subset, split=self.split)
        except MemoryError:
            raise
        except Exception as error:  # it runs readers of many kinds, which raise all kinds of errors
            if not is_folder and _is_offline():
                raise InputError(
                    f"{self.source}: HF_HUB_OFFLINE is set, and the cache of data sets does not "
                    f"hold {self}; unset it for the first start, or give a folder"
                ) from None
            said = " ".join(str(error.__cause__ or error).split()) or type(error).__name__
            raise InputError(f"{self}: the data set cannot be read: {said}") from None


def _is_offline() -> bool:
    from huggingface_hub import constants

    return bool(constants.HF_HUB_OFFLINE)


def _namer(feature: Any) -> Callable[[Any], Any]:
    """Gives the name of a label by its number; leaves all other values as they are."""
    names = getattr(feature, "names", None)
    if not isinstance(names, list):
        return lambda value: value
    return lambda value: value if value is None or value < 0 else names[value]
