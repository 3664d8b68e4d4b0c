"""One call of `Table.backfill`: its columns one after the other, under one control."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import replace
from typing import Any

from geneva.appliers.executor import Executor
from geneva.backfill import backfill
from geneva.column.unbound import groups_in
from geneva.engine.control import Control
from geneva.engine.plan.force import ForceToken
from geneva.engine.plan.preview import plan
from geneva.engine.plan.report import Plan
from geneva.engine.presence import Presence
from geneva.engine.reporter import Observer
from geneva.engine.request import Request, check, prepare
from geneva.engine.sharing import Sharing, Turn
from geneva.errors import ColumnError, GenevaError, JobCancelledError, TableChangedError
from geneva.model.result import BackfillResult, combined
from geneva.model.types import Options
from geneva.storage.lance import Snapshot, TableStorage
from geneva.storage.objects import storage_errors


def plan_call(
    storage: TableStorage,
    columns: str | Sequence[str],
    options: Options,
    params: dict[str, Any],
) -> Plan:
    """Plan the columns of a call one by one; return the plan of the first that has work."""
    names = groups_in(storage, storage.open(), columns)
    plans = [plan(storage, name, options, params) for name in names]
    return next((p for p in plans if p.to_compute), plans[0])


def check_call(
    storage: TableStorage,
    columns: str | Sequence[str],
    options: Options,
    params: Mapping[str, Any],
) -> tuple[str, ...]:
    """Check a call without loading a UDF; return all columns that it fills."""
    names = groups_in(storage, storage.open(), columns)
    return tuple(c for n in names for c in check(storage, n, options, params).columns)


class Call:
    """One call of backfill, checked and not yet begun.

    Parameters
    ----------
    names
        One column of each group, in dependency order.
    refresh
        Called at the end: versions were made.
    """

    def __init__(
        self,
        storage: TableStorage,
        snapshot: Snapshot,
        names: tuple[str, ...],
        options: Options,
        params: dict[str, Any],
        executor: Executor,
        control: Control,
        refresh: Callable[[], None],
    ) -> None:
        self.storage, self.names, self.control = storage, names, control
        self._options, self._params = options, params
        self._executor, self._refresh = executor, refresh
        self._presence = Presence(storage.objects)
        # All requests are checked before the first row is computed.
        self._requests = [self._request(n, snapshot) for n in names]
        self.fills = tuple(c for r in self._requests for c in r.target.columns)

    def _request(self, name: str, snapshot: Snapshot) -> Request:
        return prepare(self.storage, snapshot, name, self._options, self._params or None)

    def _request_again(self, name: str) -> Request:
        """Check a later column again: it may have been dropped or bound anew meanwhile."""
        try:
            return self.storage.on_latest(lambda latest: self._request(name, latest))
        except ColumnError as error:
            raise TableChangedError(
                f"column {name!r} was changed while the columns before it were computed: {error}"
            ) from error

    def _turns(self) -> Iterator[Turn]:
        """Yield one column after the other; they may follow each other's reads."""
        sharing = Sharing(self.storage, self._presence)
        request, *later = self._requests
        yield sharing.turn(request, later)
        for k, name in enumerate(self.names[1:], 1):
            request = self._request_again(name)
            later = []
            for other in self.names[k + 1 :]:
                with suppress(GenevaError, OSError):  # it says so itself when its turn comes
                    later.append(self._request(other, self.storage.open()))
            yield sharing.turn(request, later)

    def run(self, observe: Observer) -> BackfillResult:
        """Compute one column after the other."""
        results: list[BackfillResult] = []
        try:
            with storage_errors(self.storage.uri):
                for turn in self._turns():
                    results.append(
                        backfill(self.storage, turn, self._executor, self.control, observe)
                    )
        except BaseException as error:
            with suppress(Exception):  # of a table that is gone: it must not hide why the job ended
                self._forget(error)
            with suppress(Exception):
                self._refresh()
            raise
        finally:
            self._presence.end()
        self._refresh()
        result = combined(results)
        if result.state is not self.control.progress.state:  # a column before the last had failures
            self.control.report(replace(self.control.progress, state=result.state))
        return result

    def _forget(self, error: BaseException) -> None:
        """Let forced runs begin anew if a person ended this one; whatever else did, they go on."""
        interrupted = isinstance(error, KeyboardInterrupt)
        cancelled = isinstance(error, JobCancelledError) and self.control.given_up
        for request in self._requests if interrupted or cancelled else ():
            if request.options.force:
                ForceToken(self.storage, request.target, request.where, request.options).end()
