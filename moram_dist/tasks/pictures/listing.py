"""Read a YAML list of the user's own tasks of pictures, for benchmark ``images``.

::

    - name: birds
      folder: birds                 # relative to this file, in any form that is read, or
      train: birds/train            # two folders with a subfolder per class,
      test: birds/test              # or two parquet files
      template: a photo of a {}, a type of bird.   # default: a photo of a {}.
      classes: [robin, wren]        # names in label order, or {name in the files: new name}
      epochs: 10
    - name: signs
      folder: signs
      texts:                        # in place of a template: one text of each class, or several
        stop: a red sign with eight corners
        yield: [a triangle upside down, a sign to give way]

Several templates or texts of a class are averaged in tests; training uses the first.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from moram_dist.reading import read_yaml
from moram_dist.registry import InputError, unknown
from moram_dist.tasks.names import class_name, task_name
from moram_dist.tasks.pictures.class_folders import read_class_folders
from moram_dist.tasks.pictures.picture_set import Names, PictureSet, complete
from moram_dist.tasks.pictures.shapes import read_shape
from moram_dist.tasks.pictures.tables import read_tables
from moram_dist.tasks.pictures.templates import PHOTO
from moram_dist.terminal import quoted

_TEXT_KEYS = ("name", "folder", "train", "test")
_KEYS = (*_TEXT_KEYS, "template", "texts", "classes", "epochs")


@dataclass(frozen=True, kw_only=True)
class Entry:
    """One task before its files are read."""

    name: str
    read: Callable[[], PictureSet]
    templates: tuple[str, ...] = (PHOTO,)
    texts: dict[str, tuple[str, ...]] | None = None
    """In place of templates: the texts of each class."""

    epochs: float | None = None

    def texts_of(self, data: PictureSet) -> tuple[tuple[str, ...], ...]:
        """The finished texts of each class.

        Raises:
            InputError: a class without texts, or texts of no class.
        """
        if self.texts is None:
            spaced = [name.replace("_", " ") for name in data.names]
            return tuple(
                tuple(template.replace("{}", name) for template in self.templates)
                for name in spaced
            )
        for name in self.texts:
            if name not in data.names:
                raise InputError(f"task {self.name}: {unknown('class in texts', name, data.names)}")
        for name in data.names:
            if name not in self.texts:
                raise InputError(f"task {self.name}: texts has none for class {quoted(name)}")
        return tuple(self.texts[name] for name in data.names)


def read_listing(path: Path) -> list[Entry]:
    """The tasks of a YAML list, in its order.

    Raises:
        InputError: malformed; names the file, the task, counted from 0, and the key.
    """
    listing = read_yaml(path)
    if not isinstance(listing, list) or not listing:
        raise InputError(f"{path}: expected a list of tasks")
    entries: list[Entry] = []
    for index, item in enumerate(listing):
        entry = _entry(item, path.parent, f"{path}, task {index}")
        if any(entry.name == other.name for other in entries):
            raise InputError(f"{path}, task {index}: name {entry.name!r} is taken already")
        entries.append(entry)
    return entries


def _entry(item: Any, root: Path, where: str) -> Entry:
    if not isinstance(item, dict):
        raise InputError(f"{where}: expected keys and values, such as 'name: ...'")
    for key, value in item.items():
        if key not in _KEYS:
            raise InputError(f"{where}: {unknown('key', str(key), _KEYS)}")
        if key in _TEXT_KEYS and not (isinstance(value, str) and value and "\0" not in value):
            raise InputError(f"{where}: {key} must be a text (quote it), got {quoted(value)}")
    if "name" not in item:
        raise InputError(f"{where}: name is missing")
    if "template" in item and "texts" in item:
        raise InputError(f"{where}: give template or texts, not both")
    classes = _classes(item.get("classes"), where)
    epochs = item.get("epochs")
    if epochs is not None and (type(epochs) not in (int, float) or not 0 < epochs <= 10_000):
        raise InputError(f"{where}: epochs must be a number above 0, got {quoted(epochs)}")
    return Entry(
        name=task_name(item["name"], where),
        read=_reader(item, root, classes, where),
        templates=_templates(item.get("template", PHOTO), where),
        texts=_texts(item.get("texts"), where),
        epochs=epochs,
    )


def _reader(
    item: dict[str, Any], root: Path, classes: Names, where: str
) -> Callable[[], PictureSet]:
    folder, train, test = (
        root / item[key] if key in item else None for key in ("folder", "train", "test")
    )
    if folder and not train and not test:
        return lambda: complete(read_shape(folder), classes)
    if train and test and not folder:
        return lambda: complete(_read_two(train, test, root), classes)
    raise InputError(f"{where}: give folder, or both train and test")


def _read_two(train: Path, test: Path, root: Path) -> PictureSet:
    """A data set in two folders of classes or two parquet files."""
    if train.suffix == test.suffix == ".parquet":
        outside = [
            path for path in (train, test) if not path.resolve().is_relative_to(root.resolve())
        ]
        if outside:
            raise InputError(f"{outside[0]}: must be below {root}")
        return read_tables(root, {"train": [train], "test": [test]})
    for path in (train, test):
        if not path.is_dir():
            raise InputError(f"{path}: no such folder; train and test are folders of classes")
    return read_class_folders(train, test)


def _classes(value: Any, where: str) -> Names:
    """Class names: a list in label order, or new names by those in the files."""
    if value is None:
        return ()
    if isinstance(value, dict) and value:
        for name in (*value, *value.values()):
            class_name(name, f"{where}: classes")
        return value
    if isinstance(value, list) and value:
        return tuple(class_name(name, f"{where}: classes") for name in value)
    raise InputError(f"{where}: classes must be a list of names, got {quoted(value)}")


def _templates(value: Any, where: str) -> tuple[str, ...]:
    templates = _some_texts(value, f"{where}: template")
    for template in templates:
        if "{}" not in template:
            raise InputError(f"{where}: template {quoted(template)} has no {{}} for the class name")
    return templates


def _texts(value: Any, where: str) -> dict[str, tuple[str, ...]] | None:
    if value is None:
        return None
    if not isinstance(value, dict) or not value:
        raise InputError(
            f"{where}: texts must be class names with a text each, got {quoted(value)}"
        )
    return {
        class_name(name, f"{where}: texts"): _some_texts(texts, f"{where}: text of {quoted(name)}")
        for name, texts in value.items()
    }


def _some_texts(value: Any, where: str) -> tuple[str, ...]:
    """A text or a list of them."""
    texts = value if isinstance(value, list) else [value]
    if not texts or not all(isinstance(text, str) and text.strip() for text in texts):
        raise InputError(f"{where} must be a text or a list of texts, got {quoted(value)}")
    return tuple(texts)
