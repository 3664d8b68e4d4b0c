"""Bad input is refused before any work, in words that say what would be right."""

from __future__ import annotations

import re
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pyarrow as pa
import pytest

import geneva
from geneva.errors import ColumnError, RequestError, SettingError, TableError, UdfError, WhereError
from tests.support.backfills import times
from tests.support.calls import CallLog
from tests.support.tables import column, database, database_of, files_of, make_table


@pytest.fixture
def table(tmp_path: Path, calls: CallLog) -> Iterator[geneva.Table]:
    """Yield a table with a computed column y; check afterwards that nothing was done to it."""
    data = pa.table(
        {
            "x": pa.array(range(40), pa.int64()),
            "s": ["a"] * 40,
            "flag": [True, False] * 20,
            "meta": [{"lang": "de"}] * 40,
        }
    )
    made = make_table(tmp_path, data=data)
    made.add_columns({"y": times(calls)})
    before = (made.storage.open().version, made.schema, sorted(_files(made)))
    yield made
    made.checkout_latest()
    assert (made.storage.open().version, made.schema, sorted(_files(made))) == before
    assert not len(calls)


def _files(table: geneva.Table) -> list[str]:
    """Return all files of the table but pickles, which nobody refers to before a binding does."""
    return [n for n in files_of(table) if "/udfs/" not in n]


def refused(error: type[RequestError], message: str, action: Callable[[], Any]) -> None:
    with pytest.raises(error, match=message) as caught:
        action()
    assert issubclass(caught.type, RequestError)


# every way to ask for a backfill refuses the same
WAYS: list[Callable[..., Any]] = [
    lambda t, c, **o: t.backfill(c, executor="local", **o),
    lambda t, c, **o: t.backfill(c, **o),
    lambda t, c, **o: t.backfill_async(c, **o),
    lambda t, c, **o: t.plan_backfill(c, **o),
]


@pytest.fixture(params=WAYS, ids=["local", "ray", "async", "plan"])
def ask(request: pytest.FixtureRequest) -> Callable[..., Any]:
    return request.param


def test_unknown_table_is_not_told_from_a_broken_one(table: geneva.Table) -> None:
    db = geneva.connect(database_of(table))
    refused(TableError, r"no table 'tt' in .*; tables: t$", lambda: db.open_table("tt"))


def test_remote_database_is_accepted() -> None:
    refused(
        SettingError, r"db://prod is a remote database.*s3://", lambda: geneva.connect("db://prod")
    )


@pytest.mark.parametrize(
    ("uri", "message"),
    [
        ("s3://b/a?sig=x", "so tables would lie in s3://b/a: "),  # nor is a signature shown
        ("s3://b/run#7/db", "so tables would lie in s3://b/run: "),
        ("file:///tmp/a%20b", "holds a '%', which Lance decodes"),
    ],
)
def test_uri_by_which_lance_means_another_place_is_accepted(uri: str, message: str) -> None:
    refused(SettingError, message, lambda: geneva.connect(uri))


def test_remote_table_is_wrapped() -> None:
    class RemoteTable:
        uri = "db://prod/t"

    refused(
        TableError,
        "RemoteTable is not a table of a LanceDB database",
        lambda: geneva.Table(RemoteTable()),
    )


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("z", r"no column 'z'\. The table has: x, s, flag, meta, y"),
        ("Y", "no column 'Y'"),
        ("x", r"'x' is not computed: no UDF is bound.*add_columns\(\{'x': udf\}\).*columns: y"),
        (["y", "flagg"], r"no column 'flagg'\. Did you mean 'flag'\?"),
    ],
)
def test_column_that_is_not_computed_is_backfilled(
    table: geneva.Table, ask: Callable[..., Any], name: Any, message: str
) -> None:
    refused(ColumnError, message, lambda: ask(table, name))


@pytest.mark.parametrize("name", [[], None, 3, ["y", None]])
def test_what_is_no_column_is_backfilled(
    table: geneva.Table, ask: Callable[..., Any], name: Any
) -> None:
    refused(SettingError, "column", lambda: ask(table, name))


def test_coverage_of_a_column_that_is_not_computed(table: geneva.Table) -> None:
    refused(ColumnError, "'x' is not computed", lambda: table.coverage("x"))
    refused(ColumnError, "no column 'q'", lambda: table.coverage("q"))
    refused(ColumnError, "'x' is not computed", lambda: table.load_udf("x"))


WHERES = {
    "x <": "where does not parse: Expected",
    "": "where is empty",
    "x > 1; drop table t": r"one expression, without ';'",
    "foo > 1": r"unknown column 'foo'\. The columns are: x, s, flag, meta, y",
    "X > 1": r"unknown column 'X'\. Did you mean 'x'",
    "x + 1": "must be true or false for each row, but it is of type int64",
    "s": "must be true or false for each row, but it is of type",
    "random() > 0.5": r"calls random\(\), whose value changes from call to call",
    "now() is not null": r"calls now\(\)",
    "uuid() = s": r"calls uuid\(\)",
    "case when x > 1 then true else false end": "cannot use CASE",
    "x in (select 1)": "cannot use a subquery",
    "sum(x) > 3": "cannot use an aggregate function",
    "x like 'a'": "makes no sense for this table",
}


@pytest.mark.parametrize("where", WHERES)
def test_filter_that_makes_no_sense_is_run(
    table: geneva.Table, ask: Callable[..., Any], where: str
) -> None:
    refused(WhereError, WHERES[where], lambda: ask(table, "y", where=where))


ARGUMENTS: list[tuple[dict[str, Any], str]] = [
    ({"concurency": 2}, r"unknown argument 'concurency'\. Did you mean 'concurrency'"),
    ({"when": "x"}, r"unknown argument 'when'.*Arguments: where, concurrency, "),
    ({"concurrency": 0}, "concurrency=0 must be at least 1"),
    ({"concurrency": None}, "concurrency=None must be a whole number"),
    ({"concurrency": "8"}, "concurrency='8' must be a whole number"),
    ({"intra_applier_concurrency": -1}, "intra_applier_concurrency=-1 must be at least 1"),
    ({"num_frags": 0}, "num_frags=0 must be at least 1"),
    ({"num_frags": 2.5}, "num_frags=2.5 must be a whole number"),
    ({"commit_granularity": True}, "commit_granularity=True must be a whole number"),
    ({"batch_size": 0}, "batch_size=0 must be at least 1"),
    ({"checkpoint_size": -5}, "checkpoint_size=-5 must be at least 1"),
    ({"timeout": -1}, "timeout=-1 must be a number that is not negative"),
    ({"resource_timeout": "long"}, "resource_timeout='long' must be a number"),
    ({"where": 3}, "where=3 must be SQL text"),
    ({"force": "no"}, "force='no' must be True or False"),
    ({"on_error": "skip"}, "on_error='skip' is unknown; choose 'fail' or 'null'"),
    ({"unverified": "x"}, "unverified='x' is unknown; choose 'trust' or 'recompute'"),
    ({"foreign": "x"}, "foreign='x' is unknown; choose 'keep' or 'recompute'"),
    ({"inputs": "x"}, "inputs='x' is unknown; choose 'wait' or 'as_is'"),
    ({"max_failures": 3}, "max_failures counts the failures that on_error='null' records"),
    ({"params": {"a": 1}}, "has no params 'a'; it has none"),
]


@pytest.mark.parametrize(("arguments", "message"), ARGUMENTS, ids=lambda v: str(v)[:25])
def test_argument_that_makes_no_sense_is_taken(
    table: geneva.Table, ask: Callable[..., Any], arguments: dict[str, Any], message: str
) -> None:
    # `local` gives an executor of its own; a repeated keyword is Python's business
    refused(SettingError, message, lambda: ask(table, "y", **arguments))


def test_unknown_executor_is_taken_for_the_default(table: geneva.Table) -> None:
    refused(
        SettingError,
        "executor='dask' is unknown; choose 'ray' or 'local'",
        lambda: table.backfill("y", executor="dask"),
    )


# --- binding --------------------------------------------------------------------------------


def _untyped(x):
    return x


def _unfit(x: int) -> int | str:
    return x


def _selfish(z: int) -> int:
    return z


def _lost(nope: int) -> int:
    return nope


def _nested(x: int) -> int:
    return x


BINDINGS: list[tuple[Callable[[], Any], type[RequestError], str]] = [
    (lambda: {"z": _untyped}, UdfError, r"'_untyped' has no column type.*-> int.*data_type="),
    (lambda: {"z": _unfit}, UdfError, "a column has one type"),
    (lambda: {"z": _selfish}, UdfError, "reads 'z', the column that it writes.*reads_own_output"),
    (lambda: {"z": _lost}, ColumnError, r"no column 'nope'\. The table has: x, s, flag, meta, y"),
    (
        lambda: {"z": geneva.udf(_nested, input_columns=["meta.nope"])},
        ColumnError,
        "'meta' has no field 'meta.nope'; it is struct",
    ),
    (
        lambda: {"z": geneva.udf(_nested, input_columns=["x", "s"])},
        UdfError,
        "names 2 columns .* but it takes the parameters x",
    ),
    (lambda: {"s": _nested}, ColumnError, "'s' is string, but UDF '_nested' returns int64"),
    (lambda: {("a", "b"): _nested}, UdfError, "fills several columns, so it must return a struct"),
    (
        lambda: {("a", "b"): geneva.udf(_nested, data_type=pa.struct([("q", pa.int8())]))},
        UdfError,
        "returns 1 fields .* for 2 columns",
    ),
    # the first is fine, but is not bound when the second is refused
    (lambda: {"good": _nested, "z": _lost}, ColumnError, "no column 'nope'"),
]


@pytest.mark.parametrize(("made", "error", "message"), BINDINGS)
def test_udf_that_does_not_fit_is_bound(
    table: geneva.Table, made: Callable[[], Any], error: type[RequestError], message: str
) -> None:
    refused(error, message, lambda: table.add_columns(made()))


def test_udf_that_cannot_be_pickled_is_bound(table: geneva.Table) -> None:
    lock = threading.Lock()

    @geneva.udf
    def z(x: int) -> int:
        with lock:
            return x

    refused(
        UdfError,
        "cannot be pickled because of closure variable 'lock' of .*, a _thread.lock",
        lambda: table.add_columns({"z": z}),
    )
    refused(UdfError, "'lock'", lambda: table.alter_columns({"path": "y", "udf": z}))


def test_rebinding_to_what_does_not_fit(table: geneva.Table) -> None:
    def text(x: int) -> str:
        return str(x)

    def own(y: int) -> int:
        return y

    refused(
        ColumnError,
        "'y' is int64, but UDF 'text' returns string; drop the column and add it again",
        lambda: table.alter_columns({"path": "y", "udf": text}),
    )
    refused(
        UdfError,
        "reads 'y', the column that it writes",
        lambda: table.alter_columns({"path": "y", "udf": own}),
    )
    refused(
        ColumnError,
        "no column 'yy'. Did you mean 'y'",
        lambda: table.alter_columns({"path": "yy", "udf": own}),
    )


def test_circle_of_columns_is_bound(tmp_path: Path, calls: CallLog) -> None:
    table = make_table(tmp_path)
    table.add_columns({"a": times(calls)})

    def b(a: int) -> int:
        return a

    def c(b: int) -> int:
        return b

    table.add_columns({"b": b})
    before = table.storage.open().version
    refused(
        ColumnError,
        r"circle: (a -> b -> a|b -> a -> b)",
        lambda: table.alter_columns({"path": "a", "udf": c}),
    )

    def one(two: int) -> int:
        return two

    def two(one: int) -> int:
        return one

    refused(ColumnError, "circle", lambda: table.add_columns({"one": one, "two": two}))
    assert table.storage.open().version == before


def test_udf_that_reads_its_own_column_is_refused_though_it_says_so(
    tmp_path: Path, calls: CallLog
) -> None:
    table = make_table(tmp_path, rows=8, fragments=1)

    @geneva.udf(reads_own_output=True)
    def total(x: int, total: int) -> int:
        return x + (total or 0)

    table.add_columns({"total": total})
    table.backfill("total", executor="local")
    assert column(table, "total") == list(range(8))
    assert table.backfill("total", executor="local").rows_computed == 0
    table.backfill("total", executor="local", force=True)
    assert column(table, "total") == [2 * i for i in range(8)]


def test_filter_column_that_was_dropped_meanwhile_gets_through(
    tmp_path: Path, calls: CallLog
) -> None:
    table = make_table(tmp_path)
    table.add_columns({"y": times(calls)})
    other = geneva.connect(database(tmp_path)).open_table("t")
    other.drop_columns(["s"])
    with pytest.raises(WhereError, match="unknown column 's'"):
        table.backfill("y", where="s = 'a'", executor="local")
    other.drop_columns(["x"])
    with pytest.raises(ColumnError, match=re.escape("there is no column 'x'. The table has: y")):
        table.backfill("y", executor="local")
    assert not len(calls)
