"""Pictures that are no files: each is drawn from its name when it is opened."""

from __future__ import annotations

from random import Random

from PIL import Image

from moram_dist.data.drawing import DRAW
from moram_dist.registry import InputError
from moram_dist.tasks.demo_pictures import SUBJECTS
from moram_dist.terminal import quoted


class DrawnPictures:
    """Opens the pictures of the demo, as a ``PictureFolder`` opens files. Thread-safe."""

    def open(self, name: str) -> Image.Image:
        """The picture in RGB, the same at each call; see ``demo_pictures.picture_name``.

        Raises:
            InputError: the name has no subject and class of the demo.
        """
        subject, _, rest = name.partition("/")
        label = rest.partition("/")[0]
        if subject not in SUBJECTS or label not in SUBJECTS[subject].classes:
            raise InputError(f"no picture of the demo is named {quoted(name)}")
        return DRAW[subject](label, Random(name))
