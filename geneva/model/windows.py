"""Windows: the slices into which a backfill is cut along a column. Pure: no table, no clock.

`Windows` is what a person asks for; `resolve` makes of it the windows of one plan, once the column
is known, and, where a bound was left out, the least and greatest value that it holds. The column's
values are integers here (`Axis`), so that a bound is compared exactly whatever the unit.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable, Mapping, Sequence
from dataclasses import KW_ONLY, dataclass, fields, replace
from datetime import UTC, date, datetime, time, timedelta, tzinfo
from typing import Any, Literal, get_args

from geneva.errors import SettingError, did_you_mean
from geneva.model.ranges import MOST_WINDOWS, date_range, datetime_range
from geneva.model.steps import (
    DAY_US,
    EPOCH,
    Step,
    add_calendar,
    as_number,
    calendar_floor,
    count_calendar,
    from_us,
    local_to_us,
    moment_or_date,
    refuse_count,
    step_of,
    to_us,
    whole_date,
    zone_of,
)

MOST_VALUES = 10_000

Order = Literal["forward", "backward"]
Nulls = Literal["skip", "last", "only"]
OnFailure = Literal["stop", "continue", "pause"]
CommitBy = Literal["auto", "fragment", "window"]
Unit = Literal["s", "ms", "us", "ns"]
Bound = int | date | datetime | str | None

_PER_SECOND = {"s": 1, "ms": 10**3, "us": 10**6, "ns": 10**9}
NULLS_KEY = "(null)"


@dataclass(frozen=True, slots=True)
class Axis:
    """A column that windows are cut along: how its values become integers.

    Dates count days, timestamps count ``unit`` since the epoch, integers are themselves; ``other``
    columns have no order that windows could use, and take ``values=`` only.
    """

    kind: Literal["date", "timestamp", "integer", "other"]
    unit: Unit = "us"
    zone: str | None = None
    type_name: str = ""


@dataclass(frozen=True, slots=True)
class Window:
    """One slice: the rows whose value is in ``[lower, upper)``, equal to ``value``, or null."""

    key: str
    lower: int | None = None
    upper: int | None = None
    start: int | date | datetime | None = None
    end: int | date | datetime | None = None
    value: object = None

    @property
    def is_nulls(self) -> bool:
        """True for the window of the rows whose value is null."""
        return self.key == NULLS_KEY and self.lower is None and self.value is None


@dataclass(frozen=True)
class Windows:
    """A range of a column's values, cut into windows that a backfill opens in order.

    Parameters
    ----------
    on
        The column; a dot leads into a struct. Dates, timestamps of every unit and integers, or,
        with ``values``, anything that can be compared.
    start, end
        Half-open bounds: a date, a datetime, ISO text, or an integer for an integer column.
        Without an offset they are read in ``tz``. Left out: the least and greatest value.
    step
        The length of a window: seconds, a timedelta or ``"6h"`` for exact time; ``"1d"``, ``"1w"``,
        ``"1mo"``, ``"1y"`` by the calendar; a number for an integer column. None: one window.
    last
        Instead of bounds: ``"7d"`` for the 7 whole days before today, and today so far.
    values
        Instead of a range: one window for each of these values, or ``"all"`` distinct ones.
    keys
        Only the windows of these keys, as plans, results and records name them; to retry some.
    tz
        Where days begin; None: the zone of the column, else the offset of ``start``, else UTC.
    unit
        What an integer column counts since 1970, if the bounds are dates: ``s``, ``ms`` or ``us``.
    order
        ``"forward"``, or ``"backward"`` for the newest first.
    concurrency
        Windows that are open at once; 1 is strictly one after the other.
    nulls
        Rows without a value: ``"skip"``, ``"last"`` for a window after all others, or ``"only"``.
    on_failure
        ``"stop"`` opens no further window once one failed, ``"continue"`` goes on, and with a
        service ``"pause"`` waits for a person.
    commit
        ``"fragment"`` commits each fragment once, ``"window"`` what a window touched as it ends,
        ``"auto"`` the latter where that writes at most 1.5 times the files.

    Raises
    ------
    SettingError
        An argument makes no sense, or two of them do not go together.

    Examples
    --------
    >>> from geneva.model.windows import Windows
    >>> Windows("ts", start="2021-05-01", end="2021-05-08", step="1d", order="backward").order
    'backward'
    """

    on: str
    _: KW_ONLY
    start: Bound = None
    end: Bound = None
    step: int | float | str | timedelta | None = None
    last: str | None = None
    values: Sequence[object] | str | None = None
    keys: Sequence[str] | None = None
    tz: str | None = None
    unit: Unit | None = None
    order: Order = "forward"
    concurrency: int = 1
    nulls: Nulls = "skip"
    on_failure: OnFailure = "stop"
    commit: CommitBy = "auto"

    def __post_init__(self) -> None:
        """Refuse arguments that make no sense, whatever the column is."""
        if not isinstance(self.on, str) or not self.on:
            raise SettingError(f"windows are cut along a column, named by on=, not {self.on!r}")
        for name, choices in _CHOICES.items():
            if (value := getattr(self, name)) not in choices:
                known = ", ".join(map(repr, choices))
                raise SettingError(f"windows: {name}={value!r}; the choices are {known}")
        if isinstance(self.concurrency, bool) or not isinstance(self.concurrency, int):
            raise SettingError(f"windows: concurrency={self.concurrency!r} is no whole number")
        if self.concurrency < 1:
            raise SettingError(f"windows: concurrency={self.concurrency} must be at least 1")
        self._check_together()
        if self.tz is not None:
            zone_of(self.tz)
        if self.last is not None:
            step_of(self.last, "last")
        if self.values is not None:
            object.__setattr__(self, "values", _checked_values(self.values))
        if self.keys is not None:
            object.__setattr__(self, "keys", _checked_keys(self.keys))

    def _check_together(self) -> None:
        given = [n for n in ("start", "end", "step", "last") if getattr(self, n) is not None]
        if self.values is not None and given:
            raise SettingError(f"windows: values= takes no {' and no '.join(given)}")
        if self.nulls == "only" and (given or self.values is not None):
            raise SettingError(
                "windows: nulls='only' is the window of the rows without a value; it takes no "
                f"{' and no '.join(given or ['values'])}"
            )
        if self.last is not None and (self.start is not None or self.end is not None):
            raise SettingError("windows: last= stands for start and end; give one or the other")
        number = _as_count(self.step)
        if number is not None and number <= 0:
            raise SettingError(f"step must be positive, not {self.step!r}")
        if self.step is not None and number is None:
            step_of(self.step)

    @classmethod
    def daterange(cls, on: str, value: object, **others: Any) -> Windows:
        """Make windows of ``[start, stop, days]``, as the founding documents write them.

        Raises
        ------
        SettingError
            The range is none, is empty, or has too many days.
        """
        found = date_range(value)
        return cls(on, start=found.start, end=found.stop, step=f"{found.days}d", **others)

    @classmethod
    def datetimerange(cls, on: str, value: object, **others: Any) -> Windows:
        """Make windows of ``[start, stop, seconds]``, as the founding documents write them.

        Raises
        ------
        SettingError
            The range is none, is empty, or has too many windows.
        """
        found = datetime_range(value)
        step = timedelta(microseconds=found.step_us)
        return cls(on, start=found.start, end=found.stop, step=step, **others)

    @classmethod
    def from_config(cls, config: Mapping[str, object]) -> Windows:
        """Make windows of a mapping, as JSON and YAML hold them.

        Parameters
        ----------
        config
            The arguments by name, ``concurrency`` and ``on_failure`` too, and optionally ``type``:
            ``date``, ``datetime``, ``integer`` or ``values``, which then says of what kind the
            bounds are.

        Raises
        ------
        SettingError
            A key or the type is unknown, the bounds are not of the type, or an argument makes no
            sense.
        """
        if not isinstance(config, Mapping):
            raise SettingError(f"windows={config!r} is no mapping; it needs at least 'on'")
        arguments = {str(k): v for k, v in config.items()}
        kind = arguments.pop("type", None)
        known = [f.name for f in fields(cls) if f.name != "_"]
        for key in sorted(arguments.keys() - set(known)):
            hint = did_you_mean(key, known)
            raise SettingError(
                f"windows: unknown key {key!r}.{hint} Keys: type, {', '.join(known)}"
            )
        if "on" not in arguments:
            raise SettingError("windows are cut along a column, named by 'on'")
        if kind is not None:
            _check_kind(kind, arguments)
        return cls(**arguments)  # type: ignore[arg-type]  # checked by the class itself

    def config(self) -> dict[str, object]:
        """Return the mapping of JSON values from which `from_config` makes the same windows."""
        default = {f.name: f.default for f in fields(self)}
        given = {n: getattr(self, n) for n in default if n != "_"}
        return {n: _plain(v) for n, v in given.items() if n == "on" or v != default[n]}


_CHOICES: dict[str, tuple[object, ...]] = {
    "order": get_args(Order),
    "nulls": get_args(Nulls),
    "on_failure": get_args(OnFailure),
    "commit": get_args(CommitBy),
    "unit": (*get_args(Unit), None),
}


@dataclass(frozen=True, slots=True)
class Known:
    """The facts of the column at planning: its least and greatest value, and the moment.

    ``least`` and ``greatest`` are the axis's integers, None for a column without a value;
    ``distinct`` are the sorted values, wanted for ``values="all"``.
    """

    now: datetime
    least: int | None = None
    greatest: int | None = None
    distinct: Sequence[object] = ()


def resolve(asked: Windows, axis: Axis, known: Known) -> tuple[Window, ...]:
    """Cut a column into its windows, in the order in which they open.

    Returns
    -------
    tuple of Window
        Half-open neighbours that cover the range; every row of it is in exactly one. Empty where
        a bound was left out and the column holds no value.

    Raises
    ------
    SettingError
        The bounds or the step do not fit the column, the range is empty or reversed, or it has
        more than `MOST_WINDOWS` windows.
    """
    made = _resolved(asked, axis, known)
    return made if asked.keys is None else _of_keys(made, asked.keys)


def settled(asked: Windows, axis: Axis, known: Known) -> Windows:
    """Return windows that `resolve` cuts alike at any later moment, for records.

    Bounds that were left out or are relative become the bounds that were found, and
    ``values="all"`` the list of values: a job that another process continues has the same windows.
    """
    ranges = [w for w in _resolved(asked, axis, known) if not w.is_nulls]
    if asked.nulls == "only" or not ranges:
        return asked
    if asked.order == "backward":
        ranges.reverse()
    if asked.values == "all":
        values = [w.value for w in ranges]
        kept = all(isinstance(v, bool | int | float | str) for v in values)
        return replace(asked, values=values) if kept else asked
    if asked.values is not None:
        return asked
    return replace(asked, start=ranges[0].start, end=ranges[-1].end, last=None)


def _resolved(asked: Windows, axis: Axis, known: Known) -> tuple[Window, ...]:
    nulls = Window(NULLS_KEY)
    if asked.nulls == "only":
        return (nulls,)
    if asked.values is not None:
        made = [_of_value(v, asked, axis) for v in _wanted_values(asked, known)]
    elif axis.kind == "other":
        raise SettingError(
            f"windows: column {asked.on!r} is {axis.type_name or 'of a type without an order'}; "
            "windows along it take values=, not a range"
        )
    else:
        made = _cut(asked, axis, known)
    if asked.order == "backward":
        made.reverse()
    return (*made, nulls) if asked.nulls == "last" else tuple(made)


# ------------------------------------------------------------------------------------- config


def _check_kind(kind: object, arguments: Mapping[str, object]) -> None:
    """Refuse bounds that are not of the kind that a mapping names."""
    if kind not in _KINDS:
        raise SettingError(f"windows: type={kind!r} is unknown; the types are {', '.join(_KINDS)}")
    if kind == "values":
        if arguments.get("values") is None and arguments.get("nulls") != "only":
            raise SettingError("windows of type 'values' need values: a list, or 'all'")
        return
    if arguments.get("values") is not None:
        raise SettingError(f"windows of type {kind!r} take no values; their type is 'values'")
    for name in ("start", "end"):
        if (bound := arguments.get(name)) is None:
            continue
        if kind == "date":
            whole_date(bound, name)
        elif kind == "datetime":
            moment_or_date(bound, name)
        elif _as_count(bound) is None:
            raise SettingError(f"windows: {name}={bound!r} is no integer, as type 'integer' wants")


_KINDS = ("date", "datetime", "integer", "values")


def _plain(value: object) -> object:
    """Return a value as JSON can hold it."""
    if isinstance(value, date):
        return value.isoformat()
    if isinstance(value, timedelta):
        return f"{value // timedelta(microseconds=1)}us"
    if isinstance(value, tuple | list):
        return [_plain(v) for v in value]
    return value if isinstance(value, bool | int | float | str | None) else str(value)


# ------------------------------------------------------------------------------------- values


def _checked_values(values: Sequence[object] | str) -> Sequence[object] | str:
    """Refuse values that are no list, null, or there twice."""
    if isinstance(values, str):
        if values != "all":
            raise SettingError(f"windows: values={values!r}; write a list, or 'all'")
        return values
    if not isinstance(values, Sequence) or not values:
        raise SettingError(f"windows: values={values!r} is no list of at least one value")
    if any(v is None or v != v for v in values):  # NaN differs from itself
        raise SettingError("windows: a null is no value; nulls='last' or 'only' takes those rows")
    seen: list[object] = []
    for value in values:
        if any(value == other for other in seen[-1:]) or value in seen:
            raise SettingError(f"windows: values holds {value!r} twice")
        seen.append(value)
    return tuple(values)


def _wanted_values(asked: Windows, known: Known) -> Sequence[object]:
    if isinstance(asked.values, str):
        if len(known.distinct) > MOST_VALUES:
            raise SettingError(
                f"windows: column {asked.on!r} holds {len(known.distinct)} distinct values; "
                f"values='all' takes at most {MOST_VALUES}"
            )
        return known.distinct
    return asked.values or ()


def _of_value(value: object, asked: Windows, axis: Axis) -> Window:
    """Make the window of one value; where the column has an order, as a range of one."""
    key = _key(value) if isinstance(value, date) else str(value)
    if axis.kind == "other":
        return Window(key, value=value)
    scale = _SCALES[axis.kind](asked, axis)
    lower = scale.value(scale.read(value, "values"))
    return Window(key, lower, lower + 1, value=value)


def _checked_keys(keys: Sequence[str]) -> tuple[str, ...]:
    if isinstance(keys, str) or not keys or not all(isinstance(k, str) for k in keys):
        raise SettingError(f"windows: keys={keys!r} is no list of at least one key")
    return tuple(dict.fromkeys(keys))


def _of_keys(made: tuple[Window, ...], keys: Sequence[str]) -> tuple[Window, ...]:
    """Return the windows of some keys, in their order."""
    known = {w.key for w in made}
    if missing := [k for k in keys if k not in known]:
        hint = did_you_mean(missing[0], known)
        raise SettingError(f"windows: no window has the key {missing[0]!r}.{hint}")
    return tuple(w for w in made if w.key in set(keys))


# ------------------------------------------------------------------------------------- scales

Label = int | date | datetime
Pace = int | Step  # ticks, or a step of the calendar


@dataclass(frozen=True, slots=True)
class _Scale:
    """How one kind of column is measured: ticks are integers on which steps are counted."""

    read: Callable[[object, str], int]  # a bound, as people write it -> tick
    label: Callable[[int], Label]
    pace: Callable[[object], Pace]  # a step, as people write it
    value: Callable[[int], int]  # tick -> the least integer of the axis that is not before it
    tick: Callable[[int], int]  # an integer of the axis -> the last tick that is not after it
    wall: Callable[[int], datetime]  # tick -> the local clock, for steps of the calendar
    unwall: Callable[[datetime], int]


def _dates(asked: Windows, axis: Axis) -> _Scale:
    """Measure a column of dates: a tick is a day of the calendar, wherever one lives."""
    if asked.tz is not None:
        raise SettingError(
            f"windows: column {asked.on!r} holds dates, which are compared as such; tz= is for "
            "timestamps"
        )

    def days(day: date) -> int:
        return (day - EPOCH.date()).days

    def pace(value: object) -> Pace:
        step = step_of(value)
        if step.exact_us % DAY_US:
            raise SettingError(
                f"windows: column {asked.on!r} holds dates; step={value!r} is no whole day"
            )
        return step if step.months else step.days or step.exact_us // DAY_US

    return _Scale(
        read=lambda bound, name: days(whole_date(bound, name)),
        label=lambda tick: EPOCH.date() + timedelta(days=tick),
        pace=pace,
        value=lambda tick: tick,
        tick=lambda value: value,
        wall=lambda tick: datetime.combine(EPOCH.date() + timedelta(days=tick), time.min),
        unwall=lambda wall: days(wall.date()),
    )


def _moments(asked: Windows, axis: Axis) -> _Scale:
    """Measure a column of moments: a tick is a microsecond."""
    zone = _zone(asked, axis)
    per_second = _PER_SECOND[asked.unit if axis.kind == "integer" and asked.unit else axis.unit]

    def read(bound: object, name: str) -> int:
        if axis.kind == "integer" and (number := _as_count(bound)) is not None:
            return tick(number)
        found = moment_or_date(bound, name)
        if not isinstance(found, datetime):
            found = datetime.combine(found, time.min)
        return to_us(found) if found.tzinfo else local_to_us(found, zone)

    def pace(value: object) -> Pace:
        step = step_of(value)
        return step.exact_us or step

    def tick(value: int) -> int:
        return value * 10**6 // per_second

    return _Scale(
        read=read,
        label=lambda tick: from_us(tick, zone),
        pace=pace,
        value=lambda tick: -(-tick * per_second // 10**6),
        tick=tick,
        wall=lambda tick: from_us(tick, zone).replace(tzinfo=None, fold=0),
        unwall=lambda wall: local_to_us(wall, zone),
    )


def _integers(asked: Windows, axis: Axis) -> _Scale:
    """Measure a column of integers, which count something, or time since 1970 with ``unit``."""
    if asked.unit is not None:
        return _moments(asked, axis)
    if asked.tz is not None or asked.last is not None:
        given = "tz" if asked.tz is not None else "last"
        raise SettingError(
            f"windows: column {asked.on!r} holds integers; {given}= needs unit='s', 'ms' or 'us'"
        )

    def read(bound: object, name: str) -> int:
        if (number := _as_count(bound)) is None:
            raise SettingError(
                f"windows: {name}={bound!r} is no integer, as column {asked.on!r} holds; dates "
                "need unit='s', 'ms' or 'us'"
            )
        return number

    def pace(value: object) -> Pace:
        if (number := _as_count(value)) is None:
            raise SettingError(f"windows: step={value!r} is no integer, as {asked.on!r} holds")
        if number <= 0:
            raise SettingError(f"step must be positive, not {value!r}")
        return number

    return _Scale(
        read=read,
        label=lambda tick: tick,
        pace=pace,
        value=lambda tick: tick,
        tick=lambda value: value,
        wall=lambda tick: EPOCH.replace(tzinfo=None),
        unwall=lambda wall: 0,
    )


_SCALES: dict[str, Callable[[Windows, Axis], _Scale]] = {
    "date": _dates,
    "timestamp": _moments,
    "integer": _integers,
}


def _zone(asked: Windows, axis: Axis) -> tzinfo:
    """Return where days begin."""
    if asked.tz is not None:
        return zone_of(asked.tz)
    if axis.zone is not None:
        return zone_of(axis.zone)
    for bound in (asked.start, asked.end):
        if isinstance(bound, str | date) and _as_count(bound) is None:
            found = moment_or_date(bound, "start")
            if isinstance(found, datetime) and found.tzinfo is not None:
                return found.tzinfo
    return UTC


# ------------------------------------------------------------------------------------- ranges


def _cut(asked: Windows, axis: Axis, known: Known) -> list[Window]:
    """Cut a range into neighbours; empty where a bound was left out and there is no value."""
    scale = _SCALES[axis.kind](asked, axis)
    pace = None if asked.step is None else scale.pace(asked.step)
    if asked.last is not None:
        bounds = _recent(scale, axis, step_of(asked.last, "last"), known.now)
    elif (found := _bounds(asked, scale, pace, known)) is None:
        return []
    else:
        bounds = found
    first, last = bounds
    if first >= last:
        raise SettingError(
            f"windows: start must be before end: {_key(scale.label(first))} is not before "
            f"{_key(scale.label(last))}"
        )
    cuts = [*_starts(scale, pace, first, last), last]
    made: list[Window] = []
    for a, b in itertools.pairwise(cuts):
        if a < b:  # a day that a zone skips has no moment
            start, end = scale.label(a), scale.label(b)
            made.append(Window(_key(start), scale.value(a), scale.value(b), start, end))
    return made


def _bounds(
    asked: Windows, scale: _Scale, pace: Pace | None, known: Known
) -> tuple[int, int] | None:
    """Return the range in ticks; a missing bound is taken from the values, at whole steps."""
    start = None if asked.start is None else scale.read(asked.start, "start")
    end = None if asked.end is None else scale.read(asked.end, "end")
    if start is not None and end is not None:
        return start, end
    if known.least is None or known.greatest is None:
        return None
    if start is None:
        start = _floor(scale, pace, scale.tick(known.least))
        if end is not None:
            return None if start >= end else (start, end)  # every value lies behind the end
    past = scale.tick(known.greatest) + 1
    return None if past <= start else (start, _ceil(scale, pace, start, past))


def _starts(scale: _Scale, pace: Pace | None, first: int, last: int) -> list[int]:
    """Return where the windows begin, once their number is known to be sane."""
    if pace is None:
        return [first]
    if isinstance(pace, int):
        if (count := -(-(last - first) // pace)) > MOST_WINDOWS:
            refuse_count(count, MOST_WINDOWS)
        return [first + k * pace for k in range(count)]
    at = _nth(scale, pace, first)
    days = (scale.wall(last) - scale.wall(first)).days
    if (count := count_calendar(lambda n: at(n) >= last, pace, days)) > MOST_WINDOWS:
        refuse_count(count, MOST_WINDOWS)
    return [at(k) for k in range(count)]


def _nth(scale: _Scale, step: Step, first: int) -> Callable[[int], int]:
    """Return the function from n to the tick that is n calendar steps after the first."""
    wall = scale.wall(first)

    def at(n: int) -> int:
        try:
            return scale.unwall(add_calendar(wall, step, n)) if n else first
        except OverflowError:  # past the last year that the calendar has
            return scale.unwall(datetime.max) + 1

    return at


def _floor(scale: _Scale, pace: Pace | None, tick: int) -> int:
    """Return the last whole step at or before a tick."""
    if pace is None:
        return tick
    wall = scale.wall(tick)
    if isinstance(pace, Step):
        return scale.unwall(datetime.combine(calendar_floor(wall.date(), pace), time.min))
    midnight = scale.unwall(datetime.combine(wall.date(), time.min))
    if midnight <= tick and DAY_US % pace == 0 and scale.label(tick) != tick:
        return midnight + (tick - midnight) // pace * pace
    return tick // pace * pace


def _ceil(scale: _Scale, pace: Pace | None, start: int, tick: int) -> int:
    """Return the first whole step, counted from ``start``, at or after a tick."""
    if pace is None:
        return tick
    if isinstance(pace, int):
        return start - (start - tick) // pace * pace
    at = _nth(scale, pace, start)
    days = (scale.wall(tick) - scale.wall(start)).days
    return at(count_calendar(lambda n: at(n) >= tick, pace, days))


def _recent(scale: _Scale, axis: Axis, span: Step, now: datetime) -> tuple[int, int]:
    """Return the range from whole steps before the present one until now."""
    if axis.kind == "date":
        if span.exact_us:
            raise SettingError("windows: last= of a column of dates is in days, months or years")
        end = scale.read(now.astimezone(UTC).date(), "last") + 1
        wall = scale.wall(end - 1)
    else:
        end = to_us(now)
        wall = scale.wall(end)
    if span.exact_us:
        unit = next(u for u in (3_600 * 10**6, 60 * 10**6, 10**6, 1) if span.exact_us % u == 0)
        midnight = scale.unwall(datetime.combine(wall.date(), time.min))
        return midnight + (end - midnight) // unit * unit - span.exact_us, end
    whole = Step(months=1) if span.months else Step(days=1)
    today = datetime.combine(calendar_floor(wall.date(), whole), time.min)
    return scale.unwall(add_calendar(today, span, -1)), end


def _as_count(value: object) -> int | None:
    """Return the whole number that a value or a text is, else None."""
    if isinstance(value, str):
        found = as_number(value.strip())
        # Eight digits may be a date without hyphens; the column decides.
        return found if isinstance(found, int) else None
    if isinstance(value, bool) or not isinstance(value, int | float):
        return None
    return int(value) if value == value // 1 else None


def _key(label: object) -> str:
    """Return a bound in as few characters as tell it exactly, with its offset."""
    if isinstance(label, datetime):
        exact = label.second or label.microsecond
        return label.isoformat() if exact else label.isoformat(timespec="minutes")
    return label.isoformat() if isinstance(label, date) else str(label)
