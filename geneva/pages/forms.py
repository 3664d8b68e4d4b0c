"""Forms that people fill in, checked by the models of the REST interface."""

from __future__ import annotations

from typing import Any, TypeVar

from pydantic import BaseModel, ValidationError

from geneva.errors import SettingError

M = TypeVar("M", bound=BaseModel)


def checked(model: type[M], **fields: Any) -> M:
    """Return fields as REST takes them.

    Raises
    ------
    SettingError
        One does not hold what it should.
    """
    try:
        return model(**fields)
    except ValidationError as error:
        first = error.errors()[0]
        name = ".".join(str(part) for part in first["loc"])
        raise SettingError(f"{name}={first['input']!r}: {first['msg']}") from None
