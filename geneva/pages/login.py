"""A token is given here once; the browser has a session then."""

from __future__ import annotations

from typing import Annotated

from fastapi import Query, Request, Response
from fastapi.responses import RedirectResponse

from geneva.pages import access
from geneva.pages.render import render
from geneva.pages.routes import Form, pages
from geneva.service.access import parts_of, role_of
from geneva.service.settings import Settings

router = pages(role=None)

_Next = Annotated[str, Query(alias="next", max_length=2000)]


@router.get("/login")
def show(request: Request, after: _Next = "/") -> Response:
    """Ask for a token."""
    return render(request, "login.html", after=_here(after), wrong=False)


@router.post("/login")
def log_in(request: Request, form: Form) -> Response:
    """Take a token, and go where the person wanted to."""
    access.check_same_site(request)
    settings: Settings = request.app.state.settings
    after = _here(form.get("next", "/"))
    role = role_of(settings, form.get("token", "").strip())
    if role is None:
        return render(request, "login.html", status=401, after=after, wrong=True)
    response = RedirectResponse(after, 303)
    access.log_in(request, response, role)
    return response


@router.post("/logout")
def log_out(request: Request) -> Response:
    """End the session."""
    access.check_same_site(request)
    response = RedirectResponse("/login", 303)
    access.log_out(request, response)
    return response


def _here(url: str) -> str:
    """Return a path of this service: where else a link wants to lead, nobody is sent."""
    parts = parts_of(url)
    path = "/" + parts.path.lstrip("/\\")
    return f"{path}?{parts.query}" if parts.query else path
