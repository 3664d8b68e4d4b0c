"""Who may look and who may steer.

With tokens, every request but those for health needs one. Without tokens the service listens on
loopback only; then a page of another site, in a browser of this host, must not reach it either.
"""

from __future__ import annotations

import hmac
from collections.abc import Callable, Coroutine
from enum import IntEnum
from typing import Annotated, Any
from urllib.parse import SplitResult, urlsplit

from fastapi import Depends, HTTPException, Request, Security
from fastapi.security import HTTPAuthorizationCredentials, HTTPBearer

from geneva.service.settings import Settings

_BEARER = HTTPBearer(auto_error=False, description="GENEVA_TOKEN or GENEVA_VIEWER_TOKEN")
_LOOPBACK = {"127.0.0.1", "::1", "localhost"}
_Credentials = Annotated[HTTPAuthorizationCredentials | None, Security(_BEARER)]


class Role(IntEnum):
    """What somebody may do; a higher one may do all that a lower one may."""

    VIEWER = 1
    OPERATOR = 2


def needs(role: Role) -> Callable[..., Coroutine[Any, Any, None]]:
    """Return a dependency that refuses requests of a lower role."""

    async def check(request: Request, credentials: _Credentials) -> None:
        settings: Settings = request.app.state.settings
        if settings.operator_token is None:
            check_origin(request)
            return
        held = None if credentials is None else role_of(settings, credentials.credentials)
        if held is None:
            raise HTTPException(
                401,
                "send one of the service's tokens as `Authorization: Bearer ...`",
                headers={"WWW-Authenticate": "Bearer"},
            )
        if held < role:
            raise HTTPException(403, "this token may look, not steer")

    return check


def role_of(settings: Settings, given: str) -> Role | None:
    """Return what the holder of a token may do, or ``None`` if it is none of ours."""
    found = None
    for token, role in (
        (settings.viewer_token, Role.VIEWER),
        (settings.operator_token, Role.OPERATOR),
    ):
        if token and hmac.compare_digest(given.encode(), token.encode()):
            found = role
    return found


def check_origin(request: Request) -> None:
    """Refuse what another site's page sends, also by a name that it lets point to loopback.

    Raises
    ------
    HTTPException
        403.
    """
    host = request.headers.get("host", "")
    if parts_of(f"//{host}").hostname not in _LOOPBACK:
        raise HTTPException(403, "without tokens the service answers to 127.0.0.1 only")
    origin = request.headers.get("origin")
    if origin is not None and parts_of(origin).netloc != host:
        raise HTTPException(403, "requests of other sites are refused")


def parts_of(url: str) -> SplitResult:
    """Return the parts of what somebody sent as a URL; of one that is none, none."""
    try:
        return urlsplit(url)
    except ValueError:
        return urlsplit("")


Viewer = Depends(needs(Role.VIEWER))
Operator = Depends(needs(Role.OPERATOR))
