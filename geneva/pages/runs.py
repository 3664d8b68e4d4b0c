"""The list of runs."""

from __future__ import annotations

from fastapi import Request, Response

from geneva.jobs.page import Wish
from geneva.pages.render import render
from geneva.pages.routes import pages
from geneva.service.state import Lists

router = pages()


@router.get("/runs")
def runs(request: Request, lists: Lists) -> Response:
    """List runs."""
    return render(request, "runs.html", page=lists.runs(Wish(limit=50)))
