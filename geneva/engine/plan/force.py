"""Forced runs: a token that outlives crashes and ``num_frags``, until the run is complete.

When the token goes, in order of a run's life:

1. The run begins: the token is written before the first task, with the job that begins it.
2. A crash, a failure, a time-out, a pause, ``num_frags``: the token stays, and the same command
   continues the run under its own job's name.
3. A person cancels or interrupts the job: its call removes the token when it has wound up.
4. A person cancels a job that has no process, or whose process is killed as it winds up: nobody
   is there to remove the token. The next call asks its recorder whether the job named in the
   token was cancelled, and removes the token before it plans.
5. Nothing is left to do: the job removes the token.
"""

from __future__ import annotations

import json
import time
from collections.abc import Iterable
from datetime import UTC, datetime
from uuid import uuid4

from geneva.column.checkpoint.key import work_key
from geneva.column.history.marks import job_generation
from geneva.engine.plan.decision import FragmentPlan
from geneva.engine.plan.fragments import Force
from geneva.model.types import Options, Target
from geneva.storage.lance import Snapshot, TableStorage
from geneva.where.parse import Where


class ForceToken:
    """The token of one column, UDF, filter and limits, below ``_backfill/force/``."""

    def __init__(
        self,
        storage: TableStorage,
        target: Target,
        where: Where | None,
        options: Options,
    ) -> None:
        rows = where.digest[:16] if where else "all"
        if options.fragments is not None or options.only is not None:
            rows += f".{work_key(options.fragments, options.only)[:16]}"
        self._path = f"force/{target.incarnation}.{target.digest[:16]}.{rows}.json"
        self._objects = storage.objects

    def find(self, snapshot: Snapshot) -> Force:
        """Return the run that was begun and not completed, or one that would begin now."""
        try:
            raw = json.loads(self._objects.get(self._path))
            begun_s = float(raw.get("begun_s", 0.0))  # older tokens do not say it
            return Force(raw["token"], raw["generation"], begun_s, continues=True)
        except (FileNotFoundError, ValueError, KeyError):
            return Force(uuid4().hex, job_generation(snapshot.version), time.time())

    @property
    def job_id(self) -> str:
        """The job that was the last to begin or continue the run; empty if that is not known."""
        try:
            return str(json.loads(self._objects.get(self._path)).get("job_id", ""))
        except (FileNotFoundError, ValueError, AttributeError):
            return ""

    def begin(self, force: Force, job_id: str) -> None:
        """Make the run continue after a crash instead of starting over."""
        body = {
            "token": force.token,
            "generation": force.generation,
            "begun_s": force.begun_s,
            "job_id": job_id,
        }
        self._objects.put(self._path, json.dumps(body).encode())

    def end(self) -> None:
        """Forget the run: it is complete, or was cancelled."""
        self._objects.delete(self._path)


def continued(force: Force, plans: Iterable[FragmentPlan]) -> str:
    """Say which forced run is continued, and how much of it was done before."""
    rows = sum(p.rows_forced for p in plans)
    begun = datetime.fromtimestamp(force.begun_s, UTC).strftime("%Y-%m-%d %H:%M:%S UTC")
    which = f"the forced run of {begun}" if force.begun_s else "an earlier forced run"
    return f"continues {which}: {rows:,} rows were done by it"
