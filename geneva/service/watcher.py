"""The watcher: makes a run when a column that is to be kept filled has something to do.

It looks at the latest version of each table of one database. Only when that has changed, and then
kept still for a moment, does it plan, as a dry run does: no UDF is loaded. It keeps nothing that
the tables and the store do not have, so it may be killed at any moment, and several may run.
"""

from __future__ import annotations

import logging
import threading
import time
from dataclasses import dataclass, field

from geneva.column.auto import Auto, auto_of
from geneva.column.binding import bindings_of, group_of
from geneva.connection import Connection, connect
from geneva.engine.plan.causes import causes
from geneva.engine.plan.report import Plan
from geneva.errors import GenevaError
from geneva.jobs.backfills import absolute
from geneva.jobs.records import Submission
from geneva.jobs.store.opening import open_store
from geneva.jobs.store.watches import Watched, Watches, WatchLook
from geneva.service import admission
from geneva.service.opened_tables import storage_options
from geneva.service.service_settings import Settings
from geneva.storage.lance import Snapshot
from geneva.table import Table

_LOG = logging.getLogger("geneva.watcher")
_BUSY_S = 5.0
_LATEST_S = 60.0  # at the latest after so long, what waits is looked at again
_PATIENCE = 10  # a table that never keeps still is looked at after so many times the debounce


@dataclass(slots=True)
class _Column:
    """A column group that is to be kept filled, and whether to look at it."""

    watched: Watched
    auto: Auto
    dirty: bool = True
    look_at: float = 0.0  # not before, by the monotonic clock


@dataclass(slots=True)
class _Known:
    """A table as it was last seen."""

    table: Table
    snapshot: Snapshot
    changed_at: float  # the last change that was seen, and the first since it was looked at
    restless_since: float
    columns: dict[str, _Column] = field(default_factory=dict)


class Watcher:
    """Looks at the tables of one database again and again."""

    def __init__(self, settings: Settings) -> None:
        assert settings.db is not None, "a service without a database watches none"
        self._settings, self._db = settings, settings.db
        self._watches = Watches(open_store(settings.url, _BUSY_S).database)
        self._connection: Connection | None = None
        self._options: dict[str, str] | None = None
        self._names: list[str] | None = None
        self._known: dict[str, _Known] = {}
        self._said: dict[str, str] = {}  # the trouble with a table that the log tells
        self._ended = threading.Event()

    def run(self) -> None:
        """Look until `stop` is called."""
        while not self._ended.wait(self._settings.watch_s):
            self.try_to_look()

    def try_to_look(self) -> None:
        """Look once; faults go to the log."""
        try:
            self.look()
            self._said.pop("", None)
        except Exception as error:
            self._say("", error)

    def stop(self) -> None:
        """End `run` after the present look."""
        self._ended.set()

    def look(self) -> None:
        """Look once at every table."""
        connection = self._connected()
        names = self._tables(connection)
        if names != self._names:
            self._known = {n: k for n, k in self._known.items() if n in names}
            self._said = {n: s for n, s in self._said.items() if n in ("", *names)}
            self._watches.keep_tables(self._db, names)
            self._names = names
        for name in names:
            if self._ended.is_set():
                return
            try:
                self._look_at(connection, name)
                self._said.pop(name, None)
            except Exception as error:  # of one table; the others are looked at
                self._known.pop(name, None)
                self._say(name, error)

    def _connected(self) -> Connection:
        """Return the database, opened anew when its storage options were exchanged."""
        options = storage_options(self._db)
        if self._connection is None or options != self._options:
            self._connection = connect(self._db, storage_options=options)
            self._options, self._known = options, {}
        return self._connection

    def _say(self, name: str, error: Exception) -> None:
        text = f"{type(error).__name__}: {error}"
        if self._said.get(name) != text:
            self._said[name] = text
            unexpected = not isinstance(error, GenevaError)
            _LOG.warning("cannot look at %s: %s", name or self._db, text, exc_info=unexpected)

    @staticmethod
    def _tables(connection: Connection) -> list[str]:
        names: list[str] = []
        page = connection.list_tables()
        while True:
            names += page.tables
            if not page.page_token:
                return names
            page = connection.list_tables(page_token=page.page_token)

    # --- one table -----------------------------------------------------------------------

    def _look_at(self, connection: Connection, name: str) -> None:
        now = time.monotonic()
        known = self._known.get(name)
        if known is None:
            table = connection.open_table(name)
            known = _Known(table, table.storage.open(), now, now)
            self._known[name] = known
            self._read(name, known)
        elif not known.table.storage.is_latest(known.snapshot):
            known.snapshot = known.table.storage.open()
            quiet = not any(c.dirty for c in known.columns.values())
            known.changed_at = now
            known.restless_since = now if quiet else known.restless_since
            self._read(name, known)
        for column in known.columns.values():
            if column.dirty and now >= self._when(known, column):
                self._consider(known, column)

    def _read(self, name: str, known: _Known) -> None:
        """Take from the schema which columns are to be kept filled."""
        schema = known.snapshot.schema
        uri = absolute(known.table.storage.uri)
        known.columns = {}
        for column, binding in bindings_of(schema).items():
            auto = auto_of(schema.field(column))
            if auto is None or binding.incarnation in known.columns:
                continue
            columns = tuple(n for n, _ in group_of(schema, binding))
            watched = Watched(
                *(self._db, name, uri, binding.incarnation, columns),
                auto.schedule,
                binding.digest,
            )
            known.columns[binding.incarnation] = _Column(watched, auto)
        self._watches.keep(uri, list(known.columns))

    @staticmethod
    def _when(known: _Known, column: _Column) -> float:
        """Return when to look at a column: a burst of changes is one cause."""
        if column.auto.schedule:
            return column.look_at
        debounce_s = column.auto.debounce_s
        settled = known.changed_at + debounce_s
        return max(column.look_at, min(settled, known.restless_since + _PATIENCE * debounce_s))

    # --- one column ----------------------------------------------------------------------

    def _consider(self, known: _Known, column: _Column) -> None:
        """Make a run if there is something to do, and nothing speaks against it."""
        look = self._watches.look(column.watched)
        column.look_at = 0.0
        if look.live is not None:
            known.restless_since = time.monotonic()
            return  # it may do what there is to do
        if (wait_s := self._wait_s(column.auto, look)) > 0:
            column.look_at = time.monotonic() + min(wait_s, _LATEST_S)
            return
        if not known.table.storage.is_latest(known.snapshot):
            return  # perhaps by the job that just ended; the next look takes it up
        if look.idle_version == known.snapshot.version and not look.rebound:
            self._settle(column, look, known.snapshot.version)
            return
        try:
            self._decide(known, column, look)
        except GenevaError as error:
            _LOG.warning("%s of %s: %s", look.watched.columns, look.watched.table_uri, error)
            self._watches.refuse(look, f"{type(error).__name__}: {error}")

    @staticmethod
    def _wait_s(auto: Auto, look: WatchLook) -> float:
        """Return for how long nothing is to be done."""
        if auto.schedule and not auto.due(look.fired_s, look.now_s):
            return auto.wait_s(look.fired_s or look.now_s, look.now_s)
        return 0.0 if look.rebound else look.not_before_s - look.now_s

    def _settle(self, column: _Column, look: WatchLook, version: int) -> None:
        column.dirty = bool(column.auto.schedule)
        if column.dirty or look.idle_version != version:
            self._watches.settle(look, version)

    def _decide(self, known: _Known, column: _Column, look: WatchLook) -> None:
        submission = self._submission(column)
        admitted = admission.admit(submission, self._settings.databases)
        plan = admitted.plan()
        if not plan.rows_compute:
            self._settle(column, look, plan.version)
            return
        submission = self._submission(column, self._cause(known, column, look, plan))
        run = self._watches.submit(look, plan.version, submission, admitted.fills)
        if run is not None:
            _LOG.info("run %s of %s: %s", run, look.watched.columns, submission.cause)

    def _cause(self, known: _Known, column: _Column, look: WatchLook, plan: Plan) -> str:
        why = causes(known.table.storage, known.snapshot, plan, look.version)
        schedule = column.auto.schedule
        return f"auto: schedule {schedule}; {why}" if schedule else f"auto: {why}"

    def _submission(self, column: _Column, cause: str = "auto") -> Submission:
        auto, watched = column.auto, column.watched
        return Submission(
            db=watched.db,
            table=watched.table,
            columns=(watched.columns[0],),
            arguments=auto.arguments,
            name="auto",
            pool=auto.pool,
            priority=auto.priority,
            cause=cause,
        )
