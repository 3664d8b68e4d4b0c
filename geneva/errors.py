"""Every exception that Geneva raises, branched by the caller's next step.

::

    GenevaError
    ├── RequestError               fix the request; nothing was started
    │   ├── TableError             no such table, or one that Geneva cannot work on
    │   ├── ColumnError            no such column, not computed, or a cycle
    │   ├── WhereError             the filter does not parse, or is not a stable boolean
    │   ├── FlowError              a flow's description is wrong, or its parts do not fit
    │   ├── QueryError             a search of jobs does not parse, or asks for what they lack
    │   ├── SettingError           an argument has a value that makes no sense
    │   ├── UdfError               the UDF cannot be declared, pickled or loaded
    │   ├── NotServedError         the service was not started for that database
    │   ├── NoSuchJobError         no such run, job or pool in the store
    │   └── JobStateError          the job's state does not allow it
    ├── TableChangedError          the table changed under the job; call again to plan anew
    │   ├── VersionGoneError       somebody cleaned up a version that was still read
    │   └── SupersededError        the column was bound to another UDF meanwhile
    ├── RetryableError             a passing fault; the same call continues where this one stopped
    │   ├── ConflictError          other writers won every attempt to commit
    │   ├── StorageError           reading or writing failed
    │   ├── ServiceError           the service or its database does not answer
    │   └── LeaseLostError         the scheduler gave this driver up; another one goes on
    ├── OperatorError              somebody must mend the cluster or the files
    │   ├── ClusterError           Ray does not start, or cannot be reached
    │   ├── ResourceError          no node can hold an applier, ever or for long
    │   ├── MissingExtraError      a package is not installed; the message says what to install
    │   ├── SharedPathError        the workers do not see the driver's directory
    │   └── CorruptFileError       a file is not what its name or checksum says
    └── JobError                   the backfill ended before it was complete
        ├── UdfFailedError         the UDF raised, or returned something unusable
        ├── UdfTimeoutError        one call of the UDF did not return in time
        ├── TooManyFailuresError   more rows failed than ``max_failures`` allows
        ├── WorkerDiedError        the same rows killed several workers
        ├── JobCancelledError      cancelled, or interrupted from the keyboard
        └── JobTimeoutError        the job's ``timeout`` ran out
"""

from __future__ import annotations

import difflib
from collections.abc import Iterable


def did_you_mean(written: str, known: Iterable[str]) -> str:
    """Return a sentence that suggests the known name most like the written one, case aside.

    It begins with a space, to follow a message; it is empty if no name is like it.
    """
    names = {name.casefold(): name for name in known}
    close = difflib.get_close_matches(written.casefold(), names, 1)
    return f" Did you mean {names[close[0]]!r}?" if close else ""


class GenevaError(Exception):
    """Base of every exception that Geneva raises."""


class RequestError(GenevaError):
    """The request cannot be carried out as it stands; nothing was started."""


class TableError(RequestError):
    """The table does not exist, or is not one that Geneva can work on."""


class ColumnError(RequestError):
    """The column does not exist, is not computed, or depends on itself."""


class WhereError(RequestError):
    """The filter does not parse, is not boolean, or is not deterministic.

    Attributes
    ----------
    span
        Which characters of the filter are wrong, half-open; ``None`` where nobody can tell.
    """

    span: tuple[int, int] | None = None


class FlowError(RequestError):
    """A flow's description is wrong, or its parts do not fit together.

    Attributes
    ----------
    path
        Where in the description, such as ``operations[2].params.dt``; empty for all of it.
    line
        The line of the file, where it was read from one.
    """

    def __init__(self, message: str, path: str = "", line: int | None = None) -> None:
        where = f"line {line}, {path}: " if line and path else f"{path}: " if path else ""
        super().__init__(where + message)
        self.message, self.path, self.line = message, path, line

    def at(self, path: str, line: int | None = None) -> FlowError:
        """Return the same error, told of a place."""
        return FlowError(self.message, path, line)


class QueryError(RequestError):
    """A search of jobs does not parse, or asks a field for something that it has not.

    Attributes
    ----------
    span
        Which characters of the query are wrong, half-open; ``None`` where it is all of it.
    """

    def __init__(self, message: str, span: tuple[int, int] | None = None) -> None:
        super().__init__(message)
        self.span = span


class SettingError(RequestError):
    """An argument has a value that makes no sense."""


class UdfError(RequestError):
    """The UDF cannot be declared, pickled or loaded."""


class NotServedError(RequestError):
    """The service was not started for the database that a request names."""


class NoSuchJobError(RequestError):
    """There is no such run, job or pool."""


class JobStateError(RequestError):
    """The job is in a state in which this cannot be done."""


class TableChangedError(GenevaError):
    """The table changed in a way that makes the job's work void; plan again."""


class VersionGoneError(TableChangedError):
    """Somebody cleaned up a version of the table, or files of one, that was still read."""


class SupersededError(TableChangedError):
    """The column was bound to another UDF while the job ran."""


class RetryableError(GenevaError):
    """A passing fault; the same call continues where this one stopped."""


class ConflictError(RetryableError):
    """Other writers won every attempt to commit."""


class StorageError(RetryableError):
    """Reading or writing the table's files failed."""


class ServiceError(RetryableError):
    """The service, or the database of jobs, does not answer."""


class LeaseLostError(RetryableError):
    """The scheduler gave this driver up for dead; another one goes on with the job."""


class OperatorError(GenevaError):
    """Somebody must mend the cluster or the files before this can work."""


class ClusterError(OperatorError):
    """Ray does not start, or cannot be reached."""


class ResourceError(OperatorError):
    """No node of the cluster can hold an applier: none ever will, or others hold its resources."""


class MissingExtraError(OperatorError):
    """A package of an optional part is not installed."""


class SharedPathError(OperatorError):
    """The workers do not see the directory that the driver writes to."""


class CorruptFileError(OperatorError):
    """A file contradicts its name or its checksum."""


class JobError(GenevaError):
    """The backfill ended before it was complete; finished work is kept."""


class UdfTimeoutError(JobError, TimeoutError):
    """One call of a UDF did not return within its ``timeout``; rules can name it."""


class UdfFailedError(JobError):
    """The UDF raised, or returned something that the column cannot hold."""


class TooManyFailuresError(JobError):
    """More rows failed than ``max_failures`` allows."""


class WorkerDiedError(JobError):
    """The same rows killed several workers in a row."""


class JobCancelledError(JobError):
    """The job was cancelled, or interrupted from the keyboard."""


class JobTimeoutError(JobError):
    """The job's ``timeout`` ran out."""
