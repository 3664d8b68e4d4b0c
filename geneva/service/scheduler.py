"""The scheduler: looks at the store again and again, and makes its wishes true.

It keeps nothing that the store does not have, so it may be killed at any moment, and several may
run. A tick:

1. buries drivers that are gone, and stops those that do not stop by themselves. What a driver of
   this host left behind (its Ray, appliers) is killed before it is buried: nobody else takes the
   job up while something of it still writes.
2. claims the jobs that may start, in one transaction that only one scheduler has at a time. Killed
   here, it leaves claims whose owner is gone: whoever ticks next buries them.
3. starts a driver for each claim, and tells it by a pipe what it may not read in its environment.
   Killed before that, the driver reads nothing and ends.
4. writes down which process has the claim; the driver may have attached by then. Killed before
   that, the driver attaches and owns the job itself, or finds its claim buried and leaves.
"""

from __future__ import annotations

import contextlib
import logging
import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Hashable, Iterator, Sequence

from geneva.engine.process import ProcessId, end_marked, identify, marked, this_process
from geneva.errors import GenevaError, ServiceError
from geneva.jobs.records import Mode
from geneva.jobs.store.health import BEAT_S, beat
from geneva.jobs.store.leases import Held, Leases
from geneva.jobs.store.opening import open_store
from geneva.jobs.store.queue import QueueClaim, claim, outlook
from geneva.jobs.store.store import Store
from geneva.service.handover import Orders, for_drivers
from geneva.service.logs import DRIVER, JobLog, forget
from geneva.service.opened_tables import storage_options
from geneva.service.service_settings import DRIVER_CLAIM, Settings
from geneva.service.watcher import Watcher

_LOG = logging.getLogger("geneva.scheduler")
_BUSY_S = 5.0  # a driver that was stopped while it wrote is killed only if ticks go on
_FORGET_S = 600.0
_READ_S = 30.0  # the queue is read so often at least
_SILENCE_S = 10.0  # by our own clock, from the moment when a lease was first seen expired


class Scheduler:
    """Starts drivers and buries them."""

    def __init__(self, settings: Settings) -> None:
        storage_options("")  # a file that is wrong is refused now
        settings.keep_private()
        self._store: Store = open_store(settings.url, _BUSY_S)
        self._settings = settings
        self._database = self._store.database
        self._leases = Leases(self._database)
        self._me = this_process()
        self._children: list[subprocess.Popen[bytes]] = []
        self._silent: dict[tuple[str, int], float] = {}
        self._seen: Hashable = None
        self._read_s = 0.0
        self._forget_at = 0.0
        self._beat_s = -BEAT_S
        self._ended = threading.Event()

    def run(self) -> None:
        """Tick until `stop` is called; drivers go on."""
        with self._watching():
            while not self._ended.is_set():
                self.try_to_tick()
                self._ended.wait(self._settings.tick_s)

    @contextlib.contextmanager
    def _watching(self) -> Iterator[None]:
        """Look at tables beside the ticks, which must not wait for an object store."""
        if self._settings.db is None or not self._settings.watch_s:
            yield
            return
        watcher = Watcher(self._settings)
        thread = threading.Thread(target=watcher.run, name="geneva-watcher", daemon=True)
        thread.start()
        try:
            yield
        finally:
            watcher.stop()
            thread.join(10)

    def try_to_tick(self) -> None:
        """Look once and act; faults go to the log."""
        try:
            self.tick()
        except GenevaError as error:
            _LOG.warning("tick failed: %s", error)
        except Exception:
            _LOG.exception("tick failed")

    def stop(self) -> None:
        """End `run` after the present tick."""
        self._ended.set()

    def tick(self) -> None:
        """Look once and act."""
        self._children = [c for c in self._children if c.poll() is None]
        held = self._leases.held()
        for job in held:
            with self._going_on(job.job_id):
                self._look_at(job)
        known = {(job.job_id, job.epoch) for job in held}
        self._silent = {k: s for k, s in self._silent.items() if k in known}
        for claimed in self._claims(held):
            with self._going_on(claimed.job_id):
                self._start(claimed)
        self._forget()
        self._beat()

    def _beat(self) -> None:
        """Say now and then that somebody looks at the queue."""
        if time.monotonic() - self._beat_s >= BEAT_S:
            beat(self._database, f"the one in {self._me}")
            self._beat_s = time.monotonic()

    @staticmethod
    @contextlib.contextmanager
    def _going_on(job_id: str) -> Iterator[None]:
        """Let nothing that goes wrong with one job keep the scheduler from the others."""
        try:
            yield
        except ServiceError:
            raise  # the database is away, for all of them
        except Exception:
            _LOG.exception("job %s", job_id)

    def _forget(self) -> None:
        """Delete records of runs that ended long ago, and old logs of this host without records.

        Their records may be deleted on any host, and this one may die before it deletes the logs.
        """
        keep_s, now = self._settings.keep_s, time.monotonic()
        if keep_s is None or now < self._forget_at:
            return
        self._forget_at = now + _FORGET_S
        self._store.forget(keep_s)
        before, folder = time.time() - keep_s, self._settings.logs
        folders = folder.iterdir() if folder.is_dir() else ()
        old = [p.name for p in folders if p.stat().st_mtime < before]
        for job_id in self._store.unknown(old):
            forget(folder / job_id)

    def _claims(self, held: Sequence[Held]) -> list[QueueClaim]:
        """Take the jobs that may start; a long queue is not read again while nothing changes."""
        here = sum(job.owner.here and job.mode is Mode.SERVICE for job in held)
        room = max(0, self._settings.max_drivers - here)
        seen, now = (outlook(self._database), room), time.monotonic()
        if seen == self._seen and now - self._read_s < _READ_S:
            return []
        claims = claim(self._database, self._me, room)
        self._seen, self._read_s = seen, now
        return claims

    def _look_at(self, job: Held) -> None:
        if job.owner.gone:
            self._bury(job, f"{job.owner} is gone")
        elif job.owner == self._me:  # between a claim and the start of its driver
            if job.expired:
                self._bury(job, "its driver could not be started")
        elif job.mode is Mode.SERVICE and (job.asked_s or 0.0) > self._settings.grace_s:
            self._kill(job, f"{job.owner} did not stop within {self._settings.grace_s:g} s")
        elif job.expired:
            # Asleep together with its host, it may be about to beat again: look for a while.
            first = self._silent.setdefault((job.job_id, job.epoch), time.monotonic())
            if time.monotonic() - first < _SILENCE_S:
                return
            if job.owner.here and job.mode is Mode.SERVICE:
                self._kill(job, f"{job.owner} gave no sign of life")
            elif not job.owner.here:
                self._bury(job, f"{job.owner} gave no sign of life")
        else:
            self._silent.pop((job.job_id, job.epoch), None)

    def _bury(self, job: Held, how: str) -> None:
        if job.owner.here and job.mode is Mode.SERVICE and self._end_workers(job):
            return  # they are gone at the next tick, and nobody is told before
        state = self._leases.bury(job, how)
        if state is not None:
            _LOG.info("job %s: %s; it is %s now", job.job_id, how, state.value)

    def _end_workers(self, job: Held) -> bool:
        """Kill the processes that a driver of this host left behind; return True if there were any.

        Its own Ray, and the appliers of that, know themselves by the claim in their environment.
        """
        left = end_marked(DRIVER_CLAIM, f"{job.job_id}:{job.epoch}")
        if left:
            _LOG.info("job %s: killed %s processes that its driver left", job.job_id, left)
        return left > 0

    def _kill(self, job: Held, how: str) -> None:
        """Kill a driver of this host with its whole group; it is buried when it is gone.

        A claim that another scheduler has not made a driver of is taken from it instead.
        """
        if not job.owner.here:
            return
        if self._is_scheduler(job):
            self._bury(job, f"{job.owner} started no driver")
            return
        _LOG.warning("job %s: %s; killing it", job.job_id, how)
        try:
            os.killpg(job.owner.pid, signal.SIGKILL)
        except ProcessLookupError:
            _LOG.info("it is gone already")

    @staticmethod
    def _is_scheduler(job: Held) -> bool:
        """Whether a claim's owner is certainly not its driver, which has the claim's mark."""
        claims = marked(DRIVER_CLAIM, f"{job.job_id}:{job.epoch}")
        return sys.platform.startswith("linux") and job.owner.pid not in claims

    def _start(self, claimed: QueueClaim) -> None:
        log = JobLog(self._settings.logs / claimed.job_id, DRIVER)
        mark = {DRIVER_CLAIM: f"{claimed.job_id}:{claimed.epoch}"}
        with log.open() as out:
            child = subprocess.Popen(
                [sys.executable, "-m", "geneva.service.driver"],
                stdin=subprocess.PIPE,
                stdout=out,
                stderr=out,
                env=for_drivers(os.environ, self._settings.secrets) | mark,
                start_new_session=True,  # no signal to the service's group reaches it
            )
        assert child.stdin is not None
        allowed = self._settings.databases.allowed
        Orders(self._database.url, str(log.folder), allowed).send(child.stdin)
        self._children.append(child)
        driver: ProcessId = identify(child.pid)
        self._leases.started(claimed, driver)
        _LOG.info("job %s: started %s as driver %s", claimed.job_id, driver, claimed.epoch)
