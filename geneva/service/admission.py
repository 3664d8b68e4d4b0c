"""The checks of a request before it is queued, without running anybody's code.

One of them is whether any node can ever give the resources of an applier.
"""

from __future__ import annotations

import json
import logging
import math
import os
import subprocess
import sys
import threading
import time
from collections import OrderedDict
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from geneva.appliers.executor import lacking
from geneva.engine.plan.report import Plan
from geneva.errors import ResourceError, SettingError
from geneva.jobs.backfills import absolute
from geneva.jobs.records import Submission
from geneva.model.arguments import refuse_elsewhere
from geneva.service.opened_tables import Databases
from geneva.table import Table


@dataclass(frozen=True, slots=True)
class Admitted:
    """A request that can be carried out, as the table stands now; it fills some columns."""

    asked: Submission
    table: Table
    fills: tuple[str, ...]

    @property
    def table_uri(self) -> str:
        """The table as records name it."""
        return absolute(self.table.storage.uri)

    def plan(self) -> Plan:
        """Return the plan of a run of the request at this moment."""
        return self.table.plan_backfill(list(self.asked.columns), **self.asked.arguments)


def admit(submission: Submission, databases: Databases) -> Admitted:
    """Check a request against its table.

    Raises
    ------
    RequestError
        Whatever is wrong with it; the service may not open that database.
    ResourceError
        No node can ever hold an applier.
    """
    table = opened(submission, databases)
    bindings = table.computed_columns()
    fills = table.check_backfill(list(submission.columns), **submission.arguments)
    for name in submission.columns:
        check_resources(
            bindings[name].reserves, submission.arguments.get("executor"), submission.ray
        )
    return Admitted(submission, table, fills)


def opened(submission: Submission, databases: Databases) -> Table:
    """Open the table of a request, whose arguments are checked first.

    Raises
    ------
    RequestError
        Whatever is wrong with an argument that needs no table; or there is no such table here.
    """
    check_arguments(submission)
    return databases.table(submission.db, submission.table, submission.ray)


def check_arguments(submission: Submission) -> None:
    """Check the arguments that need no table.

    Raises
    ------
    SettingError
        Whatever is wrong with it.
    """
    if not submission.columns:
        raise SettingError("no column given")
    twice = [c for c in dict.fromkeys(submission.columns) if submission.columns.count(c) > 1]
    if twice:
        raise SettingError(f"columns: {', '.join(map(repr, twice))} is given more than once")
    if submission.max_active is not None:
        raise SettingError(
            "max_active: a backfill is one job, so there is nothing to cap; the slots of a pool "
            "limit the jobs of several runs"
        )
    refuse_elsewhere(submission.arguments)


_LOG = logging.getLogger("geneva.service")
_KNOWN_S = 60.0  # for how long an answer is good
_ANSWER_S = 60.0
_TELLING = ("address", "num_cpus", "num_gpus", "resources", "_memory")  # no secrets among them
_CLUSTERS = 64  # of which answers are kept


@dataclass(slots=True)
class _Asked:
    """The answer to a question, and its moment."""

    lock: threading.Lock = field(default_factory=threading.Lock)
    at_s: float = -math.inf
    answer: dict[str, Any] | None = None


_lock = threading.Lock()
_known: OrderedDict[str, _Asked] = OrderedDict()


def check_resources(
    reserves: Mapping[str, float], executor: str | None, ray: Mapping[str, Any]
) -> None:
    """Refuse a job whose appliers could never start.

    What cannot be found out is left to the driver, which says so within seconds.

    Parameters
    ----------
    reserves
        Of one applier, as Ray names them.
    ray
        Options for ``ray.init``.

    Raises
    ------
    ResourceError
        No node has so much of a resource, and the cluster does not grow.
    """
    ordinary = set(reserves) <= {"CPU"} and reserves.get("CPU", 0) <= 1
    if executor == "local" or ordinary:
        return  # threads reserve nothing, and any node has a processor
    cluster = _nodes(ray)
    if cluster is None or cluster["grows"] or not cluster["nodes"]:
        return
    if why := lacking(cluster["nodes"], reserves):
        raise ResourceError(why)


def _nodes(ray: Mapping[str, Any]) -> dict[str, Any] | None:
    """Ask in another process, at most once a minute."""
    question = json.dumps({k: ray[k] for k in _TELLING if k in ray}, sort_keys=True)
    with _lock:
        known = _known.setdefault(question, _Asked())
        _known.move_to_end(question)
        while len(_known) > _CLUSTERS:
            _known.popitem(last=False)
    with known.lock:  # those who ask for another cluster do not wait for this one
        if time.monotonic() - known.at_s >= _KNOWN_S:
            known.answer = _ask(question)
            known.at_s = time.monotonic()
        return known.answer


def _ask(question: str) -> dict[str, Any] | None:
    command = [sys.executable, "-m", "geneva.appliers.ray.nodes", question]
    try:
        done = subprocess.run(
            command, capture_output=True, text=True, check=True, timeout=_ANSWER_S, env=os.environ
        )
        answer: dict[str, Any] = json.loads(done.stdout.splitlines()[-1])
        return answer
    except (subprocess.SubprocessError, OSError, ValueError, IndexError) as error:
        _LOG.warning("cannot find out what the nodes have: %s", error)
        return None
