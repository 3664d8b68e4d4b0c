"""What was proven about a column's fragments, so that it need not be proven again.

A cache of proofs under ``_backfill/ledger/``: losing it costs reading footers and history again,
or trust where the history is gone, never the correctness of what is recorded. Every entry names
the exact file it speaks of, so an old entry is useless, not wrong.
"""

from __future__ import annotations

import json
from collections.abc import Iterable

from geneva.rows import RowMap
from geneva.storage.lance import TableStorage

_FORMAT = 1


def entry_key(incarnation: str, file: str, fragment_id: int) -> str:
    """Return the key of what is known about one column file of one fragment."""
    return f"{incarnation}|{file}|{fragment_id}"


class Ledger:
    """Row maps by column file, and (column file, filter, inputs) that have nothing to do."""

    def __init__(self, maps: dict[str, str] | None = None, done: Iterable[str] = ()) -> None:
        self._texts = maps or {}
        self._maps: dict[str, RowMap] = {}
        self._done = set(done)
        self.changed = False

    @classmethod
    def load(cls, storage: TableStorage, incarnation: str) -> Ledger:
        """Read a column's ledger; one that is missing or damaged is empty."""
        try:
            raw = json.loads(storage.objects.get(_path(incarnation)))
            return cls(raw["maps"], raw["done"]) if raw["format"] == _FORMAT else cls()
        except (FileNotFoundError, ValueError, KeyError, TypeError):
            return cls()

    def save(self, storage: TableStorage, incarnation: str, present: set[str]) -> None:
        """Write what is known of the entries whose files are still in use."""
        for key, row_map in self._maps.items():
            self._texts[key] = row_map.dumps()
        kept = {k: t for k, t in self._texts.items() if k in present}
        body = {"format": _FORMAT, "maps": kept, "done": sorted(self._done)}
        storage.objects.put(_path(incarnation), json.dumps(body).encode())
        self.changed = False

    def row_map(self, key: str) -> RowMap | None:
        """Return a known row map."""
        if key not in self._maps and key in self._texts:
            self._maps[key] = RowMap.loads(self._texts[key])
        return self._maps.get(key)

    def learn(self, key: str, row_map: RowMap) -> None:
        """Remember a proven row map."""
        if key not in self._texts:
            self._maps[key] = row_map
            self.changed = True

    def is_done(self, work: str) -> bool:
        """Whether nothing was left to do for exactly this work."""
        return work in self._done

    def mark_done(self, work: Iterable[str]) -> None:
        """Remember work that left nothing to do."""
        fresh = set(work) - self._done
        self._done |= fresh
        self.changed = self.changed or bool(fresh)

    def retain_done(self, work: set[str]) -> None:
        """Forget finished work that no present file can be asked about."""
        self._done &= work


def _path(incarnation: str) -> str:
    return f"ledger/{incarnation}.json"
