"""The REST interface as one application."""

from __future__ import annotations

from importlib.metadata import version

from fastapi import FastAPI
from fastapi.responses import PlainTextResponse
from prometheus_client import CONTENT_TYPE_LATEST, CollectorRegistry, generate_latest
from prometheus_client.core import GaugeMetricFamily
from prometheus_client.registry import Collector
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from geneva.service import jobs, runs
from geneva.service.access import Viewer
from geneva.service.problems import RESPONSES, install, problem
from geneva.service.settings import Settings
from geneva.service.state import places
from geneva.store.lists import Lists
from geneva.store.migrate import check
from geneva.store.store import Store
from geneva.types import JobState

_MAX_BODY_BYTES = 1_000_000


def create_app(settings: Settings, store: Store) -> FastAPI:
    """Return the application over one database of jobs."""
    app = FastAPI(
        title="Geneva",
        version=version("geneva-backfill"),
        description="Backfills of computed columns as jobs.",
        responses=RESPONSES,
    )
    app.state.settings = settings
    app.state.places = shared = places(settings, store)
    install(app)
    app.include_router(runs.router, prefix="/api/v1")
    app.include_router(jobs.router, prefix="/api/v1")
    app.add_middleware(_SmallBodies)
    registry = CollectorRegistry()
    registry.register(_Counts(shared.lists))

    @app.get("/healthz", tags=["health"])
    def health() -> dict[str, str]:
        """Say that the process answers."""
        return {"status": "ok"}

    @app.get("/readyz", tags=["health"])
    def ready() -> dict[str, str]:
        """Say that the database of jobs answers, and is one that this geneva knows."""
        check(store.database)
        return {"status": "ok"}

    @app.get("/metrics", tags=["health"], dependencies=[Viewer])
    def metrics() -> PlainTextResponse:
        """Return counts for Prometheus."""
        return PlainTextResponse(generate_latest(registry), media_type=CONTENT_TYPE_LATEST)

    return app


class _Counts(Collector):
    """Counts what is in the store at the moment of a scrape."""

    def __init__(self, lists: Lists) -> None:
        self._lists = lists

    def describe(self) -> list[GaugeMetricFamily]:
        """Name the metrics without asking the database."""
        return []

    def collect(self) -> list[GaugeMetricFamily]:
        """Count."""
        counts = self._lists.counts()
        states = GaugeMetricFamily("geneva_jobs", "Jobs by state.", labels=["state"])
        for state in JobState:
            states.add_metric([state.value], counts.get(state, 0))
        active = GaugeMetricFamily("geneva_pool_active", "Active jobs.", labels=["pool"])
        queued = GaugeMetricFamily("geneva_pool_queued", "Queued jobs.", labels=["pool"])
        for pool in self._lists.pools():
            active.add_metric([pool.name], pool.active)
            queued.add_metric([pool.name], pool.queued)
        return [states, active, queued]


class _SmallBodies:
    """Refuses bodies that are larger than any request of ours."""

    def __init__(self, app: ASGIApp) -> None:
        self._app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        body = b""
        more = True
        while more:
            message = await receive()
            body += message.get("body", b"")
            more = message.get("more_body", False)
            if len(body) > _MAX_BODY_BYTES:
                told = f"a request holds at most {_MAX_BODY_BYTES:,} bytes"
                await problem(413, "TooLarge", told)(scope, receive, send)
                return
        given = False

        async def replay() -> Message:
            nonlocal given
            if given:
                return await receive()
            given = True
            return {"type": "http.request", "body": body, "more_body": False}

        await self._app(scope, replay, send)
