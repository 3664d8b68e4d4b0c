"""``/api/v1/tables`` and ``/plan``: tables, their coverage, and forecasts."""

from __future__ import annotations

import math
from typing import Annotated

from fastapi import APIRouter, HTTPException, Query, Request
from fastapi import Path as InPath

from geneva.jobs.page import MAX_LIMIT, Page
from geneva.service.access import Role, Viewer
from geneva.service.admission import opened
from geneva.service.catalog import Covered, CoveredOver, TableFacts
from geneva.service.forecast import Forecast, forecast
from geneva.service.schemas import NewRun
from geneva.service.state import Catalog, Places

router = APIRouter(tags=["tables"])

_Name = Annotated[str, InPath(max_length=500)]
_Db = Annotated[str | None, Query(max_length=2000, description="Database; else the service's own.")]


@router.get("/tables", dependencies=[Viewer])
def tables(
    catalog: Catalog,
    db: _Db = None,
    limit: Annotated[int, Query(ge=1, le=MAX_LIMIT)] = 100,
    cursor: Annotated[str | None, Query(max_length=1000)] = None,
) -> Page[TableFacts]:
    """List the tables of a database by name."""
    return catalog.tables(db, limit, cursor)


@router.get("/tables/{name}", dependencies=[Viewer])
def table(name: _Name, catalog: Catalog, db: _Db = None) -> TableFacts:
    """Show a table: its columns, and how those that are computed are bound. Loads no UDF."""
    return catalog.table(db, name)


@router.get("/tables/{name}/coverage", dependencies=[Viewer])
def coverage(
    name: _Name,
    catalog: Catalog,
    db: _Db = None,
    column: Annotated[str | None, Query(max_length=500)] = None,
    fragments: Annotated[bool, Query(description="Count those of each fragment too.")] = False,
) -> list[Covered]:
    """Count the rows of each computed column, or of one, by their state. Loads no UDF."""
    names = [c.name for c in catalog.table(db, name).computed] if column is None else [column]
    return [catalog.coverage(db, name, n, fragments=fragments) for n in names]


@router.get("/tables/{name}/coverage/over", dependencies=[Viewer])
def coverage_over(
    name: _Name,
    catalog: Catalog,
    column: Annotated[str, Query(max_length=500)],
    on: Annotated[str, Query(max_length=500, description="A date or timestamp column.")],
    step: Annotated[str, Query(max_length=20, description="1d, 1w, 1mo, 1y, 6h")] = "1d",
    tz: Annotated[str | None, Query(max_length=100, description="Where days begin.")] = None,
    db: _Db = None,
) -> CoveredOver:
    """Count the rows of a computed column by state, period by period. Loads no UDF."""
    return catalog.coverage_over(db, name, column, on, step, tz)


@router.post("/plan", dependencies=[Viewer])
def plan(
    request: Request,
    new: NewRun,
    places: Places,
    within_s: Annotated[
        float | None,
        Query(gt=0, le=600, description="Evaluate filters for so long; estimate the rest."),
    ] = None,
    fragments: Annotated[bool, Query(description="Say it of each fragment too.")] = False,
) -> Forecast:
    """Forecast a backfill: its plan, its time and the rows that it writes; nothing runs.

    With ``params`` it needs the operator's token: the UDF is loaded to tell what they make of it.
    """
    submission = new.submission(places.settings.db)
    if submission.arguments.get("params") and request.state.role < Role.OPERATOR:
        raise HTTPException(403, "a plan with params loads the UDF, which this token may not")
    table = opened(submission, places.settings.databases)
    within = math.inf if within_s is None else within_s
    return forecast(table, submission, places.past, within, fragments=fragments)
