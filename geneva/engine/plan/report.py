"""A plan as a value that people can read."""

from __future__ import annotations

import html
from collections import Counter
from dataclasses import dataclass, field
from typing import Any

from geneva.column.history.marks import files_gone
from geneva.engine.plan.decision import Action, FragmentPlan
from geneva.engine.plan.windowed import WindowsPlan

_ROWS_SHOWN = 20


@dataclass(frozen=True)
class Plan:
    """The plan of a backfill, per fragment; nothing has run.

    Attributes
    ----------
    columns
        The columns that are filled together.
    version
        Table version that the plan was made from.
    fragments
        One `FragmentPlan` each, in the order in which they are taken.
    num_frags
        At most so many fragments are written by the call.
    windows
        What each window computes, of a call with windows.
    """

    columns: tuple[str, ...]
    version: int
    fragments: tuple[FragmentPlan, ...]
    where: str | None = None
    num_frags: int | None = None
    warnings: tuple[str, ...] = field(default=())
    windows: WindowsPlan | None = None

    @property
    def lost(self) -> tuple[str, ...]:
        """Files that the table names for the columns and that nobody can read."""
        return tuple(name for f in self.fragments for name in f.lost)

    @property
    def to_compute(self) -> tuple[FragmentPlan, ...]:
        """Fragments that this call would compute."""
        found = tuple(f for f in self.fragments if f.action is not Action.SKIP)
        return found if self.num_frags is None else found[: self.num_frags]

    @property
    def rows_compute(self) -> int:
        """Rows that this call would compute."""
        return sum(f.rows_compute for f in self.to_compute)

    @property
    def rows_waiting(self) -> int:
        """Rows that wait for a computed input."""
        return sum(f.rows_waiting for f in self.fragments)

    @property
    def rows_foreign(self) -> int:
        """Rows whose value somebody else wrote, and that are kept."""
        return sum(f.rows_foreign for f in self.fragments)

    @property
    def rows_unverified(self) -> int:
        """Rows whose history is gone, and that are trusted."""
        return sum(f.rows_unverified for f in self.fragments)

    def _head(self) -> str:
        rows = sum(f.rows for f in self.fragments)
        text = (
            f"backfill of {', '.join(self.columns)}: {self.rows_compute:,} of {rows:,} rows in "
            f"{len(self.to_compute):,} of {len(self.fragments):,} fragments (table version "
            f"{self.version})"
        )
        return text + (f"\nwhere {self.where}" if self.where else "")

    def _groups(self) -> list[tuple[str, str, int, int, int]]:
        chosen = {f.fragment_id for f in self.to_compute}
        groups: Counter[tuple[str, str]] = Counter()
        rows: Counter[tuple[str, str]] = Counter()
        compute: Counter[tuple[str, str]] = Counter()
        for f in self.fragments:
            action = f.action.value
            if f.action is not Action.SKIP and f.fragment_id not in chosen:
                action = "later"
            key = (action, f.reason)
            groups[key] += 1
            rows[key] += f.rows
            compute[key] += f.rows_compute
        return [(a, r, n, rows[a, r], compute[a, r]) for (a, r), n in groups.most_common()]

    def __str__(self) -> str:
        lines = [
            self._head(),
            "",
            f"{'action':8} {'fragments':>9} {'rows':>12} {'compute':>12}  why",
        ]
        for action, reason, n, rows, compute in self._groups()[:_ROWS_SHOWN]:
            lines.append(f"{action:8} {n:>9,} {rows:>12,} {compute:>12,}  {reason}")
        notes = [
            (self.rows_waiting, "rows wait for a computed input"),
            (self.rows_foreign, "rows hold a value that somebody else wrote; kept"),
            (self.rows_unverified, "rows have a value whose history is gone; trusted"),
        ]
        lines += [f"{n:,} {text}" for n, text in notes if n]
        lines += [files_gone(self.lost)] if self.lost else []
        lines += [] if self.windows is None else ["", str(self.windows)]
        return "\n".join([*lines, *self.warnings])

    def _repr_html_(self) -> str:
        head = html.escape(self._head()).replace("\n", "<br>")
        body = "".join(
            f"<tr><td>{html.escape(a)}</td><td>{n:,}</td><td>{rows:,}</td><td>{compute:,}</td>"
            f"<td>{html.escape(reason)}</td></tr>"
            for a, reason, n, rows, compute in self._groups()[:_ROWS_SHOWN]
        )
        return (
            f"<p>{head}</p><table><thead><tr><th>action</th><th>fragments</th><th>rows</th>"
            f"<th>compute</th><th>why</th></tr></thead><tbody>{body}</tbody></table>"
        )


def plan_facts(plan: Plan) -> dict[str, Any]:
    """Return the facts of a plan, without those that only the engine reads."""
    chosen = {f.fragment_id for f in plan.to_compute}
    hidden = ("task", "work", "lost", "share")
    fragments = [
        {n: getattr(f, n) for n in f._fields if n not in hidden}
        | {"this_call": f.fragment_id in chosen}
        | ({} if f.share is None else {"windows": f.share.windows.tolist()})
        for f in plan.fragments
    ]
    names: tuple[str, ...] = (
        "columns",
        "version",
        "where",
        "num_frags",
        "rows_compute",
        "rows_waiting",
    )
    names += ("rows_foreign", "rows_unverified", "warnings")
    facts = {n: getattr(plan, n) for n in names} | {"fragments": fragments}
    return facts if plan.windows is None else facts | {"windows": plan.windows.facts()}
