"""The whole of Geneva in a minute, on sources that every machine has: Python's own.

Builds a table, declares columns, fills them in several ways, kills a job and takes it up again,
searches. Each step says what it does and shows what came of it.
"""

from __future__ import annotations

import contextlib
import hashlib
import importlib
import os
import shlex
import shutil
import subprocess
import sys
import sysconfig
import threading
import time
from collections import Counter
from collections.abc import Iterator
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, Literal

import pyarrow as pa

from geneva.connection import connect
from geneva.errors import GenevaError, SettingError
from geneva.model.windows import Windows
from geneva.table import Table
from geneva.udf import udf

_TABLE = "sources"
_MARKER = ".geneva-demo"
_FRAGMENTS = 12
_MIN_BYTES, _MAX_BYTES = 200, 50_000
_LEFT_OUT = {"test", "tests", "lib2to3", "idlelib", "site-packages", "__pycache__"}
_KILLED_WHERE = "size < 2500"
_SLOW_S = 0.005  # a row of the job that is killed: it must last long enough to be hit
_KILLED_AT = 0.4
_APPLIERS = 2
_BATCH_ROWS = 8
_WAIT_S = 90.0
_SHOWN_WINDOWS = 5
_SEARCHED = "stdlib/json/decoder.py"

ExecutorName = Literal["ray", "local"]


@udf(params={"log": "", "seconds": 0.0})
def slow_checksum(filename: str, source: str, log: str, seconds: float) -> str:
    """Hash a source, slowly; note each call in a file, so that calls can be counted."""
    fd = os.open(log, os.O_WRONLY | os.O_APPEND | os.O_CREAT, 0o600)
    try:
        os.write(fd, f"{filename}\n".encode())  # one write: lines of two processes never mix
    finally:
        os.close(fd)
    time.sleep(seconds)
    return hashlib.sha256(source.encode()).hexdigest()


def run(folder: str, *, rows: int, executor: ExecutorName) -> None:
    """Run all steps.

    Parameters
    ----------
    folder
        Where the database goes; one of an earlier demo is replaced.
    rows
        Source files to take.

    Raises
    ------
    SettingError
        The folder holds something else.
    GenevaError
        A step did not come out as it must.
    """
    started = time.monotonic()
    root = _fresh(Path(folder))
    tbl = _build(root, rows)
    embed = _declare(tbl, root)
    _show_where(tbl, executor)
    _show_num_frags(tbl, executor)
    _show_commits(tbl, executor)
    _show_kill(tbl, root, executor)
    _show_windows(tbl, executor)
    _show_search(tbl, embed)
    _say_goodbye(root, time.monotonic() - started)


def _headline(step: int, text: str) -> None:
    print(f"\n[{step}/8] {text}", flush=True)


def _say(text: str) -> None:
    print("\n".join(f"      {line}" for line in text.splitlines()), flush=True)


def _require(held: bool, what: str) -> None:
    if not held:
        raise GenevaError(f"the demo did not come out as it must: {what}")


# --- 1 and 2: a table and its columns --------------------------------------------------------


def _fresh(root: Path) -> Path:
    if root.exists() and any(root.iterdir()):
        if not (root / _MARKER).exists():
            raise SettingError(f"{root} holds something else than a demo; choose another --dir")
        shutil.rmtree(root)
    root.mkdir(parents=True, exist_ok=True)
    (root / _MARKER).touch()
    return root.resolve()


def _build(root: Path, rows: int) -> Table:
    _headline(1, "A table of the Python sources on this machine")
    stdlib = list(_sources("stdlib", Path(sysconfig.get_path("stdlib"))))[: rows // 2]
    installed = list(_sources("site-packages", Path(sysconfig.get_path("purelib"))))
    step = max(1, len(installed) // max(1, rows - len(stdlib)))
    files = (stdlib + installed[::step])[:rows]
    data = pa.Table.from_pylist(files)
    per = -(-data.num_rows // _FRAGMENTS)
    db = connect(str(root))
    tbl = db.create_table(_TABLE, data.slice(0, per))
    for start in range(per, data.num_rows, per):
        tbl.add(data.slice(start, per))
    fragments = len(tbl.storage.open().fragments)
    size = sum(r["size"] for r in files) / 1e6
    _say(f"{data.num_rows:,} files, {size:,.0f} MB, in {fragments} fragments at {root}")
    _say(f"columns: {', '.join(tbl.schema.names)}")
    return tbl


def _sources(origin: str, folder: Path) -> Iterator[dict[str, Any]]:
    for path in sorted(folder.rglob("*.py")):
        inner = path.relative_to(folder)
        if _LEFT_OUT & set(inner.parts[:-1]):
            continue
        try:
            status = path.stat()
            if not _MIN_BYTES < status.st_size < _MAX_BYTES:
                continue
            source = path.read_text("utf-8")
        except (OSError, UnicodeDecodeError):
            continue
        yield {
            "filename": f"{origin}/{inner.as_posix()}",
            "source": source,
            "modified": datetime.fromtimestamp(status.st_mtime, UTC),
            "size": status.st_size,
        }


def _declare(tbl: Table, root: Path) -> Any:
    _headline(2, "Four computed columns, declared in an instant: no value is computed yet")
    # By name: the engine knows nothing of the ready UDFs, which are examples of its use.
    udfs, text, code = map(importlib.import_module, ("udfs", "udfs.text", "udfs.code"))
    embed = udfs.reading(text.HashedNgrams(dimensions=256), "source")
    started = time.monotonic()
    tbl.add_columns(
        {
            "words": udfs.reading(text.word_count, "source"),
            "functions": code.function_count.with_params({"python": "3.7"}),
            "embedding": embed,
            "checksum": slow_checksum.with_params(
                {"log": str(root / "calls.log"), "seconds": _SLOW_S}
            ),
        }
    )
    _say(f"took {time.monotonic() - started:.2f} s")
    for name, binding in tbl.computed_columns().items():
        kind = tbl.storage.open().schema.field(name).type
        _say(f"{name:10} {binding.udf}({', '.join(binding.inputs)}) -> {kind}")
    return embed


# --- 3 to 5: ways to fill them ---------------------------------------------------------------


def _show_where(tbl: Table, executor: ExecutorName) -> None:
    where = "starts_with(filename, 'stdlib/a')"
    _headline(3, f"where: word counts, first of a few rows ({where})")
    if executor == "ray":
        _say("this first backfill starts Ray on this machine, which takes a few seconds")
    options: dict[str, Any] = {"executor": executor, "concurrency": _APPLIERS}
    first = tbl.backfill("words", where=where, **options)
    selected = tbl.count_rows(where)
    _say(f"computed {first.rows_computed:,} rows; the filter is true for {selected:,}")
    again = tbl.backfill("words", where=where, **options)
    _say(f"the same command again: {again.rows_computed} rows in {again.seconds:.2f} s")
    rest = tbl.backfill("words", **options)
    _say(f"without the filter: the other {rest.rows_computed:,} rows")
    _require(first.rows_computed == selected and not again.rows_computed, "where")
    _require(first.rows_computed + rest.rows_computed == len(tbl), "the rest after where")


def _show_num_frags(tbl: Table, executor: ExecutorName) -> None:
    _headline(4, "num_frags: count functions in 3 fragments, then in the rest; some rows fail")
    _say("sources that Python 3.7 cannot parse raise SyntaxError; on_error='null' notes them")
    options: dict[str, Any] = {
        "executor": executor,
        "concurrency": _APPLIERS,
        "on_error": "null",
    }
    first = tbl.backfill("functions", num_frags=3, **options)
    _say(
        f"3 fragments: {first.rows_computed:,} rows, {first.fragments_left} fragments left for "
        "the next call"
    )
    rest = tbl.backfill("functions", **options)
    failed = first.rows_failed + rest.rows_failed
    _say(f"the rest: {rest.rows_computed:,} rows. {failed:,} rows failed and are null, such as:")
    shown = [*first.failures.to_pylist(), *rest.failures.to_pylist()][:3]
    for failure in shown:
        _say(f"  row {failure['row']} of fragment {failure['fragment']}: {failure['message']}")
    _require(first.fragments_committed == 3, "num_frags")
    _require(first.rows_computed + rest.rows_computed == len(tbl), "the rest after num_frags")
    _require(tbl.count_rows("functions is null") == failed, "one null per failure")


def _show_commits(tbl: Table, executor: ExecutorName) -> None:
    _headline(5, "commit_granularity=2: vectors of 256 floats, seen growing by a second reader")
    with _second_reader(tbl, "embedding"):
        done = tbl.backfill(
            "embedding", commit_granularity=2, executor=executor, concurrency=_APPLIERS
        )
    _say(
        f"done: {done.rows_computed:,} vectors in {done.seconds:.1f} s, "
        f"{len(done.versions)} commits"
    )
    _require(tbl.count_rows("embedding is null") == 0, "every row has a vector")


@contextlib.contextmanager
def _second_reader(tbl: Table, column: str) -> Iterator[None]:
    """Open the table a second time and print the visible rows while the block runs."""
    ended = threading.Event()

    def watch() -> None:
        reader = connect(str(tbl.storage.path.parent)).open_table(_TABLE)
        seen = reader.version
        while not ended.wait(0.05):
            reader.checkout_latest()
            if reader.version != seen:
                seen = reader.version
                filled = reader.count_rows(f"{column} is not null")
                _say(f"a second reader sees version {seen}: {filled:,} of {len(reader):,} rows")

    thread = threading.Thread(target=watch, name="geneva-demo-reader", daemon=True)
    thread.start()
    try:
        yield
    finally:
        ended.set()
        thread.join()


# --- 6: a job that dies ----------------------------------------------------------------------


def _show_kill(tbl: Table, root: Path, executor: ExecutorName) -> None:
    _headline(6, "A job is killed in the middle (SIGKILL), and taken up again")
    log = root / "calls.log"
    selected = tbl.count_rows(_KILLED_WHERE)
    command = [
        *("backfill", _TABLE, "checksum", "--db", str(root), "--where", _KILLED_WHERE),
        *("--concurrency", str(_APPLIERS), "--batch-size", str(_BATCH_ROWS)),
        *("--commit-granularity", "1", "--executor", executor),
    ]
    _say(f"another process: geneva {shlex.join(command)}")
    _kill_midway([sys.executable, "-m", "geneva", *command], log, int(selected * _KILLED_AT))
    before = _settled(log)
    tbl.checkout_latest()
    visible = tbl.count_rows("checksum is not null")
    _say(
        f"killed; its workers stopped after {len(before):,} of {selected:,} rows: {visible:,} are "
        "committed, the\nothers only checkpointed"
    )
    done = tbl.backfill(
        "checksum",
        where=_KILLED_WHERE,
        concurrency=_APPLIERS,
        batch_size=_BATCH_ROWS,
        commit_granularity=1,
        executor=executor,
    )
    calls = Counter(_lines(log))
    twice = sum(n - 1 for n in calls.values())
    _say(
        f"the same command again: {done.rows_computed:,} rows, {done.rows_replayed:,} of them "
        f"from checkpoints, {done.rows_computed - done.rows_replayed:,} computed"
    )
    _say(
        f"calls of the UDF, both processes together: {sum(calls.values()):,} for {selected:,} "
        f"rows. No row that was\ncheckpointed was computed again; {twice} were in flight when the "
        f"job died (at most {_APPLIERS} x {_BATCH_ROWS})"
    )
    _require(visible + done.rows_computed == selected, "every row of the killed job")
    _require(len(calls) == selected, "every row was computed")
    _require(twice == len(before) - visible - done.rows_replayed, "only rows in flight again")
    _require(twice <= _APPLIERS * _BATCH_ROWS, "few rows in flight")
    _check_values(tbl)


def _kill_midway(command: list[str], log: Path, calls: int) -> None:
    child = subprocess.Popen(command, stdout=subprocess.DEVNULL)
    try:
        deadline = time.monotonic() + _WAIT_S
        while len(_lines(log)) < calls:
            _require(child.poll() is None, f"the other process ended early ({child.returncode})")
            _require(time.monotonic() < deadline, "the other process did not get anywhere")
            time.sleep(0.02)
    finally:
        child.kill()
        child.wait()
        if sys.stderr.isatty():
            print("\x1b[?25h", file=sys.stderr)  # its bar had hidden the cursor


def _settled(log: Path) -> list[str]:
    """Return the calls once the last orphaned worker has gone after its driver."""
    lines = _lines(log)
    for _ in range(20):
        time.sleep(1.0)
        before, lines = lines, _lines(log)
        if len(before) == len(lines):
            break
    return lines


def _lines(log: Path) -> list[str]:
    return log.read_text().splitlines() if log.exists() else []


def _check_values(tbl: Table) -> None:
    rows = tbl.search().where(_KILLED_WHERE).select(["source", "checksum"]).limit(len(tbl))
    wrong = sum(
        r["checksum"] != hashlib.sha256(r["source"].encode()).hexdigest() for r in rows.to_list()
    )
    _require(wrong == 0, f"{wrong} values are wrong")
    _say("checked: every value is right")


# --- 7: year by year -------------------------------------------------------------------------


def _show_windows(tbl: Table, executor: ExecutorName) -> None:
    _headline(7, "Windows: the other checksums by the day of the file's change, newest first")
    days = Windows("modified", step="1d", order="backward")
    _say(str(tbl.plan_backfill("checksum", windows=days).windows))
    done = tbl.backfill("checksum", windows=days, executor=executor, concurrency=_APPLIERS)
    busy = [w for w in done.windows if w.rows_computed]
    for window in busy[:_SHOWN_WINDOWS]:
        day, seconds = window.key[:10], window.seconds
        _say(f"{day}: {window.rows_computed:,} rows in {seconds:.1f} s, {window.state.value}")
    if len(busy) > _SHOWN_WINDOWS:
        _say(f"and {len(busy) - _SHOWN_WINDOWS} days more")
    again = tbl.backfill("checksum", windows=days, executor=executor, concurrency=_APPLIERS)
    _say(f"the same command again: {again.rows_computed} rows in {again.seconds:.2f} s")
    _require(tbl.count_rows("checksum is null") == 0, "every row has a checksum")
    _require(done.rows_computed > 0 and not again.rows_computed, "windows")


# --- 8: what for -----------------------------------------------------------------------------


def _show_search(tbl: Table, embed: Any) -> None:
    matches = tbl.search().where(f"filename = '{_SEARCHED}'").limit(1).to_list()
    row = (matches or tbl.search().limit(1).to_list())[0]
    _headline(8, f"Vector search over the new column: what is written like {row['filename']}?")
    vector = embed(pa.array([row["source"]]))[0].as_py()
    hits = tbl.search(vector, vector_column_name="embedding").limit(5).to_list()
    for hit in hits:
        _say(f"{hit['_distance']:.3f}  {hit['filename']}  ({hit['functions']} functions)")
    _require(hits[0]["_distance"] < 1e-6, "a source is nearest to itself")


def _say_goodbye(root: Path, seconds: float) -> None:
    with contextlib.suppress(ValueError):
        root = root.relative_to(Path.cwd())
    db = shlex.quote(str(root))
    print(f"\nThat took {seconds:.0f} s. The table stays in {root}. To try next:", flush=True)
    for command in (
        f"columns {_TABLE} --db {db}",
        f"coverage {_TABLE} --db {db}",
        f"plan {_TABLE} functions --db {db} --retry-failed",
        f"backfill {_TABLE} words --db {db} --window-on modified --window-last 30d --force",
    ):
        print(f"  geneva {command}")
