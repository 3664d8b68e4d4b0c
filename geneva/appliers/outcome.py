"""Say how a task that raised ended, as a value that travels."""

from __future__ import annotations

import pickle
import traceback

from geneva.errors import TableChangedError
from geneva.model.types import Failure, Task, TaskEvent, TaskFailed, TaskLost, TaskStopped
from geneva.udf import BadResult


class TaskCancelledError(Exception):
    """The task stopped at a batch boundary because somebody asked."""


class TaskRowError(Exception):
    """The UDF failed on a row of the task; ``__cause__`` is the `RowFailed`."""

    def __init__(self, failure: Failure) -> None:
        super().__init__(failure)
        self.failure = failure


def event_of(task: Task, error: BaseException) -> TaskEvent:
    """Return the event that an exception of a task becomes, whatever it is."""
    text = f"{type(error).__name__}: {error}"
    match error:
        case TaskCancelledError():
            return TaskStopped(task)
        case TaskRowError():
            cause, failure = error.__cause__, error.failure
            # The driver says which row it was, by its number in the fragment and not in the batch.
            text = (
                str(cause)
                if isinstance(cause, BadResult)
                else f"{failure.error}: {failure.message}"
            )
            return TaskFailed(task, "udf", text, failure, cause=_portable(cause))
        case BadResult():
            return TaskFailed(task, "udf", str(error), cause=_portable(error))
        case TableChangedError() | FileNotFoundError():
            return TaskFailed(task, "table", str(error), cause=_portable(error))
        case MemoryError():
            # As good as a death: tried again with the batch halved, not merely once more.
            return TaskLost(task, f"out of memory: {error}", started=True)
        case SystemExit():
            return TaskLost(task, f"the UDF called sys.exit({error.code})", started=True)
    # The event carries it to the driver. pyo3's PanicException (a bug in Lance or DataFusion) is no
    # Exception; neither is what a UDF may raise that ends threads or loops.
    if type(error).__name__ == "PanicException":
        text = f"panic: {error}"
    trace = "".join(traceback.format_exception(error))
    return TaskFailed(task, "storage", text, None, trace, _portable(error))


def died(event: TaskLost, column: str) -> str:
    """Return the message of a job that ends because a task lost too many workers."""
    task = event.task
    workers = f"{task.attempt + 1} workers died one after the other ({event.reason})"
    if not event.started:
        workers = f"nodes went away again and again, the last one ({event.reason})"
    return (
        f"{workers} while computing {column!r}, rows {task.start} to {task.stop} of fragment "
        f"{task.fragment_id}; the UDF may crash or run out of memory there: on_error='null' skips "
        "the rows that do it"
    )


def _portable(error: BaseException | None) -> BaseException | None:
    """Return an exception if it survives pickling, so that tracebacks can chain to it."""
    try:
        pickle.loads(pickle.dumps(error))
    except Exception:
        return None
    return error
