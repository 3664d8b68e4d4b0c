"""The code in README.md and in docs/ does what the pages say.

Each page's Python blocks are one program, run from an empty directory. A line that ends with
``# -> value`` must have that value.
"""

from __future__ import annotations

import os
import re
import runpy
import shlex
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
from typer.testing import CliRunner

from geneva.cli.commands import app

pytestmark = pytest.mark.disk(reason="the pages make their tables on a disk")

ROOT = Path(__file__).resolve().parents[2]
GUIDES = ROOT / "docs" / "guides"
WITHOUT_CODE = {"jobs", "object-stores", "reliability", "service"}  # need servers, tell of tests
PAGES = [
    ROOT / "docs" / "quickstart.md",
    *(page for page in sorted(GUIDES.glob("*.md")) if page.stem not in WITHOUT_CODE),
]

_BLOCK = re.compile(r"^```python\n(.*?)^```$", re.MULTILINE | re.DOTALL)
_SHOWN = re.compile(r"^(\S.*?)  # -> (.+)$", re.MULTILINE)
_CHECK = """
def _shows(value, shown):
    assert repr(value) == shown, f"the page says {shown}, the code gives {value!r}"

"""


def blocks(page: Path) -> list[str]:
    return _BLOCK.findall(page.read_text())


def checked(code: str) -> str:
    """Return code in which every ``# -> value`` is an assertion."""
    return _SHOWN.sub(lambda m: f"_shows(({m[1]}), {m[2]!r})", code)


def written(code: str, folder: Path, name: str = "page.py") -> str:
    path = folder / name
    path.write_text(_CHECK + checked(code))
    return str(path)


def start(code: str, folder: Path, name: str) -> subprocess.Popen[str]:
    return subprocess.Popen(
        [sys.executable, "-W", "error::UserWarning", written(code, folder, name)],
        cwd=folder,
        env={**os.environ, "PYTHONPATH": str(ROOT)},
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )


def run(code: str, folder: Path, name: str) -> str:
    with start(code, folder, name) as process:
        out, err = process.communicate(timeout=120)
    assert process.returncode == 0, f"{out}\n{err}"
    return out


def run_here(code: str, folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Run code as a program of its own, but in this process: a fresh one takes seconds."""
    monkeypatch.chdir(folder)
    runpy.run_path(written(code, folder), run_name="__main__")


@pytest.mark.usefixtures("ray_cluster")
def test_example_of_the_readme_that_does_not_run_on_ray(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
):
    (code,) = blocks(ROOT / "README.md")
    assert len([line for line in code.splitlines() if line.strip()]) <= 20
    assert len(_SHOWN.findall(code)) == 2
    run_here(code, tmp_path, monkeypatch)
    assert "2 of 3 rows" in capsys.readouterr().out


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.stem)
def test_page_whose_code_does_not_do_what_it_says(
    page: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    code = "\n".join(blocks(page))
    assert _SHOWN.search(code), "a page without code that shows what it gives"
    run_here(code, tmp_path, monkeypatch)


def test_line_of_a_page_that_is_not_compared(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    with pytest.raises(AssertionError, match="the page says 3, the code gives 2"):
        run_here("1 + 1  # -> 3\n", tmp_path, monkeypatch)


def test_shell_command_of_the_quickstart_that_is_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    page = ROOT / "docs" / "quickstart.md"
    commands = re.findall(r"^geneva (.+)$", page.read_text(), re.MULTILINE)
    assert len(commands) >= 4
    before_the_job = "\n".join(blocks(page)).split("# job.py")[0]
    run_here(before_the_job, tmp_path, monkeypatch)
    for command in commands:
        done = CliRunner().invoke(app, shlex.split(command))
        assert done.exit_code == 0, f"geneva {command}\n{done.output}"


def test_job_of_the_quickstart_that_starts_over_after_a_kill(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    found = blocks(ROOT / "docs" / "quickstart.md")
    (at,) = [k for k, code in enumerate(found) if code.startswith("# job.py")]
    run_here("\n".join(found[:at]), tmp_path, monkeypatch)

    with start(found[at], tmp_path, "job.py") as process:
        wait_for_checkpoints(tmp_path, process)
        process.send_signal(signal.SIGKILL)
    assert process.returncode == -signal.SIGKILL

    replayed = re.search(
        r"of them replayed from checkpoints +(\d+)", run(found[at], tmp_path, "job.py")
    )
    assert replayed is not None
    assert int(replayed[1]) > 0


def wait_for_checkpoints(folder: Path, process: subprocess.Popen[str]) -> None:
    """Wait until the journals hold something that a second look finds grown."""
    deadline = time.monotonic() + 60
    sizes = []
    while time.monotonic() < deadline and process.poll() is None:
        logs = folder.rglob("_backfill/work/**/*.log")
        sizes.append(sum(log.stat().st_size for log in logs))
        if len(sizes) > 1 and sizes[-1] > sizes[0] > 0:
            return
        sizes = sizes[:1] if sizes[0] else []
        time.sleep(0.05)
    raise AssertionError(f"no checkpoint was written: {process.communicate()}")
