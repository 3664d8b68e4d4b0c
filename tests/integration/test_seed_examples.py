"""The founding document's examples, as their author wrote them, on both executors."""

from __future__ import annotations

import os
import threading
from pathlib import Path

import lancedb
import pyarrow as pa
import pytest

import geneva
from geneva.errors import WhereError
from tests.support.backfills import CPUS, Gate, run, times, until, xs
from tests.support.calls import CallLog
from tests.support.tables import assert_table_invariants, column, database, make_table, pairs


def test_ten_appliers_of_five_threads_never_reach_fifty_calls(
    tmp_path: Path, calls: CallLog, executor: str
) -> None:
    table = make_table(tmp_path, rows=200, fragments=40)
    fifty = Gate(tmp_path / "fifty")

    @geneva.udf(data_type=pa.list_(pa.float32(), 2), num_cpus=0.1)
    def embedding(x: int) -> list[float]:
        # A call ends when fifty are under way at once: if they never are, the job fails.
        calls(f"+{os.getpid()}:{threading.get_ident()}")
        if sum(1 if k[0] == "+" else -1 for k in calls.keys) >= 50:
            fifty.open()
        fifty.wait()
        calls("-")
        return [float(x), 0.0]

    table.add_columns({"embedding": embedding})
    result = table.backfill(
        "embedding",
        concurrency=10,
        intra_applier_concurrency=5,
        batch_size=1,
        executor=executor,
    )

    assert result.rows_computed == 200
    under_way, most = 0, 0
    for key in calls.keys:
        under_way += 1 if key[0] == "+" else -1
        most = max(most, under_way)
    assert most == 50
    places = {tuple(k[1:].split(":")) for k in calls.keys if k[0] == "+"}
    threads: dict[str, set[str]] = {}
    for process, thread in places:
        threads.setdefault(process, set()).add(thread)
    if executor == "ray":
        assert len(threads) == 10
        assert all(len(t) <= 5 for t in threads.values())
    assert_table_invariants(table, {"embedding": lambda row: [float(row["x"]), 0.0]})


def test_async_calls_under_way_are_not_as_many_as_asked_for(
    tmp_path: Path, calls: CallLog, executor: str
) -> None:
    table = make_table(tmp_path, rows=40, fragments=1)
    five = Gate(tmp_path / "five")

    @geneva.udf(num_cpus=CPUS)
    async def wait(x: int) -> int:
        import asyncio

        calls("+")
        if sum(1 if k == "+" else -1 for k in calls.keys) >= 5:
            five.open()
        for _ in range(6000):
            if five.is_open:
                break
            await asyncio.sleep(0.01)
        else:
            raise TimeoutError("five calls were never under way at once")
        calls("-")
        return x

    table.add_columns({"y": wait})
    table.backfill("y", concurrency=1, intra_applier_concurrency=5, executor=executor)

    under_way, most = 0, 0
    for key in calls.keys:
        under_way += 1 if key == "+" else -1
        most = max(most, under_way)
    assert most == 5
    assert column(table, "y") == list(range(40))


def test_num_frags_computes_more_or_computes_again(
    tmp_path: Path, calls: CallLog, executor: str
) -> None:
    table = make_table(tmp_path, rows=50, fragments=5)
    table.add_columns({"embedding": times(calls)})

    sample = run(table, "embedding", executor, num_frags=2)
    assert (sample.rows_computed, sample.fragments_committed, sample.fragments_left) == (20, 2, 3)
    assert [v is None for v in column(table, "embedding")].count(False) == 20
    first = xs(calls)

    rest = run(table, "embedding", executor)
    assert (rest.rows_computed, rest.fragments_committed, rest.fragments_left) == (30, 3, 0)
    assert sorted(first + xs(calls)) == list(range(50))
    assert column(table, "embedding") == [2 * i for i in range(50)]
    assert_table_invariants(table)


def test_reader_sees_nothing_before_the_job_ends(
    tmp_path: Path, calls: CallLog, executor: str
) -> None:
    table = make_table(tmp_path, rows=50, fragments=25)
    gates = [Gate(tmp_path / "first"), Gate(tmp_path / "second")]

    @geneva.udf(num_cpus=CPUS)
    def embedding(x: int) -> int:
        calls(x)
        # Commits take at most a fifth of the time: where they are slow, more would be in one.
        if x >= 20:
            gates[0].wait()
        if x >= 40:
            gates[1].wait()
        return x

    table.add_columns({"embedding": embedding})
    before = table.version
    job = table.backfill_async("embedding", commit_granularity=10, concurrency=1, executor=executor)
    reader = lancedb.connect(database(tmp_path)).open_table("t")

    def seen() -> int:
        reader.checkout_latest()
        return reader.count_rows("embedding is not null")

    until(lambda: seen() > 0)
    assert seen() == 20  # ten whole fragments, no more and no less
    assert not job.state.ended
    until(lambda: job.progress().fragments_committed == 10)  # reported just after the commit
    gates[0].open()
    until(lambda: seen() > 20)
    assert seen() == 40
    assert not job.state.ended
    gates[1].open()
    result = job.wait(60)

    assert seen() == 50
    assert len(result.versions) == 3
    assert min(result.versions) > before
    assert xs(calls) == list(range(50))
    assert_table_invariants(table, {"embedding": lambda row: row["x"]})


def _videos(path: Path, calls: CallLog) -> geneva.Table:
    names = [f"{'abc'[i % 3]}{i}.mp4" for i in range(30)]
    table = make_table(path, data=pa.table({"filename": names}), fragments=3)

    @geneva.udf(num_cpus=CPUS)
    def content(filename: str) -> bytes:
        calls(f"content:{filename}")
        return filename.encode()

    @geneva.udf(num_cpus=CPUS, data_type=pa.list_(pa.float32(), 2))
    def embedding(content: bytes) -> list[float]:
        calls(f"embedding:{content.decode()}")
        return [float(len(content)), float(content[0])]

    table.add_columns({"content": content, "embedding": embedding})
    return table


def _passed(calls: CallLog) -> tuple[set[str], set[str]]:
    """Return the names that each UDF got since last asked; each at most once."""
    counts = calls.counts
    calls.clear()
    assert set(counts.values()) <= {1}
    split = [k.split(":") for k in counts]
    return {n for u, n in split if u == "content"}, {n for u, n in split if u == "embedding"}


def test_the_five_filters_compute_a_row_too_many_or_too_few(
    tmp_path: Path, calls: CallLog, executor: str
) -> None:
    table = _videos(tmp_path, calls)
    names = column(table, "filename")
    starting_with_a = {n for n in names if n.startswith("a")}
    starting_with_b = {n for n in names if n.startswith("b")}

    # only backfill video content whose filenames start with 'a'
    run(table, "content", executor, where="starts_with(filename, 'a')")
    assert _passed(calls) == (starting_with_a, set())
    # only backfill embeddings of only those videos with content
    run(table, "embedding", executor, where="content is not null")
    assert _passed(calls) == (set(), starting_with_a)

    # If new rows are added, we can run the same command and the new rows are updated.
    table.add(pa.table({"filename": ["a90.mp4", "b91.mp4", "a92.mp4"]}))
    run(table, "content", executor, where="starts_with(filename, 'a')")
    run(table, "embedding", executor, where="content is not null")
    assert _passed(calls) == ({"a90.mp4", "a92.mp4"}, {"a90.mp4", "a92.mp4"})

    # 'a' or 'b', but only if content was not pulled previously
    run(
        table,
        "content",
        executor,
        where="(starts_with(filename, 'a') or starts_with(filename, 'b')) and content is null",
    )
    assert _passed(calls) == (starting_with_b | {"b91.mp4"}, set())
    # only those videos with content and no previous embeddings
    run(table, "embedding", executor, where="content is not null and embedding is null")
    assert _passed(calls) == (set(), starting_with_b | {"b91.mp4"})
    # overwrite: those with content and with previous embeddings
    again = run(table, "embedding", executor, where="content is not null and embedding is not null")
    assert again.rows_overwritten == again.rows_computed == 23
    assert len(_passed(calls)[1]) == 23

    assert pairs(table, "filename", "content") == {
        n: None if n.startswith("c") else n.encode() for n in column(table, "filename")
    }
    assert_table_invariants(
        table, {"embedding": lambda r: [float(len(r["filename"])), float(ord(r["filename"][0]))]}
    )


def test_the_misspelt_filter_of_the_document_is_run_as_something_else(
    tmp_path: Path, calls: CallLog
) -> None:
    table = _videos(tmp_path, calls)
    with pytest.raises(WhereError, match=r"unknown column 'embeddding'.*mean 'embedding'"):
        table.backfill("embedding", where="content is not null and embeddding is not null")
    assert not len(calls)


def test_overwrite_leaves_old_values_or_touches_other_rows(
    tmp_path: Path, calls: CallLog, executor: str
) -> None:
    table = make_table(tmp_path, rows=40, fragments=4)
    offset = tmp_path / "offset"
    offset.write_text("0")

    @geneva.udf(num_cpus=CPUS, version="1")
    def y(x: int) -> int:
        calls(x)
        with open(str(offset)) as f:
            return x + int(f.read())

    table.add_columns({"y": y})
    run(table, "y", executor)
    xs(calls)
    offset.write_text("1000")
    result = run(table, "y", executor, where="x < 15")

    assert (result.rows_computed, result.rows_overwritten) == (15, 15)
    assert (result.fragments_committed, result.fragments_skipped) == (2, 0)
    assert xs(calls) == list(range(15))
    assert column(table, "y") == [i + 1000 * (i < 15) for i in range(40)]
    assert_table_invariants(table)
