"""A table whose backfills are stopped and whose rows others move, and what must not be computed.

A `Begun` does to a table and to a model of it what a history says. The model knows which rows the
UDF was called for, and which of these calls must still count: computed and checkpointed, from
inputs that are the same, in rows that nobody but a compaction moved.
"""

from __future__ import annotations

import datetime as dt
import random
import threading
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import lance
import pyarrow as pa

import geneva
from geneva.column.file import ColumnFileName
from geneva.engine.claims import FOLDER
from geneva.errors import GenevaError
from geneva.storage.lance import TableStorage
from tests.support.faults import FaultError, FaultyStorage
from tests.support.tables import assert_table_invariants, database_of, make_table
from tests.support.writers import rewrite_column

COLUMNS = {"y": 2, "w": 7}
WHERES: dict[str | None, Callable[[int], bool]] = {
    None: lambda i: True,
    "id % 3 < 2": lambda i: i % 3 < 2,
}


class StopError(RuntimeError):
    """What the UDF raises to end its job."""


class Calls:
    """The UDF calls of one job, and what is to happen at one of them."""

    def __init__(self) -> None:
        self.made: list[tuple[str, int]] = []
        self.at, self.how, self.dead = -1, "", False
        self.stop: Callable[[], Any] = lambda: None
        self._lock = threading.Lock()

    def __call__(self, column: str, row: int) -> None:
        with self._lock:
            if len(self.made) == self.at and not self.dead:
                match self.how:
                    case "fail":
                        self.at += 1
                        raise StopError
                    case "die":
                        self.dead = True
                    case "cancel":
                        self.stop()
            self.made.append((column, row))


CALLS: list[Calls] = [Calls()]


def udf_of(column: str) -> geneva.UDF:
    """Return a column's UDF, which tells `CALLS` of every row."""

    @geneva.udf(name=f"of_{column}", version="1", data_type=pa.int64())
    def computed(id: int, x: int) -> int:
        from tests.support.begun import CALLS, COLUMNS

        CALLS[0](column, id)
        return COLUMNS[column] * x + 1

    return computed


@dataclass(frozen=True)
class MortalStorage(FaultyStorage):
    """Does nothing any more once its process is said to be dead."""

    def tick(self, name: str) -> None:
        if CALLS[0].dead:
            raise FaultError("the process is dead")


class Begun:
    """One table, its model, and what is done to them, by chance."""

    def __init__(self, path: Path, seed: int) -> None:
        self.chance = chance = random.Random(seed)
        self.text = [f"seed {seed}"]
        fragments = chance.choice([2, 3, 6])
        data = pa.table({"id": range(24), "x": range(100, 124), "tag": ["a"] * 24})
        table = make_table(path, data=data, fragments=fragments, stable=chance.random() < 0.5)
        self.uri = table.storage.uri
        self.columns = chance.choice([["y"], ["y", "w"]])
        self.where = chance.choice([None, None, "id % 3 < 2"])
        table.add_columns({c: udf_of(c) for c in self.columns})
        self.known: dict[str, set[int]] = {c: set() for c in self.columns}
        self.free: dict[str, set[int]] = {c: set() for c in self.columns}
        # Rows of which a cleanup took what tells whether they are stale: such values are computed
        # again, or trusted and counted.
        self.unproven: dict[str, set[int]] = {c: set() for c in self.columns}
        # Such rows that a stopped run computed again: at most that is checkpointed, as their values
        # are in the table already and prove nothing.
        self.pending: dict[str, set[int]] = {c: set() for c in self.columns}
        self.rewritten: set[int] = set()  # rows whose inputs were written again where they lie
        self.next_id, self.next_x = 100, 5000
        self.extra, self.moved, self.died = False, False, False
        self.stops = 0
        self.told: Counter[str] = Counter()

    # --- what is there ------------------------------------------------------------------

    @property
    def dataset(self) -> Any:
        return lance.dataset(self.uri)

    def rows(self) -> dict[int, dict[str, Any]]:
        return {r["id"]: r for r in self.dataset.to_table().to_pylist()}

    def table(self) -> geneva.Table:
        opened = geneva.connect(database_of(self.uri)).open_table("t")
        return geneva.Table(opened, storage=MortalStorage(self.uri))

    def due(self, column: str) -> set[int]:
        """Return the rows that must be computed."""
        wanted = {i for i in self.rows() if WHERES[self.where](i)}
        return wanted - self.known[column] - self.free[column]

    def some(self, count: int) -> list[int]:
        there = sorted(self.rows())
        return self.chance.sample(there, min(count, len(there)))

    # --- backfills ----------------------------------------------------------------------

    def run(self, how: str, at: int, **options: Any) -> None:
        """Backfill all columns; unless ``how`` is empty, stop at one of the calls."""
        self.text.append(f"run until {how or 'the end'} at {at}, {options}")
        due = {c: self.due(c) for c in self.columns}
        calls = CALLS[0] = Calls()
        calls.at, calls.how = at if how else -1, how
        job = self.table().backfill_async(
            self.columns, executor="local", where=self.where, progress=False, **options
        )
        calls.stop = job.cancel
        stopped = False
        try:
            job.wait()
        except (GenevaError, FaultError):
            stopped = True
        self.end_claims()
        assert stopped or not calls.dead
        self.stops += stopped
        self.died |= calls.dead
        batch = options["batch_size"]
        if how != "fail" or batch == 1:  # else the rows before one that failed are in its batch
            assert max(Counter(calls.made).values(), default=1) == 1, "a row was computed twice"
        exact = how == "cancel" or (how == "fail" and batch == 1)
        # Batches in flight, of each column one, when it ended.
        first = max(0, at - 2 * batch * len(self.columns))
        loose = [] if exact or not stopped else calls.made[first:]
        for c in self.columns:
            made = {i for column, i in calls.made if column == c}
            again = made - due[c] - self.free[c]
            assert not again, f"{c}: {sorted(again)} were computed again"
            unsure = {i for column, i in loose if column == c}
            again = made & self.unproven[c] if stopped else set()
            self.pending[c] = self.pending[c] | again if stopped else set()
            self.known[c] |= made - unsure
            self.unproven[c] -= made - unsure
            self.free[c] = (self.free[c] | unsure) - self.known[c]
            if not stopped and "num_frags" not in options:
                assert due[c] <= made, f"{c}: {sorted(due[c] - made)} were not computed"
                self.known[c] |= due[c] | (self.free[c] - self.unproven[c])
                self.free[c] &= self.unproven[c]

    def end_claims(self) -> None:
        """A process that is said to be dead is alive: end what it claims by hand."""
        objects = TableStorage(self.uri).objects
        for path in objects.list(FOLDER):
            objects.delete(path)

    # --- other writers ------------------------------------------------------------------

    def uncommitted(self, column: str) -> set[int]:
        """Return the rows without a value of their present inputs: at most it is checkpointed."""
        return {i for i, r in self.rows().items() if r[column] != COLUMNS[column] * r["x"] + 1}

    def forget(self, ids: set[int], *, computed: bool) -> None:
        """Rows were moved, or their inputs exchanged; of ``computed`` ones the values are stale."""
        for c in self.columns:
            gone = ids if computed else ids & (self.uncommitted(c) | self.pending[c])
            unproven = set() if computed else gone & (self.unproven[c] | self.pending[c])
            self.pending[c] -= gone
            self.known[c] -= gone
            self.free[c] = self.free[c] - gone | unproven
            self.unproven[c] = self.unproven[c] - gone | unproven

    def act(self) -> None:
        name = self.chance.choice(list(STEPS))
        self.text.append(name)
        self.told[name] += 1
        STEPS[name](self)

    def append(self) -> None:
        ids = range(self.next_id, self.next_id + self.chance.randint(1, 3))
        self.next_id = ids.stop
        data = pa.table({"id": ids, "x": ids, "tag": ["b"] * len(ids)})
        lance.write_dataset(data, self.uri, mode="append")

    def delete(self) -> None:
        ids = self.some(self.chance.randint(1, 3))
        self.dataset.delete(f"id in ({', '.join(map(str, [-1, *ids]))})")

    def update_x(self) -> None:
        ids = self.some(2)
        self.forget(set(ids), computed=True)
        self.dataset.update({"x": "x + 1000"}, where=f"id in ({', '.join(map(str, [-1, *ids]))})")

    def update_tag(self) -> None:
        ids = self.some(2)
        self.forget(set(ids), computed=False)
        self.dataset.update({"tag": "'t'"}, where=f"id in ({', '.join(map(str, [-1, *ids]))})")

    def upsert(self) -> None:
        """Of some columns only: Lance writes these anew for all rows of a fragment."""
        ids = self.some(2)
        rows = self.rows()
        changed = {i for i in ids if self.chance.random() < 0.8}  # others are given what they have
        new_x = {i: self.next_x + i if i in changed else rows[i]["x"] for i in ids}
        self.next_x += 100_000
        for fragment in self.dataset.get_fragments():
            there = set(fragment.to_table(columns=["id"])["id"].to_pylist())
            if there & set(ids):
                self.rewritten |= there
                self.forget(there, computed=False)
        self.forget(changed, computed=True)
        new = pa.table({"id": ids, "x": [new_x[i] for i in ids]})
        merge = self.dataset.merge_insert("id").when_matched_update_all()
        merge.write_mode("rewrite_columns")
        if ids:
            merge.execute(new)

    def rewrite_x(self) -> None:
        whole = [f for f in self.dataset.get_fragments() if not f.num_deletions]
        if not whole:
            return
        fragment = self.chance.choice(whole)
        ids = set(fragment.to_table(columns=["id"])["id"].to_pylist())
        chosen = self.chance.choice([0, 1])
        changed = {i for i in ids if self.rows()[i]["x"] % 2 == chosen}
        self.rewritten |= ids
        self.forget(ids, computed=False)
        self.forget(changed, computed=True)
        rewrite_column(
            self.uri,
            "x",
            lambda v: v + 10_000 if v % 2 == chosen else v,
            [fragment.fragment_id],
            "update",
        )

    def compact(self) -> None:
        self.moved = True
        self.dataset.optimize.compact_files(
            target_rows_per_fragment=self.chance.choice([3, 7, 100]),
            materialize_deletions_threshold=self.chance.choice([0.0, 0.1]),
        )

    def compact_twice(self) -> None:
        self.compact()
        self.delete()
        self.compact()

    def toggle_extra(self) -> None:
        if self.extra:
            self.dataset.drop_columns(["extra"])
        else:
            self.dataset.add_columns({"extra": "id + 1"})
        self.extra = not self.extra

    def index(self) -> None:
        self.dataset.create_scalar_index("id", "BTREE", replace=True)

    def clean_up(self) -> None:
        for c in self.columns:
            begun = self.uncommitted(c)
            stale = {i for i in begun if self.rows()[i][c] is not None}
            unproven = stale | (self.known[c] & self.rewritten) - begun
            checkpointed = self.known[c] & begun
            self.unproven[c] |= unproven
            self.free[c] |= (unproven - checkpointed) | (checkpointed if self.moved else set())
            self.known[c] -= self.free[c]
        self.dataset.cleanup_old_versions(older_than=dt.timedelta(0))

    # --- the whole ----------------------------------------------------------------------

    def options(self) -> dict[str, Any]:
        chance = self.chance
        return {
            "concurrency": 1,
            "batch_size": chance.choice([1, 1, 3]),
            "commit_granularity": chance.choice([1, 64]),
        }

    def go(self, length: int) -> None:
        """Stop and disturb as often as wanted, then let it run to its end."""
        chance = self.chance
        try:
            for _ in range(length):
                options = self.options()
                if chance.random() < 0.2:
                    options["num_frags"] = chance.choice([1, 2])
                self.run(chance.choice(["fail", "cancel", "die"]), chance.randint(1, 20), **options)
                for _ in range(chance.randint(0, 3)):
                    self.act()
            self.run("", 0, **self.options())
            self.check()
        except BaseException as error:
            error.add_note("\n".join(self.text))
            raise

    def check(self) -> None:
        rows = self.rows()
        for c in self.columns:
            chosen = {i for i in rows if WHERES[self.where](i)}
            want = {i: COLUMNS[c] * r["x"] + 1 for i, r in rows.items()}
            wrong = {i for i, r in rows.items() if r[c] != want[i]}
            wrong -= {i for i in wrong - chosen if rows[i][c] is None}
            counted = self.table().plan_backfill(c, where=self.where).rows_unverified
            assert wrong <= self.unproven[c], (c, [rows[i] for i in wrong])
            assert len(wrong) <= counted, (c, [rows[i] for i in wrong], counted)
        assert_table_invariants(geneva.connect(database_of(self.uri)).open_table("t"))

    def left(self) -> list[str]:
        """Return the checkpoint logs, and the column files that no version names.

        What died in the middle of a file or a removal leaves it to `clean`.
        """
        if self.died or self.told["clean_up"]:
            return []
        storage = TableStorage(self.uri)
        named = {
            f.path
            for v in self.dataset.versions()
            for p in lance.dataset(self.uri, version=v["version"]).get_fragments()
            for f in p.metadata.files
        }
        files = (n for n in storage.list_files() if ColumnFileName.parse(n) is not None)
        return [*storage.objects.list("work"), *(n for n in files if n not in named)]


STEPS: dict[str, Callable[[Begun], None]] = {
    name: getattr(Begun, name)
    for name in (
        "append",
        "delete",
        "update_x",
        "update_tag",
        "upsert",
        "rewrite_x",
        "compact",
        "compact_twice",
        "toggle_extra",
        "index",
        "clean_up",
    )
} | {"compact again": Begun.compact, "compact more": Begun.compact}


def histories(path: Path, seeds: range, most: int = 3) -> Iterator[Begun]:
    """Do one history for every seed, of at most so many jobs that are stopped."""
    for seed in seeds:
        world = Begun(path / str(seed), seed)
        world.go(world.chance.randint(1, most))
        yield world
