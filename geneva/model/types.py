"""Frozen values that cross the stages of a backfill.

Nothing here does any work: a stage takes these, a stage returns these.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, field, fields
from enum import StrEnum
from operator import attrgetter
from typing import Literal

import pyarrow as pa

from geneva.model.rows import RowClass, RowMap, RowSet, classes_in
from geneva.model.windows import Windows

OnError = Literal["fail", "null"]


BLOB = "lance-encoding:blob"  # metadata of a column whose values Lance keeps as blobs
DECLARED_BLOB = "geneva.blob"  # the same, where a UDF declared it and the type says it


def stored_type(data_type: pa.DataType) -> pa.DataType:
    """Return the type that a column is handled and journaled as.

    Dictionaries are decoded, and a blob is its bytes.
    """
    if is_blob_v2(data_type):
        return pa.large_binary()
    return data_type.value_type if pa.types.is_dictionary(data_type) else data_type


def is_blob_v2(data_type: pa.DataType) -> bool:
    """Whether it is the type of Lance's blobs of version 2."""
    return getattr(data_type, "extension_name", "") == "lance.blob.v2"


class JobState(StrEnum):
    """State of a backfill job, as a person reads it."""

    PENDING = "PENDING"
    QUEUED = "QUEUED"
    STARTING = "STARTING"
    RUNNING = "RUNNING"
    PAUSING = "PAUSING"
    PAUSED = "PAUSED"
    CANCELLING = "CANCELLING"
    RECOVERING = "RECOVERING"
    SUCCEEDED = "SUCCEEDED"
    PARTIAL = "PARTIAL"
    FAILED = "FAILED"
    CANCELLED = "CANCELLED"
    SKIPPED = "SKIPPED"
    UPSTREAM_FAILED = "UPSTREAM_FAILED"

    @property
    def ended(self) -> bool:
        """Whether the state never changes again."""
        return self in _ENDED


_ENDED = {
    JobState.SUCCEEDED,
    JobState.PARTIAL,
    JobState.FAILED,
    JobState.CANCELLED,
    JobState.SKIPPED,
    JobState.UPSTREAM_FAILED,
}


@dataclass(frozen=True, slots=True)
class Progress:
    """The progress of a running job at one moment.

    Attributes
    ----------
    rows_total
        Rows that the plan computes; ``None`` while nothing is known of how many a filter selects.
    total_estimated
        Whether that is by what the filter selected of the rows that were looked at so far.
    rows_computed, rows_failed
        Rows done by this job, replayed checkpoints included; failed rows are part of them.
    rows_replayed
        Rows taken from the checkpoints of an earlier attempt instead of being computed.
    appliers_ready, appliers_wanted
        Worker processes that work, and that the job asked for.
    rate
        Rows computed per second lately, while appliers worked; ``None`` if nobody measured it.
    windows
        The windows that are open, in words, of a call with windows.
    """

    job_id: str
    columns: tuple[str, ...]
    state: JobState
    reason: str = ""
    rows_total: int | None = None
    rows_computed: int = 0
    rows_replayed: int = 0
    rows_failed: int = 0
    fragments_total: int = 0
    fragments_done: int = 0
    fragments_committed: int = 0
    appliers_ready: int = 0
    appliers_wanted: int = 0
    seconds: float = 0.0
    total_estimated: bool = False
    rate: float | None = None
    windows: str = ""

    @property
    def rows_per_s(self) -> float:
        """Rows computed per second, without those from checkpoints; lately, where measured."""
        if self.rate is not None:
            return self.rate
        return (self.rows_computed - self.rows_replayed) / self.seconds if self.seconds else 0.0

    @property
    def eta_s(self) -> float | None:
        """Seconds until the end at the present rate, or ``None`` when nobody can tell."""
        if self.rows_total is None:
            return None
        left = max(self.rows_total - self.rows_computed, 0)
        return left / self.rows_per_s if self.rows_per_s > 0 else None


@dataclass(frozen=True, slots=True)
class Target:
    """The columns that one job fills and the binding that says how.

    Attributes
    ----------
    columns, data_types
        Of the output columns; several when a struct-returning UDF fills a group.
    incarnation
        Identity of this column group; a dropped and re-added column gets another.
    digest, bound_digest
        Of the UDF with the job's parameters, and as it is bound to the column.
    fields
        Which field of the struct that the UDF returns fills each column; empty if the UDF's
        result is the one column.
    names
        What the UDF calls its inputs, if the table calls some otherwise by now; else empty.
    """

    columns: tuple[str, ...]
    data_types: tuple[pa.DataType, ...]
    incarnation: str
    digest: str
    bound_digest: str
    inputs: tuple[str, ...]
    fields: tuple[int, ...] = ()
    names: tuple[str, ...] = ()

    @property
    def name(self) -> str:
        """The columns' names, for people."""
        return ", ".join(self.columns)


@dataclass(frozen=True, slots=True)
class Options:
    """The arguments of one backfill, checked; see `geneva.Table.backfill` for their meaning."""

    where: str | None = None
    concurrency: int = 8
    intra_applier_concurrency: int = 1
    num_frags: int | None = None
    commit_granularity: int = 64
    batch_size: int | None = None
    checkpoint_size: int | None = None
    on_error: OnError = "fail"
    max_failures: float | None = None
    force: bool = False
    retry_failed: bool = False
    unverified: Literal["trust", "recompute"] = "trust"
    foreign: Literal["keep", "recompute"] = "keep"
    inputs: Literal["wait", "as_is"] = "wait"
    include_new: bool = False
    only: tuple[tuple[int, int, int], ...] | None = None
    timeout: float | None = None
    resource_timeout: float = 600.0
    order: Literal["forward", "backward"] = "forward"
    fragments: tuple[int, ...] | None = None
    windows: Windows | None = None

    @property
    def limited(self) -> bool:
        """Whether the call is for some fragments or rows only."""
        return self.fragments is not None or self.only is not None


@dataclass(frozen=True, slots=True)
class Task:
    """A worker's task: a fragment, or a range of its physical rows.

    Attributes
    ----------
    key
        Hash of all that makes the work what it is; checkpoints are found by it.
    family
        Hash of the same but for the fragment: of the column, its UDF, the filter and a forced run.
    version
        Table version to read from.
    start, stop
        Physical rows, half-open.
    sources
        (field id, data files) that supply the inputs, expected unchanged at commit.
    need
        Rows that may be computed, before the filter; ``None`` for all.
    carry
        Classes of the values that are there already; ``None`` when there are none.
    target_file
        The data file that holds the present values, expected unchanged at commit.
    row_class
        Class that computed rows get (their filters are merged with those of ``carry``).
    selection
        Hash of what else decides which rows are computed; a file that an earlier attempt finished
        fits only if it agrees.
    keep_wheres
        Classes of ``carry`` whose filters stay true of a row that is computed again.
    resume
        Checkpoint logs of earlier attempts.
    checkpointed
        Rows that the logs hold when spans computed all of them; then no input is read.
    attempt
        How many workers died of this task.
    assemble
        Write the column file at the end; else only checkpoint.
    deletion, live
        Name of the deletions that the plan saw, and the rows that these spare; ``None`` for all.
    complete
        Every live row is computed here and none may fail, so the present values are not needed
        and the file's name can vouch for all rows.
    followers
        (incarnation, task) of columns that are checkpointed from what this task reads.
    window
        Number of the window that it belongs to, in the order in which windows open.
    replay_only
        Write what is checkpointed and compute nothing; other rows stay what they are.
    """

    key: str
    version: int
    fragment_id: int
    rows: int
    deleted: int
    start: int
    stop: int
    sources: tuple[tuple[int, str], ...]
    need: RowSet | None
    carry: RowMap | None
    target_file: str | None
    row_class: RowClass
    selection: str = ""
    keep_wheres: tuple[int, ...] = ()
    resume: tuple[str, ...] = ()
    checkpointed: int | None = None
    attempt: int = 0
    assemble: bool = True
    deletion: str = ""
    live: RowSet | None = None
    complete: bool = False
    followers: tuple[tuple[str, Task], ...] = ()
    family: str = ""
    window: int = 0
    replay_only: bool = False

    @property
    def whole(self) -> bool:
        """Whether the task covers its fragment."""
        return self.start == 0 and self.stop == self.rows


@dataclass(frozen=True, slots=True)
class Failure:
    """One row that the UDF failed on."""

    fragment_id: int
    row: int
    row_id: int
    error: str
    message: str
    traceback: str
    attempts: int
    input: str


@dataclass(frozen=True, slots=True)
class Counts:
    """Rows of one finished task by their outcome, and the seconds of its stages.

    Seconds are summed over threads, so a stage may take more of them than have passed.
    """

    computed: int = 0
    replayed: int = 0
    failed: int = 0
    overwritten: int = 0
    seconds_read: float = 0.0
    seconds_udf: float = 0.0
    seconds_checkpoint: float = 0.0
    seconds_write: float = 0.0

    @property
    def seconds(self) -> float:
        """Of all that was done."""
        spent = self.seconds_read + self.seconds_udf + self.seconds_checkpoint
        return spent + self.seconds_write

    def __add__(self, other: Counts) -> Counts:
        return Counts.total([self, other])

    @classmethod
    def total(cls, counts: Iterable[Counts]) -> Counts:
        """Add up."""
        return cls(*map(sum, zip(*map(_NUMBERS, counts), strict=True)))


_NUMBERS = attrgetter(*(f.name for f in fields(Counts)))


@dataclass(frozen=True, slots=True)
class ColumnFile:
    """One fragment's complete values, written, synced and validated; not yet committed.

    Attributes
    ----------
    row_map_text
        As its footer holds it: a tenth of what the row map would travel as.
    logs
        Checkpoints that are of no use once it is committed; others may need some of them still.
    size_bytes
        0: not known.
    """

    fragment_id: int
    rows: int
    name: str
    row_map_text: str
    sources: tuple[tuple[int, str], ...]
    target_file: str | None
    logs: tuple[str, ...] = ()
    deletion: str = ""
    live: RowSet | None = None
    size_bytes: int = 0

    @property
    def row_map(self) -> RowMap:
        """Read from its text, anew each time."""
        return RowMap.loads(self.row_map_text)

    @property
    def classes(self) -> tuple[RowClass, ...]:
        """Those of its row map, without the rows that are of each."""
        return classes_in(self.row_map_text)


@dataclass(frozen=True, slots=True)
class Followed:
    """The checkpoints of a follower that were made while the lead's task ran.

    Attributes
    ----------
    incarnation, key
        Of the follower and of its work on the fragment.
    rows
        Rows that are checkpointed now, of those that the follower needs.
    complete
        Whether these are all that it needs of what the lead's task covers.
    counts
        Of what was done for it just now; ``computed`` leaves out what was there before.
    """

    incarnation: str
    key: str
    rows: int
    complete: bool
    counts: Counts


@dataclass(frozen=True, slots=True)
class TaskDone:
    """A task's outcome.

    Attributes
    ----------
    file
        ``None`` for a span, or when the filter matched nothing.
    peak_bytes
        The most memory that its process had been resident with by then.
    applier
        Number of the applier that carried it out, if its executor counts them.
    """

    key: str
    fragment_id: int
    start: int
    stop: int
    file: ColumnFile | None
    counts: Counts
    failures: tuple[Failure, ...] = ()
    logs: tuple[str, ...] = ()
    followed: tuple[Followed, ...] = ()
    peak_bytes: int = 0
    applier: int | None = None
    window: int = 0


@dataclass(frozen=True, slots=True)
class JobSettings:
    """The settings that every applier of a job needs besides its tasks; small and picklable.

    Attributes
    ----------
    followers
        The same for the columns that may be computed from what this job reads.
    planned
        What the version that the tasks were planned on is opened from once it was cleaned up.
    """

    job_id: str
    target: Target
    where: str | None
    on_error: OnError
    batch_size: int | None
    checkpoint_size: int | None
    threads: int
    read_rows: int
    readahead: int | None
    retry_failed: bool = False
    followers: tuple[JobSettings, ...] = ()
    planned: bytes = field(default=b"", repr=False)

    @property
    def adaptive(self) -> bool:
        """Whether the engine chooses how much is computed and checkpointed at once."""
        return self.batch_size is None and self.checkpoint_size is None


@dataclass(frozen=True, slots=True)
class TaskFailed:
    """The UDF failed on a task, or the worker could not carry it out.

    Attributes
    ----------
    kind
        ``udf``: the UDF raised or returned something unusable; ``table``: the version or files
        that the task reads are gone; ``storage``: reading or writing failed; ``setup``: the
        applier could not start.
    failure
        The row, when one is to blame.
    applier
        Number of the applier that had it, if its executor counts them.
    """

    task: Task
    kind: Literal["udf", "table", "storage", "setup"]
    message: str
    failure: Failure | None = None
    traceback: str = ""
    cause: BaseException | None = None
    applier: int | None = None


@dataclass(frozen=True, slots=True)
class TaskStopped:
    """The task stopped at a batch boundary because the job is being stopped."""

    task: Task


@dataclass(frozen=True, slots=True)
class TaskLost:
    """The worker died, or had to leave its node, while it had the task.

    Attributes
    ----------
    started
        Whether the task may be the cause: it may have been begun, and the node is still there.
    """

    task: Task
    reason: str
    started: bool


@dataclass(frozen=True, slots=True)
class TaskReturned:
    """The task was not begun: those handed out together with it took too long, or one failed."""

    task: Task


TaskEvent = TaskDone | TaskFailed | TaskStopped | TaskReturned | TaskLost


@dataclass(frozen=True, slots=True)
class Printed:
    """The text that an applier's UDFs printed since the last event."""

    applier: int
    text: str


ExecutorEvent = TaskEvent | Printed


@dataclass(frozen=True, slots=True)
class Workers:
    """Where an executor stands."""

    ready: int
    wanted: int
    rows_done: int
    waiting_for: str = ""
    rows_replayed: int = 0


@dataclass(frozen=True, slots=True)
class RowsDone:
    """Rows that an applier did in a job, and how many of them it found in checkpoints."""

    rows: int = 0
    replayed: int = 0
