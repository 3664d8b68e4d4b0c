"""Adapters: one function a file, from a case to what the product makes of it."""

from __future__ import annotations

import functools
import heapq
from collections.abc import Callable
from datetime import UTC, date, datetime, time
from pathlib import Path
from typing import Any

import yaml

from geneva.errors import GenevaError
from geneva.flow.decide import Cancel, End, Facts, Start, decide, state_of
from geneva.flow.graph import Graph, Node, paths, stages
from geneva.flow.joins import check_joins, resolve
from geneva.flow.match import matches
from geneva.flow.query import All, Condition, parse_query
from geneva.flow.spec import DagRun, Io, Join, Operation, Param, graph_of, read
from geneva.flow.templates import render, truth
from geneva.model.ranges import date_range, datetime_range
from geneva.model.types import JobState
from geneva.model.windows import Axis, Known, Windows
from geneva.model.windows import resolve as resolve_windows

Case = dict[str, Any]
NOW = datetime(2026, 1, 1, tzinfo=UTC)


def cases_in(path: Path) -> list[Case]:
    """Return the cases of a file."""
    return yaml.safe_load(path.read_text())["cases"]


def failure_of(name: str, case: Case, folder: Path) -> str | None:
    """Run a case; return what is wrong, or None."""
    expect = case["expect"]
    try:
        got = ADAPTERS[name](case, folder)
    except GenevaError as error:
        if "error" not in expect:
            return f"refused: {error}"
        wanted = [expect["error"], *expect.get("names", ())]
        missing = [w for w in wanted if str(w).lower() not in str(error).lower()]
        return f"the message lacks {missing}: {error}" if missing else None
    except Exception as error:  # a case must never end in anything else
        return f"{type(error).__name__}: {error}"
    if "error" in expect:
        return f"not refused; expected {expect['error']!r}, got {got!r:.200}"
    loose = name == "ranges"
    wrong = {
        key: (wanted, got.get(key))
        for key, wanted in expect.items()
        if not (
            all(any(same(w, g, loose) for g in got["starts"]) for w in wanted)
            if key == "contains"
            else same(wanted, got.get(key), loose)
        )
    }
    return f"expected and got: {wrong}" if wrong else None


# ------------------------------------------------------------------------------- comparing values


def same(wanted: Any, got: Any, loose: bool = False) -> bool:
    """Compare; with ``loose``, texts that are dates compare as moments, with their offset."""
    if isinstance(wanted, list) and isinstance(got, list | tuple):
        return len(wanted) == len(got) and all(
            same(w, g, loose) for w, g in zip(wanted, got, strict=True)
        )
    if isinstance(got, _Some):
        return all(got.get(k) == v for k, v in wanted.items())
    if isinstance(wanted, dict) and isinstance(got, dict):
        return set(wanted) == set(got) and all(same(wanted[k], got[k], loose) for k in wanted)
    if loose and (moments := _moments(wanted, got)):
        a, b = moments
        # Python holds a time that comes twice unequal to its equal in another zone.
        same_moment = a.astimezone(UTC) == b.astimezone(UTC)
        return same_moment and (_naive(wanted) or a.utcoffset() == b.utcoffset())
    return wanted == got and (type(wanted) is type(got) or _numbers(wanted, got))


def _numbers(*values: Any) -> bool:
    return all(isinstance(v, int | float) and not isinstance(v, bool) for v in values)


def _naive(text: Any) -> bool:
    return isinstance(text, date) or datetime.fromisoformat(str(text)).tzinfo is None


def _moments(wanted: Any, got: Any) -> tuple[datetime, datetime] | None:
    try:
        return _moment(wanted), _moment(got)
    except (TypeError, ValueError):
        return None


def _moment(value: Any) -> datetime:
    if isinstance(value, str):
        value = datetime.fromisoformat(value)
    if not isinstance(value, date):
        raise TypeError(value)
    made = value if isinstance(value, datetime) else datetime.combine(value, time.min)
    return made if made.tzinfo else made.replace(tzinfo=UTC)


# ------------------------------------------------------------------------------------------ ranges


def run_range(case: Case, folder: Path) -> dict[str, Any]:
    """Return the values, windows or combinations of a range."""
    spec = case["spec"]
    if "matrix" in spec:
        operation = read(
            {"kind": "operation", "run": {"kind": "job", "call": "a:b"}, "matrix": spec["matrix"]}
        )
        assert isinstance(operation, Operation)
        assert operation.matrix is not None
        made = operation.matrix.combinations()
        return {"combinations": made, "count": len(made)}
    if "windows" in spec:
        asked = Windows(spec["windows"].get("on", "ts"), **_without(spec["windows"], "on"))
        windows = resolve_windows(asked, _axis(asked, spec), Known(NOW))
        return _described([[w.start, w.end] for w in windows], [w.start for w in windows])
    if spec["kind"] == "daterange":
        values: list[Any] = list(date_range(spec["value"]).values())
        windows = resolve_windows(Windows.daterange("d", spec["value"]), Axis("date"), Known(NOW))
    else:
        values = list(datetime_range(spec["value"]).values())
        asked = Windows.datetimerange("ts", spec["value"])
        windows = resolve_windows(asked, Axis("timestamp"), Known(NOW))
    return _described([[w.start, w.end] for w in windows], values)


def _axis(asked: Windows, spec: Case) -> Axis:
    """Return the kind of column that a case is about, by what its bounds are."""
    if "axis" in spec:
        return Axis(spec["axis"])
    if asked.values is not None:
        return Axis("other")
    whole = isinstance(asked.start, int) or isinstance(asked.end, int)
    return Axis("integer" if whole or asked.unit else "timestamp")


def _described(windows: list[list[Any]], starts: list[Any]) -> dict[str, Any]:
    return {
        "values": starts,
        "starts": starts,
        "windows": windows,
        "count": len(starts),
        "first": starts[0] if starts else None,
        "last": starts[-1] if starts else None,
        "last_window": windows[-1] if windows else None,
    }


def _without(values: Case, *names: str) -> Case:
    return {k: v for k, v in values.items() if k not in names}


# ----------------------------------------------------------------------------------------- queries


def run_query(case: Case, folder: Path) -> dict[str, Any]:
    """Return the tree of a query and the jobs that match it."""
    tree = parse_query(case["query"])
    runs = _runs(folder)
    return {"ast": _tree(tree), "ids": [r["id"] for r in runs if matches(tree, r)]}


def _tree(tree: Any) -> Any:
    if isinstance(tree, Condition):
        made: dict[str, Any] = {"field": tree.field.text, "op": tree.op}
        if tree.op != "nil":
            made["value"] = list(tree.value) if isinstance(tree.value, tuple) else tree.value
        return made | ({"not": True} if tree.negated else {})
    return {"and" if isinstance(tree, All) else "or": [_tree(part) for part in tree.parts]}


@functools.cache
def _runs_of(path: Path) -> tuple[Case, ...]:
    return tuple(yaml.safe_load(path.read_text())["runs"])


def _runs(folder: Path) -> tuple[Case, ...]:
    """Return the jobs beside the cases, else those of the project's own set."""
    own = folder / "runs.yaml"
    return _runs_of(own if own.exists() else Path(__file__).parent / "cases" / "runs.yaml")


# ------------------------------------------------------------------------------------------- joins


def run_joins(case: Case, folder: Path) -> dict[str, Any]:
    """Return what the joins of a case become, and the jobs that they took."""
    stub = {"kind": "job", "call": "a:b"}
    component = {"kind": "component", "inputs": case.get("inputs", []), "run": stub}
    operation = read(
        {
            "kind": "operation",
            "component": component,
            "joins": case["joins"],
            "params": case.get("params", {}),
        }
    )
    assert isinstance(operation, Operation)
    joins: tuple[Join, ...] = operation.joins
    inputs: tuple[Io, ...] = operation.component.inputs if operation.component else ()
    params: dict[str, Param] = operation.params
    check_joins(joins, inputs, params)
    names = {name: param.value for name, param in params.items()}
    made = [resolve(join, names, _runs(folder)) for join in joins]
    lists = {name: value for one in made for name, value in one.lists.items()}
    return {"ids": [i for one in made for i in one.ids], "lists": lists}


# -------------------------------------------------------------------------------------------- dags


def run_dag(case: Case, folder: Path) -> dict[str, Any]:
    """Return the stages of a DAG, and how it goes with the outcomes that the case scripts."""
    document, stubs = _stubbed(case["dag"], "")
    dag = read({"kind": "component", "run": {"kind": "dag", **document}})
    run = dag.run
    assert isinstance(run, DagRun)
    graph = graph_of(run)
    played = _Play(graph, run, stubs, case.get("outcomes") or {}, case.get("takes") or {}).played()
    return {"stages": stages(graph), **played}


def _stubbed(dag: Case, prefix: str) -> tuple[Case, dict[str, Case]]:
    """Give every operation of a case something to run, and take the stubs of its work out."""
    stubs: dict[str, Case] = {}
    operations = []
    for given in dag.get("operations", []):
        operation = dict(given)
        path = prefix + str(operation.get("name"))
        stubs[path] = {k: operation.pop(k, {}) for k in ("metrics", "outputs")}
        run = operation.get("run")
        if isinstance(run, dict) and run.get("kind") == "dag":
            inner, more = _stubbed(run, f"{path}.")
            operation["run"], stubs = inner | {"kind": "dag"}, stubs | more
        elif not {"run", "component", "dagRef", "pathRef", "urlRef", "hubRef"} & {*operation}:
            operation["run"] = {"kind": "job", "call": "stub:work"}
        operations.append(operation)
    components = [
        {"kind": "component", "run": {"kind": "job", "call": "stub:work"}} | c
        for c in dag.get("components", [])
    ]
    made = dag | {"operations": operations}
    return made | ({"components": components} if components else {}), stubs


class _Play:
    """A DAG played in simulated time, with an outcome and a length for each operation."""

    def __init__(
        self, graph: Graph, dag: DagRun, stubs: dict[str, Case], outcomes: Case, takes: Case
    ) -> None:
        self.graph, self.stubs, self.outcomes, self.takes = graph, stubs, outcomes, takes
        self.nodes = paths(graph)
        self.params = dict(_params(dag, ""))
        self.states: dict[str, JobState] = {}
        self.starts: dict[str, int] = {}
        self.live: list[tuple[int, int, str]] = []
        self.most = 0

    def played(self) -> dict[str, Any]:
        """Play it to its end; every evaluation happens at the time of an end."""
        now = 0
        self.evaluate(now)
        while self.live:
            now = self.live[0][0]
            while self.live and self.live[0][0] == now:
                path = heapq.heappop(self.live)[2]
                if not self.states[path].ended:
                    outcome = self.outcomes.get(path, "succeeded")
                    self.states[path] = JobState[outcome.upper()]
            self.evaluate(now)
        final = {path: self.states[path].value.lower() for path in self.nodes}
        return {
            "final": final,
            "run": state_of(self.graph, self.facts()).value.lower(),
            "most_at_once": self.most,
            "starts": _Some(self.starts),
            "order": list(self.starts),
        }

    def facts(self) -> Facts:
        ended = {p for p, s in self.states.items() if s.ended}
        metrics = {p: s["metrics"] for p, s in self.stubs.items() if p in ended and s["metrics"]}
        return Facts(self.states, metrics, self.condition)

    def condition(self, path: str, node: Node) -> bool:
        prefix = path[: len(path) - len(node.name)]
        names = {}
        for name, param in self.params[path].items():
            names[name] = render(param.value, {})
            if param.ref is not None:
                held: Any = self.stubs[prefix + param.ref.split(".")[1]]
                for part in str(param.value).split("."):
                    held = held[part]
                names[name] = held
        return truth(node.conditions, names)

    def evaluate(self, now: int) -> None:
        for decision in decide(self.graph, self.facts()):
            match decision:
                case Start(path):
                    self.states[path] = JobState.RUNNING
                    if self.nodes[path].inner is None:
                        self.starts[path] = now
                        end = now + self.takes.get(path, 1)
                        heapq.heappush(self.live, (end, len(self.starts), path))
                case End(path, state, _):
                    self.states[path] = state
                case Cancel(path, _):
                    self.states[path] = JobState.CANCELLED
        leaves = [p for _, _, p in self.live if not self.states[p].ended]
        self.most = max(self.most, len(leaves))


class _Some(dict):  # type: ignore[type-arg]
    """The moments of all starts, of which a case names some."""


def _params(dag: DagRun, prefix: str):
    for operation in dag.operations:
        yield prefix + str(operation.name), operation.params
        if isinstance(operation.run, DagRun):
            yield from _params(operation.run, f"{prefix}{operation.name}.")


ADAPTERS: dict[str, Callable[[Case, Path], dict[str, Any]]] = {
    "ranges": run_range,
    "queries": run_query,
    "dags": run_dag,
    "joins": run_joins,
}
