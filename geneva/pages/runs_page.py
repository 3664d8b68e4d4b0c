"""The list of runs: filters, order and pages, all in its address."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping
from datetime import UTC, date, datetime, timedelta
from typing import Annotated, Any
from urllib.parse import urlencode

from fastapi import Query, Request, Response
from pydantic import BaseModel, ConfigDict, Field

from geneva.errors import SettingError
from geneva.jobs.page import RunQuery
from geneva.model.types import JobState
from geneva.pages.render import is_piece, render
from geneva.pages.routes import pages
from geneva.service.state import Store

router = pages()

_S = JobState
GROUPS: Mapping[str, tuple[JobState, ...]] = {
    "": (),
    "active": (_S.RUNNING, _S.STARTING, _S.PAUSING, _S.CANCELLING, _S.RECOVERING),
    "waiting": (_S.QUEUED, _S.PENDING),
    "paused": (_S.PAUSED,),
    "succeeded": (_S.SUCCEEDED, _S.SKIPPED),
    "partial": (_S.PARTIAL,),
    "failed": (_S.FAILED, _S.UPSTREAM_FAILED),
    "cancelled": (_S.CANCELLED,),
}
"""States as people ask for them."""

_Text = Annotated[str, Field(max_length=500)]


class Filters(BaseModel):
    """The filters in the address of the list, as they were typed."""

    model_config = ConfigDict(frozen=True)

    state: _Text = ""
    table: _Text = ""
    column: _Text = ""
    cause: _Text = ""
    text: _Text = ""
    since: _Text = ""
    until: _Text = ""
    sort: _Text = "-created"
    page: Annotated[int, Field(ge=1, le=100_000)] = 1

    def query(self) -> RunQuery:
        """Return the query for the store."""
        if self.state not in GROUPS:
            raise SettingError(f"state={self.state!r} must be one of {', '.join(GROUPS)}")
        until = _day(self.until)
        return RunQuery(
            states=GROUPS[self.state],
            table=self.table or None,
            column=self.column.strip(),
            cause=self.cause,
            text=self.text.strip(),
            since=_day(self.since),
            until=None if until is None else until + timedelta(days=1),
            sort=self.sort,
            page=self.page,
        )

    @property
    def narrowed(self) -> bool:
        """Whether some filter is set."""
        return any((self.state, self.table, self.column, self.cause, self.text)) or any(
            (self.since, self.until)
        )

    def url(self, **changed: str | int) -> str:
        """Return the address of the list with some of it changed, on the first page again."""
        other = self.model_copy(update={"page": 1} | changed)
        kept = other.model_dump(exclude_defaults=True)
        return f"/runs?{urlencode(kept)}" if kept else "/runs"

    def sorted_by(self, name: str) -> str:
        """Return the address of the list in another order, or the other way round."""
        return self.url(sort=name if self.sort == f"-{name}" else f"-{name}")


_Filters = Annotated[Filters, Query()]


def _day(text: str) -> datetime | None:
    if not text:
        return None
    try:
        day = date.fromisoformat(text)
    except ValueError as error:
        raise SettingError(f"{text!r} is no date; write it as 2026-11-30") from error
    return datetime(day.year, day.month, day.day, tzinfo=UTC)


@router.get("/runs")
def runs(request: Request, store: Store, filters: _Filters) -> Response:
    """List runs."""
    query = filters.query()
    page = store.counted_runs(query)
    facts: dict[str, Any] = {
        "filters": filters,
        "runs": page.runs,
        "total": page.total,
        "groups": _group(page.counts),
        "last_page": max(-(-page.total // query.limit), 1),
        "url": filters.url(page=filters.page),
    }
    if is_piece(request):
        return render(request, "_runs.html", **facts)
    tables, causes = store.tables(), store.causes()
    return render(request, "runs.html", tables=tables, causes=causes, **facts)


def _group(counts: Counter[JobState]) -> dict[str, int]:
    sums = {name: sum(counts[s] for s in states) for name, states in GROUPS.items()}
    return sums | {"": counts.total()}
