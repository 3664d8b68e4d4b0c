"""No filter, however long or deep, ends the process that checks it, or occupies it for long."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Iterator

import pytest
from hypothesis import event, given, settings
from hypothesis import strategies as st

SHAPES = {
    "or": lambda n: " or ".join(f"x = {i}" for i in range(n)),
    "and": lambda n: " and ".join(f"x <> {i}" for i in range(n)),
    "and of or": lambda n: " and ".join(f"(x = {i} or b)" for i in range(n)),
    "or within": lambda n: "not (b and (" + " or ".join(["x = 1"] * n) + "))",
    "between": lambda n: " or ".join(f"x between {i} and {i + 1}" for i in range(n)),
    "brackets": lambda n: "(" * n + "b" + ")" * n,
    "left brackets": lambda n: "(" * n + "b" + " or b)" * n,
    "right brackets": lambda n: "(b or " * n + "b" + ")" * n,
    "open brackets": lambda n: "(" * n + "b",
    "mixed brackets": lambda n: "([" * n + "b",
    "not": lambda n: "not " * n + "b",
    "not()": lambda n: "not (" * n + "b" + ")" * n,
    "minus": lambda n: "- " * n + "x = 1",
    "minuses": lambda n: "-" * n + "1 = x",
    "tilde": lambda n: "~ " * n + "x = 1",
    "plus": lambda n: "x" + " + x" * n + " = 1",
    "joined strings": lambda n: "s" + " || s" * n + " = 'a'",
    "casts": lambda n: "cast(" * n + "x" + " as bigint)" * n + " = 1",
    "colons": lambda n: "x" + "::bigint" * n + " = 1",
    "calls": lambda n: "abs(" * n + "x" + ")" * n + " = 1",
    "arguments": lambda n: "coalesce(" + ", ".join(["x"] * n) + ") = 1",
    "case": lambda n: "case when b then " * n + "b" + " end" * n,
    "whens": lambda n: "case " + "when b then b " * n + "end",
    "is null": lambda n: "x = 1" + " is null" * n,
    "arrays": lambda n: "l = " + "[" * n + "1" + "]" * n,
    "array": lambda n: "l = [" + ", ".join(map(str, range(n))) + "]",
    "subscripts": lambda n: "l" + "[1]" * n + " = 1",
    "dots": lambda n: ".".join(["m"] * n) + " = 1",
    "integers": lambda n: f"x in ({', '.join(map(str, range(n)))})",
    "strings": lambda n: "s not in (" + ",".join(f"'it''s {i}'" for i in range(n)) + ")",
    "mixed values": lambda n: "x in (" + ",".join(["1", "'a'", "2.5", "-3", "1e5"] * n) + ")",
    "odd values": lambda n: "x in (" + ",".join(["1", "null", "1 + 1"] * n) + ")",
    "columns": lambda n: "x in (" + ", ".join(["x"] * n) + ")",
    "lists": lambda n: " or ".join(["x in (1, 2, 3)"] * n),
    "long lists": lambda n: " or ".join([f"x in ({', '.join(map(str, range(90)))})"] * n),
    "open list": lambda n: "x in (" + "1," * n,
    "functions": lambda n: " or ".join(f"f{i}(x) = 1" for i in range(n)),
    "comments": lambda n: "b " + "-- '\n" * n,
    "open comments": lambda n: "b " + "/*" * n,
    "semicolons": lambda n: "b" + ";" * n,
    "quotes": lambda n: "s = " + "'" * n,
    "double quotes": lambda n: '"' * n + " = 1",
    "backticks": lambda n: "`" * n + " = 1",
    "a string": lambda n: "s = '" + "a" * n + "'",
    "a pattern": lambda n: "s like '" + "%a" * n + "'",
    "an expression": lambda n: "regexp_like(s, '" + "(" * n + "a" + ")" * n + "')",
    "a name": lambda n: "a" * n + " = 1",
    "digits": lambda n: "x = " + "9" * n,
    "fraction": lambda n: "f = 0." + "9" * n,
    "exponent": lambda n: "f = 1e" + "9" * n,
    "blanks": lambda n: " " * n + "b" + "\n" * n,
    "zeros": lambda n: "b" + "\0" * n,
    "surrogates": lambda n: "s = '" + "\ud800" * n + "'",
    "dollars": lambda n: "$$ ' $$ or " * n + "b",
    "likes": lambda n: "s" + " like s" * n,
    "selects": lambda n: "x in (select " * n + "x" + ")" * n,
    "in in": lambda n: "x in (" * n + "1" + ")" * n,
    "intervals": lambda n: " + ".join(["interval '1 day'"] * n) + " > interval '1 day'",
}
WRAPS = ["{}", "not ({})", "b and ({})", "({}) or ({})", "{} -- ", "coalesce({}, b)"]
SIZES = st.integers(0, 70) | st.sampled_from([500, 2_500, 4_000, 12_000, 100_000, 300_000])
MOST_BYTES = 1 << 20

CHILD = """
import faulthandler, json, sys
import pyarrow as pa
from geneva.errors import WhereError
from geneva.where.parse import parse_where

types = {"x": pa.int64(), "f": pa.float32(), "s": pa.string(), "b": pa.bool_()}
types |= {"l": pa.list_(pa.int64()), "m": pa.struct([("m", pa.int64())])}
schema = pa.schema(types.items())
for line in sys.stdin:
    faulthandler.dump_traceback_later(60, exit=True)  # 2**n is more than any machine's patience
    try:
        where = parse_where(json.loads(line), schema)
        answer = {"sql": where.sql[:100]}
    except WhereError as error:
        answer = {"refused": str(error)}
    print(json.dumps(answer), flush=True)
    faulthandler.cancel_dump_traceback_later()
"""


class Child:
    """A process that checks filters; asked anew whether it lives with each of them."""

    def __init__(self) -> None:
        command = [sys.executable, "-c", CHILD]
        pipe = subprocess.PIPE
        self.process = subprocess.Popen(command, stdin=pipe, stdout=pipe, stderr=pipe, text=True)

    def check(self, text: str) -> dict[str, str]:
        given, told, errors = self.process.stdin, self.process.stdout, self.process.stderr
        assert given is not None
        assert told is not None
        assert errors is not None
        given.write(json.dumps(text) + "\n")
        given.flush()
        answer = told.readline()
        if not answer:
            pytest.fail(f"{text[:200]!r} ended the process: {errors.read()[-2000:]}")
        return dict(json.loads(answer))


@pytest.fixture(scope="module")
def child() -> Iterator[Child]:
    child = Child()
    yield child
    child.process.kill()
    child.process.communicate()


@settings(max_examples=60, deadline=None)
@given(shape=st.sampled_from(sorted(SHAPES)), size=SIZES, wrap=st.sampled_from(WRAPS))
def test_filter_of_any_size_is_answered_or_refused_in_words(
    child: Child, shape: str, size: int, wrap: str
) -> None:
    text = SHAPES[shape](size)[:MOST_BYTES]
    answer = child.check(wrap.format(text, "b"))
    assert answer.get("sql") or 0 < len(answer["refused"]) < 2_000
    event("refused" if "refused" in answer else "understood")


@pytest.mark.parametrize("shape", sorted(SHAPES))
def test_filter_of_the_largest_size_is_answered_or_refused_in_words(
    child: Child, shape: str
) -> None:
    for size in (45, 120, 10_000, 250_000):
        answer = child.check(SHAPES[shape](size)[:MOST_BYTES])
        assert answer.get("sql") or 0 < len(answer["refused"]) < 2_000


@pytest.mark.parametrize(
    ("shape", "size"),
    [
        ("or", 2_900),
        ("and", 2_900),
        ("or within", 1_500),
        ("integers", 100_000),
        ("strings", 60_000),
        ("long lists", 500),
        ("brackets", 35),
        ("not()", 15),
        ("calls", 35),
        ("plus", 30),
    ],
)
def test_filters_that_people_write_are_not_too_large(child: Child, shape: str, size: int) -> None:
    assert "sql" in child.check(SHAPES[shape](size))


@pytest.mark.parametrize("shape", ["or", "and", "integers", "arguments", "a string"])
def test_filter_that_is_too_large_is_told_the_limit_and_the_way_out(
    child: Child, shape: str
) -> None:
    refused = child.check(SHAPES[shape](1_100_000 if shape == "a string" else 120_000))["refused"]
    assert "has more than" in refused
    assert "`id IN (...)`" in refused
