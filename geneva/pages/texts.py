"""How numbers, durations, moments and states read on a page. No IO.

A state has a colour, a shape and a word, so that none is told by colour alone.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from datetime import UTC, datetime

from geneva.jobs.records import TaskState
from geneva.model.types import JobState

NOTHING = "\N{EN DASH}"
_UNITS = ((86400, "d"), (3600, "h"), (60, "m"), (1, "s"))
_LIST = re.compile(r"(?:fixed_size_|large_)?list<[^<>:]+: ([^<>]+?)(?: not null)?>(?:\[(\d+)\])?")
_LARGE = ((1e12, "T"), (1e9, "G"), (1e6, "M"), (1e3, "k"))


def count(number: float | None) -> str:
    """Return a whole number with its thousands apart."""
    return NOTHING if number is None else f"{number:,.0f}"


def short(number: float | None) -> str:
    """Return a number in three digits or so: 950, 1.2k, 34M."""
    if number is None:
        return NOTHING
    for size, unit in _LARGE:
        if abs(number) >= size:
            value = number / size
            return f"{value:.0f}{unit}" if value >= 100 else f"{value:.3g}{unit}"
    return f"{number:.3g}"


def duration(seconds: float | None) -> str:
    """Return a duration by its two largest units: 0.4 s, 12 s, 3m 20s, 2d 4h."""
    if seconds is None:
        return NOTHING
    if seconds < 9.95:
        return f"{seconds:.1f} s"
    rest = round(seconds)
    if rest < 60:
        return f"{rest} s"
    parts: list[str] = []
    for size, unit in _UNITS:
        whole, rest = divmod(rest, size)
        if whole or parts:
            parts.append(f"{whole}{unit}")
        if len(parts) == 2:
            break
    return " ".join(parts)


def moment(at: datetime | None) -> str:
    """Return a moment in UTC to the second."""
    return NOTHING if at is None else at.astimezone(UTC).strftime("%Y-%m-%d %H:%M:%S")


def clock(at: datetime) -> str:
    """Return the time of the day in UTC."""
    return at.astimezone(UTC).strftime("%H:%M:%S")


def ago(at: datetime | None, now: datetime) -> str:
    """Return how long ago a moment was."""
    if at is None:
        return NOTHING
    seconds = (now - at).total_seconds()
    if seconds < 5:
        return "just now"
    return f"{round(seconds)}s ago" if seconds < 59.5 else f"{duration(seconds)} ago"


def type_name(arrow: str) -> str:
    """Return an Arrow type as a person would write it: ``float[64]`` for a list of 64 floats."""
    short = _LIST.sub(r"\1[\2]", arrow)
    return short if short == arrow else type_name(short)


def percent(part: float | None, whole: float | None) -> str:
    """Return a share; never 100% while something is missing."""
    if not whole or part is None:
        return NOTHING
    share = 100 * part / whole
    if part < whole and share > 99.9:
        return "99.9%"
    return f"{share:.0f}%" if share >= 10 or share == 0 else f"{share:.1f}%"


@dataclass(frozen=True, slots=True)
class StateLook:
    """``tone`` is a class of the style sheet, ``icon`` the id of a symbol in icons.svg."""

    tone: str
    icon: str
    label: str


_LOOKS = {
    "PENDING": ("grey", "s-wait"),
    "QUEUED": ("grey", "s-wait"),
    "STARTING": ("blue", "s-start"),
    "RUNNING": ("blue", "s-run"),
    "PAUSING": ("amber", "s-pause"),
    "PAUSED": ("amber", "s-pause"),
    "CANCELLING": ("grey", "s-cancel"),
    "RECOVERING": ("violet", "s-recover"),
    "SUCCEEDED": ("green", "s-done"),
    "PARTIAL": ("orange", "s-part"),
    "FAILED": ("red", "s-fail"),
    "CANCELLED": ("grey", "s-cancel"),
    "SKIPPED": ("grey", "s-skip"),
    "UPSTREAM_FAILED": ("red", "s-cancel"),
    "PLANNED": ("grey", "s-wait"),
    "DONE": ("green", "s-start"),
    "COMMITTED": ("green", "s-done"),
    "COMPUTED": ("violet", "s-part"),
    "STOPPED": ("amber", "s-pause"),
}


def look_of(state: JobState | TaskState | str) -> StateLook:
    """Return how a state of a run, a job or a fragment is shown."""
    name = str(state)
    tone, icon = _LOOKS.get(name, ("grey", "s-skip"))
    return StateLook(tone, icon, name.capitalize().replace("_", " "))
