"""Keep passwords out of a job script: SLURM passes them to the job in the environment."""

from __future__ import annotations

import dataclasses
import re
from collections.abc import Mapping, MutableMapping, Sequence
from pathlib import Path

from launch.job_script import Site
from moram_dist.redaction import clean_address, clean_tree, names_secret
from moram_dist.registry import InputError

ADDRESS = "MLFLOW_TRACKING_URI"
ADDRESS_FLAGS = ("tracking_uri", "record.tracking_uri")


def split(
    site: Site, flags: Sequence[MutableMapping[str, str]], path: Path
) -> tuple[Site, dict[str, str]]:
    """Remove secrets from a site's settings and from the flags of each run.

    Args:
        site: variables that hold a secret are removed from its ``environment``.
        flags: of each run. A ``tracking_uri`` that holds a password is removed from them: the run
            reads it from MLFLOW_TRACKING_URI.
        path: the site's file, for messages.

    Returns:
        The site without secrets, and the environment variables to start sbatch with.

    Raises:
        InputError: a secret is somewhere from where it cannot be passed to the job.
    """
    environment = {str(name): str(value) for name, value in site.environment.items()}
    hidden = {name: value for name, value in environment.items() if names_secret(name, value)}
    for each in flags:
        for name in ADDRESS_FLAGS:
            if name in each and clean_address(each[name]) != each[name]:
                hidden[ADDRESS] = each.pop(name)
        for name, value in each.items():
            if clean_tree(value) != value:
                raise InputError(f"--{name} holds a password, and a job script keeps none")
    for name, value in site.sbatch.items():
        if clean_tree(str(value)) != str(value):
            raise InputError(
                f"{path}: sbatch: {name} holds a password, and a job script keeps none"
            )
    _check_setup(site.setup, path)
    if hidden:
        _check_export(site, hidden, path)
    kept = {name: value for name, value in site.environment.items() if str(name) not in hidden}
    return dataclasses.replace(site, environment=kept), hidden


def note(hidden: Mapping[str, str]) -> str:
    """A note about the variables that are not in the script, for the user."""
    return (
        f"note: {', '.join(sorted(hidden))} held a password, so the script leaves it out: sbatch "
        "passes it on; who submits the script by hand must export it"
    )


def _check_setup(setup: str, path: Path) -> None:
    for name, value in re.findall(r"(?m)^\s*(?:export\s+)?(\w+)=(\S+)", setup):
        literal = not value.lstrip("'\"").startswith(("$", "`"))
        if literal and names_secret(name, value):
            raise InputError(
                f"{path}: setup: {name} holds a password, and a job script keeps none; export it "
                "where you submit, or let setup read it from a file"
            )


def _check_export(site: Site, hidden: Mapping[str, str], path: Path) -> None:
    if "export" not in site.sbatch:
        return
    passed = str(site.sbatch["export"]).split(",")
    lost = sorted(name for name in hidden if name not in passed and "ALL" not in passed)
    if lost:
        raise InputError(f"{path}: sbatch: export must pass on {', '.join(lost)}")
