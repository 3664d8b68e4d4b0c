"""Rows are cut into units and joined again without losing one."""

from __future__ import annotations

import numpy as np
import pyarrow as pa
import pytest

from geneva.appliers.units import Units


@pytest.mark.slow  # a gigabyte of text
def test_rows_of_a_unit_of_more_text_than_arrow_can_join_are_dropped() -> None:
    batch = pa.record_batch({"text": ["x" * (1 << 20)] * 1100})
    units = Units(lambda _: 2200, None)
    assert not list(units.add(np.arange(1100), batch))
    with pytest.raises(pa.ArrowInvalid, match="overflow"):
        list(units.add(np.arange(1100, 2200), batch))
