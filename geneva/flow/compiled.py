"""From a description to what runs: one graph of all levels, and a step for each job. Pure.

A matrix becomes a group with a member per combination, and a nested DAG a group of its operations;
every other operation is a step. The paths of members are ``group.member``; the members of a matrix
are numbered. What depends on results, such as a parameter that refers to another operation, is
resolved when the step starts (`geneva.flow.parameters`).
"""

from __future__ import annotations

import difflib
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace

from geneva.errors import FlowError, SettingError
from geneva.flow.graph import Graph, Node, checked, upstream_of
from geneva.flow.joins import check_joins
from geneva.flow.matrix import shown
from geneva.flow.spec import (
    BackfillRun,
    Component,
    Container,
    DagRun,
    Environment,
    Grid,
    Io,
    JobRun,
    Matrix,
    Operation,
    component_of,
)
from geneva.flow.templates import is_template
from geneva.model.windows import Windows

HOST = "host"
Columns = tuple[frozenset[str], frozenset[str]]  # those that a backfill writes, and that it reads


@dataclass(frozen=True, slots=True)
class Place:
    """One operation with its component, where its values come from, and its surroundings.

    Attributes
    ----------
    path
        Its path in the run.
    combination
        Its values of a matrix.
    outer
        The DAG that it is an operation of; its inputs are ``ref: dag``.
    windowed
        The parameter of the matrix that became the windows of one backfill.
    """

    path: str
    operation: Operation
    component: Component
    combination: Mapping[str, object] = field(default_factory=dict)
    outer: Place | None = None
    environment: Environment = Environment()  # noqa: RUF009 - frozen
    windows: Mapping[str, object] | None = None
    windowed: str = ""

    @property
    def siblings(self) -> str:
        """The beginning of the paths of the operations that it may refer to."""
        return "" if self.outer is None or not self.outer.path else f"{self.outer.path}."

    @property
    def label(self) -> str:
        """Its values of a matrix, as people read them."""
        return ", ".join(f"{name}={shown(value)}" for name, value in self.combination.items())


@dataclass(frozen=True, slots=True)
class Flow:
    """A run as it is decided and carried out.

    Attributes
    ----------
    graph
        All levels.
    steps, groups
        The jobs by path, in the order of the document; and the matrices and nested DAGs.
    derived
        Dependencies that nobody wrote down: (upstream, operation) of backfills of one table.
    """

    name: str
    graph: Graph
    steps: Mapping[str, Place]
    groups: Mapping[str, Place]
    derived: frozenset[tuple[str, str]] = frozenset()


def compile_flow(
    spec: Component | Operation | DagRun,
    params: Mapping[str, object] | None = None,
    *,
    image: str | None = None,
    columns_of: Callable[[BackfillRun], Columns | None] = lambda run: None,
) -> Flow:
    """Compile a component, an operation or a DAG.

    Parameters
    ----------
    params
        Values of its inputs, which win over those of the description.
    image
        ``"host"`` runs every container's command as a process of this host.
    columns_of
        Returns which columns of its table a backfill writes and reads, None if that is unknown.

    Raises
    ------
    FlowError
        Its parts do not fit together; the message names the part.
    """
    operation = _as_operation(spec, params or {})
    component = component_of(operation, {}, "")
    if component is None:
        raise FlowError(f"{_reference(operation)} was not resolved")
    environment = _joined(Environment(image=image) if image else Environment(), operation)
    name = operation.name or component.name or component.run.kind
    place = Place("", operation, component, environment=environment)
    compiler = _Compiler(columns_of)
    grouped = operation.matrix is not None or isinstance(component.run, DagRun)
    graph = compiler.inner(place) if grouped else None
    if graph is None:
        step = replace(compiler.steps.pop("", place), path=name)
        graph = Graph((compiler.node(step, name),))
    edges = frozenset(compiler.derived)
    return Flow(name, checked(graph), compiler.steps, compiler.groups, edges)


def _as_operation(spec: Component | Operation | DagRun, params: Mapping[str, object]) -> Operation:
    given = {name: {"value": value} for name, value in params.items()}
    if isinstance(spec, DagRun):
        spec = Component(run=spec)
    if isinstance(spec, Component):
        return Operation.model_validate({"component": spec, "params": given})
    return spec.model_copy(
        update={"params": {**spec.params, **Operation.model_validate({"params": given}).params}}
    )


class _Compiler:
    def __init__(self, columns_of: Callable[[BackfillRun], Columns | None]) -> None:
        self._columns_of = columns_of
        self.steps: dict[str, Place] = {}
        self.groups: dict[str, Place] = {}
        self.derived: set[tuple[str, str]] = set()

    def node(self, place: Place, name: str) -> Node:
        """Return the node of an operation; steps are noted on the way."""
        operation, run = place.operation, place.component.run
        _check_params(place)
        refs = [p.ref for p in operation.params.values() if p.ref is not None]
        inner = None
        if operation.matrix is not None and not (place.combination or place.windows):
            inner = self.inner(place)
        elif isinstance(run, DagRun):
            inner = self._dag(place, run)
        if inner is not None:
            self.groups[place.path] = place
        elif place.path not in self.steps:
            self.steps[place.path] = _checked_step(place)
        upstream = upstream_of(operation.dependencies, refs)
        if place.combination:  # the group waited
            return Node(name, inner=inner)
        return Node(
            name,
            upstream,
            operation.trigger,
            operation.skip_on_upstream_skip,
            operation.conditions,
            inner,
        )

    def inner(self, place: Place) -> Graph | None:
        """Return the members of a matrix or a DAG; None if its matrix became windows."""
        matrix = place.operation.matrix
        if matrix is None:
            assert isinstance(place.component.run, DagRun)
            return self._dag(place, place.component.run)
        windowed = _as_windows(place, matrix)
        if windowed is not None and not windowed[1]:
            self.steps[place.path] = _checked_step(windowed[0])
            return None
        place, combinations = windowed or (place, matrix.combinations())
        nodes = []
        for number, combination in enumerate(combinations):
            path = f"{place.path}.{number}" if place.path else str(number)
            member = replace(place, path=path, combination=combination)
            nodes.append(self.node(member, str(number)))
        stopping = tuple(rule.rule() for rule in matrix.early_stopping)
        return Graph(tuple(nodes), matrix.concurrency, stopping)

    def _dag(self, outer: Place, dag: DagRun) -> Graph:
        components = {c.name: c for c in dag.components if c.name}
        environment = _joined(outer.environment, dag)
        nodes, places = [], []
        for number, operation in enumerate(dag.operations):
            where = f"{outer.path or 'run'}.operations[{number}]"
            if operation.name is None:
                raise FlowError("an operation of a dag has a name", where)
            component = component_of(operation, components, where)
            if component is None:
                raise FlowError(f"{_reference(operation)} was not resolved", where)
            path = f"{outer.path}.{operation.name}" if outer.path else operation.name
            own = _joined(environment, operation)
            place = Place(path, operation, component, outer=outer, environment=own)
            try:
                nodes.append(self.node(place, operation.name))
            except FlowError as error:
                raise error if error.path else error.at(where) from None
            places.append(place)
        stopping = tuple(rule.rule() for rule in dag.early_stopping)
        return Graph(self._with_derived(nodes, places), dag.concurrency, stopping)

    def _with_derived(self, nodes: Sequence[Node], places: Sequence[Place]) -> tuple[Node, ...]:
        """Add the dependencies between backfills of one table that follow from their columns."""
        known: dict[str, tuple[str, Columns]] = {}
        for place in places:
            run = place.component.run
            if isinstance(run, BackfillRun) and not _templated(run):
                columns = self._columns_of(run)
                if columns is not None:
                    known[place.operation.name or ""] = (run.table, columns)
        made = []
        for node in nodes:
            table, (_, reads) = known.get(node.name, ("", (frozenset(), frozenset())))
            more = [
                other
                for other, (where, (writes, _)) in known.items()
                if where == table and other != node.name and writes & reads
            ]
            more = [name for name in more if name not in node.upstream]
            prefix = places[0].siblings
            self.derived |= {(prefix + name, prefix + node.name) for name in more}
            made.append(replace(node, upstream=(*node.upstream, *more)))
        return tuple(made)


def _templated(run: BackfillRun) -> bool:
    return any(map(is_template, (run.table, *run.columns)))


def _joined(outer: Environment, of: Operation | DagRun) -> Environment:
    """Return an environment for children: their own settings win, one by one."""
    if of.environment is None:
        return outer
    own = of.environment.model_dump(exclude_unset=True)
    merged = outer.model_dump(exclude_unset=True)
    for name, value in own.items():
        both = isinstance(value, dict) and isinstance(merged.get(name), dict)
        merged[name] = {**merged[name], **value} if both else value
    return Environment.model_validate(merged)


def _reference(operation: Operation) -> str:
    name = operation.references[0]
    return f"{name.replace('_r', 'R')} {getattr(operation, name)!r}"


# ------------------------------------------------------------------------------------- checks


def _check_params(place: Place) -> None:
    """Refuse parameters that no input expects, and inputs without a value."""
    operation, component = place.operation, place.component
    declared = {io.name: io for io in component.inputs}
    inline = operation.run is not None
    matrix = operation.matrix
    varied = set(_varied(matrix)) if matrix is not None else set()
    joined = {name for join in operation.joins for name in join.params}
    taken = [Io(name=n, is_list=True) for n in joined] if inline else component.inputs
    check_joins(operation.joins, taken, operation.params)
    for name, param in operation.params.items():
        if name in varied:
            raise FlowError(f"the param {name!r} is given by the matrix too", f"params.{name}")
        if not (inline or name in declared or param.context_only):
            raise FlowError(
                f"no input expects the param {name!r}{_meant(name, declared)}", f"params.{name}"
            )
    for name in varied:
        if not inline and name not in declared:
            raise FlowError(
                f"no input expects {name!r} of the matrix{_meant(name, declared)}", "matrix.params"
            )
    for name, io in declared.items():
        if io.is_required and name not in {*operation.params, *varied, *joined}:
            raise FlowError(f"the input {name!r} has no value: give it as a param", "params")


def _varied(matrix: Matrix) -> Iterator[str]:
    yield from (matrix.values[0] if matrix.kind == "mapping" else matrix.params)


def _meant(name: str, known: Mapping[str, object]) -> str:
    close = difflib.get_close_matches(name, known, 1)
    hint = f"; did you mean {close[0]!r}?" if close else ""
    return f"{hint} (the inputs are {', '.join(known) or 'none'})"


def _checked_step(place: Place) -> Place:
    """Refuse a step that this program cannot run, before anything runs."""
    run, operation = place.component.run, place.operation
    if isinstance(run, BackfillRun) and is_template(run.where):
        raise FlowError(
            "a filter is no template: what is filled into SQL may mean anything", "where"
        )
    if isinstance(run, JobRun) and run.container is not None:
        _check_container(run.container, place.environment.image or run.container.image)
    for name in ("volumes", "init", "sidecars"):
        if getattr(run, name, ()):
            raise FlowError(f"{name} of a cluster are not to be had here", name)
    if operation.connections or getattr(run, "connections", ()):
        raise FlowError("no connections are configured here", "connections")
    if operation.schedule or operation.events:
        raise FlowError("schedules and events of flows are not carried out here", "schedule")
    return place


def _check_container(container: Container, image: str | None) -> None:
    if image != HOST:
        raise FlowError(
            f"the image {image!r} cannot be run here: `environment: {{image: host}}`, or "
            "--image host, runs the command as a process of this host",
            "container.image",
        )
    if not container.command:
        raise FlowError("a container on the host needs a command", "container.command")


# ------------------------------------------------------------------------------------ windows

_RANGES = {"daterange": Windows.daterange, "datetimerange": Windows.datetimerange}


def _as_windows(place: Place, matrix: Matrix) -> tuple[Place, list[dict[str, object]]] | None:
    """Make one backfill by windows of a range that serves only as its window.

    Returns
    -------
    tuple or None
        The place with its windows, and the combinations of the other parameters; none are left
        if the range is the only one. None where the range is more than a window.
    """
    run = place.component.run
    if not isinstance(run, BackfillRun) or run.window is None or not isinstance(matrix, Grid):
        return None
    at = str(run.window.get("at", ""))
    name = at.strip().removeprefix("{{").removesuffix("}}").strip()
    values = matrix.params.get(name)
    if values is None or values.kind not in _RANGES or matrix.early_stopping or matrix.num_runs:
        return None
    rest = run.model_dump(exclude={"window"}, exclude_none=True)
    texts = [*_texts(rest), *_texts({k: v for k, v in run.window.items() if k != "at"})]
    texts += _texts([p.value for p in place.operation.params.values()])
    if any(is_template(text) and name in text for text in texts):
        return None
    others = {k: v for k, v in matrix.params.items() if k != name}
    settings = {k: v for k, v in run.window.items() if k not in ("at", "on")}
    if not others:
        settings.setdefault("concurrency", matrix.concurrency or len(values.values()))
    try:
        asked = _RANGES[values.kind](str(run.window.get("on", "")), values.value, **settings)
    except (SettingError, TypeError) as error:
        raise FlowError(str(error), "window") from None
    made = replace(place, windows=asked.config(), windowed=name)
    if not others:
        return made, []
    return made, Grid(params=others, concurrency=matrix.concurrency).combinations()


def _texts(value: object) -> list[str]:
    if isinstance(value, str):
        return [value]
    if isinstance(value, Mapping):
        return [text for item in value.values() for text in _texts(item)]
    if isinstance(value, list | tuple):
        return [text for item in value for text in _texts(item)]
    return []
