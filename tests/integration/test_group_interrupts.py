"""Ctrl-C as a terminal sends it: to the driver, Ray's daemons and its workers alike."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from contextlib import suppress
from pathlib import Path

import pytest

import geneva
from tests.support.backfills import until

ROOT = Path(__file__).parents[2]
ROWS = 16

_SESSION = """
import sys
import geneva

table = geneva.connect(sys.argv[1]).open_table("t")
print("begins", flush=True)
try:
    table.backfill("y", progress=False, concurrency=2, batch_size=1)
except geneva.GenevaError as error:
    print(type(error).__name__, len(str(error).splitlines()), flush=True)
result = table.backfill("y", progress=False, concurrency=2, batch_size=1)
values = table.to_arrow()["y"].to_pylist()
print("then", sum(v is not None for v in values), result.state)
"""


def bound(path: Path) -> Path:
    """Return a file that gets a byte with each call of the UDF."""
    calls = path / "calls"
    table = geneva.connect(str(path)).create_table("t", [{"x": i} for i in range(ROWS)])

    @geneva.udf(num_cpus=0.1, version="1")
    def y(x: int) -> int:
        import time

        with calls.open("ab") as file:
            file.write(b".")
        time.sleep(0.2)
        return x

    table.add_columns({"y": y})
    return calls


def seen(calls: Path) -> int:
    return calls.stat().st_size if calls.exists() else 0


@pytest.mark.disk(reason="it is about processes, whatever the storage is")
@pytest.mark.parametrize("moment", ["imports", "daemons", "calls"])
def test_interrupt_of_the_whole_group_is_one_error_and_the_session_goes_on(
    tmp_path: Path, moment: str
) -> None:
    calls = bound(tmp_path)
    child = subprocess.Popen(
        [sys.executable, "-W", "ignore", "-c", _SESSION, str(tmp_path)],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        cwd=ROOT,
        start_new_session=True,  # a process group of its own, as a shell gives to each command
    )
    assert child.stdout is not None
    assert child.stdout.readline() == "begins\n"
    match moment:
        case "imports":
            time.sleep(0.2)
        case "daemons":
            until(lambda: len(members(child.pid)) > 3, 60)
        case "calls":
            until(lambda: seen(calls) > 5, 120)
        case _:
            raise AssertionError(moment)
    assert moment != "calls" or any("ray::" in name for name in members(child.pid))
    os.killpg(child.pid, signal.SIGINT)
    out, errors = child.communicate(timeout=200)
    assert child.returncode == 0, errors
    first, last = out.strip().splitlines()
    assert first == "JobCancelledError 1"
    assert last.startswith(f"then {ROWS} ")
    assert "Traceback" not in errors
    assert seen(calls) <= ROWS, "a row was computed twice"


def members(group: int) -> list[str]:
    """Return the command lines of a group's processes."""
    commands = []
    for folder in Path("/proc").glob("[0-9]*"):
        with suppress(OSError):  # it has ended
            fields = (folder / "stat").read_text().rpartition(")")[2].split()
            if int(fields[2]) == group:
                commands.append((folder / "cmdline").read_text().replace("\0", " "))
    return commands
