"""Whatever writers and backfills did before, a backfill computes what is stale, and only that.

Each history is made from a seed and done to a table and to a model of it in plain Python
(`tests/support/chaos.py`), which counts the rows that are computed again and those that had to be.
What happens *while* a backfill runs is in `tests/integration/test_chaos.py`.
"""

from __future__ import annotations

import datetime as dt
import os
import random
import shutil
from collections.abc import Sequence
from pathlib import Path

import pytest

from tests.support.chaos import CALLS, COLUMNS, FILTERS, ROWS, STEPS, Step, Tally, World

LENGTH = 14
SEEDS = 14
OTHERS = [name for name in STEPS if name != "clean up"]  # which takes the history
# Somebody reads rows and writes them back later, while the columns are computed anew; or corrects.
COMING_BACK = [
    "read rows",
    "write back",
    "correct by upsert",
    "rebind",
    "update x",
    "other backfill",
]


class History:
    """One table and what is done to it, by chance."""

    def __init__(self, path: Path, seed: int, tally: Tally, often: Sequence[str] = ()) -> None:
        self.chance = random.Random(seed)
        self.often = often
        self.text = [f"seed {seed}"]
        self.world = World(
            path,
            stable=self.chance.random() < 0.5,
            fragments=self.chance.choice([1, 2, 3]),
            xs=[self.chance.randrange(4) for _ in range(ROWS)],
            tally=tally,
        )

    def run(self) -> World:
        """Do it all, then what is left to do; every row is checked on the way."""
        try:
            for _ in range(LENGTH):
                self.go_on()
            self.world.settle()
        except BaseException as error:
            error.add_note("\n".join(self.text))
            raise
        return self.world

    def go_on(self) -> None:
        chance, world = self.chance, self.world
        there = sorted(world.rows) or [0]
        ids = tuple(chance.sample(there, min(3, len(there))))
        steps = self.often if self.often and chance.random() < 0.7 else OTHERS
        step = Step(chance.choice(steps), ids, chance.randrange(12))
        column, where = chance.choice(COLUMNS), chance.choice([None, None, *FILTERS])
        what = chance.random()
        if what < 0.65:
            self.text.append(str(step))
            world.act(step)
        elif what < 0.85:
            inputs = chance.choice(["wait", "wait", "as_is"])
            limit = chance.choice([None, None, 1])
            self.text.append(f"backfill {column} where {where}, {inputs}, {limit} fragments")
            world.backfill(column, where=where, inputs=inputs, num_frags=limit)
        else:
            self.text.append("backfill all")
            for name in list(world.numbers):
                world.backfill(name)


def seeds(count: int) -> range:
    """Return the same seeds in every run; with GENEVA_RANDOM=1 new ones; or from GENEVA_SEED on."""
    if given := os.environ.get("GENEVA_SEED"):
        return range(int(given), int(given) + count)
    start = random.SystemRandom().randrange(2**31) if os.environ.get("GENEVA_RANDOM") else 0
    return range(start, start + count)


def check_histories(path: Path, chosen: range, often: Sequence[str] = ()) -> None:
    print(f"GENEVA_SEED={chosen[0]}, {len(chosen)} histories")  # shown when a test fails
    tally = Tally()
    for seed in chosen:
        History(path / str(seed), seed, tally, often).run()
        shutil.rmtree(path / str(seed))
    print(tally)
    assert tally.stale["all"] > len(chosen)
    assert tally.recomputed["all"] <= 1.2 * tally.stale["all"]


def test_some_history_leaves_a_stale_value_or_computes_too_much(tmp_path: Path) -> None:
    check_histories(tmp_path, seeds(SEEDS))


def test_upsert_of_rows_read_earlier_leaves_a_stale_value_or_loses_a_correction(
    tmp_path: Path,
) -> None:
    check_histories(tmp_path, seeds(SEEDS), COMING_BACK)


def test_history_that_was_cleaned_up_computes_again_what_a_compaction_carried(
    tmp_path: Path,
) -> None:
    for seed in seeds(5):
        world = History(tmp_path / str(seed), seed, Tally()).run()
        world.compact(Step("compact", pick=2))
        world.settle()
        before = len(CALLS.made)
        world.dataset.cleanup_old_versions(older_than=dt.timedelta(0))
        world.settle()
        assert len(CALLS.made) == before, seed


@pytest.mark.crash
@pytest.mark.timeout(1800)
def test_one_of_many_histories_leaves_a_stale_value_or_computes_too_much(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    with capsys.disabled():
        check_histories(tmp_path, seeds(500))
        check_histories(tmp_path, seeds(500), COMING_BACK)
