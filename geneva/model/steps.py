"""Steps and bounds of ranges, as people write them, and the calendar that they are counted on.

A *moment* is a count of microseconds since 1970-01-01T00:00Z: moments compare and subtract exactly,
which datetimes that share a `zoneinfo` zone do not (Python compares their wall clocks).
"""

from __future__ import annotations

import calendar
import math
import re
from collections.abc import Callable
from dataclasses import dataclass
from datetime import UTC, date, datetime, timedelta, timezone, tzinfo
from typing import NoReturn
from zoneinfo import ZoneInfo, ZoneInfoNotFoundError

from geneva.errors import SettingError

EPOCH = datetime(1970, 1, 1, tzinfo=UTC)
MICROSECOND = timedelta(microseconds=1)
DAY_US = 86_400_000_000
_MONDAY = 4  # 1970-01-05, from which weeks are counted
_BOUND_FORMS = "write 2021-05-01, 2021-05-01T10:00 or 2021-05-01T10:00+02:00"
_STEP_FORMS = "write 3600 (seconds), '01:00:00', '6h', 'PT1H', '1d', '1w', '1mo' or '1y'"

_EXACT = {"us": 1, "ms": 1_000, "s": 10**6, "m": 60 * 10**6, "min": 60 * 10**6, "h": 3_600 * 10**6}
_DAYS = {"d": 1, "w": 7}
_MONTHS = {"mo": 1, "y": 12}
_SHORT = re.compile(r"(\d+(?:\.\d+)?)\s*(us|ms|s|min|mo|m|h|d|w|y)", re.ASCII)
_CLOCK = re.compile(r"(\d+):([0-5]\d)(?::([0-5]\d))?", re.ASCII)
_ISO = re.compile(
    r"P(?:(\d+)Y)?(?:(\d+)M)?(?:(\d+)W)?(?:(\d+)D)?"
    r"(?:T(?:(\d+)H)?(?:(\d+)M)?(?:(\d+(?:\.\d+)?)S)?)?",
    re.ASCII,
)


@dataclass(frozen=True, slots=True)
class Step:
    """A distance between two bounds: exact time, or days or months of the calendar."""

    exact_us: int = 0
    days: int = 0
    months: int = 0

    @property
    def by_calendar(self) -> bool:
        """True if the step is counted on local days or months, whatever their length."""
        return not self.exact_us


def step_of(value: object, name: str = "step") -> Step:
    """Read a step as people write it.

    Raises
    ------
    SettingError
        It is no step, or not a positive one.
    """
    step = _read_step(value, name)
    if not (step.exact_us or step.days or step.months):
        raise SettingError(f"{name} must be positive, not {value!r}")
    return step


def _read_step(value: object, name: str) -> Step:
    if isinstance(value, bool) or not isinstance(value, int | float | str | timedelta):
        raise SettingError(f"{name}={value!r} is no step; {_STEP_FORMS}")
    if isinstance(value, timedelta):
        return _exact(value / MICROSECOND, value, name)
    if isinstance(value, int | float):
        return _exact(value * 10**6, value, name)
    text = value.strip()
    if (number := as_number(text)) is not None:
        return _exact(number * 10**6, value, name)
    if found := _CLOCK.fullmatch(text):
        hours, minutes, seconds = (int(part or 0) for part in found.groups())
        return _exact((hours * 3_600 + minutes * 60 + seconds) * 10**6, value, name)
    if found := _SHORT.fullmatch(text.lower()):
        return _short(found[1], found[2], value, name)
    if text.upper().startswith("P") and (found := _ISO.fullmatch(text.upper())):
        return _iso(found, value, name)
    if text.startswith("-"):
        raise SettingError(f"{name} must be positive, not {value!r}")
    raise SettingError(f"{name}={value!r} is no step; {_STEP_FORMS}")


def _exact(us: float, value: object, name: str) -> Step:
    if us <= 0 or not math.isfinite(us):
        raise SettingError(f"{name} must be positive, not {value!r}")
    if round(us) < 1:
        raise SettingError(f"{name}={value!r} is less than a microsecond")
    return Step(exact_us=round(us))


def _short(count: str, unit: str, value: object, name: str) -> Step:
    if unit in _EXACT:
        return _exact(float(count) * _EXACT[unit], value, name)
    if "." in count:
        raise SettingError(f"{name}={value!r}: days, weeks, months and years come whole")
    if unit in _DAYS:
        return Step(days=int(count) * _DAYS[unit])
    return Step(months=int(count) * _MONTHS[unit])


def _iso(found: re.Match[str], value: object, name: str) -> Step:
    years, months, weeks, days, hours, minutes = (int(part or 0) for part in found.groups()[:6])
    exact_us = (hours * 3_600 + minutes * 60 + float(found[7] or 0)) * 10**6
    step = Step(round(exact_us), weeks * 7 + days, years * 12 + months)
    if sum(map(bool, (step.exact_us, step.days, step.months))) > 1:
        raise SettingError(
            f"{name}={value!r} mixes exact time, days and months; a step is of one kind"
        )
    return step


def as_number(text: str) -> float | int | None:
    """Return the number that a text is, or None if it is none; 'nan' and 'inf' are texts."""
    if not re.fullmatch(r"[+-]?(\d+(\.\d*)?|\.\d+)([eE][+-]?\d+)?", text, re.ASCII):
        return None
    return int(text) if re.fullmatch(r"[+-]?\d+", text) else float(text)


# ------------------------------------------------------------------------------------- bounds


def moment_or_date(value: object, name: str) -> date | datetime:
    """Read a date or a moment as people write it; text is ISO 8601, a blank may stand for the T.

    Raises
    ------
    SettingError
        It is none, or one that does not exist, such as 29 February of a common year.
    """
    if isinstance(value, datetime):
        return value
    if isinstance(value, date):
        return value
    if not isinstance(value, str):
        raise SettingError(f"{name}={value!r} is no date or moment; {_BOUND_FORMS}")
    text = value.strip()
    if not re.match(r"\d{4}-?\d{2}-?\d{2}", text, re.ASCII):
        raise SettingError(f"{name}={value!r} is no date or moment; {_BOUND_FORMS}")
    try:
        if len(text) <= len("2021-05-01"):
            return date.fromisoformat(text)
        return datetime.fromisoformat(text)
    except ValueError as error:
        raise SettingError(
            f"{name}={value!r}: there is no such date or moment ({error}); {_BOUND_FORMS}"
        ) from None


def whole_date(value: object, name: str) -> date:
    """Read a date; a moment is one if it is a midnight without an offset."""
    found = moment_or_date(value, name)
    if not isinstance(found, datetime):
        return found
    if found.tzinfo is not None or found.time() != datetime.min.time():
        raise SettingError(
            f"{name}={value!r} is a moment, not a date; only a midnight without an offset is one"
        )
    return found.date()


def zone_of(name: str) -> tzinfo:
    """Return a time zone by its IANA name, or by an offset such as +02:00.

    Raises
    ------
    SettingError
        There is no such zone.
    """
    if found := re.fullmatch(r"([+-])(\d\d):?(\d\d)", name):
        offset = timedelta(hours=int(found[2]), minutes=int(found[3]))
        if offset < timedelta(days=1):
            return timezone(offset if found[1] == "+" else -offset)
    try:
        return ZoneInfo(name)
    except (ZoneInfoNotFoundError, ValueError, OSError):
        raise SettingError(
            f"unknown time zone {name!r}; write an IANA name such as 'Europe/Berlin', or 'UTC'"
        ) from None


# ------------------------------------------------------------------------------------- moments


def to_us(moment: datetime) -> int:
    """Count the microseconds from the epoch to an aware datetime."""
    return (moment.astimezone(UTC) - EPOCH) // MICROSECOND


def from_us(us: int, zone: tzinfo) -> datetime:
    """Return the datetime of a moment, with the offset that holds there in a zone."""
    return (EPOCH + us * MICROSECOND).astimezone(zone)


def local_to_us(wall: datetime, zone: tzinfo) -> int:
    """Return the first moment at which the wall clock of a zone shows at least ``wall``.

    A time that comes twice is its first occurrence; one that the clocks skip begins at the first
    moment that exists, which is the change of the clocks itself.
    """
    early, late = (to_us(wall.replace(tzinfo=zone, fold=fold)) for fold in (0, 1))
    if from_us(early, zone).replace(tzinfo=None, fold=0) == wall.replace(fold=0):
        return early
    # In a gap fold=0 reads the offset from before the change and fold=1 the one from after it,
    # so the change lies between the two moments.
    low, high = min(early, late), max(early, late)
    before = from_us(low, zone).utcoffset()
    while high - low > 1:
        middle = (low + high) // 2
        if from_us(middle, zone).utcoffset() == before:
            low = middle
        else:
            high = middle
    return high


def add_months(day: date, months: int) -> date:
    """Return a day some months later; 31 January + 1 month is the last day of February."""
    years, month = divmod(day.year * 12 + day.month - 1 + months, 12)
    if not 1 <= years <= 9999:
        raise OverflowError(f"year {years} is out of range")
    return date(years, month + 1, min(day.day, calendar.monthrange(years, month + 1)[1]))


def add_calendar(wall: datetime, step: Step, times: int) -> datetime:
    """Return a wall time some calendar steps later, counted from ``wall`` itself."""
    day = add_months(wall.date(), step.months * times) + timedelta(days=step.days * times)
    return datetime.combine(day, wall.time())


def calendar_floor(day: date, step: Step) -> date:
    """Return the last day on or before ``day`` at which a whole calendar step begins.

    Months are counted from January (so that 3 are quarters), days from a Monday.
    """
    if step.months:
        first = (day.year * 12 + day.month - 1) // step.months * step.months
        return date(first // 12, first % 12 + 1, 1) if first >= 12 else date(1, 1, 1)
    count = (day - EPOCH.date()).days - _MONDAY
    return EPOCH.date() + timedelta(days=count // step.days * step.days + _MONDAY)


def refuse_count(count: int, most: int) -> NoReturn:
    """Refuse a range that has too many windows, with the numbers."""
    raise SettingError(
        f"the range has {count} windows; at most {most} are allowed: take a larger step or a "
        "shorter range"
    )


def count_calendar(reaches: Callable[[int], bool], step: Step, days: int) -> int:
    """Count the calendar steps of a range of ``days``; ``reaches(n)`` says that n cover it."""
    length = step.days or step.months * 30.436875
    low, high = 0, max(1, math.ceil(days / length * 1.1) + 2)
    while high - low > 1:  # reaches(high) is true, reaches(low) is not
        middle = (low + high) // 2
        if reaches(middle):
            high = middle
        else:
            low = middle
    return high
