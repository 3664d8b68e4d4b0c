"""Progress as a person sees it: on a real pseudo-terminal, in a pipe, in a notebook."""

from __future__ import annotations

import fcntl
import json
import os
import pty
import re
import struct
import subprocess
import sys
import termios
import time

import pytest

from geneva.jobs.progress import observer_for
from geneva.model.types import JobState, Progress

JOB = """
import sys, time
from geneva.jobs.progress import observer_for
from geneva.model.types import JobState, Progress

wanted = {"None": None, "True": True, "False": False}[sys.argv[1]]

def at(k, state=JobState.RUNNING, reason=""):
    return Progress("j", ("embedding",), state, reason, 1000, k * 100, 30, k, 4, 0, k // 3, k // 2,
                    2, 0.5 + k)

with observer_for(wanted, ["embedding"]) as observe:
    observe(at(0, JobState.STARTING, "no node has a free GPU"))
    time.sleep(0.4)
    for k in range(1, 6):
        observe(at(k))
        time.sleep(0.1)
    print("the UDF says hello", flush=True)
    time.sleep(0.3)
    observe(at(10, JobState.SUCCEEDED))
print("the answer", flush=True)
"""


def on_a_terminal(wanted: str, *, columns: int = 120, term: str = "xterm-256color") -> str:
    """Run a job on a pseudo-terminal; return all that was drawn, colours left out."""
    ours, theirs = pty.openpty()
    fcntl.ioctl(theirs, termios.TIOCSWINSZ, struct.pack("HHHH", 24, columns, 0, 0))
    environment = {k: v for k, v in os.environ.items() if k not in ("COLUMNS", "LINES")}
    child = subprocess.Popen(
        [sys.executable, "-c", JOB, wanted],
        stdin=theirs,
        stdout=theirs,
        stderr=theirs,
        env={**environment, "TERM": term},
    )
    os.close(theirs)
    drawn = b""
    deadline = time.monotonic() + 60
    while time.monotonic() < deadline:
        try:
            part = os.read(ours, 65536)
        except OSError:  # the child has gone and with it the terminal's other end
            break
        if not part:
            break
        drawn += part
    os.close(ours)
    assert child.wait(timeout=10) == 0, drawn.decode()
    return re.sub(r"\x1b\[[0-9;]*m", "", drawn.decode())


def in_a_pipe(wanted: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-c", JOB, wanted],
        capture_output=True,
        text=True,
        timeout=60,
        check=True,
    )


def test_bar_tells_what_people_ask():
    drawn = on_a_terminal("None")
    assert "━" in drawn
    for words in (
        "500/1,000 rows 50%",
        "rows/s",
        "ETA 0:0",
        "1/4 fragments committed",
        "5 failed",
        "30 from checkpoints",
        "2/2 appliers",
        "no node has a free GPU",
    ):
        assert words in drawn, words
    last = drawn[drawn.rindex("embedding") :]
    assert "1,000/1,000 rows 100%" in last
    assert "took 0:10" in last
    assert "ETA" not in last


def test_bar_lets_prints_through_and_shows_the_cursor_again():
    drawn = on_a_terminal("None")
    assert drawn.count("the UDF says hello") == 1
    assert drawn.rindex("\x1b[?25h") > drawn.rindex("\x1b[?25l")
    assert drawn.index("the UDF says hello") < drawn.index("the answer")


@pytest.mark.parametrize("columns", [30, 80])
def test_bar_keeps_the_numbers_on_a_narrow_terminal(columns: int):
    drawn = on_a_terminal("None", columns=columns)
    assert "500/1,000" in drawn
    assert "fragments" in drawn


def test_bar_nobody_wants():
    assert on_a_terminal("False").splitlines() == ["the UDF says hello", "the answer"]


def test_no_bar_is_drawn_on_a_terminal_that_cannot_move_its_cursor():
    drawn = on_a_terminal("True", term="dumb")
    assert "\x1b" not in drawn
    assert "geneva: embedding: 1,000/1,000 rows 100%" in drawn


def test_pipe_gets_no_output_that_nobody_asked_for():
    done = in_a_pipe("None")
    assert done.stderr == ""
    assert done.stdout == "the UDF says hello\nthe answer\n"


def test_lines_in_a_pipe_stay_apart_from_the_answer_and_tell_the_end():
    done = in_a_pipe("True")
    assert done.stdout == "the UDF says hello\nthe answer\n"
    lines = done.stderr.splitlines()
    assert len(lines) == 2  # the first at once, none for 5 s, the last at the end
    assert "no node has a free GPU" in lines[0]
    assert lines[1].startswith("geneva: embedding: 1,000/1,000 rows 100%, ")


def report(seconds: float, rows: int = 5) -> Progress:
    return Progress(
        "j", ("c",), JobState.RUNNING, rows_total=9, rows_computed=rows, seconds=seconds
    )


def test_display_that_fails_does_not_break_the_job(monkeypatch: pytest.MonkeyPatch):
    class Closed:
        """A stderr that is gone, as under a daemon whose terminal was closed."""

        writes = 0

        def isatty(self) -> bool:
            return False

        def write(self, _: str) -> int:
            Closed.writes += 1
            raise BrokenPipeError

        def flush(self) -> None:
            raise BrokenPipeError

    monkeypatch.setattr(sys, "stderr", Closed())
    with observer_for(True, ["c"]) as observe:
        observe(report(1.0))
        observe(report(2.0))
    assert Closed.writes == 1  # and then never again


def test_job_with_nothing_to_do_draws_no_bar(capsys: pytest.CaptureFixture[str]):
    with observer_for(True, ["c"]) as observe:
        observe(report(0.01, rows=0))
        observe(Progress("j", ("c",), JobState.SUCCEEDED, seconds=0.02))
    assert capsys.readouterr() == ("", "")


def test_quick_job_tells_its_rows(capsys: pytest.CaptureFixture[str]):
    with observer_for(True, ["c"]) as observe:
        observe(report(0.02))
    assert "c: 5/9 rows 55%" in capsys.readouterr().err


def test_own_observer_is_called():
    seen: list[Progress] = []
    with observer_for(seen.append, ["c"]) as observe:
        observe(report(0.0))
    assert seen == [report(0.0)]


NOTEBOOK = """
import json, sys
from IPython.core.interactiveshell import InteractiveShell
from IPython.core.displaypub import CapturingDisplayPublisher
shell = InteractiveShell.instance()
shell.display_pub = CapturingDisplayPublisher()
sys.argv = ["job", "None"]
exec(JOB)
print("CELL" + json.dumps(shell.display_pub.outputs))
"""


def test_notebook_has_one_bar_for_all_reports():
    pytest.importorskip("IPython")
    program = f"JOB = {JOB!r}\n{NOTEBOOK}"
    done = subprocess.run(
        [sys.executable, "-c", program], capture_output=True, text=True, timeout=60, check=True
    )
    outputs = json.loads(done.stdout.partition("CELL")[2])
    ids = {o["transient"]["display_id"] for o in outputs}
    assert len(ids) == 1
    assert [o["update"] for o in outputs] == [False] + [True] * (len(outputs) - 1)
    assert "<progress" in outputs[-1]["data"]["text/html"]
    assert "1,000/1,000 rows 100%" in outputs[-1]["data"]["text/html"]
    assert any("no node has a free GPU" in o["data"].get("text/html", "") for o in outputs)
