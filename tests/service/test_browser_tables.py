"""Tables, the form, failures and pools in a real browser."""

from __future__ import annotations

import re
from urllib.parse import quote, urlencode

import pytest
from playwright.sync_api import Locator, Page, expect

import geneva
from tests.service.conftest import Scene, Visit
from tests.service.test_deaths import SLOWLY, until_row_25
from tests.support.backfills import Gate
from tests.support.browser import LOOKS, barriers_of_looks
from tests.support.services import Service
from tests.support.tables import column

pytestmark = pytest.mark.services


def of(scene: Scene, path: str, **more: str) -> str:
    """The address of a page about the test's own database."""
    return f"{path}?{urlencode({'db': str(scene.path)} | more)}"


def plan(page: Page, name: str) -> Locator:
    """A figure of the plan."""
    return page.locator("#plan .figure").filter(has_text=name).locator("dd")


def add_picky(scene: Scene) -> Gate:
    """Add a column z whose UDF fails on one row of each fragment until the gate is open."""
    gate = Gate(scene.path / "mended")

    @geneva.udf
    def picky(x: int) -> int:
        if not gate.is_open and x % 10 == 3:
            raise ValueError(f"odd row {x}")
        return 2 * x

    scene.table.add_columns({"z": picky})
    return gate


def fail(service: Service, scene: Scene) -> str:
    arguments = {"executor": "local", "on_error": "null"}
    run = service.submit("z", arguments=arguments)
    service.until(run, "PARTIAL")
    return run


def test_backfill_is_submitted_through_the_form_and_watched_to_its_end(
    scene: Scene, service: Service, visit: Visit
):
    page = visit(of(scene, "/tables/t"))
    expect(page.locator("#column-y .share")).to_have_text("0%")
    page.get_by_role("link", name="Backfill 40 rows of y").click()
    expect(page.locator("#table")).to_have_value("t")
    expect(page.get_by_label(re.compile(r"^\s*y\b"))).to_be_checked()
    page.get_by_text("More settings").click()
    page.get_by_label(re.compile("^Executor")).select_option("local")
    where = page.locator("#where")

    where.fill("x < 20 AND\n nope = 1")
    expect(page.locator("#where-said mark")).to_have_text("nope")
    expect(page.locator("#where-said")).to_contain_text("unknown column 'nope'")
    expect(where).to_have_attribute("aria-invalid", "true")
    page.get_by_role("button", name="Submit").click()
    expect(page.locator("#where-said mark")).to_have_text("nope")
    expect(where).to_have_value("x < 20 AND\n nope = 1")

    where.fill("x < 15")
    expect(plan(page, "Rows to compute")).to_contain_text("15")
    expect(plan(page, "Fragments")).to_contain_text("2")
    expect(plan(page, "Write amplification")).to_contain_text("1.3")
    expect(where).to_have_attribute("aria-invalid", "false")
    page.get_by_role("button", name="Submit").click()
    page.wait_for_url("**/runs/*")
    expect(page.locator("#state")).to_have_text("Succeeded")
    assert column(scene.table, "y") == [2 * x if x < 15 else None for x in range(40)]
    page.goto(of(scene, "/tables/t"))
    expect(page.locator("#column-y .share")).to_have_text("38%")
    expect(page.locator("#column-y")).to_contain_text("Last job Succeeded")


def test_form_follows_the_table_that_is_chosen(scene: Scene, service: Service, visit: Visit):
    db = geneva.connect(str(scene.path))
    db.create_table("plain", [{"k": 1}])
    page = visit(of(scene, "/submit"))
    page.locator("#table").select_option("plain")
    expect(page.locator("#columns")).to_contain_text("no computed column")
    page.locator("#table").select_option("t")
    expect(page.get_by_label(re.compile(r"^\s*y\b"))).to_be_checked()
    expect(plan(page, "Rows to compute")).to_contain_text("40")
    page.get_by_label(re.compile("^Fragments in")).fill("1")
    expect(plan(page, "Rows to compute")).to_contain_text("10")
    expect(page.locator("#plan")).to_contain_text("later")
    appliers = page.get_by_label("Appliers")
    appliers.fill("-3")
    expect(page.locator("#plan")).to_contain_text("Appliers: concurrency=-3 must be at least 1")
    expect(appliers).to_have_attribute("aria-invalid", "true")
    appliers.fill("3")
    expect(plan(page, "Rows to compute")).to_contain_text("10")
    expect(appliers).not_to_have_attribute("aria-invalid", "true")


def test_coverage_grows_while_somebody_looks(scene: Scene, service: Service, visit: Visit):
    page = visit(of(scene, "/tables/t"))
    expect(page.locator("#column-y .share")).to_have_text("0%")
    scene.gate.open()
    service.submit()
    expect(page.locator("#column-y .share")).to_have_text("100%")
    expect(page.locator("#column-y")).to_contain_text("4 of 4 fragments complete")
    page.goto(of(scene, "/tables"))
    expect(page.locator(".cover .num")).to_have_text("100%")


def test_group_of_failures_is_looked_at_and_retried(scene: Scene, service: Service, visit: Visit):
    mended = add_picky(scene)
    run = fail(service, scene)
    page = visit(f"/runs/{run}")
    page.get_by_role("link", name="look").click()
    group = page.get_by_role("region", name="ValueError odd row #")
    expect(group).to_contain_text("4 rows of t")
    expect(group).to_contain_text("x=13")
    group.get_by_text("Traceback").first.click()
    expect(group.get_by_text("raise ValueError").first).to_be_visible()
    mended.open()
    group.get_by_role("button", name="Retry these 4 rows").click()
    page.wait_for_url(lambda url: "/runs/" in url and run not in url)
    expect(page.locator("#state")).to_have_text("Succeeded")
    assert column(scene.table, "z") == [2 * x for x in range(40)]
    page.goto(f"/failures?run={run}")
    expect(page.get_by_text("Nothing failed here.")).to_be_visible()


def test_pool_is_made_and_says_who_waits(scene: Scene, service: Service, visit: Visit):
    @geneva.udf
    def plus(x: int) -> int:
        return x + 1

    scene.table.add_columns({"w": plus})
    page = visit("/pools")
    page.get_by_label(re.compile("^Pool")).fill("of one")
    page.get_by_label(re.compile("^Slots")).fill("1")
    page.get_by_role("button", name="Save").click()
    pool = page.locator("[data-pool='of one']")
    expect(pool).to_contain_text("0 of 1 slot taken")
    first = service.submit(arguments=SLOWLY, pool="of one")
    until_row_25(scene)
    second = service.submit("w", pool="of one")
    expect(pool).to_contain_text("1 of 1 slot taken")
    expect(pool).to_contain_text("1 waiting")
    expect(pool.get_by_role("listitem").nth(1)).to_contain_text("1 of 1 slot")
    pool.get_by_role("link", name="Change").click()
    expect(page.get_by_label(re.compile("^Pool"))).to_have_value("of one")
    page.get_by_label(re.compile("^Slots")).fill("")
    page.get_by_role("button", name="Save").click()
    expect(pool).to_contain_text("no cap")
    expect(pool).to_contain_text("0 waiting")
    scene.gate.open()
    for run in (first, second):
        service.until(run, "SUCCEEDED")


def test_pages_of_tables_without_barriers(scene: Scene, service: Service, visit: Visit):
    add_picky(scene)
    run = fail(service, scene)
    page = visit(of(scene, "/tables"), **LOOKS["light"])
    expect(page.locator(".cover .num")).to_have_count(2)
    paths = {
        of(scene, "/tables"): ".cover .num",
        of(scene, "/tables/t"): ".share",
        of(scene, "/submit", table="t", column="z"): "#plan .figures",
        of(scene, "/submit", table="t", column="z", where="x > AND"): "#where-said mark",
        f"/failures?run={run}": ".samples",
        f"/failures?run={run}&table={quote('&nothing')}": ".empty",
        "/pools": ".pool",
    }
    for path, there in paths.items():
        page.goto(path)
        expect(page.locator(there).first).to_be_visible()
        assert barriers_of_looks(page) == {}, path
