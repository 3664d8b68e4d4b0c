"""Who may see a page and who may press its buttons.

A browser cannot send a bearer token with a link, so a person gives one once and gets a session: a
signed cookie that holds a role and an end, and no token. Only pages take it; the REST interface
does not, so that no page of another site can use it there. Who logs out ends the session itself:
a copy of the cookie is worth nothing from then on.
"""

from __future__ import annotations

import hashlib
import hmac
import secrets
import time
from dataclasses import dataclass

from fastapi import HTTPException, Request, Response

from geneva.service.access import Role, check_origin, parts_of
from geneva.service.service_settings import Settings

_LASTS_S = 7 * 86400
_SAFE = {"GET", "HEAD"}


@dataclass(frozen=True, slots=True)
class Session:
    """The content of a cookie, beside its signature."""

    role: Role
    until_s: int
    id: str

    @property
    def text(self) -> str:
        """The signed text."""
        return f"{self.role.value}.{self.until_s}.{self.id}"


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
    if request.method not in _SAFE:
        check_same_site(request)
    check_origin(request)
    held = _session(request)
    if held is None:
        raise LoginNeededError
    if held.role < role:
        raise HTTPException(403, "you may look, not steer: log in with the operator's token")
    return held.role


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
    session = Session(role, int(time.time()) + _LASTS_S, secrets.token_hex(16))
    response.set_cookie(
        _cookie(settings),
        f"{session.text}.{_sign(settings, session)}",
        max_age=_LASTS_S,
        secure=request.url.scheme == "https",
        httponly=True,
        samesite="lax",
    )


def log_out(request: Request, response: Response) -> None:
    """End the session of a browser, wherever its cookie was copied to."""
    if (held := _session(request)) is not None:
        request.app.state.places.store.end_session(held.id, held.until_s)
    response.delete_cookie(_cookie(request.app.state.settings))


def _cookie(settings: Settings) -> str:
    return f"geneva_{settings.port}"  # browsers share cookies between the ports of a host


def has_session(request: Request) -> bool:
    """Whether a request comes with a session that is good."""
    return _session(request) is not None


def _session(request: Request) -> Session | None:
    """Return the session of a request, if it has one that is neither over nor ended."""
    settings: Settings = request.app.state.settings
    held = _read(settings, request.cookies.get(_cookie(settings), ""))
    if held is None or request.app.state.places.store.is_ended(held.id):
        return None
    return held


def _read(settings: Settings, text: str) -> Session | None:
    try:
        role, until, name, signature = text.split(".")
        content = Session(Role(int(role)), int(until), name)
    except ValueError:
        return None
    if not hmac.compare_digest(signature.encode(), _sign(settings, content).encode()):
        return None
    return content if content.until_s > time.time() else None


def _sign(settings: Settings, session: Session) -> str:
    key = f"{settings.operator_token}\0{settings.viewer_token}".encode()
    return hmac.new(key, f"page.{session.text}".encode(), hashlib.sha256).hexdigest()
