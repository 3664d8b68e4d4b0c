"""The pools: slots, which jobs take them, and which wait for them."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Annotated

from fastapi import Query, Request, Response
from fastapi.responses import RedirectResponse

from geneva.errors import SettingError
from geneva.jobs.page import Wish
from geneva.jobs.records import JobRecord, PoolRecord
from geneva.jobs.states import ACTIVE
from geneva.model.types import JobState
from geneva.pages.render import is_piece, render
from geneva.pages.routes import Form, Operator, checked, pages
from geneva.service.schemas import PoolChange
from geneva.service.state import Store

router = pages()

_JOBS = 20  # shown of a pool


@router.get("/pools")
def pools(
    request: Request, store: Store, pool: Annotated[str, Query(max_length=500)] = ""
) -> Response:
    """List the pools with their jobs."""
    records = store.pools()
    return render(
        request,
        "_pools.html" if is_piece(request) else "pools.html",
        pools=records,
        active=_jobs(store, records, *ACTIVE),
        queued=_jobs(store, records, JobState.QUEUED),
        shown=_JOBS,
        chosen=pool,
    )


@router.post("/pools/delete", dependencies=[Operator])
def delete(store: Store, form: Form) -> Response:
    """Remove a pool that no live job is in."""
    store.delete_pool(form.get("pool", ""))
    return RedirectResponse("/pools", 303)


@router.post("/pools", dependencies=[Operator])
def change(store: Store, form: Form) -> Response:
    """Set the slots of a pool."""
    text = form.get("slots", "").strip()
    if text and not text.isdecimal():
        raise SettingError(f"slots={text!r} must be 0 or more, or nothing for no cap")
    changed = checked(PoolChange, slots=int(text) if text else None)
    store.set_pool(form.get("pool", "").strip(), changed.slots)
    return RedirectResponse("/pools", 303)


def _jobs(
    store: Store, pools: Sequence[PoolRecord], *states: JobState
) -> dict[str, Sequence[JobRecord]]:
    """Return the first jobs of each pool, those that were submitted first at the top."""
    busy = [p.name for p in pools if p.name and (p.active or p.queued)]
    return {
        name: store.jobs(Wish(states, pool=name, sort="created", limit=_JOBS)).items
        for name in busy
    }
