"""Alternating rounds, medians and ratios: what a question is answered with."""

from __future__ import annotations

import gc
import math
import statistics
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field

import ray

from geneva.appliers.ray.warm import release_idle


@dataclass(frozen=True, slots=True)
class Curve:
    """One line of a plot (see `benchmarks.plots`): its label, and y by x."""

    plot: str
    label: str
    points: Mapping[float, float]


@dataclass(frozen=True, slots=True)
class Answer:
    """What a question found; ``met`` is ``None`` where there is no bar, or nothing to judge."""

    question: str
    bar: str
    figure: str
    met: bool | None
    details: str = ""
    curves: tuple[Curve, ...] = ()


@dataclass(frozen=True, slots=True)
class Scale:
    """How much data and how many rounds a question may take."""

    quick: bool = False
    rounds: int = 5

    def rows(self, full: int) -> int:
        """Rows of a table: a tenth of them when only the code is tried out."""
        return full // 10 if self.quick else full


@dataclass(frozen=True, slots=True)
class Side:
    """One contestant: ``before`` and ``after`` each round are not timed."""

    run: Callable[[], object]
    before: Callable[[], object] = lambda: None
    after: Callable[[], object] = lambda: None


@dataclass(frozen=True, slots=True)
class Rounds:
    """Seconds of each side, round by round."""

    seconds: Mapping[str, list[float]] = field(default_factory=dict)

    def median(self, name: str) -> float:
        return statistics.median(self.seconds[name])

    def ratio(self, name: str, to: str) -> float:
        """Median of one side over the median of another."""
        return self.median(name) / self.median(to)

    def excess(self, name: str, over: str) -> float:
        """Seconds that one side takes more than another."""
        return self.median(name) - self.median(over)

    def text(self) -> str:
        """Medians and extremes, for the details of an answer."""
        return ", ".join(
            f"{name} {self.median(name):.3f} s ({min(s):.3f} to {max(s):.3f})"
            for name, s in self.seconds.items()
        )


def alternate(sides: Mapping[str, Side | Callable[[], object]], rounds: int) -> Rounds:
    """Run every side once per round, after one round that warms up and is not counted."""
    found: dict[str, list[float]] = {name: [] for name in sides}
    for turn in range(rounds + 1):
        order = list(sides.items())
        # Turned round every second time, so that nobody always runs in another's wake.
        for name, given in order if turn % 2 else reversed(order):
            side = given if isinstance(given, Side) else Side(given)
            side.before()
            gc.collect()
            started = time.perf_counter()
            side.run()
            seconds = time.perf_counter() - started
            side.after()
            if turn:
                found[name].append(seconds)
    return Rounds(found)


def growth(points: Mapping[float, float], of: str = "rows") -> str:
    """Tell by how much y grows when x doubles at the upper end: 2 times is linear."""
    (x0, y0), (x1, y1) = sorted(points.items())[-2:]
    times = (y1 / y0) ** (math.log(2) / math.log(x1 / x0))
    return f"twice the {of} take {times:.2f} times as long"


def end_ray() -> None:
    """End what other questions left warm: it would take its share of the cores."""
    release_idle()
    ray.shutdown()
