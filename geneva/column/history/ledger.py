"""The ledger: proofs about a column's fragments, so that they need not be found again.

A cache of proofs under ``_backfill/ledger/``: losing it costs reading footers and history again,
or trust where the history is gone, never the correctness of what is recorded. Every entry names
the exact file it speaks of, so an old entry is useless, not wrong.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping, Sequence
from typing import Any, NamedTuple

from geneva.column.binding import bindings_of
from geneva.column.history.marks import group_subtree, supplier
from geneva.model.rows import RowMap, is_row_map
from geneva.storage.lance import Snapshot, TableStorage

_FORMAT = 2


def entry_key(incarnation: str, file: str, fragment_id: int) -> str:
    """Return the key of an entry on one column file of one fragment."""
    return f"{incarnation}|{file}|{fragment_id}"


def entries_of(snapshot: Snapshot) -> set[str]:
    """Return the keys of all column files that a version uses."""
    return {
        entry_key(binding.incarnation, supplier(f, group_subtree(snapshot, name)), f.id)
        for name, binding in bindings_of(snapshot.schema).items()
        for f in snapshot.fragments.values()
    }


class Kept(NamedTuple):
    """How many rows people should be told of that done work leaves as they are."""

    foreign: int = 0
    unverified: int = 0
    failed: int = 0


class Ledger:
    """Row maps by column file, work that left nothing to do, and first versions of files."""

    def __init__(
        self,
        maps: Mapping[str, str] | None = None,
        done: Iterable[str] = (),
        born: Mapping[str, int] | None = None,
        kept: Mapping[str, Sequence[int]] | None = None,
    ) -> None:
        self._texts = dict(maps or {})
        self._maps: dict[str, RowMap] = {}
        told = kept or {}
        self._done = {work: Kept(*told.get(work, ())) for work in done}
        self._born = dict(born or {})
        self.changed = False

    @classmethod
    def load(cls, storage: TableStorage, incarnation: str) -> Ledger:
        """Read a column's ledger; one that is missing or damaged is empty."""
        try:
            raw = json.loads(storage.objects.get(_path(incarnation)))
            if raw["format"] == _FORMAT:
                maps = {key: text for key, text in raw["maps"].items() if is_row_map(text)}
                return cls(maps, raw["done"], raw["born"], raw.get("kept"))
        except (FileNotFoundError, ValueError, KeyError, TypeError, AttributeError):
            pass
        return cls()

    def kept(self, snapshot: Snapshot) -> Ledger:
        """Return the entries on the column files that a version uses."""
        return Ledger(**self._facts(entries_of(snapshot)))

    def save(self, storage: TableStorage, incarnation: str, snapshot: Snapshot) -> None:
        """Write the entries on the column files that a version uses."""
        body = json.dumps({"format": _FORMAT, **self._facts(entries_of(snapshot))})
        storage.objects.put(_path(incarnation), body.encode())
        self.changed = False

    def _facts(self, present: set[str]) -> dict[str, Any]:
        for key, row_map in self._maps.items():
            if key in present and key not in self._texts:
                self._texts[key] = row_map.dumps()
        # Each fragment can be done for a few filters at once; the oldest are forgotten.
        done = list(self._done)[-_DONE_PER_ENTRY * max(len(present), 1) :]
        return {
            "maps": {k: t for k, t in self._texts.items() if k in present},
            "done": done,
            "kept": {work: list(kept) for work in done if any(kept := self._done[work])},
            "born": self._births(present),
        }

    def _births(self, present: set[str]) -> dict[str, int]:
        """Return the first versions of the files that supply columns now, and of a few before them.

        Values are compared with those of an older version, and this one may be older than the
        history by which the age of its files was found.
        """
        files, fragments = set(), set()
        for key in present:
            file, fragment = key.split("|", 1)[1].rsplit("|", 1)
            files.add(file)
            fragments.add(fragment)
        gone: dict[tuple[str, str], list[str]] = {}
        for key in self._born:
            field, fragment, file = key.split("|", 2)
            if fragment in fragments and file not in files:
                gone.setdefault((field, fragment), []).append(key)
        late = {key for keys in gone.values() for key in keys[-_GONE_PER_SOURCE:]}
        return {k: v for k, v in self._born.items() if k in late or k.split("|", 2)[2] in files}

    def row_map(self, key: str) -> RowMap | None:
        """Return a known row map."""
        if key not in self._maps and key in self._texts:
            self._maps[key] = RowMap.loads(self._texts[key])
        return self._maps.get(key)

    def learn(self, key: str, row_map: RowMap | str) -> None:
        """Remember a proven row map, or its text of `dumps`."""
        if key in self._texts:
            return
        if isinstance(row_map, str):
            self._texts[key] = row_map
        else:
            self._maps[key] = row_map
        self.changed = True

    def born(self, key: str) -> int | None:
        """Return the version in which a file came to be, if that was proven."""
        return self._born.get(key)

    def learn_born(self, key: str, version: int) -> None:
        """Remember the version in which a file came to be."""
        self._born[key] = version
        self.changed = True

    def done(self, work: str) -> Kept | None:
        """Return the counts of kept rows for done work; ``None`` if rows may be left to compute."""
        return self._done.get(work)

    def mark_done(self, work: Mapping[str, Kept]) -> None:
        """Remember work that left nothing to do."""
        for key, kept in work.items():
            if key not in self._done:
                self._done[key] = kept
                self.changed = True


_DONE_PER_ENTRY = 16
_GONE_PER_SOURCE = 2


def _path(incarnation: str) -> str:
    return f"ledger/{incarnation}.json"
