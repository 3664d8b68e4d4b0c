"""A filter selects the rows that Lance selects by the same text, or is refused."""

from __future__ import annotations

import datetime as dt
import math
import re
from decimal import Decimal

import lance
import pyarrow as pa
import pytest
from hypothesis import assume, event, given, settings
from hypothesis import strategies as st

from geneva.errors import WhereError
from geneva.where.parse import parse_where

STAMPS = [dt.datetime(2020, 1, 1), None, dt.datetime(1969, 12, 31, 23, 59, 59, 999999)]
STAMPS += [dt.datetime(2024, 2, 29, 12, 30), dt.datetime(2020, 1, 1, 0, 0, 1)]
ROWS = 15
DECIMAL, WIDE = pa.decimal128(10, 2), pa.decimal128(38, 2)


def cycled(values, data_type):
    return pa.array([values[i * (1 + i // 5) % len(values)] for i in range(ROWS)], data_type)


TABLE = pa.table(
    {
        "x": cycled([0, 1, None, -5, 7, 300, 2**53 + 1, 2**63 - 1, -(2**63)], pa.int64()),
        "i8": cycled([0, 1, None, -128, 127, 3], pa.int8()),
        "u": cycled([0, 1, None, 2**64 - 1, 7], pa.uint64()),
        "f": cycled([1.5, None, math.nan, math.inf, -2.25, 0.1, 1e300], pa.float64()),
        "f32": cycled([0.1, 0.5, None, -0.0, 16777216.0, math.nan, math.inf], pa.float32()),
        "f16": cycled([0.1, 0.7, None, -0.0, 0.0, math.nan, 2.0], pa.float16()),
        "i16": cycled([0, 1, None, -(2**15), 300], pa.int16()),
        "u8": cycled([0, 1, None, 255, 7], pa.uint8()),
        "u16": cycled([0, 1, None, 2**16 - 1], pa.uint16()),
        "u32": cycled([0, 1, None, 2**32 - 1], pa.uint32()),
        "dec": cycled([Decimal("1.10"), None, Decimal("0.00"), Decimal("-7.25")], DECIMAL),
        "big": cycled([Decimal("1.10"), None, Decimal("12345678901234567890.50")], WIDE),
        "s": cycled(
            ["", "a", None, "it's", "A%b_", "é\\n", '"q`', "10", "2020-01-01"], pa.string()
        ),
        "ls": cycled(["a", None, "", "B"], pa.large_string()),
        "b": cycled([True, False, None], pa.bool_()),
        "ts": cycled(STAMPS, pa.timestamp("us")),
        "tz": cycled(STAMPS, pa.timestamp("us", "UTC")),
        "tz2": cycled(STAMPS, pa.timestamp("us", "+02:00")),
        "ts_s": cycled([s and s.replace(microsecond=0) for s in STAMPS], pa.timestamp("s")),
        "ts_ms": cycled([s and s.replace(microsecond=5000) for s in STAMPS], pa.timestamp("ms")),
        "ts_ns": cycled(STAMPS, pa.timestamp("ns")),
        "d": cycled([dt.date(2020, 1, 1), None, dt.date(1969, 12, 31)], pa.date32()),
        "d64": cycled([dt.date(2020, 1, 1), None, dt.date(1969, 12, 31)], pa.date64()),
        "t": cycled([dt.time(0), None, dt.time(12, 30)], pa.time64("us")),
        "t32": cycled([dt.time(0), None, dt.time(12, 30)], pa.time32("s")),
        "dur": cycled([dt.timedelta(0), None, dt.timedelta(hours=3)], pa.duration("us")),
        "bin": cycled([b"", b"a", None, b"\x00\xff"], pa.binary()),
        "lbin": cycled([b"", b"a", None, b"\x00\xff"], pa.large_binary()),
        "fbin": cycled([b"ab", None, b"\x00\xff"], pa.binary(2)),
        "dict": cycled(["a", None, "B", "it's"], pa.string()).dictionary_encode(),
        "l": cycled([[1, 2], [], None, [None, 3]], pa.list_(pa.int64())),
        "lf": cycled([[0.1, 2], [], None, [None, 3]], pa.list_(pa.float32())),
        "lstr": cycled([["a", "b"], [], None], pa.list_(pa.string())),
        "vec": cycled([[0.1, 2], [3, 4], None], pa.list_(pa.float32(), 2)),
        "lm": cycled([[{"a": 1}], None, []], pa.list_(pa.struct([("a", pa.int64())]))),
        "map": cycled([[("a", 1)], [], None], pa.map_(pa.string(), pa.int64())),
        "deep": cycled(
            [{"in side": {"f": 0.7, "K": 1}}, None, {"in side": None}, {"in side": {"f": None}}],
            pa.struct([("in side", pa.struct([("f", pa.float32()), ("K", pa.int8())]))]),
        ),
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
        {any_column} is {not}null | {odd} {cmp} {odd_literal} | {any_column} {cmp} {any_column}
        {odd} {not}in ({odd_literal}, {integer}) | {list}
        {odd} {not}between {odd_literal} and {odd_literal}
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
        ({moment} + interval '1 month') | cast('2020-01-01' as {stamp_type})""",
    "odd_literal": """1.10 | 1 | -7.25 | 'a' | '' | '1.10' | '12:30:00' | X'00ff' | X'61' | true
        null | dec | cast('1.10' as decimal(10,2)) | cast(1.1 as double) | date '2020-01-01'""",
    "list": """array_has(l, {small}) | array_length({lists}) = {small} | l[{small}] = {integer}
        list_contains(lstr, {string}) | lf[1] {cmp} {literal} | array_position(l, 2) {cmp} {small}
        vec[1] {cmp} {literal} | l = [1, 2] | lm[1]['a'] = {small} | array_has(lf, {literal})
        contains_tokens({str}, {string}) | cardinality({lists}) {cmp} {small}""",
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
FLOATS = st.one_of(
    st.sampled_from([0.1, 0.7, 0.5, 1.0, 1.5, -2.25, -0.0, 16777217.0, 1e300, 5e-324]),
    st.floats(allow_nan=False, allow_infinity=False),
).map(repr)
LEAVES = {
    "flag": named("b"),
    "whole": named(
        "x", "i8", "u", "Mixed Case", "meta.n", "i16", "u8", "u16", "u32", "deep.in side.K"
    ),
    "any_column": named(*TABLE.column_names),
    "odd": named("dec", "big", "bin", "lbin", "fbin", "dict", "t", "t32", "dur", "d64", "map"),
    "lists": named("l", "lf", "lstr", "vec"),
    "small": st.integers(-1, 3).map(str),
    "stamp_type": st.sampled_from(
        ["timestamp(0)", "timestamp(3)", "timestamp(6)", "timestamp(9)", "date"]
    ),
    "little": st.one_of(named("i8", "Mixed Case", "meta.n"), st.integers(-10, 10).map(str)),
    "integer": INTEGERS,
    "literal": st.one_of(INTEGERS, FLOATS),
    "real": named("f", "f32", "f16", "deep.in side.f"),
    "word": named("s", "ls", "meta.lang", "dict"),
    "string": st.one_of(
        st.sampled_from(["", "a", "it's", "A%b_", "é\\n", '"q`', "--", ";", "2020-01-01"]),
        st.text(st.characters(exclude_categories=["Cs", "Cc"]), max_size=4),
    ).map(sql_string),
    "pattern": st.text("aAb%_'é1-", max_size=4).map(sql_string),
    "time": named("ts", "tz", "tz2", "ts_s", "ts_ms", "ts_ns", "d"),
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
def dataset(tmp_path_factory):
    uri = str(tmp_path_factory.mktemp("agrees") / "t.lance")
    return lance.write_dataset(TABLE, uri, max_rows_per_file=4, data_storage_version="2.2")


def backticked(text):
    words = re.compile(r"""('(?:[^']|'')*')|"([^"]*)\"""")
    return words.sub(lambda found: found[1] or f"`{found[2]}`", text)


def rows(dataset, text):
    """Return the rows for which Lance finds a text true; None if it refuses or cannot say."""
    try:
        scanner = dataset.scanner(filter=text, columns=["x"], with_row_id=True)
        return scanner.to_table()["_rowid"].to_pylist()
    except (OSError, ValueError):
        return None


def masked(dataset, sql):
    scanner = dataset.scanner(columns={"x": "x", "m": sql}, with_row_id=True)
    table = scanner.to_table()
    return [
        i for i, m in zip(table["_rowid"].to_pylist(), table["m"].to_pylist(), strict=True) if m
    ]


@settings(max_examples=150, deadline=None)
@given(text=conditions())
def test_filter_selects_what_lance_selects_by_the_same_text_or_is_refused(dataset, text):
    meant = rows(dataset, text)
    if meant is None and '"' in text:  # names in double quotes are ours where Lance has no use
        meant = rows(dataset, backticked(text))
    try:
        where = parse_where(text, dataset.schema)
    except WhereError as error:
        event("both refuse" if meant is None else f"only we: {str(error)[:90]}")
        return
    found = rows(dataset, where.sql)
    assert found == meant, where.sql
    if found is None:  # such as an overflow: no answer to agree with
        event("no answer")
        assume(False)
    assert masked(dataset, where.sql) == meant, where.sql
    again = parse_where(where.sql, dataset.schema)
    assert (again.sql, again.digest, again.columns) == (where.sql, where.digest, where.columns)
