"""Routes of pages: they answer errors as pages, and limit the sources that a browser loads."""

from __future__ import annotations

import contextlib
import logging
from collections.abc import Callable, Coroutine
from http import HTTPStatus
from typing import Annotated, Any, TypeVar, cast
from urllib.parse import parse_qsl, urlencode

from fastapi import APIRouter, Depends, FastAPI, Request, Response
from fastapi.exceptions import RequestValidationError
from fastapi.responses import RedirectResponse
from fastapi.routing import APIRoute
from pydantic import BaseModel, ValidationError
from starlette.exceptions import HTTPException

from geneva.errors import GenevaError, SettingError
from geneva.pages.cookies import LoginNeededError, check
from geneva.pages.render import is_piece, render
from geneva.service.access import Role
from geneva.service.metrics import API
from geneva.service.problems import status_of

_LOG = logging.getLogger("geneva.pages")
_SAFETY = {
    "Content-Security-Policy": "default-src 'self'; base-uri 'none'; form-action 'self'; "
    "frame-ancestors 'none'; object-src 'none'",
    "Referrer-Policy": "same-origin",
    "X-Content-Type-Options": "nosniff",
    "X-Frame-Options": "DENY",
}
_Handler = Callable[[Request], Coroutine[Any, Any, Response]]


class _PageRoute(APIRoute):
    def get_route_handler(self) -> _Handler:
        handle = super().get_route_handler()

        async def answer(request: Request) -> Response:
            try:
                response = await handle(request)
            except Exception as error:
                response = _explain(request, error)
            response.headers.update(_SAFETY)
            response.headers.setdefault("Cache-Control", "no-store")
            return response

        return answer


def install_missing(app: FastAPI) -> None:
    """Answer an address that nothing has with a page, if a browser asks and not a program."""
    otherwise: Any = app.exception_handlers[HTTPException]

    async def answer(request: Request, error: Exception) -> Response:
        wants_page = "text/html" in request.headers.get("accept", "")
        missing = isinstance(error, HTTPException) and error.status_code == 404
        if not (wants_page and missing) or request.url.path.startswith(API):
            return cast(Response, otherwise(request, error))
        with contextlib.suppress(LoginNeededError, HTTPException):  # who may see no other pages?
            request.state.role = check(request)
        missing_page = HTTPException(404, f"there is no page {request.url.path}")
        response = _explain(request, missing_page)
        response.headers.update(_SAFETY)
        return response

    app.add_exception_handler(HTTPException, answer)


def _explain(request: Request, error: Exception) -> Response:
    match error:
        case LoginNeededError():
            return _to_login(request)
        case HTTPException():
            status, detail = error.status_code, str(error.detail)
        case RequestValidationError():
            first = error.errors()[0]
            status, detail = 422, f"{'.'.join(str(p) for p in first['loc'])}: {first['msg']}"
        case GenevaError() if (status := status_of(error)) != 500:
            detail = str(error)
        case _:
            _LOG.error("%s %s failed", request.method, request.url.path, exc_info=error)
            status, detail = 500, "the service failed; its log says why"
    title = HTTPStatus(status).phrase
    if is_piece(request):  # the page stays as it is, and says what was wrong
        headers = {"HX-Retarget": "#toast", "HX-Reswap": "innerHTML"}
        return render(request, "_error.html", status=status, headers=headers, detail=detail)
    return render(request, "error.html", status=status, title=title, detail=detail, code=status)


def _to_login(request: Request) -> Response:
    here = request.headers.get("hx-current-url", str(request.url))
    target = "/login?" + urlencode({"next": here})
    if is_piece(request):
        return Response(status_code=401, headers={"HX-Redirect": target})
    return RedirectResponse(target, 303)


def _known(role: Role) -> Callable[[Request], None]:
    def known(request: Request) -> None:
        request.state.role = check(request)
        check(request, role)

    return known


def pages(role: Role | None = Role.VIEWER) -> APIRouter:
    """Return a router for pages.

    Parameters
    ----------
    role
        That a person needs for all of them, or ``None`` if anybody may.
    """
    needed = [] if role is None else [Depends(_known(role))]
    return APIRouter(route_class=_PageRoute, include_in_schema=False, dependencies=needed)


Operator = Depends(_known(Role.OPERATOR))
"""Dependency of a page, or a button, for those who may steer."""


async def _form(request: Request) -> dict[str, str]:
    body = (await request.body()).decode(errors="replace")
    return dict(parse_qsl(body, keep_blank_values=True))


Form = Annotated[dict[str, str], Depends(_form)]
"""The fields of a form; of several with one name the last."""


M = TypeVar("M", bound=BaseModel)


def checked(model: type[M], **fields: Any) -> M:
    """Return fields as REST takes them.

    Raises
    ------
    SettingError
        One does not hold what it should.
    """
    try:
        return model(**fields)
    except ValidationError as error:
        first = error.errors()[0]
        name = ".".join(str(part) for part in first["loc"])
        raise SettingError(f"{name}={first['input']!r}: {first['msg']}") from None
