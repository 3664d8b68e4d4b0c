"""Open the place where jobs are recorded."""

from __future__ import annotations

from geneva.store.database import Database
from geneva.store.migrate import check, upgrade
from geneva.store.store import Store


def open_store(url: str, busy_s: float = 60.0) -> Store:
    """Open a database of jobs, brought up to date first if it is SQLite.

    That of a file is its user's; one that hosts share is upgraded when somebody decides to.
    """
    database = Database(url, busy_s)
    if database.is_sqlite:
        upgrade(database)
    check(database)
    return Store(database)
