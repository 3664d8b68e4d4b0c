"""moto's S3 on loopback, with faults on demand. Runs in .venv-s3; ends when its stdin closes.

``PUT /-/<bucket>`` sets how a bucket behaves from then on (the attributes of `_Bucket`),
``GET /-/<bucket>`` returns what was counted. Everything else goes to moto.
"""

from __future__ import annotations

import json
import logging
import re
import sys
import threading
import time
from collections import Counter, defaultdict
from collections.abc import Callable, Iterable
from io import BytesIO
from typing import Any

from moto.server import create_backend_app
from werkzeug.serving import WSGIRequestHandler, make_server

_SLOW_DOWN = (
    b"<Error><Code>SlowDown</Code><Message>Please reduce your request rate.</Message></Error>"
)
_DENIED = b"<Error><Code>AccessDenied</Code><Message>not the key of this bucket</Message></Error>"
_SIGNED_BY = re.compile(r"Credential=([^/]+)/")

Start = Callable[..., Any]


class _Handler(WSGIRequestHandler):
    protocol_version = "HTTP/1.1"  # a connection for each request doubles the time
    disable_nagle_algorithm = True

    def log_request(self, *_: Any) -> None: ...


class _Bucket:
    """How one bucket behaves, and what was asked of it."""

    def __init__(self) -> None:
        self.refuse_every = 0  # each n-th request gets a 503 and is not carried out
        self.lose_every = 0  # each n-th is carried out, and gets a 503
        self.delay_every = 0  # each n-th is answered late
        self.delay_s = 0.0
        self.down = False
        self.ignores_conditions = False  # as stores do that never heard of If-None-Match
        self.key = ""  # who else signs is denied
        self.counts: Counter[str] = Counter()


class _Store:
    """Moto behind the buckets' behaviour."""

    def __init__(self) -> None:
        self._moto = create_backend_app("s3")
        self._buckets: dict[str, _Bucket] = defaultdict(_Bucket)
        self._lock = threading.Lock()
        self._conditional = threading.Lock()  # moto looks, then writes: two could both succeed

    def __call__(self, environ: dict[str, Any], start: Start) -> Iterable[bytes]:
        size = int(environ.get("CONTENT_LENGTH") or 0)
        body = environ["wsgi.input"].read(size) if size else b""
        environ["wsgi.input"] = BytesIO(body)
        parts = environ["PATH_INFO"].split("/", 3)
        if parts[1] == "-":
            return self._control(parts[2], environ["REQUEST_METHOD"], body, start)
        return self._serve(self._buckets[parts[1]], environ, start)

    def _control(self, name: str, method: str, body: bytes, start: Start) -> Iterable[bytes]:
        if method == "PUT":
            bucket = self._buckets[name] = _Bucket()
            for key, value in json.loads(body).items():
                setattr(bucket, key, value)
        return _answer(start, "200 OK", json.dumps(self._buckets[name].counts).encode())

    def _serve(self, bucket: _Bucket, environ: dict[str, Any], start: Start) -> Iterable[bytes]:
        signed = _SIGNED_BY.search(environ.get("HTTP_AUTHORIZATION", ""))
        with self._lock:
            bucket.counts["requests"] += 1
            bucket.counts[environ["REQUEST_METHOD"]] += 1
            n = bucket.counts["requests"]
        if bucket.key and (signed is None or signed[1] != bucket.key):
            bucket.counts["denied"] += 1
            return _answer(start, "403 Forbidden", _DENIED)
        if bucket.down or _due(n, bucket.refuse_every):
            bucket.counts["refused"] += 1
            return _answer(start, "503 Slow Down", _SLOW_DOWN)
        if _due(n, bucket.delay_every):
            bucket.counts["delayed"] += 1
            time.sleep(bucket.delay_s)
        if bucket.ignores_conditions:
            environ.pop("HTTP_IF_NONE_MATCH", None)
        lose = _due(n, bucket.lose_every)
        if "HTTP_IF_NONE_MATCH" in environ:
            bucket.counts["conditional"] += 1
            with self._conditional:
                return self._moto_or_silence(bucket, environ, start, lose)
        return self._moto_or_silence(bucket, environ, start, lose)

    def _moto_or_silence(
        self, bucket: _Bucket, environ: dict[str, Any], start: Start, lose: bool
    ) -> Iterable[bytes]:
        if not lose:
            return self._moto(environ, start)
        list(self._moto(environ, lambda *_: None))
        bucket.counts["lost"] += 1
        return _answer(start, "503 Slow Down", _SLOW_DOWN)


def _due(n: int, every: int) -> bool:
    return every > 0 and n % every == 0


def _answer(start: Start, status: str, body: bytes) -> Iterable[bytes]:
    start(status, [("Content-Length", str(len(body))), ("Content-Type", "application/xml")])
    return [body]


def main() -> None:
    """Serve on a free port, which is printed, until stdin closes."""
    logging.getLogger("werkzeug").setLevel(logging.ERROR)
    server = make_server("127.0.0.1", 0, _Store(), threaded=True, request_handler=_Handler)
    server.daemon_threads = True
    threading.Thread(target=server.serve_forever, daemon=True).start()
    print(server.port, flush=True)
    sys.stdin.read()


if __name__ == "__main__":
    main()
