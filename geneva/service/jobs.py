"""``/api/v1/jobs``, ``/pools``, ``/auto`` and ``/failures``: look, steer one job, set caps."""

from __future__ import annotations

from typing import Annotated, Literal

from fastapi import APIRouter, Depends, Query, Response
from fastapi import Path as InPath
from fastapi.responses import PlainTextResponse

from geneva.engine.control import VERBS
from geneva.jobs.page import MAX_LIMIT, Page, Wish
from geneva.jobs.records import (
    FailureGroups,
    FailureRecord,
    FailureWish,
    JobRecord,
    LogPart,
    LogRecord,
    PoolRecord,
    RunRecord,
    StageRecord,
    TaskRecord,
    TaskState,
    WatchRecord,
    WindowRecord,
)
from geneva.jobs.store.watches import Watches
from geneva.model.result import WindowState
from geneva.model.types import JobState
from geneva.service.access import Operator, Viewer
from geneva.service.logs import JobLog, logs_of
from geneva.service.reads import read
from geneva.service.schemas import PoolChange, WindowChoice
from geneva.service.state import Places, Store

router = APIRouter()

_Limit = Annotated[int, Query(ge=1, le=MAX_LIMIT)]
_Cursor = Annotated[str | None, Query(max_length=500)]
_LOG_BYTES = 200_000
_LogBytes = Annotated[int, Query(ge=1, le=_LOG_BYTES)]
_LogName = Annotated[str, InPath(pattern=r"^(driver|applier-[0-9]{1,6})$")]


@router.get("/jobs", tags=["jobs"], dependencies=[Viewer])
@read
def jobs(
    store: Store,
    state: Annotated[list[JobState] | None, Query()] = None,
    db: str | None = None,
    table: str | None = None,
    sort: Literal["created", "-created", "priority", "-priority"] = "-created",
    limit: _Limit = 100,
    cursor: _Cursor = None,
) -> Page[JobRecord]:
    """List jobs, the newest first."""
    return store.jobs(Wish(tuple(state or ()), db, table, None, sort, limit, cursor))


@router.get("/jobs/{job_id}", tags=["jobs"], dependencies=[Viewer])
@read
def job(job_id: str, store: Store) -> JobRecord:
    """Show a job."""
    return store.job(job_id)


@router.post("/jobs/{job_id}/{verb}", tags=["jobs"], dependencies=[Operator])
def steer(job_id: str, verb: Literal["pause", "resume", "cancel"], store: Store) -> JobRecord:
    """Pause, resume or cancel one job of a run."""
    return store.want_job(job_id, VERBS[verb])


@router.get("/jobs/{job_id}/tasks", tags=["jobs"], dependencies=[Viewer])
@read
def tasks(
    job_id: str,
    store: Store,
    state: TaskState | None = None,
    limit: Annotated[int, Query(ge=1, le=10_000)] = MAX_LIMIT,
    cursor: _Cursor = None,
) -> Page[TaskRecord]:
    """List the fragments of a job, with their states and stage times."""
    return store.tasks(job_id, state, limit, cursor)


@router.get("/jobs/{job_id}/windows", tags=["jobs"], dependencies=[Viewer])
@read
def windows(
    job_id: str,
    store: Store,
    state: WindowState | None = None,
    limit: Annotated[int, Query(ge=1, le=10_000)] = MAX_LIMIT,
    cursor: _Cursor = None,
) -> Page[WindowRecord]:
    """List the windows of a job, in the order in which they open."""
    return store.windows(job_id, state, limit, cursor)


@router.post(
    "/jobs/{job_id}/windows/retry", tags=["jobs"], dependencies=[Operator], status_code=201
)
def retry_windows(
    job_id: str, chosen: WindowChoice, places: Places, response: Response
) -> RunRecord:
    """Queue a run of some windows of a job that has ended, by default of those that failed."""
    run = places.retry_windows(job_id, chosen.keys)
    response.headers["Location"] = f"/api/v1/runs/{run.id}"
    return run


@router.get("/jobs/{job_id}/failures", tags=["jobs"], dependencies=[Viewer])
@read
def failures(
    job_id: str, store: Store, limit: _Limit = 100, cursor: _Cursor = None
) -> Page[FailureRecord]:
    """List the rows on which the UDF failed."""
    return store.failures(job_id, limit, cursor)


@router.get("/jobs/{job_id}/stages", tags=["jobs"], dependencies=[Viewer])
@read
def stages(job_id: str, store: Store) -> list[StageRecord]:
    """Add up the fragments of each column of a job: how many in each state, and stage times."""
    return store.stages(job_id)


@router.get("/jobs/{job_id}/logs", tags=["logs"], dependencies=[Viewer])
def logs(job_id: str, store: Store, places: Places) -> list[LogRecord]:
    """List the logs of a job that are on this host: the driver's, and one of each applier."""
    folder = places.settings.logs / store.job(job_id).id
    return [log.record() for log in logs_of(folder)]


@router.get("/jobs/{job_id}/logs/{name}", tags=["logs"], dependencies=[Viewer])
def log(
    job_id: str,
    name: _LogName,
    store: Store,
    places: Places,
    after: Annotated[int | None, Query(ge=0, le=2**53)] = None,
    size_bytes: _LogBytes = _LOG_BYTES,
) -> LogPart:
    """Return a piece of a log: its end, or the bytes from an offset on."""
    return _log(places, store, job_id, name).read(after, size_bytes)


@router.get(
    "/jobs/{job_id}/logs/{name}/text",
    tags=["logs"],
    dependencies=[Viewer],
    response_class=PlainTextResponse,
)
def log_text(
    job_id: str,
    name: _LogName,
    store: Store,
    places: Places,
    size_bytes: _LogBytes = _LOG_BYTES,
) -> PlainTextResponse:
    """Return the end of a log as plain text."""
    text = _log(places, store, job_id, name).read(None, size_bytes).text
    return PlainTextResponse(text, headers={"X-Content-Type-Options": "nosniff"})


def _log(places: Places, store: Store, job_id: str, name: str) -> JobLog:
    return JobLog(places.settings.logs / store.job(job_id).id, name)


@router.get("/pools", tags=["pools"], dependencies=[Viewer])
@read
def pools(store: Store) -> list[PoolRecord]:
    """List the pools; the one with the empty name counts all jobs."""
    return store.pools()


@router.put("/pools/{name:path}", tags=["pools"], dependencies=[Operator], status_code=204)
def set_pool(
    name: Annotated[str, InPath(max_length=500)], changed: PoolChange, store: Store
) -> None:
    """Set the slots of a pool."""
    store.set_pool(name, changed.slots)


@router.delete("/pools/{name:path}", tags=["pools"], dependencies=[Operator], status_code=204)
def delete_pool(name: Annotated[str, InPath(max_length=500)], store: Store) -> None:
    """Remove a pool that no live job is in."""
    store.delete_pool(name)


@router.put("/pools", tags=["pools"], dependencies=[Operator], status_code=204)
def set_total(changed: PoolChange, store: Store) -> None:
    """Set how many jobs may be active at once in all."""
    store.set_pool("", changed.slots)


@router.get("/auto", tags=["tables"], dependencies=[Viewer])
@read
def auto(store: Store) -> list[WatchRecord]:
    """List the columns that are kept filled, with the latest run of each and why it was made."""
    return Watches(store.database).all()


_Text = Annotated[str | None, Query(max_length=2000)]


def _wish(
    run: _Text = None, db: _Text = None, table: _Text = None, column: _Text = None
) -> FailureWish:
    return FailureWish(run, db, table, column)


_Wish = Annotated[FailureWish, Depends(_wish)]


@router.get("/failures", tags=["failures"], dependencies=[Viewer])
def failure_groups(store: Store, wish: _Wish) -> FailureGroups:
    """List failed rows that nobody computed since, grouped by column, exception and message."""
    return store.failure_groups(wish)


@router.post("/failures/{key}/retry", tags=["failures"], status_code=201, dependencies=[Operator])
def retry_failures(
    key: Annotated[str, InPath(max_length=100)],
    places: Places,
    wish: _Wish,
    response: Response,
) -> RunRecord:
    """Queue a run that tries the rows of one group again, and no others."""
    run = places.retry_failures(wish, key)
    response.headers["Location"] = f"/api/v1/runs/{run.id}"
    return run
