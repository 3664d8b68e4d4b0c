"""A database of jobs with a long history, written without a service."""

from __future__ import annotations

from sqlalchemy import insert, select

from geneva.jobs.records import Submission
from geneva.jobs.store.models import JobRow, Run, TaskRow
from geneva.jobs.store.opening import open_store


def fill_queue(url: str, jobs: int) -> None:
    """Queue jobs, a run each, in a pool without slots: none of them starts."""
    store = open_store(url)
    store.set_pool("full", 0)
    store.submit(Submission("db", "t", ("c",), pool="full"), "db/t.lance", ("c",))
    with store.database.write() as session:  # the rest as copies: a commit each would take minutes
        run = dict(session.execute(select(Run.__table__)).mappings().one())
        job = dict(session.execute(select(JobRow.__table__)).mappings().one())
        for k in range(1, jobs):
            uri, created_s = f"db/t{k % 100}.lance", run["created_s"] + k / 1e3
            other = {"id": f"r{k}", "created_s": created_s}
            session.execute(insert(Run).values(run | other))
            other = {"id": f"j{k}", "run_id": f"r{k}", "created_s": created_s}
            other |= {"queued_s": created_s, "table_uri": uri, "priority": k % 3}
            session.execute(insert(JobRow).values(job | other))


def many_fragments(url: str, fragments: int) -> tuple[str, str]:
    """Record a job with that many fragments, in all states; return its run and itself.

    Neighbours differ, as in a job that a few appliers have and a few rows fail: no payload that
    joins equal ones gets small by it.
    """
    store = open_store(url)
    run = store.submit(Submission("db", "big", ("c",), pool="full"), "db/big.lance", ("c",))
    job = run.jobs[0]
    states = ("COMMITTED", "DONE", "RUNNING", "PLANNED", "FAILED")
    with store.database.write() as session:
        session.add_all(
            TaskRow(
                job_id=job.id,
                column="c",
                fragment_id=k,
                state=states[k * 7919 % 101 % len(states)],
                rows=1_000,
                rows_planned=1_000,
            )
            for k in range(fragments)
        )
    return run.id, job.id
