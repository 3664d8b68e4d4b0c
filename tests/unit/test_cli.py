"""The command line's options and answers, without starting processes."""

from __future__ import annotations

import inspect
import json
import os
import re
import time
from pathlib import Path

import lance
import pyarrow as pa
import pytest
from typer.main import get_command
from typer.testing import CliRunner, Result

import geneva
from geneva import errors
from geneva.cli import answers, main
from geneva.cli.answers import answering
from geneva.cli.commands import app
from geneva.cli.options import duration_s
from geneva.engine.clean import clean


def double(x: int) -> int:
    return 2 * x


@pytest.fixture
def tbl(tmp_path: Path) -> geneva.Table:
    made = geneva.connect(str(tmp_path)).create_table("t", pa.table({"x": range(10)}))
    made.add(pa.table({"x": range(10, 30)}))
    made.add_columns({"y": geneva.udf(double)})
    return made


def call(tbl: geneva.Table, verb: str, *arguments: str) -> Result:
    db = str(tbl.storage.path.parent)
    return CliRunner().invoke(app, [verb, "t", *arguments, "--db", db])


def test_exit_codes_are_documented():
    page = (Path(__file__).parents[2] / "docs" / "reference" / "cli.md").read_text()
    for code in (*{c for _, c in answers._CODES}, 0):
        assert f"| {code} | " in page
        assert re.search(rf"\b{code} [a-z]", answers.EXIT_CODES)


def test_every_command_that_answers_takes_json():
    endless = {"serve", "scheduler", "demo"}
    left = [(get_command(app), "")]
    while left:
        group, _ = left.pop()
        for name, command in group.commands.items():
            if hasattr(command, "commands"):
                left.append((command, name))
            elif name not in endless:
                assert "--json" in {o for p in command.params for o in p.opts}, name


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        (("backfill", "nothing"), "there is no column 'nothing'"),
        (("backfill", "x"), "is not computed"),
        (("backfill", "y", "--where", "z = 1"), "z"),
        (("backfill", "y", "--where", "x +"), "where does not parse"),
        (("backfill", "y", "--num-frags", "0"), "num_frags=0 must be at least 1"),
        (("backfill", "y", "--max-failures", "3"), "on_error='null'"),
        (("backfill", "y", "--on-error", "ignore"), "--on-error"),
        (("backfill", "y", "--param", "novalue"), "KEY=VALUE"),
        (("backfill", "y", "--storage-option", "=v"), "KEY=VALUE"),
        (("plan", "y", "--where", "random() < 1"), "random"),
        (("coverage", "x"), "is not computed"),
        (("clean", "--older-than", "soon"), "--older-than"),
        (("clean", "--older-than", "-1d"), "--older-than"),
    ],
)
def test_bad_request_ends_with_2(tbl: geneva.Table, arguments: tuple[str, ...], says: str):
    verb, *rest = arguments
    local = ["--executor", "local"] if verb in ("backfill", "plan") else []
    done = call(tbl, verb, *rest, *local)
    assert done.exit_code == 2, done.output
    assert says in done.stderr
    assert "Traceback" not in done.stderr
    assert done.stdout == ""


@pytest.mark.parametrize(
    ("error", "code"),
    [
        (errors.UdfFailedError("x"), 1),
        (errors.JobTimeoutError("x"), 1),
        (errors.WhereError("x"), 2),
        (errors.SupersededError("x"), 3),
        (errors.StorageError("x"), 3),
        (errors.ResourceError("x"), 4),
        (errors.CorruptFileError("x"), 4),
        (errors.JobCancelledError("x"), 130),
        (KeyboardInterrupt(), 130),
        (ZeroDivisionError("x"), 4),
    ],
    ids=repr,
)
def test_error_with_the_exit_code_of_another(
    error: BaseException, code: int, capsys: pytest.CaptureFixture[str]
):
    with pytest.raises(Exception, match=str(code)) as ended, answering(True, False):
        raise error
    assert ended.value.exit_code == code  # type: ignore[attr-defined]
    shown = capsys.readouterr()
    assert json.loads(shown.out)["exit_code"] == code
    assert len(shown.err.splitlines()) == 1


def test_every_error_of_the_tree_has_its_own_exit_code(capsys: pytest.CaptureFixture[str]):
    leaves = [
        e
        for e in vars(errors).values()
        if inspect.isclass(e) and issubclass(e, errors.GenevaError) and not e.__subclasses__()
    ]
    assert len(leaves) > 10
    for leaf in leaves:
        with pytest.raises(Exception, match=r"\d") as ended, answering(False, False):
            raise leaf("x")
        assert ended.value.exit_code in (1, 2, 3, 4, 130)  # type: ignore[attr-defined]
        if ended.value.exit_code == 4:  # type: ignore[attr-defined]
            assert issubclass(leaf, errors.OperatorError)
    capsys.readouterr()


@pytest.mark.parametrize(
    "place", ["geneva.cli.commands.answering", "typer.core.TyperGroup.parse_args"]
)
def test_interrupt_outside_of_an_answer_is_told_in_one_line(
    place: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
):
    def interrupted(*_: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(place, interrupted)
    monkeypatch.setattr("sys.argv", ["geneva", "backfill", "t", "y", "--db", "nowhere"])
    with pytest.raises(SystemExit) as ended:
        main()
    assert ended.value.code == 130
    assert capsys.readouterr().err == "geneva: interrupted\n"


def test_multi_line_error_is_one_paragraph(capsys: pytest.CaptureFixture[str]):
    with pytest.raises(Exception, match="2"), answering(False, False):
        raise errors.WhereError("one\n   two")
    assert capsys.readouterr().err == "geneva: one two\n"


def test_params_whose_json_stays_text(tbl: geneva.Table):
    @geneva.udf(params={"factor": 1, "unit": "m"})
    def scaled(x: int, factor: int, unit: str) -> str:
        return f"{x * factor}{unit}"

    tbl.add_columns({"z": scaled})
    done = call(
        tbl, "backfill", "z", "--executor", "local", "--param", "factor=3", "--param", "unit=km"
    )
    assert done.exit_code == 0, done.output
    tbl.checkout_latest()
    assert tbl.to_arrow()["z"].to_pylist() == [f"{3 * x}km" for x in range(30)]


def test_num_frags_of_a_plan_is_that_of_the_backfill(tbl: geneva.Table):
    planned = json.loads(call(tbl, "plan", "y", "--num-frags", "1", "--json").stdout)
    assert planned["rows_compute"] == 10
    assert [f["this_call"] for f in planned["fragments"]] == [True, False]
    text = call(tbl, "plan", "y", "--num-frags", "1").stdout
    assert "10 of 30 rows in 1 of 2 fragments" in text
    done = call(tbl, "backfill", "y", "--num-frags", "1", "--executor", "local", "--json")
    assert json.loads(done.stdout)["rows_computed"] == 10
    assert json.loads(done.stdout)["fragments_left"] == 1


def test_all_of_several_columns_are_computed(tbl: geneva.Table):
    tbl.add_columns({"z": geneva.udf(lambda y: y + 1, data_type=pa.int64())})
    done = call(tbl, "backfill", "z", "y", "--executor", "local")
    assert done.exit_code == 0, done.output
    assert "60 in" in done.stdout
    tbl.checkout_latest()
    assert tbl.to_arrow()["z"].to_pylist() == [2 * x + 1 for x in range(30)]


def test_coverage_counts_only_rows_that_are_there(tbl: geneva.Table):
    tbl.backfill("y", where="x < 10", executor="local")
    text = call(tbl, "coverage", "y", "--fragments").stdout
    assert "33.3% of 30 rows" in text
    assert len(text.splitlines()) == 4  # summary, head, two fragments


def test_failures_are_shown(tbl: geneva.Table):
    tbl.alter_columns({"path": "y", "udf": geneva.udf(lambda x: 1 // x, data_type=pa.int64())})
    done = call(tbl, "backfill", "y", "--executor", "local", "--on-error", "null")
    assert done.exit_code == 5
    assert re.search(r"failed: fragment 0 row 0: .*ZeroDivisionError", done.stdout)


@pytest.mark.parametrize(
    ("text", "seconds"), [("0", 0), ("90s", 90), ("1.5m", 90), ("2h", 7200), ("7d", 604800)]
)
def test_duration_read_in_another_unit(text: str, seconds: float):
    assert duration_s(text) == seconds


# --- clean -----------------------------------------------------------------------------------


def aged(path: Path, seconds: float) -> Path:
    then = time.time() - seconds
    os.utime(path, (then, then))
    return path


def orphan(tbl: geneva.Table) -> Path:
    """Return a copy of a column file that no version names."""
    tbl.backfill("y", executor="local")
    (name, *_) = [n for n in tbl.storage.list_files() if n.startswith("gv.")]
    copy = tbl.storage.path / "data" / f"{name[: -len('.lance') - 32]}{'0' * 32}.lance"
    copy.write_bytes((tbl.storage.path / "data" / name).read_bytes())
    return copy


def log_of(tbl: geneva.Table, content: bytes) -> Path:
    incarnation = tbl.computed_columns()["y"].incarnation
    log = tbl.storage.path / "_backfill" / "work" / incarnation / "0123.abcd.log"
    log.parent.mkdir(parents=True, exist_ok=True)
    log.write_bytes(content)
    return log


def test_clean_goes_by_the_age_that_is_asked_for(tbl: geneva.Table):
    file, log = aged(orphan(tbl), 3700), aged(log_of(tbl, b"GVJ1"), 3500)
    found = clean(tbl.storage, 3600)
    assert (found.files, found.logs, found.kept) == (1, 0, 1)
    assert not file.exists()
    assert log.exists()
    found = clean(tbl.storage, 3400)
    assert (found.files, found.logs, found.kept, found.log_bytes) == (0, 1, 0, 4)
    assert not log.exists()


def test_clean_leaves_a_finished_file_whose_commit_is_still_to_come(tbl: geneva.Table):
    file = aged(orphan(tbl), 3700)
    log = log_of(tbl, b"GVJ1" + b"\0" * 100_000 + b'{"file": "' + file.name.encode() + b'"}')
    assert clean(tbl.storage, 3600).files == 0
    assert file.exists()
    aged(log, 3700)
    found = clean(tbl.storage, 3600)
    assert (found.files, found.logs) == (1, 1)
    assert not file.exists()


def test_clean_breaks_no_older_version_and_no_branch(tbl: geneva.Table):
    tbl.backfill("y", executor="local")
    tripled = geneva.udf(lambda x: 3 * x, data_type=pa.int64())
    branched, tagged = tbl.version, tbl.version + 2
    lance.dataset(tbl.uri).create_branch("side", branched)
    tbl.alter_columns({"path": "y", "udf": tripled})
    tbl.backfill("y", executor="local")
    tbl.alter_columns({"path": "y", "udf": geneva.udf(double)})
    tbl.backfill("y", executor="local")
    assert clean(tbl.storage, 0).files == 0

    def values(dataset: lance.LanceDataset) -> set[tuple[int, int]]:
        return {(r["x"], r["y"]) for r in dataset.to_table().to_pylist()}

    side = lance.dataset(tbl.uri).checkout_version(("side", None))
    assert values(side) == {(x, 2 * x) for x in range(30)}
    assert values(lance.dataset(tbl.uri, version=tagged)) == {(x, 3 * x) for x in range(30)}
