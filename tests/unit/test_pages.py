"""Pages without a server: how things read and look, and the pieces that are pure."""

from __future__ import annotations

import itertools
import re
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest

from geneva.jobs.records import TaskState
from geneva.model.types import JobState
from geneva.pages import texts
from geneva.pages.job_page import consecutive, encoded
from geneva.pages.render import STATIC
from geneva.pages.texts import look_of
from geneva.pages.timeline import RANGES, TimeAxis

NOON = datetime(2026, 3, 1, 12, tzinfo=UTC)


@pytest.mark.parametrize(
    ("seconds", "text"),
    [
        (None, texts.NOTHING),
        (0.04, "0.0 s"),
        (9.94, "9.9 s"),
        (9.96, "10 s"),
        (59.4, "59 s"),
        (59.6, "1m 0s"),
        (200, "3m 20s"),
        (7325, "2h 2m"),
        (90_000, "1d 1h"),
    ],
)
def test_duration(seconds: float | None, text: str):
    assert texts.duration(seconds) == text


@pytest.mark.parametrize(
    ("number", "text"),
    [(None, texts.NOTHING), (0, "0"), (950, "950"), (1200, "1.2k"), (34_000_000, "34M")],
)
def test_short_number(number: float | None, text: str):
    assert texts.short(number) == text


@pytest.mark.parametrize(
    ("part", "whole", "text"),
    [
        (0, 9, "0%"),
        (1, 1000, "0.1%"),
        (999_999, 1_000_000, "99.9%"),
        (5, 5, "100%"),
        (0, 0, texts.NOTHING),
    ],
)
def test_share_that_is_not_all_is_never_shown_as_all(part: int, whole: int, text: str):
    assert texts.percent(part, whole) == text


@pytest.mark.parametrize("states", [JobState, TaskState])
def test_no_two_states_look_the_same(states: type[JobState] | type[TaskState]):
    symbols = (STATIC / "icons.svg").read_text()
    looks = [look_of(state) for state in states]
    assert len({look.label for look in looks}) == len(looks)
    assert [look for look in looks if f'id="{look.icon}"' not in symbols] == []


def test_every_icon_exists():
    pages = "".join(p.read_text() for p in (STATIC.parent / "templates").glob("*.html"))
    named = set(re.findall(r'icon\("([a-z-]+)"\)', pages))
    symbols = set(re.findall(r'<symbol id="([a-z-]+)"', (STATIC / "icons.svg").read_text()))
    assert named
    assert named - symbols == set()


def test_payload_of_the_grid_is_small_and_loses_nothing():
    assert encoded([1, 1, 1, 0, 2, 2]) == [(1, 3), (0, 1), (2, 2)]
    assert consecutive([0, 1, 2, 7, 9, 10]) == [(0, 3), (7, 1), (9, 2)]
    assert (encoded([]), consecutive([])) == ([], [])
    assert consecutive(range(10_000)) == [(0, 10_000)]


@pytest.mark.parametrize("reach", RANGES.values(), ids=RANGES)
def test_ticks_are_few_in_order_and_apart(reach: timedelta):
    axis = TimeAxis(NOON - reach, NOON)
    ticks = axis.ticks()
    assert 2 <= len(ticks) <= 9
    assert len({name for _, name in ticks}) == len(ticks)
    steps = [b - a for (a, _), (b, _) in itertools.pairwise(ticks)]
    assert min(steps) == pytest.approx(max(steps), abs=0.01)
    assert all(0 <= at <= 100 for at, _ in ticks)


def test_moment_outside_of_the_axis_is_at_its_edge():
    axis = TimeAxis(NOON - timedelta(hours=1), NOON)
    assert axis.place(NOON - timedelta(hours=2)) == 0
    assert axis.place(NOON - timedelta(minutes=30)) == 50
    assert axis.place(NOON + timedelta(hours=2)) == 100


# ------------------------------------------------------------------------------- contrast (WCAG)

_TONES = ("grey", "blue", "green", "amber", "orange", "red", "violet")
_GROUNDS = ("ground", "surface", "sunken", "hover")
_READ = [
    *((text, ground) for text in ("text", "text-2", "text-3") for ground in _GROUNDS),
    *((tone, ground) for tone in _TONES for ground in (f"{tone}-tint", "surface")),
    ("accent", "surface"),
]


def tokens() -> dict[str, tuple[str, str]]:
    """Return each colour of the style sheet as (light, dark)."""
    style = (STATIC / "geneva.css").read_text()
    found = re.findall(r"--([a-z0-9-]+): light-dark\((#\w{6}), (#\w{6})\)", style)
    return {name: (light, dark) for name, light, dark in found}


def luminance(colour: str) -> float:
    parts = [int(colour[i : i + 2], 16) / 255 for i in (1, 3, 5)]
    linear = [p / 12.92 if p <= 0.04045 else ((p + 0.055) / 1.055) ** 2.4 for p in parts]
    return 0.2126 * linear[0] + 0.7152 * linear[1] + 0.0722 * linear[2]


def contrast(one: str, other: str) -> float:
    low, high = sorted((luminance(one), luminance(other)))
    return (high + 0.05) / (low + 0.05)


@pytest.mark.parametrize("theme", [0, 1], ids=["light", "dark"])
def test_text_that_is_hard_to_read(theme: int):
    colours = tokens()
    measured = {
        f"{text} on {ground}": contrast(colours[text][theme], colours[ground][theme])
        for text, ground in _READ
    }
    assert {pair: round(c, 2) for pair, c in measured.items() if c < 4.5} == {}
    assert contrast("#ffffff", colours["accent-solid"][theme]) >= 4.5
    edge = colours["line-strong"][theme]  # of a field: what one has to see to find it
    assert contrast(edge, colours["surface"][theme]) >= 3


def test_vendored_file_without_its_licence_and_version():
    folder: Path = STATIC / "vendor"
    told = (folder / "README.md").read_text()
    for path in folder.iterdir():
        if path.suffix not in {".md", ".txt"}:
            name = re.sub(r"-\d.*", "", path.name)
            assert (folder / f"{name}.LICENSE.txt").exists()
            assert f"`{path.name}`" in told
