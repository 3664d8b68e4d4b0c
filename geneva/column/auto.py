"""The wish that a service keeps a column filled, stored in the fields' metadata with the table.

It lies beside the binding, so it is as durable and as atomic as the schema, and any service that
serves the database finds it.
"""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field, fields
from datetime import UTC, datetime, tzinfo
from functools import lru_cache
from typing import Any
from zoneinfo import ZoneInfo

import pyarrow as pa
from cronsim import CronSim, CronSimError

from geneva.errors import ColumnError, SettingError

AUTO = b"geneva.auto"
_FORMAT = 1
_UNITS_S = {"s": 1, "m": 60, "h": 3600, "d": 86400, "w": 604800}
_DURATION = re.compile(r"(\d+(?:\.\d+)?)([smhdw])")
_LOOPS = ("force", "retry_failed")  # without a schedule, each job would be the cause of another


@dataclass(frozen=True, slots=True)
class Auto:
    """How a service keeps a column filled.

    Attributes
    ----------
    on
        Whether it does.
    schedule
        When: cron text of five fields, or an interval such as ``15m``; empty for soon after the
        table has changed.
    tz
        Zone of the cron text.
    debounce
        Without a schedule: for how long the table must not change before a job is made.
    arguments
        Of `geneva.Table.backfill`.
    """

    on: bool = True
    schedule: str = ""
    tz: str = "UTC"
    debounce: str = "5s"
    pool: str = "default"
    priority: int = 0
    arguments: Mapping[str, Any] = field(default_factory=dict)
    format: int = _FORMAT

    def metadata(self) -> dict[str, str]:
        """Return the field metadata of each column of the group."""
        text = json.dumps(asdict(self), separators=(",", ":")) if self.on else ""
        return {AUTO.decode(): text}

    @property
    def debounce_s(self) -> float:
        """Seconds for which the table must not change."""
        return duration_s(self.debounce)

    def due(self, fired_s: float | None, now_s: float) -> bool:
        """Whether a moment of the schedule came after the one that was last acted upon.

        Parameters
        ----------
        fired_s
            Seconds since 1970; ``None`` if nothing was done yet: then an interval is due.
        """
        if " " not in self.schedule:
            return fired_s is None or now_s >= fired_s + duration_s(self.schedule)
        return fired_s is not None and self._before(now_s) > fired_s

    def wait_s(self, fired_s: float, now_s: float) -> float:
        """Return the seconds until the schedule is due again."""
        if " " not in self.schedule:
            return max(fired_s + duration_s(self.schedule) - now_s, 0.0)
        now = datetime.fromtimestamp(now_s, _zone(self.tz))
        return max(next(CronSim(self.schedule, now)).timestamp() - now_s, 0.0)

    def _before(self, now_s: float) -> float:
        """Return the latest moment of the cron text that is not after now."""
        now = datetime.fromtimestamp(int(now_s) + 1, _zone(self.tz))
        return next(CronSim(self.schedule, now, reverse=True)).timestamp()


def read_auto(given: bool | str | Mapping[str, Any]) -> Auto:
    """Read the user's ``auto_backfill``.

    Raises
    ------
    SettingError
        It makes no sense; the message says what does.
    """
    match given:
        case bool():
            auto = Auto(on=given)
        case str() if given.strip():
            auto = Auto(schedule=" ".join(given.split()))
        case Mapping():
            known = [f.name for f in fields(Auto) if f.name not in ("on", "format")]
            unknown = sorted(set(given) - set(known))
            if unknown:
                raise SettingError(
                    f"auto_backfill has no {unknown[0]!r}; it has {', '.join(known)}"
                )
            auto = Auto(**{k: v for k, v in given.items() if v is not None})
        case _:
            raise SettingError(
                f"auto_backfill={given!r} must be True, False, a schedule such as '15m' or "
                "'0 3 * * *', or a mapping"
            )
    _check(auto)
    return auto


def _check(auto: Auto) -> None:
    for name in ("schedule", "tz", "debounce", "pool"):
        if not isinstance(getattr(auto, name), str):
            raise SettingError(f"{name}={getattr(auto, name)!r} of auto_backfill must be text")
    if not isinstance(auto.priority, int) or isinstance(auto.priority, bool):
        raise SettingError(f"priority={auto.priority!r} of auto_backfill must be a whole number")
    duration_s(auto.debounce)
    _check_schedule(auto)
    if not isinstance(auto.arguments, Mapping):
        raise SettingError("arguments of auto_backfill are those of backfill, by name")
    if auto.arguments.get("params"):
        raise SettingError(
            "params would have the service load the UDF to plan; bind the UDF with them instead"
        )
    for name in _LOOPS:
        if auto.arguments.get(name) and not auto.schedule:
            raise SettingError(
                f"{name}=True makes every job the cause of another one; give auto_backfill a "
                "schedule with it"
            )
    try:
        json.dumps(dict(auto.arguments))
    except TypeError as error:
        raise SettingError(f"the arguments of auto_backfill must be JSON: {error}") from error


def _check_schedule(auto: Auto) -> None:
    try:
        zone = _zone(auto.tz)
    except (KeyError, ValueError, OSError) as error:
        raise SettingError(f"tz={auto.tz!r} is no time zone, such as Europe/Berlin") from error
    if " " not in auto.schedule:
        if auto.schedule and duration_s(auto.schedule) < 1:
            raise SettingError(f"the interval {auto.schedule!r} must be at least 1s")
        return
    try:
        if len(auto.schedule.split()) != 5:
            raise CronSimError("five fields are needed: minute hour day month weekday")
        next(CronSim(auto.schedule, datetime.now(zone)))
    except (CronSimError, StopIteration) as error:
        why = str(error) or "there is no such day"
        raise SettingError(f"{auto.schedule!r} is no cron text: {why}") from error


def _zone(name: str) -> tzinfo:
    return UTC if name == "UTC" else ZoneInfo(name)  # there may be no database of zones


def duration_s(text: str) -> float:
    """Return the seconds of ``90s``, ``15m``, ``12h``, ``7d`` or ``2w``.

    Raises
    ------
    SettingError
        It is none of these.
    """
    found = _DURATION.fullmatch(text.strip())
    if found is None:
        raise SettingError(
            f"{text!r} is no interval such as 90s, 15m, 12h or 7d, and no cron text such as "
            "'0 3 * * *'"
        )
    return float(found[1]) * _UNITS_S[found[2]]


def declared(auto: Auto | None) -> dict[str, str]:
    """Return the field metadata of a wish; nothing for ``None``, which leaves the present one."""
    return {} if auto is None else auto.metadata()


def auto_of(field: pa.Field) -> Auto | None:
    """Return how a field is kept filled, or ``None`` if nobody asked for that.

    Raises
    ------
    ColumnError
        A newer version of geneva wrote it.
    """
    raw = (field.metadata or {}).get(AUTO)
    return _parsed(raw, field.name) if raw else None


@lru_cache(maxsize=256)
def _parsed(raw: bytes, column: str) -> Auto:
    values = json.loads(raw)
    if values.get("format", 0) > _FORMAT:
        raise ColumnError(
            f"column {column!r} was declared by a newer version of geneva; upgrade to use it"
        )
    return Auto(**values)
