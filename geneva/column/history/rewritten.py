"""Rows that a compaction laid out anew, and rows that are deleted."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np

from geneva.model.rows import BoolArray
from geneva.storage.lance import Snapshot, TableStorage
from geneva.storage.snapshot import FragmentInfo
from geneva.storage.values import RewriteGroup, integers


def live_mask(storage: TableStorage, snapshot: Snapshot, fragment: FragmentInfo) -> BoolArray:
    """Return which physical rows are not deleted."""
    mask = np.ones(fragment.rows, np.bool_)
    if fragment.deleted:
        mask[:] = False
        for batch in storage.scan(snapshot, fragment.id, [], batch_rows=65_536, live_only=True):
            address = integers(batch.column("_rowaddr"))
            mask[address & 0xFFFFFFFF] = True
    return mask


def rewritten_from(
    fragment: FragmentInfo, before: Mapping[int, FragmentInfo], groups: tuple[RewriteGroup, ...]
) -> tuple[list[FragmentInfo], int, int] | None:
    """Return the old fragments whose live rows a compaction laid out, for one new fragment.

    ``before`` has the fragments as they were just before it. With the old ones: at which of those
    rows the new fragment begins, and how many they are in all.
    """
    for old_ids, new in groups:
        start = 0
        for fragment_id, rows in new:
            if fragment_id == fragment.id and rows == fragment.rows:
                if any(i not in before for i in old_ids):
                    return None
                old = [before[i] for i in old_ids]
                return old, start, sum(n for _, n in new)
            start += rows
    return None
