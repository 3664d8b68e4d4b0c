"""Streams of events: how many there may be, and that requests are answered beside them."""

from __future__ import annotations

import asyncio
import json
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any

import httpx
import pytest
from fastapi import FastAPI
from fastapi.encoders import jsonable_encoder

from geneva.engine.control import Wanted
from geneva.errors import ServiceError
from geneva.jobs.records import RunRecord, Submission
from geneva.jobs.store.client import Client
from geneva.jobs.store.store import Store
from geneva.model.types import JobState
from geneva.service.app import create_app
from geneva.service.live import Streams
from geneva.service.service_settings import Settings

_WAIT_S = 60


class Asked:
    """A request whose answer is read as it comes, and that can be left."""

    def __init__(self, app: FastAPI, path: str, client: str = "10.0.0.1") -> None:
        self.status, self.body = 0, b""
        self._began, self._left = asyncio.Event(), asyncio.Event()
        self._sent = False
        headers = [(b"host", b"127.0.0.1")]
        headers += [(b"authorization", f"Bearer {app.state.settings.operator_token}".encode())]
        scope = {"type": "http", "method": "GET", "path": path, "raw_path": path.encode()}
        scope |= {"query_string": b"", "headers": headers, "client": (client, 1), "scheme": "http"}
        scope |= {"server": ("127.0.0.1", 80), "http_version": "1.1", "root_path": ""}
        self.task = asyncio.create_task(app(scope, self._receive, self._send))

    async def _receive(self) -> dict[str, Any]:
        if not self._sent:
            self._sent = True
            return {"type": "http.request", "body": b"", "more_body": False}
        await self._left.wait()
        return {"type": "http.disconnect"}

    async def _send(self, message: Any) -> None:
        self.status = message.get("status", self.status)
        self.body += message.get("body", b"")
        self._began.set()

    async def began(self) -> int:
        await asyncio.wait_for(self._began.wait(), _WAIT_S)
        return self.status

    async def refused(self) -> tuple[int, str]:
        await asyncio.wait_for(self.task, _WAIT_S)
        return self.status, json.loads(self.body)["type"]

    async def leave(self) -> None:
        self._left.set()
        await asyncio.wait_for(self.task, _WAIT_S)


@pytest.fixture
def jobs_url(tmp_path: Path) -> str:
    """One kind of database is enough."""
    return f"sqlite:///{tmp_path / 'jobs.db'}"


@pytest.fixture
def stream_of(jobs: Store) -> Callable[[], str]:
    """Return the path of the stream of a run that goes on until it is cancelled."""

    def made() -> str:
        run = jobs.submit(Submission(db="/db", table="t", columns=("y",)), "/db/t", ("y",))
        return f"/api/v1/runs/{run.id}/stream"

    return made


def app_for(jobs: Store, tmp_path: Path, most: int) -> FastAPI:
    return create_app(Settings(jobs.database.url, tmp_path, max_streams=most), jobs)


def test_streams_beyond_the_cap_are_refused_until_others_end(
    jobs: Store, tmp_path: Path, stream_of: Callable[[], str]
):
    async def story() -> None:
        app, path = app_for(jobs, tmp_path, 8), stream_of()
        mine = [Asked(app, path, "10.0.0.1") for _ in range(2)]
        assert [await a.began() for a in mine] == [200, 200]
        third = Asked(app, path, "10.0.0.1")
        assert await third.refused() == (429, "TooManyStreams")
        others = [Asked(app, path, f"10.0.1.{k // 2}") for k in range(6)]
        assert [await a.began() for a in others] == [200] * 6
        assert await Asked(app, path, "10.0.2.1").refused() == (503, "TooManyStreams")
        await mine[0].leave()
        again = Asked(app, path, "10.0.2.1")
        assert await again.began() == 200
        run = path.split("/")[-2]
        jobs.want(run, Wanted.CANCEL)  # streams of a run end with it
        await asyncio.wait_for(asyncio.gather(*(a.task for a in (*others, again))), _WAIT_S)
        await mine[1].leave()
        assert await Asked(app, path, "10.0.2.1").began() == 200

    asyncio.run(story())


def test_requests_are_answered_while_streams_wait_for_a_slow_database(
    jobs: Store, tmp_path: Path, stream_of: Callable[[], str], monkeypatch: pytest.MonkeyPatch
):
    quick = threading.Event()
    events = Store.events

    def slow(*given: Any) -> Any:
        quick.wait(_WAIT_S)
        return events(*given)

    monkeypatch.setattr(Store, "events", slow)

    async def story() -> None:
        app, path = app_for(jobs, tmp_path, 400), stream_of()
        streams = [Asked(app, path)]
        assert await streams[0].began() == 200
        # More than the 40 threads that requests share; these wait for a thread of streams.
        streams += [Asked(app, path) for _ in range(60)]
        for asked in ("/healthz", "/api/v1/runs", "/metrics"):
            assert await Asked(app, asked).began() == 200
        quick.set()
        assert {await a.began() for a in streams} == {200}
        for a in streams:
            await a.leave()

    asyncio.run(story())


def test_streams_look_the_less_often_the_more_there_are():
    streams = Streams(1000)
    pauses = []
    for _ in range(100):
        assert streams.enter("one") is None
        pauses.append(streams.pause_s)
    assert pauses[0] < 1
    assert 100 / pauses[-1] <= 50  # looks a second of all together
    for _ in range(100):
        streams.leave("one")
    assert streams.pause_s == pauses[0]


def test_client_that_is_refused_asks_again(jobs: Store, monkeypatch: pytest.MonkeyPatch):
    run = jobs.submit(Submission(db="/db", table="t", columns=("y",)), "/db/t", ("y",))
    record = json.dumps(jsonable_encoder(jobs.want(run.id, Wanted.CANCEL)))
    refusal = {"type": "TooManyStreams", "detail": "so many are open"}
    full = httpx.Response(503, headers={"Retry-After": "0"}, json=refusal)
    answers = [full, full, httpx.Response(200, text=f"event: run\ndata: {record}\n\n")]
    transport = httpx.MockTransport(lambda _: answers.pop(0))
    client = Client("http://service")
    monkeypatch.setattr(client, "_http", httpx.Client(base_url=client.url, transport=transport))
    [last] = client.watch(run.id)
    assert isinstance(last, RunRecord)
    assert last.state is JobState.CANCELLED
    answers[:] = [full] * 9
    with pytest.raises(ServiceError, match="so many are open"):
        next(client.watch(run.id))
