from __future__ import annotations

import datetime as dt
import math
import re

import lance
import pyarrow as pa
import pytest
from datafusion import SessionConfig, SessionContext
from hypothesis import assume, event, given, settings
from hypothesis import strategies as st

from geneva.plan.where import parse_where

STAMPS = [dt.datetime(2020, 1, 1), None, dt.datetime(1969, 12, 31, 23, 59, 59, 999999)]
STAMPS += [dt.datetime(2024, 2, 29, 12, 30), dt.datetime(2020, 1, 1, 0, 0, 1)]
ROWS = 15


def cycled(values, data_type):
    return pa.array([values[i * (1 + i // 5) % len(values)] for i in range(ROWS)], data_type)


TABLE = pa.table(
    {
        "x": cycled([0, 1, None, -5, 7, 300, 2**53 + 1, 2**63 - 1, -(2**63)], pa.int64()),
        "i8": cycled([0, 1, None, -128, 127, 3], pa.int8()),
        "u": cycled([0, 1, None, 2**64 - 1, 7], pa.uint64()),
        "f": cycled([1.5, None, math.nan, math.inf, -2.25, 0.1, 1e300], pa.float64()),
        "f32": cycled([0.1, 0.5, None, -1.0, 16777216.0, math.inf], pa.float32()),
        "s": cycled(
            ["", "a", None, "it's", "A%b_", "é\\n", '"q`', "10", "2020-01-01"], pa.string()
        ),
        "ls": cycled(["a", None, "", "B"], pa.large_string()),
        "b": cycled([True, False, None], pa.bool_()),
        "ts": cycled(STAMPS, pa.timestamp("us")),
        "tz": cycled(STAMPS, pa.timestamp("us", "UTC")),
        "d": cycled([dt.date(2020, 1, 1), None, dt.date(1969, 12, 31)], pa.date32()),
        "Mixed Case": cycled([0, 1, None, 4], pa.int32()),
        "meta": cycled(
            [{"lang": "en", "n": 1}, None, {"lang": None, "n": 2}, {"lang": "A", "n": None}],
            pa.struct([("lang", pa.string()), ("n", pa.int64())]),
        ),
    }
)
# What each kind of expression may look like; a name in braces is another kind, or a leaf below.
GRAMMAR = {
    "any": """{bool} | {bool} and {any} | ({bool}) or {any} | ({bool} or {bool}) and {any}
        not ({any}) | ({any}) is {truth} | ({bool}) = ({bool})""",
    "bool": """{flag} | {int} {cmp} {int} | {int} {cmp} {num} | {num} {cmp} {num}
        {str} {cmp} {str}
        {whole} {not}between {int} and {num} | {real} {not}between {num} and {num}
        {whole} {not}in ({int}, {literal}, null) | {real} {not}in ({num}, {literal})
        {str} {not}in ({str}, {string}) | {str} {not}between {str} and {str}
        {num} is {not}null | {str} is {not}null | meta is {not}null
        {str} {not}like {pattern} | {str} {not}ilike {pattern} | {str} {match} '^[aA]'
        starts_with({str}, {string}) | contains({str}, {string}) | ends_with({str}, {string})
        {time} {cmp} {stamp} | {stamp} {cmp} {time} | {time} {not}between {stamp} and {stamp}
        {time} {not}in ({stamp}, {stamp}) | {time} is {not}null""",
    "int": """{whole} | {integer} | length({str}) | coalesce({little}, {little})
        ({little} {arith} {little}) | {whole} % 7 | date_part('{part}', {time})""",
    "num": """{real} | {literal} | {int} | (-{real}) | ({num} {sign} {little}) | abs({real})
        ({real} {sign} {literal}) | cast({little} as {type}) | try_cast({str} as double)""",
    "str": """{word} | {string} | lower({str}) | UPPER({str}) | trim({str}) | ({str} || {str})
        coalesce({str}, {str}) | nullif({str}, {string}) | substr({str}, 1, 2)
        cast({little} as varchar)""",
    "stamp": """{time} | timestamp '2020-01-01 00:00:01' | date '1969-12-31' | '2020-01-01'
        '2020-01-01T00:00:01' | ({moment} - interval '3 hours')
        ({moment} + interval '1 month')""",
}
RULES = {
    kind: [form.strip() for line in forms.splitlines() for form in line.split(" | ") if form]
    for kind, forms in GRAMMAR.items()
}


def named(*names):
    bare = [name for name in names if " " not in name]
    ticked = [".".join(f"`{part}`" for part in name.split(".")) for name in names]
    quoted = [".".join(f'"{part}"' for part in name.split(".")) for name in names]
    return st.sampled_from(bare + ticked + quoted)


def sql_string(text):
    return "'" + text.replace("'", "''") + "'"


INTEGERS = st.one_of(
    st.sampled_from([0, 1, -1, 127, 128, 300, 2**53 + 1, 2**63 - 1, -(2**63), 2**63, 2**64 - 1]),
    st.integers(-10, 10),
).map(str)
# Lance follows IEEE for the sign of zero, DataFusion the total order: -0.0 is kept out.
FLOATS = st.one_of(
    st.sampled_from([0.1, 0.5, 1.0, 1.5, -2.25, 16777217.0, 1e300, 5e-324]),
    st.floats(allow_nan=False, allow_infinity=False).map(lambda number: number or 1.0),
).map(repr)
LEAVES = {
    "flag": named("b"),
    "whole": named("x", "i8", "u", "Mixed Case", "meta.n"),
    "little": st.one_of(named("i8", "Mixed Case", "meta.n"), st.integers(-10, 10).map(str)),
    "integer": INTEGERS,
    "literal": st.one_of(INTEGERS, FLOATS),
    "real": named("f", "f32"),
    "word": named("s", "ls", "meta.lang"),
    "string": st.one_of(
        st.sampled_from(["", "a", "it's", "A%b_", "é\\n", '"q`', "--", ";", "2020-01-01"]),
        st.text(st.characters(exclude_categories=["Cs", "Cc"]), max_size=4),
    ).map(sql_string),
    "pattern": st.text("aAb%_'é1-", max_size=4).map(sql_string),
    "time": named("ts", "tz", "d"),
    "moment": named("ts"),
    "sign": st.sampled_from("+-"),
    "arith": st.sampled_from("+-*"),
    "cmp": st.sampled_from(
        ["=", "!=", "<>", "<", "<=", ">", ">=", "is distinct from", "is not distinct from"]
    ),
    "not": st.sampled_from(["", "not "]),
    "match": st.sampled_from(["~", "!~", "~*", "!~*"]),
    "part": st.sampled_from(["year", "dow", "hour"]),
    "type": st.sampled_from(["double", "float", "decimal(10,2)"]),
    "truth": st.sampled_from(
        ["true", "false", "null", "unknown", "not true", "not false", "not null"]
    ),
}


@st.composite
def conditions(draw):
    def grown(kind, depth):
        if kind in LEAVES:
            return draw(LEAVES[kind])
        # The first form of each kind is the simplest one.
        form = draw(st.sampled_from(RULES[kind])) if depth else RULES[kind][0]
        return re.sub(r"{(\w+)}", lambda hole: grown(hole[1], max(depth - 1, 0)), form)

    return grown("any", 4)


@pytest.fixture(scope="module")
def readers(tmp_path_factory):
    uri = str(tmp_path_factory.mktemp("agrees") / "t.lance")
    dataset = lance.write_dataset(TABLE, uri, max_rows_per_file=4)
    config = SessionConfig({"datafusion.sql_parser.enable_ident_normalization": "false"})
    # Read back from Lance: DataFusion does not hide the child values of a null struct.
    return dataset, SessionContext(config).from_arrow(dataset.to_table(), name="t")


@settings(max_examples=100, deadline=None)
@given(text=conditions())
def test_mask_never_differs_from_what_the_user_wrote(readers, text):
    dataset, frame = readers
    try:
        mask = frame.select(frame.parse_sql_expr(text).alias("m"))
        meant = mask.to_arrow_table()["m"].to_pylist()
    except Exception as error:  # such as an overflow: no answer to agree with
        event(f"no answer: {str(error).splitlines()[-1][:60]}")
        assume(False)
    where = parse_where(text, TABLE.schema)
    found = dataset.scanner(columns={"x": "x", "m": where.sql}).to_table()["m"].to_pylist()
    assert found == meant, where.sql
    assert dataset.count_rows(where.sql) == meant.count(True), where.sql
    again = parse_where(where.sql, TABLE.schema)
    assert (again.sql, again.digest, again.columns) == (where.sql, where.digest, where.columns)
