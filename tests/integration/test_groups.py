"""Small fragments that are handed out together: read at once, sealed at once, each its own task."""

from __future__ import annotations

import secrets
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pyarrow as pa
import pytest

import geneva
from geneva.appliers import applier, reader, units
from geneva.engine import schedule as state
from geneva.errors import ConflictError, UdfFailedError
from geneva.storage.lance import TableStorage
from tests.support.backfills import times, watched, xs
from tests.support.calls import CallLog
from tests.support.tables import assert_table_invariants, column, make_table

FRAGMENTS, ROWS = 24, 48
LOCAL: dict[str, Any] = {"executor": "local", "concurrency": 1}
TENFOLD = {"y": lambda row: 10 * row["x"]}


@pytest.fixture(autouse=True)
def large_groups(monkeypatch: pytest.MonkeyPatch) -> None:
    """However busy the machine is."""
    monkeypatch.setattr(state, "_GROUP_S", 1e6)
    monkeypatch.setattr(applier, "GROUP_S", 1e6)


@pytest.fixture
def table(tmp_path: Path, calls: CallLog) -> geneva.Table:
    made = make_table(tmp_path, rows=ROWS, fragments=FRAGMENTS)
    made.add_columns({"y": times(calls, 10)})
    return made


def logs(table: geneva.Table) -> list[str]:
    return table.storage.objects.list("work")


@pytest.mark.parametrize("where", [None, "x % 3 = 0"])
def test_small_fragments_are_read_in_few_scans(
    table: geneva.Table, calls: CallLog, tmp_path: Path, where: str | None
) -> None:
    table.delete("x in (10, 20, 21, 47)")
    gone = {10, 20, 21, 47}
    log = CallLog(tmp_path / "reads.log")
    watched(table, log).backfill("y", where=where, **LOCAL)
    together = [len(k.split(",")) for k in log.keys if "," in k]
    assert sum(together) > FRAGMENTS / 2
    assert max(together) > 2
    assert xs(calls) == [x for x in range(ROWS) if x not in gone and (where is None or x % 3 == 0)]
    table.backfill("y", **LOCAL)
    assert column(table, "y") == [10 * x for x in range(ROWS) if x not in gone]
    assert_table_invariants(table, TENFOLD)
    assert logs(table) == []


def test_rows_wider_than_the_sample_are_all_held_at_once(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    data = pa.table({"text": [secrets.token_hex(2 << 10) for _ in range(ROWS)]})
    table = make_table(tmp_path, data=data, fragments=FRAGMENTS)
    (file,) = table.storage.open().fragments[0].files
    monkeypatch.setattr(reader, "_HELD_BYTES", int(2.5 * file.size_bytes))
    table.add_columns({"size": _length})
    log = CallLog(tmp_path / "reads.log")
    watched(table, log).backfill("size", **LOCAL)
    together = [len(k.split(",")) for k in log.keys if "," in k]
    assert max(together) == 2
    assert column(table, "size") == [4 << 10] * ROWS


@geneva.udf
def _length(text: str) -> int:
    return len(text)


def test_row_that_fails_ends_its_group_but_not_what_was_done_before(
    table: geneva.Table, tmp_path: Path, calls: CallLog
) -> None:
    mended = tmp_path / "mended"

    @geneva.udf
    def picky(x: int) -> int:
        calls(x)
        if x == 31 and not mended.exists():
            raise KeyError(x)
        return 10 * x

    table.alter_columns({"path": "y", "udf": picky})
    with pytest.raises(UdfFailedError, match="fragment 15, row 1"):
        table.backfill("y", **LOCAL)
    assert column(table, "y")[:30] == [10 * x for x in range(30)]
    assert max(xs(calls)) <= 33  # the next one may have begun
    mended.touch()
    table.backfill("y", **LOCAL)
    assert min(xs(calls)) == 30
    assert column(table, "y") == [10 * x for x in range(ROWS)]
    assert_table_invariants(table, TENFOLD)


def test_what_a_slow_group_did_not_begin_is_handed_out_again(
    table: geneva.Table, calls: CallLog, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(applier, "GROUP_S", 0.0)
    table.backfill("y", **LOCAL)
    assert xs(calls) == list(range(ROWS))
    assert column(table, "y") == [10 * x for x in range(ROWS)]
    assert logs(table) == []


@dataclass(frozen=True)
class Refusing(TableStorage):
    """Never commits a column file."""

    def publish(self, *args: Any, **kwargs: Any) -> Any:
        raise ConflictError("not now")


def test_finished_files_of_a_group_outlive_their_driver_one_by_one(
    table: geneva.Table, calls: CallLog
) -> None:
    with pytest.raises(ConflictError):
        geneva.Table(table, storage=Refusing(table.storage.uri)).backfill("y", **LOCAL)
    assert xs(calls) == list(range(ROWS))
    assert len(logs(table)) < FRAGMENTS / 2  # several ends in one log
    # A commit of some must not take the ends of the others away.
    assert table.backfill("y", num_frags=5, **LOCAL).rows_replayed == 10
    with pytest.raises(ConflictError):
        geneva.Table(table, storage=Refusing(table.storage.uri)).backfill("y", **LOCAL)
    assert table.backfill("y", **LOCAL).rows_replayed == ROWS - 10
    assert xs(calls) == []
    assert column(table, "y") == [10 * x for x in range(ROWS)]
    assert logs(table) == []
    assert_table_invariants(table, TENFOLD)


@dataclass(frozen=True)
class Unpublished(TableStorage):
    """Dies before it commits."""

    def publish(self, *args: Any, **kwargs: Any) -> Any:
        raise RuntimeError("died")


def test_call_for_one_fragment_loses_what_others_of_its_group_had_finished(
    table: geneva.Table, calls: CallLog
) -> None:
    dying = geneva.Table(table, storage=Unpublished(table.storage.uri))
    with pytest.raises(RuntimeError, match="died"):
        dying.backfill("y", **LOCAL)
    assert xs(calls) == list(range(ROWS))
    assert table.backfill("y", fragments=[FRAGMENTS // 2], **LOCAL).rows_replayed == 2
    table.backfill("y", **LOCAL)
    assert xs(calls) == []
    assert_table_invariants(table, TENFOLD)
    assert logs(table) == []


def test_group_that_cannot_be_read_at_once_is_read_one_by_one(
    table: geneva.Table, calls: CallLog, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(*args: object) -> None:
        raise OSError("not together")

    monkeypatch.setattr(reader.Reader, "read_together", fail)
    table.backfill("y", **LOCAL)
    assert xs(calls) == list(range(ROWS))
    assert column(table, "y") == [10 * x for x in range(ROWS)]


class _Unclosed:
    """A log whose end cannot be written."""

    def __init__(self, inner: Any) -> None:
        self._inner = inner

    def __getattr__(self, name: str) -> Any:
        return getattr(self._inner, name)

    def close(self) -> None:
        self._inner.close()
        raise OSError("the store is away")


@dataclass(frozen=True)
class Losing(TableStorage):
    """Cannot end the first log whose name holds a word."""

    word: str = ""
    lost: str = ""

    @property
    def objects(self) -> Any:
        return _Losing(super().objects, self)


class _Losing:
    def __init__(self, inner: Any, storage: Losing) -> None:
        self._inner, self._storage = inner, storage

    def __getattr__(self, name: str) -> Any:
        return getattr(self._inner, name)

    def create_log(self, path: str) -> Any:
        log = self._inner.create_log(path)
        if self._storage.word not in path or Path(self._storage.lost).exists():
            return log
        Path(self._storage.lost).touch()
        return _Unclosed(log)


def test_group_whose_log_cannot_be_written_is_computed_again(
    table: geneva.Table, calls: CallLog, tmp_path: Path
) -> None:
    storage = Losing(table.storage.uri, word="shared", lost=str(tmp_path / "lost"))
    result = geneva.Table(table, storage=storage).backfill("y", timeout=60, **LOCAL)
    assert Path(storage.lost).exists()
    assert result.rows_computed == ROWS
    assert set(xs(calls)) == set(range(ROWS))
    assert column(table, "y") == [10 * x for x in range(ROWS)]
    assert_table_invariants(table, TENFOLD)


def test_task_of_a_group_ends_only_once_when_its_records_cannot_be_written(
    table: geneva.Table, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(units, "_HELD_S", 0.0)  # every task has records of its own
    table.backfill("y", num_frags=1, **LOCAL)
    storage = Losing(table.storage.uri, word=".log", lost=str(tmp_path / "lost"))
    with_group = LOCAL | {"timeout": 60}
    monkeypatch.setattr(state.Schedule, "next_group", _all_at_once)
    result = geneva.Table(table, storage=storage).backfill("y", **with_group)
    assert Path(storage.lost).exists()
    assert result.rows_computed == ROWS - 2
    assert result.notes == ()
    assert column(table, "y") == [10 * x for x in range(ROWS)]
    assert_table_invariants(table, TENFOLD)


def _all_at_once(schedule: state.Schedule, appliers: int) -> tuple[Any, ...]:
    return tuple(iter(schedule.next_task, None))
