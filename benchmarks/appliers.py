"""Are many appliers, such as 160 on 40 machines of 4 GPUs, kept busy by one driver?

A process for each would not fit here, so a Ray actor stands for ten such machines and hosts their
40 appliers, each with threads of its own. All else is real: the driver, its calls
through Ray, the tasks, checkpoints, column files and commits. The UDF sleeps, which takes no core,
and the GPUs are Ray's word for it. As many appliers as fit are then asked for as real processes.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import ray

from benchmarks import tables, udfs
from benchmarks.measure import Answer, Scale, end_ray
from geneva.appliers.executor import Udfs, reservation
from geneva.appliers.ray.actors import Maker, Places, RayAppliers, RayExecutor, start_ray
from geneva.appliers.ray.cluster import nodes
from geneva.appliers.ray.worker import TASKS_AT_ONCE, RayApplier
from geneva.model.result import BackfillResult
from geneva.model.types import JobSettings, Printed
from geneva.storage.lance import TableStorage

_APPLIERS = 160
_PROCESSES = 24
_SEATS = 40
_ROWS_PER_CALL, _CALLS_PER_TASK = 2, 5
_CALL_S = 2.0


class _Machines:
    """An actor that hosts many appliers, each with threads of its own."""

    def __init__(self, storage: TableStorage, pickled: Mapping[str, bytes]) -> None:
        self._appliers = [RayApplier(storage, pickled) for _ in range(_SEATS)]

    def call(self, seat: int, method: str, *arguments: object) -> object:
        return getattr(self._appliers[seat], method)(*arguments)


@dataclass(frozen=True)
class _Seat:
    """One hosted applier, called like the actor that it would be."""

    machines: Any
    number: int

    def __getattr__(self, method: str) -> _Call:
        return _Call(self, method)


@dataclass(frozen=True)
class _Call:
    seat: _Seat
    method: str
    group: str = ""

    def options(self, concurrency_group: str) -> _Call:
        return _Call(self.seat, self.method, concurrency_group)

    def remote(self, *arguments: object) -> Any:
        group = f"work{self.seat.number}" if self.group == "work" else self.group
        call = self.seat.machines.call.options(concurrency_group=group)
        return call.remote(self.seat.number, self.method, *arguments)


class _HostedMaker(Maker):
    """Makes appliers that share processes."""

    def __init__(self, storage: TableStorage, udfs: Udfs, settings: JobSettings) -> None:
        super().__init__(storage, udfs, settings)
        self.machines: list[Any] = []
        self._made = 0

    def _handle(self) -> Any:
        seat = self._made % _SEATS
        if not seat:
            groups = {f"work{k}": TASKS_AT_ONCE for k in range(_SEATS)} | {"control": 4}
            options: dict[str, Any] = {"concurrency_groups": groups, "num_gpus": _SEATS}
            made = ray.remote(**options, num_cpus=0)(_Machines)
            self.machines.append(made.remote(self.storage, self.pickled))
        self._made += 1
        return _Seat(self.machines[-1], seat)


class _HostedAppliers(RayAppliers):
    """The appliers of one round, whose processes end with it."""

    def __init__(self, maker: _HostedMaker, places: Places, wanted: int) -> None:
        super().__init__(maker, places, wanted, wanted)
        self._machines = maker.machines

    def close(self, *, kill: bool) -> list[Printed]:
        printed = super().close(kill=True)
        for machines in self._machines:
            ray.kill(machines)
        return printed


class HostedExecutor(RayExecutor):
    """Ray's executor with appliers that share processes."""

    def __init__(self) -> None:
        super().__init__({}, 60.0)

    def start(
        self, storage: TableStorage, udfs: Udfs, settings: JobSettings, appliers: int
    ) -> RayAppliers:
        places = Places(reservation(udfs[settings.target.incarnation]), nodes(), 60.0)
        return _HostedAppliers(_HostedMaker(storage, udfs, settings), places, appliers)


def run(scale: Scale) -> list[Answer]:
    """Share of their time that appliers spend in the UDF, in the middle of a run."""
    tasks = 3 if scale.quick else 8
    return [
        _ask(_APPLIERS, "hosted by 4 processes", tasks, HostedExecutor()),
        _ask(_PROCESSES, "as processes", tasks, None),
    ]


def _ask(appliers: int, how: str, tasks_each: int, executor: RayExecutor | None) -> Answer:
    with tables.folder() as path, gpus(appliers):
        calls, result = backfill(path, appliers, tasks_each, executor)
    share = busy_share(calls, appliers)
    slept = sum(c[1] - c[0] for c in calls)
    whole = max(c[1] for c in calls) - min(c[0] for c in calls)
    return Answer(
        f"{appliers} appliers with a GPU each, {how}; the UDF sleeps {_CALL_S:.0f} s per call, "
        "more or less",
        ">= 95% of their time in the UDF in steady state",
        f"{share:.1%}",
        share >= 0.95,
        f"{len(calls):,} calls in {len(calls) // _CALLS_PER_TASK:,} fragments, the middle half "
        f"of the run; {slept / appliers / whole:.1%} over the whole run, from the first call to "
        f"the last one, {whole:.0f} s; {len(result.versions)} commits",
    )


@contextmanager
def gpus(count: int) -> Iterator[None]:
    """Start a Ray that believes in so many GPUs, and end it."""
    end_ray()
    start_ray({"num_gpus": count, "log_to_driver": False})
    try:
        yield
    finally:
        end_ray()


def backfill(
    path: Path,
    appliers: int,
    tasks_each: int,
    executor: RayExecutor | None,
    call_s: float = _CALL_S,
) -> tuple[list[list[float]], BackfillResult]:
    """Fill a column of as many fragments as there are tasks; return when calls began and ended."""
    fragments = appliers * tasks_each
    rows = fragments * _ROWS_PER_CALL * _CALLS_PER_TASK
    tbl = tables.table(path, tables.numbers(rows), fragments)
    log = path / "calls.log"
    tbl.add_columns({"c": udfs.uneven_sleeper(str(log), call_s, _ROWS_PER_CALL)})
    result = tbl.backfill("c", executor=executor, concurrency=appliers, progress=False)
    return [[float(v) for v in s.split()] for s in log.read_text().splitlines()], result


def busy_share(calls: Sequence[Sequence[float]], appliers: int) -> float:
    """Return which part of the appliers' time the calls take in the middle half of the run."""
    first, last = min(c[0] for c in calls), max(c[1] for c in calls)
    low, high = first + (last - first) / 4, last - (last - first) / 4
    under_way = math.fsum(max(0.0, min(c[1], high) - max(c[0], low)) for c in calls)
    return under_way / (high - low) / appliers
