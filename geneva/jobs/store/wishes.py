"""Queries for the runs or jobs that somebody wants, by cursors or by the numbers of pages."""

from __future__ import annotations

import json
from collections.abc import Sequence
from typing import Any

from sqlalchemy import Row, Select, Text, cast, func, or_, select, tuple_

from geneva.errors import SettingError
from geneva.jobs.page import MAX_LIMIT, RunQuery, Wish, decode_cursor, encode_cursor
from geneva.jobs.store.models import Base, Run

_RUN = Run.__table__.c
_SORTS = {"created": ("created_s", float), "priority": ("priority", int), "name": ("name", str)}
_PAGE_SORTS = {n: n for n in ("priority", "state", "table")} | {
    "created": "created_s",
    "ended": "ended_s",
}


def wished(model: type[Base], selected: Select[Any], wish: Wish) -> Select[Any]:
    """Return the query for runs or jobs, one more than the page holds."""
    check_limit(wish.limit)
    of = model.__table__.c
    name, kind = _sorted_by(model, wish)
    order = (of[name], of.id)
    place = tuple_(*order)
    down = wish.sort.startswith("-")
    selected = _filtered(model, selected, wish)
    if wish.cursor is not None:
        after = tuple_(*decode_cursor(wish.cursor, kind, str))
        selected = selected.where(place < after if down else place > after)
    selected = selected.order_by(*((c.desc() for c in order) if down else order))
    return selected.limit(wish.limit + 1)


def next_cursor(model: type[Base], rows: Sequence[Row[Any]], wish: Wish) -> str | None:
    """Return where the page ends of which `wished` gave the rows; ``None`` for the last one."""
    if len(rows) <= wish.limit:
        return None
    last = rows[wish.limit - 1]
    name, _ = _sorted_by(model, wish)
    return encode_cursor(getattr(last, name), last.id)


def paged(selected: Select[Any], wish: RunQuery) -> Select[Any]:
    """Return the query for a page of runs by its number; runs without a value come last.

    Raises
    ------
    SettingError
        Runs are not sorted by that.
    """
    name = _PAGE_SORTS.get(wish.sort.removeprefix("-"))
    if name is None:
        known = ", ".join(_PAGE_SORTS)
        raise SettingError(f"sort={wish.sort!r} must be one of {known}, perhaps with a -")
    first = _RUN[name].desc() if wish.sort.startswith("-") else _RUN[name].asc()
    selected = _filtered(Run, selected, wish)
    selected = selected.order_by(first.nulls_last(), _RUN.created_s.desc(), _RUN.id)
    return selected.offset((wish.page - 1) * wish.limit).limit(wish.limit)


def counted_by_state(wish: RunQuery) -> Select[Any]:
    """Return the query for the number of runs in each state, whichever are wanted."""
    counted: Select[Any] = select(_RUN.state, func.count())
    return _filtered(Run, counted, wish, states=False).group_by(_RUN.state)


def check_limit(limit: int, most: int = MAX_LIMIT) -> None:
    """Raise `SettingError` if a page cannot be so long."""
    if not 1 <= limit <= most:
        raise SettingError(f"limit={limit} must be 1 to {most}")


def _filtered(
    model: type[Base], selected: Select[Any], wish: Wish, *, states: bool = True
) -> Select[Any]:
    of = model.__table__.c
    if states and wish.states:
        selected = selected.where(of.state.in_([s.value for s in wish.states]))
    for name in ("db", "table", "name", "pool"):  # runs have no pool, jobs no name
        if (value := getattr(wish, name)) is not None and name in of:
            selected = selected.where(of[name] == value)
    return _searched(selected, wish) if isinstance(wish, RunQuery) else selected


def _searched(selected: Select[Any], wish: RunQuery) -> Select[Any]:
    columns = cast(_RUN["columns"], Text)
    if wish.cause:
        selected = selected.where(_RUN.cause == wish.cause)
    if wish.column:
        selected = selected.where(columns.contains(json.dumps(wish.column), autoescape=True))
    if wish.text:
        places = (_RUN.id, _RUN.name, _RUN["table"], columns, _RUN.reason)
        low = wish.text.lower()
        holds = (func.lower(p).contains(low, autoescape=True) for p in places)
        selected = selected.where(or_(*holds))
    if wish.since is not None:
        selected = selected.where(_RUN.created_s >= wish.since.timestamp())
    if wish.until is not None:
        selected = selected.where(_RUN.created_s < wish.until.timestamp())
    return selected


def _sorted_by(model: type[Base], wish: Wish) -> tuple[str, type]:
    """Return the column that a list is sorted by, and the kind of its values."""
    if (sort := wish.sort.removeprefix("-")) not in _SORTS:
        known = ", ".join(_SORTS)
        raise SettingError(f"sort={wish.sort!r} must be one of {known}, perhaps with a -")
    name, kind = _SORTS[sort]
    if not hasattr(model, name):
        raise SettingError(f"jobs cannot be sorted by {name}: they have none")
    return name, kind
