"""Commit column files on the latest version, whatever other writers do meanwhile.

Every try opens the latest version, verifies each file against it, rebuilds the fragments'
metadata from it and commits on it. Crash windows and lost replies, in order:

1. before the commit: the files are orphans that the next run adopts through their journals;
2. during it: a commit is one atomic object, it happened or it did not;
3. after it, reply lost: the next try finds each file's name in its fragment and counts it;
4. after it, before the version is synced: a power failure may take the version, so the
   checkpoints are still there;
5. between the look at a file and the commit that names it, a cleanup of files that no version
   names may take it: so it is looked for once more before the checkpoints go.

A job that is to stop tries for a few more seconds: what is finished is to be seen, but whoever
cancels does not wait for other writers to make room. Giving up loses nothing. The files stay as in
1., and the same command commits them without computing.
"""

from __future__ import annotations

import math
import random
import time
from collections.abc import Callable, Collection, Iterable, Sequence
from dataclasses import dataclass, replace
from enum import Enum
from typing import TypeVar

from geneva.column.binding import binding_of
from geneva.column.history.descent import live_mask
from geneva.column.history.marks import as_readable, group_subtree, supplier
from geneva.engine.control import Control
from geneva.errors import (
    ConflictError,
    StorageError,
    SupersededError,
    TableChangedError,
    VersionGoneError,
)
from geneva.model.types import ColumnFile, Target
from geneva.storage.lance import Snapshot, TableStorage
from geneva.storage.objects import advice
from geneva.storage.snapshot import FragmentInfo
from geneva.storage.values import CommitConflict, Replacement

T = TypeVar("T")
_CONFLICTS = 100
_FAULTS = 5
_MAX_WAIT_S = 2.0
_LAST_S = 5.0  # of a job that is to stop


class Verdict(Enum):
    """The fate of a column file that no longer fits."""

    VANISHED = "its fragment was compacted away or replaced"  # its values may be carried over
    USELESS = "an input column was rewritten"  # they are of other inputs
    FORESTALLED = "another writer filled the column in its fragment"  # the checkpoints still hold


@dataclass(frozen=True, slots=True)
class Discarded:
    """A column file that must not be committed, and why.

    Attributes
    ----------
    keep_file
        A version may name it: its commit was sent and the reply was lost.
    """

    file: ColumnFile
    verdict: Verdict
    reason: str
    keep_file: bool = False

    @property
    def vanished(self) -> bool:
        """True if the file's rows may be part of a compaction's fragment now."""
        return self.verdict is Verdict.VANISHED


@dataclass(frozen=True, slots=True)
class Published:
    """The outcome of a commit; ``version`` is ``None`` when nothing was left to commit.

    Attributes
    ----------
    left
        All files, if other writers won every try of a job that is to stop.
    """

    version: int | None
    committed: tuple[ColumnFile, ...]
    discarded: tuple[Discarded, ...]
    left: tuple[ColumnFile, ...] = ()


def publish(
    storage: TableStorage,
    target: Target,
    files: Sequence[ColumnFile],
    control: Control,
) -> Published:
    """Make column files visible in one version; those that no longer fit are discarded.

    Parameters
    ----------
    control
        Of the job. Its recorder is asked before every try, and raises if the job is somebody
        else's by now; once the job is to stop, there are only a few more tries.

    Raises
    ------
    TableChangedError, SupersededError
        The target was dropped, retyped or bound to another UDF; nothing was written.
    ConflictError
        Other writers won every try.
    StorageError
        The store failed every try.
    """
    publication = _Publication(storage, target, files, control)
    done = _committed(storage, target, control, publication.attempt)
    return done or Published(None, (), (), publication.files)


def drop_lost(
    storage: TableStorage, target: Target, fragments: Collection[int], control: Control
) -> int | None:
    """Make a version in which some fragments name no file of the target that nobody can read.

    Returns
    -------
    int or None
        The version, unless there is no such file, or the job is to stop.

    Raises
    ------
    TableChangedError, SupersededError, ConflictError, StorageError
        As of `publish`.
    """

    def attempt(latest: Snapshot) -> int | None:
        snapshot = as_readable(storage, latest, target.columns)
        subtree = frozenset(group_subtree(snapshot, target.columns[0]))
        lost = [
            f.id
            for f in snapshot.fragments.values()
            if f.id in fragments and any(not subtree.isdisjoint(x.fields) for x in f.lost)
        ]
        if not lost:
            return None
        control.recorder.may_publish()
        made = storage.empty(snapshot, lost, target.columns, {"geneva.job": control.job_id})
        storage.sync_version(made)
        return made.version

    return _committed(storage, target, control, attempt)


def _committed(
    storage: TableStorage,
    target: Target,
    control: Control,
    attempt: Callable[[Snapshot], T],
) -> T | None:
    """Return the outcome of a commit on the latest version; ``None`` if the job must stop first."""
    tries, faults, looked_at = _Tries(control), 0, 0
    while tries.left:
        try:
            snapshot = storage.open()
            check_target(snapshot, target)
            return attempt(snapshot)
        except CommitConflict as error:
            if not error.retryable:
                raise TableChangedError(
                    f"table {storage.uri} was overwritten or restored while column "
                    f"{target.name!r} was computed; nothing was written: {error}"
                ) from error
        except VersionGoneError:
            if snapshot.version == looked_at:
                raise  # nobody made another one: the table is damaged
            looked_at = snapshot.version
        except OSError as error:
            faults += 1
            if faults >= _FAULTS:
                raise StorageError(
                    f"committing to {storage.uri} failed: {error}; {advice(str(error))}"
                ) from error
        tries.wait()
    if tries.cut_short:
        return None
    raise ConflictError(
        f"{tries.made} tries to commit column {target.name!r} lost against other writers of "
        f"{storage.uri}; run the same command again: nothing is computed twice"
    )


class _Publication:
    """Column files on their way into a version, over all tries."""

    def __init__(
        self, storage: TableStorage, target: Target, files: Sequence[ColumnFile], control: Control
    ) -> None:
        self._storage, self._target, self._control = storage, target, control
        self.files = tuple(files)
        self._landed: dict[str, ColumnFile] = {}
        # A commit that named them was sent, and no reply came.
        self._doubtful: set[str] = set()
        self._vanished: list[Discarded] = []
        self._version: int | None = None

    def attempt(self, snapshot: Snapshot) -> Published:
        """Commit the files that fit the latest version."""
        landed = self._landed
        valid, discarded = _verify(self._storage, snapshot, self._target, self.files, landed)
        if valid:
            snapshot = self._publish(snapshot, valid)
        elif landed and self._version is None:
            self._version = snapshot.version
        if landed:  # before the checkpoints go: Lance itself syncs nothing
            self._storage.sync_version(snapshot)
            self._vanished += [_taken(landed.pop(n)) for n in self._gone(landed.values())]
        lost = [*discarded, *self._vanished]
        kept = (replace(d, keep_file=d.file.name in self._doubtful) for d in lost)
        return Published(self._version, tuple(landed.values()), tuple(kept))

    def _publish(self, snapshot: Snapshot, valid: Sequence[ColumnFile]) -> Snapshot:
        replacements = [Replacement(f.fragment_id, f.name, f.size_bytes) for f in valid]
        properties = {"geneva.job": self._control.job_id}
        self._control.recorder.may_publish()
        sent = {f.name for f in valid} - self._doubtful
        self._doubtful |= sent
        try:
            made = self._storage.publish(snapshot, replacements, self._target.columns, properties)
        except CommitConflict:
            self._doubtful -= sent  # what an earlier try sent may be what this one lost against
            raise
        except FileNotFoundError:
            gone = self._gone(self.files)
            self._vanished += [_taken(f) for f in self.files if f.name in gone]
            self.files = tuple(f for f in self.files if f.name not in gone)
            raise
        self._version = made.version
        self._landed |= {f.name: f for f in valid}
        return made

    def _gone(self, files: Iterable[ColumnFile]) -> set[str]:
        return self._storage.vanished({f.name: f.size_bytes for f in files})


def _taken(file: ColumnFile) -> Discarded:
    return Discarded(file, Verdict.FORESTALLED, "a cleanup removed its column file")


class _Tries:
    """Counts the tries to commit, and waits between them: ever longer, until the job is to stop."""

    def __init__(self, control: Control) -> None:
        self._control = control
        self._until_s = math.inf
        self._wait_s = 0.01
        self.made = 0

    @property
    def cut_short(self) -> bool:
        return time.monotonic() >= self._until_s

    @property
    def left(self) -> bool:
        return self.made < _CONFLICTS and not self.cut_short

    def wait(self) -> None:
        self.made += 1
        wait_s = self._wait_s * random.uniform(0.5, 1.0)
        self._wait_s = min(2 * self._wait_s, _MAX_WAIT_S)
        if not self._control.stopping:
            self._until_s = math.inf  # it may have been paused and resumed
            self._control.sleep(wait_s)
        elif self._until_s == math.inf:
            self._until_s = time.monotonic() + _LAST_S
            self._wait_s = 0.01
        else:
            time.sleep(min(wait_s, max(self._until_s - time.monotonic(), 0.0)))


def check_target(snapshot: Snapshot, target: Target) -> None:
    """Verify that the target is still the column that the job was planned for.

    Raises
    ------
    TableChangedError
        A column was dropped, re-added or retyped.
    SupersededError
        It was bound to another UDF.
    """
    for column, data_type in zip(target.columns, target.data_types, strict=True):
        field = snapshot.fields.get(column)
        binding = None if field is None else binding_of(field.arrow)
        if field is None or binding is None or binding.incarnation != target.incarnation:
            raise TableChangedError(
                f"column {column!r} was dropped, renamed or replaced while it was computed; "
                "no more values are written"
            )
        if field.arrow.type != data_type:
            raise TableChangedError(
                f"column {column!r} was changed from {data_type} to {field.arrow.type} while it "
                "was computed; no more values are written"
            )
        if binding.digest != target.bound_digest:
            raise SupersededError(
                f"column {column!r} was bound to another UDF while it was computed; "
                "run the backfill again for the new one"
            )


def _verify(
    storage: TableStorage,
    snapshot: Snapshot,
    target: Target,
    files: Sequence[ColumnFile],
    landed: dict[str, ColumnFile],
) -> tuple[list[ColumnFile], list[Discarded]]:
    """Sort files into those to commit and those that no longer fit; note those that landed."""
    subtree = group_subtree(snapshot, target.columns[0])
    by_id = {f.id: f for f in snapshot.fields.values()}
    valid: list[ColumnFile] = []
    discarded: list[Discarded] = []
    for file in files:
        if file.name in landed:
            continue  # whatever became of it since
        fragment = snapshot.fragments.get(file.fragment_id)
        verdict, reason = None, ""
        if fragment is None or fragment.rows != file.rows:
            verdict = Verdict.VANISHED
        elif supplier(fragment, subtree) == file.name:
            landed[file.name] = file
            continue
        elif fragment.overlaid:
            verdict, reason = Verdict.FORESTALLED, "its fragment carries an overlay"
        elif supplier(fragment, subtree) != (file.target_file or ""):
            verdict = Verdict.FORESTALLED
        elif any(
            i not in by_id or supplier(fragment, by_id[i].subtree) != path
            for i, path in file.sources
        ):
            verdict = Verdict.USELESS
        elif _returned(storage, snapshot, fragment, file):
            verdict, reason = Verdict.FORESTALLED, "deleted rows of its fragment were restored"
        if verdict is None:
            valid.append(file)
        else:
            discarded.append(Discarded(file, verdict, reason or verdict.value))
    return valid, discarded


def _returned(
    storage: TableStorage, snapshot: Snapshot, fragment: FragmentInfo, file: ColumnFile
) -> bool:
    """Whether rows are live that were deleted for the plan: a file holds no value of theirs."""
    if file.live is None or fragment.deletion == file.deletion:
        return False
    return bool((live_mask(storage, snapshot, fragment) & ~file.live.mask()).any())
