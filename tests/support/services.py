"""A service in a process of its own, to talk to, to kill and to start again."""

from __future__ import annotations

import os
import re
import signal
import subprocess
import sys
from contextlib import suppress
from pathlib import Path
from typing import Any

import httpx

from geneva.jobs.store.local_service import token_for
from geneva.service.service_settings import DRIVER_CLAIM
from tests.support.backfills import until
from tests.support.crashing import kill_pids


class Service:
    """`geneva serve` over one state folder; the port stays the same over restarts."""

    def __init__(
        self,
        folder: Path,
        db: Path | str,
        *options: str,
        jobs: str | None = None,
        cwd: Path | None = None,
        env: dict[str, str] | None = None,
    ) -> None:
        self.folder, self.db, self.options, self.cwd = folder, db, options, cwd
        self.env = env or {}
        self.url = jobs or f"sqlite:///{folder / 'jobs.db'}"
        self.port = 0
        self.process: subprocess.Popen[bytes] | None = None
        self.http = httpx.Client(timeout=60)
        self.token = ""

    @property
    def log(self) -> Path:
        return self.folder / "service.log"

    def start(self) -> Service:
        self.folder.mkdir(parents=True, exist_ok=True)
        size = self.log.stat().st_size if self.log.exists() else 0
        command = [sys.executable, "-m", "geneva", "serve", "--state", str(self.folder)]
        command += ["--db", str(self.db), "--port", str(self.port), "--jobs", self.url]
        with self.log.open("ab") as out:
            command += self.options
            self.process = subprocess.Popen(
                command, stdout=out, stderr=out, cwd=self.cwd, env=os.environ | self.env
            )

        def port() -> int:
            assert self.process is not None
            assert self.process.poll() is None, self.log.read_text()
            found = re.search(r"running on http://\S+:(\d+)", self.log.read_text()[size:])
            return int(found[1]) if found else 0

        until(port)
        self.port = port()
        self.http.base_url = httpx.URL(f"http://127.0.0.1:{self.port}")
        self.token = self.env.get("GENEVA_TOKEN") or self._own_token(size)
        self.http.headers["Authorization"] = f"Bearer {self.token}"
        return self

    def _own_token(self, size: int) -> str:
        """Wait until the service has written its token down, and return it."""
        until(lambda: "/?token=" in self.log.read_text()[size:])
        token = token_for(str(self.http.base_url))
        assert token is not None
        return token

    def kill(self) -> None:
        """Kill the service as the kernel would; its drivers are not touched."""
        assert self.process is not None
        self.process.kill()
        self.process.wait()

    def stop(self) -> None:
        """End the service and every driver that it started."""
        if self.process is not None and self.process.poll() is None:
            self.process.send_signal(signal.SIGINT)
            self.process.wait(20)
        kill_pids({pid for pid in self.started if is_driver(pid)})
        self.http.close()

    @property
    def started(self) -> set[int]:
        """The drivers that were ever started."""
        found = re.findall(r"started process (\d+) on", self.log.read_text())
        return {int(pid) for pid in found}

    # --- requests ------------------------------------------------------------------------

    def ask(self, method: str, path: str, status: int = 200, **options: Any) -> Any:
        answer = self.http.request(method, path, **options)
        assert answer.status_code == status, answer.text
        return answer.json() if answer.content else None

    def submit(self, column: str = "y", **more: Any) -> str:
        body = {"table": "t", "columns": [column], "arguments": {"executor": "local"}}
        body |= {"db": str(self.db)} | more
        return str(self.ask("POST", "/api/v1/runs", 201, json=body)["id"])

    def cancel_all(self) -> None:
        """Cancel what a test left behind, and wait until it is gone."""
        for run in self.ask("GET", "/api/v1/runs?limit=1000")["items"]:
            if run["ended_at"] is None:
                self.http.post(f"/api/v1/runs/{run['id']}/cancel")  # refused if it has just ended
                self.until(run["id"], "CANCELLED", "SUCCEEDED", "PARTIAL", "FAILED")

    def run(self, run_id: str) -> Any:
        return self.ask("GET", f"/api/v1/runs/{run_id}")

    def steer(self, run_id: str, verb: str, status: int = 200) -> Any:
        return self.ask("POST", f"/api/v1/runs/{run_id}/{verb}", status)

    def job(self, run_id: str) -> Any:
        return self.run(run_id)["jobs"][-1]

    def states(self, run_id: str) -> list[str]:
        """The states that the run's jobs went through."""
        events = self.ask("GET", f"/api/v1/runs/{run_id}/events")["items"]
        return [e["data"]["to"] for e in events if e["kind"] == "state"]

    def until(self, run_id: str, *states: str, timeout_s: float = 60.0) -> Any:
        """Wait until a run is in one of these states."""
        seen = self.run(run_id)

        def there() -> bool:
            nonlocal seen
            seen = self.run(run_id)
            assert seen["state"] in states or not seen["ended_at"], seen
            return seen["state"] in states

        until(there, timeout_s)
        return seen

    def driver(self, run_id: str) -> int:
        """Wait for the process that has the run's job, and return its id."""
        until(lambda: re.match(r"process \d+", self.job(run_id)["process"]))
        pid = int(self.job(run_id)["process"].split()[1])
        assert pid != os.getpid()
        return pid


def is_driver(pid: int) -> bool:
    """Whether it is one still: by now the number may be another process's, or a thread's of it.

    To kill a thread is to kill its process: once that was another pytest.
    """
    with suppress(OSError):
        return f"{DRIVER_CLAIM}=".encode() in Path(f"/proc/{pid}/environ").read_bytes()
    return False


def is_running(pid: int) -> bool:
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except FileNotFoundError:
        return False
