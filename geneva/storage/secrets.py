"""Keep the secrets of storage options out of what people and files get to see."""

from __future__ import annotations

import os
import re
from collections.abc import Mapping
from urllib.parse import parse_qsl, quote, quote_plus

HIDDEN = "<hidden>"
_SECRET = re.compile(r"secret|token|password|key|sas|credential|signature", re.IGNORECASE)
_NO_SECRET = re.compile(r"(file|path|uri|url|credentials)$", re.IGNORECASE)  # says where one is
_PREFIXES = ("AWS_", "AZURE_", "GOOGLE_", "GCP_", "OSS_")
_MIN_LENGTH = 8  # shorter words are part of ordinary texts


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
    for secret in sorted(secrets_of(options), key=len, reverse=True):
        text = text.replace(secret, HIDDEN)
    return text
