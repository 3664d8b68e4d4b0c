"""Processes that claim jobs from one store at the same time."""

from __future__ import annotations

import multiprocessing
from dataclasses import replace
from typing import Any

from geneva.engine.process import this_process
from geneva.jobs.page import Wish
from geneva.jobs.records import Submission
from geneva.jobs.store.database import Database
from geneva.jobs.store.leases import Leases
from geneva.jobs.store.queue import claim
from geneva.jobs.store.store import Store
from geneva.model.types import JobState, Progress

ASKED = Submission(db="db", table="t", columns=("y",))


def fill(store: Store, jobs: int, **more: Any) -> None:
    """Queue jobs that each fill a column of their own."""
    for k in range(jobs):
        store.submit(replace(ASKED, **more), "db/t.lance", [f"c{k}"])


def _claimer(url: str, limit: int, out: Any) -> None:
    database = Database(url)
    leases = Leases(database)
    claimed = 0
    most = 0
    try:
        while True:
            found = claim(database, this_process(), limit)
            active = sum(p.active for p in Store(database).pools() if p.name == "")
            most = max(most, active)
            if (
                not found
                and not Store(database).jobs(Wish(states=(JobState.QUEUED,), limit=1)).items
            ):
                break
            for one in found:
                leases.finish(one, Progress(one.job_id, (), JobState.RUNNING), JobState.SUCCEEDED)
            claimed += len(found)
        out.put((claimed, most, ""))
    except BaseException as error:
        out.put((claimed, most, repr(error)))


def claim_at_once(url: str, processes: int, limit: int) -> list[tuple[int, int, str]]:
    """Claim and finish until nothing is queued; return jobs, most active at once, error of each."""
    context = multiprocessing.get_context("spawn")
    out = context.Queue()
    children = [context.Process(target=_claimer, args=(url, limit, out)) for _ in range(processes)]
    for child in children:
        child.start()
    found = [out.get(timeout=900) for _ in children]
    for child in children:
        child.join()
    return found
