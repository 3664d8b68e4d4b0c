"""Server-sent events: so many streams at once, which together take a bounded share of the service.

A stream looks at the database again and again. All of them share a few threads and a number of
looks a second, so that requests find both free, however many streams are open.
"""

from __future__ import annotations

import asyncio
from collections import Counter
from collections.abc import AsyncIterator, Callable
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from typing import TypeVar

from sse_starlette import EventSourceResponse, ServerSentEvent
from starlette.responses import Response
from starlette.types import Receive, Scope, Send

from geneva.service.problems import problem

T = TypeVar("T")
RETRY_S = 5
_LOOK_S = 0.3
_LOOKS_PER_S = 50
_THREADS = 4
_SHARE = 4  # of all streams, that one client may have


class Streams:
    """The streams of one service.

    Parameters
    ----------
    most
        Open at once; one client may have a quarter of them.
    """

    def __init__(self, most: int) -> None:
        self._most, self._of_one = most, max(most // _SHARE, 1)
        self._open: Counter[str] = Counter()
        self._threads = ThreadPoolExecutor(_THREADS, "geneva-stream")

    @property
    def pause_s(self) -> float:
        """How long a stream waits between two looks."""
        return max(_LOOK_S, self._open.total() / _LOOKS_PER_S)

    async def look(self, ask: Callable[..., T], *of: object) -> T:
        """Call a function that asks the database, in a thread of streams."""
        return await asyncio.get_running_loop().run_in_executor(self._threads, partial(ask, *of))

    def enter(self, client: str) -> Response | None:
        """Count a stream, or return a refusal."""
        after = {"Retry-After": str(RETRY_S)}
        if self._open[client] >= self._of_one:
            detail = f"{client} has {self._of_one} streams open, as many as one client may"
            return problem(429, "TooManyStreams", detail, headers=after)
        if self._open.total() >= self._most:
            detail = f"{self._most} streams are open, as many as this service keeps"
            return problem(503, "TooManyStreams", detail, headers=after)
        self._open[client] += 1
        return None

    def leave(self, client: str) -> None:
        """Take note that a stream has ended."""
        self._open[client] -= 1
        self._open += Counter()  # forgets clients without one


class Stream(EventSourceResponse):
    """A stream that is refused if there are too many, and counted until it ends however it does."""

    def __init__(self, events: AsyncIterator[ServerSentEvent], streams: Streams) -> None:
        super().__init__(events)
        self._streams = streams

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Answer one request."""
        client = (scope.get("client") or ("",))[0]
        refused = self._streams.enter(client)
        if refused is not None:
            await refused(scope, receive, send)
            return
        try:
            await super().__call__(scope, receive, send)
        finally:
            self._streams.leave(client)
