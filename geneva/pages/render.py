"""Templates: their shared functions, and pages made of them."""

from __future__ import annotations

import hashlib
from datetime import UTC, datetime
from functools import cache
from importlib.metadata import version
from pathlib import Path
from typing import Any

from fastapi import Request
from jinja2 import Environment, PackageLoader, StrictUndefined
from starlette.responses import HTMLResponse, Response
from starlette.staticfiles import StaticFiles
from starlette.types import Scope

from geneva.jobs.records import STAGES
from geneva.pages import texts
from geneva.pages.texts import look_of
from geneva.service.access import Role
from geneva.service.service_settings import Settings

STATIC = Path(__file__).parent / "static"
THEME = "geneva_theme"
_NAV = (
    ("runs", "Runs", "/runs"),
    ("timeline", "Timeline", "/timeline"),
    ("failures", "Failures", "/failures"),
    ("tables", "Tables", "/tables"),
    ("pools", "Pools", "/pools"),
    ("submit", "Submit", "/submit"),
)


@cache
def _environment() -> Environment:
    made = Environment(
        loader=PackageLoader("geneva.pages"),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    for name in ("count", "short", "duration", "moment", "clock", "percent"):
        made.filters[name] = getattr(texts, name)
    made.filters["type"] = texts.type_name
    made.filters["ago"] = lambda at: texts.ago(at, datetime.now(UTC))
    made.globals |= {
        "nav": _NAV,
        "static": static,
        "look_of": look_of,
        "STAGES": STAGES,
        "version": version("geneva-backfill"),
    }
    return made


def render(
    request: Request,
    name: str,
    /,
    *,
    status: int = 200,
    headers: dict[str, str] | None = None,
    **context: Any,
) -> HTMLResponse:
    """Return a page, or a piece of one, made of a template.

    Templates also get ``request``, ``theme``, ``path``, ``db`` (the service's own
    database of tables) and, once somebody is known, ``may_steer``, ``session`` and ``trouble``.
    """
    settings: Settings = request.app.state.settings
    theme = request.cookies.get(THEME)
    held = getattr(request.state, "role", None)
    text = (
        _environment()
        .get_template(name)
        .render(
            request=request,
            theme=theme if theme in ("light", "dark") else None,
            path=request.url.path,
            db=settings.db,
            may_steer=held is Role.OPERATOR,
            known=held is not None,
            trouble=trouble_of(request) if held is not None else "",
            session=held is not None,
            **context,
        )
    )
    return HTMLResponse(text, status, headers)


def trouble_of(request: Request) -> str:
    """Return why the service cannot do its work, or nothing."""
    return str(request.app.state.places.health().reason)


def is_piece(request: Request) -> bool:
    """Whether htmx asks, which puts the answer into the page that is there."""
    return request.headers.get("hx-request-type") == "partial"


@cache
def _digest(name: str) -> str:
    return hashlib.sha256((STATIC / name).read_bytes()).hexdigest()[:12]


def static(name: str) -> str:
    """Return the address of a file, which changes with its content."""
    return f"/static/{name}?v={_digest(name)}"


class Static(StaticFiles):
    """Files that a browser keeps for a year, as their addresses change with them."""

    async def get_response(self, path: str, scope: Scope) -> Response:
        """Return a file."""
        response = await super().get_response(path, scope)
        named_for_good = path.startswith("vendor/") or scope["query_string"].startswith(b"v=")
        if named_for_good and response.status_code == 200:
            response.headers["Cache-Control"] = "public, max-age=31536000, immutable"
        return response
