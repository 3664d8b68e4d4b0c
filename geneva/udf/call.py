"""The call of a UDF on one batch: retries, bisection, and rows that fail."""

from __future__ import annotations

import asyncio
import functools
import itertools
import threading
import time
import traceback
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any, Self, assert_never

import pyarrow as pa

from geneva.errors import UdfTimeoutError
from geneva.model.types import OnError
from geneva.udf.convert import to_arrow
from geneva.udf.definition import UDF
from geneva.udf.failures import (
    BadResult,
    DeviceFull,
    RowError,
    RowFailed,
    of_full_device,
    shorten_cell,
    shorten_text,
)
from geneva.udf.families import family, held_type
from geneva.udf.inputs import batch_arguments, row_call
from geneva.udf.keep import is_fixed, keeper
from geneva.udf.retry import Course, Retry, RetryVerdict, Rule
from geneva.udf.signature import UdfKind
from geneva.udf.watch import Watch

_UNDONE = object()  # None is a value
# What a UDF awaits may be cancelled; event loops would take that for the end of the call itself.
_FAILURES = (Exception, asyncio.CancelledError)


@dataclass(frozen=True, slots=True)
class Applied:
    """A UDF's result for one batch: a value per row, null where `failures` has the row."""

    values: pa.Array
    failures: tuple[RowError, ...] = ()


@dataclass(frozen=True, slots=True)
class _Failure:
    error: BaseException
    attempts: int
    verdict: RetryVerdict = RetryVerdict.AS_CALLED


class Caller:
    """Calls one UDF, batch after batch, from any number of threads.

    Parameters
    ----------
    udf
        The UDF; a stateful one is built here, once per caller or once per thread.
    on_error
        ``"fail"`` raises `RowFailed` for a row that fails; ``"null"`` makes it null and records it.
    awaits
        Calls of an async UDF that are under way at once, per thread.
    begin
        Called first on each thread that calls a UDF with a time limit.
    hide
        Takes out of an exception's text and traceback what must not be recorded.
    """

    def __init__(
        self,
        udf: UDF,
        on_error: OnError = "fail",
        awaits: int = 1,
        hide: Callable[[str], str] = str,
        begin: Callable[[], None] = lambda: None,
    ) -> None:
        self._udf = udf
        self.configure(on_error, awaits)
        self._hide = hide
        self._begin = begin
        self._rules = udf.rules
        self._watches = udf.timeout is not None and udf.kind is not UdfKind.ASYNC
        self._type = held_type(udf.data_type)
        self._keep = keeper(self._type)
        self._nested = family(self._type).nested
        self._lock = threading.Lock()
        self._shared: Callable[..., Any] | None = None
        self._local = threading.local()
        self._runners: list[asyncio.Runner] = []
        self._watchers: list[Watch] = []

    def configure(self, on_error: OnError, awaits: int) -> None:
        """Go on with the same instance of the UDF; the caller's threads must be idle."""
        self._on_error = on_error
        self._awaits = max(1, awaits)

    def open(self) -> Self:
        """Build the UDF now, for this thread; idempotent."""
        self._instance()
        return self

    def close(self) -> None:
        """End the event loops and watches. The caller's threads must be idle."""
        with self._lock:
            runners, self._runners = self._runners, []
            watchers, self._watchers = self._watchers, []
        for watch in watchers:
            watch.close()
        for runner in runners:
            runner.close()
        self._local = threading.local()

    def __enter__(self) -> Self:
        """Build the UDF."""
        return self.open()

    def __exit__(self, *_: object) -> None:
        """Close."""
        self.close()

    def __call__(self, batch: pa.RecordBatch, *, halves: bool = False) -> Applied:
        """Apply the UDF to a batch that holds just its input columns, in order.

        Parameters
        ----------
        halves
            Whether the caller would rather have half as many rows tried than a batch fail for
            which the UDF's device has no room.

        Raises
        ------
        DeviceFull
            Then.
        RowFailed
            With ``on_error="fail"``, for the first row that fails.
        BadResult
            If the result has the wrong length, or values that the column cannot hold.
        """
        if not batch.num_rows:
            return Applied(to_arrow([], self._type, 0))
        match self._udf.kind:
            case UdfKind.SCALAR:
                return self._rows(batch)
            case UdfKind.ASYNC:
                return self._awaited(batch)
            case UdfKind.BATCH | UdfKind.RECORD_BATCH:
                return self._arrays(batch, halves=halves and batch.num_rows > 1)
            case unknown:
                assert_never(unknown)

    def _instance(self) -> Callable[..., Any]:
        """Return the function to call with the columns."""
        if not self._watches:
            return self._built(self._local)
        self._watch().ready(self._built)
        return self._timed

    def _timed(self, *columns: Any) -> Any:
        watch = self._watch()
        return watch.call(watch.ready(self._built), *columns)

    def _watch(self) -> Watch:
        if not hasattr(self._local, "watch"):
            assert self._udf.timeout is not None
            self._local.watch = Watch(self._udf.timeout, self._begin)
            with self._lock:
                self._watchers.append(self._local.watch)
        return self._local.watch  # type: ignore[no-any-return]

    def _built(self, local: Any) -> Callable[..., Any]:
        if self._udf.stateful and self._udf.instances == "thread":
            if not hasattr(local, "instance"):
                local.instance = self._udf.instantiate()
            return local.instance  # type: ignore[no-any-return]
        if self._shared is None:
            with self._lock:
                if self._shared is None:
                    self._shared = self._udf.instantiate()
        return self._shared

    # -- rows ---------------------------------------------------------------------------------

    def _rows(self, batch: pa.RecordBatch) -> Applied:
        call, columns = self._row_call(batch)
        results: list[Any] = []
        failures: list[RowError] = []
        pending = map(call, *columns)
        # Whether a result may be filled anew by the next call is asked of the first that is not
        # null; of one that comes later among immutable ones, `from_values` asks.
        asked = self._nested
        if self._nested:
            pending = map(self._keep, pending)
        # `extend` keeps what it appended before a row raised, and the iterator then stands behind
        # that row: so the rows without a failure cost no Python code of ours.
        while len(results) < batch.num_rows:
            try:
                if asked:
                    results.extend(pending)
                elif (value := next(pending, _UNDONE)) is not _UNDONE:
                    results.append(self._keep(value))
                    asked = value is not None
                    if not is_fixed(type(value)):
                        pending = map(self._keep, pending)
                    continue
                if len(results) == batch.num_rows:
                    break
                # The row raised StopIteration, which was taken for the end.
                raise RuntimeError("the UDF raised StopIteration")
            except MemoryError:
                raise
            except _FAILURES as error:
                row = len(results)
                repeat = functools.partial(self._kept_anew, batch, row)
                outcome = self._again(repeat, error, self._rules)
                results.append(self._settle(batch, row, outcome, failures))
        return self._applied(batch, results, failures)

    def _row_call(self, batch: pa.RecordBatch) -> tuple[Callable[..., Any], list[list[Any]]]:
        udf = self._udf
        return row_call(self._instance(), batch, udf.kind, udf.row_arrays, udf.files)

    def _call_anew(self, batch: pa.RecordBatch, row: int) -> Any:
        """Call the UDF with a row's inputs made anew: a failed call may have changed its own."""
        call, columns = self._row_call(batch.slice(row, 1))
        return call(*(column[0] for column in columns))

    def _kept_anew(self, batch: pa.RecordBatch, row: int) -> Any:
        return self._keep(self._call_anew(batch, row))

    def _awaited(self, batch: pa.RecordBatch) -> Applied:
        outcomes, fatal = self._runner().run(self._await_all(batch))
        if fatal:
            raise fatal[0]
        failures: list[RowError] = []
        results = [
            self._settle(batch, row, outcome, failures) for row, outcome in enumerate(outcomes)
        ]
        if any(result is _UNDONE for result in results):
            raise RuntimeError("calls of an async UDF were cancelled from outside")
        return self._applied(batch, results, failures)

    async def _await_all(self, batch: pa.RecordBatch) -> tuple[list[Any], list[BaseException]]:
        call, columns = self._row_call(batch)
        outcomes: list[Any] = [_UNDONE] * batch.num_rows
        # Taken out of the loop as values: raised inside, they would leave its tasks half done.
        fatal: list[BaseException] = []
        order = iter(enumerate(zip(*columns, strict=True)))
        stop = False

        async def work(order: Iterator[tuple[int, tuple[Any, ...]]]) -> None:
            nonlocal stop
            for row, arguments in order:
                try:
                    first = functools.partial(call, *arguments)
                    outcomes[row] = await self._await_one(first, batch, row, whole)
                except asyncio.CancelledError:
                    raise
                except BaseException as error:  # none of a row: out of memory, a panic, an exit
                    fatal.append(error)
                # Calls under way are left to end, so that the first failing row is the lowest
                # one and not the quickest one; later rows are not begun.
                failed = isinstance(outcomes[row], _Failure)
                stop = stop or bool(fatal) or (failed and self._stops(outcomes[row]))
                if stop:
                    return

        whole = _this_task()
        async with asyncio.TaskGroup() as group:
            for _ in range(min(self._awaits, batch.num_rows)):
                group.create_task(work(order))
        return outcomes, fatal

    async def _await_one(
        self,
        call: Callable[[], Any],
        batch: pa.RecordBatch,
        row: int,
        whole: asyncio.Task[Any],
    ) -> Any:
        task, course = _this_task(), Course(self._rules)
        for attempt in itertools.count(1):
            try:
                value = self._keep(await self._in_time(call))
                if task.cancelling():
                    await asyncio.sleep(0)  # raises here what would strike the next row
                return value
            except MemoryError:
                raise
            except _FAILURES as error:
                if whole.cancelling():
                    raise
                step = course.next(error)
                await _rest(0.0 if isinstance(step, RetryVerdict) else step, task, whole)
                if isinstance(step, RetryVerdict):
                    return _Failure(error, attempt, step)
            call = functools.partial(self._call_anew, batch, row)
        raise AssertionError("unreachable: the last attempt returns")

    async def _in_time(self, call: Callable[[], Any]) -> Any:
        limit_s = self._udf.timeout
        if limit_s is None:
            return await call()
        try:
            async with asyncio.timeout(limit_s) as limit:
                return await call()
        except TimeoutError as error:
            if not limit.expired():
                raise
            raise UdfTimeoutError(
                f"the call did not return within timeout={limit_s:g} s"
            ) from error

    def _runner(self) -> asyncio.Runner:
        if not hasattr(self._local, "runner"):
            self._local.runner = asyncio.Runner()
            with self._lock:
                self._runners.append(self._local.runner)
        return self._local.runner  # type: ignore[no-any-return]

    def _settle(
        self, batch: pa.RecordBatch, row: int, outcome: Any, failures: list[RowError]
    ) -> Any:
        """Return a row's value; for a failed row raise, or record it and return ``None``."""
        if not isinstance(outcome, _Failure):
            return outcome
        failure = self._row_error(batch, row, outcome)
        if self._stops(outcome):
            raise RowFailed(failure) from outcome.error
        failures.append(failure)
        return None

    def _stops(self, failed: _Failure) -> bool:
        """Whether a failure ends the job."""
        if failed.verdict is RetryVerdict.AS_CALLED:
            return self._on_error == "fail"
        return failed.verdict is RetryVerdict.FAIL

    def _applied(
        self, batch: pa.RecordBatch, results: list[Any], failures: list[RowError]
    ) -> Applied:
        try:
            values = to_arrow(results, self._type, batch.num_rows, kept=True)
        except BadResult as bad:
            raise self._named(bad, batch) from bad.__cause__
        return Applied(values, tuple(failures))

    def _again(self, call: Callable[[], Any], error: BaseException, rules: Sequence[Rule]) -> Any:
        """Repeat a call that just failed, as the rules say; return its value or its failure."""
        course = Course(rules)
        for attempts in itertools.count(1):
            step = course.next(error)
            if isinstance(step, RetryVerdict):
                return _Failure(error, attempts, step)
            time.sleep(step)
            try:
                return call()
            except MemoryError:
                raise
            except _FAILURES as again:
                error = again
        raise AssertionError("unreachable: rules do not repeat for ever")

    # -- arrays -------------------------------------------------------------------------------

    def _arrays(self, batch: pa.RecordBatch, *, halves: bool) -> Applied:
        outcome = self._on_slice(batch, 0, batch.num_rows, self._rules)
        if not isinstance(outcome, _Failure):
            return Applied(outcome)
        if halves and of_full_device(outcome.error):
            # The frames hold what fills the device, and the exception, in a circle, the frames.
            traceback.clear_frames(outcome.error.__traceback__)
            raise DeviceFull
        if self._stops(outcome):
            raise self._blame(batch, 0, batch.num_rows, outcome)
        parts: list[pa.Array] = []
        failures: list[RowError] = []
        self._halve(batch, 0, batch.num_rows, outcome, parts, failures)
        return Applied(pa.concat_arrays(parts), tuple(failures))

    def _on_slice(self, batch: pa.RecordBatch, start: int, rows: int, rules: Sequence[Rule]) -> Any:
        """Call the UDF on some rows; return an array or a failure, raise for a bad result."""
        part = batch.slice(start, rows)
        call = self._instance()

        def attempt() -> Any:
            return call(*batch_arguments(part, self._udf.kind, self._udf.container))

        try:
            values = attempt()
        except MemoryError:
            raise
        except _FAILURES as error:
            values = self._again(attempt, error, rules)
            if isinstance(values, _Failure):
                return values
        try:
            return to_arrow(values, self._type, rows)
        except BadResult as bad:
            raise self._named(bad, part, start) from bad.__cause__

    def _halve(
        self,
        batch: pa.RecordBatch,
        start: int,
        rows: int,
        failed: _Failure,
        parts: list[pa.Array],
        failures: list[RowError],
    ) -> None:
        """Null the bad rows of a failed range: about ``2 * log2(rows)`` calls for each."""
        if rows == 1:
            failures.append(self._row_error(batch, start, failed))
            parts.append(pa.nulls(1, self._type))
            return
        left = rows // 2
        for first, count in ((start, left), (start + left, rows - left)):
            outcome = self._on_slice(batch, first, count, self._rules)
            if isinstance(outcome, _Failure):
                if self._stops(outcome):
                    raise self._blame(batch, first, count, outcome)
                self._halve(batch, first, count, outcome, parts, failures)
            else:
                parts.append(outcome)

    def _blame(self, batch: pa.RecordBatch, start: int, rows: int, failed: _Failure) -> RowFailed:
        """Find one row that fails alone, in at most ``log2(rows) + 2`` calls without retries."""
        first, count, last, known = start, rows, failed, True
        while rows > 1:
            left = rows // 2
            outcome = self._quietly(batch, start, left)
            # When the left half is fine, the right half is taken to be the bad one unasked: a
            # call may cost seconds, and the row that is left at the end is tried alone anyway.
            known = outcome is not None
            if outcome is not None:
                rows, last = left, outcome
            else:
                start, rows = start + left, rows - left
        if not known:
            outcome = self._quietly(batch, start, 1)
            known = outcome is not None
            last = outcome or last
        if known:
            alone = self._row_error(batch, start, _Failure(last.error, failed.attempts))
            return _caused(RowFailed(alone), last.error)
        whole = self._row_error(batch, first, failed)
        note = f"{whole.message} (no row fails alone: the batch of {count} rows does)"
        return _caused(
            RowFailed(
                RowError(first, whole.error, note, whole.traceback, whole.attempts, whole.input)
            ),
            failed.error,
        )

    def _quietly(self, batch: pa.RecordBatch, start: int, rows: int) -> _Failure | None:
        """Call without retries; return a failure that stops the job. A bad result is none."""
        once = [rule for rule in self._rules if not isinstance(rule, Retry)]
        try:
            outcome = self._on_slice(batch, start, rows, once)
        except BadResult:
            return None
        return outcome if isinstance(outcome, _Failure) and self._stops(outcome) else None

    def _named(self, bad: BadResult, batch: pa.RecordBatch, start: int = 0) -> BadResult:
        """Add UDF, row and input to a result that cannot be stored."""
        row = bad.failure.row
        text = _excerpt(batch, row) if bad.of_row else ""
        return bad.seen(self._udf.name, row + start, text)

    def _row_error(self, batch: pa.RecordBatch, row: int, failure: _Failure) -> RowError:
        error = failure.error
        return RowError(
            row=row,
            error=type(error).__qualname__,
            message=self._hide(_text(error)),
            traceback=self._hide("".join(traceback.format_exception(error))),
            attempts=failure.attempts,
            input=_excerpt(batch, row),
        )


async def _rest(seconds: float, task: asyncio.Task[Any], whole: asyncio.Task[Any]) -> None:
    """Sleep; a cancel that the UDF asked for, of its own task, is spent here and strikes no row."""
    until = time.monotonic() + seconds
    while True:
        while task.cancelling():
            task.uncancel()
        try:
            await asyncio.sleep(max(0.0, until - time.monotonic()))
            return
        except asyncio.CancelledError:
            if whole.cancelling():
                raise


def _this_task() -> asyncio.Task[Any]:
    task = asyncio.current_task()
    assert task is not None, "only coroutines ask"
    return task


def _caused(failed: RowFailed, cause: BaseException) -> RowFailed:
    failed.__cause__ = cause
    return failed


def _text(error: BaseException) -> str:
    try:
        return str(error)
    except Exception as second:
        return f"(its text cannot be shown: {type(second).__name__})"


def _excerpt(batch: pa.RecordBatch, row: int) -> str:
    each = max(20, 200 // max(1, batch.num_columns))
    names = batch.schema.names
    cells = (f"{name}={shorten_cell(batch.column(i), row, each)}" for i, name in enumerate(names))
    return shorten_text(", ".join(cells))
