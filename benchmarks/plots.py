"""Draw what was measured; matplotlib comes with the extra ``bench``."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from benchmarks.measure import Curve


@dataclass(frozen=True, slots=True)
class _Plot:
    title: str
    x: str
    y: str
    scale: str = "log"  # of both axes


_PLOTS = {
    "rows": _Plot("Throughput against rows, trivial batch UDF", "rows", "rows per second"),
    "appliers": _Plot("Throughput against appliers", "appliers", "rows per second"),
    "fragments": _Plot("A million rows, cut into fragments", "fragments", "seconds"),
    "driver": _Plot("The driver alone, per fragment", "fragments", "milliseconds"),
    "noop": _Plot("Nothing to do, against fragments", "fragments", "milliseconds"),
    "checkpoints": _Plot("Checkpoint overhead", "", "seconds", "linear"),
    "blobs": _Plot("Peak memory of an applier, against blob size", "MB per blob", "MB"),
}


def draw(curves: Sequence[Curve], folder: Path) -> list[tuple[str, str]]:
    """Write a picture for each plot that has a curve; return (title, file) by plot."""
    from matplotlib import rc_context
    from matplotlib.figure import Figure

    drawn = []
    for name, plot in _PLOTS.items():
        chosen = [c for c in curves if c.plot == name]
        if not chosen:
            continue
        figure = Figure(figsize=(6, 3.4), layout="constrained")
        axes = figure.subplots()
        if plot.scale == "linear":
            _bars(axes, chosen)
        else:
            _lines(axes, chosen)
        axes.set(title=plot.title, xlabel=plot.x, ylabel=plot.y)
        file = f"benchmarks-{name}.svg"
        # Without a date and with fixed ids, a picture changes only when a figure does.
        with rc_context({"svg.hashsalt": name}):
            figure.savefig(folder / file, metadata={"Date": None})
        drawn.append((plot.title, file))
    return drawn


def _lines(axes: Any, curves: Sequence[Curve]) -> None:
    for curve in curves:
        xs = sorted(curve.points)
        axes.plot(xs, [curve.points[x] for x in xs], marker="o", label=curve.label)
    axes.set(xscale="log", yscale="log")
    axes.grid(alpha=0.3)
    axes.legend()


def _bars(axes: Any, curves: Sequence[Curve]) -> None:
    at = range(len(curves))
    for k, label in enumerate(("without checkpoints", "with checkpoints")):
        axes.bar([i + 0.4 * k for i in at], [c.points[k] for c in curves], 0.38, label=label)
    axes.set_xticks([i + 0.2 for i in at], [c.label for c in curves])
    axes.legend()
