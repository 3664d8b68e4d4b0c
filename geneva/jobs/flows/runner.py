"""The run of a flow: decide, start, take in, until every operation has ended.

The main thread decides (`geneva.flow.decide`, the same function that a plan asks) and records; each
operation that may start has a thread of a pool, in which its backfill or its process runs.

1. Operations that an earlier process finished are known from the record, and not run again.
2. A decision to start is carried out at once; the inputs are resolved in that moment, and what
   they cannot be made of fails the operation, not the run.
3. The end of an operation is in the record before anything is decided on it.
4. An interrupt, or a cancel by another process, cancels what is live; what it computed is kept.
"""

from __future__ import annotations

import logging
import queue
import time
from collections.abc import Callable, Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field, replace
from datetime import date
from pathlib import Path
from typing import Any, Protocol, assert_never
from uuid import uuid4

from geneva.engine.control import Control, Wanted
from geneva.errors import GenevaError, JobCancelledError, ServiceError
from geneva.flow.compiled import Flow, Place
from geneva.flow.decide import Cancel, End, Facts, Start, Wait, decide, state_of
from geneva.flow.graph import Node, paths
from geneva.flow.match import Record
from geneva.flow.parameters import StepFacts, backfill_arguments, condition, values_of
from geneva.flow.spec import BackfillRun, JobRun
from geneva.jobs.flows.flow_record import FlowRecord, StepResult
from geneva.jobs.flows.job_process import JobProcess, Report
from geneva.jobs.records import Membership
from geneva.jobs.run_outcome import result_columns, result_state
from geneva.model.result import BackfillResult
from geneva.model.types import JobState

AT_ONCE = 8
_LOG = logging.getLogger("geneva.jobs")
_LOOK_S = 0.5


class Running(Protocol):
    """A backfill that was begun."""

    @property
    def id(self) -> str:
        """Its job's id."""

    def cancel(self) -> None:
        """Cancel it."""

    def wait(self) -> BackfillResult:
        """Wait for its end."""


class Tables(Protocol):
    """The tables of a database, as a flow uses them."""

    def backfill(
        self, table: str, columns: tuple[str, ...], arguments: Mapping[str, Any], of: Membership
    ) -> Running:
        """Begin a backfill as a job of the flow."""

    def measure(self, table: str, metrics: Mapping[str, str]) -> dict[str, float]:
        """Evaluate SQL over a table, by name."""


@dataclass(frozen=True)
class FlowResult:
    """The result of a flow.

    Attributes
    ----------
    state
        SUCCEEDED, PARTIAL, FAILED, CANCELLED or SKIPPED, by the states of its operations.
    operations
        Each operation that ended, in the order of the document.
    continued
        How many of them an earlier call had finished.
    """

    run_id: str
    name: str
    state: JobState
    reason: str = ""
    operations: tuple[StepResult, ...] = ()
    continued: int = 0
    seconds: float = 0.0

    def __getitem__(self, operation: str) -> StepResult:
        for step in self.operations:
            if step.operation == operation:
                return step
        raise KeyError(operation)

    def __str__(self) -> str:
        width = max((len(s.operation) for s in self.operations), default=0)
        lines = [f"flow {self.name or self.run_id}: {self.state.value} in {self.seconds:,.1f} s"]
        if self.continued:
            lines.append(f"  continued: {self.continued:,} operations had been finished before")
        for step in self.operations:
            rows = step.outputs.get("rows_computed")
            facts = [f"{rows:,} rows"] if isinstance(rows, int) else []
            facts += [f"{name}={value:g}" for name, value in _told(step.metrics)]
            facts += [step.reason] if step.reason else []
            text = f"  {step.operation:{width}}  {step.state.value:15} {'; '.join(facts)}"
            lines.append(text.rstrip())
        return "\n".join(lines)


def _told(metrics: Mapping[str, float]) -> list[tuple[str, float]]:
    hidden = ("seconds", "rows_per_s", "appliers", "peak_")
    return [(n, v) for n, v in metrics.items() if not n.startswith(hidden)]


@dataclass(slots=True)
class _Live:
    """An operation that runs: the doors to cancel it, once they are there."""

    cancel: Callable[[], None] | None = None
    cancelled: bool = False
    recorded: bool = False  # as a job, which records its own end


@dataclass(slots=True)
class _Board:
    """The states of all operations, and the results of those that ended."""

    states: dict[str, JobState] = field(default_factory=dict)
    results: dict[str, StepResult] = field(default_factory=dict)
    live: dict[str, _Live] = field(default_factory=dict)


class FlowRunner:
    """Carries one flow out.

    Parameters
    ----------
    observe
        Is given a line of text for each start and end.
    """

    def __init__(
        self,
        flow: Flow,
        tables: Tables,
        record: FlowRecord,
        project: str,
        observe: Callable[[str], None] = lambda _: None,
        at_once: int = AT_ONCE,
    ) -> None:
        self._flow, self._tables, self._record = flow, tables, record
        self._project, self._observe, self._at_once = project, observe, at_once
        self._board = _Board()
        self._ends: queue.SimpleQueue[StepResult] = queue.SimpleQueue()
        self._known = StepFacts(self._record_of, self._past, self._globals_of)
        self._nodes = paths(flow.graph)
        self._cancelled = False
        self._began = time.monotonic()
        for path, result in record.kept.items():
            # Killed between a backfill's end and its metrics, it is run again: it finds only those.
            place = flow.steps.get(path)
            if place is not None and place.operation.metrics.keys() <= result.metrics.keys():
                self._board.states[path] = result.state
                self._board.results[path] = result

    def run(self) -> FlowResult:
        """Run the flow to its end.

        Raises
        ------
        KeyboardInterrupt
            It was interrupted; what is live was cancelled, and the same call goes on there.
        """
        with ThreadPoolExecutor(self._at_once, "geneva-flow") as pool:
            try:
                self._loop(pool)
            except BaseException as error:
                self._cancel_all()
                while self._board.live:
                    self._take(self._ends.get())
                if isinstance(error, KeyboardInterrupt):
                    raise KeyboardInterrupt(
                        f"flow {self._flow.name!r} was interrupted; the same call goes on there"
                    ) from None
                raise
        return self._finished()

    def _loop(self, pool: ThreadPoolExecutor) -> None:
        looked_s = 0.0
        while True:
            self._decide(pool)
            if not self._board.live:
                return
            try:
                self._take(self._ends.get(timeout=_LOOK_S))
                while not self._ends.empty():
                    self._take(self._ends.get())
            except queue.Empty:
                pass
            if time.monotonic() - looked_s > _LOOK_S:
                looked_s = time.monotonic()
                if self._wanted() is Wanted.CANCEL and not self._cancelled:
                    self._cancelled = True
                    self._cancel_all()

    def _wanted(self) -> Wanted:
        """Return what is wanted of the run; a database that is away for a moment ends nothing."""
        try:
            return self._record.wanted()
        except ServiceError as error:
            _LOG.warning("the record of flow run %s is late: %s", self._record.run_id, error)
            return Wanted.RUN

    def _finished(self) -> FlowResult:
        state = state_of(self._flow.graph, self._facts())
        failed = [p for p, r in self._board.results.items() if r.state is JobState.FAILED]
        reason = "" if not failed else f"{failed[0]}: {self._board.results[failed[0]].reason}"
        self._record.finish(state, reason)
        ordered = [self._board.results[p] for p in self._flow.steps if p in self._board.results]
        return FlowResult(
            self._record.run_id,
            self._flow.name,
            state,
            reason,
            tuple(ordered),
            len(self._record.kept),
            time.monotonic() - self._began,
        )

    # --- decisions ----------------------------------------------------------------------

    def _facts(self) -> Facts:
        return Facts(
            self._board.states,
            {path: r.metrics for path, r in self._board.results.items()},
            self._holds,
            frozenset({""}) if self._cancelled else frozenset(),
        )

    def _holds(self, path: str, node: Node) -> bool:
        place = self._flow.steps.get(path) or self._flow.groups[path]
        return condition(place, self._known)

    def _decide(self, pool: ThreadPoolExecutor) -> None:
        for decision in decide(self._flow.graph, self._facts()):
            match decision:
                case Start(path):
                    self._board.states[path] = JobState.RUNNING
                    if path in self._flow.steps:
                        self._start(path, pool)
                case End(path, state, reason):
                    self._end(path, state, reason)
                case Cancel(path, _):
                    self._cancel(path)
                case Wait():
                    pass
                case _:
                    assert_never(decision)

    def _end(self, path: str, state: JobState, reason: str) -> None:
        self._board.states[path] = state
        if path in self._flow.steps:
            result = StepResult(path, state, reason)
            self._record.ended(self._record.member(path, {}), state, reason)
            self._board.results[path] = result
            self._observe(f"{path}: {state.value} ({reason})")

    def _cancel(self, path: str) -> None:
        live = self._board.live.get(path)
        if live is not None and not live.cancelled:
            live.cancelled = True
            self._board.states[path] = JobState.CANCELLING
            if live.cancel is not None:
                live.cancel()

    def _cancel_all(self) -> None:
        for path in list(self._board.live):
            self._cancel(path)

    # --- one operation ------------------------------------------------------------------

    def _start(self, path: str, pool: ThreadPoolExecutor) -> None:
        place = self._flow.steps[path]
        self._board.live[path] = live = _Live()
        label = f" ({place.label})" if place.label else ""
        self._observe(f"{path}{label}: started")
        pool.submit(self._carry_out, place, live)

    def _carry_out(self, place: Place, live: _Live) -> None:
        """Carry an operation out in a thread; its end is told to the main thread."""
        started, inputs = time.monotonic(), dict[str, Any]()
        try:
            values = values_of(place, self._known)
            inputs = {name: _plain(value) for name, value in values.inputs.items()}
            member = self._record.member(place.path, inputs)
            run = place.component.run
            if isinstance(run, BackfillRun):
                result = self._backfill(place, run, values.names, member, live)
            else:
                assert isinstance(run, JobRun)
                result = self._process(place, run, values.inputs, values.names, member, live)
        except JobCancelledError as error:
            result = StepResult(place.path, JobState.CANCELLED, str(error))
        except BaseException as error:
            told = isinstance(error, GenevaError)
            text = str(error) if told else f"{type(error).__name__}: {error}"
            result = StepResult(place.path, JobState.FAILED, text)
        result = replace(result, inputs=inputs, seconds=time.monotonic() - started)
        try:
            if not live.recorded:
                member = self._record.member(place.path, inputs)
                self._record.ended(member, result.state, result.reason)
        except Exception as error:  # the main thread waits for the end, whatever the record says
            _LOG.warning("the record of operation %s is late: %s", place.path, error)
        finally:
            self._ends.put(result)

    def _take(self, result: StepResult) -> None:
        self._board.live.pop(result.operation, None)
        self._board.states[result.operation] = result.state
        self._board.results[result.operation] = result
        reason = f" ({result.reason})" if result.reason else ""
        self._observe(f"{result.operation}: {result.state.value}{reason}")

    def _backfill(
        self,
        place: Place,
        run: BackfillRun,
        names: Mapping[str, object],
        member: Membership,
        live: _Live,
    ) -> StepResult:
        table, columns, arguments = backfill_arguments(place, run, names)
        if live.cancelled:
            raise JobCancelledError("cancelled before it began")
        job = self._tables.backfill(table, columns, arguments, member)
        live.recorded, live.cancel = True, job.cancel
        if live.cancelled:
            job.cancel()
        result = job.wait()
        facts = result_columns(result, 0)
        metrics = {n: float(v) for n, v in facts["metrics"].items()}
        if place.operation.metrics:
            measured = self._tables.measure(table, place.operation.metrics)
            metrics |= measured
            self._record.measured(job.id, measured)
        state, reason = result_state(result)
        return StepResult(place.path, state, reason, job.id, {}, facts["outputs"], metrics)

    def _process(
        self,
        place: Place,
        run: JobRun,
        inputs: Mapping[str, object],
        names: Mapping[str, object],
        member: Membership,
        live: _Live,
    ) -> StepResult:
        if live.cancelled:
            raise JobCancelledError("cancelled before it began")
        termination = place.operation.termination or place.component.termination
        folder = self._folder_of(place.path)
        env = dict(place.environment.env) | {"GENEVA_RUN": self._record.run_id}
        retries = 0 if termination is None else termination.max_retries
        timeout = None if termination is None else termination.timeout
        job = JobProcess(run, inputs, names, folder, env, retries, timeout)
        control = Control(uuid4().hex[:12], (), None)
        live.recorded, live.cancel = True, lambda: control.want(Wanted.CANCEL)
        report: Report = self._record.carry_out(job, member, control)
        return StepResult(
            place.path,
            JobState.SUCCEEDED,
            "",
            control.job_id,
            {},
            report.outputs,
            report.metrics,
            report.artifacts,
        )

    # --- what is known ------------------------------------------------------------------

    def _folder_of(self, path: str) -> Path:
        return self._record.folder / path.replace("/", "_")

    def _record_of(self, path: str) -> Record | None:
        result = self._board.results.get(path)
        return None if result is None else _searched(result, self._globals_of(path))

    def _past(self) -> list[Record]:
        here = {r.job_id for r in self._board.results.values()}
        past = [job for job in self._record.past() if job["id"] not in here]
        own = [
            _searched(result, self._globals_of(path))
            for path, result in self._board.results.items()
            if result.job_id
        ]
        return [*past, *own]

    def _globals_of(self, path: str) -> Mapping[str, object]:
        folder = str(self._folder_of(path)) if path else str(self._record.folder)
        return {
            "uuid": self._board.results[path].job_id if path in self._board.results else path,
            "name": path or self._flow.name,
            "run_uuid": self._record.run_id,
            "project_name": self._project,
            "created_at": self._record.created_at,
            "artifacts_path": folder,
            "outputs_path": f"{folder}/outputs",
        }


def _searched(result: StepResult, names: Mapping[str, object]) -> dict[str, Any]:
    """Return a result of this run as searches and references read it."""
    return {
        "id": result.job_id or result.operation,
        "name": result.operation,
        "kind": "backfill" if "rows_computed" in result.outputs else "job",
        "state": result.state.value,
        "created_at": names["created_at"],
        "run_id": names["run_uuid"],
        "project.name": names["project_name"],
        "inputs": result.inputs,
        "outputs": result.outputs,
        "metrics": result.metrics,
        "artifacts": result.artifacts,
        "globals": names,
    }


def _plain(value: object) -> object:
    """Return a value as JSON holds it."""
    if isinstance(value, date):
        return value.isoformat()
    if isinstance(value, Mapping):
        return {str(k): _plain(v) for k, v in value.items()}
    if isinstance(value, list | tuple):
        return [_plain(v) for v in value]
    return value if isinstance(value, bool | int | float | str | None) else str(value)
