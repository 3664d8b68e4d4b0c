"""No page needs anything from another site: every page of the service is opened and read."""

from __future__ import annotations

import html
import re
from collections.abc import Iterator
from pathlib import Path
from urllib.parse import urljoin

import pytest
from fastapi import FastAPI
from fastapi.testclient import TestClient

from geneva.jobs.store.store import Store
from geneva.pages.render import STATIC
from tests.service.conftest import Scene
from tests.service.test_pages import browser_for

_LINKS = re.compile(r"""\s(?:href|data-[\w-]+|hx-get)=["']([/?][^"']*)["']""")
_ELSEWHERE = re.compile(
    r"""\s(?:src|href|action|formaction|poster|srcset|data|hx-\w+)\s*=\s*["']?\s*(?:\w+:)?//[^\s>]*"""
    r"""|url\(\s*["']?\s*(?:\w+:)?//[^)]*|@import[^;]*|\b(?:import|fetch)\s*\(?\s*["']\w+://[^"']*""",
    re.IGNORECASE,
)
_MOST = 300


@pytest.fixture
def jobs_url(tmp_path: Path) -> str:
    """One kind of database is enough."""
    return f"sqlite:///{tmp_path / 'jobs.db'}"


@pytest.fixture
def web(jobs: Store, scene: Scene) -> Iterator[TestClient]:
    with browser_for(jobs, scene.path.parent) as client:
        body = {"table": "t", "columns": ["y"], "arguments": {"executor": "local"}}
        assert client.post("/api/v1/runs", json=body).status_code == 201
        yield client


def walked(web: TestClient) -> dict[str, str]:
    """Return what a person, or a page, can come to: pages by their addresses here."""
    app = web.app
    assert isinstance(app, FastAPI)
    plain = [str(getattr(route, "path", "")) for route in app.routes]
    left = ["/runs", "/login", *(path for path in plain if path and "{" not in path)]
    found: dict[str, str] = {}
    while left and len(found) < _MOST:
        page = left.pop()
        if page in found or page.startswith("/static"):
            continue
        answer = web.get(page, follow_redirects=True)
        is_page = answer.headers.get("content-type", "").startswith("text/html")
        found[page] = answer.text if is_page else ""
        links = map(html.unescape, _LINKS.findall(found[page]))
        left += [urljoin(page, link.partition("#")[0]) for link in links]
    return found


def test_no_page_names_another_site(web: TestClient):
    pages = walked(web)
    assert len(pages) < _MOST  # all of them
    named = {page: _ELSEWHERE.findall(text) for page, text in pages.items()}
    assert {page: found for page, found in named.items() if found} == {}
    for shown in (
        "/docs|/login|/runs|/timeline|/failures|/tables|/pools|/submit|/tables/t",
        r"/runs/\w+|/jobs/\w+/logs|/tables/t/coverage/y\S*",
    ):
        for one in shown.split("|"):
            assert any(re.fullmatch(one, page) and pages[page] for page in pages), one


def test_no_style_or_script_of_ours_names_another_site():
    texts = {p.name: p.read_text() for p in STATIC.iterdir() if p.is_file()}
    assert {"geneva.css", "geneva.js", "icons.svg"} <= set(texts)
    named = {name: _ELSEWHERE.findall(text) for name, text in texts.items()}
    assert {name: found for name, found in named.items() if found} == {}


def test_docs_list_every_operation_and_lead_to_the_schema(web: TestClient):
    schema = web.get("/openapi.json").json()
    text = html.unescape(web.get("/docs").text)
    for path, verbs in schema["paths"].items():
        for verb, operation in verbs.items():
            assert re.search(rf">{verb.upper()}</span> {re.escape(path)}<", text), (verb, path)
            assert operation["description"].partition("\n")[0] in text
    assert 'href="/openapi.json"' in text
    assert web.get("/redoc").status_code == 404
