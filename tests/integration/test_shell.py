"""The command line in a shell that is not as one hopes: wrong words, closed pipes, odd locales."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pyarrow as pa
import pytest
import typer

import geneva
from geneva.cli.answers import answering
from geneva.errors import MissingExtraError, OperatorError
from geneva.extras import installed, missing_extra
from geneva.model.types import JobState

pytestmark = pytest.mark.disk(reason="commands on a folder")


def odd(x: int) -> int:
    if x % 2:
        raise ValueError("odd")
    return x


def even(x: int) -> int:
    return x


@pytest.fixture
def table(tmp_path: Path) -> geneva.Table:
    tbl = geneva.connect(str(tmp_path / "db")).create_table("t", pa.table({"x": range(10)}))
    tbl.add_columns({"odd": geneva.udf(odd), "even": geneva.udf(even)})
    return tbl


def geneva_(
    *words: str, env: dict[str, str] | None = None, **options: int
) -> subprocess.CompletedProcess[str]:
    given = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE} | options
    return subprocess.run(
        [sys.executable, "-m", "geneva", *words],
        env=os.environ | (env or {}),
        encoding="utf-8",
        errors="replace",
        timeout=120,
        check=False,
        **given,  # type: ignore[call-overload]
    )


@pytest.mark.parametrize("verb", ["columns", "coverage", "plan", "clean", "backfill"])
def test_command_on_a_folder_that_is_not_there_makes_none(tmp_path: Path, verb: str):
    words = ["t", "y"] if verb in ("plan", "backfill") else ["t"]
    done = geneva_(verb, *words, "--db", str(tmp_path / "typo"), "--json")
    assert done.returncode == 2, done.stderr
    facts = json.loads(done.stdout)
    assert facts["error"] == "TableError"
    assert "typo" in facts["message"]
    assert not (tmp_path / "typo").exists()


@pytest.mark.parametrize(
    "words",
    [
        ["columns", "--json"],
        ["columns", "t", "--db", "x", "--nope", "--json"],
        ["backfill", "t", "y", "--db", "x", "--num-frags", "many", "--json"],
        ["backfill", "t", "y", "--db", "x", "--on-error", "ignore", "--json"],
        ["runs", "show", "--json"],
        ["no-such-command", "--json"],
    ],
)
def test_wrong_words_are_json_too(words: list[str]):
    done = geneva_(*words)
    assert done.returncode == 2
    facts = json.loads(done.stdout)
    assert facts["exit_code"] == 2
    assert facts["message"]
    assert "Traceback" not in done.stderr


def test_wrong_words_without_json_are_told_on_stderr():
    done = geneva_("columns", "t", "--db", "x", "--nope")
    assert (done.returncode, done.stdout) == (2, "")
    assert "--nope" in done.stderr


@pytest.mark.parametrize(
    ("module", "words"),
    [
        ("httpx", ["runs", "ls"]),
        ("sqlalchemy", ["serve"]),
        ("fastapi", ["serve"]),
        ("alembic", ["db", "upgrade"]),
    ],
)
def test_missing_extra_is_named_with_the_command_that_installs_it(
    tmp_path: Path, module: str, words: list[str]
):
    program = f"import sys; sys.modules[{module!r}] = None; from geneva.cli import main; main()"
    state = [] if words[0] == "runs" else ["--state", str(tmp_path / "s")]
    command = [sys.executable, "-c", program, *words, *state]
    done = subprocess.run(command, capture_output=True, text=True, timeout=120, check=False)
    assert done.returncode == 4, done.stderr
    assert "pip install 'geneva-backfill[service]'" in done.stderr
    assert "Traceback" not in done.stderr
    assert "unexpected" not in done.stderr


def test_only_what_an_extra_brings_is_missing_of_it():
    assert "[embed]" in str(
        missing_extra(ModuleNotFoundError("no", name="sentence_transformers.x"))
    )
    assert "[image]" in str(missing_extra(ModuleNotFoundError("no", name="PIL")))
    assert missing_extra(ModuleNotFoundError("no", name="of_the_user")) is None
    with pytest.raises(OperatorError) as caught, installed():
        raise ModuleNotFoundError("no", name="uvicorn")
    assert isinstance(caught.value, MissingExtraError)
    with pytest.raises(ModuleNotFoundError), installed():
        raise ModuleNotFoundError("no", name="of_the_user")


def closed() -> int:
    """Return a pipe that nobody reads."""
    read, write = os.pipe()
    os.close(read)
    return write


@pytest.mark.parametrize("unbuffered", ["", "1"])
@pytest.mark.parametrize("words", [["coverage", "t", "--fragments"], ["columns", "t", "--json"]])
def test_reader_that_stops_is_no_failure(
    tmp_path: Path, table: geneva.Table, words: list[str], unbuffered: str
):
    pipe = closed()
    done = geneva_(
        *words, "--db", str(tmp_path / "db"), env={"PYTHONUNBUFFERED": unbuffered}, stdout=pipe
    )
    os.close(pipe)
    assert (done.returncode, done.stderr) == (0, "")


def test_backfill_whose_progress_nobody_reads_is_done(tmp_path: Path, table: geneva.Table):
    pipe = closed()
    words = ["backfill", "t", "even", "--executor", "local", "--progress"]
    geneva_(*words, "--db", str(tmp_path / "db"), stdout=pipe, stderr=pipe)
    os.close(pipe)
    table.checkout_latest()
    assert table.count_rows("even is not null") == 10


def test_pipe_that_breaks_elsewhere_is_an_error(capsys: pytest.CaptureFixture[str]):
    with pytest.raises(typer.Exit) as caught, answering(as_json=False, debug=False):
        raise BrokenPipeError("of a worker")
    assert caught.value.exit_code == 4
    assert "of a worker" in capsys.readouterr().err


@pytest.mark.parametrize(
    "env",
    [
        {"LC_ALL": "C", "PYTHONUTF8": "0", "PYTHONCOERCECLOCALE": "0"},
        {"LC_ALL": "C"},
        {"PYTHONIOENCODING": "ascii"},
        {"PYTHONIOENCODING": "latin-1:strict"},
    ],
)
def test_any_locale_will_do(tmp_path: Path, env: dict[str, str]):
    tbl = geneva.connect(str(tmp_path / "db")).create_table("t", pa.table({"x": range(3)}))
    tbl.add_columns({"größe_値": geneva.udf(even)})
    for words in (["columns", "t"], ["coverage", "t", "--fragments"], ["coverage", "t", "--json"]):
        done = geneva_(*words, "--db", str(tmp_path / "db"), env=env)
        assert (done.returncode, done.stderr) == (0, "")
        assert "gr" in done.stdout
    done = geneva_("plan", "t", "x", "--db", str(tmp_path / "db"), env=env)
    assert (done.returncode, "Traceback" in done.stderr) == (2, False)


# -------------------------------------------------------------------------------------- PARTIAL


@pytest.mark.parametrize("executor", ["local", "ray"])
def test_backfill_with_failed_rows_is_partial(table: geneva.Table, executor: str):
    options = {"executor": executor, "on_error": "null", "progress": False}
    result = table.backfill("odd", concurrency=1, **options)
    assert (result.state, result.rows_failed) == (JobState.PARTIAL, 5)
    assert "PARTIAL" in str(result)
    again = table.backfill("odd", concurrency=1, **options)
    assert (again.state, again.rows_failed_before) == (JobState.SUCCEEDED, 5)


def test_job_of_several_columns_is_partial_whichever_has_failed_rows(table: geneva.Table):
    job = table.backfill_async(["odd", "even"], executor="local", on_error="null", progress=False)
    assert job.wait(120).state is JobState.PARTIAL
    assert job.state is JobState.PARTIAL


def test_failed_rows_have_an_exit_code_of_their_own(tmp_path: Path, table: geneva.Table):
    words = ["backfill", "t", "--on-error", "null", "--executor", "local"]
    words += ["--db", str(tmp_path / "db"), "--json"]
    done = geneva_(*words, "odd")
    assert (done.returncode, json.loads(done.stdout)["state"]) == (5, "PARTIAL")
    done = geneva_(*words, "even")
    assert (done.returncode, json.loads(done.stdout)["state"]) == (0, "SUCCEEDED")
