"""The windows of a run in a real browser: a square for each, live, and what a click tells."""

from __future__ import annotations

import os
from datetime import UTC, datetime, timedelta
from pathlib import Path

import lance
import pyarrow as pa
import pytest
from playwright.sync_api import expect

import geneva
from tests.service.conftest import Scene, Visit
from tests.service.test_window_records import BY_TEN, SLOWLY
from tests.support.backfills import until
from tests.support.browser import barriers_of_looks
from tests.support.calls import CallLog
from tests.support.services import Service
from tests.support.tables import make_table

pytestmark = pytest.mark.services


def test_squares_of_the_windows_change_while_the_run_goes_on(
    scene: Scene, service: Service, visit: Visit
):
    windows = BY_TEN | {"order": "backward", "commit": "window"}
    run = service.submit(arguments=SLOWLY | {"windows": windows})
    until(lambda: len(scene.calls) == 15)
    page = visit(f"/runs/{run}")
    squares = page.locator(".window")
    expect(squares).to_have_count(4)
    expect(squares.nth(0)).to_have_attribute("data-state", "COMMITTED")
    expect(squares.nth(1)).to_have_attribute("data-state", "RUNNING")
    expect(squares.nth(3)).to_have_attribute("data-state", "PLANNED")
    squares.nth(0).focus()
    page.keyboard.press("Enter")
    expect(page.locator("#window")).to_contain_text("30 Committed 10 of 10 rows computed")
    scene.gate.open()
    expect(squares.nth(3)).to_have_attribute("data-state", "COMMITTED")
    expect(page.locator("#windows .legend")).to_contain_text("Committed 4")


def test_failed_window_is_found_told_and_retried(
    tmp_path: Path, calls: CallLog, scene: Scene, service: Service, visit: Visit
):
    table = make_table(tmp_path / "bad", rows=200, fragments=4)
    mended = tmp_path / "mended"

    @geneva.udf(input_columns=["x"])
    def double(x: int) -> int:
        calls(x)
        if x == 55 and not mended.exists():
            raise ValueError("no good")
        return 2 * x

    table.add_columns({"y": double})
    service.db = tmp_path / "bad"
    windows = {"on": "x", "start": 0, "end": 260, "step": 5, "on_failure": "continue"}
    run = service.submit(arguments={"executor": "local", "windows": windows, "on_error": "fail"})
    service.until(run, "FAILED")
    page = visit(f"/runs/{run}")
    failed = page.locator(".window[data-state=FAILED]")
    expect(failed).to_have_count(1)
    failed.click()
    expect(page.locator("#window")).to_contain_text("55 Failed")
    expect(page.locator("#windows .legend")).to_contain_text("Skipped 12")
    assert barriers_of_looks(page) == {}
    if folder := os.environ.get("GENEVA_SHOTS"):
        page.screenshot(path=f"{folder}/windows.png", full_page=True)
    mended.touch()
    page.get_by_role("button", name="Retry this window").click()
    expect(page.locator("#state")).to_have_text("Succeeded")
    expect(page.locator(".window")).to_have_count(1)
    expect(page.locator("h1")).to_have_text("55 again")


def test_form_plans_and_submits_a_backfill_by_windows(scene: Scene, service: Service, visit: Visit):
    scene.gate.open()
    page = visit(f"/submit?db={scene.path}&table=t&column=y")
    page.get_by_text("Windows: day by day").click()
    page.locator("input[name=window_on]").fill("x")
    page.locator("input[name=window_end]").fill("20")
    page.locator("input[name=window_step]").fill("5")
    page.locator("select[name=window_order]").select_option("backward")
    expect(page.locator("#plan")).to_contain_text("4 of 4 windows have rows to compute")
    assert barriers_of_looks(page) == {}
    if folder := os.environ.get("GENEVA_SHOTS"):
        page.screenshot(path=f"{folder}/windows-form.png", full_page=True)
    page.get_by_text("The same in a shell").click()
    expect(page.locator("#plan pre")).to_contain_text("--window-on x --window-end 20")
    page.get_by_role("button", name="Submit").click()
    expect(page.locator("#state")).to_have_text("Succeeded")
    expect(page.locator(".window")).to_have_count(4)


def test_days_of_a_column_are_squares_that_add_up_to_coverage(
    tmp_path: Path, scene: Scene, service: Service, visit: Visit
):
    first = datetime(2024, 1, 30, tzinfo=UTC)
    ts = [first + timedelta(hours=6 * k) for k in range(400)]
    data = pa.table({"x": range(400), "ts": pa.array(ts, pa.timestamp("us", "UTC"))})
    table = make_table(tmp_path / "days", data=data, fragments=4)

    @geneva.udf(input_columns=["x"])
    def double(x: int) -> int:
        if x == 130:
            raise ValueError("no good")
        return 2 * x

    table.add_columns({"y": double})
    table.backfill("y", executor="local", on_error="null", windows={"on": "x", "end": 270})
    lance.dataset(table.storage.uri).update({"x": "x + 1000"}, where="x >= 40 and x < 60")
    db = tmp_path / "days"
    params = {"db": str(db), "column": "y", "on": "ts"}
    periods = service.ask("GET", "/api/v1/tables/t/coverage/over", params=params)["periods"]
    [covered] = service.ask(
        "GET", "/api/v1/tables/t/coverage", params={"db": str(db), "column": "y"}
    )
    for state in ("rows", "computed", "stale", "missing", "failed"):
        assert sum(p[state] for p in periods) == covered[state]
    page = visit(f"/tables/t/over/y?db={db}")
    expect(page.locator(".periods .period")).to_have_count(100)
    expect(page.locator(".periods .failed")).to_have_count(1)
    expect(page.locator(".periods .missing")).to_have_count(5 + 33)
    assert barriers_of_looks(page) == {}
    if folder := os.environ.get("GENEVA_SHOTS"):
        page.screenshot(path=f"{folder}/over.png", full_page=True)
    page.locator("select[name=step]").select_option("1mo")
    page.get_by_role("button", name="Show").click()
    expect(page.locator(".periods .period")).to_have_count(5)
