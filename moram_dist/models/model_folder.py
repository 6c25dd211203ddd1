"""The files of a model, in a folder or in one commit of a hub id."""

from __future__ import annotations

from pathlib import Path

from moram_dist.registry import InputError


class ModelFolder:
    """The files of a model. Those of a hub id are downloaded on first use.

    All come from the same commit as config.json.
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
        """The path of a file. Raises InputError where there is none."""
        path = self.path / name
        if path.is_file():
            return path
        if self.commit is None:
            raise InputError(f"--model {self.source}: {path} does not exist")
        return self._fetched(name, self.commit)

    def has(self, name: str) -> bool:
        """Whether the file exists."""
        try:
            return self.file(name).is_file()
        except InputError:
            return False

    def code(self) -> list[str]:
        """Names of the model's own Python files."""
        return sorted(path.name for path in self.path.glob("*.py"))

    def _fetched(self, name: str, revision: str | None) -> Path:
        from transformers.utils.hub import cached_file

        try:
            found = cached_file(self.source, name, revision=revision)
        except (OSError, ValueError) as error:
            reason = " ".join(str(error).split())[:200]
            raise InputError(
                f"--model {self.source}: {name} cannot be obtained: {reason}"
            ) from None
        if found is None:
            raise InputError(f"--model {self.source}: has no {name}")
        return Path(found)
