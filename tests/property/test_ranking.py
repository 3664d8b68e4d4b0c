"""Which job starts: caps hold, nobody who may start is passed over, everybody starts at last."""

from __future__ import annotations

import contextlib
from collections import Counter
from dataclasses import replace

from hypothesis import assume, given
from hypothesis import strategies as st

from geneva.engine.control import Wanted
from geneva.errors import JobStateError
from geneva.jobs.ranking import AGEING_S, Candidate, Caps, choose, rank
from geneva.jobs.states import after_exit, may_follow, observed, run_state, when_asked
from geneva.model.types import JobState

names = st.sampled_from("abc")
columns = st.frozensets(st.tuples(st.just("t"), st.sampled_from("uvwxyz")), min_size=1, max_size=2)
jobs = st.builds(
    Candidate,
    id=st.uuids().map(str),
    run_id=names,
    pool=names,
    priority=st.integers(-3, 3),
    queued_s=st.floats(0, 5000),
    columns=columns,
    fragments=st.none() | st.frozensets(st.integers(0, 3), min_size=1, max_size=2),
)
limits = st.none() | st.integers(0, 4)
caps = st.builds(
    Caps,
    total=limits,
    pools=st.dictionaries(names, st.integers(0, 3)),
    runs=st.dictionaries(names, st.integers(1, 3)),
)


def fits(taken: list[Candidate], caps: Caps) -> bool:
    pools, runs = Counter(c.pool for c in taken), Counter(c.run_id for c in taken)
    filled: dict[tuple[str, str], list[frozenset[int]]] = {}
    for c in taken:
        for column in c.columns:
            filled.setdefault(column, []).append(c.fragments or frozenset(range(4)))
    return (
        (caps.total is None or len(taken) <= caps.total)
        and all(pools[p] <= n for p, n in caps.pools.items())
        and all(runs[r] <= n for r, n in caps.runs.items())
        and all(sum(map(len, f)) == len(frozenset().union(*f)) for f in filled.values())
    )


@given(st.lists(jobs, max_size=25), caps, st.integers(0, 3))
def test_choice_exceeds_no_cap_and_passes_nobody_over(
    queued: list[Candidate], caps: Caps, limit: int
):
    active = list(choose(queued[: len(queued) // 2], [], caps, 5000.0).start)
    rest = [c for c in queued if c not in active]
    choice = choose(rest, active, caps, 6000.0)
    taken = [*active, *choice.start]
    assert fits(taken, caps)
    assert {c.id for c in choice.start} | set(choice.waiting) == {c.id for c in rest}
    for c in rest:
        if c not in choice.start:
            assert not fits([*taken, c], caps), choice.waiting[c.id]
    few = choose(rest, active, caps, 6000.0, limit)
    assert few.start == choice.start[:limit]
    assert {c.id for c in few.start} | set(few.waiting) == {c.id for c in rest}


@given(st.lists(jobs, max_size=20), caps)
def test_order_of_the_rows_decides_nothing(queued: list[Candidate], caps: Caps):
    assert choose(queued, [], caps, 9000.0) == choose(queued[::-1], [], caps, 9000.0)


@given(st.lists(jobs, min_size=2, max_size=20))
def test_higher_level_comes_first(queued: list[Candidate]):
    levels = [c.priority + int((9000.0 - c.queued_s) / AGEING_S) for c in rank(queued, [], 9000.0)]
    assert levels == sorted(levels, reverse=True)


def test_jobs_on_one_column_wait_only_for_those_that_may_touch_the_same_rows():
    here = {"columns": frozenset({("t", "y")})}
    active = job("a", fragments=frozenset({1, 2}), **here)
    apart = job("b", fragments=frozenset({3}), **here)
    beside = job("c", fragments=frozenset({2, 4}), **here)
    everywhere = job("d", **here)
    choice = choose([apart, beside, everywhere], [active], Caps(), 0.0)
    assert choice.start == (apart,)
    said = "waiting: column 'y' is being filled by job a"
    assert choice.waiting == {"c": said, "d": said}


def job(name: str, **more: object) -> Candidate:
    first = Candidate(name, name, "default", 0, 0.0, frozenset({("t", name)}))
    return replace(first, **more)


def test_job_that_waits_long_enough_overtakes_a_stream_of_urgent_ones():
    old = job("old")
    wait_s = 0.0
    while True:
        urgent = [job(f"u{k}", priority=3, queued_s=wait_s) for k in range(3)]
        if choose([old, *urgent], [], Caps(total=1), wait_s).start == (old,):
            break
        wait_s += 60.0
    assert wait_s <= 4 * AGEING_S


def test_run_of_many_jobs_leaves_room_for_a_run_of_one():
    many = [job(f"m{k}", run_id="many", queued_s=float(k)) for k in range(10)]
    one = job("one", queued_s=100.0)
    started = choose([*many, one], [], Caps(total=3), 200.0).start
    assert one in started
    busy = many[:2]
    assert choose([*many[2:], one], busy, Caps(total=3), 200.0).start == (one,)


def test_job_that_a_cap_holds_back_does_not_hold_back_others():
    queued = [job(f"g{k}", pool="gpu", priority=9) for k in range(50)]
    cpu = job("cpu")
    choice = choose([*queued, cpu], [], Caps(pools={"gpu": 0}), 0.0)
    assert choice.start == (cpu,)
    assert choice.waiting["g0"] == "waiting: 0 of 0 slots of pool gpu are taken"


# --------------------------------------------------------------------------------------- states

states = st.sampled_from(JobState)
wishes = st.sampled_from(Wanted)
WITHOUT_PROCESS = {JobState.PENDING, JobState.QUEUED, JobState.PAUSED, JobState.RECOVERING}


@given(states, states)
def test_state_that_ended_never_changes(old: JobState, new: JobState):
    if old.ended:
        assert not may_follow(old, new)


@given(states, wishes, wishes, st.booleans())
def test_wish_leads_to_a_state_that_may_follow(
    state: JobState, before: Wanted, wanted: Wanted, has_process: bool
):
    # All other states have one: that is what test_nothing_is_left_running says.
    assume(has_process or state.ended or state in WITHOUT_PROCESS)
    try:
        after = when_asked(state, before, wanted, has_process=has_process)
    except JobStateError:
        assert state.ended or before is Wanted.CANCEL
        return
    assert after is state or may_follow(state, after)
    if has_process:
        assert after is state


@given(states, states, wishes, st.booleans())
def test_report_never_ends_a_job(state: JobState, engine: JobState, wanted: Wanted, direct: bool):
    after = observed(state, engine, wanted, direct=direct)
    assert after is state or not after.ended


@given(states.filter(lambda s: not s.ended), wishes, st.booleans(), st.booleans())
def test_nothing_is_left_running_without_a_process(
    state: JobState, wanted: Wanted, direct: bool, stopped: bool
):
    after = after_exit(state, wanted, direct=direct, stopped=stopped)
    assert after in {
        JobState.CANCELLED,
        JobState.PAUSED,
        JobState.FAILED,
        JobState.QUEUED,
        JobState.RECOVERING,
    }
    assert not (direct and not after.ended)


_ENGINE = st.sampled_from(
    [s for s in JobState if not s.ended and s not in (JobState.QUEUED, JobState.RECOVERING)]
)


@given(st.lists(st.one_of(wishes, _ENGINE), max_size=8), st.booleans(), st.booleans())
def test_process_that_ends_after_anything_leaves_a_state_that_may_follow(
    steps: list[Wanted | JobState], direct: bool, stopped: bool
):
    """A scheduler that could not bury one job would look at no other."""
    state, wanted = JobState.STARTING, Wanted.RUN
    for step in steps:
        if isinstance(step, JobState):
            if step is JobState.PAUSED and not direct:
                continue  # a pause ends a driver of the service
            reported = observed(state, step, wanted, direct=direct)
            state = reported if may_follow(state, reported) else state
            continue
        with contextlib.suppress(JobStateError):
            assert when_asked(state, wanted, step, has_process=True) is state
            wanted = step
    assert may_follow(state, after_exit(state, wanted, direct=direct, stopped=stopped))
    for end in (JobState.SUCCEEDED, JobState.PARTIAL, JobState.FAILED):
        assert may_follow(state, end)


@given(st.lists(states, min_size=1, max_size=5))
def test_run_ends_with_its_last_job(found: list[JobState]):
    assert run_state(found) in found
    assert run_state(found).ended == all(s.ended for s in found)
