"""Whether a service can do its work: its database answers, and a scheduler looks at the queue."""

from __future__ import annotations

from dataclasses import dataclass

from sqlalchemy import delete, select

from geneva.errors import GenevaError, ServiceError
from geneva.jobs.store.database import Database
from geneva.jobs.store.models import SchedulerBeat
from geneva.jobs.store.opening import check

BEAT_S = 5.0
"""Seconds between two signs of life of a scheduler."""
SILENT_S = 30.0
_FORGET_S = 86400.0


@dataclass(frozen=True, slots=True)
class Health:
    """The fault of a service; none if ``reason`` is empty.

    Attributes
    ----------
    silence_s
        Seconds since a scheduler last looked at the queue; ``None`` if none ever did, or nobody can
        tell.
    """

    reason: str
    silence_s: float | None = None


def beat(database: Database, name: str) -> None:
    """Take note that a scheduler has looked at the queue."""
    with database.write() as session:
        now = database.now_s(session)
        old = SchedulerBeat.ticked_s < now - _FORGET_S
        session.execute(delete(SchedulerBeat).where(old))
        session.merge(SchedulerBeat(name=name, ticked_s=now))


def health(database: Database) -> Health:
    """Return whether a service over a database can do its work; raises nothing."""
    try:
        database.check_there()
        check(database)
        with database.read() as session:
            latest = select(SchedulerBeat).order_by(SchedulerBeat.ticked_s.desc()).limit(1)
            last, now = session.scalar(latest), database.now_s(session)
    except GenevaError as error:
        return Health(str(error))
    if last is None:
        return Health("no scheduler has looked at the queue yet: `geneva scheduler` runs one")
    silence_s = max(now - last.ticked_s, 0.0)
    if silence_s > SILENT_S:
        reason = (
            f"no scheduler has looked at the queue for {silence_s:,.0f} s; {last.name} was last"
        )
        return Health(reason, silence_s)
    return Health("", silence_s)


def check_health(state: Health) -> None:
    """Raise `ServiceError` with the reason if something is wrong."""
    if state.reason:
        raise ServiceError(state.reason)
