"""Makes the pictures of docs/screenshots, when asked with --screenshots: a service at work."""

from __future__ import annotations

import io
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pyarrow as pa
import pytest
from PIL import Image
from playwright.sync_api import Browser, Page, expect

import geneva
from tests.support.backfills import Gate, until
from tests.support.browser import LOOKS, Visitor
from tests.support.services import Service

pytestmark = pytest.mark.services

FOLDER = Path(__file__).parents[2] / "docs" / "screenshots"
DESK = {"viewport": {"width": 1280, "height": 820}}
SLOWLY = {"executor": "local", "concurrency": 1, "batch_size": 10, "checkpoint_size": 10}
SHOTS = [
    ("runs", "/runs"),
    ("run", "/runs/{run}"),
    ("timeline", "/timeline"),
    ("tables", "/tables"),
    ("table", "/tables/docs"),
    ("submit", "/submit?table=docs&column=language&where=id+%3C+200+AND+lang+%3D+%27en%27"),
    ("plan", "/submit?table=docs&column=language&column=embedding&redo=failed"),
    ("failures", "/failures"),
    ("pools", "/pools"),
]


@pytest.fixture(autouse=True)
def asked(request: pytest.FixtureRequest) -> None:
    if not request.config.getoption("--screenshots"):
        pytest.skip("pictures are made with --screenshots only")


def documents(first: int, number: int) -> pa.Table:
    ids = range(first, first + number)
    return pa.table({"id": pa.array(ids), "text": [f"document {i} of the corpus" for i in ids]})


def make_tables(folder: Path, gate: Gate) -> None:
    """Make docs, of 48 fragments, and clips, of one, with computed columns."""

    @geneva.udf
    def word_count(text: str) -> int:
        return len(text.split())

    @geneva.udf
    def language(id: int) -> str:
        if id % 97 == 13:
            raise UnicodeError(f"document {id} is no text")
        return "en"

    @geneva.udf
    def embedding(id: int) -> float:
        if id >= 310:
            gate.wait(600)
        time.sleep(0.01)
        return id / 7

    db = geneva.connect(folder)
    docs = db.create_table("docs", documents(0, 10))
    for first in range(10, 480, 10):
        docs.add(documents(first, 10))
    docs.add_columns({"word_count": word_count, "language": language, "embedding": embedding})
    clips = db.create_table("clips", documents(0, 40))
    clips.add_columns({"caption": embedding, "language": language})


@pytest.fixture
def served(tmp_path: Path) -> Iterator[Service]:
    gate = Gate(tmp_path / "gate")
    make_tables(tmp_path / "data", gate)
    running = Service(tmp_path / "state", "data", cwd=tmp_path).start()
    running.db = tmp_path / "data"  # requests name it whole
    yield running
    gate.open()
    running.stop()


def fill(service: Service) -> str:
    """Have a history made, and one run at work; return its id."""
    done = service.submit("word_count", table="docs", name="nightly word count")
    service.until(done, "SUCCEEDED", timeout_s=300)
    partial = service.submit(
        "language", table="docs", arguments={"executor": "local", "on_error": "null"}
    )
    service.until(partial, "PARTIAL", timeout_s=300)
    service.until(service.submit("language", table="clips"), "FAILED", timeout_s=300)
    service.ask("PUT", "/api/v1/pools/gpu", 204, json={"slots": 1})
    arguments = SLOWLY | {"commit_granularity": 8}
    gpu: dict[str, Any] = {"pool": "gpu", "arguments": arguments}
    run = service.submit("embedding", table="docs", name="embed the corpus", **gpu)
    until(lambda: service.job(run)["fragments_done"] >= 30, 600)
    cancelled = service.submit("caption", table="clips", **gpu)
    service.steer(cancelled, "cancel")
    service.until(cancelled, "CANCELLED")
    waits = service.submit("caption", table="clips", priority=5, **gpu)
    until(lambda: "slots of pool gpu" in service.job(waits)["reason"], 300)
    return run


def settle(page: Page) -> None:
    expect(page.locator("#main")).to_be_visible()
    page.evaluate("document.fonts.ready")
    expect(page.locator("[data-pending]")).to_have_count(0)
    if page.locator("[data-grid]").count():
        expect(page.locator("[data-grid][data-drawn]")).to_have_count(1)


def hide_place(page: Page, place: Path) -> None:
    """Show tables where a reader could have them, not where this test has."""
    page.evaluate(
        """([from, to]) => {
            const texts = document.createTreeWalker(document.body, NodeFilter.SHOW_TEXT);
            while (texts.nextNode()) {
                texts.currentNode.data = texts.currentNode.data.replace(from, to);
            }
        }""",
        [str(place), "/srv"],
    )


def picture(page: Page, name: str) -> None:
    """Keep what is seen, in its 256 most frequent colours: a third of the size, the same look."""
    image = Image.open(io.BytesIO(page.screenshot())).convert("RGB")
    counted = sorted(image.getcolors(image.width * image.height), reverse=True)
    palette = Image.new("P", (1, 1))
    palette.putpalette([part for _, colour in counted[:256] for part in colour])
    FOLDER.mkdir(exist_ok=True)
    few = image.quantize(palette=palette, dither=Image.Dither.NONE)
    few.save(FOLDER / f"{name}.png", optimize=True)


@pytest.mark.timeout(1200)
def test_pictures(chromium: Browser, served: Service):
    run = fill(served)
    for look, options in LOOKS.items():
        visitor = Visitor(
            chromium, f"http://127.0.0.1:{served.port}", served.token, **(DESK | options)
        )
        for name, path in SHOTS:
            visitor.page.goto(path.format(run=run))
            settle(visitor.page)
            hide_place(visitor.page, served.cwd)
            assert str(served.cwd) not in visitor.page.inner_text("body")
            picture(visitor.page, f"{name}-{look}")
        visitor.close()
        visitor.check()
