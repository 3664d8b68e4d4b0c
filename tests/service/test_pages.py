"""Pages over a store without a scheduler: what they list, who may press what, what they refuse."""

from __future__ import annotations

import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from fastapi.testclient import TestClient
from sqlalchemy import insert, update

from geneva.engine.control import Wanted
from geneva.jobs.page import RunQuery
from geneva.jobs.records import Submission
from geneva.jobs.store.health import beat
from geneva.jobs.store.models import Run, TaskRow
from geneva.jobs.store.store import Store
from geneva.model.types import JobState
from geneva.pages.site import install
from geneva.service.app import create_app
from geneva.service.logs import DRIVER, JobLog
from geneva.service.service_settings import Settings

HERE = "http://127.0.0.1"
PIECE = {"HX-Request": "true", "HX-Request-Type": "partial"}
OURS = {"Origin": HERE}


def browser_for(jobs: Store, folder: Path, **more: Any) -> TestClient:
    settings = Settings(
        jobs.database.url, folder, db=str(folder / "db"), **{"allow_db": ("/",)} | more
    )
    app = create_app(settings, jobs)
    install(app)
    beat(jobs.database, "a scheduler")
    client = TestClient(app, HERE, raise_server_exceptions=False, follow_redirects=False)
    if settings.operator_token is None:
        client.headers["Authorization"] = f"Bearer {app.state.settings.operator_token}"
        client.get("/", params={"token": app.state.door.code})
    return client


@pytest.fixture
def web(jobs: Store, tmp_path: Path) -> Iterator[TestClient]:
    with browser_for(jobs, tmp_path) as client:
        yield client


@pytest.fixture
def guarded(jobs: Store, tmp_path: Path) -> Iterator[TestClient]:
    with browser_for(jobs, tmp_path, operator_token="op", viewer_token="eye") as client:
        yield client


def submit(jobs: Store, table: str = "t", columns: tuple[str, ...] = ("y",), **more: Any) -> str:
    asked = Submission(db="/db", table=table, columns=columns, **more)
    return jobs.submit(asked, f"/db/{table}", columns).id


def shown(web: TestClient, url: str) -> list[str]:
    """The ids of the runs that a list shows, in order."""
    answer = web.get(url)
    assert answer.status_code == 200, answer.text
    return re.findall(r'<tr id="run-(\w+)"', answer.text)


# ------------------------------------------------------------------------------------ the list


def test_runs_are_found_by_each_filter(web: TestClient, jobs: Store):
    first = submit(jobs, "docs", ("a%b",), name="Nightly", cause="submitted")
    second = submit(jobs, "docs", ("body", "title"), cause="rows arrived")
    third = submit(jobs, "clips", ("body_2",), priority=9)
    jobs.want(third, Wanted.CANCEL)
    every = [third, second, first]
    assert shown(web, "/runs") == every
    assert shown(web, "/runs?table=docs") == [second, first]
    assert shown(web, "/runs?column=body") == [second]
    assert shown(web, "/runs?column=title") == [second]
    assert shown(web, "/runs?column=a%25b") == [first]
    assert shown(web, "/runs?cause=rows+arrived") == [second]
    assert shown(web, "/runs?state=waiting") == [second, first]
    assert shown(web, "/runs?state=cancelled") == [third]
    assert shown(web, "/runs?text=NIGHT") == [first]
    assert shown(web, f"/runs?text={second[:8]}") == [second]
    assert shown(web, "/runs?text=%25") == [first]
    assert shown(web, "/runs?since=2020-01-01&until=2020-12-31") == []
    assert shown(web, "/runs?since=2020-01-01") == every
    assert shown(web, "/runs?sort=created") == every[::-1]
    assert shown(web, "/runs?sort=-priority")[0] == third
    assert shown(web, "/runs?sort=-ended")[0] == third  # those that go on come last


def test_pages_of_the_list_show_each_run_once(jobs: Store):
    ids = {submit(jobs, f"t{i}") for i in range(7)}
    pages = [jobs.counted_runs(RunQuery(limit=3, page=n)) for n in (1, 2, 3)]
    assert [len(p.runs) for p in pages] == [3, 3, 1]
    assert {r.id for p in pages for r in p.runs} == ids
    assert {p.total for p in pages} == {7}


def test_counts_of_the_tabs_do_not_depend_on_the_tab(web: TestClient, jobs: Store):
    submit(jobs, "a")
    jobs.want(submit(jobs, "b"), Wanted.CANCEL)
    for url in ("/runs", "/runs?state=cancelled", "/runs?state=failed"):
        tabs = re.findall(r'>(\w+) <span class="count">(\d+)<', web.get(url).text)
        assert dict(tabs)["All"] == "2"
        assert (dict(tabs)["Cancelled"], dict(tabs)["Waiting"]) == ("1", "1")


@pytest.mark.parametrize(
    ("query", "said"),
    [
        ("sort=size", "sort"),
        ("state=asleep", "state"),
        ("since=tomorrow", "date"),
        ("page=0", "page"),
    ],
)
def test_list_that_nobody_can_make(web: TestClient, query: str, said: str):
    answer = web.get(f"/runs?{query}")
    assert answer.status_code == 422
    assert said in answer.text
    assert answer.headers["content-type"].startswith("text/html")


def test_name_from_outside_is_text_on_every_page(web: TestClient, jobs: Store):
    evil = '<script>alert(1)</script>"&'
    run = submit(jobs, evil, (evil,), name=evil, cause=evil, arguments={evil: evil})
    for url in ("/runs", f"/runs/{run}", "/timeline", f"/runs?text={evil}"):
        answer = web.get(url)
        assert answer.status_code == 200
        assert "<script>alert" not in answer.text


# ------------------------------------------------------------------------------------- one run


def test_run_says_why_it_waits(web: TestClient, jobs: Store):
    run = submit(jobs)
    assert "waiting for the scheduler" in web.get(f"/runs/{run}").text


def test_run_that_does_not_exist(web: TestClient):
    answer = web.get("/runs/nothing")
    assert answer.status_code == 404
    assert "no run &#39;nothing&#39;" in answer.text


@pytest.mark.parametrize("piece", [False, True])
def test_buttons_do_what_they_say(web: TestClient, jobs: Store, tmp_path: Path, piece: bool):
    run = submit(jobs)
    headers = OURS | (PIECE if piece else {})

    def press(verb: str, **form: str) -> None:
        answer = web.post(f"/runs/{run}/{verb}", data=form, headers=headers)
        assert answer.status_code == (200 if piece else 303), answer.text

    press("pause")
    assert jobs.run(run).state is JobState.PAUSED
    press("change", priority="7")
    assert jobs.run(run).priority == 7
    press("resume")
    assert jobs.run(run).state is JobState.QUEUED
    press("cancel")
    assert jobs.run(run).state is JobState.CANCELLED
    press("retry")
    assert [j.state for j in jobs.run(run).jobs] == [JobState.CANCELLED, JobState.QUEUED]
    press("cancel")
    logs = [tmp_path / "logs" / job.id for job in jobs.run(run).jobs]
    for folder in logs:
        JobLog(folder, DRIVER).append("said")
    press("delete")
    assert web.get(f"/runs/{run}").status_code == 404
    assert not any(folder.exists() for folder in logs)


def test_page_offers_what_can_be_done(web: TestClient, jobs: Store):
    run = submit(jobs)

    def offered() -> set[str]:
        return set(re.findall(rf'action="/runs/{run}/(\w+)"', web.get(f"/runs/{run}").text))

    assert offered() == {"pause", "cancel", "change"}
    jobs.want(run, Wanted.PAUSE)
    assert offered() == {"resume", "cancel", "change"}
    jobs.want(run, Wanted.CANCEL)
    assert offered() == {"retry", "delete"}


def test_button_that_comes_too_late_says_so_and_leaves_the_page(web: TestClient, jobs: Store):
    run = submit(jobs)
    jobs.want(run, Wanted.CANCEL)
    answer = web.post(f"/runs/{run}/pause", headers=OURS | PIECE)
    assert answer.status_code == 409
    assert "CANCELLED" in answer.text
    assert answer.headers["HX-Retarget"] == "#toast"


@pytest.mark.parametrize("form", [{"priority": "high"}, {"priority": "5000"}, {"max_active": "0"}])
def test_priority_that_is_none(web: TestClient, jobs: Store, form: dict[str, str]):
    run = submit(jobs)
    assert web.post(f"/runs/{run}/change", data=form, headers=OURS).status_code == 422
    assert jobs.run(run).priority == 0


def test_retry_is_shown_beside_the_job_that_it_retries(web: TestClient, jobs: Store):
    run = submit(jobs)
    jobs.want(run, Wanted.CANCEL)
    jobs.retry(run)
    old, new = jobs.run(run).jobs
    text = web.get(f"/runs/{run}").text
    assert f"?job={old.id}" in text
    assert f"?job={new.id}" in text
    assert web.get(f"/runs/{run}?job={old.id}").status_code == 200
    assert web.get(f"/runs/{run}?job=other").status_code == 404


def test_grid_holds_every_fragment(web: TestClient, jobs: Store):
    run = submit(jobs)
    job = jobs.run(run).jobs[0].id
    states = ["COMMITTED"] * 6000 + ["FAILED"] + ["PLANNED"] * 3999
    tasks = [
        {"job_id": job, "column": "y", "fragment_id": i + (i >= 9000), "state": state}
        for i, state in enumerate(states)
    ]
    with jobs.database.write() as session:
        for start in range(0, len(tasks), 1000):
            session.execute(insert(TaskRow), tasks[start : start + 1000])
    answer = web.get(f"/jobs/{job}/grid?column=y")
    found = answer.json()
    assert found["ids"] == [[0, 9000], [9001, 1000]]
    names = [(found["names"][place], length) for place, length in found["states"]]
    assert names == [("COMMITTED", 6000), ("FAILED", 1), ("PLANNED", 3999)]
    assert not found["ended"]
    assert len(answer.content) < 1000
    page = web.get(f"/runs/{run}").text
    assert "3,999" in page
    assert len(page) < 40_000  # nothing in it per fragment
    listed = web.get(f"/jobs/{job}/fragments?state=FAILED").text
    assert listed.count('<td class="num">6000</td>') == 1
    assert "Fragment 6000" in web.get(f"/jobs/{job}/fragment?column=y&id=6000").text
    assert web.get(f"/jobs/{job}/fragment?column=y&id=9000").status_code == 404


def test_fragments_with_failed_rows_are_told_from_others(web: TestClient, jobs: Store):
    run = submit(jobs)
    job = jobs.run(run).jobs[0].id
    failed = [0, 0, 3, 3, 0, 1]
    facts = {"job_id": job, "column": "y", "state": "COMMITTED"}
    tasks = [facts | {"fragment_id": i, "rows_failed": n} for i, n in enumerate(failed)]
    with jobs.database.write() as session:
        session.execute(insert(TaskRow), tasks)
    found = web.get(f"/jobs/{job}/grid?column=y").json()
    assert found["failed"] == [[0, 2], [3, 2], [0, 1], [1, 1]]
    page = web.get(f"/runs/{run}").text
    assert "With failed rows <strong>3</strong>" in page
    assert "7 rows</a>" in page
    assert 'data-swatch="PARTIAL"' in page
    assert "3 rows failed" in web.get(f"/jobs/{job}/fragment?column=y&id=2").text
    assert "1 row failed" in web.get(f"/jobs/{job}/fragment?column=y&id=5").text


def test_logs_of_a_job_and_of_one_that_has_none(web: TestClient, jobs: Store, tmp_path: Path):
    run = submit(jobs)
    job = jobs.run(run).jobs[0].id
    assert "This host has no such log" in web.get(f"/jobs/{job}/logs").text
    folder = tmp_path / "logs" / job
    JobLog(folder, "driver").append("began <b>\n")
    JobLog(folder, "applier-3").append("x" * 300_000 + "the end")
    driver = web.get(f"/jobs/{job}/logs").text
    assert "began &lt;b&gt;" in driver
    assert "All 10 bytes." in driver
    assert f"/jobs/{job}/logs" in web.get(f"/runs/{run}").text
    applier = web.get(f"/jobs/{job}/logs?name=applier-3").text
    assert "the end</pre>" in applier
    assert "The last 200,000 bytes." in applier
    assert f"geneva runs logs {run} --applier 3 --follow" in applier
    assert web.get(f"/jobs/{job}/logs?name=applier-3", headers=PIECE).text.startswith("<div")
    assert "no such log" in web.get(f"/jobs/{job}/logs?name=../../jobs").text
    assert web.get("/jobs/none/logs").status_code == 404


def test_timeline_shows_jobs_of_the_time_that_is_asked_for(web: TestClient, jobs: Store):
    run = submit(jobs, "now")
    old = submit(jobs, "past")
    jobs.want(old, Wanted.CANCEL)
    job = jobs.run(old).jobs[0].id
    with jobs.database.write() as session:
        from geneva.jobs.store.models import JobRow

        long_ago = {"created_s": 1e9, "ended_s": 1e9 + 60}
        session.execute(update(JobRow).where(JobRow.id == job).values(long_ago))
        session.execute(update(Run).where(Run.id == old).values(long_ago))
    text = web.get("/timeline?range=1h").text
    assert f"/runs/{run}?" in text
    assert f"/runs/{old}?" not in text
    assert "Queued: Queued for" in text
    assert web.get("/timeline?range=1y").status_code == 422


# ------------------------------------------------------------------------------------ who may


def test_page_without_a_session_leads_to_the_login_and_back(guarded: TestClient):
    answer = guarded.get("/runs?state=failed")
    assert answer.status_code == 303
    assert answer.headers["Location"].startswith("/login?next=")
    login = guarded.get(answer.headers["Location"])
    assert 'value="/runs?state=failed"' in login.text
    form = {"token": "op", "next": "/runs?state=failed"}
    done = guarded.post("/login", data=form, headers=OURS)
    assert done.headers["Location"] == "/runs?state=failed"
    assert "op" not in done.cookies.values()
    assert "HttpOnly" in done.headers["Set-Cookie"]
    assert guarded.get("/runs").status_code == 200


def test_piece_without_a_session_sends_the_whole_page_to_the_login(guarded: TestClient):
    headers = PIECE | {"HX-Current-URL": f"{HERE}/runs/1"}
    answer = guarded.get("/runs/1", headers=headers)
    assert answer.status_code == 401
    assert answer.headers["HX-Redirect"].startswith("/login?next=")


def test_wrong_token_opens_nothing(guarded: TestClient):
    answer = guarded.post("/login", data={"token": "o", "next": "/"}, headers=OURS)
    assert (answer.status_code, answer.headers.get("Set-Cookie")) == (401, None)


@pytest.mark.parametrize(
    "target", ["https://evil.example/x", "//evil.example/x", "/\\evil.example"]
)
def test_login_that_would_lead_to_another_site(guarded: TestClient, target: str):
    form = {"token": "op", "next": target}
    done = guarded.post("/login", data=form, headers=OURS)
    assert re.fullmatch(r"/[^/\\].*|/", done.headers["Location"])


def test_viewer_sees_no_buttons_and_can_press_none(guarded: TestClient, jobs: Store):
    run = submit(jobs)
    guarded.post("/login", data={"token": "eye", "next": "/"}, headers=OURS)
    text = guarded.get(f"/runs/{run}").text
    assert f'action="/runs/{run}' not in text
    assert guarded.post(f"/runs/{run}/cancel", headers=OURS).status_code == 403
    assert jobs.run(run).state is JobState.QUEUED


def test_session_that_was_changed_or_is_of_other_tokens(guarded: TestClient, jobs: Store):
    guarded.post("/login", data={"token": "eye", "next": "/"}, headers=OURS)
    ((name, text),) = guarded.cookies.items()
    raised = "2" + text[1:]
    for value in (raised, text[:-1] + "0", "2.9.x", "", "a.b.c", "2." + "9" * 5000 + ".x"):
        guarded.cookies.clear()
        if value == text:
            continue
        guarded.cookies.set(name, value)
        assert guarded.get("/runs").status_code == 303, value
    settings = Settings(jobs.database.url, Path("/s"), operator_token="new", viewer_token="eye")
    guarded.app.state.settings = settings  # type: ignore[attr-defined]
    guarded.cookies.clear()
    guarded.cookies.set(name, text)
    assert guarded.get("/runs").status_code == 303


def test_session_is_no_key_to_the_rest_interface(guarded: TestClient):
    guarded.post("/login", data={"token": "op", "next": "/"}, headers=OURS)
    assert guarded.get("/runs").status_code == 200
    assert guarded.get("/api/v1/runs").status_code == 401


def test_logging_out_ends_the_session(guarded: TestClient):
    guarded.post("/login", data={"token": "op", "next": "/"}, headers=OURS)
    guarded.post("/logout", headers=OURS)
    assert guarded.get("/runs").status_code == 303


@pytest.mark.parametrize(
    "headers", [{}, {"Origin": "https://evil.example"}, {"Origin": "null"}, {"Origin": f"{HERE}:9"}]
)
@pytest.mark.parametrize("client", ["web", "guarded"])
def test_button_that_another_site_presses(
    request: pytest.FixtureRequest, jobs: Store, client: str, headers: dict[str, str]
):
    http: TestClient = request.getfixturevalue(client)
    if client == "guarded":
        http.post("/login", data={"token": "op", "next": "/"}, headers=OURS)
    run = submit(jobs)
    assert http.post(f"/runs/{run}/cancel", headers=headers).status_code == 403
    assert jobs.run(run).state is JobState.QUEUED


def test_address_that_is_none_is_no_failure_of_the_service(web: TestClient, guarded: TestClient):
    assert web.get("/runs", headers={"Host": "[1"}).status_code == 403
    assert web.get("/api/v1/runs", headers={"Origin": "http://[1"}).status_code == 403
    assert web.post("/pools", headers={"Origin": "http://[1"}).status_code == 403
    assert guarded.get("/login", params={"next": "//[1"}).status_code == 200


def test_page_by_a_name_that_another_site_lets_point_here(web: TestClient):
    assert web.get("/runs", headers={"Host": "evil.example"}).status_code == 403


def test_browser_is_told_to_load_nothing_from_elsewhere(web: TestClient):
    answer = web.get("/runs")
    policy = answer.headers["Content-Security-Policy"]
    assert "default-src 'self'" in policy
    assert "frame-ancestors 'none'" in policy
    assert "unsafe" not in policy
    assert "://" not in re.sub(r'(xmlns|href)="http://www.w3.org/[^"]*"', "", answer.text)


def test_files_are_kept_by_their_addresses(web: TestClient):
    text = web.get("/runs").text
    files = set(re.findall(r'(?:href|src)="(/static/[^"#]+)', text))
    assert len(files) >= 6
    for file in files:
        answer = web.get(file)
        assert answer.status_code == 200
        assert "immutable" in answer.headers["Cache-Control"]
    assert "immutable" not in web.get("/static/geneva.css").headers.get("Cache-Control", "")
    assert web.get("/static/../site.py").status_code == 404
    assert web.get("/static/%2e%2e/site.py").status_code == 404


def test_address_that_nothing_has_is_a_page_for_people_only(web: TestClient, guarded: TestClient):
    person = {"Accept": "text/html,*/*;q=0.8"}
    page = web.get("/nothing", headers=person)
    assert (page.status_code, "there is no page /nothing" in page.text) == (404, True)
    assert "default-src 'self'" in page.headers["Content-Security-Policy"]
    assert 'href="/pools"' in page.text
    assert 'href="/pools"' not in guarded.get("/nothing", headers=person).text
    for path, headers in (("/nothing", {}), ("/api/v1/nothing", person)):
        answer = web.get(path, headers=headers)
        assert (answer.status_code, answer.json()["type"]) == (404, "NotFound")
