"""The graph of a flow: operations, their dependencies, and the stages that follow from them."""

from __future__ import annotations

import enum
import graphlib
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Literal

from geneva.errors import FlowError


class Trigger(enum.StrEnum):
    """The trigger of an operation: how its upstream must have ended."""

    ALL_SUCCEEDED = "all_succeeded"
    ALL_FAILED = "all_failed"
    ALL_DONE = "all_done"
    ONE_SUCCEEDED = "one_succeeded"
    ONE_FAILED = "one_failed"
    ONE_DONE = "one_done"
    NONE_FAILED = "none_failed"


@dataclass(frozen=True, slots=True)
class FailureStopping:
    """End a group once so many percent of the members that were planned have failed."""

    percent: float


@dataclass(frozen=True, slots=True)
class MetricStopping:
    """End a group as a success once a member's metric reaches a value."""

    metric: str
    value: float
    optimization: Literal["minimize", "maximize"] = "minimize"


Stopping = FailureStopping | MetricStopping


@dataclass(frozen=True, slots=True)
class Node:
    """One operation; `inner` makes it a group, whose state follows from its members."""

    name: str
    upstream: tuple[str, ...] = ()
    trigger: Trigger = Trigger.ALL_SUCCEEDED
    skip_on_upstream_skip: bool = True
    conditions: object = None
    inner: Graph | None = None


@dataclass(frozen=True, slots=True)
class Graph:
    """The operations of one level, in the order of the document."""

    nodes: tuple[Node, ...]
    concurrency: int | None = None
    stopping: tuple[Stopping, ...] = ()

    @property
    def order(self) -> list[Node]:
        """The nodes, each after its upstream; otherwise as in the document."""
        by_name = {node.name: node for node in self.nodes}
        sorter = graphlib.TopologicalSorter({n.name: n.upstream for n in self.nodes})
        return [by_name[name] for name in sorter.static_order()]


def checked(graph: Graph) -> Graph:
    """Refuse a graph with a name twice, an unknown dependency or a cycle, at every level.

    Raises
    ------
    FlowError
        It names the operations at fault.
    """
    seen: set[str] = set()
    for node in graph.nodes:
        if node.name in seen:
            raise FlowError(
                f"the name {node.name!r} stands twice among the operations", "operations"
            )
        if "." in node.name:
            raise FlowError(
                f"the name {node.name!r} holds a dot, which parts a group from its members"
            )
        seen.add(node.name)
    for number, node in enumerate(graph.nodes):
        for name in node.upstream:
            if name not in seen:
                raise FlowError(
                    f"operation {node.name!r} waits for {name!r}, which is unknown; the operations "
                    f"are {', '.join(sorted(seen))}",
                    f"operations[{number}].dependencies",
                )
    try:
        graphlib.TopologicalSorter({n.name: n.upstream for n in graph.nodes}).prepare()
    except graphlib.CycleError as error:
        around = " -> ".join(error.args[1])
        raise FlowError(
            f"operations wait for each other in a cycle: {around}", "operations"
        ) from None
    for node in graph.nodes:
        if node.inner is not None:
            checked(node.inner)
    return graph


def stages(graph: Graph) -> list[list[str]]:
    """Return the operations by stage: each one after the last of its upstream."""
    level: dict[str, int] = {}
    for node in graph.order:
        level[node.name] = 1 + max((level[name] for name in node.upstream), default=-1)
    made: list[list[str]] = [[] for _ in range(max(level.values(), default=-1) + 1)]
    for node in graph.nodes:
        made[level[node.name]].append(node.name)
    return made


def downstream(graph: Graph, names: Iterable[str]) -> set[str]:
    """Return the operations that wait for any of some, over any number of steps."""
    reached: set[str] = set()
    wanted = set(names)
    for node in graph.order:
        if wanted & {*node.upstream} or reached & {*node.upstream}:
            reached.add(node.name)
    return reached


def reference(ref: str) -> str | None:
    """Return the operation that a ``ref`` names; None for ``dag`` and ``runs.ID``.

    Raises
    ------
    FlowError
        It is none of ``ops.NAME``, ``dag`` and ``runs.ID``.
    """
    parts = ref.split(".")
    if ref == "dag" or (len(parts) == 2 and parts[0] == "runs" and parts[1]):
        return None
    if len(parts) == 2 and parts[0] == "ops" and parts[1]:
        return parts[1]
    raise FlowError(f"ref {ref!r} is none of ops.NAME, dag and runs.ID")


def upstream_of(dependencies: Sequence[str], refs: Iterable[str]) -> tuple[str, ...]:
    """Return the upstream of an operation: dependencies, then operations in its parameters."""
    named = [*dependencies, *(name for ref in refs if (name := reference(ref)) is not None)]
    return tuple(dict.fromkeys(named))


def paths(graph: Graph, prefix: str = "") -> Mapping[str, Node]:
    """Return every operation by its path, inner ones as ``outer.inner``, outer ones first."""
    made: dict[str, Node] = {}
    for node in graph.nodes:
        made[prefix + node.name] = node
        if node.inner is not None:
            made |= paths(node.inner, f"{prefix}{node.name}.")
    return made
