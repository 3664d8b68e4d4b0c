"""The faults of other packages are worked around, and are still there without that."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

CONVERSIONS = """
import pandas as pd
import pyarrow as pa
from importlib.machinery import SourceFileLoader
assert isinstance(pd.__spec__.loader, SourceFileLoader), pd.__spec__.loader
print(pa.array(pd.Series([1.0, None])))
print(pa.array([pd.NaT, pd.NA, 1], from_pandas=True))
print(pa.array([pd.offsets.DateOffset(months=1)]))
print(pa.array(pd.Categorical(["a", "b"])))
print(pa.array([pd.Timestamp(5)], pa.timestamp("ns")))
print(pa.table(pd.DataFrame({"a": [1.0, None], "b": ["x", None]})))
print(pa.Table.from_pandas(pd.DataFrame({"a": [pd.NA, "x"]}, dtype=object)))
print(pa.array([1.0, None]).to_pandas())
"""

FIRST_USES = {
    "nothing": "",
    "values": "pa.array([1, None], pa.int64()); pa.scalar(True, pa.bool_())",
    "inference": "pa.array([1, None])",
    "lance": "import lance; pa.array(['a'], pa.string())",
}


def output_of(program: str) -> str:
    done = subprocess.run(
        [sys.executable, "-W", "ignore", "-c", program], capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr
    return done.stdout


@pytest.fixture(scope="module")
def usual() -> str:
    return output_of("import pyarrow as pa; pa.scalar(True)" + CONVERSIONS)


@pytest.mark.parametrize("first", FIRST_USES)
def test_pandas_objects_that_pyarrow_does_not_know(usual: str, first: str) -> None:
    program = f"import sys, geneva, pyarrow as pa; {FIRST_USES[first]}"
    assert output_of(program + CONVERSIONS) == usual


BACKFILL = """
import sys
import pyarrow as pa
import geneva
import lance
lance.write_dataset(pa.table({"x": pa.array(range(100), pa.int64())}), sys.argv[1] + "/t.lance")
def double(x: int) -> int:
    return 2 * x
table = geneva.connect(sys.argv[1]).open_table("t")
table.delete("x = 7")
table.add_columns({"y": geneva.udf(double, version="1")})
table.backfill("y", executor="local", progress=False, where="x > 50")
table.backfill("y", executor="local", progress=False)
print(table.count_rows("y = 2 * x"), "pandas" in sys.modules)
"""


def test_import_of_lance_alone_imports_pandas() -> None:
    program = "import sys, lance; print('pandas' in sys.modules)"
    assert output_of(program).split() == ["True"], "compat.import_pandas_later is no longer needed"


def test_backfill_imports_pandas_for_nobody(tmp_path: Path) -> None:
    program = BACKFILL.replace("sys.argv[1]", repr(str(tmp_path)))
    assert output_of(program).split() == ["99", "False"]


REMAPPED = """
import sys
import lance
import pyarrow as pa
path = sys.argv[1] + "/t.lance"
numbers = pa.table({"x": pa.array(range(20), pa.int64())})
dataset = lance.write_dataset(numbers, path, max_rows_per_file=10)
dataset.create_scalar_index("x", "BTREE")
dataset.delete("x < 5")
dataset.optimize.compact_files()
transaction = dataset.read_transaction(dataset.latest_version)
print(type(transaction.operation).__name__, len(transaction.operation.rewritten_indices))
"""


def test_transaction_that_remapped_an_index_is_read(tmp_path: Path) -> None:
    program = REMAPPED.replace("sys.argv[1]", repr(str(tmp_path)))
    assert output_of("import geneva.storage.lance\n" + program).split() == ["Rewrite", "1"]


def test_lance_alone_cannot_read_a_transaction_that_remapped_an_index(tmp_path: Path) -> None:
    program = REMAPPED.replace("sys.argv[1]", repr(str(tmp_path)))
    with pytest.raises(AssertionError, match="RewrittenIndex"):  # else compat.complete can go
        output_of(program)
