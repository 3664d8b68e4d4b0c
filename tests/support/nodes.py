"""Ray clusters of several nodes on one machine, and backfills on them while nodes come and go."""

from __future__ import annotations

import multiprocessing
import os
import shutil
import signal
import tempfile
import time
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa

import geneva
from tests.support.backfills import Gate, until
from tests.support.calls import CallLog
from tests.support.crashing import Scene
from tests.support.tables import make_table

_OBJECT_STORE_BYTES = 80 << 20


class Nodes:
    """A cluster whose head runs no appliers; each other node has two CPUs unless told otherwise."""

    def __init__(self) -> None:
        os.environ["RAY_ENABLE_WINDOWS_OR_OSX_CLUSTER"] = "0"  # it says: use the loopback address
        import ray
        from ray.cluster_utils import Cluster

        self._folder = tempfile.mkdtemp(prefix="gv-nodes-")  # Ray's sockets need a short path
        os.environ["RAY_TMPDIR"] = self._folder  # where Cluster tells others of itself
        (Path(self._folder) / "ray").mkdir()
        self._ray = ray
        self._cluster = Cluster(
            initialize_head=True,
            head_node_args={
                "num_cpus": 0,
                "temp_dir": f"{self._folder}/ray",
                "include_dashboard": False,
                "node_ip_address": "127.0.0.1",
                "object_store_memory": _OBJECT_STORE_BYTES,
            },
        )

    def __enter__(self) -> Nodes:
        return self

    def __exit__(self, *error: object) -> None:
        from geneva.appliers.ray.warm import release_idle

        release_idle()
        self._ray.shutdown()
        self._cluster.shutdown()
        shutil.rmtree(self._folder, ignore_errors=True)

    @property
    def options(self) -> dict[str, Any]:
        """For `geneva.connect`."""
        return {"address": self._cluster.address, "log_to_driver": False}

    def add(self, cpus: int = 2, **arguments: Any) -> Any:
        """Start a node and wait until it is alive."""
        return self._cluster.add_node(
            num_cpus=cpus,
            node_ip_address="127.0.0.1",
            object_store_memory=_OBJECT_STORE_BYTES,
            **arguments,
        )

    def lose(self, node: Any) -> None:
        """Let a node vanish: all its processes are killed, and nobody says good-bye."""
        import psutil  # comes with ray

        (raylet,) = node.all_processes["raylet"]
        pids = [raylet.process.pid]
        pids += [p.pid for p in psutil.Process(pids[0]).children(recursive=True)]
        for pid in pids:
            with suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)
        self._cluster.remove_node(node, allow_graceful=False)

    def drain(self, node: Any, seconds: float = 300.0) -> None:
        """Announce that a node is preempted within so many seconds."""
        from ray.core.generated import autoscaler_pb2

        accepted, why = self._ray._raylet.GcsClient(address=self._cluster.address).drain_node(
            node.node_id,
            autoscaler_pb2.DrainNodeReason.Value("DRAIN_NODE_REASON_PREEMPTION"),
            "told by a test",
            int((time.time() + seconds) * 1000),
        )
        assert accepted, why

    def alive(self, node: Any) -> bool:
        """Whether Ray believes that a node is there."""
        return any(n["Alive"] and n["NodeID"] == node.node_id for n in self._ray.nodes())


@dataclass(frozen=True)
class NodesScene(Scene):
    """A scene whose UDF says where it ran, and is slow until a gate is opened."""

    @property
    def places(self) -> CallLog:
        """The node of each batch, by its id."""
        return CallLog(self.path / "places.log")

    @property
    def gate(self) -> Gate:
        return Gate(self.path / "gate")

    def build(self, pause_s: float = 0.25, **settings: Any) -> NodesScene:
        """Make the table; a batch takes ``pause_s`` until the gate is open, then nothing."""
        self.path.mkdir(parents=True, exist_ok=True)
        table = make_table(self.path, rows=self.rows, fragments=self.fragments)
        calls, places, gate = self.calls, self.places, self.gate

        @geneva.udf(data_type=pa.int64(), **{"num_cpus": 1} | settings)
        def double(x: np.ndarray) -> np.ndarray:
            calls(*x.tolist())
            with suppress(ImportError):
                import ray

                if ray.is_initialized():
                    places(ray.get_runtime_context().get_node_id())
            time.sleep(0.0 if gate.is_open else pause_s)
            return 2 * x

        table.add_columns({"y": double})
        return self

    def begin(self, nodes: Nodes, storage: Any = None, **options: Any) -> Any:
        """Start a backfill on a cluster."""
        opened = geneva.connect(self.db, ray=nodes.options).open_table("t")
        table = geneva.Table(opened, storage=storage or self.storage, ray=nodes.options)
        chosen = self.arguments | {"executor": "ray", "progress": False} | options
        return table.backfill_async("y", **chosen)

    def wait_for_work_on(self, node: Any, batches: int = 3) -> None:
        """Wait until appliers on a node have computed some more batches."""
        wanted = self.places.counts[node.node_id] + batches
        until(lambda: self.places.counts[node.node_id] >= wanted, 120)


def in_child(scenario: Callable[..., None], *arguments: Any) -> None:
    """Run a scenario in a process of its own, as this one may be connected to another Ray."""
    child = multiprocessing.get_context("spawn").Process(target=scenario, args=arguments)
    child.start()
    child.join(280)
    if child.is_alive():
        os.kill(child.pid, signal.SIGKILL)  # Ray's reaper ends what it started
        child.join()
    assert child.exitcode == 0, f"the scenario failed ({child.exitcode}): see its traceback"


def scene(path: Path, rows: int, fragments: int, appliers: int, batch: int = 2) -> NodesScene:
    """Return a scene in which a death may cost the batches in flight of so many appliers."""
    arguments = {"batch_size": batch, "concurrency": appliers, "commit_granularity": 1}
    return NodesScene(path, rows, fragments, appliers * batch, arguments)
