"""``/api/v1/failures``: rows that UDFs failed on, grouped by cause, and their retry."""

from __future__ import annotations

from typing import Annotated

from fastapi import APIRouter, Depends, Query, Response
from fastapi import Path as InPath

from geneva.jobs.records import FailureGroups, FailureWish, RunRecord
from geneva.service.access import Operator, Viewer
from geneva.service.state import Places, Store

router = APIRouter(prefix="/failures", tags=["failures"])

_Text = Annotated[str | None, Query(max_length=2000)]


def _wish(
    run: _Text = None, db: _Text = None, table: _Text = None, column: _Text = None
) -> FailureWish:
    return FailureWish(run, db, table, column)


_Wish = Annotated[FailureWish, Depends(_wish)]


@router.get("", dependencies=[Viewer])
def groups(store: Store, wish: _Wish) -> FailureGroups:
    """List failed rows that nobody computed since, grouped by column, exception and message."""
    return store.failure_groups(wish)


@router.post("/{key}/retry", status_code=201, dependencies=[Operator])
def retry(
    key: Annotated[str, InPath(max_length=100)],
    places: Places,
    wish: _Wish,
    response: Response,
) -> RunRecord:
    """Queue a run that tries the rows of one group again, and no others."""
    run = places.retry_failures(wish, key)
    response.headers["Location"] = f"/api/v1/runs/{run.id}"
    return run
