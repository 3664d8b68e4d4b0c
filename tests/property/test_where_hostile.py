"""Whatever text a ``where`` is, it is refused in words or is one condition on the rows."""

from __future__ import annotations

import lance
import pyarrow as pa
import pytest
from hypothesis import event, given, settings
from hypothesis import strategies as st

from geneva.errors import WhereError
from geneva.where.parse import Where, parse_where

TEXTS = ["", "a", "it's", "a'' or 1=1 --", '"x"', "`x`", "\u2019", "\\' or x = 1", "%_", "\u00e9"]
TABLE = pa.table({"x": range(len(TEXTS)), "s": TEXTS, "a b": [True] * len(TEXTS)})
_PIECES = """x s "x" `s` 1 0 'a' 'it''s' '' ' " ` ; -- /* */ ( ) = <> > and or not is null true
false in like escape select from union drop table t where 1=1 || , . * \\ $$ $1 :p ? @v [1] ::int
E'\\'' X'27' U&'\\0027' N'a' interval case when then else end cast(x as exists over( limit order by
random() now() version() _rowid \u2019 \u201c \u02bc \u00a0 \uff07 \u2028"""
PIECES = [*_PIECES.split(), '"a b"', "\n", "\0"]
hostile = st.lists(st.sampled_from(PIECES) | st.text(max_size=3), max_size=9)
GOOD = ["x = 1", "s = 'a'", '"a b"', "s like '%'", "x in (1, 2)", "(x > 0)", "s is not null"]


@st.composite
def nearly_good(draw: st.DrawFn) -> str:
    """Conditions with something hostile before, between or behind them."""
    parts = [draw(st.sampled_from(GOOD)) for _ in range(draw(st.integers(1, 3)))]
    text = draw(st.sampled_from([" and ", " or ", ") or ("])).join(parts)
    for piece in draw(st.lists(st.sampled_from(PIECES), max_size=2)):
        at = draw(st.integers(0, len(text)))
        text = text[:at] + piece + text[at:]
    return draw(st.sampled_from(["", "not ", "("])) + text


@pytest.fixture(scope="module")
def dataset(tmp_path_factory: pytest.TempPathFactory) -> lance.LanceDataset:
    return lance.write_dataset(TABLE, str(tmp_path_factory.mktemp("where") / "t.lance"))


def parsed(text: str) -> Where | None:
    """Return what a text means, or nothing if it is refused, as it may only be in words."""
    try:
        return parse_where(text, TABLE.schema)
    except WhereError as error:
        return None if str(error) else pytest.fail("refused without a word")


@settings(max_examples=300)
@given(text=nearly_good() | hostile.map(" ".join) | hostile.map("".join))
def test_hostile_text_is_refused_in_words_or_is_one_condition(
    dataset: lance.LanceDataset, text: str
) -> None:
    where = parsed(text)
    event("refused" if where is None else "understood")
    if where is None:
        return
    assert parse_where(where.sql, TABLE.schema).sql == where.sql
    assert set(where.columns) <= {"x", "s", "a b"}
    for nothing in (f"({where.sql}) and false", f"not (({where.sql}) or true)"):
        assert dataset.count_rows(nothing) == 0


@settings(max_examples=150)
@given(value=st.sampled_from(TEXTS) | hostile.map(" ".join))
def test_quoted_text_selects_the_rows_that_hold_it(dataset: lance.LanceDataset, value: str) -> None:
    where = parse_where("s = '" + value.replace("'", "''") + "'", TABLE.schema)
    assert where.columns == ("s",)
    selected = dataset.to_table(filter=where.sql)["x"].to_pylist()
    assert selected == [i for i, text in enumerate(TEXTS) if text == value]
