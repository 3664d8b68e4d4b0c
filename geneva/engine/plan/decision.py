"""The decision about one fragment."""

from __future__ import annotations

from enum import StrEnum
from typing import NamedTuple

from geneva.column.history.ledger import Kept
from geneva.engine.plan.windowed import Share
from geneva.model.types import Task

NOT_SELECTED = "the filter selects no row that needs work"


class Action(StrEnum):
    """The treatment of a fragment."""

    COMPUTE = "compute"
    FILTER = "filter"  # compute what the filter selects; how many rows is not known yet
    SKIP = "skip"


class FragmentPlan(NamedTuple):  # one per fragment of a table: a quarter of a frozen dataclass
    """The plan for one fragment, with its reason.

    Attributes
    ----------
    rows
        Live rows.
    rows_compute
        Rows to compute; an upper bound where ``action`` is ``filter``.
    rows_forced
        Rows that the forced run which is continued has computed before.
    work
        Key under which the ledger remembers that nothing is left to do.
    lost
        Files that the table names for the column in this fragment, and that nobody can read.
    share
        The rows to compute by window, of a call with windows.
    rows_outside, rows_null
        Rows that are in no window: beyond the range, or without a value.
    """

    fragment_id: int
    rows: int
    action: Action
    reason: str
    rows_compute: int = 0
    rows_waiting: int = 0
    rows_foreign: int = 0
    rows_unverified: int = 0
    rows_failed: int = 0
    rows_forced: int = 0
    work: str = ""
    task: Task | None = None
    lost: tuple[str, ...] = ()
    share: Share | None = None
    rows_outside: int = 0
    rows_null: int = 0

    @property
    def exact(self) -> bool:
        """Whether the number of rows to compute is known, and no upper bound."""
        return self.action is not Action.FILTER

    @property
    def kept(self) -> Kept:
        """How many rows people should be told of that stay as they are."""
        return Kept(self.rows_foreign, self.rows_unverified, self.rows_failed)
