"""How large a row is, by its type or by samples."""

from __future__ import annotations

from pathlib import Path

import pyarrow as pa
import pytest

from geneva.storage.sizes import bytes_per_row
from tests.support.tables import make_table

FIXED = {
    "flag": pa.array([True, False] * 64),
    "number": pa.array(range(128), pa.int32()),
    "vector": pa.FixedSizeListArray.from_arrays(pa.array(range(1024), pa.float32()), 8),
    "pair": pa.StructArray.from_arrays([pa.array(range(128), pa.int64())] * 2, names=["a", "b"]),
    "digest": pa.array([b"0123456789abcdef"] * 128, pa.binary(16)),
}


@pytest.mark.parametrize("column", FIXED)
def test_size_by_type_is_not_what_is_read(
    tmp_path: Path, column: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    storage = make_table(tmp_path, data=pa.table(FIXED), fragments=2).storage
    snapshot = storage.open()
    (batch,) = storage.scan(snapshot, 0, [column], batch_rows=128)
    monkeypatch.setattr(type(storage), "scan", None)
    size = bytes_per_row(storage, snapshot, [column], [0, 1])
    assert size == pytest.approx(batch.nbytes / batch.num_rows, abs=1)


def test_rows_without_a_fixed_size_are_sampled(tmp_path: Path) -> None:
    data = pa.table({"text": ["x" * 1000] * 128, **FIXED})
    storage = make_table(tmp_path, data=data, fragments=2).storage
    assert bytes_per_row(storage, storage.open(), ["text", "number"], [0, 1]) > 1000
