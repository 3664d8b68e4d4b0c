"""udfs.files on real tables: real files, and a real HTTP server on the loopback interface."""

from __future__ import annotations

import http.server
import threading
import time
from collections import Counter
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import pyarrow as pa
import pytest

import geneva
from tests.support.tables import assert_table_invariants, column, make_table
from udfs.files import TransientReadError, read_bytes

BODY = bytes(range(256)) * 100


class Server(http.server.ThreadingHTTPServer):
    """Answers by path: ``/flaky/<fails>/<n>`` fails so often before it succeeds."""

    daemon_threads = True

    def __init__(self) -> None:
        super().__init__(("127.0.0.1", 0), Handler)
        self.calls: Counter[str] = Counter()
        self.url = f"http://127.0.0.1:{self.server_port}"


class Handler(http.server.BaseHTTPRequestHandler):
    server: Server

    def do_GET(self) -> None:
        self.server.calls[self.path] += 1
        kind, *rest = self.path.strip("/").split("/")
        match kind:
            case "flaky" if self.server.calls[self.path] <= int(rest[0]):
                self.send_error(503)
            case "gone":
                self.send_error(404)
            case "short" if self.server.calls[self.path] == 1:
                self.answer(BODY[:500], len(BODY))
            case "cut" if self.server.calls[self.path] == 1:
                pass  # the connection closes without a word
            case "slow":
                self.drip()
            case "undeclared":
                self.answer(BODY, None)
            case _:
                self.answer(BODY, len(BODY))

    def answer(self, body: bytes, declared: int | None) -> None:
        self.send_response(200)
        if declared is not None:
            self.send_header("Content-Length", str(declared))
        self.end_headers()
        self.wfile.write(body)

    def drip(self) -> None:
        """Send a byte now and then, for ever: no single read ever times out."""
        self.send_response(200)
        self.end_headers()
        try:
            while True:
                self.wfile.write(b".")
                time.sleep(0.02)
        except OSError:
            pass

    def log_message(self, *_: object) -> None:
        """Keep quiet."""


@pytest.fixture
def server() -> Iterator[Server]:
    with Server() as running:
        thread = threading.Thread(target=running.serve_forever, args=(0.01,))
        thread.start()
        yield running
        running.shutdown()
        thread.join()


@pytest.fixture
def quick() -> geneva.UDF:
    """`read_bytes` with shorter waits between its attempts; all else is as it is."""
    retry = replace(read_bytes.retry, wait=0.01)
    return geneva.udf(
        read_bytes.target, data_type=read_bytes.data_type, params=read_bytes.params, retry=retry
    )


def filled(
    folder: Path,
    udf: geneva.UDF,
    paths: list[str | None],
    executor: str = "local",
    **options: object,
) -> tuple[geneva.Table, geneva.BackfillResult]:
    data = pa.table({"path": pa.array(paths, pa.string())})
    table = make_table(folder, data=data, fragments=2)
    table.add_columns({"content": udf})
    result = table.backfill("content", executor=executor, **options)
    assert_table_invariants(table)
    return table, result


def test_file_that_does_not_come_back_byte_for_byte(tmp_path: Path):
    folder = tmp_path / "with space & ümlaut"
    folder.mkdir()
    contents = [b"", b"\x00\xff" * 1000, BODY, "text\r\n".encode("utf-16")]
    files = [folder / f"{k}.bin" for k in range(len(contents))]
    for file, content in zip(files, contents, strict=True):
        file.write_bytes(content)
    paths = [*map(str, files), *(f.as_uri() for f in files), None]

    table, result = filled(tmp_path / "db", read_bytes, paths, concurrency=2)
    assert table.schema.field("content").type == pa.large_binary()
    assert column(table, "content") == [*contents, *contents, None]
    assert result.rows_computed == len(paths)


def test_server_that_fails_twice_costs_a_row(
    tmp_path: Path, quick: geneva.UDF, server: Server, executor: str
):
    names = ["/flaky/2/0", "/flaky/2/1", "/short/0", "/cut/0", "/undeclared/0", "/plain/0"]
    table, result = filled(
        tmp_path,
        quick,
        [server.url + n for n in names],
        executor=executor,
        concurrency=2,
        intra_applier_concurrency=2,
        batch_size=1,
    )
    assert column(table, "content") == [BODY] * len(names)
    assert result.rows_failed == 0
    assert [server.calls[n] for n in names] == [3, 3, 2, 2, 1, 1]


def test_server_that_stays_away_is_asked_for_ever(
    tmp_path: Path, quick: geneva.UDF, server: Server
):
    names = ["/flaky/99/0", "/plain/0"]
    table, result = filled(tmp_path, quick, [server.url + n for n in names], on_error="null")
    assert server.calls["/flaky/99/0"] == read_bytes.retry.attempts == 4
    assert column(table, "content") == [None, BODY]
    assert result.failures["attempts"].to_pylist() == [4]
    assert "503" in result.failures["message"][0].as_py()


def test_fault_that_will_not_pass_is_tried_again(tmp_path: Path, quick: geneva.UDF, server: Server):
    missing = str(tmp_path / "missing")
    paths = [server.url + "/gone/0", missing, "s3://bucket/key", "file://elsewhere/x"]
    table, result = filled(tmp_path / "db", quick, paths, on_error="null")
    assert server.calls["/gone/0"] == 1
    assert result.failures["attempts"].to_pylist() == [1, 1, 1, 1]
    errors = dict(zip(result.failures["input"].to_pylist(), result.failures["message"].to_pylist()))  # noqa: B905
    text = "\n".join(errors.values())
    assert "404" in text
    assert missing in text
    assert "s3://" in text
    assert "another host" in text
    assert column(table, "content") == [None] * 4


def test_file_that_is_larger_than_allowed_is_read(tmp_path: Path, server: Server):
    large = tmp_path / "large"
    large.write_bytes(BODY)
    paths = [str(large), server.url + "/plain/0", server.url + "/undeclared/0", "/dev/zero"]
    table, result = filled(
        tmp_path / "db", read_bytes, paths, on_error="null", params={"max_bytes": 1000}
    )
    assert result.rows_failed == 4
    assert all("max_bytes=1,000" in m for m in result.failures["message"].to_pylist())
    assert column(table, "content") == [None] * 4


def test_parameter_of_one_call_that_stays(tmp_path: Path):
    large = tmp_path / "large"
    large.write_bytes(BODY)
    table, result = filled(
        tmp_path / "db", read_bytes, [str(large)], on_error="null", params={"max_bytes": 1}
    )
    assert result.rows_failed == 1
    table.backfill("content", executor="local")
    assert column(table, "content") == [BODY]


def test_server_that_drips_for_ever_holds_up_the_job(server: Server):
    started = time.monotonic()
    read = read_bytes.with_params({"timeout_s": 0.2}).instantiate()
    with pytest.raises(TransientReadError, match="not complete in time"):
        read(server.url + "/slow")
    assert time.monotonic() - started < 5


def test_nobody_listening_is_not_an_error_that_may_pass():
    with Server() as gone:
        url = gone.url
    with pytest.raises(TransientReadError, match="refused"):
        read_bytes(url)
