"""Failures of one row, as values that cross processes."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any, Self

import pyarrow as pa

_EXCERPT_CHARS = 200


@dataclass(frozen=True, slots=True)
class RowError:
    """One row that the UDF could not compute.

    Attributes
    ----------
    row
        Position in the batch that was passed to the caller, from 0.
    error, message, traceback
        Type name, text and formatted traceback of the original exception.
    attempts
        Calls made with this row before giving up, retries included.
    input
        The row's input values, shortened to about 200 characters.
    """

    row: int
    error: str
    message: str
    traceback: str = ""
    attempts: int = 1
    input: str = ""


class RowFailed(Exception):
    """The UDF raised on a row; `failure` says which and why.

    The original exception is the ``__cause__`` in the process that raised it; across processes
    only its traceback's text travels, because user exceptions need not be picklable.
    """

    def __init__(self, failure: RowError) -> None:
        super().__init__(failure)
        self.failure = failure

    def __str__(self) -> str:
        """Say row, error and input in one line."""
        of = f" with input {self.failure.input}" if self.failure.input else ""
        return f"row {self.failure.row}{of}: {self.failure.error}: {self.failure.message}"


class DeviceFull(Exception):
    """The UDF's device, such as a GPU, had no room for a batch of several rows."""


def of_full_device(error: BaseException) -> bool:
    """Whether an exception says that a device ran out of memory; torch and jax say it so."""
    names = {c.__name__ for c in type(error).__mro__}
    return "OutOfMemoryError" in names or (
        bool(names & {"XlaRuntimeError", "JaxRuntimeError"}) and "RESOURCE_EXHAUSTED" in str(error)
    )


class BadResult(RowFailed):
    """The UDF returned a value that its column cannot hold: wrong length, wrong type or a loss.

    Never recorded as a failed row: it says that the definition is wrong, not the data. `of_row`
    tells whether one row of the result is to blame, or its length or form.
    """

    def __init__(self, failure: RowError, of_row: bool = False) -> None:
        super().__init__(failure)
        self.args = (failure, of_row)
        self.of_row = of_row

    @classmethod
    def at(cls, row: int | None, message: str) -> Self:
        """Build one for a row of the result, or for the result as a whole."""
        error = RowError(row=row or 0, error="BadResult", message=message)
        return cls(error, of_row=row is not None)

    def seen(self, udf_name: str, row: int, input_text: str) -> BadResult:
        """Return the same with the UDF's name, the row in the batch, and its input."""
        message = f"UDF {udf_name!r}: {self.failure.message}"
        failure = replace(self.failure, message=message, row=row, input=input_text)
        return BadResult(failure, self.of_row)

    def __str__(self) -> str:
        """Name the expected type, the returned value, and its input."""
        of = f" (row {self.failure.row} of the batch" if self.of_row else ""
        if of and self.failure.input:
            of += f", input {self.failure.input}"
        return self.failure.message + (f"{of})" if of else "")


class Inexact(Exception):
    """A value does not fit the type.

    `index` is its position, or ``None`` when the form of the whole is wrong.
    """

    def __init__(self, index: int | None, reason: str) -> None:
        super().__init__(index, reason)
        self.index = index
        self.reason = reason


def shorten(value: Any, chars: int = _EXCERPT_CHARS) -> str:
    """Return ``repr(value)``, cut to so many characters; never raises."""
    try:
        if isinstance(value, str | bytes) and len(value) > chars:
            value = value[:chars]
        text = repr(value)
    except Exception as error:
        text = f"<{type(value).__name__}, whose repr raised {type(error).__name__}>"
    return shorten_text(text, chars)


def shorten_cell(array: pa.Array, row: int, chars: int = _EXCERPT_CHARS) -> str:
    """Return a row's value as text, also one that Python cannot hold; never raises."""
    try:
        return shorten(array[row].as_py(), chars)
    except Exception:  # a date after the year 9999, text that is no UTF-8
        return shorten_text(" ".join(str(array.slice(row, 1)).split()), chars)


def shorten_text(text: str, chars: int = _EXCERPT_CHARS) -> str:
    """Cut a text to so many characters."""
    return text if len(text) <= chars else text[: chars - 1] + "…"
