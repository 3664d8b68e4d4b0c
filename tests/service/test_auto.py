"""Columns that are kept filled: a run when there is something to do, one, and none otherwise."""

from __future__ import annotations

import datetime as dt
import multiprocessing
import os
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pyarrow as pa
import pytest
from sqlalchemy import text

import geneva
from geneva.column.auto import auto_of
from geneva.engine.control import Wanted
from geneva.engine.process import this_process
from geneva.errors import SettingError
from geneva.jobs.page import Wish
from geneva.jobs.records import RunRecord
from geneva.jobs.run_outcome import result_columns
from geneva.jobs.store import watches
from geneva.jobs.store.leases import Leases
from geneva.jobs.store.queue import claim
from geneva.jobs.store.store import Store
from geneva.jobs.store.watches import Watches
from geneva.model.types import JobState, Progress
from geneva.service.service_settings import Settings
from geneva.service.watcher import Watcher
from geneva.table import Table
from tests.support.backfills import until
from tests.support.calls import CallLog
from tests.support.services import Service
from tests.support.tables import column, make_table

AT_ONCE = {"debounce": "0s", "arguments": {"executor": "local"}}


@pytest.fixture
def table(tmp_path: Path, calls: CallLog) -> Table:
    """x -> y = 2 * x, kept filled; 40 rows in 4 fragments, none computed."""
    made = make_table(tmp_path / "db", rows=40, fragments=4)
    made.add_columns({"y": doubling(calls)}, auto_backfill=AT_ONCE)
    return made


def doubling(calls: CallLog, factor: int = 2) -> geneva.UDF:
    @geneva.udf(name="doubling")
    def multiply(x: int) -> int:
        calls(x)
        return factor * x

    return multiply


def settings(jobs: Store, db: Path) -> Settings:
    return Settings(jobs.database.url, db.parent / "state", db=str(db))


@pytest.fixture
def watcher(jobs: Store, tmp_path: Path) -> Watcher:
    return Watcher(settings(jobs, tmp_path / "db"))


def runs(jobs: Store) -> list[RunRecord]:
    return list(jobs.runs(Wish(sort="created")).items)


def only_run(jobs: Store, *states: str) -> RunRecord:
    [run] = [r for r in runs(jobs) if not states or r.state in states]
    return run


def finish(jobs: Store, table: Table, run: RunRecord) -> None:
    """Do what a driver does."""
    [claimed] = claim(jobs.database, this_process())
    assert claimed.job_id == run.jobs[0].id
    result = table.backfill(list(run.columns), progress=False, **run.jobs[0].arguments)
    counts = Progress(claimed.job_id, run.columns, JobState.RUNNING, rows_computed=1)
    facts = result_columns(result, 1)
    Leases(jobs.database).finish(claimed, counts, JobState.SUCCEEDED, "", facts)


def end(jobs: Store, state: JobState, reason: str = "") -> None:
    """Let a driver end without having done anything."""
    [claimed] = claim(jobs.database, this_process())
    nothing = Progress(claimed.job_id, (), JobState.RUNNING)
    Leases(jobs.database).finish(claimed, nothing, state, reason)


def append(table: Table, first: int, rows: int = 10) -> None:
    table.add(pa.table({"x": pa.array(range(first, first + rows), pa.int64()), "s": ["s"] * rows}))


def filled(jobs: Store, table: Table, watcher: Watcher) -> int:
    """Bring the table to where nothing is left to do; return its version."""
    watcher.look()
    finish(jobs, table, only_run(jobs))
    for _ in range(3):
        watcher.look()
    assert len(runs(jobs)) == 1
    return int(table.storage.open().version)


def test_new_rows_are_the_cause_of_one_run(jobs: Store, table: Table, watcher: Watcher):
    watcher.look()
    first = only_run(jobs)
    assert (first.cause, first.state) == ("auto: 40 rows to fill", "QUEUED")
    version = filled(jobs, table, watcher)
    append(table, 100, 7)
    append(table, 200, 5)
    for _ in range(3):
        watcher.look()
    run = only_run(jobs, "QUEUED")
    assert run.cause == f"auto: 12 new rows since version {version}"
    assert (run.name, run.jobs[0].arguments) == ("auto", {"executor": "local"})
    assert jobs.events(run.id).items[0].message == run.cause


def test_burst_of_appends_is_one_run(jobs: Store, tmp_path: Path, calls: CallLog):
    table = make_table(tmp_path / "db", rows=10, fragments=1)
    table.add_columns({"y": doubling(calls)}, auto_backfill=AT_ONCE | {"debounce": "1h"})
    watcher = Watcher(settings(jobs, tmp_path / "db"))
    for k in range(5):
        append(table, 100 * k)
        watcher.look()
        assert runs(jobs) == []
    [known] = watcher._known.values()
    known.changed_at -= 3600  # an hour of quiet
    watcher.look()
    assert only_run(jobs).cause == "auto: 60 rows to fill"


def test_table_that_never_keeps_still_is_not_put_off_for_ever(
    jobs: Store, table: Table, watcher: Watcher
):
    table.alter_columns({"path": "y", "auto_backfill": AT_ONCE | {"debounce": "1h"}})
    watcher.look()
    watcher._known["t"].restless_since -= 36_000
    append(table, 100)
    watcher.look()
    assert only_run(jobs).cause == "auto: 50 rows to fill"


def test_own_commits_and_other_columns_are_the_cause_of_nothing(
    jobs: Store, table: Table, watcher: Watcher, monkeypatch: pytest.MonkeyPatch
):
    filled(jobs, table, watcher)
    table.unwrap().add_columns({"other": "x + 1"})
    table.unwrap().optimize()
    for _ in range(3):
        watcher.look()
    assert len(runs(jobs)) == 1


def test_table_that_did_not_change_is_not_planned_and_not_opened(
    jobs: Store, table: Table, watcher: Watcher, monkeypatch: pytest.MonkeyPatch
):
    filled(jobs, table, watcher)
    monkeypatch.setattr("geneva.service.admission.Admitted.plan", lambda *_: pytest.fail("planned"))
    monkeypatch.setattr("geneva.storage.lance.TableStorage.open", lambda *_: pytest.fail("opened"))
    monkeypatch.setattr(Watches, "look", lambda *_: pytest.fail("asked the database"))
    for _ in range(5):
        watcher.look()


def test_restart_does_not_plan_what_was_settled(jobs: Store, table: Table, watcher: Watcher):
    filled(jobs, table, watcher)
    again = Watcher(settings(jobs, Path(table.storage.uri).parent))
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("geneva.service.admission.Admitted.plan", lambda *_: pytest.fail("planned"))
        again.look()
        again.look()
    assert len(runs(jobs)) == 1


def test_udf_and_inputs_that_changed(jobs: Store, table: Table, watcher: Watcher, calls: CallLog):
    filled(jobs, table, watcher)
    table.alter_columns({"path": "y", "udf": doubling(calls, 3)})
    watcher.look()
    run = only_run(jobs, "QUEUED")
    assert run.cause == "auto: UDF changed (40 rows)"
    finish(jobs, table, run)
    watcher.look()
    table.update(where="x < 10", values={"x": 1000})
    watcher.look()
    watcher.look()
    run = only_run(jobs, "QUEUED")
    assert run.cause == "auto: input column x changed (10 rows)"
    finish(jobs, table, run)
    watcher.look()
    made = table.merge_insert("s").when_not_matched_insert_all().when_matched_update_all()
    made.execute(pa.table({"x": [7, 8], "s": ["a12", "zz"], "y": pa.array([None] * 2, pa.int64())}))
    watcher.look()
    watcher.look()
    assert only_run(jobs, "QUEUED").cause == "auto: input column x changed (2 rows)"


def test_column_of_a_column_follows_it(jobs: Store, table: Table, watcher: Watcher, calls: CallLog):
    @geneva.udf
    def plus_one(y: int) -> int:
        return y + 1

    table.add_columns({"z": plus_one}, auto_backfill=AT_ONCE)
    watcher.look()
    first = only_run(jobs)
    assert first.columns == ("y",)
    finish(jobs, table, first)
    watcher.look()
    watcher.look()
    second = only_run(jobs, "QUEUED")
    assert (second.columns, second.cause) == (("z",), "auto: 40 new rows since version 3")
    finish(jobs, table, second)
    watcher.look()
    watcher.look()
    assert len(runs(jobs)) == 2
    assert column(table, "z") == [2 * x + 1 for x in range(40)]


def test_run_that_is_there_already_is_not_joined_by_another(
    jobs: Store, table: Table, watcher: Watcher
):
    asked = watcher._submission  # the same column, submitted by hand
    watcher._look_at(geneva.connect(watcher._db), "t")
    jobs.want(only_run(jobs).id, Wanted.CANCEL)
    [known] = watcher._known.values()
    [col] = known.columns.values()
    mine = jobs.submit(asked(col, "by hand"), col.watched.table_uri, ["y"])
    append(table, 100)
    watcher.look()
    watcher.look()
    assert [r.id for r in runs(jobs) if not r.state.ended] == [mine.id]
    jobs.want(mine.id, Wanted.PAUSE)  # also while it waits for somebody
    append(table, 200)
    watcher.look()
    watcher.look()
    assert len(runs(jobs)) == 2


def test_two_schedulers_make_one_run(jobs: Store, table: Table, watcher: Watcher, tmp_path: Path):
    other = Watcher(settings(jobs, tmp_path / "db"))
    real = Watches.submit

    def second(self: Watches, look: Any, *rest: Any) -> Any:
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(Watches, "submit", real)
            other.look()  # while the first one has decided and not yet submitted
        return real(self, look, *rest)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(Watches, "submit", second)
        watcher.look()
    run = only_run(jobs)
    finish(jobs, table, run)
    for _ in range(3):
        watcher.look()
        other.look()
    assert len(runs(jobs)) == 1


def test_decision_on_what_was_done_meanwhile_is_void(
    jobs: Store, table: Table, watcher: Watcher, tmp_path: Path
):
    """The other scheduler's run may even have ended before this one submits."""
    other = Watcher(settings(jobs, tmp_path / "db"))
    real = Watches.submit

    def late(self: Watches, look: Any, *rest: Any) -> Any:
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(Watches, "submit", real)
            other.look()
            finish(jobs, table, only_run(jobs))
        return real(self, look, *rest)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(Watches, "submit", late)
        watcher.look()
    assert only_run(jobs).state == "SUCCEEDED"


def test_failing_udf_backs_off(jobs: Store, table: Table, watcher: Watcher, calls: CallLog):
    for n, wait_s in enumerate((60, 120, 240), 1):
        watcher.look()
        assert len(runs(jobs)) == n
        end(jobs, JobState.FAILED, "the UDF failed on row 3")
        for _ in range(3):
            watcher.look()
        assert len(runs(jobs)) == n
        [watched] = Watches(jobs.database).all()
        assert (watched.failures, watched.run_id) == (n, runs(jobs)[-1].id)
        assert watched.reason.endswith("failed: the UDF failed on row 3")
        ended = runs(jobs)[-1].ended_at
        assert abs((watched.not_before - ended).total_seconds() - wait_s) < 30
        append(table, 1000 * n)  # what arrives meanwhile waits too
        watcher.look()
        watcher.look()
        assert len(runs(jobs)) == n
        sleep_over(jobs, watcher)
    table.alter_columns({"path": "y", "udf": doubling(calls, 5)})  # somebody mended it
    watcher.look()
    end(jobs, JobState.FAILED)
    watcher.look()
    table.alter_columns({"path": "y", "udf": doubling(calls, 6)})
    watcher.look()
    watcher.look()
    assert runs(jobs)[-1].state == "QUEUED"


def sleep_over(jobs: Store, watcher: Watcher) -> None:
    """Let all that waits be due."""
    with jobs.database.write() as session:
        session.execute(text("UPDATE watches SET not_before_s = 0"))
    for known in watcher._known.values():
        for watched in known.columns.values():
            watched.look_at = 0.0


def test_run_that_computes_nothing_is_not_made_again(jobs: Store, table: Table, watcher: Watcher):
    watcher.look()
    end(jobs, JobState.SUCCEEDED)
    for _ in range(5):
        watcher.look()
    assert len(runs(jobs)) == 1
    append(table, 100)
    watcher.look()
    watcher.look()
    assert len(runs(jobs)) == 2


def test_run_that_was_cancelled_waits_for_the_next_change(
    jobs: Store, table: Table, watcher: Watcher
):
    watcher.look()
    jobs.want(only_run(jobs).id, Wanted.CANCEL)
    for _ in range(3):
        watcher.look()
    again = Watcher(settings(jobs, Path(table.storage.uri).parent))
    again.look()
    assert len(runs(jobs)) == 1
    append(table, 100)
    watcher.look()
    watcher.look()
    assert len(runs(jobs)) == 2


def test_rest_that_a_run_left_is_taken_by_the_next(jobs: Store, table: Table, watcher: Watcher):
    arguments = {"executor": "local", "num_frags": 3}
    table.alter_columns({"path": "y", "auto_backfill": AT_ONCE | {"arguments": arguments}})
    watcher.look()
    finish(jobs, table, only_run(jobs))
    watcher.look()
    watcher.look()
    finish(jobs, table, only_run(jobs, "QUEUED"))
    for _ in range(3):
        watcher.look()
    assert len(runs(jobs)) == 2
    assert column(table, "y") == [2 * x for x in range(40)]


def test_column_that_nobody_wants_kept_filled_any_more(
    jobs: Store, table: Table, watcher: Watcher, calls: CallLog
):
    filled(jobs, table, watcher)
    table.alter_columns({"path": "y", "auto_backfill": False})
    append(table, 100)
    watcher.look()
    watcher.look()
    assert len(runs(jobs)) == 1
    assert Watches(jobs.database).all() == []
    table.alter_columns({"path": "y", "auto_backfill": AT_ONCE})
    table.drop_columns(["y"])
    watcher.look()
    watcher.look()
    assert len(runs(jobs)) == 1
    table.add_columns({"y": doubling(calls)})  # another one of the same name
    watcher.look()
    watcher.look()
    assert len(runs(jobs)) == 1


def test_schedule(jobs: Store, table: Table, watcher: Watcher):
    table.alter_columns({"path": "y", "auto_backfill": AT_ONCE | {"schedule": "0 3 * * *"}})
    watcher.look()
    watcher.look()
    assert runs(jobs) == []
    act_upon(jobs, watcher, days_ago=2)  # the service was away for two nights: that is one run
    watcher.look()
    run = only_run(jobs)
    assert run.cause == "auto: schedule 0 3 * * *; 40 rows to fill"
    finish(jobs, table, run)
    append(table, 100)
    watcher.look()
    watcher.look()
    assert len(runs(jobs)) == 1
    [watched] = Watches(jobs.database).all()
    assert (watched.schedule, watched.run_id) == ("0 3 * * *", run.id)
    act_upon(jobs, watcher, days_ago=1)
    watcher.look()
    finish(jobs, table, only_run(jobs, "QUEUED"))
    act_upon(jobs, watcher, days_ago=1)
    watcher.look()
    watcher.look()
    assert len(runs(jobs)) == 2  # nothing to do is no run, and the moment is past


def test_schedule_counts_from_its_declaration(jobs: Store, table: Table, watcher: Watcher):
    filled(jobs, table, watcher)
    act_upon(jobs, watcher, days_ago=2)
    table.alter_columns({"path": "y", "auto_backfill": AT_ONCE | {"schedule": "0 3 * * *"}})
    append(table, 100)
    for _ in range(3):
        watcher.look()
    assert len(runs(jobs)) == 1
    act_upon(jobs, watcher, days_ago=1)
    watcher.look()
    assert len(runs(jobs)) == 2


def test_interval_begins_with_a_run(jobs: Store, table: Table, watcher: Watcher):
    table.alter_columns({"path": "y", "auto_backfill": AT_ONCE | {"schedule": "15m"}})
    watcher.look()
    run = only_run(jobs)
    assert run.cause == "auto: schedule 15m; 40 rows to fill"
    finish(jobs, table, run)
    append(table, 100)
    watcher.look()
    watcher.look()
    assert len(runs(jobs)) == 1
    act_upon(jobs, watcher, days_ago=1)
    watcher.look()
    assert len(runs(jobs)) == 2


def test_schedule_with_a_rolling_window_fills_the_latest_days(
    jobs: Store, tmp_path: Path, calls: CallLog
):
    now = dt.datetime.now(dt.UTC)
    ts = [now - dt.timedelta(days=k, minutes=1) for k in range(20)]
    data = pa.table({"x": range(20), "ts": pa.array(ts, pa.timestamp("us", "UTC"))})
    table = make_table(tmp_path / "db", data=data, fragments=4)
    windows = {"on": "ts", "last": "7d", "step": "1d", "order": "backward"}
    nightly = {"schedule": "0 3 * * *", "arguments": {"executor": "local", "windows": windows}}
    table.add_columns({"y": doubling(calls)}, auto_backfill=nightly)
    watcher = Watcher(settings(jobs, tmp_path / "db"))
    watcher.look()
    act_upon(jobs, watcher, days_ago=1)
    watcher.look()
    run = only_run(jobs)
    assert run.jobs[0].arguments["windows"] == windows
    assert run.cause.startswith("auto: schedule 0 3 * * *; ")
    finish(jobs, table, run)
    midnight = now.replace(hour=0, minute=0, second=0, microsecond=0)
    recent = [x for x, t in enumerate(ts) if t >= midnight - dt.timedelta(days=7)]
    assert sorted(int(k) for k in calls.keys) == recent
    act_upon(jobs, watcher, days_ago=1)
    watcher.look()
    assert len(runs(jobs)) == 1  # the other days are no concern of it


def act_upon(jobs: Store, watcher: Watcher, days_ago: int) -> None:
    """Let the schedule have been acted upon last so long ago."""
    with jobs.database.write() as session:
        then = text("UPDATE watches SET fired_s = fired_s - :s").bindparams(s=86400 * days_ago)
        session.execute(then)
    sleep_over(jobs, watcher)


def test_column_that_cannot_be_filled_says_why(jobs: Store, table: Table, watcher: Watcher):
    table.unwrap().add_columns({"flag": "x > 3"})
    arguments = {"executor": "local", "where": "flag"}
    table.alter_columns({"path": "y", "auto_backfill": AT_ONCE | {"arguments": arguments}})
    table.drop_columns(["flag"])
    for _ in range(3):
        watcher.look()
    [watched] = Watches(jobs.database).all()
    assert (watched.failures, watched.run_id) == (1, None)
    assert "flag" in watched.reason


def test_one_broken_table_does_not_hide_the_others(
    jobs: Store, table: Table, watcher: Watcher, tmp_path: Path, caplog: pytest.LogCaptureFixture
):
    broken = make_table(tmp_path / "db", rows=4, fragments=1, name="broken")
    for manifest in (Path(broken.storage.uri) / "_versions").iterdir():
        manifest.write_bytes(b"")
    for _ in range(3):
        watcher.look()
    assert only_run(jobs).table == "t"
    assert len([r for r in caplog.records if "broken" in r.getMessage()]) == 1


def test_tables_that_are_gone_and_declarations_taken_back_are_watched_still(
    jobs: Store, table: Table, watcher: Watcher, tmp_path: Path, calls: CallLog
):
    other = make_table(tmp_path / "db", rows=4, fragments=1, name="u")
    other.add_columns({"y": doubling(calls)}, auto_backfill=AT_ONCE)
    watcher.look()
    assert [w.table for w in Watches(jobs.database).all()] == ["t", "u"]
    geneva.connect(str(tmp_path / "db")).drop_table("u")
    watcher.look()
    assert [w.table for w in Watches(jobs.database).all()] == ["t"]
    table.alter_columns({"path": "y", "auto_backfill": False})
    Watcher(settings(jobs, tmp_path / "db")).look()  # the service was away meanwhile
    assert Watches(jobs.database).all() == []


def test_storage_options_that_were_exchanged_are_used_still(
    jobs: Store, table: Table, watcher: Watcher, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    options = tmp_path / "options.toml"
    options.touch(0o600)
    monkeypatch.setenv("GENEVA_STORAGE_OPTIONS", str(options))
    for token in ("one", "two"):
        options.write_text(f'["{watcher._db}"]\naws_session_token = "{token}"')
        watcher.look()
        [known] = watcher._known.values()
        assert known.table.storage.options == {"aws_session_token": token}
    assert len(runs(jobs)) == 1


def test_trouble_that_comes_back_is_told_once(
    jobs: Store, table: Table, watcher: Watcher, caplog: pytest.LogCaptureFixture
):
    for _ in range(2):
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(Watcher, "_tables", lambda *_: 1 / 0)
            watcher.try_to_look()
            watcher.try_to_look()
        watcher.try_to_look()
    assert len([r for r in caplog.records if "division" in r.getMessage()]) == 2


def test_clock_that_was_ahead_keeps_a_schedule_waiting(jobs: Store, table: Table, watcher: Watcher):
    table.alter_columns({"path": "y", "auto_backfill": AT_ONCE | {"schedule": "15m"}})
    watcher.look()
    end(jobs, JobState.FAILED, "no luck")
    watcher.look()
    with jobs.database.write() as session:
        session.execute(text("UPDATE watches SET fired_s = fired_s + 1e8, not_before_s = 4e9"))
    Watcher(settings(jobs, Path(table.storage.uri).parent)).look()
    [watched] = Watches(jobs.database).all()
    assert watched.fired_at is None
    assert watched.not_before < datetime.now(UTC) + timedelta(hours=2)


def _killed(url: str, db: str, after: bool) -> None:
    real = watches.queue_run

    def kill(session: Any, *rest: Any) -> Any:
        if after:
            real(session, *rest)
        os.kill(os.getpid(), 9)

    watches.queue_run = kill
    Watcher(Settings(url, Path(db).parent / "state", db=db)).look()


@pytest.mark.crash
@pytest.mark.parametrize("after", [False, True])
def test_watcher_killed_between_the_cause_and_the_run(
    jobs: Store, table: Table, watcher: Watcher, after: bool
):
    arguments = (jobs.database.url, watcher._db, after)
    child = multiprocessing.get_context("spawn").Process(target=_killed, args=arguments)
    child.start()
    child.join(60)
    assert child.exitcode == -9
    assert runs(jobs) == []
    watcher.look()
    watcher.look()
    assert only_run(jobs).cause == "auto: 40 rows to fill"


@pytest.mark.crash
def test_service_keeps_a_column_filled_also_what_came_while_it_was_dead(
    tmp_path: Path, calls: CallLog
):
    table = make_table(tmp_path / "db", rows=40, fragments=4)
    service = Service(tmp_path / "state", tmp_path / "db", "--watch", "0.1").start()
    try:
        table.add_columns({"y": doubling(calls)}, auto_backfill=AT_ONCE)
        until(lambda: column(table, "y") == [2 * x for x in range(40)], 200)
        [run] = service.ask("GET", "/api/v1/runs")["items"]
        service.until(run["id"], "SUCCEEDED", timeout_s=200)
        service.kill()
        append(table, 100, 3)
        service.start()
        until(lambda: column(table, "y")[40:] == [200, 202, 204], 200)
        assert len(calls) == 43
        run = service.ask("GET", "/api/v1/runs")["items"][0]
        assert run["cause"].startswith("auto: 3 new rows since version ")
        [watched] = service.ask("GET", "/api/v1/auto")
        assert (watched["columns"], watched["run_id"]) == (["y"], run["id"])
    finally:
        service.stop()


@pytest.mark.parametrize(
    ("given", "said"),
    [
        ("15", "interval"),
        ("61 * * * *", "Bad minute"),
        ("0 0 31 2 *", "day-of-month"),
        ("* * * * * *", "five fields"),
        ("0.1s", "at least 1s"),
        ("", "schedule"),
        (3, "True, False"),
        ({"tz": "Mars/Phobos"}, "time zone"),
        ({"shedule": "15m"}, "'shedule'"),
        ({"debounce": "soon"}, "interval"),
        ({"arguments": {"concurency": 1}}, "'concurrency'"),
        ({"arguments": {"executor": "magic"}}, "'ray' or 'local'"),
        ({"arguments": {"progress": True}}, "elsewhere"),
        ({"arguments": {"params": {"k": 1}}}, "bind the UDF"),
        ({"arguments": {"force": True}}, "cause of another"),
        ({"arguments": {"where": "nothing > 3"}}, "nothing"),
        ({"arguments": {"windows": {"on": "nothing", "last": "7d"}}}, "nothing"),
        ({"arguments": {"windows": {"on": "x", "last": "7d"}}}, "unit="),
        ({"arguments": {"windows": {"on": "x", "lats": "7d"}}}, "'last'"),
    ],
)
def test_declaration_that_makes_no_sense(tmp_path: Path, calls: CallLog, given: Any, said: str):
    table = make_table(tmp_path / "db", rows=4, fragments=1)
    with pytest.raises(geneva.GenevaError, match=said):
        table.add_columns({"y": doubling(calls)}, auto_backfill=given)
    assert table.schema.names == ["x", "s"]
    with pytest.raises(SettingError, match="a UDF computes"):
        table.add_columns({"z": "x + 1"}, auto_backfill=True)


def test_declaration_covers_a_group_and_outlives_another_udf(tmp_path: Path, calls: CallLog):
    table = make_table(tmp_path / "db", rows=4, fragments=1)

    @geneva.udf(data_type=pa.struct([("a", pa.int64()), ("b", pa.int64())]))
    def both(x: int) -> Any:
        return {"a": x, "b": x + 1}

    table.add_columns({("a", "b"): both}, auto_backfill="15m")
    declared = [auto_of(table.storage.open().schema.field(c)) for c in ("a", "b", "x")]
    assert declared == [declared[0], declared[0], None]
    assert declared[0].schedule == "15m"
    table.add_columns({("a", "b"): both})  # the same cell of a notebook, without it
    assert auto_of(table.storage.open().schema.field("b")).schedule == "15m"
    table.alter_columns({"path": "a", "udf": both, "auto_backfill": False})
    assert auto_of(table.storage.open().schema.field("b")) is None
