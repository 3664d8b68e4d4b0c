"""Calls of `Table.backfill`: carried out here, recorded while they are, or left to a service."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import fields, replace
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

from geneva.appliers.executor import Executor
from geneva.backfill import backfill
from geneva.column.binding import groups_in
from geneva.engine.control import Control, Wanted
from geneva.engine.plan.force import ForceToken
from geneva.engine.plan.report import Plan
from geneva.engine.presence import Presence
from geneva.engine.preview import plan
from geneva.engine.process import this_process
from geneva.engine.reporter import Observer
from geneva.engine.request import Request, check, prepare
from geneva.engine.sharing import ColumnTurn, Sharing
from geneva.errors import (
    ColumnError,
    GenevaError,
    JobCancelledError,
    SettingError,
    TableChangedError,
)
from geneva.extras import installed
from geneva.jobs.records import JobRecord, Membership, RunRecord, Submission
from geneva.jobs.run_outcome import result_of
from geneva.model.result import BackfillResult, WindowResult, combined
from geneva.model.types import JobState, Options, Progress
from geneva.storage.lance import Snapshot, TableStorage
from geneva.storage.objects import storage_errors
from geneva.storage.secrets import without_secrets

if TYPE_CHECKING:
    from geneva.jobs.store.client import Client
    from geneva.jobs.store.store import Store

_LOOK_S = 0.3


def plan_call(
    storage: TableStorage,
    columns: str | Sequence[str],
    options: Options,
    params: dict[str, Any],
) -> Plan:
    """Plan the columns of a call one by one; return the plan of the first that has work."""
    names = groups_in(storage, storage.open(), columns)
    plans = [plan(storage, name, options, params) for name in names]
    return next((p for p in plans if p.to_compute), plans[0])


def check_call(
    storage: TableStorage,
    columns: str | Sequence[str],
    options: Options,
    params: Mapping[str, Any],
) -> tuple[str, ...]:
    """Check a call without loading a UDF; return all columns that it fills."""
    names = groups_in(storage, storage.open(), columns)
    return tuple(c for n in names for c in check(storage, n, options, params).columns)


class Backfill:
    """A call that this process carries out, checked and not yet begun.

    Parameters
    ----------
    names
        One column of each group, in dependency order.
    refresh
        Called at the end: versions were made.
    """

    def __init__(
        self,
        storage: TableStorage,
        snapshot: Snapshot,
        names: tuple[str, ...],
        options: Options,
        params: dict[str, Any],
        executor: Executor,
        control: Control,
        refresh: Callable[[], None],
    ) -> None:
        self.storage, self.names, self.control = storage, names, control
        self._options, self._params = options, params
        self._executor, self._refresh = executor, refresh
        self._presence = Presence(storage.objects)
        # All requests are checked before the first row is computed.
        self._requests = [self._request(n, snapshot) for n in names]
        self.fills = tuple(c for r in self._requests for c in r.target.columns)

    def _request(self, name: str, snapshot: Snapshot) -> Request:
        return prepare(self.storage, snapshot, name, self._options, self._params or None)

    def _request_again(self, name: str) -> Request:
        """Check a later column again: it may have been dropped or bound anew meanwhile."""
        try:
            return self.storage.on_latest(lambda latest: self._request(name, latest))
        except ColumnError as error:
            raise TableChangedError(
                f"column {name!r} was changed while the columns before it were computed: {error}"
            ) from error

    def _turns(self) -> Iterator[ColumnTurn]:
        """Yield one column after the other; they may follow each other's reads."""
        sharing = Sharing(self.storage, self._presence, self.control.job_id)
        request, *later = self._requests
        yield sharing.turn(request, later)
        for k, name in enumerate(self.names[1:], 1):
            request = self._request_again(name)
            later = []
            for other in self.names[k + 1 :]:
                with suppress(GenevaError, OSError):  # it says so itself when its turn comes
                    later.append(self._request(other, self.storage.open()))
            yield sharing.turn(request, later)

    def run(self, observe: Observer) -> BackfillResult:
        """Compute one column after the other."""
        results: list[BackfillResult] = []
        try:
            with storage_errors(self.storage.uri):
                self._forget_cancelled()
                for turn in self._turns():
                    results.append(
                        backfill(self.storage, turn, self._executor, self.control, observe)
                    )
        except BaseException as error:
            with suppress(Exception):  # of a table that is gone: it must not hide why the job ended
                self._forget(error)
            with suppress(Exception):
                self._refresh()
            if results and isinstance(error, KeyboardInterrupt | JobCancelledError):
                raise self._stopped(error, results) from None
            raise
        finally:
            self._presence.end()
        self._refresh()
        result = combined(results)
        if result.state is not self.control.progress.state:  # a column before the last had failures
            self.control.report(replace(self.control.progress, state=result.state))
        return result

    def _stopped(self, error: BaseException, results: list[BackfillResult]) -> JobCancelledError:
        """Return the error of a call that was stopped behind its first column.

        The column that it was stopped in tells of its own rows only, and between two columns nobody
        does; the bar shows those of every column.
        """
        complete = combined(results)
        before = f"{complete.rows_computed:,} rows of {', '.join(complete.columns)!r}"
        if not isinstance(error, KeyboardInterrupt):
            return JobCancelledError(f"{error}; before that, {before}")
        self.control.report(replace(self.control.progress, state=JobState.CANCELLED))
        return JobCancelledError(
            f"backfill of {', '.join(self.names)!r} was interrupted after {before}; "
            "the same command continues there"
        )

    def _forget(self, error: BaseException) -> None:
        """Let forced runs begin anew if a person ended this one; whatever else did, they go on."""
        interrupted = isinstance(error, KeyboardInterrupt)
        cancelled = isinstance(error, JobCancelledError) and self.control.given_up
        for token in self._tokens() if interrupted or cancelled else ():
            token.end()

    def _forget_cancelled(self) -> None:
        """End forced runs whose job was cancelled when no process of it was there to do so."""
        for token in self._tokens():
            if self.control.recorder.was_cancelled(token.job_id):
                token.end()

    def _tokens(self) -> list[ForceToken]:
        forced = [r for r in self._requests if r.options.force]
        return [ForceToken(self.storage, r.target, r.where, r.options) for r in forced]


class RecordedBackfill:
    """A call that is carried out here and written down in a database."""

    def __init__(
        self, store: Store, submission: Submission, call: Backfill, member: Membership | None
    ) -> None:
        self._store, self._submission, self._call, self._member = store, submission, call, member
        self.names, self.control = call.names, call.control

    def run(self, observe: Observer) -> BackfillResult:
        """Carry it out under a lease, as a driver of the service does."""
        from geneva.jobs.store.store_recorder import LEASE_S, StoreRecorder

        call, control = self._call, self.control
        uri, me = absolute(call.storage.uri), this_process()
        submission = _kept(self._submission)
        claim = self._store.begin_direct(
            submission, uri, call.fills, me, LEASE_S, control.job_id, self._member
        )
        return StoreRecorder(self._store, claim).carry_out(control, lambda: call, observe)


def _kept(submission: Submission) -> Submission:
    """Return the submission as it is recorded: without secrets, an executor object by its name."""
    kept = {
        k: v if k != "executor" or isinstance(v, str) else type(v).__name__
        for k, v in submission.arguments.items()
    }
    ray = without_secrets(submission.ray, by_name=True)
    return replace(submission, arguments=without_secrets(kept), ray=ray)


class SubmittedBackfill:
    """A call that a service carries out; it goes on when its caller leaves."""

    def __init__(self, client: Client, submission: Submission) -> None:
        executor = submission.arguments.get("executor")
        if executor not in (None, "ray", "local"):
            raise SettingError("an executor of one's own cannot be sent to a service")
        self._client, self._run = client, client.submit(submission)
        self.names = submission.columns
        self.control = Control(self._run.id, submission.columns, None)

    def run(self, observe: Observer) -> BackfillResult:
        """Wait for the end; show progress and pass on pause, resume and cancel."""
        try:
            return self._wait(observe)
        except KeyboardInterrupt:
            run, url = self._run.id, self._client.url
            raise KeyboardInterrupt(
                f"run {run} goes on in the service at {url}; `geneva runs watch {run} --url {url}` "
                f"follows it, `geneva runs cancel {run} --url {url}` ends it"
            ) from None

    def _wait(self, observe: Observer) -> BackfillResult:
        order = Wanted.RUN
        while True:
            if self.control.wanted is not order:
                order = self.control.wanted
                self._client.want(self._run.id, order)
            run = self._client.run(self._run.id)
            job = run.jobs[-1]
            progress = _progress(job, run)
            self.control.report(progress)
            observe(progress)
            if run.state.ended:
                return result_of(job, run.id, self._windows(job))
            time.sleep(_LOOK_S)

    def _windows(self, job: JobRecord) -> tuple[WindowResult, ...]:
        from geneva.jobs.store.tables import windows_of

        if not job.arguments.get("windows"):
            return ()
        names = WindowResult.__dataclass_fields__
        return tuple(
            WindowResult(**{n: getattr(window, n) for n in names})
            for window in windows_of(self._client, job.id)
        )


def _progress(job: JobRecord, run: RunRecord) -> Progress:
    same = {f.name for f in fields(Progress)} & {f.name for f in fields(JobRecord)}
    facts = {name: getattr(job, name) for name in same}
    return Progress(job_id=run.id, rate=job.rows_per_s, **facts)


class JobsPlace:
    """Where the jobs of a connection are recorded.

    Parameters
    ----------
    url
        A service, ``http://...``, which carries them out; or a database, ``sqlite:///...`` or
        ``postgresql://...``, and the calling process does.
    """

    def __init__(self, url: str, member: Membership | None = None) -> None:
        self.url, self._member = url, member

    def within(self, member: Membership) -> JobsPlace:
        """Return the same place for a call that is an operation of a flow."""
        place = JobsPlace(self.url, member)
        place.__dict__["store"] = self.store
        return place

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
            from geneva.jobs.store.opening import open_store

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
        call: Callable[[], Backfill],
    ) -> RecordedBackfill | SubmittedBackfill:
        """Return a call that is recorded, or was submitted; ``call`` would carry it out here."""
        folder, _, file = uri.rstrip("/").rpartition("/")
        submission = Submission(
            db=absolute(folder),
            table=file.removesuffix(".lance"),
            columns=(columns,) if isinstance(columns, str) else tuple(columns),
            arguments={k: v for k, v in arguments.items() if k != "progress"},
            ray=ray,
            cause="called",
        )
        if self.remote:
            return SubmittedBackfill(self.client, submission)
        return RecordedBackfill(self.store, submission, call(), self._member)


def absolute(uri: str) -> str:
    """Return a URI that means the same in another process."""
    return uri if "://" in uri else str(Path(uri).resolve())
