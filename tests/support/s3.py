"""An S3 server on loopback in a process of its own, and buckets that misbehave on demand."""

from __future__ import annotations

import http.client
import json
import os
import subprocess
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from uuid import uuid4

_ROOT = Path(__file__).parents[2]
_PYTHON = _ROOT / ".venv-s3" / "bin" / "python"  # moto's dependencies do not fit Geneva's pins


@dataclass(frozen=True)
class Bucket:
    """A bucket of a running server."""

    port: int
    name: str

    @property
    def uri(self) -> str:
        return f"s3://{self.name}"

    def options(
        self, key: str = "tests-key-id", secret: str = "tests-secret-key", **more: str
    ) -> dict[str, str]:
        """Return the storage options with which it is reached."""
        return {
            "aws_access_key_id": key,
            "aws_secret_access_key": secret,
            "aws_region": "us-east-1",
            "aws_endpoint": f"http://127.0.0.1:{self.port}",
            "allow_http": "true",
            "aws_virtual_hosted_style_request": "false",
            **more,
        }

    def behave(self, **behaviour: Any) -> None:
        """Set how it answers from now on, and begin to count anew; see `s3_server`."""
        self._request("PUT", f"/-/{self.name}", json.dumps(behaviour).encode())

    @property
    def counts(self) -> dict[str, int]:
        """What was asked of it since it was told how to behave."""
        return dict(json.loads(self._request("GET", f"/-/{self.name}")))

    def _request(self, method: str, path: str, body: bytes = b"") -> bytes:
        connection = http.client.HTTPConnection("127.0.0.1", self.port, timeout=60)
        try:
            connection.request(method, path, body)
            reply = connection.getresponse()
            assert reply.status == 200, (method, path, reply.status)
            return reply.read()
        finally:
            connection.close()


class S3Server:
    """The server; it ends with this process, whatever ends this process."""

    def __init__(self) -> None:
        assert _PYTHON.exists(), "there is no S3 server to test with: run `make .venv-s3/.done`"
        self._process = subprocess.Popen(
            [str(_PYTHON), str(Path(__file__).with_name("s3_server.py"))],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            env={k: v for k, v in os.environ.items() if not k.startswith("AWS_")},
        )
        assert self._process.stdout is not None
        line = self._process.stdout.readline()
        assert line, "the S3 server did not start"
        self.port = int(line)

    def bucket(self) -> Bucket:
        """Make a new bucket."""
        bucket = Bucket(self.port, f"gv-{uuid4().hex[:12]}")
        bucket._request("PUT", f"/{bucket.name}")
        return bucket

    def stop(self) -> None:
        """End it."""
        self._process.communicate()
