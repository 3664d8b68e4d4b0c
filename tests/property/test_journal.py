"""Whatever is appended, in any order and by any number of attempts, is what is replayed."""

from __future__ import annotations

import tempfile
from pathlib import Path

import numpy as np
import pyarrow as pa
from hypothesis import given, settings
from hypothesis import strategies as st

from geneva.column.checkpoint.journal import Journal, replay
from geneva.storage.objects import LocalObjects

TYPE = pa.string()

records = st.sets(st.integers(0, 200), min_size=1, max_size=12).map(sorted)
attempts = st.lists(st.lists(records, max_size=5), min_size=1, max_size=4)


def _write(objects: LocalObjects, path: str, rows_of: list[list[int]], failed: set[int]) -> None:
    journal = Journal(objects, path, (TYPE,))
    for rows in rows_of:
        values = pa.array([None if r in failed else f"{path}:{r}" for r in rows], TYPE)
        errors = [f"e{r}" if r in failed else None for r in rows]
        journal.append(np.array(rows), [values], errors if any(errors) else None)
    journal.close()


@settings(max_examples=80, deadline=None)
@given(attempts, st.sets(st.integers(0, 200), max_size=20), st.booleans())
def test_replay_holds_each_recorded_row_once_with_a_value_of_its_own(
    work: list[list[list[int]]], failed: set[int], with_failed: bool
) -> None:
    with tempfile.TemporaryDirectory() as folder:
        objects = LocalObjects(folder)
        paths = [f"{k}.log" for k in range(len(work))]
        for path, rows_of in zip(paths, work, strict=True):
            _write(objects, path, rows_of, failed)
        earlier = replay(objects, paths, (TYPE,), with_failed=with_failed)
        written = {r for rows_of in work for rows in rows_of for r in rows}
        assert earlier.rows.tolist() == sorted(written if with_failed else written - failed)
        values = earlier.values(np.arange(len(earlier.rows)))[0].to_pylist()
        for position, (row, value) in enumerate(zip(earlier.rows.tolist(), values, strict=True)):
            owner = next(
                p for p, rows_of in zip(paths, work, strict=True) if any(row in r for r in rows_of)
            )
            assert value == (None if row in failed else f"{owner}:{row}")
            assert earlier.errors.get(position) == (f"e{row}" if row in failed else None)


@settings(max_examples=150, deadline=None)
@given(st.lists(records, min_size=1, max_size=5), st.data())
def test_damage_anywhere_leaves_a_prefix_of_what_was_written(
    rows_of: list[list[int]], data: st.DataObject
) -> None:
    with tempfile.TemporaryDirectory() as folder:
        objects = LocalObjects(folder)
        ends, journal = [], Journal(objects, "a.log", (TYPE,))
        for k, rows in enumerate(rows_of):
            journal.append(np.array(rows), [pa.array([f"{k}:{r}" for r in rows])], None)
            ends.append(journal.size_bytes)
        journal.close()
        content = bytearray(objects.read_log("a.log"))
        at = data.draw(st.integers(0, len(content) - 1))
        damage = data.draw(st.sampled_from(["cut", "flip", "insert", "zero"]))
        if damage == "cut":
            del content[at:]
        elif damage == "flip":
            content[at] ^= 1 << data.draw(st.integers(0, 7))
        elif damage == "insert":
            content[at:at] = data.draw(st.binary(min_size=1, max_size=8))
        else:
            content[at:] = bytes(len(content) - at)
        (Path(folder) / "a.log").write_bytes(content)
        earlier = replay(objects, ["a.log"], (TYPE,), with_failed=True)
        values = earlier.values(np.arange(len(earlier.rows)))[0].to_pylist()
        got = dict(zip(earlier.rows.tolist(), values, strict=True))

        def upto(count: int) -> dict[int, str]:
            first: dict[int, str] = {}
            for k, rows in enumerate(rows_of[:count]):
                for r in rows:
                    first.setdefault(r, f"{k}:{r}")
            return first

        intact = sum(end <= at for end in ends)
        assert got in [upto(count) for count in range(intact, len(rows_of) + 1)]
