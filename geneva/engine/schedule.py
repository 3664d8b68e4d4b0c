"""The schedule: the next task, retries, giving up, due commits. No IO, no clock.

Events in, decisions out: the same machine runs on every executor, and in tests on none.

Tasks lie in windows, which open one after the other; a job without windows has one. A fragment
that lies in one window is a task of it, or is split into spans. One that several windows share is
cut into slices, which only checkpoint, and is assembled once the last of them is done::

    window 0      window 1      window 2
    [fragment 0]  [slice of 1]  [slice of 1]    -> fragment 1 is assembled
    [slice of 1]  [fragment 2]

1. A window opens while fewer than ``at_once`` are open; its tasks are handed out in order.
2. It ends when each of its tasks has ended. Assembling belongs to no window.
3. The window of a task that fails for good gives up its other tasks; what is checkpointed of the
   fragments that it shares is assembled all the same.
"""

from __future__ import annotations

from collections import Counter, deque
from collections.abc import Callable, Collection, Mapping, Sequence
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
_NO_WINDOW = -1  # of tasks that assemble a fragment


@dataclass(slots=True)
class _Fragment:
    """Progress of one fragment that was split into spans, or cut into slices."""

    base: Task
    left: int
    logs: tuple[str, ...] = ()
    rows: int = 0
    replayed: int = 0
    before: int = 0  # rows that were checkpointed before it was cut
    partly: bool = False  # some of its rows are not computed, as their window failed

    def assembling(self) -> Task:
        """Return the task that writes the column file from the checkpoints."""
        task = replace(self.base, resume=self.logs, window=_NO_WINDOW)
        if self.partly:
            return replace(task, replay_only=True, complete=False)
        return replace(task, checkpointed=self.before + self.rows)


@dataclass(frozen=True, slots=True)
class Cut:
    """A fragment that several windows share.

    Attributes
    ----------
    whole
        The task that assembles it; its logs hold ``checkpointed`` rows already.
    slices
        How many windows have one.
    """

    whole: Task
    slices: int
    checkpointed: int = 0


@dataclass(frozen=True, slots=True)
class Windowed:
    """The windows of a job.

    Attributes
    ----------
    numbers
        The windows, in the order in which they open.
    tasks
        Returns of a window what `Schedule` takes as ``pieces``; asked when it opens, so that the
        slices of all windows need not be held, with the seconds that a row took so far.
    at_once
        Windows that are open at once.
    cuts
        The fragments that several windows share.
    """

    numbers: Sequence[int]
    tasks: Callable[[int, float | None], Sequence[tuple[Task, ...]]]
    at_once: int
    cuts: Mapping[int, Cut]


@dataclass(slots=True)
class _OpenWindow:
    """An open window."""

    number: int
    fragments: deque[tuple[Task, ...]]
    left: int  # tasks that have not ended
    failed: bool = False


@dataclass(frozen=True, slots=True)
class WindowEnded:
    """A window of which every task has ended."""

    number: int
    failed: bool = False


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
    windows
        Instead of ``pieces`` and ``limit``.
    """

    def __init__(
        self,
        pieces: Sequence[tuple[Task, ...]],
        limit: int | None,
        granularity: int,
        followed: Mapping[str, Counts] | None = None,
        group_rows: int = 0,
        windows: Windowed | None = None,
    ) -> None:
        one = Windowed((0,), lambda number, row_s: pieces, 1, {})
        self._windowed = windows or one
        self._at_once, self._cuts = self._windowed.at_once, self._windowed.cuts
        self._udf_s, self._udf_rows = 0.0, 0
        self._windows: list[_OpenWindow] = []
        self.opened: list[int] = []
        self.windows_ended: list[WindowEnded] = []
        self._queue: deque[Task] = deque()
        self._open: dict[int, _Fragment] = {}
        self._limit = limit
        self._granularity = granularity
        self._followed = dict(followed or {})
        self._running: dict[tuple[str, int, int, int], Task] = {}
        self._deaths: dict[tuple[str, int, int, int], int] = {}  # of these, the task is suspect
        self._losses: Counter[tuple[str, int, int, int]] = Counter()
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
        self.partly: set[int] = set()  # fragments of which a window failed

    # --- tasks -------------------------------------------------------------------------

    def next_task(self) -> Task | None:
        """Return the next task to hand out, or ``None`` if there is none now."""
        if not self._queue:
            if not self._may_begin() or (window := self._with_fragments()) is None:
                return None
            self._begin(window.fragments.popleft())
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
        if self._queue or (window := self._with_fragments()) is None:
            return None
        pieces = window.fragments[0]
        fits = len(pieces) == 1 and pieces[0].rows <= rows and _may_join(pieces[0])
        return self.next_task() if fits else None

    def _may_begin(self) -> bool:
        return self._limit is None or self.hits + len(self._begun) < self._limit

    def _with_fragments(self) -> _OpenWindow | None:
        """Return the first open window with a fragment to begin; open the next if there is none."""
        while True:
            for window in self._windows:
                if window.fragments:
                    return window
            at = len(self.opened)
            if at == len(self._windowed.numbers) or len(self._windows) >= self._at_once:
                return None
            number = self._windowed.numbers[at]
            row_s = self._udf_s / self._udf_rows if self._udf_rows else None
            pieces = self._windowed.tasks(number, row_s)
            kept = [p for p in pieces if p[0].fragment_id not in self._dropped]
            self.opened.append(number)
            self._windows.append(_OpenWindow(number, deque(kept), sum(map(len, kept))))
            self._close_windows()

    def _close_windows(self) -> None:
        for window in [w for w in self._windows if not w.left]:
            self._windows.remove(window)
            self.windows_ended.append(WindowEnded(window.number, window.failed))

    def _ended_in(self, number: int) -> None:
        """Count a task of a window that has ended."""
        for window in self._windows:
            if window.number == number:
                window.left -= 1
        self._close_windows()

    def _begin(self, pieces: tuple[Task, ...]) -> None:
        first = pieces[0]
        self._begun.add(first.fragment_id)
        self._queue.extend(pieces)
        if (fragment := self._shared(first.fragment_id)) is not None:
            fragment.left += len(pieces) - 1  # counted as one slice
        elif len(pieces) > 1:
            whole = replace(first, start=0, stop=first.rows, assemble=True, followers=())
            self._open[first.fragment_id] = _Fragment(whole, len(pieces), first.resume)

    def _shared(self, fragment_id: int) -> _Fragment | None:
        """Return the progress of a fragment that several windows share."""
        if (cut := self._cuts.get(fragment_id)) is None:
            return None
        if fragment_id not in self._open:
            logs, before = cut.whole.resume, cut.checkpointed
            new = _Fragment(cut.whole, cut.slices, logs, replayed=before, before=before)
            self._open[fragment_id] = new
        return self._open[fragment_id]

    @property
    def idle(self) -> bool:
        """Whether nothing is running and nothing can be handed out."""
        if self._running or self._queue:
            return False
        return not self._may_begin() or self._with_fragments() is None

    @property
    def running(self) -> int:
        """Tasks that were handed out and have not ended."""
        return len(self._running)

    @property
    def not_begun(self) -> list[int]:
        """Fragments of open windows that were not begun, in the order in which they will be."""
        self._with_fragments()
        ids = [pieces[0].fragment_id for w in self._windows for pieces in w.fragments]
        return [i for i in ids if i not in self._cuts]

    def give_up(self, fragments: Collection[int]) -> None:
        """Never begin some fragments: another driver does."""
        for window in self._windows:
            kept = [p for p in window.fragments if p[0].fragment_id not in fragments]
            window.left -= sum(map(len, window.fragments)) - sum(map(len, kept))
            window.fragments = deque(kept)
        self._close_windows()

    @property
    def waiting(self) -> int:
        """Tasks that were not handed out, at least: a fragment not begun counts as one."""
        self._with_fragments()
        return len(self._queue) + sum(len(w.fragments) for w in self._windows)

    # --- events ------------------------------------------------------------------------

    def done(self, event: TaskDone) -> None:
        """Take in a finished task."""
        task = self._running.pop((event.key, event.start, event.stop, event.window))
        self._ended_in(task.window)
        self._udf_s += event.counts.seconds_udf
        self._udf_rows += event.counts.computed - event.counts.replayed
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
            if not task.replay_only:
                self.nothing_to_do.append(event.fragment_id)
        else:
            self.hits += 1
            self._finished.append(event.file)

    def _earned(self, key: str, replayed: int) -> Counts:
        """Return the counts that turn replayed rows of this very call back into computed ones."""
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
            self.rows_twice += fragment.rows
            self._queue.appendleft(fragment.assembling())

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
        for window in self._windows:
            if window.number == task.window:
                window.fragments.appendleft((task,))

    def stopped(self, event: TaskStopped) -> None:
        """Take in a task that stopped because the job is being stopped."""
        del self._running[_id(event.task)]

    def window_failed(self, task: Task) -> None:
        """Take in a task that failed for good; the other tasks of its window are given up."""
        del self._running[_id(task)]
        window = next(w for w in self._windows if w.number == task.window)
        window.failed = True
        queued = [t for t in self._queue if t.window == task.window]
        self._queue = deque(t for t in self._queue if t.window != task.window)
        lost = Counter(t.fragment_id for t in (task, *queued))
        for pieces in window.fragments:
            if self._shared(pieces[0].fragment_id) is not None:
                lost[pieces[0].fragment_id] += 1
        window.left -= 1 + len(queued) + sum(map(len, window.fragments))
        window.fragments.clear()
        for fragment_id, tasks in lost.items():
            if (fragment := self._open.get(fragment_id)) is None:
                self._begun.discard(fragment_id)
                continue
            fragment.left -= tasks
            fragment.partly = True
            self.partly.add(fragment_id)
            if not fragment.left:
                self._queue.append(fragment.assembling())
        self._close_windows()

    def dropped(self, task: Task) -> None:
        """Take in a task whose fragment is not to be computed after all."""
        fragment_id = task.fragment_id
        self._running.pop(_id(task), None)
        self._dropped.add(fragment_id)
        self._begun.discard(fragment_id)
        self._open.pop(fragment_id, None)
        self._queue = deque(t for t in self._queue if t.fragment_id != fragment_id)
        running = Counter(t.window for t in self._running.values())
        for window in self._windows:
            window.fragments = deque(p for p in window.fragments if p[0].fragment_id != fragment_id)
            queued = sum(t.window == window.number for t in self._queue)
            window.left = running[window.number] + queued + sum(map(len, window.fragments))
        self._close_windows()

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


def _id(task: Task) -> tuple[str, int, int, int]:
    return task.key, task.start, task.stop, task.window
