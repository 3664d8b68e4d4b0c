"""What supplied a column when it was read, and whether that is still so."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import replace
from typing import NamedTuple
from weakref import WeakKeyDictionary

from geneva.column.binding import Binding, binding_of, group_of
from geneva.model.rows import BoolArray, IntArray, Mark, Marks, RowClass
from geneva.storage.lance import Snapshot
from geneva.storage.snapshot import FragmentInfo

NO_FILE = ""
UNKNOWN = 0  # generation of a file whose first version is gone; no file has it


def job_generation(plan_version: int) -> int:
    """Return the generation of rows that a job computes which planned on a version.

    It is newer than everything visible at that version, and older than everything that anyone
    makes after the job's commit, because a commit expects the file that the plan saw.
    """
    return 2 * plan_version + 1


def file_generation(version: int) -> int:
    """Return the generation of a file that somebody else wrote in a version."""
    return 2 * version


def supplier(fragment: FragmentInfo, subtree: tuple[int, ...]) -> str:
    """Return the data files that supply a field and its descendants, joined with ``|``."""
    paths = [f.path for f in fragment.files if not f.fields.isdisjoint(subtree)]
    return paths[0] if len(paths) == 1 else "|".join(paths)


class _Facts(NamedTuple):
    """What a version says of a top-level column: asked for every fragment, read once."""

    id: int
    subtree: tuple[int, ...]
    binding: Binding | None
    group: tuple[int, ...]


def facts(snapshot: Snapshot, column: str) -> _Facts:
    """Return the field ids of a column and of its group, and its binding."""
    known = _FACTS.get(snapshot)
    if known is None:
        known = _FACTS[snapshot] = {}
    if column not in known:
        field = snapshot.fields[column]
        names = group_columns(snapshot, column)
        group = tuple(i for n in names for i in snapshot.fields[n].subtree)
        known[column] = _Facts(field.id, field.subtree, binding_of(field.arrow), group)
    return known[column]


_FACTS: WeakKeyDictionary[Snapshot, dict[str, _Facts]] = WeakKeyDictionary()


def group_columns(snapshot: Snapshot, column: str) -> list[str]:
    """Return a column and those that are computed together with it."""
    binding = binding_of(snapshot.fields[column].arrow)
    if binding is None or not binding.grouped:
        return [column]
    return [name for name, _ in group_of(snapshot.schema, binding)]


def group_subtree(snapshot: Snapshot, column: str) -> tuple[int, ...]:
    """Return the field ids of a column and of those that are computed together with it."""
    return facts(snapshot, column).group


def unchanged(
    recorded: Marks,
    now: Mapping[int, Mark],
    generations: Callable[[Mark], IntArray | None],
) -> bool | BoolArray:
    """Compare what a class was computed from with what supplies the columns now.

    Parameters
    ----------
    recorded
        Marks of the class.
    now
        Present marks by field.
    generations
        Returns, for a computed column, the generation of every physical row.

    Returns
    -------
    bool or array
        For all rows of the class, or row by row where only some were computed again.
    """
    verdict: bool | BoolArray = True
    for old in recorded:
        new = now.get(old.field)
        if new == old:
            continue
        rows = generations(new) if new is not None and _computed_later(old, new) else None
        if rows is None:
            return False
        verdict = verdict & (rows <= old.generation)
    return verdict


def unlike(recorded: Marks, now: Mapping[int, Mark]) -> list[Mark]:
    """Return the present marks of which `unchanged` asks for generations; none if it knows."""
    pairs = [(old, now.get(old.field)) for old in recorded]
    other = [(old, new) for old, new in pairs if new != old]
    if not all(new is not None and _computed_later(old, new) for old, new in other):
        return []
    return [new for _, new in other if new is not None]


def _computed_later(old: Mark, new: Mark) -> bool:
    """Whether a mark is a later one of the same computed column; not where one was restored."""
    return old.file == new.file and 0 <= old.generation < new.generation


def with_marks(row_class: RowClass, translate: Callable[[Mark], Mark]) -> RowClass:
    """Return a class with other marks."""
    return replace(
        row_class,
        inputs=tuple(translate(m) for m in row_class.inputs),
        wheres=tuple((d, tuple(translate(m) for m in ms)) for d, ms in row_class.wheres),
    )
