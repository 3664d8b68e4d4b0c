"""The description of a flow: components, operations, matrices and DAGs, in YAML and Python.

Keys may be written in camelCase or snake_case; an unknown one is refused with the nearest known.
What is described here is not yet checked against a table: that is the plan's part.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Annotated, Any, Literal

from pydantic import (
    AliasGenerator,
    BaseModel,
    BeforeValidator,
    ConfigDict,
    Discriminator,
    Field,
    Tag,
    ValidationError,
    field_validator,
    model_validator,
)
from pydantic.alias_generators import to_camel

from geneva.errors import FlowError, did_you_mean
from geneva.flow import graph as graphs
from geneva.flow import matrix as combinations
from geneva.flow.graph import Graph, Node, Trigger
from geneva.flow.matrix import Combination
from geneva.flow.templates import is_template


class Model(BaseModel):
    """One mapping of a description: its keys are known, and never change once read."""

    model_config = ConfigDict(
        alias_generator=AliasGenerator(validation_alias=to_camel, serialization_alias=to_camel),
        validate_by_name=True,
        validate_by_alias=True,
        extra="forbid",
        frozen=True,
        arbitrary_types_allowed=True,
    )


Count = Annotated[int, Field(ge=1, strict=True)]
Name = Annotated[str, Field(max_length=200, pattern=r"^[A-Za-z0-9_]([\w\- ]*[\w])?$")]
IoType = Literal[
    "any", "str", "string", "int", "float", "bool", "date", "datetime", "path", "url", "uri",
    "dict", "list", "uuid", "auth", "artifacts", "git", "image", "file", "dockerfile", "metric",
    "tensorboard",
]  # fmt: skip


class Io(Model):
    """An input or an output of a component: its name and type, and its value if none is given."""

    name: Annotated[str, Field(min_length=1)]
    type: IoType = "any"
    value: Any = None
    description: str | None = None
    is_optional: bool = False
    is_list: bool = False
    is_flag: bool = False
    arg_format: str | None = None
    delay_validation: bool | None = None
    connection: str | None = None
    to_init: bool = False
    to_env: str | None = None
    options: tuple[Any, ...] | None = None

    @property
    def is_required(self) -> bool:
        """True if an operation must give a value."""
        return not self.is_optional and "value" not in self.model_fields_set


class Param(Model):
    """A value for an input: written here, or taken from another operation with ``ref``."""

    value: Any = None
    ref: str | None = None
    context_only: bool = False
    to_init: bool = False
    to_env: str | None = None
    connection: str | None = None

    @model_validator(mode="before")
    @classmethod
    def _short_form(cls, data: Any) -> Any:
        if isinstance(data, Param):
            return data
        if not isinstance(data, Mapping):
            return {"value": data}
        if "value" not in data and "ref" not in data:
            raise ValueError("a param has a value or a ref; a mapping as a value is {value: {...}}")
        return data

    @field_validator("ref")
    @classmethod
    def _known_ref(cls, ref: str | None) -> str | None:
        if ref is not None:
            _as_value_error(graphs.reference, ref)
        return ref


class JoinParam(Model):
    """A param that a join takes from each job that it matches."""

    value: Any
    context_only: bool = False
    to_init: bool = False
    connection: str | None = None


class Join(Model):
    """A search over past jobs, whose matches become lists."""

    query: str = ""
    sort: str | None = None
    limit: int | str | None = None
    offset: int | str | None = None
    params: dict[str, JoinParam] = Field(default_factory=dict)


# --------------------------------------------------------------------------------------- matrix


class Values(Model):
    """The values of one parameter of a matrix."""

    kind: str
    value: Any

    @model_validator(mode="after")
    def _readable(self) -> Values:
        if not is_template(self.value):
            _as_value_error(combinations.values_of, self.kind, self.value)
        return self

    def values(self) -> list[object]:
        """Return the values, in order."""
        return combinations.values_of(self.kind, self.value)


class FailureEarlyStopping(Model):
    """End the group once ``percent`` of its planned members have failed."""

    kind: Literal["failure_early_stopping"]
    percent: Annotated[float, Field(gt=0, le=100)]
    policy: Any = None

    def rule(self) -> graphs.Stopping:
        """Return the rule as decisions read it."""
        return graphs.FailureStopping(self.percent)


class MetricEarlyStopping(Model):
    """End the group as a success once a metric is reached."""

    kind: Literal["metric_early_stopping"]
    metric: str
    value: float
    optimization: Literal["minimize", "maximize"]
    policy: Any = None

    def rule(self) -> graphs.Stopping:
        """Return the rule as decisions read it."""
        return graphs.MetricStopping(self.metric, self.value, self.optimization)


EarlyStopping = Annotated[FailureEarlyStopping | MetricEarlyStopping, Field(discriminator="kind")]


class _Many(Model):
    concurrency: Count | None = None
    early_stopping: tuple[EarlyStopping, ...] = ()


def _named(model: type[BaseModel], data: Any) -> Any:
    """Move values that stand beside the keys of a matrix into its parameters."""
    if not isinstance(data, Mapping):
        return data
    loose = {name: value for name, value in data.items() if isinstance(value, Values)}
    if not loose:
        return data
    params = {**(data.get("params") or {}), **loose}
    return {name: value for name, value in data.items() if name not in loose} | {"params": params}


class Grid(_Many):
    """Every combination of the values of its parameters, the first parameter the slowest."""

    kind: Literal["grid"] = "grid"
    params: dict[str, Values]
    num_runs: Count | None = None

    @model_validator(mode="before")
    @classmethod
    def _short_form(cls, data: Any) -> Any:
        """Take parameters by their names, as Python writes them: ``Grid(k=Choice(1, 2))``."""
        return _named(cls, data)

    @model_validator(mode="after")
    def _some(self) -> Grid:
        if not self.params:
            raise ValueError("no values: a grid has at least one parameter")
        return self

    def combinations(self) -> list[Combination]:
        """Return the combinations, in order."""
        values = {name: p.values() for name, p in self.params.items()}
        return combinations.grid(values, self.num_runs)


class Mapped(_Many):
    """The combinations themselves, one a row."""

    kind: Literal["mapping"] = "mapping"
    values: tuple[dict[str, Any], ...]

    @model_validator(mode="after")
    def _alike(self) -> Mapped:
        _as_value_error(combinations.mapping, self.values)
        return self

    def combinations(self) -> list[Combination]:
        """Return the rows, in order."""
        return combinations.mapping(self.values)


class Random(_Many):
    """Some combinations of a grid, chosen at random, the same ones for the same seed."""

    kind: Literal["random"] = "random"
    params: dict[str, Values]
    num_runs: Count
    seed: int | None = None

    @model_validator(mode="before")
    @classmethod
    def _short_form(cls, data: Any) -> Any:
        """Take parameters by their names, as Python writes them."""
        return _named(cls, data)

    def combinations(self) -> list[Combination]:
        """Return the chosen combinations, in the order in which they were drawn."""
        values = {name: p.values() for name, p in self.params.items()}
        return combinations.sample(values, self.num_runs, self.seed)


_MATRICES = ("grid", "mapping", "random")
_SEARCHES = ("bayes", "hyperband", "hyperopt", "iterative")


def _kind_of(data: Any) -> str:
    """Return the kind that tells which model a mapping is read as."""
    return str(data.get("kind") if isinstance(data, Mapping) else getattr(data, "kind", None))


def _known_matrix(data: Any) -> Any:
    kind = _kind_of(data)
    if kind in _SEARCHES:
        raise ValueError(
            f"a matrix of kind {kind!r} searches by an objective, which a backfill has not; the "
            f"kinds are {', '.join(_MATRICES)}"
        )
    if kind not in _MATRICES:
        raise ValueError(f"{kind!r} is no kind of matrix; the kinds are {', '.join(_MATRICES)}")
    return data


Matrix = Annotated[
    Annotated[Grid, Tag("grid")]
    | Annotated[Mapped, Tag("mapping")]
    | Annotated[Random, Tag("random")],
    Discriminator(_kind_of),
    BeforeValidator(_known_matrix),
]

# ------------------------------------------------------------------------------------------ run


class Container(Model):
    """A command: of an image, or of the host."""

    image: str | None = None
    command: tuple[str, ...] = ()
    args: tuple[Any, ...] = ()
    env: tuple[dict[str, Any], ...] | dict[str, Any] | None = None
    resources: dict[str, Any] | None = None
    working_dir: str | None = None
    name: str | None = None
    image_pull_policy: str | None = None
    volume_mounts: tuple[dict[str, Any], ...] = ()


class Environment(Model):
    """The place where an operation runs; a child's own settings win over inherited ones."""

    image: str | None = None
    resources: dict[str, float] | None = None
    labels: dict[str, str] = Field(default_factory=dict)
    annotations: dict[str, str] = Field(default_factory=dict)
    node_selector: dict[str, str] = Field(default_factory=dict)
    ray: dict[str, Any] | None = None
    runtime_env: dict[str, Any] | None = None
    env: dict[str, str] = Field(default_factory=dict)


class BackfillRun(Model):
    """A backfill: the arguments of ``Table.backfill``, each of which may be a template."""

    kind: Literal["backfill"] = "backfill"
    table: str
    columns: Annotated[tuple[str, ...], BeforeValidator(lambda v: [v] if isinstance(v, str) else v)]
    where: str | None = None
    windows: dict[str, Any] | None = None
    window: dict[str, Any] | None = None
    concurrency: int | str | None = None
    intra_applier_concurrency: int | str | None = None
    num_frags: int | str | None = None
    commit_granularity: int | str | None = None
    batch_size: int | str | None = None
    checkpoint_size: int | str | None = None
    order: str | None = None
    on_error: str | None = None
    max_failures: float | str | None = None
    force: bool | str | None = None
    retry_failed: bool | str | None = None
    unverified: str | None = None
    foreign: str | None = None
    inputs: str | None = None
    include_new: bool | str | None = None
    params: dict[str, Any] | None = None
    timeout: float | str | None = None
    resource_timeout: float | str | None = None
    executor: str | None = None

    @model_validator(mode="after")
    def _one_range(self) -> BackfillRun:
        if self.windows is not None and self.window is not None:
            raise ValueError("window is one window, windows a range; give one or the other")
        if not self.columns:
            raise ValueError("columns names at least one column")
        return self


class JobRun(Model):
    """A process: a function of Python, or a command."""

    kind: Literal["job"] = "job"
    call: str | None = None
    container: Container | None = None
    environment: Environment | None = None
    connections: tuple[str, ...] = ()
    volumes: tuple[dict[str, Any], ...] = ()
    init: tuple[dict[str, Any], ...] = ()
    sidecars: tuple[dict[str, Any], ...] = ()

    @model_validator(mode="after")
    def _one_way(self) -> JobRun:
        if (self.call is None) == (self.container is None):
            raise ValueError("a job has a call, package.module:function, or a container")
        if self.call is not None and self.call.count(":") != 1:
            raise ValueError(f"call={self.call!r} is not of the form package.module:function")
        return self


class DagRun(Model):
    """A graph of operations."""

    def __init__(self, operations: Any = None, /, **data: Any) -> None:
        """Take the operations, as Python writes them."""
        super().__init__(**({"operations": operations} if operations is not None else {}), **data)

    kind: Literal["dag"] = "dag"
    operations: tuple[Operation, ...]
    components: tuple[Component, ...] = ()
    environment: Environment | None = None
    connections: tuple[str, ...] = ()
    volumes: tuple[dict[str, Any], ...] = ()
    concurrency: Count | None = None
    early_stopping: tuple[EarlyStopping, ...] = ()

    @model_validator(mode="after")
    def _some(self) -> DagRun:
        if not self.operations:
            raise ValueError("a dag has at least one operation")
        return self


_RUNS = ("backfill", "job", "dag")


def _known_run(data: Any) -> Any:
    kind = _kind_of(data)
    if kind not in _RUNS:
        raise ValueError(f"{kind!r} is no kind of run; the kinds are {', '.join(_RUNS)}")
    return data


Run = Annotated[
    Annotated[BackfillRun, Tag("backfill")]
    | Annotated[JobRun, Tag("job")]
    | Annotated[DagRun, Tag("dag")],
    Discriminator(_kind_of),
    BeforeValidator(_known_run),
]

# ----------------------------------------------------------------------- components, operations


class Termination(Model):
    """How often a dead process is started again, and how long one may take."""

    max_retries: Annotated[int, Field(ge=0)] = 0
    timeout: Annotated[float, Field(gt=0)] | None = None
    ttl: float | None = None


class _Common(Model):
    version: float | str | None = None
    name: Name | None = None
    description: str | None = None
    tags: tuple[str, ...] = ()
    queue: str | None = None
    priority: int | None = None
    termination: Termination | None = None
    cache: bool | dict[str, Any] | None = None
    hooks: Any = None
    presets: tuple[str, ...] = ()

    @field_validator("hooks")
    @classmethod
    def _no_hooks(cls, hooks: Any) -> None:
        if hooks:
            raise ValueError("hooks are not run here; an operation with a trigger does their work")


class Component(_Common):
    """A reusable piece of work: its inputs and outputs, and how it runs."""

    kind: Literal["component"] = "component"
    inputs: tuple[Io, ...] = ()
    outputs: tuple[Io, ...] = ()
    template: Any = None
    run: Run


_OPERATION = ("kind", "params", "environment", "connections")  # an operation's own


class Operation(_Common):
    """One use of a component: its values, its upstream and its conditions."""

    kind: Literal["operation", "operations"] = "operation"
    component: Component | None = None
    run: Run | None = None  # an inline component without inputs
    dag_ref: str | None = None
    path_ref: str | None = None
    url_ref: str | None = None
    hub_ref: str | None = None
    params: dict[str, Param] = Field(default_factory=dict)
    matrix: Matrix | None = None
    joins: tuple[Join, ...] = ()
    dependencies: tuple[str, ...] = ()
    trigger: Trigger = Trigger.ALL_SUCCEEDED
    conditions: bool | str | None = None
    skip_on_upstream_skip: bool = True
    events: tuple[dict[str, Any], ...] = ()
    schedule: dict[str, Any] | None = None
    environment: Environment | None = None
    connections: tuple[str, ...] = ()
    metrics: dict[str, str] = Field(default_factory=dict)

    def __init__(self, name: str | None = None, /, **data: Any) -> None:
        """Take a name and, as Python writes it, the arguments of a backfill or a job."""
        if name is not None:
            data["name"] = name
        if "run" not in data:
            for kind, key, model in (("backfill", "table", BackfillRun), ("job", "call", JobRun)):
                if key in data:
                    names = [n for n in model.model_fields if n in data and n not in _OPERATION]
                    data["run"] = {"kind": kind} | {n: data.pop(n) for n in names}
                    break
        super().__init__(**data)

    @property
    def references(self) -> list[str]:
        """The keys that name a component, in the order of the document."""
        names = ("component", "run", "dag_ref", "path_ref", "url_ref", "hub_ref")
        return [name for name in names if getattr(self, name) is not None]


_TAGGED: dict[str, type[BaseModel]] = {
    "grid": Grid,
    "mapping": Mapped,
    "random": Random,
    "backfill": BackfillRun,
    "job": JobRun,
    "dag": DagRun,
    "failure_early_stopping": FailureEarlyStopping,
    "metric_early_stopping": MetricEarlyStopping,
}

DagRun.model_rebuild()
Component.model_rebuild()
Operation.model_rebuild()


# --------------------------------------------------------------------------------------- reading


def read(data: object, lines: Mapping[str, int] | None = None) -> Component | Operation:
    """Read a component or an operation from plain data.

    Parameters
    ----------
    data
        A mapping as YAML or JSON gives it.
    lines
        The line of each path of the document, for errors.

    Raises
    ------
    FlowError
        It is neither, or a part of it is wrong; the message names the part.
    """
    if isinstance(data, Component | Operation):
        return data
    if not isinstance(data, Mapping):
        raise FlowError(f"a flow is a mapping with kind: component or operation, not {data!r:.80}")
    kind = data.get("kind")
    if kind not in ("component", "operation", "operations"):
        raise FlowError(
            f"kind is component or operation, not {kind!r}", "kind", (lines or {}).get("kind")
        )
    model: type[Component] | type[Operation] = Component if kind == "component" else Operation
    try:
        return model.model_validate(data)
    except ValidationError as error:
        raise flow_error(error, model, lines or {}) from None


def flow_error(
    error: ValidationError, model: type[BaseModel], lines: Mapping[str, int]
) -> FlowError:
    """Return the first fault of a description, with its path, its line and the known keys."""
    first = error.errors(include_url=False)[0]
    path = path_of(first["loc"])
    message = str(first["msg"]).removeprefix("Value error, ")
    if first["type"] == "extra_forbidden":
        message = _unknown_key(str(first["loc"][-1]), _model_at(model, first["loc"][:-1]))
    elif first["type"] == "missing":
        message = "is missing"
    elif "input" in first and first["type"] != "value_error":
        message += f", not {first['input']!r:.80}"
    return FlowError(message, path, _line_of(path, lines))


def path_of(location: Sequence[int | str]) -> str:
    """Return a place as people write it: ``operations[2].params.dt``, without tags of unions."""
    made = ""
    for number, part in enumerate(location):
        before = location[number - 1] if number else None
        if isinstance(part, int):
            made += f"[{part}]"
        elif part in _TAGGED and (before in ("run", "matrix") or isinstance(before, int)):
            continue
        else:
            made += f".{part}" if made else part
    return made


def _model_at(model: type[BaseModel], location: Sequence[int | str]) -> type[BaseModel] | None:
    """Return the model at a place; None where the place is none."""
    found: type[BaseModel] | None = model
    for part in location:
        if isinstance(part, int):
            continue
        if part in _TAGGED:
            found = _TAGGED[part]
            continue
        if found is None:
            return None
        field = next((f for n, f in found.model_fields.items() if part in (n, to_camel(n))), None)
        found = _model_within(field.annotation) if field else found
    return found


def _model_within(annotation: Any) -> type[BaseModel] | None:
    """Return the model of a field's type, if it has just one."""
    if isinstance(annotation, type) and issubclass(annotation, BaseModel):
        return annotation
    models = [m for a in getattr(annotation, "__args__", ()) if (m := _model_within(a)) is not None]
    return models[0] if len(models) == 1 else None


def _unknown_key(key: str, model: type[BaseModel] | None) -> str:
    known = [to_camel(name) for name in model.model_fields] if model else []
    hint = did_you_mean(to_camel(key), known)
    listed = f" The keys here are {', '.join(known)}." if known else ""
    return f"unknown key {key!r}.{hint}{listed}"


def _line_of(path: str, lines: Mapping[str, int]) -> int | None:
    """Return the line of a path, or of the nearest place around it; camelCase is snake_case."""
    known = {to_camel(place): line for place, line in lines.items()}
    path = to_camel(path)
    while path and path not in known:
        cut = max(path.rfind("."), path.rfind("["))
        path = path[:cut] if cut > 0 else ""
    return known.get(path)


def _as_value_error(function: Any, *arguments: Any) -> None:
    """Call a check, and raise its fault as the kind that a model collects."""
    try:
        function(*arguments)
    except FlowError as error:
        raise ValueError(error.message) from None


# ----------------------------------------------------------------------------------------- graph


def graph_of(dag: DagRun) -> Graph:
    """Return the graph of a DAG, with those of the DAGs within it, all of them checked.

    Raises
    ------
    FlowError
        A name stands twice, a dependency or a component is unknown, or there is a cycle.
    """
    return graphs.checked(_graph(dag, "operations"))


def _graph(dag: DagRun, path: str) -> Graph:
    components = {c.name: c for c in dag.components if c.name}
    nodes = []
    for number, operation in enumerate(dag.operations):
        place = f"{path}[{number}]"
        if operation.name is None:
            raise FlowError("an operation of a dag has a name", place)
        component = component_of(operation, components, place)
        refs = [p.ref for p in operation.params.values() if p.ref is not None]
        run = component.run if component else None
        inner = _graph(run, f"{place}.run.operations") if isinstance(run, DagRun) else None
        nodes.append(
            Node(
                operation.name,
                graphs.upstream_of(operation.dependencies, refs),
                operation.trigger,
                operation.skip_on_upstream_skip,
                operation.conditions,
                inner,
            )
        )
    stopping = tuple(rule.rule() for rule in dag.early_stopping)
    return Graph(tuple(nodes), dag.concurrency, stopping)


def component_of(
    operation: Operation, components: Mapping[str, Component], path: str
) -> Component | None:
    """Return the component that an operation uses; None for one that lies elsewhere.

    Raises
    ------
    FlowError
        It names none, several, or one that the DAG does not have.
    """
    given = operation.references
    if len(given) != 1:
        listed = "component, run, dagRef, pathRef, urlRef and hubRef"
        raise FlowError(
            f"operation {operation.name!r} has {len(given) or 'none'} of {listed}; it needs one",
            path,
        )
    if operation.dag_ref is not None:
        if operation.dag_ref not in components:
            known = ", ".join(components) or "none"
            raise FlowError(
                f"there is no component {operation.dag_ref!r} in the dag; its components: {known}",
                f"{path}.dagRef",
            )
        return components[operation.dag_ref]
    if operation.run is not None:
        return Component(name=operation.name, run=operation.run)
    return operation.component


__all__ = [
    "BackfillRun", "Component", "DagRun", "Grid", "Io", "JobRun", "Join", "JoinParam", "Mapped",
    "Operation", "Param", "Random", "Values", "component_of", "graph_of", "read",
]  # fmt: skip
