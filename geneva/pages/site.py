"""The pages as one: added to the application of the REST interface."""

from __future__ import annotations

from fastapi import FastAPI

from geneva.pages import (
    docs,
    failures_page,
    grid,
    login,
    logs_page,
    pools,
    run,
    runs_page,
    submit,
    tables_page,
    timeline,
)
from geneva.pages.render import STATIC, Static
from geneva.pages.routes import install_missing

_ROUTERS = (
    login.router,
    runs_page.router,
    run.router,
    grid.router,
    logs_page.router,
    timeline.router,
    tables_page.router,
    submit.router,
    failures_page.router,
    pools.router,
    docs.router,
)


def install(app: FastAPI) -> None:
    """Add the pages and the files that they load."""
    install_missing(app)
    for router in _ROUTERS:
        app.include_router(router)
    app.mount("/static", Static(directory=STATIC), name="static")
