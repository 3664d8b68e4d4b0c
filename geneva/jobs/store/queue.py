"""The queue: which jobs start now, decided by one scheduler at a time."""

from __future__ import annotations

import json
from collections.abc import Collection, Hashable
from dataclasses import asdict, dataclass

from sqlalchemy import Text, bindparam, cast, func, select, update
from sqlalchemy.orm import Session

from geneva.engine.process import ProcessId
from geneva.jobs.ranking import Candidate, Caps, choose
from geneva.jobs.states import ACTIVE
from geneva.jobs.store.change import locked_run, move
from geneva.jobs.store.database import Database
from geneva.jobs.store.models import JobRow, Pool, Run
from geneva.model.types import JobState

_JOB = JobRow.__table__.c
_CANDIDATES = select(
    *(_JOB.id, _JOB.run_id, _JOB.pool, _JOB.priority, _JOB.queued_s, _JOB.table_uri),
    cast(_JOB.fills, Text),
    *(_JOB.fragments, _JOB.reason),
)
_TELL = (
    update(JobRow.__table__).where(_JOB.id == bindparam("job")).values(reason=bindparam("told"))  # type: ignore[arg-type]
)
_CLAIM_S = 60.0  # within which a driver that was started must have attached


@dataclass(frozen=True, slots=True)
class QueueClaim:
    """A job that is to be started, and the epoch of its driver."""

    job_id: str
    epoch: int


def outlook(database: Database) -> Hashable:
    """Return the facts that decide which jobs may start: while they stay the same, none more can.

    It reads no job by itself, so that a scheduler may ask often however long the queue is.
    """
    with database.read() as session:
        now_s = database.now_s(session)
        seen = select(func.count(), func.max(JobRow.queued_s), func.sum(JobRow.epoch))
        queued = seen.where(JobRow.state == JobState.QUEUED, JobRow.not_before_s <= now_s)
        active = (
            select(JobRow.id).where(JobRow.state.in_([s.value for s in ACTIVE])).order_by(JobRow.id)
        )
        caps = _caps(session)
        return (
            tuple(session.execute(queued).one()),
            tuple(session.scalars(active)),
            (caps.total, *sorted(caps.pools.items()), *sorted(caps.runs.items())),
        )


def claim(database: Database, owner: ProcessId, limit: int | None = None) -> list[QueueClaim]:
    """Take the queued jobs that may start now, in the order in which they should.

    1. No other scheduler is in here (`alone`), so slots are counted once.
    2. Runs are locked in the order of their ids, then jobs: as everywhere, so that nobody waits in
       a circle with those who steer a run.
    3. A job that was cancelled between the reading and the lock is left out.
    4. The epoch that each claimed job gets shuts out its driver before.

    Parameters
    ----------
    owner
        The scheduler, until it says which process it started.
    """
    with database.write(alone=True) as session:
        now_s = database.now_s(session)
        queued = _candidates(session, [JobState.QUEUED], now_s)
        if not queued:
            return []
        active = _candidates(session, ACTIVE, None)
        candidates, holders = [c for c, _ in queued], [c for c, _ in active]
        choice = choose(candidates, holders, _caps(session), now_s, limit)
        # Runs are locked in one order, whatever the rank of their jobs.
        runs = {i: locked_run(session, i) for i in sorted({c.run_id for c in choice.start})}
        claims = [
            claimed
            for c in choice.start
            if (claimed := _take(session, runs[c.run_id], c.id, owner, now_s)) is not None
        ]
        reasons = {c.id: reason for c, reason in queued}
        news = [{"job": k, "told": r} for k, r in choice.waiting.items() if r != reasons[k]]
        if news:  # in the order in which others lock the jobs of a run
            session.connection().execute(_TELL, sorted(news, key=lambda entry: entry["job"]))
        return claims


def _take(
    session: Session, run: Run, job_id: str, owner: ProcessId, now_s: float
) -> QueueClaim | None:
    job = session.get(JobRow, job_id, with_for_update=True, populate_existing=True)
    if job is None or job.state != JobState.QUEUED:
        return None  # cancelled or paused meanwhile
    job.epoch += 1
    job.owner, job.lease_until_s = asdict(owner), now_s + _CLAIM_S
    job.stopped, job.advanced = False, False
    move(session, run, job, JobState.STARTING, "starting a driver", now_s)
    return QueueClaim(job_id, job.epoch)


def _candidates(
    session: Session, states: Collection[JobState], now_s: float | None
) -> list[tuple[Candidate, str]]:
    """Return the jobs in some states, with the reason that was last given for it."""
    wanted = _CANDIDATES.where(_JOB.state.in_([s.value for s in states]))
    if now_s is not None:
        wanted = wanted.where(_JOB.not_before_s <= now_s)
    candidates = []
    same: dict[tuple[str, str], frozenset[tuple[str, str]]] = {}  # most jobs are like others
    for name, run, pool, priority, queued_s, uri, fills, only, reason in session.execute(wanted):
        columns = same.get((uri, fills))
        if columns is None:
            columns = same[uri, fills] = frozenset((uri, c) for c in json.loads(fills))
        fragments = None if only is None else frozenset(only)
        candidate = Candidate(name, run, pool, priority, queued_s, columns, fragments)
        candidates.append((candidate, reason))
    return candidates


def _caps(session: Session) -> Caps:
    pools = {p.name: p.slots for p in session.scalars(select(Pool)) if p.slots is not None}
    capped = select(Run.id, Run.max_active).where(Run.max_active.is_not(None))
    runs = session.execute(capped.where(Run.ended_s.is_(None)))
    total = pools.pop("", None)
    return Caps(total, pools, {name: limit for name, limit in runs if limit is not None})
