"""The parts of a service that every request is handed."""

from __future__ import annotations

import math
import time
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Annotated

from fastapi import Depends, Request

from geneva.jobs.records import FailureWish, RunRecord
from geneva.jobs.store.health import Health, health
from geneva.jobs.store.past import Past
from geneva.jobs.store.store import Store as _Store
from geneva.service.catalog import Catalog as _Catalog
from geneva.service.live import Streams
from geneva.service.logs import forget
from geneva.service.service_settings import Settings

_HEALTH_S = 2.0  # for how long an answer is good: every page shows it


@dataclass(frozen=True, slots=True)
class _Places:
    settings: Settings
    store: _Store
    catalog: _Catalog
    past: Past
    streams: Streams
    _health: list[tuple[float, Health]] = field(default_factory=list)

    def health(self) -> Health:
        """Say whether the service can do its work, as it was a moment ago."""
        now = time.monotonic()
        at_s, latest = self._health[0] if self._health else (-math.inf, None)
        if latest is None or now - at_s > _HEALTH_S:
            latest = health(self.store.database)
            self._health[:] = [(now, latest)]
        return latest

    def retry(self, run_id: str) -> RunRecord:
        """Queue the jobs again that did not succeed, of a run that this service would take."""
        self.settings.databases.admit(self.store.run(run_id).db)
        return self.store.retry(run_id)

    def retry_failures(self, wish: FailureWish, key: str) -> RunRecord:
        """Queue a run of the rows of a group, of a table that this service would open."""
        for group in self.store.failure_groups(wish).items:
            if group.key == key:
                self.settings.databases.admit(group.db)
        return self.store.retry_failures(wish, key)

    def retry_windows(self, job_id: str, keys: Sequence[str]) -> RunRecord:
        """Queue a run of some windows of a job, of a table that this service would open."""
        self.settings.databases.admit(self.store.job(job_id).db)
        return self.store.retry_windows(job_id, keys)

    def delete_run(self, run_id: str) -> None:
        """Remove the records and logs of a run that has ended."""
        jobs = self.store.run(run_id).jobs
        self.store.delete(run_id)
        for job in jobs:
            forget(self.settings.logs / job.id)


def places(settings: Settings, store: _Store) -> _Places:
    """Return the shared parts of one service's requests."""
    past = Past(store.database)
    catalog = _Catalog(settings.db, settings.databases, past)
    streams = Streams(settings.max_streams)
    return _Places(settings, store, catalog, past, streams)


def _of(request: Request) -> _Places:
    held: _Places = request.app.state.places
    return held


# Coroutines, as FastAPI sends every other function through a thread.


async def _get(request: Request) -> _Places:
    return _of(request)


async def _get_store(request: Request) -> _Store:
    return _of(request).store


async def _get_catalog(request: Request) -> _Catalog:
    return _of(request).catalog


Places = Annotated[_Places, Depends(_get)]
Store = Annotated[_Store, Depends(_get_store)]
Catalog = Annotated[_Catalog, Depends(_get_catalog)]
