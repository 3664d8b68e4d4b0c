"""Who still needs which checkpoint log: one may end the work on several fragments."""

from __future__ import annotations

from collections.abc import Iterable

from geneva.storage.objects import Objects, each


class LogUses:
    """The logs that a job knows of, by the fragments whose work they hold."""

    def __init__(self, objects: Objects) -> None:
        self._objects = objects
        self._needed: dict[str, set[int]] = {}

    def note(self, fragment_id: int, logs: Iterable[str]) -> None:
        """Keep some logs until a fragment needs them no more."""
        for log in logs:
            self._needed.setdefault(log, set()).add(fragment_id)

    def release(self, *done: tuple[int, Iterable[str]]) -> None:
        """Remove those logs of some fragments that no other fragment needs."""
        unused = [log for i, logs in done for log in logs if not self._others(log, i)]
        each(self._objects.delete, list(dict.fromkeys(unused)), self._objects.at_once)

    def _others(self, log: str, fragment_id: int) -> set[int]:
        left = self._needed.pop(log, set()) - {fragment_id}
        if left:
            self._needed[log] = left
        return left
