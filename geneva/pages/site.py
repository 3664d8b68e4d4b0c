"""The pages as one: added to the application of the REST interface."""

from __future__ import annotations

from fastapi import FastAPI, Request, Response

from geneva.pages import (
    failures_page,
    job_page,
    login,
    pools,
    run,
    runs_page,
    submit,
    tables_page,
    timeline,
)
from geneva.pages.render import STATIC, Static, render
from geneva.pages.routes import install_missing, pages

_docs = pages()
_ROUTERS = (
    login.router,
    runs_page.router,
    run.router,
    job_page.router,
    timeline.router,
    tables_page.router,
    submit.router,
    failures_page.router,
    pools.router,
    _docs,
)


@_docs.get("/docs")
def docs(request: Request) -> Response:
    """List the operations of the REST interface."""
    return render(request, "docs.html", paths=request.app.openapi()["paths"])


def install(app: FastAPI) -> None:
    """Add the pages and the files that they load."""
    install_missing(app)
    for router in _ROUTERS:
        app.include_router(router)
    app.mount("/static", Static(directory=STATIC), name="static")
