"""Bring the database of jobs to the version that this code needs."""

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

_HERE = Path(__file__).parent
_UPGRADES = 0x67656E66  # advisory lock of PostgreSQL: one process upgrades


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
    found = _version(database)
    _check_known(found)
    if found != needed():
        raise ServiceError(
            f"the database of jobs has version {found or 'none'}, this geneva needs {needed()}: "
            "run `geneva db upgrade`"
        )


def _version(database: Database) -> str | None:
    with database.read() as session:  # those who wait to write must not hold up whoever looks
        return MigrationContext.configure(session.connection()).get_current_revision()


def _check_known(version: str | None) -> None:
    if version is not None and version not in _known():
        raise OperatorError(
            f"the database of jobs has version {version}, of a newer geneva; this one knows those "
            f"up to {needed()}: upgrade geneva, or name another database"
        )


@cache
def _known() -> frozenset[str]:
    found = ScriptDirectory.from_config(_config()).walk_revisions()
    return frozenset(script.revision for script in found)


def _config() -> Config:
    config = Config()
    config.set_main_option("script_location", str(_HERE).replace("%", "%%"))
    config.set_main_option("path_separator", "newline")
    folder = str(_HERE.parent / "migrations").replace("%", "%%")
    config.set_main_option("version_locations", folder)
    return config
