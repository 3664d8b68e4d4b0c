"""Which task is next, what to retry, when to give up, when a commit is due. No IO, no clock.

Events in, decisions out: the same machine runs on every executor, and in tests on none.
"""

from __future__ import annotations

from collections import Counter, deque
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, replace

from geneva.model.types import (
    ColumnFile,
    Counts,
    Failure,
    Task,
    TaskDone,
    TaskLost,
    TaskReturned,
    TaskStopped,
)

MAX_DEATHS = 3
MAX_DEATHS_ISOLATING = 40  # each death at least halves the suspects, until one row is left
MAX_LOSSES = 40  # nodes may go at any time, but a task that takes nodes down must end
_COMMIT_SHARE = 4.0  # commits take at most a fifth of the driver's time
_GROUP, _GROUP_S = 64, 0.1  # tasks that go together, and how long they should take
_OLD = 0.8  # weight of what earlier tasks took


@dataclass(slots=True)
class _Fragment:
    """Progress of one fragment that was split."""

    base: Task
    left: int
    logs: tuple[str, ...] = ()
    rows: int = 0
    replayed: int = 0


class Schedule:
    """The tasks of one job.

    Parameters
    ----------
    pieces
        For each fragment its spans, or the whole task alone.
    limit
        ``num_frags``: at most so many fragments are written; those in which the filter finds
        nothing do not count.
    granularity
        Fragments per commit.
    followed
        By the task's key, what was done for a fragment while this call computed other columns.
    group_rows
        The most rows that are read together.
    """

    def __init__(
        self,
        pieces: Sequence[tuple[Task, ...]],
        limit: int | None,
        granularity: int,
        followed: Mapping[str, Counts] | None = None,
        group_rows: int = 0,
    ) -> None:
        self._fragments = deque(pieces)
        self._queue: deque[Task] = deque()
        self._open: dict[int, _Fragment] = {}
        self._limit = limit
        self._granularity = granularity
        self._followed = dict(followed or {})
        self._running: dict[tuple[str, int, int], Task] = {}
        self._deaths: dict[tuple[str, int, int], int] = {}  # of these, the task is suspect
        self._losses: Counter[tuple[str, int, int]] = Counter()
        self._begun: set[int] = set()
        self._dropped: set[int] = set()
        self._finished: list[ColumnFile] = []
        self._last_commit = (0.0, 0.0)
        self._group_rows = group_rows
        self._task_s: float | None = None  # that a whole fragment took of late
        self.hits = 0
        self.rows_twice = 0  # that appliers count again as they assemble what spans computed
        self.fragments_done = 0
        self.counts = Counts()
        self.failures: list[Failure] = []
        self.nothing_to_do: list[int] = []

    # --- tasks -------------------------------------------------------------------------

    def next_task(self) -> Task | None:
        """Return the next task to hand out, or ``None`` if there is none now."""
        if not self._queue:
            if not self._fragments or not self._may_begin():
                return None
            self._begin(self._fragments.popleft())
        task = self._queue.popleft()
        self._running[_id(task)] = task
        return task

    def next_group(self, appliers: int) -> tuple[Task, ...]:
        """Return tasks to hand out together, most often one; none if there is none now.

        Small fragments go together as far as an applier is soon done with them, by what those
        before took, and no more than an equal share of what is left (guided self-scheduling,
        Polychronopoulos and Kuck 1987). None goes with one of the next commit, which may take
        longer than those before made believe.
        """
        if (first := self.next_task()) is None:
            return ()
        group, rows = [first], first.rows
        if self._task_s is not None and _may_join(first):
            quick = int(_GROUP_S / max(self._task_s, 1e-9))
            before = (len(self._finished) + len(self._begun) - 1) % self._granularity
            of_commit = self._granularity - before
            share = -(-self.waiting // max(appliers, 1))
            most = min(quick, _GROUP, of_commit, share)
            while len(group) < most and (task := self._next_to_join(self._group_rows - rows)):
                group.append(task)
                rows += task.rows
        return tuple(group)

    def _next_to_join(self, rows: int) -> Task | None:
        if self._queue or not self._fragments:
            return None
        pieces = self._fragments[0]
        fits = len(pieces) == 1 and pieces[0].rows <= rows and _may_join(pieces[0])
        return self.next_task() if fits else None

    def _may_begin(self) -> bool:
        return self._limit is None or self.hits + len(self._begun) < self._limit

    def _begin(self, pieces: tuple[Task, ...]) -> None:
        first = pieces[0]
        self._begun.add(first.fragment_id)
        self._queue.extend(pieces)
        if len(pieces) > 1:
            whole = replace(first, start=0, stop=first.rows, assemble=True, followers=())
            self._open[first.fragment_id] = _Fragment(whole, len(pieces), first.resume)

    @property
    def idle(self) -> bool:
        """Whether nothing is running and nothing can be handed out."""
        blocked = not self._fragments or not self._may_begin()
        return not self._running and not self._queue and blocked

    @property
    def running(self) -> int:
        """Tasks that were handed out and have not ended."""
        return len(self._running)

    @property
    def not_begun(self) -> list[int]:
        """Fragments that were not begun, in the order in which they will be."""
        return [pieces[0].fragment_id for pieces in self._fragments]

    def give_up(self, fragments: Collection[int]) -> None:
        """Never begin some fragments: another driver does."""
        kept = (p for p in self._fragments if p[0].fragment_id not in fragments)
        self._fragments = deque(kept)

    @property
    def waiting(self) -> int:
        """Tasks that were not handed out, at least: a fragment not begun counts as one."""
        return len(self._queue) + len(self._fragments)

    # --- events ------------------------------------------------------------------------

    def done(self, event: TaskDone) -> None:
        """Take in a finished task."""
        del self._running[event.key, event.start, event.stop]
        if event.fragment_id in self._dropped:
            return  # a span of a fragment that is planned again
        fragment = self._open.get(event.fragment_id)
        if fragment is not None and fragment.left:
            self._span_done(fragment, event)
            return
        # The assembling task replays what its spans computed: counted once, here.
        spanned = self._open.pop(event.fragment_id, None)
        counts = event.counts
        if spanned is not None:
            counts = replace(counts, replayed=spanned.replayed)
        self.counts += counts + self._earned(event.key, counts.replayed)
        self._task_s = (
            counts.seconds
            if self._task_s is None
            else (_OLD * self._task_s + (1 - _OLD) * counts.seconds)
        )
        self.failures += event.failures
        self._begun.discard(event.fragment_id)
        self.fragments_done += 1
        if event.file is None:
            self.nothing_to_do.append(event.fragment_id)
        else:
            self.hits += 1
            self._finished.append(event.file)

    def _earned(self, key: str, replayed: int) -> Counts:
        """Return what makes replayed rows count as computed that this very call computed."""
        followed = self._followed.pop(key, Counts())
        return replace(followed, computed=0, failed=0, replayed=-min(followed.computed, replayed))

    def _span_done(self, fragment: _Fragment, event: TaskDone) -> None:
        fragment.left -= 1
        fragment.logs = tuple(dict.fromkeys([*fragment.logs, *event.logs]))
        fragment.rows += event.counts.computed
        fragment.replayed += event.counts.replayed
        self.counts += Counts(
            seconds_read=event.counts.seconds_read,
            seconds_udf=event.counts.seconds_udf,
            seconds_checkpoint=event.counts.seconds_checkpoint,
        )
        if not fragment.left:
            rows = fragment.rows
            self.rows_twice += rows
            self._queue.appendleft(replace(fragment.base, resume=fragment.logs, checkpointed=rows))

    def lost(self, event: TaskLost, logs: tuple[str, ...], *, isolate: bool) -> bool:
        """Queue the task of a lost worker again; return whether too many were lost.

        Parameters
        ----------
        logs
            Checkpoint logs of the work by now.
        isolate
            Whether the rows that kill workers are to be found and skipped.
        """
        key = _id(event.task)
        del self._running[key]
        self._losses[key] += 1
        if event.started:
            self._deaths[key] = self._deaths.get(key, 0) + 1
        deaths = self._deaths.get(key, 0)
        allowed = MAX_DEATHS_ISOLATING if isolate else MAX_DEATHS
        if deaths > allowed or self._losses[key] - deaths > MAX_LOSSES:
            return True
        # Never again with followers: one of them may be what killed the worker.
        again = replace(event.task, attempt=deaths, resume=logs, followers=())
        self._queue.appendleft(again)
        return False

    def returned(self, event: TaskReturned) -> None:
        """Take back a task that was not begun; it comes next."""
        task = event.task
        del self._running[_id(task)]
        self._begun.discard(task.fragment_id)
        self._fragments.appendleft((task,))

    def stopped(self, event: TaskStopped) -> None:
        """Take in a task that stopped because the job is being stopped."""
        del self._running[_id(event.task)]

    def dropped(self, task: Task) -> None:
        """Take in a task whose fragment is not to be computed after all."""
        self._running.pop(_id(task), None)
        self._dropped.add(task.fragment_id)
        self._begun.discard(task.fragment_id)
        self._open.pop(task.fragment_id, None)
        self._queue = deque(t for t in self._queue if t.fragment_id != task.fragment_id)

    # --- commits -----------------------------------------------------------------------

    def commit_due(self, now_s: float) -> bool:
        """Whether enough fragments wait, and the last commit was long enough ago."""
        ended, took = self._last_commit
        return len(self._finished) >= self._granularity and now_s - ended >= took * _COMMIT_SHARE

    def take_finished(self) -> list[ColumnFile]:
        """Hand over the column files that wait for a commit."""
        files, self._finished = self._finished, []
        return files

    def committed(self, ended_s: float, took_s: float) -> None:
        """Note when a commit ended and how long it took."""
        self._last_commit = (ended_s, took_s)


def _may_join(task: Task) -> bool:
    """Whether a task may be carried out together with others."""
    fresh = not (task.attempt or task.resume or task.followers or task.checkpointed is not None)
    return fresh and task.assemble and task.whole


def _id(task: Task) -> tuple[str, int, int]:
    return task.key, task.start, task.stop
