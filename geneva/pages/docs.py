"""The page of the REST interface, made from its schema; it loads nothing from elsewhere."""

from __future__ import annotations

import json

from fastapi import Request, Response

from geneva.jobs.store.local_service import token_file
from geneva.pages.render import render
from geneva.pages.routes import pages
from geneva.service.described import ApiOperation, described
from geneva.service.problems import STATUSES
from geneva.service.service_settings import Settings

router = pages()


@router.get("/docs")
def docs(request: Request) -> Response:
    """Show every operation and every model."""
    found = described(request.app.openapi())
    settings: Settings = request.app.state.settings
    base = str(request.base_url).rstrip("/")
    port = request.url.port
    token = f"$(cat {token_file(port)})" if settings.own_token and port else "$GENEVA_TOKEN"
    calls = {o.verb + o.path: _call(o, base, token) for tag in found.tags for o in tag.operations}
    return render(request, "docs.html", found=found, calls=calls, statuses=STATUSES)


def _call(operation: ApiOperation, base: str, token: str) -> str:
    """Return a command for a shell; words in braces are to be filled in."""
    words = ["curl"]
    if operation.verb != "GET":
        words.append(f"-X {operation.verb}")
    words.append(f"'{base}{operation.path}'")
    words.append(f'-H "Authorization: Bearer {token}"')
    if operation.body is not None:
        body = json.dumps(operation.example)
        words += ["-H 'Content-Type: application/json'", f"-d '{body}'"]
    return " ".join(words)
