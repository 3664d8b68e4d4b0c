"""The database of a flow: its tables, their backfills as jobs of the flow, SQL over them."""

from __future__ import annotations

import hashlib
import json
import math
import re
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, Protocol
from urllib.parse import urlsplit

from geneva.column.binding import as_called, bindings_of, group_of
from geneva.errors import FlowError, GenevaError
from geneva.flow.compiled import Columns, Flow, compile_flow
from geneva.flow.spec import BackfillRun, Component, DagRun, Operation
from geneva.jobs.backfills import JobsPlace, absolute
from geneva.jobs.flows.flow_record import FlowRecord, StoredFlowRecord
from geneva.jobs.flows.runner import FlowResult, FlowRunner, Running
from geneva.jobs.records import Membership
from geneva.storage.lance import TableStorage
from geneva.where.parse import parse_where

_WORD = re.compile(r"[A-Za-z_]\w*")


class OpenTable(Protocol):
    """A table with computed columns, as `geneva.Table` is one."""

    @property
    def storage(self) -> TableStorage:
        """Its files."""

    @property
    def backfill_async(self) -> Callable[..., Any]:
        """Begins a backfill."""

    @property
    def plan_backfill(self) -> Callable[..., Any]:
        """Plans a backfill."""


Opener = Callable[[str, JobsPlace | None], OpenTable]


class FlowDatabase:
    """A database as flows use it.

    Parameters
    ----------
    open_table
        Opens a table whose calls are recorded in a place.
    place
        Where jobs are recorded, None for nowhere.
    """

    def __init__(self, uri: str, open_table: Opener, place: JobsPlace | None) -> None:
        self._uri, self._open, self._place = uri, open_table, place
        if place is not None and place.remote:
            raise FlowError(
                "flows are not sent to a service yet: connect with jobs='sqlite:///...'"
            )

    def compile(
        self,
        spec: Component | Operation | DagRun,
        params: Mapping[str, object],
        image: str | None = None,
    ) -> Flow:
        """Compile a flow over the tables of this database."""
        return compile_flow(spec, params, image=image, columns_of=self._columns_of)

    def run(
        self,
        spec: Component | Operation | DagRun,
        params: Mapping[str, object],
        *,
        image: str | None = None,
        new: bool = False,
        observe: Callable[[str], None] = lambda _: None,
        at_once: int | None = None,
    ) -> FlowResult:
        """Run a flow to its end; one of the same text that did not end is continued.

        Raises
        ------
        FlowError
            It does not compile.
        JobStateError
            Another process carries it out at this moment.
        """
        flow = self.compile(spec, params, image)
        record = self._record(flow, spec, params, new)
        more = {} if at_once is None else {"at_once": at_once}
        return FlowRunner(flow, self, record, absolute(self._uri), observe, **more).run()

    def _record(
        self,
        flow: Flow,
        spec: Component | Operation | DagRun,
        params: Mapping[str, object],
        new: bool,
    ) -> FlowRecord:
        if self._place is None:
            return FlowRecord(flow.name)
        described = spec.model_dump(mode="json", by_alias=True, exclude_defaults=True)
        document = {"flow": described, "params": json.loads(json.dumps(params, default=str))}
        db = absolute(self._uri)
        text = json.dumps([db, document], sort_keys=True)
        digest = hashlib.sha256(text.encode()).hexdigest()
        folder = _folder_of(self._place.url)
        return StoredFlowRecord(self._place.store, flow.name, db, document, digest, folder, new=new)

    # --- tables -------------------------------------------------------------------------

    def backfill(
        self, table: str, columns: tuple[str, ...], arguments: Mapping[str, Any], of: Membership
    ) -> Running:
        """Begin a backfill as a job of the flow."""
        place = None if self._place is None else self._place.within(of)
        job: Running = self._open(table, place).backfill_async(
            list(columns), progress=False, **arguments
        )
        return job

    def plan(self, table: str, columns: tuple[str, ...], arguments: Mapping[str, Any]) -> str:
        """Return the rows that a backfill would compute now, in words."""
        plan = self._open(table, None).plan_backfill(list(columns), **arguments)
        return str(plan).partition("\n")[0]

    def measure(self, table: str, metrics: Mapping[str, str]) -> dict[str, float]:
        """Evaluate SQL expressions over the latest version of a table, by name.

        The columns that they name are read into memory.

        Raises
        ------
        FlowError
            An expression is wrong, or is no finite number.
        """
        from datafusion import SessionContext

        storage = self._open(table, None).storage
        snapshot = storage.open()
        words = {word for sql in metrics.values() for word in _WORD.findall(sql)}
        names = [n for n in snapshot.schema.names if n in words] or snapshot.schema.names[:1]
        ids = list(snapshot.fragments)
        batches = list(storage.scan(snapshot, ids, names, batch_rows=65_536, live_only=True))
        context = SessionContext()
        context.register_record_batches("t", [batches])
        values: dict[str, float] = {}
        for name, sql in metrics.items():
            try:
                [[value]] = (
                    context.sql(f"SELECT {sql} FROM t").to_arrow_table().to_pydict().values()
                )
            except Exception as error:  # whatever datafusion raises: it has no type of its own
                raise FlowError(f"{sql!r} over {table!r}: {error}", f"metrics.{name}") from None
            number = isinstance(value, int | float) and math.isfinite(value)
            if not number:
                raise FlowError(
                    f"{sql!r} over {table!r} is {value!r}, no number", f"metrics.{name}"
                )
            values[name] = float(value)
        return values

    def _columns_of(self, run: BackfillRun) -> Columns | None:
        """Return the columns that a backfill writes and reads, if the table knows them."""
        try:
            snapshot = self._open(run.table, None).storage.open()
        except GenevaError:
            return None
        schema = as_called(snapshot)
        bound = bindings_of(schema)
        writes, reads = set[str](), set[str]()
        for column in run.columns:
            if (binding := bound.get(column)) is None:
                return None
            writes |= {name for name, _ in group_of(schema, binding)}
            reads |= {name.partition(".")[0] for name in binding.inputs}
        if run.where is not None:
            reads |= set(parse_where(run.where, schema).columns)
        return frozenset(writes), frozenset(reads - writes)


def _folder_of(url: str) -> Path | None:
    """Return where the jobs of flows have their folders: beside a database that is a file."""
    if not url.startswith("sqlite:///"):
        return None
    return Path(urlsplit(url).path[1:]).absolute().parent / "flows"
