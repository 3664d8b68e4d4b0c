"""The values of a step at the moment it starts: its parameters, inputs and templates. Pure."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import date, datetime, timedelta
from typing import Any

from geneva.errors import FlowError, SettingError
from geneva.flow.compiled import Place
from geneva.flow.graph import reference
from geneva.flow.joins import Joined, joined, search_of, taken
from geneva.flow.match import Record
from geneva.flow.spec import BackfillRun, Io, Param
from geneva.flow.templates import render, truth
from geneva.model.steps import moment_or_date, whole_date
from geneva.model.windows import Windows

_PARTS = ("inputs", "outputs", "metrics", "artifacts", "globals")


@dataclass(frozen=True, slots=True)
class StepFacts:
    """What is known when a step starts.

    Attributes
    ----------
    record
        Returns the record of an operation of the run by its path, as joins read it; None if it has
        not ended.
    past
        Returns the records of past jobs, for joins and ``ref: runs.ID``.
    globals_of
        Returns the globals of an operation by its path.
    """

    record: Callable[[str], Record | None]
    past: Callable[[], Sequence[Record]] = tuple
    globals_of: Callable[[str], Mapping[str, object]] = lambda path: {}


@dataclass(frozen=True, slots=True)
class StepValues:
    """The values of a step.

    Attributes
    ----------
    inputs
        By name, of their declared types.
    names
        All that templates may use: inputs, values that are for templates only, and globals.
    joined
        The ids of the jobs that each join took, in order.
    """

    inputs: Mapping[str, object]
    names: Mapping[str, object]
    joined: Sequence[Sequence[str]] = field(default_factory=tuple)


def values_of(place: Place, known: StepFacts) -> StepValues:
    """Resolve the parameters, joins and inputs of a step or of a DAG.

    Raises
    ------
    FlowError
        A reference, a template or a join cannot be resolved, or a value is not of its type.
    """
    own = known.globals_of(place.path)
    names: dict[str, object] = {**own, "globals": dict(own), **place.combination}
    given: dict[str, object] = dict(place.combination)
    context: dict[str, object] = {}
    for name, param in place.operation.params.items():
        value = _value(param, place, known, names, f"params.{name}")
        (context if param.context_only else given)[name] = value
    names |= given | context
    found = [_join(place, number, known, names) for number in range(len(place.operation.joins))]
    for join, result in zip(place.operation.joins, found, strict=True):
        for name, value in result.lists.items():
            (context if join.params[name].context_only else given)[name] = value
    names |= given | context
    inputs = _typed_inputs(place, given, names)
    return StepValues(inputs, names | inputs, [list(result.ids) for result in found])


def condition(place: Place, known: StepFacts) -> bool:
    """Evaluate the condition of an operation whose upstream has ended."""
    conditions = place.operation.conditions
    return True if conditions is None else truth(conditions, values_of(place, known).names)


def _join(place: Place, number: int, known: StepFacts, names: Mapping[str, object]) -> Joined:
    join = place.operation.joins[number]
    search = search_of(join, names)
    return joined(join, taken(search, known.past()))


def _value(
    param: Param, place: Place, known: StepFacts, names: Mapping[str, object], where: str
) -> object:
    if param.ref is None:
        return render(param.value, names)
    wanted = render(param.value, names)
    if param.ref == "dag":
        if place.outer is None:
            raise FlowError("ref: dag is for the operations of a dag", where)
        values = values_of(place.outer, known)
        own = {"inputs": values.inputs, "globals": known.globals_of(place.outer.path)}
        return _part(own, wanted, "the dag", where)
    name = reference(param.ref)
    if name is None:
        sought = param.ref.removeprefix("runs.")
        past = next((job for job in known.past() if job["id"] == sought), None)
        if past is None:
            raise FlowError(f"there is no past job {sought!r}", where)
        return _part(past, wanted, f"job {sought!r}", where)
    record = known.record(place.siblings + name)
    if record is None:
        raise FlowError(f"operation {name!r} has no result to refer to", where)
    return _part(record, wanted, f"operation {name!r}", where)


def _part(record: Mapping[str, Any], wanted: object, who: str, where: str) -> object:
    """Return a section of a record, or one value of it."""
    section, dot, name = str(wanted).partition(".")
    if section not in _PARTS:
        raise FlowError(f"{wanted!r}: a ref takes {', '.join(_PARTS)} and a name", where)
    held = record.get(section) or {}
    if not dot:
        return held
    if name not in held:
        listed = ", ".join(held) or "none"
        raise FlowError(f"{who} has no {section}.{name}; its {section} are {listed}", where)
    return held[name]


# -------------------------------------------------------------------------------------- types


def _typed_inputs(
    place: Place, given: Mapping[str, object], names: Mapping[str, object]
) -> dict[str, object]:
    if place.operation.run is not None:  # an inline component declares none
        return dict(given)
    inputs: dict[str, object] = {}
    for io in place.component.inputs:
        if io.name == place.windowed:
            continue
        if io.name in given:
            inputs[io.name] = typed(io, given[io.name])
        elif io.is_required:
            raise FlowError(f"the input {io.name!r} has no value", f"params.{io.name}")
        else:
            inputs[io.name] = typed(io, render(io.value, names))
    return inputs


def typed(io: Io, value: object) -> object:
    """Return a value as its input declares it.

    Raises
    ------
    FlowError
        It is not of the type.
    """
    where = f"params.{io.name}"
    if value is None:
        if io.is_optional or io.value is None:
            return None
        raise FlowError(f"the input {io.name!r} is {io.type}, not null", where)
    if io.is_list:
        if not isinstance(value, list | tuple):
            raise FlowError(f"the input {io.name!r} is a list, not {value!r:.80}", where)
        return [None if v is None else _typed(io, v, where) for v in value]
    return _typed(io, value, where)


_CHECKED: dict[str, tuple[type, ...]] = {
    "int": (int,),
    "float": (int, float),
    "bool": (bool,),
    "dict": (Mapping,),
    "list": (list, tuple),
    "str": (str,),
    "string": (str,),
}


def _typed(io: Io, value: object, where: str) -> object:
    try:
        if io.type == "date":
            return whole_date(value, io.name)
        if io.type == "datetime":
            return moment_or_date(value, io.name)
    except SettingError as error:
        raise FlowError(f"the input {io.name!r} is {io.type}: {error}", where) from None
    kinds = _CHECKED.get(io.type)
    wrong = kinds is not None and not isinstance(value, kinds)
    if wrong or (isinstance(value, bool) and io.type in ("int", "float")):
        raise FlowError(f"the input {io.name!r} is {io.type}, not {value!r:.80}", where)
    return float(value) if io.type == "float" and isinstance(value, int) else value


# ----------------------------------------------------------------------------------- backfills


def backfill_arguments(
    place: Place, run: BackfillRun, names: Mapping[str, object]
) -> tuple[str, tuple[str, ...], dict[str, Any]]:
    """Return the table, the columns and the arguments of a step's backfill.

    Raises
    ------
    FlowError
        A template cannot be filled in, or the window makes no sense.
    """
    given = run.model_dump(exclude_none=True, exclude={"kind", "table", "columns", "window"})
    arguments = {name: render(value, names) for name, value in given.items()}
    if place.windows is not None:
        arguments["windows"] = dict(place.windows)
    elif run.window is not None:
        arguments["windows"] = _one_window(render(run.window, names))
    columns = tuple(str(render(column, names)) for column in run.columns)
    return str(render(run.table, names)), columns, arguments


def _one_window(window: Mapping[str, Any]) -> dict[str, object]:
    """Return the windows that are one: the day of a date, or ``step`` from a moment on."""
    settings = dict(window)
    on, at = str(settings.pop("on", "")), settings.pop("at", None)
    try:
        moment = moment_or_date(at, "at") if isinstance(at, str | date) else at
        step = settings.pop("step", None)
        if isinstance(moment, date) and not isinstance(moment, datetime) and step is None:
            return Windows(on, start=moment, end=moment + timedelta(days=1), **settings).config()
        if moment is None or step is None:
            raise SettingError(f"a window at {at!r} needs its length: step")
        length = timedelta(seconds=float(step)) if isinstance(step, int | float) else None
        if length is None or not isinstance(moment, datetime):
            raise SettingError(f"a window at {at!r} takes step in seconds, not {step!r}")
        return Windows(on, start=moment, end=moment + length, **settings).config()
    except (SettingError, TypeError) as error:
        raise FlowError(str(error), "window") from None
