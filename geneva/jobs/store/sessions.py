"""Sessions of browsers that were ended: a copy of the cookie opens nothing from then on."""

from __future__ import annotations

from sqlalchemy import delete

from geneva.jobs.store.database import Database
from geneva.jobs.store.models import EndedSession


def end_session(database: Database, session_id: str, until_s: float) -> None:
    """Take note that a session was ended, for every service of this database.

    Parameters
    ----------
    until_s
        When it would be over by itself, after which nobody needs to know.
    """
    with database.write() as session:
        now = database.now_s(session)
        session.execute(delete(EndedSession).where(EndedSession.until_s < now))
        session.merge(EndedSession(id=session_id, until_s=until_s))


def is_ended(database: Database, session_id: str) -> bool:
    """Whether somebody ended a session."""
    with database.read() as session:
        return session.get(EndedSession, session_id) is not None
