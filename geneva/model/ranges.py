"""The ranges of the founding documents: dates by days, and moments by seconds.

``[start, stop, step]`` or a mapping of these; half-open, so the stop is never a value.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, date, datetime, time, timedelta, tzinfo

from geneva.errors import SettingError
from geneva.model.steps import (
    as_number,
    from_us,
    moment_or_date,
    refuse_count,
    step_of,
    to_us,
    whole_date,
)

MOST_WINDOWS = 100_000


@dataclass(frozen=True, slots=True)
class DateSpan:
    """Every ``days``-th date from ``start`` to before ``stop``."""

    start: date
    stop: date
    days: int

    def values(self) -> list[date]:
        """Return the dates, in order."""
        count = -(-(self.stop - self.start).days // self.days)
        return [self.start + timedelta(days=k * self.days) for k in range(count)]


@dataclass(frozen=True, slots=True)
class DatetimeRange:
    """Every ``step_us``-th moment from ``start`` to before ``stop``, with the start's offset."""

    start: datetime
    stop: datetime
    step_us: int

    def values(self) -> list[datetime]:
        """Return the moments, in order; without an offset if the bounds have none."""
        first, zone = _us(self.start), self.start.tzinfo
        count = -(-(_us(self.stop) - first) // self.step_us)
        made = [from_us(first + k * self.step_us, zone or UTC) for k in range(count)]
        return made if zone else [moment.replace(tzinfo=None) for moment in made]


def date_range(value: object) -> DateSpan:
    """Read a range of dates, whose step is a count of days.

    Raises
    ------
    SettingError
        It is none, it is empty or reversed, or it has too many values.
    """
    first, last, step = _three(value)
    start, stop, days = whole_date(first, "start"), whole_date(last, "stop"), _days(step)
    if start >= stop:
        raise SettingError(f"start must be before stop: {start} is not before {stop}")
    if (count := -(-(stop - start).days // days)) > MOST_WINDOWS:
        refuse_count(count, MOST_WINDOWS)
    return DateSpan(start, stop, days)


def datetime_range(value: object) -> DatetimeRange:
    """Read a range of moments, whose step is a count of seconds, or a text such as 01:00:00.

    Raises
    ------
    SettingError
        It is none, it is empty or reversed, or it has too many values.
    """
    first, last, step = _three(value)
    start, stop = _moment(first, "start"), _moment(last, "stop")
    if (start.tzinfo is None) != (stop.tzinfo is None):
        raise SettingError(f"both bounds need an offset, or neither: {first!r} and {last!r}")
    length = step_of(step)
    if length.months:
        raise SettingError(f"step={step!r}: a range of moments has a step of exact time")
    step_us = length.exact_us or length.days * 86_400 * 10**6
    span = _us(stop) - _us(start)
    if span <= 0:
        raise SettingError(f"start must be before stop: {first!r} is not before {last!r}")
    if (count := -(-span // step_us)) > MOST_WINDOWS:
        refuse_count(count, MOST_WINDOWS)
    return DatetimeRange(start, stop, step_us)


def _three(value: object) -> tuple[object, object, object]:
    """Return start, stop and step of a list or a mapping."""
    if isinstance(value, str) or not isinstance(value, Mapping | Sequence):
        raise SettingError(f"a range is a list or a mapping of start, stop and step, not {value!r}")
    if isinstance(value, Mapping):
        if set(value) != {"start", "stop", "step"}:
            given = ", ".join(map(str, value))
            raise SettingError(f"start, stop and step are needed in a range; it has {given}")
        return value["start"], value["stop"], value["step"]
    if len(value) < 3:
        raise SettingError(f"start, stop and step are needed in a range, not {list(value)!r}")
    if len(value) > 3:
        raise SettingError(
            f"a range has three values, start, stop and step; this one has {len(value)}"
        )
    return value[0], value[1], value[2]


def _days(step: object) -> int:
    """Read a count of days: a whole number, also as a float, a text, a timedelta or '2d'."""
    number = as_number(step.strip()) if isinstance(step, str) else step
    if isinstance(number, bool) or number is None or not isinstance(number, int | float):
        if isinstance(step, str | timedelta):
            found = step_of(step)
            days = found.days or (found.exact_us // (86_400 * 10**6))
            if days and days * 86_400 * 10**6 in (found.exact_us, found.days * 86_400 * 10**6):
                return days
        raise SettingError(f"step must be whole days, not {step!r}")
    if number != number // 1:
        raise SettingError(f"step must be whole days, not {step!r}")
    if number <= 0:
        raise SettingError(f"step must be positive, not {step!r}")
    return int(number)


def _moment(value: object, name: str) -> datetime:
    """Read a moment; a plain date is its midnight."""
    found = moment_or_date(value, name)
    return found if isinstance(found, datetime) else datetime.combine(found, time.min)


def _us(moment: datetime, zone: tzinfo = UTC) -> int:
    """Count microseconds to a moment; one without an offset is read in ``zone``."""
    return to_us(moment if moment.tzinfo else moment.replace(tzinfo=zone))
