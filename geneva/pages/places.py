"""The parts of a service that only pages are handed."""

from __future__ import annotations

from typing import Annotated

from fastapi import Depends

from geneva.jobs.store.browse import Browser as _Browser
from geneva.service.state import Places


def _get_browser(places: Places) -> _Browser:
    return _Browser(places.store.database)


Browser = Annotated[_Browser, Depends(_get_browser)]
