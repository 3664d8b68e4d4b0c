"""The record of a flow while it is carried out: in memory, and besides in a database of jobs."""

from __future__ import annotations

import threading
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime
from pathlib import Path
from tempfile import mkdtemp
from typing import TYPE_CHECKING, Any
from uuid import uuid4

from geneva.engine.control import Control, Wanted
from geneva.engine.process import this_process
from geneva.engine.reporter import Observer
from geneva.flow.match import Record
from geneva.jobs.flows.job_process import JobProcess, Report
from geneva.jobs.records import Membership, Submission
from geneva.model.types import JobState, Progress

if TYPE_CHECKING:
    from geneva.jobs.store.flow_runs import FlowRuns
    from geneva.jobs.store.store import Store

LEASE_S = 30.0


@dataclass(frozen=True, slots=True)
class StepResult:
    """The end of one operation.

    Attributes
    ----------
    job_id
        Its job, if it became one.
    inputs
        Its inputs, by name.
    """

    operation: str
    state: JobState
    reason: str = ""
    job_id: str = ""
    inputs: Mapping[str, Any] = field(default_factory=dict)
    outputs: Mapping[str, Any] = field(default_factory=dict)
    metrics: Mapping[str, float] = field(default_factory=dict)
    artifacts: Mapping[str, str] = field(default_factory=dict)
    seconds: float = 0.0


class FlowRecord:
    """The record of one run in memory; `StoredFlowRecord` keeps it in a database as well.

    Attributes
    ----------
    folder
        Where its jobs have their folders.
    kept
        The operations that an earlier process finished.
    """

    def __init__(self, name: str, folder: Path | None = None) -> None:
        self.run_id, self.name = uuid4().hex[:12], name
        self._folder = folder
        self.kept: Mapping[str, StepResult] = {}
        self.created_at = datetime.now(UTC)

    @property
    def folder(self) -> Path:
        """The folder of the run, made when it is first needed."""
        if self._folder is None:
            self._folder = Path(mkdtemp(prefix="geneva-flow-"))
        return self._folder

    def member(self, operation: str, inputs: Mapping[str, Any]) -> Membership:
        """Return the place of an operation's job in the run."""
        return Membership(self.run_id, operation, inputs)

    def carry_out(self, job: JobProcess, member: Membership, control: Control) -> Report:
        """Run a job's process to its end, under a record if there is one."""
        return _ProcessCall(job, control).run(lambda _: None)

    def ended(self, member: Membership, state: JobState, reason: str) -> None:
        """Take in that an operation ended without having run."""

    def measured(self, job_id: str, metrics: Mapping[str, float]) -> None:
        """Take in the metrics of a backfill's job, as SQL gave them over its table."""

    def past(self) -> Sequence[Record]:
        """Return past jobs for joins."""
        return ()

    def wanted(self) -> Wanted:
        """Return what is wanted of the run; called twice a second at most."""
        return Wanted.RUN

    def finish(self, state: JobState, reason: str) -> None:
        """Take in the end of the run."""


class StoredFlowRecord(FlowRecord):
    """The record of a run in a database of jobs, where each operation that runs is a job."""

    def __init__(
        self,
        store: Store,
        name: str,
        db: str,
        spec: object,
        digest: str,
        folder: Path | None,
        *,
        new: bool = False,
    ) -> None:
        from geneva.jobs.store.flow_runs import FlowRuns

        super().__init__(name, folder)
        self._store = store
        self._runs: FlowRuns = FlowRuns(store, this_process(), LEASE_S)
        self._asked = Submission(db, "", (), name=name, cause="called")
        begun = self._runs.begin(self._asked, spec, digest, new=new)
        self.run_id, self.continued = begun.run_id, begun.continued
        if folder is not None:
            self._folder = folder / begun.run_id
        self.kept = {
            path: StepResult(
                path,
                job.state,
                job.reason,
                job.id,
                job.params,
                job.outputs,
                job.metrics,
                {a["name"]: a["path"] for a in job.artifacts},
            )
            for path, job in begun.kept.items()
        }

    def carry_out(self, job: JobProcess, member: Membership, control: Control) -> Report:
        """Run a job's process to its end, as a job of the run under a lease of its own."""
        from geneva.jobs.store.store_recorder import StoreRecorder

        claim = self._store.begin_direct(
            self._asked, "", (), this_process(), LEASE_S, control.job_id, member
        )
        recorder = StoreRecorder(self._store, claim)

        def ended(report: Report) -> tuple[JobState, str, dict[str, Any]]:
            artifacts = [{"name": n, "path": p} for n, p in report.artifacts.items()]
            facts = {"outputs": dict(report.outputs), "metrics": dict(report.metrics)}
            return JobState.SUCCEEDED, "", {**facts, "artifacts": artifacts}

        return recorder.carry_out_as(ended, control, lambda: _ProcessCall(job, control))

    def ended(self, member: Membership, state: JobState, reason: str) -> None:
        """Record an operation that ended without having run."""
        self._runs.add(self._asked, member, state, reason)

    def measured(self, job_id: str, metrics: Mapping[str, float]) -> None:
        """Add metrics to those of a job."""
        self._runs.measured(job_id, metrics)

    def past(self) -> Sequence[Record]:
        """Return all jobs of the database."""
        return self._runs.past()

    def wanted(self) -> Wanted:
        """Renew the lease of the run, and return what is wanted of it."""
        return self._runs.renew(self.run_id)

    def finish(self, state: JobState, reason: str) -> None:
        """Record the end of the run."""
        self._runs.finish(self.run_id, state, reason)


class _ProcessCall:
    """A job's process as a call that can be steered: a cancel ends it."""

    def __init__(self, job: JobProcess, control: Control) -> None:
        self._job, self.control = job, control

    def run(self, observe: Observer) -> Report:
        observe(Progress(self.control.job_id, (), JobState.RUNNING))
        over = threading.Event()
        watcher = threading.Thread(target=self._watch, args=(over.is_set,), daemon=True)
        watcher.start()
        try:
            return self._job.run()
        finally:
            over.set()

    def _watch(self, over: Callable[[], bool]) -> None:
        while not over():
            if self.control.wanted is Wanted.CANCEL:
                self._job.cancel()
                return
            self.control.sleep(0.2)
