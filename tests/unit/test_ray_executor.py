"""Which applier gets a task, and how many wait: decisions of the Ray executor that need no Ray."""

from __future__ import annotations

import time
from concurrent.futures import ThreadPoolExecutor
from types import SimpleNamespace
from typing import Any

import pytest
import ray

from geneva.appliers.ray import actors as ray_executor
from geneva.appliers.ray import warm
from geneva.appliers.ray.actors import RayAppliers, start_ray
from geneva.appliers.ray.warm import Actor, WarmPool
from tests.support.backfills import until


def of(*states: tuple[int, bool, bool], attempt: int = 0) -> RayAppliers:
    """Return appliers that have so many tasks, are ready, and are leaving."""
    actors = []
    for tasks, ready, leaving in states:
        held = {k: (SimpleNamespace(attempt=attempt),) for k in range(tasks)}
        actors.append(Actor(None, "", ready=ready, leaving=leaving, tasks=held))
    maker: Any = SimpleNamespace(take_warm=lambda _: actors)
    places: Any = None
    return RayAppliers(maker, places, len(actors), 0)


def test_applier_has_two_tasks_while_there_are_more_than_appliers() -> None:
    assert of((1, True, False), (0, True, False)).free_slots(3) == 3


def test_last_tasks_are_kept_for_appliers_that_get_free_or_join() -> None:
    assert of((1, True, False), (1, True, False)).free_slots(2) == 0
    assert of((2, True, False), (0, True, False)).free_slots(2) == 1
    assert of((1, True, False), (0, False, False)).free_slots(2) == 0


def test_task_that_an_applier_died_with_has_one_to_itself() -> None:
    assert of((1, True, False), attempt=1).free_slots(100) == 0


def test_applier_that_starts_or_leaves_gets_no_task() -> None:
    assert of((0, False, False), (0, True, True)).free_slots(100) == 0


def test_applier_kept_while_the_last_one_ends_is_released_in_time(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    pool, first, second = WarmPool(), Actor(None, "first"), Actor(None, "second")
    ended: list[str] = []

    def end(actor: Actor) -> None:
        ended.append(actor.key)
        if actor is first:
            pool.give([second])

    monkeypatch.setattr(warm, "end", end)
    monkeypatch.setattr(warm, "others_wait", lambda: True)
    monkeypatch.setattr(warm, "draining_nodes", frozenset)
    monkeypatch.setattr(warm, "_REAP_S", 0.01)
    pool.give([first])
    until(lambda: ended == ["first", "second"], 5)


def test_first_backfills_of_two_threads_both_start_ray(monkeypatch: pytest.MonkeyPatch) -> None:
    started: list[Any] = []

    def init(**options: Any) -> None:
        assert not started, "Perhaps you called ray.init twice by accident?"
        time.sleep(0.1)
        started.append(options["address"])

    monkeypatch.setattr(ray, "is_initialized", lambda: bool(started))
    monkeypatch.setattr(ray, "init", init)
    monkeypatch.setattr(ray_executor, "POOL", WarmPool())
    with ThreadPoolExecutor(2) as threads:
        list(threads.map(start_ray, [{"address": "head:6379"}] * 2))
    assert started == ["head:6379"]
