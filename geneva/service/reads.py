"""Short reads of the database of jobs: answered as JSON, from few threads.

A thread that reads SQLite gives up Python's lock at each row, and has to win it back from all that
run. Requests that come while others are answered must not each have a thread: with 32 of them one
request costs several times what it costs alone, and a service that is behind never catches up.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Coroutine
from concurrent.futures import ThreadPoolExecutor
from functools import partial, wraps
from typing import Any, ParamSpec, TypeVar, get_type_hints

from fastapi import Response
from pydantic import TypeAdapter

P = ParamSpec("P")
T = TypeVar("T")
_THREADS = 4  # long pages hold up others only when there are as many of them
_READERS = ThreadPoolExecutor(_THREADS, "geneva-read")


async def reading(ask: Callable[[], T]) -> T:
    """Call a function that asks the database, in a thread for short reads."""
    return await asyncio.get_running_loop().run_in_executor(_READERS, ask)


def read(endpoint: Callable[P, Any]) -> Callable[P, Coroutine[Any, Any, Response]]:
    """Let an endpoint run there; its result is of the declared type, and not checked again."""
    to_json = TypeAdapter(get_type_hints(endpoint)["return"]).dump_json

    def answer(question: Callable[[], Any]) -> bytes:
        return to_json(question())

    @wraps(endpoint)
    async def answered(*args: P.args, **given: P.kwargs) -> Response:
        question = partial(endpoint, *args, **given)
        return Response(await reading(partial(answer, question)), media_type="application/json")

    return answered
