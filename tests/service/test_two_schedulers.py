"""Several schedulers over one store: no cap is exceeded, nothing is claimed twice."""

from __future__ import annotations

import pytest

from geneva.jobs.page import Wish
from geneva.jobs.store.store import Store
from geneva.model.types import JobState
from tests.support.claimers import claim_at_once, fill


def test_two_schedulers_do_not_exceed_a_cap(jobs: Store, jobs_url: str):
    fill(jobs, 60)
    jobs.set_pool("", 3)
    found = claim_at_once(jobs_url, 2, 2)
    assert [error for *_, error in found if error] == []
    assert sum(claimed for claimed, *_ in found) == 60
    assert max(most for _, most, _ in found) <= 3
    assert jobs.counts()[0] == {JobState.SUCCEEDED: 60}


@pytest.mark.crash
@pytest.mark.timeout(1200)
def test_eight_schedulers_claim_ten_thousand_jobs_without_a_lock_error(jobs: Store, jobs_url: str):
    fill(jobs, 10_000)
    found = claim_at_once(jobs_url, 8, 25)
    assert [error for *_, error in found if error] == []
    assert sum(claimed for claimed, *_ in found) == 10_000
    lists = jobs
    assert lists.counts()[0] == {JobState.SUCCEEDED: 10_000}
    assert {j.epoch for j in lists.jobs(Wish(limit=1000)).items} == {1}
