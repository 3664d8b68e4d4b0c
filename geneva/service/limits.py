"""How much one request may hold, and how many a client may send: before anything looks at them."""

from __future__ import annotations

import logging
import math
import time
from collections import OrderedDict
from collections.abc import Callable
from dataclasses import dataclass

from starlette.responses import Response
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from geneva.service.problems import problem

_LOG = logging.getLogger("geneva.service")
MAX_BODY_BYTES = 1_000_000
MAX_HEADER_BYTES = 16_384
MAX_URL_BYTES = 8_192
_CLIENTS = 10_000
_BURST_S = 2.0
_GUESSES, _GUESSES_PER_S = 10.0, 0.5  # wrong tokens of one client: at once, and from then on
_FREE = {"/healthz", "/readyz"}  # whoever asks these restarts what does not answer


@dataclass(slots=True)
class _Bucket:
    tokens: float
    at_s: float


class Rate:
    """Requests that each client may still send: so many a second, and a burst of twice that.

    Parameters
    ----------
    per_s
        0 for no limit.
    burst
        How many at once; by default those of two seconds.
    """

    def __init__(self, per_s: float, burst: float | None = None) -> None:
        self._per_s, self._burst = per_s, burst or max(per_s * _BURST_S, 1.0)
        self._buckets: OrderedDict[str, _Bucket] = OrderedDict()

    def wait_s(self, client: str, now_s: float, count: int = 1) -> float:
        """Count a request, and return 0; or return how long the client is to wait."""
        if not self._per_s:
            return 0.0
        bucket = self._buckets.setdefault(client, _Bucket(self._burst, now_s))
        self._buckets.move_to_end(client)
        while len(self._buckets) > _CLIENTS:
            self._buckets.popitem(last=False)
        gained = (now_s - bucket.at_s) * self._per_s
        bucket.tokens, bucket.at_s = min(self._burst, bucket.tokens + gained), now_s
        if bucket.tokens < 1:
            return (1 - bucket.tokens) / self._per_s
        bucket.tokens -= count
        return 0.0


class Guesses:
    """Wrong tokens: few of one client are looked at, and all are counted.

    Parameters
    ----------
    counted
        Called for each.
    """

    def __init__(self, counted: Callable[[], None]) -> None:
        self._rate, self._counted = Rate(_GUESSES_PER_S, _GUESSES), counted

    def wait_s(self, client: str) -> float:
        """Return how long a client is to wait before a token of it is looked at."""
        return self._rate.wait_s(client, time.monotonic(), count=0)

    def wrong(self, client: str) -> None:
        """Take note of a wrong token."""
        self._counted()
        self._rate.wait_s(client, time.monotonic())
        _LOG.warning("a wrong token came from %s", client)


class Limits:
    """Refuses requests that are larger than any of ours, and clients that send too many."""

    def __init__(self, app: ASGIApp, per_s: float) -> None:
        self._app, self._rate = app, Rate(per_s)

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Answer one request."""
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        refused = self._too_many(scope) or _unfit(scope)
        if refused is not None:
            await refused(scope, receive, send)
            return
        body = await _body(receive)
        if body is None:
            await _refusal(413, "TooLarge", f"a request holds at most {MAX_BODY_BYTES:,} bytes")(
                scope, receive, send
            )
            return
        given = False

        async def replay() -> Message:
            nonlocal given
            if given:
                return await receive()
            given = True
            return {"type": "http.request", "body": body, "more_body": False}

        await self._app(scope, replay, send)

    def _too_many(self, scope: Scope) -> Response | None:
        if scope["path"] in _FREE:
            return None
        client = (scope.get("client") or ("",))[0]
        wait_s = self._rate.wait_s(client, time.monotonic())
        if not wait_s:
            return None
        after = str(math.ceil(wait_s))
        detail = f"too many requests from {client}; try again in {after} s"
        return problem(429, "TooManyRequests", detail, headers={"Retry-After": after})


def _refusal(status: int, kind: str, detail: str) -> Response:
    return problem(status, kind, detail, headers={"Connection": "close"})


def _unfit(scope: Scope) -> Response | None:
    """Return a refusal that needs no body, if there is cause."""
    if b"%00" in scope["query_string"] or "\0" in scope["path"]:
        return _refusal(400, "BadRequest", "a URL must not hold a NUL")
    if len(scope.get("raw_path") or scope["path"]) + len(scope["query_string"]) > MAX_URL_BYTES:
        return _refusal(414, "TooLarge", f"a URL holds at most {MAX_URL_BYTES:,} bytes")
    if sum(len(n) + len(v) for n, v in scope["headers"]) > MAX_HEADER_BYTES:
        return _refusal(431, "TooLarge", f"headers hold at most {MAX_HEADER_BYTES:,} bytes")
    return None


async def _body(receive: Receive) -> bytes | None:
    """Return the body, or ``None`` as soon as it is too large."""
    body = bytearray()
    more = True
    while more:
        message = await receive()
        body += message.get("body", b"")
        more = message.get("more_body", False)
        if len(body) > MAX_BODY_BYTES:
            return None
    return bytes(body)
