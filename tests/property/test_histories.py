"""Whatever writers and backfills did before, a backfill of every column leaves only right values.

Each history is made from a seed. It holds only changes after which a plain backfill can know what
is stale; the table keeps all its versions, except in the histories that clean up.
"""

from __future__ import annotations

import datetime as dt
import os
import random
import shutil
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import lance
import pyarrow as pa
import pytest

import geneva
from tests.support.tables import make_table

STEPS, ROWS = 12, 12
SEEDS = 25
FILTERS_Y = ("tag = 'a'", "x < 2", "y is null", "id < 6")
FILTERS_Z = ("tag = 'a'", "k < 2", "y is not null", "z is null")


@geneva.udf
def of_x(x: int) -> int:
    return None if x == 2 else x * 10


@geneva.udf
def of_y(y: int, k: int) -> int:
    return (-1 if y is None else y) + k


@dataclass(frozen=True)
class Step:
    name: str
    ids: tuple[int, ...]
    pick: int

    @property
    def where(self) -> str:
        return f"id in ({', '.join(map(str, self.ids))})"


@dataclass
class History:
    """One table, the steps that are done to it, and what it must hold at the end."""

    path: Path
    seed: int
    steps: list[Step] = field(default_factory=list)

    def __post_init__(self) -> None:
        chance = random.Random(self.seed)
        self.path.mkdir()
        data = {
            "id": range(ROWS),
            "x": [chance.randrange(4) for _ in range(ROWS)],
            "k": [chance.randrange(3) for _ in range(ROWS)],
            "tag": [chance.choice("ab") for _ in range(ROWS)],
        }
        fragments, stable = chance.choice([1, 2, 3]), chance.random() < 0.3
        self.table = make_table(self.path, data=pa.table(data), fragments=fragments, stable=stable)
        self.table.add_columns({"y": of_x})
        self.table.add_columns({"z": of_y})
        names = list(STEP)
        for _ in range(STEPS):
            ids = tuple(chance.sample(range(ROWS), 3))
            self.steps.append(Step(chance.choice(names), ids, chance.randrange(12)))

    @property
    def dataset(self) -> Any:
        return lance.dataset(self.table.storage.uri)

    def backfill(self, name: str, **options: Any) -> geneva.BackfillResult:
        return self.table.backfill(name, executor="local", concurrency=1, progress=False, **options)

    def update(self, step: Step, **values: Any) -> None:
        self.table.checkout_latest()
        self.table.update(where=step.where, values=values)

    def append(self, step: Step) -> None:
        row = {"id": [100 + step.pick], "x": [step.pick % 4], "k": [1], "tag": ["a"]}
        self.dataset.insert(pa.table(row))

    def merge(self, step: Step) -> None:
        rows = self.dataset.to_table(filter=step.where)
        new = pa.array([(step.pick + i) % 4 for i in range(rows.num_rows)], pa.int64())
        rows = rows.set_column(rows.schema.get_field_index("x"), "x", new)
        self.dataset.merge_insert("id").when_matched_update_all().execute(rows)

    def rewrite(self, step: Step) -> None:
        fragments = [f.fragment_id for f in self.dataset.get_fragments() if f.count_rows()]
        if fragments:
            chosen = fragments[step.pick % len(fragments)]
            _rewrite_x(self.dataset, chosen, lambda x: (x + step.pick) % 4)

    def run(self) -> None:
        for step in self.steps:
            STEP[step.name](self, step)
        self.backfill("y")
        self.backfill("z")

    def wrong(self) -> list[dict[str, Any]]:
        """Return the rows whose values are not those of their inputs."""
        rows = self.dataset.to_table().to_pylist()
        return [r for r in rows if r["y"] != of_x(r["x"]) or r["z"] != of_y(r["y"], r["k"])]

    def check(self) -> None:
        try:
            self.run()
        except Exception as error:
            error.add_note(str(self))
            raise
        assert self.wrong() == [], str(self)
        for name in ("y", "z"):
            assert self.backfill(name).rows_computed == 0, f"{name}: {self}"

    def __str__(self) -> str:
        return f"seed {self.seed}: " + "; ".join(f"{s.name} {s.ids} {s.pick}" for s in self.steps)


def _rewrite_x(dataset: Any, fragment_id: int, change: Callable[[int], int]) -> None:
    """Change x where the id divides by 3, in place and without moving a row."""
    fragment = dataset.get_fragment(fragment_id)
    rows = fragment.to_table(columns=["id", "x"])
    pairs = zip(rows["id"].to_pylist(), rows["x"].to_pylist(), strict=True)
    new = [change(x) if i % 3 == 0 else x for i, x in pairs]
    values = pa.table({"id": rows["id"], "x": pa.array(new, pa.int64())})
    updated, fields = fragment.update_columns(values, left_on="id", right_on="id")
    operation = lance.LanceOperation.Update(
        updated_fragments=[updated], fields_modified=fields, update_mode="rewrite_columns"
    )
    lance.LanceDataset.commit(dataset.uri, operation, read_version=dataset.version)


STEP: dict[str, Callable[[History, Step], Any]] = {
    "update x": lambda h, s: h.update(s, x=s.pick % 4),
    "update k": lambda h, s: h.update(s, k=s.pick % 3),
    "update tag": lambda h, s: h.update(s, tag="ab"[s.pick % 2]),
    "delete": lambda h, s: h.dataset.delete(f"id = {s.ids[0]}"),
    "append": History.append,
    "compact": lambda h, s: h.dataset.optimize.compact_files(),
    "merge": History.merge,
    "rewrite x": History.rewrite,
    "backfill y": lambda h, s: h.backfill("y"),
    "backfill z": lambda h, s: h.backfill("z"),
    "backfill z as is": lambda h, s: h.backfill("z", inputs="as_is"),
    "backfill some y": lambda h, s: h.backfill(
        "y", where=FILTERS_Y[s.pick % 4], num_frags=[None, 1][s.pick % 2]
    ),
    "backfill some z": lambda h, s: h.backfill("z", where=FILTERS_Z[s.pick % 4]),
}


def seeds(count: int) -> range:
    """Return the same seeds in every run; with GENEVA_RANDOM=1 new ones; or from GENEVA_SEED on."""
    if given := os.environ.get("GENEVA_SEED"):
        return range(int(given), int(given) + count)
    start = random.SystemRandom().randrange(2**31) if os.environ.get("GENEVA_RANDOM") else 0
    return range(start, start + count)


def check_histories(path: Path, chosen: range) -> None:
    print(f"GENEVA_SEED={chosen[0]}, {len(chosen)} histories")  # shown when a test fails
    for seed in chosen:
        History(path / str(seed), seed).check()
        shutil.rmtree(path / str(seed))


def test_some_history_leaves_a_value_of_other_inputs(tmp_path: Path) -> None:
    check_histories(tmp_path, seeds(SEEDS))


def test_history_that_was_cleaned_up_computes_again_what_a_compaction_carried(
    tmp_path: Path,
) -> None:
    for seed in seeds(5):
        history = History(tmp_path / str(seed), seed)
        history.run()
        history.dataset.optimize.compact_files()
        for name in ("y", "z"):
            assert history.backfill(name).rows_computed == 0, f"{name}: {history}"
        history.dataset.cleanup_old_versions(older_than=dt.timedelta(0))
        for name in ("y", "z"):
            assert history.backfill(name).rows_computed == 0, f"{name}: {history}"
        assert history.wrong() == [], str(history)


@pytest.mark.crash
@pytest.mark.timeout(1200)
def test_one_of_many_histories_leaves_a_value_of_other_inputs(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    chosen = seeds(500)
    with capsys.disabled():
        print(f"\nGENEVA_SEED={chosen[0]}, {len(chosen)} histories")
    check_histories(tmp_path, chosen)
