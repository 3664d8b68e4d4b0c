"""Writers and backfills of one small table, and a model in plain Python of what it must hold.

A `World` does steps to a Lance table and to the model alike. A backfill may be met by steps of
other writers at any of its storage calls or UDF calls, and by a cancel or a power failure. What
other writers did is known exactly; of a computed value the model knows whether it may be there:
an earlier one, one that the UDF returned for this row, or a person's.
"""

from __future__ import annotations

import copy
import datetime as dt
import threading
from collections import Counter, defaultdict
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import lance
import pyarrow as pa

import geneva
from geneva.engine.claims import FOLDER
from geneva.errors import (
    ColumnError,
    ConflictError,
    JobCancelledError,
    StorageError,
    SupersededError,
    TableChangedError,
)
from geneva.storage.lance import TableStorage
from tests.support.faults import FaultError, FaultyStorage
from tests.support.tables import assert_table_invariants, database_of, make_table
from tests.support.writers import rewrite_column

ROWS = 10
COLUMNS = ("y", "z", "u")
READS = {"y": ("x",), "z": ("y", "k"), "u": ("k",)}
FILTERS: dict[str, Callable[[dict[str, Any]], bool | None]] = {
    "tag = 'a'": lambda r: r["tag"] == "a",
    "x < 2": lambda r: r["x"] < 2,
    "y is null": lambda r: r["y"] is None,
    "y is not null": lambda r: r["y"] is not None,
    "id < 6": lambda r: r["id"] < 6,
    "k < 2": lambda r: r["k"] < 2,
}


def value_of(column: str, version: int, inputs: tuple[Any, ...]) -> int | None:
    """Return what a version of a column's UDF makes of its inputs; honest nulls included."""
    if column == "y":
        return None if inputs[0] == 2 else inputs[0] * 10 + version
    if column == "z":
        return (-1 if inputs[0] is None else inputs[0]) + inputs[1] + 100 * version
    return -1 - int(inputs[0]) - 1000 * version


class Calls:
    """Every UDF call of this process; a world listens to it."""

    def __init__(self) -> None:
        self.made: list[tuple[str, int, int, tuple[Any, ...]]] = []
        self.script: Script | None = None

    def __call__(self, column: str, version: int, row: int, inputs: tuple[Any, ...]) -> int | None:
        self.made.append((column, version, row, inputs))
        if self.script is not None:
            self.script.tick("udf")
        return value_of(column, version, inputs)


CALLS = Calls()


def udf_of(column: str, number: int) -> geneva.UDF:
    """Return a column's UDF; those of other numbers are other UDFs."""
    settings = {"name": f"of_{column}", "version": str(number), "data_type": pa.int64()}
    if column == "y":

        @geneva.udf(**settings)
        def of_x(id: int, x: int) -> int:
            from tests.support.chaos import CALLS

            return CALLS("y", number, id, (x,))

        return of_x
    if column == "z":

        @geneva.udf(**settings)
        def of_y(id: int, y: int, k: int) -> int:
            from tests.support.chaos import CALLS

            return CALLS("z", number, id, (y, k))

        return of_y

    @geneva.udf(**settings)
    def of_k(id: int, k: int) -> int:
        from tests.support.chaos import CALLS

        return CALLS("u", number, id, (k,))

    return of_k


@dataclass(frozen=True)
class Step:
    """Something that is done to the table; ``ids`` and ``pick`` say to what and how."""

    name: str
    ids: tuple[int, ...] = (0,)
    pick: int = 0

    @property
    def where(self) -> str:
        return f"id in ({', '.join(map(str, self.ids))})"


@dataclass(frozen=True)
class Event:
    """What happens at the n-th storage or UDF call of a job: a step, "cancel" or "power off"."""

    at: int
    what: Step | str


class PowerOffError(BaseException):
    """The process is gone; nothing of it may run any more."""


class Script:
    """Lets events happen at their calls of one job."""

    def __init__(self, world: World, events: Sequence[Event]) -> None:
        self._world, self._lock = world, threading.RLock()
        self._owner = threading.current_thread()
        self._events = sorted(events, key=lambda e: e.at)
        self._count = 0
        self._acting = False
        self.dead = False
        self.job: geneva.Job | None = None
        self.started = threading.Event()
        self.happened: list[Step | str] = []

    def tick(self, name: str) -> None:
        if threading.current_thread() is self._owner:
            return  # the request is checked there, before the job begins
        self.started.wait()
        with self._lock:
            if self._acting:
                return
            self._count += 1
            while not self.dead and self._events and self._events[0].at <= self._count:
                self._happen(self._events.pop(0).what)
            if self.dead:
                self.die()

    def die(self) -> None:
        if threading.current_thread().name.startswith("geneva-job"):
            raise PowerOffError
        raise FaultError("the power is off")  # threads of appliers end quietly, and do no more

    def observe(self, progress: Any) -> None:
        if self.dead and threading.current_thread().name.startswith("geneva-job"):
            raise PowerOffError

    def _happen(self, what: Step | str) -> None:
        self.happened.append(what)
        if isinstance(what, Step):
            self._acting, CALLS.script = True, None  # it may run a backfill of its own
            try:
                self._world.act(what)
            finally:
                self._acting, CALLS.script = False, self
        elif what == "cancel":
            assert self.job is not None
            self.job.cancel()
        else:
            self.dead = True


@dataclass(frozen=True)
class ScriptedStorage(FaultyStorage):
    """Tells a script of every storage call."""

    script: Any = None

    def tick(self, name: str) -> None:
        self.script.tick(name)


@dataclass
class Cell:
    """A computed value, and what it was computed from.

    ``kind`` is missing, computed or foreign; ``loose`` where a cleanup took the history that
    would tell: then the value may be trusted or computed again.
    """

    kind: str = "missing"
    value: int | None = None
    by: tuple[Any, ...] | None = None
    proven: bool = False
    loose: bool = False


@dataclass
class Row:
    base: dict[str, Any]
    cells: dict[str, Cell] = field(default_factory=dict)

    def values(self) -> dict[str, Any]:
        return self.base | {c: cell.value for c, cell in self.cells.items()}


@dataclass
class Tally:
    """Rows that had a value and were computed again, and those that had to be; by what was done."""

    recomputed: Counter[str] = field(default_factory=Counter)
    stale: Counter[str] = field(default_factory=Counter)
    steps: Counter[str] = field(default_factory=Counter)
    jobs: Counter[str] = field(default_factory=Counter)

    def __str__(self) -> str:
        lines = [f"jobs {dict(self.jobs)}"]
        for name in sorted(set(self.recomputed) | set(self.stale)):
            again, stale = self.recomputed[name], self.stale[name]
            factor = f"{again / stale:.2f}" if stale else "-"
            lines.append(f"{name:50} {again:6} {stale:6}  {factor}")
        return "\n".join(lines)


class World:
    """One table, its model, and what is done to them."""

    def __init__(
        self, path: Path, *, stable: bool, fragments: int, xs: Sequence[int], tally: Tally
    ) -> None:
        CALLS.script = None
        path.mkdir(parents=True)
        base = [
            {"id": i, "x": x, "k": (x + i) % 3, "tag": "ab"[i % 2], "views": 0}
            for i, x in enumerate(xs)
        ]
        self.tally = tally
        table = make_table(
            path, data=pa.Table.from_pylist(base), fragments=fragments, stable=stable
        )
        self.uri = table.storage.uri
        self.rows = {b["id"]: Row(b) for b in base}
        self.numbers: dict[str, int] = {}
        self.extra = False
        self.returned: dict[tuple[str, int], list[tuple[int, tuple[Any, ...]]]] = defaultdict(list)
        self.past: dict[int, Any] = {}
        self.since: dict[str, list[str]] = {c: [] for c in COLUMNS}
        self.held: dict[int, tuple[dict[str, Any], dict[str, Cell]]] = {}
        self.next_id, self.next_value = 100, 1_000_000
        self.meddled = False
        self.seen = len(CALLS.made)
        self.cleaned = False
        for c in COLUMNS:
            self.bind(c, 0)
        self.remember()

    # --- the table ---------------------------------------------------------------------

    @property
    def dataset(self) -> Any:
        return lance.dataset(self.uri)

    def table(self, storage: Any = None) -> geneva.Table:
        opened = geneva.connect(database_of(self.uri)).open_table("t")
        return geneva.Table(opened, storage=storage) if storage else opened

    def chosen(self, step: Step) -> list[Row]:
        return [self.rows[i] for i in step.ids if i in self.rows]

    def fragment(self, step: Step, *, whole: bool = False) -> tuple[int, list[int]] | None:
        """Choose a fragment; return its id and its rows'."""
        found = [f for f in self.dataset.get_fragments() if f.count_rows()]
        if whole:
            found = [f for f in found if not f.num_deletions]
        if not found:
            return None
        chosen = found[step.pick % len(found)]
        return chosen.fragment_id, chosen.to_table(columns=["id"])["id"].to_pylist()

    # --- what the model says -----------------------------------------------------------

    def inputs(self, row: Row, column: str) -> tuple[Any, ...]:
        return tuple(row.cells[c].value if c in row.cells else row.base[c] for c in READS[column])

    def due(self, row: Row, column: str) -> bool:
        """Whether a value is missing or truly stale."""
        cell = row.cells[column]
        wanted = (self.numbers[column], self.inputs(row, column))
        return cell.kind != "foreign" and (cell.kind == "missing" or cell.by != wanted)

    def ready(self, row: Row, column: str) -> bool:
        return all(not self.due(row, c) for c in READS[column] if c in row.cells)

    def right(self, row: Row, column: str) -> bool:
        """Whether the value is a person's, or what the UDF makes of the present inputs."""
        cell = row.cells[column]
        wanted = self.numbers[column], self.inputs(row, column)
        if cell.kind == "foreign" or (cell.loose and cell.by in (None, wanted)):
            return True
        return cell.kind == "computed" and cell.value == value_of(column, *wanted)

    def remember(self) -> None:
        """Note what a version holds, so that it can be restored."""
        if not self.meddled:
            state = copy.deepcopy((self.rows, self.numbers, self.extra))
            self.past[self.dataset.version] = state

    # --- steps -------------------------------------------------------------------------

    def act(self, step: Step) -> None:
        """Do what another writer does."""
        STEPS[step.name](self, step)
        for names in self.since.values():
            names.append(step.name)
        self.tally.steps[step.name] += 1
        self.remember()

    def bind(self, column: str, number: int) -> None:
        fresh = column not in self.numbers
        self.table().add_columns({column: udf_of(column, number)})
        self.numbers[column] = number
        for row in self.rows.values() if fresh else ():
            row.cells[column] = Cell()

    def update(self, step: Step, **values: Any) -> None:
        self.dataset.update({k: repr(v) for k, v in values.items()}, where=step.where)
        for row in self.chosen(step):
            row.base |= values

    def count_view(self, step: Step) -> None:
        self.dataset.update({"views": "views + 1"}, where=step.where)
        for row in self.chosen(step):
            row.base["views"] += 1

    def correct(self, step: Step) -> None:
        column = self.correctable(step)
        value = self.new_value()
        self.dataset.update({column: str(value)}, where=step.where)
        for row in self.chosen(step):
            row.cells[column] = Cell("foreign", value)

    def correct_with_input(self, step: Step) -> None:
        value, x = self.new_value(), step.pick % 4
        self.dataset.update({"y": str(value), "x": str(x)}, where=step.where)
        for row in self.chosen(step):
            row.base["x"] = x
            row.cells["y"] = Cell("foreign", value)

    def correct_in_place(self, step: Step) -> None:
        chosen = self.fragment(step)
        if chosen is None:
            return
        ids = [i for i in chosen[1] if i % 3 == 0]
        value = self.new_value()
        self.rewrite(chosen[0], "y", {i: value for i in ids})
        for i in ids:
            self.rows[i].cells["y"] = Cell("foreign", value)

    def correctable(self, step: Step) -> str:
        return [c for c in COLUMNS if c in self.numbers][step.pick % len(self.numbers)]

    def new_value(self) -> int:
        """Return a value that no UDF makes of earlier ones: z adds less than 10,000 to y."""
        self.next_value += 10_007
        return self.next_value

    def rewrite_x(self, step: Step) -> None:
        chosen = self.fragment(step)
        if chosen is None:
            return
        new = {i: step.pick % 4 for i in chosen[1] if i % 3 == 0}
        self.rewrite(chosen[0], "x", new)
        for i, x in new.items():
            self.rows[i].base["x"] = x

    def rewrite(self, fragment_id: int, column: str, new: dict[int, int]) -> None:
        """Change some values of a column in place and without moving a row."""
        if not new:
            return
        fragment = self.dataset.get_fragment(fragment_id)
        values = pa.table({"id": list(new), column: pa.array(new.values(), pa.int64())})
        updated, fields = fragment.update_columns(values, left_on="id", right_on="id")
        operation = lance.LanceOperation.Update(
            updated_fragments=[updated], fields_modified=fields, update_mode="rewrite_columns"
        )
        dataset = self.dataset
        lance.LanceDataset.commit(dataset.uri, operation, read_version=dataset.version)

    def replace_k(self, step: Step) -> None:
        chosen = self.fragment(step, whole=True)
        if chosen is None:
            return

        def change(k: int) -> int:
            return step.pick % 3 if k == 1 else k

        rewrite_column(self.uri, "k", change, [chosen[0]], "replacement")
        for i in chosen[1]:
            self.rows[i].base["k"] = change(self.rows[i].base["k"])

    def touch_x(self, step: Step) -> None:
        chosen = self.fragment(step, whole=True)
        if chosen is not None:
            rewrite_column(self.uri, "x", lambda x: x, [chosen[0]], "update")

    def merge(self, step: Step) -> None:
        """Write whole rows, all of them read before and x of some changed, in another order."""
        rows = self.dataset.to_table(filter=step.where).to_pylist()[::-1]
        for k, row in enumerate(rows):
            row["x"] = (row["x"] + (step.pick if k % 2 else 0)) % 4
        if rows:
            new = pa.Table.from_pylist(rows, self.dataset.schema)
            self.dataset.merge_insert("id").when_matched_update_all().execute(new)
        for row in rows:
            self.rows[row["id"]].base["x"] = row["x"]

    def merge_x(self, step: Step) -> None:
        """Write the id and x of some rows, only."""
        new = {i: (step.pick + i) % 4 for i in step.ids if i in self.rows}
        if not new:
            return
        merge = self.dataset.merge_insert("id").when_matched_update_all()
        merge = merge.write_mode("rewrite_columns") if step.pick % 2 else merge
        merge.execute(pa.table({"id": list(new), "x": list(new.values())}))
        for i, x in new.items():
            self.rows[i].base["x"] = x

    def upsert(self, step: Step) -> None:
        """Change the tag of some rows and add one, by one merge."""
        rows = self.dataset.to_table(filter=step.where).to_pylist()
        for row in rows:
            row["tag"] = "ab"[step.pick % 2]
            self.rows[row["id"]].base["tag"] = row["tag"]
        rows.append(self.new_row(step))
        new = pa.Table.from_pylist(rows, self.dataset.schema)
        merge = self.dataset.merge_insert("id").when_matched_update_all()
        merge.when_not_matched_insert_all().execute(new)

    def read_rows(self, step: Step) -> None:
        """Read whole rows, as somebody does who will write them back later."""
        for row in self.dataset.to_table(filter=step.where).to_pylist():
            self.held[row["id"]] = row, copy.deepcopy(self.rows[row["id"]].cells)

    def write_back(self, step: Step) -> None:
        """Upsert rows that were read earlier, with a change that has nothing to do with a column.

        A value that differs from the row's own is a person's if it was when it was read.
        """
        held = {i: h for i, h in self.held.items() if i in self.rows}
        self.held = {}
        in_place = step.pick % 3 == 0
        names = [n for n in self.dataset.schema.names if all(n in r for r, _ in held.values())]
        if in_place:
            names = [n for n in names if n in ("id", "tag", *self.numbers)]
        rows = []
        for i, (old, cells) in held.items():
            new = {n: old[n] for n in names} | {"tag": "ab"[step.pick % 2]}
            rows.append(new)
            base = self.rows[i].base
            base |= {n: v for n, v in new.items() if n in base}
            for c, cell in self.rows[i].cells.items():
                if cell.value != new[c]:
                    self.rows[i].cells[c] = cells[c] if new[c] is not None else Cell()
        self.upsert_rows(rows[:: -1 if step.pick % 2 else 1], names, in_place=in_place)

    def correct_by_upsert(self, step: Step) -> None:
        """Upsert whole rows, some of them with a value that another row has, and it never had."""
        column = self.correctable(step)
        rows = self.dataset.to_table(filter=step.where).to_pylist()
        for row in rows[: 1 + step.pick % 2]:
            cell = self.rows[row["id"]].cells[column]
            own = {value_of(column, *by) for by in self.returned[column, row["id"]]}
            there = {r.cells[column].value for r in self.rows.values()} - own - {None, cell.value}
            if there and not cell.loose:
                row[column] = sorted(there)[step.pick % len(there)]
                self.rows[row["id"]].cells[column] = Cell("foreign", row[column])
        names = ["id", column] if step.pick % 3 == 0 else list(self.dataset.schema.names)
        self.upsert_rows(rows, names, in_place=step.pick % 3 == 0)

    def upsert_rows(self, rows: list[dict[str, Any]], names: list[str], *, in_place: bool) -> None:
        if not rows:
            return
        schema = pa.schema([self.dataset.schema.field(n) for n in names])
        new = pa.Table.from_pylist([{n: r[n] for n in names} for r in rows], schema)
        merge = self.dataset.merge_insert("id").when_matched_update_all()
        (merge.write_mode("rewrite_columns") if in_place else merge).execute(new)

    def new_row(self, step: Step, **values: int) -> dict[str, Any]:
        self.next_id += 1
        base = {"id": self.next_id, "x": step.pick % 4, "k": 1, "tag": "a", "views": 0}
        cells = {c: Cell() for c in self.numbers}
        cells |= {c: Cell("foreign", v) for c, v in values.items()}
        self.rows[self.next_id] = Row(base, cells)
        return base | values

    def append(self, step: Step) -> None:
        self.dataset.insert(pa.Table.from_pylist([self.new_row(step)]))

    def append_with_value(self, step: Step) -> None:
        self.dataset.insert(pa.Table.from_pylist([self.new_row(step, y=self.new_value())]))

    def delete(self, step: Step) -> None:
        self.dataset.delete(f"id = {step.ids[0]}")
        self.rows.pop(step.ids[0], None)

    def compact(self, step: Step) -> None:
        rows = (4, 8, 1000)[step.pick % 3]
        self.dataset.optimize.compact_files(
            target_rows_per_fragment=rows, materialize_deletions_threshold=0.0
        )

    def compact_twice(self, step: Step) -> None:
        self.compact(Step("compact", step.ids, step.pick))
        self.delete(step)
        self.compact(Step("compact", step.ids, step.pick + 1))

    def toggle_extra(self, step: Step) -> None:
        dataset = self.dataset
        if self.extra:
            dataset.drop_columns([n for n in dataset.schema.names if n.startswith("extra")])
        else:
            dataset.add_columns({"extra": "x + 1"})
        self.extra = not self.extra

    def rename_extra(self, step: Step) -> None:
        if "extra" in self.dataset.schema.names:
            self.dataset.alter_columns({"path": "extra", "name": f"extra{step.pick}"})

    def toggle_u(self, step: Step) -> None:
        self.held = {}  # a column of the same name is another one
        if "u" in self.numbers:
            self.dataset.drop_columns(["u"])
            del self.numbers["u"]
            for row in self.rows.values():
                del row.cells["u"]
        else:
            self.bind("u", 0)

    def rebind(self, step: Step) -> None:
        column = self.correctable(step)
        self.bind(column, (self.numbers[column] + 1) % 3)

    def places(self) -> dict[int, int]:
        """Return the fragment in which each row lies."""
        ids = {f.fragment_id: f.to_table(columns=["id"]) for f in self.dataset.get_fragments()}
        return {i: k for k, rows in ids.items() for i in rows["id"].to_pylist()}

    def restore(self, step: Step) -> None:
        there = [v["version"] for v in self.dataset.versions() if v["version"] in self.past]
        if not there:
            return
        version = there[-1 - step.pick % len(there)]
        left = self.places()
        lance.dataset(self.uri, version=version).restore()
        # Of rows that lie elsewhere in the versions that are left behind, nobody can tell.
        now = self.places()
        self.held = {i: h for i, h in self.held.items() if i in left and left[i] == now.get(i)}
        self.rows, self.numbers, self.extra = copy.deepcopy(self.past[version])

    def clean_up(self, step: Step) -> None:
        """Remove every version but the last, and files that no version names; the history goes."""
        self.cleaned = True
        self.held = {}  # nobody can tell any more whose values they are
        self.dataset.cleanup_old_versions(
            older_than=dt.timedelta(0), delete_unverified=bool(step.pick % 2)
        )
        for row in self.rows.values():
            for column, cell in row.cells.items():
                if not cell.proven or self.due(row, column) or not self.ready(row, column):
                    cell.loose, cell.by = True, None

    def other_backfill(self, step: Step) -> None:
        """Backfill a column as another process would."""
        column = self.correctable(step)
        where = [None, *FILTERS][step.ids[0] % (len(FILTERS) + 1)] if step.pick > 5 else None
        selected = self.selected(where)
        self.end_claims()  # a job that is met by this is given up for dead
        self.run(self.table(), column, where=where)
        self.sync(column, selected, disturbed=self.meddled)

    def end_claims(self) -> None:
        """Let claims end as those of a process that is gone do."""
        objects = TableStorage(self.uri).objects
        for path in objects.list(FOLDER):
            objects.delete(path)

    # --- backfills ---------------------------------------------------------------------

    def run(self, table: geneva.Table, column: str, **options: Any) -> geneva.BackfillResult:
        return table.backfill(column, executor="local", concurrency=1, progress=False, **options)

    def selected(self, where: str | None) -> set[int] | None:
        """Return the rows for which a filter is true now; none without one."""
        return None if where is None else set(self.ids_where(where))

    def ids_where(self, where: str) -> list[int]:
        return list(self.dataset.to_table(columns=["id"], filter=where)["id"].to_pylist())

    def backfill(self, column: str, **options: Any) -> None:
        """Backfill undisturbed; afterwards all that was to be done is done."""
        if column not in self.numbers:
            return
        where, limit = options.get("where"), options.get("num_frags")
        selected = self.selected(where)
        held = {i: r.cells[column].kind == "computed" for i, r in self.rows.items()}
        as_is = options.get("inputs") == "as_is"
        due = {
            i
            for i, r in self.rows.items()
            if self.due(r, column)
            and (as_is or self.ready(r, column))
            and not r.cells[column].loose
        }
        loose = any(c.loose for r in self.rows.values() for c in r.cells.values())
        first = len(CALLS.made)
        self.run(self.table(), column, **options)
        made = {c[2] for c in CALLS.made[first:]}
        self.tally.jobs["undisturbed"] += 1
        self.sync(column, selected, complete=where is None and limit is None)
        if where is None and not loose and not self.cleaned:
            self.count(column, {i for i in made if held.get(i)}, {i for i in due if held[i]}, limit)
        if limit is None:
            self.check_done(column, selected, as_is=as_is)
        self.remember()

    def count(self, column: str, again: set[int], stale: set[int], limit: int | None) -> None:
        stale = stale if limit is None else stale & again
        what = sorted(set(self.since[column]))
        names = ["all"] + ([f"only {what[0]}"] if len(what) == 1 else [])
        for name in names:
            self.tally.recomputed[name] += len(again)
            self.tally.stale[name] += len(stale)
        if again - stale and len(what) > 1:
            self.tally.recomputed["excess after " + "+".join(what[:4])] += len(again - stale)
        if limit is None:
            self.since[column] = []

    def check_done(self, column: str, selected: set[int] | None, *, as_is: bool) -> None:
        for i, row in self.rows.items():
            ready = as_is or self.ready(row, column)
            if ready and (selected is None or i in selected):
                assert self.right(row, column), (column, i, row, self.numbers)

    def disturbed(self, column: str, events: Sequence[Event], **options: Any) -> None:
        """Backfill while events happen; afterwards nothing wrong may be there."""
        if column not in self.numbers:
            return
        selected = self.selected(options.get("where"))
        script = Script(self, events)
        storage = ScriptedStorage(self.uri, script=script)
        self.meddled = True
        CALLS.script = script
        first = len(CALLS.made)
        due = {i for i, r in self.rows.items() if self.due(r, column)}
        try:
            script.job = self.table(storage).backfill_async(
                column, executor="local", concurrency=1, progress=script.observe, **options
            )
            script.started.set()
            script.job.wait(60)
        except (JobCancelledError, PowerOffError):
            assert {"cancel", "power off"} & set(script.happened), script.happened
        except (TableChangedError, SupersededError, StorageError, ConflictError, ColumnError) as e:
            names = {s.name for s in script.happened if isinstance(s, Step)}
            if not names & DISRUPTIVE and not script.dead:
                e.add_note(f"after {script.happened}")
                raise
        finally:
            script.started.set()
            CALLS.script = None
            self.meddled = False
            if script.dead:
                self.end_claims()
        self.tally.jobs["disturbed" if script.happened else "undisturbed"] += 1
        self.check_calls(column, first, due, script.happened, options)
        for c in self.numbers:
            self.sync(c, selected if c == column else None, disturbed=bool(script.happened))
        self.remember()

    def check_calls(
        self, column: str, first: int, due: set[int], happened: Sequence[Any], options: Any
    ) -> None:
        """Where nobody changed an input and nothing died, no row was computed twice."""
        if all(isinstance(s, Step) and s.name in HARMLESS for s in happened):
            made = Counter(c[2] for c in CALLS.made[first:] if c[0] == column)
            assert not made or max(made.values()) == 1, (made, happened)

    def two_jobs(self, columns: tuple[str, str]) -> None:
        """Two backfills at once, of one column or of two."""
        tables = [(self.table(), c) for c in columns if c in self.numbers]
        jobs = [
            t.backfill_async(c, executor="local", concurrency=1, progress=False) for t, c in tables
        ]
        for job in jobs:
            job.wait(60)
        self.tally.jobs["at once"] += len(jobs)
        for column in self.numbers:
            self.sync(column, None)
        self.remember()

    # --- what was computed -------------------------------------------------------------

    def sync(
        self,
        column: str,
        selected: set[int] | None,
        *,
        complete: bool = False,
        disturbed: bool = False,
    ) -> None:
        """Note which values a job wrote; each must be one that the UDF returned for its row.

        Parameters
        ----------
        selected
            Rows for which the job's filter was true.
        complete
            Whether the job was undisturbed and is done with all that it could do.
        disturbed
            Whether somebody else wrote meanwhile, or the job died.
        """
        for name, number, row_id, inputs in CALLS.made[self.seen :]:
            self.returned[name, row_id].append((number, inputs))
        self.seen = len(CALLS.made)
        if column not in self.numbers:
            return
        there = self.dataset.to_table(columns=["id", column]).to_pylist()
        assert {r["id"] for r in there} == set(self.rows), "rows were lost or came back"
        for found in there:
            row, value = self.rows[found["id"]], found[column]
            cell = row.cells[column]
            chosen = selected is not None and found["id"] in selected
            written = [
                by for by in self.returned[column, found["id"]] if value_of(column, *by) == value
            ]
            if value != cell.value:
                may = chosen or (disturbed and selected is not None) or cell.loose
                assert cell.kind != "foreign" or may, ("correction overwritten", column, row, value)
                assert written, ("no UDF call returned this", column, row, value)
                row.cells[column] = Cell("computed", value, written[-1])
            elif complete or (chosen and not (disturbed and value is None)):
                self.confirm(row, column, written, complete=complete)

    def confirm(self, row: Row, column: str, written: list[Any], *, complete: bool) -> None:
        """Note that a job saw to a row and left it the value that it had."""
        cell = row.cells[column]
        wanted = self.numbers[column], self.inputs(row, column)
        if cell.kind != "foreign" and written and written[-1] == wanted:
            row.cells[column] = Cell("computed", cell.value, wanted)
        elif cell.kind != "foreign" and cell.loose and complete and self.ready(row, column):
            cell.kind, cell.by = "computed", wanted  # trusted from now on
        if complete and (cell.kind == "foreign" or self.ready(row, column)):
            row.cells[column].proven = True

    # --- the end -----------------------------------------------------------------------

    def settle(self) -> None:
        """Backfill all columns; then the table is what the model says, and nothing is left."""
        for column in list(self.numbers):
            self.backfill(column)
        for column in self.numbers:
            assert self.run(self.table(), column).rows_computed == 0, column
            for row in self.rows.values():
                assert self.right(row, column), (column, row)
        found = {r["id"]: r for r in self.dataset.to_table().to_pylist()}
        for i, row in self.rows.items():
            expected = row.values()
            assert {n: found[i][n] for n in expected} == expected
        assert set(found) == set(self.rows)
        assert_table_invariants(self.table())


STEPS: dict[str, Callable[[World, Step], Any]] = {
    "update x": lambda w, s: w.update(s, x=s.pick % 4),
    "update k": lambda w, s: w.update(s, k=s.pick % 3),
    "update tag": lambda w, s: w.update(s, tag="ab"[s.pick % 2]),
    "count view": World.count_view,
    "correct": World.correct,
    "correct with input": World.correct_with_input,
    "correct in place": World.correct_in_place,
    "rewrite x": World.rewrite_x,
    "replace k": World.replace_k,
    "touch x": World.touch_x,
    "merge": World.merge,
    "merge x": World.merge_x,
    "upsert": World.upsert,
    "read rows": World.read_rows,
    "write back": World.write_back,
    "correct by upsert": World.correct_by_upsert,
    "append": World.append,
    "append with value": World.append_with_value,
    "delete": World.delete,
    "compact": World.compact,
    "compact twice": World.compact_twice,
    "toggle extra": World.toggle_extra,
    "rename extra": World.rename_extra,
    "toggle u": World.toggle_u,
    "rebind": World.rebind,
    "restore": World.restore,
    "clean up": World.clean_up,
    "other backfill": World.other_backfill,
}
DISRUPTIVE = {"rebind", "restore", "toggle u", "clean up"}
HARMLESS = {
    "read rows",
    "append",
    "delete",
    "compact",
    "compact twice",
    "toggle extra",
    "rename extra",
}
