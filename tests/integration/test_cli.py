"""The command line as a shell sees it: real processes, real tables, real signals."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from collections import Counter
from pathlib import Path

import pyarrow as pa
import pytest

import geneva

pytestmark = pytest.mark.disk(reason="commands on a folder; test_object_store.py has those on S3")

ROWS, FRAGMENTS = 40, 4


def table(folder: Path) -> geneva.Table:
    db = geneva.connect(str(folder))
    per = ROWS // FRAGMENTS
    tbl = db.create_table("t", pa.table({"x": range(per)}))
    for k in range(1, FRAGMENTS):
        tbl.add(pa.table({"x": range(k * per, (k + 1) * per)}))
    return tbl


def geneva_command(folder: Path, verb: str, *arguments: str) -> list[str]:
    named = [] if verb == "version" else ["t"]
    db = [] if verb == "version" else ["--db", str(folder)]
    return [sys.executable, "-m", "geneva", verb, *named, *arguments, *db]


def run(folder: Path, verb: str, *arguments: str) -> subprocess.CompletedProcess[str]:
    if verb == "backfill":
        arguments = (*arguments, "--executor", "local")
    return subprocess.run(
        geneva_command(folder, verb, *arguments),
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
    )


def logged(path: Path) -> list[int]:
    return [int(line) for line in path.read_text().split()] if path.exists() else []


def doubling(x: int) -> int:
    return 2 * x


def failing_at_7(x: int) -> int:
    if x == 7:
        raise ValueError("seven is not wanted")
    print(f"working on {x}")
    return x


def slow_and_logged(log: str) -> geneva.UDF:
    def slow(x: int) -> int:
        fd = os.open(log, os.O_WRONLY | os.O_APPEND | os.O_CREAT)
        os.write(fd, f"{x}\n".encode())
        os.close(fd)
        time.sleep(0.15)
        return 2 * x

    return geneva.udf(slow)


def test_command_computes_what_its_json_says(tmp_path: Path):
    tbl = table(tmp_path)
    tbl.add_columns({"y": geneva.udf(doubling)})

    planned = run(tmp_path, "plan", "y", "--where", "x < 10", "--json")
    assert planned.returncode == 0, planned.stderr
    assert json.loads(planned.stdout)["rows_compute"] == 10

    done = run(tmp_path, "backfill", "y", "--where", "x < 10", "--json")
    assert done.returncode == 0, done.stderr
    facts = json.loads(done.stdout)
    assert (facts["rows_computed"], facts["state"], facts["failures"]) == (10, "SUCCEEDED", [])

    covered = json.loads(run(tmp_path, "coverage", "--json").stdout)["columns"]
    assert [c["column"] for c in covered] == ["y"]
    assert (covered[0]["totals"]["computed"], covered[0]["totals"]["missing"]) == (10, 30)
    assert len(covered[0]["fragments"]) == FRAGMENTS

    tbl.checkout_latest()
    values = {r["x"]: r["y"] for r in tbl.to_arrow().to_pylist()}
    assert values == {x: 2 * x if x < 10 else None for x in range(ROWS)}


def test_json_of_a_command_with_windows_says_what_became_of_each(tmp_path: Path):
    table(tmp_path).add_columns({"y": doubling})
    words = ["--window-on", "x", "--window-step", "10", "--window-order", "backward"]
    planned = json.loads(run(tmp_path, "plan", "y", *words, "--json").stdout)["windows"]
    done = json.loads(run(tmp_path, "backfill", "y", *words, "--json").stdout)["windows"]
    assert [w["key"] for w in done] == [w["key"] for w in planned["windows"]]
    assert [w["rows_computed"] for w in done] == [w["rows_compute"] for w in planned["windows"]]
    assert {w["state"] for w in done} == {"COMMITTED"}
    assert int(done[0]["key"]) > int(done[-1]["key"]) == 0


def test_prints_of_a_udf_do_not_spoil_the_json(tmp_path: Path):
    tbl = table(tmp_path)
    tbl.add_columns({"y": geneva.udf(failing_at_7)})
    done = run(tmp_path, "backfill", "y", "--on-error", "null", "--json")
    assert done.returncode == 5, done.stderr
    facts = json.loads(done.stdout)
    assert facts["state"] == "PARTIAL"
    assert facts["rows_failed"] == 1
    assert "seven is not wanted" in facts["failures"][0]["message"]
    assert "working on 11" in done.stderr


def test_failed_job_shows_no_traceback_and_does_not_end_with_0(tmp_path: Path):
    tbl = table(tmp_path)
    tbl.add_columns({"y": geneva.udf(failing_at_7)})
    done = run(tmp_path, "backfill", "y", "--json")
    assert done.returncode == 1
    paragraph = [line for line in done.stderr.splitlines() if line.startswith("geneva:")]
    assert len(paragraph) == 1
    assert "seven is not wanted" in paragraph[0]
    assert "'y'" in paragraph[0]
    assert "Traceback" not in done.stderr
    facts = json.loads(done.stdout)
    assert (facts["error"], facts["exit_code"]) == ("UdfFailedError", 1)
    shown = run(tmp_path, "backfill", "y", "--debug")
    assert shown.returncode == 1
    assert "Traceback" in shown.stderr


def test_bad_request_ends_with_2(tmp_path: Path):
    table(tmp_path).add_columns({"y": geneva.udf(doubling)})
    done = run(tmp_path, "backfill", "y", "--where", "z = 1")
    assert done.returncode == 2, done.stderr
    assert "z" in done.stderr
    assert "Traceback" not in done.stderr
    assert done.stdout == ""


def test_unknown_table_is_answered_with_the_names_of_those_that_exist(tmp_path: Path):
    table(tmp_path)
    done = subprocess.run(
        [sys.executable, "-m", "geneva", "coverage", "other", "--db", str(tmp_path)],
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )
    assert done.returncode == 2
    assert "tables: t" in done.stderr


def test_listing_columns_loads_no_udf(tmp_path: Path):
    tbl = table(tmp_path)
    tbl.add_columns({"y": geneva.udf(doubling)})
    for pickled in (tbl.storage.path / "_backfill" / "udfs").iterdir():
        pickled.write_bytes(b"not a pickle")
    done = run(tmp_path, "columns", "--json")
    assert done.returncode == 0, done.stderr
    (column,) = json.loads(done.stdout)["columns"]
    assert (column["name"], column["udf"], column["inputs"]) == ("y", "doubling", ["x"])
    assert column["type"] == "int64"
    assert column["python"] == f"{sys.version_info.major}.{sys.version_info.minor}"
    text = run(tmp_path, "columns").stdout
    assert column["digest"][:12] in text
    # The next command does load it, and says what is wrong: somebody must mend the files.
    assert run(tmp_path, "backfill", "y").returncode == 4


def interrupted_after(calls: int, command: list[str], log: Path) -> tuple[int, str]:
    child = subprocess.Popen(
        command, stderr=subprocess.PIPE, stdout=subprocess.PIPE, text=True, start_new_session=True
    )
    deadline = time.monotonic() + 90
    while len(logged(log)) < calls and child.poll() is None and time.monotonic() < deadline:
        time.sleep(0.02)
    child.send_signal(signal.SIGINT)
    _, errors = child.communicate(timeout=60)
    return child.returncode, errors


def test_interrupt_loses_no_finished_row_and_computes_none_twice(tmp_path: Path):
    tbl = table(tmp_path / "db")
    log = tmp_path / "calls"
    tbl.add_columns({"y": slow_and_logged(str(log))})
    options = ("--executor", "local", "--concurrency", "1", "--batch-size", "2")
    command = geneva_command(tmp_path / "db", "backfill", "y", *options)

    code, errors = interrupted_after(13, command, log)
    assert code == 130, errors
    assert "same command continues" in errors
    assert "Traceback" not in errors
    tbl.checkout_latest()
    first = logged(log)
    assert 13 <= len(first) < ROWS
    # The first fragment was finished when the signal came, so readers see it now.
    computed = [r["x"] for r in tbl.to_arrow().to_pylist() if r["y"] is not None]
    assert len(computed) >= ROWS // FRAGMENTS
    assert set(computed) <= set(first)

    again = subprocess.run(
        [*command, "--json"], capture_output=True, text=True, timeout=120, check=False
    )
    assert again.returncode == 0, again.stderr
    facts = json.loads(again.stdout)
    assert facts["rows_computed"] == ROWS - len(computed)
    assert facts["rows_replayed"] == len(first) - len(computed)
    assert Counter(logged(log)) == Counter(range(ROWS))
    tbl.checkout_latest()
    assert all(r["y"] == 2 * r["x"] for r in tbl.to_arrow().to_pylist())


def test_timeout_is_no_success(tmp_path: Path):
    tbl = table(tmp_path / "db")
    tbl.add_columns({"y": slow_and_logged(str(tmp_path / "calls"))})
    done = run(
        tmp_path / "db", "backfill", "y", "--concurrency", "1", "--batch-size", "2",
        "--timeout", "0.5",
    )  # fmt: skip
    assert done.returncode == 1
    assert "timeout" in done.stderr
    assert "same command continues" in done.stderr


def leave_work_behind(tmp_path: Path) -> geneva.Table:
    """Kill a backfill in the middle, so that logs and files are left."""
    tbl = table(tmp_path / "db")
    log = tmp_path / "calls"
    tbl.add_columns({"y": slow_and_logged(str(log))})
    options = ("--executor", "local", "--concurrency", "1", "--batch-size", "2")
    child = subprocess.Popen(geneva_command(tmp_path / "db", "backfill", "y", *options))
    deadline = time.monotonic() + 90
    while len(logged(log)) < 13 and child.poll() is None and time.monotonic() < deadline:
        time.sleep(0.02)
    child.kill()
    assert child.wait() == -signal.SIGKILL
    return tbl


def files_of(tbl: geneva.Table) -> set[Path]:
    return {p for p in tbl.storage.path.rglob("*") if p.is_file()}


def test_clean_takes_nothing_that_a_running_job_needs_and_leaves_nothing_else(tmp_path: Path):
    tbl = leave_work_behind(tmp_path)
    before = files_of(tbl)
    young = run(tmp_path / "db", "clean", "--json")
    assert young.returncode == 0, young.stderr
    facts = json.loads(young.stdout)
    assert (facts["logs"], facts["files"], facts["leftovers"]) == (0, 0, 0)
    assert facts["kept"] >= 1
    assert files_of(tbl) == before

    counted = json.loads(
        run(tmp_path / "db", "clean", "--older-than", "0", "--dry-run", "--json").stdout
    )
    assert files_of(tbl) == before
    assert counted["dry_run"] is True

    removed = json.loads(run(tmp_path / "db", "clean", "--older-than", "0s", "--json").stdout)
    assert {**removed, "dry_run": True} == counted
    assert removed["logs"] >= 2
    assert removed["files"] >= 1  # the finished first fragment was never committed
    assert removed["total_bytes"] > 0
    gone = before - files_of(tbl)
    assert len(gone) == removed["logs"] + removed["files"] + removed["leftovers"]
    assert not list((tbl.storage.path / "_backfill" / "work").rglob("*.log"))
    again = json.loads(run(tmp_path / "db", "clean", "--older-than", "0", "--json").stdout)
    assert (again["logs"], again["files"], again["leftovers"]) == (0, 0, 0)
    tbl.checkout_latest()
    assert tbl.backfill("y", executor="local", concurrency=8).rows_computed == ROWS
    assert all(r["y"] == 2 * r["x"] for r in tbl.to_arrow().to_pylist())


def test_clean_takes_only_files_of_the_engine(tmp_path: Path):
    tbl = table(tmp_path)
    stranger = tbl.storage.path / "data" / "mine.lance"
    stranger.write_bytes(b"not yours")
    torn = tbl.storage.path / "data" / ".tmp_half_written.lance"
    torn.write_bytes(b"half")
    done = run(tmp_path, "clean", "--older-than", "0", "--json")
    assert json.loads(done.stdout)["leftovers"] == 1
    assert stranger.exists()
    assert not torn.exists()


def test_version_names_the_libraries_that_tables_depend_on(tmp_path: Path):
    done = run(tmp_path, "version")
    assert done.returncode == 0
    assert done.stdout.startswith("geneva ")
    assert "pylance 14" in done.stdout
