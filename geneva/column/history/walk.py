"""Follow a long history without a Python frame for each of its steps.

One version's rows follow from those of the version before it, and so on: ten thousand updates would
be ten thousand calls inside each other. A step is a generator instead, which yields the steps that
it needs the results of; they wait on a list.
"""

from __future__ import annotations

from collections.abc import Generator
from typing import Any, TypeVar

T = TypeVar("T")
Walk = Generator[Generator[Any, Any, Any], Any, T]


def walk(first: Walk[T]) -> T:
    """Return the result of a step, having done all that it needs."""
    waiting: list[Walk[Any]] = [first]
    result: Any = None
    failure: BaseException | None = None
    while waiting:
        step = waiting[-1]
        try:
            needed = step.send(result) if failure is None else step.throw(failure)
        except StopIteration as end:
            waiting.pop()
            result, failure = end.value, None
        except BaseException as error:  # it belongs to whoever waits for this step
            waiting.pop()
            result, failure = None, error
        else:
            waiting.append(needed)
            result = failure = None
    if failure is not None:
        raise failure
    found: T = result
    return found
