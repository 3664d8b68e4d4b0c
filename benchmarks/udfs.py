"""UDFs that cost next to nothing, so that what is measured is the engine."""

from __future__ import annotations

import pyarrow as pa
import pyarrow.compute as pc

from geneva import udf


@udf(data_type=pa.int64())
def double_batch(x: pa.Array) -> pa.Array:
    return pc.multiply(x, 2)


@udf
def double(x: int) -> int:
    return x * 2
