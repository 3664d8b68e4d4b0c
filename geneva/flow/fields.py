"""The fields of a job that a query, a sort order or a join may name, and their conditions."""

from __future__ import annotations

import enum
from dataclasses import dataclass

from geneva.errors import QueryError, did_you_mean

_COMPARED = frozenset({"eq", "in", "lt", "le", "gt", "ge", "range", "nil"})
_LISTED = frozenset({"eq", "in", "nil"})
_PATTERNS = frozenset({"contains", "startswith", "endswith"})


class Kind(enum.Enum):
    """The kind of a field's values, which decides the conditions that it takes."""

    TEXT = enum.auto()
    WORD = enum.auto()  # text that is compared without case
    TAGS = enum.auto()
    NUMBER = enum.auto()
    MOMENT = enum.auto()
    JSON = enum.auto()
    ARTIFACT = enum.auto()

    @property
    def takes(self) -> frozenset[str]:
        """The operators that a field of this kind takes."""
        return _TAKES[self][0]

    @property
    def says(self) -> str:
        """The operators, as people write them."""
        return _TAKES[self][1]


_TAKES: dict[Kind, tuple[frozenset[str], str]] = {
    Kind.TEXT: (_LISTED | _PATTERNS, "=, | and %"),
    Kind.WORD: (_LISTED | _PATTERNS, "=, | and %"),
    Kind.TAGS: (_LISTED, "a tag, or several with |"),
    Kind.NUMBER: (_COMPARED, "numbers with =, <, >, | and .."),
    Kind.MOMENT: (_COMPARED, "dates with =, <, >, | and .."),
    Kind.JSON: (_COMPARED - {"range"}, "=, |, < and >"),
    Kind.ARTIFACT: (_LISTED | _PATTERNS, "=, | and %"),
}


FIELDS: dict[str, Kind] = {
    "id": Kind.TEXT,
    "name": Kind.TEXT,
    "description": Kind.TEXT,
    "kind": Kind.WORD,
    "state": Kind.WORD,
    "table": Kind.TEXT,
    "column": Kind.TEXT,
    "pool": Kind.TEXT,
    "tags": Kind.TAGS,
    "user": Kind.TEXT,
    "created_at": Kind.MOMENT,
    "updated_at": Kind.MOMENT,
    "started_at": Kind.MOMENT,
    "finished_at": Kind.MOMENT,
    "duration": Kind.NUMBER,
    "wait": Kind.NUMBER,
    "project.name": Kind.TEXT,
}
SECTIONS: dict[str, Kind] = {
    "inputs": Kind.JSON,
    "outputs": Kind.JSON,
    "metrics": Kind.NUMBER,
    "artifacts": Kind.ARTIFACT,
}
_OTHER_NAMES = {
    "uuid": "id",
    "status": "state",
    "params": "inputs",
    "in": "inputs",
    "out": "outputs",
}


@dataclass(frozen=True, slots=True)
class JobField:
    """One field: its name or its section, and within a section, the key."""

    name: str
    key: str | None
    kind: Kind

    @property
    def text(self) -> str:
        """The field as it is written."""
        return self.name if self.key is None else f"{self.name}.{self.key}"


def field_named(text: str, span: tuple[int, int] | None = None) -> JobField:
    """Return the field that a text names.

    Raises
    ------
    QueryError
        Jobs have no such field; the message names those that they have.
    """
    name, dot, key = text.partition(".")
    name = _OTHER_NAMES.get(name, name)
    if text in FIELDS:
        return JobField(text, None, FIELDS[text])
    if not dot and name in FIELDS:
        return JobField(name, None, FIELDS[name])
    if dot and name in SECTIONS and key and "." not in key:
        return JobField(name, key, SECTIONS[name])
    known = [*FIELDS, *(f"{section}.NAME" for section in SECTIONS)]
    hint = did_you_mean(name if name in SECTIONS else text, known)
    raise QueryError(f"jobs have no field {text!r}.{hint} The fields: {', '.join(known)}", span)
