"""The short forms in which Python writes flows; YAML and Python are the same models.

::

    Dag([
        Operation("embed", table="docs", columns=["embedding"],
                  window={"on": "ts", "at": "{{ dt }}"},
                  matrix=Grid(dt=DateRange("2021-05-01", "2021-05-08", 1), concurrency=1)),
        Operation("score", table="docs", columns=["score"], dependencies=["embed"]),
    ])
"""

from __future__ import annotations

from datetime import date, datetime

from geneva.flow.spec import DagRun as Dag
from geneva.flow.spec import Values

Moment = str | date | datetime


def _plain(value: Moment) -> str:
    return value if isinstance(value, str) else value.isoformat()


class Choice(Values):
    """The values of a list."""

    def __init__(self, *values: object) -> None:
        super().__init__(kind="choice", value=list(values))


class Range(Values):
    """The numbers from a start on in steps, without the stop."""

    def __init__(self, start: float, stop: float, step: float = 1) -> None:
        super().__init__(kind="range", value=[start, stop, step])


class Linspace(Values):
    """``num`` numbers from start to stop, both included, at equal distances."""

    def __init__(self, start: float, stop: float, num: int) -> None:
        super().__init__(kind="linspace", value=[start, stop, num])


class DateRange(Values):
    """Dates from a start on in steps of days, without the stop."""

    def __init__(self, start: Moment, stop: Moment, days: int = 1) -> None:
        super().__init__(kind="daterange", value=[_plain(start), _plain(stop), days])


class DateTimeRange(Values):
    """Moments from a start on in steps of seconds, without the stop."""

    def __init__(self, start: Moment, stop: Moment, seconds: int) -> None:
        super().__init__(kind="datetimerange", value=[_plain(start), _plain(stop), seconds])


__all__ = ["Choice", "Dag", "DateRange", "DateTimeRange", "Linspace", "Range"]
