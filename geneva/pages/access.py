"""Who may see a page and who may press its buttons.

A browser cannot send a bearer token with a link, so a person gives one once and gets a session: a
signed cookie that holds a role and an end, and no token. Only pages take it; the REST interface
does not, so that no page of another site can use it there.
"""

from __future__ import annotations

import hashlib
import hmac
import time

from fastapi import HTTPException, Request, Response

from geneva.service.access import Role, check_origin, parts_of
from geneva.service.settings import Settings

_LASTS_S = 7 * 86400
_SAFE = {"GET", "HEAD"}


class LoginNeededError(Exception):
    """A page was asked for without a session."""


def check(request: Request, role: Role = Role.VIEWER) -> Role:
    """Return the role of whoever sent a request for a page.

    Raises
    ------
    LoginNeededError
        There is no session, or it is over.
    HTTPException
        403: the role is too low, or the request comes from another site.
    """
    settings: Settings = request.app.state.settings
    if request.method not in _SAFE:
        check_same_site(request)
    if settings.operator_token is None:
        check_origin(request)
        return Role.OPERATOR
    held = _read(settings, request.cookies.get(_cookie(settings), ""))
    if held is None:
        raise LoginNeededError
    if held < role:
        raise HTTPException(403, "you may look, not steer: log in with the operator's token")
    return held


def check_same_site(request: Request) -> None:
    """Refuse a form that another site's page sends: a browser says where it comes from.

    Raises
    ------
    HTTPException
        403.
    """
    origin = request.headers.get("origin", "")
    if parts_of(origin).netloc != request.headers.get("host"):
        raise HTTPException(403, "this was not sent by a page of this service")


def log_in(request: Request, response: Response, role: Role) -> None:
    """Give a browser a session."""
    settings: Settings = request.app.state.settings
    until = int(time.time()) + _LASTS_S
    response.set_cookie(
        _cookie(settings),
        f"{role.value}.{until}.{_sign(settings, role, until)}",
        max_age=_LASTS_S,
        secure=request.url.scheme == "https",
        httponly=True,
        samesite="lax",
    )


def log_out(request: Request, response: Response) -> None:
    """Take the session from a browser."""
    response.delete_cookie(_cookie(request.app.state.settings))


def _cookie(settings: Settings) -> str:
    return f"geneva_{settings.port}"  # browsers share cookies between the ports of a host


def _read(settings: Settings, text: str) -> Role | None:
    try:
        role, until, signature = text.split(".")
        held, ends_s = Role(int(role)), int(until)
    except ValueError:
        return None
    if not hmac.compare_digest(signature.encode(), _sign(settings, held, ends_s).encode()):
        return None
    return held if ends_s > time.time() else None


def _sign(settings: Settings, role: Role, until_s: int) -> str:
    key = f"{settings.operator_token}\0{settings.viewer_token}".encode()
    return hmac.new(key, f"page.{role.value}.{until_s}".encode(), hashlib.sha256).hexdigest()
