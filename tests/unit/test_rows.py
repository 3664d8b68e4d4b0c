"""Row maps and row sets: run-length encoding that loses nothing."""

from __future__ import annotations

import pickle

import numpy as np
import pyarrow as pa
import pytest

from geneva.column.file import ROW_MAP, row_map_text
from geneva.errors import CorruptFileError
from geneva.model.rows import (
    FOREIGN,
    GONE,
    MISSING,
    Mark,
    RowClass,
    RowMap,
    RowSet,
    RowStatus,
    is_row_map,
)
from geneva.storage.values import Footer

DONE = RowClass(RowStatus.COMPUTED, "d1", (Mark(1, "a.lance"),), (("w", (Mark(2, "b"),)),), 7)


def classes_of(row_map: RowMap) -> list[RowClass]:
    return [row_map.classes[i] for i in row_map.expand()]


def test_row_map_survives_the_footer() -> None:
    row_map = RowMap.from_ids([MISSING, DONE, FOREIGN], np.array([1, 1, 0, 2, 2, 1]))
    back = RowMap.loads(row_map.dumps())
    assert back.rows == 6
    assert classes_of(back) == [DONE, DONE, MISSING, FOREIGN, FOREIGN, DONE]


def test_map_of_no_rows_is_empty_not_broken() -> None:
    for row_map in (
        RowMap.uniform(0, DONE),
        RowMap.from_ids([DONE], np.zeros(0, np.int64)),
        RowMap.concat([]),
    ):
        assert classes_of(row_map) == []
        assert not row_map.mask(lambda _: True).any()
        assert RowMap.loads(row_map.dumps()).rows == 0


def test_equal_classes_under_different_ids_become_one() -> None:
    row_map = RowMap.from_ids([DONE, MISSING, DONE], np.array([0, 2, 2, 0]))
    assert row_map.classes == (DONE,)
    assert len(row_map.starts) == 1


def test_unused_classes_do_not_travel() -> None:
    row_map = RowMap.from_ids([FOREIGN, DONE, MISSING], np.array([1, 1]))
    assert row_map.classes == (DONE,)
    assert not row_map.any(lambda c: c.status is RowStatus.FOREIGN)


def test_take_follows_the_order_that_is_asked_for() -> None:
    row_map = RowMap.from_ids([MISSING, DONE], np.array([0, 1, 0, 1]))
    assert classes_of(row_map.take(np.array([3, 0, 1]))) == [DONE, MISSING, DONE]
    assert classes_of(row_map.take(np.array([True, False, True, False]))) == [MISSING, MISSING]


def test_concat_keeps_each_piece_in_its_place() -> None:
    left = RowMap.from_ids([MISSING, DONE], np.array([0, 1]))
    right = RowMap.from_ids([DONE, FOREIGN], np.array([0, 1, 1]))
    whole = RowMap.concat([left, right])
    assert classes_of(whole) == [MISSING, DONE, DONE, FOREIGN, FOREIGN]


def test_mask_and_replace_see_every_row_of_a_class() -> None:
    row_map = RowMap.from_ids([MISSING, DONE], np.array([0, 1, 1, 0]))
    assert row_map.mask(lambda c: c == DONE).tolist() == [False, True, True, False]
    replaced = row_map.replace(lambda c: FOREIGN if c == DONE else c)
    assert classes_of(replaced) == [MISSING, FOREIGN, FOREIGN, MISSING]
    assert classes_of(row_map) == [MISSING, DONE, DONE, MISSING]


def test_only_a_value_that_somebody_put_there_counts_as_overwritten() -> None:
    holding = {s for s in RowStatus if s.holds_value}
    assert holding == {RowStatus.COMPUTED, RowStatus.FOREIGN, RowStatus.UNVERIFIED}


def test_mark_of_a_changed_source_is_stale() -> None:
    assert Mark(1, GONE).stale
    assert not Mark(1, "a.lance").stale


def test_row_set_of_nothing_of_everything_and_of_edges() -> None:
    for mask in ([], [True], [False], [True, False, True], [False, True, True, False]):
        flags = np.array(mask, np.bool_)
        rows = RowSet.from_mask(flags)
        assert rows.mask().tolist() == mask


def test_maps_and_sets_travel_to_workers() -> None:
    row_map = RowMap.from_ids([MISSING, DONE], np.array([0, 1, 1]))
    rows = RowSet.from_mask(np.array([False, True, True]))
    assert classes_of(pickle.loads(pickle.dumps(row_map))) == [MISSING, DONE, DONE]
    assert pickle.loads(pickle.dumps(rows)).mask().tolist() == [False, True, True]


def test_a_million_rows_in_runs_take_little_room_in_a_footer() -> None:
    row_map = RowMap.from_ids([MISSING, DONE], np.repeat(np.arange(1000) % 2, 1000))
    assert len(row_map.dumps()) < 20_000
    assert RowMap.loads(row_map.dumps()).rows == 1_000_000


def test_row_map_of_before_the_first_release_is_refused() -> None:
    text = (
        "cmXAh-3o&+6ocO-*Kt@K8|+oexhQQn3jPdF#S8J>Jz}nsFCjaYc~g8|L>z)@Ht#*+JpR|36NuzM?|b6=7{U}Y*f"
        "<eG*skJ9{J>63d>h7CRLf)xRvVCe53OOT*L%y3y$~hc$+4B=1oX)#r~"
    )
    assert not is_row_map(text)
    assert is_row_map(RowMap.from_ids([DONE], np.zeros(3, np.int64)).dumps())
    with pytest.raises(CorruptFileError, match="no row map"):
        row_map_text(Footer(6, pa.schema([]), {ROW_MAP: text}), "gv.lance")
