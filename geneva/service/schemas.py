"""What the REST interface takes."""

from __future__ import annotations

from typing import Annotated, Any

from pydantic import BaseModel, ConfigDict, Field

from geneva.errors import SettingError
from geneva.jobs.records import DEFAULT_POOL, Submission

_Name = Annotated[str, Field(max_length=500, pattern=r"^[^\x00-\x1f]*$")]
_Level = Annotated[int, Field(ge=-1000, le=1000)]
_Count = Annotated[int, Field(ge=1, le=1_000_000)]


class _Strict(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True)


class NewRun(_Strict):
    """A backfill to submit.

    ``arguments`` are those of ``geneva.Table.backfill``, by name.
    """

    table: Annotated[_Name, Field(min_length=1)]
    columns: Annotated[list[Annotated[_Name, Field(min_length=1)]], Field(min_length=1)]
    db: _Name | None = None
    arguments: dict[str, Any] = {}
    ray: dict[str, Any] = {}
    name: _Name = ""
    pool: Annotated[_Name, Field(min_length=1)] = DEFAULT_POOL
    priority: _Level = 0
    max_active: _Count | None = None

    def submission(self, db: str | None) -> Submission:
        """Return the request; ``db`` is meant where it names none."""
        chosen = self.db or db
        if chosen is None:
            raise SettingError("db is needed: this service was started without --db")
        return Submission(
            db=chosen,
            table=self.table,
            columns=tuple(self.columns),
            arguments=self.arguments,
            ray=self.ray,
            name=self.name,
            pool=self.pool,
            priority=self.priority,
            max_active=self.max_active,
        )


class RunChange(_Strict):
    """What is to be different of a run; what is left out stays."""

    priority: _Level | None = None
    max_active: _Count | None = None


class PoolChange(_Strict):
    """The slots of a pool; null for no cap."""

    slots: Annotated[int, Field(ge=0, le=1_000_000)] | None
