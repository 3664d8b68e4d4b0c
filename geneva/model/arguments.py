"""The arguments of a backfill, declared once for every door, and their check.

`geneva.Table.backfill`, the command line, the form of the web pages, the schema of the REST
interface, a flow's description and the reference are made from `ARGUMENTS`, or tested equal to it.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass, fields, replace
from datetime import timedelta
from enum import Enum, Flag, auto
from typing import Any, assert_never

from geneva.errors import SettingError, did_you_mean
from geneva.model.types import Options
from geneva.model.windows import Windows


class ValueKind(Enum):
    """The kind of an argument's values."""

    COUNT = "whole number of at least 1"
    NUMBER = "number of at least 0"
    SECONDS = "seconds of at least 0"
    SWITCH = "true or false"
    CHOICE = "one of its choices"
    SQL = "SQL text"
    TEXT = "text"
    TEXTS = "list of values"
    WINDOWS = "range of a column, cut into windows"
    FRAGMENTS = "list of fragment ids"
    ROWS = "list of (fragment, start, stop)"
    OBJECT = "names and values"


_ID = {"type": "integer", "minimum": 0}
_SCHEMAS: Mapping[ValueKind, dict[str, Any]] = {
    ValueKind.COUNT: {"type": "integer", "minimum": 1},
    ValueKind.NUMBER: {"type": "number", "minimum": 0},
    ValueKind.SECONDS: {"type": "number", "minimum": 0},
    ValueKind.SWITCH: {"type": "boolean"},
    ValueKind.CHOICE: {"type": "string"},
    ValueKind.SQL: {"type": "string"},
    ValueKind.TEXT: {"type": ["string", "number"]},
    ValueKind.TEXTS: {"anyOf": [{"const": "all"}, {"type": "array", "minItems": 1}]},
    ValueKind.WINDOWS: {"type": "object"},
    ValueKind.FRAGMENTS: {"type": "array", "items": _ID, "minItems": 1},
    ValueKind.ROWS: {
        "type": "array",
        "items": {"type": "array", "items": _ID, "minItems": 3, "maxItems": 3},
    },
    ValueKind.OBJECT: {"type": "object"},
}


class Doors(Flag):
    """Where a backfill can be asked for; `geneva.Table.backfill` itself takes every argument."""

    SHELL = auto()
    SERVICE = auto()  # REST, `auto_backfill` and whatever else is a job of a service
    FORM = auto()
    FLOW = auto()


_EVERYWHERE = Doors.SHELL | Doors.SERVICE | Doors.FORM | Doors.FLOW
_BY_HAND = _EVERYWHERE & ~Doors.FORM


@dataclass(frozen=True, slots=True)
class Argument:
    """One argument of `geneva.Table.backfill`.

    Attributes
    ----------
    default
        ``None`` also stands for an argument that is left out.
    help
        One line, for a shell and the reference.
    unit
        What is counted.
    option
        The word of a shell, if it is not the name: ``--fragment 3 --fragment 5``.
    parts
        Of an object with declared names: a shell has an option for each, ``--OPTION-PART``, and
        every other door takes the object.
    """

    name: str
    kind: ValueKind
    default: Any
    help: str
    choices: tuple[str, ...] = ()
    unit: str = ""
    option: str = ""
    doors: Doors = _EVERYWHERE
    parts: tuple[Argument, ...] = ()

    @property
    def word(self) -> str:
        """The word of a shell, without its dashes."""
        return self.option or self.name.replace("_", "-")

    def words(self, value: Any) -> list[str]:
        """Return the words of a shell that give the argument a value."""
        if self.parts:
            given = [part for part in self.parts if part.name in value]
            named = [replace(p, option=f"{self.word}-{p.word}") for p in given]
            return [w for p in named for w in p.words(value[p.name])]
        match self.kind:
            case ValueKind.SWITCH:
                return [f"--{self.word}"] if value else []
            case ValueKind.FRAGMENTS:
                return [w for i in value for w in (f"--{self.word}", str(i))]
            case ValueKind.TEXTS:
                each = [value] if isinstance(value, str) else value
                return [w for v in each for w in (f"--{self.word}", str(v))]
            case ValueKind.OBJECT:
                pairs = [
                    f"{k}={v if isinstance(v, str) else json.dumps(v)}" for k, v in value.items()
                ]
                return [w for pair in pairs for w in (f"--{self.word}", pair)]
            case _:
                return [f"--{self.word}", str(value)]

    def schema(self) -> dict[str, Any]:
        """Return the JSON schema of the values."""
        described = {"description": self.help, "default": self.default}
        if self.parts:
            parts = {p.name: p.schema() for p in self.parts}
            form = {"type": "object", "properties": parts, "additionalProperties": False}
        else:
            form = _SCHEMAS[self.kind] | ({"enum": list(self.choices)} if self.choices else {})
        if self.default is None:
            form = {"anyOf": [form, {"type": "null"}]}
        return form | described


_WINDOWS = (
    Argument("on", ValueKind.TEXT, None, "Cut the backfill into windows along this column."),
    Argument("start", ValueKind.TEXT, None, "Where the range begins: a date, moment or number."),
    Argument("end", ValueKind.TEXT, None, "Where it ends; rows of that value are not in it."),
    Argument("step", ValueKind.TEXT, None, "Length of a window: 1d, 1mo, 6h, 3600 or a number."),
    Argument("last", ValueKind.TEXT, None, "Instead of start and end: 7d for the last seven days."),
    Argument(
        "values",
        ValueKind.TEXTS,
        None,
        "A window for each of these values, or for all; repeat.",
        option="value",
    ),
    Argument(
        "keys",
        ValueKind.TEXTS,
        None,
        "Only the window of this key, as plan and record name it; repeat.",
        option="key",
    ),
    Argument("tz", ValueKind.TEXT, None, "The time zone in which days begin."),
    Argument(
        "unit",
        ValueKind.CHOICE,
        None,
        "What a column of integers counts since 1970.",
        choices=("s", "ms", "us", "ns"),
    ),
    Argument(
        "order",
        ValueKind.CHOICE,
        None,
        "Which window opens first. [default: forward]",
        choices=("forward", "backward"),
    ),
    Argument("concurrency", ValueKind.COUNT, None, "Windows that are open at once. [default: 1]"),
    Argument(
        "nulls",
        ValueKind.CHOICE,
        None,
        "Rows without a value. [default: skip]",
        choices=("skip", "last", "only"),
    ),
    Argument(
        "on_failure",
        ValueKind.CHOICE,
        None,
        "After a window that failed. [default: stop]",
        choices=("stop", "continue", "pause"),
    ),
    Argument(
        "commit",
        ValueKind.CHOICE,
        None,
        "When fragments are written. [default: auto]",
        choices=("auto", "fragment", "window"),
    ),
)

ARGUMENTS = (
    Argument(
        "where",
        ValueKind.SQL,
        None,
        "SQL filter: compute rows for which it is true, also those that hold a value. "
        "Without it: rows that are missing or stale.",
    ),
    Argument(
        "concurrency",
        ValueKind.COUNT,
        8,
        "Applier processes; what fits starts at once.",
        unit="processes",
    ),
    Argument(
        "intra_applier_concurrency",
        ValueKind.COUNT,
        1,
        "UDF calls at once in each applier.",
        unit="calls",
    ),
    Argument(
        "num_frags",
        ValueKind.COUNT,
        None,
        "At most so many fragments that need work; the rest later.",
        unit="fragments",
    ),
    Argument(
        "commit_granularity",
        ValueKind.COUNT,
        64,
        "Fragments per intermediate commit.",
        unit="fragments",
    ),
    Argument(
        "batch_size", ValueKind.COUNT, None, "Rows per UDF call; default: measured.", unit="rows"
    ),
    Argument(
        "checkpoint_size",
        ValueKind.COUNT,
        None,
        "Rows per checkpoint record.",
        unit="rows",
        doors=_BY_HAND,
    ),
    Argument(
        "on_error",
        ValueKind.CHOICE,
        "fail",
        "Stop at the first failing row, or store null and record it.",
        choices=("fail", "null"),
    ),
    Argument(
        "max_failures",
        ValueKind.NUMBER,
        None,
        "With --on-error null: more (a count, or a fraction below 1) stop the job.",
        unit="rows",
    ),
    Argument("force", ValueKind.SWITCH, False, "Compute whatever was recorded."),
    Argument("retry_failed", ValueKind.SWITCH, False, "Try rows again that failed earlier."),
    Argument(
        "unverified",
        ValueKind.CHOICE,
        "trust",
        "Values whose history is gone.",
        choices=("trust", "recompute"),
    ),
    Argument(
        "foreign",
        ValueKind.CHOICE,
        "keep",
        "Values that somebody else wrote.",
        choices=("keep", "recompute"),
    ),
    Argument(
        "inputs",
        ValueKind.CHOICE,
        "wait",
        "Rows whose computed input is missing or stale: leave them, or pass it.",
        choices=("wait", "as_is"),
    ),
    Argument(
        "include_new", ValueKind.SWITCH, False, "Also rows that are appended while the job runs."
    ),
    Argument(
        "only",
        ValueKind.ROWS,
        None,
        "Of these rows, at most these; physical rows, half-open.",
        doors=Doors.SERVICE,
    ),
    Argument(
        "params",
        ValueKind.OBJECT,
        None,
        "Override a parameter of the UDF; JSON; repeat.",
        option="param",
    ),
    Argument(
        "timeout", ValueKind.SECONDS, None, "Seconds after which the job stops.", unit="seconds"
    ),
    Argument(
        "resource_timeout",
        ValueKind.SECONDS,
        600.0,
        "Seconds to wait for the first applier.",
        unit="seconds",
        doors=_BY_HAND,
    ),
    Argument(
        "order",
        ValueKind.CHOICE,
        "forward",
        "Begin with the oldest or newest fragments.",
        choices=("forward", "backward"),
        doors=_BY_HAND,
    ),
    Argument(
        "fragments",
        ValueKind.FRAGMENTS,
        None,
        "Only this fragment; repeat for several.",
        option="fragment",
        doors=Doors.SHELL | Doors.SERVICE,
    ),
    Argument(
        "windows",
        ValueKind.WINDOWS,
        None,
        "A range of a column's values, computed window by window.",
        option="window",
        parts=_WINDOWS,
    ),
    Argument(
        "executor",
        ValueKind.CHOICE,
        "ray",
        "Ray actors, or threads of one process.",
        choices=("ray", "local"),
    ),
    Argument(
        "progress",
        ValueKind.SWITCH,
        None,
        "A bar on a terminal, else a line every few seconds. [default: bar on a terminal]",
        doors=Doors.SHELL,
    ),
)
"""In the order of the signature of `geneva.Table.backfill`."""

_BY_NAME = {a.name: a for a in ARGUMENTS}
DEFAULTS: Mapping[str, Any] = {a.name: a.default for a in ARGUMENTS}


def arguments_of(doors: Doors) -> tuple[Argument, ...]:
    """Return the arguments that all of some doors take, in their order."""
    return tuple(a for a in ARGUMENTS if doors in a.doors)


def with_defaults(given: Mapping[str, Any]) -> dict[str, Any]:
    """Return all arguments, missing ones by default, lengths of time in seconds.

    Raises
    ------
    SettingError
        One argument is unknown.
    """
    refuse_unknown(given)
    plain = {k: _plain(v) for k, v in given.items()}
    return {**DEFAULTS, **plain}


def _plain(value: Any) -> Any:
    """Return a value as it can be written down: lengths of time in seconds, windows by name."""
    match value:
        case timedelta():
            return value.total_seconds()
        case Windows():
            return value.config()
        case _:
            return value


def chosen(arguments: Mapping[str, Any]) -> dict[str, Any]:
    """Return the arguments that differ from their defaults."""
    return {k: v for k, v in arguments.items() if v != DEFAULTS[k]}


def refuse_unknown(names: Mapping[str, Any]) -> None:
    """Refuse an argument that is not declared, and say which are.

    Raises
    ------
    SettingError
        There is one.
    """
    for name in sorted(names.keys() - DEFAULTS.keys()):
        hint = did_you_mean(name, DEFAULTS)
        raise SettingError(f"unknown argument {name!r}.{hint} Arguments: {', '.join(DEFAULTS)}")


def refuse_elsewhere(names: Mapping[str, Any]) -> None:
    """Refuse an argument that a job of a service cannot have.

    Raises
    ------
    SettingError
        There is one.
    """
    for name in names:
        if name in _BY_NAME and Doors.SERVICE not in _BY_NAME[name].doors:
            raise SettingError(f"{name!r} is no argument of a job that runs elsewhere")


def checked_options(arguments: Mapping[str, Any]) -> Options:
    """Check the options of the engine among the arguments.

    Raises
    ------
    SettingError
        One makes no sense.
    """
    names = {f.name for f in fields(Options)}
    options = {k: v for k, v in arguments.items() if k in names}
    for name, value in options.items():
        check_value(name, value)
    if options.get("max_failures") is not None and options.get("on_error") != "null":
        raise SettingError("max_failures counts the failures that on_error='null' records; set it")
    if options.get("fragments") is not None:
        if options.get("include_new"):
            raise SettingError("fragments limits the call to what is there; leave out include_new")
        options["fragments"] = tuple(sorted(set(options["fragments"])))
    if options.get("only") is not None:  # what came through JSON holds lists
        options["only"] = tuple((f, start, stop) for f, start, stop in options["only"])
    if options.get("windows") is not None:
        options["windows"] = windows_of(options["windows"])
    return Options(**options)


def windows_of(value: Windows | Mapping[str, Any]) -> Windows:
    """Return windows, which may be given as a mapping of their arguments.

    Raises
    ------
    SettingError
        They make no sense.
    """
    return value if isinstance(value, Windows) else Windows.from_config(value)


def check_value(name: str, value: Any) -> None:
    """Check the value of one argument.

    Raises
    ------
    SettingError
        It makes no sense.
    """
    argument = _BY_NAME[name]
    if value is None and argument.default is None:
        return
    if argument.kind is ValueKind.WINDOWS:
        windows_of(value)
        return
    problem = _problem(argument, value)
    if problem:
        raise SettingError(f"{name}={value!r} {problem}")


def _problem(argument: Argument, value: Any) -> str:
    """Return the fault of a value, or an empty text."""
    number = isinstance(value, int | float) and not isinstance(value, bool)
    fault = ""
    match argument.kind:
        case ValueKind.COUNT if not number or isinstance(value, float):
            fault = "must be a whole number"
        case ValueKind.COUNT:
            fault = "" if value >= 1 else "must be at least 1"
        case ValueKind.NUMBER | ValueKind.SECONDS:
            fault = "" if number and value >= 0 else "must be a number that is not negative"
        case ValueKind.SWITCH:
            fault = "" if isinstance(value, bool) else "must be True or False"
        case ValueKind.CHOICE:
            known = " or ".join(map(repr, argument.choices))
            fault = "" if value in argument.choices else f"is unknown; choose {known}"
        case ValueKind.SQL | ValueKind.TEXT | ValueKind.TEXTS | ValueKind.WINDOWS:
            fault = "" if isinstance(value, str) else f"must be {argument.kind.value}"
        case ValueKind.FRAGMENTS:
            fits = _are_ids(value) and len(value) > 0
            fault = "" if fits else "must be a list of fragment ids, such as [0, 3]"
        case ValueKind.ROWS:
            listed = isinstance(value, list | tuple)
            fits = listed and all(_are_ids(item) and len(item) == 3 for item in value)
            fault = "" if fits else "must be a list of (fragment, start, stop), half-open"
        case ValueKind.OBJECT:
            fault = "" if isinstance(value, Mapping) else "must be an object of names and values"
        case _:
            assert_never(argument.kind)
    return fault


def _are_ids(value: Any) -> bool:
    return isinstance(value, list | tuple) and all(type(i) is int and i >= 0 for i in value)
