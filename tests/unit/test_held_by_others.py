"""What appliers wait for while others hold the cluster's resources."""

from __future__ import annotations

import json
from types import SimpleNamespace
from typing import Any

import pytest

from geneva.appliers.ray import cluster

PENDING = [[{"CPU": 1.0}, 2], [{"GPU": 4.0}, 1]]


def asked(
    monkeypatch: pytest.MonkeyPatch,
    needs: dict[str, float],
    appliers: int = 1,
    *,
    demand: Any = PENDING,
    placed: bool = False,
    free: float = 0.0,
) -> str:
    report = {"load_metrics_report": {"resource_demand": demand}}
    monkeypatch.setattr(cluster, "_status", lambda: report if demand is not None else {})
    monkeypatch.setattr(cluster, "_placed", lambda _: placed)
    monkeypatch.setattr(cluster.ray, "available_resources", lambda: {"CPU": free})
    monkeypatch.setattr(cluster.ray, "cluster_resources", lambda: {"CPU": 8.0})
    return cluster.held_by_others(needs, [object()] * appliers)


def test_reason_names_what_is_wanted_free_and_held(monkeypatch: pytest.MonkeyPatch) -> None:
    found = asked(monkeypatch, {"CPU": 1.0})
    assert found == "an applier needs 1 CPU (0 of 8 free, 8 held by others)"


def test_free_resources_that_lie_apart_are_said_to(monkeypatch: pytest.MonkeyPatch) -> None:
    assert "no node has free at once" in asked(monkeypatch, {"CPU": 1.0}, free=3.0)


@pytest.mark.parametrize(
    "why",
    [{"placed": True}, {"appliers": 3}, {"demand": None}, {"demand": []}, {"appliers": 0}],
    ids=["one-has-a-place", "one-is-being-started", "no-report", "nobody-waits", "none-asked-for"],
)
def test_appliers_that_are_starting_wait_for_nobody(
    monkeypatch: pytest.MonkeyPatch, why: dict[str, Any]
) -> None:
    assert asked(monkeypatch, {"CPU": 1.0}, **why) == ""


class Reshaped:
    """Stands for an interface that another release of Ray has changed."""

    def __init__(self, value: Any) -> None:
        self.value = value

    def __getattr__(self, name: str) -> Any:
        return self

    def __call__(self, *_: Any) -> Any:
        if isinstance(self.value, Exception):
            raise self.value
        return self.value


SHAPES = [
    AttributeError("it has moved"),
    None,
    7,
    ["a", "list"],
    b"[1, 2]",
    b"no JSON",
    json.dumps({"load_metrics_report": [1], "autoscaler_report": 3}),
    json.dumps({"load_metrics_report": {"resource_demand": [1, {"CPU": 1}]}}),
    json.dumps({"autoscaler_report": {"active_nodes": [1, None]}}),
]


@pytest.mark.parametrize("shape", SHAPES, ids=range(len(SHAPES)))
def test_private_interfaces_that_ray_has_reshaped_end_no_job(
    monkeypatch: pytest.MonkeyPatch, shape: Any
) -> None:
    monkeypatch.setattr(cluster.ray, "_private", Reshaped(shape))
    monkeypatch.setattr(cluster.ray.experimental, "internal_kv", Reshaped(shape))
    assert cluster.autoscaling() is False
    assert isinstance(cluster.others_wait(), bool)
    assert isinstance(cluster.draining_nodes(), frozenset)
    assert cluster.held_by_others({"CPU": 1.0}, [SimpleNamespace()]) == ""
