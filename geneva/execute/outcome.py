"""Run one task on an applier and say how it ended, as a value that travels."""

from __future__ import annotations

import pickle
import traceback
from dataclasses import replace

from geneva.errors import TableChangedError
from geneva.execute.applier import TaskCancelledError, TaskRowError
from geneva.execute.follow import SharedApplier
from geneva.execute.memory import peak_bytes
from geneva.types import Task, TaskEvent, TaskFailed, TaskLost, TaskStopped


def outcome(applier: SharedApplier, task: Task) -> TaskEvent:
    """Carry out a task; whatever it raises becomes an event."""
    try:
        return replace(applier.run(task), peak_bytes=peak_bytes())
    except TaskCancelledError:
        return TaskStopped(task)
    except TaskRowError as error:
        text = str(error.__cause__)
        return TaskFailed(task, "udf", text, error.failure, cause=_portable(error.__cause__))
    except TableChangedError as error:
        return TaskFailed(task, "table", str(error), cause=_portable(error))
    except FileNotFoundError as error:
        return TaskFailed(task, "table", str(error), cause=_portable(error))
    except MemoryError as error:
        # As good as a death: tried again with the batch halved, not merely once more.
        return TaskLost(task, f"out of memory: {error}", started=True)
    except SystemExit as error:
        return TaskLost(task, f"the UDF called sys.exit({error.code})", started=True)
    except Exception as error:  # the event carries it to the driver
        text = f"{type(error).__name__}: {error}"
        return TaskFailed(task, "storage", text, None, traceback.format_exc(), _portable(error))
    except BaseException as error:
        # pyo3's PanicException (a bug in Lance or DataFusion) is not an Exception.
        if type(error).__name__ != "PanicException":
            raise
        return TaskFailed(task, "storage", f"panic: {error}", None, traceback.format_exc())


def _portable(error: BaseException | None) -> BaseException | None:
    """Return an exception if it survives pickling, so that tracebacks can chain to it."""
    try:
        pickle.loads(pickle.dumps(error))
    except Exception:
        return None
    return error
