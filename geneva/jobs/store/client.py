"""A service's jobs over HTTP: the same verbs as `geneva.jobs.store.store.Store`."""

from __future__ import annotations

import json
import os
import time
import weakref
from collections.abc import Generator, Iterator, Mapping, Sequence
from dataclasses import asdict
from functools import lru_cache
from typing import Any, TypeVar, cast
from urllib.parse import quote
from uuid import uuid4

import httpx
from pydantic import TypeAdapter

from geneva.engine.control import VERBS, Wanted
from geneva.errors import ServiceError, SettingError
from geneva.jobs.page import MAX_LIMIT, Page, Wish
from geneva.jobs.records import (
    EventRecord,
    FailureGroups,
    FailureRecord,
    FailureWish,
    JobRecord,
    Keep,
    LogPart,
    LogRecord,
    PoolRecord,
    RunRecord,
    StageRecord,
    Submission,
    TaskRecord,
    TaskState,
    WatchRecord,
    WindowRecord,
)
from geneva.jobs.run_outcome import error_named
from geneva.jobs.store.local_service import token_for
from geneva.model.result import WindowState

T = TypeVar("T")
_TRIES = 4
_MOST_WAIT_S = 10.0
_VERBS = {wanted: verb for verb, wanted in VERBS.items()}


class Client:
    """Talks to a service.

    Parameters
    ----------
    url
        Such as ``http://127.0.0.1:8265``.
    token
        By default what ``GENEVA_TOKEN`` holds; else what a service of this host and account wrote
        down for its clients.
    """

    def __init__(self, url: str, token: str | None = None) -> None:
        self.url = url.rstrip("/")
        if not self.url.startswith(("http://", "https://")):
            raise SettingError(f"{url!r} is no URL of a service, such as http://127.0.0.1:8265")
        auth = _Token(self.url, token or os.environ.get("GENEVA_TOKEN"))
        self._http = httpx.Client(base_url=f"{self.url}/api/v1", auth=auth, timeout=60)
        weakref.finalize(self, self._http.close)

    # --- submit and steer ----------------------------------------------------------------

    def submit(self, submission: Submission, key: str | None = None) -> RunRecord:
        """Submit a backfill; sent again after a fault, it is still one run."""
        headers = {"Idempotency-Key": key or uuid4().hex}
        return self._run("POST", "/runs", json=_body(submission), headers=headers, again=True)

    def plan(self, submission: Submission) -> dict[str, Any]:
        """Return the plan of a backfill, with each fragment."""
        chosen = {"fragments": True}
        return dict(self._ask("POST", "/plan", json=_body(submission), params=chosen))

    def want(self, run_id: str, wanted: Wanted) -> RunRecord:
        """Pass a wish on to a run."""
        return self._run("POST", f"/runs/{run_id}/{_VERBS[wanted]}")

    def retry(self, run_id: str) -> RunRecord:
        """Queue the jobs again that did not succeed."""
        return self._run("POST", f"/runs/{run_id}/retry")

    def retry_failures(self, wish: FailureWish, key: str) -> RunRecord:
        """Queue a run limited to the rows of a group of failures."""
        return self._run("POST", f"/failures/{quote(key, safe='')}/retry", params=_chosen(wish))

    def retry_windows(self, job_id: str, keys: Sequence[str] = ()) -> RunRecord:
        """Queue a run of windows of a job, by default of those that failed."""
        return self._run("POST", f"/jobs/{job_id}/windows/retry", json={"keys": [*keys]})

    def change(
        self,
        run_id: str,
        *,
        priority: int | None = None,
        max_active: int | Keep | None = Keep.KEEP,
    ) -> RunRecord:
        """Change the priority or the cap of a run; ``None`` lifts the cap."""
        changed: dict[str, Any] = _given(priority=priority)
        if max_active is not Keep.KEEP:
            changed["max_active"] = max_active
        return self._run("PATCH", f"/runs/{run_id}", json=changed)

    def delete(self, run_id: str) -> None:
        """Remove the records of a run that has ended."""
        self._ask("DELETE", f"/runs/{run_id}")

    def set_pool(self, name: str, slots: int | None) -> None:
        """Set the slots of a pool; the empty name stands for all jobs."""
        path = f"/pools/{quote(name, safe='')}" if name else "/pools"
        self._ask("PUT", path, json={"slots": slots})

    def delete_pool(self, name: str) -> None:
        """Remove a pool that no job is in."""
        self._ask("DELETE", f"/pools/{quote(name, safe='')}")

    # --- look ----------------------------------------------------------------------------

    def run(self, run_id: str) -> RunRecord:
        """Return a run."""
        return self._run("GET", f"/runs/{run_id}", again=True)

    def job(self, job_id: str) -> JobRecord:
        """Return a job."""
        return _read(JobRecord, self._ask("GET", f"/jobs/{job_id}"))

    def runs(self, wish: Wish) -> Page[RunRecord]:
        """Return a page of runs."""
        return _read(Page[RunRecord], self._ask("GET", "/runs", params=_query(wish)))

    def jobs(self, wish: Wish) -> Page[JobRecord]:
        """Return a page of jobs."""
        return _read(Page[JobRecord], self._ask("GET", "/jobs", params=_query(wish)))

    def tasks(
        self,
        job_id: str,
        state: TaskState | None = None,
        limit: int = MAX_LIMIT,
        cursor: str | None = None,
    ) -> Page[TaskRecord]:
        """Return a page of the fragments of a job."""
        params = _given(state=state, limit=limit, cursor=cursor)
        return _read(Page[TaskRecord], self._ask("GET", f"/jobs/{job_id}/tasks", params=params))

    def windows(
        self,
        job_id: str,
        state: WindowState | None = None,
        limit: int = MAX_LIMIT,
        cursor: str | None = None,
    ) -> Page[WindowRecord]:
        """Return a page of the windows of a job."""
        params = _given(state=state, limit=limit, cursor=cursor)
        return _read(Page[WindowRecord], self._ask("GET", f"/jobs/{job_id}/windows", params=params))

    def failures(
        self, job_id: str, limit: int = 100, cursor: str | None = None
    ) -> Page[FailureRecord]:
        """Return a page of the rows on which a UDF failed."""
        params = _given(limit=limit, cursor=cursor)
        page = self._ask("GET", f"/jobs/{job_id}/failures", params=params)
        return _read(Page[FailureRecord], page)

    def failure_groups(self, wish: FailureWish) -> FailureGroups:
        """Return failed rows that nobody computed since, grouped by column, error and message."""
        return _read(FailureGroups, self._ask("GET", "/failures", params=_chosen(wish)))

    def events(self, run_id: str, after: int = 0, limit: int = MAX_LIMIT) -> Page[EventRecord]:
        """Return the events of a run that came after its n-th."""
        params = {"after": after, "limit": limit}
        return _read(Page[EventRecord], self._ask("GET", f"/runs/{run_id}/events", params=params))

    def pools(self) -> list[PoolRecord]:
        """Return the pools."""
        return _read(list[PoolRecord], self._ask("GET", "/pools"))

    def auto(self) -> list[WatchRecord]:
        """Return the columns that are kept filled."""
        return _read(list[WatchRecord], self._ask("GET", "/auto"))

    def stages(self, job_id: str) -> list[StageRecord]:
        """Return the sums over the fragments of each column of a job."""
        return _read(list[StageRecord], self._ask("GET", f"/jobs/{job_id}/stages"))

    def logs(self, job_id: str) -> list[LogRecord]:
        """Return which logs of a job the service's host has."""
        return _read(list[LogRecord], self._ask("GET", f"/jobs/{job_id}/logs"))

    def log(self, job_id: str, name: str = "driver", after: int | None = None) -> LogPart:
        """Return the end of a log, or a piece that begins at an offset."""
        part = self._ask("GET", f"/jobs/{job_id}/logs/{name}", params=_given(after=after))
        return _read(LogPart, part)

    def watch(self, run_id: str) -> Iterator[EventRecord | RunRecord]:
        """Yield the events of a run, and the run when it changes, until it has ended.

        Raises
        ------
        ServiceError
            The stream broke and could not be taken up again.
        """
        seq, tries = 0, 0
        while True:
            try:
                for kind, text in self._told(run_id, seq):
                    tries = 0
                    if kind == "run":
                        run = _read(RunRecord, json.loads(text))
                        yield run
                        if run.state.ended:
                            return
                    else:
                        event = _read(EventRecord, json.loads(text))
                        seq = event.seq
                        yield event
            except httpx.TransportError as error:
                tries += 1
                self._wait(tries, error)

    def _told(self, run_id: str, after: int) -> Iterator[tuple[str, str]]:
        """Open a stream, when the service has room for it, and yield its messages."""
        headers = {"Last-Event-ID": str(after)}
        for tries in range(_TRIES + 1):
            with self._http.stream("GET", f"/runs/{run_id}/stream", headers=headers) as answer:
                wait_s = _asked_to_wait_s(answer) if tries < _TRIES else None
                if wait_s is None:
                    if answer.is_error:
                        answer.read()
                    _check(answer)
                    yield from _sent(answer.iter_lines())
                    return
            time.sleep(wait_s)

    # --- requests ------------------------------------------------------------------------

    def _run(self, method: str, path: str, **options: Any) -> RunRecord:
        return _read(RunRecord, self._ask(method, path, **options))

    def _ask(self, method: str, path: str, **options: Any) -> Any:
        answer = self._send(method, path, **options)
        return answer.json() if answer.content else None

    def _send(
        self, method: str, path: str, *, again: bool = False, **options: Any
    ) -> httpx.Response:
        tries = 0
        while True:
            try:
                answer = self._http.request(method, path, **options)
                wait_s = _asked_to_wait_s(answer) if tries < _TRIES else None
                if wait_s is not None:
                    tries += 1
                    time.sleep(wait_s)
                    continue
                _check(answer)
                return answer
            except httpx.TransportError as error:
                tries = tries + 1 if again or method == "GET" else _TRIES
                self._wait(tries, error)

    def _wait(self, tries: int, error: httpx.TransportError) -> None:
        if tries >= _TRIES:
            raise ServiceError(
                f"the service at {self.url} does not answer ({error}); is `geneva serve` running "
                "there? --url or GENEVA_URL names another"
            ) from error
        time.sleep(0.1 * 2**tries)


class _Token(httpx.Auth):
    """Sends a token; that of a local service is read each time, as each service makes its own."""

    def __init__(self, url: str, token: str | None) -> None:
        self._url, self._token = url, token

    def auth_flow(self, request: httpx.Request) -> Generator[httpx.Request, httpx.Response, None]:
        if token := self._token or token_for(self._url):
            request.headers["Authorization"] = f"Bearer {token}"
        yield request


def _asked_to_wait_s(answer: httpx.Response) -> float | None:
    """Return how long to wait before a request is sent again that was not carried out."""
    if answer.status_code not in (429, 503) or "Retry-After" not in answer.headers:
        return None
    return min(float(answer.headers["Retry-After"]), _MOST_WAIT_S)


def _sent(lines: Iterator[str]) -> Iterator[tuple[str, str]]:
    """Read server-sent events as (event, data)."""
    kind, data = "message", ""
    for line in lines:
        name, _, value = line.partition(":")
        if line == "" and data:
            yield kind, data
            kind, data = "message", ""
        elif name == "event":
            kind = value.strip()
        elif name == "data":
            data += value.strip()


def _check(answer: httpx.Response) -> None:
    """Raise the error that the service met."""
    if answer.is_success:
        return
    try:
        problem = answer.json()
    except ValueError:
        problem = {"detail": answer.text}
    kind = error_named(str(problem.get("type")))
    text = str(problem.get("detail", ""))
    if kind is not None:
        raise kind(text)
    raise ServiceError(f"the service answered {answer.status_code}: {text}")


@lru_cache
def _adapter(kind: Any) -> TypeAdapter[Any]:
    return TypeAdapter(kind)


def _read(kind: type[T], answer: Any) -> T:
    read: T = _adapter(cast(Any, kind)).validate_python(answer)
    return read


def _body(submission: Submission) -> Mapping[str, Any]:
    facts = asdict(submission)
    del facts["cause"]
    return facts | {"db": submission.db or None}


def _query(wish: Wish) -> dict[str, Any]:
    facts = {"state": [s.value for s in wish.states], "db": wish.db, "table": wish.table}
    return _given(**facts, name=wish.name, sort=wish.sort, limit=wish.limit, cursor=wish.cursor)


def _chosen(wish: FailureWish) -> dict[str, Any]:
    return _given(run=wish.run_id, db=wish.db, table=wish.table, column=wish.column)


def _given(**facts: Any) -> dict[str, Any]:
    return {k: v for k, v in facts.items() if v is not None}
