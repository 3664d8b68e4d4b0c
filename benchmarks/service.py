"""What a job service adds: time to the first row, a tick, a request, a page, a whole job."""

from __future__ import annotations

import os
import re
import statistics
import subprocess
import sys
import threading
import time
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import httpx
import numpy as np

from benchmarks import tables, udfs
from benchmarks.measure import Answer, Scale, Side, alternate, end_ray, growth
from benchmarks.queue import fill_queue, many_fragments
from geneva.jobs.store.local_service import token_for
from geneva.service.scheduler import Scheduler
from geneva.service.service_settings import Settings

_RATE = 100  # requests a second
_JOB_S = 20.0  # what the UDF of the whole job takes
_FIRST_ROW_S, _TICK_MS, _P99_MS, _PAGE_MS, _SERVER_MS = 3.0, 50.0, 100.0, 1_000.0, 100.0
_ENDED = ("SUCCEEDED", "PARTIAL", "FAILED", "CANCELLED")

_DIRECT = """
import sys
import geneva
geneva.connect(sys.argv[1]).open_table("t").backfill("c", concurrency=2, progress=False)
"""


def run(scale: Scale) -> list[Answer]:
    """First row, whole job, tick, requests and pages of a service that runs beside this process."""
    end_ray()
    with tables.folder() as path:
        tables.table(path / "db", tables.numbers(100), 4)
        with _served(path / "state", path / "db") as http:
            first = _first_rows(path / "db", http, scale)
        whole = _whole_job(path, scale)
        return [first, whole, _tick(path, scale), *_requests(path, scale), *_pages(path, scale)]


# --- a job, from its submission ---------------------------------------------------------------


def _first_rows(db: Path, http: httpx.Client, scale: Scale) -> Answer:
    """From the request to the moment in which a reader sees a value."""

    def once(executor: str) -> float:
        tbl = tables.opened(db)
        tables.fresh(tbl, udfs.double)()
        started = time.perf_counter()
        _submit(http, executor=executor)
        while not tbl.count_rows("c is not null"):
            time.sleep(0.005)
            tbl.checkout_latest()
        seconds = time.perf_counter() - started
        _wait_for_all(http)
        return seconds

    seconds = {e: [once(e) for _ in range(1 + scale.rounds)][1:] for e in ("local", "ray")}
    middle = {e: statistics.median(s) for e, s in seconds.items()}
    return Answer(
        "from submit to the first row that a reader sees, 100 rows",
        f"<= {_FIRST_ROW_S:.0f} s (ours)",
        f"{middle['local']:.2f} s, with a Ray of its own {middle['ray']:.2f} s",
        middle["local"] <= _FIRST_ROW_S,
        "a driver is a fresh process; "
        + "; ".join(f"{e}: {', '.join(f'{x:.2f}' for x in s)}" for e, s in seconds.items()),
    )


def _whole_job(path: Path, scale: Scale) -> Answer:
    """The same job by a script, in a process of its own, and by the service."""
    seconds = _JOB_S / 10 if scale.quick else _JOB_S
    rows = 4_000
    db = path / "whole"
    tbl = tables.table(db, tables.numbers(rows), 8)
    # Two appliers share the work, in batches of 100 rows.
    udf = udfs.sleeper(str(path / "calls"), seconds * 2 * 100 / rows, 100)
    with _served(path / "whole-state", db) as http:

        def served() -> None:
            _submit(http, concurrency=2)
            _wait_for_all(http)

        def direct() -> None:
            subprocess.run([sys.executable, "-c", _DIRECT, str(db)], check=True, timeout=600)

        fresh = tables.fresh(tbl, udf)
        sides = {"served": Side(served, fresh), "direct": Side(direct, fresh)}
        found = alternate(sides, min(scale.rounds, 3))
    limit = 1.05 * found.median("direct") + 1.0
    return Answer(
        f"a job of {seconds:.0f} s through the service against the same call in a script",
        "<= 5% + 1 s more",
        f"{found.excess('served', 'direct'):+.2f} s of {found.median('direct'):.1f} s",
        found.median("served") <= limit,
        found.text(),
    )


# --- ten thousand jobs ------------------------------------------------------------------------


def _tick(path: Path, scale: Scale) -> Answer:
    """A look of the scheduler at a queue of which nothing may start."""
    points: dict[float, float] = {}
    for jobs in (100, 1_000, 10_000):
        state = path / f"tick-{jobs}"
        settings = Settings(f"sqlite:///{state / 'jobs.db'}", state)
        fill_queue(settings.url, jobs)
        scheduler = Scheduler(settings)
        scheduler.tick()  # the first one writes down why each job waits
        found = []
        for _ in range(max(scale.rounds, 5)):
            started = time.perf_counter()
            scheduler.tick()
            found.append(time.perf_counter() - started)
        points[float(jobs)] = statistics.median(found) * 1e3
    return Answer(
        "a tick of the scheduler with 10,000 queued jobs",
        f"<= {_TICK_MS:.0f} ms (ours)",
        f"{points[10_000.0]:.0f} ms",
        points[10_000.0] <= _TICK_MS,
        ", ".join(f"{n:,.0f} jobs {ms:.1f} ms" for n, ms in points.items())
        + f"; {growth(points, 'jobs')}",
    )


def _requests(path: Path, scale: Scale) -> Iterator[Answer]:
    """Requests at a fixed rate, whether or not the ones before were answered."""
    state = path / "many"
    url = f"sqlite:///{state / 'jobs.db'}"
    fill_queue(url, 10_000)
    run_id, job_id = many_fragments(url, 10_000)
    paths = (
        "/api/v1/runs?limit=50",
        "/api/v1/jobs?state=QUEUED&limit=50",
        f"/api/v1/runs/{run_id}",
        f"/api/v1/jobs/{job_id}/tasks?limit=100",
        f"/api/v1/runs/{run_id}/events",
        "/metrics",
    )
    with _served(state, path / "db") as http:
        first_ms = max(_get(http, [p]) for p in paths) * 1e3
        seconds = 5 if scale.quick else 20
        served_s, asked_s = _cpu_s(http.pid), time.process_time()
        took = np.array(_at_a_rate(http, paths, seconds)) * 1e3
        served_s, asked_s = _cpu_s(http.pid) - served_s, time.process_time() - asked_s
        p50, p99 = np.percentile(took, 50), np.percentile(took, 99)
        yield Answer(
            f"REST at {_RATE} requests a second, 10,000 queued jobs",
            f"p99 <= {_P99_MS:.0f} ms (ours)",
            f"p99 {p99:.0f} ms",
            bool(p99 <= _P99_MS),
            f"median {p50:.1f} ms, slowest {took.max():.0f} ms, after the first of each kind, "
            f"which took {first_ms:.0f} ms at most; {len(took):,} requests of "
            f"{len(paths)} kinds from when each was due; of each, the service had a core for "
            f"{served_s / len(took) * 1e3:.1f} ms, its ticks among it, and we who asked for "
            f"{asked_s / len(took) * 1e3:.1f} ms",
        )


def _cpu_s(pid: int) -> float:
    """Return the seconds of a core that a process had."""
    ticks = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[11:13]
    return sum(map(int, ticks)) / os.sysconf("SC_CLK_TCK")


def _at_a_rate(http: httpx.Client, paths: tuple[str, ...], seconds: float) -> list[float]:
    lock = threading.Lock()
    took: list[float] = []

    def ask(path: str, due: float) -> None:
        time.sleep(max(due - time.perf_counter(), 0.0))
        http.get(path).raise_for_status()
        with lock:
            took.append(time.perf_counter() - due)

    started = time.perf_counter()
    with ThreadPoolExecutor(32) as pool:
        asked = [
            pool.submit(ask, paths[k % len(paths)], started + k / _RATE)
            for k in range(int(seconds * _RATE))
        ]
        for one in asked:
            one.result()
    return took


# --- ten thousand fragments -------------------------------------------------------------------


def _pages(path: Path, scale: Scale) -> Iterator[Answer]:
    """The page of a run and its grid of fragments, with and without a browser."""
    state = path / "pages"
    url = f"sqlite:///{state / 'jobs.db'}"
    state.mkdir(parents=True)
    made = {n: many_fragments(url, n) for n in (100, 1_000, 10_000)}
    with _served(state, path / "db") as http:
        answered: dict[float, float] = {}
        for fragments, (run_id, job_id) in made.items():
            asked = (f"/runs/{run_id}", f"/jobs/{job_id}/grid?column=c")
            took = [_get(http, asked) for _ in range(1 + max(scale.rounds, 5))]
            answered[float(fragments)] = statistics.median(took[1:]) * 1e3
        sizes = ", ".join(f"{len(http.get(a).content):,}" for a in asked)
        yield Answer(
            "the page of a run of 10,000 fragments: what the service takes for page and grid",
            f"<= {_SERVER_MS:.0f} ms (ours)",
            f"{answered[10_000.0]:.0f} ms",
            answered[10_000.0] <= _SERVER_MS,
            f"{_by_fragments(answered)}; {sizes} bytes",
        )
        question = "the same in Chromium, from nothing to the drawn grid"
        bar = f"<= {_PAGE_MS:,.0f} ms (ours)"
        try:
            seen = _in_a_browser(str(http.base_url), http.token, made, scale)
        except LookupError as missing:
            yield Answer(question, bar, f"not asked: {missing}", None)
            return
        yield Answer(
            question,
            bar,
            f"{seen[10_000.0]:,.0f} ms",
            seen[10_000.0] <= _PAGE_MS,
            f"without a window, with an empty cache: {_by_fragments(seen)}",
        )


def _in_a_browser(
    url: str, token: str, made: Mapping[int, tuple[str, str]], scale: Scale
) -> dict[float, float]:
    """Return milliseconds by fragments.

    Raises
    ------
    LookupError
        There is no browser, or nothing to drive it.
    """
    try:
        from tests.support import browser
    except ImportError as error:
        raise LookupError("there is no Playwright here (pip install playwright)") from error
    program = browser.present()
    if program is None:
        raise LookupError("there is no Chromium here (apt install chromium)")
    found: dict[float, float] = {}
    with browser.browser(program) as started:
        for fragments, (run_id, _) in made.items():
            took = []
            for _ in range(1 + max(scale.rounds, 5)):
                visitor = browser.Visitor(started, url, token)  # with a cache of its own
                begun = time.perf_counter()
                visitor.page.goto(f"/runs/{run_id}", wait_until="commit")
                visitor.page.wait_for_selector(f"[data-drawn='{fragments}']")
                took.append(time.perf_counter() - begun)
                visitor.close()
                visitor.check()
            found[float(fragments)] = statistics.median(took[1:]) * 1e3
    return found


def _get(http: httpx.Client, paths: Sequence[str]) -> float:
    """Return the seconds that requests take one after the other."""
    begun = time.perf_counter()
    for path in paths:
        http.get(path).raise_for_status()
    return time.perf_counter() - begun


def _by_fragments(points: Mapping[float, float]) -> str:
    told = ", ".join(f"{n:,.0f} fragments {ms:.0f} ms" for n, ms in points.items())
    return f"{told}; {growth(points, 'fragments')}"


# --- a service --------------------------------------------------------------------------------


class _Service(httpx.Client):
    """A client of a service, with its token and a session, that knows its process."""

    pid: int
    token: str


@contextmanager
def _served(state: Path, db: Path) -> Iterator[_Service]:
    """A service in a process of its own, on a free port."""
    state.mkdir(parents=True, exist_ok=True)
    log = state / "service.log"
    command = [sys.executable, "-m", "geneva", "serve", "--port", "0"]
    with log.open("wb") as out:
        process = subprocess.Popen(
            [*command, "--state", str(state), "--db", str(db)], stdout=out, stderr=out
        )
    try:
        url = f"http://127.0.0.1:{_port(log, process)}"
        with _Service(base_url=url, timeout=60) as http:
            http.pid, http.token = process.pid, _token(url, process)
            http.headers["Authorization"] = f"Bearer {http.token}"
            form = {"token": http.token, "next": "/login"}
            http.post("/login", data=form, headers={"Origin": url})
            yield http
    finally:
        process.terminate()
        process.wait(30)


def _token(url: str, process: subprocess.Popen[bytes]) -> str:
    """Wait for the token that a service writes down for its account."""
    while (token := token_for(url)) is None:
        if process.poll() is not None:
            raise RuntimeError("the service ended")
        time.sleep(0.02)
    return token


def _port(log: Path, process: subprocess.Popen[bytes]) -> int:
    while True:
        if found := re.search(r"running on http://\S+:(\d+)", log.read_text()):
            return int(found[1])
        if process.poll() is not None:
            raise RuntimeError(f"the service ended: {log.read_text()}")
        time.sleep(0.02)


def _submit(http: httpx.Client, **arguments: Any) -> None:
    body = {"table": "t", "columns": ["c"], "arguments": arguments}
    http.post("/api/v1/runs", json=body).raise_for_status()


def _wait_for_all(http: httpx.Client) -> None:
    """Wait until every run has ended, and has done what it should."""
    while True:
        runs = http.get("/api/v1/runs?limit=1000").json()["items"]
        if all(r["state"] in _ENDED for r in runs):
            assert all(r["state"] == "SUCCEEDED" for r in runs), runs
            return
        time.sleep(0.02)
