"""The page of failures by cause, with rows that show it and a button to try them again."""

from __future__ import annotations

from typing import Annotated

from fastapi import Query, Request, Response
from fastapi.responses import RedirectResponse

from geneva.jobs.records import FailureWish
from geneva.pages.render import render
from geneva.pages.routes import Form, Operator, pages
from geneva.service.state import Places, Store

router = pages()

_Text = Annotated[str, Query(max_length=2000)]
_NAMES = ("run", "db", "table", "column")


@router.get("/failures")
def failures(
    request: Request,
    store: Store,
    run: _Text = "",
    db: _Text = "",
    table: _Text = "",
    column: _Text = "",
) -> Response:
    """List groups of failures."""
    chosen = dict(zip(_NAMES, (run, db, table, column), strict=True))
    groups = store.failure_groups(_wish(chosen))
    given = {k: v for k, v in chosen.items() if v}
    return render(request, "failures.html", found=groups, given=given)


@router.post("/failures/{key}/retry", dependencies=[Operator])
def retry(key: str, places: Places, form: Form) -> Response:
    """Try the rows of a group again, and go to the run that does."""
    run = places.retry_failures(_wish(form), key)
    return RedirectResponse(f"/runs/{run.id}", 303)


def _wish(chosen: dict[str, str]) -> FailureWish:
    return FailureWish(*(chosen.get(n) or None for n in _NAMES))
