"""What a job says of itself, while it runs and afterwards, is what it does."""

from __future__ import annotations

import os
import time
from pathlib import Path

import pyarrow.compute as pc
import pytest

import geneva
from geneva.errors import JobCancelledError, JobTimeoutError, UdfError, UdfFailedError
from geneva.jobs.backfills import Backfill
from geneva.jobs.progress import _line
from geneva.model.types import JobState, Progress
from tests.support.backfills import CPUS, Gate, run, times, until, xs
from tests.support.calls import CallLog
from tests.support.tables import assert_table_invariants, column, make_table, pairs

DOUBLED = {"y": lambda row: 2 * row["x"]}


# --- texts ----------------------------------------------------------------------------------


def test_result_prints_other_numbers_than_it_holds(tmp_path: Path, calls: CallLog) -> None:
    table = make_table(tmp_path, rows=2000, fragments=4)
    table.add_columns({"y": times(calls)})
    result = run(table, "y", "local", num_frags=3)
    text = str(result)
    assert text.splitlines()[0].startswith("backfill of y: ")
    assert "1,500 in" in text
    assert "fragments committed" in text
    assert "fragments left for the next call" in text
    assert str(result.versions[-1]) in text
    assert "failed" not in text  # what did not happen is not told
    page = result._repr_html_()
    assert page.startswith("<p><b>backfill of y")
    assert "1,500 in" in page
    again = run(table, "y", "local", where="x < 10")
    assert "overwrote" in str(again)


def test_markup_in_names_is_taken_for_html(tmp_path: Path, calls: CallLog) -> None:
    table = make_table(tmp_path, rows=8, fragments=1)
    table.add_columns({"<b>y": times(calls)})
    plan = table.plan_backfill("<b>y", where="s <> '<i>'")
    result = table.backfill("<b>y", where="s <> '<i>'", executor="local")
    for page in (plan._repr_html_(), result._repr_html_()):
        assert "<b>y" not in page.replace("<b>backfill", "")
        assert "&lt;b&gt;y" in page
        assert "<i>" not in page


def test_plan_prints_other_numbers_than_are_computed(tmp_path: Path, calls: CallLog) -> None:
    table = make_table(tmp_path, rows=4000, fragments=4)
    table.add_columns({"y": times(calls)})
    run(table, "y", "local", num_frags=1)
    version = table.storage.open().version
    plan = table.plan_backfill("y", num_frags=2)
    assert table.storage.open().version == version
    assert (plan.rows_compute, len(plan.to_compute)) == (2000, 2)
    lines = str(plan).splitlines()
    assert "2,000 of 4,000 rows in 2 of 4 fragments" in lines[0]
    assert f"version {version}" in lines[0]
    rows = {line.split()[0]: line.split()[1:] for line in lines[3:]}
    assert rows["compute"] == ["2", "2,000", "2,000", "missing"]
    assert rows["later"][0] == "1"
    assert rows["skip"][:3] == ["1", "1,000", "0"]
    page = plan._repr_html_()
    assert page.count("<tr>") == 4
    assert "up to date" in page
    assert len(xs(calls)) == 1000  # nothing ran but the first call


def test_plan_with_a_filter_guesses(tmp_path: Path, calls: CallLog) -> None:
    table = make_table(tmp_path, rows=40, fragments=4)
    table.add_columns({"y": times(calls)})
    plan = table.plan_backfill("y", where="x % 10 = 3 and x < 30")
    assert plan.rows_compute == 3
    assert [f.rows_compute for f in plan.fragments] == [1, 1, 1, 0]
    assert "where x % 10 = 3 and x < 30" in str(plan)


def test_coverage_prints_other_numbers_than_it_holds(tmp_path: Path, calls: CallLog) -> None:
    table = make_table(tmp_path, rows=40, fragments=4)
    table.add_columns({"y": times(calls)})
    run(table, "y", "local", where="x < 15")
    table.delete("x = 0")
    found = table.coverage("y")
    assert found.table["computed"].to_pylist() == [9, 5, 0, 0]
    assert found.table["missing"].to_pylist() == [0, 5, 10, 10]
    assert "35.9% of 39 rows in 4 fragments" in str(found)


def test_failures_do_not_say_which_row(tmp_path: Path, executor: str) -> None:
    table = make_table(tmp_path, rows=40, fragments=4)

    @geneva.udf(num_cpus=CPUS)
    def y(x: int, s: str) -> int:
        if x in (7, 33):
            raise KeyError(f"lost {x}")
        return x

    table.add_columns({"y": y})
    result = run(table, "y", executor, on_error="null")
    failures = result.failures.to_pylist()
    assert [(f["column"], f["fragment"], f["row"]) for f in failures] == [("y", 0, 7), ("y", 3, 3)]
    assert failures[0]["input"] == "x=7, s='b7'"
    assert (failures[0]["error"], failures[0]["message"]) == ("KeyError", "'lost 7'")
    assert "raise KeyError" in failures[0]["traceback"]
    assert failures[0]["attempts"] == 1
    assert [f["row_id"] for f in failures] == [7, (3 << 32) + 3]
    assert result.rows_failed == 2
    assert "of them failed" in str(result)
    empty = run(table, "y", executor)
    assert empty.failures.num_rows == 0
    assert empty.failures.schema == result.failures.schema


def test_failure_with_stable_row_ids_names_an_address(tmp_path: Path) -> None:
    table = make_table(tmp_path, rows=40, fragments=4, stable=True)

    @geneva.udf
    def y(x: int) -> int:
        if x == 33:
            raise ValueError("no")
        return x

    table.add_columns({"y": y})
    result = run(table, "y", "local", on_error="null")
    [row_id] = result.failures["row_id"].to_pylist()
    found = table.to_lance().to_table(columns=["x"], with_row_id=True).to_pylist()
    assert {r["_rowid"]: r["x"] for r in found}.get(row_id) == 33


def test_error_does_not_say_what_failed_where(tmp_path: Path, executor: str) -> None:
    table = make_table(tmp_path, rows=40, fragments=4)

    @geneva.udf(num_cpus=CPUS)
    def y(x: int) -> int:
        if x == 23:
            raise KeyError("the cause")
        return x

    table.add_columns({"y": y})
    with pytest.raises(UdfFailedError) as caught:
        table.backfill("y", executor=executor, concurrency=1)
    text = str(caught.value)
    for part in ("column 'y'", "UDF 'y'", "fragment 2, row 3", "x=23", "KeyError", "the cause"):
        assert part in text
    notes = "".join(caught.value.__notes__)
    assert 'raise KeyError("the cause")' in notes


# --- progress -------------------------------------------------------------------------------


def test_progress_counts_what_is_not_there(tmp_path: Path, calls: CallLog, executor: str) -> None:
    table = make_table(tmp_path, rows=40, fragments=4)
    gate = Gate(tmp_path / "gate")

    @geneva.udf(num_cpus=CPUS)
    def y(x: int) -> int:
        calls(x)
        if x >= 25:
            gate.wait()
        return 2 * x

    table.add_columns({"y": y})
    job = table.backfill_async(
        "y", executor=executor, concurrency=1, batch_size=1, commit_granularity=1
    )
    until(lambda: job.progress().fragments_committed == 2)
    until(lambda: job.progress().rows_computed == 25)
    seen = job.progress()
    assert (seen.rows_total, seen.fragments_total, seen.fragments_done) == (40, 4, 2)
    assert (seen.appliers_ready, seen.appliers_wanted) == (1, 1)
    assert seen.state == job.state == JobState.RUNNING
    assert seen.rows_per_s > 0
    assert seen.eta_s is not None
    assert job.id in repr(job)
    with pytest.raises(TimeoutError, match="still RUNNING"):
        job.wait(0.05)
    gate.open()
    result = job.wait(60)
    last = job.progress()
    assert (last.rows_computed, last.fragments_committed, last.rows_failed) == (40, 4, 0)
    assert last.state == job.state == JobState.SUCCEEDED
    assert result.job_id == job.id
    assert_table_invariants(table, DOUBLED)


@pytest.mark.parametrize(("num_frags", "total"), [(None, 30), (3, 15)])
def test_filtered_job_estimates_its_total_from_the_first_fragment_on(
    tmp_path: Path, calls: CallLog, num_frags: int | None, total: int
) -> None:
    table = make_table(tmp_path, rows=60, fragments=6)
    gate = Gate(tmp_path / "gate")

    @geneva.udf
    def y(x: int) -> int:
        if x >= 10:
            gate.wait()
        return 2 * x

    table.add_columns({"y": y})
    seen: list[Progress] = []

    def see(progress: Progress) -> None:
        seen.append(progress)
        if progress.rows_total is not None:
            gate.open()

    settings = {"where": "x % 2 = 0", "num_frags": num_frags, "progress": see}
    table.backfill("y", executor="local", concurrency=1, **settings)
    first = next(p for p in seen if p.rows_total is not None)
    assert (first.rows_total, first.total_estimated) == (total, True)
    assert f"{first.rows_computed}/about {total} rows" in _line(first)
    assert (seen[-1].rows_total, seen[-1].total_estimated) == (total, False)
    assert "100%" in _line(seen[-1])
    assert not any("100%" in _line(p) for p in seen if p.total_estimated)


def test_progress_goes_backwards_or_misses_the_end(tmp_path: Path, calls: CallLog) -> None:
    table = make_table(tmp_path, rows=400, fragments=8)

    @geneva.udf
    def y(x: int) -> int:
        time.sleep(0.001)
        return 2 * x

    table.add_columns({"y": y})
    seen: list[Progress] = []
    table.backfill("y", executor="local", concurrency=2, commit_granularity=2, progress=seen.append)
    for name in ("rows_computed", "fragments_committed", "fragments_done", "seconds"):
        numbers = [getattr(p, name) for p in seen]
        assert numbers == sorted(numbers), name
    assert seen[0].state == JobState.STARTING
    assert (seen[-1].state, seen[-1].rows_computed) == (JobState.SUCCEEDED, 400)
    assert {p.rows_total for p in seen[1:]} == {400}


def test_silent_call_prints(
    tmp_path: Path, calls: CallLog, capfd: pytest.CaptureFixture[str]
) -> None:
    table = make_table(tmp_path, rows=40, fragments=4)
    table.add_columns({"y": times(calls)})
    run(table, "y", "local")
    run(table, "y", "local", force=True, progress=False)
    out = capfd.readouterr()
    assert (out.out, out.err) == ("", "")
    run(table, "y", "local", force=True, progress=True)
    out = capfd.readouterr()
    assert out.out == ""
    assert "geneva: y: 40/40 rows 100%" in out.err


# --- jobs -----------------------------------------------------------------------------------


def slow(calls: CallLog, gate: Gate) -> geneva.UDF:
    @geneva.udf(num_cpus=CPUS, batch_size=1)
    def y(x: int) -> int:
        calls(x)
        if not gate.is_open:
            time.sleep(0.05)
        return 2 * x

    return y


def test_paused_job_goes_on_or_begins_again(tmp_path: Path, calls: CallLog, executor: str) -> None:
    table = make_table(tmp_path, rows=40, fragments=4)
    gate = Gate(tmp_path / "gate")
    table.add_columns({"y": slow(calls, gate)})
    job = table.backfill_async("y", executor=executor, concurrency=1)
    until(lambda: len(calls) >= 13)
    job.pause()
    until(lambda: job.state == JobState.PAUSED)
    before = len(calls)
    visible = [v for v in column(table, "y") if v is not None]
    assert len(visible) in (10, 20)  # finished fragments are visible, no part of one is
    time.sleep(0.3)
    assert len(calls) == before
    gate.open()
    job.resume()
    result = job.wait(60)
    assert result.rows_computed == 40
    assert set(calls.counts.values()) == {1}
    assert_table_invariants(table, DOUBLED)
    assert column(table, "y") == [2 * i for i in range(40)]


def test_paused_num_frags_job_takes_more_than_it_may(tmp_path: Path, calls: CallLog) -> None:
    table = make_table(tmp_path, rows=40, fragments=4)
    gate = Gate(tmp_path / "gate")
    table.add_columns({"y": slow(calls, gate)})
    job = table.backfill_async("y", executor="local", concurrency=1, num_frags=2)
    until(lambda: len(calls) >= 13)
    job.pause()
    until(lambda: job.state == JobState.PAUSED)
    gate.open()
    job.resume()
    assert job.wait(60).fragments_committed == 2
    assert xs(calls) == list(range(20))


def test_cancelled_job_loses_work_or_goes_on(tmp_path: Path, calls: CallLog, executor: str) -> None:
    table = make_table(tmp_path, rows=40, fragments=4)
    gate = Gate(tmp_path / "gate")
    table.add_columns({"y": slow(calls, gate)})
    job = table.backfill_async("y", executor=executor, concurrency=1)
    until(lambda: len(calls) >= 13)
    job.cancel()
    with pytest.raises(JobCancelledError, match=r"cancelled after .* the same command continues"):
        job.wait(60)
    assert job.state == JobState.CANCELLED
    job.resume()  # too late: nothing happens
    assert len([v for v in column(table, "y") if v is not None]) in (10, 20)
    before = len(calls)
    gate.open()
    result = run_again(table, executor)
    assert len(calls) == 40
    assert set(calls.counts.values()) == {1}
    assert result.rows_replayed == before - 10 * (before // 10)
    assert_table_invariants(table, DOUBLED)


def test_rows_at_an_interrupt_are_those_that_the_next_call_finds(
    tmp_path: Path, calls: CallLog, executor: str
) -> None:
    table = make_table(tmp_path, rows=40, fragments=4)
    gate = Gate(tmp_path / "gate")
    table.add_columns({"y": slow(calls, gate)})
    seen: list[Progress] = []

    def interrupting(progress: Progress) -> None:
        seen.append(progress)
        if progress.state == JobState.RUNNING and progress.rows_computed >= 13:
            raise KeyboardInterrupt

    with pytest.raises(JobCancelledError, match="interrupted after") as caught:
        table.backfill("y", executor=executor, concurrency=2, progress=interrupting)
    last = max((p for p in seen if p.state == JobState.CANCELLING), key=lambda p: p.rows_computed)
    assert f"after {last.rows_computed} rows" in str(caught.value)
    assert f"{last.rows_computed}/40 rows" in _line(last)
    kept = len([v for v in column(table, "y") if v is not None])
    gate.open()
    result = run_again(table, executor)
    kept += result.rows_replayed
    assert last.rows_computed <= kept <= last.rows_computed + 2  # a call of each applier
    assert len(calls) == kept + result.rows_computed - result.rows_replayed
    assert set(calls.counts.values()) == {1}


def test_cancel_is_lost_while_the_udf_is_loaded(
    tmp_path: Path, calls: CallLog, executor: str
) -> None:
    table = make_table(tmp_path, rows=40, fragments=1)
    loading = CallLog(tmp_path / "loading.log")

    @geneva.udf(num_cpus=CPUS, batch_size=1)
    class Model:
        def __init__(self) -> None:
            loading("model")
            time.sleep(1.0)

        def __call__(self, x: int) -> int:
            calls(x)
            time.sleep(0.05)
            return x

    table.add_columns({"y": Model})
    job = table.backfill_async("y", executor=executor, concurrency=1)
    until(lambda: len(loading) == 1)
    job.cancel()
    with pytest.raises(JobCancelledError):
        job.wait(60)
    assert len(calls) == 0


def run_again(table: geneva.Table, executor: str) -> geneva.BackfillResult:
    return table.backfill("y", executor=executor, concurrency=1)


def test_paused_job_cannot_be_cancelled(tmp_path: Path, calls: CallLog) -> None:
    table = make_table(tmp_path, rows=40, fragments=4)
    table.add_columns({"y": slow(calls, Gate(tmp_path / "gate"))})
    job = table.backfill_async("y", executor="local", concurrency=1)
    until(lambda: len(calls) >= 3)
    job.pause()
    until(lambda: job.state == JobState.PAUSED)
    job.cancel()
    with pytest.raises(JobCancelledError):
        job.wait(30)
    assert job.state == JobState.CANCELLED


def test_timeout_stops_only_the_waiting(tmp_path: Path, calls: CallLog, executor: str) -> None:
    table = make_table(tmp_path, rows=400, fragments=4)
    table.add_columns({"y": slow(calls, Gate(tmp_path / "gate"))})
    began = time.monotonic()
    with pytest.raises(JobTimeoutError, match=r"stopped by timeout=1\.5 s"):
        table.backfill("y", executor=executor, concurrency=1, timeout=1.5)
    assert time.monotonic() - began < 12
    seen = len(calls)
    time.sleep(0.3)
    assert len(calls) == seen


def test_job_that_failed_says_it_runs(tmp_path: Path, executor: str) -> None:
    table = make_table(tmp_path, rows=40, fragments=4)

    @geneva.udf(num_cpus=CPUS)
    def y(x: int) -> int:
        raise ValueError("always")

    table.add_columns({"y": y})
    job = table.backfill_async("y", executor=executor, concurrency=1)
    with pytest.raises(UdfFailedError, match="always"):
        job.wait(60)
    assert job.state == JobState.FAILED
    assert column(table, "y") == [None] * 40


def test_two_columns_report_as_one_job(tmp_path: Path, calls: CallLog) -> None:
    table = make_table(tmp_path, rows=40, fragments=4)
    table.add_columns({"y": times(calls), "z": times(calls, 3, input_columns=["y"])})
    job = table.backfill_async(["y", "z"], executor="local")
    result = job.wait(60)
    assert result.columns == ("y", "z")
    assert result.rows_computed == 80
    assert len(result.versions) == 2
    assert "backfill of y, z" in str(result)
    assert pc.sum(table.to_arrow()["z"]).as_py() == sum(6 * i for i in range(40))


def test_interrupt_behind_the_first_of_two_columns_tells_the_rows_of_both(
    tmp_path: Path, calls: CallLog
) -> None:
    table = make_table(tmp_path, rows=40, fragments=4)
    gate = Gate(tmp_path / "gate")
    table.add_columns({"y": times(calls)})
    table.add_columns({"z": (slow(calls, gate), ["y"])})
    seen: dict[tuple[str, ...], Progress] = {}

    def interrupting(progress: Progress) -> None:
        seen[progress.columns] = progress
        running = progress.state == JobState.RUNNING
        if progress.columns == ("z",) and running and progress.rows_computed >= 13:
            raise KeyboardInterrupt

    with pytest.raises(JobCancelledError, match="interrupted after") as caught:
        table.backfill(["y", "z"], executor="local", progress=interrupting)
    rows = {columns: progress.rows_computed for columns, progress in seen.items()}
    assert f"'z' was interrupted after {rows['z',]} rows" in str(caught.value)
    assert f"before that, {rows['y',]} rows of 'y'" in str(caught.value)
    kept = len([v for v in column(table, "z") if v is not None])
    gate.open()
    result = table.backfill(["y", "z"], executor="local")
    assert kept + result.rows_computed == 40
    assert rows["z",] <= kept + result.rows_replayed <= rows["z",] + 8  # a call of each applier


def test_interrupt_between_two_columns_is_one_cancelled_job(
    tmp_path: Path, calls: CallLog, monkeypatch: pytest.MonkeyPatch
) -> None:
    table = make_table(tmp_path, rows=40, fragments=4)
    table.add_columns({"y": times(calls), "z": times(calls, 3, input_columns=["y"])})

    def interrupted(*_: object) -> None:
        raise KeyboardInterrupt

    with monkeypatch.context() as patched:
        patched.setattr(Backfill, "_request_again", interrupted)
        job = table.backfill_async(["y", "z"], executor="local")
        with pytest.raises(JobCancelledError, match="interrupted after 40 rows of 'y'"):
            job.wait(60)
    assert job.state == "CANCELLED"
    assert table.backfill(["y", "z"], executor="local").rows_computed == 40


def test_second_interrupt_throws_away_what_was_finished_and_leaves_the_appliers_running(
    tmp_path: Path, calls: CallLog, executor: str
) -> None:
    table = make_table(tmp_path, rows=40, fragments=4)
    gate = Gate(tmp_path / "gate")

    @geneva.udf(num_cpus=1)
    def double(x: int) -> int:
        calls(x)
        if x >= 20:
            gate.wait()
        return 2 * x

    table.add_columns({"y": double, "z": times(calls, 3)})

    def impatient(progress: Progress) -> None:
        held = {"20", "30"} <= set(calls.keys) and progress.fragments_done == 2
        if progress.state == JobState.CANCELLING or (progress.state == JobState.RUNNING and held):
            raise KeyboardInterrupt

    with pytest.raises(JobCancelledError, match="interrupted") as caught:
        table.backfill("y", executor=executor, concurrency=2, progress=impatient)
    assert pairs(table, "x", "y") == {x: 2 * x if x < 20 else None for x in range(40)}
    assert table.backfill("z", executor=executor, timeout=60).rows_computed == 40
    gate.open()
    assert caught.value.__traceback__  # it holds what raised it, as a notebook's last one does


@pytest.mark.ray
def test_appliers_that_cannot_begin_throw_away_what_others_finished(
    tmp_path: Path, calls: CallLog, ray_cluster: None
) -> None:
    (tmp_path / "waiting").mkdir()

    @geneva.udf(num_cpus=CPUS)
    class Licensed:
        def __init__(self) -> None:
            try:
                (tmp_path / "licence").touch(exist_ok=False)
            except FileExistsError:
                (tmp_path / "waiting" / str(os.getpid())).touch()
                until(lambda: len(list((tmp_path / "waiting").iterdir())) == 2 and len(calls) > 12)
                raise RuntimeError("no licence") from None

        def __call__(self, x: int) -> int:
            calls(x)
            time.sleep(0.1)
            return 2 * x

    table = make_table(tmp_path, rows=80, fragments=16)
    table.add_columns({"y": Licensed})
    with pytest.raises(UdfError, match="RuntimeError: no licence"):
        table.backfill("y", executor="ray", concurrency=3)
    done = [v for v in column(table, "y") if v is not None]
    assert 10 <= len(done) <= len(calls)
