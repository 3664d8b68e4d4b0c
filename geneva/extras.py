"""The extras of Geneva, and the one that brings a missing module."""

from __future__ import annotations

import contextlib
import re
from collections.abc import Iterator
from importlib.metadata import PackageNotFoundError, requires

from geneva.errors import MissingExtraError

_DISTRIBUTION = "geneva-backfill"
_OF_OUR_OWN = {"dev", "docs", "bench"}  # what nobody needs who only uses Geneva
_MODULES = {"pil": "pillow"}  # modules that are not called as what brings them


@contextlib.contextmanager
def installed() -> Iterator[None]:
    """Name the extra to install where one of its modules is missing.

    Raises
    ------
    MissingExtraError
        One is.
    """
    try:
        yield
    except ModuleNotFoundError as error:
        if (missing := missing_extra(error)) is not None:
            raise missing from error
        raise


def missing_extra(error: ModuleNotFoundError) -> MissingExtraError | None:
    """Return an error that names the extra which brings a module, if one does."""
    module = (error.name or "").partition(".")[0].lower()
    extra = _extras().get(_MODULES.get(module, module.replace("_", "-")))
    if extra is None:
        return None
    return MissingExtraError(
        f"this needs {module}, which is not installed: pip install '{_DISTRIBUTION}[{extra}]'"
    )


def _extras() -> dict[str, str]:
    """Return distribution -> extra, from the metadata of this installation."""
    try:
        requirements = requires(_DISTRIBUTION) or []
    except PackageNotFoundError:
        return {}
    extras: dict[str, str] = {}
    for line in requirements:
        name = re.match(r"[\w.-]+", line)
        extra = re.search(r"extra == ['\"]([\w-]+)['\"]", line)
        if name and extra and extra[1] not in _OF_OUR_OWN:
            extras.setdefault(name[0].lower().replace("_", "-"), extra[1])
    return extras
