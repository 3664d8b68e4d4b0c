"""The output of the commands: text for people, one JSON object for programs, and exit codes."""

from __future__ import annotations

import contextlib
import json
import sys
import traceback
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict
from typing import Any, TextIO

import typer

from geneva.cli.streams import reader_gone, silence
from geneva.column.binding import Binding
from geneva.engine.coverage import Coverage
from geneva.errors import (
    GenevaError,
    JobCancelledError,
    JobError,
    OperatorError,
    RequestError,
    RetryableError,
    TableChangedError,
)
from geneva.extras import missing_extra
from geneva.interrupts import INTERRUPTED
from geneva.model.result import BackfillResult
from geneva.model.types import JobState

OK, JOB_FAILED, BAD_REQUEST, RETRY, OPERATOR, PARTIAL = 0, 1, 2, 3, 4, 5
_CODES: tuple[tuple[type[BaseException], int], ...] = (
    (JobCancelledError, INTERRUPTED),
    (KeyboardInterrupt, INTERRUPTED),
    (JobError, JOB_FAILED),
    (RequestError, BAD_REQUEST),
    (TableChangedError, RETRY),
    (RetryableError, RETRY),
    (OperatorError, OPERATOR),
)
EXIT_CODES = (
    "Exit codes: 0 done; 1 the job ended before it was complete; 2 the request is wrong; "
    "3 try again; 4 somebody must mend the cluster or the files; 5 done, but the UDF failed on "
    "some rows, which are null (PARTIAL); 130 interrupted or cancelled."
)
_ENDS = {
    JobState.SUCCEEDED: OK,
    JobState.PARTIAL: PARTIAL,
    JobState.CANCELLED: INTERRUPTED,
    JobState.FAILED: JOB_FAILED,
    JobState.UPSTREAM_FAILED: JOB_FAILED,
}
_FAILURES_SHOWN = 5


def code_of(state: JobState) -> int:
    """Return the exit code of a command that has seen a job in a state."""
    return _ENDS.get(state, OK)


def said_wrong(error: Exception, *, as_json: bool) -> int | None:
    """Print the fault in the words of a command; return its exit code.

    ``None`` if it is another kind of error.
    """
    if isinstance(error, BrokenPipeError) and reader_gone(sys.stdout):
        silence(sys.stdout)
        return OK
    if isinstance(error, typer.Abort):
        print("geneva: interrupted", file=sys.stderr)
        return INTERRUPTED
    show, message = getattr(error, "show", None), getattr(error, "format_message", None)
    if show is None or message is None:
        return None
    show()  # usage, the message and close matches, on stderr
    code = int(getattr(error, "exit_code", BAD_REQUEST))
    if as_json:
        _print_error("SettingError", message(), code, sys.stdout)
    return code


def _print_error(name: str, message: str, code: int, stdout: TextIO) -> None:
    print(json.dumps({"error": name, "message": message, "exit_code": code}), file=stdout)


@contextlib.contextmanager
def answering(as_json: bool, debug: bool) -> Iterator[Callable[[str, dict[str, Any]], None]]:
    """Yield a printer of the answer; turn an error into one paragraph and an exit code."""
    stdout = sys.stdout
    try:
        # What a UDF prints must not end up inside the JSON.
        with contextlib.redirect_stdout(sys.stderr) if as_json else contextlib.nullcontext():
            yield lambda text, facts: print(
                json.dumps(facts, default=str) if as_json else text, file=stdout
            )
    except typer.Exit:
        raise
    except (Exception, KeyboardInterrupt) as given:
        if isinstance(given, BrokenPipeError) and reader_gone(stdout):  # as behind `| head`
            silence(stdout)
            raise typer.Exit(OK) from None
        error = _explained(given)
        code = next((c for kind, c in _CODES if isinstance(error, kind)), OPERATOR)
        message = _message(error)
        if debug:
            traceback.print_exc()
        print(f"geneva: {message}", file=sys.stderr)
        if as_json:
            _print_error(type(error).__name__, message, code, stdout)
        raise typer.Exit(code) from error


def _explained(error: BaseException) -> BaseException:
    """Return an error that names the missing package, if one is missing."""
    missing = missing_extra(error) if isinstance(error, ModuleNotFoundError) else None
    return missing or error


def _message(error: BaseException) -> str:
    if isinstance(error, GenevaError):
        return " ".join(str(error).split())
    if isinstance(error, KeyboardInterrupt):
        return str(error) or "interrupted; the same command continues where it stopped"
    return (
        f"unexpected {type(error).__name__}: {' '.join(str(error).split())} "
        "(--debug shows where; finished work is kept)"
    )


def result_text(result: BackfillResult) -> str:
    """Return a result and the first of its failures."""
    failures = result.failures.slice(0, _FAILURES_SHOWN).to_pylist()
    lines = [
        f"  failed: fragment {f['fragment']} row {f['row']}: {f['error']}: {f['message']}"
        for f in failures
    ]
    more = result.rows_failed - len(failures)
    if failures and more > 0:
        lines.append(f"  and {more:,} more; --json lists them")
    return "\n".join([str(result), *lines])


def result_facts(result: BackfillResult) -> dict[str, Any]:
    """Return all of a result; the failures as a list of rows."""
    names = [n for n in result.__dataclass_fields__ if n != "recorded_failures"]
    facts = {n: getattr(result, n) for n in names}
    windows = [asdict(w) for w in result.windows]
    return facts | {"windows": windows, "failures": result.failures.to_pylist()}


def coverage_text(counted: Coverage, fragments: bool) -> str:
    """Return one line, and if wanted one more per fragment."""
    if not fragments:
        return str(counted)
    names = counted.table.column_names
    lines = ["  ".join(f"{n:>10}" for n in names)]
    lines += ["  ".join(f"{row[n]:>10,}" for n in names) for row in counted.table.to_pylist()]
    return "\n".join([str(counted), *lines])


def column_facts(name: str, data_type: str, binding: Binding) -> dict[str, Any]:
    """Return the facts of a column's binding."""
    return {"name": name, "type": data_type} | asdict(binding)


def columns_text(bound: Sequence[dict[str, Any]]) -> str:
    """Return computed columns as aligned text."""
    if not bound:
        return "no computed columns"
    head = ("column", "type", "udf", "inputs", "digest", "python")
    rows = [
        (c["name"], c["type"], c["udf"], ", ".join(c["inputs"]), c["digest"][:12], c["python"])
        for c in bound
    ]
    widths = [max(len(str(r[k])) for r in [head, *rows]) for k in range(len(head))]
    return "\n".join(
        "  ".join(f"{v:{w}}" for v, w in zip(r, widths, strict=True)).rstrip()
        for r in [head, *rows]
    )
