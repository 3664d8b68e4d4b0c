"""Keep the secrets of storage options out of texts and files."""

from __future__ import annotations

import os
import re
from collections.abc import Callable, Mapping
from typing import Any
from urllib.parse import parse_qsl, quote, quote_plus

HIDDEN = "<hidden>"
_SECRET = re.compile(r"secret|token|password|key|sas|credential|signature", re.IGNORECASE)
_NO_SECRET = re.compile(r"(file|path|uri|url|credentials)$", re.IGNORECASE)  # says where one is
_PREFIXES = ("AWS_", "AZURE_", "GOOGLE_", "GCP_", "OSS_")
_MIN_LENGTH = 8  # shorter words are part of ordinary texts
_NAMED = re.compile(
    r"(?<![a-z])(secret|token|passw(or)?d|passphrase|api_?key|(access|account|private)_?key"
    r"|credentials?|signature|sas)(?![a-z])",
    re.IGNORECASE,
)
_IN_URL = re.compile(r"(?<=://)[^/\s:@]*:[^/\s@]+(?=@)")  # user:password


def secrets_of(options: Mapping[str, str] | None) -> dict[str, str]:
    """Return secret -> the option or environment variable that holds it.

    A shared access signature travels as part of the URL, so each of its parts is a secret too.
    """
    given = {k: v for k, v in os.environ.items() if k.startswith(_PREFIXES)} | dict(options or {})
    found: dict[str, str] = {}
    for name, value in given.items():
        if _SECRET.search(name) and not _NO_SECRET.search(name):
            for part in (value, *(v for _, v in parse_qsl(value))):
                for written in (part, quote(part, safe=""), quote_plus(part)):
                    if len(written) >= _MIN_LENGTH:
                        found[written] = name
    return found


def hidden(text: str, options: Mapping[str, str] | None) -> str:
    """Return a text without the secrets of some options."""
    return hider(options)(text)


def hider(options: Mapping[str, str] | None) -> Callable[[str], str]:
    """Return the function that takes the secrets of some options out of texts."""
    secrets = sorted(secrets_of(options), key=len, reverse=True)

    def hide(text: str) -> str:
        for secret in secrets:
            text = text.replace(secret, HIDDEN)
        return text

    return hide


def without_secrets(values: Mapping[str, Any], *, by_name: bool = False) -> dict[str, Any]:
    """Return nested settings without the secrets of the environment and passwords in URLs.

    Parameters
    ----------
    by_name
        Leave out too what is called a secret, a password, a token or an API key.
    """
    hide = hider(None)

    def copied(value: Any, name: str = "") -> Any:
        if isinstance(value, Mapping):
            return {k: copied(v, str(k)) for k, v in value.items()}
        if isinstance(value, list | tuple):
            return type(value)(copied(v, name) for v in value)
        if not isinstance(value, str):
            return value
        if by_name and value and _NAMED.search(name) and not _NO_SECRET.search(name):
            return HIDDEN
        return _IN_URL.sub(HIDDEN, hide(value))

    return {k: copied(v, str(k)) for k, v in values.items()}
