"""The pages in a real browser: a run is watched, paused, resumed, cancelled and retried there."""

from __future__ import annotations

import pytest
from playwright.sync_api import Locator, Page, expect

from tests.service.conftest import Scene, Visit
from tests.service.test_deaths import SLOWLY, assert_done_once, until_row_25
from tests.support.backfills import until
from tests.support.browser import LOOKS, barriers_of_looks
from tests.support.services import Service

pytestmark = pytest.mark.services


def state(page: Page) -> Locator:
    return page.locator("#state")


def confirm(page: Page, answer: str) -> None:
    page.get_by_role("dialog").get_by_role("button", name=answer, exact=True).click()


def test_run_is_paused_resumed_and_watched_to_its_end(scene: Scene, service: Service, visit: Visit):
    page = visit(f"/runs/{service.submit(arguments=SLOWLY)}")
    until_row_25(scene)
    expect(state(page)).to_have_text("Running")
    page.get_by_role("button", name="Pause").click()
    expect(state(page)).to_have_text("Pausing")
    scene.gate.open()
    expect(state(page)).to_have_text("Paused")
    expect(page.locator(".why")).to_contain_text("checkpointed")
    page.get_by_role("button", name="Resume").click()
    expect(state(page)).to_have_text("Succeeded")
    expect(page.locator(".big")).to_contain_text("100% 40 of 40 rows")
    expect(page.locator(".legend")).to_have_text("Committed 4")
    assert_done_once(scene)


def test_run_is_cancelled_when_it_is_sure_and_retried(scene: Scene, service: Service, visit: Visit):
    run = service.submit(arguments=SLOWLY)
    page = visit(f"/runs/{run}")
    until_row_25(scene)
    expect(state(page)).to_have_text("Running")
    page.get_by_role("button", name="Cancel").click()
    confirm(page, "Back")
    assert service.job(run)["wanted"] == "run"
    page.get_by_role("button", name="Cancel").click()
    confirm(page, "Cancel")
    expect(state(page)).to_have_text("Cancelling")
    scene.gate.open()
    expect(state(page)).to_have_text("Cancelled")
    page.get_by_role("button", name="Retry").click()
    confirm(page, "Retry")
    expect(state(page)).to_have_text("Succeeded")
    expect(page.get_by_role("table").filter(has_text="Drivers").locator("tbody tr")).to_have_count(
        2
    )
    assert_done_once(scene)


def test_run_is_steered_with_the_keyboard_alone(scene: Scene, service: Service, visit: Visit):
    run = service.submit(arguments=SLOWLY)
    until_row_25(scene)
    page = visit("/runs")
    press = page.keyboard.press
    press("Tab")
    expect(page.get_by_text("Skip to content")).to_be_focused()
    press("Enter")
    press("/")
    page.keyboard.type(run)
    expect(page.locator("tr[id^=run-]")).to_have_count(1)
    page.get_by_role("link", name="t · y").focus()
    press("Enter")
    page.wait_for_url(f"**/runs/{run}")
    page.get_by_role("button", name="Cancel").focus()
    press("Enter")
    press("Escape")
    expect(page.get_by_role("dialog")).to_be_hidden()
    press("Enter")
    press("Tab")
    press("Enter")
    until(lambda: service.job(run)["wanted"] == "cancel")
    expect(page.locator("[data-drawn]")).to_have_count(1)
    page.locator(".grid canvas").focus()
    press("ArrowRight")
    expect(page.locator(".grid .at")).to_contain_text("Fragment 1")
    press("End")
    expect(page.locator(".grid .at")).to_contain_text("Fragment 3")


def test_list_follows_filters_and_what_happens(scene: Scene, service: Service, visit: Visit):
    run = service.submit(arguments=SLOWLY, name="one that waits")
    until_row_25(scene)
    page = visit("/runs")
    page.get_by_label("Search").fill("one that waits")
    row = page.locator(f"#run-{run}")
    expect(row).to_contain_text("Running")
    expect(page.locator("tr[id^=run-]")).to_have_count(1)
    scene.gate.open()
    expect(row).to_contain_text("Succeeded")  # nobody touched the page
    assert "text=one+that+waits" in page.url
    page.reload()
    expect(page.get_by_label("Search")).to_have_value("one that waits")
    expect(page.locator("tr[id^=run-]")).to_have_count(1)


def test_typing_is_not_lost_when_the_page_refreshes(scene: Scene, service: Service, visit: Visit):
    page = visit(f"/runs/{service.submit(arguments=SLOWLY)}")
    until_row_25(scene)
    expect(state(page)).to_have_text("Running")
    page.get_by_label("Priority", exact=True).fill("42")
    page.get_by_role("button", name="Pause").focus()
    with page.expect_response(lambda r: "/runs/" in r.url):
        pass
    with page.expect_response(lambda r: "/runs/" in r.url):
        pass  # the second answer comes after the first was shown
    expect(page.get_by_label("Priority", exact=True)).to_have_value("42")
    expect(page.get_by_role("button", name="Pause")).to_be_focused()
    page.get_by_label("Priority", exact=True).press("Enter")
    expect(page.locator(".events")).to_contain_text("priority: 42")


def test_button_that_comes_too_late_says_why(scene: Scene, service: Service, visit: Visit):
    run = service.submit(arguments=SLOWLY)
    page = visit(f"/runs/{run}")
    expect(page.get_by_role("button", name="Cancel")).to_be_visible()
    page.route(f"**/runs/{run}", lambda route: route.fulfill(status=204))  # it learns nothing
    service.steer(run, "cancel")
    scene.gate.open()
    service.until(run, "CANCELLED", "SUCCEEDED")
    page.get_by_role("button", name="Pause").click()
    expect(page.locator("#toast")).to_contain_text("does not change")


def test_page_stays_when_the_answer_is_none(scene: Scene, service: Service, visit: Visit):
    run = service.submit(arguments=SLOWLY)
    page = visit(f"/runs/{run}")
    told = {"status": 429, "content_type": "application/problem+json"}
    answer = told | {"body": '{"detail": "too many requests"}'}
    page.route(f"**/runs/{run}", lambda route: route.fulfill(**answer))
    expect(page.locator("#toast")).to_have_text("too many requests")
    expect(page.get_by_role("button", name="Cancel")).to_be_visible()


def test_theme_is_kept(service: Service, visit: Visit):
    page = visit("/runs", color_scheme="light")
    ground = "getComputedStyle(document.body).backgroundColor"
    light = page.evaluate(ground)
    page.get_by_role("button", name="Theme").click()
    page.get_by_role("button", name="Theme: light").click()
    expect(page.get_by_role("button", name="Theme: dark")).to_be_visible()
    dark = page.evaluate(ground)
    assert dark != light
    page.reload()
    assert page.evaluate(ground) == dark


def test_pages_without_barriers(scene: Scene, service: Service, visit: Visit):
    run = service.submit(arguments=SLOWLY)
    until_row_25(scene)
    service.until(run, "RUNNING")
    page = visit("/runs", **LOOKS["light"])
    job = service.job(run)["id"]
    paths = [
        "/runs",
        "/runs?text=nothing",
        f"/runs/{run}",
        f"/jobs/{job}/fragments",
        "/timeline",
        "/docs",
        "/login",
    ]
    for path in paths:
        page.goto(path)
        assert barriers_of_looks(page) == {}, path
    page.goto(f"/runs/{run}")
    page.get_by_role("button", name="Cancel").click()
    assert barriers_of_looks(page) == {}
