"""Which types the files of a table hold, in each of Lance's data storage versions."""

from __future__ import annotations

import datetime as dt
import itertools
import json
from decimal import Decimal
from pathlib import Path
from typing import Any

import lance
import pyarrow as pa
import pytest

import geneva
from geneva.errors import GenevaError, StorageError, UdfError, UdfFailedError
from geneva.storage.objects import RESUME
from geneva.udf import to_arrow, unstorable
from tests.support.calls import CallLog
from tests.support.tables import column, database

VERSIONS = ["2.0", "2.1", "2.2"]
ROWS = 12
INT, TEXT = pa.int64(), pa.string()
DAY = dt.datetime(2024, 1, 1, 1, 2)


def struct(*types: pa.DataType) -> pa.DataType:
    return pa.struct([pa.field("abc"[k], t) for k, t in enumerate(types)])


LEAVES = [
    *(pa.null(), pa.bool_(), pa.int8(), pa.uint64(), pa.float16(), pa.float32(), pa.float64()),
    *(pa.decimal32(5, 2), pa.decimal64(10, 2), pa.decimal128(10, 2), pa.decimal256(50, 2)),
    *(pa.string(), pa.large_string(), pa.string_view()),
    *(pa.binary(), pa.large_binary(), pa.binary_view(), pa.binary(3)),
    *(pa.date32(), pa.date64(), pa.time32("s"), pa.time64("ns")),
    *(pa.timestamp("s"), pa.timestamp("ns"), pa.timestamp("us", "UTC"), pa.duration("us")),
    pa.month_day_nano_interval(),
]
EXTENSIONS = [
    *(pa.uuid(), pa.bool8(), pa.json_(), pa.opaque(INT, "name", "vendor")),
    pa.fixed_shape_tensor(pa.float32(), (2, 2)),
]
DICTIONARIES = [pa.dictionary(pa.int8(), TEXT), pa.dictionary(pa.int64(), INT)]
NESTED = [
    *(pa.list_(INT, 0), struct(), pa.list_view(INT), pa.large_list_view(INT)),
    *(struct(INT, TEXT), struct(struct(INT)), struct(struct()), struct(pa.list_(INT, 0))),
    *(pa.map_(TEXT, INT), pa.map_(TEXT, struct(INT)), pa.map_(TEXT, INT, keys_sorted=True)),
    *(pa.map_(TEXT, pa.map_(TEXT, INT)), pa.map_(TEXT, pa.list_(struct(INT), 2))),
    *(struct(pa.map_(TEXT, INT)), struct(pa.list_(TEXT, 2)), struct(pa.list_(struct(INT), 2))),
    *(pa.list_(struct(INT)), pa.list_(struct()), pa.list_(struct(pa.list_(INT)))),
    *(pa.list_(pa.list_(INT, 2)), pa.list_(pa.list_(INT, 2), 2), pa.list_(pa.list_(INT), 2)),
    *(pa.list_(struct(INT), 2), pa.list_(pa.map_(TEXT, INT), 2), pa.list_(pa.map_(TEXT, INT))),
    *(pa.list_(pa.list_(struct(INT), 2)), pa.large_list(struct(INT)), pa.large_list(TEXT)),
    *(pa.list_(pa.list_(TEXT, 2)), pa.list_(pa.float32(), 40)),
    pa.struct([pa.field("a", INT, nullable=False), pa.field("b", TEXT)]),
    pa.list_(pa.field("item", INT, nullable=False)),
    pa.list_(pa.field("item", pa.float32(), nullable=False), 2),
]
INNER = [t for t in LEAVES if str(t) not in ("null", "date64[ms]", "time32[s]", "timestamp[s]")]
TYPES = [
    *(*LEAVES, *EXTENSIONS, *DICTIONARIES, *NESTED),
    *(make(t) for t in (*INNER, *EXTENSIONS) for make in (pa.list_, lambda t: pa.list_(t, 2))),
    *(struct(t) for t in (*INNER, *EXTENSIONS)),
    *(pa.map_(TEXT, t) for t in (pa.string_view(), pa.float16(), pa.uuid())),
]
REFUSED = [  # by us, though Lance writes some of them
    *(pa.list_(pa.null()), pa.list_(pa.null(), 2), struct(pa.null()), pa.map_(TEXT, pa.null())),
    *(pa.list_(t) for t in DICTIONARIES),
    *(pa.list_(DICTIONARIES[0], 2), struct(DICTIONARIES[0]), pa.map_(TEXT, DICTIONARIES[0])),
]


def sample(kind: pa.DataType, k: int, *, holes: bool) -> Any:
    """Return the k-th value of a type, with nulls within it."""
    t = pa.types
    if isinstance(kind, pa.BaseExtensionType):
        if "json" in kind.extension_name:
            return json.dumps({"a": k})
        return sample(kind.storage_type, k, holes=False)

    def within(field: pa.Field, j: int) -> Any:
        hole = holes and field.nullable and (k + j) % 3 == 1
        return None if hole else sample(field.type, k + j, holes=holes)

    if t.is_fixed_size_list(kind):
        return [within(kind.value_field, j) for j in range(kind.list_size)]
    if t.is_map(kind):
        return [(f"key {j}", within(kind.item_field, j)) for j in range(k % 3)]
    if t.is_struct(kind):
        return {kind.field(i).name: within(kind.field(i), i) for i in range(kind.num_fields)}
    if hasattr(kind, "value_field"):
        return [within(kind.value_field, j) for j in range(k % 3)]
    if t.is_dictionary(kind):
        return sample(kind.value_type, k % 5, holes=False)
    if t.is_fixed_size_binary(kind):
        return bytes([k]) * kind.byte_width
    makes: list[tuple[Any, Any]] = [
        (t.is_null, None),
        (t.is_boolean, k % 2 == 0),
        (t.is_integer, k),
        (t.is_floating, k + 0.5),
        (t.is_decimal, Decimal(k) / 4),
        (t.is_date, (DAY + dt.timedelta(days=k)).date()),
        (t.is_time, dt.time(1, 2, k)),
        (t.is_timestamp, DAY.replace(second=k, tzinfo=dt.UTC if getattr(kind, "tz", "") else None)),
        (t.is_duration, dt.timedelta(seconds=k)),
        (t.is_interval, pa.MonthDayNano([1, k, 0])),
    ]
    text = f"text {k} that is longer than a view"
    binary = "binary" in str(kind)
    return next((v for is_one, v in makes if is_one(kind)), text.encode() if binary else text)


def values(kind: pa.DataType) -> list[Any]:
    """Return a value for each row: some null, in the second half almost all."""
    some = (0, 3, 4, 5, 9)
    return [sample(kind, k, holes=k > 3) if k in some else None for k in range(ROWS)]


def array(kind: pa.DataType, cells: list[Any]) -> pa.Array:
    ours = "extension" in str(kind) or "not null" in str(kind)
    return to_arrow(cells, kind, len(cells)) if ours else pa.array(cells, kind)


def lance_holds(path: Path, kind: pa.DataType, version: str) -> bool:
    """Whether Lance itself writes a type beside another column, reads it, and compacts it."""
    uri = str(path / "t.lance")
    cells = array(kind, values(kind))
    expected = cells.to_pylist()
    table = pa.table({"id": range(ROWS), "y": cells})
    try:
        for part in (table.slice(0, 6), table.slice(6)):
            copy = pa.concat_tables([part.slice(k, 1) for k in range(part.num_rows)])
            mode = "append" if Path(uri).exists() else "create"
            lance.write_dataset(copy.combine_chunks(), uri, mode=mode, data_storage_version=version)
        for _ in range(2):
            dataset = lance.dataset(uri)
            if dataset.to_table()["y"].to_pylist() != expected:
                return False
            if dataset.take([1, 3, 9])["y"].to_pylist() != [expected[k] for k in (1, 3, 9)]:
                return False
            dataset.optimize.compact_files()
    except BaseException as error:
        if isinstance(error, KeyboardInterrupt | SystemExit):
            raise
        return False
    return True


def stored_version(path: Path, version: str) -> geneva.Table:
    lance.write_dataset(
        pa.table({"x": pa.array(range(ROWS), INT)}),
        f"{database(path)}/t.lance",
        max_rows_per_file=6,
        data_storage_version=version,
    )
    return geneva.connect(database(path)).open_table("t")


@pytest.mark.parametrize("version", VERSIONS)
def test_type_is_refused_where_lance_does_not_hold_it_and_nowhere_else(
    tmp_path: Path, version: str
) -> None:
    wrong = []
    for k, kind in enumerate(TYPES):
        (tmp_path / str(k)).mkdir()
        told = unstorable(kind, version)
        if "json" in str(kind):  # Lance keeps it, a checkpoint of it does not
            assert told
        elif bool(told) == lance_holds(tmp_path / str(k), kind, version):
            wrong.append((str(kind), told or "is thought to be storable"))
    assert not wrong
    assert all(unstorable(kind, version) for kind in REFUSED)


@pytest.mark.parametrize("version", VERSIONS)
def test_every_type_that_is_not_refused_is_computed_carried_and_read(
    tmp_path: Path, version: str
) -> None:
    kinds = [t for t in TYPES if not unstorable(t, version)]
    names = tuple(f"c{k}" for k in range(len(kinds)))
    whole = pa.struct([pa.field(n, t) for n, t in zip(names, kinds, strict=True)])
    columns = [array(t, values(t)) for t in kinds]

    @geneva.udf(data_type=whole, version="1")
    def everything(x: pa.Array) -> pa.Array:
        parts = [pa.concat_arrays([c.slice(k, 1) for k in x.to_pylist()]) for c in columns]
        return pa.StructArray.from_arrays(parts, fields=list(whole))

    table = stored_version(tmp_path, version)
    table.add_columns({names: everything})
    table.delete("x = 4")

    def check(done: Any) -> None:
        found = lance.dataset(table.storage.uri).to_table()
        left = [k for k in range(ROWS) if k != 4]
        assert found["x"].to_pylist() == left
        for name, kind, cells in zip(names, kinds, columns, strict=True):
            shown = cells.to_pylist()
            expected = [shown[k] if done(k) else None for k in left]
            assert found[name].to_pylist() == expected, kind

    for where, done in (
        ("x % 3 = 0", lambda k: k % 3 == 0),
        ("x % 3 = 1", lambda k: k % 3 != 2),
        (None, lambda k: True),
        ("x = 3", lambda k: True),
    ):
        table.backfill("c0", executor="local", progress=False, where=where)
        check(done)
    table.optimize()
    check(lambda k: True)


@pytest.mark.parametrize(
    ("version", "kind"),
    [
        ("2.1", pa.map_(TEXT, INT)),
        ("2.0", pa.map_(TEXT, INT)),
        ("2.0", struct(INT)),
        ("2.2", pa.list_(struct(INT), 2)),
        ("2.2", pa.decimal32(5, 2)),
        ("2.2", pa.list_view(INT)),
        ("2.2", pa.list_(INT, 0)),
        ("2.2", struct()),
    ],
    ids=str,
)
def test_type_that_the_files_cannot_hold_is_refused_before_a_call(
    tmp_path: Path, calls: CallLog, version: str, kind: pa.DataType
) -> None:
    table = stored_version(tmp_path, version)

    @geneva.udf(data_type=kind)
    def y(x: int) -> Any:
        calls(x)
        return sample(kind, x, holes=False)

    with pytest.raises(UdfError, match="cannot be stored"):
        table.add_columns({"y": y})
    assert table.schema.names == ["x"]
    assert not calls.counts
    # A group stores the fields of the struct, and not the struct.
    pair = geneva.udf(data_type=struct(INT, INT))(lambda x: {"a": x, "b": -x})
    table.add_columns({("a", "b"): pair})
    table.backfill("a", executor="local", progress=False, where="x < 3")
    assert column(table, "b")[:4] == [0, -1, -2, None]


def test_dictionary_that_overflows_is_no_fault_that_passes(tmp_path: Path) -> None:
    data = pa.table({"x": pa.array(range(200), INT)})
    table = geneva.connect(database(tmp_path)).create_table("t", data)

    @geneva.udf(data_type=pa.dictionary(pa.int8(), TEXT))
    def y(x: int) -> str:
        return f"value {x}"

    table.add_columns({"y": y})
    with pytest.raises(UdfFailedError, match="different values") as caught:
        table.backfill("y", executor="local", progress=False, batch_size=50)
    assert "wider indices" in str(caught.value)
    assert RESUME not in str(caught.value)


def test_refusal_of_lance_is_no_fault_that_passes(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A table bound before Geneva knew what its files hold."""
    table = stored_version(tmp_path, "2.1")
    monkeypatch.setattr("geneva.engine.bind.unstorable", lambda kind, version: "")
    calls = itertools.count()

    @geneva.udf(data_type=pa.map_(TEXT, INT), version="1")
    def y(x: int) -> Any:
        next(calls)
        return {"a": x}

    table.add_columns({"y": y})
    with pytest.raises(StorageError, match="will fail again") as caught:
        table.backfill("y", executor="local", progress=False, concurrency=1)
    assert RESUME not in str(caught.value)
    assert next(calls) <= ROWS


def test_nanoseconds_within_a_list_are_not_cut_off_for_a_udf(tmp_path: Path) -> None:
    kind = pa.list_(struct(pa.time64("ns")))
    storage = pa.array([0, 1_000, 2_001], INT).cast(pa.time64("ns"))
    rows = pa.ListArray.from_arrays(
        [0, 1, 2, 3], pa.StructArray.from_arrays([storage], fields=list(kind.value_type))
    )
    db = geneva.connect(database(tmp_path))
    table = db.create_table("t", pa.table({"x": range(3), "v": rows}))

    @geneva.udf
    def y(v: list[Any]) -> int:
        return int(v[0]["a"].microsecond)

    table.add_columns({"y": y})
    result = table.backfill("y", executor="local", progress=False, on_error="null")
    assert column(table, "y") == [0, 1, None]
    assert result.rows_failed == 1
    with pytest.raises(GenevaError):
        table.backfill("y", executor="local", progress=False, retry_failed=True)
