"""What do checkpoints cost? The same run on storage that throws them away."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import geneva
from benchmarks import tables, udfs
from benchmarks.measure import Answer, Scale, Side, alternate
from geneva.storage.lance import TableStorage


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
        _ask("trivial batch UDF", scale.rows(5_000_000), udfs.double_batch, scale),
        _ask("384-float vectors", scale.rows(50_000), udfs.Vectors(), scale),
    ]


def _ask(name: str, rows: int, udf: object, scale: Scale) -> Answer:
    with tables.folder() as path:
        tbl = tables.table(path, tables.numbers(rows), 20)
        twin = tables.table(path, tables.numbers(rows), 20, "twin")
        inner = geneva.connect(str(path)).open_table("twin")
        without = geneva.Table(inner._inner, storage=Forgetful(twin.storage.uri))
        rounds = alternate(
            {
                "with": Side(lambda: tbl.backfill("c", progress=False), before=_warm(tbl, udf)),
                "without": Side(
                    lambda: without.backfill("c", progress=False), before=_warm(without, udf)
                ),
            },
            scale.rounds,
        )
    overhead = rounds.ratio("with", "without") - 1
    return Answer(
        f"checkpoint overhead, default settings, {name}, {rows:,} rows",
        "<= 15%",
        f"{overhead:+.0%}",
        overhead <= 0.15,
        rounds.text(),
    )


def _warm(tbl: object, udf: object) -> object:
    """A fresh column, and appliers that are warm for this very table."""
    fresh = tables.fresh(tbl, udf)

    def before() -> None:
        fresh()
        tbl.backfill("c", progress=False)
        fresh()

    return before
