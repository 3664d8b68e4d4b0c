"""Forced runs: a token that outlives crashes and ``num_frags``, until the run is complete."""

from __future__ import annotations

import json
from uuid import uuid4

from geneva.checkpoint.key import work_key
from geneva.column.marks import job_generation
from geneva.plan.fragments import Force
from geneva.plan.where import Where
from geneva.storage.lance import Snapshot, TableStorage
from geneva.types import Options, Target


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
            return Force(raw["token"], raw["generation"])
        except (FileNotFoundError, ValueError, KeyError):
            return Force(uuid4().hex, job_generation(snapshot.version))

    def begin(self, force: Force) -> None:
        """Make the run continue after a crash instead of starting over."""
        body = json.dumps({"token": force.token, "generation": force.generation})
        self._objects.put(self._path, body.encode())

    def end(self) -> None:
        """Forget the run: it is complete."""
        self._objects.delete(self._path)
