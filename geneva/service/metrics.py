"""``/metrics`` for Prometheus: the counts of the store at a scrape, and of the requests."""

from __future__ import annotations

import time

from prometheus_client import CollectorRegistry, Counter, Histogram
from prometheus_client.core import GaugeMetricFamily
from prometheus_client.registry import Collector
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from geneva.errors import GenevaError
from geneva.jobs.store.health import health
from geneva.jobs.store.store import Store
from geneva.model.types import JobState

API = "/api/v1"
_SECONDS = (0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0)


class Metrics:
    """The metrics of one service."""

    def __init__(self, store: Store) -> None:
        self.registry = CollectorRegistry()
        self.registry.register(_Counts(store))
        self.requests = Counter(
            "geneva_http_requests",
            "Requests answered.",
            ["method", "route", "status"],
            registry=self.registry,
        )
        self.wrong_tokens = Counter(
            "geneva_wrong_tokens", "Tokens that were none of ours.", registry=self.registry
        )
        self.seconds = Histogram(
            "geneva_http_request_seconds",
            "Time until a request was answered, streams left out.",
            ["method", "route"],
            registry=self.registry,
            buckets=_SECONDS,
        )


class Measured:
    """Counts the requests of an application by route; those without a route count as one."""

    def __init__(self, app: ASGIApp, metrics: Metrics) -> None:
        self._app, self._metrics = app, metrics

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Answer one request."""
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        status = 500
        started = time.perf_counter()

        async def noting(message: Message) -> None:
            nonlocal status
            if message["type"] == "http.response.start":
                status = message["status"]
            await send(message)

        try:
            await self._app(scope, receive, noting)
        finally:
            route = route_of(scope)
            method = scope["method"] if route != "none" else "any"
            self._metrics.requests.labels(method, route, status).inc()
            if not route.endswith("/stream"):
                self._metrics.seconds.labels(method, route).observe(time.perf_counter() - started)


def route_of(scope: Scope) -> str:
    """Return the template of a path, so that ids make no series of their own."""
    route = str(getattr(scope.get("route"), "path", "none"))
    within = scope["path"].startswith(API) and route != "none" and not route.startswith(API)
    return API + route if within else route


class _Counts(Collector):
    """Counts the records in the store."""

    def __init__(self, store: Store) -> None:
        self._store = store

    def describe(self) -> list[GaugeMetricFamily]:
        """Name the metrics without asking the database."""
        return []

    def collect(self) -> list[GaugeMetricFamily]:
        """Count."""
        state = health(self._store.database)
        ready = GaugeMetricFamily("geneva_ready", "1 if /readyz says so, else 0.")
        ready.add_metric([], 0 if state.reason else 1)
        silence = GaugeMetricFamily(
            "geneva_scheduler_silence_seconds", "Since a scheduler last looked at the queue."
        )
        if state.silence_s is not None:
            silence.add_metric([], state.silence_s)
        try:
            return [ready, silence, *self._counted()]
        except GenevaError:  # the database is away, which is told so
            return [ready, silence]

    def _counted(self) -> list[GaugeMetricFamily]:
        counts, pools = self._store.counts()
        states = GaugeMetricFamily("geneva_jobs", "Jobs by state.", labels=["state"])
        for state in JobState:
            states.add_metric([state.value], counts.get(state, 0))
        active = GaugeMetricFamily("geneva_pool_active", "Active jobs.", labels=["pool"])
        queued = GaugeMetricFamily("geneva_pool_queued", "Queued jobs.", labels=["pool"])
        slots = GaugeMetricFamily("geneva_pool_slots", "Cap of a pool.", labels=["pool"])
        for pool in pools:
            active.add_metric([pool.name], pool.active)
            queued.add_metric([pool.name], pool.queued)
            if pool.slots is not None:
                slots.add_metric([pool.name], pool.slots)
        return [states, active, queued, slots]
