"""Ctrl-C in child processes, at many moments of their first backfill."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import textwrap
from pathlib import Path

import pytest

import geneva
from tests.support.backfills import until

ROOT = Path(__file__).parents[2]

_SESSION = """
import os, signal, sys, threading, time
import geneva
from tests.support.backfills import until

table = geneva.connect(sys.argv[1]).open_table("t")
presses = [float(s) for s in sys.argv[2:]]
asked = threading.Event()

def press():
    asked.wait()
    for s in presses:
        time.sleep(s)
        os.kill(os.getpid(), signal.SIGINT)
    asked.clear()

presser = threading.Thread(target=press)
presser.start()
try:
    asked.set()
    print("done", table.backfill("y", progress=False, concurrency=1).rows_computed)
    presser.join()
except geneva.GenevaError as error:
    print(type(error).__name__, len(str(error).splitlines()))
except KeyboardInterrupt:
    print("after the end")
while presser.is_alive():
    try:
        presser.join()
    except KeyboardInterrupt:
        pass
result = table.backfill("y", progress=False, concurrency=1)
print("then", sum(v is not None for v in table.to_arrow()["y"].to_pylist()))
"""


def bound(path: Path) -> None:
    table = geneva.connect(path).create_table("t", [{"x": i} for i in range(6)])

    @geneva.udf(num_cpus=0.1)
    def y(x: int) -> int:
        return x

    table.add_columns({"y": y})


@pytest.mark.disk(reason="it is about imports and starts, whatever the storage is")
@pytest.mark.parametrize("presses", [("0.01",), ("0.5", "0.3"), ("1.5",), ("3", "0.2", "0.2")])
def test_session_goes_on_with_ray_after_an_interrupt(
    tmp_path: Path, presses: tuple[str, ...]
) -> None:
    bound(tmp_path)
    code = textwrap.dedent(_SESSION)
    done = subprocess.run(
        [sys.executable, "-W", "ignore", "-c", code, str(tmp_path), *presses],
        capture_output=True,
        text=True,
        timeout=300,
        cwd=ROOT,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    first, last = done.stdout.strip().splitlines()
    assert first in ("JobCancelledError 1", "done 6", "after the end")
    assert last == "then 6"
    assert "Traceback" not in done.stderr


@pytest.mark.disk(reason="it is about imports and starts, whatever the storage is")
@pytest.mark.parametrize("wait_s", [2.0, 4.0])
def test_interrupted_command_exits_with_130_and_one_line(tmp_path: Path, wait_s: float) -> None:
    bound(tmp_path)
    code = (
        "import geneva, os, signal, sys, threading\n"
        "from geneva.cli import main\n"
        f"threading.Timer({wait_s} / 4, os.kill, (os.getpid(), signal.SIGINT)).start()\n"
        f"sys.argv = ['geneva', 'backfill', 't', 'y', '--db', {str(tmp_path)!r}]\n"
        "main()\n"
    )
    child = subprocess.Popen(
        [sys.executable, "-W", "ignore", "-c", code],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        cwd=ROOT,
    )
    _, errors = child.communicate(timeout=120)
    assert child.returncode == 130, errors
    assert [line for line in errors.splitlines() if line.strip()][-1].startswith("geneva: ")
    assert "Traceback" not in errors


SLOW_IMPORT = """
import pathlib, time
pathlib.Path(__file__).with_name("importing").touch()
time.sleep(120)
"""


@pytest.mark.disk(reason="it is about imports and starts, whatever the storage is")
@pytest.mark.parametrize("command", ["console script", "module"])
@pytest.mark.parametrize("module", ["pyarrow", "typer"])
def test_interrupt_while_the_command_line_is_imported_is_one_line(
    tmp_path: Path, command: str, module: str
) -> None:
    (tmp_path / f"{module}.py").write_text(SLOW_IMPORT)
    script = Path(sys.executable).with_name("geneva")
    words = [str(script)] if command == "console script" else [sys.executable, "-m", "geneva"]
    path = os.pathsep.join(p for p in (str(tmp_path), os.environ.get("PYTHONPATH")) if p)
    started = subprocess.Popen(
        [*words, "version"], env=os.environ | {"PYTHONPATH": path}, stderr=subprocess.PIPE
    )
    until((tmp_path / "importing").exists)
    started.send_signal(signal.SIGINT)
    _, stderr = started.communicate(timeout=60)
    assert (started.returncode, stderr.decode()) == (130, "geneva: interrupted\n")
