"""The database of jobs: SQLite beside whoever asks, or PostgreSQL when several hosts share it."""

from __future__ import annotations

import json
import re
import weakref
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from sqlalchemy import Engine, create_engine, event, make_url, text
from sqlalchemy.exc import (
    ArgumentError,
    DatabaseError,
    DataError,
    InterfaceError,
    OperationalError,
    ProgrammingError,
)
from sqlalchemy.exc import TimeoutError as NoneFreeError
from sqlalchemy.orm import Session

from geneva.errors import CorruptFileError, ServiceError, SettingError
from geneva.storage.private import new_private_file, private_folder, tighten

_OVERFLOW = 5  # connections beyond the five that stay open, of those who read and who write each
_IN_URL = re.compile(r"(?<=:)[^/:@]*(?=@)")  # what may be a password, where nothing parses
_CONNECT_S = 5  # a host that is away does not say so
_CLAIMS = 0x67656E65  # advisory lock of PostgreSQL: one scheduler decides at a time
_NOW = {
    "sqlite": text("SELECT (julianday('now') - 2440587.5) * 86400.0"),
    "postgresql": text("SELECT CAST(extract(epoch FROM clock_timestamp()) AS double precision)"),
}


class Database:
    """Opens transactions; safe for threads, and for any number of processes.

    Parameters
    ----------
    url
        ``sqlite:///path`` (a local disk: its locks do not work on network file systems) or
        ``postgresql://user@host/name``.
    busy_s
        How long to wait for others that write to SQLite. One of them may have been stopped in the
        middle of it: a scheduler must not wait longer than it takes to see that.
    """

    def __init__(self, url: str, busy_s: float = 60.0) -> None:
        self.url = url
        self.engine = _engine(url, busy_s)
        self._file: tuple[Path, int] | None = None
        if self.is_sqlite:
            path = Path(str(self.engine.url.database))
            _make_private(path)
            self._file = path, path.stat().st_ino
        # With connections of their own, those who read do not wait for those who wait to write.
        self._reading = _engine(url, busy_s)
        for engine in (self.engine, self._reading):
            weakref.finalize(self, engine.dispose)

    @property
    def is_sqlite(self) -> bool:
        """Whether it is SQLite."""
        return self.engine.dialect.name == "sqlite"

    def check_there(self) -> None:
        """Raise `ServiceError` if the file is gone: connections that are open do not see that."""
        if self._file is None:
            return
        path, number = self._file
        try:
            there = path.stat().st_ino == number
        except OSError:
            there = False
        if not there:
            raise ServiceError(f"the database of jobs, {path}, was moved or deleted")

    @contextmanager
    def answering(self) -> Iterator[None]:
        """Turn errors of the database into ours."""
        with _answering(self.url):
            yield

    @contextmanager
    def read(self) -> Iterator[Session]:
        """Yield a session that sees one state of the database and waits for nobody."""
        with _answering(self.url), Session(self._reading) as session:
            yield session

    @contextmanager
    def write(self, *, alone: bool = False) -> Iterator[Session]:
        """Yield a session that is committed at the end, rolled back on an error.

        Parameters
        ----------
        alone
            No other process has such a session at the same time.
        """
        engine = self.engine.execution_options(immediate=True)
        with (
            _answering(self.url),
            Session(engine, expire_on_commit=False) as session,
            session.begin(),
        ):
            if alone and not self.is_sqlite:
                session.execute(text("SELECT pg_advisory_xact_lock(:key)"), {"key": _CLAIMS})
            yield session

    def now_s(self, session: Session) -> float:
        """Return the database's clock; the clocks of hosts are never compared."""
        return float(session.execute(_NOW[self.engine.dialect.name]).scalar_one())

    def close(self) -> None:
        """Close all connections."""
        self.engine.dispose()
        self._reading.dispose()


def password_of(url: str) -> str:
    """Return the password in a URL, or nothing."""
    try:
        return str(make_url(url).password or "")
    except ArgumentError:
        return ""


def with_password(url: str, password: str | None) -> str:
    """Return a PostgreSQL URL with a password, its own if it has one, where it is not shown."""
    try:
        parsed = make_url(url)
    except ArgumentError:
        return url  # whoever opens it says what is wrong
    if not parsed.drivername.startswith("postgres"):
        return url
    in_query = parsed.query.get("password")
    parsed = parsed.difference_update_query(["password"])
    held = parsed.password or (in_query if isinstance(in_query, str) else None) or password
    return (parsed.set(password=held) if held else parsed).render_as_string(hide_password=False)


def _make_private(path: Path) -> None:
    """Keep a file of jobs to its owner; those that SQLite adds take its mode.

    A file that is there is never opened: to close it would take its locks from all connections that
    this process has to it.
    """
    try:
        private_folder(path.parent)
        if not path.exists():
            new_private_file(path)
    except OSError as error:
        raise ServiceError(f"the database of jobs, {path}, cannot be opened: {error}") from error
    for name in ("", "-wal", "-shm", "-journal"):
        tighten(path.with_name(path.name + name))


def _engine(url: str, busy_s: float) -> Engine:
    try:
        parsed = make_url(url)
    except ArgumentError as error:
        shown = _IN_URL.sub("***", url)
        raise SettingError(f"{shown!r} is no database URL, such as sqlite:///jobs.db") from error
    if parsed.drivername in ("postgresql", "postgres"):
        parsed = parsed.set(drivername="postgresql+psycopg")
    if parsed.drivername.startswith("postgresql"):
        options = {} if "connect_timeout" in parsed.query else {"connect_timeout": _CONNECT_S}
        return create_engine(
            parsed, pool_pre_ping=True, max_overflow=_OVERFLOW, connect_args=options
        )
    if parsed.drivername != "sqlite" or not parsed.database or parsed.database == ":memory:":
        raise SettingError(
            f"{parsed.render_as_string()!r}: jobs are kept in sqlite:///a/file or postgresql://..."
        )
    engine = create_engine(
        parsed,
        connect_args={"timeout": busy_s},
        json_deserializer=_from_json,
        max_overflow=_OVERFLOW,
    )
    event.listen(engine, "connect", _prepare_sqlite)
    event.listen(engine, "begin", _begin_sqlite)
    return engine


def _from_json(text: str) -> Any:
    """Read JSON; most facts of jobs are empty, and a page reads hundreds of them."""
    if text == "{}":
        return {}
    return [] if text == "[]" else json.loads(text)


def _prepare_sqlite(connection: Any, _: Any) -> None:
    connection.isolation_level = None  # Python's own BEGIN is deferred: _begin_sqlite decides
    cursor = connection.cursor()
    # A busy database can refuse the switch to WAL at once, whatever the time-out; it lasts.
    if cursor.execute("PRAGMA journal_mode").fetchone()[0] != "wal":
        cursor.execute("PRAGMA journal_mode=WAL")
    cursor.execute("PRAGMA synchronous=FULL")  # what was accepted survives a power failure
    cursor.execute("PRAGMA foreign_keys=ON")
    cursor.close()


def _begin_sqlite(connection: Any) -> None:
    # Deferred, a transaction that reads and then writes fails when another one wrote meanwhile.
    if connection.get_execution_options().get("immediate"):
        connection.exec_driver_sql("BEGIN IMMEDIATE")
    else:  # waits for nobody, and is not worth a statement of SQLAlchemy
        connection.connection.driver_connection.execute("BEGIN")


@contextmanager
def _answering(url: str) -> Iterator[None]:
    try:
        yield
    except DataError as error:
        raise SettingError(f"a value is out of the range of its column: {error.orig}") from error
    except (InterfaceError, OperationalError, ProgrammingError) as error:
        shown = make_url(url).render_as_string()
        message = f"the database of jobs, {shown}, failed: {error.orig}"
        if "database is locked" in str(error.orig):
            message = (
                f"the database of jobs, {shown}, is locked: another process writes to it for long"
            )
        raise ServiceError(message) from error
    except DatabaseError as error:
        if type(error) is not DatabaseError:
            raise  # a kind of its own; what SQLite says of its file's content has none
        shown = make_url(url).render_as_string()
        raise CorruptFileError(
            f"{shown} is no database of jobs ({error.orig}): name another, or move it away"
        ) from error
    except NoneFreeError as error:
        shown = make_url(url).render_as_string()
        raise ServiceError(f"the database of jobs, {shown}, is too busy: {error}") from error
