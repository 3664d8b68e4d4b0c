"""Rules for calls that fail are tried in order; what none is about follows the call's on_error."""

from __future__ import annotations

import datetime as dt
import itertools
import pickle
import threading
import time
from collections.abc import Callable, Iterator
from typing import Any

import pyarrow as pa
import pytest
from hypothesis import given
from hypothesis import strategies as st

import geneva
from geneva import Fail, Retry, Skip
from geneva.errors import SettingError, UdfTimeoutError
from geneva.udf import Caller, RowFailed
from geneva.udf.retry import Course, RetryVerdict, applies, checked_rules

NOW = {"wait": 0.0}


def batch(*values: Any) -> pa.RecordBatch:
    return pa.record_batch({"x": pa.array(values, pa.int64())})


def raising(errors: dict[int, list[Exception]], **settings: Any) -> tuple[geneva.UDF, list[int]]:
    """Return a UDF that raises for a value what is listed, call after call, and its calls."""
    calls: list[int] = []
    left = {x: iter(some) for x, some in errors.items()}

    @geneva.udf(**settings)
    def f(x: int) -> int:
        calls.append(x)
        error = next(left.get(x, iter(())), None)
        if error is not None:
            raise error
        return 10 * x

    return f, calls


class TooMany(Exception):
    pass


def test_first_rule_that_is_about_an_error_decides() -> None:
    rules = [Skip(on=KeyError), Fail(match="corrupt"), Skip(match="rupt"), Retry(2, 0.0)]
    assert Course(rules).next(KeyError("corrupt")) is RetryVerdict.SKIP
    assert Course(rules).next(ValueError("corrupt")) is RetryVerdict.FAIL
    assert Course(rules).next(ValueError("abrupt")) is RetryVerdict.SKIP
    course = Course(rules)
    assert [course.next(ValueError("x")), course.next(ValueError("x"))] == [
        0.0,
        RetryVerdict.AS_CALLED,
    ]


def test_spent_retry_leaves_it_to_the_next_rule() -> None:
    f, calls = raising({2: [TooMany("429")] * 9}, on_error=[Retry(3, match="429", **NOW), Skip()])
    with Caller(f) as call:  # on_error="fail"
        applied = call(batch(1, 2, 3))
    assert applied.values.to_pylist() == [10, None, 30]
    assert [(e.row, e.attempts, e.error) for e in applied.failures] == [(1, 3, "TooMany")]
    assert calls == [1, 2, 2, 2, 3]


def test_each_rule_counts_its_own_attempts() -> None:
    errors = [TooMany("429"), OSError("reset"), TooMany("429"), OSError("reset"), OSError("reset")]
    rules = [Retry(3, match="429", **NOW), Retry(3, on=OSError, **NOW)]
    f, calls = raising({1: errors}, on_error=rules)
    with Caller(f, "null") as call:
        assert call(batch(1)).failures[0].attempts == 5
    assert calls == [1] * 5


def test_fail_stops_whatever_the_call_says() -> None:
    f, calls = raising({2: [ValueError("a secret is wrong")]}, on_error=[Fail(match="secret")])
    with Caller(f, "null") as call, pytest.raises(RowFailed, match="row 1"):
        call(batch(1, 2, 3))
    assert calls == [1, 2]


@pytest.mark.parametrize("mode", ["fail", "null"])
def test_what_no_rule_is_about_follows_the_call(mode: Any) -> None:
    f, _ = raising({2: [ValueError("other")]}, on_error=[Skip(on=KeyError), Fail(on=OSError)])
    with Caller(f, mode) as call:
        if mode == "fail":
            with pytest.raises(RowFailed, match="other"):
                call(batch(1, 2))
        else:
            assert call(batch(1, 2)).values.to_pylist() == [10, None]


def test_retry_is_short_for_one_rule() -> None:
    f, calls = raising({1: [OSError("x")] * 2}, retry=Retry(3, **NOW))
    assert f.rules == (Retry(3, **NOW),)
    with Caller(f) as call:
        assert call(batch(1)).values.to_pylist() == [10]
    assert calls == [1, 1, 1]
    with pytest.raises(SettingError, match="give one of them"):
        geneva.udf(retry=Retry(), on_error=[Skip()])


def test_names_of_types_and_of_their_bases_match() -> None:
    error = TooMany("x")
    for kind in ("TooMany", f"{__name__}.TooMany", "Exception", "builtins.Exception"):
        assert applies(Skip(on=kind), error)
    assert not applies(Skip(on="Many"), error)
    assert applies(Skip(on=("KeyError", TooMany)), error)


class Unspeakable(Exception):
    def __str__(self) -> str:
        raise RuntimeError("no text")


def test_error_without_a_text_matches_no_expression() -> None:
    assert not applies(Skip(match="."), Unspeakable())
    assert applies(Skip(), Unspeakable())


def test_waits_that_grow_by_themselves_are_jittered() -> None:
    rule = Retry(5, "exponential", max_wait=4.0)
    assert (rule.waits_s(), rule.jitter) == ((1.0, 2.0, 4.0, 4.0), 0.5)
    seen = [[c.next(OSError()) for _ in range(4)] for c in (Course([rule]) for _ in range(50))]
    for k, wait in enumerate(rule.waits_s()):
        some = [float(waits[k]) for waits in seen]
        assert 0.5 * wait <= min(some) < max(some) <= 1.5 * wait
    assert Course([Retry(2, 3.0)]).next(OSError()) == 3.0


def test_retry_pickled_by_an_earlier_version_is_read() -> None:
    rule = Retry(4, 2.0, (OSError,), 3.0, 9.0)
    old = object.__new__(Retry)
    old.__setstate__([4, 2.0, (OSError,), 3.0, 9.0])
    assert old == rule == pickle.loads(pickle.dumps(rule))


@pytest.mark.parametrize(
    "make",
    [
        lambda: Skip(match="("),
        lambda: Fail(match=7),  # type: ignore[arg-type]  # on purpose
        lambda: Skip(on=()),
        lambda: Fail(on=KeyboardInterrupt),
        lambda: Skip(on=""),
        lambda: Retry(jitter=2.0),
        lambda: Retry(wait="linear"),  # type: ignore[arg-type]  # on purpose
        lambda: geneva.udf(on_error="null"),  # type: ignore[arg-type]  # on purpose
        lambda: geneva.udf(on_error=[Skip(), "fail"]),  # type: ignore[list-item]  # on purpose
        lambda: geneva.udf(timeout=0),
        lambda: geneva.udf(timeout=True),
        lambda: geneva.udf(timeout="5"),  # type: ignore[arg-type]  # on purpose
    ],
)
def test_rules_that_make_no_sense_are_refused(make: Callable[[], Any]) -> None:
    with pytest.raises(SettingError):
        make()


def test_one_rule_may_stand_alone() -> None:
    assert checked_rules(Skip()) == (Skip(),)


def test_bad_rows_of_a_batch_are_found_by_halves() -> None:
    calls = []

    @geneva.udf(data_type=pa.int64(), on_error=[Skip(match="odd"), Fail(match="deadly")])
    def f(x: pa.Array) -> pa.Array:
        calls.append(len(x))
        if 7 in x.to_pylist():
            raise ValueError("odd")
        if 9 in x.to_pylist():
            raise ValueError("deadly")
        return x

    with Caller(f) as call:
        applied = call(batch(*range(9)))
        assert applied.values.to_pylist() == [0, 1, 2, 3, 4, 5, 6, None, 8]
        assert [e.row for e in applied.failures] == [7]
        with pytest.raises(RowFailed) as told:
            call(batch(*range(12)))
    assert (told.value.failure.row, told.value.failure.message) == (9, "deadly")


KINDS = [ValueError, KeyError, OSError, TooMany]
RULES = st.one_of(
    st.builds(Skip, on=st.sampled_from(KINDS)),
    st.builds(Fail, on=st.sampled_from(KINDS)),
    st.builds(lambda on, n: Retry(n, 0.0, (on,)), st.sampled_from(KINDS), st.integers(1, 3)),
)


def expected(rules: list[Any], errors: list[type[Exception]], mode: str) -> tuple[int, str]:
    """Say by the words of the guide how many calls a row costs, and how it ends."""
    left = [r.attempts - 1 if isinstance(r, Retry) else 0 for r in rules]
    for calls in itertools.count(1):
        if calls > len(errors):
            return calls, "value"
        for k, rule in enumerate(rules):
            if not issubclass(errors[calls - 1], rule.on):
                continue
            if isinstance(rule, Skip):
                return calls, "null"
            if isinstance(rule, Fail):
                return calls, "stop"
            if left[k]:
                left[k] -= 1
                break
        else:
            return calls, "null" if mode == "null" else "stop"
    raise AssertionError


@given(
    rules=st.lists(RULES, max_size=4),
    errors=st.lists(st.sampled_from(KINDS), max_size=5),
    mode=st.sampled_from(["fail", "null"]),
    kind=st.sampled_from(["scalar", "async", "batch"]),
)
def test_calls_are_counted_by_the_rules(
    rules: list[Any], errors: list[type[Exception]], mode: Any, kind: str
) -> None:
    calls = []

    def once(x: Any) -> Any:
        calls.append(x)
        if len(calls) <= len(errors):
            raise errors[len(calls) - 1]("x")
        return x

    def scalar(x: int) -> int:
        return int(once(x))

    async def awaited(x: int) -> int:
        return int(once(x))

    def arrays(x: pa.Array) -> pa.Array:
        return once(x)

    target: Any = {"scalar": scalar, "async": awaited, "batch": arrays}[kind]
    made = geneva.udf(on_error=rules, data_type=pa.int64())(target)
    count, end = expected(rules, errors, mode)
    with Caller(made, mode) as call:
        if end == "stop":
            with pytest.raises(RowFailed) as told:
                call(batch(5))
            assert told.value.failure.attempts == count
        else:
            applied = call(batch(5))
            assert applied.values.to_pylist() == [5 if end == "value" else None]
            assert [e.attempts for e in applied.failures] == ([] if end == "value" else [count])
    assert len(calls) == count


# -- calls that do not return -----------------------------------------------------------------


@pytest.fixture
def held() -> Iterator[threading.Event]:
    event = threading.Event()
    yield event
    event.set()


def test_call_that_does_not_return_is_an_error_of_its_row(held: threading.Event) -> None:
    @geneva.udf(timeout=0.2, on_error=[Skip(on=UdfTimeoutError)])
    def f(x: int) -> int:
        if x == 2:
            held.wait()
        return 10 * x

    with Caller(f) as call:
        applied = call(batch(1, 2, 3))
    assert applied.values.to_pylist() == [10, None, 30]
    assert [(e.row, e.error) for e in applied.failures] == [(1, "UdfTimeoutError")]


def test_call_that_is_late_once_is_tried_again(held: threading.Event) -> None:
    calls = []

    @geneva.udf(timeout=dt.timedelta(seconds=0.2), retry=Retry(2, 0.0, on="UdfTimeoutError"))
    def f(x: int) -> int:
        calls.append(x)
        if len(calls) == 1:
            held.wait()
        return x

    with Caller(f) as call:
        assert call(batch(1)).values.to_pylist() == [1]
    assert f.timeout == 0.2


def test_batch_that_does_not_return_is_halved(held: threading.Event) -> None:
    @geneva.udf(timeout=0.2, data_type=pa.int64())
    def f(x: pa.Array) -> pa.Array:
        if 3 in x.to_pylist():
            held.wait()
        return x

    with Caller(f, "null") as call:
        assert call(batch(1, 2, 3, 4)).values.to_pylist() == [1, 2, None, 4]


def test_async_call_that_does_not_return_is_cancelled() -> None:
    ended = []

    @geneva.udf(timeout=0.2, on_error=[Skip(on=TimeoutError)])
    async def f(x: int) -> int:
        import asyncio

        try:
            if x == 2:
                await asyncio.Event().wait()
        finally:
            ended.append(x)
        return 10 * x

    with Caller(f, awaits=2) as call:
        applied = call(batch(1, 2, 3))
    assert applied.values.to_pylist() == [10, None, 30]
    assert [e.error for e in applied.failures] == ["UdfTimeoutError"]
    assert sorted(ended) == [1, 2, 3]


def test_time_out_of_the_udfs_own_stays_what_it_is() -> None:
    @geneva.udf(timeout=30)
    def f(x: int) -> int:
        raise TimeoutError("of a socket")

    @geneva.udf(timeout=30)
    async def g(x: int) -> int:
        raise TimeoutError("of a socket")

    for made in (f, g):
        with Caller(made, "null") as call:
            assert [e.error for e in call(batch(1)).failures] == ["TimeoutError"]


def test_instance_of_a_stuck_thread_is_not_used_again(held: threading.Event) -> None:
    @geneva.udf(timeout=0.2, instances="thread", on_error=[Skip()])
    class Model:
        def __init__(self) -> None:
            time.sleep(0.3)  # longer than a call may take
            self.thread = threading.get_ident()

        def __call__(self, x: int) -> bool:
            if x == 2:
                held.wait()
            return self.thread == threading.get_ident()

    with Caller(Model()) as call:
        assert call(batch(1, 2, 3)).values.to_pylist() == [True, None, True]


def test_threads_end_when_their_calls_do(held: threading.Event) -> None:
    @geneva.udf(timeout=0.1, on_error=[Skip()])
    def f(x: int) -> int:
        held.wait()
        return x

    before = threading.active_count()
    with Caller(f) as call:
        call(batch(1, 2))
    held.set()
    deadline = time.monotonic() + 10
    while threading.active_count() > before:
        assert time.monotonic() < deadline
        time.sleep(0.01)
