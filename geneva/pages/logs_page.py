"""The page of a job's logs: its driver's, and the prints of its UDFs on each applier."""

from __future__ import annotations

from fastapi import Request, Response

from geneva.pages.render import is_piece, render
from geneva.pages.routes import pages
from geneva.service.logs import DRIVER, logs_of
from geneva.service.state import Places, Store

router = pages()

_SHOWN_BYTES = 200_000


@router.get("/jobs/{job_id}/logs")
def logs(
    request: Request, job_id: str, store: Store, places: Places, name: str = DRIVER
) -> Response:
    """Show the end of one log, which follows while the job runs."""
    job = store.job(job_id)
    found = {log.name: log for log in logs_of(places.settings.logs / job.id)}
    part = found[name].read(None, _SHOWN_BYTES) if name in found else None
    return render(
        request,
        "_logs.html" if is_piece(request) else "logs.html",
        job=job,
        name=name,
        records=[log.record() for log in found.values()],
        part=part,
    )
