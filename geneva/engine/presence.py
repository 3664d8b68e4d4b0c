"""Which columns the running calls of a backfill are at work on, for whoever cleans up.

A call's file is there from its first task until its end: also while it is paused, between two of
its columns, and for columns whose checkpoints are written while another one is computed. Claims,
which say who has which fragments, come and go meanwhile.
"""

from __future__ import annotations

import json
import logging
import threading
import time
from collections.abc import Iterable
from dataclasses import asdict
from uuid import uuid4

from geneva.engine.claims import FOLDER as CLAIMS
from geneva.engine.claims import Claim
from geneva.engine.process import ProcessId, this_process
from geneva.storage.objects import Objects

FOLDER = "present"
_BEAT_S = 600.0
_AGAIN_S = 5.0  # after a writing that failed
_LOG = logging.getLogger("geneva")


class Presence:
    """One call's file; thread-safe."""

    def __init__(self, objects: Objects) -> None:
        self._objects = objects
        self._path = f"{FOLDER}/{uuid4().hex}.json"
        self._columns: frozenset[str] = frozenset()
        self._written = False
        self._ended = threading.Event()
        self._lock = threading.Lock()

    def show(self, columns: Iterable[str]) -> None:
        """Say that the call is at work on some columns too, by incarnation, until its end."""
        with self._lock:
            first, new = not self._columns, self._columns.union(columns)
            if new == self._columns:
                return
            self._columns = new
            self._write()
        if first:
            threading.Thread(target=self._beat, name="geneva-presence", daemon=True).start()

    def end(self) -> None:
        """Say nothing any more."""
        self._ended.set()
        with self._lock:
            if self._columns:
                try:
                    self._objects.delete(self._path)
                except OSError as error:
                    _LOG.debug("the end of a call could not be told: %s", error)

    def _beat(self) -> None:
        """Show from time to time that the call goes on, to hosts that cannot see its process."""
        while not self._ended.wait(_BEAT_S if self._written else _AGAIN_S):
            with self._lock:
                if not self._ended.is_set():
                    self._write()

    def _write(self) -> None:
        me = asdict(this_process())
        body = {"process": me, "columns": sorted(self._columns), "at_s": time.time()}
        try:
            self._objects.put(self._path, json.dumps(body).encode(), durable=False)
            self._written = True
        except OSError as error:
            self._written = False
            _LOG.debug("a call could not tell that it is at work: %s", error)


def being_filled(objects: Objects) -> set[str]:
    """Return the incarnations of the columns on which some call is at work, as far as one knows."""
    paths = [p for folder in (FOLDER, CLAIMS) for p in objects.list(folder)]
    return set().union(*(columns_of(objects, p) for p in paths))


def columns_of(objects: Objects, path: str) -> frozenset[str]:
    """Return the columns on which the writer of a presence or a claim is at work; none if it ended.

    Who looks only once cannot wait for a lease to end: see `ProcessId.may_work`.
    """
    try:
        data = objects.get(path)
    except FileNotFoundError:
        return frozenset()  # it ended meanwhile
    if path.startswith(f"{CLAIMS}/"):
        claim = Claim.loads(data)
        there = claim is not None and claim.process.may_work(claim.at_s)
        return frozenset(path.split("/")[1:2]) if there else frozenset()
    try:
        raw = json.loads(data)
        process, at_s = ProcessId(**raw["process"]), float(raw["at_s"])
        return frozenset(map(str, raw["columns"])) if process.may_work(at_s) else frozenset()
    except (ValueError, KeyError, TypeError):
        return frozenset()  # what a power failure left of one
