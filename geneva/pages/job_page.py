"""The pages of one job: its fragments, as a grid, one by one and as a list, and its logs."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from itertools import groupby
from typing import Annotated

from fastapi import Query, Request, Response
from fastapi.responses import JSONResponse

from geneva.jobs.records import TaskState
from geneva.pages.render import is_piece, render
from geneva.pages.routes import pages
from geneva.service.logs import DRIVER, logs_of
from geneva.service.state import Places, Store

router = pages()

_STATES = tuple(TaskState)
_Column = Annotated[str, Query(max_length=2000)]
_Cursor = Annotated[str, Query(max_length=500)]
_ROWS = 200


@router.get("/jobs/{job_id}/grid")
def grid(job_id: str, column: _Column, store: Store) -> Response:
    """Return all fragments and their states, run-length encoded.

    ``ids`` are ``[first, length]`` of consecutive numbers; ``states`` are ``[name's place in
    names, length]``, ``failed`` are ``[failed rows, length]``. 10,000 fragments are a few hundred
    bytes, or some 150 KB where rows failed in each.
    """
    ended = store.job(job_id).state.ended  # before the states, so that the last look sees the end
    drawn = store.fragments(job_id, column)
    places = {state: i for i, state in enumerate(_STATES)}
    answer = {
        "names": [s.value for s in _STATES],
        "ids": consecutive(drawn.ids),
        "states": encoded(places[s] for s in drawn.states),
        "failed": encoded(drawn.failed),
        "ended": ended,
    }
    return JSONResponse(answer)


@router.get("/jobs/{job_id}/fragment")
def fragment(
    request: Request,
    job_id: str,
    column: _Column,
    number: Annotated[int, Query(alias="id", ge=0, le=2**31 - 1)],
    store: Store,
) -> Response:
    """Show one fragment, beside the grid."""
    return render(request, "_fragment.html", task=store.fragment(job_id, column, number))


@router.get("/jobs/{job_id}/fragments")
def fragments(
    request: Request,
    job_id: str,
    store: Store,
    state: str = "",
    cursor: _Cursor = "",
) -> Response:
    """List the fragments of a job."""
    wanted = TaskState(state) if state in set(_STATES) else None
    return render(
        request,
        "fragments.html",
        job=store.job(job_id),
        stages=store.stages(job_id),
        page=store.tasks(job_id, wanted, _ROWS, cursor or None),
        state=wanted,
        states=_STATES,
        first=not cursor,
    )


def encoded(values: Iterable[int]) -> list[tuple[int, int]]:
    """Return runs of equal values as (value, length)."""
    return [(value, sum(1 for _ in same)) for value, same in groupby(values)]


def consecutive(numbers: Sequence[int]) -> list[tuple[int, int]]:
    """Return runs of consecutive numbers as (first, length)."""
    runs = []
    for _, same in groupby(enumerate(numbers), key=lambda pair: pair[1] - pair[0]):
        run = [number for _, number in same]
        runs.append((run[0], len(run)))
    return runs


_SHOWN_BYTES = 200_000


@router.get("/jobs/{job_id}/logs")
def logs(
    request: Request, job_id: str, store: Store, places: Places, name: str = DRIVER
) -> Response:
    """Show the end of one log, which follows while the job runs."""
    job = store.job(job_id)
    by_name = {log.name: log for log in logs_of(places.settings.logs / job.id)}
    part = by_name[name].read(None, _SHOWN_BYTES) if name in by_name else None
    return render(
        request,
        "_logs.html" if is_piece(request) else "logs.html",
        job=job,
        name=name,
        records=[log.record() for log in by_name.values()],
        part=part,
    )
