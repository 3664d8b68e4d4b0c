"""How states look: a colour, a shape and a word each, so that none is told by colour alone."""

from __future__ import annotations

from dataclasses import dataclass

from geneva.jobs.records import TaskState
from geneva.model.types import JobState


@dataclass(frozen=True, slots=True)
class StateLook:
    """``tone`` is a class of the style sheet, ``icon`` the id of a symbol in icons.svg."""

    tone: str
    icon: str
    label: str


_LOOKS = {
    "PENDING": ("grey", "s-wait"),
    "QUEUED": ("grey", "s-wait"),
    "STARTING": ("blue", "s-start"),
    "RUNNING": ("blue", "s-run"),
    "PAUSING": ("amber", "s-pause"),
    "PAUSED": ("amber", "s-pause"),
    "CANCELLING": ("grey", "s-cancel"),
    "RECOVERING": ("violet", "s-recover"),
    "SUCCEEDED": ("green", "s-done"),
    "PARTIAL": ("orange", "s-part"),
    "FAILED": ("red", "s-fail"),
    "CANCELLED": ("grey", "s-cancel"),
    "SKIPPED": ("grey", "s-skip"),
    "UPSTREAM_FAILED": ("red", "s-cancel"),
    "PLANNED": ("grey", "s-wait"),
    "DONE": ("green", "s-start"),
    "COMMITTED": ("green", "s-done"),
    "STOPPED": ("amber", "s-pause"),
}


def look_of(state: JobState | TaskState | str) -> StateLook:
    """Return how a state of a run, a job or a fragment is shown."""
    name = str(state)
    tone, icon = _LOOKS.get(name, ("grey", "s-skip"))
    return StateLook(tone, icon, name.capitalize().replace("_", " "))
