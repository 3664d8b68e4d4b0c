"""A job of kind ``job``: a function or a command as a process, with its report and its log."""

from __future__ import annotations

import contextlib
import os
import pickle
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from geneva.errors import JobCancelledError, JobError, JobTimeoutError
from geneva.flow.reports import PLACE, reported
from geneva.flow.spec import Container, JobRun
from geneva.flow.templates import render

_LOOK_S = 0.05
_GRACE_S = 5.0
_TAIL = 2_000


@dataclass(frozen=True, slots=True)
class Report:
    """The results that a job told."""

    outputs: Mapping[str, Any] = field(default_factory=dict)
    metrics: Mapping[str, float] = field(default_factory=dict)
    artifacts: Mapping[str, str] = field(default_factory=dict)


class JobProcess:
    """One job: its process, started again after a death as often as it may be.

    Parameters
    ----------
    folder
        Its own: ``log.txt``, ``report.jsonl`` and ``outputs/`` lie there.
    env
        More variables of its environment.
    retries
        How often a process that died is started again; one that failed is not.
    timeout_s
        Seconds for all attempts together.
    """

    def __init__(
        self,
        run: JobRun,
        inputs: Mapping[str, object],
        names: Mapping[str, object],
        folder: Path,
        env: Mapping[str, str],
        retries: int = 0,
        timeout_s: float | None = None,
    ) -> None:
        self._folder, self._env = folder, env
        self._retries, self._timeout_s = retries, timeout_s
        self._cancelled = threading.Event()
        self.name = run.call or "the command"
        if run.call is not None:
            self._work: dict[str, Any] = {"call": run.call, "inputs": dict(inputs)}
        else:
            assert run.container is not None
            self._work = _command(run.container, names)
            self._env = {**env, **_variables(run.container, names)}

    def cancel(self) -> None:
        """End the process: a signal to end, and after a while a signal that ends it."""
        self._cancelled.set()

    def run(self) -> Report:
        """Run it to its end.

        Raises
        ------
        JobError
            It failed, or its process died too often.
        JobCancelledError, JobTimeoutError
            It was cancelled, or its time was up.
        """
        (self._folder / "outputs").mkdir(parents=True, exist_ok=True)
        deadline = None if self._timeout_s is None else time.monotonic() + self._timeout_s
        for attempt in range(self._retries + 1):
            code = self._attempt(attempt, deadline)
            told = self._told()
            if code == 0:
                return Report(told["outputs"], told["metrics"], told["artifacts"])
            if failure := told.get("failure"):
                raise JobError(f"{self.name} failed: {failure['text']}")
            if code > 0 and "command" in self._work and code < 128:
                raise JobError(f"{self.name} ended with exit code {code}: {self._tail()}")
        times = "" if not self._retries else f" {self._retries + 1} times"
        how = f"by signal {-code}" if code < 0 else f"with exit code {code}"
        raise JobError(f"the process of {self.name} died{times} {how}: {self._tail()}")

    def _attempt(self, attempt: int, deadline: float | None) -> int:
        report = self._folder / "report.jsonl"
        report.unlink(missing_ok=True)
        env = {**os.environ, **self._env, PLACE: str(report), "GENEVA_ATTEMPT": str(attempt)}
        with (self._folder / "log.txt").open("ab") as log:
            process = subprocess.Popen(
                [sys.executable, "-m", "geneva.jobs.flows.entry"],
                stdin=subprocess.PIPE,
                stdout=log,
                stderr=subprocess.STDOUT,
                env=env,
                start_new_session=True,
            )
        assert process.stdin is not None
        try:
            process.stdin.write(pickle.dumps(self._work).hex().encode() + b"\n")
            process.stdin.flush()
        except BrokenPipeError:
            pass  # it died as it began: its exit code says so
        try:
            return self._wait(process, deadline)
        finally:
            _end(process)

    def _wait(self, process: subprocess.Popen[bytes], deadline: float | None) -> int:
        while (code := process.poll()) is None:
            if self._cancelled.wait(_LOOK_S):
                raise JobCancelledError(f"{self.name} was cancelled")
            if deadline is not None and time.monotonic() > deadline:
                raise JobTimeoutError(f"{self.name} took more than {self._timeout_s:g} s")
        return code

    def _told(self) -> dict[str, dict[str, Any]]:
        report = self._folder / "report.jsonl"
        return reported(report.read_text(encoding="utf-8") if report.exists() else "")

    def _tail(self) -> str:
        text = (self._folder / "log.txt").read_bytes()[-_TAIL:].decode(errors="replace")
        lines = [line for line in text.splitlines() if line.strip()]
        return lines[-1] if lines else f"no word in {self._folder / 'log.txt'}"


def _end(process: subprocess.Popen[bytes]) -> None:
    """End a process and those that it started: nothing of a job outlives it."""
    if process.poll() is None:
        _signal(process, signal.SIGTERM)
        with contextlib.suppress(subprocess.TimeoutExpired):
            process.wait(_GRACE_S)
    _signal(process, signal.SIGKILL)
    process.wait()
    if process.stdin is not None:
        process.stdin.close()


def _signal(process: subprocess.Popen[bytes], number: signal.Signals) -> None:
    with contextlib.suppress(ProcessLookupError, PermissionError):  # all of them have ended
        os.killpg(process.pid, number)


def _command(container: Container, names: Mapping[str, object]) -> dict[str, Any]:
    parts: Sequence[object] = [*container.command, *container.args]
    words = [str(render(part, names)) for part in parts]
    folder = None if container.working_dir is None else str(render(container.working_dir, names))
    return {"command": words, "folder": folder}


def _variables(container: Container, names: Mapping[str, object]) -> dict[str, str]:
    """Return the environment of a container: a mapping, or a list of names and values."""
    given = container.env or {}
    if not isinstance(given, Mapping):
        given = {str(item["name"]): item.get("value", "") for item in given}
    return {name: str(render(value, names)) for name, value in given.items()}
