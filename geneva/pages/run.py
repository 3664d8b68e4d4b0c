"""The page of one run: how far it is, why it waits, where time goes, what happened, and buttons."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from typing import Annotated, Literal
from urllib.parse import urlencode

from fastapi import Path, Query, Request, Response
from fastapi.responses import RedirectResponse

from geneva.engine.control import VERBS, Wanted
from geneva.errors import NoSuchJobError, SettingError
from geneva.jobs.records import JobRecord, RunRecord, StageRecord, WindowRecord
from geneva.jobs.states import RETRIED
from geneva.model.result import WindowState
from geneva.pages.render import is_piece, render
from geneva.pages.routes import Form, Operator, pages
from geneva.service.schemas import RunChange
from geneva.service.state import Places, Store

router = pages()

_EVENTS = 100
_WINDOWS = 4_000  # of one strip
_TONES = {
    "read": "blue",
    "udf": "violet",
    "checkpoint": "amber",
    "write": "green",
    "commit": "orange",
}
_JobId = Annotated[str, Query(alias="job", max_length=100)]
_RunId = Annotated[str, Path(max_length=100)]


@router.get("/runs/{run_id}")
def show(
    request: Request,
    run_id: _RunId,
    store: Store,
    job_id: _JobId = "",
    window: Annotated[int | None, Query(ge=0, le=1_000_000)] = None,
) -> Response:
    """Show a run, and one of its windows in full."""
    return _page(request, store, run_id, job_id, window)


@router.post("/jobs/{job_id}/windows/retry", dependencies=[Operator])
def retry_windows(
    request: Request, job_id: Annotated[str, Path(max_length=100)], places: Places, form: Form
) -> Response:
    """Queue a run of one window of a job, or of all that failed."""
    key = form.get("key", "")
    run = places.retry_windows(job_id, [key] if key else [])
    return _go(request, f"/runs/{run.id}")


@router.post("/runs/{run_id}/{verb}", dependencies=[Operator])
def steer(
    request: Request,
    run_id: _RunId,
    verb: Literal["pause", "resume", "cancel", "retry", "change", "delete"],
    places: Places,
    form: Form,
) -> Response:
    """Do what a button says."""
    store = places.store
    if verb == "delete":
        places.delete_run(run_id)
        return _go(request, "/runs")
    if verb == "retry":
        places.retry(run_id)
    elif verb == "change":
        _change(store, run_id, form)
    else:
        store.want(run_id, VERBS[verb])
    if is_piece(request):
        return _page(request, store, run_id, "", None)
    return _go(request, f"/runs/{run_id}")


def _change(store: Store, run_id: str, form: Mapping[str, str]) -> None:
    try:
        given: dict[str, int | None] = {}
        if form.get("priority"):
            given["priority"] = int(form["priority"])
        if "max_active" in form:  # a field that is empty lifts the cap
            given["max_active"] = int(form["max_active"]) if form["max_active"].strip() else None
        changes = RunChange.model_validate(given)
    except ValueError as error:
        raise SettingError(
            "priority is a whole number from -1000 to 1000, and the cap one from 1 on"
        ) from error
    store.change(run_id, priority=changes.priority, max_active=changes.cap)


def _go(request: Request, url: str) -> Response:
    if is_piece(request):
        return Response(headers={"HX-Redirect": url})
    return RedirectResponse(url, 303)


def _page(request: Request, store: Store, run_id: str, job_id: str, window: int | None) -> Response:
    run = store.run(run_id)
    job = _chosen(run, job_id)
    stages = store.stages(job.id)
    windows = store.windows(job.id, limit=_WINDOWS).items if job.arguments.get("windows") else ()
    asked = {"job": job_id} if job_id else {}
    asked |= {"window": str(window)} if window is not None else {}
    return render(
        request,
        "_run.html" if is_piece(request) else "run.html",
        run=run,
        job=job,
        jobs=run.jobs[::-1],
        url=f"/runs/{run_id}?{urlencode(asked)}" if asked else f"/runs/{run_id}",
        windows=windows,
        window_counts=_counted(windows),
        chosen=next((w for w in windows if w.number == window), None),
        may=_allowed(run),
        capped=run.max_active is not None or _several(run),
        stages=[(s, _shares(s)) for s in stages],
        fragments=sum(sum(s.fragments.values()) for s in stages),
        events=store.latest_events(run.id, _EVENTS),
    )


def _counted(windows: Sequence[WindowRecord]) -> Counter[WindowState]:
    """Return how many windows are in each state; those without any are left out."""
    counts = Counter[WindowState]()
    for window in windows:
        counts[window.state] += window.windows
    return counts


def _chosen(run: RunRecord, job_id: str) -> JobRecord:
    """Return the job that is asked for, or the latest."""
    jobs = [j for j in run.jobs if job_id in ("", j.id)]
    if not jobs:
        raise NoSuchJobError(f"run {run.id!r} has no job {job_id!r}")
    return jobs[-1]


def _several(run: RunRecord) -> bool:
    """Whether a run has more than one job, retried ones left out."""
    return len({j.id for j in run.jobs} - {j.parent_id for j in run.jobs}) > 1


def _allowed(run: RunRecord) -> frozenset[str]:
    """Return the verbs that make sense of a run as it stands."""
    if run.state.ended:
        return frozenset({"delete"} | ({"retry"} if run.state in RETRIED else set()))
    live = [j for j in run.jobs if not j.state.ended]
    may = {"change"}
    if any(j.wanted is not Wanted.CANCEL for j in live):
        may.add("cancel")
    if any(j.wanted is Wanted.PAUSE for j in live):
        may.add("resume")
    if any(j.wanted is Wanted.RUN for j in live):
        may.add("pause")
    return frozenset(may)


def _shares(stage: StageRecord) -> list[tuple[str, str, float, float]]:
    """Return (stage, tone, seconds, share of all) of each stage."""
    whole = sum(stage.seconds.values())
    return [
        (name, _TONES[name], seconds, seconds / whole if whole else 0.0)
        for name, seconds in stage.seconds.items()
    ]
