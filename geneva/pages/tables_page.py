"""The page of all tables, and of one table with the coverage of its computed columns."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Annotated, Any, Literal
from urllib.parse import quote, unquote

from fastapi import Query, Request, Response

from geneva.errors import GenevaError
from geneva.pages.render import render
from geneva.pages.routes import pages
from geneva.service.catalog import Covered
from geneva.service.problems import status_of
from geneva.service.state import Catalog

router = pages()

_SHOWN = 50
Db = Annotated[str | None, Query(max_length=2000)]
"""The database that is meant, if it is not the service's own."""

PARTS = (
    ("computed", "green", "computed"),
    ("foreign", "violet", "written by others"),
    ("unverified", "blue", "not verified"),
    ("failed", "red", "failed"),
    ("stale", "amber", "stale"),
    ("missing", "grey", "missing"),
)
"""What rows of a computed column are: attribute of `Covered`, tone, words."""


@router.get("/tables")
def tables(
    request: Request,
    catalog: Catalog,
    db: Db = None,
    cursor: Annotated[str | None, Query(max_length=1000)] = None,
) -> Response:
    """List the tables of a database."""
    if not (db or catalog.db):
        return render(request, "tables.html", page=None, of=None, error="")
    of = catalog.database(db)
    try:
        page = catalog.tables(of, _SHOWN, cursor)
    except GenevaError as error:
        return render(
            request, "tables.html", status=status_of(error), page=None, of=of, error=str(error)
        )
    return render(request, "tables.html", page=page, of=of, error="")


@router.get("/tables/{name}")
def table(request: Request, catalog: Catalog, name: str, db: Db = None) -> Response:
    """Show a table; how much of its columns is there comes column by column."""
    of = catalog.database(db)
    return render(request, "table.html", table=catalog.table(of, name), of=of)


@router.get("/tables/{name}/coverage/{column:path}")
def coverage(
    request: Request,
    catalog: Catalog,
    name: str,
    column: str,
    db: Db = None,
    brief: bool = False,
) -> Response:
    """Show how much of one column is there."""
    of = catalog.database(db)
    found = catalog.coverage(of, name, column)
    return render(
        request,
        "_bar.html" if brief else "_coverage.html",
        found=found,
        table=name,
        of=of,
        parts=PARTS,
        to_do=_to_do(found),
    )


@router.get("/tables/{name}/over/{column:path}")
def over(
    request: Request,
    catalog: Catalog,
    name: str,
    column: str,
    db: Db = None,
    on: Annotated[str, Query(max_length=500)] = "",
    step: Annotated[Literal["1d", "1w", "1mo", "1y"], Query()] = "1d",
) -> Response:
    """Show how much of one column is there along a date or timestamp column."""
    of = catalog.database(db)
    facts = catalog.table(of, name)
    names = [c.name for c in facts.columns if c.type.startswith(("date", "timestamp"))]
    kept = unquote(request.cookies.get(_OVER, ""))
    chosen = on or (kept if kept in names else next(iter(names), ""))
    counted = catalog.coverage_over(of, name, column, chosen, step) if chosen else None
    response = render(
        request,
        "over.html",
        table=facts,
        column=column,
        of=of,
        names=names,
        on=chosen,
        step=step,
        periods=[] if counted is None else [_period(p) for p in counted.periods],
        parts=PARTS,
    )
    if on:
        response.set_cookie(
            _OVER, quote(on, safe=""), max_age=_KEPT_S, httponly=True, samesite="lax"
        )
    return response


_OVER, _KEPT_S = "geneva_over", 365 * 86_400


def _period(counts: Mapping[str, Any]) -> dict[str, Any]:
    """Return what a square shows: the share that needs no work, and the worst state in it."""
    rows = counts["rows"]
    idle = rows - counts["missing"] - counts["stale"] - counts["failed"]
    states = ("failed", "stale", "missing", "computed")
    worst = next((s for s in states if counts[s] and (s != "computed" or rows)), "computed")
    look = "none" if not rows else worst
    told = ", ".join(f"{counts[key]:,} {word}" for key, _, word in PARTS if counts[key])
    share = idle / rows if rows else 0.0
    return {"key": counts["key"], "look": look, "share": share, "text": told or "no rows"}


def _to_do(covered: Covered) -> int:
    """Return the rows that a backfill would compute."""
    return covered.missing + covered.stale - covered.waiting
