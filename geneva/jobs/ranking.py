"""Which queued jobs start now, and why the others wait. No IO, no clock.

Caps are applied to every queued job, in the order of their rank: a job that a cap holds back is
passed over, so it never keeps back one that could start.
"""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field

AGEING_S = 600.0
"""A job gains one level of priority for each so many seconds that it waits."""


@dataclass(frozen=True, slots=True)
class Candidate:
    """The facts that decide whether and when a job may start.

    Attributes
    ----------
    columns
        ``(table uri, column)`` of what it fills.
    fragments
        Of the table, that it is limited to; ``None`` for all.
    """

    id: str
    run_id: str
    pool: str
    priority: int
    queued_s: float
    columns: frozenset[tuple[str, str]]
    fragments: frozenset[int] | None = None

    def may_meet(self, other: Candidate) -> bool:
        """Whether two jobs on one column may touch the same rows.

        Filters are not compared: a column file spans its fragment, so two jobs in one fragment
        replace each other's file even where they select different rows.
        """
        if self.fragments is None or other.fragments is None:
            return True
        return not self.fragments.isdisjoint(other.fragments)


@dataclass(frozen=True, slots=True)
class Caps:
    """How many jobs may be active at once; a pool or a run that is not named has no cap."""

    total: int | None = None
    pools: Mapping[str, int] = field(default_factory=dict)
    runs: Mapping[str, int] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class Ranked:
    """The jobs to start, in order, and for each of the others why it waits."""

    start: tuple[Candidate, ...]
    waiting: Mapping[str, str]


def rank(queued: Iterable[Candidate], active: Iterable[Candidate], now_s: float) -> list[Candidate]:
    """Order jobs by priority and age, and on one level take the runs in turn."""
    busy = Counter(c.run_id for c in active)
    levels: list[tuple[int, float, str, Candidate]] = sorted(
        (-(c.priority + int(max(now_s - c.queued_s, 0.0) / AGEING_S)), c.queued_s, c.id, c)
        for c in queued
    )
    keyed = []
    turns: Counter[tuple[int, str]] = Counter()
    for level, queued_s, name, candidate in levels:
        turn = busy[candidate.run_id] + turns[level, candidate.run_id]
        turns[level, candidate.run_id] += 1
        keyed.append(((level, turn, queued_s, name), candidate))
    return [candidate for _, candidate in sorted(keyed, key=lambda pair: pair[0])]


def choose(
    queued: Sequence[Candidate],
    active: Sequence[Candidate],
    caps: Caps,
    now_s: float,
    limit: int | None = None,
) -> Ranked:
    """Choose the jobs that start now.

    Parameters
    ----------
    limit
        At most so many; those beyond it wait for a driver.
    """
    in_pool = Counter(c.pool for c in active)
    in_run = Counter(c.run_id for c in active)
    owners: dict[tuple[str, str], list[Candidate]] = defaultdict(list)
    for c in active:
        _own(owners, c)
    total = len(active)
    start: list[Candidate] = []
    waiting: dict[str, str] = {}
    for c in rank(queued, active, now_s):
        if caps.total is not None and total >= caps.total:
            waiting[c.id] = f"waiting: {total} of {caps.total} slots are taken"
        elif in_pool[c.pool] >= caps.pools.get(c.pool, total + 1):
            slots = caps.pools[c.pool]
            waiting[c.id] = (
                f"waiting: {in_pool[c.pool]} of {slots} slots of pool {c.pool} are taken"
            )
        elif in_run[c.run_id] >= caps.runs.get(c.run_id, total + 1):
            slots = caps.runs[c.run_id]
            waiting[c.id] = f"waiting: {in_run[c.run_id]} of {slots} jobs of its run are active"
        elif (taken := _met(owners, c)) is not None:
            waiting[c.id] = f"waiting: column {taken[0]!r} is being filled by job {taken[1]}"
        elif limit is not None and len(start) >= limit:
            waiting[c.id] = "waiting: as many drivers run on the host as may (--max-drivers)"
        else:
            start.append(c)
            total += 1
            in_pool[c.pool] += 1
            in_run[c.run_id] += 1
            _own(owners, c)
    return Ranked(tuple(start), waiting)


_Owners = dict[tuple[str, str], list[Candidate]]


def _own(owners: _Owners, candidate: Candidate) -> None:
    for column in candidate.columns:
        owners[column].append(candidate)


def _met(owners: _Owners, candidate: Candidate) -> tuple[str, str] | None:
    """Return a column that another job fills in the same rows, and that job's id."""
    for column in sorted(candidate.columns) if len(candidate.columns) > 1 else candidate.columns:
        for owner in owners.get(column, ()):
            if candidate.may_meet(owner):
                return column[1], owner.id
    return None
