"""Tables on an S3 server: credentials, lost and throttled requests, deaths, and what is left."""

from __future__ import annotations

import datetime as dt
import logging
import os
import pickle
import subprocess
import sys
import threading
import time
from pathlib import Path
from typing import Any

import lance
import pyarrow as pa
import pytest
from lance.file import LanceFileSession
from lance.fragment import DataFile
from typer.testing import CliRunner

import geneva
import geneva.storage.lance
from geneva.cli.commands import app
from geneva.column.file import ColumnFileName
from geneva.engine.clean import clean
from geneva.errors import StorageError, UdfError
from geneva.storage.remote import RemoteObjects
from tests.support.backfills import times, xs
from tests.support.calls import CallLog
from tests.support.s3 import Bucket
from tests.support.tables import assert_table_invariants, flushing

ROWS = 40
SECRET = "PLANTED/secret+0123456789=="
KEY = "PLANTEDKEYID"


def table_in(
    bucket: Bucket, options: dict[str, str], rows: int = ROWS, **arguments: Any
) -> geneva.Table:
    """Make a table of four fragments with the columns x and s."""
    data = pa.table({"x": range(rows), "s": [f"s{i}" for i in range(rows)]})
    lance.write_dataset(
        data, f"{bucket.uri}/db/t.lance", max_rows_per_file=rows // 4, storage_options=options
    )
    return geneva.connect(f"{bucket.uri}/db", storage_options=options, **arguments).open_table("t")


def content(table: geneva.Table, column: str = "y") -> dict[int, int | None]:
    dataset = lance.dataset(table.storage.uri, storage_options=dict(table.storage.options or {}))
    found = dataset.to_table(["x", column]).to_pydict()
    return dict(zip(found["x"], found[column], strict=True))


def doubled(rows: int = ROWS) -> dict[int, int | None]:
    return {x: 2 * x for x in range(rows)}


def objects(bucket: Bucket, options: dict[str, str]) -> dict[str, bytes]:
    """Return every object of a bucket."""
    session = LanceFileSession(f"{bucket.uri}/db", options)
    return {n: session.read_range(n, 0, 1 << 20) for n in session.list()}


# --- options and secrets ---------------------------------------------------------------------


def test_a_request_without_the_options_of_the_table(
    bucket: Bucket, calls: CallLog, executor: str
) -> None:
    # The environment leads to the same server with another key, which this bucket denies.
    options = bucket.options(KEY, SECRET)
    bucket.behave(key=KEY)
    table = table_in(bucket, options)
    table.add_columns({"y": times(calls)})
    table.backfill("y", executor=executor, concurrency=2, num_frags=2)
    table.backfill("y", executor=executor, concurrency=2, where="x >= 20")
    lance.dataset(table.storage.uri, storage_options=options).optimize.compact_files()
    table.plan_backfill("y")
    table.coverage("y")
    table.load_udf("y")
    assert table.backfill("y", executor=executor).rows_computed == 0
    table.backfill("y", executor=executor, force=True)
    clean(table.storage, 0)
    assert xs(calls) == sorted([*range(ROWS), *range(ROWS)])
    assert content(table) == doubled()
    assert "denied" not in bucket.counts


def test_options_of_one_table_that_its_connection_does_not_have(
    bucket: Bucket, calls: CallLog
) -> None:
    options = bucket.options(KEY, SECRET)
    table_in(bucket, options)
    db = geneva.connect(f"{bucket.uri}/db")
    bucket.behave(key=KEY)
    table = db.open_table("t", storage_options=options)
    table.add_columns({"y": times(calls)})
    assert table.backfill("y", executor="local").rows_computed == ROWS
    made = db.create_table("u", [{"x": 1}], storage_options=options, stable_row_ids=True)
    made.add_columns({"y": times(calls)})
    assert made.backfill("y", executor="local").rows_computed == 1


@pytest.mark.parametrize(
    "prefix", ["a b", 'it\'s "q"', "semi;-- %20 %2e", "$HOME {b} [a]", "e\u0301"]
)
def test_objects_of_a_table_under_an_odd_prefix_lie_elsewhere(
    bucket: Bucket, calls: CallLog, prefix: str
) -> None:
    options, db = bucket.options(), f"{bucket.uri}/{prefix}/db"
    lance.write_dataset(pa.table({"x": range(8)}), f"{db}/t.lance", storage_options=options)
    made = LanceFileSession(bucket.uri, options).list()
    table = geneva.connect(db, storage_options=options).open_table("t")
    table.add_columns({"y": times(calls)})
    assert table.backfill("y", executor="local").rows_computed == 8
    assert content(table) == doubled(8)
    (place,) = {name.partition("/t.lance/")[0] for name in made}
    everything = LanceFileSession(bucket.uri, options).list()
    assert all(name.startswith(f"{place}/t.lance/") for name in everything)
    assert any(name.startswith(f"{place}/t.lance/_backfill/") for name in everything)


def test_options_of_the_environment_alone(bucket: Bucket, calls: CallLog) -> None:
    table_in(bucket, bucket.options())
    table = geneva.connect(f"{bucket.uri}/db").open_table("t")
    assert table.storage.options is None
    table.add_columns({"y": times(calls)})
    assert table.backfill("y", executor="local").rows_computed == ROWS
    assert content(table) == doubled()


def ray_logs() -> dict[str, bytes]:
    """Return what Ray and its workers wrote down."""
    import ray

    folder = Path(ray.nodes()[0]["ObjectStoreSocketName"]).parents[1] / "logs"
    logs = {str(p): p.read_bytes() for p in folder.rglob("*") if p.is_file()}
    assert any("worker" in name for name in logs)
    return logs


@pytest.mark.parametrize("executor", ["local", pytest.param("ray", marks=pytest.mark.crash)])
def test_secret_in_what_the_engine_writes_or_shows(
    bucket: Bucket,
    calls: CallLog,
    executor: str,
    request: pytest.FixtureRequest,
    capfd: pytest.CaptureFixture[str],
    caplog: pytest.LogCaptureFixture,
) -> None:
    caplog.set_level(logging.DEBUG)
    if executor == "ray":
        request.getfixturevalue("ray_cluster")
    options = bucket.options(KEY, SECRET)
    table = table_in(bucket, options)
    table.add_columns({"y": times(calls)})
    seen: list[Any] = []

    @geneva.udf(num_cpus=0.5)
    def fails(x: int) -> int:
        calls(x)
        if x == 25:
            raise ValueError(f"not with {os.environ['AWS_SECRET_ACCESS_KEY']}")
        return x

    table.add_columns({"z": fails})
    with pytest.raises(geneva.errors.UdfFailedError) as failed:
        table.backfill("z", executor=executor, concurrency=1, progress=seen.append)
    seen += [failed.value, repr(failed.value.__notes__)]
    seen += [table.backfill("y", executor=executor, progress=True), table.plan_backfill("y")]
    seen += [table.coverage("y"), table.computed_columns(), table.load_udf("y")]
    seen += [table, table.storage, table.storage.open(), table.storage.objects, table.unwrap()]
    seen += [geneva.connect(f"{bucket.uri}/db", storage_options=options)]
    seen += [pickle.dumps(table.load_udf("y").dumps()), clean(table.storage, 0)]
    shown = "\n".join(f"{o!r}\n{o}" for o in seen)
    captured = capfd.readouterr()
    written = objects(bucket, options)
    assert any("_backfill/udfs/" in name for name in written)
    everything = {"shown": shown.encode(), "out": captured.out.encode()}
    everything |= {"err": captured.err.encode(), "log": caplog.text.encode()} | written
    if executor == "ray":
        everything |= ray_logs()
    for where, text in everything.items():
        assert SECRET.encode() not in text, where
        assert KEY.encode() not in text, where
        assert os.environ["AWS_SECRET_ACCESS_KEY"].encode() not in text, where
        assert SECRET not in where


def test_udf_that_carries_a_secret_into_the_table(bucket: Bucket) -> None:
    options = bucket.options(KEY, SECRET)
    table = table_in(bucket, options)

    @geneva.udf
    def peeks(x: int) -> int:
        return len(options) * x

    with pytest.raises(UdfError, match=r"'peeks' holds the value of 'aws_") as refused:
        table.add_columns({"y": peeks})
    assert SECRET not in str(refused.value)
    assert "y" not in table.schema.names
    assert not any("udfs/" in n for n in objects(bucket, options))


def test_command_that_shows_a_secret(bucket: Bucket, calls: CallLog) -> None:
    options = bucket.options(KEY, SECRET)
    table_in(bucket, options).add_columns({"y": times(calls)})

    def shown(*words: str, expected: int) -> str:
        done = CliRunner().invoke(app, [*words, f"--db={bucket.uri}/db"])
        assert done.exit_code == expected, done.output
        return str(done.output)

    given = [f"--storage-option={k}={v}" for k, v in options.items()]
    texts = [
        shown("plan", "t", "y", *given, "--json", expected=0),
        shown("backfill", "t", "y", *given, "--executor=local", "--progress", expected=0),
        shown("columns", "t", *given, expected=0),
        shown("clean", "t", *given, "--debug", expected=0),
        shown("plan", "no", "y", *given, "--debug", expected=2),
        shown("plan", "t", "y", f"--storage-option={SECRET.rstrip('=')}", expected=2),
    ]
    assert "--storage-option is not KEY=VALUE" in texts[-1]
    assert not any(SECRET.rstrip("=") in text for text in texts)


def test_shared_access_signature_in_an_error() -> None:
    from geneva.storage.door import LanceErrors

    options = {"azure_storage_sas_token": "sv=2024&sig=abc%2Fdef%3D%3Dxyz"}
    with pytest.raises(OSError, match="GET") as error, LanceErrors(options):
        raise RuntimeError(
            "Generic MicrosoftAzure error: GET https://a/b?sv=2024&sig=abc%2Fdef%3D%3Dxyz"
        )
    assert "abc" not in str(error.value)
    assert error.value.__cause__ is None
    assert error.value.__suppress_context__


# --- stores that ignore conditions -----------------------------------------------------------


@pytest.fixture
def unprobed(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(geneva.storage.lance, "_CHECKED", set())


@pytest.mark.usefixtures("unprobed")
def test_store_that_ignores_conditional_writes_is_refused_before_any_row(
    bucket: Bucket, calls: CallLog
) -> None:
    table = table_in(bucket, bucket.options())
    table.add_columns({"y": times(calls)})
    bucket.behave(ignores_conditions=True)
    with pytest.raises(StorageError, match=rf"{bucket.name}.*ignores `If-None-Match`"):
        table.backfill("y", executor="local")
    assert len(calls) == 0
    assert not any("probes/" in n for n in objects(bucket, bucket.options()))
    bucket.behave()
    assert table.backfill("y", executor="local").rows_computed == ROWS
    assert not any("probes/" in n for n in objects(bucket, bucket.options()))


@pytest.mark.usefixtures("unprobed")
def test_probe_of_a_bucket_for_every_backfill(bucket: Bucket, calls: CallLog) -> None:
    table = table_in(bucket, bucket.options())
    table.add_columns({"y": times(calls), "z": times(calls)})
    requests = []
    for _ in range(2):
        bucket.behave()
        table.storage.check_commits()
        requests.append(bucket.counts.get("requests", 0))
    assert requests[0] > 0
    assert requests[1] == 0


@pytest.mark.usefixtures("unprobed")
def test_plan_or_run_without_work_that_probes(bucket: Bucket, calls: CallLog) -> None:
    table = table_in(bucket, bucket.options())
    table.add_columns({"y": times(calls)})
    bucket.behave()
    table.plan_backfill("y")
    assert "PUT" not in bucket.counts
    table.backfill("y", executor="local")
    geneva.storage.lance._CHECKED.clear()
    bucket.behave()
    assert table.backfill("y", executor="local").rows_computed == 0
    assert "PUT" not in bucket.counts


# --- many small requests ---------------------------------------------------------------------


def test_commit_waits_for_one_reply_after_another(
    bucket: Bucket, calls: CallLog, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Of four fragments, the files are opened, and the checkpoints removed, at the same time."""
    table = table_in(bucket, bucket.options())
    table.add_columns({"y": times(calls)})
    create, delete = DataFile.create, RemoteObjects.delete
    opened, removed = threading.Barrier(4), threading.Barrier(4)

    def create_together(*given: Any) -> Any:
        opened.wait(60)
        return create(*given)

    def delete_together(objects: RemoteObjects, path: str) -> None:
        if path.startswith("work/"):
            removed.wait(60)
        delete(objects, path)

    monkeypatch.setattr(DataFile, "create", staticmethod(create_together))
    monkeypatch.setattr(RemoteObjects, "delete", delete_together)
    assert table.backfill("y", executor="local").versions
    assert content(table) == doubled()
    assert table.storage.objects.list("work") == []


# --- throttling and timeouts -----------------------------------------------------------------


@pytest.mark.parametrize(
    "behaviour",
    [
        pytest.param({"refuse_every": 3}, id="503", marks=pytest.mark.crash),
        pytest.param({"lose_every": 4}, id="lost replies"),
        pytest.param({"delay_every": 9, "delay_s": 2.5}, id="timeouts", marks=pytest.mark.crash),
    ],
)
def test_throttled_store_costs_time_and_nothing_else(
    bucket: Bucket, calls: CallLog, behaviour: dict[str, Any]
) -> None:
    options = bucket.options(timeout="1s")
    table = table_in(bucket, options)
    bucket.behave(**behaviour)
    table.add_columns({"y": times(calls)})
    result = table.backfill("y", executor="local", concurrency=2, commit_granularity=2)
    troubled = bucket.counts
    bucket.behave()
    assert troubled.get("refused", 0) + troubled.get("lost", 0) + troubled.get("delayed", 0) > 3
    assert result.rows_computed == ROWS
    assert xs(calls) == list(range(ROWS))
    assert content(table) == doubled()
    assert table.backfill("y", executor="local").rows_computed == 0
    if "delay_s" in behaviour:  # a late write of a checkpoint can come after its removal
        clean(table.storage, 0)
    assert table.storage.objects.list("work") == []
    assert_table_invariants(table)


@pytest.mark.crash
def test_store_that_goes_down_for_good_and_comes_back(
    bucket: Bucket, calls: CallLog, executor: str
) -> None:
    table = table_in(bucket, bucket.options(client_max_retries="1", lance_aimd_max_retries="0"))
    table = flushing(table)
    went_down = f"{calls.path}.down"
    control = f"http://127.0.0.1:{bucket.port}/-/{bucket.name}"

    @geneva.udf(num_cpus=0.5)
    def double(x: int) -> int:
        calls(x)
        if x == 25 and not os.path.exists(went_down):
            from urllib.request import Request, urlopen

            urlopen(Request(control, b'{"down": true}', method="PUT")).close()
            open(went_down, "w").close()
        return 2 * x

    table.add_columns({"y": double})
    with pytest.raises(StorageError, match=r"failed.*S3 error.*503") as failed:
        table.backfill("y", executor=executor, concurrency=1, batch_size=1, commit_granularity=1)
    assert "/home/" not in str(failed.value)
    with pytest.raises(StorageError):
        table.backfill("y", executor=executor)
    with pytest.raises(StorageError):
        table.plan_backfill("y")
    with pytest.raises(StorageError):
        geneva.connect(f"{bucket.uri}/db", storage_options=table.storage.options).open_table("t")
    bucket.behave(down=False)
    before = set(xs(calls))
    assert before >= set(range(25))
    table.backfill("y", executor=executor)
    # The row whose record met the outage, and what was in flight beside it.
    again = xs(calls)
    assert len(again) <= ROWS - 25 + 1, again
    assert content(table) == doubled()


def test_denied_key_as_a_corrupt_file_or_a_bare_error(bucket: Bucket, calls: CallLog) -> None:
    options = bucket.options(KEY, SECRET, client_max_retries="0", lance_aimd_max_retries="0")
    table = table_in(bucket, options)
    table.add_columns({"y": times(calls)})
    table.backfill("y", executor="local")
    name = next(n for n in table.storage.list_files() if ColumnFileName.parse(n))
    bucket.behave(key="somebody else's")
    storage = table.storage
    for attempt in (
        storage.open,
        lambda: storage.read_footer(name),
        lambda: storage.objects.get("x"),
        lambda: storage.objects.put("x", b""),
        lambda: storage.objects.list("work"),
        storage.list_files,
    ):
        with pytest.raises(OSError, match=r"403|privileges|denied|AccessDenied") as error:
            attempt()
        assert SECRET not in str(error.value)
        assert not isinstance(error.value, FileNotFoundError)


# --- deaths ----------------------------------------------------------------------------------

_KILLED = """
import os, signal, sys, time
import geneva
from dataclasses import replace
from tests.support.calls import CallLog

uri, options, log, die_at, flush_s = sys.argv[1], eval(sys.argv[2]), *sys.argv[3:]
table = geneva.connect(uri, storage_options=options).open_table("t")
table = geneva.Table(table, storage=replace(table.storage, flush_s=float(flush_s)))
calls = CallLog(log)

class Dying:
    def __call__(self, progress):
        if len(calls) >= int(die_at):
            os.kill(os.getpid(), signal.SIGKILL)

table.backfill("y", executor="local", concurrency=1, batch_size=1, checkpoint_size=1,
               commit_granularity=1, progress=Dying())
"""


def slowly(calls: CallLog) -> geneva.UDF:
    @geneva.udf
    def double(x: int) -> int:
        calls(x)
        time.sleep(0.02)
        return 2 * x

    return double


@pytest.mark.parametrize("flush_s", ["0", pytest.param("3600", marks=pytest.mark.crash)])
def test_killed_job_computes_again_only_what_was_not_flushed(
    bucket: Bucket, calls: CallLog, flush_s: str
) -> None:
    options = bucket.options()
    table = table_in(bucket, options, rows=400)
    table.add_columns({"y": slowly(calls)})
    arguments = [f"{bucket.uri}/db", repr(options), calls.path, "150", flush_s]
    killed = subprocess.run([sys.executable, "-c", _KILLED, *arguments], check=False)
    assert killed.returncode == -9
    begun = len(calls)
    assert 150 <= begun < 400
    table.backfill("y", executor="local")
    counts = calls.counts
    assert set(counts) == {str(x) for x in range(400)}
    again = counts.total() - 400
    # In flight at once: one batch computed, its record on the way. Unflushed: a fragment's.
    assert again <= (3 if flush_s == "0" else 100 + 3), again
    assert content(table) == doubled(400)
    assert table.storage.objects.list("work") == []
    assert_table_invariants(table)


# --- leftovers -------------------------------------------------------------------------------


def test_clean_takes_what_is_old_and_leaves_what_is_young(
    bucket: Bucket, calls: CallLog, monkeypatch: pytest.MonkeyPatch
) -> None:
    table = table_in(bucket, bucket.options())

    @geneva.udf
    def fails(x: int) -> int:
        if x == 25:
            raise ValueError("not this one")
        return 2 * x

    table.add_columns({"y": fails})
    storage = table.storage

    def fail() -> None:
        with pytest.raises(geneva.errors.UdfFailedError):
            table.backfill("y", executor="local", concurrency=1, batch_size=1)

    fail()
    logs = storage.objects.list("work")
    assert logs
    orphan = ColumnFileName("0" * 8, "0" * 16, True, 1).text()
    snapshot = storage.open()
    writer = storage.create_file(snapshot, orphan, pa.schema([("y", pa.int64())]))
    writer.write(pa.record_batch({"y": [1]}))
    writer.close({})
    assert not clean(storage).files
    assert storage.objects.list("work") == logs
    now = time.time()
    monkeypatch.setattr(time, "time", lambda: now + 6 * 24 * 3600)
    assert clean(storage).kept == len(logs)
    monkeypatch.setattr(time, "time", lambda: now + 8 * 24 * 3600)
    done = clean(storage)
    assert (done.logs, done.files) == (len(logs), 1)
    assert storage.objects.list("work") == []
    assert orphan not in storage.list_files()
    assert len(content(table)) == ROWS
    assert_table_invariants(table)


def test_udf_whose_age_nobody_knows_is_removed(bucket: Bucket) -> None:
    table = table_in(bucket, bucket.options())
    objects = table.storage.objects
    table.add_columns({"y": geneva.udf(data_type=pa.int64(), input_columns=["x"])(lambda x: -x)})
    table.backfill("y", executor="local", concurrency=1)
    table.drop_columns(["y"])
    udfs = objects.list("udfs")
    assert clean(table.storage, 0).records == 0  # an older version has the column
    dataset = lance.dataset(table.storage.uri, storage_options=bucket.options())
    dataset.cleanup_old_versions(older_than=dt.timedelta(0))
    assert clean(table.storage).records == 0
    assert clean(table.storage, 0).records == 1
    assert (objects.list("ledger"), objects.list("udfs")) == ([], udfs)
    assert len(udfs) == 1
