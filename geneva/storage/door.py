"""The one door through which errors of Lance pass: told apart, and none of them raw.

Lance gives one kind of failure many types: ``ValueError``, ``OSError``, ``RuntimeError``, Arrow's
and DataFusion's errors, and a panic of its Rust code, which is no ``Exception``. Only a commit that
lost has a type of its own. All else is told apart by its text: a chain of messages in which each
layer wraps the one below, and some wrappers read like a failure of their own (``Generic N/A error``
stands around whatever a read met). Past this door there are three kinds of `OSError`:

- `FileNotFoundError`: it is not there, on a disk or in a store;
- `DamagedError`: it is there, and not what it should be;
- any other: something failed, and may work when it is tried again. What no pattern knows is one of
  these as well.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from types import TracebackType

from geneva.errors import GenevaError, SettingError
from geneva.storage.secrets import hidden
from geneva.storage.values import CommitConflict

# The last one is of a disk; 2: the file is missing.
_FAULT = re.compile(
    r"Generic (?!LocalFileSystem|N/A|memory)\S+ error|RetryError"
    r"|lacked the necessary privileges|valid authentication"
    r"|Unable to (?:open|read) .*\(os error (?!2\))"
)
_MISSING = re.compile(r"not found|does not exist|\(os error 2\)", re.IGNORECASE)
_DAMAGED = re.compile(r"does not appear to be a Lance file|Invalid range .* for object of size")
_UNKNOWN_SCHEME = "No object store provider found for scheme"  # of a URI, which no retry mends
_SOURCE = re.compile(r", /\S+\.rs:\d+:\d+")  # where in Lance's sources it was raised


class DamagedError(OSError):
    """A file contradicts its name."""


class LanceErrors:
    """Turns errors that are raised inside of it into one of the kinds above, without secrets.

    What this engine raises itself passes, and so does what ends a process or a thread.
    """

    def __init__(self, options: Mapping[str, str] | None) -> None:
        self._options = options

    def __enter__(self) -> None:
        """Let in."""

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        """Let out."""
        if error is None or isinstance(error, GenevaError | CommitConflict | MemoryError):
            return
        if not isinstance(error, Exception) and not is_panic(error):
            return  # Ctrl-C, or the end of a generator
        told = self._told(error)
        if told is not error:
            # Its cause would show what was hidden.
            raise told from (error if hidden(str(error), self._options) == str(error) else None)

    def _told(self, error: BaseException) -> BaseException:
        if isinstance(error, OSError) and error.errno:
            return error  # the operating system's own
        shown = _SOURCE.sub("", hidden(str(error), self._options)) or repr(error)
        if is_panic(error):
            return OSError(f"Lance panicked: {shown}")
        if _UNKNOWN_SCHEME in shown:
            return SettingError(f"the database cannot be opened: {shown}")
        if is_missing(error):
            return FileNotFoundError(shown)
        if not is_fault(error) and _DAMAGED.search(shown):
            return DamagedError(shown)
        return error if isinstance(error, OSError) and shown == str(error) else OSError(shown)


def is_panic(error: BaseException) -> bool:
    """Whether Rust code panicked; that is no `Exception`, and its type cannot be imported."""
    return type(error).__name__ == "PanicException"


def is_fault(error: BaseException) -> bool:
    """Return True if a store failed, rather than that a file is missing or damaged."""
    return _FAULT.search(str(error)) is not None


def is_missing(error: BaseException) -> bool:
    """Whether a file or a table is not there, and nothing failed."""
    return _MISSING.search(str(error)) is not None and not is_fault(error)
