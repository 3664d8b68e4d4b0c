"""The bodies of REST requests."""

from __future__ import annotations

import math
import re
from typing import Annotated, Any

from pydantic import AfterValidator, BaseModel, ConfigDict, Field, WithJsonSchema

from geneva.errors import SettingError
from geneva.jobs.records import DEFAULT_POOL, Keep, Submission
from geneva.model.arguments import Doors, arguments_of

_DEPTH = 20
_MOST = 2**63 - 1
_UNFIT = re.compile("[\0\ud800-\udfff]")


def _plain(value: Any, depth: int = 0) -> Any:
    """Refuse values that JSON may hold and a database may not.

    Raises
    ------
    ValueError
        For NaN and infinities, whole numbers of more than 64 bits, NUL, halves of surrogate pairs,
        and what is nested too deep.
    """
    if depth > _DEPTH:
        raise ValueError(f"values are nested at most {_DEPTH} deep")
    match value:
        case str() if _UNFIT.search(value):
            raise ValueError("a text holds a NUL or half a surrogate pair")
        case int() if abs(value) > _MOST:
            raise ValueError("whole numbers have at most 64 bits")
        case float() if not math.isfinite(value):
            raise ValueError("numbers must be finite")
        case dict():
            for held in (*value, *value.values()):
                _plain(held, depth + 1)
        case list():
            for held in value:
                _plain(held, depth + 1)
    return value


def _arguments(given: dict[str, Any]) -> dict[str, Any]:
    if "columns" in given:
        raise ValueError("'columns' is given beside the arguments")
    if not isinstance(given.get("params"), dict | None):
        raise ValueError("'params' must be an object")
    return given


_Facts = Annotated[dict[str, Any], AfterValidator(_plain)]
_DECLARED = {
    "type": "object",
    "description": "Of `geneva.Table.backfill`, by name.",
    "properties": {a.name: a.schema() for a in arguments_of(Doors.SERVICE)},
    "additionalProperties": False,
}
_Name = Annotated[str, Field(max_length=500, pattern=r"^[^\x00-\x1f]*$"), AfterValidator(_plain)]
_Level = Annotated[int, Field(ge=-1000, le=1000)]
_Count = Annotated[int, Field(ge=1, le=1_000_000)]


class _Strict(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True, strict=True)


class NewRun(_Strict):
    """A backfill to submit.

    Attributes
    ----------
    columns
        Computed columns of the table.
    db
        Absolute path or URI, as the service sees it; by default the service's own.
    arguments
        Of ``geneva.Table.backfill``, by name.
    ray
        Of ``geneva.connect``: ``address`` and ``runtime_env``, say.
    name
        To find the run again.
    pool
        Whose slots it takes.
    priority
        Higher starts earlier.
    max_active
        At most so many jobs of the run at once.
    """

    table: Annotated[_Name, Field(min_length=1, max_length=240)]
    columns: Annotated[list[Annotated[_Name, Field(min_length=1)]], Field(min_length=1)]
    db: _Name | None = None
    arguments: Annotated[_Facts, AfterValidator(_arguments), WithJsonSchema(_DECLARED)] = {}
    ray: _Facts = {}
    name: _Name = ""
    pool: Annotated[_Name, Field(min_length=1)] = DEFAULT_POOL
    priority: _Level = 0
    max_active: _Count | None = None

    def submission(self, db: str | None) -> Submission:
        """Return the request; ``db`` is meant where it names none."""
        chosen = self.db or db
        if chosen is None:
            raise SettingError("db is needed: this service was started without --db")
        facts = {name: getattr(self, name) for name in type(self).model_fields}
        return Submission(**facts | {"db": chosen, "columns": tuple(self.columns)})


class RunChange(_Strict):
    """The changes of a run; fields that are left out stay, and null lifts the cap."""

    priority: _Level | None = None
    max_active: _Count | None = None

    @property
    def cap(self) -> int | Keep | None:
        """The cap, if it was given."""
        return self.max_active if "max_active" in self.model_fields_set else Keep.KEEP


class PoolChange(_Strict):
    """The slots of a pool; null for no cap."""

    slots: Annotated[int, Field(ge=0, le=1_000_000)] | None


class WindowChoice(_Strict):
    """The windows to retry, by key; none for those that failed."""

    keys: list[Annotated[_Name, Field(min_length=1)]] = []
