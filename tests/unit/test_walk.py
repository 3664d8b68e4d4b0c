"""Steps that need each other's results are done without a frame for each."""

from __future__ import annotations

import pytest

from geneva.column.history.provenance import Walk, walk


def depth(n: int) -> Walk[int]:
    if n == 0:
        return 0
    below: int = yield depth(n - 1)
    return below + 1


def fallen(n: int, log: list[int]) -> Walk[str]:
    try:
        if n == 0:
            raise ValueError("the bottom")
        found: str = yield fallen(n - 1, log)
        return found
    except ValueError:
        log.append(n)
        if n < 3:
            raise
    return f"caught at {n}"


def both() -> Walk[tuple[int, int]]:
    first: int = yield depth(2)
    second: int = yield depth(3)
    return first, second


def test_hundred_thousand_steps_take_no_frames() -> None:
    assert walk(depth(100_000)) == 100_000


def test_step_gets_the_results_of_all_that_it_asks_for() -> None:
    assert walk(both()) == (2, 3)


def test_error_reaches_the_step_that_catches_it() -> None:
    log: list[int] = []
    assert walk(fallen(5, log)) == "caught at 3"
    assert log == [0, 1, 2, 3]


def test_error_that_no_step_catches_is_the_callers() -> None:
    with pytest.raises(ValueError, match="the bottom"):
        walk(fallen(2, []))
