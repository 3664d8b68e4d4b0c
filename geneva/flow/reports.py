"""What a job of a flow tells about itself: `log` writes it where its operation looks for it."""

from __future__ import annotations

import json
import math
import os
from collections.abc import Mapping
from typing import Any

from geneva.errors import FlowError

PLACE = "GENEVA_REPORT"


def log(
    *,
    outputs: Mapping[str, Any] | None = None,
    metrics: Mapping[str, float] | None = None,
    artifacts: Mapping[str, str] | None = None,
) -> None:
    """Record results of the job of a flow that this process is; later values replace earlier ones.

    Parameters
    ----------
    outputs
        Values of JSON, for ``ref: ops.NAME, value: outputs.KEY`` of other operations.
    metrics
        Finite numbers, for early stopping, searches and joins.
    artifacts
        Paths of files or folders, by name.

    Raises
    ------
    FlowError
        A value is not of its kind. Outside of a flow nothing is written.

    Examples
    --------
    >>> from geneva.flow import log
    >>> log(metrics={"loss": 0.25}, outputs={"rows": 10})
    """
    for name, value in (metrics or {}).items():
        number = isinstance(value, int | float) and not isinstance(value, bool)
        if not number or not math.isfinite(value):
            raise FlowError(f"the metric {name!r} is {value!r}, no finite number")
    report = {
        "outputs": dict(outputs or {}),
        "metrics": {name: float(value) for name, value in (metrics or {}).items()},
        "artifacts": {name: os.fspath(path) for name, path in (artifacts or {}).items()},
    }
    try:
        line = json.dumps(report, allow_nan=False)
    except (TypeError, ValueError) as error:
        raise FlowError(f"outputs are values of JSON: {error}") from None
    if place := os.environ.get(PLACE):
        with open(place, "a", encoding="utf-8") as file:
            file.write(line + "\n")


def reported(text: str) -> dict[str, dict[str, Any]]:
    """Return the outputs, metrics and artifacts of a report; a torn last line is left out."""
    found: dict[str, dict[str, Any]] = {"outputs": {}, "metrics": {}, "artifacts": {}}
    for line in text.splitlines():
        try:
            parts = json.loads(line)
        except ValueError:
            continue
        for name, values in parts.items():
            found.setdefault(name, {}).update(values)
    return found
