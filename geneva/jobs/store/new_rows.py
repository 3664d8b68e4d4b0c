"""The rows of new runs and jobs: of a submission, of a retry, of a retry of some rows."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Sequence
from dataclasses import asdict, replace
from uuid import uuid4

from sqlalchemy.orm import Session

from geneva.errors import JobStateError, SettingError
from geneva.jobs.records import Mode, RunRecord, Submission
from geneva.jobs.store.change import move, note
from geneva.jobs.store.failed_rows import Picked
from geneva.jobs.store.mapping import run_record
from geneva.jobs.store.models import JobRow, Run
from geneva.model.types import JobState
from geneva.storage.secrets import HIDDEN, without_secrets


def queue_run(
    session: Session,
    submission: Submission,
    table_uri: str,
    fills: Sequence[str],
    now_s: float,
    key: str | None = None,
    fingerprint: str = "",
) -> tuple[Run, JobRow]:
    """Add a run of one job, queued."""
    run = new_run(submission, now_s, key, fingerprint)
    job = new_job(run, submission, table_uri, fills, now_s)
    add_rows(session, run, job)
    note(session, run, job, now_s, "submitted", submission.cause)
    move(session, run, job, JobState.QUEUED, "waiting for the scheduler", now_s)
    return run, job


def add_rows(session: Session, run: Run, job: JobRow) -> None:
    """Add a run and its job."""
    for row in (run, job):  # without a relationship, one flush inserts in any order
        session.add(row)
        session.flush()


def _new_id() -> str:
    return uuid4().hex[:12]


def new_run(submission: Submission, now_s: float, key: str | None, fingerprint: str) -> Run:
    """Return the row of a run that is not queued yet."""
    return Run(
        id=_new_id(),
        name=submission.name,
        cause=submission.cause,
        state=JobState.PENDING.value,
        db=submission.db,
        table=submission.table,
        columns=list(submission.columns),
        priority=submission.priority,
        max_active=submission.max_active,
        idempotency_key=key,
        fingerprint=fingerprint,
        created_s=now_s,
        event_seq=0,
        sealed=True,
    )


def new_job(
    run: Run, submission: Submission, table_uri: str, fills: Sequence[str], now_s: float
) -> JobRow:
    """Return the row of a job that is not queued yet."""
    return JobRow(
        id=_new_id(),
        run_id=run.id,
        mode=Mode.SERVICE.value,
        db=submission.db,
        table=submission.table,
        table_uri=table_uri,
        columns=list(submission.columns),
        fills=sorted(fills),
        fragments=submission.arguments.get("fragments"),
        arguments=dict(submission.arguments),
        ray=dict(submission.ray),
        params=dict(submission.arguments.get("params") or {}),
        pool=submission.pool,
        priority=submission.priority,
        cause=submission.cause,
        state=JobState.PENDING.value,
        created_s=now_s,
        queued_s=now_s,
    )


def retry_of(parent: JobRow, now_s: float) -> JobRow:
    """Return the retry of a job: its missing rows and its failed ones."""
    if HIDDEN in json.dumps([parent.arguments, parent.ray]):
        raise JobStateError(
            f"job {parent.id} was recorded without its secrets, so only its caller can repeat it"
        )
    arguments = dict(parent.arguments)
    if parent.state == JobState.PARTIAL:
        # All else is done, so a forced run is not forced again.
        arguments |= {"retry_failed": True, "force": False}
    elif parent.rows_failed:
        arguments["retry_failed"] = True
    copied: tuple[str, ...] = (
        "run_id",
        "mode",
        "db",
        "table",
        "table_uri",
        "columns",
        "fills",
        "fragments",
        "ray",
    )
    copied += ("params", "pool", "priority")
    return JobRow(
        **{n: getattr(parent, n) for n in copied} | {"mode": Mode.SERVICE.value},
        id=_new_id(),
        parent_id=parent.id,
        arguments=arguments,
        cause="retry",
        state=JobState.PENDING.value,
        created_s=now_s,
        queued_s=now_s,
    )


def refuse_secrets(submission: Submission) -> None:
    """Raise `SettingError` if a request holds a secret."""
    given = dict(submission.arguments) | {"ray": dict(submission.ray)}
    kept = without_secrets(submission.arguments)
    kept["ray"] = without_secrets(submission.ray, by_name=True)
    secret = [name for name in given if given[name] != kept[name]]
    if secret:
        raise SettingError(
            f"{' and '.join(secret)} would put a secret into the database of jobs: set it in the "
            "environment of the service and of Ray's nodes instead"
        )


def queue_apart(
    session: Session, children: Sequence[JobRow], name: str, part: str, now_s: float
) -> RunRecord:
    """Queue retries of parts of jobs of one table in a run of their own."""
    first = children[0]
    columns = tuple(dict.fromkeys(c for child in children for c in child.columns))
    submission = Submission(
        first.db, first.table, columns, name=name, priority=first.priority, cause="retry"
    )
    run = new_run(submission, now_s, None, "")
    session.add(run)
    session.flush()
    for child in children:
        child.run_id = run.id
        session.add(child)
        session.flush()
        note(session, run, child, now_s, "retry", f"of {part} of job {child.parent_id}")
        move(session, run, child, JobState.QUEUED, "waiting for the scheduler", now_s)
    return run_record(run, children)


def retry_of_rows(parent: JobRow, picked: Picked, now_s: float) -> JobRow:
    """Return a retry of some rows of a job, which stays as it is.

    A job that stopped at the first failure is continued as a whole.
    """
    child = retry_of(parent, now_s)
    child.columns = [c for c in parent.columns if c in picked.columns] or parent.columns
    child.fills = [c for c in parent.fills if c in picked.columns] or parent.fills
    if parent.arguments.get("on_error") == "null":
        only = {"only": [list(span) for span in picked.only], "retry_failed": True, "force": False}
        child.arguments = {k: v for k, v in child.arguments.items() if k != "num_frags"} | only
    return child


def fingerprint_of(submission: Submission) -> str:
    """Return a hash by which a request is known again, whatever its cause."""
    try:
        text = json.dumps(asdict(replace(submission, cause="")), sort_keys=True)
    except TypeError as error:
        raise SettingError(f"the arguments of a job that is kept must be JSON: {error}") from error
    return hashlib.sha256(text.encode()).hexdigest()
