"""``/api/v1/runs``: submit, look, steer, retry, forget."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator
from typing import Annotated, Any

from fastapi import APIRouter, Header, Query, Request, Response
from fastapi.encoders import jsonable_encoder
from sse_starlette import EventSourceResponse, ServerSentEvent

from geneva.engine.control import Wanted
from geneva.jobs.page import MAX_LIMIT, Page, Sort, Wish
from geneva.jobs.records import EventRecord, RunRecord
from geneva.model.types import JobState
from geneva.service import admission
from geneva.service.access import Operator, Viewer
from geneva.service.live import Stream
from geneva.service.reads import read
from geneva.service.schemas import NewRun, RunChange
from geneva.service.state import Places, Store

router = APIRouter(prefix="/runs", tags=["runs"])

_SENT = {
    "type": "object",
    "required": ["event", "data"],
    "properties": {
        "id": {"type": "string", "description": "For Last-Event-ID; of events only."},
        "event": {"type": "string", "description": "`run`, or the kind of an event."},
        "data": {"type": "string", "description": "A RunRecord or an EventRecord as JSON."},
    },
}
_Key = Annotated[str | None, Header(min_length=1, max_length=200)]
_Limit = Annotated[int, Query(ge=1, le=MAX_LIMIT)]
_Cursor = Annotated[str | None, Query(max_length=500)]


@router.post("", status_code=201, dependencies=[Operator])
def submit(
    new: NewRun, places: Places, response: Response, idempotency_key: _Key = None
) -> RunRecord:
    """Check a backfill and queue it; the same Idempotency-Key gives the same run."""
    admitted = admission.admit(new.submission(places.settings.db), places.settings.databases)
    run = places.store.submit(
        admitted.asked, admitted.table_uri, admitted.fills, key=idempotency_key
    )
    response.headers["Location"] = f"/api/v1/runs/{run.id}"
    return run


@router.get("", dependencies=[Viewer])
@read
def runs(
    store: Store,
    state: Annotated[list[JobState] | None, Query()] = None,
    db: str | None = None,
    table: str | None = None,
    name: str | None = None,
    sort: Sort = "-created",
    limit: _Limit = 100,
    cursor: _Cursor = None,
) -> Page[RunRecord]:
    """List runs, the newest first."""
    return store.runs(Wish(tuple(state or ()), db, table, name, sort, limit, cursor))


@router.get("/{run_id}", dependencies=[Viewer])
@read
def run(run_id: str, store: Store) -> RunRecord:
    """Show a run with all its jobs."""
    return store.run(run_id)


@router.patch("/{run_id}", dependencies=[Operator])
def change(run_id: str, changed: RunChange, store: Store) -> RunRecord:
    """Change the priority or the cap of a run, also while it runs; null lifts the cap."""
    return store.change(run_id, priority=changed.priority, max_active=changed.cap)


@router.post("/{run_id}/pause", dependencies=[Operator])
def pause(run_id: str, store: Store) -> RunRecord:
    """Stop at the next batch, keep checkpoints, and free the appliers until `resume`."""
    return store.want(run_id, Wanted.PAUSE)


@router.post("/{run_id}/resume", dependencies=[Operator])
def resume(run_id: str, store: Store) -> RunRecord:
    """Queue the paused jobs."""
    return store.want(run_id, Wanted.RUN)


@router.post("/{run_id}/cancel", dependencies=[Operator])
def cancel(run_id: str, store: Store) -> RunRecord:
    """Stop for good: finished fragments are committed, checkpoints are kept."""
    return store.want(run_id, Wanted.CANCEL)


@router.post("/{run_id}/retry", status_code=201, dependencies=[Operator])
def retry(run_id: str, places: Places) -> RunRecord:
    """Queue a child of each job that did not succeed, limited to its failed part."""
    return places.retry(run_id)


@router.delete("/{run_id}", status_code=204, dependencies=[Operator])
def delete(run_id: str, places: Places) -> None:
    """Remove the records and logs of a run that has ended; values are never touched."""
    places.delete_run(run_id)


@router.get("/{run_id}/events", dependencies=[Viewer])
@read
def events(
    run_id: str,
    store: Store,
    after: Annotated[int, Query(ge=0, le=2**53)] = 0,
    limit: _Limit = MAX_LIMIT,
) -> Page[EventRecord]:
    """List the events of a run."""
    return store.events(run_id, after, limit)


@router.get(
    "/{run_id}/stream",
    dependencies=[Viewer],
    response_class=EventSourceResponse,
    responses={200: {"content": {"text/event-stream": {"schema": _SENT}}}},
)
async def stream(
    run_id: str,
    request: Request,
    places: Places,
    after: Annotated[int, Query(ge=0, le=2**53)] = 0,
    last_event_id: Annotated[int | None, Header(ge=0, le=2**53)] = None,
) -> EventSourceResponse:
    """Send the events of a run as they happen, and its progress; ends with the run."""
    await places.streams.look(places.store.run, run_id)
    follow = _follow(run_id, request, places, last_event_id or after)
    return Stream(follow, places.streams)


async def _follow(
    run_id: str, request: Request, places: Places, seq: int
) -> AsyncIterator[ServerSentEvent]:
    shown = ""
    while not await request.is_disconnected():
        now = await places.streams.look(places.store.run, run_id)
        page = await places.streams.look(places.store.events, run_id, seq)
        for event in page.items:
            seq = event.seq
            yield ServerSentEvent(_text(event), event=event.kind, id=str(seq))
        if len(page.items) == MAX_LIMIT:
            continue
        if (text := _text(now)) != shown:
            shown = text
            yield ServerSentEvent(text, event="run")
        if now.state.ended:
            return
        await asyncio.sleep(places.streams.pause_s)


def _text(record: Any) -> str:
    return json.dumps(jsonable_encoder(record))
