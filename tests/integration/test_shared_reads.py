"""Rule 8: columns of one call that read the same inputs share one read."""

from __future__ import annotations

import os
import signal
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import lance
import pytest

import geneva
from geneva.errors import GenevaError, TooManyFailuresError, UdfFailedError
from geneva.storage.lance import TableStorage
from tests.support.backfills import CPUS, Gate, until
from tests.support.calls import CallLog
from tests.support.crashing import processes
from tests.support.tables import assert_table_invariants, column, flushing, make_table, pairs
from tests.support.writers import MeddledStorage, Once

ROWS, FRAGMENTS = 40, 4


@dataclass(frozen=True)
class ReadCounts(TableStorage):
    """Logs the fragments whose inputs are read, in whatever process."""

    log: str = ""

    def scan(
        self, snapshot: Any, fragment_ids: int | Sequence[int], columns: Any, **kwargs: Any
    ) -> Iterator[Any]:
        what = "task" if "i0" in columns else "sample"
        if what == "task" or "x" in columns:
            for i in [fragment_ids] if isinstance(fragment_ids, int) else fragment_ids:
                CallLog(self.log)(f"{what}:{i}")  # those of a group are read in one scan
        return super().scan(snapshot, fragment_ids, columns, **kwargs)


def watched(table: geneva.Table, log: CallLog) -> geneva.Table:
    storage = ReadCounts(table.storage.uri, flush_s=0.0, log=log.path)
    return geneva.Table(table, storage=storage)


def run_in_child(uri: str) -> int:
    """Backfill a and b in a process of their own; return how it ended."""
    child = processes().Process(target=_fill_both, args=(uri,))
    child.start()
    child.join(120)
    assert child.exitcode is not None
    return int(child.exitcode)


def _fill_both(uri: str) -> None:
    folder, name = uri.rsplit("/", 1)
    table = geneva.connect(folder).open_table(name.removesuffix(".lance"))
    fill(flushing(table), ["a", "b"], "local", batch_size=1, progress=False)


def logged(calls: CallLog, name: str, factor: int, **settings: Any) -> geneva.UDF:
    """Return a UDF x -> factor * x that logs its name with every x."""

    @geneva.udf(**{"num_cpus": CPUS, "name": name} | settings)
    def multiply(x: int) -> int:
        calls(f"{name}:{x}")
        return factor * x

    return multiply


def logged_of_text(calls: CallLog, name: str, factor: int) -> geneva.UDF:
    """Return the same, of a UDF that reads a text too, whose size no type tells."""

    @geneva.udf(num_cpus=CPUS, name=name)
    def multiply(x: int, s: str) -> int:
        calls(f"{name}:{x}")
        return factor * x

    return multiply


def two(path: Path, calls: CallLog, udf: Any = logged, **settings: Any) -> geneva.Table:
    """Return a table whose columns a = 2x and b = 3x read the same, over storage that counts."""
    table = make_table(path, rows=ROWS, fragments=FRAGMENTS)
    table.add_columns({"a": udf(calls, "a", 2, **settings), "b": udf(calls, "b", 3)})
    return watched(table, CallLog(path / "reads.log"))


def tasks_read(table: geneva.Table) -> dict[int, int]:
    """Return how many tasks read each fragment, and forget it; samples of a few rows aside."""
    found = reads(table)
    tasks = [int(k.split(":")[1]) for k in found.elements() if k.startswith("task:")]
    return dict(sorted(Counter(tasks).items()))


def reads(table: geneva.Table) -> Counter[str]:
    assert isinstance(table.storage, ReadCounts)
    log = CallLog(table.storage.log)
    found = log.counts
    log.clear()
    return found


def called(calls: CallLog, name: str) -> list[int]:
    """Return the rows that a UDF was called with, sorted."""
    return sorted(int(k.split(":")[1]) for k in calls.keys if k.startswith(f"{name}:"))


def fill(table: geneva.Table, columns: Any, executor: str, **options: Any) -> Any:
    return table.backfill(columns, executor=executor, **{"concurrency": 1} | options)


def check(table: geneva.Table) -> None:
    assert column(table, "a") == [2 * i for i in range(ROWS)]
    assert column(table, "b") == [3 * i for i in range(ROWS)]
    assert_table_invariants(table, {"a": lambda r: 2 * r["x"], "b": lambda r: 3 * r["x"]})
    assert table.storage.objects.list("work") == []


def test_second_column_reads_nothing(tmp_path: Path, calls: CallLog, executor: str) -> None:
    (tmp_path / "one").mkdir()
    alone = two(tmp_path / "one", calls, logged_of_text)
    fill(alone, "a", "local")
    one = reads(alone)
    assert one["task:0"] == 1
    assert any(k.startswith("sample:") for k in one)
    calls.clear()

    table = two(tmp_path, calls, logged_of_text)
    result = fill(table, ["a", "b"], executor)
    assert reads(table) == one
    assert (result.rows_computed, result.rows_replayed) == (2 * ROWS, 0)
    assert result.columns == ("a", "b")
    assert called(calls, "a") == called(calls, "b") == list(range(ROWS))
    check(table)
    assert fill(table, ["a", "b"], executor).rows_computed == 0
    assert reads(table) == {}


def test_one_applier_serves_both_columns(tmp_path: Path, calls: CallLog, ray_cluster: None) -> None:
    table = two(tmp_path, calls)
    pids = CallLog(tmp_path / "pids.log")

    @geneva.udf(num_cpus=CPUS)
    def c(x: int) -> int:
        pids(os.getpid())
        return x

    @geneva.udf(num_cpus=CPUS)
    def d(x: int) -> int:
        pids(os.getpid())
        return -x

    table.add_columns({"c": c, "d": d})
    fill(table, ["c", "d"], "ray")
    assert len(pids) == 2 * ROWS
    assert len(set(pids.keys)) == 1


def test_inputs_in_another_order_are_not_mixed_up(tmp_path: Path, calls: CallLog) -> None:
    table = make_table(tmp_path, rows=ROWS, fragments=FRAGMENTS)

    @geneva.udf(num_cpus=CPUS)
    def a(x: int, s: str) -> str:
        calls(f"a:{x}")
        return f"{x}{s}"

    @geneva.udf(num_cpus=CPUS)
    def b(s: str, x: int) -> str:
        calls(f"b:{x}")
        return f"{s}{x}"

    table.add_columns({"a": a, "b": b})
    table = watched(table, CallLog(tmp_path / "reads.log"))
    fill(table, ["a", "b"], "local")
    assert set(tasks_read(table).values()) == {1}
    assert column(table, "a") == [f"{i}{'abc'[i % 3]}{i}" for i in range(ROWS)]
    assert column(table, "b") == [f"{'abc'[i % 3]}{i}{i}" for i in range(ROWS)]
    assert called(calls, "a") == called(calls, "b") == list(range(ROWS))


# --- who does not follow --------------------------------------------------------------------


def test_other_inputs_are_read_for_themselves(tmp_path: Path, calls: CallLog) -> None:
    table = make_table(tmp_path, rows=ROWS, fragments=FRAGMENTS)

    @geneva.udf(num_cpus=CPUS)
    def length(s: str) -> int:
        calls(f"b:{s[1:]}")
        return len(s)

    table.add_columns({"a": logged(calls, "a", 2), "b": length})
    table = watched(table, CallLog(tmp_path / "reads.log"))
    fill(table, ["a", "b"], "local")
    assert set(tasks_read(table).values()) == {2}
    assert called(calls, "a") == called(calls, "b") == list(range(ROWS))
    assert column(table, "b") == [len(f"a{i}") for i in range(ROWS)]


@pytest.mark.parametrize(
    "settings",
    [{"num_cpus": 0.25}, {"memory": 1 << 20}, {"runtime_env": {"env_vars": {"A": "1"}}}],
    ids=["cpus", "memory", "runtime_env"],
)
def test_other_resources_are_reserved_apart(
    tmp_path: Path, calls: CallLog, settings: dict[str, Any]
) -> None:
    table = two(tmp_path, calls, **settings)
    fill(table, ["a", "b"], "local")
    assert set(tasks_read(table).values()) == {2}
    assert called(calls, "a") == called(calls, "b") == list(range(ROWS))
    check(table)


def test_column_in_the_filter_is_computed_before_the_filter_is_asked(
    tmp_path: Path, calls: CallLog
) -> None:
    table = two(tmp_path, calls)
    result = fill(table, ["a", "b"], "local", where="a is null and x < 15")
    assert result.rows_computed == 15
    assert called(calls, "a") == list(range(15))
    assert called(calls, "b") == []  # a was no longer null


# --- which rows -----------------------------------------------------------------------------


def test_num_frags_limits_followers_too(tmp_path: Path, calls: CallLog) -> None:
    table = two(tmp_path, calls)
    fill(table, "a", "local", num_frags=1)
    calls.clear()
    tasks_read(table)
    # a takes fragments 1 and 2, b takes 0 and 1: only 1 is read for both.
    result = fill(table, ["a", "b"], "local", num_frags=2)
    assert called(calls, "a") == list(range(10, 30))
    assert called(calls, "b") == list(range(20))
    assert (result.rows_computed, result.rows_replayed, result.fragments_left) == (40, 0, 3)
    assert tasks_read(table) == {0: 1, 1: 1, 2: 1}
    fill(table, ["a", "b"], "local")
    assert called(calls, "b") == list(range(ROWS))
    check(table)


def test_filter_is_shared_too(tmp_path: Path, calls: CallLog, executor: str) -> None:
    table = two(tmp_path, calls)
    table.delete("x in (16, 17)")
    rows = [i for i in range(15, 35) if i not in (16, 17)]
    result = fill(table, ["a", "b"], executor, where="x >= 15 and x < 35")
    assert (result.rows_computed, result.rows_replayed) == (2 * len(rows), 0)
    assert called(calls, "a") == called(calls, "b") == rows
    assert set(tasks_read(table).values()) == {1}
    expected = {i: 3 * i if i in rows else None for i in range(ROWS) if i not in (16, 17)}
    assert pairs(table, "x", "b") == expected
    assert fill(table, ["a", "b"], executor, where="x >= 15 and x < 35").rows_computed == 0


def test_rows_that_only_the_follower_needs(tmp_path: Path, calls: CallLog) -> None:
    table = two(tmp_path, calls)
    fill(table, "a", "local", where="x % 2 = 0")
    calls.clear()
    result = fill(table, ["a", "b"], "local")
    assert (result.rows_computed, result.rows_replayed) == (60, 0)
    assert called(calls, "a") == list(range(1, ROWS, 2))
    assert called(calls, "b") == list(range(ROWS))
    check(table)


def test_large_fragment_is_split_for_all(tmp_path: Path, calls: CallLog, executor: str) -> None:
    table = make_table(tmp_path, rows=ROWS, fragments=1)
    table.add_columns({"a": logged(calls, "a", 2), "b": logged(calls, "b", 3)})
    table = watched(table, CallLog(tmp_path / "reads.log"))
    fill(table, "a", executor, concurrency=2)
    one = tasks_read(table)[0]
    assert one > 1
    table.alter_columns({"path": "a", "udf": logged(calls, "a", 2, version="2")})
    calls.clear()
    result = fill(table, ["a", "b"], executor, concurrency=2)
    assert tasks_read(table)[0] == one
    assert (result.rows_computed, result.rows_replayed) == (2 * ROWS, 0)
    assert called(calls, "a") == called(calls, "b") == list(range(ROWS))
    check(table)


def test_forced_run_computes_each_row_once(tmp_path: Path, calls: CallLog) -> None:
    table = two(tmp_path, calls)
    fill(table, ["a", "b"], "local")
    calls.clear()
    tasks_read(table)
    result = fill(table, ["a", "b"], "local", force=True)
    assert (result.rows_computed, result.rows_overwritten) == (2 * ROWS, 2 * ROWS)
    assert called(calls, "a") == called(calls, "b") == list(range(ROWS))
    assert set(tasks_read(table).values()) == {1}
    assert table.storage.objects.list("force") == []
    check(table)


def test_chain_is_shared_at_each_link(tmp_path: Path, calls: CallLog) -> None:
    table = two(tmp_path, calls)

    @geneva.udf(num_cpus=CPUS)
    def c(a: int) -> int:
        calls(f"c:{a // 2}")
        return a + 1

    @geneva.udf(num_cpus=CPUS)
    def d(a: int) -> int:
        calls(f"d:{a // 2}")
        return a + 2

    table.add_columns({"c": c, "d": d})
    result = fill(table, ["c", "d", "b", "a"], "local")
    assert (result.rows_computed, result.rows_replayed, result.rows_waiting) == (4 * ROWS, 0, 0)
    for name in "abcd":
        assert called(calls, name) == list(range(ROWS))
    assert set(tasks_read(table).values()) == {2}  # x for a and b, a for c and d
    assert column(table, "c") == [2 * i + 1 for i in range(ROWS)]
    assert column(table, "d") == [2 * i + 2 for i in range(ROWS)]
    check(table)


def test_parameters_reach_the_follower(tmp_path: Path, calls: CallLog) -> None:
    table = make_table(tmp_path, rows=ROWS, fragments=FRAGMENTS)

    @geneva.udf(params={"k": 1})
    def a(x: int, k: int) -> int:
        return k * x

    @geneva.udf(params={"k": 1})
    def b(x: int, k: int) -> int:
        calls(f"b:{x}")
        return -k * x

    table.add_columns({"a": a, "b": b})
    fill(table, ["a", "b"], "local", params={"k": 7})
    assert column(table, "b") == [-7 * i for i in range(ROWS)]
    assert called(calls, "b") == list(range(ROWS))


# --- other writers, between the lead's commit and the follower's turn ------------------------


@pytest.mark.parametrize("deleted", [(), (5, 21)])
def test_rows_changed_before_the_followers_turn(
    tmp_path: Path, calls: CallLog, deleted: tuple[int, ...]
) -> None:
    table = two(tmp_path, calls)
    if deleted:
        table.delete(f"x in {deleted}")

    def change(uri: str) -> None:
        other = lance.dataset(uri)
        other.delete("x in (7, 30)")
        other.update({"s": "'new'"}, where="x = 12")

    once = Once(table.storage.uri, str(tmp_path / "once"), change)
    table = geneva.Table(table, storage=MeddledStorage(table.storage.uri, meddle=once))
    result = fill(table, ["a", "b"], "local")
    assert once.ran
    gone = {7, 30, *deleted}
    rows = [i for i in range(ROWS) if i not in gone]
    left = [i for i in rows if i != 12]  # moved away by the update
    found = pairs(table, "x", "b")
    assert {i: found[i] for i in left} == {i: 3 * i for i in left}
    assert found[12] in (None, 36)
    fill(table, ["a", "b"], "local")
    assert pairs(table, "x", "b") == {i: 3 * i for i in rows}
    assert pairs(table, "x", "a") == {i: 2 * i for i in rows}
    assert result.rows_computed == ROWS - len(deleted) + len(rows)
    assert result.rows_replayed == 0
    assert_table_invariants(table, {"a": lambda r: 2 * r["x"], "b": lambda r: 3 * r["x"]})


# --- failures -------------------------------------------------------------------------------


def failing(calls: CallLog, name: str, factor: int, gate: Gate) -> geneva.UDF:
    """Return a UDF that fails on 12 until the gate is open; it logs what it returns."""

    @geneva.udf(num_cpus=CPUS, name=name)
    def fails(x: int) -> int:
        if x == 12 and not gate.is_open:
            calls(f"failed-{name}:12")
            raise ValueError("twelve")
        calls(f"{name}:{x}")
        return factor * x

    return fails


@pytest.mark.parametrize("bad", ["a", "b"], ids=["lead", "follower"])
def test_failure_costs_nothing_that_was_checkpointed(
    tmp_path: Path, calls: CallLog, executor: str, bad: str
) -> None:
    table = make_table(tmp_path, rows=ROWS, fragments=FRAGMENTS)
    gate = Gate(tmp_path / "gate")
    udfs = {n: logged(calls, n, f) for n, f in (("a", 2), ("b", 3)) if n != bad}
    udfs[bad] = failing(calls, bad, {"a": 2, "b": 3}[bad], gate)
    table.add_columns({n: udfs[n] for n in "ab"})
    with pytest.raises(UdfFailedError, match=f"column '{bad}'.*fragment 1, row 2"):
        fill(table, ["a", "b"], executor, batch_size=1)
    whole = column(table, "a") == [2 * i for i in range(ROWS)]
    assert whole == (bad == "b")
    if executor == "local":  # Ray may begin with any fragment, on one applier or on two
        assert set(range(10)) <= set(called(calls, "b"))  # what was shared is kept
    gate.open()
    fill(table, ["a", "b"], executor, batch_size=1)
    assert called(calls, "a") == called(calls, "b") == list(range(ROWS))
    check(table)


def test_failed_rows_of_the_follower_are_reported(
    tmp_path: Path, calls: CallLog, executor: str
) -> None:
    table = make_table(tmp_path, rows=ROWS, fragments=FRAGMENTS, stable=True)
    gate = Gate(tmp_path / "gate")
    table.add_columns({"a": logged(calls, "a", 2), "b": failing(calls, "b", 3, gate)})
    result = fill(table, ["a", "b"], executor, on_error="null")
    assert (result.rows_computed, result.rows_replayed, result.rows_failed) == (80, 0, 1)
    assert calls.counts["failed-b:12"] == 1
    [failure] = result.failures.to_pylist()
    rowid = table.search().where("x = 12").with_row_id(True).to_list()[0]["_rowid"]
    assert (failure["column"], failure["fragment"], failure["row"]) == ("b", 1, 2)
    assert (failure["row_id"], failure["message"]) == (rowid, "twelve")
    assert failure["input"] == "x=12"
    gate.open()
    result = fill(table, ["a", "b"], executor, on_error="null", retry_failed=True)
    assert (result.rows_computed, result.rows_failed) == (1, 0)
    check(table)


@pytest.mark.parametrize("concurrency", [1, 4])
def test_failed_rows_are_tried_once_more_and_not_twice(
    tmp_path: Path, calls: CallLog, concurrency: int
) -> None:
    table = make_table(tmp_path, rows=ROWS, fragments=1)
    gate = Gate(tmp_path / "gate")
    table.add_columns({n: failing(calls, n, 2, gate) for n in "ab"})
    options = {"on_error": "null", "concurrency": concurrency}
    fill(table, ["a", "b"], "local", **options)
    fill(table, ["a", "b"], "local", **options)
    for tries in (2, 3):
        result = fill(table, ["a", "b"], "local", retry_failed=True, **options)
        assert result.rows_failed == 2
        assert calls.counts["failed-a:12"] == calls.counts["failed-b:12"] == tries
    # With force all rows are computed, in spans: then too the failed one is tried once.
    fill(table, ["a", "b"], "local", retry_failed=True, force=True, **options)
    assert calls.counts["failed-a:12"] == calls.counts["failed-b:12"] == 4


def test_follower_that_always_fails_stops_early(tmp_path: Path, calls: CallLog) -> None:
    table = make_table(tmp_path, rows=ROWS, fragments=FRAGMENTS)

    @geneva.udf(num_cpus=CPUS)
    def b(x: int) -> int:
        calls(f"b:{x}")
        raise ValueError("never")

    table.add_columns({"a": logged(calls, "a", 2), "b": b})
    with pytest.raises(TooManyFailuresError):
        fill(table, ["a", "b"], "local", on_error="null", max_failures=3)
    assert column(table, "a") == [2 * i for i in range(ROWS)]
    assert called(calls, "b") == list(range(10))  # one fragment was enough


def test_follower_that_cannot_start_is_left_to_its_own_job(
    tmp_path: Path, calls: CallLog, executor: str
) -> None:
    table = make_table(tmp_path, rows=ROWS, fragments=FRAGMENTS)

    @geneva.udf(num_cpus=CPUS)
    class B:
        def __init__(self) -> None:
            raise RuntimeError("no model here")

        def __call__(self, x: int) -> int:
            return x

    table.add_columns({"a": logged(calls, "a", 2), "b": B()})
    with pytest.raises(GenevaError, match="no model here"):
        fill(table, ["a", "b"], executor)
    assert column(table, "a") == [2 * i for i in range(ROWS)]
    assert called(calls, "a") == list(range(ROWS))


# --- stops and deaths -----------------------------------------------------------------------


def test_pause_while_following(tmp_path: Path, calls: CallLog, executor: str) -> None:
    table = make_table(tmp_path, rows=ROWS, fragments=FRAGMENTS)
    gate = Gate(tmp_path / "gate")

    @geneva.udf(num_cpus=CPUS)
    def b(x: int) -> int:
        calls(f"b:{x}")
        if x == 13:
            gate.wait()
        return 3 * x

    table.add_columns({"a": logged(calls, "a", 2), "b": b})
    job = table.backfill_async(["a", "b"], concurrency=1, batch_size=1, executor=executor)
    until(lambda: 13 in called(calls, "b"))
    job.pause()
    gate.open()
    until(lambda: job.state.value == "PAUSED")
    assert called(calls, "b")[-1] < ROWS - 1
    job.resume()
    result = job.wait(60)
    assert result.rows_computed == 2 * ROWS
    assert called(calls, "a") == called(calls, "b") == list(range(ROWS))
    check(table)


def test_kill_while_following_costs_the_batch_in_flight(tmp_path: Path, calls: CallLog) -> None:
    table = make_table(tmp_path, rows=ROWS, fragments=FRAGMENTS)
    gate = Gate(tmp_path / "gate")

    @geneva.udf(num_cpus=CPUS)
    def b(x: int) -> int:
        if x == 25 and not gate.is_open:
            os.kill(os.getpid(), signal.SIGKILL)
        calls(f"b:{x}")
        return 3 * x

    table.add_columns({"a": logged(calls, "a", 2), "b": b})
    assert run_in_child(table.storage.uri) == -signal.SIGKILL
    killed_at = called(calls, "b")
    assert killed_at == list(range(25))
    assert called(calls, "a")[:25] == list(range(25))
    gate.open()
    table = watched(table, CallLog(tmp_path / "reads.log"))
    result = fill(table, ["a", "b"], "local", batch_size=1)
    assert tasks_read(table) == {2: 1, 3: 1}  # all of 0 and 1 was checkpointed
    assert called(calls, "b") == list(range(ROWS))
    again = Counter(called(calls, "a"))
    assert set(again) == set(range(ROWS))
    assert sum(again.values()) - ROWS <= 1
    assert result.rows_replayed >= 25
    check(table)


def test_worker_that_dies_of_a_follower_is_not_blamed_on_the_lead(
    tmp_path: Path, calls: CallLog, ray_cluster: None
) -> None:
    table = make_table(tmp_path, rows=ROWS, fragments=2)
    gate = Gate(tmp_path / "gate")

    @geneva.udf(num_cpus=CPUS)
    def b(x: int) -> int:
        if x == 5 and not gate.is_open:
            gate.open()
            os.kill(os.getpid(), signal.SIGKILL)
        calls(f"b:{x}")
        return 3 * x

    table.add_columns({"a": logged(calls, "a", 2), "b": b})
    table.delete("x = 1")  # so that the lead's retry reads again, though all is checkpointed
    result = fill(flushing(table), ["a", "b"], "ray", on_error="null", batch_size=1)
    rows = [i for i in range(ROWS) if i != 1]
    assert (result.rows_computed, result.rows_failed) == (2 * len(rows), 0)
    assert called(calls, "b") == rows
    again = Counter(called(calls, "a"))
    assert sum(again.values()) - len(rows) <= 1
    assert pairs(table, "x", "a") == {i: 2 * i for i in rows}
    assert pairs(table, "x", "b") == {i: 3 * i for i in rows}
