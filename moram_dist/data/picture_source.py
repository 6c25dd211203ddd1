"""Open a task's pictures by name, whether they are files or drawn."""

from __future__ import annotations

from pathlib import Path
from typing import Protocol

from PIL import Image

from moram_dist.data.drawn_pictures import DrawnPictures
from moram_dist.data.picture_files import PictureFolder
from moram_dist.tasks.task import Drawn


class Pictures(Protocol):
    """Opens pictures by name. Thread-safe."""

    def open(self, name: str) -> Image.Image:
        """The picture in RGB. Raises InputError where there is no such picture."""


def pictures_of(where: Path | Drawn) -> Pictures:
    """The pictures of a task, see ``Task.pictures``."""
    return DrawnPictures() if isinstance(where, Drawn) else PictureFolder(where)
