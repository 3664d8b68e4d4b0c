"""The binding is stored with the table: any process can backfill, and plans load no code."""

from __future__ import annotations

import json
import subprocess
import sys
import textwrap
from pathlib import Path
from typing import Any

import lance
import pyarrow as pa
import pytest

import geneva
from geneva.column.binding import BINDING
from geneva.errors import ColumnError, CorruptFileError, UdfError
from tests.support.backfills import CPUS, run, times, xs
from tests.support.calls import CallLog
from tests.support.tables import assert_table_invariants, column, database, make_table, pairs

_MODULE = '''
"""A user's own module, of which other processes know nothing."""
import dataclasses
import geneva

_OFFSET = 1000


@dataclasses.dataclass
class Pair:
    left: int
    right: str


def helper(x):
    return x + _OFFSET


@geneva.udf(num_cpus=0.5)
def shift(x: int) -> int:
    return helper(x)


@geneva.udf(num_cpus=0.5)
def pair(x: int) -> Pair:
    return Pair(helper(x), str(x))


@geneva.udf(num_cpus=0.5)
class Scale:
    def __init__(self, by: int):
        self.by = by

    def __call__(self, shifted: int) -> int:
        return self.by * shifted
'''


def user_module(path: Path, monkeypatch: pytest.MonkeyPatch) -> Any:
    folder = path / "elsewhere"
    folder.mkdir()
    (folder / "users_own.py").write_text(_MODULE)
    monkeypatch.syspath_prepend(str(folder))
    monkeypatch.delitem(sys.modules, "users_own", raising=False)
    import users_own

    return users_own


def in_another_process(script: str, *arguments: str) -> str:
    done = subprocess.run(
        [sys.executable, "-W", "ignore", "-c", textwrap.dedent(script), *arguments],
        capture_output=True,
        text=True,
        timeout=120,
        cwd=Path(__file__).parents[2],
        check=False,
    )
    assert done.returncode == 0, done.stderr
    return done.stdout


@pytest.mark.parametrize("executor", ["local", "ray"])
def test_process_without_the_udfs_module_cannot_backfill(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, executor: str
) -> None:
    module = user_module(tmp_path, monkeypatch)
    table = make_table(tmp_path, rows=20, fragments=2)
    table.add_columns({"shifted": module.shift, "pair": module.pair})
    table.add_columns({"scaled": module.Scale(3)})
    out = in_another_process(
        """
        import sys, geneva
        ray = {"address": "local", "num_cpus": 2, "log_to_driver": False}
        table = geneva.connect(sys.argv[1], ray=ray).open_table("t")
        columns = ["scaled", "shifted", "pair"] if sys.argv[2] == "local" else ["pair"]
        result = table.backfill(columns, executor=sys.argv[2], concurrency=1)
        assert "users_own" not in sys.modules or not hasattr(sys.modules["users_own"], "__file__")
        print(result.rows_computed)
        """,
        database(tmp_path),
        executor,
    )
    assert out.split() == ["60" if executor == "local" else "20"]
    assert column(table, "pair") == [{"left": i + 1000, "right": str(i)} for i in range(20)]
    if executor == "local":
        assert column(table, "shifted") == [i + 1000 for i in range(20)]
        assert column(table, "scaled") == [3 * (i + 1000) for i in range(20)]
    # and the first process agrees that nothing is left to do
    assert run(table, "pair", "local").rows_computed == 0
    assert_table_invariants(table)


class Trap:
    """Leaves a trace where it is unpickled."""

    def __init__(self, path: Path) -> None:
        self.path = str(path)

    def __reduce__(self) -> Any:
        return _sprung, (self.path,)


def _sprung(path: str) -> Trap:
    Path(path).touch()
    return Trap(Path(path))


def test_looking_at_a_table_runs_its_authors_code(tmp_path: Path, calls: CallLog) -> None:
    table = make_table(tmp_path, rows=20, fragments=2)
    sprung = tmp_path / "sprung"
    trap = Trap(sprung)

    @geneva.udf(version="1")
    def y(x: int) -> int:
        assert trap
        return x

    table.add_columns({"y": y})
    again = geneva.connect(database(tmp_path)).open_table("t")
    assert again.computed_columns()["y"].inputs == ("x",)
    assert again.coverage("y").totals["missing"] == 20
    assert again.plan_backfill("y", where="x < 5").rows_compute == 5
    assert again.plan_backfill(["y"], force=True).rows_compute == 20
    with pytest.raises(geneva.GenevaError):
        again.backfill("y", where="x <")
    again.to_arrow()
    assert not sprung.exists()
    again.backfill("y", executor="local")
    assert sprung.exists()


def test_binding_says_too_little_to_backfill(tmp_path: Path, calls: CallLog) -> None:
    table = make_table(tmp_path, rows=20, fragments=2)
    udf = times(calls)
    table.add_columns({"y": udf})
    binding = table.computed_columns()["y"]
    assert (binding.udf, binding.digest, binding.inputs) == ("times", udf.digest, ("x",))
    assert table.schema.field("y").type == pa.int64()
    assert table.storage.objects.list("udfs") == [f"udfs/{binding.pickle}"]
    assert table.load_udf("y")(21) == 42


def test_same_udf_bound_again_computes_again(tmp_path: Path, calls: CallLog, executor: str) -> None:
    table = make_table(tmp_path, rows=20, fragments=2)
    table.add_columns({"y": times(calls)})
    run(table, "y", executor)
    xs(calls)
    # a notebook's cell is run twice; then as alter_columns
    table.add_columns({"y": times(calls)})
    table.alter_columns({"path": "y", "udf": times(calls)})
    result = run(table, "y", executor)
    assert (result.rows_computed, result.rows_foreign) == (0, 0)


def test_changed_udf_bound_by_add_columns_keeps_old_values(
    tmp_path: Path, calls: CallLog, executor: str
) -> None:
    table = make_table(tmp_path, rows=20, fragments=2)
    table.add_columns({"y": times(calls)})
    run(table, "y", "local")
    table.add_columns({"y": times(calls, 3)})
    result = run(table, "y", executor)
    assert (result.rows_computed, result.rows_foreign) == (20, 0)
    assert column(table, "y") == [3 * i for i in range(20)]


def test_part_of_a_group_is_bound_to_another_udf(tmp_path: Path, calls: CallLog) -> None:
    table = make_table(tmp_path, rows=8, fragments=1)

    @geneva.udf(data_type=pa.struct([("a", pa.int64()), ("b", pa.int64())]))
    def both(x: int) -> dict[str, int]:
        return {"a": x, "b": -x}

    table.add_columns({("a", "b"): both})
    table.add_columns({("a", "b"): both})
    for names in ("a", ("b", "c")):
        with pytest.raises((ColumnError, UdfError), match=r"computed as one|2 columns"):
            table.add_columns({names: times(calls) if names == "a" else both})
    table.backfill("a", executor="local")
    assert pairs(table, "a", "b") == {i: -i for i in range(8)}


def test_going_back_to_an_earlier_udf_takes_stale_values_for_fresh(
    tmp_path: Path, calls: CallLog, executor: str
) -> None:
    table = make_table(tmp_path, rows=20, fragments=2)
    table.add_columns({"y": times(calls, 2)})
    run(table, "y", "local")
    table.alter_columns({"path": "y", "udf": times(calls, 3)})
    run(table, "y", "local", num_frags=1)
    table.alter_columns({"path": "y", "udf": times(calls, 2)})
    xs(calls)
    # the fragment that was not computed anew still holds what this UDF made
    assert run(table, "y", executor).rows_computed == 10
    assert column(table, "y") == [2 * i for i in range(20)]
    assert_table_invariants(table, {"y": lambda row: 2 * row["x"]})


def test_column_added_again_is_taken_for_the_dropped_one(tmp_path: Path, calls: CallLog) -> None:
    table = make_table(tmp_path, rows=20, fragments=2)
    table.add_columns({"y": times(calls)})
    first = table.computed_columns()["y"]
    table.backfill("y", executor="local")
    table.drop_columns(["y"])
    assert "y" not in table.computed_columns()
    table.add_columns({"y": times(calls)})
    second = table.computed_columns()["y"]
    assert second.digest == first.digest
    assert second.incarnation != first.incarnation
    assert table.coverage("y").totals["missing"] == 20


def test_another_tables_binding_is_copied_with_its_data(tmp_path: Path, calls: CallLog) -> None:
    table = make_table(tmp_path, rows=20, fragments=2)
    table.add_columns({"y": times(calls)})
    table.backfill("y", executor="local")
    data = lance.dataset(table.storage.uri).to_table()
    assert BINDING in data.schema.field("y").metadata
    copy = geneva.connect(database(tmp_path)).create_table("copy", data)
    xs(calls)
    # the schema says that y is computed, but the pickle lies with the other table
    assert copy.coverage("y").totals["foreign"] == 20
    with pytest.raises(CorruptFileError, match="missing; bind the column again"):
        copy.backfill("y", executor="local")
    copy.add_columns({"y": times(calls)})
    result = copy.backfill("y", executor="local")
    assert (result.rows_computed, result.rows_foreign) == (0, 20)


def test_column_that_is_never_null_fails_at_its_first_deleted_row(
    tmp_path: Path, calls: CallLog
) -> None:
    schema = pa.schema([pa.field("x", pa.int64()), pa.field("y", pa.int64(), nullable=False)])
    data = pa.table([pa.array(range(10)), pa.array(range(10))], schema=schema)
    table = make_table(tmp_path, data=data, fragments=2)
    table.delete("x = 1")
    for bind in (
        lambda: table.add_columns({"z": times(calls, 3), "y": times(calls)}),
        lambda: table.alter_columns({"path": "y", "udf": times(calls)}),
    ):
        with pytest.raises(ColumnError, match=r"never null.*'nullable': True"):
            bind()
    assert "z" not in table.schema.names
    table.alter_columns({"path": "y", "nullable": True})
    table.add_columns({"y": times(calls)})
    assert run(table, "y", "local", foreign="recompute").rows_computed == 9
    assert_table_invariants(table, {"y": lambda row: 2 * row["x"]})


# --- pickles --------------------------------------------------------------------------------


def edit_binding(table: geneva.Table, name: str, **changes: Any) -> None:
    field = table.storage.open().schema.field(name)
    values = json.loads(field.metadata[BINDING]) | changes
    table.storage.set_field_metadata({name: {BINDING.decode(): json.dumps(values)}})


def test_pickle_of_another_python_crashes_this_one(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, calls: CallLog
) -> None:
    module = user_module(tmp_path, monkeypatch)
    table = make_table(tmp_path, rows=20, fragments=2)
    table.add_columns({"y": times(calls), "shifted": module.shift})
    for name in ("y", "shifted"):
        edit_binding(table, name, python="3.9")
    with pytest.raises(UdfError, match=r"bound under Python 3\.9.*bind it again"):
        table.backfill("y", executor="local")
    assert not len(calls)
    # what can be imported by name needs no pickle
    assert table.computed_columns()["shifted"].reference == "users_own:shift"
    assert table.backfill("shifted", executor="local").rows_computed == 20
    assert column(table, "shifted") == [i + 1000 for i in range(20)]
    # unless it was edited since: its values would pass for those of what was bound
    monkeypatch.setattr(module, "shift", geneva.udf(lambda x: x + 7, data_type=pa.int64()))
    with pytest.raises(UdfError, match=r"imports as users_own:shift is another one.*bind it"):
        table.backfill("shifted", executor="local", force=True)
    assert column(table, "shifted") == [i + 1000 for i in range(20)]


@pytest.mark.parametrize("damage", ["missing", "flipped", "cut"])
def test_damaged_pickle_is_run(tmp_path: Path, calls: CallLog, damage: str) -> None:
    table = make_table(tmp_path, rows=20, fragments=2)
    table.add_columns({"y": times(calls)})
    objects = table.storage.objects
    path = f"udfs/{table.computed_columns()['y'].pickle}"
    data = objects.get(path)
    if damage == "missing":
        objects.delete(path)
    else:
        objects.put(path, data[:-10] if damage == "cut" else data[:-1] + bytes([data[-1] ^ 1]))
    before = table.storage.open().version
    with pytest.raises(
        CorruptFileError, match="missing; bind" if damage == "missing" else "damaged"
    ):
        table.backfill("y", executor="local")
    assert table.storage.open().version == before
    assert not len(calls)
    table.alter_columns({"path": "y", "udf": times(calls)})
    assert table.backfill("y", executor="local").rows_computed == 20


def test_binding_of_a_newer_geneva_is_misread(tmp_path: Path, calls: CallLog) -> None:
    table = make_table(tmp_path, rows=20, fragments=2)
    table.add_columns({"y": times(calls)})
    edit_binding(table, "y", format=99, new_thing="?")
    with pytest.raises(ColumnError, match="bound by a newer version of geneva"):
        table.backfill("y", executor="local")


def test_binding_of_before_the_first_release_is_refused_until_the_column_is_dropped(
    tmp_path: Path, calls: CallLog
) -> None:
    table = make_table(tmp_path, rows=20, fragments=2)
    table.add_columns({"y": times(calls)})
    edit_binding(table, "y", format=1)
    with pytest.raises(ColumnError, match="drop the column and add it again"):
        table.backfill("y", executor="local")
    table.drop_columns(["y"])
    table.add_columns({"y": times(calls)})
    assert table.backfill("y", executor="local").rows_computed == 20


def test_udf_reads_a_global_that_changed_since_it_was_bound(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    module = user_module(tmp_path, monkeypatch)
    table = make_table(tmp_path, rows=20, fragments=2)
    table.add_columns({"shifted": module.shift})
    monkeypatch.setattr(module, "_OFFSET", 5)
    table.backfill("shifted", executor="local")
    assert column(table, "shifted") == [i + 1000 for i in range(20)]
    # bound again, it is another UDF
    table.alter_columns({"path": "shifted", "udf": geneva.udf(module.shift.target, num_cpus=CPUS)})
    assert table.backfill("shifted", executor="local").rows_computed == 20
    assert column(table, "shifted") == [i + 5 for i in range(20)]


def test_udf_bound_again_is_taken_for_what_it_was_before_a_global_changed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    module = user_module(tmp_path, monkeypatch)
    table = make_table(tmp_path, rows=20, fragments=2)
    for offset, computes in ((1000, 20), (5, 20), (5, 0), (1000, 20)):
        monkeypatch.setattr(module, "_OFFSET", offset)
        table.add_columns({"shifted": module.shift})
        assert table.backfill("shifted", executor="local").rows_computed == computes
        assert column(table, "shifted") == [i + offset for i in range(20)]
    # Nor does it matter that somebody asked before, of this one or of another object.
    again = geneva.udf(module.shift.target)
    assert again.digest == module.shift.digest
    monkeypatch.setattr(module, "_OFFSET", 5)
    table.add_columns({"shifted": again})
    assert table.backfill("shifted", executor="local").rows_computed == 20
    monkeypatch.setattr(module, "_OFFSET", 1000)
    table.add_columns({"shifted": module.shift})
    assert table.backfill("shifted", executor="local").rows_computed == 20
    # The file is edited and not loaded anew: what is bound is still what was loaded.
    file = Path(module.__file__)
    file.write_text(file.read_text().replace("x + _OFFSET", "x - _OFFSET"))
    table.alter_columns({"path": "shifted", "udf": module.shift})
    assert table.backfill("shifted", executor="local").rows_computed == 0


@pytest.mark.parametrize("together", [True, False])
def test_column_is_computed_with_what_the_class_of_its_udf_became_for_another_one(
    tmp_path: Path, executor: str, *, together: bool
) -> None:
    class Scale:
        factor = 2

        def __call__(self, x: int) -> int:
            return x * self.factor

    table = make_table(tmp_path, rows=10, fragments=2)
    for name, factor in (("twice", 2), ("thrice", 3)):
        Scale.factor = factor
        table.add_columns({name: geneva.udf(Scale, num_cpus=CPUS)})
    Scale.factor = 5
    for columns in [["twice", "thrice"]] if together else ["thrice", "twice"]:
        table.backfill(columns, executor=executor, concurrency=1)
    assert column(table, "twice") == [2 * x for x in range(10)]
    assert column(table, "thrice") == [3 * x for x in range(10)]
    assert Scale.factor == 5
