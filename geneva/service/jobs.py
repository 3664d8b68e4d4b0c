"""``/api/v1/jobs``, ``/pools`` and ``/coverage``: look, steer one job, set caps."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any, Literal

from fastapi import APIRouter, Query
from fastapi import Path as InPath
from fastapi.responses import PlainTextResponse

from geneva.jobs.control import Wanted
from geneva.jobs.page import MAX_LIMIT, Page, Wish
from geneva.jobs.records import (
    FailureRecord,
    JobRecord,
    PoolRecord,
    TaskRecord,
    TaskState,
    WatchRecord,
)
from geneva.service.access import Operator, Viewer
from geneva.service.schemas import PoolChange
from geneva.service.state import Lists, Places, Store
from geneva.service.tables import open_table
from geneva.store.watches import Watches
from geneva.types import JobState

router = APIRouter()

_Limit = Annotated[int, Query(ge=1, le=MAX_LIMIT)]
_Cursor = Annotated[str | None, Query(max_length=500)]
_LOG_BYTES = 200_000


@router.get("/jobs", tags=["jobs"], dependencies=[Viewer])
def jobs(
    lists: Lists,
    state: Annotated[list[JobState] | None, Query()] = None,
    db: str | None = None,
    table: str | None = None,
    sort: Literal["created", "-created"] = "-created",
    limit: _Limit = 100,
    cursor: _Cursor = None,
) -> Page[JobRecord]:
    """List jobs, the newest first."""
    return lists.jobs(Wish(tuple(state or ()), db, table, None, sort, limit, cursor))


@router.get("/jobs/{job_id}", tags=["jobs"], dependencies=[Viewer])
def job(job_id: str, store: Store) -> JobRecord:
    """Show a job."""
    return store.job(job_id)


@router.post("/jobs/{job_id}/{verb}", tags=["jobs"], dependencies=[Operator])
def steer(job_id: str, verb: Literal["pause", "resume", "cancel"], store: Store) -> JobRecord:
    """Pause, resume or cancel one job of a run."""
    wanted = {"pause": Wanted.PAUSE, "resume": Wanted.RUN, "cancel": Wanted.CANCEL}
    return store.want_job(job_id, wanted[verb])


@router.get("/jobs/{job_id}/tasks", tags=["jobs"], dependencies=[Viewer])
def tasks(
    job_id: str,
    lists: Lists,
    state: TaskState | None = None,
    limit: Annotated[int, Query(ge=1, le=10_000)] = MAX_LIMIT,
    cursor: _Cursor = None,
) -> Page[TaskRecord]:
    """List the fragments of a job, with their states and stage times."""
    return lists.tasks(job_id, state, limit, cursor)


@router.get("/jobs/{job_id}/failures", tags=["jobs"], dependencies=[Viewer])
def failures(
    job_id: str, lists: Lists, limit: _Limit = 100, cursor: _Cursor = None
) -> Page[FailureRecord]:
    """List the rows on which the UDF failed."""
    return lists.failures(job_id, limit, cursor)


@router.get(
    "/jobs/{job_id}/logs",
    tags=["jobs"],
    dependencies=[Viewer],
    response_class=PlainTextResponse,
)
def logs(
    job_id: str,
    store: Store,
    places: Places,
    size_bytes: Annotated[int, Query(ge=1, le=_LOG_BYTES)] = _LOG_BYTES,
) -> str:
    """Return the end of what the job's drivers wrote, those of this host."""
    folder = places.settings.logs / store.job(job_id).id
    files = sorted(folder.glob("*.log"), key=lambda p: int(p.stem))
    return "".join(_end(p, size_bytes) for p in files)[-size_bytes:]


def _end(path: Path, size_bytes: int) -> str:
    with path.open("rb") as file:
        file.seek(max(path.stat().st_size - size_bytes, 0))
        return f"--- driver {path.stem}\n" + file.read().decode(errors="replace")


@router.get("/pools", tags=["pools"], dependencies=[Viewer])
def pools(lists: Lists) -> list[PoolRecord]:
    """List the pools; the one with the empty name counts all jobs."""
    return lists.pools()


@router.put("/pools/{name}", tags=["pools"], dependencies=[Operator], status_code=204)
def set_pool(
    name: Annotated[str, InPath(max_length=500)], changed: PoolChange, lists: Lists
) -> None:
    """Set the slots of a pool."""
    lists.set_pool(name, changed.slots)


@router.put("/pools", tags=["pools"], dependencies=[Operator], status_code=204)
def set_total(changed: PoolChange, lists: Lists) -> None:
    """Set how many jobs may be active at once in all."""
    lists.set_pool("", changed.slots)


@router.get("/auto", tags=["tables"], dependencies=[Viewer])
def auto(store: Store) -> list[WatchRecord]:
    """List the columns that are kept filled, with the latest run of each and why it was made."""
    return Watches(store.database).all()


@router.get("/coverage", tags=["tables"], dependencies=[Viewer])
def coverage(table: str, column: str, places: Places, db: str | None = None) -> dict[str, Any]:
    """Count per fragment the rows of a column that are computed, stale and missing."""
    found = open_table(db or places.settings.db or ".", table).coverage(column)
    return {
        "column": found.column,
        "version": found.version,
        "totals": found.totals,
        "fragments": found.table.to_pylist(),
    }
