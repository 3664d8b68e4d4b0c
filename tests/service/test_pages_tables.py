"""Pages of tables, the form, failures and pools over a store without a scheduler."""

from __future__ import annotations

import re
from collections.abc import Iterator
from pathlib import Path

import pytest
from fastapi.testclient import TestClient

import geneva
from geneva.jobs.store.store import Store
from tests.service.conftest import Scene
from tests.service.test_pages import OURS, browser_for

FORM = {"table": "t", "column:y": "on", "executor": "local"}


@pytest.fixture
def web(jobs: Store, scene: Scene) -> Iterator[TestClient]:
    with browser_for(jobs, scene.path.parent) as client:
        yield client


@pytest.fixture
def guarded(jobs: Store, scene: Scene) -> Iterator[TestClient]:
    tokens = {"operator_token": "op", "viewer_token": "eye"}
    with browser_for(jobs, scene.path.parent, **tokens) as client:
        client.post("/login", data={"token": "eye"}, headers=OURS)
        yield client


def send(web: TestClient, path: str = "/submit", **fields: str) -> tuple[int, str]:
    answer = web.post(path, data=FORM | fields, headers=OURS)
    return answer.status_code, answer.text


def runs(jobs: Store) -> list[str]:
    from geneva.jobs.page import Wish

    return [r.id for r in jobs.runs(Wish()).items]


def test_pages_name_what_they_show(web: TestClient):
    for path, shown in {
        "/tables": 'href="/tables/t"',
        "/tables/t": "Backfill all columns",
        "/tables/t/coverage/y": "Backfill 40 rows",
        "/tables/t/coverage/y?brief=true": "0%",
        "/submit": 'name="column:y" checked',
        "/submit?table=t&column=y&where=x+%3C+3": "x &lt; 3",
        "/failures": "Nothing failed",
        "/pools": "All jobs",
    }.items():
        answer = web.get(path)
        assert (answer.status_code, shown in answer.text) == (200, True), (path, answer.text)


@pytest.mark.parametrize(
    ("path", "said"),
    [
        ("/tables/nothing", "nothing"),
        ("/tables/t/coverage/x", "not computed"),
        ("/failures?run=none", "no run"),
        ("/tables?cursor=x", "cursor"),
    ],
)
def test_page_of_what_is_not_there_says_so(web: TestClient, path: str, said: str):
    answer = web.get(path)
    assert answer.status_code in (404, 422)
    assert said in answer.text


def test_form_without_a_table_says_what_to_do(jobs: Store, tmp_path: Path):
    folder = tmp_path / "empty"
    (folder / "db").mkdir(parents=True)
    with browser_for(jobs, folder) as web:
        assert "There is no table in" in web.get("/submit").text
        assert web.get("/submit?table=docs").text.count("no table &#39;docs&#39;") == 1


def test_form_queues_one_run_also_when_it_is_sent_twice(web: TestClient, jobs: Store):
    for _ in range(2):
        answer = web.post(
            "/submit",
            data=FORM | {"key": "k", "where": "x < 3", "num_frags": "2", "pool": "gpu"},
            headers=OURS,
        )
        assert answer.status_code == 303
    [run] = runs(jobs)
    assert answer.headers["location"] == f"/runs/{run}"
    [job] = jobs.run(run).jobs
    assert job.arguments == {"executor": "local", "where": "x < 3", "num_frags": 2}
    assert job.pool == "gpu"


@pytest.mark.parametrize(
    ("fields", "said"),
    [
        ({"table": ""}, "hoose a table"),
        ({"table": "nothing"}, "nothing"),
        ({"num_frags": "two"}, "num_frags=&#39;two&#39; must be a whole number"),
        ({"num_frags": "0"}, "Fragments in this run: num_frags=0 must be at least 1"),
        ({"max_failures": "5"}, "on_error"),
        ({"params": "{"}, "params is no JSON"),
        ({"params": "[1]"}, "must be a JSON object"),
        ({"redo": "some"}, "redo"),
        ({"priority": "1001"}, "priority=1001"),
        ({"where": "x > 1 AND nope"}, "<mark>nope</mark>"),
        ({"where": "</pre><script>"}, "&lt;script&gt;"),
    ],
)
def test_form_that_is_wrong_says_what_and_keeps_what_was_typed(
    web: TestClient, jobs: Store, fields: dict[str, str], said: str
):
    status, text = send(web, name="typed before", **fields)
    assert (status, said in text) == (422, True), text
    assert 'value="typed before"' in text
    assert "<script>" not in text.replace("<script src", "")
    assert runs(jobs) == []
    status, text = send(web, "/submit/plan", **fields)
    assert (status, said in text) == (200, True), text


def test_form_without_a_column_is_no_plan_and_no_run(web: TestClient, jobs: Store):
    fields = {"table": "t"}
    assert "Choose a column" in web.post("/submit/plan", data=fields, headers=OURS).text
    answer = web.post("/submit", data=fields, headers=OURS)
    assert (answer.status_code, "Choose a column" in answer.text) == (422, True)
    assert runs(jobs) == []


def test_plan_follows_the_form(web: TestClient, jobs: Store):
    _, text = send(web, "/submit/plan", where="x = 3", redo="all")
    assert re.search(r"Rows to compute</dt><dd>1 <small>of 40", text)
    assert "10.0×" in text  # noqa: RUF001
    assert "A filter along the order of the table" in text
    assert "geneva runs submit t y --where &#39;x = 3&#39; --force" in text
    assert runs(jobs) == []


def test_viewer_looks_and_plans_but_does_not_steer(guarded: TestClient, jobs: Store):
    for path in ("/tables", "/tables/t", "/tables/t/coverage/y", "/submit", "/pools"):
        text = guarded.get(path).text
        assert not re.search(r'href="/submit\?|btn primary wide|>Save<', text), path
    assert "Rows to compute" in send(guarded, "/submit/plan")[1]
    for path in ("/submit", "/pools", "/failures/k/retry"):
        assert send(guarded, path)[0] == 403
    assert runs(jobs) == []


def test_forms_of_other_sites_are_refused(web: TestClient, jobs: Store):
    for path in ("/submit", "/submit/plan", "/pools", "/failures/k/retry"):
        answer = web.post(path, data=FORM, headers={"Origin": "http://evil.example"})
        assert answer.status_code == 403
    assert runs(jobs) == []
    assert jobs.pools()[0].slots is None


def test_pool_is_changed_by_its_form(web: TestClient, jobs: Store):
    def change(slots: str) -> int:
        return web.post("/pools", data={"pool": "gpu", "slots": slots}, headers=OURS).status_code

    assert change("3") == 303
    assert {p.name: p.slots for p in jobs.pools()}["gpu"] == 3
    assert [change(wrong) for wrong in ("-1", "many", "99999999999")] == [422] * 3
    assert {p.name: p.slots for p in jobs.pools()}["gpu"] == 3
    assert change("") == 303
    assert {p.name: p.slots for p in jobs.pools()}["gpu"] is None


def test_names_that_hold_markup_or_separators_are_shown_and_linked(web: TestClient, scene: Scene):
    name = "a&b <i>"

    @geneva.udf
    def plus(x: int) -> int:
        return x + 1

    scene.table.add_columns({name: plus})
    page = web.get("/tables/t").text
    assert "<i>" not in page
    link = re.search(r'hx-get="(/tables/t/coverage/a[^"]*)"', page)
    assert link is not None
    piece = web.get(link[1].replace("&amp;", "&")).text
    submit = re.search(r'href="(/submit[^"]*)"', piece)
    assert submit is not None
    form = web.get(submit[1].replace("&amp;", "&")).text
    assert re.search(r'name="column:a&amp;b &lt;i&gt;" checked', form)


def test_column_that_was_chosen_is_kept_whatever_its_name(web: TestClient, scene: Scene):
    scene.table.add_columns({"日付": "cast('2024-05-01' as date)"})
    page = web.get("/tables/t/over/y", params={"on": "日付", "step": "1mo"})
    assert page.status_code == 200
    assert "2024-05-01" in page.text
    assert "<option selected>日付</option>" in web.get("/tables/t/over/y").text
