"""A token is given here once; the browser has a session then."""

from __future__ import annotations

import logging
from typing import Annotated, Any

from fastapi import Query, Request, Response
from fastapi.responses import RedirectResponse

from geneva.jobs.store.local_service import token_file
from geneva.pages import cookies
from geneva.pages.render import render
from geneva.pages.routes import Form, pages
from geneva.service.access import Door, Role, check_origin, parts_of
from geneva.service.service_settings import Settings

router = pages(role=None)

_LOG = logging.getLogger("geneva.service")
_Code = Annotated[str | None, Query(alias="token", max_length=200)]
_Next = Annotated[str, Query(alias="next", max_length=2000)]


@router.get("/login")
def show(request: Request, after: _Next = "/") -> Response:
    """Ask for a token."""
    return _form(request, after=_here(after), wrong=False)


@router.get("/")
def home(request: Request, code: _Code = None) -> Response:
    """Begin with the runs; an address that is good once brings a session."""
    response = RedirectResponse("/runs", 303)
    if code is not None and not cookies.has_session(request):
        check_origin(request)
        door: Door = request.app.state.door
        if door.takes_code(request, code):
            cookies.log_in(request, response, Role.OPERATOR)
            _LOG.info("for another browser: %s?token=%s", request.base_url, door.code)
    return response


@router.post("/login")
def log_in(request: Request, form: Form) -> Response:
    """Take a token, and go where the person wanted to."""
    cookies.check_same_site(request)
    door: Door = request.app.state.door
    after = _here(form.get("next", "/"))
    role = door.role_of(request, form.get("token", "").strip())
    if role is None:
        return _form(request, status=401, after=after, wrong=True)
    response = RedirectResponse(after, 303)
    cookies.log_in(request, response, role)
    return response


@router.post("/logout")
def log_out(request: Request) -> Response:
    """End the session."""
    cookies.check_same_site(request)
    response = RedirectResponse("/login", 303)
    cookies.log_out(request, response)
    return response


def _form(request: Request, **shown: Any) -> Response:
    settings: Settings = request.app.state.settings
    port = request.url.port
    own = token_file(port) if settings.own_token and port else None
    return render(request, "login.html", own_token=own, **shown)


def _here(url: str) -> str:
    """Return a path of this service: where else a link wants to lead, nobody is sent."""
    parts = parts_of(url)
    path = "/" + parts.path.lstrip("/\\")
    return f"{path}?{parts.query}" if parts.query else path
