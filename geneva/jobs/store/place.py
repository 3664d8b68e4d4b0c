"""Open the place where jobs are recorded."""

from __future__ import annotations

from geneva.jobs.store.database import Database
from geneva.jobs.store.migrate import check, upgrade
from geneva.jobs.store.store import Store

_OPENING_S = 5.0  # whoever begins is told soon that somebody else holds the file


def open_store(url: str, busy_s: float = 60.0) -> Store:
    """Open a database of jobs, brought up to date first if it is SQLite.

    That of a file is its user's; one that hosts share is upgraded when somebody decides to.

    Raises
    ------
    ServiceError
        It does not answer, or has been locked for five seconds.
    OperatorError
        It is no database of jobs, or one of a newer geneva.
    """
    first = Database(url, min(busy_s, _OPENING_S))
    try:
        if first.is_sqlite:
            upgrade(first)
        check(first)
    finally:
        first.close()
    return Store(Database(url, busy_s))
