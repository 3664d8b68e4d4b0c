"""SIGKILL of the driver at random moments, again and again, over a larger table."""

from __future__ import annotations

import os
import random
import shutil
import tempfile
import time
from pathlib import Path

import pytest

from geneva import Windows
from tests.support.crashing import Scene, kill

pytestmark = [pytest.mark.crash, pytest.mark.timeout(420)]


def kill_at_random(stage: Scene, kills: int, seed: int, longest_s: float) -> int:
    """Kill the driver so often, each time in the midst of its work; return the kills that hit."""
    chance = random.Random(seed)
    hit = 0
    for _ in range(kills):
        before = len(stage.calls)
        child = stage.start_child()
        # Some before the first batch, while it opens and plans; most while rows are computed.
        if chance.random() > 0.15:
            stage.wait_for_calls(before + 1)
        time.sleep(chance.uniform(0.0, longest_s))
        hit += child.is_alive()
        kill(child)
        if stage.arguments["executor"] == "ray":
            stage.wait_until_quiet()
    return hit


def seed_of_this_run() -> int:
    """Return a fresh seed, or the one to repeat (GENEVA_SEED)."""
    return int(os.environ.get("GENEVA_SEED") or random.SystemRandom().randrange(2**32))


@pytest.mark.parametrize(
    ("appliers", "kills", "windows"),
    [(2, 30, ""), (1, 10, ""), (2, 20, "fragment"), (1, 10, "window")],
)
def test_random_deaths_of_the_driver_lose_only_batches_in_flight(
    tmp_path: Path, appliers: int, kills: int, windows: str, capsys: pytest.CaptureFixture[str]
) -> None:
    seed, batch = seed_of_this_run(), 500
    arguments = {
        "executor": "local",
        "batch_size": batch,
        "concurrency": appliers,
        "commit_granularity": 2,
    }
    if windows:
        arguments["windows"] = Windows("x", step=7_000, order="backward", commit=windows)
    stage = Scene(tmp_path, 200_000, 20, batch * appliers, arguments).build(pause_s=0.1)
    hit = kill_at_random(stage, kills, seed, longest_s=0.4)
    assert hit == kills, f"seed {seed}: the job ended before it could be killed"
    again = stage.check_finished(deaths=kills)
    with capsys.disabled():
        print(
            f"\n{appliers} appliers: survived {hit} random kills, {again:,} of 200,000 rows "
            f"computed twice (at most {kills * batch * appliers:,} were in flight); seed {seed}"
        )


@pytest.mark.ray
def test_random_deaths_of_the_driver_on_ray_lose_only_batches_in_flight(
    tmp_path: Path, ray_cluster: None, capsys: pytest.CaptureFixture[str]
) -> None:
    seed, batch, kills = seed_of_this_run(), 250, 5
    arguments = {
        "executor": "ray",
        "batch_size": batch,
        "concurrency": 2,
        "commit_granularity": 2,
    }
    folder = tempfile.mkdtemp(prefix="gv-kill-")
    ray = {"address": "local", "num_cpus": 2, "_temp_dir": folder, "log_to_driver": False}
    try:
        stage = Scene(tmp_path, 50_000, 10, 2 * batch, arguments, ray).build(pause_s=0.2)
        hit = kill_at_random(stage, kills, seed, longest_s=2.0)
        assert hit == kills, f"seed {seed}: the job ended before it could be killed"
        again = stage.check_finished(deaths=kills)
    finally:
        shutil.rmtree(folder, ignore_errors=True)
    with capsys.disabled():
        print(
            f"\nRay: survived {hit} random kills, {again:,} of 50,000 rows computed twice "
            f"(at most {kills * 2 * batch:,} were in flight); seed {seed}"
        )
