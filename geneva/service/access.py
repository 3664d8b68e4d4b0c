"""Who may look and who may steer.

Every request but those for health needs a token. A service that was given none makes one, listens
on loopback only, and lets the clients of its own account read the token from a file; a browser is
let in by an address that is good once. A page of another site, in a browser of this host, does not
reach it either.
"""

from __future__ import annotations

import hmac
import math
import secrets
import threading
from collections.abc import Callable, Coroutine
from enum import IntEnum
from typing import Annotated, Any
from urllib.parse import SplitResult, urlsplit

from fastapi import Depends, HTTPException, Request, Security
from fastapi.security import HTTPAuthorizationCredentials, HTTPBearer

from geneva.errors import SettingError
from geneva.jobs.store.local_service import LOOPBACK
from geneva.service.limits import Guesses
from geneva.service.metrics import route_of
from geneva.service.service_settings import Settings

_BEARER = HTTPBearer(auto_error=False, description="GENEVA_TOKEN or GENEVA_VIEWER_TOKEN")
_Credentials = Annotated[HTTPAuthorizationCredentials | None, Security(_BEARER)]


class Role(IntEnum):
    """A role; a higher one may do all that a lower one may."""

    VIEWER = 1
    OPERATOR = 2


def needs(role: Role) -> Callable[..., Coroutine[Any, Any, None]]:
    """Return a dependency that refuses requests of a lower role."""

    async def check(request: Request, credentials: _Credentials) -> None:
        door: Door = request.app.state.door
        check_origin(request)
        held = None if credentials is None else door.role_of(request, credentials.credentials)
        if held is None:
            raise HTTPException(
                401,
                "send one of the service's tokens as `Authorization: Bearer ...`",
                headers={"WWW-Authenticate": "Bearer"},
            )
        if held < role:
            raise HTTPException(403, "this token may look, not steer")
        request.state.role = held
        check_query(request)

    return check


class Door:
    """Looks at tokens; whoever sends wrong ones has to wait.

    Parameters
    ----------
    settings
        With a token.
    """

    def __init__(self, settings: Settings, guesses: Guesses) -> None:
        self._settings, self._guesses = settings, guesses
        self._lock = threading.Lock()
        self._code = secrets.token_urlsafe(32)

    def role_of(self, request: Request, given: str) -> Role | None:
        """Return the role of a token's holder, or ``None`` if it is none of ours.

        Raises
        ------
        HTTPException
            429: so many wrong ones came from there that this one is not looked at.
        """
        # Nobody guesses a token of ours, and every account of the host comes from one address: they
        # must not be able to keep the right one out.
        if not self._settings.own_token:
            self._check_wait(request)
        role = _role_of(self._settings, given)
        if role is None:
            self._check_wait(request)
            self._guesses.wrong(client_of(request))
        return role

    @property
    def code(self) -> str:
        """The word in the address that lets a browser in; it is good once."""
        with self._lock:
            return self._code

    def takes_code(self, request: Request, given: str) -> bool:
        """Whether a word is the one that lets a browser in, which is another one from then on."""
        with self._lock:
            if self._settings.own_token and hmac.compare_digest(
                given.encode(), self._code.encode()
            ):
                self._code = secrets.token_urlsafe(32)
                return True
        self._check_wait(request)
        self._guesses.wrong(client_of(request))
        return False

    def _check_wait(self, request: Request) -> None:
        if wait_s := self._guesses.wait_s(client_of(request)):
            after = str(math.ceil(wait_s))
            raise HTTPException(
                429,
                f"too many wrong tokens; try again in {after} s",
                headers={"Retry-After": after},
            )


def client_of(request: Request) -> str:
    """Return the address of whoever asks."""
    return request.client.host if request.client else ""


def _role_of(settings: Settings, given: str) -> Role | None:
    found = None
    for token, role in (
        (settings.viewer_token, Role.VIEWER),
        (settings.operator_token, Role.OPERATOR),
    ):
        if token and hmac.compare_digest(given.encode(), token.encode()):
            found = role
    return found


def check_origin(request: Request) -> None:
    """Refuse requests from another site's page to a service that was given no token.

    Also by a name that it lets point to loopback.

    Raises
    ------
    HTTPException
        403.
    """
    settings: Settings = request.app.state.settings
    if not settings.own_token:
        return
    host = request.headers.get("host", "")
    if parts_of(f"//{host}").hostname not in LOOPBACK:
        raise HTTPException(403, "without tokens the service answers to 127.0.0.1 only")
    origin = request.headers.get("origin")
    if origin is not None and parts_of(origin).netloc != host:
        raise HTTPException(403, "requests of other sites are refused")


def parts_of(url: str) -> SplitResult:
    """Return the parts of a URL that somebody sent; empty parts if it is none."""
    try:
        return urlsplit(url)
    except ValueError:
        return urlsplit("")


Viewer = Depends(needs(Role.VIEWER))
Operator = Depends(needs(Role.OPERATOR))


def check_query(request: Request) -> None:
    """Refuse query parameters that the operation of a request does not have.

    Raises
    ------
    SettingError
        The message names those that it has.
    """
    if not request.query_params:
        return
    verbs = request.app.openapi()["paths"].get(route_of(request.scope), {})
    operation = verbs.get(request.method.lower(), {})
    known = [p["name"] for p in operation.get("parameters", ()) if p["in"] == "query"]
    if unknown := [name for name in request.query_params if name not in known]:
        names = ", ".join(known) or "none"
        raise SettingError(f"unknown query parameter {unknown[0]!r}; known: {names}")
