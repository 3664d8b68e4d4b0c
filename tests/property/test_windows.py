import itertools
import json
import re
from datetime import UTC, date, datetime, timedelta
from zoneinfo import ZoneInfo

import pytest
from hypothesis import assume, given
from hypothesis import strategies as st

from geneva.errors import SettingError
from geneva.model.steps import EPOCH, from_us, local_to_us, to_us
from geneva.model.windows import MOST_WINDOWS, Axis, Known, Windows, resolve, settled

ZONES = [
    "UTC", "Europe/Berlin", "America/Sao_Paulo", "America/New_York", "Asia/Kathmandu",
    "Australia/Lord_Howe", "Pacific/Apia", "Pacific/Kiritimati", "Africa/Cairo", "America/St_Johns",
]  # fmt: skip
NOW = datetime(2026, 3, 1, 12, tzinfo=UTC)
UNITS = {"s": 1, "ms": 10**3, "us": 10**6, "ns": 10**9}

days = st.dates(date(1970, 1, 2), date(2100, 1, 1))
walls = st.datetimes(datetime(1970, 1, 2), datetime(2100, 1, 1))
calendar_steps = st.builds(
    lambda n, unit: f"{n}{unit}", st.integers(1, 40), st.sampled_from(["d", "w", "mo", "y"])
)
exact_steps = st.builds(
    lambda n, unit: f"{n}{unit}", st.integers(1, 90), st.sampled_from(["h", "m", "s"])
)


def cut(asked, axis, known=None):
    try:
        return resolve(asked, axis, known or Known(NOW))
    except SettingError as error:
        assume(f"at most {MOST_WINDOWS}" not in str(error))
        raise


def assert_neighbours(windows):
    """Half-open neighbours without a gap: each value of the range is in exactly one."""
    assert all(w.lower <= w.upper for w in windows)
    assert all(a.upper == b.lower for a, b in itertools.pairwise(windows))
    assert len({w.key for w in windows}) == len(windows)


@given(
    st.sampled_from(ZONES), walls, st.integers(1, 4000), calendar_steps, st.sampled_from([*UNITS])
)
def test_calendar_windows_cover_the_range_exactly_once(zone, start, length, step, unit):
    end = start + timedelta(days=length)
    windows = cut(
        Windows("ts", start=start, end=end, step=step, tz=zone), Axis("timestamp", unit=unit)
    )
    assert_neighbours(windows)
    first, last = (local_to_us(b, ZoneInfo(zone)) for b in (start, end))
    assert windows[0].lower == -(-first * UNITS[unit] // 10**6)
    assert windows[-1].upper == -(-last * UNITS[unit] // 10**6)


@given(st.sampled_from(ZONES), walls, st.integers(1, 5 * 86_400), exact_steps)
def test_windows_of_a_fixed_step_all_last_as_long_but_the_last(zone, start, seconds, step):
    first = start.replace(tzinfo=ZoneInfo(zone))
    end = from_us(to_us(first) + seconds * 10**6, UTC)
    windows = cut(Windows("ts", start=first, end=end, step=step, tz=zone), Axis("timestamp"))
    assert_neighbours(windows)
    lengths = [w.upper - w.lower for w in windows]
    assert len({*lengths[:-1]}) <= 1
    assert lengths[-1] <= lengths[0]


@given(st.sampled_from(ZONES), days, st.integers(1, 400))
def test_day_begins_at_the_first_moment_of_its_date(zone, start, length):
    tz = ZoneInfo(zone)
    windows = cut(
        Windows("ts", start=start, end=start + timedelta(days=length), step="1d", tz=zone),
        Axis("timestamp"),
    )
    for window in windows:
        before = from_us(window.lower - 1, tz)
        assert from_us(window.lower, tz).date() > before.date()
        assert from_us(window.upper - 1, tz).date() == from_us(window.lower, tz).date()


@given(
    days,
    st.integers(1, 4000),
    st.builds(lambda n, u: f"{n}{u}", st.integers(1, 9), st.sampled_from(["d", "w", "mo", "y"])),
)
def test_dates_are_cut_on_the_calendar_wherever_one_lives(start, length, step):
    windows = cut(
        Windows("d", start=start, end=start + timedelta(days=length), step=step), Axis("date")
    )
    assert_neighbours(windows)
    assert windows[0].lower == (start - EPOCH.date()).days
    assert windows[-1].upper == windows[0].lower + length


@given(st.integers(-(10**6), 10**6), st.integers(1, 10**6), st.integers(1, 10**5))
def test_integers_are_cut_into_equal_windows(start, length, step):
    assume(length // step < MOST_WINDOWS)
    windows = cut(Windows("id", start=start, end=start + length, step=step), Axis("integer"))
    assert_neighbours(windows)
    assert (windows[0].lower, windows[-1].upper) == (start, start + length)
    assert {w.upper - w.lower for w in windows[:-1]} <= {step}


@given(
    st.sampled_from(ZONES),
    st.integers(0, 3 * 10**15),
    st.lists(st.integers(0, 10**14), min_size=1, max_size=20),  # three years: 5,000 windows at most
    st.sampled_from(["1d", "1w", "1mo", "1y", "6h", None]),
)
def test_range_without_bounds_holds_every_value(zone, least, offsets, step):
    values = [least + offset for offset in offsets]
    known = Known(NOW, min(values), max(values))
    windows = cut(Windows("ts", step=step, tz=zone), Axis("timestamp"), known)
    assert_neighbours(windows)
    for value in values:
        assert sum(w.lower <= value < w.upper for w in windows) == 1


@given(st.sampled_from(ZONES), days, st.integers(1, 60))
def test_backward_is_the_same_windows_the_newest_first(zone, start, length):
    def windows(order):
        end = start + timedelta(days=length)
        return cut(
            Windows("ts", start=start, end=end, step="1d", tz=zone, order=order), Axis("timestamp")
        )

    assert windows("backward") == windows("forward")[::-1]


@given(st.sampled_from(ZONES), walls)
def test_wall_time_is_the_first_moment_at_which_the_clock_shows_it(zone, wall):
    tz = ZoneInfo(zone)
    us = local_to_us(wall, tz)
    shown = from_us(us, tz).replace(tzinfo=None)
    assert shown >= wall
    assert shown == wall or from_us(us - 1, tz).replace(tzinfo=None) < wall


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"step": 0}, "step must be positive"),
        ({"step": -1}, "step must be positive"),
        ({"step": "0d"}, "step must be positive"),
        ({"step": "5 parsecs"}, "is no step"),
        ({"order": "up"}, "the choices are 'forward', 'backward'"),
        ({"concurrency": 0}, "at least 1"),
        ({"concurrency": True}, "no whole number"),
        ({"values": [1, 1]}, "twice"),
        ({"values": [1, None]}, "null is no value"),
        ({"values": []}, "at least one value"),
        ({"values": [1], "start": 3}, "takes no start"),
        ({"nulls": "only", "end": 3}, "takes no end"),
        ({"last": "7d", "start": 3}, "one or the other"),
        ({"tz": "Mars/Olympus"}, "unknown time zone"),
    ],
)
def test_argument_that_makes_no_sense_is_refused_at_once(arguments, message):
    with pytest.raises(SettingError, match=message):
        Windows("ts", **arguments)


@pytest.mark.parametrize(
    ("arguments", "axis", "message"),
    [
        ({"start": "2021-01-01", "end": "2021-01-01"}, Axis("timestamp"), "start must be before"),
        ({"start": "2021-01-02", "end": "2021-01-01"}, Axis("date"), "start must be before"),
        ({"start": 3, "end": 9}, Axis("timestamp"), "no date or moment"),
        ({"start": "2021-01-01", "end": 9}, Axis("integer"), "need unit="),
        ({"start": "2021-01-01", "end": "2021-02-01", "step": "6h"}, Axis("date"), "no whole day"),
        ({"tz": "UTC"}, Axis("date"), "compared as such"),
        ({"last": "7d"}, Axis("integer"), "needs unit="),
        ({"start": "a", "end": "b"}, Axis("other", type_name="text"), "take values="),
        ({"start": 0, "end": 10**9, "step": 1}, Axis("integer"), "1000000000 windows"),
    ],
)
def test_bound_that_does_not_fit_the_column_is_refused(arguments, axis, message):
    with pytest.raises(SettingError, match=message):
        resolve(Windows("c", **arguments), axis, Known(NOW, 0, 10))


def test_last_days_are_whole_and_today_so_far():
    windows = resolve(Windows("ts", last="7d", step="1d"), Axis("timestamp"), Known(NOW))
    assert [w.start.date().isoformat() for w in windows] == [
        f"2026-02-{day}" for day in range(22, 29)
    ] + ["2026-03-01"]
    assert windows[-1].end == NOW


def test_column_without_values_has_no_windows_where_a_bound_was_left_out():
    assert resolve(Windows("ts", step="1d"), Axis("timestamp"), Known(NOW)) == ()
    bounded = Windows("ts", start="2021-05-01", end="2021-05-03", step="1d")
    assert len(resolve(bounded, Axis("timestamp"), Known(NOW))) == 2


def test_nulls_come_after_all_others_in_either_order():
    for order in ("forward", "backward"):
        asked = Windows("id", start=0, end=10, step=5, nulls="last", order=order)
        assert [w.is_nulls for w in resolve(asked, Axis("integer"), Known(NOW))] == [
            False,
            False,
            True,
        ]
    (only,) = resolve(Windows("id", nulls="only"), Axis("integer"), Known(NOW))
    assert only.is_nulls


def test_more_distinct_values_than_is_sane_are_refused_with_the_number():
    known = Known(NOW, distinct=[str(i) for i in range(10_001)])
    with pytest.raises(SettingError, match="10001 distinct values"):
        resolve(Windows("customer", values="all"), Axis("other"), known)


# ------------------------------------------------------------------------------- configuration


@given(
    start=st.sampled_from([None, "2021-05-01", date(2021, 5, 1), datetime(2021, 5, 1, 3)]),
    step=st.sampled_from([None, 3600, "6h", "1d", timedelta(hours=1.5)]),
    order=st.sampled_from(["forward", "backward"]),
    concurrency=st.integers(1, 9),
    nulls=st.sampled_from(["skip", "last"]),
)
def test_windows_of_a_configuration_are_those_it_was_made_from(
    start, step, order, concurrency, nulls
):
    asked = Windows("ts", start=start, step=step, order=order, concurrency=concurrency, nulls=nulls)
    config = json.loads(json.dumps(asked.config()))
    again = Windows.from_config(config)
    assert again.config() == asked.config()
    axis, known = Axis("timestamp"), Known(datetime(2021, 6, 1, tzinfo=UTC), 0, 10**15)
    if step is None or start is not None:
        assert resolve(again, axis, known) == resolve(asked, axis, known)


@pytest.mark.parametrize(
    ("config", "message"),
    [
        ({"on": "ts", "type": "week"}, "the types are date, datetime, integer, values"),
        ({"on": "ts", "strat": "2021-05-01"}, "Did you mean 'start'?"),
        ({"start": "2021-05-01"}, "named by 'on'"),
        ({"on": "ts", "type": "integer", "start": "2021-05-01"}, "no integer"),
        ({"on": "ts", "type": "date", "start": "2021-05-01T10:00"}, "start"),
        ({"on": "ts", "type": "values"}, "need values"),
        ({"on": "ts", "type": "date", "values": ["a"]}, "take no values"),
        ([1], "no mapping"),
    ],
)
def test_configuration_that_fits_no_windows_is_refused_with_what_would(config, message):
    with pytest.raises(SettingError, match=re.escape(message)):
        Windows.from_config(config)


AXES = {
    "date": Axis("date"),
    **{f"timestamp {u}": Axis("timestamp", unit=u) for u in UNITS},
    "timestamp Berlin": Axis("timestamp", unit="us", zone="Europe/Berlin"),
    "integer": Axis("integer"),
    "epoch": Axis("integer", unit="s"),
}


@given(
    st.sampled_from(list(AXES)),
    st.integers(-(10**4), 10**5),
    st.integers(0, 3_000),
    st.sampled_from(["1d", "2d", "1mo", "1w", "6h", None]),
    st.sampled_from(["start", "end", "last", "none"]),
    st.sampled_from(["forward", "backward"]),
    st.sampled_from(["skip", "last"]),
    st.sampled_from([None, "Australia/Lord_Howe", "America/New_York"]),
)
def test_settled_windows_are_cut_alike_at_any_later_moment(
    name, least, span, step, bound, order, nulls, tz
):
    axis = AXES[name]
    arguments = {"order": order, "nulls": nulls, "step": step}
    if axis.kind == "timestamp":
        arguments["tz"] = tz
        day = 86_400 * UNITS[axis.unit]
    else:
        day = 1 if axis.kind == "date" else 86_400
    if name == "integer":
        arguments["step"] = None if step is None else 1 + span // 7
    elif name == "epoch":
        arguments |= {"unit": "s", "tz": tz}
    if axis.kind == "date" and step == "6h":
        arguments["step"] = None
    if bound == "last":
        assume(name != "integer")
        arguments["last"] = "40d"
    elif bound != "none":
        arguments[bound] = least + span // 3 if name == "integer" else date(1999, 3, 28)
    known = Known(NOW, least * day + 12_345 % day, (least + span) * day + 54_321 % day)
    try:
        asked = Windows("c", **arguments)
        first = resolve(asked, axis, known)
    except SettingError:
        assume(False)
    kept = settled(asked, axis, known)
    later = Known(NOW + timedelta(days=400, hours=5), known.least - 40 * day, known.greatest * 2)
    assume(first and not first[0].is_nulls)
    assert resolve(Windows.from_config(json.loads(json.dumps(kept.config()))), axis, later) == first


def test_keys_take_some_windows_in_their_order():
    asked = Windows("c", start=0, end=50, step=10, order="backward")
    some = Windows("c", start=0, end=50, step=10, order="backward", keys=["0", "30"])
    every = resolve(asked, Axis("integer"), Known(NOW))
    assert [w.key for w in every] == ["40", "30", "20", "10", "0"]
    assert resolve(some, Axis("integer"), Known(NOW)) == (every[1], every[4])


def test_a_key_of_no_window_is_refused_with_the_closest_one():
    asked = Windows("c", start="2021-05-01", end="2021-05-08", step="1d", keys=["2021-05-8"])
    with pytest.raises(SettingError, match=r"no window has the key '2021-05-8'\. Did you mean"):
        resolve(asked, Axis("date"), Known(NOW))
    with pytest.raises(SettingError, match="is no list of at least one key"):
        Windows("c", keys="2021-05-01")
