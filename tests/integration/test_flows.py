"""Flows on real tables: what runs, in which order, with which values; and what a kill costs."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pyarrow as pa
import pytest

import geneva
from geneva.errors import FlowError, JobStateError, ServiceError
from geneva.flow import Choice, Dag, Grid, Operation
from geneva.jobs.flows.flow_record import FlowRecord, StepResult
from geneva.jobs.flows.runner import FlowRunner
from geneva.model.types import JobState
from tests.support.backfills import until
from tests.support.calls import CallLog
from tests.support.tables import make_table, pairs

FLOWS = Path(__file__).parents[1] / "unit" / "flows"
LOCAL = {"executor": "local"}
WORK = """
import json, os, sys, time
from geneva.flow import log

def note(**inputs):
    with open("calls.txt", "a") as file:
        file.write(json.dumps({k: str(v) for k, v in inputs.items()}) + "\\n")
    return {"got": sorted(inputs)}

def measured(k):
    log(metrics={"loss": (k - 2.9) ** 2}, outputs={"k": k}, artifacts={"model": f"m{k}.bin"})

def best(ks, losses):
    note(ks=ks, losses=losses)
    return {"best": ks[0]}

def fails(k=0):
    raise ValueError(f"no good: {k}")

def dies():
    os.kill(os.getpid(), 9)

def dies_once():
    note(attempt=os.environ["GENEVA_ATTEMPT"])
    if os.environ["GENEVA_ATTEMPT"] == "0":
        os.kill(os.getpid(), 9)

def sleeps(seconds):
    note(seconds=seconds)
    time.sleep(seconds)
"""


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    (tmp_path / "work.py").write_text(WORK)
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("PYTHONPATH", os.pathsep.join([str(tmp_path), *sys.path]))
    return tmp_path


def noted(folder: Path) -> list[dict]:
    path = folder / "calls.txt"
    return [json.loads(line) for line in path.read_text().splitlines()] if path.exists() else []


def table_of(folder: Path, calls: CallLog) -> geneva.Table:
    """A table x, with y = 2 * x, z = y + 1 that reads y, and w = -x."""
    table = make_table(folder / "db", rows=40, fragments=4)

    @geneva.udf(input_columns=["x"])
    def double(x: int) -> int:
        calls(f"y{x}")
        return 2 * x

    @geneva.udf(input_columns=["y"])
    def more(y: int) -> int:
        calls(f"z{y}")
        return y + 1

    table.add_columns({"y": double, "z": more})
    return table


def database(folder: Path, *, recorded: bool = False) -> geneva.Connection:
    jobs = {"jobs": f"sqlite:///{folder / 'jobs.db'}"} if recorded else {}
    return geneva.connect(folder / "db", **jobs)


def job(name: str, call: str, **more: object) -> dict:
    return {"name": name, "run": {"kind": "job", "call": f"work:{call}"}, **more}


def dag(*operations: dict, **more: object) -> dict:
    run = {"kind": "dag", "operations": list(operations), **more}
    return {"kind": "component", "name": "chain", "run": run}


# --------------------------------------------------------------------------- founding documents


@pytest.mark.parametrize(("kind", "count"), [("hourly", 6), ("daily", 7)])
def test_range_of_the_founding_document_runs_one_job_after_the_other_in_order(
    folder: Path, kind: str, count: int
):
    component, operation = {"hourly": (0, 2), "daily": (1, 3)}[kind]
    documents = (FLOWS / "seed_000.yaml").read_text().split("\n---\n")
    script = folder / "execute"
    script.write_text("#!/bin/sh\necho $2 >> calls.txt\n")
    script.chmod(0o755)
    (folder / "component.yaml").write_text(documents[component].replace('"execute"', f'"{script}"'))
    (folder / "operation.yaml").write_text(documents[operation])
    make_table(folder / "db", rows=1, fragments=1)
    files = ("component.yaml", "operation.yaml")
    with pytest.raises(FlowError, match="the image 'DOCKER_IMAGE' cannot be run here"):
        database(folder).run(*files)
    result = database(folder).run(*files, image="host")
    assert (result.state, len(result.operations)) == ("SUCCEEDED", count)
    lines = (folder / "calls.txt").read_text().split()
    expected = (
        [f"--hour=2021-05-01T{h}:00:00" for h in range(10, 16)]
        if kind == "hourly"
        else [f"--day=2021-05-0{d}" for d in range(1, 8)]
    )
    assert lines == expected


# --------------------------------------------------------------------------------------- chains


def test_backfills_of_one_table_wait_for_the_columns_that_they_read(folder: Path, calls: CallLog):
    table = table_of(folder, calls)
    flow = Dag(
        [
            Operation("late", table="t", columns=["z"], **LOCAL),
            Operation("early", table="t", columns=["y"], **LOCAL, metrics={"mean": "avg(y)"}),
            Operation(
                "report",
                call="work:note",
                dependencies=["late"],
                params={
                    "rows": {"ref": "ops.late", "value": "outputs.rows_computed"},
                    "mean": {"ref": "ops.early", "value": "metrics.mean"},
                },
            ),
        ]
    )
    result = database(folder).run(flow)
    assert result.state == "SUCCEEDED", str(result)
    assert pairs(table, "x", "z") == {i: 2 * i + 1 for i in range(40)}
    assert result["early"].metrics["mean"] == 39.0
    [line] = noted(folder)
    assert (line["rows"], line["mean"]) == ("40", "39.0")
    assert result["report"].outputs == {"got": ["mean", "rows"]}
    again = database(folder).run(flow)
    assert again["early"].outputs["rows_computed"] == 0
    assert all(n == 1 for n in calls.counts.values())


def test_range_that_is_only_a_window_becomes_the_windows_of_one_backfill(
    folder: Path, calls: CallLog
):
    days = [pa.scalar(18_748 + k // 10, pa.int32()).cast(pa.date32()).as_py() for k in range(40)]
    data = pa.table({"x": range(40), "day": pa.array(days, pa.date32())})
    table = make_table(folder / "db", data=data, fragments=2)

    @geneva.udf(input_columns=["x"])
    def double(x: int) -> int:
        calls(x)
        return 2 * x

    table.add_columns({"y": double})
    first = days[0].isoformat()
    operation = {
        "kind": "operation",
        "name": "daily",
        "component": {
            "kind": "component",
            "inputs": [{"name": "dt", "type": "date"}],
            "run": {
                "kind": "backfill",
                "table": "t",
                "columns": ["y"],
                "window": {"on": "day", "at": "{{ dt }}", "order": "backward"},
                **LOCAL,
            },
        },
        "matrix": {
            "kind": "grid",
            "concurrency": 1,
            "params": {"dt": {"kind": "daterange", "value": [first, days[39].isoformat(), 1]}},
        },
    }
    result = database(folder).run(operation)
    assert [s.operation for s in result.operations] == ["daily"]
    assert result["daily"].outputs["rows_computed"] == 30
    assert [int(x) for x in calls.keys][:10] == list(range(20, 30))


def test_grid_runs_each_combination_and_a_join_takes_the_best(folder: Path):
    make_table(folder / "db", rows=1, fragments=1)
    flow = Dag(
        [
            Operation(
                "try", call="work:measured", matrix=Grid(k=Choice(1, 2, 3, 4), concurrency=2)
            ),
            Operation(
                "pick",
                dependencies=["try"],
                joins=[
                    {
                        "query": "metrics.loss: <100, name: try%",
                        "sort": "metrics.loss",
                        "limit": 2,
                        "params": {
                            "ks": {"value": "outputs.k"},
                            "losses": {"value": "metrics.loss"},
                        },
                    }
                ],
                call="work:best",
            ),
        ]
    )
    result = database(folder, recorded=True).run(flow)
    assert result.state == "SUCCEEDED", str(result)
    assert result["pick"].outputs == {"best": 3}
    assert noted(folder)[0]["ks"] == "[3, 2]"
    assert result["try.2"].artifacts == {"model": "m3.bin"}


# ------------------------------------------------------------------------------------- failures


def test_failure_skips_what_waits_for_success_and_runs_what_waits_for_failure(folder: Path):
    make_table(folder / "db", rows=1, fragments=1)
    flow = dag(
        job("bad", "fails", params={"k": 7}),
        job("after", "note", dependencies=["bad"]),
        job("handler", "note", dependencies=["bad"], trigger="one_failed"),
        job("never", "note", conditions="{{ false }}"),
    )
    result = database(folder, recorded=True).run(flow)
    assert {s.operation: s.state for s in result.operations} == {
        "bad": "FAILED",
        "after": "UPSTREAM_FAILED",
        "handler": "SUCCEEDED",
        "never": "SKIPPED",
    }
    assert "ValueError: no good: 7" in result["bad"].reason
    assert result.state == "FAILED"
    [run] = database(folder, recorded=True).runs()
    assert run.state == "FAILED"
    states = {j.operation: j.state for j in run.record().jobs}
    assert states == {s.operation: s.state for s in result.operations}


def test_death_of_a_process_is_told_from_its_failure_and_tried_again(folder: Path):
    make_table(folder / "db", rows=1, fragments=1)
    flow = dag(
        job("dead", "dies"),
        job("once", "dies_once", termination={"maxRetries": 1}),
        job("slow", "sleeps", params={"seconds": 60}, termination={"timeout": 0.5}),
    )
    result = database(folder).run(flow)
    assert "the process of work:dies died by signal 9" in result["dead"].reason
    assert result["once"].state == "SUCCEEDED"
    assert [n["attempt"] for n in noted(folder) if "attempt" in n] == ["0", "1"]
    assert "took more than 0.5 s" in result["slow"].reason


def test_backfill_that_cannot_begin_fails_its_operation_and_is_in_the_record(folder: Path):
    make_table(folder / "db", rows=1, fragments=1)
    backfill = {"kind": "backfill", "columns": ["y"], **LOCAL}
    flow = dag(
        {"name": "gone", "run": backfill | {"table": "nothing"}},
        {"name": "plain", "run": backfill | {"table": "t"}},
        {
            "name": "grid",
            "conditions": "{{ false }}",
            "run": {"kind": "job", "call": "work:note"},
            "matrix": {"kind": "grid", "params": {"k": {"kind": "choice", "value": [1, 2]}}},
        },
    )
    db = database(folder, recorded=True)
    result = db.run(flow)
    assert "no table 'nothing'" in result["gone"].reason
    assert result["plain"].state == "FAILED"
    assert noted(folder) == []
    [run] = db.runs()
    jobs = {j.operation: (j.state, j.error) for j in run.record().jobs}
    assert {name: state for name, (state, _) in jobs.items()} == {
        "gone": "FAILED",
        "plain": "FAILED",
    }
    assert "no table 'nothing'" in jobs["gone"][1]


def test_metrics_by_sql_are_in_the_record_for_later_searches(folder: Path, calls: CallLog):
    table_of(folder, calls)
    db = database(folder, recorded=True)
    measured = Operation("y", table="t", columns=["y"], **LOCAL, metrics={"mean": "avg(y)"})
    assert db.run(measured).state == "SUCCEEDED"
    later = Operation(
        "later",
        call="work:note",
        joins=[{"query": "metrics.mean: 39", "params": {"means": {"value": "metrics.mean"}}}],
    )
    db.run(later)
    assert noted(folder)[0]["means"] == "[39.0]"


def test_value_that_an_input_does_not_take_fails_the_operation_and_not_the_run(folder: Path):
    make_table(folder / "db", rows=1, fragments=1)
    component = {
        "name": "typed",
        "inputs": [{"name": "k", "type": "int"}],
        "run": {"kind": "job", "call": "work:note"},
    }
    flow = dag(
        job("first", "note"),
        {
            "name": "second",
            "dagRef": "typed",
            "params": {"k": {"ref": "ops.first", "value": "outputs.got"}},
        },
        job("third", "note", dependencies=["second"], trigger="all_done"),
        components=[component | {"kind": "component"}],
    )
    result = database(folder, recorded=True).run(flow)
    assert "the input 'k' is int, not []" in result["second"].reason
    assert result["third"].state == "SUCCEEDED"


# --------------------------------------------------------------------------------------- record


PROGRAM = """
import sys, geneva
sys.path.insert(0, {root!r})
db = geneva.connect({db!r}, jobs={jobs!r})
print(db.run("flow.json"), flush=True)
"""


def flow_process(folder: Path) -> subprocess.Popen[bytes]:
    root = str(Path(__file__).parents[2])
    jobs = f"sqlite:///{folder / 'jobs.db'}"
    program = PROGRAM.format(root=root, db=str(folder / "db"), jobs=jobs)
    return subprocess.Popen([sys.executable, "-c", program], cwd=folder, stdout=subprocess.DEVNULL)


def test_killed_flow_is_continued_by_the_same_call_and_nothing_is_run_twice(
    folder: Path, calls: CallLog
):
    table = table_of(folder, calls)
    backfill = {"kind": "backfill", "table": "t", **LOCAL}
    flow = dag(
        {"name": "y", "run": backfill | {"columns": ["y"]}},
        job("first", "note", params={"who": "first"}, dependencies=["y"]),
        job("slow", "sleeps", params={"seconds": 300}, dependencies=["first"]),
        {"name": "z", "dependencies": ["slow"], "run": backfill | {"columns": ["z"]}},
    )
    (folder / "flow.json").write_text(json.dumps(flow))
    process = flow_process(folder)
    until(lambda: any("seconds" in n for n in noted(folder)))
    db = database(folder, recorded=True)
    with pytest.raises(JobStateError, match="is carried out by"):
        db.run("flow.json")
    process.send_signal(signal.SIGKILL)
    process.wait()
    work = (folder / "work.py").read_text().replace("time.sleep(seconds)", "pass")
    (folder / "work.py").write_text(work)
    result = db.run("flow.json")
    assert (result.state, result.continued) == ("SUCCEEDED", 2)
    assert pairs(table, "x", "z") == {i: 2 * i + 1 for i in range(40)}
    assert [n for n in noted(folder) if "who" in n] == [noted(folder)[0]]
    assert len([n for n in noted(folder) if "seconds" in n]) == 2
    assert all(n == 1 for n in calls.counts.values())
    [run] = db.runs()
    assert run.state == "SUCCEEDED"
    live = [j for j in run.record().jobs if j.state == "SUCCEEDED"]
    assert sorted(j.operation for j in live) == ["first", "slow", "y", "z"]
    new = db.run("flow.json")
    assert (new.continued, new.run_id != result.run_id) == (0, True)


def test_process_of_a_job_ends_with_the_flow_that_started_it(folder: Path):
    make_table(folder / "db", rows=1, fragments=1)
    write = "open('pid', 'w').write(str(os.getpid()))"
    work = f"import os, time\ndef hold():\n    {write}\n    time.sleep(99)\n"
    (folder / "work.py").write_text(work)
    (folder / "flow.json").write_text(json.dumps(dag(job("hold", "hold"))))
    process = flow_process(folder)
    pid_file = folder / "pid"
    until(lambda: pid_file.exists() and pid_file.read_text() != "")
    process.send_signal(signal.SIGKILL)
    process.wait()
    stat = Path(f"/proc/{pid_file.read_text()}/stat")
    until(lambda: not stat.exists() or stat.read_text().split()[2] == "Z", 10)


def test_cancel_of_the_run_ends_its_jobs_and_starts_no_other(folder: Path):
    make_table(folder / "db", rows=1, fragments=1)
    flow = dag(
        job("slow", "sleeps", params={"seconds": 300}),
        job("next", "note", dependencies=["slow"], trigger="all_done"),
    )
    (folder / "flow.json").write_text(json.dumps(flow))
    process = flow_process(folder)
    until(lambda: bool(noted(folder)))
    [run] = database(folder, recorded=True).runs()
    began = time.monotonic()
    run.cancel()
    process.wait(30)
    assert time.monotonic() - began < 20
    assert run.state == "CANCELLED"
    assert {j.operation: j.state for j in run.record().jobs} == {
        "slow": "CANCELLED",
        "next": "CANCELLED",
    }
    assert len(noted(folder)) == 1


# ---------------------------------------------------------------------------------------- faults


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"params": {"kk": 1}}, "no input expects the param 'kk'; did you mean 'k'"),
        ({}, "the input 'k' has no value"),
        ({"params": {"k": 1}, "schedule": {"kind": "cron"}}, "schedules and events"),
        ({"params": {"k": 1}, "connections": ["s3"]}, "no connections are configured"),
        ({"hubRef": "a:1", "component": None}, "there is no registry of components here"),
    ],
)
def test_fault_of_a_description_is_found_before_anything_runs(
    folder: Path, change: dict, message: str
):
    make_table(folder / "db", rows=1, fragments=1)
    component = {
        "kind": "component",
        "inputs": [{"name": "k", "type": "int"}],
        "run": {"kind": "job", "call": "work:note"},
    }
    with pytest.raises(FlowError, match=message):
        database(folder).run({"kind": "operation", "component": component} | change)
    assert noted(folder) == []


def test_shell_checks_plans_and_runs_a_flow(folder: Path, calls: CallLog):
    from typer.testing import CliRunner

    from geneva.cli.commands import app

    table_of(folder, calls)

    def shell(*words: str, code: int = 0) -> str:
        done = CliRunner().invoke(app, ["flow", *words])
        assert done.exit_code == code, done.output
        return done.output

    assert "wrote mine.yaml" in shell("init", "mine.yaml")
    assert "4 jobs" not in shell("check", "mine.yaml")
    assert "is there already" in shell("init", "mine.yaml", code=2)
    backfill = {"kind": "backfill", "table": "t", **LOCAL}
    flow = dag(
        {"name": "last", "run": backfill | {"columns": ["z"]}},
        {"name": "begin", "run": backfill | {"columns": ["y"]}},
        job("report", "note", dependencies=["last"], params={"k": "{{ 1 + 1 }}"}),
    )
    (folder / "flow.json").write_text(json.dumps(flow))
    planned = shell("plan", "flow.json", "--db", str(folder / "db"))
    assert "stage 1\n  begin: backfill of y: 40 of 40 rows" in planned
    assert "after begin, as it reads their columns" in planned
    assert "job work:note" in planned
    jobs = f"sqlite:///{folder / 'jobs.db'}"
    told = shell("run", "flow.json", "--db", str(folder / "db"), "--jobs", jobs)
    assert "SUCCEEDED" in told
    assert noted(folder)[0]["k"] == "2"
    flow["run"]["operations"][0]["run"]["colums"] = ["z"]
    (folder / "flow.json").write_text(json.dumps(flow, indent=1))
    wrong = shell("check", "flow.json", code=2)
    assert "operations[0].run.colums: unknown key 'colums'. Did you mean 'columns'" in wrong


# ---------------------------------------------------------------------------------- crash windows


def test_backfill_that_was_killed_before_its_metrics_is_measured_again(
    folder: Path, calls: CallLog
):
    table_of(folder, calls).backfill("y", **LOCAL, progress=False)
    tables = database(folder).flows()
    measured = Operation("y", table="t", columns=["y"], **LOCAL, metrics={"mean": "avg(y)"})
    record = FlowRecord("killed", folder)
    record.kept = {"y": StepResult("y", JobState.SUCCEEDED)}
    result = FlowRunner(tables.compile(measured, {}), tables, record, "p").run()
    assert (result["y"].metrics["mean"], len(calls)) == (39.0, 40)


def test_record_that_cannot_be_written_leaves_no_flow_waiting_for_ever(folder: Path):
    class Away(FlowRecord):
        def ended(self, member: object, state: object, reason: str) -> None:
            raise ServiceError("the database is away")

    make_table(folder / "db", rows=1, fragments=1)
    tables = database(folder).flows()
    backfill = Operation("y", table="nothing", columns=["y"], **LOCAL)
    flow = tables.compile(backfill, {})
    assert FlowRunner(flow, tables, Away("away", folder), "p").run().state == "FAILED"
