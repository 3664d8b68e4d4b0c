"""The control of a running job: people's wishes in, its reports out; the two never mix."""

from __future__ import annotations

import threading
import time
from enum import StrEnum

from geneva.engine.recorder import Recorder
from geneva.model.types import JobState, Progress


class Wanted(StrEnum):
    """A wish for a running job."""

    RUN = "run"
    PAUSE = "pause"
    CANCEL = "cancel"


VERBS = {"pause": Wanted.PAUSE, "resume": Wanted.RUN, "cancel": Wanted.CANCEL}
"""The verbs by which a person says what is wanted of a job, at every door."""


class Control:
    """Shared by a job's driver and whoever watches or steers it; thread-safe.

    Parameters
    ----------
    timeout_s
        Seconds after which the job is stopped, or ``None``.
    recorder
        What the driver tells of its work; by default nobody listens.
    """

    def __init__(
        self,
        job_id: str,
        columns: tuple[str, ...],
        timeout_s: float | None,
        recorder: Recorder | None = None,
    ) -> None:
        self.job_id = job_id
        self.recorder = recorder or Recorder()
        self._wanted = Wanted.RUN
        self._given_up = False
        self._changed = threading.Condition()
        self._progress = Progress(job_id, columns, JobState.PENDING)
        self._deadline = None if timeout_s is None else time.monotonic() + timeout_s

    @property
    def wanted(self) -> Wanted:
        """The present wish."""
        return self._wanted

    @property
    def given_up(self) -> bool:
        """Whether somebody cancelled the job, so that its process is not just to let go of it."""
        return self._given_up

    def let_go(self) -> None:
        """Stop this process's part of the job, as a cancel does: it goes on later, or elsewhere."""
        with self._changed:
            self._wanted = Wanted.CANCEL
            self._changed.notify_all()

    def want(self, wanted: Wanted) -> None:
        """Ask for something; a cancelled job cannot be resumed."""
        with self._changed:
            self._given_up = self._given_up or wanted is Wanted.CANCEL
            if self._wanted is not Wanted.CANCEL:
                self._wanted = wanted
            self._changed.notify_all()

    @property
    def expired(self) -> bool:
        """Whether the job's time is up."""
        return self._deadline is not None and time.monotonic() > self._deadline

    @property
    def stopping(self) -> bool:
        """Whether something else than to run is wanted, or time is up."""
        return self._wanted is not Wanted.RUN or self.expired

    def sleep(self, seconds: float) -> None:
        """Block for so long, or until something else than to run is wanted, or time is up."""
        if self._deadline is not None:
            seconds = min(seconds, max(self._deadline - time.monotonic(), 0.0))
        with self._changed:
            self._changed.wait_for(lambda: self._wanted is not Wanted.RUN, seconds)

    def wait_while_paused(self) -> None:
        """Block until something else than a pause is wanted, or time is up."""
        with self._changed:
            while self._wanted is Wanted.PAUSE and not self.expired:
                self._changed.wait(0.5)

    @property
    def progress(self) -> Progress:
        """The latest report."""
        return self._progress

    def report(self, progress: Progress) -> None:
        """Replace the latest report."""
        self._progress = progress
