"""The examples run offline as their first lines say, and go on after a kill."""

from __future__ import annotations

import os
import shutil
import signal
import subprocess
import sys
from pathlib import Path

import geneva
from tests.support.backfills import until

EXAMPLES = Path(__file__).parents[2] / "docs" / "examples"


def test_files_to_vectors_goes_on_after_a_kill(tmp_path: Path):
    folder = tmp_path / "example"
    shutil.copytree(EXAMPLES / "files-to-vectors", folder)
    (folder / "data").mkdir()
    jobs = f"sqlite:///{folder / 'jobs.db'}"
    command = [sys.executable, "-m", "geneva", "flow", "run", "flow.yaml", "--db", "data"]
    command += ["--jobs", jobs, "-P", "files=150"]
    env = {**os.environ, "PYTHONPATH": str(EXAMPLES.parents[1])}
    process = subprocess.Popen(command, cwd=folder, env=env, stderr=subprocess.DEVNULL)
    db = geneva.connect(folder / "data", jobs=jobs)

    def begun() -> set[str]:
        return {j.operation for run in db.runs() for j in run.record().jobs}

    until(lambda: {"words", "vectors"} & begun())
    process.send_signal(signal.SIGKILL)
    process.wait()
    done = subprocess.run(command, cwd=folder, env=env, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    table = db.open_table("sources")
    rows = table.to_arrow().to_pylist()
    assert len(rows) == 150
    assert all(r["words"] == len(r["source"].split()) == sum(r["vector"]) for r in rows)
    assert "this.py is nearest to" in (folder / "report.txt").read_text()
    [run] = db.runs()
    states = {j.operation: j.state for j in run.record().jobs if j.state != "FAILED"}
    assert states == dict.fromkeys(("build", "words", "vectors", "report"), "SUCCEEDED")
