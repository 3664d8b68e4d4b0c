"""A matrix: the combinations of parameters that one operation is run with."""

from __future__ import annotations

import itertools
import math
import random
from collections.abc import Iterator, Mapping, Sequence
from datetime import date, datetime
from decimal import Decimal

from geneva.errors import FlowError, SettingError
from geneva.model.ranges import MOST_WINDOWS, date_range, datetime_range
from geneva.model.steps import as_number

Scalar = object
Combination = dict[str, Scalar]

MOST_COMBINATIONS = 10_000


def values_of(kind: str, value: object) -> list[object]:
    """Return the values of one parameter of a grid.

    Raises
    ------
    FlowError
        It has none, or they cannot be read.
    """
    try:
        match kind:
            case "choice":
                made: list[object] = list(_listed(value))
            case "range":
                made = list(number_range(value))
            case "linspace":
                made = list(linspace(value))
            case "daterange":
                made = list[object](date_range(value).values())
            case "datetimerange":
                made = list[object](datetime_range(value).values())
            case _:
                raise FlowError(f"kind {kind!r} is no kind of values; they are {', '.join(KINDS)}")
    except SettingError as error:
        raise FlowError(str(error)) from None
    if not made:
        raise FlowError(f"no values: {kind} of {value!r} has none, so there is nothing to run")
    return made


KINDS = ("choice", "range", "linspace", "daterange", "datetimerange")


def _listed(value: object) -> Sequence[object]:
    if isinstance(value, str) or not isinstance(value, Sequence):
        raise FlowError(f"a choice is a list of values, not {value!r}")
    return value


def number_range(value: object) -> list[float | int]:
    """Return the numbers of ``[start, stop, step]`` or ``"start:stop:step"``; the stop is none.

    Decimal arithmetic, so that 0, 0.1, 0.2 do not drift; whole bounds and steps give integers.
    """
    start, stop, step = (_exact(n) for n in _three_numbers(value, ("start", "stop", "step")))
    if step == 0:
        raise FlowError("step must not be zero")
    count = max(0, math.ceil((stop - start) / step))
    _refuse_many(count)
    whole = all(n == n.to_integral_value() for n in (start, step))
    numbers = [start + k * step for k in range(count)]
    return [int(n) if whole else float(n) for n in numbers]


def linspace(value: object) -> list[float]:
    """Return ``count`` numbers from start to stop, both included, at equal distances."""
    start, stop, count = (_exact(n) for n in _three_numbers(value, ("start", "stop", "num")))
    if count != count.to_integral_value() or count < 1:
        raise FlowError(f"a linspace has a whole number of values, at least 1, not {count}")
    _refuse_many(int(count))
    if count == 1:
        return [float(start)]
    return [float(start + (stop - start) * k / (count - 1)) for k in range(int(count))]


def _three_numbers(value: object, names: tuple[str, str, str]) -> list[float | int]:
    wanted = ", ".join(names[:2]) + f" and {names[2]}"
    parts: Sequence[object]
    if isinstance(value, str):
        parts = [as_number(part.strip()) for part in value.split(":")]
    elif isinstance(value, Mapping):
        if set(value) != {*names}:
            raise FlowError(f"{wanted} are needed, not {', '.join(map(str, value))}")
        parts = [value[name] for name in names]
    elif isinstance(value, Sequence):
        parts = value
    else:
        raise FlowError(f"{wanted} are needed, as a list or a:b:c, not {value!r}")
    if len(parts) != 3:
        raise FlowError(f"{wanted} are needed, three values, not {value!r}")
    numbers = [as_number(p.strip()) if isinstance(p, str) else p for p in parts]
    made: list[float | int] = []
    for number in numbers:
        if isinstance(number, bool) or not isinstance(number, int | float):
            raise FlowError(f"{wanted} are numbers, not {value!r}")
        if not math.isfinite(number):
            raise FlowError(f"{wanted} are finite numbers, not {value!r}")
        made.append(number)
    return made


def _exact(number: float | int) -> Decimal:
    return Decimal(str(number))


def _refuse_many(count: int) -> None:
    if count > MOST_WINDOWS:
        raise FlowError(f"{count} values; at most {MOST_WINDOWS} are allowed")


def grid(params: Mapping[str, Sequence[object]], most: int | None = None) -> list[Combination]:
    """Return every combination in the order of the parameters, or the first ``most``.

    Raises
    ------
    FlowError
        There are more than `MOST_COMBINATIONS`.
    """
    count = math.prod(len(values) for values in params.values())
    taken = count if most is None else min(count, most)
    if taken > MOST_COMBINATIONS:
        raise FlowError(f"the matrix has {taken} combinations; at most {MOST_COMBINATIONS}")
    return list(itertools.islice(_product(params), taken))


def _product(params: Mapping[str, Sequence[object]]) -> Iterator[Combination]:
    for values in itertools.product(*params.values()):
        yield dict(zip(params, values, strict=True))


def sample(
    params: Mapping[str, Sequence[object]], runs: int, seed: int | None
) -> list[Combination]:
    """Return ``runs`` different combinations at random, the same ones for the same seed."""
    count = math.prod(len(values) for values in params.values())
    if (taken := min(count, runs)) > MOST_COMBINATIONS:
        raise FlowError(f"the matrix has {taken} combinations; at most {MOST_COMBINATIONS}")
    made = []
    for number in random.Random(seed).sample(range(count), taken):
        combination: Combination = {}
        for name, values in reversed(list(params.items())):
            number, index = divmod(number, len(values))
            combination[name] = values[index]
        made.append({name: combination[name] for name in params})
    return made


def mapping(rows: Sequence[Mapping[str, object]]) -> list[Combination]:
    """Return the rows of a mapping, which all have the same keys."""
    if not rows:
        raise FlowError("no values: the mapping has no rows, so there is nothing to run")
    if len(rows) > MOST_COMBINATIONS:
        raise FlowError(f"the matrix has {len(rows)} combinations; at most {MOST_COMBINATIONS}")
    for number, row in enumerate(rows):
        if set(row) != set(rows[0]):
            raise FlowError(
                f"rows of a mapping have the same keys: the first has {', '.join(rows[0])}, "
                f"number {number + 1} has {', '.join(row) or 'none'}"
            )
    return [dict(row) for row in rows]


def shown(value: object) -> str:
    """Return a value as it stands in names of jobs: dates as ISO 8601."""
    if isinstance(value, datetime):
        return value.isoformat()
    return value.isoformat() if isinstance(value, date) else str(value)
