"""Text as MLflow accepts it, and as it may be shown."""

from __future__ import annotations

import hashlib
import re

MAX_NAME = 250


def allowed_name(name: str) -> str:
    """``name`` as MLflow accepts it for a metric, parameter or tag: letters, digits, ``_ - . /``.

    Any other character becomes ``_``. Where that loses letters of another script, six digits of a
    hash follow, so that two tasks named in Chinese stay two curves. At most 250 characters.
    """
    parts = [part for part in name.split("/") if part not in ("", ".", "..")]
    clean = re.sub(r"[^A-Za-z0-9_.\-/]", "_", "/".join(parts)) or "_"
    if len(clean) > MAX_NAME or not name.isascii():
        digest = hashlib.sha256(name.encode()).hexdigest()[:6]
        clean = f"{clean[: MAX_NAME - len(digest) - 1]}-{digest}"
    return clean


def cut(value: object, limit: int) -> str:
    """``value`` as text of at most ``limit`` characters, saying so where something is missing."""
    text = str(value)
    mark = f"... [cut, {len(text)} characters]"
    return text if len(text) <= limit else text[: limit - len(mark)] + mark


def without_password(text: str) -> str:
    """``text`` with ``user:password@`` taken out of every URI in it, fit for files and messages."""
    return re.sub(r"(?<=://)[^/\s]*@", "", text)
