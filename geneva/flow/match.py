"""Queries and sort orders over plain records, the reference for the store's SQL."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from datetime import UTC, datetime
from typing import assert_never

from geneva.flow.fields import JobField, Kind
from geneva.flow.query import All, Any, Condition, Scalar, Tree, whole

Record = Mapping[str, object]


def matches(tree: Tree, record: Record) -> bool:
    """Say whether a job matches a query."""
    match tree:
        case All(parts):
            return all(matches(part, record) for part in parts)
        case Any(parts):
            return any(matches(part, record) for part in parts)
        case Condition():
            return _holds(tree, record)
        case _:
            assert_never(tree)


def ordered(records: Iterable[Record], sort: Iterable[tuple[JobField, bool]]) -> list[Record]:
    """Sort jobs; those without a value come last both ways, ties are ordered by id."""
    made = sorted(records, key=lambda r: str(r["id"]))
    for field, descending in reversed(list(sort)):
        present = [r for r in made if value_of(r, field) is not None]
        absent = [r for r in made if value_of(r, field) is None]
        present.sort(key=lambda r: _rank(value_of(r, field), field), reverse=descending)
        made = present + absent
    return made


def value_of(record: Record, field: JobField) -> object:
    """Return the value of a job's field, or None; a metric is an output too."""
    if field.key is None:
        return record.get(field.name)
    section = artifacts_of(record) if field.name == "artifacts" else record.get(field.name)
    if isinstance(section, Mapping) and field.key in section:
        return section[field.key]
    other = {"outputs": "metrics", "metrics": "outputs"}.get(field.name)
    section = record.get(other) if other else None
    return section.get(field.key) if isinstance(section, Mapping) else None


def artifacts_of(record: Record) -> dict[str, object]:
    """Return a job's artifacts by name; a list of paths names each by its first folder."""
    held = record.get("artifacts")
    if isinstance(held, Mapping):
        return dict(held)
    listed = held if isinstance(held, Sequence) and not isinstance(held, str) else ()
    return {str(path).split("/")[0]: path for path in listed}


def _holds(c: Condition, record: Record) -> bool:
    value = value_of(record, c.field)
    if c.op in ("lt", "le", "gt", "ge"):
        # A negated comparison is the opposite one: what is missing matches neither.
        found = _compares(c, value)
        return found is not None and found is not c.negated
    return _positive(c, value) is not c.negated


def _positive(c: Condition, value: object) -> bool:
    """Say whether a condition other than a comparison holds, its negation aside."""
    if c.field.kind is Kind.TAGS:
        held = set(value) if isinstance(value, Iterable) else set()
        return not held if c.op == "nil" else any(wanted in held for wanted in _values(c))
    if c.op == "nil" or value is None:
        return c.op == "nil" and value is None
    if c.op in ("contains", "startswith", "endswith"):
        return _pattern(c.op, str(c.value).lower(), str(value).lower())
    if c.op == "range":
        first, last = _values(c)
        return bool(_at_least(c.field, value, first) and _at_most(c.field, value, last))
    return any(_equal(c.field, value, wanted) for wanted in _values(c))


def _values(c: Condition) -> tuple[Scalar, ...]:
    return c.value if isinstance(c.value, tuple) else (c.value,)


def _pattern(op: str, wanted: str, text: str) -> bool:
    if op == "contains":
        return wanted in text
    return text.startswith(wanted) if op == "startswith" else text.endswith(wanted)


def _equal(field: JobField, value: object, wanted: Scalar) -> bool:
    match field.kind:
        case Kind.MOMENT:
            first, after = whole(str(wanted))
            return first <= moment(value) < after
        case Kind.WORD:
            return str(value).lower() == str(wanted).lower()
        case Kind.JSON | Kind.NUMBER:
            # True is no 1, and the text "1" is no number.
            return _json_kind(value) == _json_kind(wanted) and value == wanted
        case _:
            return str(value) == wanted


def _compares(c: Condition, value: object) -> bool | None:
    """Compare a value with the condition's; None where they cannot be compared."""
    field, wanted = c.field, c.value
    if value is None or isinstance(wanted, tuple):
        return None
    if field.kind is not Kind.MOMENT and _json_kind(value) != "number":
        return None
    match c.op:
        case "ge":
            return _at_least(field, value, wanted)
        case "lt":
            return not _at_least(field, value, wanted)
        case "le":
            return _at_most(field, value, wanted)
        case _:
            return not _at_most(field, value, wanted)


def _at_least(field: JobField, value: object, bound: Scalar) -> bool:
    if field.kind is Kind.MOMENT:
        return moment(value) >= whole(str(bound))[0]
    return _json_kind(value) == "number" and value >= bound  # type: ignore[operator]


def _at_most(field: JobField, value: object, bound: Scalar) -> bool:
    """Say whether a value is not past a bound; a day is past when the next one begins."""
    if field.kind is Kind.MOMENT:
        return moment(value) < whole(str(bound))[1]
    return _json_kind(value) == "number" and value <= bound  # type: ignore[operator]


def _json_kind(value: object) -> str:
    if isinstance(value, bool):
        return "boolean"
    return "number" if isinstance(value, int | float) else "text"


def moment(value: object) -> datetime:
    """Return a job's time as an aware datetime; one without an offset is UTC."""
    found = value if isinstance(value, datetime) else datetime.fromisoformat(str(value))
    return found if found.tzinfo else found.replace(tzinfo=UTC)


def _rank(value: object, field: JobField) -> tuple[int, object]:
    """Return the key to sort by: booleans, then numbers, then texts by code point."""
    if field.kind is Kind.MOMENT:
        return 0, moment(value)
    kind = _json_kind(value)
    return ("boolean", "number", "text").index(kind), value if kind != "text" else str(value)
