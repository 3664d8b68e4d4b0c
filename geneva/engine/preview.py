"""The plan of a backfill that nobody has begun: nothing runs and nothing is written."""

from __future__ import annotations

import math
import random
import time
from dataclasses import dataclass, field

from geneva.column.history.ledger import Ledger
from geneva.column.history.marks import as_readable
from geneva.column.history.provenance import History
from geneva.engine.plan.decision import Action, FragmentPlan
from geneva.engine.plan.force import ForceToken, continued
from geneva.engine.plan.fragments import Planner, in_order
from geneva.engine.plan.report import Plan
from geneva.engine.request import checked
from geneva.engine.windowing import Windowing
from geneva.model.types import Options
from geneva.storage.lance import Snapshot, TableStorage


def plan(
    storage: TableStorage,
    column: str,
    options: Options,
    params: dict[str, object] | None,
    within_s: float = math.inf,
) -> Plan:
    """Plan a backfill, to the row; nothing runs and nothing is written.

    Parameters
    ----------
    within_s
        How long a filter may be evaluated; of fragments that are left then, the plan says at most
        how many rows (`Action.FILTER`). Those that are evaluated are spread over the table.

    Raises
    ------
    RequestError
        Whatever is wrong with the request.
    """
    looked_at = _LookedAt()

    def work(latest: Snapshot) -> Plan:
        return _plan(storage, latest, column, options, params, within_s, looked_at)

    return storage.on_latest(work)


@dataclass(frozen=True, slots=True)
class _LookedAt:
    """The parts of a plan that outlive a version which was cleaned up too soon."""

    ledgers: dict[str, Ledger] = field(default_factory=dict)
    counted: dict[str, FragmentPlan] = field(default_factory=dict)


def _plan(
    storage: TableStorage,
    latest: Snapshot,
    column: str,
    options: Options,
    params: dict[str, object] | None,
    within_s: float,
    looked_at: _LookedAt,
) -> Plan:
    target, where = checked(storage, latest, column, options, params)
    token = ForceToken(storage, target, where, options)
    force = token.find(latest) if options.force else None
    read = [*target.columns, *(where.columns if where else ())]
    snapshot = as_readable(storage, latest, read)
    if target.incarnation not in looked_at.ledgers:
        looked_at.ledgers[target.incarnation] = Ledger.load(storage, target.incarnation)
    history = History(storage, snapshot, looked_at.ledgers[target.incarnation])
    windowing, slices = None, None
    fragments = snapshot.fragments
    chosen = in_order(fragments, options)
    if options.windows is not None:
        windowing = Windowing(storage, snapshot, options.windows)
        slices = windowing.slices(snapshot)
        slices.learn([fragments[i] for i in chosen])
    planner = Planner(storage, history, target, where, options, force, slices)
    plans = [planner.plan(fragments[i]) for i in chosen]
    filtered = [k for k, p in enumerate(plans) if p.action is Action.FILTER]
    if within_s < math.inf:
        random.Random(0).shuffle(filtered)
    deadline = time.monotonic() + within_s
    for k in filtered:
        if time.monotonic() > deadline:
            break
        if (work := plans[k].work) not in looked_at.counted:
            looked_at.counted[work] = planner.counted(plans[k])
        plans[k] = looked_at.counted[work]
    notes = (continued(force, plans),) if force is not None and force.continues else ()
    limit, windows = options.num_frags, None
    if windowing is not None:
        first = {i: k for k, i in enumerate(windowing.begin(plans, None))}
        plans.sort(key=lambda p: first.get(p.fragment_id, len(first)))
        windowing.begin(plans, limit)
        windows = windowing.plan
        notes = (*notes, *windowing.notes(snapshot, plans))
    told = tuple(plans)
    return Plan(target.columns, snapshot.version, told, options.where, limit, notes, windows)
