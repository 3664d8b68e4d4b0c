"""Table version + where + recorded work -> a plan for each fragment.

For each fragment: which rows does a record prove done, which wait for a computed input, which
are somebody else's? What is left is a task. No UDF runs and, when nothing changed, no data is
read: the name of the column file, its footer or the ledger say it all.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, replace
from typing import assert_never

import numpy as np

from geneva.column.binding import (
    as_called,
    bindings_of,
    inputs_there,
    nested_of,
    read_by_inputs,
    target_of,
    top_level,
)
from geneva.column.checkpoint.key import fragment_key, work_key
from geneva.column.file import vouches
from geneva.column.history.descent import live_mask
from geneva.column.history.elsewhere import filled_by_lancedb
from geneva.column.history.ledger import Kept, Ledger, entry_key
from geneva.column.history.marks import group_subtree, job_generation, supplier
from geneva.column.history.provenance import History, Rows
from geneva.engine.plan.decision import NOT_SELECTED, Action, FragmentPlan
from geneva.engine.plan.slices import NO_VALUE, OUTSIDE, Places, Slices
from geneva.engine.plan.windowed import Share
from geneva.errors import ColumnError
from geneva.model.rows import BoolArray, IntArray, Marks, RowClass, RowMap, RowSet, RowStatus
from geneva.model.types import ColumnFile, Options, Target, Task
from geneva.storage.lance import Snapshot, TableStorage
from geneva.storage.snapshot import FragmentInfo
from geneva.storage.values import flags
from geneva.where.parse import Where

COVERED = ("computed", "stale", "missing", "failed", "foreign", "unverified")
"""The states of rows that coverage counts."""
_STALE, _MISSING = COVERED.index("stale"), COVERED.index("missing")
_NO_STATES = np.zeros(0, np.int64)


@dataclass(frozen=True, slots=True)
class Force:
    """A forced run: rows of an older generation are computed again.

    Attributes
    ----------
    begun_s
        Unix time; 0 if that is not known.
    continues
        Whether an earlier call began it.
    """

    token: str
    generation: int
    begun_s: float = 0.0
    continues: bool = False


def in_order(fragments: Iterable[int], options: Options) -> list[int]:
    """Return those of some fragments that a call is for, in the order in which it takes them."""
    limit = None if options.fragments is None else frozenset(options.fragments)
    chosen = [i for i in fragments if limit is None or i in limit]
    return chosen[::-1] if options.order == "backward" else chosen


class Planner:
    """Plans the fragments of one snapshot for one target.

    Parameters
    ----------
    where
        Checked filter, or ``None``.
    force
        The forced run that this job begins or continues.
    slices
        The windows to which the call is limited, if it is.
    """

    def __init__(
        self,
        storage: TableStorage,
        history: History,
        target: Target,
        where: Where | None,
        options: Options,
        force: Force | None = None,
        slices: Slices | None = None,
    ) -> None:
        self._storage, self._history = storage, history
        self._slices = slices
        self._snapshot: Snapshot = history.snapshot
        self._target, self._where = target, where
        self._options, self._force = options, force
        self._only = None if options.only is None else _by_fragment(options.only)
        schema = as_called(self._snapshot)
        self._bindings = bindings_of(schema)
        self._subtree = group_subtree(self._snapshot, target.columns[0])
        self._read = list(dict.fromkeys(top_level(schema, p) for p in target.inputs))
        own = set(target.columns)
        # A UDF that reads its own output does not make that output stale by writing it.
        self._columns = [c for c in self._read if c not in own]
        self._filter_columns = [c for c in (where.columns if where else ()) if c not in own]
        # They are dropped and renamed without a trace in the marks.
        self._filter_fields = tuple(nested_of(self._snapshot, self._filter_columns).items())
        known = self._snapshot.fields
        self._ids = [known[c].id for c in self._columns if c in known]
        self._filter_ids = [known[c].id for c in self._filter_columns if c in known]
        self._filled_by_lancedb = filled_by_lancedb(schema)
        self._behind = read_by_inputs(schema, self._columns)
        self._family = work_key(
            target.incarnation,
            target.fields,  # records hold a value of each: one of them may be dropped
            target.digest,
            where.digest if where else "",
            force.token if force else "",
        )
        self._settled: dict[tuple[int, str], BoolArray] = {}
        self._others: dict[str, Planner] = {}
        self._orphaned = False  # inputs were dropped or renamed: nobody can compute it anew

    def plan(self, fragment: FragmentInfo) -> FragmentPlan:
        """Decide about one fragment."""
        plan = self._decided(fragment)
        if self._force is not None and self._force.continues:
            plan = plan._replace(rows_forced=self._forced_before(fragment, self._force))
        if not fragment.lost or not (lost := self.lost(fragment)):
            return plan
        told = " (a file is gone)" if plan.task else ""
        return plan._replace(lost=lost, reason=plan.reason + told)

    def lost(self, fragment: FragmentInfo) -> tuple[str, ...]:
        """Return files that the table names for the target here, and that nobody can read."""
        subtree = group_subtree(self._snapshot, self._target.columns[0])
        return tuple(f.path for f in fragment.lost if not f.fields.isdisjoint(subtree))

    def _decided(self, fragment: FragmentInfo) -> FragmentPlan:
        if self._only is not None and fragment.id not in self._only:
            return FragmentPlan(fragment.id, fragment.live_rows, Action.SKIP, "not asked for")
        inputs = self._marks(fragment, self._columns)
        file = self._target_file(fragment)
        if self._vouched_for(file, inputs):
            return FragmentPlan(fragment.id, fragment.live_rows, Action.SKIP, "up to date")
        filters = self._marks(fragment, self._filter_columns)
        work = self._work(fragment, inputs, filters, file)
        if (done := self._history.ledger.done(work)) is not None:
            return _done_plan(fragment, work, done)
        places = None if self._slices is None else self._slices.of(fragment)
        if isinstance(places, int) and places < 0:
            return _in_no_window(fragment, places)
        rows = self._rows(fragment)
        row_map, need = rows.row_map, self._needed(rows)
        live = self._live(fragment, need, row_map)
        need &= live & self._within(fragment, places)
        waiting = need & ~self._may_compute(fragment, need)
        need &= ~waiting
        # Which rows a filter selects is not known yet: all of them count as kept.
        kept = self._kept(row_map, live if self._where else live & ~need)
        plan = FragmentPlan(
            fragment.id,
            fragment.live_rows,
            Action.SKIP,
            "up to date",
            rows_waiting=int(np.count_nonzero(waiting)),
            rows_foreign=kept[RowStatus.FOREIGN],
            rows_unverified=kept[RowStatus.UNVERIFIED],
            rows_failed=kept[RowStatus.FAILED],
            work=work,
        )
        if isinstance(places, np.ndarray):
            plan = self._with_rows_beyond(plan, fragment, places)
        if not need.any():
            if plan.rows_waiting:
                return plan._replace(reason="waits for its inputs")
            if kept[RowStatus.COMPUTED] == fragment.live_rows:
                # What was compared to see it is not compared again.
                self._history.ledger.mark_done({work: Kept()})
            return plan
        task = self._task(fragment, row_map, need, live, inputs, filters, file)
        return plan._replace(
            action=Action.FILTER if self._where else Action.COMPUTE,
            reason=self._reason(row_map, need),
            rows_compute=int(np.count_nonzero(need)),
            task=task,
            share=None if places is None else Share.of(task, places),
        )

    def _within(self, fragment: FragmentInfo, places: int | Places | None) -> BoolArray:
        """Return the rows that the call is for: those asked for by name, and those in a window."""
        mask = np.ones(fragment.rows, np.bool_)
        if self._only is not None:
            mask &= self._asked(fragment)
        return mask if places is None else mask & np.asarray(places >= 0)

    def _may_compute(self, fragment: FragmentInfo, need: BoolArray) -> BoolArray:
        """Return the rows whose computed inputs are there, and of which the window is known.

        Where windows are cut along a computed column, its missing and stale values say nothing.
        """
        may = np.ones(fragment.rows, np.bool_)
        if self._options.inputs == "wait" and need.any():
            may &= self._ready(fragment)
        if self._slices is not None:
            may &= self._is_settled(fragment, self._slices.column)
        return may

    def _with_rows_beyond(
        self, plan: FragmentPlan, fragment: FragmentInfo, places: Places
    ) -> FragmentPlan:
        """Return a plan that counts the rows which are in no window."""
        live = live_mask(self._storage, self._snapshot, fragment)
        return plan._replace(
            rows_outside=int(np.count_nonzero(live & (places == OUTSIDE))),
            rows_null=int(np.count_nonzero(live & (places == NO_VALUE))),
        )

    def _forced_before(self, fragment: FragmentInfo, force: Force) -> int:
        """Count the live rows that the forced run has computed before this call."""
        where = self._where.digest if self._where else ""
        row_map = self._history.rows(fragment, self._target.columns[0], lambda _: ()).row_map
        done = row_map.mask(
            lambda c: (
                c.status in (RowStatus.COMPUTED, RowStatus.FAILED)
                and self._is_of_target(c)
                and c.generation >= force.generation
                and (not where or where in dict(c.wheres))
            )
        )
        if self._only is not None:
            done &= self._asked(fragment)
        return int(np.count_nonzero(done & self._live(fragment, done, row_map)))

    def counted(self, plan: FragmentPlan) -> FragmentPlan:
        """Evaluate the filter of one fragment, so that the number of rows is exact.

        Not where it reads values that nobody can read.
        """
        task = plan.task
        if task is None or self._where is None or self._reads_lost(plan.fragment_id):
            return plan
        columns = {"m": self._where.sql}
        found = []
        for batch in self._storage.scan(
            self._snapshot, plan.fragment_id, columns, batch_rows=65_536
        ):
            live = flags(batch.column("_rowaddr").is_valid())
            true = flags(batch.column("m"))
            found.append(live & true)
        selected = np.concatenate(found)
        if task.need is not None:
            selected &= task.need.mask()
        rows = int(np.count_nonzero(selected))
        if not rows:
            return plan._replace(
                action=Action.SKIP, reason=NOT_SELECTED, rows_compute=0, task=None, share=None
            )
        plan = plan._replace(action=Action.COMPUTE, rows_compute=rows)
        if plan.share is None:
            return plan
        task = replace(task, need=RowSet.from_mask(selected))
        return plan._replace(task=task, share=Share.of(task, plan.share.places))

    def _reads_lost(self, fragment_id: int) -> bool:
        """Whether the filter reads a column of which a file is gone."""
        lost = self._snapshot.fragments[fragment_id].lost
        read = self._where.columns if self._where and lost else ()
        ids = {i for c in read for i in self._snapshot.fields[c].subtree}
        return any(not f.fields.isdisjoint(ids) for f in lost)

    def coverage(self, fragment: FragmentInfo) -> dict[str, int]:
        """Count a fragment's live rows by their state.

        ``waiting`` counts the missing and stale ones whose computed inputs are not there yet.
        """
        found = {"fragment": fragment.id, "rows": fragment.live_rows}
        states = self.row_states(fragment)
        if states is None:
            counts = dict.fromkeys(COVERED, 0) | {"computed": fragment.live_rows}
            return found | counts | {"waiting": 0}
        counted = np.bincount(states[states >= 0], minlength=len(COVERED)).tolist()
        need = (states == _STALE) | (states == _MISSING)
        waiting = need & ~self._ready(fragment) if need.any() else need
        counts = dict(zip(COVERED, counted, strict=True))
        return found | counts | {"waiting": int(np.count_nonzero(waiting))}

    def row_states(self, fragment: FragmentInfo) -> IntArray | None:
        """Return the state of each physical row by its place in `COVERED`, -1 for deleted ones.

        None if every live row is computed, which the records say without a look at rows.
        """
        inputs = self._marks(fragment, self._columns)
        file = self._target_file(fragment)
        if self._vouched_for(file, inputs) or self._known_done(fragment, inputs, file):
            return None
        rows = self._rows(fragment)
        row_map = rows.row_map
        live = live_mask(self._storage, self._snapshot, fragment)
        of_class = [COVERED.index(c.status.value) for c in row_map.classes]
        states = np.array(of_class, np.int64)[row_map.expand()] if of_class else _NO_STATES
        stale = self._needed(rows) & live & (states != _MISSING)
        states[stale] = _STALE
        states[~live] = -1
        return states

    def settled(self, snapshot: Snapshot, committed: Mapping[int, ColumnFile]) -> dict[str, Kept]:
        """Return the proofs for the ledger from fragments that were just committed.

        Only where the inputs and the filter's columns are what the rows were computed from.
        """
        found = {}
        for fragment_id, file in committed.items():
            fragment = snapshot.fragments.get(fragment_id)
            if fragment is None or self._where is None:
                continue
            present = self._target_file(fragment)
            inputs = self._marks(fragment, self._columns)
            filters = self._marks(fragment, self._filter_columns)
            classes = file.classes
            read = any(
                c.inputs == inputs and (self._where.digest, filters) in c.wheres for c in classes
            )
            failed = any(c.status is RowStatus.FAILED for c in classes)
            if failed and self._options.retry_failed:
                continue  # the next such run tries them once more
            if present == file.name and read:
                row_map = file.row_map
                live = self._live(fragment, np.zeros(fragment.rows, np.bool_), row_map)
                work = self._work(fragment, inputs, filters, present)
                found[work] = _told(self._kept(row_map, live))
        return found

    # --- which rows are done -----------------------------------------------------------

    def _vouched_for(self, file: str, inputs: Marks) -> bool:
        """Whether the column file's name alone says that every live row is done."""
        o = self._options
        if self._where is not None or self._force or o.retry_failed:
            return False
        return vouches(file, self._target.incarnation, self._target.digest, inputs)

    def _rows(self, fragment: FragmentInfo) -> Rows:
        """Return the row map; inputs written again with the same values count as unchanged.

        A forced run compares no values: what changed since it began is computed again.
        """
        return self._history.rows(
            fragment,
            self._target.columns[0],
            self._concerns,
            orphaned=self._orphaned,
            by_value=self._force is None,
        )

    def _concerns(self, c: RowClass) -> Marks:
        """Return the marks of a class that must be the present ones for its rows to be done."""
        if not self._is_of_target(c):
            return ()
        where = self._where.digest if self._where else ""
        return (*c.inputs, *dict(c.wheres).get(where, ()))

    def _needed(self, rows: Rows) -> BoolArray:
        """Return the rows that no record proves done, deleted ones included."""
        return rows.row_map.spread([not self._done(c, rows) for c in rows.row_map.classes])

    def _done(self, c: RowClass, rows: Rows) -> bool:
        """Whether the rows of a class are done."""
        o = self._options
        current = rows.present(c.inputs) and self._in_order(c.inputs, self._ids)
        match c.status:
            case RowStatus.MISSING:
                return False
            case RowStatus.FOREIGN:
                return o.foreign == "keep" and self._where is None and self._force is None
            case RowStatus.UNVERIFIED:
                # Neither UDF nor inputs changed since the oldest version that is known.
                ours = not c.digest or self._is_of_target(c)
                trust = o.unverified == "trust" and self._force is None
                return trust and ours and (current or not c.inputs)
            case RowStatus.COMPUTED | RowStatus.FAILED:
                if not current or not self._is_of_target(c):
                    return False
                if c.status is RowStatus.FAILED and o.retry_failed:
                    return False
            case _:
                assert_never(c.status)
        if self._force is not None:
            return c.generation >= self._force.generation
        if self._where is None:
            return True
        recorded = dict(c.wheres).get(self._where.digest)
        if recorded is None or not self._in_order(recorded, self._filter_ids):
            return False
        return rows.present(recorded)

    def _is_of_target(self, c: RowClass) -> bool:
        if self._orphaned:  # which fields its inputs had, nobody can say any more
            return c.digest.split(".")[0] == self._target.digest.split(".")[0]
        return c.digest == self._target.digest

    def _in_order(self, recorded: Marks, ids: list[int]) -> bool:
        """Whether the fields that were read have the names, and so the places, that they had."""
        return self._orphaned or [m.field for m in recorded] == ids

    def _live(self, fragment: FragmentInfo, need: BoolArray, row_map: RowMap) -> BoolArray:
        """Return the rows that are not deleted, where anybody asks."""
        told = row_map.any(lambda c: c.status not in (RowStatus.COMPUTED, RowStatus.MISSING))
        if not fragment.deleted or not (need.any() or told):
            return np.ones(fragment.rows, np.bool_)
        return live_mask(self._storage, self._snapshot, fragment)

    def _asked(self, fragment: FragmentInfo) -> BoolArray:
        """Return the rows to which the call is limited."""
        asked = np.zeros(fragment.rows, np.bool_)
        for start, stop in self._limits(fragment):
            asked[start:stop] = True
        return asked

    # --- computed inputs ---------------------------------------------------------------

    def _ready(self, fragment: FragmentInfo) -> BoolArray:
        """Return the rows whose computed inputs are there and fresh."""
        ready = np.ones(fragment.rows, np.bool_)
        for column in self._columns:
            if column not in self._target.columns:
                ready &= self._is_settled(fragment, column)
        return ready

    def _is_settled(self, fragment: FragmentInfo, column: str) -> BoolArray:
        """Return the rows in which a column, if it is computed, is there and fresh."""
        key = (fragment.id, column)
        if key not in self._settled:
            if column in self._bindings:
                found = ~self._planner_of(column).needed(fragment)
            elif column in self._filled_by_lancedb:
                found = self._is_filled(fragment, column)
            else:
                found = np.ones(fragment.rows, np.bool_)
            self._settled[key] = found
        return self._settled[key]

    def _planner_of(self, column: str) -> Planner:
        if column not in self._others:
            binding = self._bindings[column]
            target = target_of(self._snapshot, binding, binding.digest)
            there = replace(target, inputs=inputs_there(self._snapshot.schema, binding))
            own = Ledger.load(self._storage, binding.incarnation)
            history = History(self._storage, self._snapshot, own)
            other = Planner(self._storage, history, there, None, Options())
            other._orphaned = there != target
            self._others[column] = other
        return self._others[column]

    def _is_filled(self, fragment: FragmentInfo, column: str) -> BoolArray:
        """Return the rows that LanceDB has filled, from inputs that were settled as well."""
        filled = self._filled_by_lancedb[column]
        ready = filled.ready(self._storage, self._snapshot, fragment)
        for path in filled.inputs:
            with suppress(ColumnError):
                read = top_level(self._snapshot.schema, path)
                if read not in self._target.columns:
                    ready = ready & self._is_settled(fragment, read)
        return ready

    def needed(self, fragment: FragmentInfo) -> BoolArray:
        """Return the rows that are missing or stale, deleted ones included."""
        inputs = self._marks(fragment, self._columns)
        file = self._target_file(fragment)
        if self._vouched_for(file, inputs) or self._known_done(fragment, inputs, file):
            return np.zeros(fragment.rows, np.bool_)
        return self._needed(self._rows(fragment))

    def _known_done(self, fragment: FragmentInfo, inputs: Marks, file: str) -> bool:
        """Whether the ledger says that nothing was left; the history that told may be gone."""
        return self._history.ledger.done(self._work(fragment, inputs, (), file)) is not None

    # --- the task ----------------------------------------------------------------------

    def _task(
        self,
        fragment: FragmentInfo,
        row_map: RowMap,
        need: BoolArray,
        live: BoolArray,
        inputs: Marks,
        filters: Marks,
        file: str,
    ) -> Task:
        whole = np.count_nonzero(need) == np.count_nonzero(live)
        wheres = ((self._where.digest, filters),) if self._where else ()
        digest = self._target.digest
        row_class = RowClass(
            RowStatus.COMPUTED, digest, inputs, wheres, job_generation(self._snapshot.version)
        )
        sources = self._sources(fragment)
        o = self._options
        keep = [
            k
            for k, c in enumerate(row_map.classes)
            if c.wheres
            and c.digest == digest
            and self._history.unchanged(fragment, c.inputs) is True
        ]
        return Task(
            key=fragment_key(self._family, fragment.id, fragment.rows, sources),
            family=self._family,
            version=self._snapshot.version,
            fragment_id=fragment.id,
            rows=fragment.rows,
            deleted=fragment.deleted,
            start=0,
            stop=fragment.rows,
            sources=sources,
            need=None if whole else RowSet.from_mask(need),
            carry=row_map if file else None,
            target_file=file or None,
            row_class=row_class,
            selection=work_key(filters, fragment.deletion, *self._chosen(fragment)),
            deletion=fragment.deletion,
            live=RowSet.from_mask(live) if fragment.deleted else None,
            keep_wheres=tuple(keep),
            complete=whole and self._where is None and o.on_error == "fail",
        )

    def _sources(self, fragment: FragmentInfo) -> tuple[tuple[int, str], ...]:
        fields = [self._snapshot.fields[c] for c in self._read]
        return tuple((f.id, supplier(fragment, f.subtree)) for f in fields)

    def _target_file(self, fragment: FragmentInfo) -> str:
        return supplier(fragment, self._subtree)

    def _marks(self, fragment: FragmentInfo, columns: list[str]) -> Marks:
        return self._history.marks(fragment, columns)

    def _work(self, fragment: FragmentInfo, inputs: Marks, filters: Marks, file: str) -> str:
        """Return a key that changes whenever there may be something to do again."""
        settled = [supplier(fragment, self._snapshot.fields[c].subtree) for c in self._behind]
        return work_key(
            entry_key(self._target.incarnation, file, fragment.id),
            fragment.deletion,  # a restore may bring rows back that were not looked at
            self._target.digest,
            self._where.digest if self._where else "",
            inputs,
            filters,
            self._sources(fragment),
            settled,
            self._force.token if self._force else "",
            self._chosen(fragment),
        )

    def _chosen(self, fragment: FragmentInfo) -> tuple[object, ...]:
        """Return the options that decide which rows of a fragment are computed."""
        o = self._options
        limits = self._limits(fragment)
        slices = self._slices
        scope = () if slices is None else (*slices.scope, slices.source(fragment))
        kept = (o.retry_failed, o.unverified, o.foreign, o.inputs)
        return (*kept, *self._filter_fields, *limits, *scope)

    def _limits(self, fragment: FragmentInfo) -> tuple[tuple[int, int], ...]:
        """Return the row ranges of the fragment that a call is limited to; none without limits."""
        return tuple((self._only or {}).get(fragment.id, ()))

    def _kept(self, row_map: RowMap, live: BoolArray) -> dict[RowStatus, int]:
        """Count live rows by status, of those that a person should know are kept."""
        counts = row_map.counts()
        if not live.all():
            counts = np.bincount(row_map.expand()[live], minlength=len(row_map.classes))
        kept = dict.fromkeys(RowStatus, 0)
        for c, n in zip(row_map.classes, counts.tolist(), strict=True):
            kept[c.status] += n
        return kept

    def _reason(self, row_map: RowMap, need: BoolArray) -> str:
        statuses = {c.status for c in row_map.classes_in(need)}
        if self._force is not None:
            return "forced"
        if self._where is not None:
            return f"where {self._where.text}"
        missing = RowStatus.MISSING in statuses
        words = ["missing"] if missing else []
        failed = {RowStatus.FAILED} & statuses if self._options.retry_failed else set()
        words += ["failed"] if failed else []
        words += ["stale"] if statuses - {RowStatus.MISSING} - failed else []
        return " and ".join(words)


def _told(kept: dict[RowStatus, int]) -> Kept:
    return Kept(kept[RowStatus.FOREIGN], kept[RowStatus.UNVERIFIED], kept[RowStatus.FAILED])


def _by_fragment(only: Sequence[tuple[int, int, int]]) -> dict[int, list[tuple[int, int]]]:
    found: dict[int, list[tuple[int, int]]] = {}
    for fragment_id, start, stop in sorted(only):
        found.setdefault(fragment_id, []).append((start, stop))
    return found


def _in_no_window(fragment: FragmentInfo, place: int) -> FragmentPlan:
    """Plan nothing for a fragment that no window has rows of."""
    rows = fragment.live_rows
    if place == NO_VALUE:
        return FragmentPlan(fragment.id, rows, Action.SKIP, "without a value", rows_null=rows)
    return FragmentPlan(fragment.id, rows, Action.SKIP, "outside the windows", rows_outside=rows)


def _done_plan(fragment: FragmentInfo, work: str, done: Kept) -> FragmentPlan:
    """Plan nothing for work that is known to be done; the counts of kept rows stay."""
    return FragmentPlan(
        fragment.id,
        fragment.live_rows,
        Action.SKIP,
        "up to date",
        rows_foreign=done.foreign,
        rows_unverified=done.unverified,
        rows_failed=done.failed,
        work=work,
    )
