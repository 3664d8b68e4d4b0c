"""The pools: slots, which jobs take them, and which wait for them."""

from __future__ import annotations

from typing import Annotated

from fastapi import Query, Request, Response
from fastapi.responses import RedirectResponse

from geneva.errors import SettingError
from geneva.jobs.page import Wish
from geneva.jobs.records import JobRecord
from geneva.jobs.states import ACTIVE
from geneva.pages.forms import checked
from geneva.pages.render import is_piece, render
from geneva.pages.routes import Form, Operator, pages
from geneva.service.schemas import PoolChange
from geneva.service.state import Lists
from geneva.types import JobState

router = pages()

_JOBS = 20  # shown of a pool
_LOOKED_AT = 500


@router.get("/pools")
def pools(
    request: Request, lists: Lists, pool: Annotated[str, Query(max_length=500)] = ""
) -> Response:
    """List the pools with their jobs."""
    return render(
        request,
        "_pools.html" if is_piece(request) else "pools.html",
        pools=lists.pools(),
        active=_jobs(lists, *ACTIVE),
        queued=_jobs(lists, JobState.QUEUED),
        shown=_JOBS,
        chosen=pool,
    )


@router.post("/pools", dependencies=[Operator])
def change(lists: Lists, form: Form) -> Response:
    """Set the slots of a pool."""
    text = form.get("slots", "").strip()
    if text and not text.isdecimal():
        raise SettingError(f"slots={text!r} must be 0 or more, or nothing for no cap")
    changed = checked(PoolChange, slots=int(text) if text else None)
    lists.set_pool(form.get("pool", "").strip(), changed.slots)
    return RedirectResponse("/pools", 303)


def _jobs(lists: Lists, *states: JobState) -> dict[str, list[JobRecord]]:
    """Return jobs by pool, those that were submitted first at the top."""
    found: dict[str, list[JobRecord]] = {}
    for job in lists.jobs(Wish(states, sort="created", limit=_LOOKED_AT)).items:
        found.setdefault(job.pool, []).append(job)
    return found
