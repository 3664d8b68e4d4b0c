"""Claims: drivers that fill one column at the same time leave each other's fragments alone.

Every driver has one small file, in which it says which fragments it *holds* (it computes them or
is about to) and, while it holds none, which it *wants*. A driver that is alone holds all that it
planned. When it sees that another one wants some of them, it gives half away of what it has not
begun. Claims only save work: what is committed is verified at the commit, whoever computed it.

Why no two drivers hold one fragment while both are alive:

1. A driver looks at the others' files, and claims only fragments that nobody holds.
2. It writes its own file, which now names them.
3. It looks once more. Of two drivers that are between 1. and 3. at once, the one that wrote last
   sees the other's file here, maybe both do.
4. Whoever sees in 3. that somebody else holds a new fragment too gives it up, and writes again.
   If both gave up, each has said by then what it waits for, and a fragment's number decides who
   takes it: all who see each other wait agree.
5. A fragment that is free may have been filled meanwhile: it is planned again after the claim.

How a claim ends, whatever became of its driver:

1. The driver ends: it deletes its file.
2. Its process is gone: others see that at once in the same pid namespace, and elsewhere when the
   file was not written to for its lease, by the clock of whoever watches it.
3. Whoever sees that a claim has ended deletes the file, and the fragments are free.
4. A driver that was only slow finds its file deleted: it was given up for dead, and lets go of all
   that it has not begun. What it has begun it finishes: at the worst a fragment is computed twice,
   and the commit takes one of the two.
"""

from __future__ import annotations

import itertools
import json
import logging
import time
from collections.abc import Callable, Collection, Iterable, Sequence
from dataclasses import asdict, dataclass
from uuid import uuid4

from geneva.engine.process import ProcessId, this_process
from geneva.storage.objects import Objects

FOLDER = "claims"
LEASE_S = 60.0
_BEATS_PER_LEASE = 6
_LOOK_EVERY_S = 0.5
_LOOK_SHARE = 20  # looking takes at most a twentieth of a driver's time
_LOG = logging.getLogger("geneva")


@dataclass(frozen=True, slots=True)
class Claim:
    """One driver's statement about itself.

    Attributes
    ----------
    lease_s
        Seconds after the latest beat at which others may give the driver up for dead.
    beat
        Differs in every writing of the file.
    holds, wants
        Fragments that it computes, and that it waits for.
    at_s
        When it was written, by the clock of its host. Drivers do not look at it.
    """

    job_id: str
    process: ProcessId
    lease_s: float
    beat: int
    holds: frozenset[int]
    wants: frozenset[int]
    at_s: float = 0.0

    def dumps(self) -> bytes:
        """Return the content of the claim's file."""
        body = {
            "job_id": self.job_id,
            "process": asdict(self.process),
            "lease_s": self.lease_s,
            "beat": self.beat,
            "holds": _ranges(self.holds),
            "wants": _ranges(self.wants),
            "at_s": self.at_s,
        }
        return json.dumps(body).encode()

    @classmethod
    def loads(cls, data: bytes) -> Claim | None:
        """Read a claim's file; ``None`` if a power failure tore it."""
        try:
            raw = json.loads(data)
            who = raw["process"]
            return cls(
                str(raw["job_id"]),
                ProcessId(who["host"], who["space"], int(who["pid"]), who["started"]),
                float(raw["lease_s"]),
                int(raw["beat"]),
                _fragments(raw["holds"]),
                _fragments(raw["wants"]),
                float(raw.get("at_s", 0.0)),
            )
        except (ValueError, KeyError, TypeError, OverflowError):
            return None


def _ranges(fragments: Iterable[int]) -> list[list[int]]:
    """Return runs of consecutive numbers, half-open."""
    ranges: list[list[int]] = []
    for i in sorted(fragments):
        if ranges and ranges[-1][1] == i:
            ranges[-1][1] = i + 1
        else:
            ranges.append([i, i + 1])
    return ranges


def _fragments(ranges: list[list[int]]) -> frozenset[int]:
    return frozenset(itertools.chain.from_iterable(range(a, b) for a, b in ranges))


class Claims:
    """One driver's claims on the fragments of a column, and its view of the other drivers' claims.

    Parameters
    ----------
    lease_s
        Seconds without a sign of life after which others may take over.
    clock
        Seconds from any moment on, never backwards.
    """

    def __init__(
        self,
        objects: Objects,
        incarnation: str,
        job_id: str,
        lease_s: float = LEASE_S,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._objects, self._clock = objects, clock
        self._folder = f"{FOLDER}/{incarnation}"
        self._path = f"{self._folder}/{uuid4().hex}.json"
        self._job_id, self._lease_s = job_id, lease_s
        self.holds: frozenset[int] = frozenset()
        self._wants: frozenset[int] = frozenset()
        self.left: frozenset[int] = frozenset()  # what was planned here and others have, or may
        self._written: Claim | None = None
        self._put = False  # its file may be there, though the latest writing failed
        self._written_at = 0.0
        self._beats = 0
        self._others: dict[str, Claim] = {}
        self._seen: dict[str, tuple[bytes, float]] = {}  # what a file held, and since when
        self._missed = False  # others have deleted this driver's file
        self._look_at = 0.0

    # --- claiming ----------------------------------------------------------------------

    def begin(self, planned: Sequence[int], at_most: int | None) -> frozenset[int]:
        """Return which of some planned fragments may be begun now: those that are held.

        If no other driver is there, that is all of them. If there is one, it may have filled
        some since they were planned: `take` them first, and plan them then.

        Parameters
        ----------
        at_most
            How many are to be held, or ``None``.
        """
        self.holds &= frozenset(planned)
        self.left |= frozenset(planned)
        new = [i for i in planned if i not in self.holds]
        if at_most is not None:
            new = new[: max(at_most - len(self.holds), 0)]
        if new:
            self._look()
            if not self._others:
                self._claim(new)
        self.left -= self.holds
        return self.holds

    def take(self, at_most: int | None) -> frozenset[int]:
        """Claim the free ones of the fragments that were left, or a share if others want them too.

        Returns
        -------
        frozenset
            All that is held now; if it is empty, the others were told what is wanted.
        """
        self.holds = frozenset()
        self._look()
        free = self.left - self._held_by_others()
        share = self._share(free)[:at_most]
        if share:
            self._claim(share)
        if not self.holds:
            self._wants = self.left
            self._write_if_due()
        self.left -= self.holds
        return self.holds

    @property
    def due(self) -> bool:
        """Whether it is time to `refresh`."""
        return self._clock() >= self._look_at

    def refresh(self, not_begun: Sequence[int]) -> frozenset[int]:
        """Show that this driver is alive, and return fragments that it must not begin any more.

        Parameters
        ----------
        not_begun
            Of the fragments that are held, in the order in which they will be begun.
        """
        self._look()
        given = frozenset(not_begun) if self._missed else self._gifts(not_begun)
        self.holds -= given
        self.left |= given
        self._write_if_due()
        return given

    def settle(self, fragments: Iterable[int]) -> None:
        """Let go of fragments that are committed."""
        self.holds -= frozenset(fragments)

    def release(self) -> None:
        """Let go of every fragment, and forget those that were left to others."""
        self.holds = self._wants = self.left = frozenset()
        if self._put:
            self._written, self._put = None, False
            self._delete(self._path)

    def look_alone(self) -> bool:
        """Look whether no other driver is at work on the column, as far as one knows."""
        self._look()
        return not self._others

    def describe(self) -> str:
        """Return a text that names the drivers which hold the fragments this one waits for."""
        held = self._held_by_others() & self.left
        holders = [c for c in self._others.values() if c.holds & held]
        if not holders:
            return "waiting for other backfills of the column to share it out"
        first = f"job {holders[0].job_id} ({holders[0].process})"
        more = f" and {len(holders) - 1} more" if len(holders) > 1 else ""
        return f"waiting for {len(held):,} fragments that are computed by {first}{more}"

    def _claim(self, new: Collection[int]) -> None:
        """Write a claim, then look whether somebody else did so at the same time."""
        self.holds |= frozenset(new)
        self._wants = frozenset()
        self._write()
        self._look()
        contested = frozenset(new) & self._held_by_others()
        if contested:
            self.holds -= contested
            self._write()

    def _share(self, free: Iterable[int]) -> list[int]:
        """Return this driver's part of the free fragments.

        Who gets a fragment follows from its number and from who waits for it, so that all who
        have seen each other wait agree, whatever else each of them wants.
        """
        waiting = [(path, c.wants) for path, c in self._others.items() if c.wants]
        mine = []
        for i in sorted(free):
            rivals = [path for path, wants in waiting if i in wants]
            everyone = sorted([self._path, *rivals])
            if everyone[i % len(everyone)] == self._path:
                mine.append(i)
        return mine

    def _gifts(self, not_begun: Sequence[int]) -> frozenset[int]:
        """Return the fragments to give away: each waiting driver gets as many as this one keeps."""
        taken = self.holds | self._held_by_others()
        # One that could take something that is free, will.
        waiting = [c.wants for c in self._others.values() if c.wants and c.wants <= taken]
        waiting = [wants for wants in waiting if wants.intersection(not_begun)]
        keep = -(-len(not_begun) // (len(waiting) + 1))
        return frozenset(not_begun[keep:]).intersection(frozenset().union(*waiting))

    def _held_by_others(self) -> frozenset[int]:
        return frozenset().union(*(c.holds for c in self._others.values()))

    # --- files -------------------------------------------------------------------------

    def _write_if_due(self) -> None:
        """Write when there is something to tell, and to show that this driver is alive."""
        written, known = self._written, not self._missed
        if written is not None and self._others:
            known = known and (self.holds, self._wants) == (written.holds, written.wants)
        if (
            written is None
            or not known
            or self._clock() - self._written_at >= self._lease_s / _BEATS_PER_LEASE
        ):
            self._write()

    def _write(self) -> None:
        claim = Claim(
            self._job_id,
            this_process(),
            self._lease_s,
            self._beats,
            self.holds,
            self._wants,
            time.time(),
        )
        self._beats += 1
        self._written, self._written_at, self._missed = claim, self._clock(), False
        self._put = True
        try:
            self._objects.put(self._path, claim.dumps(), durable=False)
        except OSError as error:
            self._written = None  # that it is not there says nothing then
            _LOG.debug("a claim could not be written: %s", error)

    def _delete(self, path: str) -> None:
        try:
            self._objects.delete(path)
        except OSError as error:
            _LOG.debug("a claim could not be deleted: %s", error)

    def _look(self) -> None:
        """Read the others' claims; if the store fails, the earlier view stays."""
        started = self._clock()
        try:
            self._read()
        except OSError as error:
            _LOG.debug("claims could not be read: %s", error)
        took = self._clock() - started
        self._look_at = started + max(_LOOK_EVERY_S, _LOOK_SHARE * took)

    def _read(self) -> None:
        paths = self._objects.list(self._folder)
        self._missed = self._written is not None and self._path not in paths
        others: dict[str, Claim] = {}
        seen: dict[str, tuple[bytes, float]] = {}
        for path in paths:
            if path == self._path:
                continue
            try:
                data = self._objects.get(path)
            except FileNotFoundError:
                continue  # its driver ended meanwhile
            claim = Claim.loads(data)
            before = self._seen.get(path)
            seen[path] = before if before and before[0] == data else (data, self._clock())
            if claim is not None and not self._ended(claim, seen[path][1]):
                others[path] = claim
            elif claim is not None:
                self._delete(path)
        self._others, self._seen = others, seen

    def _ended(self, claim: Claim, since_s: float) -> bool:
        return claim.process.gone or self._clock() - since_s > claim.lease_s
