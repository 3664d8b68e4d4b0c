"""The REST interface as one application."""

from __future__ import annotations

from importlib.metadata import version

from fastapi import FastAPI
from fastapi.responses import PlainTextResponse
from prometheus_client import CONTENT_TYPE_LATEST, generate_latest

from geneva.jobs.store.health import check_health, health
from geneva.jobs.store.store import Store
from geneva.service import failure_routes, jobs, run_routes, table_routes
from geneva.service.access import Door, Viewer
from geneva.service.limits import Guesses, Limits
from geneva.service.metrics import Measured, Metrics
from geneva.service.openapi import describe, operation_id
from geneva.service.problems import Problem, install
from geneva.service.reads import reading
from geneva.service.service_settings import Settings
from geneva.service.state import places


def create_app(settings: Settings, store: Store) -> FastAPI:
    """Return the application over one database of jobs."""
    app = FastAPI(
        title="Geneva",
        version=version("geneva-backfill"),
        description="Backfills of computed columns as jobs.",
        responses={"default": {"model": Problem}},
        generate_unique_id_function=operation_id,
        docs_url=None,  # FastAPI's own pages load from elsewhere; geneva.pages.docs is ours
        redoc_url=None,
    )
    describe(app)
    settings = settings.with_token()
    app.state.settings = settings
    app.state.places = shared = places(settings, store)
    install(app)
    app.include_router(run_routes.router, prefix="/api/v1")
    app.include_router(jobs.router, prefix="/api/v1")
    app.include_router(table_routes.router, prefix="/api/v1")
    app.include_router(failure_routes.router, prefix="/api/v1")
    counted = Metrics(shared.lists)
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
