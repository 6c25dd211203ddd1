"""Passwords and tokens are taken out of whatever is printed or kept."""

from __future__ import annotations

import os
import re
from base64 import b64encode
from collections.abc import Iterator
from typing import Any
from urllib.parse import unquote

HIDDEN = "***"

SHORTEST = 6
"""Characters of a password in the environment that is looked for in texts. A shorter one would take
common words out of them."""

# Quantifiers are bounded: a text of many addresses without a space costs time linear in its length.
_BEFORE_HOST = re.compile(
    # Where a raw / ? or # stands in the password, no parser sees that there is one.
    r"(?<=://)(?:[^/?#\s]{0,4999}@|[^/:@\[\s]{0,99}:(?!\d{1,5}[/?#]|//)\S{1,4999}@)"
    # user:password@host behind a mistyped scheme, or without one, as a proxy may be given
    r"|(?<=[/\\])[^/:@\[\s]{1,99}:(?!\d{1,5}[/?#]|/)[^\s/@]{1,999}@(?=[\w\[])"
    r"|(?<![^\s'\"=])[^/:@'\"=\s]{1,99}:(?!/)[^\s@]{1,999}@(?=[\w\[])"
)
_FIELD = re.compile(
    r"(?P<name>(?:^|(?<=[?&;#\s]))[^=&?#;\s'\"]{1,99})="
    # A raw & or ; belongs to the value where no other name and = follow it.
    r"(?P<value>(?:[^&;\s]|[&;](?![^=&;\s]{1,99}=)){0,9999})"
)
_SECRET_FIELD = re.compile(r"pass|pwd|token|secret|key|cred|auth|sig|jwt|sas|session", re.I)
_SECRET_WORD = re.compile(
    r"(?i)([\w.-]{0,99}(?:password|passwd|pwd|passphrase|secret|access_?key|api_?key"
    r"|_token))(=|['\"]\s{0,9}:\s{0,9})(?!\*)(?:'[^']{0,9999}'|\"[^\"]{0,9999}\"|[^\s,}]{1,9999})"
)
_HEADER = re.compile(
    r"(?i)(authorization['\"]?\s{0,9}[:=]\s{0,9}['\"]?|['\"])(basic|bearer)\s[^'\"]+"
)
_SECRET_VARIABLE = re.compile(
    r"(?i)(PASSWORD|PASSWD|TOKEN|SECRET|API_?KEY|ACCESS_KEY|SECRET_KEY|CONNECTION_STRING)$"
)
_SECRET_KEY = re.compile(r"(?i)(password|passwd|passphrase|secret|access_?key|api_?key|_token)$")
_IN_A_VARIABLE = re.compile(r"(?:^|://)([^/:@\s]*):([^/\s]+)@")


def without_secrets(text: str) -> str:
    """A message, a log or a trace-back without passwords and tokens, fit to be shown and kept.

    Taken out: user and password of addresses, values of queries that are named like a secret,
    headers that authorise, and what the environment holds under names such as
    MLFLOW_TRACKING_PASSWORD, wherever it stands. Applied twice it changes nothing more.

    For settings use ``clean_address``, which leaves words alone that only equal a password.
    """
    for secret in sorted(_known_secrets(), key=len, reverse=True):
        text = text.replace(secret, HIDDEN)
    return _HEADER.sub(rf"\1\2 {HIDDEN}", _SECRET_WORD.sub(rf"\1\2{HIDDEN}", _clean(text)))


def clean_address(address: str) -> str:
    """One address, or one word of a command, without the passwords and tokens that it holds.

    A host, a path and harmless parts of a query stay as they are, so that it still names the place.
    """
    # A blank in it is no end. It comes from a mistake, and the message must not show the rest.
    blank = re.sub(r"\s", "\ue000", address)
    cleaned = _clean(blank)
    return address if cleaned == blank else cleaned.replace("\ue000", " ")


def clean_command(words: list[str]) -> list[str]:
    """The words of a command without passwords and tokens, fit to be kept."""
    return [
        name + separator + clean_address(value) if name.startswith("--") else clean_address(word)
        for word in words
        for name, separator, value in [word.partition("=")]
    ]


def clean_tree(tree: Any) -> Any:
    """Settings without passwords and tokens: addresses in texts, and what a key calls a secret."""
    match tree:
        case dict():
            return {
                key: HIDDEN if value and _SECRET_KEY.search(str(key)) else clean_tree(value)
                for key, value in tree.items()
            }
        case list() | tuple():
            return [clean_tree(value) for value in tree]
        case str() if "://" in tree:  # a path may hold : and @ too
            return clean_address(tree)
    return tree


def names_secret(variable: str, value: str) -> bool:
    """Whether an environment variable is one that holds a secret, by its name or its value."""
    named = _SECRET_VARIABLE.search(variable) and value
    return bool(named) or clean_address(value) != value


def _clean(text: str) -> str:
    return _FIELD.sub(_without_value, _BEFORE_HOST.sub("", text))


def _without_value(field: re.Match[str]) -> str:
    name, value = unquote(field["name"]), unquote(field["value"])
    # Outside of a query, "max_new_tokens=8" is no secret.
    in_query = field.start() > 0 and field.string[field.start() - 1] in "?&;#"
    secret = _SECRET_FIELD.search(name) if in_query else re.search(r"(?i)pass(word|wd)$|pwd$", name)
    if value and (secret or _clean(value) != value):
        return f"{field['name']}={HIDDEN}"
    return field[0]


def _known_secrets() -> Iterator[str]:
    """What the environment holds that must not be shown, as it is written in texts."""
    found = set()
    for name, value in os.environ.items():
        if _SECRET_VARIABLE.search(name):
            found.add(value)
        for user, password in _IN_A_VARIABLE.findall(value):
            found |= {password, unquote(password)}
            found.add(b64encode(f"{unquote(user)}:{unquote(password)}".encode()).decode())
    user = os.environ.get("MLFLOW_TRACKING_USERNAME", "")
    password = os.environ.get("MLFLOW_TRACKING_PASSWORD", "")
    if password:
        found.add(b64encode(f"{user}:{password}".encode()).decode())
    return (secret for secret in found if len(secret) >= SHORTEST)
