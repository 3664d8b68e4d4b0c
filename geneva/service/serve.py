"""Run the service: REST, and a scheduler in a thread of it."""

from __future__ import annotations

import contextlib
import gc
import logging
import socket
import threading
from collections.abc import Callable, Iterator

import uvicorn
from fastapi import FastAPI

from geneva.connection import import_lancedb
from geneva.errors import SettingError
from geneva.jobs.store.local_service import forget_token, keep_token
from geneva.jobs.store.opening import open_store
from geneva.service.app import create_app
from geneva.service.opened_tables import storage_options
from geneva.service.scheduler import Scheduler
from geneva.service.service_settings import Settings

_LOG = logging.getLogger("geneva.service")


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
        app,
        host=settings.host,
        port=settings.port,
        log_level="info",
        server_header=False,
        proxy_headers=bool(settings.proxies),
        forwarded_allow_ips=list(settings.proxies),
    )
    if settings.db is not None:
        import_lancedb()  # now: later, every request would wait for it
    _settle()
    scheduler = Scheduler(settings) if schedule else None
    with contextlib.ExitStack() as stack:

        def begun(port: int) -> None:
            if scheduler is not None:
                stack.enter_context(_scheduling(scheduler))
            if app.state.settings.own_token:
                _let_in(app, port)

        server = _Server(config, begun, lambda port: _forget_token(app, port))
        try:
            server.run()
        except SystemExit as error:
            if server.started:
                raise
            raise SettingError(
                f"the service cannot listen on {settings.host}:{settings.port}, as the log says; "
                "if another one is there, --port names another port"
            ) from error


class _Server(uvicorn.Server):
    """Tells when its port is bound, and which one, so that a scheduler starts only then."""

    def __init__(
        self,
        config: uvicorn.Config,
        begun: Callable[[int], None],
        ending: Callable[[int], None],
    ) -> None:
        super().__init__(config)
        self._begun, self._ending = begun, ending

    async def startup(self, sockets: list[socket.socket] | None = None) -> None:
        await super().startup(sockets)
        if not self.should_exit:
            self._begun(self._port)

    async def shutdown(self, sockets: list[socket.socket] | None = None) -> None:
        if self.started:  # a signal that ended it is raised again before anybody else can tidy up
            self._ending(self._port)
        await super().shutdown(sockets)

    @property
    def _port(self) -> int:
        return int(self.servers[0].sockets[0].getsockname()[1])


def _let_in(app: FastAPI, port: int) -> None:
    """Write down the token for clients of this account, and say how a browser gets in."""
    settings: Settings = app.state.settings
    try:
        keep_token(port, str(settings.operator_token))
    except OSError as error:
        _LOG.warning("clients of this account cannot read the token: %s; set GENEVA_TOKEN", error)
    host = f"[{settings.host}]" if ":" in settings.host else settings.host
    _LOG.info("open http://%s:%s/?token=%s (good once)", host, port, app.state.door.code)


def _forget_token(app: FastAPI, port: int) -> None:
    if app.state.settings.own_token:
        forget_token(port, str(app.state.settings.operator_token))


def _settle() -> None:
    """Hide loaded modules from the garbage collector: they stay anyhow.

    A full collection walks through all of it, and every request waits for as long: 70 to 100 ms.
    """
    gc.collect()
    gc.freeze()
