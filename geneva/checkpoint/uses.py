"""Who still needs which checkpoint log: one may end the work on several fragments."""

from __future__ import annotations

from collections.abc import Iterable, Mapping

from geneva.checkpoint.key import is_shared
from geneva.storage.objects import Objects, each

_NO_FRAGMENT = -1  # of this job: nobody releases its logs


class LogUses:
    """The logs that a job knows of, by the fragments whose work they hold."""

    def __init__(self, objects: Objects) -> None:
        self._objects = objects
        self._needed: dict[str, set[int]] = {}

    def note(self, fragment_id: int, logs: Iterable[str]) -> None:
        """Keep some logs until a fragment needs them no more."""
        for log in logs:
            self._needed.setdefault(log, set()).add(fragment_id)

    def note_work(
        self,
        logs: Mapping[str, Iterable[str]],
        planned: Mapping[str, int],
        *,
        keep_others: bool,
    ) -> None:
        """Keep the logs of planned work, given its fragments by key.

        Parameters
        ----------
        keep_others
            Whether those that end other work as well are never removed.
        """
        for key, paths in logs.items():
            if key in planned:
                self.note(planned[key], paths)
            elif keep_others:
                self.note(_NO_FRAGMENT, filter(is_shared, paths))

    def release(self, *done: tuple[int, Iterable[str]]) -> None:
        """Remove those logs of some fragments that no other fragment needs."""
        unused = [log for i, logs in done for log in logs if not self._others(log, i)]
        each(self._objects.delete, list(dict.fromkeys(unused)), self._objects.at_once)

    def _others(self, log: str, fragment_id: int) -> set[int]:
        left = self._needed.pop(log, set()) - {fragment_id}
        if left:
            self._needed[log] = left
        return left
