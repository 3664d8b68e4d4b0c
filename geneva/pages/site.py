"""The pages as one: added to the application of the REST interface."""

from __future__ import annotations

from fastapi import FastAPI

from geneva.pages import (
    docs,
    failures,
    grid,
    login,
    logs,
    pools,
    run,
    runs,
    submit,
    tables,
    timeline,
)
from geneva.pages.render import STATIC, Static
from geneva.pages.routes import install_missing

_ROUTERS = (
    login.router,
    runs.router,
    run.router,
    grid.router,
    logs.router,
    timeline.router,
    tables.router,
    submit.router,
    failures.router,
    pools.router,
    docs.router,
)


def install(app: FastAPI) -> None:
    """Add the pages and the files that they load."""
    install_missing(app)
    for router in _ROUTERS:
        app.include_router(router)
    app.mount("/static", Static(directory=STATIC), name="static")
