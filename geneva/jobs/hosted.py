"""Calls of `backfill` that are recorded as jobs, or carried out by a service."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol

import pyarrow as pa

import geneva.errors
from geneva.engine.control import Control, Wanted
from geneva.engine.process import this_process
from geneva.engine.reporter import Observer
from geneva.errors import GenevaError, JobCancelledError, JobError, SettingError
from geneva.extras import installed
from geneva.jobs.backfills import Call
from geneva.jobs.page import Wish
from geneva.jobs.records import JobRecord, RunRecord, Submission
from geneva.model.result import BackfillResult
from geneva.model.types import JobState, Progress
from geneva.storage.secrets import without_secrets

if TYPE_CHECKING:
    from geneva.jobs.store.client import Client
    from geneva.jobs.store.store import Store
    from geneva.jobs.store.view import Jobs

_LOOK_S = 0.3


class HostedCall(Protocol):
    """A call of backfill that is a job somewhere."""

    @property
    def names(self) -> tuple[str, ...]:
        """The columns, as they are shown."""

    @property
    def control(self) -> Control:
        """What is wanted of it."""

    def run(self, observe: Observer) -> BackfillResult:
        """Carry it out, or wait for who does."""


class JobsPlace:
    """Where the jobs of a connection are recorded.

    Parameters
    ----------
    url
        A service, ``http://...``, which carries them out; or a database, ``sqlite:///...`` or
        ``postgresql://...``, and the calling process does.
    """

    def __init__(self, url: str) -> None:
        self.url = url

    @property
    def remote(self) -> bool:
        """Whether a service carries the jobs out."""
        return self.url.startswith(("http://", "https://"))

    @cached_property
    def client(self) -> Client:
        """The service."""
        with installed():
            from geneva.jobs.store.client import Client

            return Client(self.url)

    @cached_property
    def store(self) -> Store:
        """The database."""
        with installed():
            from geneva.jobs.store.place import open_store

            return open_store(self.url)

    @property
    def source(self) -> Client | Store:
        """Whichever of them it is."""
        return self.client if self.remote else self.store

    def host(
        self,
        uri: str,
        columns: str | Sequence[str],
        arguments: Mapping[str, Any],
        ray: Mapping[str, Any],
        call: Callable[[], Call],
    ) -> HostedCall:
        """Return a call that is recorded, or was submitted; ``call`` would carry it out here."""
        folder, _, file = uri.rstrip("/").rpartition("/")
        asked = Submission(
            db=_absolute(folder),
            table=file.removesuffix(".lance"),
            columns=(columns,) if isinstance(columns, str) else tuple(columns),
            arguments={k: v for k, v in arguments.items() if k != "progress"},
            ray=ray,
            cause="called",
        )
        if self.remote:
            return _Submitted(self.client, asked)
        return _Recorded(self.store, asked, call())


def _absolute(uri: str) -> str:
    """Return a URI that means the same in another process."""
    return uri if "://" in uri else str(Path(uri).resolve())


def jobs(place: JobsPlace | None, db: str, wish: Mapping[str, Any]) -> Jobs:
    """Return the runs that a connection records, those of its own database."""
    from geneva.jobs.store.view import Jobs

    return Jobs(_needed(place).source, Wish(**{"db": _absolute(db)} | dict(wish)))


def sql_jobs(place: JobsPlace | None, query: str) -> pa.Table:
    """Run SQL over what a connection records."""
    from geneva.jobs.store.tables import query as run

    return run(_needed(place).source, query)


def _needed(place: JobsPlace | None) -> JobsPlace:
    if place is None:
        raise SettingError(
            "no jobs are recorded: connect with jobs='sqlite:///file' or jobs='http://service'"
        )
    return place


class _Recorded:
    """A call that is carried out here and written down in a database."""

    def __init__(self, store: Store, asked: Submission, call: Call) -> None:
        self._store, self._asked, self._call = store, asked, call
        self.names, self.control = call.names, call.control

    def run(self, observe: Observer) -> BackfillResult:
        """Carry it out under a lease, as a driver of the service does."""
        from geneva.jobs.store.leases import Leases
        from geneva.jobs.store.outcome import (
            error_columns,
            error_state,
            result_columns,
            result_state,
        )
        from geneva.jobs.store.recorder import LEASE_S, StoreRecorder

        call, control = self._call, self.control
        uri, me = _absolute(call.storage.uri), this_process()
        asked = _kept(self._asked)
        claim = self._store.begin_direct(asked, uri, call.fills, me, LEASE_S, control.job_id)
        recorder = StoreRecorder(self._store, claim, pause_ends=False)
        control.recorder = recorder
        leases = Leases(self._store.database)

        def see(progress: Progress) -> None:
            recorder.observe(progress)
            observe(progress)

        recorder.start(control)
        try:
            try:
                result = call.run(see)
            finally:
                recorder.close()
        except BaseException as error:
            if not recorder.lost:
                facts = error_columns(error)
                reason = facts["error"].partition("\n")[0]
                leases.finish(claim, control.progress, error_state(error), reason, facts)
            raise
        state, reason = result_state(result)
        facts = result_columns(result, recorder.appliers)
        leases.finish(claim, control.progress, state, reason, facts)
        return result


def _kept(asked: Submission) -> Submission:
    """Return what is written down: no secret, and of an executor of one's own the name."""
    kept = {
        k: v if k != "executor" or isinstance(v, str) else type(v).__name__
        for k, v in asked.arguments.items()
    }
    ray = without_secrets(asked.ray, by_name=True)
    return replace(asked, arguments=without_secrets(kept), ray=ray)


class _Submitted:
    """A call that a service carries out; whoever waits for it may leave."""

    def __init__(self, client: Client, asked: Submission) -> None:
        executor = asked.arguments.get("executor")
        if executor not in (None, "ray", "local"):
            raise SettingError("an executor of one's own cannot be sent to a service")
        self._client, self._run = client, client.submit(asked)
        self.names = asked.columns
        self.control = Control(self._run.id, asked.columns, None)

    def run(self, observe: Observer) -> BackfillResult:
        """Wait for the end, showing progress and passing on what is wanted."""
        try:
            return self._wait(observe)
        except KeyboardInterrupt:
            run, url = self._run.id, self._client.url
            raise KeyboardInterrupt(
                f"run {run} goes on in the service at {url}; `geneva jobs watch {run} --url {url}` "
                f"follows it, `geneva jobs cancel {run} --url {url}` ends it"
            ) from None

    def _wait(self, observe: Observer) -> BackfillResult:
        asked = Wanted.RUN
        while True:
            if self.control.wanted is not asked:
                asked = self.control.wanted
                self._client.want(self._run.id, asked)
            run = self._client.run(self._run.id)
            job = run.jobs[-1]
            progress = _progress(job, run)
            self.control.report(progress)
            observe(progress)
            if run.state.ended:
                return _result(job, run)
            time.sleep(_LOOK_S)


def _progress(job: JobRecord, run: RunRecord) -> Progress:
    names: tuple[str, ...] = (
        "rows_total",
        "rows_computed",
        "rows_replayed",
        "rows_failed",
        "fragments_total",
        "total_estimated",
    )
    names += ("fragments_done", "fragments_committed", "appliers_ready", "appliers_wanted")
    counts = {n: getattr(job, n) for n in names}
    counts |= {"seconds": job.seconds, "rate": job.rows_per_s}
    return Progress(run.id, job.columns, job.state, job.reason, **counts)


def _result(job: JobRecord, run: RunRecord) -> BackfillResult:
    """Return what a service's job did, or raise what ended it."""
    match job.state:
        case JobState.SUCCEEDED | JobState.PARTIAL:
            known = BackfillResult.__dataclass_fields__
            facts = {k: v for k, v in job.outputs.items() if k in known}
            facts |= {k: tuple(facts.get(k) or ()) for k in ("columns", "versions", "notes")}
            stages = {
                k.removeprefix("seconds_"): v
                for k, v in job.metrics.items()
                if k.startswith("seconds_")
            }
            seconds = job.metrics.get("seconds", job.seconds)
            facts |= {"seconds": seconds, "stage_seconds": stages, "job_id": run.id}
            return BackfillResult(**facts, state=job.state)
        case JobState.CANCELLED:
            raise JobCancelledError(f"run {run.id} was cancelled: {job.reason}")
        case _:
            found = getattr(geneva.errors, job.error_type, None)
            known_error = isinstance(found, type) and issubclass(found, GenevaError)
            raise (found if known_error and found else JobError)(job.error or job.reason)
