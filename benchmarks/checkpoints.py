"""What do checkpoints cost? The same run on storage that throws them away.

In threads of this process: Ray keeps the appliers of one table warm at a time, so two tables in
turn would compare how they start.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

import geneva
from benchmarks import tables, udfs
from benchmarks.measure import Answer, Curve, Rounds, Scale, Side, alternate, growth
from geneva.storage.lance import TableStorage

_NOISE = 0.05


class _NoLog:
    """Takes frames and forgets them."""

    def append(self, *parts: object) -> None: ...

    def sync(self) -> None: ...

    def close(self) -> None: ...


class _NoLogs:
    """Objects of the engine whose logs are never written."""

    def __init__(self, inner: Any) -> None:
        self._inner = inner

    def create_log(self, path: str) -> _NoLog:
        return _NoLog()

    def __getattr__(self, name: str) -> Any:
        return getattr(self._inner, name)


@dataclass(frozen=True)
class Forgetful(TableStorage):
    """A table's storage without checkpoints; only a benchmark may want it."""

    @property
    def objects(self) -> Any:
        return _NoLogs(super().objects)


def run(scale: Scale) -> list[Answer]:
    """Default settings: trivial int64, and vectors, whose checkpoints are the largest."""
    return [
        *_ask("trivial batch UDF", scale.rows(5_000_000), udfs.double_batch, scale),
        *_ask("384-float vectors", scale.rows(50_000), udfs.Vectors(), scale),
    ]


def _ask(name: str, judged: int, udf: object, scale: Scale) -> Iterator[Answer]:
    found = {n: _measured(n, udf, scale) for n in (judged // 4, judged // 2, judged)}
    grows = growth({rows: r.median("with") for rows, r in found.items()})
    for rows, rounds in found.items():
        yield _answer(f"{name}, {rows:,} rows", rounds, grows, judged=rows == judged)


def _measured(rows: int, udf: object, scale: Scale) -> Rounds:
    with tables.folder() as path:
        tbl = tables.table(path, tables.numbers(rows), 20)
        twin = tables.table(path, tables.numbers(rows), 20, "twin")
        inner = geneva.connect(str(path)).open_table("twin")
        without = geneva.Table(inner._inner, storage=Forgetful(twin.storage.uri))
        return alternate(
            {
                "with": Side(_local(tbl), before=tables.fresh(tbl, udf)),
                "without": Side(_local(without), before=tables.fresh(without, udf)),
            },
            scale.rounds,
        )


def _answer(name: str, rounds: Rounds, grows: str, *, judged: bool) -> Answer:
    overhead = rounds.ratio("with", "without") - 1
    # Writing less cannot take longer: then the run was too noisy to judge, whatever the bar says.
    noise = overhead < -_NOISE
    return Answer(
        f"checkpoint overhead, local executor with 2 appliers, {name}",
        "<= 15%" if judged else "(no bar)",
        f"{overhead:+.0%}{' (noise, not judged)' if noise else ''}",
        overhead <= 0.15 if judged and not noise else None,
        f"{rounds.text()}; {grows}",
        (Curve("checkpoints", name, {0: rounds.median("without"), 1: rounds.median("with")}),)
        if judged
        else (),
    )


def _local(tbl: geneva.Table) -> Callable[[], object]:
    return lambda: tbl.backfill("c", executor="local", concurrency=2, progress=False)
