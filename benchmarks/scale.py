"""What does the driver itself cost per fragment, up to 100,000 of them?

The executor is scripted (`tests.support.scripted`): it computes nothing and returns column files
that were written once. Plan, schedule, commit and ledger are the real ones.
"""

from __future__ import annotations

import json
import subprocess
import sys

from benchmarks.measure import Answer, Curve, Scale

_ONE = """
import json, resource, sys, tempfile, time
from pathlib import Path
from tests.support.scripted import ScriptedExecutor, many_fragments

def peak_mb():
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024 / 1e6

with tempfile.TemporaryDirectory(prefix="geneva-bench-") as folder:
    fragments = int(sys.argv[1])
    table = many_fragments(Path(folder), fragments)
    before = peak_mb()
    started = time.perf_counter()
    done = table.backfill("c", executor=ScriptedExecutor(), progress=False)
    seconds = time.perf_counter() - started
    assert done.fragments_committed == fragments, done
    print(json.dumps({"ms": seconds / fragments * 1e3, "commits": len(done.versions),
                      "kb": (peak_mb() - before) / fragments * 1e3}))
"""


def run(scale: Scale) -> list[Answer]:
    """1,000, 10,000 and 100,000 fragments of one row, each in a process of its own."""
    sizes = [200, 1_000] if scale.quick else [1_000, 10_000, 100_000]
    found = {n: _measured(n) for n in sizes}
    points = {float(n): f["ms"] for n, f in found.items()}
    growth = points[sizes[-1]] / points[sizes[0]]
    shown = ", ".join(
        f"{n:,}: {f['ms']:.2f} ms and {f['kb']:.0f} KB each, {f['commits']:.0f} commits"
        for n, f in found.items()
    )
    return [
        Answer(
            f"driver alone, {sizes[-1]:,} fragments against {sizes[0]:,}: cost per fragment",
            "<= 1.5 times",
            f"{growth:.2f} times",
            growth <= 1.5,
            shown,
            (Curve("driver", "geneva", points),),
        ),
        *(
            Answer(
                f"driver alone, {n:,} fragments: cost per fragment",
                "<= 1 ms",
                f"{found[n]['ms']:.2f} ms",
                found[n]["ms"] <= 1,
            )
            for n in sizes
            if n == 10_000
        ),
    ]


def _measured(fragments: int) -> dict[str, float]:
    done = subprocess.run(
        [sys.executable, "-W", "ignore", "-c", _ONE, str(fragments)],
        stdout=subprocess.PIPE,
        check=True,
        text=True,
        timeout=900,
    )
    return dict(json.loads(done.stdout.splitlines()[-1]))
