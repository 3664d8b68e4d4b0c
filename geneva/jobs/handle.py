"""A handle on a backfill that runs in a thread of this process."""

from __future__ import annotations

import threading
from collections.abc import Callable
from datetime import timedelta

from geneva.engine.control import Control, Wanted
from geneva.model.result import BackfillResult
from geneva.model.types import JobState, Progress


class Job:
    """A backfill that runs in the background; it ends with this process (checkpoints stay)."""

    def __init__(self, control: Control, work: Callable[[], BackfillResult]) -> None:
        self._control = control
        self._work = work
        self._result: BackfillResult | None = None
        self._error: BaseException | None = None
        self._thread = threading.Thread(
            target=self._run, name=f"geneva-job-{control.job_id}", daemon=True
        )
        self._thread.start()

    def _run(self) -> None:
        try:
            self._result = self._work()
        except BaseException as error:  # handed to whoever waits
            self._error = error

    @property
    def id(self) -> str:
        """The job's id."""
        return self._control.job_id

    @property
    def state(self) -> JobState:
        """The job's state; never blocks."""
        return self._control.progress.state

    def progress(self) -> Progress:
        """Return rows, rate, fragments and appliers at this moment; never blocks."""
        return self._control.progress

    def done(self) -> bool:
        """Whether the job has ended, however it ended; never blocks."""
        return not self._thread.is_alive()

    def result(self, timeout: float | timedelta | None = None) -> BackfillResult:
        """Wait for the end and return the result, as `wait` does."""
        return self.wait(timeout)

    def wait(self, timeout: float | timedelta | None = None) -> BackfillResult:
        """Wait for the end and return the result.

        Parameters
        ----------
        timeout
            Seconds, or a timedelta; the job goes on when they run out.

        Raises
        ------
        TimeoutError
            It has not ended in time.
        GenevaError
            Whatever ended the job.
        """
        if isinstance(timeout, timedelta):
            timeout = timeout.total_seconds()
        self._thread.join(timeout)
        if self._thread.is_alive():
            raise TimeoutError(f"job {self.id} is still {self.state.value} after {timeout} s")
        if self._error is not None:
            raise self._error
        assert self._result is not None
        return self._result

    def cancel(self) -> None:
        """Stop the job: finished fragments are committed, checkpoints are kept.

        A forced run ends with it: the same call begins another one.
        """
        self._control.want(Wanted.CANCEL)

    def pause(self) -> None:
        """Stop at the next batch boundary and free the appliers until `resume`."""
        self._control.want(Wanted.PAUSE)

    def resume(self) -> None:
        """Go on where `pause` stopped."""
        self._control.want(Wanted.RUN)

    def __repr__(self) -> str:
        """Say which job this is and how it stands."""
        return f"<Job {self.id} {self.state.value}>"
