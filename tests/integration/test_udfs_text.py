"""udfs.text on real tables: Python's own source as the text."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import numpy as np
import pyarrow as pa
import pytest
from hypothesis import given
from hypothesis import strategies as st

from geneva import GenevaError
from tests.support.tables import assert_table_invariants, column, make_table
from udfs import reading
from udfs.text import HashedNgrams, char_count, line_count, word_count

TEXTS = [
    "",
    " ",
    "one",
    "naïve café\n",
    "a\tb\r\nc\n\nd",
    "x\u2003y\x1cz",
    "\n",
    None,
    "日本語 text",
]


@pytest.fixture
def sources() -> list[str | None]:
    library = Path(json.__file__).parent
    files = sorted(library.glob("*.py"))
    assert len(files) >= 4
    return [*(f.read_text() for f in files), None, "", "ab"]


def vectors(values: list[list[float] | None]) -> np.ndarray:
    return np.array([v for v in values if v is not None], np.float32)


def test_counts_that_differ_from_those_of_python(tmp_path: Path, sources: list[str | None]):
    texts = [*sources, *TEXTS]
    table = make_table(tmp_path, data=pa.table({"text": texts}), fragments=3)
    table.add_columns({"chars": char_count, "words": word_count, "lines": line_count})
    table.backfill(["chars", "words", "lines"], executor="local", concurrency=2)

    assert column(table, "chars") == [None if t is None else len(t) for t in texts]
    assert column(table, "words") == [None if t is None else len(t.split()) for t in texts]
    lines = [None if t is None else len(t.replace("\r\n", "\n").split("\n")) for t in texts]
    ended = [t is not None and (not t or t.endswith("\n")) for t in texts]
    assert column(table, "lines") == [n if n is None else n - e for n, e in zip(lines, ended)]  # noqa: B905
    assert_table_invariants(table)


@given(st.lists(st.none() | st.text(), max_size=8))
def test_counts_of_an_odd_text_or_slice_that_are_wrong(texts: list[str | None]):
    for array in (pa.array(texts, pa.string()), pa.array(["é\n", *texts], pa.large_string())[1:]):
        assert char_count(array).to_pylist() == [None if t is None else len(t) for t in texts]
        assert line_count(array).to_pylist() == [
            None if t is None else t.count("\n") + bool(t and not t.endswith("\n")) for t in texts
        ]


def test_vector_of_a_null_text_that_is_not_null(tmp_path: Path, sources: list[str | None]):
    table = make_table(tmp_path, data=pa.table({"text": sources}), fragments=2)
    table.add_columns({"vector": HashedNgrams(dimensions=256)})
    table.backfill("vector", executor="local", concurrency=2)

    values = column(table, "vector")
    assert table.schema.field("vector").type == pa.list_(pa.float32(), 256)
    assert [v is None for v in values] == [t is None for t in sources]
    norms = np.linalg.norm(vectors(values), axis=1)
    long_enough = [len(t) >= 3 for t in sources if t is not None]
    assert np.allclose(norms, np.array(long_enough, np.float32), atol=1e-6)
    assert_table_invariants(table)


def test_search_that_does_not_find_the_text_itself(tmp_path: Path, sources: list[str | None]):
    texts = [t for t in sources if t]
    table = make_table(tmp_path, data=pa.table({"text": texts}), fragments=2)
    embed = HashedNgrams()
    table.add_columns({"vector": embed})
    table.backfill("vector", executor="local")
    for text in texts:
        query = embed(pa.array([text]))[0].as_py()
        assert (
            table.search(query, vector_column_name="vector").limit(1).to_list()[0]["text"] == text
        )


def test_vector_that_depends_on_the_process(sources: list[str | None]):
    texts = [t for t in sources if t]
    program = (
        "import sys, json, pyarrow as pa; from udfs.text import HashedNgrams;"
        "print(json.dumps(HashedNgrams(32, 4)(pa.array(json.load(sys.stdin))).to_pylist()))"
    )
    root = str(Path(__file__).resolve().parents[2])
    found = [
        json.loads(
            subprocess.run(
                [sys.executable, "-c", program],
                input=json.dumps(texts),
                capture_output=True,
                text=True,
                check=True,
                cwd=root,
                env={"PYTHONHASHSEED": seed},
            ).stdout
        )
        for seed in ("1", "2")
    ]
    here = HashedNgrams(32, 4)(pa.array(texts)).to_pylist()
    assert found == [here, here]


def test_vector_that_depends_on_its_neighbours_in_the_batch(sources: list[str | None]):
    embed = HashedNgrams(dimensions=48, n=5)
    together = embed(pa.array(sources, pa.large_string()))
    alone = [embed(pa.array([t], pa.string()))[0].as_py() for t in sources]
    assert together.to_pylist() == alone
    assert embed(pa.array(["x", *sources, "y"])[1:-1]).equals(together)


def test_ngrams_that_are_not_those_of_the_definition():
    # The same by hand, one n-gram after the other, for a text of two of them.
    embed = HashedNgrams(dimensions=7, n=3)
    by_parts = vectors(embed(pa.array(["ABC", "bcd"])).to_pylist()).sum(axis=0)
    whole = vectors(embed(pa.array(["abcD"])).to_pylist())[0]
    signed_root = np.sign(by_parts) * np.sqrt(np.abs(by_parts))
    assert np.allclose(whole, signed_root / np.linalg.norm(signed_root), atol=1e-6)


@pytest.mark.parametrize("wrong", [{"dimensions": 0}, {"n": 0}, {"n": True}, {"dimensions": 1.5}])
def test_parameter_that_makes_no_sense_is_taken(wrong: dict[str, object]):
    with pytest.raises(ValueError, match=next(iter(wrong))):
        HashedNgrams(**wrong)  # type: ignore[arg-type]


def test_ready_udf_that_cannot_read_a_column_of_another_name(tmp_path: Path):
    data = pa.table({"source": ["a b", None, "c"], "m": [{"t": "x"}, {"t": "yy"}, {"t": None}]})
    table = make_table(tmp_path, data=data, fragments=1)
    table.add_columns(
        {
            "words": reading(word_count, "source"),
            "chars": reading(char_count, "m.t"),
            "vector": reading(HashedNgrams(16), "source"),
        }
    )
    table.backfill(["words", "chars", "vector"], executor="local")
    assert column(table, "words") == [2, None, 1]
    assert column(table, "chars") == [1, 2, None]
    assert column(table, "vector") == HashedNgrams(16)(data["source"].combine_chunks()).to_pylist()
    with pytest.raises(GenevaError, match="2 columns"):
        reading(char_count, "a", "b")


def test_reading_the_same_column_that_looks_like_another_udf():
    for udf in (char_count, word_count, HashedNgrams(8)):
        assert reading(udf, "text").digest == udf.digest
        assert reading(udf, "source").digest != udf.digest
