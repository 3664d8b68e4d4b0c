"""The resources of a Ray cluster, and the nodes that go away.

Some of it only Ray's private interfaces tell. Each is read in `_private`, so that a Ray which has
moved or reshaped one costs an explanation or a warning ahead of time, and never a job.
"""

from __future__ import annotations

import json
import logging
import os
import re
from collections.abc import Callable, Mapping, Sequence
from typing import Any, TypeVar

import ray
from ray.exceptions import ActorUnavailableError, ObjectLostError, RayActorError

T = TypeVar("T")

_FIXED_NODE = re.compile(r"node_[0-9a-f]{40,}")
_NODE_DIED = "its node has died"
_LOG = logging.getLogger("geneva")


def host_resources(options: Mapping[str, Any]) -> dict[str, float]:
    """Return the most resources that a Ray started on this host can have.

    Parameters
    ----------
    options
        For ``ray.init``.
    """
    memory = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    most = {"CPU": float(os.cpu_count() or 1), "memory": float(memory)}
    # A private interface: where it is gone, this program fails, and the driver has to tell.
    for manager in ray._private.accelerators.get_all_accelerator_managers():  # noqa: SLF001
        name, count = manager.get_resource_name(), manager.get_current_node_num_accelerators()
        most[name] = max(most.get(name, 0.0), float(count))
    given = {"CPU": options.get("num_cpus"), "GPU": options.get("num_gpus")}
    given |= {"memory": options.get("_memory"), **(options.get("resources") or {})}
    return most | {k: float(v) for k, v in given.items() if v is not None}


def nodes() -> list[dict[str, float]]:
    """Return the resources of each node that is alive and not being drained."""
    going = draining_nodes()
    return [n["Resources"] for n in ray.nodes() if n["Alive"] and n["NodeID"] not in going]


def draining_nodes() -> frozenset[str]:
    """Return the ids of nodes that are about to go: preempted, or scaled down."""
    return _private(
        lambda: frozenset(ray._private.state.state.get_draining_nodes()),  # noqa: SLF001
        frozenset(),
    )


def node_lost(error: Exception, node: str) -> bool:
    """Tell whether an applier's node, not the UDF, is to blame for its death.

    A node that vanished is noticed by its broken connections long before Ray declares it dead.

    Parameters
    ----------
    error
        What Ray raised of the applier.
    node
        The id of its node, empty if the applier died before it told.
    """
    if isinstance(error, (ActorUnavailableError, ObjectLostError)):
        return True
    if isinstance(error, RayActorError) and (error.preempted or _NODE_DIED in str(error)):
        return True
    return any(n["NodeID"] == node and not n["Alive"] for n in ray.nodes())


def autoscaling() -> bool:
    """Return whether the cluster can grow: a fixed one has a node type for every node."""

    def grows() -> bool:
        report = _status().get("autoscaler_report") or {}
        types = [*(report.get("active_nodes") or ()), *(report.get("idle_nodes") or ())]
        return any(not _FIXED_NODE.fullmatch(t) for t in types)

    return _private(grows, False)


def held_by_others(needs: Mapping[str, float], actors: Sequence[Any]) -> str:
    """Return which resources some actors wait for, all of them, or an empty text.

    Actors that fit and are only being started hold what they need already: Ray counts them among
    what is used, but not among the demands that it has no place for.

    Parameters
    ----------
    needs
        What each of the actors reserves.
    """
    if not actors or _demands(needs) < len(actors) or any(map(_placed, actors)):
        return ""
    free, total = ray.available_resources(), ray.cluster_resources()
    waits = [
        f"{v:g} {r} ({free.get(r, 0.0):g} of {total.get(r, 0.0):g} free, "
        f"{total.get(r, 0.0) - free.get(r, 0.0):g} held by others)"
        for r, v in needs.items()
        if free.get(r, 0.0) < v
    ]
    needed = " and ".join(waits) or " and ".join(f"{v:g} {r}" for r, v in needs.items())
    where = "" if waits else ", which no node has free at once: others hold some of each"
    return f"an applier needs {needed}{where}"


def _demands(needs: Mapping[str, float]) -> int:
    """Return how many tasks and actors with such needs Ray has no place for."""

    def count() -> int:
        demands = (_status().get("load_metrics_report") or {}).get("resource_demand") or ()
        return sum(n for shape, n in demands if all(shape.get(r) == v for r, v in needs.items()))

    return _private(count, 0)


def _placed(actor: Any) -> bool:
    def alive() -> bool:
        record = ray._private.state.actors(actor._actor_id.hex())  # noqa: SLF001
        return bool(record["State"] == "ALIVE")

    return _private(alive, True)  # where nobody knows, nobody is given up


def others_wait() -> bool:
    """Return whether some task or actor of the cluster waits for resources."""

    def wait() -> bool:
        load = _status().get("load_metrics_report") or {}
        return bool(load.get("resource_demand") or load.get("pg_demand"))

    return _private(wait, False)


def _status() -> dict[str, Any]:
    """Return the report that Ray's monitor writes every few seconds; empty if there is none."""
    raw = ray.experimental.internal_kv._internal_kv_get("__autoscaling_status")  # noqa: SLF001
    return dict(json.loads(raw)) if raw else {}


def _private(read: Callable[[], T], otherwise: T) -> T:
    """Return the answer of a private interface of Ray, or ``otherwise`` where it fails."""
    try:
        return read()
    except Exception as error:
        _LOG.debug("a private interface of Ray is not what it was: %r", error)
        return otherwise
