"""Who still needs which checkpoint log: one may end the work on several fragments."""

from __future__ import annotations

from collections.abc import Container, Iterable, Mapping

from geneva.column.checkpoint.key import is_shared
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

    def keep_only(self, fragments: Container[int]) -> None:
        """Forget what fragments needed that are gone; their logs stay."""
        for needed in self._needed.values():
            needed -= {i for i in needed if i != _NO_FRAGMENT and i not in fragments}

    def keep(self, logs: Iterable[str]) -> None:
        """Let this job never remove some logs."""
        for log in logs:
            self.note(_NO_FRAGMENT, [log])

    def release(self, *done: tuple[int, Iterable[str]]) -> list[str]:
        """Remove those logs of some fragments that no other fragment needs; return which."""
        unused = [log for i, logs in done for log in logs if not self._others(log, i)]
        unused = list(dict.fromkeys(unused))
        each(self._objects.delete, unused, self._objects.at_once)
        return unused

    def _others(self, log: str, fragment_id: int) -> set[int]:
        left = self._needed.pop(log, set()) - {fragment_id}
        if left:
            self._needed[log] = left
        return left
