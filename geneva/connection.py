"""connect() and Connection: a LanceDB database whose tables can have computed columns.

lancedb is imported when it is needed: it takes longer to import than a small backfill
to run, and a script that opens a table and fills a column needs nothing of it.
"""

from __future__ import annotations

import re
import sys
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from functools import cached_property, partial
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import pyarrow as pa

from geneva.errors import GenevaError, SettingError, TableError
from geneva.interrupts import uninterrupted
from geneva.jobs.backfills import JobsPlace, absolute
from geneva.jobs.page import Sort, Wish, states_named
from geneva.storage.door import LanceErrors, is_fault
from geneva.storage.lance import TableStorage
from geneva.storage.objects import storage_errors
from geneva.storage.remote import check_uri
from geneva.table import Table

if TYPE_CHECKING:
    from geneva.jobs.flows.flow_tables import FlowDatabase
    from geneva.jobs.flows.reading import Source
    from geneva.jobs.flows.runner import FlowResult
    from geneva.jobs.store.view import Jobs, Runs

_STABLE_ROW_IDS = "new_table_enable_stable_row_ids"
_NAME = re.compile(r"[A-Za-z0-9_.-]+")  # of a table, as lancedb allows it


def connect(
    uri: str,
    *,
    storage_options: Mapping[str, str] | None = None,
    ray: Mapping[str, Any] | None = None,
    jobs: str | None = None,
    **options: Any,
) -> Connection:
    """Open a LanceDB database whose tables can have computed columns.

    Parameters
    ----------
    uri
        A directory, or ``s3://``, ``gs://``, ``az://``.
    storage_options
        As lancedb takes them.
    ray
        Options for ``ray.init``, used when the first backfill starts Ray: ``address``,
        ``runtime_env``, ``num_cpus`` ...
    jobs
        Where backfills are recorded: ``sqlite:///file`` or ``postgresql://...``; or the service
        that carries them out, ``http://...``.
    options
        Further options of ``lancedb.connect``.

    Returns
    -------
    Connection
        Everything of lancedb's connection; tables are `Table`.

    Raises
    ------
    SettingError
        For a remote ``db://`` URI.

    Examples
    --------
    >>> import tempfile, geneva
    >>> db = geneva.connect(tempfile.mkdtemp())
    >>> db.create_table("t", [{"x": 1}]).count_rows()
    1
    """
    check_uri(str(uri))
    known = dict(storage_options) if storage_options else None

    def open_database() -> Any:
        with uninterrupted():
            import lancedb

        with storage_errors(str(uri)), LanceErrors(known):
            return lancedb.connect(uri, storage_options=known, **options)

    place = JobsPlace(jobs) if jobs else None
    folder = None if options or "lancedb" in sys.modules else _folder(str(uri))
    return Connection(open_database, folder, known, dict(ray or {}), place)


def connect_existing(uri: str, **options: Any) -> Connection:
    """Open a database that is there: to look at one must not make it, as lancedb does.

    Parameters
    ----------
    options
        See `connect`.

    Raises
    ------
    TableError
        There is no such folder.
    """
    there = "://" in uri
    with suppress(OSError, ValueError):  # no path at all: too long, or it holds a NUL
        there = there or Path(uri).expanduser().is_dir()
    if not there:
        raise TableError(f"there is no database in {uri!r}: no such folder")
    return connect(uri, **options)


def import_lancedb() -> None:
    """Import lancedb before it is needed; in a thread, the import holds up all others."""
    with uninterrupted():
        import lancedb  # noqa: F401


def _folder(uri: str) -> Path | None:
    """Return where a database lies, as lancedb understands it, if it is a folder that is there."""
    path = Path(uri).expanduser().absolute()
    return path if "://" not in uri and path.is_dir() else None


class Connection:
    """A LanceDB database; every method of lancedb's connection works, tables are `Table`.

    Parameters
    ----------
    open_database
        Returns lancedb's own connection.
    folder
        Where the database lies, if lancedb is not to be asked before it is needed.
    """

    def __init__(
        self,
        open_database: Callable[[], Any],
        folder: Path | None,
        storage_options: dict[str, str] | None,
        ray: dict[str, Any],
        jobs: JobsPlace | None = None,
    ) -> None:
        self._open_database, self._folder = open_database, folder
        self._storage_options = storage_options
        self._ray = ray
        self._jobs = jobs
        self.uri = str(self._inner.uri if folder is None else folder)

    @cached_property
    def _inner(self) -> Any:
        return self._open_database()

    def __getattr__(self, name: str) -> Any:
        if name.startswith("__") or name == "_inner":
            raise AttributeError(name)
        return getattr(self._inner, name)

    def create_table(
        self, name: str, data: Any = None, *, stable_row_ids: bool = False, **options: Any
    ) -> Table:
        """Create a table, as lancedb does.

        Parameters
        ----------
        stable_row_ids
            Give rows ids that survive updates and compaction, so that an update of one row
            never makes others look changed.
        """
        if stable_row_ids:
            known = dict(options.get("storage_options") or self._storage_options or {})
            known[_STABLE_ROW_IDS] = "true"
            options["storage_options"] = known
        return self._wrap(self._inner.create_table(name, data, **options), options)

    def open_table(self, name: str, **options: Any) -> Table:
        """Open a table.

        Raises
        ------
        TableError
            There is none of that name; the message lists those that exist.
        CorruptFileError
            A power failure tore its newest version; the message says what to do.
        """
        if self._folder is not None and not options:
            table = self._without_lancedb(name)
            if table is not None:
                return table
        known = self._options_of(options)
        with storage_errors(self.uri):
            try:
                storage = TableStorage(f"{self.uri}/{name}.lance", known)
                opened = storage.opened(partial(self._inner.open_table, name, **options))
                return self._wrap(opened, options)
            except OSError as error:
                if "invalid table name" in str(error).lower():
                    raise TableError(str(error)) from error
                if is_fault(error) or "not found" not in str(error).lower():
                    TableStorage(f"{self.uri}/{name}.lance").check_manifests()
                    raise
                others = f"tables: {', '.join(sorted(self._inner.list_tables().tables)) or 'none'}"
                raise TableError(f"no table {name!r} in {self.uri}; {others}") from error

    def _without_lancedb(self, name: str) -> Table | None:
        """Return a table if there is one and nothing is wrong with it."""
        if not _NAME.fullmatch(name):
            return None
        storage = TableStorage(f"{self.uri}/{name}.lance", self._storage_options)
        try:
            storage.open()
        except (GenevaError, OSError, ValueError):
            return None
        return Table(
            lambda: self._inner.open_table(name), ray=self._ray, storage=storage, jobs=self._jobs
        )

    def _options_of(self, options: Mapping[str, Any]) -> dict[str, str]:
        """Return the storage options of a table: the connection's options and its own."""
        return {**(self._storage_options or {}), **(options.get("storage_options") or {})}

    def _wrap(self, inner: Any, options: Mapping[str, Any]) -> Table:
        # Stable row ids are for the making of the table.
        known = {k: v for k, v in self._options_of(options).items() if k != _STABLE_ROW_IDS}
        return Table(inner, storage_options=known or None, ray=self._ray, jobs=self._jobs)

    def runs(
        self,
        *,
        table: str | None = None,
        states: Sequence[str] = (),
        name: str | None = None,
        sort: Sort = "-created",
    ) -> Runs:
        """Return the recorded runs of this database: ``for run in db.runs(table="docs")``.

        Parameters
        ----------
        table, states, name
            Only the runs of a table, in one of some states, of a name.
        sort
            ``"created"``, ``"priority"`` or ``"name"``, the least first; or with a minus.
        """
        from geneva.jobs.store.view import Runs

        return Runs(self._record.source, self._wish(table, states, sort, name))

    def jobs(
        self,
        *,
        table: str | None = None,
        states: Sequence[str] = (),
        sort: Literal["created", "-created", "priority", "-priority"] = "-created",
    ) -> Jobs:
        """Return the recorded jobs of this database; a run has one or more. See `runs`."""
        from geneva.jobs.store.view import Jobs

        return Jobs(self._record.source, self._wish(table, states, sort))

    def sql_jobs(self, query: str) -> pa.Table:
        """Run SQL over all that is recorded: runs, jobs, tasks, failures and events."""
        from geneva.jobs.store.tables import query as run

        return run(self._record.source, query)

    def run(
        self,
        *sources: Source,
        params: Mapping[str, Any] | None = None,
        image: str | None = None,
        new: bool = False,
        observe: Callable[[str], None] | None = None,
    ) -> FlowResult:
        """Run a flow: operations, matrices and DAGs of backfills and jobs.

        With ``connect(jobs="sqlite:///...")`` every operation is a recorded job. The same call
        continues a run of the same flow that did not end: what succeeded is not run again. Without
        a database of jobs only values are remembered: backfills find nothing to do, jobs run again.

        Parameters
        ----------
        sources
            Paths of YAML files, mappings, or values of `geneva.flow`.
        params
            Values of the flow's inputs.
        image
            ``"host"`` runs commands of containers as processes of this host.
        new
            Begin a new run, although one of the same flow did not end.
        observe
            Is given a line of text for each start and end.

        Returns
        -------
        FlowResult
            The state of the run and the result of each operation; a failed operation is no
            exception.

        Raises
        ------
        FlowError
            The description is wrong, or its parts do not fit together; nothing was run.
        JobStateError
            Another process carries the same flow out at this moment.
        """
        from geneva.jobs.flows.reading import read_flow

        flows, spec = self.flows(), read_flow(*sources)
        see = observe or (lambda _: None)
        return flows.run(spec, params or {}, image=image, new=new, observe=see)

    def flows(self) -> FlowDatabase:
        """Return this database as flows use it, which also compiles and plans them."""
        from geneva.jobs.flows.flow_tables import FlowDatabase

        def opened(name: str, place: JobsPlace | None) -> Table:
            options = self._storage_options
            within = Connection(lambda: self._inner, self._folder, options, self._ray, place)
            return within.open_table(name)

        return FlowDatabase(self.uri, opened, self._jobs)

    @property
    def _record(self) -> JobsPlace:
        if self._jobs is None:
            raise SettingError(
                "no jobs are recorded: connect with jobs='sqlite:///file' or jobs='http://service'"
            )
        return self._jobs

    def _wish(
        self, table: str | None, states: Sequence[str], sort: Sort, name: str | None = None
    ) -> Wish:
        return Wish(states_named(states), absolute(self.uri), table, name, sort)

    def __repr__(self) -> str:
        return f"geneva.Connection({self.uri!r})"
