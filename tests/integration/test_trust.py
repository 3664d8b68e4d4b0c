"""What runs the code that a table brings along, who may read what is written, where links lead."""

from __future__ import annotations

import hashlib
import os
import stat
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from typer.testing import CliRunner

import geneva
from geneva.cli.commands import app
from geneva.column import pickles
from geneva.column.binding import PICKLES, bindings_of
from geneva.engine.clean import clean
from geneva.errors import CorruptFileError, UdfError
from geneva.storage.lance import TableStorage
from geneva.udf import pickling
from tests.support.backfills import times
from tests.support.calls import CallLog
from tests.support.tables import database_of, make_table

LOCAL: dict[str, Any] = {"executor": "local", "concurrency": 1, "progress": False}


class Trap:
    """Writes a file when it is unpickled."""

    def __init__(self, marker: str) -> None:
        self.marker = marker

    def __reduce__(self) -> tuple[Any, ...]:
        return (os.mkdir, (self.marker,))


@pytest.fixture
def marker(tmp_path: Path) -> Path:
    return tmp_path / "the table's code has run"


@pytest.fixture
def bound(tmp_path: Path, calls: CallLog) -> geneva.Table:
    table = make_table(tmp_path, rows=12, fragments=2)
    table.add_columns({"y": times(calls)})
    pickles._LOADED.clear()
    return table


@pytest.fixture
def trapped(bound: geneva.Table, marker: Path) -> geneva.Table:
    """A table whose pickle is a trap under its true name, as one from somebody else may be."""
    data = pickling.dumps(Trap(str(marker)))
    digest = hashlib.sha256(data).hexdigest()
    bound.storage.objects.put(f"{PICKLES}/{digest}", data)
    binding = bindings_of(bound.storage.open().schema)["y"]
    raw = binding.metadata(0)
    changed = {k: v.replace(binding.pickle, digest) for k, v in raw.items()}
    assert changed != raw
    bound.storage.set_field_metadata({"y": changed})
    return geneva.connect(database_of(bound)).open_table("t")


READS: dict[str, Callable[[geneva.Table], Any]] = {
    "read": lambda t: t.to_arrow(),
    "schema": lambda t: t.schema,
    "computed_columns": lambda t: t.computed_columns(),
    "coverage": lambda t: t.coverage("y"),
    "plan": lambda t: t.plan_backfill("y"),
    "plan where": lambda t: t.plan_backfill("y", where="x > 3", force=True),
    "clean": lambda t: clean(t.storage, 0),
    "bind another": lambda t: t.alter_columns({"path": "y", "udf": _another()}),
}


def _another() -> geneva.UDF:
    @geneva.udf
    def another(x: int) -> int:
        return x

    return another


@pytest.mark.parametrize("read", READS.values(), ids=READS.keys())
def test_looking_at_a_table_does_not_run_its_code(
    trapped: geneva.Table, marker: Path, read: Callable[[geneva.Table], Any]
) -> None:
    read(trapped)
    assert not marker.exists()


@pytest.mark.parametrize(
    "command", [["columns", "t"], ["coverage", "t"], ["plan", "t", "y"], ["clean", "t"]]
)
def test_command_that_looks_at_a_table_does_not_run_its_code(
    trapped: geneva.Table, marker: Path, command: list[str]
) -> None:
    result = CliRunner().invoke(app, [*command, "--db", database_of(trapped)])
    assert result.exit_code == 0, result.output
    assert not marker.exists()


@pytest.mark.parametrize("run", ["backfill", "load_udf", "plan with params"])
def test_trap_works(trapped: geneva.Table, marker: Path, run: str) -> None:
    """What is said to run the table's code does: else the tests above show nothing."""
    act: dict[str, Callable[[], Any]] = {
        "backfill": lambda: trapped.backfill("y", **LOCAL),
        "load_udf": lambda: trapped.load_udf("y"),
        "plan with params": lambda: trapped.plan_backfill("y", params={"a": 1}),
    }
    with pytest.raises(UdfError, match="the pickled object is a NoneType, not a UDF"):
        act[run]()
    assert marker.exists()


@pytest.mark.parametrize("damage", ["exchanged", "cut", "one bit"])
def test_pickle_that_is_not_what_its_name_says_is_refused_unread(
    bound: geneva.Table, marker: Path, damage: str, calls: CallLog
) -> None:
    objects = bound.storage.objects
    (path,) = objects.list(PICKLES)
    data, name = objects.get(path), path.rpartition("/")[2]
    wrong = {
        "exchanged": pickling.dumps(Trap(str(marker))),
        "cut": data[:-1],
        "one bit": bytes([data[0] ^ 1]) + data[1:],
    }
    objects.put(path, wrong[damage])
    for act in (lambda: bound.backfill("y", **LOCAL), lambda: bound.load_udf("y")):
        with pytest.raises(CorruptFileError, match=rf"pickled UDF {name[:12]} .* is damaged"):
            act()
    assert not marker.exists()
    assert not len(calls)
    objects.delete(path)
    with pytest.raises(CorruptFileError, match="is missing; bind the column again"):
        bound.backfill("y", **LOCAL)


# --- who may read what is written ----------------------------------------------------------------


@pytest.fixture
def no_umask() -> Iterator[None]:
    before = os.umask(0)
    yield
    os.umask(before)


@pytest.mark.disk(reason="modes of files")
def test_files_that_hold_data_are_private_whatever_the_umask(
    tmp_path: Path, calls: CallLog, no_umask: None
) -> None:
    table = make_table(tmp_path, rows=12, fragments=2)
    uri, seen = table.storage.uri, CallLog(tmp_path / "seen")

    @geneva.udf
    def same(x: int) -> int:
        for path in (Path(uri) / "_backfill").rglob("*"):
            if path.is_file():
                seen(f"{path.relative_to(uri)}:{stat.S_IMODE(path.stat().st_mode):o}")
        return x

    table.add_columns({"y": same})
    table.backfill("y", **LOCAL, checkpoint_size=1, num_frags=1)
    for path in (Path(uri) / "_backfill").rglob("*"):
        if path.is_file():
            seen(f"{path.relative_to(uri)}:{stat.S_IMODE(path.stat().st_mode):o}")
    assert {"_backfill/udfs", "_backfill/ledger"} <= {k.rsplit("/", 1)[0] for k in seen.keys}
    assert {k.rsplit(":", 1)[1] for k in seen.keys} == {"600"}


# --- links -------------------------------------------------------------------------------------


@pytest.mark.disk(reason="links")
@pytest.mark.parametrize("at", ["_backfill", "_backfill/work", "_backfill/work/inner", "data"])
def test_clean_deletes_nothing_behind_a_link_that_leads_out_of_the_table(
    tmp_path: Path, bound: geneva.Table, at: str
) -> None:
    outside = tmp_path / "outside"
    name = f"gv.{'0' * 8}.{'0' * 16}.a.1.{'0' * 32}.lance"
    for folder in (outside, outside / "work", outside / "work" / "x"):
        folder.mkdir()
        for file in ("k.a.log", ".tmp-x", name):
            (folder / file).write_bytes(b"precious")
    there = sorted(outside.rglob("*"))
    link = bound.storage.path / at
    link.parent.mkdir(parents=True, exist_ok=True)
    if link.exists():
        link.rename(tmp_path / "moved")
    if at == "data":  # the table must still be readable
        for file in (tmp_path / "moved").iterdir():
            (outside / file.name).write_bytes(file.read_bytes())
        there = sorted(outside.rglob("*"))
    link.symlink_to(outside)
    clean(TableStorage(bound.storage.uri), 0)
    assert sorted(outside.rglob("*")) == there


@pytest.mark.disk(reason="links")
def test_clean_of_a_linked_table_removes_what_lies_in_it(
    tmp_path: Path, bound: geneva.Table
) -> None:
    work = bound.storage.path / "_backfill" / "work" / "i"
    work.mkdir(parents=True)
    (work / "k.a.log").write_bytes(b"1")
    (work / "k.b.log").symlink_to(tmp_path / "calls.log")  # the link goes, its target stays
    (tmp_path / "calls.log").touch()
    os.utime(tmp_path / "calls.log", (time.time() + 1e6,) * 2)
    (tmp_path / "other").mkdir()
    linked = tmp_path / "other" / "t.lance"
    linked.symlink_to(bound.storage.uri)
    assert clean(TableStorage(str(linked)), 0).logs == 2
    assert list(work.iterdir()) == []
    assert (tmp_path / "calls.log").exists()
