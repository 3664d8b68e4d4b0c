"""What ends a forced run, and what the same command does after it."""

from __future__ import annotations

import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import Any

import pytest

import geneva
from geneva.errors import JobCancelledError, JobTimeoutError, UdfFailedError
from geneva.model.types import JobState
from tests.support.backfills import Gate, until, xs
from tests.support.calls import CallLog
from tests.support.tables import assert_table_invariants, make_table

DOUBLED = {"y": lambda row: 2 * row["x"]}
FORCED: dict[str, Any] = {
    "executor": "local",
    "concurrency": 1,
    "batch_size": 1,
    "commit_granularity": 1,
    "force": True,
}
_CHILD = (
    "import sys, geneva\n"
    f"geneva.connect(sys.argv[1]).open_table('t').backfill('y', progress=False, **{FORCED!r})\n"
)


def filled(path: Path, calls: CallLog, fails: Gate) -> geneva.Table:
    table = make_table(path, rows=40, fragments=4)

    @geneva.udf
    def double(x: int) -> int:
        if x == 15 and fails.is_open:
            raise ValueError("not yet mended")
        calls(x)
        time.sleep(0.04)
        return 2 * x

    table.add_columns({"y": double})
    table.backfill("y", executor="local", concurrency=4)
    calls.clear()
    return table


def begun(calls: CallLog) -> Callable[[], bool]:
    return lambda: len(calls) >= 13


def cancel(table: geneva.Table, calls: CallLog, _: Gate) -> None:
    job = table.backfill_async("y", **FORCED)
    until(begun(calls))
    job.cancel()
    with pytest.raises(JobCancelledError, match="same command begins another one"):
        job.wait(60)


def cancel_while_paused(table: geneva.Table, calls: CallLog, _: Gate) -> None:
    job = table.backfill_async("y", **FORCED)
    until(begun(calls))
    job.pause()
    until(lambda: job.state is JobState.PAUSED)
    job.cancel()
    with pytest.raises(JobCancelledError, match="same command begins another one"):
        job.wait(60)


def interrupt(table: geneva.Table, calls: CallLog, _: Gate) -> None:
    errors = in_child(table, calls, signal.SIGINT)
    assert "same command begins another one" in errors


def kill(table: geneva.Table, calls: CallLog, _: Gate) -> None:
    in_child(table, calls, signal.SIGKILL)


def in_child(table: geneva.Table, calls: CallLog, sign: signal.Signals) -> str:
    command = [sys.executable, "-c", _CHILD, str(table.storage.path.parent)]
    child = subprocess.Popen(command, stderr=subprocess.PIPE, text=True)
    try:
        until(lambda: begun(calls)() or child.poll() is not None)
        child.send_signal(sign)
        return child.communicate(timeout=60)[1]
    finally:
        child.kill()


def time_out(table: geneva.Table, _: CallLog, __: Gate) -> None:
    with pytest.raises(JobTimeoutError, match="same command continues"):
        table.backfill("y", timeout=0.9, **FORCED)


def fail(table: geneva.Table, _: CallLog, fails: Gate) -> None:
    fails.open()
    with pytest.raises(UdfFailedError, match="not yet mended"):
        table.backfill("y", **FORCED)
    Path(fails.path).unlink()


def let_go(table: geneva.Table, calls: CallLog, _: Gate) -> None:
    """End a driver as a service does whose job is paused."""
    call = table.prepare_backfill(("y",), FORCED, "paused")

    def work() -> None:
        with suppress(JobCancelledError):
            call.run(lambda _: None)

    driver = threading.Thread(target=work)
    driver.start()
    until(begun(calls))
    call.control.let_go()
    driver.join(60)
    assert not driver.is_alive()


def one_part(table: geneva.Table, _: CallLog, __: Gate) -> None:
    assert table.backfill("y", num_frags=1, **FORCED).fragments_left == 3


@pytest.mark.parametrize("stop", [cancel, cancel_while_paused, interrupt])
@pytest.mark.disk(reason="the other process is given a path")
def test_forced_run_that_a_person_ended_starts_over(
    tmp_path: Path, calls: CallLog, stop: Callable[[geneva.Table, CallLog, Gate], None]
) -> None:
    fails = Gate(tmp_path / "fails")
    table = filled(tmp_path, calls, fails)
    stop(table, calls, fails)
    assert 10 < len(xs(calls)) < 40
    table.checkout_latest()
    plan = table.plan_backfill("y", force=True)
    assert (plan.rows_compute, plan.warnings) == (40, ())
    result = table.backfill("y", **FORCED)
    assert (result.rows_computed, result.rows_replayed, result.notes) == (40, 0, ())
    assert xs(calls) == list(range(40))
    assert_table_invariants(table, DOUBLED)


@pytest.mark.parametrize("stop", [time_out, fail, kill, let_go, one_part])
@pytest.mark.disk(reason="the other process is given a path")
def test_forced_run_that_nobody_ended_goes_on_and_says_so(
    tmp_path: Path, calls: CallLog, stop: Callable[[geneva.Table, CallLog, Gate], None]
) -> None:
    fails = Gate(tmp_path / "fails")
    table = filled(tmp_path, calls, fails)
    stop(table, calls, fails)
    before = xs(calls)
    table.checkout_latest()
    plan = table.plan_backfill("y", force=True)
    done = 40 - plan.rows_compute
    assert done in (10, 20, 30)
    said = f": {done} rows were done by it"
    assert [w for w in plan.warnings if w.startswith("continues the forced run of 20")]
    assert str(plan).endswith(said)
    result = table.backfill("y", **FORCED)
    assert result.rows_computed == 40 - done
    assert any(n.endswith(said) for n in result.notes)
    again = len(before) + len(calls) - 40
    assert 0 <= again <= (1 if stop is kill else 0)  # the row that was in flight
    assert set(before) | set(xs(calls)) == set(range(40))
    assert_table_invariants(table, DOUBLED)
    # It is complete: the same command begins another one.
    plan = table.plan_backfill("y", force=True)
    assert (plan.rows_compute, plan.warnings) == (40, ())


def test_forced_run_that_was_paused_and_resumed_is_complete(tmp_path: Path, calls: CallLog) -> None:
    table = filled(tmp_path, calls, Gate(tmp_path / "fails"))
    job = table.backfill_async("y", **FORCED)
    until(begun(calls))
    job.pause()
    until(lambda: job.state is JobState.PAUSED)
    job.resume()
    assert job.wait(60).rows_computed == 40
    assert xs(calls) == list(range(40))
    assert table.plan_backfill("y", force=True).rows_compute == 40


def test_plan_counts_only_rows_of_the_forced_run_that_it_continues(
    tmp_path: Path, calls: CallLog
) -> None:
    table = filled(tmp_path, calls, Gate(tmp_path / "fails"))
    where = "x % 2 = 0"
    table.backfill("y", where=where, num_frags=1, **FORCED)
    table.backfill("y", num_frags=2, **FORCED)  # another run, of all rows
    plan = table.plan_backfill("y", where=where, force=True)
    # Five more that it selects are as new, by the other run.
    assert plan.rows_compute == 10
    assert plan.warnings[0].endswith(": 5 rows were done by it")
    assert table.plan_backfill("y", force=True).warnings[0].endswith(": 20 rows were done by it")


def test_columns_of_one_forced_call_are_forgotten_together(tmp_path: Path, calls: CallLog) -> None:
    table = make_table(tmp_path, rows=40, fragments=4)

    def logging(name: str) -> geneva.UDF:
        @geneva.udf(name=name)
        def double(x: int) -> int:
            calls(f"{name}{x}")
            time.sleep(0.02)
            return 2 * x

        return double

    table.add_columns({n: logging(n) for n in "ab"})
    result = table.backfill(["a", "b"], **FORCED)
    assert not [n for n in result.notes if "forced" in n]
    calls.clear()
    job = table.backfill_async(["a", "b"], **FORCED)
    until(lambda: len(calls) >= 30)
    assert {k[0] for k in calls.keys} == {"a", "b"}  # b follows a
    job.cancel()
    with pytest.raises(JobCancelledError):
        job.wait(60)
    calls.clear()
    assert table.backfill(["a", "b"], **FORCED).rows_computed == 80
    assert calls.counts == {f"{n}{x}": 1 for n in "ab" for x in range(40)}
