"""Which records are wanted, and one page of them."""

from __future__ import annotations

import base64
import binascii
import json
import math
import re
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import datetime
from typing import Generic, Literal, TypeVar

from geneva.errors import SettingError, did_you_mean
from geneva.model.types import JobState

T = TypeVar("T")
Sort = Literal["created", "-created", "priority", "-priority", "name", "-name"]
"""What comes first: the least, or with a minus the greatest."""
MAX_LIMIT = 1000
UNFIT = re.compile("[\0\ud800-\udfff]")  # no database takes NUL or half a surrogate pair


@dataclass(frozen=True, slots=True)
class Page(Generic[T]):
    """Records in order, and where the next ones begin; ``next`` is ``None`` at the end."""

    items: Sequence[T]
    next: str | None = None


@dataclass(frozen=True, slots=True)
class Wish:
    """Which runs or jobs are wanted; an empty filter matches all.

    Attributes
    ----------
    pool
        Of jobs; runs have none.
    sort
        Jobs have no name.
    cursor
        ``Page.next`` of the page before.
    """

    states: tuple[JobState, ...] = ()
    db: str | None = None
    table: str | None = None
    name: str | None = None
    sort: str = "-created"
    limit: int = 100
    cursor: str | None = None
    pool: str | None = None


@dataclass(frozen=True, slots=True)
class RunQuery(Wish):
    """The runs that a person looks for, by pages with numbers instead of cursors.

    Attributes
    ----------
    text
        Is found in the id, name, table, columns or reason, whatever its case.
    since, until
        Moments of the submission, half-open.
    sort
        ``created``, ``ended``, ``priority``, ``state`` or ``table``; with ``-`` before it, down.
    page
        From 1.
    """

    limit: int = 50
    column: str = ""
    cause: str = ""
    text: str = ""
    since: datetime | None = None
    until: datetime | None = None
    page: int = 1


def states_named(names: Sequence[str]) -> tuple[JobState, ...]:
    """Return states by their names, in capitals or not.

    Raises
    ------
    SettingError
        A state is unknown.
    """
    for name in names:
        if name.upper() not in JobState.__members__:
            hint = did_you_mean(name, JobState.__members__)
            known = ", ".join(JobState.__members__)
            raise SettingError(f"state {name!r} is unknown.{hint} The states: {known}")
    return tuple(JobState(name.upper()) for name in names)


def encode_cursor(*key: float | str | int) -> str:
    """Return where a page ended, as a text that is good in a URL."""
    return base64.urlsafe_b64encode(json.dumps(key).encode()).decode().rstrip("=")


def decode_cursor(text: str, *kinds: type) -> list[float | str | int]:
    """Read a cursor of `encode_cursor`.

    Raises
    ------
    SettingError
        It is none of ours.
    """
    try:
        key = json.loads(base64.urlsafe_b64decode(text + "=" * (-len(text) % 4)))
        if len(key) != len(kinds) or not all(map(_fits, key, kinds)):
            raise ValueError(text)
    except (ValueError, TypeError, binascii.Error) as error:
        raise SettingError(
            f"cursor {text!r} is not one that a page gave; leave it out to begin again"
        ) from error
    return list(key)


def _fits(value: object, kind: type) -> bool:
    """Whether a value is of a kind, and one that a database takes."""
    match value:
        case str():
            return kind is str and not UNFIT.search(value)
        case int():
            return type(value) is kind and abs(value) < 2**63
        case float():
            return kind is float and math.isfinite(value)
        case _:
            return False
