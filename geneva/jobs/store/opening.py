"""Open the database of jobs, at the version that this code needs."""

from __future__ import annotations

from functools import cache
from pathlib import Path

from alembic import command
from alembic.config import Config
from alembic.runtime.migration import MigrationContext
from alembic.script import ScriptDirectory
from sqlalchemy import text

from geneva.errors import OperatorError, ServiceError
from geneva.jobs.store.database import Database
from geneva.jobs.store.store import Store

_HERE = Path(__file__).parent
_DEVELOPMENT = frozenset(f"000{n}" for n in range(1, 7))
_UPGRADES = 0x67656E66  # advisory lock of PostgreSQL: one process upgrades
_OPENING_S = 5.0  # whoever begins is told soon that somebody else holds the file


def open_store(url: str, busy_s: float = 60.0) -> Store:
    """Open a database of jobs, brought up to date first if it is SQLite.

    That of a file is its user's; one that hosts share is upgraded when somebody decides to.

    Raises
    ------
    ServiceError
        It does not answer, or has been locked for five seconds.
    OperatorError
        It is no database of jobs, or one of another geneva that this one cannot upgrade.
    """
    first = Database(url, min(busy_s, _OPENING_S))
    try:
        if first.is_sqlite:
            upgrade(first)
        check(first)
    finally:
        first.close()
    return Store(Database(url, busy_s))


def upgrade(database: Database) -> str:
    """Apply the migrations that are missing, and return the version that it has then.

    Several processes may do so at once; the second one finds nothing to do.
    """
    config = _config()
    _check_known(_version(database))
    with (
        database.answering(),
        database.engine.execution_options(immediate=True).begin() as connection,
    ):
        if not database.is_sqlite:
            connection.execute(text("SELECT pg_advisory_xact_lock(:key)"), {"key": _UPGRADES})
        config.attributes["connection"] = connection
        command.upgrade(config, "head")
    return needed()


@cache
def needed() -> str:
    """Return the version that this code needs."""
    return ScriptDirectory.from_config(_config()).get_current_head() or ""


def check(database: Database) -> None:
    """Raise `ServiceError` if the database has not the version that this code needs."""
    version = _version(database)
    _check_known(version)
    if version != needed():
        raise ServiceError(
            f"the database of jobs has version {version or 'none'}, this geneva needs {needed()}: "
            "run `geneva db upgrade`"
        )


def _version(database: Database) -> str | None:
    with database.read() as session:  # those who wait to write must not hold up whoever looks
        return MigrationContext.configure(session.connection()).get_current_revision()


def _check_known(version: str | None) -> None:
    if version in _DEVELOPMENT:
        raise OperatorError(
            f"the database of jobs has version {version}, of a geneva from before the first "
            "release, which this one cannot upgrade: move it away, or name another database, and "
            "begin anew; it holds the history of jobs, while values and checkpoints are with the "
            "tables"
        )
    if version is not None and version not in _known():
        raise OperatorError(
            f"the database of jobs has version {version}, of a newer geneva; this one knows those "
            f"up to {needed()}: upgrade geneva, or name another database"
        )


@cache
def _known() -> frozenset[str]:
    revisions = ScriptDirectory.from_config(_config()).walk_revisions()
    return frozenset(script.revision for script in revisions)


def _config() -> Config:
    config = Config()
    config.set_main_option("script_location", str(_HERE).replace("%", "%%"))
    config.set_main_option("path_separator", "newline")
    folder = str(_HERE.parent / "migrations").replace("%", "%%")
    config.set_main_option("version_locations", folder)
    return config
