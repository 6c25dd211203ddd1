"""Remove passwords and tokens from everything that is printed or stored."""

from __future__ import annotations

import os
import re
from base64 import b64encode
from collections.abc import Iterator
from typing import Any
from urllib.parse import unquote

HIDDEN = "***"

SHORTEST = 6
"""Least length of a secret from the environment that is removed from texts. Shorter ones could
match common words."""

# Quantifiers are bounded, so time is linear in the length of a text of addresses without spaces.
_BEFORE_HOST = re.compile(
    # A raw / ? or # in the password hides it from address parsers.
    r"(?<=://)(?:[^/?#\s]{0,4999}@|[^/:@\[\s]{0,99}:(?!\d{1,5}[/?#]|//)\S{1,4999}@)"
    # user:password@host after a mistyped scheme, or without one, as in proxy settings
    r"|(?<=[/\\])[^/:@\[\s]{1,99}:(?!\d{1,5}[/?#]|/)[^\s/@]{1,999}@(?=[\w\[])"
    r"|(?<![^\s'\"=])[^/:@'\"=\s]{1,99}:(?!/)[^\s@]{1,999}@(?=[\w\[])"
)
_FIELD = re.compile(
    r"(?P<name>(?:^|(?<=[?&;#\s]))[^=&?#;\s'\"]{1,99})="
    # A raw & or ; belongs to the value unless another name and = follow it.
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
    """Remove passwords and tokens from a message, log or trace-back.

    Removes user and password in addresses, query values with the name of a secret, authorisation
    headers, and every occurrence of a value that the environment holds under a name such as
    MLFLOW_TRACKING_PASSWORD. Idempotent.

    For settings use ``clean_address``: it keeps words that only happen to equal a password.
    """
    for secret in sorted(_known_secrets(), key=len, reverse=True):
        text = text.replace(secret, HIDDEN)
    return _HEADER.sub(rf"\1\2 {HIDDEN}", _SECRET_WORD.sub(rf"\1\2{HIDDEN}", _clean(text)))


def clean_address(address: str) -> str:
    """Remove passwords and tokens from one address, or from one word of a command.

    Keeps the host, the path and harmless parts of a query, so that the address stays recognisable.
    """
    # White space is a mistake and does not end the address: the rest may be secret.
    blank = re.sub(r"\s", "\ue000", address)
    cleaned = _clean(blank)
    return address if cleaned == blank else cleaned.replace("\ue000", " ")


def clean_command(words: list[str]) -> list[str]:
    """Remove passwords and tokens from the words of a command."""
    return [
        name + separator + clean_address(value) if name.startswith("--") else clean_address(word)
        for word in words
        for name, separator, value in [word.partition("=")]
    ]


def clean_tree(tree: Any) -> Any:
    """Remove secrets from settings: those in addresses, and values whose key names a secret."""
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
    """Whether an environment variable holds a secret, by its name or its value."""
    named = _SECRET_VARIABLE.search(variable) and value
    return bool(named) or clean_address(value) != value


def _clean(text: str) -> str:
    return _FIELD.sub(_without_value, _BEFORE_HOST.sub("", text))


def _without_value(field: re.Match[str]) -> str:
    name, value = unquote(field["name"]), unquote(field["value"])
    # Outside a query only password names count: "max_new_tokens=8" is no secret.
    in_query = field.start() > 0 and field.string[field.start() - 1] in "?&;#"
    secret = _SECRET_FIELD.search(name) if in_query else re.search(r"(?i)pass(word|wd)$|pwd$", name)
    if value and (secret or _clean(value) != value):
        return f"{field['name']}={HIDDEN}"
    return field[0]


def _known_secrets() -> Iterator[str]:
    """The secrets in the environment, in every form in which texts may contain them."""
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
