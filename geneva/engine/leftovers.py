"""The checkpoints of a job's column: which of them its tasks resume, and when each is removed.

A log is removed when no fragment needs it any more, and never before:

1. *Before tasks are handed out*, the logs of their work are found, and what a compaction left is
   written for its heirs. Only then the originals go, if every heir has its part.
2. *After a commit*, the logs of the committed fragments go. A crash before that leaves logs that
   name a committed file; they are never adopted, as the fragment's present file is then no longer
   the one that they expect.
3. *A file that must not be committed* goes, with its logs where its values are of no use. Where
   another writer forestalled it, its logs stay until the fragment is planned again.
4. *At the end of all work*, and only by a driver that is alone, the rest goes: logs of fragments
   that are no longer what they were, and the column files of which only these know. A job that
   ends before that leaves them to the next one.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import replace

from geneva.column.checkpoint.journal import LogUses, find_logs, replay
from geneva.column.checkpoint.key import is_of_family, is_shared
from geneva.engine.commit.publish import Discarded, Published, Verdict
from geneva.engine.commit.remap import Inherited, inherit
from geneva.engine.plan.decision import FragmentPlan
from geneva.model.rows import IntArray
from geneva.model.types import ColumnFile, Target, Task, TaskDone
from geneva.storage.lance import Snapshot, TableStorage


class Leftovers:
    """The checkpoint logs and the uncommitted column files of one job.

    Parameters
    ----------
    limited
        Whether the job is for some fragments or rows only: logs may hold the work of others.
    notes
        Takes in what a person should know.
    """

    def __init__(
        self, storage: TableStorage, target: Target, notes: list[str], *, limited: bool
    ) -> None:
        self._storage, self._target, self._notes = storage, target, notes
        self._limited = limited
        self._uses = LogUses(storage.objects)
        self._forestalled: dict[int, tuple[str, ...]] = {}  # logs of such files, by fragment
        self._vanished: list[ColumnFile] = []  # of fragments that were compacted away
        # Logs of this work on fragments that are no longer what they were, and the column files
        # of which only these know.
        self._orphans: dict[str, set[str]] = {}

    def planned(self, snapshot: Snapshot, plans: Sequence[FragmentPlan]) -> None:
        """Remove logs of forestalled files whose fragments need no work any more."""
        self._uses.keep_only(snapshot.fragments)
        for plan in plans if self._forestalled else ():
            logs = self._forestalled.pop(plan.fragment_id, ())
            if plan.task is None:
                self._release((plan.fragment_id, logs))

    def resumed(
        self, snapshot: Snapshot, planned: Sequence[Task], tasks: Sequence[Task]
    ) -> list[Task]:
        """Return the tasks that this job carries out of those planned, with their checkpoints."""
        logs = find_logs(self._storage.objects, self._target.incarnation)
        inherited = inherit(self._storage, snapshot, self._target, logs, tasks, planned)
        fragments = {task.key: task.fragment_id for task in planned}
        self._uses.note_work(logs, fragments, keep_others=self._limited)
        for key, paths in logs.items():
            if not is_of_family(key, tasks[0].family):
                continue
            # Of planned work as well: what it holds may be rows that others took away since, and
            # then no commit removes it. One that ends other work too has its own users.
            mine = [path for path in paths if key not in fragments or not is_shared(path)]
            self._orphans.update((path, inherited.files.get(path, set())) for path in mine)
        self._take_over(inherited, tasks)
        return [
            replace(t, resume=logs.get(t.key, ()) + inherited.written.get(t.key, ())) for t in tasks
        ]

    def _take_over(self, inherited: Inherited, tasks: Sequence[Task]) -> None:
        """Remove checkpoints of compacted fragments that their successors' tasks hold by now."""
        for log, heirs in inherited.heirs.items():
            for fragment_id in heirs:
                self._uses.note(fragment_id, [log])
        if self._limited:
            self._uses.keep(inherited.heirs)  # there may be heirs that the call is not for
        if inherited.faults:
            faults = "; ".join(dict.fromkeys(inherited.faults))
            self._notes.append(f"results of compacted fragments were lost: {faults}")
        else:
            for task in tasks:
                mine = [log for log, heirs in inherited.heirs.items() if task.fragment_id in heirs]
                self._release((task.fragment_id, mine))
        left = [f for f in self._vanished if not inherited.heirs.keys() & set(f.logs)]
        self._remove_vanished(left)  # nothing proves where their rows are

    def checkpointed(self, task: Task, *, with_failed: bool) -> IntArray:
        """Return the rows of a task that its logs hold.

        Parameters
        ----------
        with_failed
            Whether rows that failed count.
        """
        objects, types = self._storage.objects, self._target.data_types
        return replay(objects, task.resume, types, with_failed=with_failed, key=task.key).rows

    def logs_of(self, task: Task) -> tuple[str, ...]:
        """Return the logs of a task's work by now."""
        logs = find_logs(self._storage.objects, self._target.incarnation)
        return logs.get(task.key, ())

    def written(self, event: TaskDone) -> None:
        """Take in a task that wrote a column file."""
        if event.file is not None:
            self._uses.note(event.fragment_id, event.logs)

    def published(self, published: Published) -> None:
        """Take in a commit, and remove the checkpoints that it made useless."""
        self._release(*((f.fragment_id, f.logs) for f in published.committed))
        for discarded in published.discarded:
            self._discard(discarded)

    def _discard(self, discarded: Discarded) -> None:
        file = discarded.file
        match discarded.verdict:
            case Verdict.VANISHED:
                self._vanished += [] if discarded.keep_file else [file]
            case Verdict.USELESS:
                if not discarded.keep_file:
                    self._remove(file)
            case Verdict.FORESTALLED:
                if not discarded.keep_file:
                    self._storage.delete_file(file.name)
                self._forestalled[file.fragment_id] = file.logs

    @property
    def vanished(self) -> set[int]:
        """Fragments of files that a compaction took the place of."""
        return {f.fragment_id for f in self._vanished}

    @property
    def left(self) -> bool:
        """Whether `settle` has anything to remove."""
        return bool(self._orphans or self._vanished)

    def settle(self) -> None:
        """Remove the files of vanished fragments, of rewritten inputs and of rows that moved.

        Only once all of the work is done, by a driver that is alone: until then somebody may have
        a use for it.
        """
        self._remove_vanished(self._vanished)
        for log, names in self._orphans.items():
            self._storage.objects.delete(log)
            for name in names:
                self._storage.delete_file(name)
        self._orphans = {}

    def _remove_vanished(self, files: Sequence[ColumnFile]) -> None:
        for file in files:
            self._remove(file)
        self._vanished = []

    def _remove(self, file: ColumnFile) -> None:
        self._storage.delete_file(file.name)
        self._release((file.fragment_id, file.logs))

    def _release(self, *done: tuple[int, Iterable[str]]) -> None:
        """Remove logs that nobody needs any more, and the files of which only these knew."""
        for log in self._uses.release(*done):
            for name in self._orphans.pop(log, ()):
                self._storage.delete_file(name)
