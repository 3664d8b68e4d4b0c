"""What every request is handed."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated

from fastapi import Depends, Request

from geneva.service.settings import Settings
from geneva.store.lists import Lists as _Lists
from geneva.store.store import Store as _Store


@dataclass(frozen=True, slots=True)
class _Places:
    settings: Settings
    store: _Store
    lists: _Lists


def places(settings: Settings, store: _Store) -> _Places:
    """Return what the requests of one service share."""
    return _Places(settings, store, _Lists(store.database))


def _get(request: Request) -> _Places:
    found: _Places = request.app.state.places
    return found


def _get_store(request: Request) -> _Store:
    return _get(request).store


def _get_lists(request: Request) -> _Lists:
    return _get(request).lists


Places = Annotated[_Places, Depends(_get)]
Store = Annotated[_Store, Depends(_get_store)]
Lists = Annotated[_Lists, Depends(_get_lists)]
