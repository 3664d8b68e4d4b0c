"""The settings of a service."""

from __future__ import annotations

import os
import re
import secrets
from dataclasses import dataclass, field, replace
from pathlib import Path

from geneva.errors import SettingError
from geneva.jobs.store.database import password_of
from geneva.jobs.store.local_service import LOOPBACK, state_folder
from geneva.service.opened_tables import Databases
from geneva.storage.private import private_folder, tighten, tighten_all

DRIVER_CLAIM = "GENEVA_DRIVER_CLAIM"
_OURS = re.compile(r"logs|jobs\.db.*|.*\.log")  # what a service keeps in its state folder
_LEAST_TOKEN = 12  # characters: a guesser may try one a second, for ever


@dataclass(frozen=True, slots=True)
class Settings:
    """Settings of a service.

    Attributes
    ----------
    url
        Of the database of jobs.
    state
        Folder of the logs of drivers, and of the database unless that is elsewhere.
    db
        Database of tables that a request means when it names none.
    allow_db
        Folders and URIs whose databases may be opened beside it.
    operator_token, viewer_token
        Who has one may steer, or look. Without them the service makes one, on loopback only.
    own_token
        Whether it did.
    proxies
        Addresses of those who may say for whom they ask (``X-Forwarded-For``).
    tick_s, grace_s
        Seconds between two looks of the scheduler, and that a driver has to stop as is wanted.
    max_drivers
        That may run at once on the host of a scheduler.
    requests_per_s
        That one client may send, with bursts of twice as many; 0 for no limit.
    max_streams
        Streams of events that are open at once; one client may have a quarter of them.
    watch_s
        Seconds between two looks at the tables of ``db`` for columns that are kept filled; 0 for
        never.
    keep_s
        How long records of ended runs are kept, or ``None`` for ever.
    """

    url: str = field(repr=False)
    state: Path
    db: str | None = None
    allow_db: tuple[str, ...] = ()
    host: str = "127.0.0.1"
    port: int = 8265
    operator_token: str | None = field(default=None, repr=False)
    viewer_token: str | None = field(default=None, repr=False)
    own_token: bool = False
    proxies: tuple[str, ...] = ()
    tick_s: float = 0.25
    grace_s: float = 15.0
    max_drivers: int = 8
    requests_per_s: float = 500.0
    max_streams: int = 200
    watch_s: float = 1.0
    keep_s: float | None = None

    def __post_init__(self) -> None:
        if not self.operator_token and self.host not in LOOPBACK:
            raise SettingError(
                f"--host {self.host} lets others in: set GENEVA_TOKEN (and perhaps "
                "GENEVA_VIEWER_TOKEN), or listen on 127.0.0.1"
            )
        if self.viewer_token and not self.operator_token:
            raise SettingError("GENEVA_VIEWER_TOKEN needs GENEVA_TOKEN, or nobody could steer")

    def with_token(self) -> Settings:
        """Return settings with a token, one that nobody can guess if none was given."""
        if self.operator_token:
            return self
        return replace(self, operator_token=secrets.token_urlsafe(32), own_token=True)

    @property
    def databases(self) -> Databases:
        """The databases that the service and its drivers open."""
        own = () if self.db is None else (self.db,)
        return Databases((*own, *self.allow_db))

    @property
    def logs(self) -> Path:
        """Folder of the logs of drivers."""
        return self.state / "logs"

    @property
    def secrets(self) -> tuple[str, ...]:
        """The secrets that no driver, no applier and no other account may read."""
        held = (self.operator_token, self.viewer_token, password_of(self.url))
        return tuple(s for s in held if s)

    def keep_private(self) -> None:
        """Make the folder of the state for the service's account alone, with all that is in it.

        One that holds other things than a service's is left as it is, but for what is ours.
        """
        private_folder(self.state)
        private_folder(self.logs)
        tighten_all(self.logs)
        if all(_OURS.fullmatch(p.name) for p in self.state.iterdir()):
            tighten(self.state)


def token_of(name: str) -> str | None:
    """Return a token of the environment.

    Raises
    ------
    SettingError
        It is so short that it might be guessed.
    """
    token = os.environ.get(name)
    if token and len(token) < _LEAST_TOKEN:
        raise SettingError(
            f"{name} is too short: a token has at least {_LEAST_TOKEN} characters; "
            "`openssl rand -hex 16` makes one"
        )
    return token or None


def default_watch_s(db: str | None) -> float:
    """Return the seconds between two looks: an object store takes money for each."""
    return 10.0 if db is not None and "://" in db else 1.0


def default_state(db: str | None) -> Path:
    """Return the folder of a service that was told none: beside its database, if that is local."""
    if db is not None and "://" not in db:
        return Path(db) / "_geneva"
    return state_folder()
