"""The checks of a request before it is queued, without running anybody's code."""

from __future__ import annotations

from dataclasses import dataclass

from geneva.engine.plan.report import Plan
from geneva.errors import SettingError
from geneva.jobs.backfills import absolute
from geneva.jobs.records import Submission
from geneva.model.arguments import refuse_elsewhere
from geneva.service.opened_tables import Databases
from geneva.service.resources import check_resources
from geneva.table import Table


@dataclass(frozen=True, slots=True)
class Admitted:
    """A request that can be carried out, as the table stands now."""

    asked: Submission
    table_uri: str
    fills: tuple[str, ...]


def admit(asked: Submission, databases: Databases) -> Admitted:
    """Check a request against its table.

    Raises
    ------
    RequestError
        Whatever is wrong with it; the service may not open that database.
    ResourceError
        No node can ever hold an applier.
    """
    table = _open(asked, databases)
    bindings = table.computed_columns()
    fills = table.check_backfill(list(asked.columns), **asked.arguments)
    for name in asked.columns:
        check_resources(bindings[name].reserves, asked.arguments.get("executor"), asked.ray)
    return Admitted(asked, absolute(table.storage.uri), fills)


def plan(asked: Submission, databases: Databases) -> Plan:
    """Return the plan of a run of the request at this moment."""
    return _open(asked, databases).plan_backfill(list(asked.columns), **asked.arguments)


def _open(asked: Submission, databases: Databases) -> Table:
    check_arguments(asked)
    return databases.table(asked.db, asked.table, asked.ray)


def check_arguments(asked: Submission) -> None:
    """Check the arguments that need no table.

    Raises
    ------
    SettingError
        Whatever is wrong with it.
    """
    if not asked.columns:
        raise SettingError("no column given")
    twice = [c for c in dict.fromkeys(asked.columns) if asked.columns.count(c) > 1]
    if twice:
        raise SettingError(f"columns: {', '.join(map(repr, twice))} is given more than once")
    if asked.max_active is not None:
        raise SettingError(
            "max_active: a backfill is one job, so there is nothing to cap; the slots of a pool "
            "limit the jobs of several runs"
        )
    refuse_elsewhere(asked.arguments)
