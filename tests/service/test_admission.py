"""A job that no node can ever carry out is refused when it is submitted."""

from __future__ import annotations

import threading
from collections import OrderedDict
from pathlib import Path
from typing import Any

import pytest

import geneva
from geneva.errors import ResourceError
from geneva.jobs.records import Submission
from geneva.service import admission
from geneva.service.admission import Admitted
from geneva.service.admission import admit as admit_to
from geneva.service.opened_tables import Databases
from tests.support.tables import make_table

NODES = {"nodes": [{"CPU": 4.0, "memory": 1e9}, {"CPU": 2.0, "GPU": 1.0}], "grows": False}


def admit(asked: Submission) -> Admitted:
    return admit_to(asked, Databases((asked.db,)))


@pytest.fixture(autouse=True)
def forgotten(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(admission, "_known", OrderedDict())
    monkeypatch.delenv("RAY_ADDRESS", raising=False)


def submission(tmp_path: Path, executor: str | None = None, **asks: Any) -> Submission:
    table = make_table(tmp_path / "db", rows=4, fragments=1)

    @geneva.udf(**asks)
    def same(x: int) -> int:
        return x

    table.add_columns({"y": same})
    arguments = {} if executor is None else {"executor": executor}
    return Submission(db=str(tmp_path / "db"), table="t", columns=("y",), arguments=arguments)


@pytest.mark.parametrize(
    ("asks", "said"),
    [
        ({"num_cpus": 5}, "5 CPU (the largest node has 4)"),
        ({"num_gpus": 2}, "2 GPU (the largest node has 1)"),
        ({"memory": 2_000_000_000}, "2e+09 memory (the largest node has 1e+09)"),
        ({"resources": {"tpu": 1}}, "1 tpu (the largest node has 0)"),
        ({"num_cpus": 4, "num_gpus": 1}, "the combination of 4 CPU, 1 GPU"),
    ],
)
def test_resource_that_no_node_has_is_named(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, asks: dict[str, Any], said: str
):
    monkeypatch.setattr(admission, "_ask", lambda _: NODES)
    with pytest.raises(ResourceError) as raised:
        admit(submission(tmp_path, **asks))
    assert said in str(raised.value)


@pytest.mark.parametrize(
    ("asks", "executor", "answer"),
    [
        ({"num_cpus": 2, "num_gpus": 1}, None, NODES),
        ({"num_gpus": 8}, "local", NODES),  # threads reserve nothing
        ({"num_gpus": 8}, None, NODES | {"grows": True}),  # an autoscaler may bring it
        ({"num_gpus": 8}, None, None),  # nobody can tell: the driver will
    ],
)
def test_job_that_may_run_is_let_in(
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    asks: dict[str, Any],
    executor: str | None,
    answer: Any,
):
    monkeypatch.setattr(admission, "_ask", lambda _: answer)
    assert admit(submission(tmp_path, executor, **asks)).fills == ("y",)


def test_ordinary_job_asks_nobody(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(admission, "_ask", lambda _: pytest.fail("asked"))
    admit(submission(tmp_path))


def test_nodes_are_asked_for_once_a_minute(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    questions: list[str] = []
    monkeypatch.setattr(admission, "_ask", lambda q: questions.append(q) or NODES)
    asked = submission(tmp_path, num_gpus=1)
    admit(asked)
    admit(asked)
    assert len(questions) == 1


def test_this_host_has_no_such_resource(tmp_path: Path):
    with pytest.raises(ResourceError, match=r"1 tpu_of_tests \(the largest node has 0\)"):
        admit(submission(tmp_path, resources={"tpu_of_tests": 1}))


def test_cluster_that_does_not_answer_keeps_others_waiting(monkeypatch: pytest.MonkeyPatch):
    asked, gate = threading.Event(), threading.Event()

    def ask(question: str) -> Any:
        if "slow" in question:
            asked.set()
            gate.wait(60)
        return NODES

    monkeypatch.setattr(admission, "_ask", ask)
    check = admission.check_resources
    slow = threading.Thread(target=check, args=({"GPU": 1}, None, {"address": "slow"}))
    quick = threading.Thread(target=check, args=({"GPU": 1}, None, {}))
    slow.start()
    asked.wait(60)
    quick.start()
    quick.join(20)
    waits = quick.is_alive()
    gate.set()
    slow.join()
    assert not waits


def test_answers_of_clusters_are_kept_without_bound(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(admission, "_ask", lambda _: NODES)
    for k in range(200):
        admission.check_resources({"GPU": 1}, None, {"num_cpus": k})
    assert len(admission._known) < 100
