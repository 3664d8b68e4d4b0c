"""Query parameters that no operation has are refused: a misspelt filter would find everything."""

from __future__ import annotations

from fastapi import Request

from geneva.errors import SettingError
from geneva.service.metrics import route_of


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
        told = ", ".join(known) or "none"
        raise SettingError(f"unknown query parameter {unknown[0]!r}; known: {told}")
