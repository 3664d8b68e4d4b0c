"""Run the service: REST, and a scheduler in a thread of it."""

from __future__ import annotations

import contextlib
import gc
import threading
from collections.abc import Callable, Iterator

import uvicorn
from fastapi import FastAPI

from geneva.connection import import_lancedb
from geneva.service.app import create_app
from geneva.service.scheduler import Scheduler
from geneva.service.settings import Settings
from geneva.service.tables import storage_options
from geneva.store.place import open_store


@contextlib.contextmanager
def _scheduling(scheduler: Scheduler) -> Iterator[None]:
    scheduler.try_to_tick()  # all that is queued is read, before anybody waits for an answer
    thread = threading.Thread(target=scheduler.run, name="geneva-scheduler", daemon=True)
    thread.start()
    try:
        yield
    finally:
        scheduler.stop()
        thread.join(10)


def serve(
    settings: Settings, *, schedule: bool = True, pages: Callable[[FastAPI], None] | None = None
) -> None:
    """Answer requests until a signal comes; drivers go on.

    Parameters
    ----------
    schedule
        Whether to schedule too; else another process does it.
    pages
        Adds what people look at to the REST interface.
    """
    storage_options("")  # a file that is wrong is refused now
    settings.keep_private()
    store = open_store(settings.url)
    app = create_app(settings, store)
    if pages is not None:
        pages(app)
    config = uvicorn.Config(
        app, host=settings.host, port=settings.port, log_level="info", server_header=False
    )
    server = uvicorn.Server(config)
    if settings.db is not None:
        import_lancedb()  # now: later, every request would wait for it
    _settle()
    with contextlib.ExitStack() as stack:
        if schedule:
            stack.enter_context(_scheduling(Scheduler(settings)))
        server.run()


def _settle() -> None:
    """Keep what was loaded out of the sight of the garbage collector: it stays anyhow.

    A full collection walks through all of it, and every request waits for as long: 70 to 100 ms.
    """
    gc.collect()
    gc.freeze()
