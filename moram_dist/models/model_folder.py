"""Files of a model: in a folder, or in one commit of an id of the hub."""

from __future__ import annotations

from pathlib import Path

from moram_dist.registry import InputError


class ModelFolder:
    """Where the files of a model are. Those of an id of the hub are fetched as they are asked for.

    All come from the commit that config.json comes from.
    """

    def __init__(self, source: str, revision: str | None = None) -> None:
        """Raises InputError where there is neither such a folder nor such an id."""
        self.source = source
        self.path = Path(source)
        self.commit: str | None = None
        if not self.path.is_dir():
            self.path = self._fetched("config.json", revision).parent
            self.commit = self.path.name  # .../snapshots/COMMIT/config.json

    def file(self, name: str) -> Path:
        """Where a file is. Raises InputError where there is none."""
        path = self.path / name
        if path.is_file():
            return path
        if self.commit is None:
            raise InputError(f"--model {self.source}: {path} does not exist")
        return self._fetched(name, self.commit)

    def has(self, name: str) -> bool:
        """Whether there is such a file."""
        try:
            return self.file(name).is_file()
        except InputError:
            return False

    def code(self) -> list[str]:
        """Python files of a model that brings its own."""
        return sorted(path.name for path in self.path.glob("*.py"))

    def _fetched(self, name: str, revision: str | None) -> Path:
        from transformers.utils.hub import cached_file

        try:
            found = cached_file(self.source, name, revision=revision)
        except (OSError, ValueError) as error:
            reason = " ".join(str(error).split())[:200]
            raise InputError(f"--model {self.source}: {name} cannot be had: {reason}") from None
        if found is None:
            raise InputError(f"--model {self.source}: has no {name}")
        return Path(found)
