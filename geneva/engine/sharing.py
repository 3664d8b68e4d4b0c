"""The columns of one call that share a read, and the checkpoints that each inherits from others.

Columns are computed one after the other, each by a job of its own. While the first of those that
read the same inputs is computed, it leads: the others follow, which only means that checkpoints
of theirs are written. Later jobs find them as they find those of a crashed run, so nothing about
durability, commits or provenance knows of sharing; a column that followed in vain, or in part,
computes the rest itself.

Only UDFs that reserve nothing but the same CPUs are held by one applier: memory and GPUs are
reserved for one UDF, and two of them might not fit.
"""

from __future__ import annotations

import logging
from collections import defaultdict
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace

import numpy as np

from geneva.column.checkpoint.journal import find_logs
from geneva.column.history.ledger import Ledger
from geneva.column.history.provenance import History
from geneva.engine.commit.publish import check_target
from geneva.engine.commit.remap import inherit
from geneva.engine.plan.force import ForceToken
from geneva.engine.plan.fragments import Force, Planner, in_order
from geneva.engine.presence import Presence
from geneva.engine.request import Request
from geneva.errors import GenevaError
from geneva.model.types import Counts, JobSettings, Task, TaskDone, TaskLost
from geneva.storage.lance import Snapshot, TableStorage
from geneva.udf import UDF, UdfKind

_LOG = logging.getLogger("geneva")
_LOSSES = 3  # of tasks that had followers, until a job goes on without


@dataclass(slots=True)
class _FollowerWork:
    """The checkpointed rows of one follower's fragment."""

    task: Task
    rows: int = 0
    covered: int = 0  # physical rows of the fragment that were gone through
    complete: bool = True
    counts: Counts = field(default_factory=Counts)

    def holds_all_of(self, task: Task) -> bool:
        """Whether nothing is left to compute of a task that was planned later."""
        then = self.task
        same = (then.selection, then.deleted) == (task.selection, task.deleted)
        if then.need is None or task.need is None:
            same = same and then.need is task.need
        else:
            same = same and np.array_equal(then.need.bounds, task.need.bounds)
        return same and self.complete and self.covered == task.rows


class Sharing:
    """The columns of one call, as their turns come.

    Parameters
    ----------
    presence
        Tells others on which columns the call is at work.
    """

    def __init__(self, storage: TableStorage, presence: Presence, job_id: str) -> None:
        self._storage, self._presence, self._job_id = storage, presence, job_id
        self._begun: set[str] = set()  # tokens of forced runs
        self._past: list[Request] = []
        self._records: dict[str, _FollowerWork] = {}  # by task key
        self._row_bytes: dict[frozenset[str], float] = {}

    def turn(self, request: Request, later: Sequence[Request]) -> ColumnTurn:
        """Begin the next column's turn; ``later`` are those whose turn is still to come."""
        everybody = [*self._past, request, *later]
        self._past.append(request)
        group = [r for r in everybody if r is request or _fit_one_applier(r, request)]
        pending = {c for r in (request, *later) for c in r.target.columns}
        followers = [r for r in later if r in group] if _settled(request, pending) else []
        udfs = {r.target.incarnation: r.udf for r in group}
        shared = (self._presence, self._begun, self._records, self._row_bytes)
        return ColumnTurn(self._storage, request, self._job_id, followers, udfs, *shared)


def _fit_one_applier(one: Request, other: Request) -> bool:
    """Whether two columns read the same, and an applier of one may run the other as well."""
    a, b = one.udf, other.udf
    return (
        set(one.target.inputs) == set(other.target.inputs)
        and (a.num_cpus, a.runtime_env) == (b.num_cpus, b.runtime_env)
        and not any(u.num_gpus or u.memory or u.resources for u in (a, b))
        and not (a.files or b.files)  # they leave unread what others read
        # An async UDF has one thread with many awaits, any other has many threads.
        and (a.kind is UdfKind.ASYNC) == (b.kind is UdfKind.ASYNC)
    )


def _settled(request: Request, pending: set[str]) -> bool:
    """Return True if this call leaves alone the columns that decide which rows are computed."""
    o = request.options
    if request.where is not None and o.num_frags is not None:
        return False  # only evaluating the filter tells which fragments count
    inputs = request.target.inputs
    read = {*inputs, *(path.split(".")[0] for path in inputs)}  # a name may itself hold dots
    return not pending & (read | set(request.where.columns if request.where else ()))


class ColumnTurn:
    """One column's turn: its followers, and the checkpoints that it got by following.

    Attributes
    ----------
    request
        The column's.
    udfs
        By incarnation, those that its appliers hold.
    """

    def __init__(
        self,
        storage: TableStorage,
        request: Request,
        job_id: str,
        followers: Sequence[Request],
        udfs: Mapping[str, UDF],
        presence: Presence,
        begun: set[str],
        records: dict[str, _FollowerWork],
        row_bytes: dict[frozenset[str], float],
    ) -> None:
        self._storage, self._job_id = storage, job_id
        self.request = request
        self.udfs = udfs
        self._followers = {r.target.incarnation: r for r in followers}
        self._presence, self._begun = presence, begun
        self._records, self._row_bytes = records, row_bytes
        self._rows: dict[str, int] = defaultdict(int)  # that followers' plans compute
        self._failed: dict[str, int] = defaultdict(int)
        self._losses = 0

    def show(self) -> None:
        """Tell others that the call is at work on the column, and on those that follow."""
        self._presence.show([self.request.target.incarnation, *self._followers])

    # --- forced runs --------------------------------------------------------------------

    def began(self, force: Force) -> bool:
        """Whether this call began a forced run, while another column was computed maybe."""
        return force.token in self._begun

    def begin(self, request: Request, snapshot: Snapshot) -> Force | None:
        """Begin or continue the forced run of a column, if one is asked for."""
        if not request.options.force:
            return None
        token = ForceToken(self._storage, request.target, request.where, request.options)
        force = token.find(snapshot)
        token.begin(force, self._job_id)
        if not force.continues:
            self._begun.add(force.token)
        return force

    # --- before the tasks are handed out ------------------------------------------------

    def prepared(self, snapshot: Snapshot, tasks: Sequence[Task]) -> list[Task]:
        """Return tasks that know their checkpoints and their followers."""
        tasks = [self._with_checkpoints(t) for t in tasks]
        reading = {t.fragment_id for t in tasks if t.checkpointed is None}
        followers: dict[int, list[tuple[str, Task]]] = defaultdict(list)
        for column, request in self._followers.items():
            try:
                for task in self._plan(request, snapshot, reading):
                    followers[task.fragment_id].append((column, task))
                    before = self._records.get(task.key)
                    counts = Counts() if before is None else before.counts
                    self._records[task.key] = _FollowerWork(task, counts=counts)
            except (GenevaError, OSError) as error:  # its own job meets it again, and reports it
                _LOG.info("%r does not follow: %s", request.target.name, error)
        return [replace(t, followers=tuple(followers[t.fragment_id])) for t in tasks]

    def _with_checkpoints(self, task: Task) -> Task:
        record = self._records.get(task.key)
        if record is None or not record.holds_all_of(task):
            return task
        return replace(task, checkpointed=record.rows)

    def _plan(self, request: Request, snapshot: Snapshot, reading: set[int]) -> Iterator[Task]:
        """Plan the fragments that a follower's own job will compute, and that are read now."""
        storage, target, options = self._storage, request.target, request.options
        check_target(snapshot, target)
        force = self.begin(request, snapshot)
        history = History(storage, snapshot, Ledger.load(storage, target.incarnation))
        planner = Planner(storage, history, target, request.where, options, force)
        logs = find_logs(storage.objects, target.incarnation)
        tasks = list(self._tasks_of(request, planner, snapshot, reading))
        inherited = inherit(storage, snapshot, target, logs, tasks)
        for task in tasks:
            resume = logs.get(task.key, ()) + inherited.written.get(task.key, ())
            yield replace(task, carry=None, assemble=False, resume=resume)

    def _tasks_of(
        self, request: Request, planner: Planner, snapshot: Snapshot, reading: set[int]
    ) -> Iterator[Task]:
        options, column = request.options, request.target.incarnation
        planned = 0
        for fragment_id in in_order(snapshot.fragments, options):
            if planned == options.num_frags:
                return
            if options.num_frags is None and fragment_id not in reading:
                continue
            plan = planner.plan(snapshot.fragments[fragment_id])
            task = plan.task
            if task is None:
                continue
            planned += 1
            self._rows[column] += plan.rows_compute
            done = self._with_checkpoints(task).checkpointed is not None
            if fragment_id in reading and not done:
                yield task

    def settings(self, lead: JobSettings) -> JobSettings:
        """Return a job's settings with those of its followers."""
        return replace(
            lead,
            followers=tuple(
                replace(
                    lead,
                    target=r.target,
                    batch_size=r.options.batch_size or r.udf.batch_size,
                )
                for r in self._followers.values()
            ),
        )

    @property
    def row_bytes(self) -> float | None:
        """Mean size of a row of these inputs, as found in this call."""
        return self._row_bytes.get(frozenset(self.request.target.inputs))

    @row_bytes.setter
    def row_bytes(self, size: float) -> None:
        self._row_bytes[frozenset(self.request.target.inputs)] = size

    @property
    def followed(self) -> dict[str, Counts]:
        """The counts of rows computed for later columns while earlier ones led."""
        return {key: record.counts for key, record in self._records.items()}

    # --- while they are carried out -----------------------------------------------------

    def admitted(self, task: Task) -> Task:
        """Return a task without the followers that did more harm than good."""
        if self._losses >= _LOSSES:
            return replace(task, followers=())
        useful = tuple(f for f in task.followers if not self._fails_too_often(f[0]))
        return replace(task, followers=useful) if useful != task.followers else task

    def _fails_too_often(self, column: str) -> bool:
        allowed = self._followers[column].options.max_failures
        if allowed is None:
            return False
        return self._failed[column] > (allowed if allowed >= 1 else allowed * self._rows[column])

    def lost(self, event: TaskLost) -> None:
        """Take in that a worker died."""
        self._losses += bool(event.started and event.task.followers)

    def done(self, event: TaskDone) -> None:
        """Take in the followers' results of a task."""
        for f in event.followed:
            record = self._records[f.key]
            record.rows += f.rows
            record.covered += event.stop - event.start
            record.complete = record.complete and f.complete
            record.counts += f.counts
            self._failed[f.incarnation] += f.counts.failed
