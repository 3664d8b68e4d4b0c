"""The demo checks its own claims and fails when one does not hold; here it must hold them all."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

import geneva

pytestmark = pytest.mark.disk(reason="the demo makes its table on a disk")

FRAGMENTS = 12
COLUMNS = ("words", "functions", "embedding", "checksum")


def demo(folder: Path, executor: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "geneva", "demo", "--dir", str(folder), "--rows", "600"]
    return subprocess.run(
        [*command, "--executor", executor],
        capture_output=True,
        text=True,
        timeout=240,
        check=False,
    )


def processes_of(folder: Path) -> list[str]:
    """Return the command lines that still name the demo's folder."""
    found = []
    for process in Path("/proc").glob("[0-9]*"):
        try:
            command = (process / "cmdline").read_bytes().replace(b"\0", b" ").decode()
        except OSError:
            continue
        if str(folder) in command and int(process.name) != os.getpid():
            found.append(command)
    return found


@pytest.mark.slow
@pytest.mark.parametrize("executor", ["local", pytest.param("ray", marks=pytest.mark.ray)])
def test_demo_that_does_not_show_what_it_says(tmp_path: Path, executor: str):
    folder = tmp_path / "d"
    done = demo(folder, executor)
    assert done.returncode == 0, done.stderr
    assert re.findall(r"^\[(\d)/7\]", done.stdout, re.MULTILINE) == list("1234567")
    assert "Traceback" not in done.stderr
    assert done.stdout.count("a second reader sees") >= 2

    replayed = re.search(r"([\d,]+) of them\s+from checkpoints, ([\d,]+) computed", done.stdout)
    assert replayed is not None
    assert int(replayed[1].replace(",", "")) > 0
    assert int(replayed[2].replace(",", "")) > 0
    assert "every value is right" in done.stdout

    tbl = geneva.connect(str(folder)).open_table("sources")
    assert len(tbl) == 600
    assert len(tbl.storage.open().fragments) == FRAGMENTS
    assert set(tbl.computed_columns()) == set(COLUMNS)
    assert tbl.coverage("embedding").totals["computed"] == 600
    assert tbl.coverage("functions").totals["failed"] > 0
    assert processes_of(folder) == []
    hint = re.search(r"^  geneva (coverage .*)$", done.stdout, re.MULTILINE)
    assert hint is not None
    tried = subprocess.run(
        [sys.executable, "-m", "geneva", *hint[1].split()],
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )
    assert tried.returncode == 0, tried.stderr
    assert "embedding: 100.0% of 600 rows" in tried.stdout


def test_demo_that_deletes_somebody_elses_folder(tmp_path: Path):
    (tmp_path / "thesis.txt").write_text("years of work")
    done = demo(tmp_path, "local")
    assert done.returncode == 2
    assert "choose another --dir" in done.stderr
    assert (tmp_path / "thesis.txt").read_text() == "years of work"
