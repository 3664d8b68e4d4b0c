"""A service over tables on an object store: whose credentials it uses, and who sees them."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import lance
import pyarrow as pa
import pytest

import geneva
from geneva.errors import JobStateError, SettingError
from geneva.jobs.records import Submission
from geneva.jobs.store.store import Store
from geneva.service.opened_tables import STORAGE_OPTIONS, storage_options
from tests.support.s3 import Bucket
from tests.support.services import Service

SECRET, KEY = "PLANTED/secret+0123456789==", "PLANTEDKEYID"
ROWS = 20


@pytest.fixture
def options(bucket: Bucket, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> dict[str, str]:
    """Storage options, in the service's file, without which the bucket answers nobody."""
    options = bucket.options(KEY, SECRET, client_max_retries="1", lance_aimd_max_retries="0")
    file = tmp_path / "storage.toml"
    body = "\n".join(f'{k} = "{v}"' for k, v in options.items())
    file.write_text(f'["{bucket.uri}"]\n{body}\n')
    file.chmod(0o600)
    monkeypatch.setenv(STORAGE_OPTIONS, str(file))
    bucket.behave(key=KEY)
    return options


@pytest.fixture
def table(bucket: Bucket, options: dict[str, str]) -> geneva.Table:
    """A table of two fragments; y = 2 * x, and z fails on a row."""
    data, db = pa.table({"x": range(ROWS)}), f"{bucket.uri}/db"
    lance.write_dataset(data, f"{db}/t.lance", max_rows_per_file=ROWS // 2, storage_options=options)
    made = geneva.connect(db, storage_options=options).open_table("t")

    @geneva.udf
    def double(x: int) -> int:
        return 2 * x

    @geneva.udf
    def fails(x: int) -> int:
        if x == 15:
            raise ValueError("not this one")
        return x

    made.add_columns({"y": double, "z": fails})
    return made


@pytest.fixture
def s3_service(table: geneva.Table, tmp_path: Path) -> Iterator[Service]:
    service = Service(tmp_path / "state", table.storage.uri.rsplit("/", 1)[0]).start()
    yield service
    service.stop()


def shown(service: Service, *runs: str) -> str:
    """Return all that a person gets to see of some runs."""
    paths = ["/api/v1/runs", "/api/v1/jobs", "/metrics"]
    for run in runs:
        job = service.job(run)["id"]
        paths += [f"/api/v1/runs/{run}", f"/api/v1/runs/{run}/events"]
        paths += [f"/api/v1/jobs/{job}/{what}" for what in ("tasks", "failures", "logs")]
    return "\n".join(service.http.get(path).text for path in paths)


def test_served_job_reaches_a_bucket_and_shows_no_credential(
    s3_service: Service, table: geneva.Table, bucket: Bucket, options: dict[str, str]
) -> None:
    done = s3_service.submit("y")
    failed = s3_service.submit("z")
    assert s3_service.until(done, "SUCCEEDED")["jobs"][0]["rows_computed"] == ROWS
    s3_service.until(failed, "FAILED")
    found = table.storage.open().dataset.to_table(["y"])["y"].to_pylist()
    assert found == [2 * x for x in range(ROWS)]
    [coverage] = s3_service.ask("GET", "/api/v1/tables/t/coverage?column=y")
    assert coverage["fragments"] == 2
    assert "denied" not in bucket.counts
    bucket.behave(key="somebody else's")
    body = {"table": "t", "columns": ["y"]}
    denied = s3_service.http.post("/api/v1/runs", json=body)
    assert denied.status_code == 503, denied.text
    everything = {"shown": (shown(s3_service, done, failed) + denied.text).encode()}
    everything |= {str(p): p.read_bytes() for p in s3_service.folder.rglob("*") if p.is_file()}
    assert any(name.endswith(".log") for name in everything)
    assert any(name.endswith("jobs.db") for name in everything)
    for where, text in everything.items():
        assert SECRET.encode() not in text, where
        assert KEY.encode() not in text, where


# --- the file of storage options -------------------------------------------------------------


@pytest.fixture
def file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    path = tmp_path / "storage.toml"
    path.touch(0o600)
    monkeypatch.setenv(STORAGE_OPTIONS, str(path))
    return path


def test_options_of_another_database_are_used(file: Path) -> None:
    file.write_text(
        '["s3://a"]\nkey = "bucket"\n["s3://a/db"]\nkey = "db"\n["s3://b/"]\nkey = "other"\n'
    )
    found = {
        db: (storage_options(db) or {}).get("key")
        for db in ("s3://a", "s3://a/x", "s3://a/db", "s3://a/db/", "s3://a/db/x", "s3://a/db2")
    }
    assert list(found.values()) == ["bucket", "bucket", "db", "db", "db", "bucket"]
    assert storage_options("s3://b/x") == {"key": "other"}
    assert storage_options("s3://ab") is None
    assert storage_options("/data") is None
    file.write_text("")  # what changed holds at once
    assert storage_options("s3://a") is None


@pytest.mark.parametrize(
    ("text", "mode", "told"),
    [
        (f'["s3://a"]\nkey = "{SECRET}"', 0o640, "chmod 600"),
        (f'["s3://a"]\nkey = {SECRET}', 0o600, "no TOML"),
        (f'key = "{SECRET}"', 0o600, "'key' must be a table"),
        ('["s3://a"]\nallow_http = true', 0o600, "'s3://a' must be a table of texts"),
    ],
)
def test_file_of_options_that_is_wrong(file: Path, text: str, mode: int, told: str) -> None:
    file.write_text(text)
    file.chmod(mode)
    with pytest.raises(SettingError, match=told) as error:
        storage_options("s3://a")
    assert SECRET not in str(error.value)


def test_file_of_options_that_is_not_there(file: Path) -> None:
    file.unlink()
    with pytest.raises(SettingError, match=r"GENEVA_STORAGE_OPTIONS=.*cannot be read"):
        storage_options("s3://a")


# --- requests that hold secrets --------------------------------------------------------------

ASKED = Submission(db="db", table="t", columns=("y",))


@pytest.mark.parametrize(
    ("request_", "what"),
    [
        (replace(ASKED, ray={"runtime_env": {"env_vars": {"HF_TOKEN": SECRET}}}), "ray"),
        (replace(ASKED, ray={"_redis_password": SECRET}), "ray"),
        (
            replace(ASKED, ray={"runtime_env": {"pip": [f"x @ https://me:{SECRET}@host/x"]}}),
            "ray",
        ),
        (replace(ASKED, arguments={"params": {"p": f"k={SECRET}"}}), "params"),
    ],
)
def test_secret_is_queued_in_clear(
    jobs: Store, monkeypatch: pytest.MonkeyPatch, request_: Submission, what: str
) -> None:
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", SECRET)
    with pytest.raises(SettingError, match=f"^{what} would put a secret into") as error:
        jobs.submit(request_, "db/t.lance", ["y"])
    assert SECRET not in str(error.value)
    plain = {"address": "auto", "runtime_env": {"env_vars": {"TOKENIZERS_PARALLELISM": "false"}}}
    assert jobs.submit(replace(ASKED, ray=plain), "db/t.lance", ["y"]).id


def test_recorded_call_leaves_its_secrets_behind(tmp_path: Path) -> None:
    url = f"sqlite:///{tmp_path / 'history.db'}"
    ray = {"num_cpus": 1, "runtime_env": {"env_vars": {"HF_TOKEN": SECRET}}}
    table = geneva.connect(str(tmp_path / "db"), ray=ray, jobs=url).create_table("t", [{"x": 1}])

    @geneva.udf
    def fails(x: int) -> int:
        raise ValueError("never")

    table.add_columns({"y": fails})
    with pytest.raises(geneva.errors.UdfFailedError):
        table.backfill("y", executor="local", progress=False)
    for path in tmp_path.glob("history.db*"):
        assert SECRET.encode() not in path.read_bytes()
    [run] = geneva.connect(str(tmp_path / "db"), jobs=url).runs()
    with pytest.raises(JobStateError, match="without its secrets, so only its caller"):
        run.retry()
