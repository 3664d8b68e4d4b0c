"""The same work by others: lance itself, lance-ray, Daft and Ray Data, x*2 into a new column each.

lance-ray and Ray Data run on the Ray that the engine started, warm; the engine's own appliers are
ended before, because they hold the cores, and are warm again before its turn. Ray Data adds no
column to a table: it writes all of it anew. Daft needs another pyarrow, so it lives in an
environment of its own and is asked through a pipe; its process is warm too.
"""

from __future__ import annotations

import json
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TypeAlias

import lance
import pyarrow as pa
import pyarrow.compute as pc
import ray

from benchmarks import tables, udfs
from benchmarks.measure import Answer, Rounds, Scale, Side, alternate
from geneva.appliers.ray.warm import release_idle

_Work: TypeAlias = Callable[[str], object]
_FREE_S = 30.0
_DAFT = Path(__file__).parent.parent / ".venv-daft" / "bin" / "python"

_DAFT_SERVER = """
import json, sys
import lance
import pyarrow as pa, pyarrow.compute as pc
import daft
from daft_lance import merge_columns
def double(batch):
    return pa.record_batch([pc.multiply(batch.column("x"), 2)], names=["r"])
for line in sys.stdin:
    try:
        merge_columns(json.loads(line), transform=double, read_columns=["x"])
        print(json.dumps("done"), flush=True)
    except Exception as error:
        print(json.dumps(f"{type(error).__name__}: {error}"), flush=True)
"""


def run(scale: Scale) -> list[Answer]:
    """1M, 3M and 10M rows."""
    answers = []
    for full in (1_000_000, 3_000_000, 10_000_000):
        rows = scale.rows(full)
        found, absent = _measured(rows, scale)
        for peer in found.seconds:
            if peer != "geneva":
                answers.append(_answer(peer, rows, found, judged=full == 10_000_000))
        answers += [
            Answer(f"{peer} is not here", "", "not asked", None, why) for peer, why in absent
        ]
    return answers


def _answer(peer: str, rows: int, found: Rounds, *, judged: bool) -> Answer:
    times = found.ratio(peer, "geneva")
    bar = judged and peer == "lance-ray"
    return Answer(
        f"trivial batch UDF against {peer}, {rows:,} rows, both warm",
        ">= 5x faster" if bar else "(no bar)",
        f"{times:.1f}x as fast",
        times >= 5 if bar else None,
        found.text(),
    )


def _measured(rows: int, scale: Scale) -> tuple[Rounds, list[tuple[str, str]]]:
    absent: list[tuple[str, str]] = []
    with tables.folder() as path, _daft() as daft:
        tbl = tables.table(path, tables.numbers(rows), 20)
        sides: dict[str, Side] = {
            "geneva": Side(
                lambda: tbl.backfill("c", progress=False),
                before=tables.warm(tbl, udfs.double_batch),
            )
        }
        peers: dict[str, _Work | None] = {
            "lance add_columns": _lance,
            "lance-ray": _lance_ray(),
            "Ray Data": _ray_data(),
        }
        for name, work in peers.items():
            if work is None:
                absent.append((name, "pip install lance-ray, or make bench"))
                continue
            uri = tables.write(path, tables.numbers(rows), 20, name.replace(" ", "-"))
            sides[name] = Side(_bound(work, uri), before=_bound(_reset, uri))
        if daft is None:
            absent.append(("Daft", "make bench puts it into .venv-daft"))
        else:
            uri = tables.write(path, tables.numbers(rows), 20, "daft")
            sides["Daft"] = Side(lambda: daft(uri), before=_bound(_reset, uri))
        tbl.add_columns({"c": udfs.double_batch})
        tbl.backfill("c", progress=False)  # starts Ray, for lance-ray too
        return alternate(sides, scale.rounds), absent


def _bound(work: _Work, uri: str) -> Callable[[], object]:
    return lambda: work(uri)


def _reset(uri: str) -> None:
    release_idle()
    until = time.monotonic() + _FREE_S
    while ray.available_resources().get("CPU", 0) < ray.cluster_resources()["CPU"]:
        if time.monotonic() > until:
            raise RuntimeError("somebody else holds cores of this Ray")
        time.sleep(0.05)
    # The appliers took their processes with them; a peer is not to start its own in its time.
    started = ray.remote(num_cpus=1)(lambda: time.sleep(0.2))
    cores = int(ray.cluster_resources()["CPU"])
    ray.get([started.remote() for _ in range(cores)])
    dataset = lance.dataset(uri)
    if "r" in dataset.schema.names:
        dataset.drop_columns(["r"])


def _double(batch: pa.RecordBatch) -> pa.RecordBatch:
    return pa.record_batch([pc.multiply(batch.column("x"), 2)], names=["r"])


def _lance(uri: str) -> None:
    transform = lance.batch_udf(output_schema=pa.schema([pa.field("r", pa.int64())]))(_double)
    lance.dataset(uri).add_columns(transform, read_columns=["x"], batch_size=65_536)


def _lance_ray() -> _Work | None:
    try:
        import lance_ray
    except ImportError:
        return None

    def add(uri: str) -> None:
        lance_ray.add_columns(
            uri, transform=_double, read_columns=["x"], batch_size=65_536, concurrency=2
        )

    return add


def _ray_data() -> _Work | None:
    try:
        import lance_ray  # Ray's own writer calls pylance 14.0 with what it no longer takes
        from ray.data import DataContext
    except ImportError:
        return None

    def doubled(table: pa.Table) -> pa.Table:
        return table.append_column("r", pc.multiply(table.column("x"), 2))

    context = DataContext.get_current()
    context.enable_progress_bars = context.print_on_execution_start = False

    def rewrite(uri: str) -> None:
        found = lance_ray.read_lance(uri, columns=["x"])
        found = found.map_batches(doubled, batch_format="pyarrow", batch_size=65_536)
        lance_ray.write_lance(found, f"{uri}.new", mode="overwrite")

    return rewrite


@contextmanager
def _daft() -> Iterator[_Work | None]:
    """A function that lets Daft work on a table, or ``None`` where it is not installed."""
    check = [str(_DAFT), "-c", "import daft, daft_lance"]
    if not _DAFT.exists() or subprocess.run(check, capture_output=True).returncode:
        yield None
        return
    with subprocess.Popen(
        [str(_DAFT), "-c", _DAFT_SERVER],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.DEVNULL,
        text=True,
    ) as child:
        assert child.stdin is not None
        assert child.stdout is not None
        asked, answers = child.stdin, child.stdout

        def ask(uri: str) -> None:
            print(json.dumps(uri), file=asked, flush=True)
            answer = json.loads(answers.readline())
            if answer != "done":
                raise RuntimeError(f"Daft: {answer}")

        try:
            yield ask
        finally:
            asked.close()
            child.wait(timeout=30)


if __name__ == "__main__":
    for found in run(Scale(quick="--quick" in sys.argv)):
        print(found)
