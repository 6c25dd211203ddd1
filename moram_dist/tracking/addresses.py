"""Choose and check the address of an MLflow store, without network access."""

from __future__ import annotations

import ipaddress
import os
import re
from collections.abc import Callable
from importlib.metadata import entry_points
from pathlib import Path
from urllib.parse import parse_qsl, urlsplit

from moram_dist.redaction import HIDDEN, clean_address
from moram_dist.registry import InputError

VARIABLE = "MLFLOW_TRACKING_URI"
FLAG = "--tracking_uri"

SQLITE = "sqlite:///"
SQLITE_ENCODED = "sqlite+pysqlite:///"
"""For files whose name has to be encoded. With ``sqlite:///``, MLflow would also create a folder
with the encoded name."""

SQLITE_OPTIONS = frozenset(
    {"timeout", "isolation_level", "detect_types", "check_same_thread", "cached_statements"}
)
SERVERS = ("postgresql", "mysql", "mssql")


def store_of(run_dir: Path, uri: str | None = None) -> str:
    """``uri``, else MLFLOW_TRACKING_URI, else the embedded store that runs in one folder share.

    If ``uri`` was saved without its password, it is completed from MLFLOW_TRACKING_URI.
    """
    given = os.environ.get(VARIABLE)
    if uri and given and clean_address(given) == uri:
        return given
    return uri or given or sqlite_address(run_dir.resolve().parent / "mlflow.db")


def sqlite_address(database: Path) -> str:
    """The address of an sqlite file whose path may contain any characters."""
    path = str(database)
    if not re.search(r"[?%]", path):
        return f"{SQLITE}{path}"
    return SQLITE_ENCODED + path.replace("%", "%25").replace("?", "%3F")


def sqlite_file(uri: str) -> Path | None:
    """The file of an sqlite store; None for other stores. Raises InputError as ``check`` does."""
    if urlsplit(uri).scheme not in ("sqlite", "sqlite+pysqlite"):
        return None
    if not uri.startswith((SQLITE, SQLITE_ENCODED)):
        raise InputError(
            "an sqlite file is given as sqlite:///FILE, a full path as sqlite:////FILE"
        )
    path = uri.partition(":///")[2].partition("?")[0]
    if "%" in path:
        from sqlalchemy.engine import make_url  # MLflow uses the same decoding

        path = make_url(uri).database or ""
    if not path or path == ":memory:" or path.startswith("file:"):
        raise InputError("an sqlite store must be a file: sqlite:///FILE")
    return Path(path)


def check(uri: str | None) -> None:
    """Check that a store can be at ``uri``, or if None, at MLFLOW_TRACKING_URI.

    Raises:
        InputError: MLflow stores no runs at such an address, or it is invalid.
    """
    name, uri = (FLAG, uri) if uri else (VARIABLE, os.environ.get(VARIABLE))
    if not uri:
        return
    try:
        _check(uri)
    except InputError as error:
        raise InputError(f"{name} {clean_address(uri)!r}: {error}") from None


def _check(uri: str) -> None:
    if re.search(r"[\x00-\x1f\x7f]", uri) or uri != uri.strip():
        raise InputError("control characters and blanks around it are no part of an address")
    if HIDDEN in uri:
        given = os.environ.get(VARIABLE)
        if given and given != uri == clean_address(given):
            return _check(given)
        raise InputError(
            f"its password was taken out when it was kept; give it again, here or in {VARIABLE}"
        )
    if uri == "databricks":
        return None
    try:
        scheme = urlsplit(uri).scheme
    except ValueError:
        raise InputError("malformed; a server is given as http://HOST:PORT") from None
    if scheme in ("", "file"):
        raise InputError(
            "MLflow keeps no runs in a plain folder; give sqlite:///FILE or a server's address"
        )
    if scheme == "databricks":
        return None
    kinds: dict[str, Callable[[str], None]] = {
        "http": _check_server,
        "https": _check_server,
        "sqlite": _check_sqlite,
        **dict.fromkeys(SERVERS, _check_database),
    }
    base = scheme if scheme.startswith("http") else scheme.partition("+")[0]
    if base in kinds:
        return kinds[base](uri)
    if scheme not in entry_points(group="mlflow.tracking_store").names:
        known = ", ".join((*kinds, "databricks"))
        raise InputError(f"no store of kind {scheme!r}; known: {known}")
    return None


def _check_server(uri: str) -> None:
    if re.search(r"[\s\\<>\"{}|^`]", uri):
        raise InputError('blanks and \\ < > " { } | ^ ` are no part of an address')
    parts = urlsplit(uri)
    if not uri.partition(":")[2].startswith("//") or not parts.hostname:
        raise InputError("names no host; a server is given as http://HOST:PORT")
    _check_port(lambda: parts.port)
    _check_host(parts.hostname, bracketed=parts.netloc.rpartition("@")[2].startswith("["))


def _check_port(port: Callable[[], int | None]) -> None:
    try:
        number = port()
    except ValueError:
        number = 0
    if number is not None and not 0 < number < 65536:
        raise InputError("its port must be a number from 1 to 65535")


def _check_host(host: str, *, bracketed: bool) -> None:
    try:
        if bracketed:
            ipaddress.IPv6Address(host)
        elif re.fullmatch(r"\d+(\.\d+){3}", host):
            ipaddress.IPv4Address(host)
        else:
            host.removesuffix(".").encode("idna")
        valid = "%" not in host or bracketed
    except ValueError:
        valid = False
    if not valid:
        raise InputError(f"{host!r} cannot be the name or the address of a host")


def _check_sqlite(uri: str) -> None:
    database = sqlite_file(uri)
    if database is None:
        raise InputError("malformed; sqlite is given as sqlite:///FILE")
    options = {name for name, _ in parse_qsl(uri.partition("?")[2], keep_blank_values=True)}
    if not options <= SQLITE_OPTIONS:
        raise InputError("a ? begins options, and these are none; in a path it is written %3F")
    _check_file(database.absolute())


def _check_file(database: Path) -> None:
    try:
        if database.is_dir():
            raise InputError(f"{database} is a folder; name a file in it")
        there = database
        while not os.path.lexists(there):
            there = there.parent
        if there == database:
            with database.open("rb") as file:
                start = file.read(16)
            if start and start != b"SQLite format 3\0":
                raise InputError(f"{database} is no sqlite file")
        elif not there.is_dir():
            raise InputError(f"{there} is no folder")
        if not os.access(there, os.W_OK):
            raise InputError(f"{there} cannot be written")
    except OSError as error:
        raise InputError(f"{database} cannot be used: {error.strerror}") from None
    except ValueError as error:  # a null byte
        raise InputError(str(error)) from None


def _check_database(uri: str) -> None:
    from sqlalchemy.engine import make_url
    from sqlalchemy.exc import ArgumentError

    try:
        parts = make_url(uri)
    except (ArgumentError, ValueError):
        raise InputError("malformed; a database is given as KIND://USER@HOST:PORT/NAME") from None
    _check_port(lambda: parts.port)
    try:
        parts.get_dialect().import_dbapi()
    except (ArgumentError, ImportError) as error:
        raise InputError(f"its driver is not installed: {error}") from None
