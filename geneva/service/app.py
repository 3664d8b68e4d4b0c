"""The REST interface as one application."""

from __future__ import annotations

import re
from importlib.metadata import version
from typing import Any

from fastapi import FastAPI
from fastapi.responses import PlainTextResponse
from fastapi.routing import APIRoute
from prometheus_client import CONTENT_TYPE_LATEST, generate_latest

from geneva.jobs.store.health import check_health, health
from geneva.jobs.store.store import Store
from geneva.service import jobs, run_routes, table_routes
from geneva.service.access import Door, Viewer
from geneva.service.limits import Guesses, Limits
from geneva.service.metrics import Measured, Metrics
from geneva.service.problems import MEDIA_TYPE, STATUSES, Problem, install
from geneva.service.reads import reading
from geneva.service.service_settings import Settings
from geneva.service.state import places

_TAGS = {
    "runs": "What was submitted at once: submit, look, steer, retry, forget.",
    "jobs": "One table x columns x filter of a run, and its fragments.",
    "logs": "What the driver of a job writes, and what its UDFs print on each applier.",
    "pools": "Slots that jobs share.",
    "tables": "Tables and their computed columns.",
    "failures": "Rows that UDFs failed on.",
    "health": "For those who watch the service.",
}
_PROBLEM = {MEDIA_TYPE: {"schema": {"$ref": "#/components/schemas/Problem"}}}
_ALWAYS = {400, 413, 414, 431, 500, 503}


class _Service(FastAPI):
    """FastAPI, whose schema names problems as the answers that it cannot know of."""

    def openapi(self) -> dict[str, Any]:
        if self.openapi_schema is None:
            for path, verbs in super().openapi()["paths"].items():
                for verb, operation in verbs.items():
                    answers = operation["responses"]
                    answers.pop("default", None)  # is there to bring in the model of problems
                    for status in sorted(_statuses(path, verb)):
                        described = {"description": STATUSES[status], "content": _PROBLEM}
                        answers[str(status)] = described
        return super().openapi()


def _statuses(path: str, verb: str) -> set[int]:
    """Return the statuses of errors that an operation may answer with."""
    if path in ("/healthz", "/readyz"):
        return _ALWAYS
    missing = {404} if path.startswith("/api") else set()
    conflict = {409} if verb != "get" else set()
    return {*_ALWAYS, 401, 403, 422, 429, *missing, *conflict}


def _operation_id(route: APIRoute) -> str:
    """Return the name of an operation, such as ``post_runs_run_id_retry``."""
    words = re.findall(r"\w+", route.path.removeprefix("/api/v1"))
    return "_".join([min(route.methods or ()).lower(), *words])


def create_app(settings: Settings, store: Store) -> FastAPI:
    """Return the application over one database of jobs."""
    app = _Service(
        title="Geneva",
        version=version("geneva-backfill"),
        description="Backfills of computed columns as jobs.",
        responses={"default": {"model": Problem}},
        openapi_tags=[{"name": n, "description": d} for n, d in _TAGS.items()],
        generate_unique_id_function=_operation_id,
        docs_url=None,  # FastAPI's own pages load from elsewhere
        redoc_url=None,
    )
    settings = settings.with_token()
    app.state.settings = settings
    app.state.places = places(settings, store)
    install(app)
    app.include_router(run_routes.router, prefix="/api/v1")
    app.include_router(jobs.router, prefix="/api/v1")
    app.include_router(table_routes.router, prefix="/api/v1")
    counted = Metrics(store)
    app.state.door = Door(settings, Guesses(counted.wrong_tokens.inc))
    app.add_middleware(Limits, per_s=settings.requests_per_s)
    app.add_middleware(Measured, metrics=counted)

    @app.get("/healthz", tags=["health"])
    async def alive() -> dict[str, str]:
        """Say that the process answers."""
        return {"status": "ok"}

    @app.get("/readyz", tags=["health"])
    def ready() -> dict[str, str]:
        """Say that the database of jobs answers, and that a scheduler looks at the queue."""
        check_health(health(store.database))
        return {"status": "ok"}

    @app.get("/metrics", tags=["health"], dependencies=[Viewer], response_class=PlainTextResponse)
    async def metrics() -> PlainTextResponse:
        """Return counts for Prometheus."""
        text = await reading(lambda: generate_latest(counted.registry))
        return PlainTextResponse(text, media_type=CONTENT_TYPE_LATEST)

    return app
