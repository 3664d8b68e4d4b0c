"""The next steps of a flow: a pure function of its graph and of the states of its operations.

One evaluation has four steps, for each level of the graph, outer levels first:

1. *Stop* what an early stopping asks to end: members that have not begun end as cancelled, live
   ones are to be cancelled.
2. *Settle* operations in topological order: a trigger that can no longer hold ends its operation
   at once, so that a skip or a failure reaches the end of a chain in one evaluation.
3. *Start* what may start, in the order of the document, while the level has room. What waits for
   another operation takes no room.
4. *Close* groups whose members have all ended; their state follows from their members.

It is called at submit, at every tick and by the plan, so a dry run cannot differ from the run.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field

from geneva.errors import FlowError
from geneva.flow.graph import FailureStopping, Graph, MetricStopping, Node, Stopping, Trigger
from geneva.model.types import JobState

Metrics = Mapping[str, float]

_SUCCEEDED = frozenset({JobState.SUCCEEDED, JobState.PARTIAL})  # the values of either are there
_FAILED = frozenset({JobState.FAILED, JobState.UPSTREAM_FAILED})


@dataclass(frozen=True, slots=True)
class Start:
    """The operation may begin now."""

    path: str


@dataclass(frozen=True, slots=True)
class Wait:
    """The operation has not begun, and why not."""

    path: str
    reason: str


@dataclass(frozen=True, slots=True)
class End:
    """The operation has ended without having run, or a group has ended."""

    path: str
    state: JobState
    reason: str


@dataclass(frozen=True, slots=True)
class Cancel:
    """The operation is live and is to be cancelled."""

    path: str
    reason: str


Decision = Start | Wait | End | Cancel


@dataclass(frozen=True, slots=True)
class Facts:
    """The facts of a run: a state for each operation that has begun or ended, by path.

    ``condition`` evaluates an operation's condition and raises `FlowError` where it is neither true
    nor false; it is asked only once what the operation waits for has ended.
    """

    states: Mapping[str, JobState]
    metrics: Mapping[str, Metrics] = field(default_factory=dict)
    condition: Callable[[str, Node], bool] = lambda path, node: True
    cancelled: frozenset[str] = frozenset()  # groups that a person cancelled as a whole


@dataclass(slots=True)
class _Round:
    """One evaluation: the facts, with the decisions so far added to the states."""

    facts: Facts
    states: dict[str, JobState]
    made: list[Decision] = field(default_factory=list)

    def end(self, path: str, state: JobState, reason: str) -> None:
        self.states[path] = state
        self.made.append(End(path, state, reason))

    def members(self, graph: Graph, prefix: str) -> list[JobState | None]:
        return [self.states.get(prefix + node.name) for node in graph.nodes]


def decide(graph: Graph, facts: Facts) -> list[Decision]:
    """Return the decisions of this moment; operations that run or have ended need none."""
    states, settled = dict(facts.states), list[Decision]()
    while True:  # a group that ends as it begins frees room, and what waited for it
        now = _Round(facts, states)
        _level(graph, "", now)
        more = [d for d in now.made if isinstance(d, Start | End)]
        if not more:
            return settled + now.made
        settled += more


def state_of(graph: Graph, facts: Facts, prefix: str = "") -> JobState:
    """Return the state of a run, or of the group whose members have a prefix."""
    states = [facts.states.get(prefix + node.name) for node in graph.nodes]
    group = prefix.removesuffix(".")
    by_metric = _reached(graph, prefix, facts.metrics) is not None
    return group_state(states, by_metric=by_metric, cancelled=group in facts.cancelled)


def group_state(
    states: Iterable[JobState | None], *, by_metric: bool = False, cancelled: bool = False
) -> JobState:
    """Return the state of a group from those of its members; the first rule that fits."""
    known = list(states)
    if any(state is None or not state.ended for state in known):
        return JobState.RUNNING
    if by_metric:
        return JobState.SUCCEEDED
    if cancelled:
        return JobState.CANCELLED
    present = set(known)
    if present & _FAILED:
        return JobState.FAILED
    for state in (JobState.PARTIAL, JobState.SUCCEEDED):
        if state in present:
            return state
    return JobState.SKIPPED if present <= {JobState.SKIPPED} else JobState.CANCELLED


def _level(graph: Graph, prefix: str, now: _Round) -> None:
    """Decide one level, and the levels within its groups that have begun."""
    why = _stopped(graph, prefix, now)
    if why is not None:
        _cancel_all(graph, prefix, why, now)
        return
    ready: set[str] = set()
    waits: dict[str, str] = {}
    for node in graph.order:
        path = prefix + node.name
        state = now.states.get(path)
        if state is not None and not state.ended and node.inner is not None:
            _group(node, path, now)
        elif state is None:
            _settle(node, prefix, now, ready, waits)
    _start(graph, prefix, now, ready, waits)


def _settle(node: Node, prefix: str, now: _Round, ready: set[str], waits: dict[str, str]) -> None:
    """Decide whether an operation that has not begun is ready, waits, or can never run."""
    path = prefix + node.name
    verdict = evaluate(node, {name: now.states.get(prefix + name) for name in node.upstream})
    match verdict:
        case Hold(reason):
            waits[node.name] = reason
        case Never(state, reason):
            now.end(path, state, reason)
        case Ready():
            try:
                holds = node.conditions is None or now.facts.condition(path, node)
            except FlowError as error:
                now.end(path, JobState.FAILED, str(error))
                return
            if holds:
                ready.add(node.name)
            else:
                now.end(path, JobState.SKIPPED, "its condition is false")


def _start(
    graph: Graph, prefix: str, now: _Round, ready: set[str], waits: Mapping[str, str]
) -> None:
    """Start ready operations while the level has room, and say why the rest waits."""
    live = sum(1 for state in now.members(graph, prefix) if state is not None and not state.ended)
    for node in graph.nodes:
        path = prefix + node.name
        if node.name in waits:
            now.made.append(Wait(path, waits[node.name]))
        elif node.name in ready:
            if graph.concurrency is not None and live >= graph.concurrency:
                reason = f"{live} of {graph.concurrency} operations run at once"
                now.made.append(Wait(path, reason))
                continue
            live += 1
            now.states[path] = JobState.RUNNING
            now.made.append(Start(path))
            if node.inner is not None:
                _group(node, path, now)
                live -= now.states[path].ended


def _group(node: Node, path: str, now: _Round) -> None:
    """Decide within a group that has begun, and close it once all its members have ended."""
    inner = node.inner
    assert inner is not None
    _level(inner, f"{path}.", now)
    known = Facts(now.states, now.facts.metrics, cancelled=now.facts.cancelled)
    state = state_of(inner, known, f"{path}.")
    if state.ended:
        now.end(path, state, "its operations have ended")


# ----------------------------------------------------------------------------- early stopping


def _stopped(graph: Graph, prefix: str, now: _Round) -> str | None:
    """Return why a level is to end early, if it is."""
    if prefix.removesuffix(".") in now.facts.cancelled:
        return "cancelled"
    metric = _reached(graph, prefix, now.facts.metrics)
    if metric is not None:
        return f"the metric {metric.metric} has reached {metric.value:g}"
    failed = sum(1 for state in now.members(graph, prefix) if state in _FAILED)
    for rule in graph.stopping:
        if isinstance(rule, FailureStopping) and failed:
            percent = 100 * failed / len(graph.nodes)
            if percent >= rule.percent:
                return f"{failed} of {len(graph.nodes)} planned operations failed"
    return None


def _reached(graph: Graph, prefix: str, metrics: Mapping[str, Metrics]) -> MetricStopping | None:
    """Return the metric stopping that a member has reached, if one has."""
    rules: list[Stopping] = [rule for rule in graph.stopping if isinstance(rule, MetricStopping)]
    for rule in rules:
        assert isinstance(rule, MetricStopping)
        for node in graph.nodes:
            value = metrics.get(prefix + node.name, {}).get(rule.metric)
            if value is None:
                continue
            if value <= rule.value if rule.optimization == "minimize" else value >= rule.value:
                return rule
    return None


def _cancel_all(graph: Graph, prefix: str, why: str, now: _Round) -> None:
    for node in graph.nodes:
        path = prefix + node.name
        state = now.states.get(path)
        if state is None:
            now.end(path, JobState.CANCELLED, why)
        elif state.ended:
            continue
        elif node.inner is not None:
            _cancel_all(node.inner, f"{path}.", why, now)
            if all(s is not None and s.ended for s in now.members(node.inner, f"{path}.")):
                now.end(path, JobState.CANCELLED, why)
        elif state is not JobState.CANCELLING:
            now.made.append(Cancel(path, why))


# ----------------------------------------------------------------------------------- triggers


@dataclass(frozen=True, slots=True)
class Ready:
    """The trigger holds."""


@dataclass(frozen=True, slots=True)
class Hold:
    """The trigger may still hold; too little has ended."""

    reason: str


@dataclass(frozen=True, slots=True)
class Never:
    """The trigger can no longer hold."""

    state: JobState
    reason: str


@dataclass(frozen=True, slots=True)
class _Ends:
    """The upstream operations by how they ended; `left` have not ended."""

    succeeded: list[str]
    failed: list[str]
    cancelled: list[str]
    skipped: list[str]
    left: list[str]

    @property
    def broken(self) -> list[str]:
        """The operations that neither succeeded nor were skipped."""
        return [*self.failed, *self.cancelled]


Verdict = Ready | Hold | Never


def evaluate(node: Node, upstream: Mapping[str, JobState | None]) -> Verdict:
    """Evaluate a trigger: yes, no, or not yet."""
    if not upstream:
        return Ready()
    ends = _sorted(node, upstream)
    verdict = _TRIGGERS[node.trigger](ends)
    return Hold(f"waits for {_named(ends.left)}") if verdict is None else verdict


def _all_succeeded(ends: _Ends) -> Verdict | None:
    if ends.broken:
        return _upstream_failed(ends.broken)
    if ends.left:
        return None
    return _skip(ends.skipped) if ends.skipped else Ready()


def _none_failed(ends: _Ends) -> Verdict | None:
    if ends.failed:
        return _upstream_failed(ends.failed)
    return None if ends.left else Ready()


def _all_done(ends: _Ends) -> Verdict | None:
    return None if ends.left else Ready()


def _one_done(ends: _Ends) -> Verdict | None:
    return Ready() if ends.broken or ends.succeeded or ends.skipped else None


def _all_failed(ends: _Ends) -> Verdict | None:
    others = [*ends.succeeded, *ends.skipped, *ends.cancelled]
    if others:
        return Never(JobState.SKIPPED, f"not needed: {_named(others)} did not fail")
    return None if ends.left else Ready()


def _one_failed(ends: _Ends) -> Verdict | None:
    if ends.failed:
        return Ready()
    return None if ends.left else Never(JobState.SKIPPED, "not needed: nothing failed")


def _one_succeeded(ends: _Ends) -> Verdict | None:
    if ends.succeeded:
        return Ready()
    if ends.left:
        return None
    return _upstream_failed(ends.broken) if ends.broken else _skip(ends.skipped)


_TRIGGERS: dict[Trigger, Callable[[_Ends], Verdict | None]] = {
    Trigger.ALL_SUCCEEDED: _all_succeeded,
    Trigger.ALL_FAILED: _all_failed,
    Trigger.ALL_DONE: _all_done,
    Trigger.ONE_SUCCEEDED: _one_succeeded,
    Trigger.ONE_FAILED: _one_failed,
    Trigger.ONE_DONE: _one_done,
    Trigger.NONE_FAILED: _none_failed,
}


def _sorted(node: Node, upstream: Mapping[str, JobState | None]) -> _Ends:
    ends = _Ends([], [], [], [], [])
    for name, state in upstream.items():
        if state is None or not state.ended:
            ends.left.append(name)
        elif state in _SUCCEEDED or (state is JobState.SKIPPED and not node.skip_on_upstream_skip):
            ends.succeeded.append(name)
        elif state in _FAILED:
            ends.failed.append(name)
        else:
            (ends.skipped if state is JobState.SKIPPED else ends.cancelled).append(name)
    return ends


def _upstream_failed(names: list[str]) -> Never:
    return Never(JobState.UPSTREAM_FAILED, f"{_named(names)} did not succeed")


def _skip(names: list[str]) -> Never:
    return Never(JobState.SKIPPED, f"{_named(names)} was skipped")


def _named(names: list[str], most: int = 3) -> str:
    listed = ", ".join(names[:most])
    return listed if len(names) <= most else f"{listed} and {len(names) - most} more"
